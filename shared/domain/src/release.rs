//! Releases: a versioned decision to ship an artifact with a flow revision and input values, all frozen.

use crate::{
    Timestamp,
    flow::Flow,
    ids::{ArtifactId, ReleaseId},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RollbackMode {
    /// Drain, switch, test, return: the flow's `rollback.normal`.
    Normal,
    /// Switch and restart only: the flow's `rollback.emergency`.
    Emergency,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseKind {
    Normal,
    Hotfix,
    Rollback,
}

/// Immutable once stored. `flow` is the compiled copy: editing the flow later never changes this release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    pub id: ReleaseId,
    pub project: String,
    pub version: String,
    pub kind: ReleaseKind,
    pub artifact: ArtifactId,
    pub flow_revision: u64,
    pub flow: Flow,
    pub inputs: BTreeMap<String, serde_json::Value>,
    /// Values of the release's own scope: the innermost one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, serde_json::Value>,
    /// Temporary hosts, and hosts of the environment that take no part: asked for with the release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add_hosts: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_hosts: Vec<String>,
    /// The plugins its steps use, frozen, by the step's `uses`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plugins: BTreeMap<String, crate::plugin::Plugin>,
    pub created_at: Timestamp,
    pub created_by: String,
}
