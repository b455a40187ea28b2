//! Looking after the installation: queue, trigger log, notifications, audit, doctor, health, the OpenAPI document.

use crate::{
    call::{Answer, Call, Once, json, now, ok, page},
    doctor,
    problem::{Fail, Problem, transact},
    routes::known,
    view,
};
use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
    web,
};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::json as value;
use std::collections::BTreeMap;
use windlass_contracts::http as body;
use windlass_domain::{access::Permission, event::Aggregate, ids::NotificationId};
use windlass_runtime::health;
use windlass_store::{Tx, audit, deployments, events, intake, notifications};

#[utoipa::path(get, path = "/api/v1/queue", tag = "deployments", responses((status = 200, body = body::Queue), (status = "default", body = body::Problem)))]
pub(crate) async fn queue(call: Call) -> Answer {
    let mut tx = call.store().read().await?;
    let mut all: BTreeMap<(String, String), body::Lock> = BTreeMap::new();
    let empty = |p: &str, e: &str| body::Lock {
        project: p.into(),
        environment: e.into(),
        holder: None,
        taken_at: None,
        waiting: vec![],
    };
    let mut seen: BTreeMap<String, bool> = BTreeMap::new();
    for l in deployments::locks(&mut tx).await? {
        let Some(holder) = l.holder else { continue };
        if !sees(&call, &mut tx, &mut seen, &l.project).await? {
            continue;
        }
        let mut lock = empty(&l.project, &l.environment);
        lock.holder = deployments::get(&mut tx, holder).await?.map(|d| view::summary(&d.deployment));
        lock.taken_at = l.taken_at;
        all.insert((l.project, l.environment), lock);
    }
    let filter = deployments::Filter { state: Some("queued".into()), ..deployments::Filter::default() };
    for d in deployments::list(&mut tx, &filter, 1000).await? {
        let d = d.deployment;
        if sees(&call, &mut tx, &mut seen, &d.project).await? {
            all.entry((d.project.clone(), d.environment.clone()))
                .or_insert_with(|| empty(&d.project, &d.environment))
                .waiting
                .push(view::summary(&d));
        }
    }
    for lock in all.values_mut().filter(|l| l.waiting.len() > 1) {
        let order = deployments::queue(&mut tx, &lock.project, &lock.environment).await?;
        lock.waiting.sort_by_key(|d| order.iter().position(|o| o.0 == d.id));
    }
    ok(&body::Queue { locks: all.into_values().collect() })
}

/// Whether this caller may see the project, asked of the database once for each.
async fn sees(call: &Call, tx: &mut Tx, seen: &mut BTreeMap<String, bool>, project: &str) -> Result<bool, Fail> {
    if let Some(known) = seen.get(project) {
        return Ok(*known);
    }
    let may = call.may(tx, Permission::View, Some(project)).await?;
    seen.insert(project.to_owned(), may);
    Ok(may)
}

#[utoipa::path(get, path = "/api/v1/triggers", tag = "artifacts", params(("project" = Option<String>, Query,), ("limit" = Option<u32>, Query,), ("cursor" = Option<String>, Query,)), responses((status = 200, body = body::Page<body::Trigger>), (status = "default", body = body::Problem)))]
pub(crate) async fn triggers(call: Call) -> Answer {
    call.only(&["project", "limit", "cursor"])?;
    let (limit, cursor) = call.page()?;
    let mut before: Option<(DateTime<Utc>, String)> = cursor.map(crate::page::decode).transpose()?;
    let mut tx = call.store().read().await?;
    let (mut rows, mut more, mut scans) = (Vec::new(), true, 0);
    while more && rows.len() <= limit as usize && scans < 10 {
        scans += 1;
        let from = before.as_ref().map(|(at, id)| (*at, id.as_str()));
        let batch = intake::list(&mut tx, call.ask("project"), from, limit + 1).await?;
        more = batch.len() > limit as usize;
        for d in batch {
            before = Some((d.received_at, d.delivery_id.clone()));
            if rows.len() <= limit as usize && call.may(&mut tx, Permission::View, Some(&d.project)).await? {
                rows.push(d);
            }
        }
    }
    let short = rows.len() <= limit as usize;
    let mut p = page(
        rows,
        limit,
        |d| (d.received_at, d.delivery_id.clone()),
        |d| body::Trigger {
            source: d.source,
            project: d.project,
            delivery: d.delivery_id,
            kind: d.kind,
            outcome: d.outcome,
            reason: d.reason,
            artifact: d.artifact_id,
            command: d.command_id,
            received_at: d.received_at,
        },
    );
    if short && more {
        p.next = before.as_ref().map(crate::page::encode);
    }
    ok(&p)
}

fn notification(n: notifications::Notification) -> body::Notification {
    body::Notification {
        id: n.id.0,
        event: n.event_id.0,
        channel: n.channel,
        project: n.project,
        state: n.state.as_str().into(),
        attempts: n.attempts,
        next_at: n.next_at,
        last_error: n.last_error,
        message: n.message,
        created_at: n.created_at,
        updated_at: n.updated_at,
    }
}

#[utoipa::path(get, path = "/api/v1/notifications", tag = "notifications", params(("state" = Option<String>, Query,), ("channel" = Option<String>, Query,), ("limit" = Option<u32>, Query,), ("cursor" = Option<String>, Query,)), responses((status = 200, body = body::Page<body::Notification>), (status = "default", body = body::Problem)))]
pub(crate) async fn list_notifications(call: Call) -> Answer {
    use notifications::State;
    call.only(&["state", "channel", "limit", "cursor"])?;
    let (limit, cursor) = call.page()?;
    let all = [State::Pending, State::Sent, State::Dead];
    let state = call.ask("state").map(|s| known("state", s, &all, |s| s.as_str())).transpose()?;
    let mut before: Option<(DateTime<Utc>, NotificationId)> = cursor.map(crate::page::decode).transpose()?;
    let mut tx = call.store().read().await?;
    let (mut rows, mut more, mut scans) = (Vec::new(), true, 0);
    while more && rows.len() <= limit as usize && scans < 10 {
        scans += 1;
        let batch = notifications::list(&mut tx, state, call.ask("channel"), before, limit + 1).await?;
        more = batch.len() > limit as usize;
        for n in batch {
            before = Some((n.created_at, n.id));
            if rows.len() <= limit as usize && call.may(&mut tx, Permission::View, n.project.as_deref()).await? {
                rows.push(n);
            }
        }
    }
    let short = rows.len() <= limit as usize;
    let mut p = page(rows, limit, |n| (n.created_at, n.id), notification);
    if short && more {
        p.next = before.as_ref().map(crate::page::encode);
    }
    ok(&p)
}

#[utoipa::path(post, path = "/api/v1/notifications/{id}/retry", tag = "notifications", params(("id" = Uuid, Path,)), responses((status = 202, body = body::Notification), (status = 409, body = body::Problem), (status = "default", body = body::Problem)))]
pub(crate) async fn retry_notification(call: Call) -> Answer {
    let id = NotificationId(call.uuid("id")?);
    let person = call.who()?.actor.person.clone();
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        if let Once::Again(status, v) = call.once(&mut tx).await? {
            (status, v)
        } else {
            let Some(n) = notifications::get(&mut tx, id).await? else { return Err(Problem::not_found().into()) };
            if !notifications::request_retry(&mut tx, id, &person, now()).await? {
                let detail = format!("the notification is {}; only a dead one can be sent again", n.state.as_str());
                return Err(Problem::conflict("wrong_state", detail).into());
            }
            let payload = value!({ "notification": id, "channel": &n.channel });
            events::append(&mut tx, call.event(Aggregate::Notification, &n.channel, "notification.retry_requested", payload)).await?;
            let v = notification(n);
            call.keep(&mut tx, StatusCode::ACCEPTED, &v).await?;
            (StatusCode::ACCEPTED, value!(v))
        }
    });
    let (status, v) = done?;
    json(status, &v)
}

fn nothing_signed() -> Fail {
    let detail = "the auditor has signed nothing yet; check that it runs (windlass doctor)";
    Problem::new(StatusCode::NOT_FOUND, "not_found", detail).into()
}

#[utoipa::path(get, path = "/api/v1/audit/checkpoint", tag = "audit", responses((status = 200, body = body::AuditCheckpoint), (status = "default", body = body::Problem)))]
pub(crate) async fn checkpoint(call: Call) -> Answer {
    let mut tx = call.store().read().await?;
    let c = audit::latest_checkpoint(&mut tx).await?.ok_or_else(nothing_signed)?;
    let root = value!(c.root).as_str().map_or_else(|| format!("{:?}", c.root), str::to_owned);
    ok(&body::AuditCheckpoint { size: c.size, root, note: c.note, at: c.at })
}

#[utoipa::path(get, path = "/api/v1/audit/key", tag = "audit", responses((status = 200, body = body::AuditKey), (status = "default", body = body::Problem)))]
pub(crate) async fn audit_key(call: Call) -> Answer {
    let mut tx = call.store().read().await?;
    let c = audit::latest_checkpoint(&mut tx).await?.ok_or_else(nothing_signed)?;
    ok(&body::AuditKey { key: c.edge.key })
}

#[utoipa::path(get, path = "/api/v1/audit/export", tag = "audit", params(("from" = Option<u64>, Query, description = "begin at the last checkpoint of at most this many leaves")),
    responses((status = 200, body = String, content_type = "application/x-ndjson"), (status = "default", body = body::Problem)))]
pub(crate) async fn audit_export(call: Call) -> Answer {
    call.only(&["from"])?;
    let from = match call.ask("from") {
        None => 0,
        Some(t) => t.parse::<u64>().map_err(|_| Problem::invalid("`from` must be a number of leaves"))?,
    };
    let export = audit::Export::begin(call.store(), from).await?.ok_or_else(nothing_signed)?;
    let pages = futures::stream::try_unfold(export, |mut e| async move {
        // A stream that breaks is seen by the reader: the export ends without its last checkpoint.
        let page = e.next_page().await.map_err(actix_web::error::ErrorInternalServerError)?;
        Ok::<_, actix_web::Error>(page.map(|p| (Bytes::from(p), e)))
    });
    Ok(HttpResponse::Ok()
        .content_type("application/x-ndjson")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::CONTENT_DISPOSITION, "attachment; filename=\"windlass-audit.ndjson\""))
        .streaming(Box::pin(pages)))
}

#[utoipa::path(get, path = "/api/v1/doctor", tag = "operations", responses((status = 200, body = body::Doctor), (status = "default", body = body::Problem)))]
pub(crate) async fn doctor(call: Call) -> Answer {
    ok(&doctor::examine(&call.state).await)
}

#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "operations", responses((status = 200, description = "this document")))]
pub(crate) async fn openapi(_call: Call) -> Answer {
    Ok(HttpResponse::Ok().content_type("application/json").body(crate::routes::openapi_text()))
}

/// The JSON Schema (draft 2020-12) of the flow language, by which editors complete it.
#[utoipa::path(get, path = "/api/v1/schemas/flow.json", tag = "catalog", responses((status = 200, description = "the schema")))]
pub(crate) async fn flow_schema(_call: Call) -> Answer {
    let schema = serde_json::to_string(&windlass_domain::flow::json_schema()).unwrap_or_default();
    Ok(HttpResponse::Ok().content_type("application/schema+json").body(schema))
}

#[utoipa::path(get, path = "/healthz", tag = "operations", responses((status = 200, description = "the process answers")))]
pub(crate) async fn healthz(_call: Call) -> Answer {
    Ok(health::healthz().await)
}

#[utoipa::path(get, path = "/readyz", tag = "operations", responses((status = 200, description = "nothing is failing"), (status = 503, description = "the checks that fail")))]
pub(crate) async fn readyz(call: Call) -> Answer {
    Ok(health::readyz(web::Data::new(call.state.ctx.health.clone())).await)
}

#[utoipa::path(get, path = "/metrics", tag = "operations", responses((status = 200, body = String, content_type = "text/plain"), (status = "default", body = body::Problem)))]
pub(crate) async fn metrics(call: Call) -> Answer {
    Ok(health::metrics(web::Data::new(call.state.ctx.health.clone())).await)
}
