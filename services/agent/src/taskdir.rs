//! The directory of one task: how the agent and the runner, which may not live at the same time, speak to each other.

use crate::{files, journal::Accepted, spool::LogCaps};
use rustix::fs::{CWD, FlockOperation, Mode, flock, mkfifoat};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use windlass_domain::{
    Timestamp,
    ids::TaskId,
    task::{StepReport, TaskReport},
};

/// `spec.json`: all the runner needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    pub accepted: Accepted,
    pub root: PathBuf,
    pub state: PathBuf,
    /// Added to the environment of every process.
    pub env: BTreeMap<String, String>,
    pub caps: LogCaps,
    pub grace_ms: u64,
    /// From the host's policy.
    pub run_as: Vec<String>,
    pub writable: Vec<String>,
}

/// One line of `steps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepLine {
    Begin { index: u32, at: Timestamp },
    End(StepReport),
}

#[derive(Debug, Clone)]
pub struct TaskDir(PathBuf);

impl TaskDir {
    pub fn new(path: PathBuf) -> TaskDir {
        TaskDir(path)
    }
    pub fn of(state: &Path, task: TaskId) -> TaskDir {
        TaskDir(state.join("tasks").join(task.to_string()))
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }
    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes the directory ready for a runner and returns its lock, held. The lock is handed to the runner as its
    /// standard input, so there is no moment at which a living runner does not hold it.
    pub fn prepare(&self, spec: &RunSpec) -> io::Result<File> {
        files::private_dir(&self.0)?;
        fs::write(self.file("spec.json"), serde_json::to_vec(spec)?)?;
        match mkfifoat(CWD, self.doorbell(), Mode::from_raw_mode(0o600)) {
            Err(e) if e != rustix::io::Errno::EXIST => return Err(e.into()),
            _ => {}
        }
        let lock = self.open_lock()?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(lock)
    }

    pub fn spec(&self) -> io::Result<RunSpec> {
        Ok(serde_json::from_slice(&fs::read(self.file("spec.json"))?)?)
    }

    fn open_lock(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(self.file("lock"))
    }

    /// Whether a runner lives.
    pub fn is_locked(&self) -> io::Result<bool> {
        if !self.0.is_dir() {
            return Ok(false);
        }
        match flock(self.open_lock()?, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(e) => Err(e.into()),
        }
    }

    /// Blocks until no runner lives.
    pub fn wait_unlocked(&self) -> io::Result<()> {
        let lock = self.open_lock()?;
        loop {
            match flock(&lock, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// FIFO by which the runner says that there is something new to read.
    pub fn doorbell(&self) -> PathBuf {
        self.file("doorbell")
    }

    /// Wakes the agent if there is one. The runner never waits for it.
    pub fn ring(&self) {
        let bell = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        if let Ok(mut f) = OpenOptions::new().write(true).custom_flags(bell).open(self.doorbell()) {
            let _ = f.write(&[1]);
        }
    }

    /// Asks the runner to stop: durable first, then the signal. A runner that starts later sees the file.
    pub fn abort(&self) -> io::Result<()> {
        let f = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.file("abort"))?;
        f.sync_all()?;
        files::sync_dir(&self.0)?;
        if let Some(p) = self.runner() {
            crate::runner::tree::signal(&[p], rustix::process::Signal::TERM);
        }
        Ok(())
    }
    pub fn abort_requested(&self) -> bool {
        self.file("abort").exists()
    }

    /// The runner says who it is, once it can take a signal.
    pub fn write_pid(&self) -> io::Result<()> {
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        let started = crate::runner::tree::stat(pid).map_or(0, |s| s.started);
        fs::write(self.file("pid"), format!("{pid} {started}"))
    }
    fn runner(&self) -> Option<crate::runner::tree::Proc> {
        let text = fs::read_to_string(self.file("pid")).ok()?;
        let (pid, started) = text.split_once(' ')?;
        Some(crate::runner::tree::Proc { pid: pid.parse().ok()?, started: started.parse().ok()? })
    }

    /// Written just before the first step: a task without it has not begun.
    pub fn mark(&self) -> io::Result<()> {
        File::create(self.file("exec.mark"))?.sync_all()?;
        files::sync_dir(&self.0)
    }
    pub fn has_begun(&self) -> bool {
        self.file("exec.mark").exists()
    }

    /// Opens `steps` for appending.
    pub fn steps_file(&self) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(self.file("steps"))
    }

    /// Every complete line of `steps` from byte `from`; returns where to go on.
    pub fn read_steps(&self, from: &mut usize) -> io::Result<Vec<StepLine>> {
        let bytes = match fs::read(self.file("steps")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            b => b?,
        };
        let mut out = Vec::new();
        while let Some(len) = bytes.get(*from..).and_then(|b| b.iter().position(|c| *c == b'\n')) {
            out.extend(serde_json::from_slice::<StepLine>(&bytes[*from..*from + len]).ok());
            *from += len + 1;
        }
        Ok(out)
    }

    /// Reserves room for the result, so that a full disk cannot take it.
    pub fn reserve_exit(&self) -> io::Result<()> {
        let f = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(self.file("exit.slot"))?;
        let flags = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&f, flags, 0, 256 * 1024) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The last word of the runner: whole and durable, or not there.
    pub fn write_exit(&self, report: &TaskReport) -> io::Result<()> {
        let slot = self.file("exit.slot");
        let bytes = serde_json::to_vec(report)?;
        let mut f = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&slot)?;
        f.write_all(&bytes)?;
        f.set_len(bytes.len() as u64)?;
        f.sync_all()?;
        fs::rename(&slot, self.file("exit.json"))?;
        files::sync_dir(&self.0)
    }

    /// `None` without one; an unreadable one is an error, never guessed at.
    pub fn exit(&self) -> io::Result<Option<TaskReport>> {
        match fs::read(self.file("exit.json")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            b => Ok(Some(serde_json::from_slice(&b?)?)),
        }
    }

    /// How far the log was sent and acknowledged.
    pub fn cursors(&self) -> Option<crate::logs::Cursors> {
        serde_json::from_slice(&fs::read(self.file("log.sent")).ok()?).ok()
    }
    /// Survives the agent's death, which is all it must: after a power cut the log is read again from the start.
    pub fn write_cursors(&self, c: &crate::logs::Cursors) -> io::Result<()> {
        let tmp = self.file("log.sent.new");
        fs::write(&tmp, serde_json::to_vec(c)?)?;
        fs::rename(tmp, self.file("log.sent"))
    }

    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}
