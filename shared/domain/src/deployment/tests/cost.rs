//! What a change costs grows with the hosts, and no faster: a deployment of eight times the hosts costs about eight times as
//! much, whether they stand in one wave or in many.

use super::*;
use std::time::{Duration, Instant};

/// Time that this thread has been on a processor, where the system tells: what else the machine does is not in it.
fn clock(since: Instant) -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let ns = told.as_deref().and_then(|t| t.split(' ').next()).and_then(|n| n.parse().ok());
    ns.map_or_else(|| since.elapsed(), Duration::from_nanos)
}

/// Everything that is asked of a deployment of this shape, to its end; half its hosts fail once and are tried again.
fn run(waves: usize, hosts: usize) -> Duration {
    let names: Vec<String> = (0..waves * hosts).map(|n| format!("host-{n:06}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let waves: Vec<&[&str]> = names.chunks(hosts).collect();
    let go = rollout("go", &[], &waves, 0, Confirm::None, 0);
    let again = rollout("again", &["go"], &waves, 0, Confirm::None, 0);
    let mut w = World::new(facts(vec![go, again], 0));
    let since = Instant::now();
    let began = clock(since);
    w.go(Input::LockTaken { fence: 1 });
    let mut known = 0;
    while !w.d.state.is_terminal() {
        let flying = w.d.works_in_flight();
        let Some(id) = flying.first().copied() else {
            assert_eq!(w.d.waiting_on().len(), 1);
            w.go(Input::Retry { by: ops(), hosts: vec![], step: None, whole_wave: false });
            continue;
        };
        let Some(WorkSpec::Wave(v)) = w.works.remove(&id) else { panic!("a wave") };
        let result = |h: &crate::work::WaveHost| {
            let odd = h.host.as_bytes().last().is_some_and(|b| b % 2 == 1);
            let outcome = if odd && h.attempt == 1 { Outcome::Failed } else { Outcome::Succeeded };
            let (host, attempt, failed_step) = (h.host.clone(), h.attempt, (outcome == Outcome::Failed).then_some(2));
            let (reason, failed_id, class, exit_code) = (None, None, None, None);
            let outputs = Default::default();
            HostResult { host, attempt, outcome, failed_step, reason, failed_id, class, exit_code, outputs }
        };
        let hosts = v.hosts.iter().map(result).collect();
        w.go(Input::WorkSettled { work: id, result: WorkResult::Wave { hosts } });
        known += w.d.host_counts().total as usize + w.d.release_hosts(None).len() + w.d.waiting_on().len();
        known += usize::from(w.d.wake_at().is_some());
        w.log.clear();
    }
    assert_eq!(w.d.state, State::Succeeded);
    assert!(known > 0);
    clock(since) - began
}

#[test]
fn cost_grows_with_the_hosts_and_no_faster() {
    for (waves, few, many) in [(1, 2_000, 16_000), (10, 100, 800)] {
        // Linear is 8, quadratic 64. Caches and neighbours on the processor can spoil a measurement, but not every one.
        let ratio = || run(waves, many).as_secs_f64() / run(waves, few).as_secs_f64();
        let best = (0..4).map(|_| ratio()).find(|r| *r < 20.0);
        assert!(
            best.is_some(),
            "{waves} wave(s): eight times the hosts cost more than 20 times as much, four times over"
        );
    }
}
