//! Projects that live in Git: what was fetched, what was applied, what is wrong. Writer: api, under the lease of the job.

use crate::{Error, Tx, Value, decode, sql};
use chrono::{DateTime, Utc};
use sqlx::types::Json;
use windlass_contracts::http::{AppliedItem, Fault};
use windlass_domain::Timestamp;

/// Where a project's repository stands.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceState {
    pub project: String,
    pub fetched_commit: Option<String>,
    pub applied_commit: Option<String>,
    /// `new`, `applied`, `broken` (its documents), `unreachable` (its repository).
    pub state: String,
    pub detail: String,
    pub faults: Vec<Fault>,
    /// All that came from here: kind, key and what its last apply changed.
    pub items: Vec<AppliedItem>,
    /// When to look again; the past: now.
    pub refresh_at: Timestamp,
    pub fetched_at: Option<Timestamp>,
    pub applied_at: Option<Timestamp>,
}

#[derive(sqlx::FromRow)]
struct Row {
    project: String,
    fetched_commit: Option<String>,
    applied_commit: Option<String>,
    state: String,
    detail: String,
    faults: Json<serde_json::Value>,
    items: Json<serde_json::Value>,
    refresh_at: DateTime<Utc>,
    fetched_at: Option<DateTime<Utc>>,
    applied_at: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for SourceState {
    type Error = Error;
    fn try_from(r: Row) -> Result<SourceState, Error> {
        Ok(SourceState {
            project: r.project,
            fetched_commit: r.fetched_commit,
            applied_commit: r.applied_commit,
            state: r.state,
            detail: r.detail,
            faults: decode("source faults", r.faults.0)?,
            items: decode("source items", r.items.0)?,
            refresh_at: r.refresh_at,
            fetched_at: r.fetched_at,
            applied_at: r.applied_at,
        })
    }
}

const COLUMNS: &str =
    "project, fetched_commit, applied_commit, state, detail, faults, items, refresh_at, fetched_at, applied_at";

pub async fn get(tx: &mut Tx, project: &str) -> Result<Option<SourceState>, Error> {
    let row: Option<Row> = sql(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM sources WHERE project = $1")))
        .bind(project)
        .fetch_optional(tx)
        .await?;
    row.map(SourceState::try_from).transpose()
}

/// Saves what a look that began at `known` came to. A [`refresh`] that was asked for since then stays asked for.
pub async fn save(tx: &mut Tx, s: &SourceState, known: Option<Timestamp>) -> Result<(), Error> {
    sql("INSERT INTO sources (project, fetched_commit, applied_commit, state, detail, faults, items, refresh_at, fetched_at, applied_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         ON CONFLICT (project) DO UPDATE SET fetched_commit = excluded.fetched_commit, applied_commit = excluded.applied_commit,
           state = excluded.state, detail = excluded.detail, faults = excluded.faults, items = excluded.items,
           refresh_at = CASE WHEN sources.refresh_at = $11 THEN excluded.refresh_at ELSE sources.refresh_at END, fetched_at = excluded.fetched_at, applied_at = excluded.applied_at")
        .bind(&s.project)
        .bind(s.fetched_commit.as_deref())
        .bind(s.applied_commit.as_deref())
        .bind(&s.state)
        .bind(&s.detail)
        .bind(Value::json(&s.faults))
        .bind(Value::json(&s.items))
        .bind(s.refresh_at)
        .bind(s.fetched_at)
        .bind(s.applied_at)
        .bind(known)
        .execute_one(tx)
        .await
}

/// Asks for a look now. False: the project's repository was never looked at, so it is due anyway.
pub async fn refresh(tx: &mut Tx, project: &str, now: Timestamp) -> Result<bool, Error> {
    let n = sql("UPDATE sources SET refresh_at = $2 WHERE project = $1").bind(project).bind(now).execute(tx).await?;
    Ok(n == 1)
}
