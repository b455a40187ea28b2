//! Locks and their queue, hosts, agents and enrolment.

use super::deployments::Deployment;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Queue {
    pub locks: Vec<Lock>,
}

/// The lock of a project and environment; held or wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Lock {
    pub project: String,
    pub environment: String,
    pub holder: Option<Deployment>,
    pub taken_at: Option<DateTime<Utc>>,
    /// Next first.
    pub waiting: Vec<Deployment>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Host {
    pub name: String,
    pub address: String,
    pub labels: BTreeMap<String, String>,
    /// False: an agent speaks for a name that the catalog does not hold.
    pub in_catalog: bool,
    /// connected, suspect, disconnected, `never_seen` (enrolled only) or `no_agent`; for hosts reached by SSH also ssh
    /// (answered when it was last connected to) or unreachable
    pub state: String,
    /// How it is reached without an agent of its own.
    #[serde(default)]
    pub ssh: Option<HostSsh>,
    pub agent: Option<Agent>,
    /// Release directory it reports as current.
    #[serde(default)]
    pub current: Option<String>,
    /// It takes no new tasks.
    #[serde(default)]
    pub lock: Option<crate::preview::HostLock>,
    /// Tasks offered to it or running there, and how many it takes at once.
    #[serde(default)]
    pub tasks: u32,
    #[serde(default)]
    pub max_tasks: u32,
}

/// A host that is reached by SSH, and how that went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostSsh {
    pub account: String,
    pub port: u16,
    pub jump: Option<String>,
    /// When a connection was last begun, or last tried in vain.
    pub checked_at: Option<DateTime<Utc>>,
    /// Why the last try failed.
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Agent {
    pub id: Uuid,
    pub enrolled_at: DateTime<Utc>,
    pub last_seen_at: Option<DateTime<Utc>>,
    pub version: Option<String>,
    pub instance: Option<String>,
    #[schema(value_type = Object)]
    pub facts: serde_json::Value,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrollTokenNew {
    pub host: String,
    /// The host's live agent, if there is one, is revoked when the token is used.
    #[serde(default)]
    pub replace: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EnrollToken {
    pub id: Uuid,
    /// Works once, until `expires_at`; the only time it is shown.
    pub token: String,
    pub host: String,
    pub expires_at: DateTime<Utc>,
}

/// What an agent posts at its first start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Enroll {
    pub token: String,
    /// nkey user public key (`U…`); the seed never leaves the host.
    pub public_key: String,
    #[serde(default)]
    #[schema(value_type = Object)]
    pub facts: serde_json::Value,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Enrolled {
    pub agent_id: Uuid,
    pub host: String,
    pub nats_urls: Vec<String>,
    /// NATS user JWT for the posted key.
    pub jwt: String,
    /// Public key that signs frames to agents.
    pub executor_key: String,
    /// Public key that signs approvals.
    pub approval_key: String,
    /// Certificates (PEM) of the authority that signed those of the NATS servers; absent: NATS speaks no TLS, or one that the system
    /// knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats_ca: Option<String>,
}
