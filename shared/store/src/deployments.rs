//! Deployments with their releases, plans, approvals and the state of their environments. Writer: scheduler.

use crate::{Doc, Error, Tx, Value, decode, read_doc, sql};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, types::Json};
use std::{collections::BTreeSet, fmt::Write};
use uuid::Uuid;
use windlass_domain::{
    Timestamp,
    approval::Approval,
    deployment::Deployment,
    ids::{ArtifactId, DeploymentId, ReleaseId},
    plan::Plan,
    release::Release,
};

/// A deployment with the version its next save must name.
#[derive(Debug, Clone)]
pub struct Stored {
    pub deployment: Deployment,
    pub version: u64,
}

#[derive(sqlx::FromRow)]
struct Row {
    doc: Doc,
    version: i64,
}

impl TryFrom<Row> for Stored {
    type Error = Error;
    fn try_from(r: Row) -> Result<Stored, Error> {
        Ok(Stored { deployment: read_doc("deployment", &r.doc)?, version: r.version.unsigned_abs() })
    }
}

pub async fn insert(tx: &mut Tx, d: &Deployment) -> Result<(), Error> {
    sql("INSERT INTO deployments (id, project, environment, release_id, state, version, wake_at, created_at, updated_at, started_at, doc)
         VALUES ($1, $2, $3, $4, $5, 1, $6, $7, $7, $8, $9)")
    .bind(d.id)
    .bind(&d.project)
    .bind(&d.environment)
    .bind(d.release)
    .bind(d.state.as_str())
    .bind(d.wake_at())
    .bind(d.requested_at)
    .bind(d.started_at)
    .bind(Value::json(d))
    .execute_one(tx)
    .await
}

/// Saves what was loaded at `version`; [`Error::Conflict`] when somebody else saved in between.
pub async fn save(tx: &mut Tx, d: &Deployment, version: u64, now: Timestamp) -> Result<(), Error> {
    sql("UPDATE deployments SET state = $3, version = version + 1, wake_at = $4, updated_at = $5, doc = $6, started_at = $7,
         release_id = $8 WHERE id = $1 AND version = $2")
        .bind(d.id)
        .bind(version)
        .bind(d.state.as_str())
        .bind(d.wake_at())
        .bind(now)
        .bind(Value::json(d))
        .bind(d.started_at)
        .bind(d.release)
        .execute_one(tx)
        .await
}

pub async fn get(tx: &mut Tx, id: DeploymentId) -> Result<Option<Stored>, Error> {
    let row: Option<Row> =
        sql("SELECT doc, version FROM deployments WHERE id = $1").bind(id).fetch_optional(tx).await?;
    row.map(Stored::try_from).transpose()
}

/// A deployment as it is shown, read by one statement so that its parts are of one moment.
#[derive(Debug, Clone)]
pub struct Shown {
    pub stored: Stored,
    /// The document of its project, deleted or not.
    pub project: Option<serde_json::Value>,
    /// The number of its last event.
    pub last_event: u64,
}

pub async fn shown(tx: &mut Tx, id: DeploymentId) -> Result<Option<Shown>, Error> {
    type Row4 = (Doc, i64, Option<Json<serde_json::Value>>, Option<i64>);
    let row: Option<Row4> = sql("SELECT d.doc, d.version, c.doc AS project, h.next FROM deployments d
             LEFT JOIN catalog c ON c.kind = 'project' AND c.key = d.project
             LEFT JOIN event_heads h ON h.aggregate = 'deployment' AND h.aggregate_id = $2 WHERE d.id = $1")
    .bind(id)
    .bind(id.to_string())
    .fetch_optional(tx)
    .await?;
    row.map(|(doc, version, project, next)| {
        Ok(Shown {
            stored: Stored::try_from(Row { doc, version })?,
            project: project.map(|p| p.0),
            last_event: next.map_or(0, |n| n.unsigned_abs().saturating_sub(1)),
        })
    })
    .transpose()
}

/// Deployments of the same environment that started after this one did, the newest first: their ids, 100 at most.
pub async fn started_after(tx: &mut Tx, d: &Deployment) -> Result<Vec<DeploymentId>, Error> {
    let rows: Vec<(Uuid,)> = sql("SELECT id FROM deployments
         WHERE project = $1 AND environment = $2 AND started_at > $3 AND id <> $4 ORDER BY started_at DESC LIMIT 100")
    .bind(&d.project)
    .bind(&d.environment)
    .bind(d.started_at)
    .bind(d.id)
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(|(id,)| DeploymentId(id)).collect())
}

/// Which deployments to list; `None` does not filter.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub project: Option<String>,
    pub environment: Option<String>,
    pub state: Option<String>,
    /// Older than this one: the last of the page before.
    pub before: Option<(Timestamp, DeploymentId)>,
}

/// Newest first.
pub async fn list(tx: &mut Tx, f: &Filter, limit: u32) -> Result<Vec<Stored>, Error> {
    // Only what is asked for stands in the text: no index serves "this one or any".
    let (mut text, mut values) = (String::new(), Vec::<Value>::new());
    for (column, wanted) in [("project", &f.project), ("environment", &f.environment), ("state", &f.state)] {
        if let Some(wanted) = wanted {
            values.push(wanted.into());
            let and = if text.is_empty() { "WHERE" } else { " AND" };
            let _ = write!(text, "{and} {column} = ${}", values.len());
        }
    }
    if let Some((at, id)) = f.before {
        let and = if text.is_empty() { "WHERE" } else { " AND" };
        let _ = write!(text, "{and} (created_at, id) < (${}, ${})", values.len() + 1, values.len() + 2);
        values.extend([at.into(), id.into()]);
    }
    values.push(limit.into());
    let text = format!(
        "SELECT doc, version FROM deployments {text} ORDER BY created_at DESC, id DESC LIMIT ${}",
        values.len()
    );
    let rows: Vec<Row> = values.into_iter().fold(sql(AssertSqlSafe(text)), |ask, v| ask.bind(v)).fetch_all(tx).await?;
    rows.into_iter().map(Stored::try_from).collect()
}

/// As many as [`due`] names at once.
pub const DUE_AT_ONCE: usize = 1000;

/// Deployments that need looking at though no message came: undecided commands, time that has passed, results not yet
/// applied, a free lock with somebody waiting. With `since`, only results that came after it are looked for: every work there
/// ever was need not be read at each poll.
pub async fn due(tx: &mut Tx, now: Timestamp, since: Option<Timestamp>) -> Result<Vec<DeploymentId>, Error> {
    let rows: Vec<(Uuid,)> = sql("SELECT id FROM (
           SELECT deployment_id AS id FROM command_queue WHERE deployment_id IS NOT NULL
           UNION SELECT id FROM deployments WHERE wake_at IS NOT NULL AND wake_at <= $1
           UNION SELECT w.deployment_id AS id FROM work_claims c JOIN works w ON w.id = c.work_id
             WHERE c.updated_at > $2 AND c.result_version > w.applied
           UNION SELECT d.id FROM deployments d LEFT JOIN locks l ON l.project = d.project AND l.environment = d.environment
             WHERE d.state = 'queued' AND l.deployment_id IS NULL
         ) AS due LIMIT 1000")
    .bind(now)
    .bind(since.unwrap_or(DateTime::UNIX_EPOCH))
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(|(id,)| DeploymentId(id)).collect())
}

/// How many deployments hold an environment, by state; states without any are 0.
pub async fn count_active(tx: &mut Tx) -> Result<Vec<(String, u64)>, Error> {
    let rows: Vec<(String, i64)> =
        sql("SELECT state, COUNT(*) FROM deployments WHERE state IN ('running', 'paused', 'aborting') GROUP BY state")
            .fetch_all(tx)
            .await?;
    let found = |state: &str| rows.iter().find(|(s, _)| s == state).map_or(0, |(_, n)| n.unsigned_abs());
    Ok(["running", "paused", "aborting"].map(|s| (s.to_owned(), found(s))).to_vec())
}

pub async fn insert_release(tx: &mut Tx, r: &Release) -> Result<(), Error> {
    let kind = serde_json::to_value(r.kind).map_err(Error::Encode)?;
    sql("INSERT INTO releases (id, project, version, kind, artifact_id, doc, created_at, created_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
    .bind(r.id)
    .bind(&r.project)
    .bind(&r.version)
    .bind(kind.as_str().unwrap_or_default())
    .bind(r.artifact)
    .bind(Value::json(r))
    .bind(r.created_at)
    .bind(&r.created_by)
    .execute_one(tx)
    .await
}

pub async fn release(tx: &mut Tx, id: ReleaseId) -> Result<Option<Release>, Error> {
    let doc: Option<Json<serde_json::Value>> =
        sql("SELECT doc FROM releases WHERE id = $1").bind(id).fetch_scalar(tx).await?;
    doc.map(|d| decode("release", d.0)).transpose()
}

/// Plans are kept as long as their deployment; the same digest is the same plan.
pub async fn insert_plan(
    tx: &mut Tx,
    id: DeploymentId,
    digest: &str,
    plan: &Plan,
    now: Timestamp,
) -> Result<(), Error> {
    sql("INSERT INTO plans (deployment_id, digest, doc, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING")
        .bind(id)
        .bind(digest)
        .bind(Value::json(plan))
        .bind(now)
        .execute(tx)
        .await?;
    Ok(())
}

pub async fn plan(tx: &mut Tx, id: DeploymentId, digest: &str) -> Result<Option<Plan>, Error> {
    let doc: Option<Json<serde_json::Value>> = sql("SELECT doc FROM plans WHERE deployment_id = $1 AND digest = $2")
        .bind(id)
        .bind(digest)
        .fetch_scalar(tx)
        .await?;
    doc.map(|d| decode("plan", d.0)).transpose()
}

pub async fn insert_approval(tx: &mut Tx, a: &Approval) -> Result<(), Error> {
    sql("INSERT INTO approvals (deployment_id, plan_digest, person, doc, at) VALUES ($1, $2, $3, $4, $5)")
        .bind(a.deployment)
        .bind(&a.plan_digest)
        .bind(&a.person)
        .bind(Value::json(a))
        .bind(a.at)
        .execute_one(tx)
        .await
}

/// What ended well in an environment, newest first; the head is the last known good.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EnvironmentState {
    pub good: Vec<Good>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Good {
    pub release: ReleaseId,
    pub artifact: ArtifactId,
    pub deployment: DeploymentId,
    pub version: String,
    pub at: Timestamp,
}

/// How far back "last known good" can reach: artifacts that are told apart, and entries in all, because one that is released
/// again and again must not push the others out.
const GOOD_ARTIFACTS: usize = 20;
const GOOD_ENTRIES: usize = 100;

pub async fn environment_state(tx: &mut Tx, project: &str, environment: &str) -> Result<EnvironmentState, Error> {
    let doc: Option<Json<serde_json::Value>> =
        sql("SELECT doc FROM environment_state WHERE project = $1 AND environment = $2")
            .bind(project)
            .bind(environment)
            .fetch_scalar(tx)
            .await?;
    doc.map_or(Ok(EnvironmentState::default()), |d| decode("environment state", d.0))
}

/// Remembers a release that ended well. The caller holds the environment's lock, so nobody else writes this row.
pub async fn record_good(tx: &mut Tx, project: &str, environment: &str, good: Good) -> Result<(), Error> {
    let mut state = environment_state(tx, project, environment).await?;
    let at = good.at;
    state.good.insert(0, good);
    let mut seen = BTreeSet::new();
    state.good.retain(|g| seen.contains(&g.artifact) || (seen.len() < GOOD_ARTIFACTS && seen.insert(g.artifact)));
    if state.good.len() > GOOD_ENTRIES {
        // The oldest repetition goes, never the newest entry of an artifact.
        let mut newest = BTreeSet::new();
        let repeated: Vec<bool> = state.good.iter().map(|g| !newest.insert(g.artifact)).collect();
        if let Some(last) = repeated.iter().rposition(|r| *r) {
            state.good.remove(last);
        }
    }
    sql("INSERT INTO environment_state (project, environment, doc, updated_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (project, environment) DO UPDATE SET doc = excluded.doc, updated_at = excluded.updated_at")
    .bind(project)
    .bind(environment)
    .bind(Value::json(&state))
    .bind(at)
    .execute_one(tx)
    .await
}

/// The lock of a project and environment, and who waits for it in which order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    pub project: String,
    pub environment: String,
    pub holder: Option<DeploymentId>,
    pub fence: u64,
    pub taken_at: Option<DateTime<Utc>>,
}

/// Holds the lock's row until commit without taking the lock. No deployment of the environment starts meanwhile, and what is
/// read from here on sees every one that has: who decides about a start, or says what starts are decided by, comes through here
/// first.
pub async fn lock_row(tx: &mut Tx, project: &str, environment: &str) -> Result<(), Error> {
    if row_locked(tx, project, environment).await? {
        return Ok(());
    }
    sql("INSERT INTO locks (project, environment, deployment_id, fence, taken_at) VALUES ($1, $2, NULL, 0, NULL) ON CONFLICT DO NOTHING")
        .bind(project)
        .bind(environment)
        .execute(tx)
        .await?;
    // Another transaction may have made it, and hold it.
    row_locked(tx, project, environment).await.map(|_| ())
}

async fn row_locked(tx: &mut Tx, project: &str, environment: &str) -> Result<bool, Error> {
    let lock = tx.for_update();
    let text = format!("SELECT fence FROM locks WHERE project = $1 AND environment = $2{lock}");
    let fence: Option<i64> = sql(AssertSqlSafe(text)).bind(project).bind(environment).fetch_scalar(tx).await?;
    Ok(fence.is_some())
}

/// Takes the lock if it is free, behind [`lock_row`]; who comes first is asked there too.
pub async fn try_lock(tx: &mut Tx, d: &Deployment, now: Timestamp) -> Result<Option<u64>, Error> {
    let fence: Option<i64> = sql("UPDATE locks SET deployment_id = $3, fence = fence + 1, taken_at = $4
         WHERE project = $1 AND environment = $2 AND deployment_id IS NULL RETURNING fence")
    .bind(&d.project)
    .bind(&d.environment)
    .bind(d.id)
    .bind(now)
    .fetch_scalar(tx)
    .await?;
    Ok(fence.map(i64::unsigned_abs))
}

/// Whether it is worth trying: the lock is free and `id` is next. Decides nothing; [`try_lock`] does.
pub async fn may_lock(tx: &mut Tx, id: DeploymentId, project: &str, environment: &str) -> Result<bool, Error> {
    let held: Option<i64> =
        sql("SELECT COUNT(*) FROM locks WHERE project = $1 AND environment = $2 AND deployment_id IS NOT NULL")
            .bind(project)
            .bind(environment)
            .fetch_scalar(tx)
            .await?;
    Ok(held == Some(0) && next_in_queue(tx, project, environment).await? == Some(id))
}

/// Frees the lock if `id` holds it.
pub async fn unlock(tx: &mut Tx, id: DeploymentId, project: &str, environment: &str) -> Result<(), Error> {
    sql("UPDATE locks SET deployment_id = NULL, taken_at = NULL WHERE project = $1 AND environment = $2 AND deployment_id = $3")
        .bind(project)
        .bind(environment)
        .bind(id)
        .execute_one(tx)
        .await
}

/// Rollbacks go first, then what ran before and was taken up again (nothing newer may come between), then first come first served.
const QUEUE: &str = "SELECT d.id FROM deployments d JOIN releases r ON r.id = d.release_id
     WHERE d.project = $1 AND d.environment = $2 AND d.state = 'queued'
     ORDER BY CASE WHEN r.kind = 'rollback' THEN 0 WHEN d.started_at IS NOT NULL THEN 1 ELSE 2 END, d.created_at, d.id";

/// Who waits for the lock of an environment, next first.
pub async fn queue(tx: &mut Tx, project: &str, environment: &str) -> Result<Vec<DeploymentId>, Error> {
    let rows: Vec<(Uuid,)> = sql(QUEUE).bind(project).bind(environment).fetch_all(tx).await?;
    Ok(rows.into_iter().map(|(id,)| DeploymentId(id)).collect())
}

/// Who gets the lock of an environment next.
pub async fn next_in_queue(tx: &mut Tx, project: &str, environment: &str) -> Result<Option<DeploymentId>, Error> {
    let first: Option<Uuid> =
        sql(AssertSqlSafe(format!("{QUEUE} LIMIT 1"))).bind(project).bind(environment).fetch_scalar(tx).await?;
    Ok(first.map(DeploymentId))
}

#[derive(sqlx::FromRow)]
struct LockRow {
    project: String,
    environment: String,
    deployment_id: Option<Uuid>,
    fence: i64,
    taken_at: Option<DateTime<Utc>>,
}

/// All locks that were ever taken, held or free.
pub async fn locks(tx: &mut Tx) -> Result<Vec<Lock>, Error> {
    let rows: Vec<LockRow> =
        sql("SELECT project, environment, deployment_id, fence, taken_at FROM locks ORDER BY project, environment")
            .fetch_all(tx)
            .await?;
    Ok(rows
        .into_iter()
        .map(|r| Lock {
            project: r.project,
            environment: r.environment,
            holder: r.deployment_id.map(DeploymentId),
            fence: r.fence.unsigned_abs(),
            taken_at: r.taken_at,
        })
        .collect())
}
