//! Why there is no plan.

use crate::{expression::ExpressionError, release::RollbackMode, wave::WaveError};

/// Every variant names the step, host or input it is about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("no host is selected: name hosts in the environment, or labels its selector fits")]
    NoHosts,
    #[error("host `{0}` is selected twice")]
    DuplicateHost(String),
    #[error("the flow has no input `{name}`; it has: {known}")]
    UnknownInput { name: String, known: String },
    #[error("the input `{0}` has no default and was not given")]
    MissingInput(String),
    #[error("the input `{name}` {problem}")]
    Input { name: String, problem: String },
    #[error("the flow has no {0} rollback: add `rollback:` with steps under `{0}:` to it")]
    NoRollback(Mode),
    #[error("step `{step}`{}: {error}", on_host(.host))]
    Expression { step: String, host: Option<String>, error: ExpressionError },
    #[error("step `{step}`{}: the parameter `{parameter}` {problem}", on_host(.host))]
    Parameter { step: String, host: Option<String>, parameter: String, problem: String },
    #[error(
        "step `{step}` reads `values.{key}`, which only hosts define ({host} does): it runs on no host; give the \
         environment, the project or the release such a value, or read it in a step of a rollout"
    )]
    HostValue { step: String, key: String, host: String },
    #[error("step `{step}`: the project has no account `{account}`; it has: {known}")]
    UnknownAccount { step: String, account: String, known: String },
    #[error("step `{step}`: `on` is {problem}")]
    On { step: String, problem: String },
    #[error(transparent)]
    Marker(crate::reference::Forbidden),
    #[error("step `{step}` uses `{action}`, which this version does not have")]
    UnknownAction { step: String, action: String },
    #[error("step `{step}` uses `{uses}`, which the release does not hold: request the deployment anew")]
    NoPlugin { step: String, uses: String },
    #[error("step `{step}`: `with` does not fit the plugin {plugin}: {faults}")]
    PluginInputs { step: String, plugin: String, faults: String },
    #[error("step `{step}` uses flow `{flow}`, which has not been put in: request the deployment anew")]
    NotLinked { step: String, flow: String },
    #[error("step `{step}` cannot be split into waves: {error}")]
    Waves { step: String, error: WaveError },
    #[error(
        "on host `{host}` the conditions leave out every step of `{step}`: keep the host out of this deployment (by the \
         environment's hosts or selector), or give the rollout a step for it"
    )]
    NothingToDo { step: String, host: String },
    #[error("step `{step}`: the environment has no load balancer `{lb}`; it has: {known}")]
    UnknownLoadBalancer { step: String, lb: String, known: String },
    #[error("step `{step}`: load balancer `{lb}`{}: {problem}", on_host(.host))]
    Traffic { step: String, lb: String, host: Option<String>, problem: String },
    #[error("the plan has no rollout step `{0}`")]
    UnknownStep(String),
    #[error("rollout step `{step}` has no host number {host}")]
    UnknownHost { step: String, host: u32 },
    #[error("rollout step `{step}` has no task of segment {segment} for host number {host}")]
    UnknownSegment { step: String, segment: u32, host: u32 },
    #[error("the plan cannot be written as JSON")]
    Json,
}

/// A rollback mode in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub RollbackMode);

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            RollbackMode::Normal => "normal",
            RollbackMode::Emergency => "emergency",
        })
    }
}

fn on_host(host: &Option<String>) -> String {
    host.as_ref().map_or_else(String::new, |h| format!(" on host `{h}`"))
}
