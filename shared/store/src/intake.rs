//! The trigger log and replay guard of incoming events. Writer: api.

use crate::{Error, Tx, Value, sql};
use chrono::{DateTime, Utc};
use sqlx::types::Json;
use uuid::Uuid;

/// A stored answer.
pub type Answer = Json<serde_json::Value>;

/// Wraps an answer for storing.
pub fn answer(value: serde_json::Value) -> Answer {
    Json(value)
}

/// One delivery.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Delivery {
    pub source: String,
    pub project: String,
    pub delivery_id: String,
    /// `matched`, `ignored` or `refused`.
    pub outcome: String,
    pub reason: String,
    pub kind: String,
    pub artifact_id: Option<Uuid>,
    pub command_id: Option<Uuid>,
    /// What the sender was told, and is told again when it repeats itself.
    pub answer: Answer,
    pub trace: Option<String>,
    pub received_at: DateTime<Utc>,
}

const GET: &str =
    "SELECT source, project, delivery_id, outcome, reason, kind, artifact_id, command_id, answer, trace, received_at
                   FROM intake WHERE source = $1 AND project = $2 AND delivery_id = $3";
const LIST: &str = "SELECT source, project, delivery_id, outcome, reason, kind, artifact_id, command_id, answer, trace, received_at
                    FROM intake WHERE (received_at, delivery_id) < ($1, $2) ORDER BY received_at DESC, delivery_id DESC LIMIT $3";
const LIST_OF: &str =
    "SELECT source, project, delivery_id, outcome, reason, kind, artifact_id, command_id, answer, trace, received_at
                       FROM intake WHERE (received_at, delivery_id) < ($1, $2) AND project = $4
                       ORDER BY received_at DESC, delivery_id DESC LIMIT $3";

/// Claims a delivery id, the first statement of its transaction. False: it was here before (a racing one is waited for).
pub async fn claim(tx: &mut Tx, d: &Delivery) -> Result<bool, Error> {
    let n = sql("INSERT INTO intake (source, project, delivery_id, outcome, reason, kind, artifact_id, command_id, answer, trace, received_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING")
    .bind(&d.source)
    .bind(&d.project)
    .bind(&d.delivery_id)
    .bind(&d.outcome)
    .bind(&d.reason)
    .bind(&d.kind)
    .bind(d.artifact_id)
    .bind(d.command_id)
    .bind(Value::Json(Some(d.answer.0.clone())))
    .bind(d.trace.as_deref())
    .bind(d.received_at)
    .execute(tx)
    .await?;
    Ok(n == 1)
}

/// Writes what came of a claimed delivery.
pub async fn settle(tx: &mut Tx, d: &Delivery) -> Result<(), Error> {
    sql("UPDATE intake SET outcome = $4, reason = $5, artifact_id = $6, command_id = $7, answer = $8
         WHERE source = $1 AND project = $2 AND delivery_id = $3")
    .bind(&d.source)
    .bind(&d.project)
    .bind(&d.delivery_id)
    .bind(&d.outcome)
    .bind(&d.reason)
    .bind(d.artifact_id)
    .bind(d.command_id)
    .bind(Value::Json(Some(d.answer.0.clone())))
    .execute_one(tx)
    .await
}

pub async fn get(tx: &mut Tx, source: &str, project: &str, delivery: &str) -> Result<Option<Delivery>, Error> {
    sql(GET).bind(source).bind(project).bind(delivery).fetch_optional(tx).await
}

/// Newest first.
pub async fn list(
    tx: &mut Tx,
    project: Option<&str>,
    before: Option<(DateTime<Utc>, &str)>,
    limit: u32,
) -> Result<Vec<Delivery>, Error> {
    let (at, id) = before.unwrap_or_else(|| (crate::newest().0, ""));
    let ask = |text| sql(text).bind(at).bind(id).bind(limit);
    match project {
        Some(project) => ask(LIST_OF).bind(project),
        None => ask(LIST),
    }
    .fetch_all(tx)
    .await
}

/// Forgets deliveries from before `before`, at most `limit` at once so that no transaction grows long.
pub async fn forget(tx: &mut Tx, before: DateTime<Utc>, limit: u32) -> Result<u64, Error> {
    sql("DELETE FROM intake WHERE (source, project, delivery_id) IN
           (SELECT source, project, delivery_id FROM intake WHERE received_at < $1 ORDER BY received_at LIMIT $2)")
    .bind(before)
    .bind(limit)
    .execute(tx)
    .await
}
