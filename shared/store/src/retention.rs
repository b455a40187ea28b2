//! What is only kept for a while. Each function removes a bounded number of rows of one table in its writer's transaction and says
//! how many it was; 0 means that nothing is old enough. Deployments, their events, plans, approvals and the audit trail are never
//! touched: they are the history.

use crate::{Error, Tx, logs, sql};
use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;
use windlass_domain::{
    ids::{DeploymentId, TaskId},
    plan::segment,
};

/// States in which a deployment does nothing any more.
const ENDED: &str = "('succeeded', 'failed', 'rolled_back', 'aborted', 'rejected', 'expired', 'cancelled')";

const OLD_NOTIFICATIONS: &str = "DELETE FROM notifications WHERE id IN
    (SELECT id FROM notifications WHERE state <> 'pending' AND updated_at < $1 ORDER BY updated_at LIMIT $2)";
const OLD_CALLBACKS: &str =
    "DELETE FROM plugin_callbacks WHERE token IN (SELECT token FROM plugin_callbacks WHERE received_at < $1 LIMIT $2)";

/// In the order of the ids, which begin with the time they were made at (UUIDv7): what is younger is not even looked at, and of a
/// million deployments those whose log is gone already are not in the index.
fn old_log() -> String {
    format!(
        "SELECT h.deployment_id FROM log_heads h
         WHERE h.pruned_at IS NULL AND h.deployment_id < $2
           AND EXISTS (SELECT 1 FROM deployments d WHERE d.id = h.deployment_id AND d.updated_at < $1 AND d.state IN {ENDED})
           AND NOT EXISTS (SELECT 1 FROM tasks t
             WHERE t.deployment_id = h.deployment_id AND t.state IN ('offered', 'granted', 'unknown'))
         ORDER BY h.deployment_id LIMIT 1"
    )
}

/// The segment is written out, so that the index of probes' tasks alone serves.
fn old_probes() -> String {
    format!(
        "DELETE FROM tasks WHERE id IN
           (SELECT t.id FROM tasks t WHERE t.segment = {} AND t.updated_at < $1
              AND t.state NOT IN ('pending', 'offered', 'granted', 'unknown')
              AND EXISTS (SELECT 1 FROM deployments d WHERE d.id = t.deployment_id AND d.updated_at < $1 AND d.state IN {ENDED})
            LIMIT $2)",
        segment::PROBES
    )
}

/// The least id that can have been made at this time or later.
fn made_before(at: DateTime<Utc>) -> Uuid {
    Uuid::from_u128((at.timestamp_millis().max(0).unsigned_abs() as u128) << 80)
}

/// Removes the log of one deployment that ended before `before`, `limit` chunks at once. In the place of what is gone stands a
/// note, so that a reader is not told that nothing was ever written. Deployments whose hosts may still report are left alone.
pub async fn logs(tx: &mut Tx, before: DateTime<Utc>, now: DateTime<Utc>, limit: u32) -> Result<u64, Error> {
    let found: Option<(Uuid,)> =
        sql(AssertSqlSafe(old_log())).bind(before).bind(made_before(before)).fetch_optional(tx).await?;
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
    sql(AssertSqlSafe(old_probes())).bind(before).bind(limit).execute(tx).await
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
    sql(OLD_NOTIFICATIONS).bind(before).bind(limit).execute(tx).await
}

/// Removes answers that were brought to plugins' calls before `before`.
pub async fn callbacks(tx: &mut Tx, before: DateTime<Utc>, limit: u32) -> Result<u64, Error> {
    sql(OLD_CALLBACKS).bind(before).bind(limit).execute(tx).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    /// With years of history an hourly look may not read all of it in the writer's turn: each table is entered by an index that
    /// holds what is old and little else.
    #[tokio::test]
    async fn what_is_old_is_found_by_indices() {
        let dir = tempfile::tempdir().expect("dir");
        let url = format!("sqlite://{}", dir.path().join("windlass.db").display());
        let store = Store::open(&url).await.expect("opens");
        let mut tx = store.write().await.expect("begins");
        let now = tx.now().await.expect("now");
        for (statement, by) in [
            (old_log(), "log_heads_kept"),
            (old_probes(), "tasks_of_probes"),
            (OLD_NOTIFICATIONS.to_owned(), "notifications_ended"),
            (OLD_CALLBACKS.to_owned(), "plugin_callbacks_by_time"),
        ] {
            let ask = sql(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"))).bind(now);
            let plan: Vec<(i64, i64, i64, String)> = ask.bind(Uuid::nil()).fetch_all(&mut tx).await.expect("a plan");
            let read = plan.iter().map(|p| p.3.as_str()).collect::<Vec<_>>().join("; ");
            assert!(
                read.contains(by) && !read.contains("SCAN") && !read.contains("deployments_by"),
                "{statement}\n{read}"
            );
        }
        drop(tx);
        store.close().await;
    }

    #[test]
    fn an_id_is_younger_than_the_time_before_it() {
        let at = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        let id = |s| Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, s, 0));
        assert!(id(1_799_999_999) < made_before(at) && id(1_800_000_000) > made_before(at));
    }
}
