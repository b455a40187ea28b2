//! The log of a central step: kept like a host's, under the host name `-`, so that the same page and the same command show
//! it. The step's work stands for the task.

use crate::shared::Shared;
use std::time::Duration;
use tokio::sync::mpsc;
use windlass_contracts::subjects;
use windlass_domain::{ids::TaskId, mask::Masker, work::Work};
use windlass_store::{
    Error,
    logs::{self, CENTRAL_HOST, Chunk},
};

/// Kept per step.
const CAP: u64 = 8 * 1024 * 1024;
/// Pieces that come within this time share a transaction.
const BATCH: Duration = Duration::from_millis(50);
const MAX_BATCH: usize = 256;
/// Tries to store a batch before it is given up.
const TRIES: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
    /// What the executor itself says.
    Note,
}

impl Stream {
    fn as_str(self) -> &'static str {
        match self {
            Stream::Out => "out",
            Stream::Err => "err",
            Stream::Note => "note",
        }
    }
}

type Piece = (Stream, chrono::DateTime<chrono::Utc>, Vec<u8>);

/// Where a step writes. What it is given is masked before it leaves the process.
#[derive(Debug)]
pub(crate) struct StepLog {
    to: mpsc::Sender<Piece>,
    masker: Masker,
}

impl StepLog {
    /// A whole line; waits while the database does not keep up.
    pub(crate) async fn write(&self, stream: Stream, line: &[u8]) {
        // The writer ends only after every sender, so this fails only while the whole step is dropped.
        let _ = self.to.send((stream, chrono::Utc::now(), self.masker.bytes(line))).await;
    }
    pub(crate) async fn note(&self, text: &str) {
        self.write(Stream::Note, format!("{text}\n").as_bytes()).await;
    }
    pub(crate) fn masker(&self) -> &Masker {
        &self.masker
    }
}

/// Stores what the log is given; [`Writer::run`] ends after the log is dropped.
#[derive(Debug)]
pub(crate) struct Writer(mpsc::Receiver<Piece>);

pub(crate) fn open(masker: Masker) -> (StepLog, Writer) {
    let (to, from) = mpsc::channel(1024);
    (StepLog { to, masker }, Writer(from))
}

impl Writer {
    pub(crate) async fn run(mut self, shared: &Shared, work: &Work, step: &str) {
        let mut at: Option<logs::Position> = None;
        let mut gap = Gap::default();
        while let Some(first) = self.0.recv().await {
            let mut batch = vec![first];
            let until = tokio::time::Instant::now() + BATCH;
            while batch.len() < MAX_BATCH
                && let Ok(Some(piece)) = tokio::time::timeout_at(until, self.0.recv()).await
            {
                batch.push(piece);
            }
            batch.splice(0..0, gap.note());
            let mut stored = false;
            for attempt in 1..=TRIES {
                match store(shared, work, step, &mut at, &batch).await {
                    Ok(()) => {
                        stored = true;
                        break;
                    }
                    Err(error) => {
                        // Somebody else may have written: look where the log stands.
                        at = None;
                        tracing::warn!(work = %work.id, attempt, error = &error as &dyn std::error::Error, "a step's log was not stored");
                        if attempt < TRIES {
                            tokio::time::sleep(Duration::from_millis(50) * 4_u32.pow(attempt - 1)).await;
                        }
                    }
                }
            }
            if stored {
                gap = Gap::default();
            } else {
                gap.grow(&batch);
            }
        }
        // The step has ended with a gap at the end of its log: the note has one try more.
        if let Some(note) = gap.note()
            && let Err(error) = store(shared, work, step, &mut at, &[note]).await
        {
            tracing::warn!(work = %work.id, error = &error as &dyn std::error::Error, "the end of a step's log is missing");
        }
    }
}

/// What the database did not take, and nobody else has.
#[derive(Debug, Default, PartialEq, Eq)]
struct Gap {
    bytes: usize,
}

impl Gap {
    fn grow(&mut self, lost: &[Piece]) {
        let said = |p: &&Piece| p.0 != Stream::Note;
        self.bytes += lost.iter().filter(said).map(|(_, _, data)| data.len()).sum::<usize>();
    }

    /// Stands where the lost lines would have stood.
    fn note(&self) -> Option<Piece> {
        let text =
            format!("{} bytes of the log are missing here: the database did not take them in time\n", self.bytes);
        (self.bytes > 0).then(|| (Stream::Note, chrono::Utc::now(), text.into_bytes()))
    }
}

async fn store(
    shared: &Shared,
    work: &Work,
    step: &str,
    at: &mut Option<logs::Position>,
    batch: &[Piece],
) -> Result<(), Error> {
    let task = TaskId(work.id.0);
    let mut p = match *at {
        Some(p) => p,
        None => logs::position(&mut shared.ctx.store.read().await?, task).await?,
    };
    let mut chunks: Vec<Chunk> = Vec::new();
    for (stream, when, data) in batch {
        if p.bytes > CAP {
            break;
        }
        p.bytes += data.len() as u64;
        let (stream, data) = if p.bytes > CAP {
            (Stream::Note, format!("the log is longer than {CAP} bytes; the rest is not kept\n").into_bytes())
        } else {
            (*stream, data.clone())
        };
        match chunks.last_mut().filter(|c| c.stream == stream.as_str() && c.data.len() < 16 * 1024) {
            Some(last) => last.data.extend(data),
            None => {
                let (host, step, stream) = (CENTRAL_HOST.into(), step.into(), stream.as_str().into());
                chunks.push(Chunk { task, seq: p.next, host, step, stream, at: *when, data });
                p.next += 1;
            }
        }
    }
    if !chunks.is_empty() {
        let mut tx = shared.ctx.store.write().await?;
        logs::append(&mut tx, work.deployment, &chunks).await?;
        tx.commit().await?;
        shared.ctx.bus.ring(subjects::log(work.deployment), "").await;
    }
    *at = Some(p);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_told_once_and_notes_do_not_count() {
        let piece = |stream, text: &str| (stream, chrono::Utc::now(), text.as_bytes().to_vec());
        let mut gap = Gap::default();
        assert!(gap.note().is_none());
        gap.grow(&[piece(Stream::Out, "12345"), piece(Stream::Err, "678")]);
        let Some(note) = gap.note() else { panic!("a note") };
        assert!(String::from_utf8_lossy(&note.2).starts_with("8 bytes of the log are missing here"));
        // The note itself was not stored either: the gap grows by what is new alone.
        gap.grow(&[note, piece(Stream::Out, "9")]);
        assert_eq!(gap, Gap { bytes: 9 });
    }
}
