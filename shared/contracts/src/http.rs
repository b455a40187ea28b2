//! HTTP request and response bodies of `/api/v1`. What the OpenAPI document, the CLI and the console are made from.
//!
//! Responses are types of their own, so that no stored secret can slip into one. Documents whose shape belongs to the
//! domain (`doc`, `plan`, `payload`) are passed on as JSON.

mod verbs;

pub use verbs::{
    AcceptBody, ChooseBody, ConfirmBody, DecisionBody, HostsBody, HostsReasonBody, NoBody, ReasonBody, RollbackBody,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;
use uuid::Uuid;

/// Where every route begins.
pub const PREFIX: &str = "/api/v1";
pub const PROBLEM_JSON: &str = "application/problem+json";
/// `type` of a problem is this and its code.
pub const PROBLEM_URN: &str = "urn:windlass:problem:";
/// Events of the SSE streams: `event` (a [`StreamEvent`]) or `log` (a [`LogChunk`]), and one `end` (a [`StreamEnd`]) at last.
pub const SSE_EVENT: &str = "event";
pub const SSE_LOG: &str = "log";
pub const SSE_END: &str = "end";

/// RFC 9457 problem details: every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:windlass:problem:<code>`
    #[serde(rename = "type")]
    pub kind: String,
    /// Stable and documented; the last part of `type`.
    pub code: String,
    pub title: String,
    pub status: u16,
    /// What went wrong here, and what to do about it.
    pub detail: String,
    /// Single faults of a body, each with its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
    /// The command that was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Uuid>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// Field or item, for example `environment shop/beta: hosts`.
    #[serde(default)]
    pub at: String,
    pub detail: String,
    /// From 1, where the body is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
}

/// One page of a list. Pass `next` as `cursor` for the one after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

// ---- people and tokens

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// `*` is every group.
    pub project_group: String,
    /// viewer, developer, approver, operator or admin
    pub role: String,
}

/// Who the token speaks for, and what limits it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Me {
    pub person: String,
    pub display: String,
    pub token: Uuid,
    pub grants: Vec<Grant>,
    /// Empty: all that the person may do.
    pub scopes: Vec<String>,
    /// The token works for this project only.
    pub project: Option<String>,
    pub expires_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Person {
    pub name: String,
    pub display: String,
    pub disabled: bool,
    pub grants: Vec<Grant>,
    pub created_at: DateTime<Utc>,
}

/// Makes a person, or changes the one of this name. Grants left out stay as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PersonPut {
    pub name: String,
    #[serde(default)]
    pub display: String,
    #[serde(default)]
    pub disabled: bool,
    #[serde(default)]
    pub grants: Option<Vec<Grant>>,
}

/// All grants of a person; what is not named is taken away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantsPut {
    pub grants: Vec<Grant>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenNew {
    pub person: String,
    #[serde(default)]
    pub label: String,
    /// Permissions (view, trigger, approve, operate, override, define, admin, audit); empty: all of the person's.
    #[serde(default)]
    pub scopes: Vec<String>,
    #[serde(default)]
    pub project: Option<String>,
    #[serde(default)]
    pub expires_at: Option<DateTime<Utc>>,
}

/// The only time the token itself is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenMade {
    pub id: Uuid,
    pub token: String,
    pub person: String,
    pub expires_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    pub id: Uuid,
    pub person: String,
    pub label: String,
    pub scopes: Vec<String>,
    pub project: Option<String>,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
}

// ---- catalog

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

// ---- artifacts and triggers

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

// ---- deployments

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeploymentNew {
    pub environment: String,
    pub version: String,
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Object>)]
    pub inputs: BTreeMap<String, serde_json::Value>,
    /// Empty: all hosts of the environment.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Temporary hosts: catalogued ones that take part though they do not belong to the environment.
    #[serde(default)]
    pub add_hosts: Vec<String>,
    /// Hosts of the environment that take no part.
    #[serde(default)]
    pub exclude_hosts: Vec<String>,
    /// Values of the release's own scope, over all others.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Object>)]
    pub values: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    pub not_before: Option<DateTime<Utc>>,
    #[serde(default)]
    pub note: String,
    /// normal (default), or hotfix, which needs a note: some policies let it pass without promotion
    #[serde(default)]
    pub kind: Option<String>,
}

/// A deployment in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Deployment {
    pub id: Uuid,
    pub project: String,
    pub environment: String,
    pub version: String,
    /// normal, hotfix or rollback
    pub kind: String,
    pub state: String,
    pub requested_by: String,
    pub requested_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    pub updated_at: DateTime<Utc>,
    pub waiting_on: Vec<WaitingOn>,
    pub hosts: HostCounts,
}

/// One thing it waits for: the sentence for people, and the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WaitingOn {
    /// approval, time, lock, hosts, step, confirmation, bake, intervention, unknown, operator
    pub on: String,
    pub text: String,
    /// Fields by kind: rule, have, quorum, people, until, step, wave, hosts, reason, by, holder, ahead
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostCounts {
    pub total: u32,
    pub succeeded: u32,
    pub failed: u32,
    pub running: u32,
    pub waiting: u32,
    pub unknown: u32,
    /// Stopped, excluded, ignored or never started.
    pub other: u32,
}

/// Everything about a deployment but its plan and logs. Its `ETag` is `"<revision>"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeploymentDetail {
    #[serde(flatten)]
    pub summary: Deployment,
    pub revision: u64,
    pub release: Uuid,
    pub note: String,
    pub pool: String,
    pub only_hosts: Vec<String>,
    pub plan_digest: String,
    /// Approval rules and how far each is met.
    pub rules: Vec<RuleState>,
    pub approvals: Vec<Approval>,
    pub not_before: Option<DateTime<Utc>>,
    pub expires_at: DateTime<Utc>,
    pub steps: Vec<Step>,
    pub pause: Option<By>,
    /// Why it ended, where it did not simply succeed.
    pub end: Option<By>,
    /// The deployment this one goes back from.
    pub rollback_of: Option<Uuid>,
    pub rollback_mode: Option<String>,
    /// The rollback that was requested for this deployment.
    pub rolled_back_by: Option<Uuid>,
    /// What this person may press now: approve, reject, cancel, pause ... by right and by state.
    pub actions: Vec<String>,
    /// Last event of its stream; `events?` resumes from here with `Last-Event-ID`.
    pub last_event: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RuleState {
    pub name: String,
    pub quorum: u32,
    pub have: u32,
    pub people: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct By {
    pub who: String,
    pub reason: String,
    pub at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Approval {
    pub person: String,
    /// approve or reject
    pub decision: String,
    pub plan_digest: String,
    pub comment: String,
    pub at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    pub id: String,
    pub needs: Vec<String>,
    /// `all`, `any` or `done`: what must have become of the steps it needs.
    pub join: String,
    /// waiting, running, succeeded, failed, skipped, `not_taken`, stopped
    pub state: String,
    /// central, rollout, gateway or subflow (its way in ends in `/enter`)
    pub kind: String,
    /// Central steps only.
    pub action: Option<String>,
    pub attempt: Option<u32>,
    pub reason: Option<String>,
    /// Gateways only: the steps it went on to.
    pub taken: Vec<String>,
    /// What a person may answer to `choose`; empty unless an expression of the step failed.
    pub choices: Vec<String>,
    /// Repeated steps only: runs begun, and the most there may be.
    pub runs: Option<u32>,
    pub max_runs: Option<u32>,
    /// What it gave so far.
    #[schema(value_type = Object)]
    pub outputs: serde_json::Map<String, serde_json::Value>,
    /// Rollouts only.
    pub waves: Vec<Wave>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Wave {
    /// From 0, as in `confirm`.
    pub index: u32,
    /// waiting, running, confirming, baking, succeeded, failed, stopped
    pub state: String,
    pub bake_until: Option<DateTime<Utc>>,
    pub hosts: Vec<HostRun>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostRun {
    pub host: String,
    /// waiting, running, succeeded, failed, `hand_stopped`, `auto_stopped`, `not_started`, unknown, ignored, excluded
    pub state: String,
    pub attempt: u32,
    pub failed_step: Option<u32>,
    pub reason: Option<String>,
    /// The latest attempt's task, once there is one.
    pub task: Option<Task>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    pub id: Uuid,
    pub host: String,
    pub step: String,
    pub attempt: u32,
    /// pending, offered, granted, succeeded, failed, cancelled, `not_started`, unknown, overridden
    pub state: String,
    pub reason: Option<String>,
    pub offered_at: Option<DateTime<Utc>>,
    pub started_at: Option<DateTime<Utc>>,
    pub settled_at: Option<DateTime<Utc>>,
    pub steps: Vec<TaskStep>,
    pub log_bytes: Option<u64>,
    pub log_dropped: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskStep {
    pub index: u32,
    /// succeeded, failed, `timed_out`, cancelled, skipped
    pub outcome: String,
    pub exit_code: Option<i32>,
    pub message: String,
    pub started_at: DateTime<Utc>,
    pub ended_at: DateTime<Utc>,
    pub left_processes: u32,
}

/// The plan as approved: hosts, steps, waves, gates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanView {
    pub deployment: Uuid,
    pub digest: String,
    #[schema(value_type = Object)]
    pub plan: serde_json::Value,
    /// Against what the hosts and the environment are now.
    pub report: crate::preview::PlanReport,
}

/// A command and what became of it. 200: accepted; 202: stored, not decided yet (look at `url`). A refusal is a 409
/// [`Problem`] whose `code` is the outcome's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Command {
    pub id: Uuid,
    pub verb: String,
    pub project: String,
    pub environment: Option<String>,
    /// The deployment it is about; for a rollback, see `new_deployment`.
    pub deployment: Option<Uuid>,
    /// The deployment a `request` or `rollback` makes.
    pub new_deployment: Option<Uuid>,
    /// The bundle it is about, or makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<Uuid>,
    pub actor: String,
    /// pending, accepted or refused
    pub state: String,
    /// `ok`, `not_found`, `wrong_state`, `plan_changed`, `own_request`, `already_decided`, `not_asked`, `invalid`,
    /// `nothing_to_do`, `no_last_known_good`; empty while pending
    pub code: String,
    pub detail: String,
    pub created_at: DateTime<Utc>,
    pub decided_at: Option<DateTime<Utc>>,
    /// `/api/v1/commands/<id>`
    pub url: String,
}

/// An event of a deployment's stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StreamEvent {
    pub id: Uuid,
    /// Also the SSE id.
    pub seq: u64,
    /// `deployment.approved`, `task.settled` ...
    pub what: String,
    pub severity: String,
    pub actor: String,
    pub at: DateTime<Utc>,
    #[schema(value_type = Object)]
    pub payload: serde_json::Value,
}

/// Last message of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamEnd {
    /// The deployment's terminal state; `unauthorized` when the token was revoked meanwhile.
    pub state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogChunk {
    /// Place in the deployment's log, from 1; also the SSE id.
    pub n: u64,
    pub task: Uuid,
    pub seq: u64,
    pub host: String,
    pub step: String,
    /// out, err or note
    pub stream: String,
    pub at: DateTime<Utc>,
    /// Base64 of the raw bytes: terminal sequences and broken UTF-8 included, so show them with care.
    pub data: String,
}

// ---- queue, hosts, agents

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
}

// ---- notifications, doctor

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Notification {
    pub id: Uuid,
    pub event: Uuid,
    pub channel: String,
    pub project: Option<String>,
    /// pending, sent or dead
    pub state: String,
    pub attempts: u32,
    pub next_at: DateTime<Utc>,
    pub last_error: Option<String>,
    #[schema(value_type = Object)]
    pub message: serde_json::Value,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Doctor {
    /// No check failed.
    pub healthy: bool,
    pub checks: Vec<Check>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    pub name: String,
    /// ok, warning or fault
    pub status: String,
    pub detail: String,
    /// What to do; empty when ok.
    pub remedy: String,
}

// ---- audit

/// The newest signed checkpoint, a C2SP note.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditCheckpoint {
    pub size: u64,
    pub root: String,
    pub note: String,
    pub at: DateTime<Utc>,
}

/// The key that checkpoints verify with; keep a copy outside this system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditKey {
    /// C2SP verifier key, `<name>+<hash>+<key>`.
    pub key: String,
}
