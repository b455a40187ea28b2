//! What a person may press now: finer than the state alone, so that what is offered is not refused for want of anything to do.
//! Rights are not looked at here.

use super::{Answer, Verb, answer};
use crate::{
    approval::{self, Decision},
    deployment::{
        Deployment, HostRun, HostState, RolloutRun, State, StepRun, StepRunKind, StepState, WaveRun, WaveState,
    },
    release::ReleaseKind,
};
use std::collections::BTreeSet;

/// The verbs that would find something to do, and are not kept from this person by somebody else's claim.
pub fn offered(d: &Deployment, person: &str) -> Vec<Verb> {
    let takes = |v: &Verb| matches!(answer(d.state, *v), Answer::Moves(_)) && d.offers(*v, person);
    Verb::ALL.into_iter().filter(takes).collect()
}

/// Failed, and it is certain what became of it.
fn is_mendable(h: &HostRun) -> bool {
    matches!(h.state, HostState::Failed | HostState::HandStopped | HostState::NotStarted)
}

impl Deployment {
    fn offers(&self, verb: Verb, person: &str) -> bool {
        let free = self.claimed_by_another(person).is_none();
        match verb {
            Verb::Approve => self.may_decide(person, Decision::Approve),
            Verb::Reject => self.may_decide(person, Decision::Reject),
            Verb::Accept => self.drifted_from.is_some(),
            Verb::Cancel | Verb::Abort => true,
            Verb::Claim => match &self.claim {
                Some(c) => c.who != person,
                None => !self.waits_for_person().is_empty(),
            },
            Verb::Unclaim => self.claim.as_ref().is_some_and(|c| c.who == person),
            Verb::Pause => self.pause.is_none(),
            Verb::Resume => self.pause.is_some(),
            Verb::Confirm => self.waves().any(|w| w.state == WaveState::Confirming && (free || w.probe.is_none())),
            Verb::Choose => free && self.steps.iter().any(|s| s.asks.is_some()),
            Verb::Retry if self.state.is_terminal() => {
                let left = |s: &StepRun| matches!(s.state, StepState::Failed | StepState::Stopped);
                self.may_reopen().is_ok() && self.steps.iter().any(left)
            }
            Verb::Retry => free && self.can_retry(),
            Verb::Skip => free && self.can_pass(true),
            Verb::Ignore => free && self.can_pass(false),
            Verb::Exclude => free && self.can_exclude(),
            Verb::Stop => self.hosts().any(|h| h.state == HostState::Running),
            Verb::Fail => {
                let runs = |s: &StepRun| s.state == StepState::Running || s.next_try().is_some();
                let central = |s: &StepRun| matches!(s.kind, StepRunKind::Central { .. });
                free && self.steps.iter().any(|s| central(s) && runs(s) && s.forced.is_none())
            }
            Verb::Succeed => free && self.can_call_well(),
            Verb::Override => self.hosts().any(|h| h.state == HostState::Unknown),
            Verb::Rollback => self.kind != ReleaseKind::Rollback && self.rolled_back_by.is_none(),
            Verb::Amend => free && (0..self.steps.len()).any(|i| self.has_failed(i)),
        }
    }

    fn may_decide(&self, person: &str, decision: Decision) -> bool {
        let (rules, digest) = (&self.rules, &self.plan_digest);
        let check = || approval::check(rules, &self.requested_by, digest, &self.approvals, person, digest, decision);
        match &self.amendment {
            _ if self.state == State::AwaitingApproval => check().is_ok(),
            Some(a) => self.may_decide_amendment(person, &a.facts.digest, decision).is_ok(),
            None => false,
        }
    }

    fn waves(&self) -> impl Iterator<Item = &WaveRun> {
        self.rollouts().flat_map(|(_, r)| &r.waves)
    }

    /// Steps that failed as a whole, and wait for a person or end the run.
    fn failed_wholly(&self) -> impl Iterator<Item = &StepRun> {
        let failed = |(i, s): &(usize, &StepRun)| s.state == StepState::Failed && self.has_failed(*i);
        self.steps.iter().enumerate().filter(failed).map(|(_, s)| s)
    }

    fn failed_waves(&self) -> impl Iterator<Item = (&StepRun, &RolloutRun, &WaveRun)> {
        let runs = self.rollouts().filter(|(s, _)| s.state == StepState::Running);
        runs.flat_map(|(s, r)| r.waves.iter().map(move |w| (s, r, w))).filter(|(_, _, w)| w.state == WaveState::Failed)
    }

    fn can_retry(&self) -> bool {
        let goes = |w: &WaveRun| w.failed_by_probes() || w.hosts.iter().any(is_mendable);
        self.failed_wholly().next().is_some() || self.failed_waves().any(|(_, _, w)| goes(w))
    }

    /// Skip (`past`) or ignore.
    fn can_pass(&self, past: bool) -> bool {
        let fits = |h: &HostRun| is_mendable(h) && !(past && h.state == HostState::NotStarted);
        let whole =
            self.failed_wholly().next().is_some() || self.failed_waves().any(|(_, _, w)| !past && w.failed_by_probes());
        let hosts = self.failed_waves().any(|(s, r, w)| {
            let probes = past && w.failed_by_probes();
            !probes && w.hosts.iter().any(|h| fits(h) && r.undone_by(s, h, past).is_none())
        });
        hosts || whole && self.required_stay(&[], past).is_ok()
    }

    fn can_exclude(&self) -> bool {
        let busy = |h: &&HostRun| matches!(h.state, HostState::Running | HostState::Unknown);
        let busy: BTreeSet<&str> = self.hosts().filter(busy).map(|h| h.host.as_str()).collect();
        let done = |h: &HostRun| matches!(h.state, HostState::Succeeded | HostState::Excluded);
        self.hosts().any(|h| !done(h) && !busy.contains(h.host.as_str()))
    }

    fn can_call_well(&self) -> bool {
        let central = |s: &StepRun| matches!(s.kind, StepRunKind::Central { .. });
        let waves = self.rollouts().filter(|(s, _)| s.state == StepState::Running).flat_map(|(_, r)| &r.waves);
        let mut waves = waves.filter(|w| w.state != WaveState::Running);
        self.failed_wholly().any(central) || waves.any(|w| w.hosts.iter().any(is_mendable))
    }
}
