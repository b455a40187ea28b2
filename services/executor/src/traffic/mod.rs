//! Traffic of a wave: takes hosts off the load balancers of the rollout before their task and brings them back after it.
//!
//! One job a task, in one direction. A job does its load balancers in order (back in the reverse one), each step of it can
//! be done again without harm, and its only word is one [`Told`], which the wave stores through `Task::apply`. So nothing
//! here is remembered: a new owner of the wave begins again what the tasks say was begun.
//!
//! What the driver of a wave does with it (the states move in `Task::apply` by `TaskInput::Traffic { state, reason }`):
//! - a pending task whose turn has come: `Traffic { Draining }` in the turn's transaction, `begin(.., Way::Drain)` after it;
//! - `Signal::Traffic(told)`: `Traffic { told.state, told.reason }`; `Drained` allows the offer, `DrainFailed` settles the
//!   task as `NotStarted`;
//! - whatever settles a task that was taken off turns its traffic to `Attaching` by itself (`Task::settle`): every task in
//!   `Attaching` or `DrainFailed` after a turn, or after a reload, gets `begin(.., Way::Attach)`, those in `Draining`
//!   `begin(.., Way::Drain)`. `begin` may be called every turn: what is under way goes on;
//! - the work is settled when every task `is_over()`;
//! - pause: a drain that runs goes on, the task is just not offered; attach always goes on, in an abort too.
//!
//! A late result or override of a settled work: after it the task is in `Attaching`, so there is no result yet. Then
//! `works::take_up_again(tx, work, epoch)` in the same transaction, and the bell of its pool: whoever claims it finds the
//! task as after a takeover, brings the host back and settles the work once more.
//!
//! Load balancers with agents are told by tasks (`wave::side`) in segments `segment::traffic(lb, host index, attach)`. Those
//! that attach are clean-up: they are offered and granted in a pause and in an abort too.
//!
//! A host that is brought back while it was still being taken off: what the old job left behind is awaited first, so that
//! no late `drain` comes after the `attach`.

use crate::{
    plans::PlanView,
    shared::{Shared, Signal},
};
use std::{collections::HashMap, sync::Arc};
use tokio::{sync::mpsc, task::JoinSet};
use windlass_domain::{
    ids::TaskId,
    plan::{PlanRollout, PlanStepKind},
    traffic::TrafficState,
};
use windlass_store::works::Claim;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    /// For tasks in `TrafficState::Draining`.
    Drain,
    /// For tasks in `TrafficState::Attaching` and `TrafficState::DrainFailed`.
    Attach,
}

/// How it came out: `Drained` or `DrainFailed`, `Attached` or `AttachFailed`. Goes into the task as
/// `TaskInput::Traffic`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) task: TaskId,
    pub(crate) state: TrafficState,
    pub(crate) reason: Option<String>,
}

/// The jobs of one wave. Dropping it stops them all.
#[derive(Debug)]
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    claim: Claim,
    plan: Arc<PlanView>,
    step: String,
    to_inbox: mpsc::Sender<Signal>,
    jobs: HashMap<TaskId, (Way, tokio::task::AbortHandle)>,
    running: JoinSet<()>,
}

impl Traffic {
    /// `None`: the rollout has no load balancers.
    pub(crate) fn of(
        shared: &Arc<Shared>,
        claim: &Claim,
        plan: &Arc<PlanView>,
        step: &str,
        to_inbox: &mpsc::Sender<Signal>,
    ) -> Option<Traffic> {
        let r = rollout(plan, step)?;
        (!r.traffic.is_empty()).then(|| Traffic {
            shared: Arc::clone(shared),
            claim: claim.clone(),
            plan: Arc::clone(plan),
            step: step.to_owned(),
            to_inbox: to_inbox.clone(),
            jobs: HashMap::new(),
            running: JoinSet::new(),
        })
    }

    /// Begins, unless it is under way already; a job in the other direction is stopped. The answer comes as
    /// `Signal::Traffic`. When the answer did not reach the database (a failed transaction), begin again.
    pub(crate) fn begin(&mut self, task: TaskId, host: &str, attempt: u32, way: Way) {
        let _ = (task, host, attempt, way, &self.jobs, &self.running, &self.to_inbox, &self.step, &self.claim);
        let _ = (&self.shared, &self.plan);
    }
}

fn rollout<'p>(plan: &'p PlanView, step: &str) -> Option<&'p PlanRollout> {
    plan.plan.steps.iter().find(|s| s.id == step).and_then(|s| match &s.kind {
        PlanStepKind::Rollout(r) => Some(r),
        _ => None,
    })
}
