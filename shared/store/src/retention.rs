//! What is only kept for a while. Each function removes a bounded number of rows of one table in its writer's transaction and says
//! how many it was; 0 means that nothing is old enough. Deployments, their events, plans, approvals and the audit trail are never
//! touched: they are the history.

use crate::{Error, Tx, logs, sql};
use chrono::{DateTime, Utc};
use uuid::Uuid;
use windlass_domain::{
    ids::{DeploymentId, TaskId},
    plan::segment,
};

/// States in which a deployment does nothing any more.
const ENDED: &str = "('succeeded', 'failed', 'rolled_back', 'aborted', 'rejected', 'expired', 'cancelled')";

/// Removes the log of one deployment that ended before `before`, `limit` chunks at once. In the place of what is gone stands a
/// note, so that a reader is not told that nothing was ever written. Deployments whose hosts may still report are left alone.
pub async fn logs(tx: &mut Tx, before: DateTime<Utc>, now: DateTime<Utc>, limit: u32) -> Result<u64, Error> {
    let found: Option<(Uuid,)> = sql(sqlx::AssertSqlSafe(format!(
        "SELECT h.deployment_id FROM log_heads h JOIN deployments d ON d.id = h.deployment_id
         WHERE h.pruned_at IS NULL AND d.updated_at < $1 AND d.state IN {ENDED} AND NOT EXISTS
           (SELECT 1 FROM tasks t WHERE t.deployment_id = d.id AND t.state IN ('offered', 'granted', 'unknown'))
         ORDER BY d.updated_at LIMIT 1"
    )))
    .bind(before)
    .fetch_optional(tx)
    .await?;
    let Some((deployment,)) = found else { return Ok(0) };
    let gone = sql("DELETE FROM log_chunks WHERE deployment_id = $1 AND n IN
           (SELECT n FROM log_chunks WHERE deployment_id = $1 ORDER BY n LIMIT $2)")
    .bind(deployment)
    .bind(limit)
    .execute(tx)
    .await?;
    if gone < u64::from(limit) {
        let note = logs::Chunk {
            task: TaskId(deployment),
            seq: 0,
            host: logs::CENTRAL_HOST.into(),
            step: "log".into(),
            stream: "note".into(),
            at: now,
            data: b"the log was removed because of its age (setting retention.logs_days)\n".to_vec(),
        };
        logs::append(tx, DeploymentId(deployment), &[note]).await?;
        sql("UPDATE log_heads SET pruned_at = $2 WHERE deployment_id = $1")
            .bind(deployment)
            .bind(now)
            .execute_one(tx)
            .await?;
    }
    Ok(gone.max(1))
}

/// Removes tasks of probes of deployments that ended before `before`; what they said is in the work's result and the events.
pub async fn probe_tasks(tx: &mut Tx, before: DateTime<Utc>, limit: u32) -> Result<u64, Error> {
    sql(sqlx::AssertSqlSafe(format!(
        "DELETE FROM tasks WHERE id IN
           (SELECT t.id FROM tasks t JOIN deployments d ON d.id = t.deployment_id
            WHERE t.segment = $1 AND t.updated_at < $2 AND d.updated_at < $2 AND d.state IN {ENDED}
              AND t.state NOT IN ('pending', 'offered', 'granted', 'unknown') LIMIT $3)"
    )))
    .bind(i64::from(segment::PROBES))
    .bind(before)
    .bind(limit)
    .execute(tx)
    .await
}

/// Removes what was last heard of agents that were revoked before `before`. The agents' own rows stay: ids are never reused.
pub async fn sessions(tx: &mut Tx, before: DateTime<Utc>, limit: u32) -> Result<u64, Error> {
    sql("DELETE FROM agent_sessions WHERE agent_id IN
           (SELECT s.agent_id FROM agent_sessions s JOIN agents a ON a.id = s.agent_id WHERE a.revoked_at < $1 LIMIT $2)")
    .bind(before)
    .bind(limit)
    .execute(tx)
    .await
}

/// Removes messages that were sent, or given up, before `before`. An event whose message is gone is not sent again: its row in
/// the queue went with the message's making.
pub async fn notifications(tx: &mut Tx, before: DateTime<Utc>, limit: u32) -> Result<u64, Error> {
    sql("DELETE FROM notifications WHERE id IN
           (SELECT id FROM notifications WHERE state <> 'pending' AND updated_at < $1 ORDER BY updated_at LIMIT $2)")
    .bind(before)
    .bind(limit)
    .execute(tx)
    .await
}

/// Removes answers that were brought to plugins' calls before `before`.
pub async fn callbacks(tx: &mut Tx, before: DateTime<Utc>, limit: u32) -> Result<u64, Error> {
    sql("DELETE FROM plugin_callbacks WHERE token IN (SELECT token FROM plugin_callbacks WHERE received_at < $1 LIMIT $2)")
        .bind(before)
        .bind(limit)
        .execute(tx)
        .await
}
