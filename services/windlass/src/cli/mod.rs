//! The command line: every sub-command with its arguments. What they do is in `up`, `service` and `client`.

mod client;
mod ordered;
mod plan;
mod server;
mod step_in;

pub(crate) use client::*;
pub(crate) use ordered::*;
pub(crate) use plan::*;
pub(crate) use server::*;
pub(crate) use step_in::*;

use clap::{Parser, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Parser)]
#[command(
    name = "windlass",
    version,
    about = "Release orchestrator: from \"CI says it is ready\" to \"it runs on every host\"",
    after_help = crate::exit::HELP,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How client commands reach the api.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Connection {
    /// Address of the api: scheme, host and port
    #[arg(long, global = true, env = "WINDLASS_SERVER", value_name = "URL", help_heading = "Connection")]
    pub(crate) server: Option<String>,
    /// Bearer token; prefer --token-file, an argument is visible to other users of the machine
    #[arg(
        long,
        global = true,
        env = "WINDLASS_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = "Connection"
    )]
    pub(crate) token: Option<String>,
    /// File that holds the bearer token
    #[arg(long, global = true, env = "WINDLASS_TOKEN_FILE", value_name = "FILE", help_heading = "Connection")]
    pub(crate) token_file: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long, global = true, help_heading = "Connection")]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything in one process: five services, embedded database, a NATS server as child
    Up(UpArgs),
    /// Stop what `up` started, by process id
    Down(StateArgs),
    /// Run the api service
    Api(ServiceArgs),
    /// Run the scheduler service
    Scheduler(ServiceArgs),
    /// Run the executor service
    Executor(ServiceArgs),
    /// Run the notifier service
    Notifier(ServiceArgs),
    /// Run the auditor service
    Auditor(ServiceArgs),
    /// Prepare a scaled installation: keys, NATS configuration and credentials, database schema
    Init(InitArgs),
    /// Tell a database that it was put back from a backup, before services are started on it: nothing goes on by itself
    Restored(RestoredArgs),

    /// Save catalog documents: projects, environments, hosts, flows, policies, channels
    Apply(ApplyArgs),
    /// Show catalog items
    Get(GetArgs),
    /// Register an artifact, so that it can be deployed
    Release(ReleaseArgs),
    /// Request a deployment
    Deploy(DeployArgs),
    /// Show deployments, or one with its waves and hosts
    Status(StatusArgs),
    /// Show the plan of a deployment, or what a request would do without making it
    Plan(PlanArgs),
    /// Show the values that steps read, and which scope each comes from
    Explain(ExplainArgs),
    /// Show hosts that do not have what was released to them
    Drift(DriftArgs),
    /// Approve a deployment's plan
    Approve(DecideArgs),
    /// Reject a deployment's plan
    Reject(DecideArgs),
    /// Cancel a deployment that has not started
    Cancel(ReasonArgs),
    /// Show a deployment's log
    Logs(LogsArgs),
    /// Answer for what a deployment waits for: nobody else steps in until you give it back
    Claim(ClaimArgs),
    /// Give a claim back
    Unclaim(IdArgs),
    /// New attempt of what failed, at the step that failed; takes up again what ended failed or aborted
    Retry(RetryArgs),
    /// New attempt of the failed hosts, after the step that failed
    Skip(HostsArgs),
    /// Go on as if the failed hosts were well
    Ignore(HostsReasonArgs),
    /// Take hosts out of a deployment
    Exclude(HostsReasonArgs),
    /// Stop hosts that run; they count as stopped by hand
    Stop(HostsReasonArgs),
    /// Stop a central step that runs, and call it failed
    Fail(FailArgs),
    /// Call a failed step, or failed hosts, well
    Succeed(SucceedArgs),
    /// Start no further host until resumed
    Pause(ReasonArgs),
    /// Go on after a pause
    Resume(IdArgs),
    /// Confirm a wave that waits for a person
    Confirm(ConfirmArgs),
    /// Decide what an expression of a flow could not: a gateway's branch, or whether a step runs
    Choose(ChooseArgs),
    /// Accept a plan that changed after it was asked for, where nobody has to approve it
    Accept(AcceptArgs),
    /// Stop a running deployment
    Abort(ReasonArgs),
    /// Go back to a version that was good
    Rollback(RollbackArgs),
    /// Answer for hosts whose state is unknown
    Override(HostsReasonArgs),

    /// Keep automation from releasing to an environment
    #[command(subcommand)]
    Hold(HoldCommand),
    /// Never release a version
    Veto(MarkArgs),
    /// Remove a veto
    Unveto(UnmarkArgs),
    /// Release this version and no other
    Pin(MarkArgs),
    /// Remove a pin
    Unpin(UnmarkArgs),
    /// Show the vetoes, pins and holds of a project
    Marks(MarksArgs),
    /// Carry what is good in one environment to another
    Promote(PromoteArgs),
    /// Several releases as one: ordered, approved and rolled back together
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Flows: check them, their schema, their history and the way back
    #[command(subcommand)]
    Flow(FlowCommand),
    /// Projects that live in Git
    #[command(subcommand)]
    Source(SourceCommand),

    /// List hosts with their agents; lock and unlock them
    Hosts {
        #[command(subcommand)]
        command: Option<HostsCommand>,
    },
    /// Make a one-time token with which an agent enrolls
    Enroll(EnrollArgs),
    /// Verify, export or checkpoint the audit trail
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Make, list and revoke bearer tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Make people and give them roles
    #[command(subcommand)]
    Person(PersonCommand),
    /// Store secrets of projects and channels
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Show what came in through the hooks, and what became of it
    Triggers(TriggersArgs),
    /// Show locks, who holds them and who waits
    Queue,
    /// List notifications, retry dead ones
    #[command(subcommand)]
    Notifications(NotificationsCommand),
    /// Say what is wrong with this installation, or what holds a deployment, and what to do
    Doctor(DoctorArgs),
    /// Print a shell completion script
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Print the api's OpenAPI document
    Openapi,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_contracted_command_exists() {
        let cli = Cli::command();
        let have: Vec<&str> = cli.get_subcommands().map(clap::Command::get_name).collect();
        for want in "up api scheduler executor notifier auditor apply release deploy approve reject plan explain drift cancel status logs retry \
                     skip ignore exclude claim unclaim stop fail succeed hold veto unveto pin unpin marks pause resume confirm choose accept abort rollback override hosts enroll audit token person secret \
                     triggers queue notifications doctor completions openapi"
            .split_whitespace()
        {
            assert!(have.contains(&want), "{want} is missing");
        }
    }

    #[test]
    fn global_options_work_after_the_sub_command() {
        let cli = Cli::try_parse_from(["windlass", "status", "--json", "--server", "http://x"]).expect("parses");
        assert!(cli.connection.json);
        assert_eq!(cli.connection.server.as_deref(), Some("http://x"));
        assert!(Cli::try_parse_from(["windlass", "exclude", "0198", "--reason", "x"]).is_err(), "hosts are required");
    }
}
