//! Probes: when a wave is looked at, and what its verdict leads to.

use super::{
    graph::{enter, leave},
    rollout::*,
    verbs::events,
    *,
};
use crate::flow::{Inconclusive, StepFailure};
use crate::work::Verdict;

pub(super) fn probed(mut s: StepRun, unclear: Inconclusive) -> StepRun {
    if let StepRunKind::Rollout(r) = &mut s.kind {
        r.probes = Some(unclear);
    }
    s
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
    let hosts = vec![of_host("a", Outcome::Succeeded)];
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

/// The subflow failed because of the probes, and its hosts were within the budget: they are not asked again.
#[test]
fn a_subflow_that_failed_by_probes_looks_again_and_runs_nothing_again() {
    let mut go = probed(rollout("sub/go", &["sub/enter"], &[&["a", "b"]], 1, Confirm::None, 60), Inconclusive::Ask);
    go.on_failure = Some(StepFailure::Continue);
    let steps = vec![enter("sub", &[]), go, leave("sub", &["sub/go"]), central("x", &["sub"])];
    let mut w = World::running(facts(steps, 0));
    w.settle_wave(&[failed("b")]);
    w.looked(Verdict::Fail, "errors");
    assert_eq!((w.state("sub/go"), w.state("sub")), (StepState::Failed, StepState::Failed));
    w.retry(&[]);
    let p = w.probe_work();
    assert_eq!((p.attempt, p.hosts.as_slice()), (2, &["a".to_owned()][..]));
    assert_eq!((w.host("b").state, w.host("b").attempt), (HostState::Failed, 1));
    w.looked(Verdict::Success, "");
    assert_eq!(w.open(), ["x"]);
}
