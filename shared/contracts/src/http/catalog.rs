//! The catalog, its revisions, and the names of secrets.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Created,
    Changed,
    Unchanged,
}

/// What `POST /apply` did, or would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Applied {
    pub dry_run: bool,
    pub items: Vec<AppliedItem>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AppliedItem {
    pub kind: String,
    pub key: String,
    pub change: Change,
    pub revision: u64,
    pub diff: Vec<FieldDiff>,
}

/// One field that differs; `null` where there was, or is, nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FieldDiff {
    /// `hooks.github.secret`, `hosts[2]`
    pub path: String,
    #[schema(value_type = Object)]
    pub from: serde_json::Value,
    #[schema(value_type = Object)]
    pub to: serde_json::Value,
}

/// A current document. Its `ETag` is `"<revision>"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CatalogEntry {
    pub kind: String,
    pub key: String,
    pub project: Option<String>,
    pub revision: u64,
    #[schema(value_type = Object)]
    pub doc: serde_json::Value,
    pub updated_at: DateTime<Utc>,
    pub updated_by: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CatalogRevision {
    pub revision: u64,
    pub deleted: bool,
    #[schema(value_type = Object)]
    pub doc: serde_json::Value,
    pub author: String,
    pub at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretPut {
    /// Kept sealed; no route gives it back. Left out when the value is in Vault.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// `<mount>/<path>#<key>`: where Vault (KV version 2) keeps the value, which is fetched when it is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SecretName {
    /// `host.<name>`, `environment.<project>.<name>`, `project.<name>`, `group.<name>` or `channel`
    pub scope: String,
    pub name: String,
    pub updated_at: DateTime<Utc>,
    pub updated_by: String,
    /// Where Vault keeps the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<String>,
}
