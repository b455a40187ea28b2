//! Taking up again: `retry` on a deployment that failed or was aborted. It is the same record and the next run of it: it
//! queues for its lock, keeps its plan and its approvals, and goes on at the failed steps of the failed hosts, within
//! subflows too. What succeeded is never repeated.

use super::{graph::Graph, mend::Scope, transition::Step, *};
use crate::flow::StepFailure;
use serde_json::json;

impl Deployment {
    /// Whether it can be taken up again, as far as it knows itself.
    pub(super) fn may_reopen(&self) -> Result<(), Refusal> {
        if self.rolled_back_by.is_some() {
            let why = "a rollback of it was asked for: request a new deployment";
            return Err(Refusal::Superseded(why.into()));
        }
        let unknown = self.unknown_hosts();
        if !unknown.is_empty() {
            let some = unknown.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let why = "unknown and may still be running: wait for them, or override them first";
            return Err(Refusal::Unsettled(format!("{} host(s) ({some}) are {why}", unknown.len())));
        }
        Ok(())
    }
}

impl Step<'_> {
    pub(super) fn reopen(&mut self, by: &str, scope: Scope) -> Result<(), Refusal> {
        self.d.may_reopen()?;
        self.check_scope(&scope)?;
        let named = scope.named();
        let failed = |i: usize| {
            let s = &self.d.steps[i];
            let within = scope.has_step(&s.id);
            let host = |h: &HostRun| h.state.is_failure() && named.has(&h.host);
            match &s.kind {
                _ if !within || !matches!(s.state, StepState::Failed | StepState::Stopped) => false,
                StepRunKind::Rollout(r) if !scope.hosts.is_empty() => r.waves.iter().flat_map(|w| &w.hosts).any(host),
                _ => scope.hosts.is_empty(),
            }
        };
        if !(0..self.d.steps.len()).any(failed) {
            return Err(Refusal::NothingToDo("nothing to retry: nothing has failed or was left there".into()));
        }
        let d = &mut self.d;
        let began = d.reopened.as_ref().map_or(d.requested_at, |r| r.at);
        let span = d.expires_at - began;
        d.run += 1;
        d.reopened = Some(By { who: by.into(), reason: String::new(), at: self.now });
        d.expires_at = self.now + span;
        d.state = State::Queued;
        (d.end, d.ended_at, d.pause, d.attention, d.amendment) = (None, None, None, None, None);
        (d.then_rollback, d.then_automatic) = (None, None);
        let payload = json!({ "by": by, "run": d.run, "hosts": scope.hosts, "step": scope.step,
            "whole_wave": scope.whole_wave });
        d.resume = Some(scope);
        self.event("deployment.reopened", Severity::Notice, payload);
        self.event("deployment.queued", Severity::Info, json!({}));
        Ok(())
    }

    /// The lock is there: what failed within the scope goes on, and so does all that was never reached. What failed outside
    /// it waits for a person.
    pub(super) fn take_up(&mut self) {
        let Some(scope) = self.d.resume.take() else { return };
        let graph = Graph::of(&self.d.steps);
        // What `any` or `done` went on from has had its effect: it is not run again.
        let borne = |i: usize| self.d.on_failure_of(i) == StepFailure::Continue && graph.is_joined_over(&self.d, i);
        let open: Vec<usize> = (0..self.d.steps.len())
            .filter(|i| matches!(self.d.steps[*i].state, StepState::Failed | StepState::Stopped))
            .filter(|i| self.d.steps[*i].state == StepState::Stopped || !borne(*i))
            .collect();
        let used_up: Vec<bool> = open.iter().map(|i| self.d.is_used_up(&graph, *i)).collect();
        for (i, used_up) in open.into_iter().zip(used_up) {
            let step = &mut self.d.steps[i];
            let (failed, named) = (step.state == StepState::Failed, scope.has_step(&step.id));
            match &mut step.kind {
                StepRunKind::Rollout(r) if r.has_begun() && !(failed && used_up) => {
                    r.take_up(&scope, named);
                    // Its policy's tries have nothing to do with those of a person.
                    step.forget_failure();
                    step.state = StepState::Running;
                }
                // The steps within are looked at by themselves; only repeats that were used up begin anew.
                StepRunKind::Leave { .. } if failed => {
                    if used_up && named && scope.hosts.is_empty() {
                        self.mend(i, &scope);
                    } else {
                        step.forget_failure();
                        step.state = StepState::Waiting;
                    }
                }
                _ if !failed => {
                    if let StepRunKind::Rollout(r) = &mut step.kind {
                        r.take_up(&scope, named);
                    }
                    step.forget_failure();
                    step.state = StepState::Waiting;
                }
                _ if named && scope.hosts.is_empty() => self.mend(i, &scope),
                _ => {}
            }
        }
    }
}

impl RolloutRun {
    /// Hosts of it have run since it was last made fit to run. What they did in earlier rounds of a repeated subflow is no
    /// beginning: its turn comes when what it needs is done, this round as well.
    pub(super) fn has_begun(&self) -> bool {
        let ran = |h: &HostRun| {
            let fresh = matches!(h.state, HostState::Waiting | HostState::AutoStopped | HostState::Excluded);
            h.failed_step.is_some() || !fresh && h.state != HostState::Unknown
        };
        let begun = |w: &WaveRun| !matches!(w.state, WaveState::Waiting | WaveState::Stopped);
        self.waves.iter().any(|w| begun(w) || w.hosts.iter().any(ran))
    }

    /// Failed hosts of the scope go on where they failed; what was left because the deployment ended comes back.
    pub(super) fn take_up(&mut self, scope: &Scope, named: bool) {
        let hosts = scope.named();
        for w in &mut self.waves {
            if w.state == WaveState::Succeeded {
                continue;
            }
            let failed = w.state == WaveState::Failed;
            let by_probes = w.failed_by_probes();
            let mut waits_for_person = by_probes && !(named && scope.hosts.is_empty());
            if failed && named && scope.whole_wave {
                w.again = true;
                for h in w.hosts.iter_mut().filter(|h| h.state != HostState::Excluded) {
                    (h.failed_step, h.reason) = (None, None);
                    h.outputs.clear();
                    h.goes_on_at(0);
                }
            }
            for h in &mut w.hosts {
                match h.state {
                    // In a failed wave they start when the budget allows it.
                    HostState::AutoStopped if !failed => {
                        h.state = HostState::Waiting;
                        h.reason = None;
                    }
                    // A wave that bore them keeps them; one that failed by its probes did too.
                    HostState::Failed | HostState::HandStopped | HostState::NotStarted if failed => {
                        let meant = if by_probes { !scope.hosts.is_empty() } else { true };
                        if named && meant && hosts.has(&h.host) {
                            h.goes_on_at(h.resume_at());
                        } else if !by_probes {
                            waits_for_person = true;
                        }
                    }
                    _ => {}
                }
            }
            let any = w.hosts.iter().any(|h| h.state == HostState::Waiting);
            if !failed || any || !waits_for_person {
                w.state = WaveState::Waiting;
                w.probe = None;
            }
        }
    }
}
