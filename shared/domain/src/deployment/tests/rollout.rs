//! Budgets, probes, retries by policy, timeouts, patience and counts, journey by journey.

use super::*;
use crate::flow::{Inconclusive, Overdue, Patience, Phase, Retry, StepFailure};
use crate::work::{FailureClass, ProbeResult, ProbeWork, Verdict};
use serde_json::json;

fn policy(max: u32, on: &[FailureClass], exit_codes: &[i32]) -> Retry {
    let (on, exit_codes) = (on.to_vec(), exit_codes.to_vec());
    Retry { max, on, exit_codes, backoff_s: 5, factor: 2, max_backoff_s: 60 }
}

fn retried(mut s: StepRun, r: Retry) -> StepRun {
    s.retry = Some(r);
    s
}

fn probed(mut s: StepRun, unclear: Inconclusive) -> StepRun {
    if let StepRunKind::Rollout(r) = &mut s.kind {
        r.probes = Some(unclear);
    }
    s
}

fn wave_budgets(mut s: StepRun, budgets: &[u32]) -> StepRun {
    if let StepRunKind::Rollout(r) = &mut s.kind {
        r.waves.iter_mut().zip(budgets).for_each(|(w, b)| w.max_failures = Some(*b));
    }
    s
}

fn rollout_of(d: &Deployment, step: &str) -> RolloutRun {
    d.rollouts().find(|(s, _)| s.id == step).map(|(_, r)| r.clone()).expect("a rollout")
}

fn events(effects: &[Effect]) -> Vec<&'static str> {
    let what = |e: &Effect| match e {
        Effect::Event { what, .. } => Some(*what),
        _ => None,
    };
    effects.iter().filter_map(what).collect()
}

fn payload<'e>(effects: &'e [Effect], name: &str) -> &'e serde_json::Value {
    let of = |e: &'e Effect| match e {
        Effect::Event { what, payload, .. } if *what == name => Some(payload),
        _ => None,
    };
    effects.iter().find_map(of).unwrap_or_else(|| panic!("no event {name} in {effects:?}"))
}

fn started(effects: &[Effect]) -> bool {
    effects.iter().any(|e| matches!(e, Effect::StartWork { .. }))
}

type Bad<'a> = (&'a str, Outcome, Option<FailureClass>, Option<i32>);

impl World {
    fn only_work(&self) -> (WorkId, WorkSpec) {
        let flying = self.d.works_in_flight();
        assert_eq!(flying.len(), 1, "{:?}", self.d.waiting_on());
        (flying[0], self.works[&flying[0]].clone())
    }

    fn wave_work(&self) -> crate::work::WaveWork {
        match self.only_work().1 {
            WorkSpec::Wave(w) => w,
            other => panic!("not a wave: {other:?}"),
        }
    }

    fn probe_work(&self) -> ProbeWork {
        match self.only_work().1 {
            WorkSpec::Probe(p) => p,
            other => panic!("no probes: {other:?}"),
        }
    }

    fn wave_result(&self, bad: &[Bad<'_>]) -> WorkResult {
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

    fn settle_wave(&mut self, bad: &[Bad<'_>]) -> Vec<Effect> {
        let (work, result) = (self.only_work().0, self.wave_result(bad));
        self.go(Input::WorkSettled { work, result })
    }

    fn looked(&mut self, verdict: Verdict, why: &str) -> Vec<Effect> {
        let probe =
            ProbeResult { probe: "errors".into(), verdict, looks: 4, value: json!(0.3), reason: Some(why.into()) };
        let result = WorkResult::Probe { verdict, probes: vec![probe], reason: None };
        self.go(Input::WorkSettled { work: self.only_work().0, result })
    }

    fn central_fails(&mut self, class: FailureClass) -> Vec<Effect> {
        let result = WorkResult::Central {
            succeeded: false,
            reason: Some("boom".into()),
            output: json!(null),
            class: Some(class),
        };
        self.go(Input::WorkSettled { work: self.only_work().0, result })
    }

    fn at(&mut self, s: i64) -> Vec<Effect> {
        self.now = s;
        self.go(Input::Tick)
    }

    fn retry(&mut self, hosts: &[&str]) -> Vec<Effect> {
        let hosts = hosts.iter().map(|h| h.to_string()).collect();
        self.go(Input::Retry { by: ops(), hosts, step: None, whole_wave: false })
    }

    fn ignore(&mut self, hosts: &[&str]) -> Vec<Effect> {
        let hosts = hosts.iter().map(|h| h.to_string()).collect();
        self.go(Input::Ignore { by: ops(), hosts, reason: "known".into() })
    }

    fn wave(&self, w: usize) -> WaveRun {
        rollout_of(&self.d, "go").waves[w].clone()
    }
}

const EXIT: Option<FailureClass> = Some(FailureClass::Exit);
const TIMEOUT: Option<FailureClass> = Some(FailureClass::Timeout);

fn failed(host: &str) -> Bad<'_> {
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
    let late = |outcome| WorkResult::Wave {
        hosts: vec![HostResult {
            host: "b".into(),
            attempt: 1,
            outcome,
            failed_step: None,
            reason: None,
            failed_id: None,
            class: None,
            exit_code: None,
            outputs: Default::default(),
        }],
    };
    w.go(Input::WorkSettled { work: first, result: late(Outcome::Succeeded) });
    assert!(w.d.unknown_hosts().is_empty());
    let again = w.try_do(Input::WorkSettled { work: first, result: late(Outcome::Failed) });
    assert!(matches!(again, Err(Refusal::NothingToDo(_))), "what is known stays");
    w.settle_wave(&[]);
    assert_eq!(w.d.state, State::Succeeded);
}

#[test]
fn the_last_wave_too_is_judged_by_its_probes_before_the_release_counts() {
    let go = rollout("go", &[], &[&["a"], &["b", "c"]], 1, Confirm::None, 60);
    let mut w = World::running(facts(vec![probed(go, Inconclusive::Ask)], 0));
    let effects = w.settle_wave(&[]);
    assert_eq!(events(&effects), ["wave.succeeded", "wave.probing"]);
    let p = w.probe_work();
    assert_eq!((p.wave, p.attempt, p.hosts, p.until), (0, 1, vec!["a".to_owned()], t(60)));
    assert!(matches!(w.d.waiting_on()[..], [WaitingOn::Probes { wave: 0, .. }]));
    assert_eq!(w.d.state, State::Running);
    w.now = 60;
    assert_eq!(events(&w.looked(Verdict::Success, "")), ["wave.probed", "wave.started"]);
    w.settle_wave(&[failed("c")]);
    assert_eq!(w.probe_work().hosts, ["b"], "only where it went well");
    assert_eq!(w.d.state, State::Running);
    let effects = w.looked(Verdict::Success, "");
    assert_eq!(w.d.state, State::Succeeded);
    assert!(effects.contains(&Effect::RecordGood));
}

#[test]
fn a_wave_whose_probes_fail_is_looked_at_again_by_a_retry_and_passed_by_ignore() {
    let go = rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::None, 60);
    let mut w = World::running(facts(vec![probed(go, Inconclusive::Ask)], 0));
    w.settle_wave(&[]);
    let work = w.only_work().0;
    let effects = w.looked(Verdict::Fail, "3% of requests failed");
    assert_eq!(events(&effects), ["wave.probe_failed", "deployment.needs_intervention"]);
    let told = payload(&effects, "deployment.needs_intervention");
    assert_eq!(told["reason"], "probe errors failed: 3% of requests failed");
    assert_eq!(w.wave(0).state, WaveState::Failed);
    assert_eq!(w.wave(0).hosts[0].state, HostState::Succeeded, "its hosts are not to blame");
    assert!(w.d.waiting_on()[0].to_string().contains("probe errors failed"), "{:?}", w.d.waiting_on());
    let again = WorkResult::Probe { verdict: Verdict::Success, probes: vec![], reason: None };
    let late = w.try_do(Input::WorkSettled { work, result: again });
    assert!(matches!(late, Err(Refusal::NothingToDo(_))), "a verdict is not taken back");

    w.now = 100;
    w.retry(&[]);
    let p = w.probe_work();
    assert_eq!((p.attempt, p.until), (2, t(160)));
    w.looked(Verdict::Fail, "still");
    w.ignore(&[]);
    assert_eq!(w.wave(0).state, WaveState::Succeeded);
    assert_eq!(w.wave_work().wave, 1);
}

#[test]
fn probes_that_fail_do_what_the_steps_failures_lead_to() {
    let on = |f| {
        let mut go = probed(rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::None, 60), Inconclusive::Ask);
        go.on_failure = Some(f);
        let mut w = World::running(facts(vec![go], 0));
        w.settle_wave(&[]);
        let effects = w.looked(Verdict::Fail, "errors");
        (w, effects)
    };
    let (w, effects) = on(StepFailure::Rollback);
    assert_eq!(w.d.state, State::Failed);
    assert!(effects.iter().any(|e| matches!(e, Effect::RequestRollback { id: None, .. })));
    let (w, _) = on(StepFailure::Stop);
    assert_eq!(w.d.state, State::Failed);
    assert_eq!(w.wave(1).state, WaveState::Stopped);
    let (w, _) = on(StepFailure::Continue);
    assert_eq!((w.d.state, w.state("go")), (State::Failed, StepState::Failed), "nothing joins over it");
}

#[test]
fn probes_that_cannot_tell_ask_pass_or_fail_as_the_rollout_says() {
    let with = |unclear| {
        let go = probed(rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::None, 60), unclear);
        let mut w = World::running(facts(vec![go], 0));
        w.settle_wave(&[]);
        let effects = w.looked(Verdict::Inconclusive, "no samples");
        (w, effects)
    };
    let (mut w, effects) = with(Inconclusive::Ask);
    assert!(events(&effects).contains(&"deployment.awaiting_confirmation"));
    let waits = w.d.waiting_on();
    assert!(
        matches!(&waits[..], [WaitingOn::Confirmation { reason: Some(r), .. }] if r.contains("no samples")),
        "{waits:?}"
    );
    w.go(Input::Confirm { by: ops(), wave: 0 });
    assert_eq!(w.wave_work().wave, 1, "what a person has answered is not asked again");
    let (w, _) = with(Inconclusive::Pass);
    assert_eq!(w.wave_work().wave, 1);
    let (w, _) = with(Inconclusive::Fail);
    assert_eq!(w.wave(0).state, WaveState::Failed);
}

#[test]
fn a_person_confirms_first_and_then_the_probes_are_looked_at() {
    let go = probed(rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::First, 60), Inconclusive::Ask);
    let mut w = World::running(facts(vec![go], 0));
    w.settle_wave(&[]);
    assert_eq!(w.wave(0).state, WaveState::Confirming);
    w.go(Input::Pause { by: ops(), reason: "r".into() });
    let effects = w.go(Input::Confirm { by: ops(), wave: 0 });
    assert!(!started(&effects), "nothing starts under a pause");
    assert!(w.d.works_in_flight().is_empty());
    w.now = 500;
    w.go(Input::Resume { by: ops() });
    assert_eq!(w.probe_work().until, t(560), "the look takes its full time");
}

#[test]
fn an_abort_waits_for_the_look_at_the_probes_and_asks_nobody() {
    let go = probed(rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::None, 60), Inconclusive::Ask);
    let mut w = World::running(facts(vec![go], 0));
    w.settle_wave(&[]);
    let effects = w.go(Input::Abort { by: ops(), reason: "r".into() });
    assert!(effects.contains(&Effect::AbortWorks));
    assert_eq!(w.d.state, State::Aborting);
    assert!(!w.d.waiting_on().is_empty());
    let effects = w.looked(Verdict::Inconclusive, "cut short");
    assert!(!events(&effects).contains(&"deployment.awaiting_confirmation"));
    assert_eq!(w.d.state, State::Aborted);
    assert_eq!((w.wave(0).state, w.wave(1).state), (WaveState::Succeeded, WaveState::Stopped));
}

#[test]
fn a_failure_that_ends_the_deployment_cuts_the_looks_short() {
    let mut other = central("other", &[]);
    other.on_failure = Some(StepFailure::Stop);
    let go = probed(rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::None, 3600), Inconclusive::Ask);
    let mut w = World::running(facts(vec![go, other], 0));
    let wave = w.d.works_in_flight()[0];
    let hosts = vec![HostResult {
        host: "a".into(),
        attempt: 1,
        outcome: Outcome::Succeeded,
        failed_step: None,
        reason: None,
        failed_id: None,
        class: None,
        exit_code: None,
        outputs: Default::default(),
    }];
    w.go(Input::WorkSettled { work: wave, result: WorkResult::Wave { hosts } });
    let look = w.d.works_in_flight()[0];
    let effects = w.fail("other");
    assert!(effects.contains(&Effect::AbortWork(look)), "{effects:?}");
    let result = WorkResult::Probe { verdict: Verdict::Inconclusive, probes: vec![], reason: None };
    w.go(Input::WorkSettled { work: look, result });
    assert_eq!(w.d.state, State::Failed);
}

#[test]
fn hosts_that_run_again_are_looked_at_again() {
    let go = probed(rollout("go", &[], &[&["a", "b"]], 1, Confirm::None, 60), Inconclusive::Ask);
    let mut w = World::running(facts(vec![go], 0));
    w.settle_wave(&[failed("b")]);
    w.looked(Verdict::Fail, "errors");
    w.retry(&["b"]);
    assert_eq!(w.wave_hosts(), [("b".into(), 2, 3)]);
    w.settle_wave(&[]);
    let p = w.probe_work();
    assert_eq!((p.attempt, p.hosts.len()), (2, 2));
    w.looked(Verdict::Success, "");
    assert_eq!(w.d.state, State::Succeeded);
}

#[test]
fn a_policy_tries_a_central_step_again_with_growing_pauses_and_then_asks() {
    let step = retried(central("call", &[]), policy(3, &[], &[]));
    let mut w = World::running(facts(vec![step], 0));
    let mut now = 0;
    for (n, pause) in [(1, 5), (2, 10), (3, 20)] {
        let effects = w.central_fails(FailureClass::Timeout);
        assert_eq!(events(&effects), ["step.failed", "step.retrying"]);
        assert_eq!(w.d.wake_at(), Some(t(now + pause)));
        let waits = w.d.waiting_on();
        assert!(matches!(&waits[..], [WaitingOn::Retry { run, max: 3, .. }] if *run == n), "{waits:?}");
        assert!(!started(&w.at(now + pause - 1)));
        now += pause;
        assert!(started(&w.at(now)));
    }
    let effects = w.central_fails(FailureClass::Timeout);
    assert!(events(&effects).contains(&"deployment.needs_intervention"), "{effects:?}");
    // What a person tries again has its tries again.
    w.retry(&[]);
    assert!(events(&w.central_fails(FailureClass::Exit)).contains(&"step.retrying"));
    w.at(now + 5);
    w.settle(&[]);
    assert_eq!(w.d.state, State::Succeeded);
    let StepRunKind::Central { attempt, .. } = &w.d.steps[0].kind else { panic!("central") };
    assert_eq!(*attempt, 6, "every try is an attempt of its own");
}

#[test]
fn a_pause_that_grows_has_an_end() {
    let mut p = policy(100, &[], &[]);
    p.factor = 10;
    let mut w = World::running(facts(vec![retried(central("call", &[]), p)], 0));
    for _ in 0..100 {
        w.central_fails(FailureClass::Exit);
        let next = w.d.wake_at().expect("a next try");
        let pause = (next - t(w.now)).num_seconds();
        assert!((5..=60).contains(&pause), "{pause}");
        w.at(w.now + pause);
    }
    assert!(!events(&w.central_fails(FailureClass::Exit)).contains(&"step.retrying"));
}

#[test]
fn a_policy_tries_only_what_it_names_and_never_the_unknown() {
    for (class, on, tried) in [
        (FailureClass::Exit, vec![], true),
        (FailureClass::Refused, vec![], false),
        (FailureClass::Artifact, vec![], false),
        (FailureClass::Artifact, vec![FailureClass::Artifact], true),
        (FailureClass::Exit, vec![FailureClass::Timeout], false),
        (FailureClass::Unknown, vec![FailureClass::Unknown], false),
        (FailureClass::Stopped, vec![FailureClass::Stopped], false),
    ] {
        let mut w = World::running(facts(vec![retried(central("call", &[]), policy(1, &on, &[]))], 0));
        let effects = w.central_fails(class);
        assert_eq!(events(&effects).contains(&"step.retrying"), tried, "{class:?} {on:?}");
    }
}

#[test]
fn a_pause_holds_retries_back_and_an_abort_ends_them() {
    let start = || {
        let go = retried(rollout("go", &[], &[&["a"]], 0, Confirm::None, 0), policy(2, &[], &[]));
        let call = retried(central("call", &[]), policy(2, &[], &[]));
        let mut w = World::running(facts(vec![call, go], 0));
        w.fail("call");
        w.settle_wave(&[failed("a")]);
        w
    };
    let mut w = start();
    w.go(Input::Pause { by: ops(), reason: "r".into() });
    assert!(!started(&w.at(50)));
    assert!(w.d.wake_at().is_none_or(|at| at > t(50)), "nothing to wake for but the operator's deadline");
    let effects = w.go(Input::Resume { by: ops() });
    assert_eq!(effects.iter().filter(|e| matches!(e, Effect::StartWork { .. })).count(), 2);

    let mut w = start();
    w.go(Input::Abort { by: ops(), reason: "r".into() });
    assert_eq!(w.d.state, State::Aborted);
    assert_eq!(
        (w.state("call"), w.wave(0).state),
        (StepState::Failed, WaveState::Failed),
        "it is known that they failed"
    );
    assert!(!started(&w.at(50)));
}

#[test]
fn a_retry_is_another_attempt_of_the_same_run_of_a_repeated_step() {
    let step = super::graph::repeated(central("call", &[]), "steps.call.outputs.ok", 2, 0);
    let mut w = World::running(facts(vec![retried(step, policy(5, &[], &[]))], 0));
    for _ in 0..3 {
        w.central_fails(FailureClass::Exit);
        w.at(w.now + 100);
    }
    assert_eq!(w.d.steps[0].repeat.as_ref().map(|r| r.runs), Some(1));
    w.give("call", json!({ "ok": true }));
    assert_eq!(w.d.state, State::Succeeded);
}

#[test]
fn a_policy_tries_failed_hosts_again_at_the_step_that_failed() {
    let go = retried(rollout("go", &[], &[&["a", "b", "c"], &["d"]], 0, Confirm::None, 0), policy(2, &[], &[]));
    let mut w = World::running(facts(vec![go], 0));
    let effects = w.settle_wave(&[
        failed("a"),
        ("b", Outcome::AutoStopped, None, None),
        ("c", Outcome::NotStarted, TIMEOUT, None),
    ]);
    assert_eq!(events(&effects), ["wave.retrying"]);
    assert_eq!(w.wave(0).state, WaveState::Retrying { at: t(5) });
    assert_eq!(w.wave(0).hosts[0].state, HostState::Failed, "it has failed until it runs again");
    let waits = w.d.waiting_on();
    assert!(
        matches!(&waits[..], [WaitingOn::Retry { wave: Some(0), hosts, run: 1, max: 2, .. }] if hosts.len() == 2),
        "{waits:?}"
    );
    assert_eq!(w.d.wake_at(), Some(t(5)));
    w.at(5);
    let mut hosts = w.wave_hosts();
    hosts.sort();
    assert_eq!(hosts, [("a".into(), 2, 3), ("b".into(), 2, 0), ("c".into(), 2, 0)]);
    w.settle_wave(&[failed("a")]);
    assert_eq!(w.wave(0).state, WaveState::Retrying { at: t(15) });
    w.at(15);
    assert_eq!(w.wave_hosts(), [("a".into(), 3, 3)]);
    let effects = w.settle_wave(&[failed("a")]);
    assert!(events(&effects).contains(&"deployment.needs_intervention"), "used up: {effects:?}");
    w.retry(&[]);
    w.settle_wave(&[]);
    assert_eq!(w.wave_work().wave, 1);
}

#[test]
fn the_policy_tries_hosts_by_class_and_exit_code() {
    let go = rollout("go", &[], &[&["a", "b"]], 1, Confirm::None, 0);
    let mut w = World::running(facts(vec![retried(go, policy(1, &[], &[75]))], 0));
    w.settle_wave(&[("a", Outcome::Failed, EXIT, Some(75)), ("b", Outcome::Failed, EXIT, Some(1))]);
    w.at(5);
    assert_eq!(w.wave_hosts(), [("a".into(), 2, 3)]);
    w.settle_wave(&[]);
    assert_eq!(w.d.state, State::Succeeded, "b is within the budget");
}

#[test]
fn nothing_is_tried_again_when_what_is_not_tried_again_is_over_the_budget() {
    let go = rollout("go", &[], &[&["a", "b", "c"]], 0, Confirm::None, 0);
    let mut w = World::running(facts(vec![retried(go, policy(3, &[], &[75]))], 0));
    let effects = w.settle_wave(&[("a", Outcome::Failed, EXIT, Some(75)), failed("b")]);
    assert!(events(&effects).contains(&"wave.failed"), "{effects:?}");
    assert_eq!(w.wave(0).state, WaveState::Failed);
}

#[test]
fn an_unknown_host_is_never_tried_again_by_a_policy_and_counts() {
    let go = rollout("go", &[], &[&["a", "b"]], 1, Confirm::None, 0);
    let every = [FailureClass::Exit, FailureClass::Unknown];
    let mut w = World::running(facts(vec![retried(go, policy(3, &every, &[]))], 0));
    w.settle_wave(&[failed("a"), ("b", Outcome::Unknown, Some(FailureClass::Unknown), None)]);
    w.at(5);
    assert_eq!(w.wave_hosts(), [("a".into(), 2, 3)]);
    assert_eq!(w.wave_work().max_failures, 0, "b has used the budget up");
    w.settle_wave(&[]);
    assert!(w.d.works_in_flight().is_empty());
    assert_eq!(w.d.unknown_hosts(), ["b"]);
    assert!(w.d.attention.is_some(), "only a person, or the host itself, can end this");
    w.go(Input::Override { by: ops(), hosts: vec![], reason: "gone".into() });
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

fn patient(steps: Vec<StepRun>, then: Overdue) -> World {
    let mut plan = facts(steps, 0);
    plan.patience = Patience { within_s: 600, then };
    World::running(plan)
}

#[test]
fn a_wait_for_a_person_has_an_owner_and_a_deadline_and_the_alarm_comes_again() {
    let mut w = patient(vec![central("call", &[]), central("other", &["call"])], Overdue::Remind);
    assert!(w.d.attention.is_none());
    w.now = 100;
    w.central_fails(FailureClass::Exit);
    let waits = w.d.waiting_on();
    assert!(
        matches!(&waits[..], [WaitingOn::Intervention { owner: Some(o), deadline: Some(d), .. }] if o == "ann" && *d == t(700)),
        "{waits:?}"
    );
    assert_eq!(w.d.wake_at(), Some(t(700)));
    assert!(w.at(699).is_empty());
    let effects = w.at(700);
    let told = payload(&effects, "deployment.overdue");
    assert_eq!((&told["owner"], &told["reminded"]), (&json!("ann"), &json!(1)));
    assert!(told["waiting_on"].as_str().is_some_and(|w| w.contains("call")), "{told}");
    assert_eq!(w.d.wake_at(), Some(t(1300)));
    // Nobody looked for a long time: one alarm, not a burst.
    assert_eq!(events(&w.at(100_000)), ["deployment.overdue"]);
    assert_eq!(w.d.wake_at(), Some(t(100_600)));
    w.d.claim = Some(By { who: "olga".into(), reason: String::new(), at: t(100_000) });
    assert_eq!(payload(&w.at(100_600), "deployment.overdue")["owner"], "olga");
    w.retry(&[]);
    assert_eq!((&w.d.attention, w.d.wake_at()), (&None, None));
}

#[test]
fn what_one_question_took_does_not_shorten_the_time_for_the_next() {
    let a = rollout("a", &[], &[&["a"], &["b"]], 0, Confirm::Each, 0);
    let mut w = patient(vec![a, central("call", &[])], Overdue::Abort);
    let wave = w.open().iter().position(|s| s == "a").expect("runs");
    let work = w.d.works_in_flight()[wave];
    let host = |h: &str| HostResult {
        host: h.into(),
        attempt: 1,
        outcome: Outcome::Succeeded,
        failed_step: None,
        reason: None,
        failed_id: None,
        class: None,
        exit_code: None,
        outputs: Default::default(),
    };
    w.go(Input::WorkSettled { work, result: WorkResult::Wave { hosts: vec![host("a")] } });
    w.now = 500;
    w.fail("call");
    w.now = 590;
    w.go(Input::Confirm { by: ops(), wave: 0 });
    w.at(700);
    assert!(w.d.state != State::Aborted && w.d.state != State::Aborting);
    assert_eq!(w.d.attention.as_ref().map(|a| a.deadline), Some(t(590 + 600)));
}

#[test]
fn when_nobody_comes_the_flow_may_say_abort_or_rollback() {
    let mut w = patient(vec![central("call", &[])], Overdue::Abort);
    w.central_fails(FailureClass::Exit);
    let effects = w.at(600);
    assert_eq!(w.d.state, State::Aborted);
    let end = w.d.end.clone().expect("why");
    assert!(end.who == "windlass" && end.reason.contains("nobody came in time"), "{end:?}");
    assert!(events(&effects).contains(&"deployment.overdue"));
    assert!(effects.contains(&Effect::FreeLock));

    let go = rollout("go", &[], &[&["a"]], 0, Confirm::None, 0);
    let mut w = patient(vec![go, central("call", &[])], Overdue::Rollback);
    w.fail("call");
    w.at(600);
    assert_eq!(w.d.state, State::Aborting, "what runs ends first");
    let back = Effect::RequestRollback { mode: RollbackMode::Normal, id: None, by: "windlass".into() };
    assert!(!w.log.contains(&back));
    w.settle_wave(&[]);
    assert_eq!(w.d.state, State::Aborted);
    assert!(w.log.contains(&back));
}

#[test]
fn an_operators_pause_has_a_deadline_too_and_a_rollback_is_only_called_out_for() {
    let mut w = patient(vec![central("call", &[])], Overdue::Rollback);
    w.d.kind = ReleaseKind::Rollback;
    w.go(Input::Pause { by: ops(), reason: "lunch".into() });
    let waits = w.d.waiting_on();
    assert!(
        matches!(&waits[0], WaitingOn::Operator { owner: Some(o), deadline: Some(d), .. } if o == "olga" && *d == t(600)),
        "{waits:?}"
    );
    assert_eq!(events(&w.at(600)), ["deployment.overdue"]);
    assert_eq!(w.d.state, State::Paused);
    w.go(Input::Resume { by: ops() });
    assert!(w.d.attention.is_none());
}

#[test]
fn an_unknown_host_that_keeps_the_lock_after_the_end_is_called_out_for() {
    let go = rollout("go", &[], &[&["a"]], 0, Confirm::None, 0);
    let mut w = patient(vec![go], Overdue::Abort);
    w.settle_wave(&[("a", Outcome::Unknown, None, None)]);
    w.go(Input::Abort { by: ops(), reason: "r".into() });
    assert_eq!((w.d.state, w.d.wake_at()), (State::Aborted, Some(t(600))));
    assert_eq!(events(&w.at(600)), ["deployment.overdue"]);
    assert_eq!(w.d.state, State::Aborted);
    w.go(Input::Override { by: ops(), hosts: vec![], reason: "gone".into() });
    assert_eq!((w.d.lock, w.d.wake_at()), (None, None));
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
        let host = |h: &crate::work::WaveHost| HostResult {
            host: h.host.clone(),
            attempt: h.attempt,
            outcome: if v.step == "go" { Outcome::Failed } else { Outcome::Succeeded },
            failed_step: None,
            reason: None,
            failed_id: None,
            class: None,
            exit_code: None,
            outputs: Default::default(),
        };
        let hosts = v.hosts.iter().map(host).collect();
        w.go(Input::WorkSettled { work: id, result: WorkResult::Wave { hosts } });
    }
    assert_eq!(w.d.touched_hosts(), ["a", "b", "c", "d"]);
    assert_eq!(w.d.release_hosts(None), ["b", "c", "d"]);
    assert_eq!(w.d.release_hosts(Some(Phase::PostRelease)), ["b", "c"]);
    assert_eq!(w.d.release_hosts(Some(Phase::Prepare)), ["a", "b", "c", "d"]);
}
