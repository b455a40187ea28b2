//! Why a step must stop: its time is up, or the task is being aborted.

use std::time::Duration;
use tokio::{sync::watch, time::Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    TimedOut,
    Cancelled,
}

/// A step's limits. Clean-up steps of a cancelled task have no `cancel`.
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    deadline: Instant,
    cancel: Option<watch::Receiver<bool>>,
}

impl Stop {
    pub(crate) fn new(timeout: Duration, cancel: Option<watch::Receiver<bool>>) -> Stop {
        Stop { deadline: Instant::now() + timeout, cancel }
    }

    /// The same with less time, if it is less.
    pub(crate) fn within(&self, limit: Duration) -> Stop {
        Stop { deadline: self.deadline.min(Instant::now() + limit), cancel: self.cancel.clone() }
    }

    /// Completes when the step must stop. Safe to call again.
    pub(crate) async fn requested(&self) -> Reason {
        let cancelled = async {
            match self.cancel.clone() {
                Some(mut c) => {
                    if c.wait_for(|on| *on).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancelled => Reason::Cancelled,
            () = tokio::time::sleep_until(self.deadline) => Reason::TimedOut,
        }
    }
}
