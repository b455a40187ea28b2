//! Hosts reached by SSH: what is known of their last connection (writer: executor), and the control plane's public keys
//! (writer: api).

use crate::{Error, Tx, sql};
use chrono::{DateTime, Utc};
use std::collections::BTreeSet;
use uuid::Uuid;
use windlass_domain::{Timestamp, ids::AgentId};

/// Name of the key that signs approvals.
pub const APPROVAL_KEY: &str = "approval";

/// The row of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub host: String,
    pub agent: Option<AgentId>,
    pub checked_at: Timestamp,
    pub error: Option<String>,
}

type Row = (String, Option<Uuid>, DateTime<Utc>, Option<String>);

fn known((host, agent, checked_at, error): Row) -> Known {
    Known { host, agent: agent.map(AgentId), checked_at, error }
}

pub async fn all(tx: &mut Tx) -> Result<Vec<Known>, Error> {
    let rows: Vec<Row> =
        sql("SELECT host, agent_id, checked_at, error FROM ssh_hosts ORDER BY host").fetch_all(tx).await?;
    Ok(rows.into_iter().map(known).collect())
}

/// Hosts the last connection to which failed.
pub async fn failed(tx: &mut Tx) -> Result<BTreeSet<String>, Error> {
    let rows: Vec<(String,)> = sql("SELECT host FROM ssh_hosts WHERE error IS NOT NULL").fetch_all(tx).await?;
    Ok(rows.into_iter().map(|(h,)| h).collect())
}

pub async fn get(tx: &mut Tx, host: &str) -> Result<Option<Known>, Error> {
    let row: Option<Row> = sql("SELECT host, agent_id, checked_at, error FROM ssh_hosts WHERE host = $1")
        .bind(host)
        .fetch_optional(tx)
        .await?;
    Ok(row.map(known))
}

/// Writes down how the last connection went; `agent` is kept when it is `None`.
pub async fn put(
    tx: &mut Tx,
    host: &str,
    agent: Option<AgentId>,
    error: Option<&str>,
    now: Timestamp,
) -> Result<(), Error> {
    sql("INSERT INTO ssh_hosts (host, agent_id, checked_at, error) VALUES ($1, $2, $3, $4)
         ON CONFLICT (host) DO UPDATE SET agent_id = COALESCE(excluded.agent_id, ssh_hosts.agent_id),
           checked_at = excluded.checked_at, error = excluded.error")
    .bind(host)
    .bind(agent)
    .bind(now)
    .bind(error)
    .execute_one(tx)
    .await
}

/// Hosts of a pool with tasks that were offered and are not settled.
pub async fn hosts_at_work(tx: &mut Tx, pool: &str) -> Result<Vec<String>, Error> {
    let rows: Vec<(String,)> = sql("SELECT DISTINCT t.host FROM tasks t JOIN works w ON w.id = t.work_id
         WHERE t.state IN ('offered', 'granted', 'unknown') AND w.pool = $1")
    .bind(pool)
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(|(h,)| h).collect())
}

pub async fn put_control_key(tx: &mut Tx, name: &str, public_key: &str) -> Result<(), Error> {
    sql("INSERT INTO control_keys (name, public_key) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET public_key = excluded.public_key")
    .bind(name)
    .bind(public_key)
    .execute_one(tx)
    .await
}

pub async fn control_key(tx: &mut Tx, name: &str) -> Result<Option<String>, Error> {
    sql("SELECT public_key FROM control_keys WHERE name = $1").bind(name).fetch_scalar(tx).await
}
