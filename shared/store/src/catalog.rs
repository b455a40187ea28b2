//! The catalog: current documents and every revision of them. Writer: api. `doc` is the JSON of a domain `Item`.

use crate::{Error, Tx, decode, sql};
use sqlx::types::Json;
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
    let row: Option<Row> = sql("SELECT key, revision, doc FROM catalog WHERE kind = $1 AND key = $2 AND deleted = FALSE")
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
    let rows: Vec<(String,)> = sql("SELECT key FROM catalog WHERE kind = $1 AND ($2 IS NULL OR project = $2) AND deleted = FALSE ORDER BY key")
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
