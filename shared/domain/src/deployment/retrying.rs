//! Retries that a policy makes: a failure of a kind that it names waits for its time and then is the next attempt. What
//! it is not known to have done (an unknown host) and what a person stopped is never tried again by a policy.

use super::{transition::Step, *};
use crate::{flow::Retry, work::FailureClass};
use serde_json::json;
use std::time::Duration;

impl Retry {
    /// Whether the policy names this failure.
    fn is_for(&self, class: FailureClass, exit_code: Option<i32>) -> bool {
        use FailureClass::*;
        let named = match class {
            Stopped | Unknown => false,
            _ if self.on.is_empty() => matches!(class, Exit | Timeout | Unreachable | Traffic),
            _ => self.on.contains(&class),
        };
        // Where codes are named, a failure without one is none of them.
        let by_code = class == Exit && !self.exit_codes.is_empty();
        named && (!by_code || exit_code.is_some_and(|c| self.exit_codes.contains(&c)))
    }

    /// The pause before try `n` (from 1), in seconds.
    fn pause(&self, n: u32) -> Duration {
        let factor = u64::from(self.factor.max(1)).saturating_pow(n.saturating_sub(1));
        let s = u64::from(self.backoff_s).saturating_mul(factor).min(self.max_backoff_s.into());
        Duration::from_secs(s)
    }
}

impl HostRun {
    /// What it failed with, where it is certain what became of it.
    fn failure(&self) -> Option<FailureClass> {
        match self.state {
            // Executors before there were classes told only that it had failed.
            HostState::Failed => Some(self.class.unwrap_or(FailureClass::Exit)),
            HostState::NotStarted => self.class,
            _ => None,
        }
    }

    /// The policy tries it again.
    fn has_tries(&self, policy: &Retry) -> bool {
        self.retried < policy.max && self.failure().is_some_and(|c| policy.is_for(c, self.exit_code))
    }
}

impl RolloutRun {
    /// More hosts have failed than the budget of the rollout, or that of the wave, bears. `but` leaves hosts of the wave out.
    pub(super) fn is_over_budget(&self, w: usize, but: impl Fn(&HostRun) -> bool) -> bool {
        let failures = |w: &WaveRun| w.hosts.iter().filter(|h| h.state.is_failure()).count() as u32;
        let here = &self.waves[w];
        let left_out = here.hosts.iter().filter(|h| h.state.is_failure() && but(h)).count() as u32;
        let all: u32 = self.waves.iter().map(failures).sum();
        all - left_out > self.max_failures || here.max_failures.is_some_and(|m| failures(here) - left_out > m)
    }
}

impl Step<'_> {
    /// A central step failed: whether the policy tries it again, and then all is said and done here.
    pub(super) fn retries_central(&mut self, i: usize, class: FailureClass, why: Option<&str>) -> bool {
        let now = self.now;
        if self.d.state == State::Aborting || self.d.is_stopping() {
            return false;
        }
        let step = &mut self.d.steps[i];
        let tries = step.tries.made;
        // Of a central step no exit code is known.
        let Some(policy) = step.retry.as_ref().filter(|p| tries < p.max && p.is_for(class, None)) else { return false };
        let at = now + policy.pause(tries + 1);
        let payload = json!({ "step": step.id, "run": tries + 1, "max": policy.max, "at": at, "class": class,
            "reason": why });
        step.tries = Tries { made: tries + 1, next_at: Some(at) };
        step.state = StepState::Waiting;
        self.event("step.retrying", Severity::Info, payload);
        true
    }

    /// Whether the policy tries failed hosts of this wave again; the wave then waits for that. When the hosts that it does not try
    /// again are more than the budget bears, no more is started.
    pub(super) fn retries_hosts(&mut self, i: usize, w: usize) -> bool {
        let now = self.now;
        if self.d.is_stopping() {
            return false;
        }
        let step = &mut self.d.steps[i];
        let (Some(policy), StepRunKind::Rollout(r)) = (&step.retry, &mut step.kind) else { return false };
        let again: Vec<&HostRun> = r.waves[w].hosts.iter().filter(|h| h.has_tries(policy)).collect();
        let run = again.iter().map(|h| h.retried + 1).max();
        let Some(run) = run.filter(|_| !r.is_over_budget(w, |h| h.has_tries(policy))) else { return false };
        // Hosts that have had fewer tries wait as long as the one that has had most.
        let at = now + policy.pause(run);
        let hosts: Vec<&str> = again.iter().map(|h| h.host.as_str()).collect();
        let reason = again.iter().find_map(|h| h.reason.clone());
        let payload = json!({ "step": step.id, "wave": w, "hosts": hosts, "run": run, "max": policy.max, "at": at,
            "reason": reason });
        r.waves[w].state = WaveState::Retrying { at };
        self.event("wave.retrying", Severity::Info, payload);
        true
    }

    /// The time has come: its hosts are to run again, where they failed.
    pub(super) fn retry_hosts(&mut self, i: usize, w: usize) {
        let step = &mut self.d.steps[i];
        if let (Some(policy), StepRunKind::Rollout(r)) = (&step.retry, &mut step.kind) {
            for h in r.waves[w].hosts.iter_mut().filter(|h| h.has_tries(policy)) {
                h.retried += 1;
                h.start_at = h.resume_at();
                h.state = HostState::Waiting;
            }
        }
        self.start_wave(i, w);
    }
}

impl StepRun {
    /// When the policy tries this central step again.
    pub(super) fn next_try(&self) -> Option<Timestamp> {
        self.tries.next_at.filter(|_| self.state == StepState::Waiting)
    }

    /// No retry comes any more: what waited for one has failed.
    pub(super) fn end_tries(&mut self) {
        if self.tries.next_at.take().is_some() && self.state == StepState::Waiting {
            self.state = StepState::Failed;
        }
    }

    /// Of a rollout: the hosts that the policy tries again with this wave, and which try of theirs that is.
    pub(super) fn hosts_to_retry(&self, w: &WaveRun) -> (Vec<String>, u32, u32) {
        let Some(policy) = &self.retry else { return (Vec::new(), 0, 0) };
        let again = || w.hosts.iter().filter(|h| h.has_tries(policy));
        let run = again().map(|h| h.retried + 1).max().unwrap_or(0);
        (again().map(|h| h.host.clone()).collect(), run, policy.max)
    }
}
