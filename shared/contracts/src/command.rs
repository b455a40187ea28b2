//! Commands: accepted requests, as the api stores them and the scheduler decides them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use windlass_domain::{
    Timestamp,
    approval::{Approval, Decision},
    flow::{OnFailure, Phase},
    ids::{ArtifactId, BundleId, CommandId, DeploymentId, TokenId},
    release::{ReleaseKind, RollbackMode},
};

/// A stored command. Its id makes it idempotent: the scheduler decides each id once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    pub id: CommandId,
    pub project: String,
    pub environment: Option<String>,
    pub deployment: Option<DeploymentId>,
    /// `person:<name>` or `hook:<source>`.
    pub actor: String,
    pub verb: Verb,
    pub created_at: Timestamp,
    pub trace: Option<String>,
}

/// What is asked. Stored as `commands.payload`; `commands.verb` is the tag.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Verb {
    /// New deployment of an artifact with the environment's flow. The deployment's id is chosen by the api.
    Request(Box<Request>),
    /// A signed decision, approve or reject.
    Decide {
        approval: Approval,
        /// The token it was given with: one that is revoked before the decision is taken approves nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<TokenId>,
    },
    /// A person takes a plan that changed where nobody has to approve.
    Accept {
        digest: String,
    },
    Cancel {
        reason: String,
    },
    Pause {
        reason: String,
    },
    Resume,
    /// A person looked at the wave that waits for it.
    Confirm {
        wave: u32,
    },
    /// A person decides what an expression could not: a gateway's branch, or `run` / `skip` for a step's condition.
    Choose {
        step: String,
        branch: String,
    },
    /// A person answers for what the deployment waits for.
    Claim {
        #[serde(default)]
        take_over: bool,
        #[serde(default)]
        reason: String,
    },
    Unclaim,
    /// New attempt of the failed hosts (or these of them), at the step that failed. Of a deployment that ended failed or
    /// aborted: takes it up again.
    Retry {
        #[serde(default)]
        hosts: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<String>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        whole_wave: bool,
        /// Inputs that are to be others from here on: the plan is made anew and has to be approved.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        inputs: BTreeMap<String, serde_json::Value>,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// Stops hosts that run.
    Stop {
        hosts: Vec<String>,
        reason: String,
    },
    /// Calls a central step that runs failed.
    Fail {
        step: String,
        reason: String,
    },
    /// Calls a failed step, or failed hosts, well.
    Succeed {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<String>,
        #[serde(default)]
        hosts: Vec<String>,
        reason: String,
    },
    /// New attempt of the failed hosts, after the step that failed.
    Skip {
        #[serde(default)]
        hosts: Vec<String>,
    },
    /// Go on as if the failed hosts were well.
    Ignore {
        #[serde(default)]
        hosts: Vec<String>,
        reason: String,
    },
    /// These hosts take no further part.
    Exclude {
        hosts: Vec<String>,
        reason: String,
    },
    Abort {
        reason: String,
    },
    /// Go back to last known good, by a new deployment.
    Rollback {
        mode: RollbackMode,
        reason: String,
        rollback: DeploymentId,
        /// A version that was known good here; the last such one when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<String>,
        /// Never release the version that is left again.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        veto: bool,
        /// Only hosts that a step of this phase, or a later one, ran on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from_phase: Option<Phase>,
    },
    /// A person answers for unknown hosts.
    Override {
        hosts: Vec<String>,
        reason: String,
    },
    /// Several releases as one. Its command belongs to no deployment; its project is the first member's.
    Bundle {
        bundle: BundleId,
        ask: BundleAsk,
    },
}

/// What is asked of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum BundleAsk {
    Request(Box<BundleRequest>),
    /// One decision on the bundle's digest, signed for each member's plan that it counts for.
    Approve {
        digest: String,
        approvals: Vec<Approval>,
        #[serde(default)]
        comment: String,
        /// As in [`Verb::Decide`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<TokenId>,
    },
    Reject {
        digest: String,
        #[serde(default)]
        comment: String,
    },
    Cancel {
        reason: String,
    },
    Pause {
        reason: String,
    },
    Resume,
    Retry {
        #[serde(default)]
        members: Vec<String>,
    },
    Skip {
        member: String,
        reason: String,
    },
    /// Without members: all of it, in the reverse order of success.
    Rollback {
        mode: RollbackMode,
        reason: String,
        #[serde(default)]
        members: Vec<String>,
    },
}

impl BundleAsk {
    pub fn name(&self) -> &'static str {
        match self {
            BundleAsk::Request(_) => "bundle_request",
            BundleAsk::Approve { .. } => "bundle_approve",
            BundleAsk::Reject { .. } => "bundle_reject",
            BundleAsk::Cancel { .. } => "bundle_cancel",
            BundleAsk::Pause { .. } => "bundle_pause",
            BundleAsk::Resume => "bundle_resume",
            BundleAsk::Retry { .. } => "bundle_retry",
            BundleAsk::Skip { .. } => "bundle_skip",
            BundleAsk::Rollback { .. } => "bundle_rollback",
        }
    }

    /// As [`Verb::reduces_harm`].
    fn reduces_harm(&self) -> bool {
        match self {
            BundleAsk::Pause { .. } | BundleAsk::Cancel { .. } | BundleAsk::Reject { .. } => true,
            BundleAsk::Rollback { mode, .. } => *mode == RollbackMode::Emergency,
            BundleAsk::Request(_)
            | BundleAsk::Approve { .. }
            | BundleAsk::Resume
            | BundleAsk::Retry { .. }
            | BundleAsk::Skip { .. } => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BundleRequest {
    pub title: String,
    pub note: String,
    pub on_failure: OnFailure,
    pub members: Vec<BundleMember>,
}

/// A member: a request like any other, with its name and what must succeed before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BundleMember {
    pub name: String,
    pub project: String,
    pub needs: Vec<String>,
    pub request: Request,
}

impl Verb {
    pub fn name(&self) -> &'static str {
        match self {
            Verb::Request(_) => "request",
            Verb::Decide { .. } => "decide",
            Verb::Accept { .. } => "accept",
            Verb::Cancel { .. } => "cancel",
            Verb::Pause { .. } => "pause",
            Verb::Resume => "resume",
            Verb::Confirm { .. } => "confirm",
            Verb::Choose { .. } => "choose",
            Verb::Claim { .. } => "claim",
            Verb::Unclaim => "unclaim",
            Verb::Stop { .. } => "stop",
            Verb::Fail { .. } => "fail",
            Verb::Succeed { .. } => "succeed",
            Verb::Retry { .. } => "retry",
            Verb::Skip { .. } => "skip",
            Verb::Ignore { .. } => "ignore",
            Verb::Exclude { .. } => "exclude",
            Verb::Abort { .. } => "abort",
            Verb::Rollback { .. } => "rollback",
            Verb::Override { .. } => "override",
            Verb::Bundle { ask, .. } => ask.name(),
        }
    }

    /// Whether it ends, halts or keeps from starting what may do harm, or takes it back in an emergency: such a command is
    /// still taken when the queue of commands is full for all others. Nothing that starts or goes on with something is among
    /// them, nor what only tidies up. Every verb is named here, so that a new one has to be decided on.
    pub fn reduces_harm(&self) -> bool {
        match self {
            Verb::Abort { .. } | Verb::Pause { .. } | Verb::Stop { .. } | Verb::Cancel { .. } => true,
            Verb::Rollback { mode, .. } => *mode == RollbackMode::Emergency,
            Verb::Decide { approval, .. } => approval.decision == Decision::Reject,
            Verb::Bundle { ask, .. } => ask.reduces_harm(),
            Verb::Request(_)
            | Verb::Accept { .. }
            | Verb::Resume
            | Verb::Confirm { .. }
            | Verb::Choose { .. }
            | Verb::Claim { .. }
            | Verb::Unclaim
            | Verb::Retry { .. }
            | Verb::Fail { .. }
            | Verb::Succeed { .. }
            | Verb::Skip { .. }
            | Verb::Ignore { .. }
            | Verb::Exclude { .. }
            | Verb::Override { .. } => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub deployment: DeploymentId,
    pub environment: String,
    pub artifact: ArtifactId,
    pub kind: ReleaseKind,
    pub inputs: BTreeMap<String, serde_json::Value>,
    /// Hosts to release to; empty means all of the environment.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Temporary hosts: catalogued ones that take part though they do not belong to the environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add_hosts: Vec<String>,
    /// Hosts of the environment that take no part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_hosts: Vec<String>,
    /// Values of the release's own scope.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, serde_json::Value>,
    /// Not before this time.
    pub not_before: Option<Timestamp>,
    pub note: String,
}

/// The scheduler's answer. `code` is stable and documented: `ok`, `not_found`, `wrong_state`, `plan_changed`,
/// `own_request`, `already_decided`, `not_asked`, `invalid`, `nothing_to_do`, `no_last_known_good`, `claimed`, `required`,
/// `unsettled`, `superseded`: `ops/docs/verbs.md` says what each means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandOutcome {
    pub accepted: bool,
    pub code: String,
    pub detail: String,
    pub deployment: Option<DeploymentId>,
    pub decided_at: Timestamp,
}
