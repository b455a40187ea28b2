//! Works: what the scheduler hands to the executors, and what comes back. A work is one wave of a rollout or one central
//! step; it is immutable but for `desired`, which turns to abort and never back.

use crate::ids::{DeploymentId, WorkId};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    Run,
    /// Start nothing more, stop what runs, settle.
    Abort,
}

/// What to carry out. Steps and hosts are those of the deployment's plan with digest `plan_digest`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Work {
    pub id: WorkId,
    pub deployment: DeploymentId,
    pub project: String,
    pub environment: String,
    /// Executors serve pools; a pool is a datacentre.
    pub pool: String,
    pub desired: Desired,
    /// Fence of the environment lock this work was made under.
    pub fence: u64,
    pub plan_digest: String,
    pub spec: WorkSpec,
    pub trace: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WorkSpec {
    Wave(WaveWork),
    Central(CentralWork),
}

/// One wave: these hosts, at most `parallel` at a time; when more than `max_failures` hosts have failed, no further host
/// is started (those left are `AutoStopped`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WaveWork {
    /// Id of the rollout step in the plan.
    pub step: String,
    /// From 0.
    pub wave: u32,
    pub hosts: Vec<WaveHost>,
    pub parallel: u32,
    /// How many hosts of *this work* may fail before the rest is left alone.
    pub max_failures: u32,
    /// A repeated step: a host may run again after its earlier attempt succeeded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// Outputs of earlier steps that this one refers to, by step id.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub outputs: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaveHost {
    pub host: String,
    /// From 1; a retry is a new attempt.
    pub attempt: u32,
    /// Index of the task's step to start at: 0, or where an earlier attempt failed.
    pub start_at: u32,
}

/// One central step, run by the executor itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CentralWork {
    /// Id of the step in the plan; action and parameters stand there.
    pub step: String,
    /// From 1.
    pub attempt: u32,
    /// Outputs of earlier steps that this one refers to, by step id.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub outputs: serde_json::Map<String, serde_json::Value>,
}

/// How a host came out of a wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Succeeded,
    Failed,
    /// Stopped by an abort after it had started.
    Cancelled,
    /// Provably never started, because the failure budget was used up.
    AutoStopped,
    /// Provably never started, because of an abort or because the host could not be reached.
    NotStarted,
    /// It was granted and then went silent: it may have run, may still run.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostResult {
    pub host: String,
    pub attempt: u32,
    pub outcome: Outcome,
    /// Index of the step that failed, where one did.
    pub failed_step: Option<u32>,
    /// For people: what went wrong and what to do.
    pub reason: Option<String>,
    /// By id of the host step.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub outputs: serde_json::Map<String, serde_json::Value>,
}

/// A work is settled when no host of it can start any more and none is granted. A settled work with `Unknown` hosts may
/// be settled again (with a higher result version) as they come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WorkResult {
    Wave { hosts: Vec<HostResult> },
    Central { succeeded: bool, reason: Option<String>, output: serde_json::Value },
}
