//! Works: what the scheduler hands to the executors, and what comes back. A work is one wave of a rollout or one central
//! step, or one look at how a wave does; it is immutable but for `desired`.

use crate::ids::{DeploymentId, WorkId};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    Run,
    /// Paused: offer and grant nothing; what was granted goes on. Turns back to `Run`, or on to `Abort`.
    Hold,
    /// Start nothing more, stop what runs, settle. Never turns back.
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
    Probe(ProbeWork),
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
    /// How the hosts of the wave are spread over time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stagger: Option<Stagger>,
    /// A repeated step, or a wave that is done again as a whole: a host may run again after its earlier attempt succeeded.
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

/// Between the starts of two hosts of a wave pass `every_s` seconds and, on top, up to `jitter_s` that are drawn from the
/// work's id and the host's name, so that a new owner keeps the same times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stagger {
    pub every_s: u32,
    pub jitter_s: u32,
}

/// The probes of a rollout, looked at again and again until the wave has baked: settled at once when one fails, else when
/// the time is over. What to look at stands in the plan (`PlanRollout::bake`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeWork {
    /// Id of the rollout step in the plan.
    pub step: String,
    pub wave: u32,
    /// From 1: a wave that is retried bakes again.
    pub attempt: u32,
    /// Hosts of the wave that are well: where probes of hosts run.
    pub hosts: Vec<String>,
    /// Looks go on until then.
    pub until: crate::Timestamp,
    /// Outputs of earlier steps that the rollout refers to, by step id.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub outputs: serde_json::Map<String, serde_json::Value>,
}

/// How a probe, or all of them, came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Success,
    Fail,
    /// Neither its `success` nor its `fail` was true, or it could not be asked.
    Inconclusive,
}

/// What one probe last said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeResult {
    pub probe: String,
    pub verdict: Verdict,
    /// Looks in all.
    pub looks: u32,
    /// What it read last: a status, a number.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub value: serde_json::Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What kind of failure it was: retry policies choose by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// A program or check ended and said no.
    Exit,
    /// It took longer than its timeout.
    Timeout,
    /// Provably never started: no agent, or nobody took the offer.
    Unreachable,
    /// Provably never started: the host's agent refused, or the host was locked or busy for too long.
    Refused,
    /// A package or file was not what it should be.
    Artifact,
    /// Traffic could not be taken off or put back.
    Traffic,
    /// Stopped by a person or an abort.
    Stopped,
    /// It went silent: what it did is not known. Never retried by a policy.
    Unknown,
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
    /// Id of the step that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<FailureClass>,
    /// The program's exit code, where one ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// By id of the host step.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub outputs: serde_json::Map<String, serde_json::Value>,
}

/// A work is settled when no host of it can start any more and none is granted. A settled work with `Unknown` hosts may
/// be settled again (with a higher result version) as they come back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WorkResult {
    Wave {
        hosts: Vec<HostResult>,
    },
    Central {
        succeeded: bool,
        reason: Option<String>,
        output: serde_json::Value,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        class: Option<FailureClass>,
    },
    Probe {
        verdict: Verdict,
        probes: Vec<ProbeResult>,
        reason: Option<String>,
    },
}
