//! Waiting for people: since when, until when, who answers for it, and what happens when nobody comes.
//!
//! A deployment that waits for a person has a deadline, `patience.within_s` after it began to wait. It begins anew when
//! something it waited for is dealt with, so a second question is not cut short by the time that the first one took.

use super::{transition::Step, *};
use crate::flow::{Overdue, StepFailure};
use serde_json::json;
use std::time::Duration;

impl Deployment {
    /// Who answers for it while it waits: who claimed it, else who asked for it.
    pub fn owner(&self) -> &str {
        self.claim.as_ref().map_or(&self.requested_by, |c| &c.who)
    }

    /// What only a person can bring forward, by short names that last as long as the wait does.
    pub(super) fn waits_for_person(&self) -> Vec<String> {
        let mut on = Vec::new();
        match self.state {
            State::Running | State::Paused => {}
            // The lock stays taken until somebody knows, or answers for, what these hosts did.
            s if s.is_terminal() && self.lock.is_some() && self.has_unknown() => return vec!["unknown".into()],
            _ => return on,
        }
        on.extend(self.amendment.as_ref().map(|_| "amendment".to_owned()));
        on.extend(self.pause.as_ref().map(|_| "pause".to_owned()));
        for (i, s) in self.steps.iter().enumerate() {
            if s.asks.is_some() {
                on.push(s.id.clone());
                continue;
            }
            let fails = self.asks_a_person(i);
            match &s.kind {
                StepRunKind::Rollout(r) if s.state == StepState::Running => {
                    let waits = |w: &WaveRun| match w.state {
                        WaveState::Confirming => true,
                        WaveState::Failed => fails,
                        _ => false,
                    };
                    on.extend(
                        r.waves.iter().enumerate().filter(|(_, w)| waits(w)).map(|(w, _)| format!("{}#{w}", s.id)),
                    );
                }
                _ if fails => on.push(s.id.clone()),
                _ => {}
            }
        }
        if self.is_kept_by_unknown() {
            on.push("unknown".into());
        }
        on
    }

    /// The step has failed, and that neither ends the deployment nor is borne. (A failed wave of a rollout that was taken up
    /// again without it waits too where failures are borne: its hosts were left out for now, not for good.)
    pub(super) fn asks_a_person(&self, i: usize) -> bool {
        self.has_failed(i) && !matches!(self.on_failure_of(i), StepFailure::Stop | StepFailure::Rollback)
    }

    fn has_unknown(&self) -> bool {
        self.hosts().any(|h| h.state == HostState::Unknown)
    }

    /// Unknown hosts are all that stands between it and its end, or the next run of a repeated step.
    fn is_kept_by_unknown(&self) -> bool {
        let steps = 0..self.steps.len();
        let runs = || steps.clone().any(|i| self.steps[i].next_run().is_some() && self.is_held_by_unknown(i));
        self.has_unknown() && (steps.clone().all(|i| self.has_ended(i)) || runs())
    }
}

impl Step<'_> {
    /// Keeps account of how long it has waited for a person; when that is too long, does what its flow says.
    pub(super) fn attend(&mut self) {
        let on = self.d.waits_for_person();
        if on.is_empty() {
            self.d.attention = None;
            return;
        }
        let (now, within) = (self.now, Duration::from_secs(self.d.patience.within_s.max(1).into()));
        let goes_on = self.d.attention.take().filter(|a| a.on.iter().all(|o| on.contains(o)));
        let fresh = || Attention { since: now, deadline: now + within, reminded: 0, on: Vec::new() };
        let mut a = goes_on.unwrap_or_else(fresh);
        a.on = on;
        let overdue = a.deadline <= now;
        if overdue {
            a.reminded += 1;
            // Time that nobody looked at it in is not made up for by a burst of alarms.
            a.deadline = Some(a.deadline + within).filter(|d| *d > now).unwrap_or(now + within);
        }
        self.d.attention = Some(a);
        if overdue {
            self.overdue();
        }
    }

    fn overdue(&mut self) {
        let Some(a) = self.d.attention.clone() else { return };
        let runs = matches!(self.d.state, State::Running | State::Paused);
        // A rollback that is left half done helps nobody: it is only called out for.
        let then = match self.d.patience.then {
            then if runs && self.d.kind != ReleaseKind::Rollback => then,
            _ => Overdue::Remind,
        };
        let waits = self.d.waiting_on();
        let people = waits.iter().filter(|w| matches!(w.bound(), Bound::Person { .. }));
        let texts: Vec<String> = people.map(|w| w.to_string()).collect();
        let owner = self.d.owner().to_owned();
        let payload = json!({ "waiting_on": texts.join("; "), "owner": owner, "since": a.since, "deadline": a.deadline,
            "reminded": a.reminded, "then": then });
        self.event("deployment.overdue", Severity::Alert, payload);
        let since = a.since;
        let reason = format!("nobody came in time: since {since} it has waited for {}", texts.join("; "));
        match then {
            Overdue::Remind => return,
            Overdue::Abort => {}
            Overdue::Rollback => self.d.then_automatic = Some(self.d.automatic.unwrap_or(RollbackMode::Normal)),
        }
        self.d.attention = None;
        self.abort("windlass", &reason);
    }
}
