//! Arguments of the commands that look ahead: plan, explain, drift; and what a deployment is asked with.

use clap::Args;
use std::path::PathBuf;
use uuid::Uuid;

/// What is released, with what, and where: of `deploy` and of `plan`.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// Version of a registered artifact; left out where the environment's flow ships none
    #[arg(long)]
    pub(crate) version: Option<String>,
    /// Value of a flow's input; `NAME=@FILE` reads a file (`@@` begins a value that starts with `@`). May be given many times
    #[arg(long = "input", short, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) inputs: Vec<(String, String)>,
    /// A value of the release's own scope, read by steps as `values.NAME`; may be given many times
    #[arg(long = "value", value_name = "NAME=VALUE", value_parser = super::client::input)]
    pub(crate) values: Vec<(String, serde_json::Value)>,
    /// A host that does not belong to the environment, taken in this once; may be given many times
    #[arg(long = "add-host", value_name = "HOST", value_delimiter = ',')]
    pub(crate) add_hosts: Vec<String>,
    /// A host of the environment that takes no part; may be given many times
    #[arg(long = "exclude-host", value_name = "HOST", value_delimiter = ',')]
    pub(crate) exclude_hosts: Vec<String>,
    /// Print the inputs that the environment's flow takes, and nothing else
    #[arg(long)]
    pub(crate) help_inputs: bool,
}

/// A file's path in `NAME=@FILE`.
pub(crate) fn file_of(value: &str) -> Option<PathBuf> {
    value.strip_prefix('@').filter(|v| !v.starts_with('@')).map(PathBuf::from)
}

fn pair(s: &str) -> Result<(String, String), String> {
    let (k, v) = s.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((k.to_owned(), v.to_owned()))
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Deployment id; without it, `--project`, `--environment` and mostly `--version` say what to plan, and nothing is requested
    pub(crate) id: Option<Uuid>,
    #[arg(long, required_unless_present = "id", conflicts_with = "id")]
    pub(crate) project: Option<String>,
    #[arg(long, required_unless_present = "id", conflicts_with = "id")]
    pub(crate) environment: Option<String>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// Only these hosts of the environment
    #[arg(long, value_name = "HOST,…", value_delimiter = ',')]
    pub(crate) hosts: Vec<String>,
    /// Print exactly what this host would run
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// `<project>/<environment>`
    pub(crate) place: String,
    /// As a step on this host sees them
    #[arg(long)]
    pub(crate) host: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DriftArgs {
    #[arg(long)]
    pub(crate) project: Option<String>,
    #[arg(long)]
    pub(crate) environment: Option<String>,
    /// Hosts that have what they should have, too
    #[arg(long)]
    pub(crate) all: bool,
}
