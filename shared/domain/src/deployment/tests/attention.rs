//! Patience with people: who is waited for, until when, and what then.

use super::{rollout::*, verbs::events, *};
use crate::flow::{Overdue, Patience};
use crate::work::FailureClass;
use serde_json::json;

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
    w.go(Input::WorkSettled { work, result: WorkResult::Wave { hosts: vec![of_host("a", Outcome::Succeeded)] } });
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
