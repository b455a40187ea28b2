//! Tasks as stored: the document of `domain::task::Task` beside the columns queries need.

use crate::{Doc, Error, Tx, Value, decode, read_doc, sql, works};
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, types::Json};
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use uuid::Uuid;
use windlass_domain::{
    Timestamp,
    approval::Approval,
    ids::{AgentId, DeploymentId, TaskId, WorkId},
    task::Task,
};

const COLUMNS: &str = "t.work_id, t.deployment_id, t.step, t.segment, t.version, t.doc";

/// A task with where it belongs and its row version.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTask {
    pub work: WorkId,
    pub deployment: DeploymentId,
    /// Id of the rollout step.
    pub step: String,
    pub segment: u32,
    pub version: u64,
    pub task: Task,
}

#[derive(Debug, sqlx::FromRow)]
struct Row {
    work_id: Uuid,
    deployment_id: Uuid,
    step: String,
    segment: i64,
    version: i64,
    doc: Doc,
}

impl TryFrom<Row> for StoredTask {
    type Error = Error;
    fn try_from(r: Row) -> Result<StoredTask, Error> {
        Ok(StoredTask {
            work: WorkId(r.work_id),
            deployment: DeploymentId(r.deployment_id),
            step: r.step,
            segment: u32::try_from(r.segment).map_err(|_| Error::Unknown("tasks.segment"))?,
            version: r.version.unsigned_abs(),
            task: read_doc("tasks.doc", &r.doc)?,
        })
    }
}

/// Inserts a new task at version 1. A second attempt of the same number is a unique violation.
pub async fn insert(tx: &mut Tx, t: &StoredTask, now: Timestamp) -> Result<(), Error> {
    sql("INSERT INTO tasks (id, work_id, deployment_id, step, segment, host, agent_id, attempt, state, version, doc, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)")
    .bind(t.task.id)
    .bind(t.work)
    .bind(t.deployment)
    .bind(&t.step)
    .bind(t.segment)
    .bind(&t.task.host)
    .bind(t.task.agent)
    .bind(t.task.attempt)
    .bind(t.task.state.as_str())
    .bind(t.version)
    .bind(Value::json(&t.task))
    .bind(now)
    .execute_one(tx)
    .await
}

/// Stores `next` over the version in `t` and returns the row as it now stands. The claim must be held at `epoch`
/// ([`Error::Conflict`] otherwise): a zombie executor's write hits nothing.
pub async fn store(tx: &mut Tx, t: &StoredTask, next: Task, epoch: u64, now: Timestamp) -> Result<StoredTask, Error> {
    sql("UPDATE tasks SET state = $3, version = $4, doc = $5, updated_at = $6, agent_id = $7 WHERE id = $1 AND version = $2
         AND EXISTS (SELECT 1 FROM work_claims c WHERE c.work_id = tasks.work_id AND c.epoch = $8)")
    .bind(next.id)
    .bind(t.version)
    .bind(next.state.as_str())
    .bind(t.version + 1)
    .bind(Value::json(&next))
    .bind(now)
    .bind(next.agent)
    .bind(epoch)
    .execute_one(tx)
    .await?;
    Ok(StoredTask { task: next, version: t.version + 1, ..t.clone() })
}

pub async fn get(tx: &mut Tx, id: TaskId) -> Result<Option<StoredTask>, Error> {
    let row: Option<Row> = sql(AssertSqlSafe(format!("SELECT {COLUMNS} FROM tasks t WHERE t.id = $1")))
        .bind(id)
        .fetch_optional(tx)
        .await?;
    row.map(StoredTask::try_from).transpose()
}

async fn many(tx: &mut Tx, filter: &str, id: Uuid) -> Result<Vec<StoredTask>, Error> {
    let rows: Vec<Row> = sql(AssertSqlSafe(format!("SELECT {COLUMNS} FROM tasks t WHERE {filter} ORDER BY t.id")))
        .bind(id)
        .fetch_all(tx)
        .await?;
    rows.into_iter().map(StoredTask::try_from).collect()
}

pub async fn of_work(tx: &mut Tx, work: WorkId) -> Result<Vec<StoredTask>, Error> {
    many(tx, "t.work_id = $1", work.0).await
}

/// The tasks of one segment of a work, from this attempt on.
pub async fn of_segment(tx: &mut Tx, work: WorkId, segment: u32, from: u32) -> Result<Vec<StoredTask>, Error> {
    let rows: Vec<Row> = sql(AssertSqlSafe(format!(
        "SELECT {COLUMNS} FROM tasks t WHERE t.work_id = $1 AND t.segment = $2 AND t.attempt >= $3 ORDER BY t.id"
    )))
    .bind(work)
    .bind(segment)
    .bind(from)
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(StoredTask::try_from).collect()
}

/// Host and attempt of the tasks of one segment of a work that may still start or run.
pub async fn open_of_segment(tx: &mut Tx, work: WorkId, segment: u32) -> Result<Vec<(String, u32)>, Error> {
    let rows: Vec<(String, i64)> = sql("SELECT host, attempt FROM tasks WHERE work_id = $1 AND segment = $2
         AND state IN ('pending', 'offered', 'granted') ORDER BY host")
    .bind(work)
    .bind(segment)
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(|(h, n)| Ok((h, u32::try_from(n).map_err(|_| Error::Unknown("tasks.attempt"))?))).collect()
}

/// The last attempt that was made on each host, in one segment of a rollout.
pub async fn last_attempts(
    tx: &mut Tx,
    deployment: DeploymentId,
    step: &str,
    segment: u32,
) -> Result<BTreeMap<String, u32>, Error> {
    let rows: Vec<(String, i64)> = sql("SELECT host, MAX(attempt) FROM tasks WHERE deployment_id = $1 AND step = $2
         AND segment = $3 GROUP BY host")
    .bind(deployment)
    .bind(step)
    .bind(segment)
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(|(h, n)| Ok((h, u32::try_from(n).map_err(|_| Error::Unknown("tasks.attempt"))?))).collect()
}

pub async fn of_deployment(tx: &mut Tx, deployment: DeploymentId) -> Result<Vec<StoredTask>, Error> {
    many(tx, "t.deployment_id = $1", deployment.0).await
}

/// Hosts that are looked up one by one; for more, all tasks in these states are read at once.
const ONE_BY_ONE: usize = 20;

/// The main tasks of these hosts that have not settled, with their works, in the order of the tasks; with `unknown`, those of
/// any segment that are unknown. One host of thousands costs one row, not thousands.
pub async fn open_of_hosts(
    tx: &mut Tx,
    deployment: DeploymentId,
    hosts: &[String],
    unknown: bool,
) -> Result<Vec<(TaskId, WorkId)>, Error> {
    let mut found: Vec<(Uuid, Uuid, String)> = Vec::new();
    if hosts.len() <= ONE_BY_ONE {
        for host in hosts {
            let rows: Vec<(Uuid, Uuid, String)> = sql("SELECT id, work_id, host FROM tasks
                 WHERE deployment_id = $1 AND host = $2
                   AND (($3 AND state = 'unknown') OR (NOT $3 AND segment = 0 AND state IN ('pending', 'offered', 'granted')))")
            .bind(deployment)
            .bind(host)
            .bind(unknown)
            .fetch_all(tx)
            .await?;
            found.extend(rows);
        }
    } else {
        found = sql("SELECT id, work_id, host FROM tasks WHERE deployment_id = $1
               AND (($2 AND state = 'unknown') OR (NOT $2 AND segment = 0 AND state IN ('pending', 'offered', 'granted')))")
        .bind(deployment)
        .bind(unknown)
        .fetch_all(tx)
        .await?;
        let wanted: BTreeSet<&String> = hosts.iter().collect();
        found.retain(|(_, _, host)| wanted.contains(host));
    }
    found.sort_by_key(|(id, ..)| *id);
    Ok(found.into_iter().map(|(id, work, _)| (TaskId(id), WorkId(work))).collect())
}

/// Tasks an agent may still start, run or report: offered, granted, unknown.
pub async fn open_of_agent(tx: &mut Tx, agent: AgentId) -> Result<Vec<StoredTask>, Error> {
    many(tx, "t.agent_id = $1 AND t.state IN ('offered', 'granted', 'unknown')", agent.0).await
}

/// Earlier attempts of one host's task that forbid the next one (invariant I7): their states.
pub async fn earlier_attempts(
    tx: &mut Tx,
    deployment: DeploymentId,
    step: &str,
    segment: u32,
    host: &str,
    below: u32,
) -> Result<Vec<StoredTask>, Error> {
    let rows: Vec<Row> = sql(AssertSqlSafe(format!(
        "SELECT {COLUMNS} FROM tasks t WHERE t.deployment_id = $1 AND t.step = $2 AND t.segment = $3 AND t.host = $4
         AND t.attempt < $5 ORDER BY t.attempt"
    )))
    .bind(deployment)
    .bind(step)
    .bind(segment)
    .bind(host)
    .bind(below)
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(StoredTask::try_from).collect()
}

/// Earlier attempts of one host's task that may forbid the next one: those that ran to a good end, or may still run.
pub async fn earlier_in_the_way(
    tx: &mut Tx,
    deployment: DeploymentId,
    step: &str,
    segment: u32,
    host: &str,
    below: u32,
) -> Result<Vec<StoredTask>, Error> {
    // The repeated probes of a host leave many good ends behind; the last one tells as much as all of them.
    let rows: Vec<Row> = sql(AssertSqlSafe(format!(
        "SELECT {COLUMNS} FROM tasks t WHERE t.deployment_id = $1 AND t.step = $2 AND t.segment = $3 AND t.host = $4
         AND t.attempt < $5 AND (t.state IN ('pending', 'offered', 'granted', 'unknown')
              OR (t.state = 'succeeded' AND t.attempt = $5 - 1)
              OR (t.state = 'succeeded' AND t.segment = 0)) ORDER BY t.attempt"
    )))
    .bind(deployment)
    .bind(step)
    .bind(segment)
    .bind(host)
    .bind(below)
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(StoredTask::try_from).collect()
}

/// Number of tasks by state, for metrics.
pub async fn count_by_state(tx: &mut Tx) -> Result<Vec<(String, i64)>, Error> {
    sql("SELECT state, COUNT(*) FROM tasks WHERE state IN ('pending', 'offered', 'granted', 'unknown') GROUP BY state")
        .fetch_all(tx)
        .await
}

/// A person's word that an unknown task counts as ended. Written by the scheduler, applied by executors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    pub task: TaskId,
    pub by: String,
    pub reason: String,
    pub at: Timestamp,
}

/// Records an override of a task of this work; a second one for the same task changes nothing. Locks the work, as whoever takes a
/// host's word does: one that commits later sees it. Ring `subjects::work(pool)` after the commit.
pub async fn insert_override(tx: &mut Tx, work: WorkId, o: &Override) -> Result<(), Error> {
    works::lock_desired(tx, work).await?;
    sql("INSERT INTO task_overrides (task_id, person, reason, at) VALUES ($1, $2, $3, $4) ON CONFLICT (task_id) DO NOTHING")
        .bind(o.task)
        .bind(&o.by)
        .bind(&o.reason)
        .bind(o.at)
        .execute(tx)
        .await
        .map(|_| ())
}

/// What a person said of this task while it was unknown.
pub async fn override_of(tx: &mut Tx, task: TaskId) -> Result<Option<Override>, Error> {
    let row: Option<(String, String, DateTime<Utc>)> =
        sql("SELECT person, reason, at FROM task_overrides WHERE task_id = $1").bind(task).fetch_optional(tx).await?;
    Ok(row.map(|(by, reason, at)| Override { task, by, reason, at }))
}

/// Main tasks of a work that goes on, which have ended: host, attempt and state. What they came to is told with the work's next
/// result.
pub async fn ended_untold(tx: &mut Tx, work: WorkId) -> Result<Vec<(String, u32, String)>, Error> {
    let rows: Vec<(String, i64, String)> = sql("SELECT t.host, t.attempt, t.state FROM tasks t
         JOIN work_claims c ON c.work_id = t.work_id
         WHERE t.work_id = $1 AND t.segment = 0 AND c.phase <> 'settled'
           AND t.state NOT IN ('pending', 'offered', 'granted', 'unknown') ORDER BY t.host")
    .bind(work)
    .fetch_all(tx)
    .await?;
    let attempt = |n: i64| u32::try_from(n).map_err(|_| Error::Unknown("tasks.attempt"));
    rows.into_iter().map(|(host, n, state)| Ok((host, attempt(n)?, state))).collect()
}

/// Overrides whose task is still unknown.
pub async fn overrides_to_apply(tx: &mut Tx, limit: u32) -> Result<Vec<Override>, Error> {
    // SQLite takes the index of open tasks only where its condition stands word for word; without it every look reads all tasks.
    let rows: Vec<(Uuid, String, String, DateTime<Utc>)> =
        sql("SELECT o.task_id, o.person, o.reason, o.at FROM task_overrides o JOIN tasks t ON t.id = o.task_id
         WHERE t.state IN ('pending', 'offered', 'granted', 'unknown') AND t.state = 'unknown' ORDER BY o.task_id LIMIT $1")
        .bind(limit)
        .fetch_all(tx)
        .await?;
    Ok(rows.into_iter().map(|(id, by, reason, at)| Override { task: TaskId(id), by, reason, at }).collect())
}

/// A person's word that a host is to stop. Written by the scheduler, applied by the work's executor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    pub task: TaskId,
    pub by: String,
    pub reason: String,
    pub at: Timestamp,
}

/// Records a stop; a second one for the same task changes nothing. Locks the work, as grants do: one that commits later sees it.
/// Ring `subjects::work(pool)` after the commit.
pub async fn insert_stop(tx: &mut Tx, work: WorkId, s: &Stop) -> Result<(), Error> {
    works::lock_desired(tx, work).await?;
    sql("INSERT INTO task_stops (task_id, work_id, person, reason, at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (task_id) DO NOTHING")
        .bind(s.task)
        .bind(work)
        .bind(&s.by)
        .bind(&s.reason)
        .bind(s.at)
        .execute(tx)
        .await
        .map(|_| ())
}

/// Records a stop of hosts of a work, for tasks that an executor has yet to make; a second one changes nothing. Locks the work, as
/// [`insert_stop`] does.
pub async fn insert_host_stops(
    tx: &mut Tx,
    work: WorkId,
    hosts: &[&str],
    (by, reason, at): (&str, &str, Timestamp),
) -> Result<(), Error> {
    works::lock_desired(tx, work).await?;
    for host in hosts {
        sql("INSERT INTO host_stops (work_id, host, person, reason, at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (work_id, host) DO NOTHING")
        .bind(work)
        .bind(*host)
        .bind(by)
        .bind(reason)
        .bind(at)
        .execute(tx)
        .await?;
    }
    Ok(())
}

/// The approvals an offer carries: every decision on this plan.
pub async fn approvals(tx: &mut Tx, deployment: DeploymentId, plan_digest: &str) -> Result<Vec<Approval>, Error> {
    let rows: Vec<(Json<serde_json::Value>,)> =
        sql("SELECT doc FROM approvals WHERE deployment_id = $1 AND plan_digest = $2 ORDER BY at, person")
            .bind(deployment)
            .bind(plan_digest)
            .fetch_all(tx)
            .await?;
    rows.into_iter().map(|(doc,)| decode("approvals.doc", doc.0)).collect()
}
