//! What happens to the tasks of one wave: a decision without clock, database or network. Every change of a task goes
//! through `Task::apply`; the driver stores what comes out in one transaction and then sends the frames.
//!
//! How hosts count against the wave's budget: failed, unknown and overridden ones do, and so do those that could not be
//! started although they should have been (no agent, not reachable, refused): a wave that skips hosts is not a good wave.
//! Hosts the budget itself held back, and hosts that an abort or a person stopped, do not.

mod outcome;
mod pace;

pub(crate) use outcome::{applied, events_of, outputs_of, result};
pub(crate) use pace::Pace;

use crate::{traffic::Told, wave::Carried};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use windlass_contracts::frames::RefuseCode;
use windlass_domain::{
    Timestamp,
    deployment::By,
    event::Severity,
    ids::{AgentId, TaskId},
    task::{Grant, Refusal, StepReport, Task, TaskInput, TaskReport, TaskState},
    traffic::TrafficState,
    work::{Desired, FailureClass, Outcome, WaveHost, WaveWork},
};
use windlass_store::tasks::StoredTask;

const ABORTED: &str = "not started: the deployment was aborted";
const OVER_BUDGET: &str = "not started: more hosts failed than the rollout allows";

/// The wave as last committed.
#[derive(Debug, Clone)]
pub(crate) struct Board {
    pub(crate) wave: WaveWork,
    /// Which tasks of the rollout these are (`plan::segment`).
    pub(crate) segment: u32,
    /// Hosts are taken off their load balancers before their task is offered.
    pub(crate) drains: bool,
    /// How the starts are spread over time.
    pub(crate) pace: Option<Pace>,
    /// Ids of the steps that handle the package.
    pub(crate) artifact_steps: BTreeSet<String>,
    /// Ids of the steps of each host's task, by index.
    pub(crate) steps: BTreeMap<String, Arc<Vec<String>>>,
    /// What hosts gave on earlier attempts, by step.
    pub(crate) carried: Carried,
    pub(crate) tasks: BTreeMap<TaskId, StoredTask>,
    /// Hosts that may take no task now, and why.
    pub(crate) closed: BTreeMap<String, String>,
    /// Hosts that a person locked, and why: what is offered there is not granted.
    pub(crate) locked: BTreeMap<String, String>,
}

impl Board {
    /// Without tasks, load balancers and pace.
    pub(crate) fn new(wave: WaveWork, segment: u32, steps: BTreeMap<String, Arc<Vec<String>>>) -> Board {
        Board {
            wave,
            segment,
            drains: false,
            pace: None,
            artifact_steps: BTreeSet::new(),
            steps,
            carried: Carried::new(),
            tasks: BTreeMap::new(),
            closed: BTreeMap::new(),
            locked: BTreeMap::new(),
        }
    }

    /// When the next host may be started that waits for nothing but its time.
    pub(crate) fn next_start(&self) -> Option<Timestamp> {
        let pace = self.pace.as_ref()?;
        let last = self.tasks.values().filter_map(|s| begun(&s.task)).max();
        let waits = self.tasks.values().filter(|s| s.task.state == TaskState::Pending && s.task.traffic.is_none());
        waits.map(|s| pace.due(&s.task.host, last)).min()
    }
}

/// When a task was offered, or its host began to be taken off.
fn begun(t: &Task) -> Option<Timestamp> {
    t.offered_at.or_else(|| t.traffic.as_ref().map(|t| t.since))
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
    /// Nobody took the offer in time, or it cannot be kept.
    TimedOut {
        task: TaskId,
        reason: String,
        class: FailureClass,
    },
    Override {
        task: TaskId,
        by: String,
        reason: String,
    },
    /// A person stops the host.
    Stop {
        task: TaskId,
        by: By,
    },
    /// What load balancers said.
    Traffic(Told),
}

/// A host whose task is to be made now.
#[derive(Debug, Clone)]
pub(crate) struct NewTask {
    pub(crate) stored: StoredTask,
    /// Why it must not be offered: no agent, or an earlier attempt that is not settled.
    pub(crate) blocked: Option<(FailureClass, String)>,
    /// Who stopped the host before it had a task.
    pub(crate) stopped: Option<By>,
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
        class: Option<FailureClass>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let Some(before) = self.current(board, id).cloned() else { return Err(Refusal::Unfitting) };
        let names = board.steps.get(&before.host).map(|s| s.as_slice()).unwrap_or_default();
        let next = applied(&before, input, class, names, &board.artifact_steps, now)?;
        let row = self.inserted.get(&id).or_else(|| board.tasks.get(&id));
        if let Some(row) = row {
            let steps = board.steps.get(&next.host).map(|s| s.as_slice()).unwrap_or_default();
            self.events.extend(events_of(&before, &next, (&row.step, row.segment), steps, actor));
        }
        if let Some(new) = self.inserted.get_mut(&id) {
            new.task = next;
        } else if let Some(old) = board.tasks.get(&id) {
            self.changed.insert(id, (old.clone(), next));
        }
        Ok(())
    }
}

/// Decides one turn. `new` are hosts without a task, in wave order.
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
        if let Some(by) = n.stopped {
            take(&mut d, board, Input::Stop { task: id, by }, now);
            continue;
        }
        if let Some((class, reason)) = n.blocked {
            settle_unstarted(&mut d, board, id, TaskInput::Withdraw { reason }, Some(class), now);
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
            let Some(TaskState::Pending | TaskState::Offered) = d.current(board, id).map(|t| t.state) else { continue };
            let (input, class) = if desired == Desired::Abort {
                (TaskInput::Withdraw { reason: ABORTED.into() }, Some(FailureClass::Stopped))
            } else {
                (TaskInput::AutoStop { reason: OVER_BUDGET.into() }, None)
            };
            settle_unstarted(&mut d, board, id, input, class, now);
        }
    } else if desired == Desired::Run {
        start_next(&mut d, board, now);
    }
    d
}

fn settle_unstarted(
    d: &mut Decision,
    board: &Board,
    id: TaskId,
    input: TaskInput,
    class: Option<FailureClass>,
    now: Timestamp,
) {
    let offered = d.current(board, id).is_some_and(|t| t.state == TaskState::Offered);
    match d.apply(board, id, input, SERVICE, class, now) {
        // Its agent may hold it as accepted and wait for a grant; the fence only tidies up there.
        Ok(()) if offered => d.frames.push((id, Frame::Fence)),
        Ok(()) => {}
        Err(refusal) => d.refused.push((id, refusal)),
    }
}

pub(crate) const SERVICE: &str = "service:executor";

fn accept(d: &mut Decision, board: &Board, desired: Desired, over: bool, id: TaskId, grant: Grant, now: Timestamp) {
    let Some(task) = d.current(board, id) else { return };
    let (state, stopped) = (task.state, task.stop.is_some());
    // The gate of I3: once an abort, a pause or a lock of the host has committed, or the budget is used up, no offer becomes a
    // grant. After a pause, and when the host is unlocked, the offer is sent again, and the agent accepts again.
    let shut = over || board.locked.contains_key(&task.host);
    if desired != Desired::Run || stopped && !state.is_final() || (shut && state == TaskState::Offered) {
        return;
    }
    match d.apply(board, id, TaskInput::Accepted(grant), SERVICE, None, now) {
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
                Say::Started => d.apply(board, task, TaskInput::Started { instance }, &actor, None, now),
                Say::Step(report) => d.apply(board, task, TaskInput::Step { instance, report }, &actor, None, now),
                Say::Refuse { code, detail } => match code {
                    // Another try may do: the offer stands until its time is up.
                    RefuseCode::Busy | RefuseCode::Stale => return,
                    RefuseCode::Known => {
                        let reason = format!(
                            "the host has done this before, and this database does not know of it ({detail}): it was restored \
                             from a backup; look at the host, then override it"
                        );
                        d.apply(board, task, TaskInput::Known { reason }, &actor, None, now)
                    }
                    RefuseCode::Unproven | RefuseCode::Policy | RefuseCode::Invalid | RefuseCode::NoResources => {
                        let reason = format!("the agent refused the task: {detail}");
                        let class = Some(FailureClass::Refused);
                        d.apply(board, task, TaskInput::Withdraw { reason }, &actor, class, now)
                    }
                },
                Say::Result(report) => {
                    let result = d.apply(board, task, TaskInput::Reported { instance, report }, &actor, None, now);
                    // A report that fits no state stays unanswered: it comes again, and may fit then.
                    if result != Err(Refusal::Unfitting) {
                        d.frames.push((task, Frame::ResultAck));
                    }
                    result
                }
            };
            (task, result)
        }
        Input::Silent { task, reason } => {
            (task, d.apply(board, task, TaskInput::Silent { reason }, SERVICE, None, now))
        }
        Input::TimedOut { task, reason, class } => {
            settle_unstarted(d, board, task, TaskInput::Withdraw { reason }, Some(class), now);
            return;
        }
        Input::Override { task, by, reason } => {
            let actor = format!("person:{by}");
            (task, d.apply(board, task, TaskInput::Override { by, reason }, &actor, None, now))
        }
        Input::Stop { task, by } => {
            let actor = format!("person:{}", by.who);
            let input = TaskInput::Stop { by };
            let result = d.apply(board, task, input, &actor, Some(FailureClass::Stopped), now);
            if result.is_ok() {
                // What runs ends, what was offered is forgotten.
                d.frames.push((task, Frame::Fence));
            }
            (task, result)
        }
        Input::Traffic(Told { task, state, reason }) => {
            (task, d.apply(board, task, TaskInput::Traffic { state, reason }, SERVICE, None, now))
        }
    };
    if let Err(refusal) = result {
        d.refused.push((id, refusal));
    }
}

/// Starts pending tasks, in wave order, as far as `parallel` and the pace allow: offers them, or has their hosts taken off
/// first. A host counts as under way from then until it is back.
fn start_next(d: &mut Decision, board: &Board, now: Timestamp) {
    let pending = |s: &StoredTask| s.task.state == TaskState::Pending;
    if !board.tasks.values().any(pending) && !d.inserted.values().any(pending) {
        return;
    }
    let (mut active, mut last) = (0, None);
    let mut waiting: BTreeMap<&str, (TaskId, Option<TrafficState>)> = BTreeMap::new();
    let ids = board.tasks.keys().chain(d.inserted.keys().filter(|id| !board.tasks.contains_key(id)));
    for t in ids.filter_map(|id| d.current(board, *id)) {
        active += usize::from(under_way(t));
        last = last.max(begun(t));
        if t.state == TaskState::Pending && !board.closed.contains_key(&t.host) {
            waiting.insert(&t.host, (t.id, t.traffic.as_ref().map(|t| t.state)));
        }
    }
    let limit = if board.wave.parallel == 0 { usize::MAX } else { board.wave.parallel as usize };
    let mut room = limit.saturating_sub(active);
    let mut inputs = Vec::new();
    for h in &board.wave.hosts {
        let Some((id, off)) = waiting.get(h.host.as_str()).copied() else { continue };
        if off.is_none() {
            let early = board.pace.as_ref().is_some_and(|p| now < p.due(&h.host, last));
            if room == 0 || early {
                continue;
            }
            room -= 1;
            last = Some(now);
        }
        match off {
            None if board.drains => {
                inputs.push((id, TaskInput::Traffic { state: TrafficState::Draining, reason: None }));
            }
            None | Some(TrafficState::Drained) => inputs.push((id, TaskInput::Offer)),
            Some(_) => {}
        }
    }
    for (id, input) in inputs {
        let offered = input == TaskInput::Offer;
        match d.apply(board, id, input, SERVICE, None, now) {
            Ok(()) if offered => d.frames.push((id, Frame::Offer)),
            Ok(()) => {}
            Err(refusal) => d.refused.push((id, refusal)),
        }
    }
}

/// It takes one of the places of `parallel`.
fn under_way(t: &Task) -> bool {
    matches!(t.state, TaskState::Offered | TaskState::Granted)
        || t.traffic.is_some() && t.state != TaskState::Unknown && !t.is_over()
}

fn failures(d: &Decision, board: &Board) -> u32 {
    let ids: BTreeSet<TaskId> = board.tasks.keys().chain(d.inserted.keys()).copied().collect();
    let n = ids.iter().filter(|id| d.current(board, **id).is_some_and(counts_as_failure)).count();
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn counts_as_failure(t: &Task) -> bool {
    match t.outcome() {
        Some(Outcome::Failed | Outcome::Unknown) => true,
        // Whom a person stopped, has not failed.
        Some(Outcome::NotStarted) => t.stop.is_none(),
        Some(Outcome::Succeeded | Outcome::Cancelled | Outcome::AutoStopped) | None => false,
    }
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
