//! What all parts of the executor share: the context, the agents' connection, and who drives which task.

use crate::{
    allowance::Allowances,
    directory::Directory,
    dispatch::{Draft, Say},
    logs::Logs,
    metrics::Metrics,
    plans::Plans,
    ssh::Ssh,
    wave::Fetched,
};
use chrono::Utc;
use nkeys::KeyPair;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc;
use uuid::Uuid;
use windlass_bus::{Bus, Context};
use windlass_contracts::{
    frames::{self, Down, DownBody},
    subjects,
};
use windlass_domain::{
    Timestamp,
    event::{Aggregate, NewEvent, Severity},
    ids::{AgentId, EventId, TaskId},
    task::TaskReport,
    work::Work,
};
use windlass_runtime::{Outbound, Vault};

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) ctx: Context,
    /// The connection into the agents account.
    pub(crate) agents: Bus,
    pub(crate) key: KeyPair,
    pub(crate) directory: Directory,
    /// How much each agent may still say.
    pub(crate) allowances: Allowances,
    pub(crate) router: Router,
    pub(crate) plans: Plans,
    pub(crate) logs: Logs,
    pub(crate) metrics: Metrics,
    pub(crate) outbound: Outbound,
    /// Where set.
    pub(crate) vault: Option<Vault>,
    /// Results of tasks nobody here drives.
    pub(crate) late: mpsc::Sender<LateResult>,
    /// Hosts without an agent of their own.
    pub(crate) ssh: Ssh,
    /// At load balancers.
    pub(crate) turns: crate::traffic::Turns,
}

#[derive(Debug)]
pub(crate) struct LateResult {
    pub(crate) agent: AgentId,
    pub(crate) instance: String,
    pub(crate) task: TaskId,
    pub(crate) report: TaskReport,
}

impl Shared {
    /// Signs and sends a frame. Whether it arrives is seen from the agent's next word; every frame is re-sent from state.
    pub(crate) async fn send(&self, agent: AgentId, instance: Option<String>, body: DownBody) {
        let down = Down { aud: agent, instance, body };
        match frames::seal(&down, &self.key) {
            Ok(bytes) => {
                if let Err(error) = self.agents.publish(subjects::agent_down(agent), bytes).await {
                    tracing::debug!(%agent, error = &error as &dyn std::error::Error, "frame not sent");
                }
            }
            Err(error) => tracing::error!(%agent, error = &error as &dyn std::error::Error, "a frame cannot be made"),
        }
    }
}

/// The stored form of an event of a work.
pub(crate) fn work_event(work: &Work, draft: Draft, at: Timestamp) -> NewEvent {
    NewEvent {
        id: EventId(Uuid::now_v7()),
        aggregate: Aggregate::Deployment,
        aggregate_id: work.deployment.to_string(),
        what: draft.what.into(),
        project: Some(work.project.clone()),
        environment: Some(work.environment.clone()),
        severity: draft.severity,
        actor: draft.actor,
        at,
        payload: draft.payload,
        trace: work.trace.clone(),
    }
}

/// An event about an agent itself.
pub(crate) fn agent_event(agent: AgentId, what: &str, severity: Severity, payload: serde_json::Value) -> NewEvent {
    NewEvent {
        id: EventId(Uuid::now_v7()),
        aggregate: Aggregate::Agent,
        aggregate_id: agent.to_string(),
        what: what.into(),
        project: None,
        environment: None,
        severity,
        actor: crate::dispatch::SERVICE.into(),
        at: Utc::now(),
        payload,
        trace: None,
    }
}

/// What reaches the driver of a wave.
#[derive(Debug)]
pub(crate) enum Signal {
    Said {
        task: TaskId,
        instance: String,
        say: Say,
    },
    /// What became of the secrets of an ACCEPT.
    Secrets {
        task: TaskId,
        instance: String,
        nonce: String,
        fetched: Fetched,
    },
    /// The agent said HELLO: send again what it waits for.
    Nudge(TaskId),
    Override {
        task: TaskId,
        by: String,
        reason: String,
    },
    /// What became of taking a host off, or bringing it back.
    Traffic(crate::traffic::Told),
}

impl Signal {
    /// It tells how far a task is, and nothing follows from it: the result will say all of it again.
    pub(crate) fn is_progress(&self) -> bool {
        matches!(self, Signal::Said { say: Say::Started | Say::Step(_), .. })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    Taken,
    /// Nobody here drives the task.
    Foreign,
    /// The task belongs to another agent.
    WrongAgent,
    /// The driver does not keep up; the agent sends it again.
    Full,
}

type Routes = HashMap<TaskId, (Option<AgentId>, mpsc::Sender<Signal>)>;

/// Tasks driven by this process.
#[derive(Debug, Default)]
pub(crate) struct Router(Mutex<Routes>);

impl Router {
    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn register(&self, task: TaskId, agent: Option<AgentId>, to: &mpsc::Sender<Signal>) {
        self.lock().insert(task, (agent, to.clone()));
    }

    /// Those that still lead to `mine`: another driver of this process may have taken the work over meanwhile.
    pub(crate) fn forget(&self, tasks: impl Iterator<Item = TaskId>, mine: &mpsc::Sender<Signal>) {
        let mut routes = self.lock();
        for t in tasks {
            if routes.get(&t).is_some_and(|(_, to)| to.same_channel(mine)) {
                routes.remove(&t);
            }
        }
    }

    /// `from` is `None` for signals that do not come from an agent.
    pub(crate) fn deliver(&self, from: Option<AgentId>, task: TaskId, signal: Signal) -> Delivery {
        let routes = self.lock();
        let Some((agent, to)) = routes.get(&task) else { return Delivery::Foreign };
        if from.is_some() && from != *agent {
            return Delivery::WrongAgent;
        }
        match to.try_send(signal) {
            Ok(()) => Delivery::Taken,
            Err(mpsc::error::TrySendError::Full(_)) => Delivery::Full,
            Err(mpsc::error::TrySendError::Closed(_)) => Delivery::Foreign,
        }
    }
}
