//! How much one agent may say. The broker lets an agent speak on its own subjects alone, so what a flood costs is counted
//! against the agent that the subject names, before a signature is checked or a database asked: whatever one host does, the
//! others are heard. All limits lie far above what an agent needs; what is dropped here, a good agent says again.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use windlass_domain::ids::{AgentId, TaskId};

/// Agents without an allowance of their own (not enrolled) share one; their ids are made up at will.
const NOBODY: AgentId = AgentId(uuid::Uuid::nil());
/// Orphans of one agent that are written down an hour. Beyond it one record says that there are more.
const ORPHANS: usize = 20;
const ORPHANS_EVERY: Duration = Duration::from_secs(3600);

/// What a frame is paid from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Frames about tasks.
    Tasks,
    /// HELLO and heartbeats.
    Hello,
    /// Log frames, by number.
    Logs,
    /// Log frames, by bytes.
    LogBytes,
    /// HELLOs that are looked at in a transaction, by 1 + what they list.
    Settle,
    /// HELLOs of a journal that was never heard before.
    Replace,
    /// Results of tasks nobody here drives: each asks the database.
    Late,
}

impl Kind {
    /// How much is there at once, and how much comes back a second.
    fn limits(self) -> (f64, f64) {
        const MIB: f64 = 1024.0 * 1024.0;
        match self {
            Kind::Tasks => (4000.0, 500.0),
            Kind::Hello => (200.0, 25.0),
            Kind::Logs => (16_000.0, 4000.0),
            Kind::LogBytes => (256.0 * MIB, 128.0 * MIB),
            Kind::Settle => (4000.0, 200.0),
            Kind::Replace => (10.0, 1.0 / 60.0),
            Kind::Late => (200.0, 10.0),
        }
    }
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// What an agent was told on about tasks nobody granted it.
#[derive(Debug)]
struct Orphans {
    since: Instant,
    told: HashSet<TaskId>,
}

/// Whether an orphan is to be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tell {
    Yes,
    /// It is the one too many: say that there are more.
    More,
    /// It is known, or beyond the limit.
    No,
}

#[derive(Debug, Default)]
struct Inner {
    buckets: HashMap<(AgentId, Kind), Bucket>,
    orphans: HashMap<AgentId, Orphans>,
}

/// Of all agents, in this process.
#[derive(Debug, Default)]
pub(crate) struct Allowances(Mutex<Inner>);

impl Allowances {
    /// Takes `cost` from what `agent` has left; `false`: it has not that much. `None` is whoever is not enrolled.
    pub(crate) fn take(&self, agent: Option<AgentId>, kind: Kind, cost: f64) -> bool {
        self.take_at(agent.unwrap_or(NOBODY), kind, cost, Instant::now())
    }

    fn take_at(&self, agent: AgentId, kind: Kind, cost: f64, now: Instant) -> bool {
        let (most, per_second) = kind.limits();
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = inner.buckets.entry((agent, kind)).or_insert(Bucket { left: most, at: now });
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + passed * per_second).min(most);
        bucket.at = now;
        // Something larger than all there can ever be would never pass.
        let enough = bucket.left >= cost.min(most);
        if enough {
            bucket.left -= cost.min(most);
        }
        enough
    }

    /// Counts a task that `agent` speaks of and nobody granted it.
    pub(crate) fn orphan(&self, agent: AgentId, task: TaskId) -> Tell {
        self.orphan_at(agent, task, Instant::now())
    }

    fn orphan_at(&self, agent: AgentId, task: TaskId, now: Instant) -> Tell {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let book = inner.orphans.entry(agent).or_insert_with(|| Orphans { since: now, told: HashSet::new() });
        if now.saturating_duration_since(book.since) >= ORPHANS_EVERY {
            *book = Orphans { since: now, told: HashSet::new() };
        }
        match book.told.len() {
            _ if book.told.contains(&task) => Tell::No,
            n if n > ORPHANS => Tell::No,
            n => {
                book.told.insert(task);
                if n == ORPHANS { Tell::More } else { Tell::Yes }
            }
        }
    }

    /// A record could not be written: what the agent says next is told again.
    pub(crate) fn untold(&self, agent: AgentId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).orphans.remove(&agent);
    }

    /// Forgets agents that are no more.
    pub(crate) fn keep(&self, known: impl Fn(AgentId) -> bool) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.buckets.retain(|(a, _), _| *a == NOBODY || known(*a));
        inner.orphans.retain(|a, _| known(*a));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(n: u128) -> AgentId {
        uuid::Uuid::from_u128(n).into()
    }

    #[test]
    fn a_flood_uses_up_its_own_allowance_and_nobody_elses() {
        let (all, t) = (Allowances::default(), Instant::now());
        let passed = (0..10_000).filter(|_| all.take_at(agent(1), Kind::Tasks, 1.0, t)).count();
        assert_eq!(passed, 4000);
        assert!(all.take_at(agent(2), Kind::Tasks, 1.0, t), "another agent");
        assert!(all.take_at(agent(1), Kind::Logs, 1.0, t), "another kind");
        // It comes back with time, and never to more than it was.
        let later = t + Duration::from_secs(2);
        assert_eq!((0..10_000).filter(|_| all.take_at(agent(1), Kind::Tasks, 1.0, later)).count(), 1000);
        let day = t + Duration::from_secs(86_400);
        assert_eq!((0..10_000).filter(|_| all.take_at(agent(1), Kind::Tasks, 1.0, day)).count(), 4000);
    }

    #[test]
    fn whoever_is_not_enrolled_shares_one() {
        let all = Allowances::default();
        assert!((0..4100).filter(|_| all.take(None, Kind::Tasks, 1.0)).count() < 4100);
        all.keep(|_| false);
        assert!(all.0.lock().expect("no poison").buckets.len() == 1, "and it stays counted");
    }

    #[test]
    fn orphans_are_told_once_and_not_without_end() {
        let (all, t) = (Allowances::default(), Instant::now());
        let tell = |n: u128, at| all.orphan_at(agent(1), uuid::Uuid::from_u128(n).into(), at);
        let first: Vec<Tell> = (0..1000).map(|n| tell(n, t)).collect();
        assert_eq!(first.iter().filter(|t| **t == Tell::Yes).count(), ORPHANS);
        assert_eq!(first.iter().filter(|t| **t == Tell::More).count(), 1);
        assert_eq!(tell(0, t), Tell::No);
        assert_eq!(tell(0, t + ORPHANS_EVERY), Tell::Yes, "an hour later it is news again");
    }
}
