//! Events: one for every state change, written in the same transaction as the change. They are outbox, history and
//! audit source at once.

use crate::{Timestamp, ids::EventId};
use serde::{Deserialize, Serialize};

/// How loud an event is; channel rules filter on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// For the record.
    Info,
    /// Something a team wants to hear: started, succeeded.
    Notice,
    /// A person must act: approval wanted, intervention, unknown host.
    Action,
    /// It went wrong.
    Alert,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Notice => "notice",
            Severity::Action => "action",
            Severity::Alert => "alert",
        }
    }
}

/// The kinds of thing that change state. The stream of one aggregate is ordered and gapless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// Deployments with their works, tasks and steps: one ordered stream a deployment.
    Deployment,
    Artifact,
    /// Release bundles; what their members do is in the streams of their deployments.
    Bundle,
    /// Holds, vetoes and pins: of an environment (`project/environment`), or of all of a project's (`project`).
    Environment,
    Catalog,
    /// People, grants, tokens, secrets (never their values).
    Access,
    Agent,
    Intake,
    Notification,
    /// The audit trail itself: what the auditor found wrong.
    Audit,
}

impl Aggregate {
    pub fn as_str(self) -> &'static str {
        match self {
            Aggregate::Deployment => "deployment",
            Aggregate::Artifact => "artifact",
            Aggregate::Bundle => "bundle",
            Aggregate::Environment => "environment",
            Aggregate::Catalog => "catalog",
            Aggregate::Access => "access",
            Aggregate::Agent => "agent",
            Aggregate::Intake => "intake",
            Aggregate::Notification => "notification",
            Aggregate::Audit => "audit",
        }
    }
}

/// A state change about to be stored. `agg_seq` is given by the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewEvent {
    pub id: EventId,
    pub aggregate: Aggregate,
    pub aggregate_id: String,
    /// `<what>`, lower-case, dotted: `deployment.approved`, `task.settled`, `step.finished`. The CloudEvents type is
    /// `io.windlass.<what>.v1`.
    pub what: String,
    pub project: Option<String>,
    pub environment: Option<String>,
    pub severity: Severity,
    /// `person:<name>`, `token:<id>`, `service:<name>`, `agent:<host>` or `hook:<source>`.
    pub actor: String,
    pub at: Timestamp,
    /// What a reader needs to understand the change; never a secret.
    pub payload: serde_json::Value,
    /// W3C `traceparent` of the work that caused it.
    pub trace: Option<String>,
}

/// A stored event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub id: EventId,
    pub aggregate: String,
    pub aggregate_id: String,
    pub agg_seq: u64,
    pub what: String,
    pub project: Option<String>,
    pub environment: Option<String>,
    pub severity: Severity,
    pub actor: String,
    pub at: Timestamp,
    pub payload: serde_json::Value,
    pub trace: Option<String>,
}
