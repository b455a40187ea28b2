//! What people do about a rollout: confirm, retry, skip, ignore, exclude, answer for an unknown host.

use super::{graph::Graph, transition::Step, *};
use serde_json::json;

impl Step<'_> {
    fn must_be_running(&self, verb: &'static str) -> Result<(), Refusal> {
        match self.d.state {
            State::Running | State::Paused => Ok(()),
            _ => Err(self.wrong(verb, "")),
        }
    }

    pub(super) fn confirm(&mut self, by: &str, wave: u32) -> Result<(), Refusal> {
        self.must_be_running("confirmed")?;
        let now = self.now;
        for s in &mut self.d.steps {
            let StepRunKind::Rollout(r) = &mut s.kind else { continue };
            let bake = r.bake_s;
            let Some(w) = r.waves.get_mut(wave as usize) else { continue };
            if w.state == WaveState::Confirming {
                w.state = if bake > 0 {
                    WaveState::Baking { until: now + std::time::Duration::from_secs(bake.into()) }
                } else {
                    WaveState::Succeeded
                };
                let payload = json!({ "by": by, "step": s.id, "wave": wave });
                self.event("wave.confirmed", Severity::Info, payload);
                return Ok(());
            }
        }
        Err(Refusal::NothingToDo(format!("wave {wave} does not wait for a confirmation")))
    }

    /// A person decides what an expression could not.
    pub(super) fn choose(&mut self, by: &str, step: &str, branch: &str) -> Result<(), Refusal> {
        self.must_be_running("decided")?;
        let Some(i) = self.d.steps.iter().position(|s| s.id == step) else {
            return Err(Refusal::Invalid(format!("this deployment has no step {step:?}")));
        };
        let s = &self.d.steps[i];
        let Some(about) = s.asks.as_ref().map(|a| a.about) else {
            return Err(Refusal::NothingToDo(format!("step {step} waits for no choice")));
        };
        let choices = s.choices();
        if !choices.iter().any(|c| c == branch) {
            let known = choices.join(", ");
            return Err(Refusal::Invalid(format!("step {step} has no branch {branch:?}: choose one of {known}")));
        }
        let who = By { who: by.into(), reason: String::new(), at: self.now };
        let payload = json!({ "by": by, "step": step, "branch": branch, "about": about });
        let s = &mut self.d.steps[i];
        let reason = s.asks.take().map(|a| a.reason);
        s.chosen = Some(Choice { branch: branch.into(), by: By { reason: reason.unwrap_or_default(), ..who.clone() } });
        self.event("deployment.chosen", Severity::Notice, payload);
        let s = &mut self.d.steps[i];
        match (about, branch, &s.kind) {
            (About::Branch, _, StepRunKind::Gateway(g)) => {
                let named = g.gateway.branches.iter().find(|b| b.name == branch).map(|b| b.to.clone());
                let taken = named.unwrap_or_else(|| g.gateway.default.clone());
                self.go_on_to(i, taken, Some(who));
            }
            (About::Until, "again", _) => self.run_again(i),
            (About::Until, ..) => self.succeed(i, None),
            (About::Condition | About::Inputs, "skip", _) => {
                s.state = StepState::Skipped;
                s.reached = true;
            }
            // `run`: it starts when its turn is looked at.
            _ => {}
        }
        Ok(())
    }

    /// Retries failed hosts at the step that failed, or (`past`) after it; hosts that were stopped with them run too.
    pub(super) fn retry(&mut self, by: &str, only: &[String], past: bool) -> Result<(), Refusal> {
        let verb = if past { "skip" } else { "retry" };
        self.must_be_running(if past { "skipped" } else { "retried" })?;
        self.hosts_exist(only)?;
        let mut touched = Vec::new();
        let mut refused = Vec::new();
        for i in 0..self.d.steps.len() {
            if !self.d.has_failed(i) {
                continue;
            }
            if self.d.steps[i].state == StepState::Failed {
                if only.is_empty() {
                    self.mend(i, past);
                    touched.push(self.d.steps[i].id.clone());
                }
                continue;
            }
            let s = &mut self.d.steps[i];
            match &mut s.kind {
                StepRunKind::Central { .. }
                | StepRunKind::Gateway(_)
                | StepRunKind::Enter { .. }
                | StepRunKind::Leave { .. } => {}
                StepRunKind::Rollout(r) => {
                    let all = r.host_steps;
                    for w in r.waves.iter_mut().filter(|w| w.state == WaveState::Failed) {
                        let mut any = false;
                        for h in w.hosts.iter_mut().filter(|h| only.is_empty() || only.contains(&h.host)) {
                            match h.state {
                                HostState::Failed | HostState::HandStopped => {
                                    let at = h.failed_step.unwrap_or(0);
                                    let steps = if h.steps == 0 { all } else { h.steps };
                                    if past && h.failed_step.is_some() && at + 1 >= steps {
                                        h.state = HostState::Succeeded;
                                        h.reason = Some("the last step was skipped by a person".into());
                                    } else {
                                        h.start_at = if past && h.failed_step.is_some() { at + 1 } else { at };
                                        h.state = HostState::Waiting;
                                    }
                                }
                                HostState::NotStarted if !past => h.state = HostState::Waiting,
                                HostState::NotStarted => {
                                    refused.push(format!("{} never started: there is no step to skip", h.host));
                                    continue;
                                }
                                HostState::Unknown => {
                                    refused.push(format!("{} is unknown: override it first, or wait for it", h.host));
                                    continue;
                                }
                                _ => continue,
                            }
                            any = true;
                            touched.push(h.host.clone());
                        }
                        if any {
                            w.state = WaveState::Waiting;
                        }
                    }
                }
            }
        }
        if touched.is_empty() {
            let why = if refused.is_empty() { "nothing has failed".to_owned() } else { refused.join("; ") };
            return Err(Refusal::NothingToDo(format!("nothing to {verb}: {why}")));
        }
        self.event("deployment.intervened", Severity::Info, json!({ "by": by, "verb": verb, "on": touched }));
        Ok(())
    }

    /// A step that failed as a whole: past it, or again. A subflow goes on within where it stood still, but begins anew
    /// when it was its repeats that were used up.
    fn mend(&mut self, i: usize, past: bool) {
        let s = &mut self.d.steps[i];
        s.reason = None;
        if past {
            s.state = StepState::Skipped;
            return;
        }
        let used_up = s.repeat.as_ref().is_some_and(|r| r.runs >= r.max);
        if used_up && let Some(r) = &mut s.repeat {
            r.runs = 0;
        }
        s.state = StepState::Waiting;
        let leaves = matches!(s.kind, StepRunKind::Leave { .. }).then(|| self.d.within(&self.d.steps[i].id));
        if used_up || leaves.is_none() {
            return self.reset_run(i);
        }
        let graph = Graph::of(&self.d.steps);
        let mut within = leaves.unwrap_or_default();
        // What `any` or `done` went on from has had its effect: it is not run again.
        within.retain(|w| self.d.steps[*w].state != StepState::Failed || !graph.is_joined_over(&self.d, *w));
        within.into_iter().for_each(|w| self.d.steps[w].resume());
    }

    pub(super) fn ignore(&mut self, by: &str, only: &[String], reason: &str) -> Result<(), Refusal> {
        self.must_be_running("ignored")?;
        self.hosts_exist(only)?;
        let mut touched = Vec::new();
        let mut waves = Vec::new();
        for i in 0..self.d.steps.len() {
            if !self.d.has_failed(i) {
                continue;
            }
            if self.d.steps[i].state == StepState::Failed {
                if only.is_empty() {
                    self.mend(i, true);
                    touched.push(self.d.steps[i].id.clone());
                }
                continue;
            }
            match &mut self.d.steps[i].kind {
                StepRunKind::Central { .. }
                | StepRunKind::Gateway(_)
                | StepRunKind::Enter { .. }
                | StepRunKind::Leave { .. } => {}
                StepRunKind::Rollout(r) => {
                    for (w, wave) in r.waves.iter_mut().enumerate().filter(|(_, w)| w.state == WaveState::Failed) {
                        for h in wave.hosts.iter_mut().filter(|h| only.is_empty() || only.contains(&h.host)) {
                            // An unknown host is not ignored away: it may still be running.
                            if h.state.is_failure() && h.state != HostState::Unknown {
                                h.state = HostState::Ignored;
                                touched.push(h.host.clone());
                            }
                        }
                        waves.push((i, w));
                    }
                }
            }
        }
        if touched.is_empty() {
            return Err(Refusal::NothingToDo("nothing to ignore: no failed host or step among them".into()));
        }
        let payload = json!({ "by": by, "verb": "ignore", "on": touched, "reason": reason });
        self.event("deployment.intervened", Severity::Info, payload);
        for (i, w) in waves {
            self.wave_ended(i, w);
        }
        Ok(())
    }

    pub(super) fn exclude(&mut self, by: &str, only: &[String], reason: &str) -> Result<(), Refusal> {
        self.must_be_running("changed")?;
        self.hosts_exist(only)?;
        if only.is_empty() {
            return Err(Refusal::Invalid("name the hosts to exclude".into()));
        }
        let busy: Vec<&str> = self
            .d
            .hosts()
            .filter(|h| only.contains(&h.host) && matches!(h.state, HostState::Running | HostState::Unknown))
            .map(|h| h.host.as_str())
            .collect();
        if !busy.is_empty() {
            return Err(Refusal::Invalid(format!("{} may be running: wait, abort or override first", busy.join(", "))));
        }
        let mut waves = Vec::new();
        let mut changed = false;
        for (i, s) in self.d.steps.iter_mut().enumerate() {
            let StepRunKind::Rollout(r) = &mut s.kind else { continue };
            for (w, wave) in r.waves.iter_mut().enumerate() {
                for h in wave.hosts.iter_mut().filter(|h| only.contains(&h.host)) {
                    if !matches!(h.state, HostState::Succeeded | HostState::Excluded) {
                        h.state = HostState::Excluded;
                        changed = true;
                    }
                }
                if wave.state == WaveState::Failed && s.state == StepState::Running {
                    waves.push((i, w));
                }
            }
        }
        if !changed {
            return Err(Refusal::NothingToDo("these hosts are done or excluded already".into()));
        }
        let payload = json!({ "by": by, "verb": "exclude", "on": only, "reason": reason });
        self.event("deployment.intervened", Severity::Info, payload);
        for (i, w) in waves {
            self.wave_ended(i, w);
        }
        Ok(())
    }

    /// A person takes responsibility for unknown hosts: they count as failed from here on. Also after the end, because an unknown
    /// host keeps the environment's lock.
    pub(super) fn override_unknown(&mut self, by: &str, only: Vec<String>, reason: &str) -> Result<(), Refusal> {
        self.hosts_exist(&only)?;
        let mut touched = Vec::new();
        for s in &mut self.d.steps {
            let StepRunKind::Rollout(r) = &mut s.kind else { continue };
            for h in r.waves.iter_mut().flat_map(|w| w.hosts.iter_mut()) {
                if h.state == HostState::Unknown && (only.is_empty() || only.contains(&h.host)) {
                    h.state = HostState::Failed;
                    h.reason = Some(format!("unknown, overridden by {by}: {reason}"));
                    touched.push(h.host.clone());
                }
            }
        }
        if touched.is_empty() {
            return Err(Refusal::NothingToDo("no unknown host among them".into()));
        }
        let payload = json!({ "by": by, "hosts": touched, "reason": reason });
        self.event("deployment.overridden", Severity::Alert, payload);
        self.effects.push(Effect::OverrideTasks { hosts: touched, by: by.into(), reason: reason.into() });
        Ok(())
    }

    fn hosts_exist(&self, names: &[String]) -> Result<(), Refusal> {
        match names.iter().find(|n| !self.d.hosts().any(|h| h.host == **n)) {
            Some(n) => Err(Refusal::Invalid(format!("host {n:?} takes no part in this deployment"))),
            None => Ok(()),
        }
    }
}
