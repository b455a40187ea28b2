//! Plugins: what there is with the schemas a form is made from, and what outside systems post for calls that wait.

use crate::{
    call::{Answer, Call, json, now, ok, read_json},
    problem::{Fail, Problem, transact},
};
use actix_web::http::StatusCode;
use serde_json::json as value;
use sha2::{Digest, Sha256};
use windlass_contracts::{http as body, subjects};
use windlass_domain::{
    catalog::{Item, Kind},
    plugin::{Plugin, Transport, parse_version},
};
use windlass_store::{catalog, plugins};

/// Largest body of a callback.
const MAX_CALLBACK: usize = 64 * 1024;

/// Every version of every plugin, newest first.
#[utoipa::path(get, path = "/api/v1/plugins", tag = "catalog", responses((status = 200, body = body::Plugins), (status = "default", body = body::Problem)))]
pub(crate) async fn list(call: Call) -> Answer {
    let mut tx = call.store().read().await?;
    let mut all: Vec<Plugin> = Vec::new();
    for item in catalog::all(&mut tx, Kind::Plugin).await? {
        if let Item::Plugin(p) = item {
            all.push(p);
        }
    }
    all.sort_by(|a, b| (&a.name, parse_version(&b.version)).cmp(&(&b.name, parse_version(&a.version))));
    let view = |p: Plugin| body::PluginVersion {
        uses: p.action(),
        transport: match p.transport {
            Transport::Exec { .. } => "exec".into(),
            Transport::Nats {} => "nats".into(),
        },
        verbs: p.verbs.iter().map(|v| v.as_str().into()).collect(),
        name: p.name,
        version: p.version,
        title: p.title,
        retry_safe: p.retry_safe,
        timeout_s: p.timeout_s,
        secrets: p.secrets,
        inputs: p.inputs,
        outputs: p.outputs,
    };
    ok(&body::Plugins { plugins: all.into_iter().map(view).collect() })
}

/// What a plugin that answered `waiting` waits for. The token in the address is the right to say it, once.
#[utoipa::path(post, path = "/api/v1/plugin-callbacks/{token}", tag = "hooks", params(("token" = String, Path, description = "of the `callback_url` the plugin was given")),
    request_body(content = Object, content_type = "application/json", description = "at most 64 KiB; empty is null"), responses((status = 202, description = "kept; the step goes on"), (status = 404, body = body::Problem, description = "no call waits for it"), (status = 409, body = body::Problem, description = "used before"), (status = "default", body = body::Problem)))]
pub(crate) async fn callback(call: Call) -> Answer {
    let hash = Sha256::digest(call.param("token").as_bytes()).to_vec();
    let open = plugins::waiting_for(&mut call.store().read().await?, &hash).await?;
    let Some((work, pool)) = open else { return Err(Problem::not_found().into()) };
    if call.body.len() > MAX_CALLBACK {
        let detail = format!("the body may have {MAX_CALLBACK} bytes at most");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail).into());
    }
    let brought = if call.body.is_empty() { value!(null) } else { read_json(&call.body)? };
    let done: Result<bool, Fail> = transact!(call.store(), tx => {
        plugins::put_callback(&mut tx, &hash, work, &brought, now()).await?
    });
    if !done? {
        let detail = "this address was used before; each takes one callback";
        return Err(Problem::new(StatusCode::CONFLICT, "used", detail).into());
    }
    call.state.ctx.bus.ring(subjects::work(&pool), work.to_string()).await;
    json(StatusCode::ACCEPTED, &value!({}))
}
