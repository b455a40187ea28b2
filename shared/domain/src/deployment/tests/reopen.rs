//! Taking up again what failed or was aborted: at the failed step of the failed hosts, and nothing that succeeded twice.

use super::{
    graph::{enter, leave, repeated},
    table::other_plan,
    verbs::{events, names, on_failure, retry, severity},
    *,
};
use crate::deployment::table::{Verb, offered};
use crate::flow::{Join, StepFailure};
use serde_json::json;

#[test]
fn a_failed_run_is_taken_up_at_the_failed_step_on_the_failed_hosts_only() {
    let mut plan = facts(
        vec![
            central("pre", &[]),
            rollout("go", &["pre"], &[&["a"], &["b", "c"], &["d"]], 0, Confirm::None, 0),
            central("post", &["go"]),
        ],
        1,
    );
    plan.on_failure = OnFailure::Stop;
    let mut w = World::new(plan);
    w.approve("bob").expect("approved");
    w.go(Input::LockTaken { fence: 3 });
    w.settle(&[]);
    w.settle(&[]);
    w.settle(&[("b", Outcome::Failed)]);
    assert_eq!((w.d.state, w.state("go"), w.state("post")), (State::Failed, StepState::Failed, StepState::Stopped));
    let (span, started) = (w.d.expires_at - w.d.requested_at, w.d.started_at);
    w.now = 5000;
    assert!(offered(&w.d, "olga").contains(&Verb::Retry));
    let effects = w.go(retry(&[]));
    assert_eq!((w.d.state, w.d.run, w.d.ended_at, &w.d.end), (State::Queued, 2, None, &None));
    assert_eq!(events(&effects), ["deployment.reopened", "deployment.queued"]);
    assert_eq!(severity(&effects, "deployment.reopened"), Severity::Notice);
    assert_eq!((w.d.expires_at, w.d.started_at), (t(5000) + span, started));
    assert_eq!((w.d.plan_digest.as_str(), w.d.approvals.len()), ("d1", 1), "its plan and its approvals hold");
    assert!(
        w.try_do(Input::PlanChanged(Box::new(other_plan(&w.d, 0)))).is_err(),
        "and no other plan takes their place"
    );
    assert_eq!(w.host("b").state, HostState::Failed, "nothing goes on before the lock is there");
    let effects = w.go(Input::LockTaken { fence: 8 });
    assert_eq!((w.d.state, w.d.lock), (State::Running, Some(8)));
    assert!(events(&effects).contains(&"deployment.started"));
    assert_eq!(w.wave_hosts(), [("b".into(), 2, 3)], "neither `a` nor `c`, and not from the first step");
    // What fails now waits for the person who took it up, whatever the flow says.
    w.settle(&[("b", Outcome::Failed)]);
    assert_eq!(w.d.state, State::Paused);
    w.go(retry(&["b"]));
    w.settle(&[]);
    assert_eq!(w.wave_hosts(), [("d".into(), 1, 0)]);
    w.settle(&[]);
    assert_eq!(w.open(), ["post"]);
    w.settle(&[]);
    assert_eq!(w.d.state, State::Succeeded);
    assert!(w.log.iter().filter(|e| matches!(e, Effect::RecordGood)).count() == 1);
}

#[test]
fn a_failed_run_is_taken_up_within_nested_flows_too() {
    let steps = || {
        vec![
            enter("out", &[]),
            central("out/first", &["out/enter"]),
            enter("out/in", &["out/first"]),
            rollout("out/in/go", &["out/in/enter"], &[&["a", "b"], &["c"]], 0, Confirm::None, 0),
            central("out/in/then", &["out/in/go"]),
            leave("out/in", &["out/in/go", "out/in/then"]),
            leave("out", &["out/first", "out/in"]),
            central("last", &["out"]),
        ]
    };
    let mut plan = facts(steps(), 0);
    plan.on_failure = OnFailure::Stop;
    let mut w = World::running(plan);
    w.settle(&[]);
    w.settle(&[("b", Outcome::Failed)]);
    assert_eq!((w.d.state, w.state("out"), w.state("out/in")), (State::Failed, StepState::Failed, StepState::Failed));
    w.reopen(retry(&[]));
    assert_eq!(w.wave_hosts(), [("b".into(), 2, 3)]);
    for _ in 0..4 {
        w.settle(&[]);
    }
    assert_eq!(w.d.state, State::Succeeded);
    let first = w
        .log
        .iter()
        .filter(|e| matches!(e, Effect::StartWork { spec: WorkSpec::Central(c), .. } if c.step == "out/first"));
    assert_eq!(first.count(), 1, "a step that succeeded is not repeated");
    // While it runs: by the name of the subflow, and of a step within another nothing.
    let mut w = World::running(facts(steps(), 0));
    w.settle(&[]);
    w.settle(&[("b", Outcome::Failed)]);
    let of = |step: &str| Input::Retry { by: ops(), hosts: vec![], step: Some(step.into()), whole_wave: false };
    assert_eq!(w.refused(of("out/in/then")), "nothing_to_do");
    assert_eq!(w.refused(of("nowhere")), "invalid");
    w.go(of("out"));
    assert_eq!(w.wave_hosts(), [("b".into(), 2, 3)]);
}

#[test]
fn an_aborted_run_is_taken_up_and_repeats_nothing_that_succeeded() {
    let steps = vec![
        rollout("go", &[], &[&["a", "b", "c"], &["d"]], 0, Confirm::None, 0),
        central("side", &[]),
        central("post", &["go", "side"]),
    ];
    let mut w = World::running(facts(steps, 0));
    w.go(Input::Abort { by: ops(), reason: "wrong day".into() });
    let wave = w.d.works_in_flight()[0];
    let ends = [("a", Outcome::Succeeded), ("b", Outcome::Cancelled), ("c", Outcome::NotStarted)];
    let hosts = ends.map(|(host, outcome)| of_host(host, outcome)).into();
    w.go(Input::WorkSettled { work: wave, result: WorkResult::Wave { hosts } });
    w.fail("side");
    assert_eq!((w.d.state, w.d.lock), (State::Aborted, None));
    assert_eq!(w.host("d").state, HostState::AutoStopped);
    let effects = w.reopen(retry(&[]));
    let hosts: Vec<_> = effects
        .iter()
        .filter_map(|e| match e {
            Effect::StartWork { spec: WorkSpec::Wave(v), .. } => {
                Some(v.hosts.iter().map(|h| (h.host.clone(), h.attempt)))
            }
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(hosts, [("b".to_owned(), 2), ("c".to_owned(), 2)]);
    assert!(w.open().contains(&"side".to_owned()));
    while w.d.state == State::Running {
        w.settle(&[]);
    }
    assert_eq!(w.d.state, State::Succeeded);
    assert_eq!((w.host("a").attempt, w.host("d").attempt), (1, 1));
}

#[test]
fn only_a_part_of_what_failed_is_taken_up_and_the_rest_waits_for_a_person() {
    let steps = vec![rollout("go", &[], &[&["a", "b"], &["c"]], 0, Confirm::None, 0), central("side", &[])];
    let mut plan = facts(steps, 0);
    plan.on_failure = OnFailure::Rollback;
    plan.automatic = None;
    let mut w = World::running(plan);
    w.settle(&[("a", Outcome::Failed), ("b", Outcome::Failed)]);
    w.fail("side");
    assert_eq!(w.d.state, State::Failed);
    w.reopen(retry(&["a"]));
    assert_eq!(w.wave_hosts(), [("a".into(), 2, 3)]);
    w.settle(&[]);
    assert_eq!(w.d.state, State::Paused);
    let waits = w.d.waiting_on();
    assert_eq!(waits.iter().filter(|w| matches!(w, WaitingOn::Intervention { .. })).count(), 2, "{waits:?}");
    w.go(Input::Exclude { by: ops(), hosts: names(&["b"]), reason: "gone".into() });
    assert_eq!(w.wave_hosts(), [("c".into(), 1, 0)]);
}

#[test]
fn a_whole_wave_of_a_failed_run_is_taken_up_from_its_first_step() {
    let mut plan = facts(vec![rollout("go", &[], &[&["z"], &["a", "b"], &["c"]], 0, Confirm::None, 0)], 0);
    plan.on_failure = OnFailure::Stop;
    let mut w = World::running(plan);
    w.settle(&[]);
    w.settle(&[("b", Outcome::Failed)]);
    w.reopen(Input::Retry { by: ops(), hosts: vec![], step: Some("go".into()), whole_wave: true });
    assert_eq!(w.wave_hosts(), [("a".into(), 2, 0), ("b".into(), 2, 0)]);
    w.settle(&[]);
    assert_eq!(w.wave_hosts(), [("c".into(), 1, 0)]);
}

#[test]
fn what_was_borne_and_joined_over_is_not_taken_up() {
    let mut z = central("z", &["x"]);
    z.join = Join::Done;
    let steps = vec![on_failure(central("x", &[]), StepFailure::Continue), z];
    let mut plan = facts(steps, 0);
    plan.on_failure = OnFailure::Stop;
    let mut w = World::running(plan);
    w.fail("x");
    w.fail("z");
    assert_eq!(w.d.state, State::Failed);
    w.reopen(retry(&[]));
    assert_eq!(w.open(), ["z"]);
}

#[test]
fn repeats_that_were_used_up_begin_anew_and_a_run_that_failed_does_not() {
    let stop = |steps: Vec<StepRun>| {
        let mut plan = facts(steps, 0);
        plan.on_failure = OnFailure::Stop;
        World::running(plan)
    };
    let again = |s: StepRun| repeated(s, "false", 1, 1);
    let mut w = stop(vec![again(rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::None, 0))]);
    w.settle(&[]);
    w.settle(&[]);
    assert_eq!(w.d.state, State::Failed, "its one run did not make the expression true");
    w.reopen(retry(&[]));
    assert_eq!(w.wave_hosts(), [("a".into(), 2, 0)]);
    let mut w = stop(vec![again(rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::None, 0))]);
    w.settle(&[]);
    w.settle(&[("b", Outcome::Failed)]);
    w.reopen(retry(&[]));
    assert_eq!(w.wave_hosts(), [("b".into(), 2, 3)]);
    // The second of two runs of a subflow fails in its second step.
    let steps = || {
        let sub = repeated(leave("sub", &["sub/x", "sub/y"]), "false", 2, 1);
        vec![enter("sub", &[]), central("sub/x", &["sub/enter"]), central("sub/y", &["sub/x"]), sub]
    };
    let second = |mut w: World| {
        w.give("sub/x", json!({}));
        w.give("sub/y", json!({}));
        w.now = 1;
        w.go(Input::Tick);
        w.give("sub/x", json!({}));
        w
    };
    let mut w = second(stop(steps()));
    w.fail("sub/y");
    assert_eq!(w.d.state, State::Failed);
    w.reopen(retry(&[]));
    assert_eq!(w.open(), ["sub/y"], "what went well in that run is not repeated");
    let mut w = second(stop(steps()));
    w.give("sub/y", json!({}));
    assert_eq!(w.d.state, State::Failed);
    w.reopen(retry(&[]));
    assert_eq!(w.open(), ["sub/x"]);
}

/// The round that failed had not come to the rollout yet: it runs after what it needs, not beside it.
#[test]
fn an_earlier_round_of_a_repeated_subflow_is_no_beginning_of_the_next() {
    let sub = repeated(leave("sub", &["sub/go"]), "false", 2, 1);
    let go = rollout("sub/go", &["sub/x"], &[&["a"]], 0, Confirm::None, 0);
    let mut plan = facts(vec![enter("sub", &[]), central("sub/x", &["sub/enter"]), go, sub], 0);
    plan.on_failure = OnFailure::Stop;
    let mut w = World::running(plan);
    w.give("sub/x", json!({}));
    w.settle(&[]);
    w.now = 1;
    w.go(Input::Tick);
    w.fail("sub/x");
    assert_eq!(w.d.state, State::Failed);
    w.reopen(retry(&[]));
    assert_eq!(w.open(), ["sub/x"]);
    w.give("sub/x", json!({}));
    assert_eq!(w.open(), ["sub/go"]);
    assert_eq!(w.wave_hosts(), [("a".into(), 2, 0)]);
}

#[test]
fn what_cannot_be_taken_up_says_why() {
    let failed = || {
        let mut plan = facts(vec![rollout("go", &[], &[&["a", "b"]], 0, Confirm::None, 0)], 0);
        plan.on_failure = OnFailure::Stop;
        World::running(plan)
    };
    let mut w = failed();
    w.settle(&[("a", Outcome::Failed), ("b", Outcome::Unknown)]);
    assert_eq!(w.refused(retry(&[])), "unsettled");
    assert!(!offered(&w.d, "olga").contains(&Verb::Retry));
    w.go(Input::Override { by: ops(), hosts: vec![], reason: "gone".into() });
    w.go(retry(&[]));
    // A rollback is asked for: what it goes back from is not taken up.
    let mut w = failed();
    w.settle(&[("a", Outcome::Failed)]);
    let rollback = uuid::Uuid::from_u128(5).into();
    w.go(Input::Rollback { by: ops(), mode: RollbackMode::Normal, rollback, reason: "r".into() });
    assert_eq!(w.refused(retry(&[])), "superseded");
    w.go(Input::RolledBack);
    assert_eq!(w.refused(retry(&[])), "wrong_state");
    let mut w = failed();
    w.settle(&[("a", Outcome::Failed)]);
    assert_eq!(w.refused(retry(&["b"])), "nothing_to_do");
    assert_eq!(w.refused(retry(&["elsewhere"])), "invalid");
}

#[test]
fn what_was_taken_up_and_does_not_start_has_still_run() {
    let failed = || {
        let mut plan = facts(vec![central("x", &[])], 0);
        plan.on_failure = OnFailure::Stop;
        let mut w = World::running(plan);
        w.fail("x");
        w.go(retry(&[]));
        w
    };
    let mut w = failed();
    let effects = w.go(Input::Cancel { by: ops(), reason: "not now".into() });
    assert_eq!((w.d.state, events(&effects)), (State::Aborted, vec!["deployment.aborted"]));
    w.go(retry(&[]));
    assert_eq!(w.d.run, 3);
    w.now = 2_000_000;
    w.go(Input::Tick);
    assert_eq!((w.d.state, w.state("x")), (State::Failed, StepState::Failed));
    w.reopen(retry(&[]));
    assert_eq!(w.open(), ["x"]);
}
