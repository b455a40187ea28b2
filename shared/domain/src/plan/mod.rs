//! Plans: the full computed preview of a deployment, and its digest. Approving, running and auditing all name that digest.
//!
//! `digest = sha256("windlass-plan-v1\n" + body_digest + "\n" + root + "\n" + number of leaves)`, where `body_digest` is
//! the SHA-256 of the plan's canonical JSON and `root` the RFC 6962 Merkle root over the canonical JSON of every
//! [`TaskSpec`](crate::task::TaskSpec) (rollouts in plan order, hosts in wave order). An agent that holds the approved
//! digest can so check with a short proof that the task it is offered is one a person approved, without seeing the whole
//! plan.

mod build;
mod canonical;
mod digest;
mod error;
pub(crate) mod graph;
mod plugins;
mod references;
mod render;
pub mod segment;
mod traffic;
mod undo;

pub use build::{BuildInput, HostFacts, ROLLBACK_STEP, Surroundings, build};
pub use canonical::canonical_json;
pub use digest::{PlanTree, verify_spec};
pub use error::PlanError;
pub use undo::{Undo, Undoing};

use crate::{
    approval::ApprovalRule,
    flow::{Confirm, Gateway, Join, OnFailure, Patience, Phase, Repeat, Retry, StepFailure},
    ids::ReleaseId,
    release::{ReleaseKind, RollbackMode},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub project: String,
    pub environment: String,
    /// Only in plans made before it was left out: what a release holds is in the plan, so the same request gives the same
    /// digest, and a preview that of the request that follows.
    #[serde(default = "nobody", skip_serializing_if = "is_nobody")]
    pub release: ReleaseId,
    pub kind: ReleaseKind,
    pub rollback: Option<RollbackMode>,
    pub artifact: PlanArtifact,
    pub flow: String,
    pub flow_revision: u64,
    pub inputs: BTreeMap<String, serde_json::Value>,
    /// What the expressions of host steps read besides `inputs` and `host`: `artifact`, `release` and `env`.
    #[serde(default)]
    pub context: serde_json::Map<String, serde_json::Value>,
    pub on_failure: OnFailure,
    /// How long it waits for people; a day, then the alarm again, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<Patience>,
    /// The kind of rollback that `on_failure: rollback` asks for; normal when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic: Option<RollbackMode>,
    /// Every rule must be met by itself.
    pub approvals: Vec<ApprovalRule>,
    pub hosts: Vec<PlanHost>,
    /// Hosts of the environment that take no part, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// Values of the release's own scope: they go over a host's (`context` holds `values` without any host's).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub release_values: BTreeMap<String, serde_json::Value>,
    pub steps: Vec<PlanStep>,
    /// Subflows by the id of their step: what they read as `inputs`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scopes: BTreeMap<String, PlanScope>,
    /// The plugins that steps call, by `name@version`: what each is, to the digest of its program.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plugins: BTreeMap<String, crate::plugin::Plugin>,
}

fn nobody() -> ReleaseId {
    ReleaseId(uuid::Uuid::nil())
}

fn is_nobody(id: &ReleaseId) -> bool {
    id.0.is_nil()
}

/// A host that could have taken part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    pub host: String,
    pub reason: String,
}

/// A subflow in the plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanScope {
    pub flow: String,
    pub flow_revision: u64,
    /// Resolved; the output of an earlier step stands as its reference.
    pub inputs: BTreeMap<String, serde_json::Value>,
    /// Templates over the scope's `inputs` and `steps`.
    pub outputs: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanArtifact {
    pub version: String,
    pub url: String,
    pub digest: String,
    pub size: Option<u64>,
    /// Directory name under `<root>/releases`.
    pub dir: String,
    /// When it was built, for `max_age` checks.
    pub built_at: crate::Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlanHost {
    pub name: String,
    pub address: String,
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub values: BTreeMap<String, serde_json::Value>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// It does not belong to the environment; the request brought it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub temporary: bool,
}

impl PlanArtifact {
    /// Nothing is shipped.
    pub fn is_none(&self) -> bool {
        self.digest.is_empty()
    }

    /// The version that programs are told: empty where nothing is shipped.
    pub fn shipped(&self) -> &str {
        if self.is_none() { "" } else { &self.version }
    }
}

impl Plan {
    /// The index of a host in `hosts`.
    pub fn host_index(&self, name: &str) -> Option<u32> {
        self.hosts.iter().position(|h| h.name == name).and_then(|i| u32::try_from(i).ok())
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanStep {
    pub id: String,
    pub needs: Vec<String>,
    /// `None` in plans of the first version alone: what was not said then must not be said now, or their digest would change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<Join>,
    /// Its condition was false.
    pub skipped: bool,
    /// A condition that reads `steps`: decided when the step's turn comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<StepFailure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<Repeat>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<StepFailure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// What people should know about it: why it is skipped though no condition says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// In a rollback: its plugin is asked to take this back, by its verb `undo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<Undo>,
    pub kind: PlanStepKind,
}

impl PlanStep {
    /// A step that starts when all it needs went well.
    pub fn new(id: impl Into<String>, needs: Vec<String>, kind: PlanStepKind) -> PlanStep {
        PlanStep {
            id: id.into(),
            needs,
            join: Some(Join::All),
            skipped: false,
            condition: None,
            on_failure: None,
            repeat: None,
            required: false,
            retry: None,
            on_timeout: None,
            phase: None,
            note: None,
            undo: None,
            kind,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "a plan has few steps, and most of what is in it are rollouts")]
pub enum PlanStepKind {
    Central {
        action: String,
        with: serde_json::Map<String, serde_json::Value>,
        timeout_s: u32,
    },
    Rollout(PlanRollout),
    /// Conditions that do not read `steps` are decided already: they stand as `true` or `false`.
    Gateway(Gateway),
    Enter {
        scope: String,
    },
    Leave {
        scope: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanRollout {
    /// Indices into `hosts`, wave by wave; the first wave is the canary.
    pub waves: Vec<Vec<u32>>,
    /// What the hosts of each wave have in common, where hosts are grouped: `canary`, `zone=a`, `no zone`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    pub confirm: Confirm,
    pub bake_s: u32,
    /// Hosts that may fail, in all.
    pub max_failures: u32,
    /// Hosts that may fail in each wave, where that is limited too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wave_failures: Vec<u32>,
    /// 0: the whole wave.
    pub parallel: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stagger: Option<crate::work::Stagger>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<PlanProbes>,
    /// Load balancers that each host leaves before its task and comes back to after it, in the order of leaving.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<crate::traffic::PlanTraffic>,
    /// Ids of host steps that nobody can skip, nor ignore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<String>,
    /// Steps resolved but for parameters that read `host`, which stay as written and are resolved per host by
    /// [`Plan::task_spec`]. Their texts are templates: a literal `${{` stands here as `$${{`.
    pub steps: Vec<crate::task::TaskStep>,
    /// Conditions that read `host`, by step id: a host for which one is false has a spec without that step, so
    /// `start_at` and the indices agents report count that host's own steps. Other conditions are decided already.
    #[serde(default)]
    pub conditions: BTreeMap<String, String>,
}

/// Probes with their parameters resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanProbes {
    pub every_s: u32,
    pub inconclusive: crate::flow::Inconclusive,
    /// Asked by the executor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub central: Vec<PlanProbe>,
    /// Run on every host of the wave: the steps of one task, each of them `always`, its id that of the probe
    /// ([`segment::PROBES`]). Parameters that read `host` are resolved as those of `PlanRollout::steps`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_hosts: Vec<crate::task::TaskStep>,
    /// How what they say is judged, by probe.
    pub judge: BTreeMap<String, Judge>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanProbe {
    pub id: String,
    pub action: String,
    pub with: serde_json::Map<String, serde_json::Value>,
    pub timeout_s: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judge {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail: Option<String>,
    pub failures: u32,
}

/// The digest with the two parts it is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanDigest {
    /// `sha256:<hex>`.
    pub digest: String,
    /// Hex.
    pub body: String,
    /// Hex.
    pub root: String,
    /// Number of task specs.
    pub leaves: u64,
}

/// Proof that a task spec belongs to a plan digest; travels with OFFER.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecProof {
    pub digest: PlanDigest,
    pub index: u64,
    /// Sibling hashes, hex, leaf upwards.
    pub path: Vec<String>,
}
