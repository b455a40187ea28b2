//! The agent's journal: what it has promised, on disk before the promise is made.
//!
//! A record is `length u32 LE`, `crc32c(length) u32 LE`, `crc32c(payload) u32 LE`, JSON payload. A tail that a power cut
//! tore is cut off at open: it was never followed by a promise. Anything else that does not read refuses to open, because
//! a lost INTENT could start a task twice.

use crate::files;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};
use windlass_domain::{
    Timestamp,
    ids::{DeploymentId, TaskId, WorkId},
    task::{TaskReport, TaskSpec},
};

const HEADER: usize = 12;
/// Larger than any frame, so a length beyond it is damage and not data.
const MAX_RECORD: usize = 4 * 1024 * 1024;
/// Finished tasks keep their report this long; afterwards only their id, so that an old OFFER is still known.
const KEEP_DAYS: i64 = 30;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("cannot {what} the journal {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the journal {path} is damaged at byte {offset}: {why}. The agent does not run on it, because it could start a \
         task twice. Keep the file for inspection, move it away and start again: the agent then has a new instance, and \
         tasks that were granted to the old one are listed as unknown"
    )]
    Corrupt { path: PathBuf, offset: u64, why: &'static str },
}

/// One fact. The first record of a journal is always `Created`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum Record {
    Created {
        instance: String,
    },
    Accepted(Box<Accepted>),
    /// The grant was taken: from here on the task may have started.
    Intent {
        task: TaskId,
        epoch: u64,
        boot_id: String,
    },
    /// The runner's last word, or what the agent found instead of it.
    Exited {
        task: TaskId,
        report: Box<TaskReport>,
    },
    /// Never started and never will be. `work` and `epoch` as the FENCE said them.
    Fenced {
        task: TaskId,
        work: WorkId,
        epoch: u64,
    },
    /// A stop of a running task was asked for; repeated after a restart of the agent.
    Cancelled {
        task: TaskId,
    },
    /// The control plane has committed the result.
    Acked {
        task: TaskId,
    },
    /// Written by compaction only: an id that must never run again, and the highest epochs and fences.
    Known {
        tasks: Vec<TaskId>,
    },
    Epoch {
        work: WorkId,
        epoch: u64,
    },
    Fence {
        project: String,
        environment: String,
        fence: u64,
    },
}

/// All that is needed to run the task later, without the offer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    pub task: TaskId,
    pub work: WorkId,
    pub deployment: DeploymentId,
    pub attempt: u32,
    pub epoch: u64,
    pub fence: u64,
    pub start_at: u32,
    pub spec: TaskSpec,
    /// Outputs of earlier steps, by step.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub outputs: serde_json::Map<String, serde_json::Value>,
    pub trace: Option<String>,
}

/// A record with its place and time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Only grows, also over compaction.
    pub seq: u64,
    pub at: Timestamp,
    pub r: Record,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    seq: u64,
    instance: String,
    bytes: u64,
}

impl Journal {
    /// Opens or creates it; returns every entry, oldest first. `fresh_instance` is used only when it is created.
    pub fn open(path: &Path, fresh_instance: &str, now: Timestamp) -> Result<(Journal, Vec<Entry>), JournalError> {
        let io = |what| move |source| JournalError::Io { what, path: path.to_owned(), source };
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(io("open"))?;
        files::private(path, 0o600).map_err(io("protect"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io("read"))?;
        let (entries, good) = read(path, &bytes)?;
        if (good as usize) < bytes.len() {
            tracing::warn!(path = %path.display(), cut = bytes.len() as u64 - good, "the journal's torn tail is cut off");
            file.set_len(good).map_err(io("truncate"))?;
            file.sync_all().map_err(io("sync"))?;
        }
        let mut journal = Journal {
            path: path.to_owned(),
            file,
            seq: entries.last().map_or(0, |e| e.seq),
            instance: String::new(),
            bytes: good,
        };
        let mut entries = entries;
        match entries.first() {
            None => {
                let created = Record::Created { instance: fresh_instance.to_owned() };
                entries.extend(journal.append(vec![created], now)?);
                files::sync_parent(path).map_err(io("sync the directory of"))?;
            }
            Some(Entry { r: Record::Created { .. }, .. }) => {}
            Some(_) => {
                let why = "it does not begin with its creation record";
                return Err(JournalError::Corrupt { path: path.to_owned(), offset: 0, why });
            }
        }
        if let Some(Entry { r: Record::Created { instance }, .. }) = entries.first() {
            journal.instance.clone_from(instance);
        }
        Ok((journal, entries))
    }

    /// Random id made when this journal was created.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Sequence number of the newest entry.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Makes the records durable, all with one fsync. After an error the journal must not be used again: what is on disk
    /// is then not known.
    pub fn append(&mut self, records: Vec<Record>, now: Timestamp) -> Result<Vec<Entry>, JournalError> {
        let mut out = Vec::new();
        let mut entries = Vec::with_capacity(records.len());
        for r in records {
            self.seq += 1;
            let e = Entry { seq: self.seq, at: now, r };
            encode(&e, &mut out).map_err(|source| JournalError::Io {
                what: "encode a record of",
                path: self.path.clone(),
                source,
            })?;
            entries.push(e);
        }
        let path = self.path.clone();
        let io = |what| failed(what, &path);
        self.file.write_all(&out).map_err(io("write"))?;
        self.file.sync_data().map_err(io("sync"))?;
        self.bytes += out.len() as u64;
        Ok(entries)
    }

    /// Size on disk, to decide about compaction.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Rewrites the journal without what no longer matters: of a task that was acknowledged more than 30 days ago only the
    /// id stays. The instance and the sequence go on.
    pub fn compact(&mut self, entries: &[Entry], now: Timestamp) -> Result<Vec<Entry>, JournalError> {
        let kept = compacted(entries, self.seq, now);
        let mut out = Vec::new();
        let path = self.path.clone();
        let io = |what| failed(what, &path);
        for e in &kept {
            encode(e, &mut out).map_err(io("encode a record of"))?;
        }
        files::write_atomic(&self.path, &out, 0o600).map_err(io("replace"))?;
        self.file = OpenOptions::new().read(true).append(true).open(&self.path).map_err(io("open"))?;
        self.seq = kept.last().map_or(self.seq, |e| e.seq);
        self.bytes = out.len() as u64;
        Ok(kept)
    }
}

/// The entries of a journal that may be in use: nothing is changed.
pub fn peek(path: &Path) -> Result<Vec<Entry>, JournalError> {
    let io = |source| JournalError::Io { what: "read", path: path.to_owned(), source };
    let bytes = match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        b => b.map_err(io)?,
    };
    Ok(read(path, &bytes)?.0)
}

fn encode(e: &Entry, out: &mut Vec<u8>) -> io::Result<()> {
    let payload = serde_json::to_vec(e)?;
    if payload.len() > MAX_RECORD {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the record is too large"));
    }
    let len = (payload.len() as u32).to_le_bytes();
    out.extend_from_slice(&len);
    out.extend_from_slice(&crc32c::crc32c(&len).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
    out.extend_from_slice(&payload);
    Ok(())
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError + use<> {
    let path = path.to_owned();
    move |source| JournalError::Io { what, path, source }
}

fn word(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// All entries and the length of the good part.
fn read(path: &Path, bytes: &[u8]) -> Result<(Vec<Entry>, u64), JournalError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut at = 0;
    // An append that a power cut stopped ends early, or in pages that were allocated and never written: zeros. A JSON
    // payload never ends in a zero byte, so a complete record that fails its checksum is damage, not a torn write.
    let zero_end = bytes.last() == Some(&0);
    let corrupt = |offset: usize, why| Err(JournalError::Corrupt { path: path.to_owned(), offset: offset as u64, why });
    while at < bytes.len() {
        let rest = &bytes[at..];
        if rest.len() < HEADER {
            break;
        }
        let len = word(rest, 0) as usize;
        if crc32c::crc32c(&rest[..4]) != word(rest, 4) || len > MAX_RECORD {
            if zero_end {
                break;
            }
            return corrupt(at, "a record's header fails its checksum");
        }
        let Some(payload) = rest.get(HEADER..HEADER + len) else { break };
        if crc32c::crc32c(payload) != word(rest, 8) {
            if zero_end && at + HEADER + len == bytes.len() {
                break;
            }
            return corrupt(at, "a record fails its checksum");
        }
        let Ok(e) = serde_json::from_slice::<Entry>(payload) else {
            return corrupt(at, "a record is of a kind this version does not know");
        };
        if entries.last().is_some_and(|last| e.seq <= last.seq) {
            return corrupt(at, "the sequence numbers do not grow");
        }
        entries.push(e);
        at += HEADER + len;
    }
    Ok((entries, at as u64))
}

fn compacted(entries: &[Entry], last_seq: u64, now: Timestamp) -> Vec<Entry> {
    let mut acked = BTreeMap::new();
    let mut epochs: BTreeMap<WorkId, u64> = BTreeMap::new();
    let mut fences: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut known = Vec::new();
    for e in entries {
        match &e.r {
            Record::Acked { task } => {
                acked.insert(*task, e.at);
            }
            Record::Accepted(a) => {
                let f = fences.entry((a.spec.project.clone(), a.spec.environment.clone())).or_default();
                *f = (*f).max(a.fence);
                let w = epochs.entry(a.work).or_default();
                *w = (*w).max(a.epoch);
            }
            Record::Fence { project, environment, fence } => {
                let f = fences.entry((project.clone(), environment.clone())).or_default();
                *f = (*f).max(*fence);
            }
            Record::Epoch { work, epoch } | Record::Fenced { work, epoch, .. } => {
                let w = epochs.entry(*work).or_default();
                *w = (*w).max(*epoch);
            }
            Record::Known { tasks } => known.extend(tasks.iter().copied()),
            Record::Created { .. } | Record::Intent { .. } | Record::Exited { .. } | Record::Cancelled { .. } => {}
        }
    }
    acked.retain(|_, at| now - *at > chrono::TimeDelta::days(KEEP_DAYS));
    known.extend(acked.keys().copied());
    let task_of = |r: &Record| match r {
        Record::Accepted(a) => Some(a.task),
        Record::Intent { task, .. }
        | Record::Exited { task, .. }
        | Record::Fenced { task, .. }
        | Record::Cancelled { task }
        | Record::Acked { task } => Some(*task),
        _ => None,
    };
    let mut out: Vec<Entry> = entries
        .iter()
        .filter(|e| match &e.r {
            Record::Created { .. } => true,
            Record::Known { .. } | Record::Epoch { .. } | Record::Fence { .. } => false,
            r => task_of(r).is_some_and(|t| !acked.contains_key(&t)),
        })
        .cloned()
        .collect();
    let mut seq = last_seq;
    let mut push = |r| {
        seq += 1;
        out.push(Entry { seq, at: now, r });
    };
    for chunk in known.chunks(10_000) {
        push(Record::Known { tasks: chunk.to_vec() });
    }
    for (work, epoch) in epochs {
        push(Record::Epoch { work, epoch });
    }
    for ((project, environment), fence) in fences {
        push(Record::Fence { project, environment, fence });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-21T00:00:00Z".parse().expect("time")
    }
    fn task(n: u128) -> TaskId {
        uuid::Uuid::from_u128(n).into()
    }
    fn fenced(n: u128) -> Record {
        Record::Fenced { task: task(n), work: uuid::Uuid::from_u128(9).into(), epoch: n as u64 }
    }

    #[test]
    fn survives_reopening_and_keeps_instance_and_sequence() {
        let dir = tempfile::tempdir().expect("dir");
        let p = dir.path().join("journal");
        let (mut j, e) = Journal::open(&p, "one", now()).expect("creates");
        assert_eq!(e.len(), 1);
        j.append(vec![fenced(1), fenced(2)], now()).expect("appends");
        let (j, e) = Journal::open(&p, "two", now()).expect("opens");
        assert_eq!((j.instance(), j.seq(), e.len()), ("one", 3, 3));
    }

    #[test]
    fn every_torn_tail_is_cut_and_every_flipped_byte_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let p = dir.path().join("journal");
        let (mut j, _) = Journal::open(&p, "one", now()).expect("creates");
        j.append(vec![fenced(1)], now()).expect("appends");
        let before = std::fs::read(&p).expect("reads").len();
        j.append(vec![fenced(2)], now()).expect("appends");
        let whole = std::fs::read(&p).expect("reads");
        for cut in before..whole.len() {
            std::fs::write(&p, &whole[..cut]).expect("writes");
            let (mut j, e) = Journal::open(&p, "x", now()).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
            assert_eq!(e.len(), 2, "cut at {cut}");
            j.append(vec![fenced(3)], now()).expect("appends after the cut");
            assert_eq!(Journal::open(&p, "x", now()).expect("opens").1.len(), 3);
        }
        // Pages that were allocated but never written.
        let mut zeros = whole[..before + 20].to_vec();
        zeros.resize(whole.len(), 0);
        std::fs::write(&p, &zeros).expect("writes");
        assert_eq!(Journal::open(&p, "x", now()).expect("opens").1.len(), 2);
        for i in 0..whole.len() {
            for bit in 0..8 {
                let mut bad = whole.clone();
                bad[i] ^= 1 << bit;
                std::fs::write(&p, &bad).expect("writes");
                let r = Journal::open(&p, "x", now());
                assert!(matches!(r, Err(JournalError::Corrupt { .. })), "byte {i} bit {bit}");
            }
        }
    }

    #[test]
    fn compaction_forgets_reports_but_never_ids_epochs_or_fences() {
        let dir = tempfile::tempdir().expect("dir");
        let p = dir.path().join("journal");
        let old = now() - chrono::TimeDelta::days(40);
        let (mut j, mut all) = Journal::open(&p, "one", old).expect("creates");
        all.extend(j.append(vec![fenced(1), Record::Acked { task: task(1) }], old).expect("appends"));
        all.extend(j.append(vec![fenced(2), Record::Acked { task: task(2) }, fenced(3)], now()).expect("appends"));
        let seq = j.seq();
        j.compact(&all, now()).expect("compacts");
        let (j, kept) = Journal::open(&p, "two", now()).expect("opens");
        assert_eq!(j.instance(), "one");
        assert!(j.seq() > seq);
        assert!(kept.iter().any(|e| e.r == Record::Known { tasks: vec![task(1)] }));
        assert!(kept.iter().any(|e| e.r == fenced(2)) && kept.iter().any(|e| e.r == fenced(3)));
        assert!(!kept.iter().any(|e| e.r == fenced(1)));
        let w = uuid::Uuid::from_u128(9).into();
        assert!(kept.iter().any(|e| e.r == Record::Epoch { work: w, epoch: 3 }));
    }
}
