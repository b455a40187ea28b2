//! Arguments of the commands with which people step in: claims, retries, forced ends, rollbacks, holds, vetoes, pins, repairs.

use super::WaitArgs;
use clap::{Args, Subcommand};
use uuid::Uuid;

#[derive(Debug, Args)]
pub(crate) struct ClaimArgs {
    /// Deployment id
    pub(crate) id: Uuid,
    /// Take it over from whoever has claimed it; say why with --reason
    #[arg(long, requires = "reason")]
    pub(crate) take_over: bool,
    /// Why; shown in the audit trail
    #[arg(long, short)]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    /// Deployment id
    pub(crate) id: Uuid,
    /// Only these hosts; may be given many times
    #[arg(long = "host", value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
    /// Only this step
    #[arg(long, value_name = "STEP", conflicts_with = "inputs")]
    pub(crate) step: Option<String>,
    /// All hosts of the failed wave from their first step on, those that succeeded too
    #[arg(long, conflicts_with = "inputs")]
    pub(crate) whole_wave: bool,
    /// Go on with another value of this input, NAME=VALUE; the new plan has to be approved. May be given many times
    #[arg(long = "input", short, value_name = "NAME=VALUE", value_parser = super::input, requires = "reason")]
    pub(crate) inputs: Vec<(String, serde_json::Value)>,
    /// Why; shown in the audit trail
    #[arg(long, short)]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct FailArgs {
    /// Deployment id
    pub(crate) id: Uuid,
    /// The step that runs
    #[arg(long, value_name = "STEP")]
    pub(crate) step: String,
    /// Why; shown in the audit trail
    #[arg(long, short)]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct SucceedArgs {
    /// Deployment id
    pub(crate) id: Uuid,
    /// The step that failed
    #[arg(long, value_name = "STEP", required_unless_present = "hosts", conflicts_with = "hosts")]
    pub(crate) step: Option<String>,
    /// Hosts that failed; may be given many times
    #[arg(long = "host", value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
    /// Why; shown in the audit trail
    #[arg(long, short)]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// Deployment id
    pub(crate) id: Uuid,
    /// Switch and restart only: skip drain and test
    #[arg(long)]
    pub(crate) emergency: bool,
    /// A version that was known good here; the last such one when not given
    #[arg(long, value_name = "VERSION")]
    pub(crate) to: Option<String>,
    /// Never release the version that is left again; say why with --reason
    #[arg(long, requires = "reason")]
    pub(crate) veto: bool,
    /// Only hosts that a step of this phase or a later one ran on
    #[arg(long, value_name = "PHASE", value_parser = ["prepare", "pre-release", "release", "post-release"])]
    pub(crate) from_phase: Option<String>,
    /// Why; shown in the audit trail
    #[arg(long, short)]
    pub(crate) reason: Option<String>,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HoldCommand {
    /// Hooks and promotions release nothing here until a person releases it
    Set {
        /// Project
        project: String,
        /// Environment
        environment: String,
        /// Why; shown to whoever meets it
        #[arg(long, short)]
        reason: String,
    },
    /// Let automation release here again
    Release {
        /// Project
        project: String,
        /// Environment
        environment: String,
    },
    /// Show the holds of a project, or of one environment
    Show {
        /// Project
        project: String,
        /// Environment
        environment: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct MarkArgs {
    /// Project
    pub(crate) project: String,
    /// Version of its artifact
    pub(crate) version: String,
    /// Only in this environment; all of the project when not given
    #[arg(long)]
    pub(crate) environment: Option<String>,
    /// Why; shown to whoever meets it
    #[arg(long, short)]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct UnmarkArgs {
    /// Project
    pub(crate) project: String,
    /// Version
    pub(crate) version: String,
    /// The mark of this environment; the one of all environments when not given
    #[arg(long)]
    pub(crate) environment: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct MarksArgs {
    /// Project
    pub(crate) project: String,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct DoctorArgs {
    #[command(subcommand)]
    pub(crate) command: Option<DoctorCommand>,
    #[command(flatten)]
    pub(crate) state: super::StateArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DoctorCommand {
    /// Say what holds a deployment, with the evidence and what to do; changes nothing without --apply
    Run(DoctorRunArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DoctorRunArgs {
    /// Deployment id
    pub(crate) id: Uuid,
    /// Carry out the repairs that it shows
    #[arg(long)]
    pub(crate) apply: bool,
    /// Only the repair of this cause
    #[arg(long, requires = "apply", value_name = "CAUSE")]
    pub(crate) cause: Option<String>,
}
