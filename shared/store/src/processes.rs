//! Which processes run, as they say themselves: for `doctor`, and for nothing that is decided. Writer: every process its own row.

use crate::{Error, Tx, sql};
use chrono::{DateTime, Duration, Utc};

/// A row this old belongs to a process that is gone.
const FORGOTTEN: Duration = Duration::days(1);

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Process {
    /// Its random id, as in leases and claims.
    pub owner: String,
    /// Names of the services in it, with commas between.
    pub services: String,
    pub version: String,
    /// The newest migration it knows.
    pub migration: i64,
    pub machine: String,
    pub started_at: DateTime<Utc>,
    /// By the database's clock.
    pub seen_at: DateTime<Utc>,
    /// How far its clock is ahead of the database's, in milliseconds.
    pub skew_ms: i64,
    /// Bytes free where its state lies.
    pub disk_free: i64,
}

/// Says that the process is there, and forgets those that have not been for long.
pub async fn beat(tx: &mut Tx, p: &Process) -> Result<(), Error> {
    sql("INSERT INTO processes (owner, services, version, migration, machine, started_at, seen_at, skew_ms, disk_free)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (owner) DO UPDATE SET seen_at = $7, skew_ms = $8, disk_free = $9")
    .bind(&p.owner)
    .bind(&p.services)
    .bind(&p.version)
    .bind(p.migration)
    .bind(&p.machine)
    .bind(p.started_at)
    .bind(p.seen_at)
    .bind(p.skew_ms)
    .bind(p.disk_free)
    .execute_one(tx)
    .await?;
    sql("DELETE FROM processes WHERE seen_at < $1").bind(p.seen_at - FORGOTTEN).execute(tx).await.map(drop)
}

/// It has ended as it was asked to.
pub async fn gone(tx: &mut Tx, owner: &str) -> Result<(), Error> {
    sql("DELETE FROM processes WHERE owner = $1").bind(owner).execute(tx).await.map(drop)
}

/// Those heard of since `since`.
pub async fn alive(tx: &mut Tx, since: DateTime<Utc>) -> Result<Vec<Process>, Error> {
    sql("SELECT owner, services, version, migration, machine, started_at, seen_at, skew_ms, disk_free
         FROM processes WHERE seen_at >= $1 ORDER BY services, started_at")
    .bind(since)
    .fetch_all(tx)
    .await
}
