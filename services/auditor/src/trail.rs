//! The trail while it is held: the tree's right edge in memory, one transaction a batch, one a checkpoint.

use crate::{
    Error,
    order::{Anomaly, Stream, arrange, stream},
    sink::FileSink,
};
use nkeys::KeyPair;
use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};
use windlass_contracts::audit::{
    leaf_bytes,
    note::{Checkpoint, PublicKey},
};
use windlass_domain::{
    event::{Aggregate, Event, NewEvent, Severity},
    ids::EventId,
    merkle::{Frontier, leaf_hash},
};
use windlass_runtime::telemetry;
use windlass_store::{
    Store, Tx,
    audit::{self, Edge, StoredCheckpoint},
    events,
    leases::{self, Lease},
};

/// Leaves that are signed at the latest, and the largest batch.
pub(crate) const BATCH: u32 = 256;
/// A new leaf is signed within a second; this leaves time for the signing itself.
const SIGN_AFTER: Duration = Duration::from_millis(500);
/// How long a missing predecessor is waited for. Streams are committed in order, so one that is missing now is most
/// likely gone; the wait costs nothing and spares a false alarm.
pub(crate) const GAP_WAIT: Duration = Duration::from_secs(2);
/// Streams whose last number is kept in memory.
const STREAMS: usize = 10_000;

#[derive(Debug)]
pub(crate) struct Trail {
    store: Store,
    lease: Lease,
    key: KeyPair,
    origin: String,
    sink: FileSink,
    tree: Frontier,
    signed: u64,
    /// When the oldest unsigned leaf was appended.
    unsigned_since: Option<Instant>,
    last: HashMap<Stream, u64>,
    held: HashMap<Stream, Instant>,
    unpushed: Option<String>,
}

/// What a batch did.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) leaves: u64,
    /// More may be waiting.
    pub(crate) full: bool,
    pub(crate) anomalies: Vec<Anomaly>,
}

impl Trail {
    /// Takes the trail up where the last holder left it, after checking that it is the trail that was signed.
    pub(crate) async fn open(store: &Store, lease: Lease, key: KeyPair, sink: FileSink) -> Result<Trail, Error> {
        let mut c = store.read().await?;
        let latest = audit::latest_checkpoint(&mut c).await?;
        let stored = audit::size(&mut c).await?;
        let pushed = sink.last()?;
        let witness = sink.path().display().to_string();
        let signed = latest.as_ref().map(|l| l.size).into_iter().chain(pushed.as_ref().map(|p| p.size)).max();
        if let Some(signed) = signed.filter(|s| *s > stored) {
            return Err(Error::CutShort { signed, stored, witness });
        }
        drop(c);
        if let Some(p) = &pushed
            && !holds(store, p).await?
        {
            return Err(Error::Rewritten { size: p.size, witness });
        }
        let first = latest.is_none();
        let (origin, edge, unpushed) = match latest {
            Some(l) => {
                let said = Checkpoint::read_unverified(&l.note)?;
                let edge = l.edge.frontier;
                if (said.size, said.root) != (l.size, l.root) || (edge.size(), edge.root()) != (l.size, l.root) {
                    return Err(Error::Rewritten { size: l.size, witness });
                }
                (said.origin, edge, pushed.is_none_or(|p| p.size < l.size).then_some(l.note))
            }
            None => (new_origin(), Frontier::default(), None),
        };
        let signed = edge.size();
        let tree = audit::replay(store, edge, u64::MAX).await?.map_err(|leaf| Error::Changed { leaf })?;
        let mut trail = Trail {
            store: store.clone(),
            lease,
            key,
            origin,
            sink,
            tree,
            signed,
            unsigned_since: None,
            last: HashMap::new(),
            held: HashMap::new(),
            unpushed,
        };
        // The empty trail is signed too: from the first minute on there is a key and a checkpoint to ask for. What the last
        // holder left unsigned has waited for long enough.
        if first || trail.unsigned() > 0 {
            trail.sign().await?;
        }
        Ok(trail)
    }

    /// Number of leaves.
    pub(crate) fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Number of leaves not signed yet.
    pub(crate) fn unsigned(&self) -> u64 {
        self.tree.size() - self.signed
    }

    /// How long the oldest of them has waited.
    pub(crate) fn unsigned_age(&self) -> Duration {
        self.unsigned_since.map(|s| s.elapsed()).unwrap_or_default()
    }

    /// When the next checkpoint is due; `None` if everything is signed.
    pub(crate) fn due_in(&self) -> Option<Duration> {
        if self.unsigned() >= u64::from(BATCH) {
            return Some(Duration::ZERO);
        }
        self.unsigned_since.map(|s| SIGN_AFTER.saturating_sub(s.elapsed()))
    }

    /// Streams wait for a missing event.
    pub(crate) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Appends the next waiting events and takes them off the queue, in one transaction.
    pub(crate) async fn take_batch(&mut self) -> Result<Taken, Error> {
        let mut c = self.store.read().await?;
        let mut batch = events::queued(&mut c, events::AUDITOR, None, BATCH).await?;
        let full = batch.len() as u32 >= BATCH;
        if self.last.len() > STREAMS {
            self.last.clear();
        }
        self.complete(&mut c, &mut batch).await?;
        drop(c);
        let overdue = |s: &Stream| self.held.get(s).is_some_and(|since| since.elapsed() >= GAP_WAIT);
        let out = arrange(batch, &self.last, overdue);
        // A stream that moved on is not stuck: its wait begins anew.
        let moved: HashSet<Stream> = out.take.iter().map(stream).collect();
        self.held.retain(|s, _| out.held.contains(s) && !moved.contains(s));
        for s in &out.held {
            self.held.entry(s.clone()).or_insert_with(Instant::now);
        }
        if out.take.is_empty() {
            return Ok(Taken { full: false, ..Taken::default() });
        }
        let leaves = self.append(&out.take, &out.anomalies).await?;
        Ok(Taken { leaves, full, anomalies: out.anomalies })
    }

    /// Learns the last number of each stream in the batch, and brings in earlier events of a stream that the batch's limit cut off.
    async fn complete(&mut self, c: &mut Tx, batch: &mut Vec<Event>) -> Result<(), Error> {
        let mut first: HashMap<Stream, u64> = HashMap::new();
        for e in batch.iter() {
            first.entry(stream(e)).and_modify(|n| *n = e.agg_seq.min(*n)).or_insert(e.agg_seq);
        }
        for (s, first) in first {
            let known = match self.last.get(&s) {
                Some(n) => *n,
                None => audit::last_recorded(c, &s.0, &s.1).await?.unwrap_or(0),
            };
            self.last.insert(s.clone(), known);
            if first > known + 1 {
                batch.extend(audit::queued_before(c, &s.0, &s.1, first).await?);
            }
        }
        Ok(())
    }

    async fn append(&mut self, take: &[Event], anomalies: &[Anomaly]) -> Result<u64, Error> {
        let mut tree = self.tree.clone();
        let mut tx = self.store.write().await?;
        self.hold(&mut tx).await?;
        let ids: Vec<EventId> = take.iter().map(|e| e.id).collect();
        let mut known = audit::with_leaf(&mut tx, &ids).await?;
        let mut leaves = Vec::new();
        for e in take {
            // An event that has its leaf is only taken off the queue; `arrange` has raised the alarm.
            if known.insert(e.id) {
                let leaf = leaf_bytes(e).map_err(Error::Leaf)?;
                let hash = leaf_hash(&leaf);
                leaves.push(audit::NewLeaf { event: e.id, leaf, hash });
            }
        }
        audit::add_leaves(&mut tx, tree.size(), &leaves).await?;
        leaves.iter().for_each(|l| tree.append(l.hash));
        if events::done(&mut tx, events::AUDITOR, &ids).await? != ids.len() as u64 {
            return Err(Error::Superseded);
        }
        for a in anomalies {
            let alarm = alarm(a, tx.now().await?);
            events::append(&mut tx, alarm).await?;
        }
        tx.commit().await?;
        let leaves = tree.size() - self.tree.size();
        self.tree = tree;
        for e in take {
            if e.trace.is_some() {
                // A batch holds events of many traces; each of them shows that its event has a leaf.
                drop(telemetry::span_with_parent(tracing::info_span!("leaf", event = %e.id), e.trace.as_deref()));
            }
            let last = self.last.entry(stream(e)).or_insert(0);
            *last = e.agg_seq.max(*last);
        }
        if leaves > 0 {
            self.unsigned_since.get_or_insert_with(Instant::now);
        }
        Ok(leaves)
    }

    /// Signs the tree as it is, and pushes the checkpoint to the sinks.
    pub(crate) async fn sign(&mut self) -> Result<(), Error> {
        let said = Checkpoint { origin: self.origin.clone(), size: self.tree.size(), root: self.tree.root() };
        let note = said.sign(&self.key)?;
        let key = PublicKey::of(&self.origin, &self.key)?.to_string();
        let mut tx = self.store.write().await?;
        self.hold(&mut tx).await?;
        let at = tx.now().await?;
        let edge = Edge { frontier: self.tree.clone(), key };
        let row = StoredCheckpoint { size: said.size, root: said.root, edge, note: note.clone(), at };
        if !audit::add_checkpoint(&mut tx, &row).await? {
            return Err(Error::Superseded);
        }
        tx.commit().await?;
        self.signed = said.size;
        self.unsigned_since = None;
        self.unpushed = Some(note);
        Ok(())
    }

    /// Pushes the last checkpoint to the sinks if it is not there yet. Signing does not wait for sinks that fail.
    pub(crate) async fn push(&mut self) -> Result<(), Error> {
        let Some(note) = self.unpushed.clone() else { return Ok(()) };
        let sink = self.sink.clone();
        let pushed = tokio::task::spawn_blocking(move || sink.push(&note)).await;
        pushed.unwrap_or_else(|e| {
            let source = std::io::Error::other(e);
            Err(Error::Sink { action: "write", path: self.sink.path().into(), source })
        })?;
        self.unpushed = None;
        Ok(())
    }

    async fn hold(&self, tx: &mut Tx) -> Result<(), Error> {
        leases::check(tx, &self.lease).await.map_err(|e| match e {
            windlass_store::Error::Conflict => Error::Superseded,
            e => Error::Store(e),
        })
    }
}

/// Whether the stored trail is the one that `said` was signed for, which it is not shorter than.
async fn holds(store: &Store, said: &Checkpoint) -> Result<bool, Error> {
    let mut c = store.read().await?;
    let below = audit::checkpoint_up_to(&mut c, said.size).await?;
    drop(c);
    if let Some(same) = below.as_ref().filter(|c| c.size == said.size) {
        return Ok(same.root == said.root);
    }
    // A backup that was made between an event's leaf and its signature holds the leaf alone: what counts is whether the leaves
    // are those that were signed.
    let edge = below.map(|c| c.edge.frontier).unwrap_or_default();
    let at = audit::replay(store, edge, said.size).await?.map_err(|leaf| Error::Changed { leaf })?;
    Ok((at.size(), at.root()) == (said.size, said.root))
}

/// A trail's name for good: the first checkpoint carries it on.
fn new_origin() -> String {
    let id = uuid::Uuid::now_v7().simple().to_string();
    // The last digits of a version 7 id are its random ones.
    format!("windlass/{}", &id[20..])
}

fn alarm(a: &Anomaly, at: windlass_domain::Timestamp) -> NewEvent {
    let (aggregate, id) = &a.stream;
    NewEvent {
        id: uuid::Uuid::now_v7().into(),
        aggregate: Aggregate::Audit,
        aggregate_id: "trail".into(),
        what: format!("audit.{}", a.kind()),
        project: None,
        environment: None,
        severity: Severity::Alert,
        actor: "service:auditor".into(),
        at,
        payload: serde_json::json!({ "aggregate": aggregate, "id": id, "expected": a.expected, "got": a.got }),
        trace: None,
    }
}
