//! Secrets, sealed before they come here. Scope `project/<name>` or `channel`. Writer: api.

use crate::{Error, Tx, sql};
use chrono::{DateTime, Utc};

/// What may be shown of a secret.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Name {
    pub scope: String,
    pub name: String,
    pub updated_at: DateTime<Utc>,
    pub updated_by: String,
}

pub async fn put(
    tx: &mut Tx,
    scope: &str,
    name: &str,
    sealed: &[u8],
    by: &str,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    sql("INSERT INTO secrets (scope, name, sealed, updated_at, updated_by) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (scope, name) DO UPDATE SET sealed = excluded.sealed, updated_at = excluded.updated_at, updated_by = excluded.updated_by")
    .bind(scope)
    .bind(name)
    .bind(sealed)
    .bind(now)
    .bind(by)
    .execute_one(tx)
    .await
}

pub async fn sealed(tx: &mut Tx, scope: &str, name: &str) -> Result<Option<Vec<u8>>, Error> {
    sql("SELECT sealed FROM secrets WHERE scope = $1 AND name = $2").bind(scope).bind(name).fetch_scalar(tx).await
}

pub async fn names(tx: &mut Tx) -> Result<Vec<Name>, Error> {
    sql("SELECT scope, name, updated_at, updated_by FROM secrets ORDER BY scope, name").fetch_all(tx).await
}
