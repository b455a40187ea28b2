//! Named leases with epochs: one active holder, judged by the database's clock.

use crate::{Error, Store, Tx, sql};
use std::time::Duration;

/// A held lease. Writes made under it check `epoch` in their own transaction with [`check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub name: String,
    pub owner: String,
    pub epoch: u64,
}

/// Takes the lease if it is free, expired or already ours (then it is renewed and keeps its epoch). `None`: another holds it.
pub async fn acquire(store: &Store, name: &str, owner: &str, ttl: Duration) -> Result<Option<Lease>, Error> {
    let mut tx = store.write().await?;
    let now = tx.now().await?;
    let epoch: Option<i64> = sql("INSERT INTO leases (name, owner, epoch, expires_at) VALUES ($1, $2, 1, $3)
         ON CONFLICT (name) DO UPDATE SET
           epoch = leases.epoch + CASE WHEN leases.owner = $2 AND leases.expires_at >= $4 THEN 0 ELSE 1 END,
           owner = $2, expires_at = $3
         WHERE leases.owner = $2 OR leases.expires_at < $4 RETURNING epoch")
    .bind(name)
    .bind(owner)
    .bind(now + ttl)
    .bind(now)
    .fetch_scalar(&mut tx)
    .await?;
    tx.commit().await?;
    Ok(epoch.map(|e| Lease { name: name.into(), owner: owner.into(), epoch: e.unsigned_abs() }))
}

/// Refuses with [`Error::Conflict`] unless the lease is still held at this epoch; the row stays locked until commit.
pub async fn check(tx: &mut Tx, lease: &Lease) -> Result<(), Error> {
    sql("UPDATE leases SET epoch = epoch WHERE name = $1 AND owner = $2 AND epoch = $3")
        .bind(&lease.name)
        .bind(&lease.owner)
        .bind(lease.epoch)
        .execute_one(tx)
        .await
}

/// Renews all leases with this prefix that the owner still holds; the answer is their names.
pub async fn renew_all(store: &Store, prefix: &str, owner: &str, ttl: Duration) -> Result<Vec<String>, Error> {
    let mut tx = store.write().await?;
    let now = tx.now().await?;
    let held: Vec<(String,)> = sql("UPDATE leases SET expires_at = $3
         WHERE substr(name, 1, length($1)) = $1 AND owner = $2 AND expires_at >= $4 RETURNING name")
    .bind(prefix)
    .bind(owner)
    .bind(now + ttl)
    .bind(now)
    .fetch_all(&mut tx)
    .await?;
    tx.commit().await?;
    Ok(held.into_iter().map(|(n,)| n).collect())
}

/// Lets another take over at once.
pub async fn release(store: &Store, lease: &Lease) -> Result<(), Error> {
    let mut tx = store.write().await?;
    let now = tx.now().await?;
    sql("UPDATE leases SET expires_at = $4 WHERE name = $1 AND owner = $2 AND epoch = $3")
        .bind(&lease.name)
        .bind(&lease.owner)
        .bind(lease.epoch)
        .bind(now - Duration::from_secs(1))
        .execute(&mut tx)
        .await?;
    tx.commit().await
}
