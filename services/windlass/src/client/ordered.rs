//! Releases in order: bundles, promotion, history of catalog items, and projects that live in Git.

use super::{
    deploy,
    error::Error,
    http::{Api, encode, query},
    out::{Out, short_digest},
    text::clean,
    view,
};
use crate::cli::{BundleCommand, BundleDecideArgs, DiffArgs, HistoryArgs, PromoteArgs, RevertArgs, SourceCommand};
use serde_json::{Value, json};
use uuid::Uuid;

pub(crate) async fn bundle(c: BundleCommand, api: &Api, out: Out) -> Result<(), Error> {
    match c {
        BundleCommand::Create { file } => {
            let text = super::catalog::read(&file)?;
            let text = String::from_utf8_lossy(&text);
            let body: Value = serde_saphyr::from_str(&text)
                .map_err(|e| Error::Usage(format!("{} is not YAML: {e}", file.display())))?;
            let answer = deploy::command(api, "/bundles", &body).await?;
            if out.json {
                return out.json(&answer);
            }
            let id = view::text(&answer, "bundle");
            out.line(format!("bundle {id} is requested; see: windlass bundle show {id}"))
        }
        BundleCommand::List { state, limit } => {
            let limit = limit.to_string();
            let page: Value =
                api.get(&query("/bundles", &[("state", state.as_deref()), ("limit", Some(&limit))])).await?;
            if out.json {
                return out.json(&page);
            }
            let rows = view::items(&page).iter().map(|b| {
                let members: Vec<String> = view::list(b, "members")
                    .iter()
                    .map(|m| format!("{}:{}", view::text(m, "name"), view::text(m, "state")))
                    .collect();
                vec![
                    view::text(b, "id"),
                    view::text(b, "state"),
                    view::text(b, "title"),
                    members.join(" "),
                    view::time(b, "requested_at"),
                ]
            });
            out.table(&["ID", "STATE", "TITLE", "MEMBERS", "REQUESTED"], rows.collect(), "no bundles")
        }
        BundleCommand::Show { id } => {
            let b: Value = api.get(&format!("/bundles/{id}")).await?;
            if out.json { out.json(&b) } else { show(&b, out) }
        }
        BundleCommand::Approve(a) => decide(a, "approve", api, out).await,
        BundleCommand::Reject(a) => decide(a, "reject", api, out).await,
        BundleCommand::Cancel(a) => verb(a.id, "cancel", &json!({ "reason": a.reason }), api, out).await,
        BundleCommand::Pause(a) => verb(a.id, "pause", &json!({ "reason": a.reason }), api, out).await,
        BundleCommand::Resume { id } => verb(id, "resume", &json!({}), api, out).await,
        BundleCommand::Retry { id, members } => verb(id, "retry", &json!({ "members": members }), api, out).await,
        BundleCommand::Skip { id, member, reason } => {
            verb(id, "skip", &json!({ "member": member, "reason": reason }), api, out).await
        }
        BundleCommand::Rollback { id, members, emergency, reason } => {
            let mode = if emergency { "emergency" } else { "normal" };
            let body = json!({ "mode": mode, "reason": reason, "members": members });
            verb(id, "rollback", &body, api, out).await
        }
    }
}

async fn verb(id: Uuid, verb: &str, body: &Value, api: &Api, out: Out) -> Result<(), Error> {
    let answer = deploy::command(api, &format!("/bundles/{id}/{verb}"), body).await?;
    if out.json {
        return out.json(&answer);
    }
    out.line(clean(&format!("done: {verb} ({})", view::text(&answer, "detail")), false))
}

async fn decide(a: BundleDecideArgs, what: &str, api: &Api, out: Out) -> Result<(), Error> {
    let digest = match a.digest {
        Some(d) => d,
        None => {
            let b: Value = api.get(&format!("/bundles/{}", a.id)).await?;
            let digest = view::text(&b, "digest");
            if !out.json {
                show(&b, out)?;
            }
            if !a.yes {
                match out.ask(&format!("{what} this bundle?")) {
                    Some(true) => {}
                    Some(false) => return Err(Error::Usage("nothing was sent".into())),
                    None => {
                        let text = format!("nobody can be asked here: give --digest {digest} (shown above), or --yes");
                        return Err(Error::Usage(text));
                    }
                }
            }
            digest
        }
    };
    verb(a.id, what, &json!({ "digest": digest, "comment": a.comment }), api, out).await
}

fn show(b: &Value, out: Out) -> Result<(), Error> {
    out.line(clean(
        &format!("{}  {}  {}", view::text(b, "title"), view::text(b, "state"), view::text(b, "id")),
        false,
    ))?;
    let by = format!("requested by {} at {}", view::text(b, "requested_by"), view::time(b, "requested_at"));
    out.line(clean(&by, false))?;
    out.line(format!("digest {}", view::text(b, "digest")))?;
    let deployments = view::list(b, "deployments");
    let rows = view::list(b, "members").iter().map(|m| {
        let id = view::text(m, "deployment");
        let own = deployments.iter().find(|d| view::text(d, "id") == id);
        let waits: Vec<String> = own
            .map(|d| view::list(d, "waiting_on").iter().map(|w| view::text(w, "text")).collect())
            .unwrap_or_default();
        let reason = view::text(m, "reason");
        vec![
            view::text(m, "name"),
            view::text(m, "state"),
            format!("{}/{}", view::text(m, "project"), view::text(m, "environment")),
            view::text(m, "version"),
            view::joined(m, "needs"),
            id,
            if reason.is_empty() { waits.join("; ") } else { reason },
        ]
    });
    let header = ["MEMBER", "STATE", "WHERE", "VERSION", "NEEDS", "DEPLOYMENT", "WAITS FOR"];
    out.table(&header, rows.collect(), "no members")?;
    for w in view::list(b, "waiting_on") {
        out.line(clean(&format!("waiting for {}", view::text(w, "text")), false))?;
    }
    let reason = view::text(b, "end/reason");
    if reason.is_empty() { Ok(()) } else { out.line(clean(&format!("ended: {reason}"), false)) }
}

pub(crate) async fn promote(a: PromoteArgs, api: &Api, out: Out) -> Result<(), Error> {
    let path = format!("/projects/{}/promotions", encode(&a.project));
    let (Some(from), Some(to)) = (&a.from, &a.to) else {
        let board: Value = api.get(&path).await?;
        return if out.json { out.json(&board) } else { show_board(&board, out) };
    };
    let answer = deploy::command(api, &path, &json!({ "from": from, "to": to, "note": a.note })).await?;
    deploy::requested(&answer, &a.wait, api, out).await
}

fn show_board(board: &Value, out: Out) -> Result<(), Error> {
    let environments = view::list(board, "environments");
    let rows = environments.iter().map(|e| {
        vec![
            view::text(e, "environment"),
            view::joined(e, "promote_from"),
            view::text(e, "verified_for_s"),
            view::text(e, "good"),
        ]
    });
    out.table(&["ENVIRONMENT", "TAKES FROM", "AFTER S", "GOOD"], rows.collect(), "no environments")?;
    let names: Vec<String> = environments.iter().map(|e| view::text(e, "environment")).collect();
    let rows = view::list(board, "artifacts").iter().map(|a| {
        let cell = |name: &String| {
            let proof = view::list(a, "verified").iter().find(|p| view::text(p, "environment") == *name);
            match proof {
                None => String::new(),
                Some(p) if view::text(p, "withdrawn") == "true" => "withdrawn".into(),
                Some(p) => view::time(p, "at"),
            }
        };
        [view::text(a, "version"), short_digest(&view::text(a, "digest")).to_owned()]
            .into_iter()
            .chain(names.iter().map(cell))
            .collect()
    });
    let rows = rows.collect();
    let header: Vec<String> =
        ["VERSION".to_owned(), "DIGEST".to_owned()].into_iter().chain(names.iter().map(|n| n.to_uppercase())).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    out.table(&header, rows, "nothing was verified yet")
}

fn item(a: &HistoryArgs) -> String {
    // `project/name` is written with a dot where it has to be one path segment.
    format!("/catalog/{}/{}", encode(&a.kind), encode(&a.key.replacen('/', ".", 1)))
}

pub(crate) async fn history(a: &HistoryArgs, api: &Api, out: Out) -> Result<(), Error> {
    let page: Value = api.get(&format!("{}/revisions", item(a))).await?;
    if out.json {
        return out.json(&page);
    }
    let rows = view::items(&page).iter().map(|r| {
        let what = if view::text(r, "deleted") == "true" { "removed" } else { "saved" };
        vec![view::text(r, "revision"), view::time(r, "at"), what.into(), view::text(r, "author")]
    });
    out.table(&["REVISION", "AT", "WHAT", "BY"], rows.collect(), "no revisions")
}

pub(crate) async fn diff(a: &DiffArgs, api: &Api, out: Out) -> Result<(), Error> {
    let (from, to) = (a.from.map(|n| n.to_string()), a.to.map(|n| n.to_string()));
    let path = query(&format!("{}/diff", item(&a.item)), &[("from", from.as_deref()), ("to", to.as_deref())]);
    let d: Value = api.get(&path).await?;
    if out.json {
        return out.json(&d);
    }
    let text = view::text(&d, "diff");
    if text.is_empty() {
        return out.line(format!("revisions {} and {} are the same", view::text(&d, "from"), view::text(&d, "to")));
    }
    text.lines().try_for_each(|l| out.line(clean(l, false)))
}

pub(crate) async fn revert(a: &RevertArgs, api: &Api, out: Out) -> Result<(), Error> {
    let done: Value = api.post(&format!("{}/revert", item(&a.item)), &json!({ "revision": a.revision })).await?;
    if out.json {
        return out.json(&done);
    }
    match view::text(&done, "change").as_str() {
        "unchanged" => out.line(format!("{} is what revision {} was already", a.item.key, a.revision)),
        _ => out.line(format!(
            "{} is at revision {} now, as {} was",
            a.item.key,
            view::text(&done, "revision"),
            a.revision
        )),
    }
}

pub(crate) async fn source(c: &SourceCommand, api: &Api, out: Out) -> Result<(), Error> {
    let (project, answer): (&String, Value) = match c {
        SourceCommand::Status { project } => {
            (project, api.get(&format!("/projects/{}/source", encode(project))).await?)
        }
        SourceCommand::Refresh { project } => {
            (project, api.post(&format!("/projects/{}/source/refresh", encode(project)), &json!({})).await?)
        }
    };
    if out.json {
        return out.json(&answer);
    }
    let t = |k: &str| view::text(&answer, k);
    out.line(clean(&format!("{project}: {} ({} at {}, {})", t("state"), t("git"), t("ref"), t("path")), false))?;
    for (name, key) in [("fetched", "fetched"), ("applied", "applied")] {
        let commit = t(&format!("{key}_commit"));
        if !commit.is_empty() {
            out.line(format!("{name} {commit} at {}", view::time(&answer, &format!("{key}_at"))))?;
        }
    }
    if !t("detail").is_empty() {
        out.line(clean(&t("detail"), false))?;
    }
    for f in view::list(&answer, "faults") {
        let place = match (view::text(f, "line"), view::text(f, "column")) {
            (l, _) if l.is_empty() => String::new(),
            (l, c) => format!(" line {l}, column {c}"),
        };
        out.line(clean(&format!("  {}{place}: {}", view::text(f, "at"), view::text(f, "detail")), false))?;
    }
    if matches!(c, SourceCommand::Refresh { .. }) {
        return out.line(format!("it is looked at now; see: windlass source status {project}"));
    }
    Ok(())
}
