//! The database of the simulation: the tables that matter, and commits that may fail before or after they took effect.
//! Transactions run one after another; what a process read before its transaction may be old, as it may be in life.

use std::collections::{BTreeMap, BTreeSet};
use windlass_domain::{
    Timestamp,
    deployment::{By, Deployment, Input, State},
    ids::{TaskId, WorkId},
    task::Task,
    work::{Desired, WorkResult, WorkSpec},
};

/// Index of a deployment.
pub(crate) type Dep = usize;

#[derive(Debug, Clone)]
pub(crate) struct DepRow {
    pub(crate) d: Deployment,
    pub(crate) version: u64,
    pub(crate) env: usize,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LockRow {
    pub(crate) holder: Option<Dep>,
    pub(crate) fence: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Ready,
    Running,
    Settled,
}

/// A row of `works` with its row of `work_claims`.
#[derive(Debug, Clone)]
pub(crate) struct WorkRow {
    pub(crate) dep: Dep,
    pub(crate) desired: Desired,
    pub(crate) fence: u64,
    pub(crate) spec: WorkSpec,
    pub(crate) applied: u64,
    pub(crate) owner: Option<usize>,
    pub(crate) epoch: u64,
    pub(crate) expires: Option<Timestamp>,
    pub(crate) phase: Phase,
    pub(crate) result: Option<WorkResult>,
    pub(crate) result_version: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct TaskRow {
    pub(crate) task: Task,
    pub(crate) work: WorkId,
    pub(crate) dep: Dep,
    pub(crate) env: usize,
    pub(crate) step: String,
    pub(crate) version: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct CommandRow {
    pub(crate) key: u64,
    pub(crate) dep: Dep,
    pub(crate) input: Input,
    /// In `command_queue`.
    pub(crate) queued: bool,
    /// The code of its outcome; `ok` when it was carried out.
    pub(crate) outcome: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Db {
    pub(crate) deployments: Vec<DepRow>,
    pub(crate) locks: BTreeMap<usize, LockRow>,
    pub(crate) works: BTreeMap<WorkId, WorkRow>,
    pub(crate) tasks: BTreeMap<TaskId, TaskRow>,
    pub(crate) commands: Vec<CommandRow>,
    pub(crate) stops: BTreeMap<TaskId, By>,
    /// For tasks that are not made yet.
    pub(crate) host_stops: BTreeMap<(WorkId, String), By>,
    pub(crate) overrides: BTreeMap<TaskId, By>,
    /// Instance of each agent, and those it had before.
    pub(crate) sessions: BTreeMap<usize, u64>,
    /// Events of all streams: the deployment and the place in its stream.
    pub(crate) events: Vec<(Dep, u64)>,
    pub(crate) heads: BTreeMap<Dep, u64>,
    /// `event_queue` of the one consumer.
    pub(crate) queue: BTreeSet<usize>,
    pub(crate) effects: BTreeMap<usize, u32>,
    pub(crate) works_made: u128,
    pub(crate) tasks_made: u128,
}

/// How a commit came out for the process that asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commit {
    Done,
    /// It did not take effect, and the process knows.
    Failed,
    /// It took effect, and the process thinks that it did not.
    Unheard,
}

impl Db {
    /// Who waits for the lock of an environment, next first: rollbacks, then what ran before, then who came first.
    pub(crate) fn next_in_queue(&self, env: usize) -> Option<Dep> {
        let rank = |i: &Dep| {
            let d = &self.deployments[*i].d;
            let kind = match (d.rollback.is_some(), d.started_at.is_some()) {
                (true, _) => 0,
                (_, true) => 1,
                _ => 2,
            };
            (kind, d.requested_at, *i)
        };
        let waits = |i: &Dep| self.deployments[*i].env == env && self.deployments[*i].d.state == State::Queued;
        (0..self.deployments.len()).filter(waits).min_by_key(rank)
    }

    pub(crate) fn index_of(&self, id: windlass_domain::ids::DeploymentId) -> Option<Dep> {
        self.deployments.iter().position(|r| r.d.id == id)
    }

    pub(crate) fn append(&mut self, dep: Dep) {
        let next = self.heads.entry(dep).or_default();
        *next += 1;
        self.events.push((dep, *next));
        self.queue.insert(self.events.len() - 1);
    }

    pub(crate) fn tasks_of(&self, work: WorkId) -> impl Iterator<Item = (&TaskId, &TaskRow)> {
        self.tasks.iter().filter(move |(_, t)| t.work == work)
    }
}
