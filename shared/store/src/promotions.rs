//! What was verified where, and the promotions that policies ask for by themselves. Writer: scheduler.

use crate::{Error, Tx, sql};
use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;
use windlass_domain::{
    Timestamp,
    ids::{ArtifactId, DeploymentId},
    promotion::Verified,
};

/// That an artifact ended well in the whole of an environment.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    pub environment: String,
    pub digest: String,
    pub version: String,
    pub artifact: ArtifactId,
    pub deployment: DeploymentId,
    pub at: Timestamp,
    /// It was rolled back, or a person took it back: it proves nothing any more.
    pub withdrawn: Option<Withdrawn>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Withdrawn {
    pub by: String,
    pub reason: String,
    pub at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Row {
    environment: String,
    digest: String,
    version: String,
    artifact_id: Uuid,
    deployment_id: Uuid,
    at: DateTime<Utc>,
    withdrawn_at: Option<DateTime<Utc>>,
    withdrawn_by: Option<String>,
    reason: Option<String>,
}

impl From<Row> for Proof {
    fn from(r: Row) -> Proof {
        Proof {
            environment: r.environment,
            digest: r.digest,
            version: r.version,
            artifact: ArtifactId(r.artifact_id),
            deployment: DeploymentId(r.deployment_id),
            at: r.at,
            withdrawn: r.withdrawn_at.map(|at| Withdrawn {
                by: r.withdrawn_by.unwrap_or_default(),
                reason: r.reason.unwrap_or_default(),
                at,
            }),
        }
    }
}

/// Remembers a proof; a newer one of the same digest takes the place of the old, and `at` begins anew only when the old one
/// was withdrawn: what was good yesterday and is deployed again today was good all along.
pub async fn verify(tx: &mut Tx, project: &str, p: &Proof) -> Result<(), Error> {
    sql("INSERT INTO verified (project, environment, digest, version, artifact_id, deployment_id, at, withdrawn_at, withdrawn_by, reason)
         VALUES ($1, $2, $3, $4, $5, $6, $7, NULL, NULL, NULL)
         ON CONFLICT (project, environment, digest) DO UPDATE SET
           version = excluded.version, artifact_id = excluded.artifact_id, deployment_id = excluded.deployment_id,
           at = CASE WHEN verified.withdrawn_at IS NULL THEN verified.at ELSE excluded.at END,
           withdrawn_at = NULL, withdrawn_by = NULL, reason = NULL")
        .bind(project)
        .bind(&p.environment)
        .bind(&p.digest)
        .bind(&p.version)
        .bind(p.artifact)
        .bind(p.deployment)
        .bind(p.at)
        .execute_one(tx)
        .await
}

/// Takes back what a deployment had proven. False: it had proven nothing, or that was taken back before.
pub async fn withdraw(
    tx: &mut Tx,
    deployment: DeploymentId,
    by: &str,
    reason: &str,
    now: Timestamp,
) -> Result<bool, Error> {
    // A promotion that waits was asked for by what is taken back now.
    sql("DELETE FROM promotions WHERE state IN ('due', 'waiting') AND EXISTS (SELECT 1 FROM verified v WHERE v.project = promotions.project
           AND v.environment = promotions.from_environment AND v.digest = promotions.digest AND v.deployment_id = $1)")
        .bind(deployment)
        .execute(tx)
        .await?;
    let n = sql("UPDATE verified SET withdrawn_at = $2, withdrawn_by = $3, reason = $4
         WHERE deployment_id = $1 AND withdrawn_at IS NULL")
    .bind(deployment)
    .bind(now)
    .bind(by)
    .bind(reason)
    .execute(tx)
    .await?;
    Ok(n > 0)
}

/// Where a digest is verified now. In a write transaction it stays so until that ends.
pub async fn of_digest(tx: &mut Tx, project: &str, digest: &str) -> Result<Vec<Verified>, Error> {
    let lock = if tx.is_write() { tx.for_share() } else { "" };
    let rows: Vec<(String, DateTime<Utc>)> = sql(AssertSqlSafe(format!(
        "SELECT environment, at FROM verified WHERE project = $1 AND digest = $2 AND withdrawn_at IS NULL ORDER BY environment{lock}"
    )))
    .bind(project)
    .bind(digest)
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(|(environment, at)| Verified { environment, at }).collect())
}

/// All proofs of a project, withdrawn ones too, newest first.
pub async fn of_project(tx: &mut Tx, project: &str, limit: u32) -> Result<Vec<Proof>, Error> {
    let rows: Vec<Row> =
        sql("SELECT environment, digest, version, artifact_id, deployment_id, at, withdrawn_at, withdrawn_by, reason
         FROM verified WHERE project = $1 ORDER BY at DESC, environment LIMIT $2")
        .bind(project)
        .bind(limit)
        .fetch_all(tx)
        .await?;
    Ok(rows.into_iter().map(Proof::from).collect())
}

/// A promotion that a policy asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Promotion {
    pub project: String,
    /// Where to.
    pub environment: String,
    pub digest: String,
    pub from: String,
    pub policy: String,
    pub artifact: ArtifactId,
    /// The deployment that will be requested.
    pub deployment: DeploymentId,
    pub due_at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct PromotionRow {
    project: String,
    environment: String,
    digest: String,
    from_environment: String,
    policy: String,
    artifact_id: Uuid,
    deployment_id: Uuid,
    due_at: DateTime<Utc>,
}

/// Asks for a promotion, once an artifact and environment. False: it was asked for before.
pub async fn ask(tx: &mut Tx, p: &Promotion, now: Timestamp) -> Result<bool, Error> {
    let n = sql("INSERT INTO promotions (project, environment, digest, from_environment, policy, artifact_id, deployment_id, state, reason, due_at, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'due', '', $8, $9) ON CONFLICT DO NOTHING")
        .bind(&p.project)
        .bind(&p.environment)
        .bind(&p.digest)
        .bind(&p.from)
        .bind(&p.policy)
        .bind(p.artifact)
        .bind(p.deployment)
        .bind(p.due_at)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(n == 1)
}

/// Leaves a promotion to a later time. [`Error::Conflict`]: another process has settled it, or it was taken back.
pub async fn postpone(tx: &mut Tx, p: &Promotion, until: Timestamp) -> Result<(), Error> {
    sql("UPDATE promotions SET due_at = $4 WHERE project = $1 AND environment = $2 AND digest = $3 AND state = 'due'")
        .bind(&p.project)
        .bind(&p.environment)
        .bind(&p.digest)
        .bind(until)
        .execute_one(tx)
        .await
}

/// Locks a promotion that is still due until the end of the transaction. False: it was settled, or taken back.
pub async fn lock_due(tx: &mut Tx, p: &Promotion) -> Result<bool, Error> {
    let lock = tx.for_update();
    let found: Option<String> = sql(AssertSqlSafe(format!(
        "SELECT state FROM promotions WHERE project = $1 AND environment = $2 AND digest = $3 AND state = 'due'{lock}"
    )))
    .bind(&p.project)
    .bind(&p.environment)
    .bind(&p.digest)
    .fetch_scalar(tx)
    .await?;
    Ok(found.is_some())
}

/// A digest was verified somewhere: what waits for that is due. Those that are due are locked as well: whoever is about to let
/// one wait has looked at the proofs behind [`lock_due`], and either sees this one or is seen. True: there are any.
pub async fn wake(tx: &mut Tx, project: &str, digest: &str, now: Timestamp) -> Result<bool, Error> {
    let n = sql(
        "UPDATE promotions SET due_at = CASE WHEN state = 'waiting' THEN $3 ELSE due_at END, state = 'due', reason = ''
         WHERE project = $1 AND digest = $2 AND state IN ('due', 'waiting')",
    )
    .bind(project)
    .bind(digest)
    .bind(now)
    .execute(tx)
    .await?;
    Ok(n > 0)
}

/// Those whose time has come.
pub async fn due(tx: &mut Tx, now: Timestamp, limit: u32) -> Result<Vec<Promotion>, Error> {
    let rows: Vec<PromotionRow> =
        sql("SELECT project, environment, digest, from_environment, policy, artifact_id, deployment_id, due_at
         FROM promotions WHERE state = 'due' AND due_at <= $1 ORDER BY due_at LIMIT $2")
        .bind(now)
        .bind(limit)
        .fetch_all(tx)
        .await?;
    Ok(rows
        .into_iter()
        .map(|r| Promotion {
            project: r.project,
            environment: r.environment,
            digest: r.digest,
            from: r.from_environment,
            policy: r.policy,
            artifact: ArtifactId(r.artifact_id),
            deployment: DeploymentId(r.deployment_id),
            due_at: r.due_at,
        })
        .collect())
}

/// Settles a promotion: `requested`, or `refused` with the reason; or leaves it `waiting` for the proof that the reason names.
/// [`Error::Conflict`]: another process has settled it, or it was taken back.
pub async fn settle(tx: &mut Tx, p: &Promotion, state: &str, reason: &str) -> Result<(), Error> {
    sql("UPDATE promotions SET state = $4, reason = $5 WHERE project = $1 AND environment = $2 AND digest = $3 AND state = 'due'")
        .bind(&p.project)
        .bind(&p.environment)
        .bind(&p.digest)
        .bind(state)
        .bind(reason)
        .execute_one(tx)
        .await
}
