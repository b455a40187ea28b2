//! Hosts and their agents: the list, enrolment, revocation.

use crate::{
    auth,
    call::{Answer, Call, Once, json, now, ok, page},
    problem::{Fail, Problem, transact},
    report,
};
use actix_web::{HttpResponse, http::StatusCode};
use serde_json::{Value, json as value};
use std::time::Duration;
use uuid::Uuid;
use windlass_bus::{Identities, identity};
use windlass_contracts::{http as body, preview};
use windlass_domain::{
    artifact::is_name,
    catalog::{DEFAULT_MAX_TASKS, Kind},
    event::{Aggregate, Severity},
    ids::AgentId,
};
use windlass_store::{agents, catalog, events, hosts};

/// How long an enrolment token works.
const TOKEN_LIFE: Duration = Duration::from_secs(15 * 60);
/// Facts are shown, not used; more of them than this is a mistake.
const MOST_FACTS: usize = 16 * 1024;

#[utoipa::path(get, path = "/api/v1/hosts", tag = "hosts", params(("limit" = Option<u32>, Query,), ("cursor" = Option<String>, Query,)), responses((status = 200, body = body::Page<body::Host>), (status = "default", body = body::Problem)))]
pub(crate) async fn list(call: Call) -> Answer {
    call.only(&["limit", "cursor"])?;
    let (limit, cursor) = call.page()?;
    let after: Option<String> = cursor.map(crate::page::decode).transpose()?;
    let mut tx = call.store().read().await?;
    let now = tx.now().await?;
    let rows: Vec<body::Host> = report::fleet(&mut tx)
        .await?
        .into_iter()
        .filter(|(name, _)| after.as_ref().is_none_or(|a| name > a))
        .map(|(name, h)| body::Host {
            name,
            state: h.state(&call, now).into(),
            current: h.current(),
            lock: h.lock_view(),
            ssh: h.ssh_view(),
            tasks: h.busy,
            max_tasks: h.catalogued.as_ref().and_then(|c| c.max_tasks).unwrap_or(DEFAULT_MAX_TASKS),
            address: h.catalogued.as_ref().map(|c| c.address.clone()).unwrap_or_default(),
            in_catalog: h.catalogued.is_some(),
            labels: h.catalogued.map(|c| c.labels).unwrap_or_default(),
            agent: h.agent.map(|a| body::Agent {
                id: a.id,
                enrolled_at: a.enrolled_at,
                last_seen_at: h.session.as_ref().map(|s| s.last_seen_at),
                version: h.session.as_ref().map(|s| s.agent_version.clone()),
                instance: h.session.as_ref().map(|s| s.instance.clone()),
                facts: h.session.map(|s| s.facts).unwrap_or(Value::Null),
            }),
        })
        .collect();
    ok(&page(rows, limit, |h| h.name.clone(), |h| h))
}

/// A host of the catalog, by the name in the path.
async fn known(call: &Call, tx: &mut windlass_store::Tx) -> Result<String, Fail> {
    let name = call.param("name");
    match catalog::get(tx, Kind::Host, name).await? {
        Some(_) => Ok(name.to_owned()),
        None => Err(Problem::not_found().into()),
    }
}

#[utoipa::path(post, path = "/api/v1/hosts/{name}/lock", tag = "hosts", params(("name" = String, Path,)), request_body = preview::HostLockBody, responses((status = 200, body = preview::HostLock), (status = "default", body = body::Problem)))]
pub(crate) async fn lock(call: Call) -> Answer {
    let g: preview::HostLockBody = call.body()?;
    if g.reason.trim().is_empty() {
        return Err(Problem::invalid("`reason` must say why; whoever waits for the host is shown it").into());
    }
    let by = call.who()?.actor.person.clone();
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        let host = known(&call, &mut tx).await?;
        let l = hosts::HostLock { host, reason: g.reason.clone(), locked_by: by.clone(), locked_at: now() };
        hosts::lock(&mut tx, &l).await?;
        let payload = value!({ "host": &l.host, "reason": &l.reason });
        let mut e = call.event(Aggregate::Agent, &l.host, "host.locked", payload);
        e.severity = Severity::Notice;
        events::append(&mut tx, e).await?;
        l
    });
    let l = done?;
    ok(&preview::HostLock { host: l.host, reason: l.reason, by: l.locked_by, at: l.locked_at })
}

#[utoipa::path(post, path = "/api/v1/hosts/{name}/unlock", tag = "hosts", params(("name" = String, Path,)), request_body = body::NoBody, responses((status = 200, body = preview::HostLock), (status = "default", body = body::Problem)))]
pub(crate) async fn unlock(call: Call) -> Answer {
    let _: body::NoBody = call.body()?;
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        let host = known(&call, &mut tx).await?;
        let Some(l) = hosts::locks(&mut tx).await?.remove(&host) else {
            let detail = format!("host {host:?} is not locked");
            return Err(Problem::conflict("nothing_to_do", detail).into());
        };
        hosts::unlock(&mut tx, &host).await?;
        let mut e = call.event(Aggregate::Agent, &host, "host.unlocked", value!({ "host": &host }));
        e.severity = Severity::Notice;
        events::append(&mut tx, e).await?;
        l
    });
    let l = done?;
    ok(&preview::HostLock { host: l.host, reason: l.reason, by: l.locked_by, at: l.locked_at })
}

#[utoipa::path(post, path = "/api/v1/enroll-tokens", tag = "hosts", request_body = body::EnrollTokenNew, responses((status = 201, body = body::EnrollToken), (status = "default", body = body::Problem)))]
pub(crate) async fn make_token(call: Call) -> Answer {
    let g: body::EnrollTokenNew = call.body()?;
    if !is_name(&g.host) {
        return Err(Problem::invalid(format!("`host` must match [a-z0-9][a-z0-9_-]{{0,62}}, got {:?}", g.host)).into());
    }
    let by = call.who()?.actor.person.clone();
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        if let Once::Again(status, v) = call.once(&mut tx).await? {
            (status, v)
        } else {
            if !g.replace && agents::live_of_host(&mut tx, &g.host).await?.is_some() {
                return Err(taken(&g.host).into());
            }
            let (fresh, at) = (auth::mint("we"), now());
            let t = agents::EnrollToken {
                id: fresh.id,
                hash: fresh.hash.clone(),
                host: g.host.clone(),
                replaces: g.replace,
                created_by: by.clone(),
                created_at: at,
                expires_at: at + TOKEN_LIFE,
                used_at: None,
            };
            agents::insert_token(&mut tx, &t).await?;
            let payload = value!({ "token": t.id, "host": &t.host, "replace": t.replaces, "expires_at": t.expires_at });
            events::append(&mut tx, call.event(Aggregate::Agent, &g.host, "agent.token_made", payload)).await?;
            let view = body::EnrollToken { id: t.id, token: fresh.text, host: t.host, expires_at: t.expires_at };
            call.keep(&mut tx, StatusCode::CREATED, &view).await?;
            (StatusCode::CREATED, value!(view))
        }
    });
    let (status, v) = done?;
    json(status, &v)
}

fn taken(host: &str) -> Problem {
    let detail = format!("host {host:?} has a live agent; revoke it first, or ask for a token with `replace`");
    Problem::conflict("host_taken", detail)
}

#[utoipa::path(post, path = "/api/v1/enroll", tag = "hosts", request_body = body::Enroll, responses((status = 201, body = body::Enrolled), (status = "default", body = body::Problem)))]
pub(crate) async fn enroll(call: Call) -> Answer {
    let g: body::Enroll = call.body()?;
    if g.facts.to_string().len() > MOST_FACTS {
        return Err(Problem::invalid(format!("`facts` is larger than {MOST_FACTS} bytes")).into());
    }
    let refused = || {
        let detail = "this enrolment token does not work: it is unknown, used or expired; ask an admin for a new one (windlass enroll)";
        Problem::unauthorized(detail)
    };
    let (id, hash) = auth::parse("we", &g.token).ok_or_else(refused)?;
    // All that can fail is done before the token is used up.
    let nats_ca = match &call.settings().nats.tls.ca_file {
        None => None,
        Some(path) => {
            let wrong = |e: std::io::Error| Fail::Internal(format!("nats.tls.ca_file {}: {e}", path.display()));
            Some(tokio::fs::read_to_string(path).await.map_err(wrong)?)
        }
    };
    let keys = call.settings().keys_dir();
    let fault = |e: identity::IdentityError| Fail::Internal(e.to_string());
    let account = identity::load_agents_account(&keys).map_err(fault)?;
    let agent: AgentId = Uuid::now_v7().into();
    let jwt = identity::agent_jwt(&account, agent, &g.public_key).map_err(|e| Problem::invalid(e.to_string()))?;
    let (executor_key, approval_key) = (call.state.executor_key()?, call.state.approval.public_key());
    let mut replaced = None;
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        let t = agents::token(&mut tx, id).await?.ok_or_else(refused)?;
        let at = tx.now().await?;
        if !auth::same(&hash, &t.hash) || !agents::use_token(&mut tx, id, at).await? {
            return Err(refused().into());
        }
        if agents::key_known(&mut tx, &g.public_key).await? {
            let detail = "this key was enrolled before; make a new one (remove the agent's state directory)";
            return Err(Problem::conflict("key_known", detail).into());
        }
        if let Some(old) = agents::live_of_host(&mut tx, &t.host).await? {
            if !t.replaces {
                return Err(taken(&t.host).into());
            }
            agents::revoke(&mut tx, AgentId(old.id), at).await?;
            let payload = value!({ "agent": old.id, "host": &t.host, "replaced_by": agent });
            let mut e = call.event(Aggregate::Agent, &t.host, "agent.revoked", payload);
            e.actor = format!("agent:{}", t.host);
            events::append(&mut tx, e).await?;
            replaced = Some(old.public_key);
        }
        let new = agents::Agent { id: agent.0, host: t.host.clone(), public_key: g.public_key.clone(), enrolled_at: at, revoked_at: None };
        agents::insert(&mut tx, &new).await?;
        let payload = value!({ "agent": agent, "host": &t.host, "public_key": &g.public_key, "token": t.id, "asked_by": &t.created_by, "facts": &g.facts });
        let mut e = call.event(Aggregate::Agent, &t.host, "agent.enrolled", payload);
        e.actor = format!("agent:{}", t.host);
        e.severity = Severity::Notice;
        events::append(&mut tx, e).await?;
        t.host
    });
    let host = done?;
    if let Some(key) = replaced {
        cut_off(&call, key).await;
    }
    let n = &call.settings().nats;
    let nats_urls = if n.agent_urls.is_empty() { n.urls.clone() } else { n.agent_urls.clone() };
    let enrolled = body::Enrolled { agent_id: agent.0, host, nats_urls, jwt, executor_key, approval_key, nats_ca };
    json(StatusCode::CREATED, &enrolled)
}

#[utoipa::path(post, path = "/api/v1/agents/{id}/revoke", tag = "hosts", params(("id" = Uuid, Path,)), responses((status = 204), (status = "default", body = body::Problem)))]
pub(crate) async fn revoke(call: Call) -> Answer {
    let id = AgentId(call.uuid("id")?);
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        let Some(a) = agents::get(&mut tx, id).await? else { return Err(Problem::not_found().into()) };
        if agents::revoke(&mut tx, id, now()).await? {
            let mut e = call.event(Aggregate::Agent, &a.host, "agent.revoked", value!({ "agent": id, "host": &a.host }));
            e.severity = Severity::Notice;
            events::append(&mut tx, e).await?;
        }
        a.public_key
    });
    let key = done?;
    cut_off(&call, key).await;
    Ok(HttpResponse::NoContent().finish())
}

/// Ends the agent's connection where this process holds the keys for it. The rows decide: executors stop speaking to a
/// revoked agent whatever its connection does.
async fn cut_off(call: &Call, public_key: String) {
    let s = call.settings();
    let keys = s.keys_dir();
    // Without the operator's key this would make a new one, and sign with it for nobody.
    if s.nats.system_creds.is_none() || !keys.join("operator.nk").is_file() {
        return;
    }
    let pushed = match Identities::load_or_create(&keys) {
        Ok(i) => i.revoke(&s.nats, &[public_key]).await,
        Err(e) => Err(e),
    };
    if let Err(error) = pushed {
        let error: &(dyn std::error::Error + 'static) = &error;
        tracing::warn!(error, "the revoked agent's connection was not cut");
    }
}
