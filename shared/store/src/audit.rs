//! The audit trail's tables: leaves and checkpoints, which only ever grow, and the export that reads them in pages.

use crate::{Error, Store, Tx, events, rows, sql};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, types::Json};
use std::collections::HashSet;
use uuid::Uuid;
use windlass_contracts::audit::export::Line;
use windlass_domain::{
    event::Event,
    ids::EventId,
    merkle::{Frontier, Hash, leaf_hash},
};

/// Leaves read at once by an export.
const PAGE: u32 = 500;

/// A signed state of the tree.
#[derive(Debug, Clone)]
pub struct StoredCheckpoint {
    pub size: u64,
    pub root: Hash,
    pub edge: Edge,
    /// The signed note.
    pub note: String,
    pub at: DateTime<Utc>,
}

/// What is kept beside a checkpoint to go on from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    pub frontier: Frontier,
    /// The public key that the note is signed with, in text form.
    pub key: String,
}

#[derive(sqlx::FromRow)]
struct CheckpointRow {
    size: i64,
    root: Vec<u8>,
    frontier: Json<serde_json::Value>,
    note: String,
    at: DateTime<Utc>,
}

impl TryFrom<CheckpointRow> for StoredCheckpoint {
    type Error = Error;
    fn try_from(r: CheckpointRow) -> Result<Self, Error> {
        Ok(StoredCheckpoint {
            size: r.size.unsigned_abs(),
            root: Hash::try_from(r.root.as_slice()).map_err(|_| Error::Unknown("audit_checkpoints.root"))?,
            edge: crate::decode("audit_checkpoints.frontier", r.frontier.0)?,
            note: r.note,
            at: r.at,
        })
    }
}

/// A stored leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLeaf {
    pub idx: u64,
    pub leaf: Vec<u8>,
    pub hash: Hash,
}

#[derive(sqlx::FromRow)]
struct LeafRow {
    idx: i64,
    leaf: Vec<u8>,
    hash: Vec<u8>,
}

/// Number of leaves.
pub async fn size(tx: &mut Tx) -> Result<u64, Error> {
    let n: Option<i64> = sql("SELECT COALESCE(MAX(idx) + 1, 0) FROM audit_leaves").fetch_scalar(tx).await?;
    Ok(n.unwrap_or(0).unsigned_abs())
}

/// A leaf to add.
#[derive(Debug, Clone)]
pub struct NewLeaf {
    pub event: EventId,
    pub leaf: Vec<u8>,
    pub hash: Hash,
}

/// Those of the events that have a leaf already.
pub async fn with_leaf(tx: &mut Tx, ids: &[EventId]) -> Result<HashSet<EventId>, Error> {
    let mut found = HashSet::new();
    for piece in rows::pieces(ids) {
        let text = format!("SELECT event_id FROM audit_leaves WHERE event_id IN {}", rows::places(0, piece.len(), 1));
        let ask = piece.iter().fold(sql(AssertSqlSafe(text)), |ask, id| ask.bind(*id));
        let rows: Vec<(Uuid,)> = ask.fetch_all(tx).await?;
        found.extend(rows.into_iter().map(|(id,)| EventId(id)));
    }
    Ok(found)
}

/// Adds leaves, the first at `idx`. Fails with a unique violation if somebody else has added one there, or one of these events
/// has a leaf: ask [`with_leaf`] first.
pub async fn add_leaves(tx: &mut Tx, idx: u64, leaves: &[NewLeaf]) -> Result<(), Error> {
    let numbered: Vec<(u64, &NewLeaf)> = (idx..).zip(leaves).collect();
    for piece in rows::pieces(&numbered) {
        let places = rows::places(0, 4, piece.len());
        let insert =
            sql(AssertSqlSafe(format!("INSERT INTO audit_leaves (idx, event_id, leaf, hash) VALUES {places}")));
        let insert = piece.iter().fold(insert, |ask, (idx, l)| {
            ask.bind(*idx).bind(l.event).bind(l.leaf.as_slice()).bind(l.hash.as_bytes().as_slice())
        });
        insert.execute(tx).await?;
    }
    Ok(())
}

/// Leaves from `from` on, in order.
pub async fn leaves(tx: &mut Tx, from: u64, limit: u32) -> Result<Vec<StoredLeaf>, Error> {
    let rows: Vec<LeafRow> = sql("SELECT idx, leaf, hash FROM audit_leaves WHERE idx >= $1 ORDER BY idx LIMIT $2")
        .bind(from)
        .bind(limit)
        .fetch_all(tx)
        .await?;
    rows.into_iter()
        .map(|r| {
            let hash = Hash::try_from(r.hash.as_slice()).map_err(|_| Error::Unknown("audit_leaves.hash"))?;
            Ok(StoredLeaf { idx: r.idx.unsigned_abs(), leaf: r.leaf, hash })
        })
        .collect()
}

/// The last place in an aggregate's stream that has a leaf.
pub async fn last_recorded(tx: &mut Tx, aggregate: &str, id: &str) -> Result<Option<u64>, Error> {
    let n: Option<i64> = sql("SELECT e.agg_seq FROM events e JOIN audit_leaves l ON l.event_id = e.id
         WHERE e.aggregate = $1 AND e.aggregate_id = $2 ORDER BY e.agg_seq DESC LIMIT 1")
    .bind(aggregate)
    .bind(id)
    .fetch_scalar(tx)
    .await?;
    Ok(n.map(i64::unsigned_abs))
}

/// Events of one stream before `before` that the auditor has yet to take, in the stream's order.
pub async fn queued_before(tx: &mut Tx, aggregate: &str, id: &str, before: u64) -> Result<Vec<Event>, Error> {
    events::queued_of(tx, events::AUDITOR, aggregate, id, before, PAGE).await
}

/// Stores a checkpoint; false if there is one of this size already.
pub async fn add_checkpoint(tx: &mut Tx, c: &StoredCheckpoint) -> Result<bool, Error> {
    let n = sql("INSERT INTO audit_checkpoints (size, root, frontier, note, at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (size) DO NOTHING")
    .bind(c.size)
    .bind(c.root.as_bytes().as_slice())
    .bind(crate::Value::json(&c.edge))
    .bind(&c.note)
    .bind(c.at)
    .execute(tx)
    .await?;
    Ok(n == 1)
}

/// The latest checkpoint of at most `size` leaves.
pub async fn checkpoint_up_to(tx: &mut Tx, size: u64) -> Result<Option<StoredCheckpoint>, Error> {
    let row: Option<CheckpointRow> = sql("SELECT size, root, frontier, note, at FROM audit_checkpoints
         WHERE size <= $1 ORDER BY size DESC LIMIT 1")
    .bind(size)
    .fetch_optional(tx)
    .await?;
    row.map(StoredCheckpoint::try_from).transpose()
}

/// The latest checkpoint: what `GET /audit/checkpoint` shows, and `edge.key` what `GET /audit/key` does.
pub async fn latest_checkpoint(tx: &mut Tx) -> Result<Option<StoredCheckpoint>, Error> {
    checkpoint_up_to(tx, i64::MAX.unsigned_abs()).await
}

/// Sizes and notes of the checkpoints in a range of sizes, both ends included, in order.
pub async fn notes(tx: &mut Tx, from: u64, to: u64) -> Result<Vec<(u64, String)>, Error> {
    let rows: Vec<(i64, String)> =
        sql("SELECT size, note FROM audit_checkpoints WHERE size >= $1 AND size <= $2 ORDER BY size")
            .bind(from)
            .bind(to)
            .fetch_all(tx)
            .await?;
    Ok(rows.into_iter().map(|(n, note)| (n.unsigned_abs(), note)).collect())
}

/// An export under way: NDJSON in pages, up to the checkpoint that was the latest when it began.
#[derive(Debug)]
pub struct Export {
    store: Store,
    header: Option<Line>,
    next: u64,
    end: u64,
    done: bool,
}

impl Export {
    /// Begins an export at the last checkpoint of at most `from` leaves. `None` until the auditor has signed anything.
    pub async fn begin(store: &Store, from: u64) -> Result<Option<Export>, Error> {
        let mut c = store.read().await?;
        let (Some(last), first) = (latest_checkpoint(&mut c).await?, checkpoint_up_to(&mut c, from).await?) else {
            return Ok(None);
        };
        let start = first.map(|f| f.edge.frontier).filter(|_| from > 0).unwrap_or_default();
        let (next, key) = (start.size(), last.edge.key);
        let header = Some(Line::header(&key, start, last.size));
        Ok(Some(Export { store: store.clone(), header, next, end: last.size, done: false }))
    }

    /// The next lines; `None` at the end.
    pub async fn next_page(&mut self) -> Result<Option<Vec<u8>>, Error> {
        if self.done {
            return Ok(None);
        }
        let mut c = self.store.read().await?;
        let mut page = leaves(&mut c, self.next, PAGE).await?;
        page.retain(|l| l.idx < self.end);
        let mut out = Vec::new();
        // A checkpoint stands behind the last leaf it covers; the one an export begins with opens it.
        let first = if self.header.is_some() { self.next } else { self.next + 1 };
        let last = page.last().map_or(self.end, |l| l.idx + 1);
        let mut notes = notes(&mut c, first, last).await?.into_iter().peekable();
        drop(c);
        if let Some(header) = self.header.take() {
            header.write(&mut out).map_err(Error::Encode)?;
        }
        self.done = page.is_empty() || last >= self.end;
        for leaf in page {
            while let Some((size, note)) = notes.next_if(|(size, _)| *size <= leaf.idx) {
                Line::Checkpoint { size, note }.write(&mut out).map_err(Error::Encode)?;
            }
            // Stored bytes that are no text were changed: what is shown then does not have the hash, which a reader finds.
            let text = String::from_utf8_lossy(&leaf.leaf).into_owned();
            let line = Line::Leaf { idx: leaf.idx, leaf: text, hash: leaf.hash };
            line.write(&mut out).map_err(Error::Encode)?;
        }
        for (size, note) in notes {
            Line::Checkpoint { size, note }.write(&mut out).map_err(Error::Encode)?;
        }
        self.next = last;
        Ok(Some(out))
    }
}

/// Goes on from `frontier` over the leaves stored behind it, hashed anew from their content, until there are `up_to` of them or
/// no more. Fails with the index of a leaf that is missing or does not have its hash.
pub async fn replay(store: &Store, mut frontier: Frontier, up_to: u64) -> Result<Result<Frontier, u64>, Error> {
    loop {
        let limit = u32::try_from(up_to.saturating_sub(frontier.size())).unwrap_or(u32::MAX).min(PAGE);
        let mut c = store.read().await?;
        let page = if limit == 0 { vec![] } else { leaves(&mut c, frontier.size(), limit).await? };
        if page.is_empty() {
            return Ok(Ok(frontier));
        }
        for leaf in page {
            if leaf.idx != frontier.size() || leaf.hash != leaf_hash(&leaf.leaf) {
                return Ok(Err(frontier.size()));
            }
            frontier.append(leaf.hash);
        }
    }
}
