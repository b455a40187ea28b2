//! Works and the claims on them. The scheduler inserts and aborts works and applies results; everything about claims
//! after the first row belongs to the executor that holds the epoch.

use crate::{Error, Tx, Value, decode, sql};
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, types::Json};
use std::time::Duration;
use uuid::Uuid;
use windlass_domain::{
    Timestamp,
    ids::{DeploymentId, WorkId},
    work::{Desired, Work, WorkResult},
};

const WORK_COLUMNS: &str = "w.id, w.deployment_id, w.project, w.environment, w.pool, w.desired, w.fence, w.plan_digest, \
                            w.spec, w.trace, w.created_at";

#[derive(Debug, sqlx::FromRow)]
struct WorkRow {
    id: Uuid,
    deployment_id: Uuid,
    project: String,
    environment: String,
    pool: String,
    desired: String,
    fence: i64,
    plan_digest: String,
    spec: Json<serde_json::Value>,
    trace: Option<String>,
    created_at: DateTime<Utc>,
}

/// A work as stored, with when it was made.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredWork {
    pub work: Work,
    pub created_at: Timestamp,
}

impl TryFrom<WorkRow> for StoredWork {
    type Error = Error;
    fn try_from(r: WorkRow) -> Result<StoredWork, Error> {
        let work = Work {
            id: WorkId(r.id),
            deployment: DeploymentId(r.deployment_id),
            project: r.project,
            environment: r.environment,
            pool: r.pool,
            desired: desired(&r.desired)?,
            fence: r.fence.unsigned_abs(),
            plan_digest: r.plan_digest,
            spec: decode("works.spec", r.spec.0)?,
            trace: r.trace,
        };
        Ok(StoredWork { work, created_at: r.created_at })
    }
}

fn desired(text: &str) -> Result<Desired, Error> {
    match text {
        "run" => Ok(Desired::Run),
        "hold" => Ok(Desired::Hold),
        "abort" => Ok(Desired::Abort),
        _ => Err(Error::Unknown("works.desired")),
    }
}

fn desired_text(d: Desired) -> &'static str {
    match d {
        Desired::Run => "run",
        Desired::Hold => "hold",
        Desired::Abort => "abort",
    }
}

/// Makes a work that any executor of its pool may claim. Ring `subjects::work(pool)` after the commit.
pub async fn insert(tx: &mut Tx, work: &Work) -> Result<(), Error> {
    let now = tx.now().await?;
    sql("INSERT INTO works (id, deployment_id, project, environment, pool, desired, fence, plan_digest, spec, applied, trace, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, $10, $11)")
    .bind(work.id)
    .bind(work.deployment)
    .bind(&work.project)
    .bind(&work.environment)
    .bind(&work.pool)
    .bind(desired_text(work.desired))
    .bind(work.fence)
    .bind(&work.plan_digest)
    .bind(Value::json(&work.spec))
    .bind(work.trace.as_deref())
    .bind(now)
    .execute_one(tx)
    .await?;
    sql("INSERT INTO work_claims (work_id, deployment_id, pool, owner, epoch, expires_at, phase, result, result_version, updated_at)
         VALUES ($1, $2, $3, NULL, 0, NULL, 'ready', NULL, 0, $4)")
    .bind(work.id)
    .bind(work.deployment)
    .bind(&work.pool)
    .bind(now)
    .execute_one(tx)
    .await
}

/// Turns every work of the deployment to abort. From the commit on no grant can be made. Returns the works and pools to
/// ring: those not settled yet, or settled with hosts that may still come back.
pub async fn abort(tx: &mut Tx, deployment: DeploymentId) -> Result<Vec<(WorkId, String)>, Error> {
    let rows: Vec<(Uuid, String)> =
        sql("UPDATE works SET desired = 'abort' WHERE deployment_id = $1 AND desired <> 'abort' RETURNING id, pool")
            .bind(deployment)
            .fetch_all(tx)
            .await?;
    Ok(rows.into_iter().map(|(id, pool)| (WorkId(id), pool)).collect())
}

/// Turns one work to abort: what it runs is stopped, and it settles.
pub async fn abort_one(tx: &mut Tx, work: WorkId) -> Result<(), Error> {
    sql("UPDATE works SET desired = 'abort' WHERE id = $1").bind(work).execute(tx).await.map(|_| ())
}

/// Turns the works of the deployment that run to hold, or back. From the commit of a hold on nothing is offered or granted.
pub async fn hold(tx: &mut Tx, deployment: DeploymentId, hold: bool) -> Result<(), Error> {
    let (from, to) = if hold { ("run", "hold") } else { ("hold", "run") };
    sql("UPDATE works SET desired = $1 WHERE deployment_id = $2 AND desired = $3")
        .bind(to)
        .bind(deployment)
        .bind(from)
        .execute(tx)
        .await
        .map(|_| ())
}

/// How many works of the deployment are not settled; ABORTED is written only at 0.
pub async fn unsettled(tx: &mut Tx, deployment: DeploymentId) -> Result<u64, Error> {
    let n: Option<i64> = sql("SELECT COUNT(*) FROM work_claims WHERE deployment_id = $1 AND phase <> 'settled'")
        .bind(deployment)
        .fetch_scalar(tx)
        .await?;
    Ok(n.unwrap_or(0).unsigned_abs())
}

/// A result the scheduler has not applied yet.
#[derive(Debug, Clone, PartialEq)]
pub struct ResultToApply {
    pub work: Work,
    pub version: u64,
    pub result: WorkResult,
}

#[derive(Debug, sqlx::FromRow)]
struct ResultRow {
    #[sqlx(flatten)]
    work: WorkRow,
    result: Json<serde_json::Value>,
    result_version: i64,
}

/// Results with a version above `works.applied`, oldest work first; of one deployment or of all.
pub async fn results_to_apply(
    tx: &mut Tx,
    deployment: Option<DeploymentId>,
    limit: u32,
) -> Result<Vec<ResultToApply>, Error> {
    // A text of its own with a deployment: no index serves "this one or all", and it is asked at every move of every one.
    let of = if deployment.is_some() { " AND w.deployment_id = $2" } else { "" };
    let ask = sql(AssertSqlSafe(format!(
        "SELECT {WORK_COLUMNS}, c.result, c.result_version FROM works w JOIN work_claims c ON c.work_id = w.id
         WHERE c.result_version > w.applied AND c.result IS NOT NULL{of} ORDER BY w.id LIMIT $1"
    )))
    .bind(limit);
    let rows: Vec<ResultRow> = match deployment {
        Some(id) => ask.bind(id),
        None => ask,
    }
    .fetch_all(tx)
    .await?;
    rows.into_iter()
        .map(|r| {
            Ok(ResultToApply {
                work: StoredWork::try_from(r.work)?.work,
                version: r.result_version.unsigned_abs(),
                result: decode("work_claims.result", r.result.0)?,
            })
        })
        .collect()
}

/// Records that the scheduler has applied this version; `Conflict` when a same or higher one was applied before.
pub async fn mark_applied(tx: &mut Tx, work: WorkId, version: u64) -> Result<(), Error> {
    sql("UPDATE works SET applied = $2 WHERE id = $1 AND applied < $2").bind(work).bind(version).execute_one(tx).await
}

pub async fn get(tx: &mut Tx, id: WorkId) -> Result<Option<StoredWork>, Error> {
    let row: Option<WorkRow> = sql(AssertSqlSafe(format!("SELECT {WORK_COLUMNS} FROM works w WHERE w.id = $1")))
        .bind(id)
        .fetch_optional(tx)
        .await?;
    row.map(StoredWork::try_from).transpose()
}

pub async fn of_deployment(tx: &mut Tx, deployment: DeploymentId) -> Result<Vec<StoredWork>, Error> {
    let rows: Vec<WorkRow> =
        sql(AssertSqlSafe(format!("SELECT {WORK_COLUMNS} FROM works w WHERE w.deployment_id = $1 ORDER BY w.id")))
            .bind(deployment)
            .fetch_all(tx)
            .await?;
    rows.into_iter().map(StoredWork::try_from).collect()
}

/// A claim just taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    pub work: Work,
    pub created_at: Timestamp,
    pub epoch: u64,
    pub result_version: u64,
    /// Somebody held it before and let it expire or released it.
    pub takeover: bool,
}

/// Whether [`claim`] would find anything.
pub async fn any_claimable(tx: &mut Tx, pools: &[String]) -> Result<bool, Error> {
    let now = tx.now().await?;
    for pool in pools {
        let found: Option<Uuid> = sql(
            "SELECT work_id FROM work_claims WHERE phase <> 'settled' AND pool = $1 AND (expires_at IS NULL OR expires_at < $2)
             LIMIT 1",
        )
        .bind(pool)
        .bind(now)
        .fetch_scalar(tx)
        .await?;
        if found.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How long until the next claim of these pools runs out, if nobody renews it before; `None` when there is none.
pub async fn next_expiry(tx: &mut Tx, pools: &[String]) -> Result<Option<Duration>, Error> {
    let now = tx.now().await?;
    let mut next: Option<Timestamp> = None;
    for pool in pools {
        let at: Option<Timestamp> =
            sql("SELECT MIN(expires_at) FROM work_claims WHERE phase <> 'settled' AND pool = $1 AND expires_at >= $2")
                .bind(pool)
                .bind(now)
                .fetch_scalar(tx)
                .await?;
        next = next.into_iter().chain(at).min();
    }
    Ok(next.map(|at| (at - now).to_std().unwrap_or_default()))
}

/// Takes works of these pools that are ready or whose owner's lease has run out, oldest first. The epoch grows, so every
/// write of an earlier owner hits nothing from the commit on. Works of `driven`, which the caller drives at this moment, are
/// left to their own renewal until a second lease is over: a process that had no CPU for a whole lease would else take its
/// works from itself, again and again, and finish none.
pub async fn claim(
    tx: &mut Tx,
    pools: &[String],
    owner: &str,
    lease: Duration,
    limit: u32,
    driven: &[WorkId],
) -> Result<Vec<Claim>, Error> {
    let now = tx.now().await?;
    let skip = if tx.for_update().is_empty() { "" } else { " FOR UPDATE SKIP LOCKED" };
    let mut taken = Vec::new();
    for pool in pools {
        let room = limit.saturating_sub(u32::try_from(taken.len()).unwrap_or(u32::MAX));
        if room == 0 {
            break;
        }
        let found: Vec<(Uuid, Option<Timestamp>)> = sql(AssertSqlSafe(format!(
            "SELECT work_id, expires_at FROM work_claims
             WHERE phase <> 'settled' AND pool = $1 AND (expires_at IS NULL OR expires_at < $2) ORDER BY work_id LIMIT $3{skip}"
        )))
        .bind(pool)
        .bind(now)
        .bind(room.saturating_add(u32::try_from(driven.len()).unwrap_or(u32::MAX)))
        .fetch_all(tx)
        .await?;
        let late = |at: Option<Timestamp>| at.is_none_or(|at| at + lease < now);
        let free = found.into_iter().filter(|(id, at)| late(*at) || !driven.contains(&WorkId(*id)));
        for (id, _) in free.take(usize::try_from(room).unwrap_or(usize::MAX)) {
            let row: Option<(i64, i64)> = sql(
                "UPDATE work_claims SET owner = $2, epoch = epoch + 1, expires_at = $3, phase = 'running', updated_at = $4
                 WHERE work_id = $1 AND phase <> 'settled' AND (expires_at IS NULL OR expires_at < $4)
                 RETURNING epoch, result_version",
            )
            .bind(id)
            .bind(owner)
            .bind(now + lease)
            .bind(now)
            .fetch_optional(tx)
            .await?;
            let (Some((epoch, result_version)), Some(stored)) = (row, get(tx, WorkId(id)).await?) else { continue };
            taken.push(Claim {
                work: stored.work,
                created_at: stored.created_at,
                epoch: epoch.unsigned_abs(),
                result_version: result_version.unsigned_abs(),
                takeover: epoch > 1,
            });
        }
    }
    Ok(taken)
}

/// Renews a claim; `false` means it is lost and all local state of the work must go.
pub async fn renew(tx: &mut Tx, work: WorkId, epoch: u64, lease: Duration) -> Result<bool, Error> {
    let now = tx.now().await?;
    let n = sql("UPDATE work_claims SET expires_at = $3, updated_at = $4 WHERE work_id = $1 AND epoch = $2 AND phase = 'running'")
        .bind(work)
        .bind(epoch)
        .bind(now + lease)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(n == 1)
}

/// Lets another executor take over at once.
pub async fn release(tx: &mut Tx, work: WorkId, epoch: u64) -> Result<bool, Error> {
    let now = tx.now().await?;
    let n = sql("UPDATE work_claims SET expires_at = $3, updated_at = $4 WHERE work_id = $1 AND epoch = $2 AND phase = 'running'")
        .bind(work)
        .bind(epoch)
        .bind(now - Duration::from_secs(1))
        .bind(now)
        .execute(tx)
        .await?;
    Ok(n == 1)
}

/// Locks the work's row until commit and says what is wanted of it: the gate of dispatch and grant transactions. An abort
/// that committed before is seen, one that comes later waits for this transaction.
pub async fn lock_desired(tx: &mut Tx, work: WorkId) -> Result<Desired, Error> {
    let lock = tx.for_update();
    let text: Option<String> = sql(AssertSqlSafe(format!("SELECT desired FROM works WHERE id = $1{lock}")))
        .bind(work)
        .fetch_scalar(tx)
        .await?;
    text.ok_or(Error::Conflict).and_then(|t| desired(&t))
}

/// [`lock_desired`], and refuses with [`Error::Conflict`] unless the claim is still held at this epoch, which it locks too. Every
/// write of an executor about a work stands behind this (or behind a `WHERE` that says the same).
pub async fn lock_claimed(tx: &mut Tx, work: WorkId, epoch: u64) -> Result<Desired, Error> {
    let lock = tx.for_update();
    let text: Option<String> = sql(AssertSqlSafe(format!(
        "SELECT w.desired FROM works w JOIN work_claims c ON c.work_id = w.id
         WHERE w.id = $1 AND c.epoch = $2 AND c.phase = 'running'{lock}"
    )))
    .bind(work)
    .bind(epoch)
    .fetch_scalar(tx)
    .await?;
    text.ok_or(Error::Conflict).and_then(|t| desired(&t))
}

/// Lets a work begin where it is wanted to run, and writes that down: what is wanted of it, and whether it has begun, now or before.
/// An abort or a pause that committed before is seen, one that comes later waits for this transaction. [`Error::Conflict`]: the
/// claim is lost.
pub async fn begin(tx: &mut Tx, work: WorkId, epoch: u64) -> Result<(Desired, bool), Error> {
    let desired = lock_claimed(tx, work, epoch).await?;
    let begun: Option<bool> =
        sql("SELECT begun_at IS NOT NULL FROM work_claims WHERE work_id = $1").bind(work).fetch_scalar(tx).await?;
    let begun = begun.unwrap_or(false);
    if desired == Desired::Run && !begun {
        let now = tx.now().await?;
        sql("UPDATE work_claims SET begun_at = $2 WHERE work_id = $1").bind(work).bind(now).execute_one(tx).await?;
    }
    Ok((desired, begun || desired == Desired::Run))
}

/// What is wanted of these works now, without a lock.
pub async fn desired_now(tx: &mut Tx, work: WorkId) -> Result<Option<Desired>, Error> {
    let text: Option<String> = sql("SELECT desired FROM works WHERE id = $1").bind(work).fetch_scalar(tx).await?;
    text.map(|t| desired(&t)).transpose()
}

/// Settles a claim: the result at the next version. `Conflict` when the epoch is no longer ours.
pub async fn settle(tx: &mut Tx, work: WorkId, epoch: u64, result: &WorkResult) -> Result<u64, Error> {
    let now = tx.now().await?;
    let version: Option<i64> = sql(
        "UPDATE work_claims SET result = $3, result_version = result_version + 1, phase = 'settled', expires_at = NULL, updated_at = $4
         WHERE work_id = $1 AND epoch = $2 AND phase = 'running' RETURNING result_version",
    )
    .bind(work)
    .bind(epoch)
    .bind(Value::json(result))
    .bind(now)
    .fetch_scalar(tx)
    .await?;
    version.map(i64::unsigned_abs).ok_or(Error::Conflict)
}

/// Takes the claim of a settled work for this transaction, so that a late report can rewrite its result. `None`: it is not
/// settled, its owner has to take the report.
pub async fn reopen(tx: &mut Tx, work: WorkId, owner: &str) -> Result<Option<u64>, Error> {
    let now = tx.now().await?;
    let epoch: Option<i64> = sql(
        "UPDATE work_claims SET owner = $2, epoch = epoch + 1, updated_at = $3 WHERE work_id = $1 AND phase = 'settled'
         RETURNING epoch",
    )
    .bind(work)
    .bind(owner)
    .bind(now)
    .fetch_scalar(tx)
    .await?;
    Ok(epoch.map(i64::unsigned_abs))
}

/// The new result of a settled work, at the next version; `epoch` as [`reopen`] gave it.
pub async fn resettle(tx: &mut Tx, work: WorkId, epoch: u64, result: &WorkResult) -> Result<u64, Error> {
    let now = tx.now().await?;
    let version: Option<i64> =
        sql("UPDATE work_claims SET result = $3, result_version = result_version + 1, updated_at = $4
         WHERE work_id = $1 AND epoch = $2 AND phase = 'settled' RETURNING result_version")
        .bind(work)
        .bind(epoch)
        .bind(Value::json(result))
        .bind(now)
        .fetch_scalar(tx)
        .await?;
    version.map(i64::unsigned_abs).ok_or(Error::Conflict)
}

/// Gives a settled work to whoever claims it next, so that it is settled once more with a higher version: a host of it that
/// came back late has still to be brought back to its load balancers. `epoch` as [`reopen`] gave it. Ring
/// `subjects::work(pool)` after the commit.
pub async fn take_up_again(tx: &mut Tx, work: WorkId, epoch: u64) -> Result<(), Error> {
    let now = tx.now().await?;
    sql("UPDATE work_claims SET phase = 'ready', owner = NULL, expires_at = NULL, updated_at = $3
         WHERE work_id = $1 AND epoch = $2 AND phase = 'settled'")
    .bind(work)
    .bind(epoch)
    .bind(now)
    .execute_one(tx)
    .await
}

/// A claim as it stands, for readers.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimState {
    pub owner: Option<String>,
    pub epoch: u64,
    pub phase: String,
    pub result: Option<WorkResult>,
    pub result_version: u64,
}

#[derive(Debug, sqlx::FromRow)]
struct ClaimRow {
    owner: Option<String>,
    epoch: i64,
    phase: String,
    result: Option<Json<serde_json::Value>>,
    result_version: i64,
}

pub async fn claim_state(tx: &mut Tx, work: WorkId) -> Result<Option<ClaimState>, Error> {
    let row: Option<ClaimRow> =
        sql("SELECT owner, epoch, phase, result, result_version FROM work_claims WHERE work_id = $1")
            .bind(work)
            .fetch_optional(tx)
            .await?;
    row.map(|r| {
        Ok(ClaimState {
            owner: r.owner,
            epoch: r.epoch.unsigned_abs(),
            phase: r.phase,
            result: r.result.map(|j| decode("work_claims.result", j.0)).transpose()?,
            result_version: r.result_version.unsigned_abs(),
        })
    })
    .transpose()
}
