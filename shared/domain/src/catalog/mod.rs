//! The catalog: what people declare, as typed documents. `read` parses YAML with line and column in every error.

mod balancers;
mod decode;
mod groups;
mod read;
mod source;
mod ssh;

pub use groups::{Account, Connectivity, ConnectivityCheck, Group, HostGroup, TemporaryHosts};

pub use read::{Document, ReadError, read};
pub use source::Source;
pub use ssh::{HOST_KEY_TYPES, NoAccount, Shell, Ssh};

use crate::{approval::ApprovalRule, event::Severity, flow::Flow, plugin::Plugin};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Project,
    Environment,
    Host,
    Flow,
    Policy,
    Channel,
    Group,
    HostGroup,
    Plugin,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Kind::Project,
        Kind::Environment,
        Kind::Host,
        Kind::Flow,
        Kind::Policy,
        Kind::Channel,
        Kind::Group,
        Kind::HostGroup,
        Kind::Plugin,
    ];
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Project => "project",
            Kind::Environment => "environment",
            Kind::Host => "host",
            Kind::Flow => "flow",
            Kind::Policy => "policy",
            Kind::Channel => "channel",
            Kind::Group => "group",
            Kind::HostGroup => "host_group",
            Kind::Plugin => "plugin",
        }
    }
}

/// What is released. Rights hang on its group.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Project {
    pub name: String,
    pub group: String,
    #[serde(default)]
    pub title: String,
    /// Where `POST /hooks/...` events of this project come from, and what they mean.
    #[serde(default)]
    pub hooks: Hooks,
    /// Values flows read as `values.<key>`; see [`crate::values`] for what wins.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, serde_json::Value>,
    /// Accounts that the steps of its flows may run as, by the name that `account:` of a step gives.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub accounts: BTreeMap<String, Account>,
    /// Where its environments and flows come from, when they live in Git.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// Which sources may post build-ready events. Each signs with the project secret of the same name
/// (`windlass secret set <project>/<secret>`); without that secret every event is refused.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    pub cdevents: Option<HookSource>,
    pub github: Option<HookSource>,
    pub generic: Option<GenericHook>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookSource {
    /// Name of the project secret that signs.
    pub secret: String,
}

/// A source of any shape: CEL expressions over `body` (the JSON) and `headers` pick the artifact's fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenericHook {
    pub secret: String,
    /// CEL, boolean: false means ignored.
    #[serde(default)]
    pub when: Option<String>,
    pub version: String,
    pub url: String,
    pub digest: String,
    #[serde(default)]
    pub commit: Option<String>,
    #[serde(default)]
    pub git_ref: Option<String>,
    #[serde(default)]
    pub committer: Option<String>,
}

/// A stage with its hosts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    pub project: String,
    pub name: String,
    /// Hosts by name, in order; joined with those of `selector`.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Hosts by label, in name order.
    #[serde(default)]
    pub selector: Option<String>,
    /// Hosts by host group, in the order of the groups and in theirs; after `hosts`, before `selector`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Hosts that do not belong to it although `groups` or `selector` bring them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Name of the flow that releases here.
    pub flow: String,
    /// Values flows read as `values.<key>`, and as `env.<key>`.
    #[serde(default)]
    pub values: BTreeMap<String, serde_json::Value>,
    #[serde(default = "default_pool")]
    pub pool: String,
    /// What happens when the agent of a host is not connected as a deployment is planned and started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connectivity: Option<Connectivity>,
    /// The service and the tier it is for. Read from the name when it is applied ([`crate::naming`]), unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// Environments of the project that must have verified an artifact before it may come here: one, or a list of which
    /// all must.
    #[serde(default, deserialize_with = "source::one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub promote_from: Vec<String>,
    /// How long it must have been verified there: `10m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_for: Option<String>,
    /// What `lb.drain` and `lb.attach` speak to here, by name. None: these steps do nothing, and the plan says so.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub load_balancers: BTreeMap<String, crate::traffic::LoadBalancer>,
}

fn default_pool() -> String {
    "default".into()
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    pub name: String,
    /// Name or address that `host.address` resolves to; the control plane dials it only when the host has `ssh`.
    pub address: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Values flows read as `values.<key>` in host steps, and as `host.values.<key>`.
    #[serde(default)]
    pub values: BTreeMap<String, serde_json::Value>,
    /// Small texts of this host alone, which flows read as `host.files.<name>`; at most [`MAX_HOST_FILE_BYTES`] each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// Tasks that may run on it at the same time, of all deployments; [`DEFAULT_MAX_TASKS`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tasks: Option<u32>,
    /// Reached by SSH instead of by an agent that was installed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<Box<Ssh>>,
}

/// Largest file of a host.
pub const MAX_HOST_FILE_BYTES: usize = 64 * 1024;
/// Tasks at the same time on a host that does not say.
pub const DEFAULT_MAX_TASKS: u32 = 4;

/// What must be true before a deployment may run, and what a build-ready event leads to. Every policy whose `match` fits
/// applies; all their approval rules must be met.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    pub name: String,
    #[serde(default, rename = "match")]
    pub matches: PolicyMatch,
    /// Environments to request a deployment to when an artifact of a matched project is registered by an event.
    #[serde(default)]
    pub on_artifact: Vec<String>,
    #[serde(default)]
    pub approvals: Vec<ApprovalRule>,
    /// Approvals are asked for rollbacks too. Off by default: going back to the last known good version must be quick.
    #[serde(default)]
    pub approve_rollbacks: bool,
    /// Seconds a deployment may wait for approval, time and lock before it expires. Default 7 days.
    #[serde(default)]
    pub expires_s: Option<u64>,
    /// May a deployment take in hosts that do not belong to its environment (`--add-host`)?
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temporary_hosts: Option<TemporaryHosts>,
    /// Environments to request a deployment to when an artifact was verified in a matched one. Never for rollbacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_verified: Vec<String>,
    /// A hotfix may come to an environment though the ones it is promoted from have not verified it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hotfix_skips_promotion: bool,
    /// As of an environment; where several apply, the strictest counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connectivity: Option<Connectivity>,
}

/// Empty lists match everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyMatch {
    pub projects: Vec<String>,
    pub environments: Vec<String>,
    /// Tiers of environments: `[online]` fits `online`, `sdk_online` and `online_sdk`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<String>,
}

impl PolicyMatch {
    pub fn fits(&self, environment: &Environment) -> bool {
        let has = |l: &[String], x: &str| l.is_empty() || l.iter().any(|y| y == x);
        has(&self.projects, &environment.project)
            && has(&self.environments, &environment.name)
            && (self.tiers.is_empty() || environment.tier.as_ref().is_some_and(|t| self.tiers.contains(t)))
    }
    pub fn fits_project(&self, project: &str) -> bool {
        self.projects.is_empty() || self.projects.iter().any(|p| p == project)
    }
}

/// Where messages go. Secrets (webhook URLs, passwords, signing keys) are names of channel secrets
/// (`windlass secret set channel/<name>`), never values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    pub name: String,
    pub provider: Provider,
    /// Any rule that fits sends.
    pub rules: Vec<ChannelRule>,
    /// MiniJinja template of the text; the provider's default when absent.
    #[serde(default)]
    pub template: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Provider {
    /// `url`: name of the channel secret that holds the incoming-webhook URL. Likewise below.
    Slack {
        url: String,
    },
    Feishu {
        url: String,
        #[serde(default)]
        sign: Option<String>,
    },
    Dingtalk {
        url: String,
        #[serde(default)]
        sign: Option<String>,
    },
    Wecom {
        url: String,
    },
    Teams {
        url: String,
    },
    /// Standard Webhooks; `sign` names the secret `whsec_...`.
    Webhook {
        url: String,
        sign: String,
    },
    Email {
        /// `host:port`.
        server: String,
        #[serde(default)]
        tls: SmtpTls,
        from: String,
        to: Vec<String>,
        #[serde(default)]
        username: Option<String>,
        /// Name of the channel secret.
        #[serde(default)]
        password: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SmtpTls {
    #[default]
    Starttls,
    Implicit,
    /// Only for relays on a trusted wire.
    None,
}

/// Empty lists match everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelRule {
    #[serde(default)]
    pub projects: Vec<String>,
    #[serde(default)]
    pub environments: Vec<String>,
    /// Event names (`deployment.failed`) or prefixes ending in `.` or `*`.
    #[serde(default)]
    pub events: Vec<String>,
    /// This loud or louder.
    #[serde(default = "default_severity")]
    pub severity: Severity,
}

fn default_severity() -> Severity {
    Severity::Notice
}

/// Any catalogued thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Item {
    Project(Project),
    Environment(Environment),
    Host(Host),
    /// Belongs to a project; the same name may stand in many.
    Flow {
        project: String,
        flow: Flow,
        source: String,
    },
    Policy(Policy),
    Channel(Channel),
    Group(Group),
    HostGroup(HostGroup),
    /// One version of a plugin.
    Plugin(Plugin),
}

impl Item {
    pub fn kind(&self) -> Kind {
        match self {
            Item::Project(_) => Kind::Project,
            Item::Environment(_) => Kind::Environment,
            Item::Host(_) => Kind::Host,
            Item::Flow { .. } => Kind::Flow,
            Item::Policy(_) => Kind::Policy,
            Item::Channel(_) => Kind::Channel,
            Item::Group(_) => Kind::Group,
            Item::HostGroup(_) => Kind::HostGroup,
            Item::Plugin(_) => Kind::Plugin,
        }
    }
    /// `name`, `project/name` for what belongs to a project, `name@version` for a plugin.
    pub fn key(&self) -> String {
        match self {
            Item::Project(p) => p.name.clone(),
            Item::Environment(e) => format!("{}/{}", e.project, e.name),
            Item::Host(h) => h.name.clone(),
            Item::Flow { project, flow, .. } => format!("{project}/{}", flow.name),
            Item::Policy(p) => p.name.clone(),
            Item::Channel(c) => c.name.clone(),
            Item::Group(g) => g.name.clone(),
            Item::HostGroup(g) => g.name.clone(),
            Item::Plugin(p) => p.key(),
        }
    }
    /// The project it belongs to; `None` for global things.
    pub fn project(&self) -> Option<&str> {
        match self {
            Item::Project(p) => Some(&p.name),
            Item::Environment(e) => Some(&e.project),
            Item::Flow { project, .. } => Some(project),
            Item::Host(_)
            | Item::Policy(_)
            | Item::Channel(_)
            | Item::Group(_)
            | Item::HostGroup(_)
            | Item::Plugin(_) => None,
        }
    }
}
