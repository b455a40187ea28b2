//! Artifacts, immutable once registered. Writer: api.

use crate::{Error, Tx, Value, decode, sql};
use chrono::{DateTime, Utc};
use sqlx::types::Json;
use windlass_domain::{artifact::Artifact, ids::ArtifactId};

/// An artifact with the time of its registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    pub artifact: Artifact,
    pub created_at: DateTime<Utc>,
}

#[derive(Debug, sqlx::FromRow)]
struct Row {
    doc: Json<serde_json::Value>,
    created_at: DateTime<Utc>,
}

impl TryFrom<Row> for Registered {
    type Error = Error;
    fn try_from(r: Row) -> Result<Registered, Error> {
        Ok(Registered { artifact: decode("artifact", r.doc.0)?, created_at: r.created_at })
    }
}

/// False when the project has this version already; a racing registration is waited for first.
pub async fn insert(tx: &mut Tx, a: &Artifact, now: DateTime<Utc>) -> Result<bool, Error> {
    let n = sql("INSERT INTO artifacts (id, project, version, digest, doc, created_at) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT DO NOTHING")
    .bind(a.id)
    .bind(&a.project)
    .bind(&a.version)
    .bind(&a.digest)
    .bind(Value::json(a))
    .bind(now)
    .execute(tx)
    .await?;
    Ok(n == 1)
}

pub async fn by_version(tx: &mut Tx, project: &str, version: &str) -> Result<Option<Registered>, Error> {
    let row: Option<Row> = sql("SELECT doc, created_at FROM artifacts WHERE project = $1 AND version = $2")
        .bind(project)
        .bind(version)
        .fetch_optional(tx)
        .await?;
    row.map(Registered::try_from).transpose()
}

/// Of one project, newest first, older than `before`.
pub async fn list(
    tx: &mut Tx,
    project: &str,
    before: Option<(DateTime<Utc>, ArtifactId)>,
    limit: u32,
) -> Result<Vec<Registered>, Error> {
    let (at, id) = before.map_or_else(crate::newest, |(at, id)| (at, id.0));
    let rows: Vec<Row> = sql("SELECT doc, created_at FROM artifacts
         WHERE project = $1 AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4")
    .bind(project)
    .bind(at)
    .bind(id)
    .bind(limit)
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(Registered::try_from).collect()
}

/// The artifact a release refers to.
pub async fn by_id(tx: &mut Tx, id: ArtifactId) -> Result<Option<Artifact>, Error> {
    let row: Option<Row> =
        sql("SELECT doc, created_at FROM artifacts WHERE id = $1").bind(id).fetch_optional(tx).await?;
    Ok(row.map(Registered::try_from).transpose()?.map(|r| r.artifact))
}
