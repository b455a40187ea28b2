//! Flows: the reusable definition of a release, as validated data. `parse` reads the YAML; a `Flow` value is always valid.

pub mod actions;
pub(crate) mod calls;
pub(crate) mod parse;

pub use parse::{FlowError, parse};

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

impl Input {
    /// Does the value fit? If not, the error says what to give.
    pub fn check(&self, value: &serde_json::Value) -> Result<(), String> {
        use serde_json::Value;
        let shown = actions::brief(value);
        match (self.kind, value) {
            (InputKind::String, Value::String(s)) if s.contains('\0') => Err("must not hold a NUL character".into()),
            (InputKind::String, Value::String(s)) if s.len() <= MAX_INPUT_BYTES => Ok(()),
            (InputKind::String, Value::String(_)) => Err(format!("must have at most {MAX_INPUT_BYTES} bytes")),
            (InputKind::Number, Value::Number(_)) | (InputKind::Boolean, Value::Bool(_)) => Ok(()),
            (InputKind::Choice, Value::String(s)) if self.options.contains(s) => Ok(()),
            (InputKind::String, _) => Err(format!("must be text, not {shown}")),
            (InputKind::Number, _) => Err(format!("must be a number, not {shown}")),
            (InputKind::Boolean, _) => Err(format!("must be true or false, not {shown}")),
            (InputKind::Choice, _) => Err(format!("must be one of {}, not {shown}", self.options.join(", "))),
        }
    }
}

/// Longest text an input takes.
pub const MAX_INPUT_BYTES: usize = 4096;

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
