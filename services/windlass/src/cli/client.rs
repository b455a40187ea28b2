//! Arguments of the client commands.

use clap::{Args, Subcommand};
use std::path::PathBuf;
use uuid::Uuid;

#[derive(Debug, Args)]
pub(crate) struct IdArgs {
    /// Deployment id
    pub(crate) id: Uuid,
}

#[derive(Debug, Args)]
pub(crate) struct ReasonArgs {
    /// Deployment id
    pub(crate) id: Uuid,
    /// Why; shown in the audit trail
    #[arg(long, short, default_value = "")]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct HostsArgs {
    /// Deployment id
    pub(crate) id: Uuid,
    /// Only these hosts; may be given many times
    #[arg(long = "host", value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
}

/// What `windlass hosts` does besides listing them.
#[derive(Debug, Subcommand)]
pub(crate) enum HostsCommand {
    /// Show the SSH keys that a host presents to this machine, for a person to compare and pin as `ssh.host_key`
    ScanKey(ScanKeyArgs),
    /// Let a host take no new tasks; what runs there goes on
    Lock {
        /// Host
        host: String,
        /// Why; shown to whoever waits for the host
        #[arg(long, short)]
        reason: String,
    },
    /// Let a locked host take tasks again
    Unlock {
        /// Host
        host: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ScanKeyArgs {
    /// A host of the catalog, or an address
    pub(crate) host: String,
    #[arg(long)]
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Args)]
pub(crate) struct HostsReasonArgs {
    /// Deployment id
    pub(crate) id: Uuid,
    /// These hosts; may be given many times
    #[arg(long = "host", value_name = "HOST", required = true)]
    pub(crate) hosts: Vec<String>,
    /// Why; shown in the audit trail
    #[arg(long, short)]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct ConfirmArgs {
    /// Deployment id
    pub(crate) id: Uuid,
    /// Number of the wave, as `status` shows it
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) wave: u32,
}

#[derive(Debug, Args)]
pub(crate) struct ChooseArgs {
    /// Deployment id
    pub(crate) id: Uuid,
    /// The step whose expression failed, as `status` shows it
    pub(crate) step: String,
    /// One of the branches that `status` names
    pub(crate) branch: String,
}

#[derive(Debug, Args)]
pub(crate) struct AcceptArgs {
    /// Deployment id
    pub(crate) id: Uuid,
    /// Digest of the plan you read, as `status` shows it; the server refuses any other
    #[arg(long)]
    pub(crate) digest: String,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Wait for the end; exit 1 when it is not a success
    #[arg(long, short)]
    pub(crate) wait: bool,
    /// Wait, showing events and logs as they come
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Give up waiting after so many seconds (exit 5); the deployment goes on
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub(crate) timeout: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// YAML file with catalog documents, `-` for standard input; may be given many times
    #[arg(long = "file", short, value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Only show what would change
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// project, environment, host, flow, policy, channel, group, `host_group` or plugin
    #[arg(value_parser = ["project", "environment", "host", "flow", "policy", "channel", "group", "host_group", "plugin"])]
    pub(crate) kind: String,
    /// Name, or project/name for environments and flows; all of the kind when not given
    pub(crate) key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    /// Project
    pub(crate) project: String,
    /// Version of the artifact
    #[arg(long)]
    pub(crate) version: String,
    /// The package (.tar.gz): its digest and size are computed here; without --url, hosts read it by this path
    #[arg(long, value_name = "FILE", required_unless_present = "url")]
    pub(crate) file: Option<PathBuf>,
    /// Where hosts fetch the package
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// sha256:<64 hex digits>; required with --url when no --file is given
    #[arg(long, required_unless_present = "file")]
    pub(crate) digest: Option<String>,
    /// Commit it was built from
    #[arg(long)]
    pub(crate) commit: Option<String>,
    /// Branch or tag it was built from
    #[arg(long = "ref", value_name = "REF")]
    pub(crate) git_ref: Option<String>,
    #[arg(long)]
    pub(crate) committer: Option<String>,
    /// Link to the build
    #[arg(long, value_name = "URL")]
    pub(crate) build_url: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// Project
    pub(crate) project: String,
    /// Environment
    pub(crate) environment: String,
    #[command(flatten)]
    pub(crate) ask: super::AskArgs,
    /// Only these hosts of the environment; may be given many times
    #[arg(long = "host", visible_alias = "hosts", value_name = "HOST", value_delimiter = ',')]
    pub(crate) hosts: Vec<String>,
    /// A hotfix: may pass where the policy does not ask it to be promoted; say why with --note
    #[arg(long, requires = "note")]
    pub(crate) hotfix: bool,
    /// Start not before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub(crate) at: Option<chrono::DateTime<chrono::Utc>>,
    #[arg(long, default_value = "")]
    pub(crate) note: String,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// `name=value`; the value is read as JSON where it is JSON, as text otherwise.
pub(crate) fn input(s: &str) -> Result<(String, serde_json::Value), String> {
    let (k, v) = s.split_once('=').ok_or("write NAME=VALUE")?;
    let v = match serde_json::from_str::<serde_json::Value>(v) {
        Ok(v @ (serde_json::Value::Bool(_) | serde_json::Value::Number(_))) => v,
        _ => serde_json::Value::String(v.trim_matches('"').to_owned()),
    };
    Ok((k.to_owned(), v))
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Deployment id; the newest deployments when not given
    pub(crate) id: Option<Uuid>,
    #[arg(long)]
    pub(crate) project: Option<String>,
    #[arg(long)]
    pub(crate) environment: Option<String>,
    /// Only environments of this tier
    #[arg(long)]
    pub(crate) tier: Option<String>,
    #[arg(long)]
    pub(crate) state: Option<String>,
    /// How many
    #[arg(long, default_value_t = 20)]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
    /// With --wait: be content with this state (scheduled, queued, paused ...)
    #[arg(long, value_name = "STATE")]
    pub(crate) until: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DecideArgs {
    /// Deployment id
    pub(crate) id: Uuid,
    /// Digest of the plan that was looked at; without it the plan is shown and its digest is sent
    #[arg(long)]
    pub(crate) digest: Option<String>,
    #[arg(long, short, default_value = "")]
    pub(crate) comment: String,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Deployment id
    pub(crate) id: Uuid,
    /// Go on until the deployment ends
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only this host
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Only this step
    #[arg(long)]
    pub(crate) step: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct EnrollArgs {
    /// Name of the host, as catalogued
    pub(crate) host: String,
    /// The host has an agent already: it is revoked when the token is used
    #[arg(long)]
    pub(crate) replace: bool,
    /// Print the token alone
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Verify an export offline, with the auditor's public key
    Verify {
        /// File written by `audit export`
        export: PathBuf,
        /// File that holds the auditor's public key (`audit checkpoint --key`)
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// A checkpoint kept from before, which this export must continue
        #[arg(long, value_name = "FILE")]
        since: Option<PathBuf>,
    },
    /// Write the audit trail as NDJSON
    Export {
        /// File to write; standard output when not given
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Also write the auditor's public key to this file
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Show the newest signed checkpoint
    Checkpoint {
        /// Show the auditor's public key instead
        #[arg(long)]
        key: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; it is shown once
    Create {
        person: String,
        #[arg(long, default_value = "")]
        label: String,
        /// Only these permissions; all the person has when not given
        #[arg(long = "scope", value_name = "PERMISSION")]
        scopes: Vec<String>,
        /// Only this project
        #[arg(long)]
        project: Option<String>,
        /// Days until it expires
        #[arg(long, value_name = "DAYS")]
        days: Option<u32>,
        /// Print the token alone
        #[arg(long, short)]
        quiet: bool,
    },
    List,
    Revoke {
        id: Uuid,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PersonCommand {
    Create {
        name: String,
        /// Name to show
        #[arg(long)]
        display: Option<String>,
    },
    /// Give a role on a project group
    Grant {
        name: String,
        /// viewer, developer, approver, operator or admin
        #[arg(value_parser = ["viewer", "developer", "approver", "operator", "admin"])]
        role: String,
        /// Project group; `*` is every group
        #[arg(long, default_value = "*")]
        group: String,
    },
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Store a secret; its value is read from standard input or a file, never from the command line
    Set {
        /// `<project>/<name>`, `<project>/<environment>/<name>`, `host/<host>/<name>`, `group/<group>/<name>`, or
        /// `channel/<name>`
        name: String,
        /// Read the value from this file
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// The value is kept in Vault and fetched when it is used: `<mount>/<path>#<key>`
        #[arg(long, value_name = "PLACE", conflicts_with = "from")]
        vault: Option<String>,
    },
    /// Remove a secret
    Remove {
        /// As for `set`
        name: String,
    },
    /// Names of the stored secrets
    List,
}

#[derive(Debug, Args)]
pub(crate) struct TriggersArgs {
    #[arg(long)]
    pub(crate) project: Option<String>,
    #[arg(long, default_value_t = 20)]
    pub(crate) limit: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NotificationsCommand {
    List {
        /// pending, sent or dead
        #[arg(long)]
        state: Option<String>,
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Send a dead notification again
    Retry { id: Uuid },
}

#[cfg(test)]
mod tests {
    use super::input;

    #[test]
    fn inputs_are_read_by_their_look() {
        assert_eq!(input("a=true"), Ok(("a".into(), true.into())));
        assert_eq!(input("a=3"), Ok(("a".into(), 3.into())));
        assert_eq!(input("a=\"3\""), Ok(("a".into(), "3".into())));
        assert_eq!(input("a=x=y"), Ok(("a".into(), "x=y".into())));
        assert!(input("a").is_err());
    }
}
