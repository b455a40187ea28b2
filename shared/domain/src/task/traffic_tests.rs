//! Every pair of a task's state and where its host stands with the load balancers, against everything that can be said.

use super::*;
use TrafficState::*;

const STATES: [TaskState; 9] = [
    TaskState::Pending,
    TaskState::Offered,
    TaskState::Granted,
    TaskState::Succeeded,
    TaskState::Failed,
    TaskState::Cancelled,
    TaskState::NotStarted,
    TaskState::Unknown,
    TaskState::Overridden,
];
const TRAFFIC: [TrafficState; 6] = [Draining, Drained, DrainFailed, Attaching, Attached, AttachFailed];

fn at(n: i64) -> Timestamp {
    chrono::DateTime::from_timestamp(1_800_000_000 + n, 0).expect("time")
}

fn task(state: TaskState, traffic: Option<TrafficState>) -> Task {
    Task {
        id: TaskId(uuid::Uuid::nil()),
        host: "h".into(),
        agent: None,
        attempt: 1,
        start_at: 0,
        state,
        granted: Some(Grant { nonce: "n".into(), instance: "i".into() }),
        report: None,
        steps: vec![],
        reason: None,
        auto_stopped: false,
        traffic: traffic.map(|state| TaskTraffic { state, since: at(0), reason: None }),
        stop: None,
        class: None,
        offered_at: None,
        granted_at: None,
        started_at: None,
        settled_at: None,
    }
}

fn say(t: &Task, state: TrafficState) -> Result<Task, Refusal> {
    t.apply(TaskInput::Traffic { state, reason: Some("why".into()) }, at(1))
}

/// What is written for each: the state it moves to, or why not. Pairs that cannot be reached are answered as well.
fn expected(state: TaskState, from: Option<TrafficState>, to: TrafficState) -> Result<TrafficState, Refusal> {
    let pending = state == TaskState::Pending;
    match (from, to) {
        (Some(from), to) if from == to => Ok(to),
        (None, Draining) if pending => Ok(Draining),
        (Some(Draining), Drained | DrainFailed) if pending => Ok(to),
        (Some(Attaching | DrainFailed), Attached | AttachFailed) => Ok(to),
        (Some(Attaching), Drained | DrainFailed) | (Some(Attached | AttachFailed), _) => Err(Refusal::Settled),
        _ => Err(Refusal::Unfitting),
    }
}

#[test]
fn every_pair_has_its_answer() {
    for state in STATES {
        for from in [None].into_iter().chain(TRAFFIC.map(Some)) {
            for to in TRAFFIC {
                let t = task(state, from);
                let got = say(&t, to);
                let want = expected(state, from, to);
                let moved = got.as_ref().map(|t| t.traffic.as_ref().map(|t| t.state)).map_err(|e| *e);
                assert_eq!(moved, want.map(Some), "{state:?}, {from:?}, told {to:?}");
                let Ok(next) = got else { continue };
                match (from, to) {
                    (Some(Draining), DrainFailed) => {
                        assert_eq!((next.state, next.class), (TaskState::NotStarted, Some(FailureClass::Traffic)));
                        assert_eq!(next.reason.as_deref(), Some("why"));
                    }
                    _ => assert_eq!(next.state, state, "nothing else moves the task"),
                }
            }
        }
    }
}

#[test]
fn the_same_word_twice_changes_nothing() {
    let t = say(&task(TaskState::Pending, Some(Draining)), Draining).expect("another reason");
    assert_eq!(t.traffic.as_ref().map(|t| t.since), Some(at(0)), "it began when it began");
    assert_eq!(say(&t, Draining), Err(Refusal::Duplicate));
}

#[test]
fn nothing_is_offered_on_a_host_that_is_not_off() {
    for from in [None].into_iter().chain(TRAFFIC.map(Some)) {
        let offered = task(TaskState::Pending, from).apply(TaskInput::Offer, at(1));
        assert_eq!(offered.is_ok(), matches!(from, None | Some(Drained)), "{from:?}");
    }
}

/// Whatever ends a task begins to bring its host back, but for an unknown one, which may still run.
#[test]
fn whatever_ends_a_task_begins_to_bring_its_host_back() {
    let report = |outcome| TaskReport { outcome, steps: vec![], log_bytes: 0, log_dropped: 0, log_frames: 0 };
    let reported = |outcome| TaskInput::Reported { instance: "i".into(), report: report(outcome) };
    let why = || "why".to_owned();
    let ends = [
        (TaskState::Pending, TaskInput::Withdraw { reason: why() }, Some(Attaching)),
        (TaskState::Pending, TaskInput::AutoStop { reason: why() }, Some(Attaching)),
        (TaskState::Offered, TaskInput::Withdraw { reason: why() }, Some(Attaching)),
        (TaskState::Offered, reported(ReportedOutcome::Fenced), Some(Attaching)),
        (TaskState::Granted, reported(ReportedOutcome::Succeeded), Some(Attaching)),
        (TaskState::Granted, reported(ReportedOutcome::Failed), Some(Attaching)),
        (TaskState::Granted, reported(ReportedOutcome::Cancelled), Some(Attaching)),
        (TaskState::Granted, reported(ReportedOutcome::Fenced), Some(Attaching)),
        (TaskState::Granted, reported(ReportedOutcome::Interrupted), Some(Drained)),
        (TaskState::Granted, TaskInput::Silent { reason: why() }, Some(Drained)),
        (TaskState::Unknown, reported(ReportedOutcome::Succeeded), Some(Attaching)),
        (TaskState::Unknown, TaskInput::Override { by: "ann".into(), reason: why() }, Some(Attaching)),
    ];
    for (state, input, want) in ends {
        let next = task(state, Some(Drained)).apply(input.clone(), at(1)).expect("fits");
        assert_eq!(next.traffic.as_ref().map(|t| t.state), want, "{state:?} {input:?}");
        assert_eq!(next.is_over(), next.state == TaskState::Unknown, "{state:?} {input:?}: its host is not back");
        let without = task(state, None).apply(input.clone(), at(1)).expect("fits");
        assert_eq!(without.traffic, None, "a rollout without load balancers has none");
        assert!(without.is_over());
    }
    let stopped = task(TaskState::Pending, Some(Draining)).apply(TaskInput::Withdraw { reason: why() }, at(1));
    let stopped = stopped.expect("fits");
    assert_eq!(stopped.traffic.as_ref().map(|t| t.state), Some(Attaching), "also one that was being taken off");
    assert_eq!(say(&stopped, Drained), Err(Refusal::Settled), "the old job speaks too late");
}

#[test]
fn a_host_that_does_not_come_back_has_failed_and_may_be_tried_again() {
    let step = |index| StepReport {
        index,
        outcome: StepOutcome::Succeeded,
        exit_code: None,
        started_at: at(0),
        ended_at: at(0),
        message: String::new(),
        left_processes: 0,
        outputs: serde_json::Map::new(),
    };
    let well = Task { steps: vec![step(0), step(1)], ..task(TaskState::Succeeded, Some(Attaching)) };
    assert_eq!((well.outcome(), well.allows_next_attempt()), (Some(Outcome::Succeeded), false));
    let left = say(&well, AttachFailed).expect("fits");
    assert_eq!(left.state, TaskState::Succeeded, "what its steps did stays true");
    assert_eq!((left.outcome(), left.allows_next_attempt(), left.is_over()), (Some(Outcome::Failed), true, true));
    assert_eq!(left.failed_step(), Some(2), "a retry repeats none of its steps");
    assert_eq!(left.class, Some(FailureClass::Traffic));

    let mut ill = task(TaskState::Failed, Some(Attaching));
    (ill.class, ill.reason) = (Some(FailureClass::Exit), Some("exited with code 1".into()));
    let left = say(&ill, AttachFailed).expect("fits");
    assert_eq!(
        (left.outcome(), left.class),
        (Some(Outcome::Failed), Some(FailureClass::Exit)),
        "what came first counts"
    );
    assert_eq!(left.reason.as_deref(), Some("exited with code 1; and why"));
    let back = say(&ill, Attached).expect("fits");
    assert_eq!((back.reason.as_deref(), back.is_over()), (Some("exited with code 1"), true));
}

#[test]
fn only_what_moves_keeps_a_work_open() {
    for state in STATES {
        for from in [None].into_iter().chain(TRAFFIC.map(Some)) {
            let moving = matches!(from, Some(Draining | DrainFailed | Attaching));
            let over = state == TaskState::Unknown || state.is_final() && !moving;
            assert_eq!(task(state, from).is_over(), over, "{state:?} {from:?}");
        }
    }
}
