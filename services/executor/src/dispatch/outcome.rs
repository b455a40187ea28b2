//! What became of tasks: the class of a failure, the result of a wave, and the events that tell of a change.

use super::{Board, Draft};
use std::collections::{BTreeMap, BTreeSet};
use windlass_domain::{
    Timestamp,
    event::Severity,
    ids::TaskId,
    plan::segment,
    task::{Refusal, StepOutcome, StepReport, Task, TaskInput, TaskState},
    work::{FailureClass, HostResult, WaveHost, WorkResult},
};
use windlass_store::tasks::StoredTask;

/// The task after `input`, with the class of its failure. `class` is that of tasks which never start; `names` are the ids
/// of its steps.
pub(crate) fn applied(
    before: &Task,
    input: TaskInput,
    class: Option<FailureClass>,
    names: &[String],
    artifact_steps: &BTreeSet<String>,
    now: Timestamp,
) -> Result<Task, Refusal> {
    let traffic = matches!(input, TaskInput::Traffic { .. });
    let mut next = before.apply(input, now)?;
    // What traffic does to the class, the task knows itself.
    if next.state != before.state && next.state.is_settled() && !traffic {
        next.class = class_of(&next, class, names, artifact_steps);
    }
    Ok(next)
}

fn class_of(
    t: &Task,
    unstarted: Option<FailureClass>,
    names: &[String],
    artifact_steps: &BTreeSet<String>,
) -> Option<FailureClass> {
    match t.state {
        TaskState::Pending | TaskState::Offered | TaskState::Granted | TaskState::Succeeded => None,
        TaskState::NotStarted if t.auto_stopped => None,
        TaskState::NotStarted if t.stop.is_some() => Some(FailureClass::Stopped),
        // Fenced before it started, and nobody had asked for it: the host lost the offer.
        TaskState::NotStarted => Some(unstarted.unwrap_or(FailureClass::Unreachable)),
        TaskState::Cancelled => Some(FailureClass::Stopped),
        // A person said that it counts as failed; what it did is not known.
        TaskState::Unknown | TaskState::Overridden => Some(FailureClass::Unknown),
        TaskState::Failed => {
            let step = failed(t);
            let timed_out = step.is_some_and(|s| s.outcome == StepOutcome::TimedOut);
            let name = step.and_then(|s| names.get(s.index as usize));
            Some(match name {
                _ if timed_out => FailureClass::Timeout,
                Some(name) if artifact_steps.contains(name) => FailureClass::Artifact,
                _ => FailureClass::Exit,
            })
        }
    }
}

/// The first step that did not go well.
fn failed(t: &Task) -> Option<&StepReport> {
    let index = t.failed_step()?;
    t.steps.iter().find(|s| s.index == index)
}

/// The result, once no host can start any more, none is granted, and whoever was taken off its load balancers is back.
/// `changed` goes over what the board holds.
pub(crate) fn result(board: &Board, changed: &[StoredTask]) -> Option<WorkResult> {
    let over: BTreeMap<TaskId, &Task> = changed.iter().map(|s| (s.task.id, &s.task)).collect();
    let held = board.tasks.values().map(|s| over.get(&s.task.id).copied().unwrap_or(&s.task));
    // Mostly something is still open: find that out before anything else.
    if held.clone().chain(over.values().copied()).any(|t| !t.is_over()) {
        return None;
    }
    let by_host: BTreeMap<&str, &Task> = held.chain(over.values().copied()).map(|t| (t.host.as_str(), t)).collect();
    let host = |h: &WaveHost| {
        let t = by_host.get(h.host.as_str())?;
        let mut outputs = board.carried.get(&h.host).cloned().unwrap_or_default();
        let names = board.steps.get(&h.host).map(|n| n.as_slice()).unwrap_or_default();
        outputs.extend(outputs_of(t, names));
        let step = failed(t);
        Some(HostResult {
            class: t.class,
            exit_code: step.and_then(|s| s.exit_code),
            failed_id: step.and_then(|s| names.get(s.index as usize).cloned()),
            host: h.host.clone(),
            attempt: h.attempt,
            outcome: t.outcome()?,
            failed_step: t.failed_step(),
            reason: t.reason.clone(),
            outputs,
        })
    };
    let hosts: Option<Vec<HostResult>> = board.wave.hosts.iter().map(host).collect();
    hosts.map(|hosts| WorkResult::Wave { hosts })
}

/// What a task's steps gave, by step.
pub(crate) fn outputs_of(t: &Task, names: &[String]) -> serde_json::Map<String, serde_json::Value> {
    t.steps
        .iter()
        .filter(|s| !s.outputs.is_empty())
        .filter_map(|s| Some((names.get(s.index as usize)?.clone(), serde_json::Value::Object(s.outputs.clone()))))
        .collect()
}

/// What a change of a task tells the world.
pub(crate) fn events_of(
    before: &Task,
    after: &Task,
    (step, segment): (&str, u32),
    steps: &[String],
    actor: &str,
) -> Vec<Draft> {
    let mut out = Vec::new();
    // Probes run again and again on every host: what they say is told by their work, and here only what went wrong.
    let tells = segment != segment::PROBES;
    let base = |extra: serde_json::Value| {
        let mut p = serde_json::json!({
            "task": after.id, "host": after.host, "step": step, "attempt": after.attempt,
        });
        if let (Some(p), serde_json::Value::Object(extra)) = (p.as_object_mut(), extra) {
            p.extend(extra);
            if segment != segment::MAIN {
                p.insert("segment".into(), segment.into());
            }
        }
        p
    };
    let mut add = |what, severity, payload| {
        out.push(Draft { what, severity, actor: actor.to_owned(), payload });
    };
    if before.stop.is_none()
        && let Some(by) = &after.stop
    {
        add("task.stop_requested", Severity::Notice, base(serde_json::json!({ "by": by.who, "reason": by.reason })));
    }
    if tells && before.started_at.is_none() && after.started_at.is_some() {
        add("task.started", Severity::Info, base(serde_json::json!({})));
    }
    for s in after.steps.iter().filter(|_| tells) {
        if before.steps.iter().any(|b| b.index == s.index) {
            continue;
        }
        let ms = (s.ended_at - s.started_at).num_milliseconds().max(0);
        let payload = base(
            serde_json::json!({ "index": s.index, "name": steps.get(s.index as usize), "outcome": s.outcome, "ms": ms, "exit_code": s.exit_code }),
        );
        add("step.finished", Severity::Info, payload);
    }
    if before.state != after.state && after.state.is_settled() && (tells || after.state == TaskState::Unknown) {
        let severity = match after.state {
            TaskState::Unknown => Severity::Action,
            _ => Severity::Info,
        };
        let payload = base(serde_json::json!({
            "state": after.state, "outcome": after.outcome(), "reason": after.reason, "failed_step": after.failed_step(),
            "class": after.class,
        }));
        add("task.settled", severity, payload);
    }
    let (was, is) = (before.traffic.as_ref().map(|t| t.state), after.traffic.as_ref());
    if let Some(t) = is.filter(|t| Some(t.state) != was) {
        let payload = base(serde_json::json!({ "traffic": t.state, "reason": t.reason }));
        use windlass_domain::traffic::TrafficState::*;
        let severity = match t.state {
            DrainFailed => Severity::Notice,
            AttachFailed => Severity::Action,
            Draining | Drained | Attaching | Attached => Severity::Info,
        };
        add("task.traffic", severity, payload);
    }
    out
}
