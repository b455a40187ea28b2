//! Deployments: one application of a release to one environment, and the state machine that carries it.
//!
//! [`Deployment::apply`] is the only way a deployment changes. It takes an input and the time, and gives the deployment
//! to store and the effects to carry out in the same transaction. Every (state, input) pair has a written answer: a change, or
//! a [`Refusal`] with a stable code.

mod amend;
mod attention;
mod claim;
mod counts;
mod expressions;
mod facts;
mod forced;
mod graph;
mod intervene;
mod mend;
mod probing;
mod reopen;
mod repeat;
mod required;
mod retrying;
mod run;
mod steps;
pub mod table;
mod transition;
mod waiting;

pub use counts::HostCounts;
pub use mend::Scope;
pub use steps::{
    About, Ask, Choice, GatewayRun, HostRun, HostState, ProbeRun, RepeatRun, RolloutRun, StepRun, StepRunKind,
    StepState, Tries, WaveRun, WaveState,
};
pub use transition::New;
pub use waiting::{Bound, WaitingOn};

use crate::{
    Timestamp,
    approval::{Approval, ApprovalRule},
    event::Severity,
    flow::{Confirm, OnFailure},
    ids::{DeploymentId, ReleaseId, WorkId},
    release::{ReleaseKind, RollbackMode},
    work::{HostResult, WorkResult, WorkSpec},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a deployment rests. Planning and the moment of approval are events, not states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    AwaitingApproval,
    /// Approved; waits for its time.
    Scheduled,
    /// Waits for the environment's lock.
    Queued,
    Running,
    /// Nothing of it moves until a person or a timer says so.
    Paused,
    Aborting,
    Succeeded,
    Failed,
    Aborted,
    RolledBack,
    Rejected,
    Expired,
    Cancelled,
}

impl State {
    pub const ALL: [State; 13] = [
        State::AwaitingApproval,
        State::Scheduled,
        State::Queued,
        State::Running,
        State::Paused,
        State::Aborting,
        State::Succeeded,
        State::Failed,
        State::Aborted,
        State::RolledBack,
        State::Rejected,
        State::Expired,
        State::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            State::AwaitingApproval => "awaiting_approval",
            State::Scheduled => "scheduled",
            State::Queued => "queued",
            State::Running => "running",
            State::Paused => "paused",
            State::Aborting => "aborting",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Aborted => "aborted",
            State::RolledBack => "rolled_back",
            State::Rejected => "rejected",
            State::Expired => "expired",
            State::Cancelled => "cancelled",
        }
    }
    /// Nothing of it has run and nothing holds the lock.
    pub fn is_before_running(self) -> bool {
        matches!(self, State::AwaitingApproval | State::Scheduled | State::Queued)
    }
    /// At most one deployment of a project and environment is in one of these.
    pub fn is_active(self) -> bool {
        matches!(self, State::Running | State::Paused | State::Aborting)
    }
    pub fn is_terminal(self) -> bool {
        !self.is_before_running() && !self.is_active()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    pub id: DeploymentId,
    pub project: String,
    pub environment: String,
    pub release: ReleaseId,
    /// The artifact's version.
    pub version: String,
    pub kind: ReleaseKind,
    pub rollback: Option<Rollback>,
    pub state: State,
    /// Person or hook that asked.
    pub requested_by: String,
    pub requested_at: Timestamp,
    pub note: String,
    /// W3C traceparent of the request: what runs on hosts belongs to the trace of the event or person that asked for it.
    #[serde(default)]
    pub trace: Option<String>,
    pub pool: String,
    /// Hosts that were asked for; empty means the whole environment.
    pub only_hosts: Vec<String>,
    pub plan_digest: String,
    pub rules: Vec<ApprovalRule>,
    /// Decisions on the current plan.
    pub approvals: Vec<Approval>,
    pub not_before: Option<Timestamp>,
    pub expires_at: Timestamp,
    pub on_failure: OnFailure,
    pub steps: Vec<StepRun>,
    /// What expressions read that are decided while it runs: `inputs`, `artifact`, `release`, `env`, `values`, and under
    /// `scopes` the inputs and outputs of subflows. Empty when there are no such expressions.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub context: serde_json::Map<String, serde_json::Value>,
    /// Its place in a bundle: it is held before its queue until its turn comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<crate::bundle::Turn>,
    /// Digest of the plan that was asked for, while the one that is there now has yet to be accepted: it changed, and no
    /// rule makes anybody approve it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drifted_from: Option<String>,
    /// An operator's pause: nothing new starts while it stands.
    pub pause: Option<By>,
    /// Who answers for it while it waits for a person: nobody else steps in unless they take it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<By>,
    #[serde(default)]
    pub patience: crate::flow::Patience,
    /// Since when it has waited for a person, and when that is too long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<Attention>,
    /// From 1; a failed or aborted deployment that is taken up again is the next run of it.
    #[serde(default = "first_run")]
    pub run: u32,
    /// Who took it up again; its lock is asked for anew, its plan stays the one that was approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reopened: Option<By>,
    /// What that was for, until it has its lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Scope>,
    /// A plan with other inputs that a person wants to go on with, until it is approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amendment: Option<Box<Amendment>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic: Option<RollbackMode>,
    /// Why it ended, where it did not simply succeed.
    pub end: Option<By>,
    /// A rollback to be requested when the abort has ended.
    pub then_rollback: Option<(RollbackMode, DeploymentId)>,
    /// The same where no person asked for it: nobody has given that rollback an id yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then_automatic: Option<RollbackMode>,
    /// The rollback that was requested for this deployment.
    pub rolled_back_by: Option<DeploymentId>,
    /// Fence of the environment lock while it is held.
    pub lock: Option<u64>,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
}

fn first_run() -> u32 {
    1
}

/// It waits for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attention {
    pub since: Timestamp,
    /// Then `patience.then` happens.
    pub deadline: Timestamp,
    /// How often the alarm was raised again.
    #[serde(default)]
    pub reminded: u32,
    /// What it waits for: steps, waves, an operator's word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<String>,
}

/// Other inputs for what has yet to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Amendment {
    pub by: By,
    /// The inputs that change.
    pub inputs: std::collections::BTreeMap<String, serde_json::Value>,
    pub facts: PlanFacts,
    /// Decisions on the new plan.
    pub approvals: Vec<Approval>,
    /// Hosts to retry once it is approved; empty: all that failed.
    pub hosts: Vec<String>,
}

/// What a rollback deployment goes back from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    pub of: DeploymentId,
    pub mode: RollbackMode,
}

/// Who did something, why and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    pub who: String,
    pub reason: String,
    pub at: Timestamp,
}

/// What can happen to a deployment. `by` is a person's name.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    Decide(Approval),
    /// A person takes the changed plan with this digest, where nobody has to approve it.
    Accept {
        by: String,
        digest: String,
    },
    Cancel {
        by: String,
        reason: String,
    },
    Pause {
        by: String,
        reason: String,
    },
    Resume {
        by: String,
    },
    Confirm {
        by: String,
        wave: u32,
    },
    /// A person picks a gateway's branch (by name, or `default`) where its expression failed; or says whether a step
    /// whose condition failed runs (`run` or `skip`).
    Choose {
        by: String,
        step: String,
        branch: String,
    },
    /// A person answers for what it waits for. Somebody else's claim is taken over only with `take_over`.
    Claim {
        by: String,
        take_over: bool,
        reason: String,
    },
    Unclaim {
        by: String,
    },
    /// Failed hosts and steps again, at the step that failed. On a deployment that failed or was aborted: takes it up again.
    Retry {
        by: String,
        hosts: Vec<String>,
        /// Only this step.
        step: Option<String>,
        /// All hosts of the failed wave, from their first step on, those that succeeded too.
        whole_wave: bool,
    },
    /// Retry with other inputs: the deployment goes on under a new plan once that is approved.
    Amend {
        by: String,
        inputs: std::collections::BTreeMap<String, serde_json::Value>,
        facts: Box<PlanFacts>,
        hosts: Vec<String>,
        reason: String,
    },
    /// Stops hosts that run, for good: they count as stopped by hand.
    Stop {
        by: String,
        hosts: Vec<String>,
        reason: String,
    },
    /// A person calls a central step that runs failed (it is stopped).
    Fail {
        by: String,
        step: String,
        reason: String,
    },
    /// A person calls a failed step, or failed hosts, well.
    Succeed {
        by: String,
        step: Option<String>,
        hosts: Vec<String>,
        reason: String,
    },
    Skip {
        by: String,
        hosts: Vec<String>,
    },
    Ignore {
        by: String,
        hosts: Vec<String>,
        reason: String,
    },
    Exclude {
        by: String,
        hosts: Vec<String>,
        reason: String,
    },
    Override {
        by: String,
        hosts: Vec<String>,
        reason: String,
    },
    Abort {
        by: String,
        reason: String,
    },
    /// The last known good release exists; `rollback` is the id its deployment will have.
    Rollback {
        by: String,
        mode: RollbackMode,
        rollback: DeploymentId,
        reason: String,
    },
    /// The rollback of this deployment ended well.
    RolledBack,
    /// The plan computed now differs from the one stored; here is the new one.
    PlanChanged(Box<PlanFacts>),
    /// Its turn in its bundle has come.
    TurnCame,
    /// The environment's lock was taken for it.
    LockTaken {
        fence: u64,
    },
    /// An executor settled (or settled anew) one of its works.
    WorkSettled {
        work: WorkId,
        result: WorkResult,
    },
    /// Time has passed.
    Tick,
}

/// What a deployment keeps of its plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanFacts {
    pub digest: String,
    pub rules: Vec<ApprovalRule>,
    pub on_failure: OnFailure,
    pub steps: Vec<StepRun>,
    #[serde(default)]
    pub context: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    pub patience: crate::flow::Patience,
    #[serde(default)]
    pub automatic: Option<RollbackMode>,
}

/// What must happen with the change, in the same transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    StartWork {
        id: WorkId,
        spec: WorkSpec,
    },
    /// Turn `desired` of all its unsettled works to abort.
    AbortWorks,
    FreeLock,
    /// It ended well: remember the release as known good here.
    RecordGood,
    RequestRollback {
        mode: RollbackMode,
        id: Option<DeploymentId>,
        by: String,
    },
    /// Tell the deployment this one rolled back.
    TellRolledBack {
        of: DeploymentId,
    },
    /// Turn `desired` of its unsettled works that run to hold, or (`false`) back to run.
    HoldWorks(bool),
    /// Turn `desired` of one work to abort.
    AbortWork(WorkId),
    /// These hosts' tasks are to be stopped.
    StopTasks {
        hosts: Vec<String>,
        by: String,
        reason: String,
    },
    /// Automation (hooks, promotions, schedules) is not to release here until a person lets it.
    Hold {
        by: String,
        reason: String,
    },
    /// A person answers for these hosts' unknown tasks.
    OverrideTasks {
        hosts: Vec<String>,
        by: String,
        reason: String,
    },
    Event {
        what: &'static str,
        severity: Severity,
        payload: serde_json::Value,
    },
}

/// Why an input changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("a deployment that is {} cannot be {verb}{hint}", state.as_str().replace('_', " "))]
    WrongState { state: State, verb: &'static str, hint: &'static str },
    /// The table's answer to a person's verb.
    #[error("a deployment that is {} takes no {}: {remedy}", state.as_str().replace('_', " "), verb.as_str())]
    Verb { state: State, verb: table::Verb, code: &'static str, remedy: &'static str },
    #[error("{who} claimed this deployment at {since}: leave it to them, or claim it with take_over and a reason")]
    Claimed { who: String, since: Timestamp },
    /// A required step would be left undone.
    #[error("{0}")]
    Required(String),
    /// Hosts may still be running.
    #[error("{0}")]
    Unsettled(String),
    /// Something newer stands in the way of taking it up again.
    #[error("{0}")]
    Superseded(String),
    #[error(transparent)]
    Approval(#[from] crate::approval::Refusal),
    #[error("{0}")]
    NothingToDo(String),
    #[error("{0}")]
    Invalid(String),
}

impl Refusal {
    /// The stable code of the command outcome.
    pub fn code(&self) -> &'static str {
        use crate::approval::Refusal as A;
        match self {
            Refusal::WrongState { .. } => "wrong_state",
            Refusal::Verb { code, .. } => code,
            Refusal::Claimed { .. } => "claimed",
            Refusal::Required(_) => "required",
            Refusal::Unsettled(_) => "unsettled",
            Refusal::Superseded(_) => "superseded",
            Refusal::Approval(A::OtherPlan { .. }) => "plan_changed",
            Refusal::Approval(A::OwnRequest(_)) => "own_request",
            Refusal::Approval(A::AlreadyDecided(_)) => "already_decided",
            Refusal::Approval(A::NotAsked(_)) => "not_asked",
            Refusal::NothingToDo(_) => "nothing_to_do",
            Refusal::Invalid(_) => "invalid",
        }
    }
}

impl Deployment {
    /// All hosts of all rollouts with their latest state.
    pub fn hosts(&self) -> impl Iterator<Item = &HostRun> {
        self.rollouts().flat_map(|(_, r)| r.waves.iter().flat_map(|w| w.hosts.iter()))
    }

    pub fn rollouts(&self) -> impl Iterator<Item = (&StepRun, &RolloutRun)> {
        self.steps.iter().filter_map(|s| match &s.kind {
            StepRunKind::Rollout(r) => Some((s, r)),
            _ => None,
        })
    }

    /// Hosts that something of this deployment may have run on: what a rollback goes to.
    pub fn touched_hosts(&self) -> Vec<String> {
        let mut names: Vec<String> = self.hosts().filter(|h| h.state.is_touched()).map(|h| h.host.clone()).collect();
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|n| seen.insert(n.clone()));
        names
    }

    pub fn unknown_hosts(&self) -> Vec<String> {
        self.hosts().filter(|h| h.state == HostState::Unknown).map(|h| h.host.clone()).collect()
    }

    /// The works whose results tell what became of unknown hosts, each with those hosts and their attempts.
    pub fn unknown_works(&self) -> Vec<(WorkId, Vec<(&str, u32)>)> {
        let mut found = Vec::new();
        for w in self.rollouts().flat_map(|(_, r)| &r.waves) {
            let silent = w.hosts.iter().filter(|h| h.state == HostState::Unknown);
            let silent: Vec<(&str, u32)> = silent.map(|h| (h.host.as_str(), h.attempt)).collect();
            if !silent.is_empty() {
                found.extend(w.work.iter().chain(&w.earlier).map(|id| (*id, silent.clone())));
            }
        }
        found
    }

    /// The works of waves that run on some of these hosts, with those hosts.
    pub fn running_on<'a>(&self, hosts: &'a [String]) -> Vec<(WorkId, Vec<&'a str>)> {
        let named: BTreeMap<&str, &'a str> = hosts.iter().map(|h| (h.as_str(), h.as_str())).collect();
        let mut found = Vec::new();
        for s in &self.steps {
            let StepRunKind::Rollout(r) = &s.kind else { continue };
            for w in r.waves.iter().filter(|w| w.state == WaveState::Running) {
                let running = w.hosts.iter().filter(|h| h.state == HostState::Running);
                let of: Vec<&str> = running.filter_map(|h| named.get(h.host.as_str()).copied()).collect();
                found.extend(w.work.filter(|_| !of.is_empty()).map(|id| (id, of)));
            }
        }
        found
    }

    /// Works that an executor has not settled yet.
    pub fn works_in_flight(&self) -> Vec<WorkId> {
        let mut ids = Vec::new();
        for s in &self.steps {
            match &s.kind {
                StepRunKind::Central { work, .. } if s.state == StepState::Running => ids.extend(*work),
                StepRunKind::Central { .. }
                | StepRunKind::Gateway(_)
                | StepRunKind::Enter { .. }
                | StepRunKind::Leave { .. } => {}
                StepRunKind::Rollout(r) => {
                    ids.extend(r.waves.iter().filter(|w| w.state == WaveState::Running).filter_map(|w| w.work));
                    ids.extend(r.waves.iter().filter_map(WaveRun::probe_work));
                }
            }
        }
        ids
    }
}

#[cfg(test)]
mod tests;
