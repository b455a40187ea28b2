//! Hosts as executors and people see them: which are locked, and how much runs on each. Writer of `host_locks`: api.

use crate::{
    Dialect, Error, Tx,
    latches::{self, Latch},
    sql,
};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;

/// A host that takes no new tasks.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct HostLock {
    pub host: String,
    pub reason: String,
    pub locked_by: String,
    pub locked_at: DateTime<Utc>,
}

/// Locks a host; a second lock replaces the first one's reason. Waits for the transactions that grant tasks ([`crate::words`]):
/// once it has committed, none that does not know of it grants anything.
pub async fn lock(tx: &mut Tx, l: &HostLock) -> Result<(), Error> {
    latches::take(tx, Latch::Grants).await?;
    sql("INSERT INTO host_locks (host, reason, locked_by, locked_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (host) DO UPDATE SET reason = excluded.reason, locked_by = excluded.locked_by, locked_at = excluded.locked_at")
    .bind(&l.host)
    .bind(&l.reason)
    .bind(&l.locked_by)
    .bind(l.locked_at)
    .execute_one(tx)
    .await
}

/// `false`: it was not locked.
pub async fn unlock(tx: &mut Tx, host: &str) -> Result<bool, Error> {
    Ok(sql("DELETE FROM host_locks WHERE host = $1").bind(host).execute(tx).await? == 1)
}

/// All locks, by host.
pub async fn locks(tx: &mut Tx) -> Result<BTreeMap<String, HostLock>, Error> {
    let rows: Vec<HostLock> =
        sql("SELECT host, reason, locked_by, locked_at FROM host_locks ORDER BY host").fetch_all(tx).await?;
    Ok(rows.into_iter().map(|l| (l.host.clone(), l)).collect())
}

/// Tasks that are offered to, or run on, each host, of every deployment.
pub async fn busy(tx: &mut Tx) -> Result<BTreeMap<String, u32>, Error> {
    let rows: Vec<(String, i64)> =
        sql("SELECT host, COUNT(*) FROM tasks WHERE state IN ('offered', 'granted') GROUP BY host")
            .fetch_all(tx)
            .await?;
    Ok(rows.into_iter().map(|(h, n)| (h, u32::try_from(n).unwrap_or(u32::MAX))).collect())
}

/// How many tasks at once hosts take that say so.
pub async fn limits(tx: &mut Tx) -> Result<BTreeMap<String, u32>, Error> {
    let rows: Vec<(String, Option<i64>)> = match tx.dialect() {
        Dialect::Sqlite => {
            sql("SELECT key, CAST(json_extract(doc, '$.max_tasks') AS INTEGER) FROM catalog
                 WHERE kind = 'host' AND deleted = FALSE AND json_extract(doc, '$.max_tasks') IS NOT NULL")
            .fetch_all(tx)
            .await?
        }
        Dialect::Postgres => {
            sql("SELECT key, CAST(doc->>'max_tasks' AS BIGINT) FROM catalog
                 WHERE kind = 'host' AND deleted = FALSE AND doc->>'max_tasks' IS NOT NULL")
            .fetch_all(tx)
            .await?
        }
    };
    let limit = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok());
    Ok(rows.into_iter().filter_map(|(h, n)| Some((h, limit(n)?))).collect())
}
