//! Every state of a task against every input of dispatch: what it becomes, or why it stays. What is said about traffic is beside
//! the task itself.

use super::t;
use crate::ids::TaskId;
use crate::task::{
    Grant, Refusal, ReportedOutcome, StepOutcome, StepReport, Task, TaskInput, TaskReport,
    TaskState::{self, *},
};

const STATES: [TaskState; 9] =
    [Pending, Offered, Granted, Succeeded, Failed, Cancelled, NotStarted, Unknown, Overridden];

fn task(state: TaskState) -> Task {
    let granted = !matches!(state, Pending | Offered | NotStarted);
    Task {
        id: TaskId(uuid::Uuid::from_u128(1)),
        host: "h".into(),
        agent: None,
        attempt: 1,
        start_at: 0,
        state,
        granted: granted.then(|| grant("n1", "mine")),
        report: None,
        steps: vec![],
        reason: None,
        auto_stopped: false,
        traffic: None,
        stop: None,
        class: None,
        offered_at: None,
        granted_at: None,
        started_at: None,
        settled_at: None,
    }
}

fn grant(nonce: &str, instance: &str) -> Grant {
    Grant { nonce: nonce.into(), instance: instance.into() }
}

fn report(outcome: ReportedOutcome) -> TaskReport {
    TaskReport { outcome, steps: vec![], log_bytes: 0, log_dropped: 0, log_frames: 0 }
}

fn inputs() -> Vec<(&'static str, TaskInput)> {
    use ReportedOutcome as R;
    let said = |instance: &str, outcome| TaskInput::Reported { instance: instance.into(), report: report(outcome) };
    let reason = || "because".to_owned();
    let step = StepReport {
        index: 0,
        outcome: StepOutcome::Succeeded,
        exit_code: Some(0),
        started_at: t(0),
        ended_at: t(1),
        message: String::new(),
        left_processes: 0,
        outputs: Default::default(),
    };
    let by = crate::deployment::By { who: "olga".into(), reason: reason(), at: t(0) };
    vec![
        ("offer", TaskInput::Offer),
        ("accepted", TaskInput::Accepted(grant("n2", "mine"))),
        ("accepted the same", TaskInput::Accepted(grant("n1", "mine"))),
        ("accepted elsewhere", TaskInput::Accepted(grant("n3", "other"))),
        ("started", TaskInput::Started { instance: "mine".into() }),
        ("started elsewhere", TaskInput::Started { instance: "other".into() }),
        ("step", TaskInput::Step { instance: "mine".into(), report: step.clone() }),
        ("step elsewhere", TaskInput::Step { instance: "other".into(), report: step }),
        ("succeeded", said("mine", R::Succeeded)),
        ("failed", said("mine", R::Failed)),
        ("cancelled", said("mine", R::Cancelled)),
        ("fenced", said("mine", R::Fenced)),
        ("interrupted", said("mine", R::Interrupted)),
        ("succeeded elsewhere", said("other", R::Succeeded)),
        ("withdraw", TaskInput::Withdraw { reason: reason() }),
        ("auto stop", TaskInput::AutoStop { reason: reason() }),
        ("silent", TaskInput::Silent { reason: reason() }),
        ("override", TaskInput::Override { by: "olga".into(), reason: reason() }),
        ("stop", TaskInput::Stop { by }),
        ("known", TaskInput::Known { reason: reason() }),
    ]
}

/// The answers, written out.
fn expected(state: TaskState, input: &str) -> Result<TaskState, Refusal> {
    use Refusal::{OtherInstance, Settled, Unfitting};
    match (state, input) {
        (Succeeded | Failed | Cancelled | NotStarted | Overridden, _) => Err(Settled),

        (Pending, "offer") => Ok(Offered),
        (Pending, "withdraw" | "auto stop" | "stop") => Ok(NotStarted),
        // Nothing was ever asked of an agent.
        (Pending, _) => Err(Unfitting),

        (Offered, "accepted" | "accepted the same" | "accepted elsewhere") => Ok(Granted),
        (Offered, "fenced" | "withdraw" | "auto stop" | "stop") => Ok(NotStarted),
        // Nothing that anybody here remembers was granted, and yet the host has begun it: a restored database.
        (Offered, "started" | "started elsewhere" | "known") => Ok(Unknown),
        (Offered, "succeeded" | "succeeded elsewhere" | "failed" | "cancelled" | "interrupted") => Ok(Unknown),
        // Else it can neither have run nor be silent.
        (Offered, _) => Err(Unfitting),

        (Granted, "accepted" | "started" | "step" | "stop") => Ok(Granted),
        (Granted, "accepted the same") => Err(Refusal::Duplicate),
        (Granted | Unknown, "accepted elsewhere" | "started elsewhere" | "step elsewhere" | "succeeded elsewhere") => {
            Err(OtherInstance)
        }
        (Granted | Unknown, "succeeded") => Ok(Succeeded),
        (Granted | Unknown, "failed") => Ok(Failed),
        (Granted | Unknown, "cancelled") => Ok(Cancelled),
        (Granted | Unknown, "fenced") => Ok(NotStarted),
        (Granted | Unknown, "interrupted") => Ok(Unknown),
        (Granted, "silent") => Ok(Unknown),
        // What was granted is not withdrawn, and not overridden: only its agent knows what becomes of it.
        (Granted, _) => Err(Unfitting),

        (Unknown, "step" | "stop") => Ok(Unknown),
        (Unknown, "override") => Ok(Overridden),
        (Unknown, "silent") => Err(Refusal::Duplicate),
        // An unknown task is never granted anew.
        (Unknown, "accepted" | "accepted the same" | "started") => Err(OtherInstance),
        (Unknown, _) => Err(Unfitting),
    }
}

#[test]
fn every_task_answers_every_input() {
    for state in STATES {
        for (name, input) in inputs() {
            let before = task(state);
            let got = before.apply(input, t(9));
            let name = format!("{name}, told to a task that is {}", state.as_str());
            let moved = got.as_ref().map(|t| t.state).map_err(|e| *e);
            assert_eq!(moved, expected(state, name.split(',').next().unwrap_or_default()), "{name}");
            let Ok(after) = got else { continue };
            assert!(after != before, "{name} changes nothing and is no refusal");
            assert_eq!(
                after.settled_at.is_some(),
                after.state.is_settled() && after.state != before.state || after.report.is_some(),
                "{name}"
            );
        }
    }
}
