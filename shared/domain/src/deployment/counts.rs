//! Hosts of a deployment counted apart, and which of them a rollback is about.

use super::*;
use crate::flow::Phase;
use std::collections::{BTreeMap, BTreeSet};

/// How many hosts stand where. Every host counts once, so the numbers add up to `total`.
///
/// A host that takes part in several rollouts counts by what matters most about it now: unknown, running, failed, stopped by
/// hand, not started, stopped by the budget, waiting, ignored, excluded, succeeded, in this order. So a host that is done in one
/// rollout and has another before it still waits. Rollouts that do not take place (their condition is false, their branch was
/// not taken, what they need failed) count only for hosts that have no other; these were not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostCounts {
    pub total: u32,
    pub waiting: u32,
    pub running: u32,
    pub succeeded: u32,
    pub failed: u32,
    /// Never started: the failure budget was used up, or the deployment ended before their turn.
    pub auto_stopped: u32,
    /// Stopped by a person or an abort after they had started.
    pub hand_stopped: u32,
    pub not_started: u32,
    pub unknown: u32,
    pub ignored: u32,
    pub excluded: u32,
}

/// Smaller matters more.
fn rank(s: HostState) -> u8 {
    match s {
        HostState::Unknown => 0,
        HostState::Running => 1,
        HostState::Failed => 2,
        HostState::HandStopped => 3,
        HostState::NotStarted => 4,
        HostState::AutoStopped => 5,
        HostState::Waiting => 6,
        HostState::Ignored => 7,
        HostState::Excluded => 8,
        HostState::Succeeded => 9,
    }
}

fn order(p: Phase) -> u8 {
    match p {
        Phase::Prepare => 0,
        Phase::PreRelease => 1,
        Phase::Release => 2,
        Phase::PostRelease => 3,
    }
}

impl HostCounts {
    fn add(&mut self, s: HostState) {
        self.total += 1;
        *match s {
            HostState::Waiting => &mut self.waiting,
            HostState::Running => &mut self.running,
            HostState::Succeeded => &mut self.succeeded,
            HostState::Failed => &mut self.failed,
            HostState::HandStopped => &mut self.hand_stopped,
            HostState::AutoStopped => &mut self.auto_stopped,
            HostState::NotStarted => &mut self.not_started,
            HostState::Unknown => &mut self.unknown,
            HostState::Ignored => &mut self.ignored,
            HostState::Excluded => &mut self.excluded,
        } += 1;
    }
}

impl Deployment {
    /// See [`HostCounts`].
    pub fn host_counts(&self) -> HostCounts {
        let mut hosts: BTreeMap<&str, HostState> = BTreeMap::new();
        let mut out: BTreeSet<&str> = BTreeSet::new();
        for (step, r) in self.rollouts() {
            let takes_place = !matches!(step.state, StepState::Skipped | StepState::NotTaken | StepState::Stopped);
            for h in r.waves.iter().flat_map(|w| &w.hosts) {
                // What ran before a person skipped the rest of the step did run.
                if !takes_place && h.state == HostState::Waiting {
                    out.insert(&h.host);
                    continue;
                }
                let s = hosts.entry(&h.host).or_insert(h.state);
                if rank(h.state) < rank(*s) {
                    *s = h.state;
                }
            }
        }
        let mut c = HostCounts::default();
        out.iter().filter(|h| !hosts.contains_key(*h)).for_each(|_| c.add(HostState::NotStarted));
        hosts.into_values().for_each(|s| c.add(s));
        c
    }

    /// Hosts that something may have run on which a rollback takes back: in rollouts of phase `release` or later, or (`from`)
    /// of that phase or later. A step within a subflow has the subflow's phase unless it has its own; a rollout of no phase counts
    /// as `release`. In the order of the plan, each once.
    pub fn release_hosts(&self, from: Option<Phase>) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let mut names = Vec::new();
        for (step, r) in self.rollouts() {
            if !self.is_taken_back(step, from) {
                continue;
            }
            for h in r.waves.iter().flat_map(|w| &w.hosts).filter(|h| h.state.is_touched()) {
                if seen.insert(h.host.as_str()) {
                    names.push(h.host.clone());
                }
            }
        }
        names
    }

    /// Whether a rollback from this phase on (from `release` when absent) is about the step.
    pub fn is_taken_back(&self, step: &StepRun, from: Option<Phase>) -> bool {
        order(self.phase_of(step)) >= order(from.unwrap_or(Phase::Release))
    }

    fn phase_of(&self, step: &StepRun) -> Phase {
        let mut step = step;
        loop {
            if let Some(p) = step.phase {
                return p;
            }
            let scope = step.scope();
            match self.steps.iter().find(|s| !scope.is_empty() && s.id == scope) {
                Some(outer) => step = outer,
                None => return Phase::Release,
            }
        }
    }
}
