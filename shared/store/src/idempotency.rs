//! Answers to requests that carried an `Idempotency-Key`, stored in the transaction of their effect. Writer: api.

use crate::{Error, Tx, Value, sql};
use chrono::{DateTime, Utc};
use sqlx::types::Json;

/// What a key stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// Nobody used the key: do the work and [`store`] the answer before the commit.
    New,
    /// The same request was answered before; this was the answer.
    Answered { status: u16, response: serde_json::Value },
    /// The key belongs to another request.
    OtherRequest,
}

#[derive(Debug, sqlx::FromRow)]
struct Row {
    request_hash: Vec<u8>,
    status: i64,
    response: Json<serde_json::Value>,
}

/// Takes the key for this transaction. A racing transaction that holds it is waited for: the insert blocks on its row.
pub async fn claim(
    tx: &mut Tx,
    actor: &str,
    key: &str,
    request_hash: &[u8],
    now: DateTime<Utc>,
) -> Result<Claim, Error> {
    let n = sql("INSERT INTO idempotency (actor, key, request_hash, status, response, created_at) VALUES ($1, $2, $3, 0, $4, $5)
         ON CONFLICT DO NOTHING")
    .bind(actor)
    .bind(key)
    .bind(request_hash)
    .bind(Value::Json(Some(serde_json::Value::Null)))
    .bind(now)
    .execute(tx)
    .await?;
    if n == 1 {
        return Ok(Claim::New);
    }
    let row: Option<Row> = sql("SELECT request_hash, status, response FROM idempotency WHERE actor = $1 AND key = $2")
        .bind(actor)
        .bind(key)
        .fetch_optional(tx)
        .await?;
    // The row was there a moment ago; only its clean-up can have come in between.
    let row = row.ok_or(Error::Conflict)?;
    if row.request_hash != request_hash {
        return Ok(Claim::OtherRequest);
    }
    let status = u16::try_from(row.status).map_err(|_| Error::Unknown("idempotency.status"))?;
    Ok(Claim::Answered { status, response: row.response.0 })
}

pub async fn store(
    tx: &mut Tx,
    actor: &str,
    key: &str,
    status: u16,
    response: &serde_json::Value,
) -> Result<(), Error> {
    sql("UPDATE idempotency SET status = $3, response = $4 WHERE actor = $1 AND key = $2")
        .bind(actor)
        .bind(key)
        .bind(i64::from(status))
        .bind(Value::Json(Some(response.clone())))
        .execute_one(tx)
        .await
}

/// Forgets keys from before `before`, at most `limit` at once.
pub async fn forget(tx: &mut Tx, before: DateTime<Utc>, limit: u32) -> Result<u64, Error> {
    sql("DELETE FROM idempotency WHERE (actor, key) IN
           (SELECT actor, key FROM idempotency WHERE created_at < $1 ORDER BY created_at LIMIT $2)")
    .bind(before)
    .bind(limit)
    .execute(tx)
    .await
}
