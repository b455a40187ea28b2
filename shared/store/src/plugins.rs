//! Plugins: which version a release freezes, and how far each call of one came.

use crate::{Error, Tx, catalog, planning::Unplannable, sql};
use sqlx::types::Json;
use std::collections::BTreeMap;
use uuid::Uuid;
use windlass_domain::{
    Timestamp,
    catalog::{Item, Kind},
    flow::{Flow, StepKind},
    ids::WorkId,
    plugin::{Plugin, parse_version, reference},
};

/// The definitions of the plugins that a linked flow uses, by `uses`; without a version it is the newest there is.
pub async fn pin(tx: &mut Tx, flow: &Flow) -> Result<Result<BTreeMap<String, Plugin>, Unplannable>, Error> {
    let mut out = BTreeMap::new();
    for step in &flow.steps {
        let StepKind::Central(call) = &step.kind else { continue };
        let Some(wanted) = reference(&call.uses) else { continue };
        if out.contains_key(&call.uses) {
            continue;
        }
        let mut known = versions(tx, wanted.name).await?;
        let at = match wanted.version {
            // Written the same way: `1.2` and `1.2.0` are two keys.
            Some(v) => known.iter().position(|p| p.version == v),
            None => known.len().checked_sub(1),
        };
        let Some(at) = at else {
            let versions: Vec<&str> = known.iter().map(|p| p.version.as_str()).collect();
            let text = match versions.as_slice() {
                [] => format!("there is no plugin `{}`; an admin adds it to the catalog (`kind: plugin`)", wanted.name),
                v => format!("the plugin `{}` has no such version; it has: {}", wanted.name, v.join(", ")),
            };
            return Ok(Err(Unplannable(format!("step `{}` uses `{}`: {text}", step.id, call.uses))));
        };
        out.insert(call.uses.clone(), known.swap_remove(at));
    }
    Ok(Ok(out))
}

/// Every version of a plugin, oldest first.
pub async fn versions(tx: &mut Tx, name: &str) -> Result<Vec<Plugin>, Error> {
    let mut out = Vec::new();
    for key in catalog::keys(tx, Kind::Plugin, None).await? {
        if key.split('@').next() == Some(name)
            && let Some(Item::Plugin(p)) = catalog::get(tx, Kind::Plugin, &key).await?.map(|e| e.item)
        {
            out.push(p);
        }
    }
    out.sort_by_key(|p| parse_version(&p.version));
    Ok(out)
}

/// Where the call of a work's plugin stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The verb whose answer was not stored; after a crash nobody knows how far it came.
    pub begun: Option<String>,
    /// The last answer that was.
    pub answer: Option<serde_json::Value>,
    pub callback: Option<Vec<u8>>,
    pub started_at: Timestamp,
}

#[derive(Debug, sqlx::FromRow)]
struct Row {
    begun: Option<String>,
    answer: Option<Json<serde_json::Value>>,
    callback: Option<Vec<u8>>,
    started_at: Timestamp,
}

pub async fn call(tx: &mut Tx, work: WorkId) -> Result<Option<Call>, Error> {
    let row: Option<Row> = sql("SELECT begun, answer, callback, started_at FROM plugin_calls WHERE work_id = $1")
        .bind(work)
        .fetch_optional(tx)
        .await?;
    Ok(row.map(|r| Call {
        begun: r.begun,
        answer: r.answer.map(|a| a.0),
        callback: r.callback,
        started_at: r.started_at,
    }))
}

/// Notes that a verb is about to be asked. `Conflict` when the claim is no longer held at this epoch. `callback` is the hash
/// of the token that goes with it; without one, the call keeps the one it has.
pub async fn begin(
    tx: &mut Tx,
    work: WorkId,
    epoch: u64,
    plugin: &str,
    verb: &str,
    callback: Option<&[u8]>,
) -> Result<(), Error> {
    let now = tx.now().await?;
    sql("INSERT INTO plugin_calls (work_id, pool, epoch, plugin, begun, answer, callback, started_at, updated_at)
         SELECT c.work_id, c.pool, c.epoch, $3, $4, NULL, $5, $6, $6 FROM work_claims c
         WHERE c.work_id = $1 AND c.epoch = $2 AND c.phase = 'running'
         ON CONFLICT (work_id) DO UPDATE SET epoch = excluded.epoch, begun = excluded.begun,
           callback = COALESCE(excluded.callback, plugin_calls.callback), updated_at = excluded.updated_at")
    .bind(work)
    .bind(epoch)
    .bind(plugin)
    .bind(verb)
    .bind(callback.map(<[u8]>::to_vec))
    .bind(now)
    .execute_one(tx)
    .await
}

/// Stores the answer to what was begun at this epoch.
pub async fn answered(tx: &mut Tx, work: WorkId, epoch: u64, answer: &serde_json::Value) -> Result<(), Error> {
    let now = tx.now().await?;
    sql("UPDATE plugin_calls SET begun = NULL, answer = $3, updated_at = $4 WHERE work_id = $1 AND epoch = $2
         AND EXISTS (SELECT 1 FROM work_claims c WHERE c.work_id = $1 AND c.epoch = $2 AND c.phase = 'running')")
    .bind(work)
    .bind(epoch)
    .bind(answer.clone())
    .bind(now)
    .execute_one(tx)
    .await
}

/// The open call a callback's token belongs to, and the pool whose executors it wakes.
pub async fn waiting_for(tx: &mut Tx, token: &[u8]) -> Result<Option<(WorkId, String)>, Error> {
    let row: Option<(Uuid, String)> =
        sql("SELECT p.work_id, p.pool FROM plugin_calls p JOIN work_claims c ON c.work_id = p.work_id
         WHERE p.callback = $1 AND c.phase <> 'settled'")
        .bind(token)
        .fetch_optional(tx)
        .await?;
    Ok(row.map(|(id, pool)| (WorkId(id), pool)))
}

/// Keeps what a callback brought; false when its token was used before.
pub async fn put_callback(
    tx: &mut Tx,
    token: &[u8],
    work: WorkId,
    body: &serde_json::Value,
    now: Timestamp,
) -> Result<bool, Error> {
    let n = sql("INSERT INTO plugin_callbacks (token, work_id, body, received_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (token) DO NOTHING")
    .bind(token)
    .bind(work)
    .bind(body.clone())
    .bind(now)
    .execute(tx)
    .await?;
    Ok(n == 1)
}

/// What came with a token.
pub async fn callback(tx: &mut Tx, token: &[u8]) -> Result<Option<serde_json::Value>, Error> {
    let body: Option<Json<serde_json::Value>> =
        sql("SELECT body FROM plugin_callbacks WHERE token = $1").bind(token).fetch_scalar(tx).await?;
    Ok(body.map(|b| b.0))
}
