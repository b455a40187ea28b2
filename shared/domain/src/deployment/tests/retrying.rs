//! Retries by policy: what is tried again by itself, when, and how often.

use super::{rollout::*, verbs::events, *};
use crate::flow::Retry;
use crate::work::FailureClass;
use serde_json::json;

pub(super) fn policy(max: u32, on: &[FailureClass], exit_codes: &[i32]) -> Retry {
    let (on, exit_codes) = (on.to_vec(), exit_codes.to_vec());
    Retry { max, on, exit_codes, backoff_s: 5, factor: 2, max_backoff_s: 60 }
}

pub(super) fn retried(mut s: StepRun, r: Retry) -> StepRun {
    s.retry = Some(r);
    s
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
