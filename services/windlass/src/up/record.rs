//! `up.json`: what runs, for `down`, for a second `up`, and for scripts. A file lock says whether it is true.

use super::process::Process;
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

pub(crate) const FILE: &str = "up.json";
const LOCK: &str = "up.lock";

/// A demo agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AgentRecord {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) root: PathBuf,
}

/// What an `up` says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) process: Process,
    pub(crate) ready: bool,
    pub(crate) server: String,
    pub(crate) token_file: PathBuf,
    pub(crate) agents: Vec<AgentRecord>,
    pub(crate) children: Vec<Process>,
}

impl Record {
    pub(crate) fn read(state: &Path) -> Option<Record> {
        serde_json::from_slice(&std::fs::read(state.join(FILE)).ok()?).ok()
    }

    pub(crate) fn write(&self, state: &Path) -> std::io::Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(std::io::Error::other)?;
        write_file(&state.join(FILE), &text, 0o644)
    }

    pub(crate) fn remove(state: &Path) {
        let _ = std::fs::remove_file(state.join(FILE));
    }
}

/// The record of the running `up`, written anew at each change.
#[derive(Debug)]
pub(crate) struct Board {
    state: PathBuf,
    record: Mutex<Record>,
}

impl Board {
    pub(crate) fn new(state: &Path, record: Record) -> Board {
        Board { state: state.to_owned(), record: Mutex::new(record) }
    }

    pub(crate) fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Record)) -> std::io::Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut record);
        record.write(&self.state)
    }

    /// A demo agent runs as `process` now.
    pub(crate) fn agent(&self, agent: AgentRecord, process: Process) {
        let written = self.update(|r| {
            r.children.retain(|c| c.what != process.what);
            r.children.push(process);
            if !r.agents.contains(&agent) {
                r.agents.push(agent);
            }
        });
        if let Err(error) = written {
            tracing::warn!(%error, "the record of this process cannot be written");
        }
    }
}

/// Held while an `up` runs on a state directory; the kernel frees it however the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// `None` when another process holds it.
    pub(crate) fn take(state: &Path) -> std::io::Result<Option<Lock>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(state.join(LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}

/// Writes beside and renames, so that a reader sees the old or the new text.
pub(crate) fn write_file(path: &Path, text: &[u8], mode: u32) -> std::io::Result<()> {
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().expect("dir");
        let held = Lock::take(dir.path()).expect("lock");
        assert!(held.is_some());
        assert!(Lock::take(dir.path()).expect("lock").is_none());
        drop(held);
        assert!(Lock::take(dir.path()).expect("lock").is_some());
    }

    #[test]
    fn a_record_reads_back() {
        let dir = tempfile::tempdir().expect("dir");
        let record = Record {
            process: Process::of("windlass up", std::process::id()).expect("alive"),
            ready: true,
            server: "http://127.0.0.1:7400".into(),
            token_file: "admin.token".into(),
            agents: vec![AgentRecord { host: "demo-1".into(), port: 7501, root: "/r".into() }],
            children: vec![],
        };
        record.write(dir.path()).expect("write");
        assert_eq!(Record::read(dir.path()), Some(record));
        Record::remove(dir.path());
        assert_eq!(Record::read(dir.path()), None);
    }
}
