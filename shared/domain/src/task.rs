//! Tasks: an ordered list of host-local steps for one host, one attempt, and the state machine of its dispatch
//! (OFFER, ACCEPT, GRANT, start). The invariants it serves are written in ARCHITECTURE.md.

use crate::{
    Timestamp,
    ids::{AgentId, TaskId},
    traffic::{TaskTraffic, TrafficState},
    work::{FailureClass, Outcome},
};
use serde::{Deserialize, Serialize};

/// What an agent is asked to run. Its canonical JSON is hashed to `spec_digest`, a leaf of the plan's Merkle tree, so an
/// approval of the plan is an approval of exactly this text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub project: String,
    pub environment: String,
    pub version: String,
    /// Name of the host as catalogued.
    pub host: String,
    /// Id of the rollout step.
    pub step: String,
    pub segment: u32,
    pub steps: Vec<TaskStep>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskStep {
    pub id: String,
    /// `artifact.fetch`, `artifact.verify`, `release.switch`, `service.restart`, `script`, `file.put`, `http.check`.
    pub action: String,
    /// Parameters, fully resolved.
    pub with: serde_json::Map<String, serde_json::Value>,
    /// Clean-up: runs even when an earlier step of the task failed or the task is being cancelled.
    #[serde(default)]
    pub always: bool,
    /// Seconds; the step is stopped and failed when it takes longer.
    pub timeout_s: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    Pending,
    Offered,
    Granted,
    Succeeded,
    Failed,
    Cancelled,
    NotStarted,
    Unknown,
    /// An unknown that a person took responsibility for.
    Overridden,
}

impl TaskState {
    pub fn as_str(self) -> &'static str {
        match self {
            TaskState::Pending => "pending",
            TaskState::Offered => "offered",
            TaskState::Granted => "granted",
            TaskState::Succeeded => "succeeded",
            TaskState::Failed => "failed",
            TaskState::Cancelled => "cancelled",
            TaskState::NotStarted => "not_started",
            TaskState::Unknown => "unknown",
            TaskState::Overridden => "overridden",
        }
    }
    /// Nothing can change it any more.
    pub fn is_final(self) -> bool {
        use TaskState::*;
        matches!(self, Succeeded | Failed | Cancelled | NotStarted | Overridden)
    }
    /// The work it belongs to need not wait for it.
    pub fn is_settled(self) -> bool {
        self.is_final() || self == TaskState::Unknown
    }
}

/// How a step on a host came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    Succeeded,
    Failed,
    TimedOut,
    Cancelled,
    /// Not reached, or before `start_at`.
    Skipped,
}

/// One step as the agent reported it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    pub index: u32,
    pub outcome: StepOutcome,
    pub exit_code: Option<i32>,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    /// For people; empty when it succeeded.
    #[serde(default)]
    pub message: String,
    /// Processes of the step that were still alive when it ended.
    #[serde(default)]
    pub left_processes: u32,
    /// What the step wrote to its output file, masked.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub outputs: serde_json::Map<String, serde_json::Value>,
}

/// The final word of a runner about a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    pub outcome: ReportedOutcome,
    pub steps: Vec<StepReport>,
    /// Bytes the steps wrote, all of them, kept or not.
    pub log_bytes: u64,
    /// Bytes cut from the middle of the log by the cap.
    pub log_dropped: u64,
    /// Number of log frames; the receiver is missing some if it has fewer.
    pub log_frames: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportedOutcome {
    Succeeded,
    Failed,
    /// Stopped on request, after the process tree was reaped.
    Cancelled,
    /// Fenced before anything started: proof that it never ran.
    Fenced,
    /// Intent is journaled but no exit: the machine restarted or the runner was killed. Nobody knows.
    Interrupted,
}

/// A task with its dispatch state, as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub host: String,
    pub agent: Option<AgentId>,
    pub attempt: u32,
    pub start_at: u32,
    pub state: TaskState,
    /// Set by GRANT, with the agent instance it was granted to.
    pub granted: Option<Grant>,
    pub report: Option<TaskReport>,
    /// Steps reported before the task ended.
    #[serde(default)]
    pub steps: Vec<StepReport>,
    /// Why it is what it is, for people.
    #[serde(default)]
    pub reason: Option<String>,
    /// Left alone because the failure budget was used up; then `state` is `NotStarted`.
    #[serde(default)]
    pub auto_stopped: bool,
    /// Where its host stands with the load balancers; absent when the rollout has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TaskTraffic>,
    /// A person stopped this host: who, why, when. `state` follows once it is known what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<crate::deployment::By>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<FailureClass>,
    pub offered_at: Option<Timestamp>,
    pub granted_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub settled_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The agent's 128-bit random of its ACCEPT, hex.
    pub nonce: String,
    /// Random id made when the agent's journal was created.
    pub instance: String,
}

/// What can happen to a task. Everything an agent says carries the instance that says it.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskInput {
    Offer,
    Accepted(Grant),
    Started {
        instance: String,
    },
    Step {
        instance: String,
        report: StepReport,
    },
    Reported {
        instance: String,
        report: TaskReport,
    },
    /// The host refuses an offer because it has had this attempt, or a later one, under another id: of a history that was
    /// lost when a database was restored.
    Known {
        reason: String,
    },
    /// Withdraw: abort, failure budget, or nobody answered the offer.
    Withdraw {
        reason: String,
    },
    /// Withdraw because the failure budget is used up.
    AutoStop {
        reason: String,
    },
    /// The agent has been silent too long, or another instance answers for the host.
    Silent {
        reason: String,
    },
    Override {
        by: String,
        reason: String,
    },
    /// A person stops this host: what has not started never will, what runs is fenced until it reports.
    Stop {
        by: crate::deployment::By,
    },
    /// What became of its host's traffic: [`Draining`](TrafficState::Draining) when its turn has come, then what the load
    /// balancers said.
    Traffic {
        state: TrafficState,
        reason: Option<String>,
    },
}

/// Why an input changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the task is already settled")]
    Settled,
    #[error("another agent instance holds the grant")]
    OtherInstance,
    #[error("the input does not fit the task's state")]
    Unfitting,
    #[error("the same was recorded before")]
    Duplicate,
}

/// Why an offered task is unknown that its host has begun.
const FOREIGN_GRANT: &str = "the host has begun this task, and no grant of it is recorded here: the database was restored from a \
                             backup; look at the host, then override it";

impl Task {
    /// The one transition function of dispatch. `Ok` is the state to store; `Err` says why nothing changes.
    pub fn apply(&self, input: TaskInput, now: Timestamp) -> Result<Task, Refusal> {
        use TaskState::*;
        let mut t = self.clone();
        let input = match input {
            TaskInput::Traffic { state, reason } => return self.traffic(state, reason, now),
            other => other,
        };
        if self.state.is_final() {
            return Err(Refusal::Settled);
        }
        let granted_to = |instance: &str| self.granted.as_ref().is_some_and(|g| g.instance == instance);
        match (self.state, input) {
            // Nothing starts on a host that is not off.
            (Pending, TaskInput::Offer) if self.traffic.as_ref().is_none_or(|t| t.state == TrafficState::Drained) => {
                t.state = Offered;
                t.offered_at = Some(now);
            }
            (Offered, TaskInput::Accepted(grant)) => {
                t.state = Granted;
                t.granted_at = Some(now);
                t.granted = Some(grant);
            }
            // After its restart the same instance accepts again with a new nonce; another instance never gets the grant.
            (Granted, TaskInput::Accepted(grant)) if granted_to(&grant.instance) => {
                if self.granted.as_ref() == Some(&grant) {
                    return Err(Refusal::Duplicate);
                }
                t.granted = Some(grant);
            }
            (Granted | Unknown, TaskInput::Accepted(_)) => return Err(Refusal::OtherInstance),
            (Granted, TaskInput::Started { instance }) if granted_to(&instance) => {
                if t.started_at.is_some() {
                    return Err(Refusal::Duplicate);
                }
                t.started_at = Some(now);
            }
            (Granted | Unknown, TaskInput::Step { instance, report }) if granted_to(&instance) => {
                if t.steps.iter().any(|s| s.index == report.index) {
                    return Err(Refusal::Duplicate);
                }
                t.steps.push(report);
            }
            // An offer that was fenced, or refused, never ran: no grant was ever made.
            (Offered, TaskInput::Reported { report, .. }) if report.outcome == ReportedOutcome::Fenced => {
                t.settle(NotStarted, Some("fenced before it was granted".into()), now);
            }
            // It runs, or has run, by a grant that nobody here remembers: a restored database. What it did counts as neither
            // good nor not started; a person looks.
            (Offered, TaskInput::Reported { .. } | TaskInput::Started { .. }) => {
                t.settle(Unknown, Some(FOREIGN_GRANT.into()), now);
            }
            (Offered, TaskInput::Known { reason }) => t.settle(Unknown, Some(reason), now),
            (Granted | Unknown, TaskInput::Reported { instance, report }) if granted_to(&instance) => {
                let (state, reason) = match report.outcome {
                    ReportedOutcome::Succeeded => (Succeeded, None),
                    ReportedOutcome::Failed => (Failed, report.first_failure()),
                    ReportedOutcome::Cancelled => {
                        let on_request = || "stopped on request".into();
                        (Cancelled, Some(self.stop.as_ref().map_or_else(on_request, stopped_by)))
                    }
                    ReportedOutcome::Fenced => (NotStarted, Some("fenced before it started".into())),
                    ReportedOutcome::Interrupted => {
                        (Unknown, Some("the host restarted or the runner was killed in mid-run".into()))
                    }
                };
                if state == Unknown && self.state == Unknown && self.report.is_some() {
                    return Err(Refusal::Duplicate);
                }
                if !report.steps.is_empty() {
                    t.steps.clone_from(&report.steps);
                }
                t.report = Some(report);
                t.settle(state, reason, now);
            }
            (Granted | Unknown, TaskInput::Started { .. } | TaskInput::Step { .. } | TaskInput::Reported { .. }) => {
                return Err(Refusal::OtherInstance);
            }
            (Pending | Offered, TaskInput::Withdraw { reason }) => t.settle(NotStarted, Some(reason), now),
            (Pending | Offered, TaskInput::AutoStop { reason }) => {
                t.auto_stopped = true;
                t.settle(NotStarted, Some(reason), now);
            }
            (Granted, TaskInput::Silent { reason }) => t.settle(Unknown, Some(reason), now),
            (Unknown, TaskInput::Silent { .. }) => return Err(Refusal::Duplicate),
            (Unknown, TaskInput::Override { by, reason }) => {
                t.settle(Overridden, Some(format!("overridden by {by}: {reason}")), now);
            }
            (_, TaskInput::Stop { .. }) if self.stop.is_some() => return Err(Refusal::Duplicate),
            (Pending | Offered, TaskInput::Stop { by }) => {
                t.settle(NotStarted, Some(stopped_by(&by)), now);
                t.stop = Some(by);
            }
            // It may run, or have run: only its report says.
            (Granted | Unknown, TaskInput::Stop { by }) => t.stop = Some(by),
            _ => return Err(Refusal::Unfitting),
        }
        Ok(t)
    }

    /// Whatever ends a task also begins to bring its host back; an unknown host stays off, for it may still run.
    fn settle(&mut self, state: TaskState, reason: Option<String>, now: Timestamp) {
        self.state = state;
        self.reason = reason;
        self.settled_at = Some(now);
        let off = |t: &TaskTraffic| matches!(t.state, TrafficState::Draining | TrafficState::Drained);
        if state.is_final() && self.traffic.as_ref().is_some_and(off) {
            self.traffic = Some(TaskTraffic { state: TrafficState::Attaching, since: now, reason: None });
        }
    }

    /// Every pair of where the host stands and what is said about it; the state of the task decides the rest.
    fn traffic(&self, to: TrafficState, reason: Option<String>, now: Timestamp) -> Result<Task, Refusal> {
        use TrafficState::*;
        let mut t = self.clone();
        let from = self.traffic.as_ref().map(|t| t.state);
        let moved = TaskTraffic { state: to, since: now, reason: reason.clone() };
        match (from, to) {
            (Some(from), to) if from == to => {
                // What it waits for may change meanwhile.
                if self.traffic.as_ref().is_some_and(|t| t.reason == reason) {
                    return Err(Refusal::Duplicate);
                }
                let since = self.traffic.as_ref().map_or(now, |t| t.since);
                t.traffic = Some(TaskTraffic { since, ..moved });
            }
            (None, Draining) if self.state == TaskState::Pending => t.traffic = Some(moved),
            (Some(Draining), Drained) if self.state == TaskState::Pending => t.traffic = Some(moved),
            (Some(Draining), DrainFailed) if self.state == TaskState::Pending => {
                t.settle(TaskState::NotStarted, reason, now);
                t.class = Some(FailureClass::Traffic);
                t.traffic = Some(moved);
            }
            (Some(Attaching | DrainFailed), Attached) => t.traffic = Some(moved),
            (Some(Attaching | DrainFailed), AttachFailed) => {
                let failed = reason.unwrap_or_else(|| "its traffic did not come back".into());
                t.reason = Some(match self.reason.as_deref() {
                    Some(own) => format!("{own}; and {failed}"),
                    None => failed,
                });
                // A host that had failed before keeps the class of that: it came first.
                t.class = self.class.filter(|_| self.state == TaskState::Failed).or(Some(FailureClass::Traffic));
                t.traffic = Some(moved);
            }
            // The task was withdrawn while its host was taken off: what the old job says comes too late.
            (Some(Attaching), Drained | DrainFailed) => return Err(Refusal::Settled),
            // Over, whatever comes.
            (Some(Attached | AttachFailed), _) => return Err(Refusal::Settled),
            _ => return Err(Refusal::Unfitting),
        }
        Ok(t)
    }

    /// Nothing of it goes on any more: it is settled, and its host is back if it was taken off. An unknown host stays off.
    pub fn is_over(&self) -> bool {
        use TrafficState::*;
        let moving = |t: &TaskTraffic| matches!(t.state, Draining | DrainFailed | Attaching);
        self.state == TaskState::Unknown || self.state.is_final() && !self.traffic.as_ref().is_some_and(moving)
    }

    /// Its host could not be brought back, so it has failed, however well its steps went.
    fn left_off(&self) -> bool {
        self.traffic.as_ref().is_some_and(|t| t.state == TrafficState::AttachFailed)
    }

    /// The attempt after this one may start only if this holds (invariant I7).
    pub fn allows_next_attempt(&self) -> bool {
        use TaskState::*;
        matches!(self.state, NotStarted | Failed | Cancelled | Overridden) || self.state == Succeeded && self.left_off()
    }

    /// The wave outcome of a settled task; `None` while it may still start or run.
    pub fn outcome(&self) -> Option<Outcome> {
        Some(match self.state {
            TaskState::Pending | TaskState::Offered | TaskState::Granted => return None,
            _ if self.left_off() => Outcome::Failed,
            TaskState::Succeeded => Outcome::Succeeded,
            TaskState::Failed => Outcome::Failed,
            TaskState::Cancelled => Outcome::Cancelled,
            TaskState::NotStarted if self.auto_stopped => Outcome::AutoStopped,
            TaskState::NotStarted => Outcome::NotStarted,
            TaskState::Unknown => Outcome::Unknown,
            // A person said: treat it as failed; what it did is not known.
            TaskState::Overridden => Outcome::Failed,
        })
    }

    /// Index of the first step that did not succeed, where the agent reported one; one past the last when all went well
    /// and only the traffic did not come back, so that a retry repeats nothing.
    pub fn failed_step(&self) -> Option<u32> {
        if self.state == TaskState::Succeeded && self.left_off() {
            return u32::try_from(self.steps.len()).ok();
        }
        self.steps
            .iter()
            .filter(|s| !matches!(s.outcome, StepOutcome::Succeeded | StepOutcome::Skipped))
            .map(|s| s.index)
            .min()
    }
}

fn stopped_by(by: &crate::deployment::By) -> String {
    format!("stopped by {}: {}", by.who, by.reason)
}

impl TaskReport {
    fn first_failure(&self) -> Option<String> {
        self.steps
            .iter()
            .find(|s| !matches!(s.outcome, StepOutcome::Succeeded | StepOutcome::Skipped))
            .map(|s| s.message.clone())
            .filter(|m| !m.is_empty())
    }
}

#[cfg(test)]
mod traffic_tests;
