//! Bodies about releases in order: bundles of several, promotion from environment to environment, and where a project's
//! documents come from.

use crate::http::{AppliedItem, Deployment, Fault, WaitingOn};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;
use uuid::Uuid;

/// Several releases as one. As YAML it is what `windlass bundle create -f` takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BundleNew {
    pub title: String,
    #[serde(default)]
    pub note: String,
    /// What a failed member leads to: `pause` (default), `stop` or `rollback`.
    #[serde(default)]
    pub on_failure: Option<String>,
    pub members: Vec<BundleMemberNew>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BundleMemberNew {
    /// The project's name when not given.
    #[serde(default)]
    pub name: Option<String>,
    pub project: String,
    pub environment: String,
    pub version: String,
    /// Members that must have succeeded before.
    #[serde(default)]
    pub needs: Vec<String>,
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Object>)]
    pub inputs: BTreeMap<String, serde_json::Value>,
    /// Empty: all hosts of the environment.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Not before this time, even when its turn has come.
    #[serde(default)]
    pub not_before: Option<DateTime<Utc>>,
}

/// A bundle in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Bundle {
    pub id: Uuid,
    pub title: String,
    /// `awaiting_approval`, running, paused, `rolling_back`, succeeded, failed, `rolled_back`, cancelled, rejected, expired
    pub state: String,
    pub requested_by: String,
    pub requested_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    pub waiting_on: Vec<WaitingOn>,
    pub members: Vec<BundleMember>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BundleMember {
    pub name: String,
    pub project: String,
    pub environment: String,
    pub version: String,
    pub needs: Vec<String>,
    /// waiting, running, stuck, succeeded, failed, skipped, cancelled, `rolling_back`, `rolled_back`, `rollback_failed`
    pub state: String,
    pub reason: Option<String>,
    pub deployment: Uuid,
    pub plan_digest: String,
    /// Its plan waits for approval.
    pub unapproved: bool,
}

/// A bundle with all that is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BundleDetail {
    #[serde(flatten)]
    pub summary: Bundle,
    pub note: String,
    pub on_failure: String,
    /// What `approve` and `reject` name: of the members' plans and their order.
    pub digest: String,
    pub expires_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    /// Why it ended, where it did not simply succeed.
    pub end: Option<crate::http::By>,
    /// The members' deployments, with what each waits for.
    pub deployments: Vec<Deployment>,
    /// What this person may ask of it now.
    pub actions: Vec<String>,
}

/// Body of `retry`: these members, or all that failed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MembersBody {
    #[serde(default)]
    pub members: Vec<String>,
}

/// Body of `skip`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SkipMemberBody {
    pub member: String,
    pub reason: String,
}

/// Body of a bundle's `rollback`: together, in the reverse order of success; or these members alone.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BundleRollbackBody {
    /// normal (default) or emergency
    #[serde(default)]
    pub mode: Option<String>,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub members: Vec<String>,
}

/// Carry what is last known good in one environment to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PromotionNew {
    pub from: String,
    pub to: String,
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Object>)]
    pub inputs: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    pub not_before: Option<DateTime<Utc>>,
    #[serde(default)]
    pub note: String,
}

/// An artifact with where it was verified.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PromotionRow {
    pub version: String,
    pub digest: String,
    pub verified: Vec<Proof>,
}

/// That a deployment to the whole of an environment ended well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Proof {
    pub environment: String,
    pub deployment: Uuid,
    pub at: DateTime<Utc>,
    /// It was rolled back since: it proves nothing any more.
    pub withdrawn: bool,
    pub reason: Option<String>,
}

/// A project's promotions: its environments with what each takes, and every artifact that was verified somewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PromotionBoard {
    pub environments: Vec<PromotionPlace>,
    pub artifacts: Vec<PromotionRow>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PromotionPlace {
    pub environment: String,
    /// All of these must have verified an artifact first.
    pub promote_from: Vec<String>,
    pub verified_for_s: u64,
    /// The version last known good here.
    pub good: Option<String>,
}

/// The difference between two revisions of a catalog item, as text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RevisionDiff {
    pub kind: String,
    pub key: String,
    pub from: u64,
    pub to: u64,
    /// Unified; empty when both are the same.
    pub diff: String,
}

/// Body of `revert`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevertBody {
    pub revision: u64,
}

/// Where a project's repository stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SourceStatus {
    pub project: String,
    pub git: String,
    #[serde(rename = "ref")]
    pub reference: String,
    pub path: String,
    /// new, applied, broken (its documents), unreachable (its repository)
    pub state: String,
    pub detail: String,
    pub faults: Vec<Fault>,
    pub fetched_commit: Option<String>,
    /// What the catalog holds: a broken commit changes nothing.
    pub applied_commit: Option<String>,
    pub fetched_at: Option<DateTime<Utc>>,
    pub applied_at: Option<DateTime<Utc>>,
    /// When it is looked at again.
    pub refresh_at: Option<DateTime<Utc>>,
    /// What came from here.
    pub items: Vec<AppliedItem>,
}
