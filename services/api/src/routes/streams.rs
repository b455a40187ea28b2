//! Live streams (SSE): a deployment's events and its logs. Each reads the database from a cursor, so it can be taken up
//! again anywhere; a message only makes it look sooner. Each holds one page at a time.

use crate::{
    auth,
    call::{Answer, Call, json},
    problem::{Fail, Problem},
    seats::Seat,
    state::State,
    table::group_of,
    view,
};
use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
};
use bytes::Bytes;
use serde::Serialize;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use windlass_bus::Subscription;
use windlass_contracts::{http as body, subjects};
use windlass_domain::{
    access::{Permission, Target},
    event::Aggregate,
    ids::{DeploymentId, TokenId},
};
use windlass_store::{deployments, events, logs};

const PAGE: u32 = 100;
/// Looks in the database at least this often, whatever messages say.
const LOOK: Duration = Duration::from_secs(1);
/// A client that is gone is noticed at the second of these: the first is answered by its system, with a reset.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Rights are read anew this often: a revoked token's stream ends.
const RECHECK: Duration = Duration::from_secs(5);

#[derive(Clone)]
enum Kind {
    Events,
    Logs { host: Option<String>, step: Option<String> },
}

struct Stream {
    state: Arc<State>,
    id: DeploymentId,
    token: TokenId,
    kind: Kind,
    cursor: u64,
    heard: Option<Subscription>,
    checked: Instant,
    sent: Instant,
    greeted: bool,
    /// Everything was sent when the deployment was seen ended.
    done: bool,
    _seat: Seat,
}

fn resume(call: &Call) -> Result<u64, Problem> {
    match call.header("last-event-id").or(call.ask("after")) {
        None => Ok(0),
        Some(t) => t.parse().map_err(|_| Problem::invalid("`Last-Event-ID` must be an id this stream gave")),
    }
}

async fn open(call: Call, kind: Kind, subject: String) -> Answer {
    let token = call.who()?.token;
    let seat = call.state.seats.take(token)?;
    let heard = call.state.ctx.bus.subscribe(subject).await.ok();
    let now = Instant::now();
    let stream = Stream {
        id: call.deployment()?.deployment.id,
        token,
        cursor: resume(&call)?,
        state: call.state,
        kind,
        heard,
        checked: now,
        sent: now,
        greeted: false,
        done: false,
        _seat: seat,
    };
    let body =
        futures::stream::unfold(
            stream,
            |mut s| async move { s.next().await.map(|b| (Ok::<_, actix_web::Error>(b), s)) },
        );
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(Box::pin(body)))
}

fn message<T: Serialize>(out: &mut Vec<u8>, id: Option<u64>, event: &str, data: &T) {
    if let Some(id) = id {
        out.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    // JSON text holds no line break, so one `data:` line carries it whole.
    let data = serde_json::to_string(data).unwrap_or_default();
    out.extend_from_slice(format!("event: {event}\ndata: {data}\n\n").as_bytes());
}

impl Stream {
    /// The next piece; `None` ends the stream. An error ends it too, and the client comes back to where it was.
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        if !std::mem::replace(&mut self.greeted, true) {
            // Bytes at once, so that a client knows it is connected.
            return Some(Bytes::from_static(b": connected\n\n"));
        }
        loop {
            if self.state.ctx.shutdown.is_cancelled() {
                return None;
            }
            match self.look().await {
                Ok(Some(bytes)) => {
                    self.sent = Instant::now();
                    return Some(bytes);
                }
                Ok(None) => {}
                Err(e) => {
                    let problem = e.into_problem();
                    tracing::warn!(detail = problem.detail, "a stream ended on an error");
                    return None;
                }
            }
            if self.sent.elapsed() >= HEARTBEAT {
                self.sent = Instant::now();
                return Some(Bytes::from_static(b": still here\n\n"));
            }
            let pause = tokio::time::sleep(LOOK);
            let shutdown = self.state.ctx.shutdown.clone();
            match &mut self.heard {
                Some(s) => tokio::select! {
                    m = s.next() => if m.is_none() { self.heard = None },
                    () = pause => {}
                    () = shutdown.cancelled() => {}
                },
                None => tokio::select! {
                    () = pause => {}
                    () = shutdown.cancelled() => {}
                },
            }
        }
    }

    async fn look(&mut self) -> Result<Option<Bytes>, Fail> {
        let mut tx = self.state.store().read().await?;
        if self.checked.elapsed() >= RECHECK {
            self.checked = Instant::now();
            if !self.allowed(&mut tx).await? {
                return Ok(Some(self.end("unauthorized")));
            }
        }
        // The state is read before the rows: what is written before the end is then seen before the end.
        let state = deployments::get(&mut tx, self.id).await?.map(|d| d.deployment.state);
        let mut out = Vec::new();
        let full = match self.kind.clone() {
            Kind::Events => {
                let rows =
                    events::after(&mut tx, Aggregate::Deployment, &self.id.to_string(), self.cursor, PAGE).await?;
                let full = rows.len() == PAGE as usize;
                for e in rows {
                    self.cursor = e.agg_seq;
                    let e = body::StreamEvent {
                        id: e.id.0,
                        seq: e.agg_seq,
                        what: e.what,
                        severity: e.severity.as_str().into(),
                        actor: e.actor,
                        at: e.at,
                        payload: e.payload,
                    };
                    message(&mut out, Some(e.seq), body::SSE_EVENT, &e);
                }
                full
            }
            Kind::Logs { host, step } => {
                let rows = logs::after(&mut tx, self.id, self.cursor, host.as_deref(), PAGE).await?;
                let full = rows.len() == PAGE as usize;
                for c in rows {
                    self.cursor = c.n;
                    if step.as_ref().is_none_or(|s| *s == c.chunk.step) {
                        message(&mut out, Some(c.n), body::SSE_LOG, &view::chunk(c));
                    }
                }
                full
            }
        };
        drop(tx);
        if !full && state.is_none_or(|s| s.is_terminal()) {
            let end = self.end(state.map_or("unknown", |s| s.as_str()));
            out.extend_from_slice(&end);
        }
        Ok((!out.is_empty()).then(|| Bytes::from(out)))
    }

    fn end(&mut self, state: &str) -> Bytes {
        self.done = true;
        let mut out = Vec::new();
        message(&mut out, None, body::SSE_END, &body::StreamEnd { state: state.into() });
        Bytes::from(out)
    }

    async fn allowed(&self, tx: &mut windlass_store::Tx) -> Result<bool, Fail> {
        let Some(who) = auth::of_token(tx, self.token, None).await? else { return Ok(false) };
        let Some(d) = deployments::get(tx, self.id).await? else { return Ok(false) };
        let name = &d.deployment.project;
        let group = group_of(tx, name).await?;
        Ok(group.is_some_and(|g| who.actor.may(Permission::View, Target::Project { name, group: &g })))
    }
}

#[utoipa::path(get, path = "/api/v1/deployments/{id}/events", tag = "deployments", params(("id" = Uuid, Path,), ("Last-Event-ID" = Option<u64>, Header, description = "go on after this one"), ("after" = Option<u64>, Query, description = "the same, for clients that cannot set headers")),
    responses((status = 200, body = body::StreamEvent, content_type = "text/event-stream"), (status = "default", body = body::Problem)))]
pub(crate) async fn follow_events(call: Call) -> Answer {
    call.only(&["after"])?;
    let subject = subjects::deployment_events(call.deployment()?.deployment.id);
    open(call, Kind::Events, subject).await
}

#[utoipa::path(get, path = "/api/v1/deployments/{id}/logs", tag = "deployments", params(("id" = Uuid, Path,), ("host" = Option<String>, Query,), ("step" = Option<String>, Query,), ("after" = Option<u64>, Query,), ("limit" = Option<u32>, Query,), ("cursor" = Option<String>, Query,), ("Last-Event-ID" = Option<u64>, Header,)),
    responses((status = 200, description = "a stream of `log` messages, or a page when JSON is asked for", content((body::LogChunk = "text/event-stream"), (body::Page<body::LogChunk> = "application/json"))), (status = "default", body = body::Problem)))]
pub(crate) async fn follow_logs(call: Call) -> Answer {
    call.only(&["host", "step", "after", "limit", "cursor"])?;
    let id = call.deployment()?.deployment.id;
    let (host, step) = (call.ask("host").map(str::to_owned), call.ask("step").map(str::to_owned));
    let accept = call.header("accept").unwrap_or_default();
    let wants_page = !accept.contains("text/event-stream")
        && (accept.contains("application/json") || call.ask("limit").is_some() || call.ask("cursor").is_some());
    if !wants_page {
        return open(call, Kind::Logs { host, step }, subjects::log(id)).await;
    }
    let (limit, cursor) = call.page()?;
    let mut after = match cursor {
        Some(c) => crate::page::decode::<u64>(c)?,
        None => resume(&call)?,
    };
    let mut tx = call.store().read().await?;
    let rows = logs::after(&mut tx, id, after, host.as_deref(), limit).await?;
    let more = rows.len() == limit as usize;
    let mut items = Vec::new();
    for c in rows {
        after = c.n;
        if step.as_ref().is_none_or(|s| *s == c.chunk.step) {
            items.push(view::chunk(c));
        }
    }
    json(StatusCode::OK, &body::Page { items, next: more.then(|| crate::page::encode(&after)) })
}
