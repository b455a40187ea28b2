//! Groups of projects and of hosts, and the small declarations that environments, policies and projects share.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A project group: values that all its projects have. A group needs no document; one is written to give it values.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    pub name: String,
    #[serde(default)]
    pub title: String,
    /// The outermost scope of `values.<key>`.
    #[serde(default)]
    pub values: BTreeMap<String, serde_json::Value>,
}

/// Hosts under one name, for environments to take in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostGroup {
    pub name: String,
    #[serde(default)]
    pub title: String,
    /// In the order they are released to.
    pub hosts: Vec<String>,
}

/// An execution account: what `account: <name>` of a step means in this project.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// User on the hosts; their agents' policies must allow it (`run_as`).
    pub user: String,
    /// Name of the secret that holds its SSH key, for hosts reached over SSH that name this account and no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_key: Option<String>,
    /// On such hosts: become root by `sudo -n`, unless the host says otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sudo: bool,
}

/// Whether deployments may take in hosts from outside of their environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemporaryHosts {
    Allow,
    Deny,
}

/// What to do about hosts whose agent has not been heard lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connectivity {
    pub check: ConnectivityCheck,
    /// Seconds of silence after which an agent counts as not connected.
    #[serde(default = "default_within")]
    pub within_s: u32,
}

fn default_within() -> u32 {
    30
}

/// From the mildest to the strictest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectivityCheck {
    /// The plan has them, and an event of severity Alert says so.
    Alert,
    /// They are left out of the plan, which says so.
    Skip,
    /// There is no plan: a request is refused, a queued deployment waits.
    Refuse,
}

impl Connectivity {
    /// The stricter of two: the sterner check, and of equal ones the shorter silence.
    pub fn stricter(self, other: Connectivity) -> Connectivity {
        match self.check.cmp(&other.check) {
            std::cmp::Ordering::Less => other,
            std::cmp::Ordering::Greater => self,
            std::cmp::Ordering::Equal => Connectivity { within_s: self.within_s.min(other.within_s), ..self },
        }
    }
}
