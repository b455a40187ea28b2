//! Traffic: load balancers as the catalog has them, what a plan makes of them for a rollout, and where a task's host stands
//! with them.
//!
//! `lb.drain` steps lead a rollout's host steps and `lb.attach` steps end them (the parser sees to it); they are not part of
//! the host's task. The executor carries a host through *drain, task, attach*: it takes the host off every load balancer and
//! waits until its connections have gone, then offers the task, and when the task is settled (however) brings the host back. Both
//! directions can be repeated without harm, so a new owner simply does again what [`TaskTraffic`] says was begun. An
//! unknown host stays off until it settles or a person answers for it, and is brought back then.

use crate::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

mod check;

pub use check::{MEMBER_RULE, Times, is_member};

/// A load balancer of an environment. Keys that do not belong are told by [`LoadBalancer::problems`]' caller, as serde
/// cannot where a kind is flattened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadBalancer {
    #[serde(flatten)]
    pub kind: Kind,
    /// What a host is called there: a template that may read `host`; the host's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Members that must stay healthy while one is taken off: `3` or `50%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_healthy: Option<String>,
    /// How long connections may take to go: `60s` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<String>,
    /// What happens when they have not gone by then.
    #[serde(default)]
    pub on_drain_timeout: OnDrainTimeout,
    /// How long a member may take to be up again: `60s` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach_timeout: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDrainTimeout {
    /// The host fails before anything ran on it, and is brought back.
    #[default]
    Fail,
    /// Its last connections are cut.
    GoOn,
}

/// What kind it is and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "an environment has a handful of load balancers")]
pub enum Kind {
    /// `HAProxy`'s runtime API. Each endpoint (`tcp://host:port`, `unix:///path` on the executor's machine) is one `HAProxy`; all are told.
    Haproxy { endpoints: Vec<String>, backend: String },
    /// nginx on a host with an agent: `file` holds the upstream's `server` lines and belongs to Windlass.
    Nginx {
        host: String,
        file: String,
        /// The command that checks, `nginx -t` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        test: Option<Vec<String>>,
        /// The command that takes the new file into use, `nginx -s reload` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reload: Option<Vec<String>>,
        /// nginx's pid file, `/run/nginx.pid` when absent: by its workers one sees that the new file is in use.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<String>,
        /// Port of the members as it stands in the file, where the member's name has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
    },
    /// Any HTTP API, spoken to by the executor.
    Http {
        drain: HttpCall,
        attach: HttpCall,
        /// Asked until `drained` (or `up`) is true.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<HttpCall>,
        /// CEL over `json` and `status`: connections have gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drained: Option<String>,
        /// CEL over `json` and `status`: the member is up.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        up: Option<String>,
        /// CEL over `json` and `status`: how many members are healthy.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        healthy: Option<String>,
    },
    /// A command on a host with an agent, called with `drain <member>`, `attach <member>`. It ends when it is done.
    Command { host: String, run: Vec<String> },
}

/// One call of an HTTP API. Texts may hold `{member}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpCall {
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

/// A load balancer in the plan of a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanTraffic {
    /// Its name in the environment.
    pub name: String,
    #[serde(flatten)]
    pub kind: Kind,
    /// What each host of the rollout is called there, by index in the plan's hosts.
    #[serde(deserialize_with = "by_index")]
    pub members: BTreeMap<u32, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_healthy: Option<Share>,
    pub drain_timeout_s: u32,
    pub on_drain_timeout: OnDrainTimeout,
    pub attach_timeout_s: u32,
}

/// Keys of JSON objects are texts, and where documents are flattened serde does not turn them into numbers by itself.
fn by_index<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BTreeMap<u32, String>, D::Error> {
    let named = BTreeMap::<String, String>::deserialize(from)?;
    let index = |(k, v): (String, String)| Ok((k.parse().map_err(serde::de::Error::custom)?, v));
    named.into_iter().map(index).collect()
}

/// A number of members, or a part of all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    Count(u32),
    /// Of all members, rounded up.
    Percent(u32),
}

/// Where the host of a task stands with the rollout's load balancers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskTraffic {
    pub state: TrafficState,
    pub since: Timestamp,
    /// What it waits for, or what went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrafficState {
    /// Being taken off; the task is not offered yet.
    Draining,
    /// Off; the task may be offered.
    Drained,
    /// Could not be taken off, so the task is not offered; being brought back.
    DrainFailed,
    /// The task is settled; being brought back.
    Attaching,
    Attached,
    /// It did not come back in time; the host counts as failed.
    AttachFailed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::PlanStepKind;

    /// As it lies in the database: inside of a tagged step.
    #[test]
    fn a_plan_with_load_balancers_reads_back() {
        let kinds = [
            serde_json::json!({ "kind": "haproxy", "endpoints": ["tcp://lb:9999"], "backend": "shop" }),
            serde_json::json!({ "kind": "nginx", "host": "lb", "file": "/etc/nginx/shop.conf", "port": 8080, "pid": "/run/x" }),
            serde_json::json!({ "kind": "http", "drain": { "url": "http://lb/d" }, "attach": { "url": "http://lb/a" } }),
            serde_json::json!({ "kind": "command", "host": "lb", "run": ["/bin/pool"] }),
        ];
        for kind in kinds {
            let traffic = PlanTraffic {
                name: "front".into(),
                kind: serde_json::from_value(kind).expect("a kind"),
                members: [(0, "a".to_owned()), (17, "b".to_owned())].into(),
                min_healthy: Some(Share::Percent(50)),
                drain_timeout_s: 60,
                on_drain_timeout: OnDrainTimeout::GoOn,
                attach_timeout_s: 60,
            };
            let step = serde_json::json!({
                "kind": "rollout", "waves": [[0, 17]], "confirm": "none", "bake_s": 0, "max_failures": 0, "parallel": 0,
                "steps": [], "traffic": [traffic],
            });
            let PlanStepKind::Rollout(read) = serde_json::from_value(step).expect("reads") else { panic!("a rollout") };
            assert_eq!(read.traffic, [traffic]);
        }
    }
}
