//! Ordered shutdown: a signal cancels the first group, the next group is cancelled when the one before has ended, and
//! telemetry is flushed last by its guard.

use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Exit code of a process that was told twice to stop.
const FORCED: i32 = 130;

/// SIGINT and SIGTERM, caught from the moment this exists.
struct Signals {
    int: Signal,
    term: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals { int: signal(SignalKind::interrupt())?, term: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.int.recv() => "SIGINT",
            _ = self.term.recv() => "SIGTERM",
        }
    }
}

/// A token that SIGINT or SIGTERM cancels. A second signal ends the process at once: a person who presses Ctrl-C twice
/// means it, and nothing here needs a clean end to be correct. The task that waits ends with the token.
pub fn on_signal(tracker: &TaskTracker) -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut signals = Signals::new()?;
    let cancel = token.clone();
    tracker.spawn(async move {
        tokio::select! {
            name = signals.next() => {
                tracing::info!(signal = name, "shutting down; a second signal exits at once");
                cancel.cancel();
            }
            () = cancel.cancelled() => {}
        }
    });
    Ok(token)
}

/// What ends together.
#[derive(Debug)]
struct Group {
    name: &'static str,
    token: CancellationToken,
    tracker: TaskTracker,
    timeout: Duration,
}

/// Groups in the order in which they are stopped.
#[derive(Debug, Default)]
pub struct Sequence {
    groups: Vec<Group>,
}

impl Sequence {
    pub fn new() -> Sequence {
        Sequence::default()
    }

    /// Adds a group: `token` tells its tasks to end, `tracker` knows when they have.
    pub fn group(
        mut self,
        name: &'static str,
        token: CancellationToken,
        tracker: TaskTracker,
        timeout: Duration,
    ) -> Sequence {
        self.groups.push(Group { name, token, tracker, timeout });
        self
    }

    /// Stops the groups one after the other. Returns the names of those that did not end in time.
    pub async fn stop(self) -> Vec<&'static str> {
        let stop = async {
            let mut late = vec![];
            for g in self.groups {
                g.token.cancel();
                g.tracker.close();
                if tokio::time::timeout(g.timeout, g.tracker.wait()).await.is_err() {
                    tracing::error!(group = g.name, left = g.tracker.len(), "did not stop in time");
                    late.push(g.name);
                } else {
                    tracing::debug!(group = g.name, "stopped");
                }
            }
            late
        };
        let Ok(mut signals) = Signals::new() else { return stop.await };
        tokio::select! {
            late = stop => late,
            name = signals.next() => {
                tracing::warn!(signal = name, "second signal: exiting at once");
                #[allow(clippy::disallowed_methods, reason = "the one forced exit, asked for by a person")]
                std::process::exit(FORCED)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[tokio::test]
    async fn groups_stop_in_order_and_a_stuck_one_is_named() {
        let log = Arc::new(Mutex::new(vec![]));
        let mut s = Sequence::new();
        for name in ["services", "bus"] {
            let (token, tracker) = (CancellationToken::new(), TaskTracker::new());
            let (t, l) = (token.clone(), Arc::clone(&log));
            tracker.spawn(async move {
                t.cancelled().await;
                tokio::task::yield_now().await;
                l.lock().expect("lock").push(name);
            });
            s = s.group(name, token, tracker, Duration::from_secs(5));
        }
        let stuck = TaskTracker::new();
        stuck.spawn(std::future::pending::<()>());
        s = s.group("stuck", CancellationToken::new(), stuck, Duration::from_millis(20));
        assert_eq!(s.stop().await, ["stuck"]);
        assert_eq!(*log.lock().expect("lock"), ["services", "bus"]);
    }
}
