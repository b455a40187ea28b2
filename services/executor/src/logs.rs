//! Logs of hosts: checked, put in order per task, stored durably in batches, and only then acknowledged.
//!
//! Every executor hears every log frame. The one that drives (or drove) the task stores it; another one steps in when the
//! agent keeps re-sending and nobody stores. Two that store at once do no harm: `(task, seq)` is unique.

use crate::{plans::PlanView, shared::Shared};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::{TimeDelta, Utc};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use windlass_contracts::{
    frames::{DownBody, LogFrame, MAX_LOG_DATA, Stream},
    subjects,
};
use windlass_domain::{
    Timestamp,
    ids::{AgentId, DeploymentId, TaskId},
    work::WorkSpec,
};
use windlass_store::{
    Error,
    logs::{self, Chunk, Position},
    tasks, works,
};

/// Frames that come within this time share a transaction.
const BATCH: Duration = Duration::from_millis(20);
const MAX_BATCH: usize = 512;
/// How far a task's log may run ahead of what is durable.
const WINDOW: u64 = 1024 * 1024;
/// Stored per task. Agents cut at 64 MiB, so only a hostile one gets here.
pub(crate) const CAP: u64 = 72 * 1024 * 1024;
/// Another executor's task is left to it for this long.
const STEP_IN: Duration = Duration::from_secs(3);
/// Clocks of hosts may differ; what is further off than this is no time at all, and not every database can hold it.
const CLOCK: TimeDelta = TimeDelta::days(366);
const REMEMBERED: usize = 20_000;

#[derive(Debug)]
pub(crate) struct LogItem {
    pub(crate) agent: AgentId,
    pub(crate) instance: String,
    pub(crate) frame: LogFrame,
}

/// What a chunk needs to know of its task.
#[derive(Debug, Clone)]
pub(crate) struct LogMeta {
    pub(crate) deployment: DeploymentId,
    pub(crate) agent: AgentId,
    pub(crate) host: String,
    pub(crate) steps: Arc<Vec<String>>,
}

/// The queue of frames, and the tasks whose logs are ours.
#[derive(Debug)]
pub(crate) struct Logs {
    queue: mpsc::Sender<LogItem>,
    mine: Mutex<HashMap<TaskId, LogMeta>>,
}

impl Logs {
    pub(crate) fn new() -> (Logs, mpsc::Receiver<LogItem>) {
        let (queue, items) = mpsc::channel(4096);
        (Logs { queue, mine: Mutex::default() }, items)
    }

    fn mine(&self) -> MutexGuard<'_, HashMap<TaskId, LogMeta>> {
        self.mine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the database does not keep up, frames are dropped here; agents send them again.
    pub(crate) fn push(&self, item: LogItem) {
        let _ = self.queue.try_send(item);
    }

    /// The driver of a task calls this. It stays after the task has settled, because logs may trail its result.
    pub(crate) fn adopt(&self, task: TaskId, meta: LogMeta) {
        let mut mine = self.mine();
        if mine.len() >= REMEMBERED {
            mine.clear();
        }
        mine.insert(task, meta);
    }

    /// Another executor has the task now.
    pub(crate) fn forget(&self, tasks: impl Iterator<Item = TaskId>) {
        let mut mine = self.mine();
        tasks.for_each(|t| drop(mine.remove(&t)));
    }
}

/// Somebody else's task whose frames keep coming.
#[derive(Debug)]
struct Foreign {
    since: Instant,
    next: u64,
}

#[derive(Debug, Default)]
struct Writer {
    positions: HashMap<TaskId, Position>,
    foreign: HashMap<TaskId, Foreign>,
}

/// Stores and acknowledges until the queue is closed.
pub(crate) async fn run(shared: Arc<Shared>, mut items: mpsc::Receiver<LogItem>, cap: u64) {
    let mut writer = Writer::default();
    let mut batch = Vec::new();
    while let Some(first) = items.recv().await {
        batch.push(first);
        let until = tokio::time::Instant::now() + BATCH;
        while batch.len() < MAX_BATCH
            && let Ok(Some(item)) = tokio::time::timeout_at(until, items.recv()).await
        {
            batch.push(item);
        }
        if let Err(error) = writer.store(&shared, std::mem::take(&mut batch), cap).await {
            // Nothing was acknowledged; what is in memory may be wrong, the agents send again.
            writer.positions.clear();
            if !error.is_unique_violation() {
                tracing::warn!(error = &error as &dyn std::error::Error, "logs not stored");
            }
        }
    }
}

impl Writer {
    async fn store(&mut self, shared: &Shared, batch: Vec<LogItem>, cap: u64) -> Result<(), Error> {
        let mut by_task: BTreeMap<TaskId, Vec<LogItem>> = BTreeMap::new();
        for item in batch {
            by_task.entry(item.frame.task).or_default().push(item);
        }
        let mut chunks: BTreeMap<DeploymentId, Vec<Chunk>> = BTreeMap::new();
        let mut moved = Vec::new();
        let mut acks = Vec::new();
        for (task, mut items) in by_task {
            let mine = shared.logs.mine().get(&task).cloned();
            let meta = match mine {
                Some(m) => m,
                None => match self.step_in(shared, task, &items).await? {
                    Some(m) => m,
                    None => continue,
                },
            };
            let before = items.len();
            items.retain(|i| i.agent == meta.agent);
            if items.len() < before {
                shared.metrics.refused.with_label_values(&["other_task"]).inc_by((before - items.len()) as u64);
            }
            let Some(instance) = items.first().map(|i| i.instance.clone()) else { continue };
            let mut position = match self.positions.get(&task) {
                Some(p) => *p,
                None => logs::position(&mut shared.ctx.store.read().await?, task).await?,
            };
            items.sort_by_key(|i| i.frame.seq);
            let to = chunks.entry(meta.deployment).or_default();
            for item in items {
                position.take(&meta, item.frame, cap, to);
            }
            moved.push((task, position));
            if position.next > 0 {
                acks.push((meta.agent, instance, task, position.next - 1));
            }
        }
        chunks.retain(|_, c| !c.is_empty());
        if !chunks.is_empty() {
            let mut tx = shared.ctx.store.write().await?;
            for (deployment, chunks) in &chunks {
                logs::append(&mut tx, *deployment, chunks).await?;
            }
            tx.commit().await?;
        }
        if self.positions.len() > REMEMBERED {
            self.positions.clear();
        }
        self.positions.extend(moved);
        for (agent, instance, task, seq) in acks {
            shared.send(agent, Some(instance), DownBody::LogAck { task, seq, window: WINDOW }).await;
        }
        for (deployment, chunks) in chunks {
            let bytes: usize = chunks.iter().map(|c| c.data.len()).sum();
            shared.metrics.log_bytes.with_label_values(&["stored"]).inc_by(bytes as u64);
            shared.ctx.bus.ring(subjects::log(deployment), "").await;
        }
        Ok(())
    }

    /// Whether to store for a task nobody here drives: when its frames have come for a while and nobody stored them.
    async fn step_in(&mut self, shared: &Shared, task: TaskId, items: &[LogItem]) -> Result<Option<LogMeta>, Error> {
        let now = Instant::now();
        if self.foreign.get(&task).is_some_and(|f| f.since.elapsed() < STEP_IN) {
            return Ok(None);
        }
        let mut tx = shared.ctx.store.read().await?;
        let position = logs::position(&mut tx, task).await?;
        let stuck = self.foreign.get(&task).is_some_and(|f| f.next == position.next);
        if self.foreign.len() > REMEMBERED {
            self.foreign.clear();
        }
        self.foreign.insert(task, Foreign { since: now, next: position.next });
        let Some(row) = tasks::get(&mut tx, task).await? else { return Ok(None) };
        let agents: HashSet<AgentId> = items.iter().map(|i| i.agent).collect();
        let Some(agent) = row.task.agent.filter(|a| agents.contains(a)) else { return Ok(None) };
        let settled = works::claim_state(&mut tx, row.work)
            .await?
            .is_some_and(|c| c.phase == "settled" && (c.owner.as_deref() == Some(shared.ctx.owner.as_str()) || stuck));
        let stored = works::get(&mut tx, row.work).await?;
        drop(tx);
        let (true, Some(stored)) = (settled, stored) else { return Ok(None) };
        let view = shared.plans.get(&shared.ctx.store, row.deployment, &stored.work.plan_digest).await?;
        let steps = match (&stored.work.spec, &view) {
            (WorkSpec::Wave(_) | WorkSpec::Probe(_), Ok(view)) => {
                step_names(view, &row.step, row.segment, &row.task.host)
            }
            _ => Arc::default(),
        };
        let meta = LogMeta { deployment: row.deployment, agent, host: row.task.host, steps };
        shared.logs.adopt(task, meta.clone());
        self.foreign.remove(&task);
        Ok(Some(meta))
    }
}

/// The time a host gives, or ours when that cannot be.
fn believable(at: Timestamp) -> Timestamp {
    let now = Utc::now();
    if (now - at).abs() <= CLOCK { at } else { now }
}

/// Ids of the steps of a host's task, by index; empty when the plan has no such task.
pub(crate) fn step_names(view: &PlanView, step: &str, segment: u32, host: &str) -> Arc<Vec<String>> {
    Arc::new(
        view.offer_at(step, segment, host)
            .map(|o| o.0.steps.iter().map(|s| s.id.clone()).collect())
            .unwrap_or_default(),
    )
}

trait Take {
    fn take(&mut self, meta: &LogMeta, frame: LogFrame, cap: u64, to: &mut Vec<Chunk>);
}

impl Take for Position {
    /// Takes a frame if it is the next one. Repeats and gaps change nothing: the acknowledgement says where the log stands.
    fn take(&mut self, meta: &LogMeta, frame: LogFrame, cap: u64, to: &mut Vec<Chunk>) {
        if self.bytes > cap {
            // Heard, not kept. The note that says so is stored.
            self.next = self.next.max(frame.seq.saturating_add(1));
            return;
        }
        if frame.seq != self.next {
            return;
        }
        let Some(data) = STANDARD.decode(&frame.data).ok().filter(|d| d.len() <= MAX_LOG_DATA) else { return };
        if crc32c::crc32c(&data) != frame.crc {
            return;
        }
        self.next += 1;
        self.bytes += data.len() as u64;
        let step = meta.steps.get(frame.step as usize).cloned().unwrap_or_else(|| frame.step.to_string());
        let stream = match frame.stream {
            Stream::Out => "out",
            Stream::Err => "err",
            Stream::Note => "note",
        };
        let chunk = |stream: &str, data: Vec<u8>| Chunk {
            task: frame.task,
            seq: frame.seq,
            host: meta.host.clone(),
            step,
            stream: stream.into(),
            at: believable(frame.at),
            data,
        };
        to.push(if self.bytes > cap {
            chunk("note", format!("the log is longer than {cap} bytes; the rest is not kept\n").into_bytes())
        } else {
            chunk(stream, data)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> LogMeta {
        LogMeta {
            deployment: uuid::Uuid::nil().into(),
            agent: uuid::Uuid::nil().into(),
            host: "h".into(),
            steps: Arc::new(vec!["fetch".into()]),
        }
    }

    fn frame(seq: u64, text: &str) -> LogFrame {
        LogFrame {
            task: uuid::Uuid::nil().into(),
            seq,
            step: 0,
            stream: Stream::Out,
            at: chrono::Utc::now(),
            data: STANDARD.encode(text),
            crc: crc32c::crc32c(text.as_bytes()),
        }
    }

    #[test]
    fn only_the_next_whole_frame_is_taken() {
        let (mut p, mut to, m) = (Position::default(), Vec::new(), meta());
        p.take(&m, frame(0, "a"), CAP, &mut to);
        p.take(&m, frame(0, "a"), CAP, &mut to);
        p.take(&m, frame(2, "c"), CAP, &mut to);
        p.take(&m, LogFrame { crc: 1, ..frame(1, "b") }, CAP, &mut to);
        p.take(&m, LogFrame { data: "***".into(), ..frame(1, "b") }, CAP, &mut to);
        assert_eq!((p.next, to.len()), (1, 1));
        p.take(&m, frame(1, "b"), CAP, &mut to);
        assert_eq!(
            to.iter().map(|c| (c.seq, c.data.clone())).collect::<Vec<_>>(),
            [(0, b"a".to_vec()), (1, b"b".to_vec())]
        );
        assert_eq!(to[0].step, "fetch");
    }

    #[test]
    fn beyond_the_cap_one_note_is_kept_and_everything_acknowledged() {
        let (mut p, mut to, m) = (Position::default(), Vec::new(), meta());
        for seq in 0..10 {
            p.take(&m, frame(seq, "0123456789"), 35, &mut to);
        }
        assert_eq!(p.next, 10);
        assert_eq!(to.iter().map(|c| c.stream.as_str()).collect::<Vec<_>>(), ["out", "out", "out", "note"]);
    }
}
