//! Release bundles: several releases as one, ordered, approved together and rolled back together or alone.
//!
//! Every member is an ordinary deployment, made with the bundle and *held* before its queue ([`Turn`]): so all plans exist at
//! once and can be approved together, and each host still sees approvals of the very digest it runs. The bundle only decides
//! whose turn it is. [`Bundle::apply`] is the only way it changes; what its members do comes in as [`Input::Seen`].
//!
//! A member starts when all it `needs` succeeded or were skipped, and nobody else failed: a failure holds what has not
//! started, and is answered by retry, skip or rollback. A bundle that is rolled back takes one member at a time: those under
//! way first, then those that succeeded, the last one first. It ends
//! - succeeded: every member succeeded or was skipped, one at least succeeded;
//! - failed: `on_failure: stop` and a member failed; failed members stay as they are;
//! - `rolled_back`: it was rolled back together (members on which nothing had run are cancelled), or every member was alone;
//! - cancelled, rejected, expired: no member starts any more; those under way when it was cancelled go to their end.

mod progress;

use crate::{
    Timestamp,
    deployment::{self, By, Deployment, WaitingOn as Waits},
    event::Severity,
    flow::OnFailure,
    ids::{BundleId, DeploymentId},
    release::RollbackMode,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Most members of a bundle.
pub const MOST_MEMBERS: usize = 50;

/// What a deployment that belongs to a bundle knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    pub bundle: BundleId,
    pub member: String,
    /// Its turn has come; before that it is held, however approved and due it is.
    pub released: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    AwaitingApproval,
    Running,
    /// No further member starts until a person says so.
    Paused,
    RollingBack,
    Succeeded,
    Failed,
    RolledBack,
    Cancelled,
    Rejected,
    Expired,
}

impl State {
    pub const ALL: [State; 10] = [
        State::AwaitingApproval,
        State::Running,
        State::Paused,
        State::RollingBack,
        State::Succeeded,
        State::Failed,
        State::RolledBack,
        State::Cancelled,
        State::Rejected,
        State::Expired,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            State::AwaitingApproval => "awaiting_approval",
            State::Running => "running",
            State::Paused => "paused",
            State::RollingBack => "rolling_back",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::RolledBack => "rolled_back",
            State::Cancelled => "cancelled",
            State::Rejected => "rejected",
            State::Expired => "expired",
        }
    }
    pub fn is_terminal(self) -> bool {
        !matches!(self, State::AwaitingApproval | State::Running | State::Paused | State::RollingBack)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Its turn has not come.
    Waiting,
    Running,
    /// Its deployment waits for a person.
    Stuck,
    Succeeded,
    /// Its deployment ended and is no success.
    Failed,
    /// A person said to go on without it.
    Skipped,
    /// Will not start any more; nothing of it ran.
    Cancelled,
    RollingBack,
    RolledBack,
    RollbackFailed,
}

impl MemberState {
    /// Those that need it may start.
    fn is_settled(self) -> bool {
        matches!(self, MemberState::Succeeded | MemberState::Skipped)
    }
    /// Nothing else starts until a person answers.
    fn blocks(self) -> bool {
        matches!(self, MemberState::Stuck | MemberState::Failed | MemberState::RolledBack | MemberState::Cancelled)
    }
    fn is_under_way(self) -> bool {
        matches!(self, MemberState::Running | MemberState::Stuck | MemberState::RollingBack)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bundle {
    pub id: BundleId,
    pub title: String,
    pub state: State,
    pub requested_by: String,
    pub requested_at: Timestamp,
    pub note: String,
    /// What a failed member leads to.
    pub on_failure: OnFailure,
    /// See [`Bundle::digest_of`].
    pub digest: String,
    pub members: Vec<Member>,
    /// An operator's pause.
    pub pause: Option<By>,
    /// Somebody cancelled it (or a failure stopped it) while members were under way.
    pub stop: Option<Stop>,
    pub rollback: Option<RollingBack>,
    /// Why it ended, where it did not simply succeed.
    pub end: Option<By>,
    pub expires_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    pub by: By,
    /// What it ends as.
    pub state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollingBack {
    pub by: By,
    pub mode: RollbackMode,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    pub project: String,
    pub environment: String,
    pub version: String,
    pub needs: Vec<String>,
    pub state: MemberState,
    pub deployment: DeploymentId,
    pub plan_digest: String,
    /// Its plan waits for approval.
    pub unapproved: bool,
    /// Something of it may have run on a host.
    pub touched: bool,
    /// The order of successes, from 1; 0: none.
    pub success: u32,
    pub reason: Option<String>,
    /// Deployments it had before it was tried anew.
    #[serde(default)]
    pub earlier: Vec<DeploymentId>,
}

/// A member as it is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct NewMember {
    pub name: String,
    pub project: String,
    pub environment: String,
    pub version: String,
    pub needs: Vec<String>,
    pub deployment: DeploymentId,
    pub plan_digest: String,
    pub unapproved: bool,
}

/// Everything a new bundle is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct New {
    pub id: BundleId,
    pub title: String,
    pub requested_by: String,
    pub note: String,
    pub on_failure: OnFailure,
    pub expires_at: Timestamp,
    pub members: Vec<NewMember>,
}

/// What is seen of a member's deployment.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub deployment: DeploymentId,
    pub state: deployment::State,
    pub needs_person: Option<String>,
    pub digest: String,
    pub touched: bool,
    /// The rollback that was requested for it, and where that rests.
    pub rollback: Option<(DeploymentId, Option<deployment::State>)>,
    pub end: Option<String>,
}

impl Seen {
    /// `rollback`: the state of the deployment that rolls it back, where there is one yet.
    pub fn of(d: &Deployment, rollback: Option<deployment::State>) -> Seen {
        let person =
            d.waiting_on().into_iter().find(|w| matches!(w, Waits::Intervention { .. } | Waits::Unknown { .. }));
        Seen {
            deployment: d.id,
            state: d.state,
            needs_person: person.map(|w| w.to_string()),
            digest: d.plan_digest.clone(),
            touched: !d.touched_hosts().is_empty(),
            rollback: d.rolled_back_by.map(|r| (r, rollback)),
            end: d.end.as_ref().map(|e| e.reason.clone()),
        }
    }
}

/// What can happen to a bundle. `by` is a person's name.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Signed approvals of these members' plans were taken in the same transaction.
    Approve {
        by: String,
        digest: String,
        members: Vec<String>,
        comment: String,
    },
    Reject {
        by: String,
        digest: String,
        comment: String,
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
    /// Failed members again: those named, or all.
    Retry {
        by: String,
        members: Vec<String>,
    },
    /// Go on without a member.
    Skip {
        by: String,
        member: String,
        reason: String,
    },
    /// All that ran, or only these members.
    Rollback {
        by: String,
        mode: RollbackMode,
        reason: String,
        members: Vec<String>,
    },
    Seen(Box<Seen>),
    /// What an effect asked of a member's deployment was refused.
    Refused {
        deployment: DeploymentId,
        reason: String,
    },
    /// A member was tried anew, by another deployment.
    Redone {
        member: String,
        deployment: DeploymentId,
        plan_digest: String,
        unapproved: bool,
    },
    Tick,
}

/// What must happen with the change, in the same transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Its turn has come.
    Release {
        deployment: DeploymentId,
    },
    /// It will not start.
    Cancel {
        deployment: DeploymentId,
        by: String,
        reason: String,
    },
    /// Its deployment waits for a person, who says: again.
    Retry {
        deployment: DeploymentId,
        by: String,
    },
    /// Its deployment has ended: request a new one of the same release.
    Redo {
        member: String,
        deployment: DeploymentId,
        by: String,
    },
    RollBack {
        deployment: DeploymentId,
        by: String,
        mode: RollbackMode,
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
    #[error("a bundle that is {} cannot be {verb}{hint}", state.as_str().replace('_', " "))]
    WrongState { state: State, verb: &'static str, hint: &'static str },
    #[error("the bundle has changed since you looked: you decided on {given}, it is now {current}; read it again")]
    OtherDigest { given: String, current: String },
    #[error("{0}")]
    NothingToDo(String),
    #[error("{0}")]
    Invalid(String),
}

impl Refusal {
    /// The stable code of the command outcome.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::WrongState { .. } => "wrong_state",
            Refusal::OtherDigest { .. } => "plan_changed",
            Refusal::NothingToDo(_) => "nothing_to_do",
            Refusal::Invalid(_) => "invalid",
        }
    }
}

/// One thing that has to happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "on", rename_all = "snake_case")]
pub enum WaitingOn {
    /// Approval of these members' plans.
    Approval {
        members: Vec<String>,
    },
    Member {
        member: String,
    },
    /// A person: a member failed, or waits for one.
    Intervention {
        member: String,
        reason: String,
    },
    Operator {
        by: String,
        reason: String,
    },
}

impl std::fmt::Display for WaitingOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WaitingOn::Approval { members } => write!(f, "approval of {}", members.join(", ")),
            WaitingOn::Member { member } => write!(f, "member {member}"),
            WaitingOn::Intervention { member, reason } => {
                write!(f, "a person: {member} ({reason}): retry, skip, or roll back")
            }
            WaitingOn::Operator { by, reason } => write!(f, "resume: paused by {by} ({reason})"),
        }
    }
}

/// Whether these members can be a bundle: names once, known needs, no cycle, one member an environment.
pub fn check_members<'a>(
    members: impl Iterator<Item = (&'a str, &'a str, &'a str, &'a [String])>,
) -> Result<(), String> {
    let members: Vec<_> = members.collect();
    if members.is_empty() || members.len() > MOST_MEMBERS {
        return Err(format!("a bundle has 1 to {MOST_MEMBERS} members, not {}", members.len()));
    }
    let mut needs: BTreeMap<&str, &[String]> = BTreeMap::new();
    let mut places = BTreeSet::new();
    for (name, project, environment, n) in &members {
        if !crate::artifact::is_name(name) {
            return Err(format!("member name {name:?} must have 1 to 63 of a-z, 0-9, `_` and `-`"));
        }
        if needs.insert(name, n).is_some() {
            return Err(format!("member {name:?} stands twice; give each another name"));
        }
        if !places.insert((*project, *environment)) {
            return Err(format!("{project}/{environment} stands twice; a bundle releases to each environment once"));
        }
    }
    for (name, wanted) in &needs {
        if let Some(n) = wanted.iter().find(|n| !needs.contains_key(n.as_str())) {
            let known: Vec<&str> = needs.keys().copied().collect();
            return Err(format!("member {name:?} needs {n:?}, which is no member; members are: {}", known.join(", ")));
        }
    }
    // Take away whoever needs nothing that is left, until none is; what stays needs itself.
    let mut left = needs;
    while let Some(free) = left.iter().find(|(_, w)| !w.iter().any(|n| left.contains_key(n.as_str()))).map(|(n, _)| *n)
    {
        left.remove(free);
    }
    if left.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = left.keys().copied().collect();
    Err(format!("members need each other in a circle: {}; take one `needs` away", names.join(", ")))
}

impl Bundle {
    /// SHA-256 over the members in order: name, place, needs and plan digest.
    pub fn digest_of<'a>(members: impl Iterator<Item = (&'a str, &'a str, &'a str, &'a [String], &'a str)>) -> String {
        let mut h = Sha256::new();
        h.update(b"windlass-bundle-v1\n");
        for (name, project, environment, needs, digest) in members {
            // None of these can hold a line break or a comma: they are checked names.
            h.update(format!("{name}\n{project}/{environment}\n{}\n{digest}\n", needs.join(",")).as_bytes());
        }
        let hex: String = h.finalize().iter().map(|b| format!("{b:02x}")).collect();
        format!("sha256:{hex}")
    }

    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|m| m.name == name)
    }

    /// Empty only when it has ended.
    pub fn waiting_on(&self) -> Vec<WaitingOn> {
        let mut out = Vec::new();
        if self.state.is_terminal() {
            return out;
        }
        if let Some(p) = &self.pause {
            out.push(WaitingOn::Operator { by: p.who.clone(), reason: p.reason.clone() });
        }
        let unapproved: Vec<String> = self
            .members
            .iter()
            .filter(|m| m.unapproved && matches!(m.state, MemberState::Waiting | MemberState::Running))
            .map(|m| m.name.clone())
            .collect();
        if !unapproved.is_empty() {
            out.push(WaitingOn::Approval { members: unapproved });
        }
        for m in &self.members {
            let member = m.name.clone();
            let reason = || m.reason.clone().unwrap_or_default();
            match m.state {
                MemberState::Running | MemberState::RollingBack => out.push(WaitingOn::Member { member }),
                MemberState::RollbackFailed => out.push(WaitingOn::Intervention { member, reason: reason() }),
                s if s.blocks() && matches!(self.state, State::Running | State::Paused) && self.stop.is_none() => {
                    out.push(WaitingOn::Intervention { member, reason: reason() });
                }
                _ => {}
            }
        }
        if out.is_empty() {
            // A look of the scheduler's own is all that is missing.
            let next = self.members.iter().find(|m| m.state == MemberState::Waiting).or(self.members.first());
            out.extend(next.map(|m| WaitingOn::Member { member: m.name.clone() }));
        }
        out
    }

    /// When it must be looked at again though nobody asks: its expiry, and the end of a member's rollback after its own.
    pub fn wake_at(&self) -> Option<Timestamp> {
        let back = self.members.iter().any(|m| m.state == MemberState::RollingBack);
        match self.state {
            State::AwaitingApproval => Some(self.expires_at),
            s if s.is_terminal() && back => self.ended_at,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
