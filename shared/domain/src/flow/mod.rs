//! Flows: the reusable definition of a release, as validated data. `parse` reads the YAML; a `Flow` value is always valid.

pub mod actions;
mod parse;

pub use parse::parse;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    pub name: String,
    pub inputs: BTreeMap<String, Input>,
    pub on_failure: OnFailure,
    /// In the order written; `needs` edges make the graph, which is acyclic.
    pub steps: Vec<Step>,
    pub rollback: Rollback,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    #[serde(rename = "type")]
    pub kind: InputKind,
    pub default: Option<serde_json::Value>,
    /// Allowed values of a `choice`.
    #[serde(default)]
    pub options: Vec<String>,
    #[serde(default)]
    pub description: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputKind {
    String,
    Number,
    Boolean,
    Choice,
}

/// What a failure over budget leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Intervention: wait for a person.
    #[default]
    Pause,
    /// End as failed.
    Stop,
    /// End as failed and request a rollback to last known good.
    Rollback,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub id: String,
    pub phase: Option<Phase>,
    /// Ids of steps that must have succeeded (or been skipped) before.
    pub needs: Vec<String>,
    /// CEL over `inputs`, `artifact`, `release`, `env`; false skips the step.
    pub condition: Option<String>,
    pub kind: StepKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Prepare,
    PreRelease,
    Release,
    PostRelease,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StepKind {
    /// Run once, by the executor: `artifact.verify`, `http.request`, `notify`, `wait`.
    Central(Call),
    Rollout(Rollout),
}

/// An action with its parameters; strings may hold `${{ }}` expressions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    pub uses: String,
    pub with: serde_json::Map<String, serde_json::Value>,
    /// Seconds.
    pub timeout_s: u32,
}

/// Steps run on every host, wave by wave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    pub waves: crate::wave::WaveExpression,
    pub confirm: Confirm,
    /// Seconds to wait after a wave that went well.
    pub bake_s: u32,
    pub budget: Budget,
    /// Hosts at the same time within a wave; 0 means the whole wave.
    pub parallel: u32,
    pub steps: Vec<HostStep>,
}

/// Which waves a person confirms after they ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confirm {
    #[default]
    None,
    First,
    Each,
}

/// How many hosts of the rollout may fail, in all: the smaller of the two that are given. Nothing given means none.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Budget {
    pub hosts: Option<u32>,
    /// Of the rollout's hosts, rounded down.
    pub percent: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostStep {
    pub id: String,
    pub condition: Option<String>,
    pub call: Call,
    pub always: bool,
}

/// Host steps of the two kinds of rollback; empty means the flow has none.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Rollback {
    pub normal: Vec<HostStep>,
    pub emergency: Vec<HostStep>,
}
