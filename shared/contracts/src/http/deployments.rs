//! Deployments: requests, what is shown of them, and their streams.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeploymentNew {
    pub environment: String,
    /// Of a registered artifact. Left out where the environment's flow ships none: a job, a switchover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
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
    /// approval, acceptance, time, turn, lock, hosts, step, confirmation, bake, retry, repeat, intervention, choice, unknown,
    /// operator, host, plan
    pub on: String,
    pub text: String,
    /// Fields by kind: rule, have, quorum, people, until, step, wave, hosts, reason, by, holder, ahead, owner, deadline
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
}

/// Every host counts once, by what matters most about it now: the numbers from `succeeded` to `excluded` add up to `total`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostCounts {
    pub total: u32,
    pub succeeded: u32,
    pub failed: u32,
    pub running: u32,
    pub waiting: u32,
    pub unknown: u32,
    /// Never started: the failure budget was used up, or the deployment ended before their turn.
    #[serde(default)]
    pub auto_stopped: u32,
    /// Stopped by a person or an abort after they had started.
    #[serde(default)]
    pub hand_stopped: u32,
    /// Should have started and provably did not.
    #[serde(default)]
    pub not_started: u32,
    /// Failed, and a person went on regardless.
    #[serde(default)]
    pub ignored: u32,
    #[serde(default)]
    pub excluded: u32,
    /// The last five together.
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
    /// Who answers for it while it waits for a person.
    #[serde(default)]
    pub claim: Option<By>,
    /// It waits for a person.
    #[serde(default)]
    pub attention: Option<Attention>,
    /// From 1; each time it is taken up again is the next run.
    #[serde(default = "first")]
    pub run: u32,
    /// Who took it up again last, and why.
    #[serde(default)]
    pub reopened: Option<By>,
    /// Other inputs that somebody wants to go on with, until their plan is approved.
    #[serde(default)]
    pub amendment: Option<Amendment>,
    /// Why it ended, where it did not simply succeed.
    pub end: Option<By>,
    /// The deployment this one goes back from.
    pub rollback_of: Option<Uuid>,
    pub rollback_mode: Option<String>,
    /// The rollback that was requested for this deployment.
    pub rolled_back_by: Option<Uuid>,
    /// What this person may press now: approve, reject, cancel, pause ... by right and by state. `amend` stands for `retry`
    /// with other inputs.
    pub actions: Vec<String>,
    /// Last event of its stream; `events?` resumes from here with `Last-Event-ID`.
    pub last_event: u64,
}

fn first() -> u32 {
    1
}

/// A wait for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attention {
    pub since: DateTime<Utc>,
    pub deadline: DateTime<Utc>,
    /// What happens at the deadline: remind, abort or rollback
    pub then: String,
    /// Who answers for it: the claimant, else who requested it.
    pub owner: String,
    pub claimed: bool,
    /// How often the alarm was raised again.
    pub reminded: u32,
}

/// Other inputs for what has yet to run. `approve` and `reject` with its digest decide on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Amendment {
    pub by: By,
    /// Digest of the plan with these inputs.
    pub digest: String,
    /// The inputs that change.
    #[schema(value_type = BTreeMap<String, Object>)]
    pub inputs: BTreeMap<String, serde_json::Value>,
    /// Hosts that are retried once it is approved; empty: all that failed.
    pub hosts: Vec<String>,
    pub approvals: Vec<Approval>,
    /// Rules that are not met yet.
    pub missing: Vec<RuleState>,
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
    /// Nobody can skip or ignore it.
    #[serde(default)]
    pub required: bool,
    /// prepare, pre-release, release or post-release
    #[serde(default)]
    pub phase: Option<String>,
    /// Where a policy retries: retries made, the most there may be, and when the next is due (central steps).
    #[serde(default)]
    pub tries: Option<u32>,
    #[serde(default)]
    pub max_tries: Option<u32>,
    #[serde(default)]
    pub retry_at: Option<DateTime<Utc>>,
    /// A person said how it came out.
    #[serde(default)]
    pub forced: Option<By>,
    /// Rollouts only: hosts that may fail in all, and ids of host steps that nobody can skip or ignore.
    #[serde(default)]
    pub max_failures: Option<u32>,
    #[serde(default)]
    pub required_steps: Vec<String>,
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
    /// waiting, running, confirming, baking, probing, retrying, succeeded, failed, stopped
    pub state: String,
    /// End of the bake time, of the probes, or of the wait before a retry.
    pub bake_until: Option<DateTime<Utc>>,
    /// Hosts of this wave that may fail, where that is limited too.
    #[serde(default)]
    pub max_failures: Option<u32>,
    /// What its hosts have in common, where the rollout groups them.
    #[serde(default)]
    pub group: Option<String>,
    #[serde(default)]
    pub probe: Option<Probe>,
    pub hosts: Vec<HostRun>,
}

/// How the probes of a wave stand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Probe {
    pub until: DateTime<Utc>,
    /// From 1: a wave that is retried is probed again.
    pub attempt: u32,
    /// success, fail or inconclusive; none while they are looked at
    pub verdict: Option<String>,
    pub reason: Option<String>,
    pub probes: Vec<ProbeResult>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProbeResult {
    pub probe: String,
    /// success, fail or inconclusive
    pub verdict: String,
    pub looks: u32,
    /// What it read last.
    #[schema(value_type = Object)]
    pub value: serde_json::Value,
    pub reason: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostRun {
    pub host: String,
    /// waiting, running, succeeded, failed, `hand_stopped`, `auto_stopped`, `not_started`, unknown, ignored, excluded
    pub state: String,
    pub attempt: u32,
    pub failed_step: Option<u32>,
    /// Id of the step that failed.
    #[serde(default)]
    pub failed_id: Option<String>,
    /// exit, timeout, unreachable, refused, artifact, traffic, stopped or unknown
    #[serde(default)]
    pub class: Option<String>,
    /// Retries that the policy made of it.
    #[serde(default)]
    pub retried: u32,
    /// A person stopped it, or said how it came out.
    #[serde(default)]
    pub by: Option<By>,
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
    /// Where its host stands with the load balancers; none when the rollout has none.
    #[serde(default)]
    pub traffic: Option<Traffic>,
    pub offered_at: Option<DateTime<Utc>>,
    pub started_at: Option<DateTime<Utc>>,
    pub settled_at: Option<DateTime<Utc>>,
    pub steps: Vec<TaskStep>,
    pub log_bytes: Option<u64>,
    pub log_dropped: Option<u64>,
}

/// A host on its way off the load balancers or back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    /// draining, drained, `drain_failed`, attaching, attached, `attach_failed`
    pub state: String,
    pub since: DateTime<Utc>,
    /// What it waits for, or what went wrong: "draining: 3 connections left".
    pub reason: Option<String>,
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
    /// Empty while pending; else `ok`, or why it was refused: `not_found`, `wrong_state`, `plan_changed`, `own_request`,
    /// `already_decided`, `not_asked`, `invalid`, `nothing_to_do`, `claimed`, `required`, `unsettled`, `superseded`,
    /// `no_last_known_good`, `not_known_good`, `not_verified`, `held`, `vetoed`, `pinned`. `ops/docs/verbs.md` says what each means.
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
