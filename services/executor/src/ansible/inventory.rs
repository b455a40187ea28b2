//! What Ansible is told of the plan's hosts: an inventory with their labels as groups, and an SSH configuration in which every
//! host's key is pinned.

use std::{collections::BTreeMap, fmt::Write};
use windlass_domain::catalog::Ssh;

/// A host of the plan; `ssh` is absent where commands run on the executor's own machine.
#[derive(Debug)]
pub(super) struct Host<'a> {
    pub(super) name: &'a str,
    pub(super) labels: &'a BTreeMap<String, String>,
}

/// The inventory as JSON, which is YAML: Ansible's `yaml` plugin reads it.
pub(super) fn inventory(hosts: &[Host<'_>], connection: &str) -> String {
    let mut groups: BTreeMap<String, BTreeMap<&str, ()>> = BTreeMap::new();
    for h in hosts {
        for (k, v) in h.labels {
            groups.entry(group(k, v)).or_default().insert(h.name, ());
        }
    }
    let member = |names: &BTreeMap<&str, ()>| names.keys().map(|n| ((*n).to_owned(), serde_json::json!({}))).collect();
    let children: serde_json::Map<String, serde_json::Value> = groups
        .iter()
        .map(|(g, names)| {
            let members: serde_json::Map<String, serde_json::Value> = member(names);
            (g.clone(), serde_json::json!({ "hosts": members }))
        })
        .collect();
    let all: serde_json::Map<String, serde_json::Value> =
        hosts.iter().map(|h| (h.name.to_owned(), serde_json::json!({}))).collect();
    let vars = serde_json::json!({ "ansible_connection": connection, "ansible_python_interpreter": "auto_silent" });
    serde_json::json!({ "all": { "hosts": all, "vars": vars, "children": children } }).to_string()
}

/// `role: web` is the group `role_web`; what Ansible takes in no name is `_`.
fn group(key: &str, value: &str) -> String {
    let name: String =
        format!("{key}_{value}").chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
}

/// What the path of a control socket begins with, below the run's directory.
pub(super) const CONTROL: &str = "control-";
/// Longest path of a control socket: a socket's address holds 107 bytes, and OpenSSH makes it under a name 17 bytes longer.
const MAX_CONTROL: usize = 90;

/// `ssh_config` with one block a host. The catalog has checked that addresses, accounts and names hold no spaces; `dir` is
/// where `known_hosts` and the keys `key-<host>` are. A host's tasks share one connection, which would stay for some seconds after
/// the last one: `super::close` ends it. Where the path is too long for a socket, each has its own.
pub(super) fn ssh_config(hosts: &BTreeMap<String, (String, Ssh)>, dir: &str) -> String {
    let mut out = String::new();
    let shared = format!("{dir}/{CONTROL}{}", hosts.len()).len() <= MAX_CONTROL;
    for (i, (name, (address, ssh))) in hosts.iter().enumerate() {
        let address = ssh.address.as_deref().unwrap_or(address);
        let _ = write!(
            out,
            "Host {name}\n  HostName {address}\n  HostKeyAlias {name}\n  Port {}\n  User {}\n  IdentityFile \"{dir}/key-{name}\"\n",
            ssh.port, ssh.account
        );
        if let Some(jump) = &ssh.jump {
            let _ = writeln!(out, "  ProxyJump {jump}");
        }
        if shared {
            let _ = writeln!(out, "  ControlMaster auto\n  ControlPersist 30\n  ControlPath \"{dir}/{CONTROL}{i}\"");
        }
    }
    let _ = write!(
        out,
        "Host *\n  UserKnownHostsFile \"{dir}/known_hosts\"\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  \
         IdentitiesOnly yes\n  IdentityAgent none\n  BatchMode yes\n  ConnectTimeout 15\n  ControlMaster no\n"
    );
    out
}

pub(super) fn known_hosts(hosts: &BTreeMap<String, (String, Ssh)>) -> String {
    let keys = hosts.iter().flat_map(|(name, (_, ssh))| {
        ssh.host_key.lines().map(str::trim).filter(|l| !l.is_empty()).map(move |key| format!("{name} {key}\n"))
    });
    keys.collect()
}

/// A file of variables whose texts Ansible takes as they are: without `!unsafe` it would evaluate `{{ }}` in a value.
pub(super) fn variables(vars: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    for (name, value) in vars {
        let _ = write!(out, "{name}: !unsafe \"");
        for c in value.chars() {
            let _ = match c {
                '"' | '\\' => write!(out, "\\{c}"),
                ' '..='~' => write!(out, "{c}"),
                c => write!(out, "\\U{:08x}", u32::from(c)),
            };
        }
        out.push_str("\"\n");
    }
    // An empty file is not a map.
    if out.is_empty() { "{}\n".into() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_groups_and_values_stay_text() {
        let labels = BTreeMap::from([("role".into(), "web-1".into()), ("9".into(), "x".into())]);
        let text = inventory(&[Host { name: "h1", labels: &labels }], "ssh");
        let v: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert!(v["all"]["children"]["role_web_1"]["hosts"]["h1"].is_object(), "{text}");
        assert!(v["all"]["children"]["_9_x"].is_object(), "{text}");
        let vars = BTreeMap::from([("a".to_owned(), "{{ x }}\"\\\n\u{7f}é".to_owned())]);
        assert_eq!(variables(&vars), "a: !unsafe \"{{ x }}\\\"\\\\\\U0000000a\\U0000007f\\U000000e9\"\n");
    }
}
