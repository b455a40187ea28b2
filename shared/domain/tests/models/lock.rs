//! The lock of an environment: deployments that want it, schedulers that each may stop for any time between what they read
//! and what they write, die, or never learn whether a commit took effect; and a host that hears what was sent in any order.
//!
//! What a deployment does is the code of this crate ([`crate::automaton`]). What the database does is said here in the words of
//! `store::deployments`: a row is saved only at the version that was read, the lock is taken only while nobody holds it, and a
//! unique index lets one deployment of an environment be active.

use crate::{
    Limits,
    automaton::{Automaton, Does, explore},
    holds, is_caught, long,
    search::{Model, Steps, key_of},
};
use windlass_domain::deployment::State;

const MOST: usize = 4;

/// A scheduler between its reading and its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Look {
    deployment: u8,
    node: u8,
    version: u8,
    does: u8,
    open: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct S {
    node: [u8; MOST],
    version: [u8; MOST],
    /// 0: free, else the deployment's number from 1.
    holder: u8,
    fence: u8,
    /// The fence that each deployment runs under.
    under: [u8; MOST],
    looks: [Look; 3],
    /// Offers that were ever sent, as bits: deployment * 4 + fence.
    offers: u16,
    /// The host: the fence it has seen, who runs on it, and under which fence; 0 for none.
    seen: u8,
    runs: (u8, u8),
    /// The newest fence that ever ran there.
    ran: u8,
    broken: u8,
}

/// Safeguards that can be taken away; some only show when two are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Without {
    version_check: bool,
    lock_guard: bool,
    unique_index: bool,
    host_fence: bool,
    /// The lock's row is written, and the deployment in a transaction of its own.
    one_transaction: bool,
}

struct Lock {
    deployments: usize,
    schedulers: usize,
    without: Without,
    machine: Automaton,
}

impl Lock {
    fn new(deployments: usize, schedulers: usize, without: Without) -> Lock {
        Lock { deployments, schedulers, without, machine: explore() }
    }

    fn active(&self, s: &S) -> usize {
        (0..self.deployments).filter(|i| self.machine.node(s.node[*i]).state.is_active()).count()
    }

    /// The transaction of a look; `None`: it is rolled back.
    fn commit(&self, s: &S, l: Look) -> Option<S> {
        let i = l.deployment as usize;
        if s.version[i] != l.version && !self.without.version_check {
            return None;
        }
        let does = Does::ALL[l.does as usize];
        let leads = self.machine.after(l.node, does)?;
        let mut n = *s;
        if does == Does::TakeLock {
            if n.holder != 0 && !self.without.lock_guard {
                return None;
            }
            n.holder = l.deployment + 1;
            n.fence += 1;
            n.under[i] = n.fence;
        }
        let was_active = self.machine.node(s.node[i]).state.is_active();
        n.node[i] = leads.to;
        n.version[i] = n.version[i].saturating_add(1);
        if leads.frees {
            if n.holder != l.deployment + 1 {
                return None;
            }
            n.holder = 0;
        }
        let becomes_active = !was_active && self.machine.node(leads.to).state.is_active();
        if becomes_active && self.active(&n) > 1 && !self.without.unique_index {
            return None;
        }
        if leads.starts {
            n.offers |= 1 << (u16::from(l.deployment) * 4 + u16::from(n.under[i].min(3)));
        }
        Some(n)
    }
}

impl Model for Lock {
    type State = S;

    fn start(&self) -> S {
        S::default()
    }

    fn next(&self, s: &S, out: &mut Steps<S>) {
        for k in 0..self.schedulers {
            let l = s.looks[k];
            if l.open {
                // It dies, or the database says no before anything took effect; or it never hears of its commit.
                let mut gone = *s;
                gone.looks[k] = Look::default();
                if let Some(n) = self.commit(s, l) {
                    let mut done = n;
                    done.looks[k] = Look::default();
                    out.go(
                        || format!("scheduler {k} commits {:?} of {}", Does::ALL[l.does as usize], l.deployment),
                        done,
                    );
                }
                out.go(|| format!("scheduler {k} gives up"), gone);
                if self.without.one_transaction && Does::ALL[l.does as usize] == Does::TakeLock && s.holder == 0 {
                    let half = S { holder: l.deployment + 1, fence: s.fence + 1, ..gone };
                    out.go(|| format!("scheduler {k} takes the lock for {}, and dies", l.deployment), half);
                }
                continue;
            }
            for i in 0..self.deployments {
                for does in Does::ALL {
                    if self.machine.after(s.node[i], does).is_none() {
                        continue;
                    }
                    if matches!(does, Does::TakeLock) && (s.holder != 0 || s.fence >= 3) {
                        continue;
                    }
                    let mut n = *s;
                    let version = s.version[i];
                    n.looks[k] = Look { deployment: i as u8, node: s.node[i], version, does: does as u8, open: true };
                    out.go(|| format!("scheduler {k} looks at {i}: {does:?}"), n);
                }
            }
        }
        for i in 0..self.deployments {
            for fence in 1..=3_u8 {
                if s.offers & (1 << (i as u16 * 4 + u16::from(fence))) == 0 {
                    continue;
                }
                // Any offer that was ever sent may arrive now, or once more. Of the same deployment the attempt decides.
                let stale = fence < s.seen && !self.without.host_fence;
                if stale || s.runs.0 != 0 || s.ran == fence {
                    continue;
                }
                let mut n = *s;
                n.seen = n.seen.max(fence);
                n.runs = (i as u8 + 1, fence);
                if fence < s.ran {
                    n.broken = 1;
                }
                n.ran = n.ran.max(fence);
                out.go(|| format!("the host starts deployment {i} under fence {fence}"), n);
            }
        }
        if s.runs.0 != 0 {
            out.go(|| "the host's program ends".into(), S { runs: (0, 0), ..*s });
        }
    }

    fn key(&self, s: &S) -> u64 {
        key_of(s)
    }

    fn wrong(&self, s: &S) -> Option<String> {
        if s.broken != 0 {
            return Some("a host starts an earlier release after a later one ran there".into());
        }
        let active = self.active(s);
        if active > 1 {
            return Some(format!("{active} deployments of one environment are active"));
        }
        for i in 0..self.deployments {
            let node = self.machine.node(s.node[i]);
            let holds = s.holder == i as u8 + 1;
            if node.holds != holds {
                return Some(format!("deployment {i} is {:?} and the lock's row says {}", node.state, s.holder));
            }
            if node.state == State::Succeeded && node.unknown {
                return Some(format!("deployment {i} succeeded with an unknown host"));
            }
        }
        None
    }

    fn ended(&self, s: &S) -> bool {
        let over = |i: usize| {
            let node = self.machine.node(s.node[i]);
            node.state.is_terminal() && !node.flies
        };
        (0..self.deployments).all(over) && s.holder == 0
    }
}

#[test]
fn the_lock_of_an_environment_lets_one_in() {
    let machine = explore();
    let moves: usize = machine.leads.iter().flatten().flatten().count();
    eprintln!("a small deployment: {} states, {moves} transitions, from the real code", machine.nodes.len());
    assert!(machine.nodes.len() > 15, "a machine that goes nowhere proves nothing");
    let quick = Limits { states: 60_000, traps: false };
    holds("lock, 1 deployment and 2 schedulers", &Lock::new(1, 2, Without::default()), Limits { traps: true, ..quick });
    holds("lock, 2 deployments and 2 schedulers", &Lock::new(2, 2, Without::default()), quick);
    if long() {
        let far = Limits { states: 45_000_000, traps: false };
        holds("lock, 2 deployments and 2 schedulers, whole", &Lock::new(2, 2, Without::default()), far);
        holds("lock, 3 deployments and 2 schedulers", &Lock::new(3, 2, Without::default()), far);
    }
}

/// The unique index is a second guard: what it keeps out, the lock's row has kept out before.
#[test]
fn the_index_alone_can_fail() {
    let without = Without { unique_index: true, ..Without::default() };
    holds("lock, without the index", &Lock::new(2, 2, without), Limits { states: 60_000, traps: false });
}

#[test]
fn each_safeguard_of_the_lock_is_needed() {
    let all = Without::default();
    let mutants = [
        ("a look at the version", Without { version_check: true, ..all }),
        ("a look at the lock", Without { lock_guard: true, ..all }),
        ("a look at the lock, and the index", Without { lock_guard: true, unique_index: true, ..all }),
        ("the fence that hosts remember", Without { host_fence: true, ..all }),
        ("one transaction for lock and deployment", Without { one_transaction: true, ..all }),
    ];
    for (name, without) in mutants {
        is_caught(name, &Lock::new(2, 2, without), Limits { states: 3_000_000, traps: false });
    }
    eprintln!("{} of {} mutants of the lock are caught", mutants.len(), mutants.len());
}
