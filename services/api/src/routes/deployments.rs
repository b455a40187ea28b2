//! Deployments: requesting and reading.

use crate::{
    call::{Answer, Call, ok, page},
    commands::{self as submit},
    problem::{Fail, Problem},
    report,
    routes::{known, plans},
    view,
};
use actix_web::http::header;
use chrono::{DateTime, Utc};
use serde_json::json as value;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;
use windlass_contracts::{
    command::{Request, Verb},
    http as body,
};
use windlass_domain::{
    access::Permission,
    catalog::{Item, Kind},
    deployment::{Deployment, State},
    ids::{CommandId, DeploymentId},
};
use windlass_store::{Tx, catalog, commands, deployments, hosts, planning, tasks};

/// Pages looked through for one filtered page; beyond it the caller goes on with `next`.
const SCANS: usize = 10;

#[utoipa::path(post, path = "/api/v1/projects/{project}/deployments", tag = "deployments", params(("project" = String, Path,)), request_body = body::DeploymentNew,
    responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = 409, body = body::Problem), (status = "default", body = body::Problem)))]
pub(crate) async fn request(call: Call) -> Answer {
    let g: body::DeploymentNew = call.body()?;
    let kind = plans::kind(&g)?;
    let (project, _) = call.project()?;
    let mut tx = call.store().read().await?;
    let asked = plans::asked(&mut tx, project, &g).await?;
    drop(tx);
    let id: DeploymentId = Uuid::now_v7().into();
    let verb = Verb::Request(Box::new(Request {
        add_hosts: g.add_hosts,
        exclude_hosts: g.exclude_hosts,
        values: g.values,
        deployment: id,
        environment: g.environment.clone(),
        artifact: asked.artifact.id,
        kind,
        inputs: asked.inputs,
        hosts: g.hosts,
        not_before: g.not_before,
        note: g.note,
    }));
    submit::submit_with(&call, id, &g.environment, verb, &asked.secrets).await
}

#[utoipa::path(get, path = "/api/v1/deployments", tag = "deployments", params(("project" = Option<String>, Query,), ("environment" = Option<String>, Query,), ("tier" = Option<String>, Query,), ("state" = Option<String>, Query,), ("limit" = Option<u32>, Query,), ("cursor" = Option<String>, Query,)), responses((status = 200, body = body::Page<body::Deployment>), (status = "default", body = body::Problem)))]
pub(crate) async fn list(call: Call) -> Answer {
    call.only(&["project", "environment", "tier", "state", "limit", "cursor"])?;
    let (limit, cursor) = call.page()?;
    let before: Option<(DateTime<Utc>, DeploymentId)> = cursor.map(crate::page::decode).transpose()?;
    if let Some(s) = call.ask("state") {
        known("state", s, &State::ALL, |s| s.as_str())?;
    }
    let mut filter = deployments::Filter {
        project: call.ask("project").map(str::to_owned),
        environment: call.ask("environment").map(str::to_owned),
        state: call.ask("state").map(str::to_owned),
        before,
    };
    let mut tx = call.store().read().await?;
    let places = match call.ask("tier") {
        Some(tier) => Some(of_tier(&mut tx, tier).await?),
        None => None,
    };
    let fits = |d: &Deployment| places.as_ref().is_none_or(|p| p.contains(&(d.project.clone(), d.environment.clone())));
    let mut seen = BTreeMap::new();
    let (mut rows, mut more) = (Vec::new(), true);
    for _ in 0..SCANS {
        let batch = deployments::list(&mut tx, &filter, limit + 1).await?;
        more = batch.len() > limit as usize;
        for d in batch {
            filter.before = Some((d.deployment.requested_at, d.deployment.id));
            let p = &d.deployment.project;
            if !seen.contains_key(p) {
                seen.insert(p.clone(), call.may(&mut tx, Permission::View, Some(p)).await?);
            }
            if seen.get(p) == Some(&true) && fits(&d.deployment) {
                rows.push(d.deployment);
            }
            if rows.len() > limit as usize {
                break;
            }
        }
        if rows.len() > limit as usize || !more {
            break;
        }
    }
    let short = rows.len() <= limit as usize;
    let mut p = page(rows, limit, |d| (d.requested_at, d.id), |d| view::summary(&d));
    if short && more {
        p.next = filter.before.as_ref().map(crate::page::encode);
    }
    ok(&p)
}

/// The environments of a tier as the catalog has them now, with their projects.
async fn of_tier(tx: &mut Tx, tier: &str) -> Result<BTreeSet<(String, String)>, Fail> {
    let all = catalog::all(tx, Kind::Environment).await?.into_iter();
    let of = all.filter_map(|item| match item {
        Item::Environment(e) if e.tier.as_deref() == Some(tier) => Some((e.project, e.name)),
        _ => None,
    });
    Ok(of.collect())
}

#[utoipa::path(get, path = "/api/v1/deployments/{id}", tag = "deployments", params(("id" = Uuid, Path,)), responses((status = 200, body = body::DeploymentDetail), (status = "default", body = body::Problem)))]
pub(crate) async fn get(call: Call) -> Answer {
    let d = call.deployment()?;
    let id = d.deployment.id;
    let mut tx = call.store().read().await?;
    let tasks = tasks::of_deployment(&mut tx, id).await?;
    // The number of the last event is older than the tasks: who follows the events from it misses none.
    let mut detail = view::detail(d, &tasks, call.who()?, call.project()?.1, call.found.last_event);
    for w in detail.summary.waiting_on.iter_mut().filter(|w| w.on == "lock") {
        let d = &d.deployment;
        let holder = deployments::locks(&mut tx)
            .await?
            .into_iter()
            .find(|l| l.project == d.project && l.environment == d.environment);
        let ahead = deployments::queue(&mut tx, &d.project, &d.environment).await?;
        let place = ahead.iter().position(|a| *a == id).unwrap_or(0);
        let holder = holder.and_then(|l| l.holder);
        if let Some(h) = holder {
            w.text = format!("{}, held by deployment {h}", w.text);
        }
        w.data["holder"] = value!(holder);
        w.data["ahead"] = value!(place);
    }
    waits_for_hosts(&mut tx, &mut detail).await?;
    if d.deployment.state == State::Queued
        && let Err(why) = planning::of(&mut tx, &d.deployment).await?
    {
        let data = value!({ "reason": why.to_string() });
        let on = body::WaitingOn { on: "plan".into(), text: format!("a plan that can be made: {why}"), data };
        detail.summary.waiting_on.push(on);
    }
    let mut r = ok(&detail)?;
    if let Ok(tag) = header::HeaderValue::from_str(&format!("\"{}\"", d.version)) {
        r.headers_mut().insert(header::ETAG, tag);
    }
    Ok(r)
}

/// Tasks that wait for their host are told with what holds it: a lock, or other tasks.
async fn waits_for_hosts(tx: &mut Tx, detail: &mut body::DeploymentDetail) -> Result<(), Fail> {
    let running = detail.steps.iter_mut().flat_map(|s| &mut s.waves).filter(|w| w.state == "running");
    let stands = |h: &body::HostRun, state: &str| h.task.as_ref().is_some_and(|t| t.state == state);
    // What is offered has its place on the host, but is not granted under a lock.
    let waits = |h: &&mut body::HostRun| stands(h, "pending") || stands(h, "offered");
    let mut waiting: Vec<&mut body::HostRun> = running.flat_map(|w| &mut w.hosts).filter(waits).collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let (locks, busy, limits) = (hosts::locks(tx).await?, hosts::busy(tx).await?, hosts::limits(tx).await?);
    for h in &mut waiting {
        let (n, limit) = (
            busy.get(&h.host).copied().unwrap_or(0),
            limits.get(&h.host).copied().unwrap_or(windlass_domain::catalog::DEFAULT_MAX_TASKS),
        );
        let why = match locks.get(&h.host) {
            Some(l) => format!("host {} is locked by {}: {}", h.host, l.locked_by, l.reason),
            None if n >= limit && stands(h, "pending") => {
                format!("host {} is busy with {n} tasks, and takes {limit} at once", h.host)
            }
            None => continue,
        };
        let data = value!({ "hosts": [&h.host], "reason": why });
        detail.summary.waiting_on.push(body::WaitingOn { on: "host".into(), text: why.clone(), data });
        h.reason = Some(why);
    }
    Ok(())
}

#[utoipa::path(get, path = "/api/v1/deployments/{id}/plan", tag = "deployments", params(("id" = Uuid, Path,)), responses((status = 200, body = body::PlanView), (status = "default", body = body::Problem)))]
pub(crate) async fn plan(call: Call) -> Answer {
    let d = &call.deployment()?.deployment;
    let mut tx = call.store().read().await?;
    let plan = deployments::plan(&mut tx, d.id, &d.plan_digest).await?.ok_or_else(Problem::not_found)?;
    let report = report::report(&call, &mut tx, &plan, d.not_before).await?;
    ok(&body::PlanView { deployment: d.id.0, digest: d.plan_digest.clone(), plan: value!(plan), report })
}

#[utoipa::path(get, path = "/api/v1/deployments/{id}/tasks", tag = "deployments", params(("id" = Uuid, Path,)), responses((status = 200, body = body::Page<body::Task>), (status = "default", body = body::Problem)))]
pub(crate) async fn tasks(call: Call) -> Answer {
    let mut tx = call.store().read().await?;
    let all = tasks::of_deployment(&mut tx, call.deployment()?.deployment.id).await?;
    ok(&body::Page { items: all.iter().map(view::task).collect(), next: None })
}

#[utoipa::path(get, path = "/api/v1/deployments/{id}/approvals", tag = "deployments", params(("id" = Uuid, Path,)), responses((status = 200, body = body::Page<body::Approval>), (status = "default", body = body::Problem)))]
pub(crate) async fn approvals(call: Call) -> Answer {
    let d = &call.deployment()?.deployment;
    ok(&body::Page { items: d.approvals.iter().map(view::approval_view).collect(), next: None })
}

#[utoipa::path(get, path = "/api/v1/commands/{id}", tag = "deployments", params(("id" = Uuid, Path,)), responses((status = 200, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn command(call: Call) -> Answer {
    let c = call.found.command.as_deref().ok_or_else(Problem::not_found)?;
    let mut tx = call.store().read().await?;
    let outcome = commands::outcome(&mut tx, CommandId(c.id.0)).await?;
    ok(&view::command(c, outcome.as_ref()))
}
