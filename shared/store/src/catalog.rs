//! The catalog: current documents and every revision of them. Writer: api. `doc` is the JSON of a domain `Item`.

use crate::{Error, Tx, Value, decode, sql};
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, types::Json};
use windlass_domain::catalog::{Item, Kind};

/// A current document.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    pub revision: u64,
    pub item: Item,
}

#[derive(sqlx::FromRow)]
struct Row {
    key: String,
    revision: i64,
    doc: Json<serde_json::Value>,
}

impl TryFrom<Row> for Entry {
    type Error = Error;
    fn try_from(r: Row) -> Result<Entry, Error> {
        Ok(Entry { key: r.key, revision: r.revision.unsigned_abs(), item: decode("catalog item", r.doc.0)? })
    }
}

/// A document that exists and is not deleted.
pub async fn get(tx: &mut Tx, kind: Kind, key: &str) -> Result<Option<Entry>, Error> {
    let row: Option<Row> =
        sql("SELECT key, revision, doc FROM catalog WHERE kind = $1 AND key = $2 AND deleted = FALSE")
            .bind(kind.as_str())
            .bind(key)
            .fetch_optional(tx)
            .await?;
    row.map(Entry::try_from).transpose()
}

/// All current documents of a kind, by key.
pub async fn all(tx: &mut Tx, kind: Kind) -> Result<Vec<Item>, Error> {
    let rows: Vec<Row> = sql("SELECT key, revision, doc FROM catalog WHERE kind = $1 AND deleted = FALSE ORDER BY key")
        .bind(kind.as_str())
        .fetch_all(tx)
        .await?;
    rows.into_iter().map(|r| Entry::try_from(r).map(|e| e.item)).collect()
}

/// Keys of a kind, of one project where given.
pub async fn keys(tx: &mut Tx, kind: Kind, project: Option<&str>) -> Result<Vec<String>, Error> {
    let rows: Vec<(String,)> = sql(
        "SELECT key FROM catalog WHERE kind = $1 AND ($2 IS NULL OR project = $2) AND deleted = FALSE ORDER BY key",
    )
    .bind(kind.as_str())
    .bind(project)
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(|(k,)| k).collect())
}

/// A number that changes with every save of the catalog.
pub async fn stamp(tx: &mut Tx) -> Result<i64, Error> {
    let n: Option<i64> = sql("SELECT CAST(COALESCE(SUM(revision), 0) AS BIGINT) FROM catalog").fetch_scalar(tx).await?;
    Ok(n.unwrap_or(0))
}

/// A document with when and by whom it was saved; deleted ones too, because their revisions go on.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Saved {
    pub kind: String,
    pub key: String,
    pub project: Option<String>,
    pub revision: i64,
    pub doc: Json<serde_json::Value>,
    pub deleted: bool,
    pub updated_at: DateTime<Utc>,
    pub updated_by: String,
}

#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Revision {
    pub revision: i64,
    pub doc: Json<serde_json::Value>,
    pub deleted: bool,
    pub author: String,
    pub at: DateTime<Utc>,
}

/// The row of a key, deleted or not, locked until the end of a write transaction.
pub async fn row(tx: &mut Tx, kind: Kind, key: &str) -> Result<Option<Saved>, Error> {
    let lock = if tx.is_write() { tx.for_update() } else { "" };
    sql(AssertSqlSafe(format!(
        "SELECT kind, key, project, revision, doc, deleted, updated_at, updated_by FROM catalog WHERE kind = $1 AND key = $2{lock}"
    )))
    .bind(kind.as_str())
    .bind(key)
    .fetch_optional(tx)
    .await
}

/// Current documents of a kind by key, after `after`; of one project where given.
pub async fn page(
    tx: &mut Tx,
    kind: Kind,
    project: Option<&str>,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<Saved>, Error> {
    sql("SELECT kind, key, project, revision, doc, deleted, updated_at, updated_by FROM catalog
         WHERE kind = $1 AND ($2 IS NULL OR project = $2) AND ($3 IS NULL OR key > $3) AND deleted = FALSE ORDER BY key LIMIT $4")
    .bind(kind.as_str())
    .bind(project)
    .bind(after)
    .bind(limit)
    .fetch_all(tx)
    .await
}

/// Newest first, older than `before`.
pub async fn revisions(
    tx: &mut Tx,
    kind: Kind,
    key: &str,
    before: Option<i64>,
    limit: u32,
) -> Result<Vec<Revision>, Error> {
    sql("SELECT revision, doc, deleted, author, at FROM catalog_revisions
         WHERE kind = $1 AND key = $2 AND ($3 IS NULL OR revision < $3) ORDER BY revision DESC LIMIT $4")
    .bind(kind.as_str())
    .bind(key)
    .bind(before)
    .bind(limit)
    .fetch_all(tx)
    .await
}

/// One revision.
pub async fn revision(tx: &mut Tx, kind: Kind, key: &str, revision: i64) -> Result<Option<Revision>, Error> {
    sql("SELECT revision, doc, deleted, author, at FROM catalog_revisions WHERE kind = $1 AND key = $2 AND revision = $3")
        .bind(kind.as_str())
        .bind(key)
        .bind(revision)
        .fetch_optional(tx)
        .await
}

/// Saves the revision after `over` (0: the key is new). [`Error::Conflict`] when somebody else saved in between.
pub async fn save(
    tx: &mut Tx,
    item: &Item,
    over: i64,
    deleted: bool,
    author: &str,
    now: DateTime<Utc>,
) -> Result<i64, Error> {
    let (kind, key, next) = (item.kind().as_str(), item.key(), over + 1);
    let n = if over == 0 {
        sql("INSERT INTO catalog (kind, key, project, revision, doc, deleted, updated_at, updated_by)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING")
        .bind(kind)
        .bind(&key)
        .bind(item.project())
        .bind(next)
        .bind(Value::json(item))
        .bind(deleted)
        .bind(now)
        .bind(author)
        .execute(tx)
        .await?
    } else {
        sql("UPDATE catalog SET revision = $4, doc = $5, deleted = $6, updated_at = $7, updated_by = $8, project = $3
             WHERE kind = $1 AND key = $2 AND revision = $9")
        .bind(kind)
        .bind(&key)
        .bind(item.project())
        .bind(next)
        .bind(Value::json(item))
        .bind(deleted)
        .bind(now)
        .bind(author)
        .bind(over)
        .execute(tx)
        .await?
    };
    if n != 1 {
        return Err(Error::Conflict);
    }
    sql("INSERT INTO catalog_revisions (kind, key, revision, doc, deleted, author, at) VALUES ($1, $2, $3, $4, $5, $6, $7)")
        .bind(kind)
        .bind(&key)
        .bind(next)
        .bind(Value::json(item))
        .bind(deleted)
        .bind(author)
        .bind(now)
        .execute_one(tx)
        .await?;
    Ok(next)
}
