//! Why a deployment stands where it stands: from one reading of the database to typed causes with their evidence, and the few
//! repairs that are safe.
//!
//! [`diagnose`] is pure: it says nothing that is not in the [`Snapshot`]. It always finds something, if only that the
//! deployment works or has ended. A repair never decides anything: it wakes who decides, or gives a dead executor's work
//! back; [`NEVER`] lists what none of them does.

mod cause;
mod hosts;
mod machinery;
mod page;
mod people;

pub use cause::{Cause, Severity};
pub use page::page;

use crate::{
    Timestamp,
    approval::Decision,
    deployment::{By, Deployment, State},
    ids::{CommandId, DeploymentId, TaskId, WorkId},
    task::TaskState,
    traffic::TaskTraffic,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// What no repair ever does, whoever asks.
pub const NEVER: [&str; 9] = [
    "mark anything succeeded",
    "grant or start anything",
    "free a lock while hosts are unknown",
    "override an unknown host",
    "approve anything",
    "delete or edit tasks, journals, events or the audit trail",
    "restart an agent or a host",
    "change a plan",
    "take a work from an executor whose claim still holds",
];

/// What was read about a deployment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The database's clock.
    pub now: Timestamp,
    pub deployment: Deployment,
    /// When it has to be looked at, as stored.
    pub wake_at: Option<Timestamp>,
    /// When it was last written.
    pub updated_at: Timestamp,
    pub commands: Vec<Undecided>,
    /// Works that are not settled, or whose result was not applied.
    pub works: Vec<WorkNow>,
    /// By pool: until when the longest claim of it holds, of any deployment; no entry: no claim of it is alive.
    pub pools: BTreeMap<String, Timestamp>,
    /// Tasks that are not final, and those whose host is not back at its load balancers.
    pub tasks: Vec<TaskNow>,
    /// The hosts of these tasks.
    pub hosts: BTreeMap<String, HostNow>,
    pub lock: Option<LockNow>,
    /// Who waits for the environment, next first; the deployment itself among them.
    pub queue: Vec<Other>,
    /// People who may approve in its project.
    pub approvers: Vec<String>,
    /// Why its plan cannot be made any more.
    pub plan: Option<String>,
    pub hold: Option<By>,
    /// Why a veto or a pin keeps its version out, in a sentence.
    pub mark: Option<String>,
    /// Events that were not taken yet, by consumer.
    pub backlogs: Vec<Backlog>,
    /// The api's clock less the database's, in seconds.
    pub skew_s: i64,
    pub broker_up: bool,
    pub limits: Limits,
}

/// From when on something takes too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Doorbells are heard at once, polls find the rest within this time; twice that is too long.
    pub poll: Duration,
    /// An agent that is silent for so long is disconnected.
    pub disconnected: Duration,
    /// Events wait so long at most when all is well.
    pub events: Duration,
    /// Connections of a host may take so long to go, and a host so long to be back.
    pub traffic: Duration,
    pub skew_s: i64,
}

/// A command that is not decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecided {
    pub id: CommandId,
    pub verb: String,
    pub actor: String,
    pub at: Timestamp,
}

/// A work with its claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkNow {
    pub id: WorkId,
    /// `wave 2 of rollout`, `step verify`
    pub what: String,
    pub pool: String,
    pub created_at: Timestamp,
    pub phase: Phase,
    /// Process that claimed it.
    pub owner: Option<String>,
    pub expires_at: Option<Timestamp>,
    pub updated_at: Timestamp,
    pub result_version: u64,
    pub applied: u64,
}

/// How far a work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nobody has claimed it yet.
    Ready,
    Running,
    Settled,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskNow {
    pub id: TaskId,
    pub work: WorkId,
    pub host: String,
    pub step: String,
    pub attempt: u32,
    pub state: TaskState,
    pub offered_at: Option<Timestamp>,
    pub granted_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub reason: Option<String>,
    pub traffic: Option<TaskTraffic>,
}

/// What is known of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNow {
    pub agent: AgentNow,
    /// A person's lock: who, why, since when.
    pub lock: Option<By>,
    /// Tasks offered to it or running there, by deployment; `None` stands for deployments of other projects.
    pub busy: Vec<(Option<DeploymentId>, u32)>,
    pub max_tasks: u32,
}

/// How a host's agent stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentNow {
    /// None was ever enrolled.
    None,
    NeverSeen {
        enrolled_at: Timestamp,
    },
    Revoked {
        at: Timestamp,
    },
    Quarantined {
        why: String,
    },
    /// Heard of then.
    Seen {
        at: Timestamp,
    },
    /// Reached by SSH: the last try.
    Ssh {
        checked_at: Option<Timestamp>,
        error: Option<String>,
    },
}

/// The environment's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockNow {
    pub holder: DeploymentId,
    pub taken_at: Option<Timestamp>,
    pub version: String,
    pub state: State,
    pub ended_at: Option<Timestamp>,
    pub unknown: Vec<String>,
    /// What the holder waits for, in words.
    pub waiting_on: Vec<String>,
}

/// Another deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    pub id: DeploymentId,
    pub version: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backlog {
    /// `relay`, `notifier` or `auditor`
    pub service: &'static str,
    pub events: u64,
    pub oldest: Option<Timestamp>,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub cause: Cause,
    pub severity: Severity,
    /// What is so, in a sentence.
    pub text: String,
    pub evidence: Vec<Fact>,
    /// When it began, where that is known.
    pub since: Option<Timestamp>,
    pub remedy: String,
    pub repair: Option<Repair>,
}

/// A fact with its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact {
    pub text: String,
    pub at: Option<Timestamp>,
}

impl std::fmt::Display for Fact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.at {
            None => f.write_str(&self.text),
            Some(at) => write!(f, "{} ({})", self.text, moment(at)),
        }
    }
}

/// What a repair does, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RepairKind {
    RingScheduler,
    Look,
    RingPool,
    ReleaseClaims,
    Relay,
}

impl RepairKind {
    pub const ALL: [RepairKind; 5] = [
        RepairKind::RingScheduler,
        RepairKind::Look,
        RepairKind::RingPool,
        RepairKind::ReleaseClaims,
        RepairKind::Relay,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            RepairKind::RingScheduler => "ring_scheduler",
            RepairKind::Look => "look",
            RepairKind::RingPool => "ring_pool",
            RepairKind::ReleaseClaims => "release_claims",
            RepairKind::Relay => "relay",
        }
    }

    /// What it does, and what it does not.
    pub fn does(self) -> &'static str {
        match self {
            RepairKind::RingScheduler => "wakes the scheduler for these commands; it decides each once, as ever",
            RepairKind::Look => "wakes the scheduler for this deployment; it moves only what is due",
            RepairKind::RingPool => "wakes the executors of the pool for these works; one of them takes what is free",
            RepairKind::ReleaseClaims => {
                "gives works back to their pool whose claim has run out by the database's clock, so that whoever held them can \
                 write nothing any more, and wakes the pool; a claim that holds is left alone"
            }
            RepairKind::Relay => "publishes the events that wait; an event that went out before is not doubled",
        }
    }
}

/// A repair with what it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Repair {
    RingScheduler { commands: Vec<CommandId> },
    Look,
    RingPool { works: Vec<(String, WorkId)> },
    ReleaseClaims { works: Vec<(String, WorkId)> },
    Relay,
}

impl Repair {
    pub fn kind(&self) -> RepairKind {
        match self {
            Repair::RingScheduler { .. } => RepairKind::RingScheduler,
            Repair::Look => RepairKind::Look,
            Repair::RingPool { .. } => RepairKind::RingPool,
            Repair::ReleaseClaims { .. } => RepairKind::ReleaseClaims,
            Repair::Relay => RepairKind::Relay,
        }
    }
}

/// Everything that stands out, the worst first; what it does when all is well. Never empty.
pub fn diagnose(s: &Snapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    machinery::look(s, &mut found);
    hosts::look(s, &mut found);
    people::look(s, &mut found);
    let doing = machinery::doing(s);
    if found.is_empty() || !doing.evidence.is_empty() && s.deployment.state.is_active() {
        found.push(doing);
    }
    found.sort_by_key(|f| (f.severity, f.cause));
    found
}

/// One sentence for all of it.
pub fn summary(s: &Snapshot, found: &[Finding]) -> String {
    let state = s.deployment.state.as_str().replace('_', " ");
    let worst = found.iter().map(|f| f.severity).min().unwrap_or(Severity::Fine);
    let texts: Vec<&str> = found.iter().filter(|f| f.severity == worst).map(|f| f.text.as_str()).collect();
    let texts = texts.join("; ");
    match worst {
        Severity::Fine => format!("Nothing is wrong. It is {state}: {texts}."),
        Severity::Wait => format!("Nothing is wrong. It is {state} and waits: {texts}."),
        Severity::Action => format!("It is {state} and needs a person: {texts}."),
        Severity::Fault => format!("It is {state} and something is broken: {texts}."),
    }
}

/// Names in a sentence, and facts of one finding: a deployment may have thousands of hosts.
const NAMED: usize = 5;
const FACTS: usize = 20;

fn names<S: AsRef<str>>(all: &[S]) -> String {
    let some: Vec<&str> = all.iter().take(NAMED).map(AsRef::as_ref).collect();
    match all.len().saturating_sub(NAMED) {
        0 => some.join(", "),
        n => format!("{} and {n} more", some.join(", ")),
    }
}

fn moment(at: Timestamp) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn fact(text: impl Into<String>, at: Option<Timestamp>) -> Fact {
    Fact { text: text.into(), at }
}

impl Snapshot {
    fn age(&self, since: Timestamp) -> Duration {
        (self.now - since).to_std().unwrap_or_default()
    }

    /// Longer than doorbells and polls need.
    fn is_late(&self, since: Timestamp) -> bool {
        self.age(since) >= self.limits.poll * 2
    }
}

impl Finding {
    /// With the severity, the remedy and no repair of its cause; `since` is the oldest fact's time.
    fn new(cause: Cause, text: impl Into<String>, mut evidence: Vec<Fact>) -> Finding {
        let since = evidence.iter().filter_map(|f| f.at).min();
        let more = evidence.len().saturating_sub(FACTS);
        evidence.truncate(FACTS);
        if more > 0 {
            evidence.push(fact(format!("and {more} more"), None));
        }
        Finding {
            cause,
            severity: cause.severity(),
            text: text.into(),
            evidence,
            since,
            remedy: cause.remedy().into(),
            repair: None,
        }
    }

    fn with(self, repair: Repair) -> Finding {
        Finding { repair: Some(repair), ..self }
    }
}

/// Who has not decided on the plan with this digest yet.
fn undecided<'a>(d: &'a Deployment, digest: &'a str) -> impl Fn(&str) -> bool + 'a {
    let given = d.amendment.as_ref().filter(|a| a.facts.digest == digest).map_or(&d.approvals, |a| &a.approvals);
    move |person| {
        let decided = |a: &crate::approval::Approval| {
            a.person == person && a.plan_digest == digest && matches!(a.decision, Decision::Approve | Decision::Reject)
        };
        !given.iter().any(decided)
    }
}
