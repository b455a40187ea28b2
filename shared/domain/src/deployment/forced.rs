//! What a person says about a step or a host, against what it said itself: a step that runs is called failed, what failed is
//! called well. Both are alerts in the record, and the run keeps who said it.

use super::{intervene::Named, transition::Step, *};
use crate::work::FailureClass;
use serde_json::json;

impl Step<'_> {
    /// A central step that runs has failed by a person's word. Until the executor has let go of its work the step stays
    /// running, so that no second attempt ever meets the first.
    pub(super) fn fail(&mut self, by: &str, step: &str, reason: &str) -> Result<(), Refusal> {
        self.step_in(by)?;
        let i = self.index_of(step)?;
        let s = &mut self.d.steps[i];
        let StepRunKind::Central { work, .. } = &s.kind else {
            let why = "is no central step: stop its hosts, answer what it asks, or abort";
            return Err(Refusal::Invalid(format!("step {step} {why}")));
        };
        let work = *work;
        let waits_for_retry = s.next_try().is_some();
        if s.state != StepState::Running && !waits_for_retry {
            return Err(Refusal::NothingToDo(format!("step {step} does not run")));
        }
        if s.forced.is_some() {
            return Err(Refusal::NothingToDo(format!(
                "step {step} was called failed already: its work is being stopped"
            )));
        }
        s.forced = Some(By { who: by.into(), reason: reason.into(), at: self.now });
        let payload = json!({ "by": by, "verb": "fail", "step": step, "reason": reason });
        self.event("deployment.forced", Severity::Alert, payload);
        if let Some(work) = work.filter(|_| !waits_for_retry) {
            self.effects.push(Effect::AbortWork(work));
            return Ok(());
        }
        // Nothing of it is under way: it is between two runs, or between two tries.
        let s = &mut self.d.steps[i];
        s.asks = None;
        s.tries.next_at = None;
        if let Some(r) = &mut s.repeat {
            r.next_at = None;
        }
        s.class = Some(FailureClass::Stopped);
        let why = format!("called failed by {by}: {reason}");
        if let StepRunKind::Central { reason, .. } = &mut s.kind {
            *reason = Some(why.clone());
        }
        self.event("step.failed", Severity::Info, json!({ "step": step, "reason": why }));
        self.step_failed(i, None, &why);
        Ok(())
    }

    /// What the work of a step says that a person called failed does not count any more.
    pub(super) fn forced_result(&self, work: WorkId, result: WorkResult) -> WorkResult {
        let forced = self.d.steps.iter().find_map(|s| match &s.kind {
            StepRunKind::Central { work: Some(w), .. } if *w == work && s.state == StepState::Running => {
                s.forced.as_ref()
            }
            _ => None,
        });
        match (forced, result) {
            (Some(by), WorkResult::Central { .. }) => WorkResult::Central {
                succeeded: false,
                reason: Some(format!("called failed by {}: {}", by.who, by.reason)),
                output: serde_json::Value::Null,
                class: Some(FailureClass::Stopped),
            },
            (_, result) => result,
        }
    }

    /// A failed central step, or failed hosts, are well by a person's word.
    pub(super) fn call_well(
        &mut self,
        by: &str,
        step: Option<&str>,
        only: &[String],
        reason: &str,
    ) -> Result<(), Refusal> {
        self.step_in(by)?;
        self.hosts_exist(only)?;
        let who = By { who: by.into(), reason: reason.into(), at: self.now };
        if only.is_empty() {
            let Some(step) = step else {
                return Err(Refusal::Invalid("name the step, or the hosts, that are to count as well".into()));
            };
            return self.call_step_well(step, who);
        }
        let named = Named::of(only);
        let only_step = step.map(|s| self.index_of(s)).transpose()?;
        let mut touched = Vec::new();
        let mut judge = Vec::new();
        let mut silent = Vec::new();
        for (i, s) in self.d.steps.iter_mut().enumerate().filter(|(i, _)| only_step.is_none_or(|o| o == *i)) {
            let StepRunKind::Rollout(r) = &mut s.kind else { continue };
            if s.state != StepState::Running {
                continue;
            }
            for (w, wave) in r.waves.iter_mut().enumerate().filter(|(_, w)| w.state != WaveState::Running) {
                let mut here = false;
                for h in wave.hosts.iter_mut().filter(|h| h.state.is_failure() && named.has(&h.host)) {
                    if h.state == HostState::Unknown {
                        silent.push(h.host.clone());
                        continue;
                    }
                    h.state = HostState::Succeeded;
                    h.by = Some(who.clone());
                    touched.push(h.host.clone());
                    here = true;
                }
                if here && wave.state == WaveState::Failed {
                    judge.push((i, w));
                }
            }
        }
        if let Some(h) = silent.first() {
            let why = "is unknown and may still be running: override it first, then say that it is well";
            return Err(Refusal::Unsettled(format!("{h} {why}")));
        }
        let done = Named::of(&touched);
        if let Some(h) = only.iter().find(|h| touched.is_empty() || !done.has(h)) {
            return Err(Refusal::NothingToDo(format!("{h} has not failed: name hosts that have")));
        }
        let payload = json!({ "by": by, "verb": "succeed", "hosts": touched, "reason": reason });
        self.event("deployment.forced", Severity::Alert, payload);
        for (i, w) in judge {
            self.wave_ended(i, w);
        }
        Ok(())
    }

    fn call_step_well(&mut self, step: &str, who: By) -> Result<(), Refusal> {
        let i = self.index_of(step)?;
        let s = &self.d.steps[i];
        match (&s.kind, s.state) {
            (StepRunKind::Central { .. }, StepState::Failed) if self.d.has_failed(i) => {}
            (StepRunKind::Central { .. }, StepState::Failed) => {
                return Err(Refusal::NothingToDo(format!("the failure of step {step} is borne: nothing waits for it")));
            }
            (StepRunKind::Central { .. }, _) => {
                return Err(Refusal::NothingToDo(format!("step {step} has not failed")));
            }
            (StepRunKind::Rollout(_), _) => {
                return Err(Refusal::Invalid(format!("step {step} runs on hosts: name the hosts that are well")));
            }
            (StepRunKind::Leave { .. } | StepRunKind::Enter { .. }, _) => {
                return Err(Refusal::Invalid(format!("step {step} is a subflow: name the step within that failed")));
            }
            (StepRunKind::Gateway(_), _) => {
                return Err(Refusal::Invalid(format!("step {step} is a gateway: choose a branch")));
            }
        }
        let payload = json!({ "by": who.who, "verb": "succeed", "step": step, "reason": who.reason });
        let s = &mut self.d.steps[i];
        s.forget_failure();
        s.forced = Some(who);
        if let StepRunKind::Central { reason, .. } = &mut s.kind {
            *reason = None;
        }
        self.event("deployment.forced", Severity::Alert, payload);
        self.succeed(i, None);
        Ok(())
    }
}
