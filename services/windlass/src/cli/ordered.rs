//! Arguments of the commands about releases in order: bundles, promotion, history, and projects that live in Git.

use clap::{Args, Subcommand};
use std::path::PathBuf;
use uuid::Uuid;

#[derive(Debug, Subcommand)]
pub(crate) enum BundleCommand {
    /// Request several releases as one
    Create {
        /// YAML file with `title` and `members`, `-` for standard input
        #[arg(long, short, value_name = "FILE")]
        file: PathBuf,
    },
    List {
        #[arg(long)]
        state: Option<String>,
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Show a bundle with its members and what each waits for
    Show {
        id: Uuid,
    },
    /// Approve the plans of all members at once
    Approve(BundleDecideArgs),
    Reject(BundleDecideArgs),
    /// Start no further member; what runs goes to its end
    Cancel(BundleReasonArgs),
    /// Start no further member until resumed
    Pause(BundleReasonArgs),
    Resume {
        id: Uuid,
    },
    /// Failed members again
    Retry {
        id: Uuid,
        /// Only these; may be given many times
        #[arg(long = "member", value_name = "NAME")]
        members: Vec<String>,
    },
    /// Go on without a member
    Skip {
        id: Uuid,
        member: String,
        /// Why; shown in the audit trail
        #[arg(long, short)]
        reason: String,
    },
    /// Go back, together in the reverse order of success, or only some members
    Rollback {
        id: Uuid,
        /// Only these; may be given many times
        #[arg(long = "member", value_name = "NAME")]
        members: Vec<String>,
        /// Switch and restart only: skip drain and test
        #[arg(long)]
        emergency: bool,
        /// Why; shown in the audit trail
        #[arg(long, short, default_value = "")]
        reason: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BundleReasonArgs {
    /// Bundle id
    pub(crate) id: Uuid,
    /// Why; shown in the audit trail
    #[arg(long, short, default_value = "")]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct BundleDecideArgs {
    /// Bundle id
    pub(crate) id: Uuid,
    /// Digest of the bundle that was looked at; without it the bundle is shown and its digest is sent
    #[arg(long)]
    pub(crate) digest: Option<String>,
    #[arg(long, short, default_value = "")]
    pub(crate) comment: String,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    /// Project
    pub(crate) project: String,
    /// Environment whose last known good version is taken
    #[arg(long, required_unless_present = "board", requires = "to")]
    pub(crate) from: Option<String>,
    /// Environment to bring it to
    #[arg(long, requires = "from")]
    pub(crate) to: Option<String>,
    /// Only show what was verified where
    #[arg(long, conflicts_with_all = ["from", "to"])]
    pub(crate) board: bool,
    #[arg(long, default_value = "")]
    pub(crate) note: String,
    #[command(flatten)]
    pub(crate) wait: super::WaitArgs,
}

/// `windlass flow history|diff|revert`; other kinds of catalog items too.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// <project>/<flow>
    pub(crate) key: String,
    /// Kind of the item
    #[arg(long, default_value = "flow")]
    pub(crate) kind: String,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    pub(crate) item: HistoryArgs,
    /// Revision; the one before `to` when not given
    pub(crate) from: Option<u64>,
    /// Revision; the newest when not given
    pub(crate) to: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct RevertArgs {
    #[command(flatten)]
    pub(crate) item: HistoryArgs,
    /// Revision whose content becomes the newest
    pub(crate) revision: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FlowCommand {
    /// Read flow files and tell all that is wrong with them; needs no server
    Check(FlowCheckArgs),
    /// Print the JSON Schema of the flow language, by which editors complete it; needs no server
    Schema,
    /// Who saved it when
    History(HistoryArgs),
    /// What changed between two revisions
    Diff(DiffArgs),
    /// Save the content of an old revision as the newest
    Revert(RevertArgs),
}

#[derive(Debug, Args)]
pub(crate) struct FlowCheckArgs {
    /// YAML files: a flow alone or documents as `apply` takes them, `-` for standard input
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<std::path::PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SourceCommand {
    /// How the project's Git repository stands
    Status { project: String },
    /// Look at it now
    Refresh { project: String },
}
