//! Artifacts, what events led to, and plugins.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ArtifactNew {
    pub version: String,
    /// `sha256:` and 64 lower-case hex digits
    pub digest: String,
    /// http, https or file URL of a `.tar.gz`
    pub url: String,
    #[serde(default)]
    pub size: Option<u64>,
    #[serde(default)]
    pub git_ref: Option<String>,
    #[serde(default)]
    pub commit: Option<String>,
    #[serde(default)]
    pub committer: Option<String>,
    #[serde(default)]
    pub build_url: Option<String>,
    #[serde(default)]
    pub built_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Artifact {
    pub id: Uuid,
    pub project: String,
    pub version: String,
    pub digest: String,
    pub url: String,
    pub size: Option<u64>,
    pub git_ref: Option<String>,
    pub commit: Option<String>,
    pub committer: Option<String>,
    pub build_url: Option<String>,
    pub built_at: DateTime<Utc>,
    pub created_at: DateTime<Utc>,
}

/// One incoming event in the trigger log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Trigger {
    pub source: String,
    pub project: String,
    pub delivery: String,
    /// Type of the event as its sender calls it.
    pub kind: String,
    /// matched, ignored or refused
    pub outcome: String,
    pub reason: String,
    pub artifact: Option<Uuid>,
    /// First of the commands it led to.
    pub command: Option<Uuid>,
    pub received_at: DateTime<Utc>,
}

/// Answer to an event. A repeated delivery gets the first one's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HookAnswer {
    pub outcome: String,
    pub reason: String,
    pub artifact: Option<Uuid>,
    pub commands: Vec<Uuid>,
    pub deployments: Vec<Uuid>,
    /// The delivery was known already.
    pub duplicate: bool,
}

/// Plugins of the catalog.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plugins {
    pub plugins: Vec<PluginVersion>,
}

/// One version of a plugin, with what a form for its values is made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PluginVersion {
    pub name: String,
    pub version: String,
    /// What a step writes to use it.
    pub uses: String,
    pub title: String,
    /// `exec` or `nats`.
    pub transport: String,
    pub verbs: Vec<String>,
    pub retry_safe: bool,
    pub timeout_s: u32,
    /// Inputs that may hold secrets.
    pub secrets: Vec<String>,
    /// JSON Schema of `with`.
    #[schema(value_type = Object)]
    pub inputs: serde_json::Value,
    /// JSON Schema of the step's outputs.
    #[schema(value_type = Object)]
    pub outputs: serde_json::Value,
}
