//! What people say about versions and environments: holds, vetoes, pins. Every change is an event of the environment.

use crate::{
    call::{Answer, Call, Once, json, now, ok},
    problem::{Fail, Problem, transact},
    routes::known,
};
use actix_web::http::StatusCode;
use serde_json::json as value;
use windlass_contracts::http as body;
use windlass_domain::{
    catalog::{Item, Kind},
    event::{Aggregate, NewEvent, Severity},
};
use windlass_store::{
    Tx, catalog, events,
    marks::{self, Hold, Mark},
};

fn hold_view(h: Hold) -> body::Hold {
    body::Hold {
        project: h.project,
        environment: h.environment,
        by: h.by,
        reason: h.reason,
        at: h.at,
        deployment: h.deployment.map(|d| d.0),
    }
}

fn mark_view(m: Mark) -> body::Mark {
    body::Mark {
        project: m.project,
        environment: m.environment,
        kind: m.kind.as_str().into(),
        version: m.version,
        by: m.by,
        reason: m.reason,
        at: m.at,
    }
}

fn reason(given: &str) -> Result<String, Problem> {
    match given.trim() {
        "" => Err(Problem::invalid("`reason` must say why; whoever meets it is shown it")),
        r => Ok(r.to_owned()),
    }
}

/// An environment of the catalog.
async fn there(tx: &mut Tx, project: &str, environment: &str) -> Result<(), Fail> {
    let key = format!("{project}/{environment}");
    match catalog::get(tx, Kind::Environment, &key).await?.map(|e| e.item) {
        Some(Item::Environment(_)) => Ok(()),
        _ => Err(Problem::invalid(format!("there is no environment {environment:?} in project {project}")).into()),
    }
}

fn event(call: &Call, project: &str, environment: Option<&str>, what: &str, payload: serde_json::Value) -> NewEvent {
    let id = marks::aggregate_id(project, environment);
    let mut e = call.event(Aggregate::Environment, id, what, payload);
    e.environment = environment.map(str::to_owned);
    e.severity = Severity::Notice;
    e
}

#[utoipa::path(get, path = "/api/v1/projects/{project}/environments/{environment}/hold", tag = "marks", params(("project" = String, Path,), ("environment" = String, Path,)),
    responses((status = 200, body = body::HoldState), (status = "default", body = body::Problem)))]
pub(crate) async fn hold_state(call: Call) -> Answer {
    let ((project, _), environment) = (call.project()?, call.param("environment"));
    let mut tx = call.store().read().await?;
    let hold = marks::held(&mut tx, project, environment).await?;
    if hold.is_none() {
        there(&mut tx, project, environment).await?;
    }
    ok(&body::HoldState { project: project.into(), environment: environment.into(), hold: hold.map(hold_view) })
}

/// Hooks and promotions release nothing here until a person releases it.
#[utoipa::path(put, path = "/api/v1/projects/{project}/environments/{environment}/hold", tag = "marks", params(("project" = String, Path,), ("environment" = String, Path,)),
    request_body = body::HoldBody, responses((status = 200, body = body::Hold), (status = "default", body = body::Problem)))]
pub(crate) async fn hold(call: Call) -> Answer {
    let g: body::HoldBody = call.body()?;
    let reason = reason(&g.reason)?;
    let ((project, _), environment) = (call.project()?, call.param("environment"));
    let by = call.who()?.actor.person.clone();
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        there(&mut tx, project, environment).await?;
        let h = Hold {
            project: project.to_owned(),
            environment: environment.to_owned(),
            by: by.clone(),
            reason: reason.clone(),
            at: now(),
            deployment: None,
        };
        marks::hold(&mut tx, &h).await?;
        let payload = value!({ "by": &by, "reason": &reason });
        events::append(&mut tx, event(&call, project, Some(environment), "environment.held", payload)).await?;
        h
    });
    ok(&hold_view(done?))
}

/// Lets automation release here again; the answer is the hold that was there.
#[utoipa::path(delete, path = "/api/v1/projects/{project}/environments/{environment}/hold", tag = "marks", params(("project" = String, Path,), ("environment" = String, Path,)),
    responses((status = 200, body = body::Hold), (status = 409, body = body::Problem), (status = "default", body = body::Problem)))]
pub(crate) async fn release(call: Call) -> Answer {
    let ((project, _), environment) = (call.project()?, call.param("environment"));
    let by = call.who()?.actor.person.clone();
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        let Some(h) = marks::release(&mut tx, project, environment).await? else {
            return Err(Problem::conflict("nothing_to_do", format!("{project}/{environment} is not held")).into());
        };
        let payload = value!({ "by": &by, "held_by": &h.by, "held_at": h.at, "reason": &h.reason });
        events::append(&mut tx, event(&call, project, Some(environment), "environment.released", payload)).await?;
        h
    });
    ok(&hold_view(done?))
}

#[utoipa::path(get, path = "/api/v1/projects/{project}/marks", tag = "marks", params(("project" = String, Path,)),
    responses((status = 200, body = body::Marks), (status = "default", body = body::Problem)))]
pub(crate) async fn list(call: Call) -> Answer {
    let (project, _) = call.project()?;
    let mut tx = call.store().read().await?;
    let items = marks::list(&mut tx, project).await?.into_iter().map(mark_view).collect();
    let holds = marks::holds(&mut tx, Some(project)).await?.into_iter().map(hold_view).collect();
    ok(&body::Marks { items, holds })
}

const KINDS: [marks::Kind; 2] = [marks::Kind::Veto, marks::Kind::Pin];

fn version(given: &str) -> Result<&str, Problem> {
    match given.trim() {
        "" => Err(Problem::invalid("`version` must name a version of the project's artifact")),
        v => Ok(v),
    }
}

/// Keeps a version out (veto), or all others (pin). A pin takes the place of the one before it.
#[utoipa::path(post, path = "/api/v1/projects/{project}/marks", tag = "marks", params(("project" = String, Path,)), request_body = body::MarkNew,
    responses((status = 201, body = body::Mark), (status = "default", body = body::Problem)))]
pub(crate) async fn set(call: Call) -> Answer {
    let g: body::MarkNew = call.body()?;
    let kind = known("kind", &g.kind, &KINDS, marks::Kind::as_str)?;
    let (reason, version) = (reason(&g.reason)?, version(&g.version)?);
    let (project, _) = call.project()?;
    let by = call.who()?.actor.person.clone();
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        if let Once::Again(status, v) = call.once(&mut tx).await? {
            (status, v)
        } else {
            if let Some(e) = &g.environment {
                there(&mut tx, project, e).await?;
            }
            let m = Mark {
                project: project.to_owned(),
                environment: g.environment.clone(),
                kind,
                version: version.to_owned(),
                by: by.clone(),
                reason: reason.clone(),
                at: now(),
            };
            marks::set(&mut tx, &m).await?;
            let what = match kind {
                marks::Kind::Veto => "environment.vetoed",
                marks::Kind::Pin => "environment.pinned",
            };
            let payload = value!({ "version": version, "by": &by, "reason": &reason });
            events::append(&mut tx, event(&call, project, g.environment.as_deref(), what, payload)).await?;
            let v = mark_view(m);
            call.keep(&mut tx, StatusCode::CREATED, &v).await?;
            (StatusCode::CREATED, value!(v))
        }
    });
    let (status, v) = done?;
    json(status, &v)
}

/// Takes a veto or a pin away; the answer is what was there. Without `environment`: the one of all environments.
#[utoipa::path(delete, path = "/api/v1/projects/{project}/marks", tag = "marks", params(("project" = String, Path,), ("kind" = String, Query,), ("version" = String, Query,), ("environment" = Option<String>, Query,)),
    responses((status = 200, body = body::Mark), (status = 409, body = body::Problem), (status = "default", body = body::Problem)))]
pub(crate) async fn remove(call: Call) -> Answer {
    call.only(&["kind", "version", "environment"])?;
    let kind = known("kind", call.ask("kind").unwrap_or_default(), &KINDS, marks::Kind::as_str)?;
    let version = version(call.ask("version").unwrap_or_default())?;
    let environment = call.ask("environment");
    let (project, _) = call.project()?;
    let by = call.who()?.actor.person.clone();
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        let Some(m) = marks::remove(&mut tx, project, environment, kind, version).await? else {
            let place = environment.map_or_else(|| format!("all environments of {project}"), |e| format!("{project}/{e}"));
            let text = format!("there is no {} of version {version} in {place}; see GET /projects/{project}/marks", kind.as_str());
            return Err(Problem::conflict("nothing_to_do", text).into());
        };
        let payload = value!({ "kind": kind.as_str(), "version": version, "by": &by, "set_by": &m.by, "set_at": m.at, "reason": &m.reason });
        events::append(&mut tx, event(&call, project, environment, "environment.mark_removed", payload)).await?;
        m
    });
    ok(&mark_view(done?))
}
