//! Logs of tasks: chunks in two orders, `seq` per task as the agent counts and `n` per deployment as readers page.

use crate::{Error, Tx, rows, sql};
use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;
use windlass_domain::{
    Timestamp,
    ids::{DeploymentId, TaskId},
};

/// The host under whose name the logs of central steps stand; no host can be called so.
pub const CENTRAL_HOST: &str = "-";

/// A piece of log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub task: TaskId,
    /// From 0, without a gap per task.
    pub seq: u64,
    pub host: String,
    /// Id of the step that wrote it.
    pub step: String,
    /// `out`, `err` or `note`.
    pub stream: String,
    pub at: Timestamp,
    pub data: Vec<u8>,
}

/// A stored piece with its place in the deployment's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChunk {
    pub n: u64,
    pub chunk: Chunk,
}

/// Where a task's log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The next `seq` to store.
    pub next: u64,
    pub bytes: u64,
}

/// Where the log of one task stands.
pub async fn position(tx: &mut Tx, task: TaskId) -> Result<Position, Error> {
    let row: Option<(Option<i64>, Option<i64>)> =
        sql("SELECT MAX(seq), CAST(SUM(LENGTH(data)) AS BIGINT) FROM log_chunks WHERE task_id = $1")
            .bind(task)
            .fetch_optional(tx)
            .await?;
    let (last, bytes) = row.unwrap_or((None, None));
    Ok(Position { next: last.map_or(0, |s| s.unsigned_abs() + 1), bytes: bytes.unwrap_or(0).unsigned_abs() })
}

/// Stores chunks of one deployment in the order given. The head row stays locked until commit, so `n` has no gap and
/// grows in commit order. A chunk stored before is a unique violation: look at [`position`] first.
pub async fn append(tx: &mut Tx, deployment: DeploymentId, chunks: &[Chunk]) -> Result<(), Error> {
    if chunks.is_empty() {
        return Ok(());
    }
    let end: Option<i64> = sql("INSERT INTO log_heads (deployment_id, next) VALUES ($1, $2 + 1)
         ON CONFLICT (deployment_id) DO UPDATE SET next = log_heads.next + $2 RETURNING next")
    .bind(deployment)
    .bind(chunks.len())
    .fetch_scalar(tx)
    .await?;
    let first = end.ok_or(Error::Conflict)?.unsigned_abs() - chunks.len() as u64;
    let numbered: Vec<(u64, &Chunk)> = (first..).zip(chunks).collect();
    for piece in rows::pieces(&numbered) {
        let text = format!(
            "INSERT INTO log_chunks (deployment_id, n, task_id, seq, host, step, stream, at, data) VALUES {}",
            rows::places(0, 9, piece.len())
        );
        let insert = piece.iter().fold(sql(AssertSqlSafe(text)), |ask, (n, c)| {
            ask.bind(deployment)
                .bind(*n)
                .bind(c.task)
                .bind(c.seq)
                .bind(&c.host)
                .bind(&c.step)
                .bind(&c.stream)
                .bind(c.at)
                .bind(c.data.as_slice())
        });
        insert.execute(tx).await?;
    }
    Ok(())
}

#[derive(Debug, sqlx::FromRow)]
struct Row {
    n: i64,
    task_id: Uuid,
    seq: i64,
    host: String,
    step: String,
    stream: String,
    at: DateTime<Utc>,
    data: Vec<u8>,
}

/// A page of a deployment's log after cursor `n` (0: from the start), of all hosts or one.
pub async fn after(
    tx: &mut Tx,
    deployment: DeploymentId,
    after: u64,
    host: Option<&str>,
    limit: u32,
) -> Result<Vec<StoredChunk>, Error> {
    let host_filter = if host.is_some() { "AND host = $4" } else { "" };
    let mut query = sql(AssertSqlSafe(format!(
        "SELECT n, task_id, seq, host, step, stream, at, data FROM log_chunks
         WHERE deployment_id = $1 AND n > $2 {host_filter} ORDER BY n LIMIT $3"
    )))
    .bind(deployment)
    .bind(after)
    .bind(limit);
    if let Some(host) = host {
        query = query.bind(host);
    }
    let rows: Vec<Row> = query.fetch_all(tx).await?;
    Ok(rows
        .into_iter()
        .map(|r| StoredChunk {
            n: r.n.unsigned_abs(),
            chunk: Chunk {
                task: TaskId(r.task_id),
                seq: r.seq.unsigned_abs(),
                host: r.host,
                step: r.step,
                stream: r.stream,
                at: r.at,
                data: r.data,
            },
        })
        .collect())
}
