//! Which hosts may take no task now: locked by a person, or busy with as many tasks as they take at once. A task of such a
//! host waits, pending, for at most `executor.host_wait_s`; so does one that was offered when its host was locked.
//!
//! How long it waited is this process's memory: after a takeover the time begins anew, once for each takeover.

use crate::dispatch::Input;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use windlass_domain::{Timestamp, catalog::DEFAULT_MAX_TASKS, deployment::By, ids::TaskId, work::FailureClass};
use windlass_store::{
    Error, Tx, hosts,
    latches::{self, Latch},
};

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
    /// Offered tasks whose host was locked meanwhile.
    ungranted: HashMap<TaskId, Ungranted>,
}

/// An offer that was not granted because its host was locked.
#[derive(Debug, Clone)]
pub(super) struct Ungranted {
    /// First seen.
    pub(super) since: Timestamp,
    /// Last seen: from then on the agent has its time to take the offer.
    pub(super) until: Timestamp,
    /// It is locked still, as far as is known.
    pub(super) why: Option<String>,
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
        latches::take(tx, Latch::Offers).await?;
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

    /// The hosts of offered tasks that are locked, with why.
    pub(super) fn locked(
        &self,
        locks: &BTreeMap<String, By>,
        offered: &[(TaskId, &str)],
        now: Timestamp,
    ) -> BTreeMap<String, String> {
        let mut locked = BTreeMap::new();
        let mut state = self.state();
        state.ungranted.retain(|id, _| offered.iter().any(|(t, _)| t == id));
        for (id, host) in offered {
            let why = locks.get(*host).map(|l| format!("host {host} is locked by {}: {}", l.who, l.reason));
            match (why, state.ungranted.get_mut(id)) {
                (Some(why), Some(u)) => (u.until, u.why) = (now, Some(why.clone())),
                (Some(why), None) => {
                    state.ungranted.insert(*id, Ungranted { since: now, until: now, why: Some(why) });
                }
                (None, Some(u)) => u.why = None,
                (None, None) => {}
            }
        }
        for (id, host) in offered {
            if let Some(why) = state.ungranted.get(id).and_then(|u| u.why.clone()) {
                locked.insert((*host).to_owned(), why);
            }
        }
        locked
    }

    pub(super) fn ungranted(&self, task: TaskId) -> Option<Ungranted> {
        self.state().ungranted.get(&task).cloned()
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
