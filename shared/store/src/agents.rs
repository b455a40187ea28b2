//! Enrolment tokens and the identities of agents. Writer: api.

use crate::{
    Error, Tx,
    latches::{self, Latch},
    rows, sql,
};
use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use std::collections::BTreeSet;
use uuid::Uuid;
use windlass_domain::ids::AgentId;

/// A one-time token, bound to a host name.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct EnrollToken {
    pub id: Uuid,
    /// SHA-256 of the secret half.
    pub hash: Vec<u8>,
    pub host: String,
    /// The host's live agent is revoked when this is used.
    pub replaces: bool,
    pub created_by: String,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    pub used_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Agent {
    pub id: Uuid,
    pub host: String,
    pub public_key: String,
    pub enrolled_at: DateTime<Utc>,
    pub revoked_at: Option<DateTime<Utc>>,
}

pub async fn insert_token(tx: &mut Tx, t: &EnrollToken) -> Result<(), Error> {
    sql("INSERT INTO enroll_tokens (id, hash, host, replaces, created_by, created_at, expires_at, used_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, NULL)")
    .bind(t.id)
    .bind(t.hash.as_slice())
    .bind(&t.host)
    .bind(t.replaces)
    .bind(&t.created_by)
    .bind(t.created_at)
    .bind(t.expires_at)
    .execute_one(tx)
    .await
}

pub async fn token(tx: &mut Tx, id: Uuid) -> Result<Option<EnrollToken>, Error> {
    sql("SELECT id, hash, host, replaces, created_by, created_at, expires_at, used_at FROM enroll_tokens WHERE id = $1")
        .bind(id)
        .fetch_optional(tx)
        .await
}

/// Uses a token up. True for exactly one caller, before its expiry.
pub async fn use_token(tx: &mut Tx, id: Uuid, now: DateTime<Utc>) -> Result<bool, Error> {
    let n = sql("UPDATE enroll_tokens SET used_at = $2 WHERE id = $1 AND used_at IS NULL AND expires_at > $2")
        .bind(id)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(n == 1)
}

/// A unique violation means that the host has a live agent, or the key is known.
pub async fn insert(tx: &mut Tx, a: &Agent) -> Result<(), Error> {
    sql("INSERT INTO agents (id, host, public_key, enrolled_at, revoked_at) VALUES ($1, $2, $3, $4, NULL)")
        .bind(a.id)
        .bind(&a.host)
        .bind(&a.public_key)
        .bind(a.enrolled_at)
        .execute_one(tx)
        .await
}

pub async fn get(tx: &mut Tx, id: AgentId) -> Result<Option<Agent>, Error> {
    sql("SELECT id, host, public_key, enrolled_at, revoked_at FROM agents WHERE id = $1")
        .bind(id)
        .fetch_optional(tx)
        .await
}

pub async fn key_known(tx: &mut Tx, public_key: &str) -> Result<bool, Error> {
    let n: Option<i64> =
        sql("SELECT COUNT(*) FROM agents WHERE public_key = $1").bind(public_key).fetch_scalar(tx).await?;
    Ok(n.unwrap_or(0) > 0)
}

pub async fn live_of_host(tx: &mut Tx, host: &str) -> Result<Option<Agent>, Error> {
    sql("SELECT id, host, public_key, enrolled_at, revoked_at FROM agents WHERE host = $1 AND revoked_at IS NULL")
        .bind(host)
        .fetch_optional(tx)
        .await
}

/// All that are not revoked.
pub async fn live(tx: &mut Tx) -> Result<Vec<Agent>, Error> {
    sql("SELECT id, host, public_key, enrolled_at, revoked_at FROM agents WHERE revoked_at IS NULL ORDER BY host")
        .fetch_all(tx)
        .await
}

/// False when there is no such agent, or it was revoked before. Waits for the transactions that grant tasks: once it has
/// committed, nothing is granted to the agent.
pub async fn revoke(tx: &mut Tx, id: AgentId, now: DateTime<Utc>) -> Result<bool, Error> {
    latches::take(tx, Latch::Grants).await?;
    let n = sql("UPDATE agents SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")
        .bind(id)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(n == 1)
}

/// Those of `ids` that were revoked; asked before a grant, behind [`Latch::Grants`].
pub async fn revoked(tx: &mut Tx, ids: &[AgentId]) -> Result<BTreeSet<AgentId>, Error> {
    let mut out = BTreeSet::new();
    for piece in rows::pieces(ids) {
        let places = rows::places(0, piece.len(), 1);
        let text = format!("SELECT id FROM agents WHERE revoked_at IS NOT NULL AND id IN {places}");
        let mut ask = sql(AssertSqlSafe(text));
        for id in piece {
            ask = ask.bind(*id);
        }
        let found: Vec<(Uuid,)> = ask.fetch_all(tx).await?;
        out.extend(found.into_iter().map(|(id,)| AgentId(id)));
    }
    Ok(out)
}

/// Forgets enrolment tokens that expired before `before`.
pub async fn forget_tokens(tx: &mut Tx, before: DateTime<Utc>) -> Result<u64, Error> {
    sql("DELETE FROM enroll_tokens WHERE expires_at < $1").bind(before).execute(tx).await
}
