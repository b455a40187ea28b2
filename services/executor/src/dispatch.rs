//! What happens to the tasks of one wave: a decision without clock, database or network. Every change of a task goes
//! through `Task::apply`; the driver stores what comes out in one transaction and then sends the frames.
//!
//! How hosts count against the wave's budget: failed, unknown and overridden ones do, and so do those that could not be
//! started although they should have been (no agent, not reachable, refused): a wave that skips hosts is not a good wave.
//! Hosts the budget itself held back, and hosts an abort stopped, do not.

use crate::wave::Carried;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use windlass_contracts::frames::RefuseCode;
use windlass_domain::{
    Timestamp,
    event::Severity,
    ids::{AgentId, TaskId},
    task::{Grant, Refusal, StepReport, Task, TaskInput, TaskReport, TaskState},
    work::{Desired, HostResult, Outcome, WaveHost, WaveWork, WorkResult},
};
use windlass_store::tasks::StoredTask;

const ABORTED: &str = "not started: the deployment was aborted";
const OVER_BUDGET: &str = "not started: more hosts failed than the rollout allows";

/// The wave as last committed.
#[derive(Debug, Clone)]
pub(crate) struct Board {
    pub(crate) wave: WaveWork,
    /// Ids of the steps of each host's task, by index.
    pub(crate) steps: BTreeMap<String, Arc<Vec<String>>>,
    /// What hosts gave on earlier attempts, by step.
    pub(crate) carried: Carried,
    pub(crate) tasks: BTreeMap<TaskId, StoredTask>,
    /// Hosts that may take no task now, and why.
    pub(crate) closed: BTreeMap<String, String>,
}

/// What an agent said about one task, checked for shape.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Say {
    /// `seal_to` is answered before it comes here.
    Accept {
        nonce: String,
        seal_to: Option<String>,
    },
    Refuse {
        code: RefuseCode,
        detail: String,
    },
    Started,
    Step(StepReport),
    Result(TaskReport),
}

/// Something that may change a task.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Input {
    Said {
        task: TaskId,
        instance: String,
        say: Say,
    },
    Silent {
        task: TaskId,
        reason: String,
    },
    /// Nobody took the offer in time.
    TimedOut {
        task: TaskId,
        reason: String,
    },
    Override {
        task: TaskId,
        by: String,
        reason: String,
    },
}

/// A host whose task is to be made now.
#[derive(Debug, Clone)]
pub(crate) struct NewTask {
    pub(crate) stored: StoredTask,
    /// Why it must not be offered: no agent, or an earlier attempt that is not settled.
    pub(crate) blocked: Option<String>,
}

/// A frame to send once the transaction has committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Frame {
    Offer,
    Grant,
    Fence,
    ResultAck,
}

/// An event of the deployment's stream, but for what every event of the work has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Draft {
    pub(crate) what: &'static str,
    pub(crate) severity: Severity,
    pub(crate) actor: String,
    pub(crate) payload: serde_json::Value,
}

/// What to store and send.
#[derive(Debug, Default)]
pub(crate) struct Decision {
    /// New rows; their version is the one to insert.
    pub(crate) inserted: BTreeMap<TaskId, StoredTask>,
    /// Changed rows: the row as it was, and the new task.
    pub(crate) changed: BTreeMap<TaskId, (StoredTask, Task)>,
    pub(crate) events: Vec<Draft>,
    pub(crate) frames: Vec<(TaskId, Frame)>,
    /// What refusals were answered, for the log.
    pub(crate) refused: Vec<(TaskId, Refusal)>,
}

impl Decision {
    fn current<'a>(&'a self, board: &'a Board, id: TaskId) -> Option<&'a Task> {
        self.inserted
            .get(&id)
            .map(|s| &s.task)
            .or_else(|| self.changed.get(&id).map(|(_, t)| t))
            .or_else(|| board.tasks.get(&id).map(|s| &s.task))
    }

    fn apply(
        &mut self,
        board: &Board,
        id: TaskId,
        input: TaskInput,
        actor: &str,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let Some(before) = self.current(board, id).cloned() else { return Err(Refusal::Unfitting) };
        let next = before.apply(input, now)?;
        let row = self.inserted.get(&id).or_else(|| board.tasks.get(&id));
        if let Some(row) = row {
            let steps = board.steps.get(&next.host).map(|s| s.as_slice()).unwrap_or_default();
            self.events.extend(events_of(&before, &next, &row.step, steps, actor));
        }
        if let Some(new) = self.inserted.get_mut(&id) {
            new.task = next;
        } else if let Some(old) = board.tasks.get(&id) {
            self.changed.insert(id, (old.clone(), next));
        }
        Ok(())
    }
}

/// Decides one turn. `room_for_new` are hosts without a task, in wave order.
pub(crate) fn decide(
    board: &Board,
    desired: Desired,
    now: Timestamp,
    inputs: Vec<Input>,
    new: Vec<NewTask>,
) -> Decision {
    let mut d = Decision::default();
    // Reports first: what has ended decides whether anything else may start.
    let (accepts, rest): (Vec<Input>, Vec<Input>) =
        inputs.into_iter().partition(|i| matches!(i, Input::Said { say: Say::Accept { .. }, .. }));
    for input in rest {
        take(&mut d, board, input, now);
    }
    for n in new {
        let id = n.stored.task.id;
        d.inserted.insert(id, n.stored);
        if let Some(reason) = n.blocked {
            settle_unstarted(&mut d, board, id, TaskInput::Withdraw { reason }, now);
        }
    }
    let over = failures(&d, board) > board.wave.max_failures;
    for input in accepts {
        if let Input::Said { task, instance, say: Say::Accept { nonce, .. } } = input {
            accept(&mut d, board, desired, over, task, Grant { nonce, instance }, now);
        }
    }
    let ids: BTreeSet<TaskId> = board.tasks.keys().chain(d.inserted.keys()).copied().collect();
    if desired == Desired::Abort || over {
        for id in ids {
            let Some(state) = d.current(board, id).map(|t| t.state) else { continue };
            match (state, desired) {
                (TaskState::Pending | TaskState::Offered, Desired::Abort) => {
                    settle_unstarted(&mut d, board, id, TaskInput::Withdraw { reason: ABORTED.into() }, now);
                }
                (TaskState::Pending | TaskState::Offered, Desired::Run) => {
                    settle_unstarted(&mut d, board, id, TaskInput::AutoStop { reason: OVER_BUDGET.into() }, now);
                }
                _ => {}
            }
        }
        return d;
    }
    offer_next(&mut d, board, now);
    d
}

fn settle_unstarted(d: &mut Decision, board: &Board, id: TaskId, input: TaskInput, now: Timestamp) {
    let offered = d.current(board, id).is_some_and(|t| t.state == TaskState::Offered);
    match d.apply(board, id, input, SERVICE, now) {
        // Its agent may hold it as accepted and wait for a grant; the fence only tidies up there.
        Ok(()) if offered => d.frames.push((id, Frame::Fence)),
        Ok(()) => {}
        Err(refusal) => d.refused.push((id, refusal)),
    }
}

pub(crate) const SERVICE: &str = "service:executor";

fn accept(d: &mut Decision, board: &Board, desired: Desired, over: bool, id: TaskId, grant: Grant, now: Timestamp) {
    let Some(state) = d.current(board, id).map(|t| t.state) else { return };
    // The gate of I3: once an abort has committed, or the budget is used up, no offer becomes a grant.
    if desired == Desired::Abort || (over && state == TaskState::Offered) {
        return;
    }
    match d.apply(board, id, TaskInput::Accepted(grant), SERVICE, now) {
        Ok(()) | Err(Refusal::Duplicate) => d.frames.push((id, Frame::Grant)),
        Err(refusal) => {
            if refusal == Refusal::Settled {
                // It was withdrawn meanwhile; the agent should stop waiting for a grant.
                d.frames.push((id, Frame::Fence));
            }
            d.refused.push((id, refusal));
        }
    }
}

fn take(d: &mut Decision, board: &Board, input: Input, now: Timestamp) {
    let (id, result) = match input {
        Input::Said { task, instance, say } => {
            let actor = d.current(board, task).map(|t| format!("agent:{}", t.host)).unwrap_or_default();
            let result = match say {
                Say::Accept { .. } => return,
                Say::Started => d.apply(board, task, TaskInput::Started { instance }, &actor, now),
                Say::Step(report) => d.apply(board, task, TaskInput::Step { instance, report }, &actor, now),
                Say::Refuse { code, detail } => match code {
                    // Another try may do: the offer stands until its time is up.
                    RefuseCode::Busy | RefuseCode::Stale => return,
                    RefuseCode::Unproven | RefuseCode::Policy | RefuseCode::Invalid | RefuseCode::NoResources => {
                        let reason = format!("the agent refused the task: {detail}");
                        d.apply(board, task, TaskInput::Withdraw { reason }, &actor, now)
                    }
                },
                Say::Result(report) => {
                    let result = d.apply(board, task, TaskInput::Reported { instance, report }, &actor, now);
                    // A report that fits no state stays unanswered: it comes again, and may fit then.
                    if result != Err(Refusal::Unfitting) {
                        d.frames.push((task, Frame::ResultAck));
                    }
                    result
                }
            };
            (task, result)
        }
        Input::Silent { task, reason } => (task, d.apply(board, task, TaskInput::Silent { reason }, SERVICE, now)),
        Input::TimedOut { task, reason } => {
            settle_unstarted(d, board, task, TaskInput::Withdraw { reason }, now);
            return;
        }
        Input::Override { task, by, reason } => {
            let actor = format!("person:{by}");
            (task, d.apply(board, task, TaskInput::Override { by, reason }, &actor, now))
        }
    };
    if let Err(refusal) = result {
        d.refused.push((id, refusal));
    }
}

/// Offers pending tasks, in wave order, as far as `parallel` allows.
fn offer_next(d: &mut Decision, board: &Board, now: Timestamp) {
    let pending = |s: &StoredTask| s.task.state == TaskState::Pending;
    if !board.tasks.values().any(pending) && !d.inserted.values().any(pending) {
        return;
    }
    let by_host = by_host(d, board);
    let state = |d: &Decision, id: &TaskId| d.current(board, *id).map(|t| t.state);
    let active =
        by_host.values().filter(|id| matches!(state(d, id), Some(TaskState::Offered | TaskState::Granted))).count();
    let limit = if board.wave.parallel == 0 { usize::MAX } else { board.wave.parallel as usize };
    let mut room = limit.saturating_sub(active);
    for h in &board.wave.hosts {
        if room == 0 {
            break;
        }
        let Some(id) = by_host.get(h.host.as_str()).copied() else { continue };
        if state(d, &id) == Some(TaskState::Pending) && !board.closed.contains_key(&h.host) {
            match d.apply(board, id, TaskInput::Offer, SERVICE, now) {
                Ok(()) => d.frames.push((id, Frame::Offer)),
                Err(refusal) => d.refused.push((id, refusal)),
            }
            room -= 1;
        }
    }
}

fn by_host(d: &Decision, board: &Board) -> BTreeMap<String, TaskId> {
    let all = board.tasks.values().chain(d.inserted.values());
    all.map(|s| (s.task.host.clone(), s.task.id)).collect()
}

fn failures(d: &Decision, board: &Board) -> u32 {
    let ids: BTreeSet<TaskId> = board.tasks.keys().chain(d.inserted.keys()).copied().collect();
    let n = ids.iter().filter(|id| d.current(board, **id).is_some_and(counts_as_failure)).count();
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn counts_as_failure(t: &Task) -> bool {
    match t.outcome() {
        Some(Outcome::Failed | Outcome::Unknown | Outcome::NotStarted) => true,
        Some(Outcome::Succeeded | Outcome::Cancelled | Outcome::AutoStopped) | None => false,
    }
}

/// The result, once no host can start any more and none is granted. `changed` goes over what the board holds.
pub(crate) fn result(board: &Board, changed: &[StoredTask]) -> Option<WorkResult> {
    let over: BTreeMap<TaskId, &Task> = changed.iter().map(|s| (s.task.id, &s.task)).collect();
    let held = board.tasks.values().map(|s| over.get(&s.task.id).copied().unwrap_or(&s.task));
    // Mostly something is still open: find that out before anything else.
    if held.clone().chain(over.values().copied()).any(|t| !t.state.is_settled()) {
        return None;
    }
    let by_host: BTreeMap<&str, &Task> = held.chain(over.values().copied()).map(|t| (t.host.as_str(), t)).collect();
    let host = |h: &WaveHost| {
        let t = by_host.get(h.host.as_str())?;
        let mut outputs = board.carried.get(&h.host).cloned().unwrap_or_default();
        if let Some(names) = board.steps.get(&h.host) {
            outputs.extend(outputs_of(t, names));
        }
        Some(HostResult {
            class: None,
            exit_code: None,
            failed_id: None,
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
pub(crate) fn events_of(before: &Task, after: &Task, step: &str, steps: &[String], actor: &str) -> Vec<Draft> {
    let mut out = Vec::new();
    let base = |extra: serde_json::Value| {
        let mut p = serde_json::json!({
            "task": after.id, "host": after.host, "step": step, "attempt": after.attempt,
        });
        if let (Some(p), serde_json::Value::Object(extra)) = (p.as_object_mut(), extra) {
            p.extend(extra);
        }
        p
    };
    let mut add = |what, severity, payload| {
        out.push(Draft { what, severity, actor: actor.to_owned(), payload });
    };
    if before.started_at.is_none() && after.started_at.is_some() {
        add("task.started", Severity::Info, base(serde_json::json!({})));
    }
    for s in &after.steps {
        if before.steps.iter().any(|b| b.index == s.index) {
            continue;
        }
        let ms = (s.ended_at - s.started_at).num_milliseconds().max(0);
        let payload = base(
            serde_json::json!({ "index": s.index, "name": steps.get(s.index as usize), "outcome": s.outcome, "ms": ms, "exit_code": s.exit_code }),
        );
        add("step.finished", Severity::Info, payload);
    }
    if before.state != after.state && after.state.is_settled() {
        let severity = match after.state {
            TaskState::Unknown => Severity::Action,
            _ => Severity::Info,
        };
        let payload = base(serde_json::json!({
            "state": after.state, "outcome": after.outcome(), "reason": after.reason, "failed_step": after.failed_step(),
        }));
        add("task.settled", severity, payload);
    }
    out
}

/// A task row before anything happened to it.
pub(crate) fn fresh(id: TaskId, host: &WaveHost, agent: Option<AgentId>) -> Task {
    Task {
        class: None,
        stop: None,
        traffic: None,
        id,
        host: host.host.clone(),
        agent,
        attempt: host.attempt,
        start_at: host.start_at,
        state: TaskState::Pending,
        granted: None,
        report: None,
        steps: vec![],
        reason: None,
        auto_stopped: false,
        offered_at: None,
        granted_at: None,
        started_at: None,
        settled_at: None,
    }
}

#[cfg(test)]
mod tests;
