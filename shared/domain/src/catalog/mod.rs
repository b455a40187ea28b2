//! The catalog: what people declare, as typed documents. `read` parses YAML with line and column in every error.

mod decode;
mod read;

pub use read::{Document, ReadError, read};

use crate::{approval::ApprovalRule, event::Severity, flow::Flow};
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
}

impl Kind {
    pub const ALL: [Kind; 6] = [Kind::Project, Kind::Environment, Kind::Host, Kind::Flow, Kind::Policy, Kind::Channel];
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Project => "project",
            Kind::Environment => "environment",
            Kind::Host => "host",
            Kind::Flow => "flow",
            Kind::Policy => "policy",
            Kind::Channel => "channel",
        }
    }
}

/// What is released. Rights hang on its group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Project {
    pub name: String,
    pub group: String,
    #[serde(default)]
    pub title: String,
    /// Where `POST /hooks/...` events of this project come from, and what they mean.
    #[serde(default)]
    pub hooks: Hooks,
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Name of the flow that releases here.
    pub flow: String,
    /// Values flows read as `env.<key>`.
    #[serde(default)]
    pub values: BTreeMap<String, serde_json::Value>,
    #[serde(default = "default_pool")]
    pub pool: String,
}

fn default_pool() -> String {
    "default".into()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    pub name: String,
    /// Name or address that `host.address` resolves to; the control plane itself never dials it.
    pub address: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Values flows read as `host.values.<key>`.
    #[serde(default)]
    pub values: BTreeMap<String, serde_json::Value>,
}

/// What must be true before a deployment may run, and what a build-ready event leads to. Every policy whose `match` fits
/// applies; all their approval rules must be met.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
}

/// Empty lists match everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyMatch {
    pub projects: Vec<String>,
    pub environments: Vec<String>,
}

impl PolicyMatch {
    pub fn fits(&self, project: &str, environment: &str) -> bool {
        let has = |l: &[String], x: &str| l.is_empty() || l.iter().any(|y| y == x);
        has(&self.projects, project) && has(&self.environments, environment)
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
        }
    }
    /// `name`, or `project/name` for what belongs to a project.
    pub fn key(&self) -> String {
        match self {
            Item::Project(p) => p.name.clone(),
            Item::Environment(e) => format!("{}/{}", e.project, e.name),
            Item::Host(h) => h.name.clone(),
            Item::Flow { project, flow, .. } => format!("{project}/{}", flow.name),
            Item::Policy(p) => p.name.clone(),
            Item::Channel(c) => c.name.clone(),
        }
    }
    /// The project it belongs to; `None` for global things.
    pub fn project(&self) -> Option<&str> {
        match self {
            Item::Project(p) => Some(&p.name),
            Item::Environment(e) => Some(&e.project),
            Item::Flow { project, .. } => Some(project),
            Item::Host(_) | Item::Policy(_) | Item::Channel(_) => None,
        }
    }
}
