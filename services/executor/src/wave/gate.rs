//! Which hosts may take no task now: locked by a person, or busy with as many tasks as they take at once. A task of such a
//! host waits, pending, for at most `executor.host_wait_s`.
//!
//! How long it waited is this process's memory: after a takeover the time begins anew, once for each takeover.

use crate::dispatch::Input;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use windlass_domain::{catalog::DEFAULT_MAX_TASKS, ids::TaskId, work::FailureClass};
use windlass_store::{Error, Tx, hosts};

/// Limits of hosts are read again after this long.
const LIMITS_FRESH: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    limits: BTreeMap<String, u32>,
    read_at: Option<Instant>,
    /// Since when each pending task has been held back.
    held: HashMap<TaskId, Instant>,
}

impl Gate {
    /// The hosts of pending tasks that may not start one now, with why. From here to the end of the transaction no other
    /// executor offers anything, so that a host's last free place is given away once.
    pub(super) async fn closed(
        &self,
        tx: &mut Tx,
        pending: &[(TaskId, &str)],
    ) -> Result<BTreeMap<String, String>, Error> {
        if pending.is_empty() {
            self.state().held.clear();
            return Ok(BTreeMap::new());
        }
        hosts::take_turn(tx).await?;
        let stale = self.state().read_at.is_none_or(|t| t.elapsed() >= LIMITS_FRESH);
        if stale {
            let limits = hosts::limits(tx).await?;
            let mut state = self.state();
            (state.limits, state.read_at) = (limits, Some(Instant::now()));
        }
        let (locks, busy) = (hosts::locks(tx).await?, hosts::busy(tx).await?);
        let mut state = self.state();
        let mut closed = BTreeMap::new();
        for (_, host) in pending {
            let limit = state.limits.get(*host).copied().unwrap_or(DEFAULT_MAX_TASKS);
            let n = busy.get(*host).copied().unwrap_or(0);
            if let Some(l) = locks.get(*host) {
                let why = format!("host {host} is locked by {}: {}", l.locked_by, l.reason);
                closed.insert((*host).to_owned(), why);
            } else if n >= limit {
                closed.insert(
                    (*host).to_owned(),
                    format!("host {host} is busy with {n} tasks, and takes {limit} at once"),
                );
            }
        }
        state.held.retain(|id, _| pending.iter().any(|(t, h)| t == id && closed.contains_key(*h)));
        for (id, host) in pending {
            if closed.contains_key(*host) {
                state.held.entry(*id).or_insert_with(Instant::now);
            }
        }
        Ok(closed)
    }

    /// The pending tasks that have waited for their host as long as they may.
    pub(super) fn given_up(
        &self,
        pending: &[(TaskId, &str)],
        closed: &BTreeMap<String, String>,
        limit: Duration,
    ) -> Vec<Input> {
        let state = self.state();
        let over = |id: &TaskId| state.held.get(id).is_some_and(|since| since.elapsed() >= limit);
        let why = |id: &TaskId, host: &str| {
            let why = closed.get(host)?;
            let reason = format!("not started: {why}; it was waited for {} s", limit.as_secs());
            Some(Input::TimedOut { task: *id, reason, class: FailureClass::Refused })
        };
        pending.iter().filter(|(id, _)| over(id)).filter_map(|(id, host)| why(id, host)).collect()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
