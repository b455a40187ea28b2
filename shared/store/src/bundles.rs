//! Release bundles and which deployments belong to them. Writer: scheduler.

use crate::{Error, Tx, Value, commands, decode, sql};
use sqlx::types::Json;
use uuid::Uuid;
use windlass_contracts::command::Command;
use windlass_domain::{
    Timestamp,
    bundle::Bundle,
    ids::{BundleId, CommandId, DeploymentId},
};

/// A bundle with the version its next save must name.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub bundle: Bundle,
    pub version: u64,
}

#[derive(sqlx::FromRow)]
struct Row {
    doc: Json<serde_json::Value>,
    version: i64,
}

impl TryFrom<Row> for Stored {
    type Error = Error;
    fn try_from(r: Row) -> Result<Stored, Error> {
        Ok(Stored { bundle: decode("bundle", r.doc.0)?, version: r.version.unsigned_abs() })
    }
}

pub async fn insert(tx: &mut Tx, b: &Bundle) -> Result<(), Error> {
    sql("INSERT INTO bundles (id, state, version, wake_at, created_at, updated_at, doc) VALUES ($1, $2, 1, $3, $4, $4, $5)")
        .bind(b.id)
        .bind(b.state.as_str())
        .bind(b.wake_at())
        .bind(b.requested_at)
        .bind(Value::json(b))
        .execute_one(tx)
        .await?;
    for m in &b.members {
        add_member(tx, b.id, m.deployment, &m.project).await?;
    }
    Ok(())
}

/// A deployment that belongs to a bundle from now on.
pub async fn add_member(tx: &mut Tx, b: BundleId, d: DeploymentId, project: &str) -> Result<(), Error> {
    sql("INSERT INTO bundle_members (deployment_id, bundle_id, project) VALUES ($1, $2, $3)")
        .bind(d)
        .bind(b)
        .bind(project)
        .execute_one(tx)
        .await
}

/// Saves what was loaded at `version`; [`Error::Conflict`] when somebody else saved in between.
pub async fn save(tx: &mut Tx, b: &Bundle, version: u64, now: Timestamp) -> Result<(), Error> {
    sql("UPDATE bundles SET state = $3, version = version + 1, wake_at = $4, updated_at = $5, doc = $6 WHERE id = $1 AND version = $2")
        .bind(b.id)
        .bind(version)
        .bind(b.state.as_str())
        .bind(b.wake_at())
        .bind(now)
        .bind(Value::json(b))
        .execute_one(tx)
        .await
}

pub async fn get(tx: &mut Tx, id: BundleId) -> Result<Option<Stored>, Error> {
    let row: Option<Row> = sql("SELECT doc, version FROM bundles WHERE id = $1").bind(id).fetch_optional(tx).await?;
    row.map(Stored::try_from).transpose()
}

/// Newest first, older than `before`; of one state where given.
pub async fn list(
    tx: &mut Tx,
    state: Option<&str>,
    before: Option<(Timestamp, BundleId)>,
    limit: u32,
) -> Result<Vec<Stored>, Error> {
    let (at, id) = before.map_or((None, None), |(at, id)| (Some(at), Some(id)));
    let rows: Vec<Row> = sql("SELECT doc, version FROM bundles
         WHERE ($1 IS NULL OR state = $1) AND ($2 IS NULL OR (created_at, id) < ($2, $3))
         ORDER BY created_at DESC, id DESC LIMIT $4")
    .bind(state)
    .bind(at)
    .bind(id)
    .bind(limit)
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(Stored::try_from).collect()
}

/// Bundles to look at though no message came: undecided commands, and every one that has not ended, because what its members
/// do (and what is rolled back for them) is seen only by looking.
pub async fn due(tx: &mut Tx, now: Timestamp) -> Result<Vec<BundleId>, Error> {
    let rows: Vec<(Uuid,)> = sql("SELECT id FROM (
           SELECT bundle_id AS id FROM command_queue WHERE bundle_id IS NOT NULL
           UNION SELECT id FROM bundles WHERE state IN ('awaiting_approval', 'running', 'paused', 'rolling_back')
           UNION SELECT id FROM bundles WHERE wake_at IS NOT NULL AND wake_at <= $1
         ) AS due LIMIT 1000")
    .bind(now)
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(|(id,)| BundleId(id)).collect())
}

/// Undecided commands of a bundle, oldest first.
pub async fn queued(tx: &mut Tx, bundle: BundleId) -> Result<Vec<Command>, Error> {
    let rows: Vec<commands::Row> = sql("SELECT c.id, c.project, c.environment, c.deployment_id, c.actor, c.payload, c.trace, c.created_at
         FROM command_queue q JOIN commands c ON c.id = q.command_id WHERE q.bundle_id = $1 ORDER BY q.created_at, q.command_id")
    .bind(bundle)
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(Command::try_from).collect()
}

/// The bundle an undecided command is about.
pub async fn of_command(tx: &mut Tx, id: CommandId) -> Result<Option<BundleId>, Error> {
    let found: Option<Option<Uuid>> =
        sql("SELECT bundle_id FROM command_queue WHERE command_id = $1").bind(id).fetch_scalar(tx).await?;
    Ok(found.flatten().map(BundleId))
}

/// The bundle a deployment belongs to, or belonged to.
pub async fn of_deployment(tx: &mut Tx, id: DeploymentId) -> Result<Option<BundleId>, Error> {
    let found: Option<Uuid> =
        sql("SELECT bundle_id FROM bundle_members WHERE deployment_id = $1").bind(id).fetch_scalar(tx).await?;
    Ok(found.map(BundleId))
}
