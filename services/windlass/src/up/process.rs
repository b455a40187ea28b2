//! Processes by pid *and* start time, so that a number the kernel has given to somebody else is never signalled.

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// A process of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// For people: `nats-server`, `agent demo-1`.
    pub(crate) what: String,
    pub(crate) pid: u32,
    /// Clock ticks from boot to its start (`/proc/<pid>/stat`, field 22).
    pub(crate) started: u64,
}

impl Process {
    /// `None` when no such process lives.
    pub(crate) fn of(what: impl Into<String>, pid: u32) -> Option<Process> {
        start_time(pid).map(|started| Process { what: what.into(), pid, started })
    }

    pub(crate) fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    fn signal(&self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
        {
            // It may end between the check and here; then there is nothing to signal.
            let _ = kill_process(pid, signal);
        }
    }

    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// TERM, then KILL when it has not gone within `grace`. True when it is gone.
    pub(crate) async fn stop(&self, grace: Duration) -> bool {
        self.signal(Signal::TERM);
        if self.gone_within(grace).await {
            return true;
        }
        self.signal(Signal::KILL);
        self.gone_within(Duration::from_secs(5)).await
    }

    pub(crate) async fn gone_within(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while self.is_alive() {
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        true
    }
}

/// `None` for processes that do not exist or are zombies.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name, in brackets, may hold spaces and brackets itself.
    let mut after = stat.rsplit_once(')')?.1.split_whitespace();
    if after.next()? == "Z" {
        return None;
    }
    after.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_process_that_was_meant_is_stopped() {
        let mut child = tokio::process::Command::new("sleep").arg("60").kill_on_drop(true).spawn().expect("spawn");
        let pid = child.id().expect("pid");
        let it = Process::of("sleep", pid).expect("lives");
        let other = Process { started: it.started + 1, ..it.clone() };
        assert!(!other.is_alive());
        assert!(other.stop(Duration::from_secs(1)).await, "somebody else's pid counts as gone");
        assert!(it.is_alive(), "and is left alone");
        let reaper = tokio::spawn(async move { child.wait().await });
        assert!(it.stop(Duration::from_secs(10)).await);
        let status = reaper.await.expect("join").expect("wait");
        assert!(!status.success());
        assert!(Process::of("sleep", pid).is_none());
    }
}
