//! Where a project's documents come from: how its repository stands, and a look at it now.

use crate::{
    call::{Answer, Call, json, now, ok},
    intake::signature,
    problem::{Fail, Problem, transact},
};
use actix_web::http::StatusCode;
use windlass_contracts::{bundles as body, http};
use windlass_domain::{
    catalog::{Item, Kind, Source},
    event::Aggregate,
};
use windlass_store::{Tx, catalog, events, secrets, sources};

async fn source(tx: &mut Tx, project: &str) -> Result<Option<Source>, Fail> {
    Ok(match catalog::get(tx, Kind::Project, project).await?.map(|e| e.item) {
        Some(Item::Project(p)) => p.source,
        _ => None,
    })
}

fn none(project: &str) -> Problem {
    let detail = format!("project {project:?} has no `source`; its documents are applied by hand");
    Problem::conflict("no_source", detail)
}

async fn view(tx: &mut Tx, project: &str) -> Result<body::SourceStatus, Fail> {
    let s = source(tx, project).await?.ok_or_else(|| none(project))?;
    let k = sources::get(tx, project).await?;
    let k = k.as_ref();
    Ok(body::SourceStatus {
        project: project.to_owned(),
        git: s.git,
        reference: s.reference,
        path: s.path,
        state: k.map_or_else(|| "new".into(), |k| k.state.clone()),
        detail: k.map(|k| k.detail.clone()).unwrap_or_default(),
        faults: k.map(|k| k.faults.clone()).unwrap_or_default(),
        fetched_commit: k.and_then(|k| k.fetched_commit.clone()),
        applied_commit: k.and_then(|k| k.applied_commit.clone()),
        fetched_at: k.and_then(|k| k.fetched_at),
        applied_at: k.and_then(|k| k.applied_at),
        refresh_at: k.map(|k| k.refresh_at),
        items: k.map(|k| k.items.clone()).unwrap_or_default(),
    })
}

#[utoipa::path(get, path = "/api/v1/projects/{project}/source", tag = "catalog", params(("project" = String, Path,)),
    responses((status = 200, body = body::SourceStatus), (status = "default", body = http::Problem)))]
pub(crate) async fn status(call: Call) -> Answer {
    let (project, _) = call.project()?;
    let mut tx = call.store().read().await?;
    ok(&view(&mut tx, project).await?)
}

/// Looks at the repository now: 202, and `GET` says what became of it.
#[utoipa::path(post, path = "/api/v1/projects/{project}/source/refresh", tag = "catalog", params(("project" = String, Path,)),
    responses((status = 202, body = body::SourceStatus), (status = "default", body = http::Problem)))]
pub(crate) async fn refresh(call: Call) -> Answer {
    let (project, _) = call.project()?;
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        if source(&mut tx, project).await?.is_none() {
            return Err(none(project).into());
        }
        sources::refresh(&mut tx, project, now()).await?;
        let e = call.event(Aggregate::Catalog, format!("source/{project}"), "source.refresh_requested", serde_json::json!({}));
        events::append(&mut tx, e).await?;
        view(&mut tx, project).await?
    });
    let done = done?;
    call.state.sources.notify_one();
    json(StatusCode::ACCEPTED, &done)
}

/// A push: whatever it says, it only makes the api look at the repository now. Signed with the secret that `source.hook` names,
/// as GitHub, Gitea and Forgejo do.
#[utoipa::path(post, path = "/hooks/git/{project}", tag = "hooks", params(("project" = String, Path,), ("X-Hub-Signature-256" = String, Header,)),
    request_body(content = Object, content_type = "application/json"), responses((status = 202), (status = "default", body = http::Problem)))]
pub(crate) async fn hook(call: Call) -> Answer {
    let project = call.param("project");
    // One answer for no project, no hook, no secret and a wrong signature.
    let refused =
        || Problem::forbidden("this project takes no push, or the signature does not fit the secret of `source.hook`");
    let mut tx = call.store().read().await?;
    let name = source(&mut tx, project).await?.and_then(|s| s.hook).ok_or_else(refused)?;
    let scope = format!("project/{project}");
    let sealed = secrets::sealed(&mut tx, &scope, &name).await?.ok_or_else(refused)?;
    drop(tx);
    let secret = call.state.ctx.sealer.open(&scope, &name, &sealed).map_err(|e| Fail::Internal(e.to_string()))?;
    if !signature::github(&secret, call.header("x-hub-signature-256"), &call.body) {
        return Err(refused().into());
    }
    let done: Result<bool, Fail> = transact!(call.store(), tx => { sources::refresh(&mut tx, project, now()).await? });
    done?;
    call.state.sources.notify_one();
    json(StatusCode::ACCEPTED, &serde_json::json!({ "project": project, "outcome": "accepted" }))
}
