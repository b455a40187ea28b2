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

mod agent;
mod haproxy;
mod http;
mod turns;

pub(crate) use turns::Turns;

use crate::{
    error::Stop,
    plans::PlanView,
    shared::{Shared, Signal},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use windlass_domain::{
    ids::TaskId,
    traffic::{Kind, PlanTraffic, Share, TrafficState},
};
use windlass_store::works::Claim;

/// How long the wave gets to store an answer before the job is done again.
const ANSWER: Duration = Duration::from_secs(5);
/// What a job waits for is told when it has waited this long, and not more often than that.
const TELL: Duration = Duration::from_secs(3);

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    /// For tasks in `TrafficState::Draining`.
    Drain,
    /// For tasks in `TrafficState::Attaching` and `TrafficState::DrainFailed`.
    Attach,
}

/// How it came out: `Drained` or `DrainFailed`, `Attached` or `AttachFailed`; or, with `Draining` and `Attaching`, what it
/// waits for. Goes into the task as `TaskInput::Traffic`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) task: TaskId,
    pub(crate) state: TrafficState,
    pub(crate) reason: Option<String>,
}

/// Why a load balancer did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Fault {
    /// It says no, or what it says is not understood.
    #[error("{0}")]
    Refused(String),
    /// It cannot be asked.
    #[error("{0}")]
    Broken(String),
    /// Its time was over.
    #[error("{0}")]
    Timeout(String),
}

/// Members that must stay up, of all.
fn least(share: Share, all: u32) -> u32 {
    match share {
        Share::Count(n) => n,
        Share::Percent(p) => u32::try_from((u64::from(all) * u64::from(p)).div_ceil(100)).unwrap_or(u32::MAX),
    }
}

/// The jobs of one wave. Dropping it stops them all.
#[derive(Debug)]
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    claim: Claim,
    plan: Arc<PlanView>,
    step: String,
    to_inbox: mpsc::Sender<Signal>,
    jobs: HashMap<TaskId, Begun>,
    running: JoinSet<()>,
}

#[derive(Debug)]
struct Begun {
    way: Way,
    handle: AbortHandle,
    /// When it was first seen to have ended.
    ended: Option<Instant>,
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
        plan.rollout(step).filter(|r| !r.traffic.is_empty())?;
        Some(Traffic {
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
        while self.running.try_join_next().is_some() {}
        if let Some(b) = self.jobs.get_mut(&task) {
            if b.way == way && !b.handle.is_finished() {
                return;
            }
            // Its answer may be on its way.
            if b.way == way && b.ended.get_or_insert_with(Instant::now).elapsed() < ANSWER {
                return;
            }
            b.handle.abort();
        }
        tracing::info!(%task, host, attempt, ?way, "traffic");
        let state = match way {
            Way::Drain => TrafficState::Draining,
            Way::Attach => TrafficState::Attaching,
        };
        let Some(index) = self.plan.plan.host_index(host) else { return };
        let job = Job {
            shared: Arc::clone(&self.shared),
            claim: self.claim.clone(),
            plan: Arc::clone(&self.plan),
            step: self.step.clone(),
            host: index,
            says: Says { task, state, to: self.to_inbox.clone(), last: Mutex::new((Instant::now(), String::new())) },
        };
        let to = self.to_inbox.clone();
        let handle = self.running.spawn(async move {
            match job.run(way).await {
                // A wave that has ended listens no more, and needs it no more.
                Ok(told) => drop(to.send(Signal::Traffic(told)).await),
                Err(why) => tracing::debug!(%task, why = &why as &dyn std::error::Error, "traffic is no longer ours"),
            }
        });
        self.jobs.insert(task, Begun { way, handle, ended: None });
    }
}

/// Tells the wave what is waited for, now and then.
#[derive(Debug)]
struct Says {
    task: TaskId,
    state: TrafficState,
    to: mpsc::Sender<Signal>,
    last: Mutex<(Instant, String)>,
}

impl Says {
    fn waits(&self, text: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0.elapsed() < TELL || last.1 == text {
            return;
        }
        *last = (Instant::now(), text.to_owned());
        let told = Told { task: self.task, state: self.state, reason: Some(text.to_owned()) };
        // It is told again when there is no room now.
        let _ = self.to.try_send(Signal::Traffic(told));
    }
}

/// All load balancers of the rollout for one host, one way.
struct Job {
    shared: Arc<Shared>,
    claim: Claim,
    plan: Arc<PlanView>,
    step: String,
    /// Index in the plan's hosts.
    host: u32,
    says: Says,
}

impl Job {
    async fn run(&self, way: Way) -> Result<Told, Stop> {
        let plan = Arc::clone(&self.plan);
        let all: Vec<(u32, &PlanTraffic)> =
            plan.rollout(&self.step).map(|r| (0..).zip(&r.traffic).collect()).unwrap_or_default();
        let mut faults = Vec::new();
        let told = |state, reason| Ok(Told { task: self.says.task, state, reason });
        match way {
            Way::Drain => {
                for (lb, t) in all {
                    if let Err(fault) = self.one(lb, t, way).await? {
                        let reason = format!("not started: load balancer `{}`: {fault}", t.name);
                        return told(TrafficState::DrainFailed, Some(reason));
                    }
                }
                told(TrafficState::Drained, None)
            }
            Way::Attach => {
                // Whatever one says, the others get the host back.
                for (lb, t) in all.into_iter().rev() {
                    if let Err(fault) = self.one(lb, t, way).await? {
                        faults.push(format!("load balancer `{}`: {fault}", t.name));
                    }
                }
                if faults.is_empty() {
                    return told(TrafficState::Attached, None);
                }
                told(TrafficState::AttachFailed, Some(format!("it was not brought back: {}", faults.join("; "))))
            }
        }
    }

    async fn one(&self, lb: u32, t: &PlanTraffic, way: Way) -> Result<Result<(), Fault>, Stop> {
        let Some(member) = t.members.get(&self.host) else {
            return Ok(Err(Fault::Refused("the plan does not say what the host is called there".into())));
        };
        let limit = |s: u32| Duration::from_secs(s.max(1).into());
        let (drain, attach) = (limit(t.drain_timeout_s), limit(t.attach_timeout_s));
        let least = t.min_healthy.map(|share| turns::Minimum { share, turns: &self.shared.turns });
        match &t.kind {
            Kind::Nginx { .. } | Kind::Command { .. } => self.on_agent(lb, t, way).await,
            Kind::Haproxy { endpoints, backend } => {
                let lb = haproxy::Haproxy { outbound: &self.shared.outbound, endpoints, backend, server: member };
                Ok(match way {
                    Way::Drain => lb.drain(least, drain, t.on_drain_timeout, &self.says).await,
                    Way::Attach => lb.attach(attach, &self.says).await,
                })
            }
            Kind::Http { drain: d, attach: a, state, drained, up, healthy } => {
                let lb = http::Http {
                    shared: &self.shared,
                    work: &self.claim.work,
                    member,
                    members: u32::try_from(t.members.len()).unwrap_or(u32::MAX),
                    drain: d,
                    attach: a,
                    state: state.as_ref(),
                    drained: drained.as_deref(),
                    up: up.as_deref(),
                    healthy: healthy.as_deref(),
                };
                Ok(match way {
                    Way::Drain => lb.drain(least, drain, t.on_drain_timeout, &self.says).await,
                    Way::Attach => lb.attach(attach, &self.says).await,
                })
            }
        }
    }
}
