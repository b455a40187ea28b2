//! Applying catalog documents: rights, references and differences, item by item, and all or nothing.

use crate::{
    call::{Call, now},
    problem::{Fail, Problem},
    table::group_of,
};
use actix_web::http::StatusCode;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use windlass_contracts::http::{self as body, Change, Fault, FieldDiff};
use windlass_domain::{
    access::{Permission, Target},
    catalog::{Document, Item, Kind, read},
    event::{Aggregate, NewEvent, Severity},
    flow::{link, uses},
    naming::Rule,
    span::Place,
};
use windlass_runtime::Settings;
use windlass_store::{Tx, catalog, events};

/// Fields named in one item's difference.
const MOST_DIFFS: usize = 200;

/// The documents in a body, or every fault with its place.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<Document>, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let before = &bytes[..e.valid_up_to()];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        Problem::unprocessable(format!("the body is not UTF-8: line {line} holds a byte that is none"), vec![])
    })?;
    let documents = read(text).map_err(|errors| {
        let faults: Vec<Fault> = errors
            .iter()
            .map(|e| Fault {
                at: if e.document > 0 { format!("document {}: {}", e.document, e.path) } else { e.path.clone() },
                detail: e.message.clone(),
                line: e.place.map(|p| p.line),
                column: e.place.map(|p| p.column),
            })
            .collect();
        let first = errors.first().map(ToString::to_string).unwrap_or_default();
        Problem::unprocessable(format!("{} fault(s) in the documents; the first: {first}", faults.len()), faults)
    })?;
    for d in &documents {
        let json = serde_json::to_vec(&d.item).unwrap_or_default();
        if crate::call::holds_nul(&json) {
            let detail = "a text of it holds the character NUL, which cannot be stored; remove it";
            return Err(Problem::unprocessable(detail, vec![fault(&d.item, d.place, "", detail.into())]));
        }
    }
    if documents.is_empty() {
        return Err(Problem::unprocessable("there is no document in the body", vec![]));
    }
    Ok(documents)
}

/// What is wrong with an item, and where it stands.
fn fault(item: &Item, place: Place, at: &str, detail: String) -> Fault {
    let at = format!("{} {}{}{at}", item.kind().as_str(), item.key(), if at.is_empty() { "" } else { ": " });
    Fault { at, detail, line: Some(place.line), column: Some(place.column) }
}

/// Saves what differs, when all of it may be saved and refers to things that exist. On a read-only connection it only says
/// what it would do.
pub(crate) async fn apply(call: &Call, tx: &mut Tx, documents: &[Document]) -> Result<Vec<body::AppliedItem>, Fail> {
    authorise(call, tx, documents).await?;
    save_all(&Author::of(call)?, &naming(call.settings()), tx, documents).await
}

/// Puts an earlier content back: an apply like any other.
pub(crate) async fn restore(call: &Call, tx: &mut Tx, item: Item) -> Result<body::AppliedItem, Fail> {
    let document = Document { item, place: Place { line: 1, column: 1 }, source: String::new() };
    let done = apply(call, tx, std::slice::from_ref(&document)).await?;
    done.into_iter().next().ok_or_else(|| Fail::Internal("an item vanished".into()))
}

/// Who saves: for revisions, and for events.
#[derive(Debug, Clone)]
pub(crate) struct Author {
    /// `ann`, or `git:<commit>`.
    pub(crate) name: String,
    /// `person:ann`, or `git:<commit>`.
    pub(crate) actor: String,
    pub(crate) trace: Option<String>,
}

impl Author {
    pub(crate) fn of(call: &Call) -> Result<Author, Fail> {
        let who = call.who()?;
        Ok(Author { name: who.actor.person.clone(), actor: who.name(), trace: Some(call.trace.clone()) })
    }
}

/// [`apply`] where the rights are settled already.
pub(crate) async fn save_all(
    author: &Author,
    naming: &Rule,
    tx: &mut Tx,
    documents: &[Document],
) -> Result<Vec<body::AppliedItem>, Fail> {
    let documents = &named(naming, documents)?[..];
    check_references(tx, documents).await?;
    check_subflows(tx, documents).await?;
    let mut out = Vec::new();
    for d in documents {
        let old = catalog::row(tx, d.item.kind(), &d.item.key()).await?;
        let (mut entry, over) = compare(&d.item, old.as_ref())?;
        if tx.is_write() && entry.change != Change::Unchanged {
            entry.revision = catalog::save(tx, &d.item, over, false, &author.name, now()).await?.unsigned_abs();
            saved(author, tx, &d.item, "catalog.saved", &entry).await?;
        }
        out.push(entry);
    }
    Ok(out)
}

/// How names of environments are read here.
pub(crate) fn naming(s: &Settings) -> Rule {
    Rule { separator: s.environments.separator.clone(), tiers: s.environments.tiers.clone() }
}

/// The documents with the service and tier of each environment, as its name says where it does not say itself.
fn named(rule: &Rule, documents: &[Document]) -> Result<Vec<Document>, Problem> {
    let (mut out, mut faults) = (documents.to_vec(), Vec::new());
    for d in &mut out {
        let Item::Environment(e) = &mut d.item else { continue };
        if e.tier.is_some() || e.service.is_some() {
            continue;
        }
        match rule.read(&e.name) {
            Ok(n) => (e.service, e.tier) = (n.service, n.tier),
            Err(why) => faults.push(fault(&d.item, d.place, "name", why.to_string())),
        }
    }
    match faults.len() {
        0 => Ok(out),
        n => Err(Problem::unprocessable(format!("{n} name(s) of environments can be read in two ways"), faults)),
    }
}

/// The event of a save or a removal.
pub(crate) async fn saved(
    author: &Author,
    tx: &mut Tx,
    item: &Item,
    what: &str,
    entry: &body::AppliedItem,
) -> Result<(), Fail> {
    let id = format!("{}/{}", entry.kind, entry.key);
    let payload = json!({ "kind": entry.kind, "key": entry.key, "revision": entry.revision, "change": entry.change, "diff": entry.diff });
    let e = NewEvent {
        id: uuid::Uuid::now_v7().into(),
        aggregate: Aggregate::Catalog,
        aggregate_id: id,
        what: what.into(),
        project: item.project().map(str::to_owned),
        environment: None,
        // A policy decides what needs approval, so its change is heard.
        severity: if item.kind() == Kind::Policy { Severity::Notice } else { Severity::Info },
        actor: author.actor.clone(),
        at: now(),
        payload,
        trace: author.trace.clone(),
    };
    events::append(tx, e).await?;
    Ok(())
}

fn compare(item: &Item, old: Option<&catalog::Saved>) -> Result<(body::AppliedItem, i64), Fail> {
    let new = serde_json::to_value(item).map_err(|e| Fail::Internal(e.to_string()))?;
    let over = old.map_or(0, |o| o.revision);
    let current = old.filter(|o| !o.deleted).map(|o| &o.doc.0);
    let mut diff = Vec::new();
    let change = match current {
        None => Change::Created,
        Some(old) => {
            differences(old, &new, "", &mut diff);
            if diff.is_empty() { Change::Unchanged } else { Change::Changed }
        }
    };
    let revision = if change == Change::Unchanged { over } else { over + 1 }.unsigned_abs();
    Ok((body::AppliedItem { kind: item.kind().as_str().into(), key: item.key(), change, revision, diff }, over))
}

fn differences(from: &Value, to: &Value, path: &str, out: &mut Vec<FieldDiff>) {
    if from == to || out.len() >= MOST_DIFFS {
        return;
    }
    match (from, to) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for k in keys {
                let p = if path.is_empty() { k.clone() } else { format!("{path}.{k}") };
                differences(a.get(k).unwrap_or(&Value::Null), b.get(k).unwrap_or(&Value::Null), &p, out);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for i in 0..a.len().max(b.len()) {
                let p = format!("{path}[{i}]");
                differences(a.get(i).unwrap_or(&Value::Null), b.get(i).unwrap_or(&Value::Null), &p, out);
            }
        }
        _ => out.push(FieldDiff { path: path.to_owned(), from: from.clone(), to: to.clone() }),
    }
}

/// Every item must be one this caller may define; a project that changes its group, in both groups.
async fn authorise(call: &Call, tx: &mut Tx, documents: &[Document]) -> Result<(), Fail> {
    let actor = &call.who()?.actor;
    let groups: BTreeMap<&str, &str> = documents
        .iter()
        .filter_map(|d| match &d.item {
            Item::Project(p) => Some((p.name.as_str(), p.group.as_str())),
            _ => None,
        })
        .collect();
    let mut faults = Vec::new();
    for d in documents {
        let allowed = match d.item.project() {
            None => actor.may(Permission::Define, Target::Global),
            Some(name) => {
                let old = group_of(tx, name).await?;
                let new = groups.get(name).copied();
                let all: Vec<&str> = old.as_deref().into_iter().chain(new).collect();
                let on = |g: &&str| actor.may(Permission::Define, Target::Project { name, group: g });
                // A project nobody has heard of: one answer for who may not know, another for who may.
                if all.is_empty() { actor.may(Permission::Define, Target::Global) } else { all.iter().all(on) }
            }
        };
        if !allowed {
            let detail =
                "this needs the permission `define` on its project group (on `*` for hosts, policies and channels)";
            faults.push(fault(&d.item, d.place, "", detail.into()));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    let detail =
        format!("{} of {} items may not be saved by this token; nothing was saved", faults.len(), documents.len());
    Err(Problem { errors: faults, ..Problem::new(StatusCode::FORBIDDEN, "forbidden", detail) }.into())
}

/// What an item names must exist, in the store or beside it.
async fn check_references(tx: &mut Tx, documents: &[Document]) -> Result<(), Fail> {
    let here: BTreeSet<(Kind, String)> = documents.iter().map(|d| (d.item.kind(), d.item.key())).collect();
    let mut known: BTreeMap<Kind, BTreeSet<String>> = BTreeMap::new();
    for kind in [Kind::Project, Kind::Environment, Kind::Flow, Kind::Host, Kind::HostGroup] {
        let mut keys: BTreeSet<String> = catalog::keys(tx, kind, None).await?.into_iter().collect();
        keys.extend(here.iter().filter(|(k, _)| *k == kind).map(|(_, key)| key.clone()));
        known.insert(kind, keys);
    }
    let has = |kind: Kind, key: &str| known.get(&kind).is_some_and(|k| k.contains(key));
    let mut faults = Vec::new();
    for d in documents {
        let mut missing = |at: &str, kind: Kind, key: &str| {
            if !has(kind, key) {
                let detail = format!("there is no {} `{key}`; correct the name, or apply it too", kind.as_str());
                faults.push(fault(&d.item, d.place, at, detail));
            }
        };
        match &d.item {
            Item::Environment(e) => {
                missing("project", Kind::Project, &e.project);
                missing("flow", Kind::Flow, &format!("{}/{}", e.project, e.flow));
                for (i, h) in e.hosts.iter().enumerate() {
                    missing(&format!("hosts[{i}]"), Kind::Host, h);
                }
                for (i, from) in e.promote_from.iter().enumerate() {
                    missing(&format!("promote_from[{i}]"), Kind::Environment, &format!("{}/{from}", e.project));
                }
                for (i, g) in e.groups.iter().enumerate() {
                    missing(&format!("groups[{i}]"), Kind::HostGroup, g);
                }
                for (i, h) in e.exclude.iter().enumerate() {
                    missing(&format!("exclude[{i}]"), Kind::Host, h);
                }
            }
            Item::HostGroup(g) => {
                for (i, h) in g.hosts.iter().enumerate() {
                    missing(&format!("hosts[{i}]"), Kind::Host, h);
                }
            }
            Item::Flow { project, .. } => missing("project", Kind::Project, project),
            Item::Host(h) => {
                if let Some(project) = h.ssh.as_ref().and_then(|s| s.project.as_ref()) {
                    missing("ssh.project", Kind::Project, project);
                }
            }
            Item::Policy(p) => {
                // A policy that names nothing there is guards nothing, and nobody would notice.
                for (i, name) in p.matches.projects.iter().enumerate() {
                    missing(&format!("match.projects[{i}]"), Kind::Project, name);
                }
                let environments = known.get(&Kind::Environment).into_iter().flatten();
                let names: BTreeSet<&str> = environments
                    .filter_map(|k| k.split_once('/'))
                    .filter(|(project, _)| p.matches.fits_project(project))
                    .map(|(_, name)| name)
                    .collect();
                let asked = [("on_artifact", &p.on_artifact), ("on_verified", &p.on_verified)];
                let asked = asked.into_iter().flat_map(|(k, l)| l.iter().enumerate().map(move |(i, n)| (k, i, n)));
                for (key, i, name) in asked.filter(|(_, _, n)| !names.contains(n.as_str())) {
                    let detail = format!(
                        "none of the policy's projects has an environment `{name}`; correct the name, or apply it too"
                    );
                    faults.push(fault(&d.item, d.place, &format!("{key}[{i}]"), detail));
                }
            }
            Item::Project(_) | Item::Channel(_) | Item::Group(_) | Item::Plugin(_) => {}
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    let detail = format!("{} name(s) lead nowhere; nothing was saved", faults.len());
    Err(Problem::unprocessable(detail, faults).into())
}

/// What flows give to the flows they use must fit those, beside them or in the store. One that is not there yet is told when a
/// release is made.
async fn check_subflows(tx: &mut Tx, documents: &[Document]) -> Result<(), Fail> {
    let mut faults = Vec::new();
    for d in documents {
        let Item::Flow { project, flow, .. } = &d.item else { continue };
        let mut at_hand = BTreeMap::new();
        for name in link::uses(flow) {
            let key = format!("{project}/{name}");
            let beside = documents.iter().find(|o| o.item.kind() == Kind::Flow && o.item.key() == key);
            let item = match beside {
                Some(o) => Some(o.item.clone()),
                None => catalog::get(tx, Kind::Flow, &key).await?.map(|e| e.item),
            };
            if let Some(Item::Flow { flow, .. }) = item {
                at_hand.insert(name, flow);
            }
        }
        for p in uses::check(&d.source, Some(d.place), flow, &|name| at_hand.get(name).cloned()) {
            faults.push(fault(&d.item, p.place.unwrap_or(d.place), &p.path, p.message));
        }
    }
    match faults.len() {
        0 => Ok(()),
        n => {
            Err(Problem::unprocessable(format!("{n} thing(s) given to subflows do not fit; nothing was saved"), faults)
                .into())
        }
    }
}

/// Who still needs this item.
pub(crate) async fn users(tx: &mut Tx, item: &Item) -> Result<Vec<String>, Fail> {
    let mut out = Vec::new();
    match item {
        Item::Project(p) => {
            for kind in [Kind::Environment, Kind::Flow] {
                let keys = catalog::keys(tx, kind, Some(&p.name)).await?;
                out.extend(keys.into_iter().map(|k| format!("{} {k}", kind.as_str())));
            }
        }
        Item::Flow { project, flow, .. } => {
            for e in catalog::all(tx, Kind::Environment).await? {
                if let Item::Environment(e) = e
                    && e.project == *project
                    && e.flow == flow.name
                {
                    out.push(format!("environment {}/{}", e.project, e.name));
                }
            }
        }
        Item::Host(h) => {
            for e in catalog::all(tx, Kind::Environment).await? {
                if let Item::Environment(e) = e
                    && (e.hosts.contains(&h.name) || e.exclude.contains(&h.name))
                {
                    out.push(format!("environment {}/{}", e.project, e.name));
                }
            }
            for g in catalog::all(tx, Kind::HostGroup).await? {
                if let Item::HostGroup(g) = g
                    && g.hosts.contains(&h.name)
                {
                    out.push(format!("host_group {}", g.name));
                }
            }
        }
        Item::HostGroup(g) => {
            for e in catalog::all(tx, Kind::Environment).await? {
                if let Item::Environment(e) = e
                    && e.groups.contains(&g.name)
                {
                    out.push(format!("environment {}/{}", e.project, e.name));
                }
            }
        }
        Item::Environment(_) | Item::Policy(_) | Item::Channel(_) | Item::Group(_) | Item::Plugin(_) => {}
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_the_field() {
        let mut out = Vec::new();
        let a = json!({ "a": 1, "h": { "x": [1, 2] }, "gone": true });
        let b = json!({ "a": 1, "h": { "x": [1, 3, 4] }, "new": null });
        differences(&a, &b, "", &mut out);
        let got: Vec<String> = out.iter().map(|d| format!("{} {} {}", d.path, d.from, d.to)).collect();
        assert_eq!(got, ["gone true null", "h.x[1] 2 3", "h.x[2] null 4"]);
    }
}
