//! Why a deployment stands where it stands: what was found, the evidence, and the repairs that are safe.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Made from one reading of the database, at `at` by its clock. Nothing was changed by making it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diagnosis {
    pub deployment: Uuid,
    pub state: String,
    pub at: DateTime<Utc>,
    /// One sentence: what it is doing, or what holds it.
    pub summary: String,
    /// The worst first.
    pub findings: Vec<Finding>,
    /// What no repair ever does.
    pub never: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// Stable; `ops/docs/stuck.md` has a section for each.
    pub cause: String,
    /// fault (something is broken), action (a person is needed), wait (it takes its time), fine
    pub severity: String,
    pub text: String,
    /// Facts as they were read, with their times (UTC).
    pub evidence: Vec<String>,
    /// When it began, where that is known.
    pub since: Option<DateTime<Utc>>,
    /// What to do.
    pub remedy: String,
    /// What `repair` can do about it, if anything.
    pub repair: Option<Repair>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Repair {
    /// `ring_scheduler`, `look`, `ring_pool`, `release_claims` or `relay`
    pub kind: String,
    /// In words, for people.
    pub does: String,
}

/// Body of `POST /deployments/{id}/repair`. Without `apply` it only says what it would do.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RepairBody {
    /// Only what was found with this cause; everything that has a repair when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    #[serde(default)]
    pub apply: bool,
}

/// What a repair did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Repaired {
    pub deployment: Uuid,
    /// False: nothing was done, this is what would be.
    pub applied: bool,
    pub steps: Vec<RepairStep>,
    /// What no repair ever does.
    pub never: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RepairStep {
    pub cause: String,
    /// `ring_scheduler`, `look`, `ring_pool`, `release_claims` or `relay`
    pub kind: String,
    pub does: String,
    /// What came of it; empty when it was not applied.
    pub outcome: String,
}
