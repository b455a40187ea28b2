//! Budgets, timeouts, automatic rollbacks and counts of a rollout, journey by journey; and what its neighbours share.

use super::*;
use crate::flow::{Phase, StepFailure};
use crate::work::{FailureClass, ProbeResult, ProbeWork, Verdict};
use serde_json::json;

pub(super) fn wave_budgets(mut s: StepRun, budgets: &[u32]) -> StepRun {
    if let StepRunKind::Rollout(r) = &mut s.kind {
        r.waves.iter_mut().zip(budgets).for_each(|(w, b)| w.max_failures = Some(*b));
    }
    s
}

pub(super) fn rollout_of(d: &Deployment, step: &str) -> RolloutRun {
    d.rollouts().find(|(s, _)| s.id == step).map(|(_, r)| r.clone()).expect("a rollout")
}

pub(super) fn payload<'e>(effects: &'e [Effect], name: &str) -> &'e serde_json::Value {
    let of = |e: &'e Effect| match e {
        Effect::Event { what, payload, .. } if *what == name => Some(payload),
        _ => None,
    };
    effects.iter().find_map(of).unwrap_or_else(|| panic!("no event {name} in {effects:?}"))
}

pub(super) fn started(effects: &[Effect]) -> bool {
    effects.iter().any(|e| matches!(e, Effect::StartWork { .. }))
}

pub(super) type Bad<'a> = (&'a str, Outcome, Option<FailureClass>, Option<i32>);

impl World {
    pub(super) fn only_work(&self) -> (WorkId, WorkSpec) {
        let flying = self.d.works_in_flight();
        assert_eq!(flying.len(), 1, "{:?}", self.d.waiting_on());
        (flying[0], self.works[&flying[0]].clone())
    }

    pub(super) fn wave_work(&self) -> crate::work::WaveWork {
        match self.only_work().1 {
            WorkSpec::Wave(w) => w,
            other => panic!("not a wave: {other:?}"),
        }
    }

    pub(super) fn probe_work(&self) -> ProbeWork {
        match self.only_work().1 {
            WorkSpec::Probe(p) => p,
            other => panic!("no probes: {other:?}"),
        }
    }

    pub(super) fn wave_result(&self, bad: &[Bad<'_>]) -> WorkResult {
        let host = |h: &crate::work::WaveHost| {
            let bad = bad.iter().find(|b| b.0 == h.host);
            HostResult {
                host: h.host.clone(),
                attempt: h.attempt,
                outcome: bad.map_or(Outcome::Succeeded, |b| b.1),
                failed_step: bad.filter(|b| b.1 == Outcome::Failed).map(|_| 3),
                failed_id: None,
                reason: bad.map(|b| format!("{} is {:?}", h.host, b.1)),
                class: bad.and_then(|b| b.2),
                exit_code: bad.and_then(|b| b.3),
                outputs: Default::default(),
            }
        };
        WorkResult::Wave { hosts: self.wave_work().hosts.iter().map(host).collect() }
    }

    pub(super) fn settle_wave(&mut self, bad: &[Bad<'_>]) -> Vec<Effect> {
        let (work, result) = (self.only_work().0, self.wave_result(bad));
        self.go(Input::WorkSettled { work, result })
    }

    pub(super) fn looked(&mut self, verdict: Verdict, why: &str) -> Vec<Effect> {
        let probe =
            ProbeResult { probe: "errors".into(), verdict, looks: 4, value: json!(0.3), reason: Some(why.into()) };
        let result = WorkResult::Probe { verdict, probes: vec![probe], reason: None };
        self.go(Input::WorkSettled { work: self.only_work().0, result })
    }

    pub(super) fn central_fails(&mut self, class: FailureClass) -> Vec<Effect> {
        let result = WorkResult::Central {
            succeeded: false,
            reason: Some("boom".into()),
            output: json!(null),
            class: Some(class),
        };
        self.go(Input::WorkSettled { work: self.only_work().0, result })
    }

    pub(super) fn at(&mut self, s: i64) -> Vec<Effect> {
        self.now = s;
        self.go(Input::Tick)
    }

    pub(super) fn retry(&mut self, hosts: &[&str]) -> Vec<Effect> {
        let hosts = hosts.iter().map(|h| h.to_string()).collect();
        self.go(Input::Retry { by: ops(), hosts, step: None, whole_wave: false })
    }

    pub(super) fn ignore(&mut self, hosts: &[&str]) -> Vec<Effect> {
        let hosts = hosts.iter().map(|h| h.to_string()).collect();
        self.go(Input::Ignore { by: ops(), hosts, reason: "known".into() })
    }

    pub(super) fn wave(&self, w: usize) -> WaveRun {
        rollout_of(&self.d, "go").waves[w].clone()
    }
}

pub(super) const EXIT: Option<FailureClass> = Some(FailureClass::Exit);
pub(super) const TIMEOUT: Option<FailureClass> = Some(FailureClass::Timeout);

pub(super) fn failed(host: &str) -> Bad<'_> {
    (host, Outcome::Failed, EXIT, Some(1))
}

#[test]
fn a_wave_fails_by_its_own_budget_though_the_rollout_could_bear_it() {
    let go = rollout("go", &[], &[&["a", "b", "c"], &["d", "e"]], 3, Confirm::None, 0);
    let mut w = World::running(facts(vec![wave_budgets(go, &[1, 1])], 0));
    assert_eq!(w.wave_work().max_failures, 1, "the smaller of both");
    w.settle_wave(&[failed("a"), failed("b")]);
    assert_eq!(w.wave(0).state, WaveState::Failed);
    w.ignore(&["a"]);
    assert_eq!(w.wave(0).state, WaveState::Succeeded);
    assert_eq!(w.wave_work().max_failures, 1, "one of three is used up; the wave itself bears one");
}

#[test]
fn a_work_gets_what_is_left_of_the_smaller_budget() {
    let go = rollout("go", &[], &[&["a", "b", "c"], &["d", "e", "f"]], 2, Confirm::None, 0);
    let mut w = World::running(facts(vec![wave_budgets(go, &[5, 5])], 0));
    assert_eq!(w.wave_work().max_failures, 2);
    w.settle_wave(&[failed("a")]);
    assert_eq!(w.wave_work().max_failures, 1);
    w.settle_wave(&[failed("d"), failed("e")]);
    assert_eq!(w.wave(1).state, WaveState::Failed);
    assert_eq!(w.wave(0).state, WaveState::Succeeded);
}

#[test]
fn a_retry_of_one_host_does_not_start_what_the_budget_held_back() {
    let go = rollout("go", &[], &[&["a", "b", "c"]], 0, Confirm::None, 0);
    let mut w = World::running(facts(vec![go], 0));
    w.settle_wave(&[failed("a"), failed("b"), ("c", Outcome::AutoStopped, None, None)]);
    w.retry(&["a"]);
    assert_eq!(w.wave_hosts(), [("a".into(), 2, 3)], "b has failed still, so c stays where it is");
    w.settle_wave(&[]);
    assert_eq!(w.wave(0).state, WaveState::Failed);
    w.retry(&["b"]);
    assert_eq!(w.wave_hosts(), [("b".into(), 2, 3), ("c".into(), 1 + 1, 0)]);
    w.settle_wave(&[]);
    assert_eq!(w.d.state, State::Succeeded);
}

#[test]
fn what_a_silent_host_says_after_a_retry_of_others_is_heard() {
    let go = rollout("go", &[], &[&["a", "b"]], 1, Confirm::None, 0);
    let mut w = World::running(facts(vec![go], 0));
    let (first, bad) = (w.only_work().0, [failed("a"), ("b", Outcome::Unknown, Some(FailureClass::Unknown), None)]);
    w.settle_wave(&bad);
    w.retry(&["a"]);
    assert_eq!(w.wave_hosts(), [("a".into(), 2, 3)]);
    let late = |outcome| WorkResult::Wave { hosts: vec![of_host("b", outcome)] };
    w.go(Input::WorkSettled { work: first, result: late(Outcome::Succeeded) });
    assert!(w.d.unknown_hosts().is_empty());
    let again = w.try_do(Input::WorkSettled { work: first, result: late(Outcome::Failed) });
    assert!(matches!(again, Err(Refusal::NothingToDo(_))), "what is known stays");
    w.settle_wave(&[]);
    assert_eq!(w.d.state, State::Succeeded);
}

#[test]
fn a_timeout_leads_where_on_timeout_says() {
    let on = |class| {
        let mut s = central("call", &[]);
        (s.on_failure, s.on_timeout) = (Some(StepFailure::Pause), Some(StepFailure::Stop));
        let mut w = World::running(facts(vec![s], 0));
        w.central_fails(class);
        w.d.state
    };
    assert_eq!((on(FailureClass::Timeout), on(FailureClass::Exit)), (State::Failed, State::Paused));
    let on = |classes: [Option<FailureClass>; 2]| {
        let mut s = rollout("go", &[], &[&["a", "b"]], 0, Confirm::None, 0);
        (s.on_failure, s.on_timeout) = (Some(StepFailure::Pause), Some(StepFailure::Stop));
        let mut w = World::running(facts(vec![s], 0));
        w.settle_wave(&[("a", Outcome::Failed, classes[0], None), ("b", Outcome::Failed, classes[1], None)]);
        w.d.state
    };
    assert_eq!(on([TIMEOUT, TIMEOUT]), State::Failed);
    assert_eq!(on([TIMEOUT, EXIT]), State::Paused, "one host did not merely take too long");
}

#[test]
fn the_flow_says_which_rollback_is_automatic() {
    for (says, asked) in [(None, RollbackMode::Normal), (Some(RollbackMode::Emergency), RollbackMode::Emergency)] {
        let mut plan = facts(vec![central("call", &[])], 0);
        (plan.on_failure, plan.automatic) = (OnFailure::Rollback, says);
        let mut w = World::running(plan);
        let effects = w.central_fails(FailureClass::Exit);
        let mode = effects.iter().find_map(|e| match e {
            Effect::RequestRollback { mode, id: None, .. } => Some(*mode),
            _ => None,
        });
        assert_eq!(mode, Some(asked));
    }
}

#[test]
fn hosts_are_counted_apart_and_once() {
    let hosts = ["ok", "bad", "hand", "auto", "not", "lost", "out"];
    let first = rollout("go", &[], &[&hosts], 9, Confirm::None, 0);
    let then = rollout("then", &["go", "gate"], &[&["ok", "bad", "out"]], 9, Confirm::None, 0);
    let gate = central("gate", &["go"]);
    let mut left_out = rollout("never", &[], &[&["ok", "other"]], 0, Confirm::None, 0);
    left_out.state = StepState::NotTaken;
    let mut w = World::running(facts(vec![first, gate, then, left_out], 0));
    assert_eq!((w.d.host_counts().total, w.d.host_counts().running, w.d.host_counts().not_started), (8, 7, 1));
    w.settle_wave(&[
        failed("bad"),
        ("hand", Outcome::Cancelled, Some(FailureClass::Stopped), None),
        ("auto", Outcome::AutoStopped, None, None),
        ("not", Outcome::NotStarted, Some(FailureClass::Unreachable), None),
        ("lost", Outcome::Unknown, None, None),
    ]);
    // `out` was taken out of the second part alone.
    w.go(Input::Exclude { by: ops(), hosts: vec!["out".into()], reason: "r".into() });
    let c = w.d.host_counts();
    let apart = [c.failed, c.hand_stopped, c.auto_stopped, c.not_started, c.unknown];
    assert_eq!(apart, [1, 1, 1, 2, 1], "{c:?}");
    // `ok` is done here and waits for its second part.
    assert_eq!((c.waiting, c.succeeded, c.excluded, c.total), (1, 0, 1, 8), "{c:?}");
    let sum = c.waiting + c.running + c.succeeded + c.ignored + c.excluded + apart.iter().sum::<u32>();
    assert_eq!(sum, c.total);
}

#[test]
fn a_rollback_takes_back_what_the_release_touched() {
    let phase = |mut s: StepRun, p| {
        s.phase = p;
        s
    };
    let before = rollout("before", &[], &[&["a"]], 0, Confirm::None, 0);
    let release = rollout("go", &["before"], &[&["b"], &["never"]], 0, Confirm::None, 0);
    let after = rollout("after", &[], &[&["b", "c"]], 0, Confirm::None, 0);
    let none = rollout("none", &[], &[&["d"]], 0, Confirm::None, 0);
    let steps = vec![
        phase(before, Some(Phase::Prepare)),
        phase(release, Some(Phase::Release)),
        phase(after, Some(Phase::PostRelease)),
        none,
    ];
    let mut w = World::running(facts(steps, 0));
    while w.d.state != State::Failed && w.d.waiting_on().iter().all(|x| matches!(x, WaitingOn::Hosts { .. })) {
        let (id, spec) = w.d.works_in_flight().first().map(|id| (*id, w.works[id].clone())).expect("flies");
        let WorkSpec::Wave(v) = spec else { panic!("a wave") };
        let outcome = if v.step == "go" { Outcome::Failed } else { Outcome::Succeeded };
        let host = |h: &crate::work::WaveHost| HostResult { attempt: h.attempt, ..of_host(&h.host, outcome) };
        let hosts = v.hosts.iter().map(host).collect();
        w.go(Input::WorkSettled { work: id, result: WorkResult::Wave { hosts } });
    }
    assert_eq!(w.d.touched_hosts(), ["a", "b", "c", "d"]);
    assert_eq!(w.d.release_hosts(None), ["b", "c", "d"]);
    assert_eq!(w.d.release_hosts(Some(Phase::PostRelease)), ["b", "c"]);
    assert_eq!(w.d.release_hosts(Some(Phase::Prepare)), ["a", "b", "c", "d"]);
}
