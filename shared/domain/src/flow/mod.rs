//! Flows: the reusable definition of a release, as validated data. `parse` reads the YAML; a `Flow` value is always valid.

pub mod actions;
pub mod form;
pub mod input;
pub mod link;
pub(crate) mod parse;
pub mod schema;
mod ships;
pub mod statuses;
pub mod uses;

pub use parse::{FlowError, parse};
pub use schema::json_schema;

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
    /// How long it waits for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<Patience>,
    /// What a step that uses this flow as a subflow gives as its outputs: templates over `inputs` and `steps`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, serde_json::Value>,
    /// In a linked flow: the inputs of every subflow that was put in, by the id of the step that used it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scopes: BTreeMap<String, Scope>,
}

/// A subflow in its place. The steps within carry its id and a `/` before their own; what they read as `inputs` and
/// `steps` is the scope's, not the outer flow's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scope {
    /// Name and revision of the flow that was put in.
    pub flow: String,
    pub revision: u64,
    /// Its declared inputs.
    pub inputs: BTreeMap<String, Input>,
    /// What they are set to: templates over the outer scope.
    pub with: serde_json::Map<String, serde_json::Value>,
    /// Its outputs: templates over its own scope.
    pub outputs: BTreeMap<String, serde_json::Value>,
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
    #[serde(default, skip_serializing_if = "InputRules::is_empty")]
    pub rules: InputRules,
}

/// What a value must be besides its type. Lengths are in characters of a text, in bytes of a file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct InputRules {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_length: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<u32>,
    /// A regular expression the whole text must match (the syntax of the `regex` crate: linear time).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// The value may be left out; then it is null.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

impl InputRules {
    pub fn is_empty(&self) -> bool {
        *self == InputRules::default()
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
    /// A selector text over the labels of the deployment's hosts.
    HostSelector,
    /// Text that is sealed where it comes in and opened on the host that needs it: `{"secret": "<name>"}` everywhere else.
    Secret,
    /// A small file: `{"name", "content" (base64), "sha256", "size"}`, at most [`MAX_INPUT_FILE_BYTES`].
    File,
}

/// Largest file an input takes.
pub const MAX_INPUT_FILE_BYTES: usize = 64 * 1024;

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
    /// Ids of the steps that come before; `join` says what must have become of them.
    pub needs: Vec<String>,
    #[serde(default)]
    pub join: Join,
    /// CEL over `inputs`, `artifact`, `release`, `env`, `values` and `steps`; false skips the step. One that reads
    /// `steps` is decided when the step's turn comes, any other when the plan is made.
    pub condition: Option<String>,
    /// What a failure of this step leads to; the flow's `on_failure` when absent.
    #[serde(default)]
    pub on_failure: Option<StepFailure>,
    #[serde(default)]
    pub repeat: Option<Repeat>,
    /// Nobody can skip or ignore it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// What is tried again by itself before a failure counts; of a rollout, host by host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// What it leads to when it fails by taking too long; `on_failure` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<StepFailure>,
    pub kind: StepKind,
}

/// Tries on top of the first. The pause before try n is `backoff_s * factor^(n-1)`, at most `max_backoff_s` seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retry {
    /// 1 to 100.
    pub max: u32,
    /// Which failures; empty: exit, timeout, unreachable and traffic. An unknown host is never retried by a policy.
    #[serde(default)]
    pub on: Vec<crate::work::FailureClass>,
    /// Of failures of class exit only those with one of these codes; empty: any.
    #[serde(default)]
    pub exit_codes: Vec<i32>,
    pub backoff_s: u32,
    /// 1 to 10.
    pub factor: u32,
    pub max_backoff_s: u32,
}

/// How long the deployment waits for a person (intervention, choice, confirmation, pause) before `then` happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patience {
    /// Seconds.
    pub within_s: u32,
    pub then: Overdue,
}

/// What happens when a person has not come in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overdue {
    /// The alarm is raised again, every time as much time has passed.
    #[default]
    Remind,
    Abort,
    Rollback,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { within_s: 24 * 3600, then: Overdue::Remind }
    }
}

/// When a step that needs others may start. A step that succeeded or was skipped counts as success; every other ending
/// does not. A branch that a gateway did not take is dead: it neither helps nor hinders, and a step that hangs on dead
/// branches alone is not taken either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Join {
    /// Every live one ended as a success.
    #[default]
    All,
    /// The first success; never a second time.
    Any,
    /// Every live one ended, however.
    Done,
}

/// What a step's failure leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepFailure {
    Pause,
    Stop,
    Rollback,
    /// The failure stands, and steps joined by `any` or `done` go on.
    Continue,
}

/// Runs the step again until the expression is true.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Repeat {
    /// CEL; reads what a condition reads, the step's own outputs among them.
    pub until: String,
    /// Runs in all, the first one included; 1 to 1000. When they are used up the step has failed.
    pub max: u32,
    /// Seconds between the end of one run and the start of the next.
    pub every_s: u32,
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
    /// Run once, by the executor: `artifact.verify`, `http.request`, `notify`, `wait`, plugins.
    Central(Call),
    Rollout(Rollout),
    Gateway(Gateway),
    /// Only before linking: another flow of the project, put in here.
    Subflow(Subflow),
    /// Only after linking: the way into a subflow; its id is `<step>/enter`, the step's `needs`, `join` and `condition` are here.
    Enter {
        scope: String,
    },
    /// Only after linking: the way out of a subflow, under the step's own id; it needs the last steps within, and carries
    /// the step's `repeat`.
    Leave {
        scope: String,
    },
}

/// A branching node. A step it leads to names it in `needs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gateway {
    pub mode: GatewayMode,
    pub branches: Vec<Branch>,
    /// Where it goes when no condition is true; required unless `mode` is parallel.
    pub default: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GatewayMode {
    /// The first branch whose condition is true.
    Exclusive,
    /// Every branch whose condition is true.
    Conditional,
    /// Every branch.
    Parallel,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Branch {
    /// How a person picks it when an expression fails.
    pub name: String,
    /// CEL; always there unless the gateway is parallel.
    pub condition: Option<String>,
    /// Ids of the steps it leads to.
    pub to: Vec<String>,
}

/// A step that is another flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subflow {
    /// Name of a flow of the same project.
    pub flow: String,
    pub with: serde_json::Map<String, serde_json::Value>,
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
    /// What is looked at meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<Probes>,
    /// A label: hosts that differ in it never share a wave. Groups go one after the other in the order of their values (as
    /// numbers where all are), hosts without the label last; the wave expression begins anew in each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_by: Option<String>,
    /// A selector: hosts that fit go before all others, in one wave of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stagger: Option<crate::work::Stagger>,
    pub budget: Budget,
    /// Hosts at the same time within a wave; 0 means the whole wave.
    pub parallel: u32,
    /// Only the deployment's hosts whose labels fit this selector (a text that may hold expressions); all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
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
    /// How many hosts of one wave may fail; more end the wave though the rollout could bear them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave_hosts: Option<u32>,
    /// Of the wave's hosts, rounded down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave_percent: Option<f64>,
}

/// Automatic checks of a wave while it bakes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probes {
    /// Seconds between two looks.
    pub every_s: u32,
    /// What it means when at the end no probe failed but not every one succeeded.
    pub inconclusive: Inconclusive,
    pub checks: Vec<Probe>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inconclusive {
    /// A person looks at the wave and confirms it.
    #[default]
    Ask,
    Pass,
    Fail,
}

/// One check. `http.request` and `prometheus.query` are asked by the executor, `http.check` and `script` on every host of
/// the wave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    pub id: String,
    pub call: Call,
    /// CEL over `value` (what was read; of `prometheus.query` a number, of `http.request` its output, of a check on hosts
    /// `{ok, failed, total}`; null where it could not be asked). One alone: the other is its opposite. Neither: success is
    /// that the call succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail: Option<String>,
    /// Looks in a row that must fail before the probe has failed; 1 to 100.
    pub failures: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostStep {
    pub id: String,
    pub condition: Option<String>,
    pub call: Call,
    pub always: bool,
    /// Nobody can skip it on a host, nor ignore that it failed there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
}

/// Host steps of the two kinds of rollback; empty means the flow has none.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Rollback {
    pub normal: Vec<HostStep>,
    pub emergency: Vec<HostStep>,
    #[serde(default, skip_serializing_if = "RollbackHow::is_default")]
    pub normal_how: RollbackHow,
    #[serde(default, skip_serializing_if = "RollbackHow::is_default")]
    pub emergency_how: RollbackHow,
    /// Which of the two `on_failure: rollback` asks for; normal when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic: Option<crate::release::RollbackMode>,
}

/// How a kind of rollback goes over the hosts, and the values it has over all others.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RollbackHow {
    /// Absent: normal `1 *4`, emergency `100%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waves: Option<crate::wave::WaveExpression>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, serde_json::Value>,
}

impl RollbackHow {
    pub fn is_default(&self) -> bool {
        *self == RollbackHow::default()
    }
}
