//! What was last heard of each agent, and which agents may speak at all.

use crate::{Dialect, Error, Tx, Value, sql};
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, types::Json};
use uuid::Uuid;
use windlass_domain::{Timestamp, ids::AgentId};

/// The row of `agent_sessions`.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    pub agent: AgentId,
    pub host: String,
    /// The journal instance that is accepted for this agent; it starts with `!` when the agent is quarantined.
    pub instance: String,
    pub boot_id: String,
    /// Highest journal position heard of.
    pub journal_seq: u64,
    pub agent_version: String,
    pub last_seen_at: Timestamp,
    pub facts: serde_json::Value,
}

#[derive(Debug, sqlx::FromRow)]
struct Row {
    agent_id: Uuid,
    host: String,
    instance: String,
    boot_id: String,
    journal_seq: i64,
    agent_version: String,
    last_seen_at: DateTime<Utc>,
    facts: Json<serde_json::Value>,
}

impl From<Row> for Session {
    fn from(r: Row) -> Session {
        Session {
            agent: AgentId(r.agent_id),
            host: r.host,
            instance: r.instance,
            boot_id: r.boot_id,
            journal_seq: r.journal_seq.unsigned_abs(),
            agent_version: r.agent_version,
            last_seen_at: r.last_seen_at,
            facts: r.facts.0,
        }
    }
}

const COLUMNS: &str = "agent_id, host, instance, boot_id, journal_seq, agent_version, last_seen_at, facts";

/// Stores what a HELLO said.
pub async fn upsert(tx: &mut Tx, s: &Session) -> Result<(), Error> {
    sql(
        "INSERT INTO agent_sessions (agent_id, host, instance, boot_id, journal_seq, agent_version, last_seen_at, facts)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (agent_id) DO UPDATE SET host = $2, instance = $3, boot_id = $4, journal_seq = $5, agent_version = $6,
           last_seen_at = $7, facts = $8",
    )
    .bind(s.agent)
    .bind(&s.host)
    .bind(&s.instance)
    .bind(&s.boot_id)
    .bind(s.journal_seq)
    .bind(&s.agent_version)
    .bind(s.last_seen_at)
    .bind(Value::Json(Some(s.facts.clone())))
    .execute_one(tx)
    .await
}

/// A sign of life. Times and positions only grow; a session of another instance is left alone.
pub async fn touch(
    tx: &mut Tx,
    agent: AgentId,
    instance: &str,
    journal_seq: u64,
    seen: Timestamp,
) -> Result<bool, Error> {
    let n = sql(
        "UPDATE agent_sessions SET last_seen_at = CASE WHEN last_seen_at < $3 THEN $3 ELSE last_seen_at END,
           journal_seq = CASE WHEN journal_seq < $4 THEN $4 ELSE journal_seq END WHERE agent_id = $1 AND instance = $2",
    )
    .bind(agent)
    .bind(instance)
    .bind(seen)
    .bind(journal_seq)
    .execute(tx)
    .await?;
    Ok(n == 1)
}

/// The release that is current on the agent's host, as it says now.
pub async fn set_current(tx: &mut Tx, agent: AgentId, instance: &str, current: &str) -> Result<bool, Error> {
    let text = match tx.dialect() {
        Dialect::Sqlite => {
            "UPDATE agent_sessions SET facts = json_set(facts, '$.current_release', $3) WHERE agent_id = $1 AND instance = $2"
        }
        Dialect::Postgres => {
            "UPDATE agent_sessions SET facts = jsonb_set(facts, '{current_release}', to_jsonb(CAST($3 AS TEXT)))
             WHERE agent_id = $1 AND instance = $2"
        }
    };
    Ok(sql(text).bind(agent).bind(instance).bind(current).execute(tx).await? == 1)
}

/// The session for a transaction that may replace it; locked until commit.
pub async fn lock(tx: &mut Tx, agent: AgentId) -> Result<Option<Session>, Error> {
    let lock = tx.for_update();
    let row: Option<Row> =
        sql(AssertSqlSafe(format!("SELECT {COLUMNS} FROM agent_sessions WHERE agent_id = $1{lock}")))
            .bind(agent)
            .fetch_optional(tx)
            .await?;
    Ok(row.map(Session::from))
}

pub async fn get(tx: &mut Tx, agent: AgentId) -> Result<Option<Session>, Error> {
    let row: Option<Row> = sql(AssertSqlSafe(format!("SELECT {COLUMNS} FROM agent_sessions WHERE agent_id = $1")))
        .bind(agent)
        .fetch_optional(tx)
        .await?;
    Ok(row.map(Session::from))
}

/// Every session; one an enrolled agent.
pub async fn all(tx: &mut Tx) -> Result<Vec<Session>, Error> {
    let rows: Vec<Row> =
        sql(AssertSqlSafe(format!("SELECT {COLUMNS} FROM agent_sessions ORDER BY agent_id"))).fetch_all(tx).await?;
    Ok(rows.into_iter().map(Session::from).collect())
}

/// Instance and last sign of life of every agent: what executors refresh from.
pub async fn seen(tx: &mut Tx) -> Result<Vec<(AgentId, String, Timestamp)>, Error> {
    let rows: Vec<(Uuid, String, DateTime<Utc>)> =
        sql("SELECT agent_id, instance, last_seen_at FROM agent_sessions").fetch_all(tx).await?;
    Ok(rows.into_iter().map(|(id, instance, at)| (AgentId(id), instance, at)).collect())
}

/// An agent that may speak: enrolled and not revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveAgent {
    pub id: AgentId,
    pub host: String,
    /// nkey public key that signs its frames.
    pub public_key: String,
}

pub async fn live_agents(tx: &mut Tx) -> Result<Vec<LiveAgent>, Error> {
    let rows: Vec<(Uuid, String, String)> =
        sql("SELECT id, host, public_key FROM agents WHERE revoked_at IS NULL ORDER BY id").fetch_all(tx).await?;
    Ok(rows.into_iter().map(|(id, host, public_key)| LiveAgent { id: AgentId(id), host, public_key }).collect())
}
