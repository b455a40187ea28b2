//! What a change costs grows with the hosts, and no faster: a deployment of four times the hosts takes about four times as
//! long, whether they stand in one wave or in many.

use super::*;
use std::time::{Duration, Instant};

/// Everything that is asked of a deployment of this shape, to its end; half its hosts fail once and are tried again.
fn run(waves: usize, hosts: usize) -> Duration {
    let names: Vec<String> = (0..waves * hosts).map(|n| format!("host-{n:06}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let waves: Vec<&[&str]> = names.chunks(hosts).collect();
    let go = rollout("go", &[], &waves, 0, Confirm::None, 0);
    let again = rollout("again", &["go"], &waves, 0, Confirm::None, 0);
    let mut w = World::new(facts(vec![go, again], 0));
    let began = Instant::now();
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
    began.elapsed()
}

/// The quickest of some runs: what else the machine does can only slow one down.
fn quickest(waves: usize, hosts: usize) -> Duration {
    (0..4).map(|_| run(waves, hosts)).min().unwrap_or_default()
}

#[test]
fn cost_grows_with_the_hosts_and_no_faster() {
    for (waves, few, many) in [(1, 1_000, 4_000), (10, 100, 400)] {
        let (a, b) = (quickest(waves, few), quickest(waves, many));
        let ratio = b.as_secs_f64() / a.as_secs_f64();
        eprintln!("{waves} wave(s): {} hosts {a:?}, {} hosts {b:?}, ratio {ratio:.1}", waves * few, waves * many);
        // Linear is 4, quadratic 16.
        assert!(ratio < 9.0, "four times the hosts cost {ratio:.1} times as much ({a:?}, {b:?})");
    }
}

#[test]
fn five_thousand_hosts_in_ten_waves_are_decided_in_seconds() {
    let took = run(10, 500);
    eprintln!("5000 hosts, 10 waves, two rollouts: {took:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
}
