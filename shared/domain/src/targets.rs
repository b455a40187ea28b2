//! Which hosts a deployment goes to, and in which order: those the environment names, those of its host groups, those its
//! selector fits, then temporary ones.

use crate::{
    catalog::{Environment, Host, HostGroup, TemporaryHosts},
    plan::LeftOut,
    selector::Selector,
};
use std::collections::{BTreeMap, BTreeSet};

/// What a request says about hosts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// Only these; empty means all.
    pub only: &'a [String],
    /// Temporary hosts: catalogued ones that take part though they do not belong to the environment.
    pub add: &'a [String],
    /// Hosts of the environment that take no part.
    pub exclude: &'a [String],
}

/// Where hosts come from.
#[derive(Debug, Clone, Copy)]
pub struct Fleet<'a> {
    pub hosts: &'a BTreeMap<String, Host>,
    pub groups: &'a BTreeMap<String, HostGroup>,
    pub temporary: TemporaryHosts,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Targets {
    /// In the order they are released to, with whether each is temporary.
    pub hosts: Vec<(String, bool)>,
    pub left_out: Vec<LeftOut>,
}

/// Why there are none; every text names the host or group and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("the environment's selector {selector:?} is not valid: {reason}")]
    Selector { selector: String, reason: String },
    #[error("environment {environment} takes in host group {group:?}, which is not in the catalog")]
    NoGroup { environment: String, group: String },
    #[error("environment {environment} has host {host:?}, which is not in the catalog")]
    NoHost { environment: String, host: String },
    #[error(
        "host {host:?} does not belong to environment {environment}; to take it in this once, add it (`--add-host`)"
    )]
    Stranger { environment: String, host: String },
    #[error("host {host:?} does not belong to environment {environment}, so it need not be excluded")]
    NothingToExclude { environment: String, host: String },
    #[error("host {0:?} is both asked for and excluded; take it out of one of the two")]
    Contradiction(String),
    #[error("temporary host {0:?} is not in the catalog; apply it first")]
    UnknownTemporary(String),
    #[error("temporary hosts are not allowed here by policy: {0:?} must belong to the environment")]
    TemporaryDenied(String),
}

/// All hosts of an environment, in order.
pub fn members(env: &Environment, fleet: Fleet<'_>) -> Result<Vec<String>, TargetError> {
    let environment = || format!("{}/{}", env.project, env.name);
    let mut names: Vec<&str> = env.hosts.iter().map(String::as_str).collect();
    for g in &env.groups {
        let group = fleet.groups.get(g);
        let group = group.ok_or_else(|| TargetError::NoGroup { environment: environment(), group: g.clone() })?;
        names.extend(group.hosts.iter().map(String::as_str));
    }
    if let Some(text) = &env.selector {
        let wrong =
            |e: crate::selector::SelectorError| TargetError::Selector { selector: text.clone(), reason: e.to_string() };
        let selector: Selector = text.parse().map_err(wrong)?;
        names.extend(fleet.hosts.values().filter(|h| selector.matches(&h.labels)).map(|h| h.name.as_str()));
    }
    let excluded: BTreeSet<&str> = env.exclude.iter().map(String::as_str).collect();
    let mut seen = BTreeSet::new();
    names.retain(|n| !excluded.contains(n) && seen.insert(*n));
    if let Some(missing) = names.iter().find(|n| !fleet.hosts.contains_key(**n)) {
        return Err(TargetError::NoHost { environment: environment(), host: (*missing).into() });
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// The hosts of one deployment.
pub fn resolve(env: &Environment, fleet: Fleet<'_>, wish: Wish<'_>) -> Result<Targets, TargetError> {
    let environment = || format!("{}/{}", env.project, env.name);
    let own = members(env, fleet)?;
    let belongs: BTreeSet<&str> = own.iter().map(String::as_str).collect();
    let mut temporary = Vec::new();
    for name in wish.add.iter().filter(|n| !belongs.contains(n.as_str())) {
        if fleet.temporary == TemporaryHosts::Deny {
            return Err(TargetError::TemporaryDenied(name.clone()));
        }
        if !fleet.hosts.contains_key(name) {
            return Err(TargetError::UnknownTemporary(name.clone()));
        }
        if !temporary.contains(name) {
            temporary.push(name.clone());
        }
    }
    let known = |n: &String| belongs.contains(n.as_str()) || temporary.contains(n);
    if let Some(host) = wish.only.iter().find(|n| !known(n)) {
        return Err(TargetError::Stranger { environment: environment(), host: host.clone() });
    }
    if let Some(host) = wish.exclude.iter().find(|n| !known(n)) {
        return Err(TargetError::NothingToExclude { environment: environment(), host: host.clone() });
    }
    if let Some(both) = wish.exclude.iter().find(|n| wish.only.contains(n) || wish.add.contains(n)) {
        return Err(TargetError::Contradiction(both.clone()));
    }
    let only: BTreeSet<&str> = wish.only.iter().map(String::as_str).collect();
    let excluded: BTreeSet<&str> = wish.exclude.iter().map(String::as_str).collect();
    let mut out = Targets::default();
    let all = own.iter().map(|n| (n, false)).chain(temporary.iter().map(|n| (n, true)));
    for (name, temporary) in all {
        // Temporary hosts were asked for by name already.
        if !only.is_empty() && !only.contains(name.as_str()) && !temporary {
            continue;
        }
        if excluded.contains(name.as_str()) {
            out.left_out.push(LeftOut { host: name.clone(), reason: "excluded by the request".into() });
        } else {
            out.hosts.push((name.clone(), temporary));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> (BTreeMap<String, Host>, BTreeMap<String, HostGroup>, Environment) {
        let host = |name: &str, role: &str| {
            let labels = BTreeMap::from([("role".to_owned(), role.to_owned())]);
            (name.to_owned(), Host { name: name.into(), address: "a".into(), labels, ..Host::default() })
        };
        let hosts = [host("a", "web"), host("b", "web"), host("c", "db"), host("d", "db"), host("x", "spare")];
        let group = HostGroup { name: "dbs".into(), hosts: vec!["d".into(), "c".into()], ..HostGroup::default() };
        let env = Environment {
            project: "shop".into(),
            name: "beta".into(),
            hosts: vec!["b".into()],
            groups: vec!["dbs".into()],
            selector: Some("role in (web, db)".into()),
            ..Environment::default()
        };
        (hosts.into(), BTreeMap::from([("dbs".into(), group)]), env)
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn named_first_then_groups_then_selected_then_temporary() {
        let (hosts, groups, mut env) = world();
        let fleet = Fleet { hosts: &hosts, groups: &groups, temporary: TemporaryHosts::Allow };
        assert_eq!(members(&env, fleet), Ok(names(&["b", "d", "c", "a"])));
        env.exclude = names(&["c"]);
        assert_eq!(members(&env, fleet), Ok(names(&["b", "d", "a"])));
        let add = names(&["x", "b", "x"]);
        let t = resolve(&env, fleet, Wish { add: &add, ..Wish::default() }).expect("targets");
        let got: Vec<(&str, bool)> = t.hosts.iter().map(|(n, t)| (n.as_str(), *t)).collect();
        assert_eq!(got, [("b", false), ("d", false), ("a", false), ("x", true)], "what belongs to it is not temporary");
        let (only, exclude) = (names(&["a", "d"]), names(&["d"]));
        let t = resolve(&env, fleet, Wish { only: &only, ..Wish::default() }).expect("targets");
        assert_eq!(t.hosts, [("d".to_owned(), false), ("a".to_owned(), false)], "in the environment's order");
        let t = resolve(&env, fleet, Wish { exclude: &exclude, ..Wish::default() }).expect("targets");
        assert_eq!((t.hosts.len(), t.left_out[0].host.as_str()), (2, "d"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let (hosts, groups, env) = world();
        let fleet = Fleet { hosts: &hosts, groups: &groups, temporary: TemporaryHosts::Allow };
        let x = names(&["x"]);
        let error = |wish| resolve(&env, fleet, wish).expect_err("wrong").to_string();
        assert!(error(Wish { only: &x, ..Wish::default() }).contains("--add-host"));
        assert!(error(Wish { exclude: &x, ..Wish::default() }).contains("need not be excluded"));
        let a = names(&["a"]);
        assert!(error(Wish { only: &a, exclude: &a, ..Wish::default() }).contains("both asked for and excluded"));
        let nobody = names(&["nobody"]);
        assert!(error(Wish { add: &nobody, ..Wish::default() }).contains("apply it first"));
        let closed = Fleet { temporary: TemporaryHosts::Deny, ..fleet };
        let e = resolve(&env, closed, Wish { add: &x, ..Wish::default() }).expect_err("denied").to_string();
        assert!(e.contains("not allowed here by policy"), "{e}");
        assert!(resolve(&env, closed, Wish { add: &a, ..Wish::default() }).is_ok(), "it belongs here anyway");
        let lost = Environment { groups: names(&["gone"]), ..env.clone() };
        assert!(members(&lost, fleet).expect_err("group").to_string().contains("\"gone\""));
        let lost = Environment { hosts: names(&["gone"]), ..env };
        assert!(members(&lost, fleet).expect_err("host").to_string().contains("\"gone\""));
    }
}
