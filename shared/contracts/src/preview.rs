//! Bodies about what a deployment would do: plans with what they change, forms, values with their scopes, drift.

use crate::http::Fault;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;
use uuid::Uuid;

/// What a request made now would do. Nothing was created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanPreview {
    /// The digest that a request made now would have.
    pub digest: String,
    pub report: PlanReport,
    #[schema(value_type = Object)]
    pub plan: serde_json::Value,
}

/// A plan for people: against what the hosts and the environment are now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanReport {
    pub project: String,
    pub environment: String,
    pub version: String,
    /// normal, hotfix or rollback
    pub kind: String,
    pub flow: String,
    pub flow_revision: u64,
    /// Secrets by name only.
    #[schema(value_type = BTreeMap<String, Object>)]
    pub inputs: BTreeMap<String, serde_json::Value>,
    pub hosts: Vec<PlanHostReport>,
    pub left_out: Vec<PlanLeftOut>,
    pub steps: Vec<PlanStepReport>,
    /// What must happen before, and between, in words: approvals, times, confirmations, bake times.
    pub gates: Vec<String>,
    pub lock: PlanLock,
    /// What a person should look at before asking for it.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanHostReport {
    pub name: String,
    pub address: String,
    /// connected, suspect, disconnected, `never_seen`, `no_agent` or ssh
    pub agent: String,
    /// The release directory it reports now.
    pub reports: Option<String>,
    /// Its version, where the directory names one of this project and environment.
    pub from: Option<String>,
    pub to: String,
    /// changes, same, unknown
    pub change: String,
    /// Not one of the environment's hosts.
    pub temporary: bool,
    /// Why it takes no tasks now.
    pub locked: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanLeftOut {
    pub host: String,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanStepReport {
    pub id: String,
    pub needs: Vec<String>,
    /// central, rollout, gateway, subflow
    pub kind: String,
    /// Action of a central step.
    pub action: Option<String>,
    pub skipped: bool,
    pub note: Option<String>,
    /// Host names, wave by wave.
    pub waves: Vec<Vec<String>>,
    /// What the hosts of each wave have in common, where hosts are grouped: `canary`, `zone=a`.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Load balancers that each host leaves before its steps and comes back to after them.
    #[serde(default)]
    pub load_balancers: Vec<String>,
    /// Ids of the probes that judge each wave while it bakes.
    #[serde(default)]
    pub probes: Vec<String>,
    /// Ids of what runs on each host.
    pub host_steps: Vec<String>,
    /// none, first or each
    pub confirm: String,
    pub bake_s: u32,
    pub max_failures: u32,
    /// 0: the whole wave.
    pub parallel: u32,
}

/// The environment's lock and who waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct PlanLock {
    pub holder: Option<Uuid>,
    /// Next first.
    pub queue: Vec<Uuid>,
}

/// The form of an environment's flow: what to give a request as `inputs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FormView {
    pub project: String,
    pub environment: String,
    pub flow: String,
    pub flow_revision: u64,
    /// JSON Schema, draft 2020-12.
    #[schema(value_type = Object)]
    pub schema: serde_json::Value,
    pub fields: Vec<FormField>,
    /// Hosts of the environment, in order.
    pub hosts: Vec<String>,
    /// Newest versions that can be released, newest first.
    pub versions: Vec<String>,
    /// Whether the flow ships anything: where it does not, a deployment may name no version.
    #[serde(default = "yes")]
    pub ships: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FormField {
    pub name: String,
    pub label: String,
    /// text, number, checkbox, select, `host_selector`, password, file
    pub widget: String,
    pub description: String,
    pub required: bool,
    #[schema(value_type = Object)]
    pub default: serde_json::Value,
    #[serde(default)]
    pub options: Vec<String>,
    /// The rules in words.
    pub hint: String,
}

/// The values of an environment, or of one of its hosts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    pub project: String,
    pub environment: String,
    pub host: Option<String>,
    pub values: Vec<ExplainedValue>,
    /// Secrets that steps can name here; values are never shown.
    pub secrets: Vec<ExplainedSecret>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExplainedValue {
    pub key: String,
    #[schema(value_type = Object)]
    pub value: serde_json::Value,
    /// group, project, environment, host or release: the one that wins
    pub scope: String,
    /// What it hides, the nearest scope first.
    pub shadows: Vec<ShadowedValue>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ShadowedValue {
    pub scope: String,
    #[schema(value_type = Object)]
    pub value: serde_json::Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainedSecret {
    pub name: String,
    /// The scope that wins.
    pub scope: String,
    pub shadows: Vec<String>,
}

/// What a host should have against what it says it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Drift {
    pub project: String,
    pub environment: String,
    pub host: String,
    /// same, differs, other (its root holds another project or environment), unknown (it reports nothing)
    pub state: String,
    /// Version last known good in the environment.
    pub intended: String,
    pub reported: Option<String>,
    /// The release directories themselves.
    pub intended_dir: String,
    pub reported_dir: Option<String>,
    pub last_seen_at: Option<DateTime<Utc>>,
}

/// Body of `lock` of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HostLockBody {
    pub reason: String,
}

/// A host that takes no new tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostLock {
    pub host: String,
    pub reason: String,
    pub by: String,
    pub at: DateTime<Utc>,
}

/// Faults of given inputs, one for each input that does not fit.
pub fn input_faults(wrong: Vec<(String, String)>) -> Vec<Fault> {
    let fault = |(name, detail): (String, String)| Fault {
        at: format!("inputs.{name}"),
        detail: format!("the input `{name}` {detail}"),
        line: None,
        column: None,
    };
    wrong.into_iter().map(fault).collect()
}
