//! What people do about a run: confirm, choose, skip, ignore, exclude, stop hosts, answer for an unknown host. Retry is in
//! `mend.rs`, what they *say* about it (fail, succeed) in `forced.rs`, taking up again after the end in `reopen.rs`.

use super::{transition::Step, *};
use serde_json::json;
use std::collections::{BTreeSet, HashSet};

/// Hosts that a person named, to be asked for each host of a run.
pub(super) struct Named<'a>(HashSet<&'a str>);

impl<'a> Named<'a> {
    pub(super) fn of(hosts: &'a [String]) -> Named<'a> {
        Named(hosts.iter().map(String::as_str).collect())
    }

    /// Without names every host is meant.
    pub(super) fn has(&self, host: &str) -> bool {
        self.0.is_empty() || self.0.contains(host)
    }
}

/// Why parts that were named stay as they are.
#[derive(Default)]
pub(super) struct Left {
    /// They may still be running.
    pub(super) unsettled: Vec<String>,
    /// Nothing is to be done about them.
    pub(super) idle: Vec<String>,
}

impl Left {
    pub(super) fn refusal(self, verb: &str, otherwise: &str) -> Refusal {
        let why = |parts: &[String]| format!("nothing to {verb}: {}", parts.join("; "));
        match (self.unsettled.is_empty(), self.idle.is_empty()) {
            (false, _) => Refusal::Unsettled(why(&self.unsettled)),
            (true, false) => Refusal::NothingToDo(why(&self.idle)),
            (true, true) => Refusal::NothingToDo(format!("nothing to {verb}: {otherwise}")),
        }
    }
}

impl Step<'_> {
    pub(super) fn confirm(&mut self, by: &str, wave: u32) -> Result<(), Refusal> {
        let waits = |s: &StepRun| match &s.kind {
            StepRunKind::Rollout(r) => r.waves.get(wave as usize).is_some_and(|w| w.state == WaveState::Confirming),
            _ => false,
        };
        let Some(i) = self.d.steps.iter().position(waits) else {
            return Err(Refusal::NothingToDo(format!("wave {wave} does not wait for a confirmation")));
        };
        let w = wave as usize;
        // To say that a wave is well though its probes could not tell is to step in; to look at one that ended well is not.
        let unclear = matches!(&self.d.steps[i].kind, StepRunKind::Rollout(r) if r.waves[w].probe.is_some());
        if unclear {
            self.step_in(by)?;
        }
        let payload = json!({ "by": by, "step": self.d.steps[i].id, "wave": wave });
        self.event("wave.confirmed", Severity::Info, payload);
        self.bake(i, w);
        Ok(())
    }

    /// A person decides what an expression could not.
    pub(super) fn choose(&mut self, by: &str, step: &str, branch: &str) -> Result<(), Refusal> {
        self.step_in(by)?;
        let i = self.index_of(step)?;
        let s = &self.d.steps[i];
        let Some(about) = s.asks.as_ref().map(|a| a.about) else {
            return Err(Refusal::NothingToDo(format!("step {step} waits for no choice")));
        };
        let choices = s.choices();
        if !choices.iter().any(|c| c == branch) {
            let known = choices.join(", ");
            return Err(Refusal::Invalid(format!("step {step} has no branch {branch:?}: choose one of {known}")));
        }
        if branch == "skip"
            && matches!(about, About::Condition | About::Inputs)
            && let Some(required) = self.d.required_step(i)
        {
            return Err(Refusal::Required(format!("step {required} is required: it cannot be skipped")));
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

    /// On the failed hosts, past the step that failed; a step that failed as a whole is left out.
    pub(super) fn skip(&mut self, by: &str, only: &[String]) -> Result<(), Refusal> {
        self.step_in(by)?;
        self.hosts_exist(only)?;
        self.d.required_stay(only, true)?;
        let named = Named::of(only);
        let mut touched = Vec::new();
        let mut left = Left::default();
        for i in 0..self.d.steps.len() {
            if !self.d.has_failed(i) {
                continue;
            }
            if self.d.steps[i].state == StepState::Failed {
                if only.is_empty() {
                    self.leave_out(i);
                    touched.push(self.d.steps[i].id.clone());
                }
                continue;
            }
            let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else { continue };
            let all = r.host_steps;
            for (w, wave) in r.waves.iter_mut().enumerate().filter(|(_, w)| w.state == WaveState::Failed) {
                if wave.failed_by_probes() && only.is_empty() {
                    left.idle.push(format!("the probes of wave {} failed: retry or ignore them", w + 1));
                    continue;
                }
                let mut any = false;
                for h in wave.hosts.iter_mut().filter(|h| named.has(&h.host)) {
                    match h.state {
                        HostState::Failed | HostState::HandStopped => {
                            let steps = if h.steps == 0 { all } else { h.steps };
                            match h.failed_step {
                                Some(at) if at + 1 >= steps => {
                                    h.state = HostState::Succeeded;
                                    h.reason = Some("the last step was skipped by a person".into());
                                }
                                Some(at) => h.goes_on_at(at + 1),
                                None => h.goes_on_at(h.resume_at()),
                            }
                        }
                        HostState::NotStarted => {
                            left.idle.push(format!("{} never started: there is no step to skip", h.host));
                            continue;
                        }
                        HostState::Unknown => {
                            left.unsettled.push(format!("{} is unknown: override it first, or wait for it", h.host));
                            continue;
                        }
                        _ => continue,
                    }
                    any = true;
                    touched.push(h.host.clone());
                }
                if any {
                    wave.state = WaveState::Waiting;
                }
            }
        }
        if touched.is_empty() {
            return Err(left.refusal("skip", "nothing has failed there"));
        }
        self.event("deployment.intervened", Severity::Info, json!({ "by": by, "verb": "skip", "on": touched }));
        Ok(())
    }

    /// A step that failed as a whole counts as skipped.
    fn leave_out(&mut self, i: usize) {
        let s = &mut self.d.steps[i];
        s.forget_failure();
        s.state = StepState::Skipped;
    }

    pub(super) fn ignore(&mut self, by: &str, only: &[String], reason: &str) -> Result<(), Refusal> {
        self.step_in(by)?;
        self.hosts_exist(only)?;
        self.d.required_stay(only, false)?;
        let named = Named::of(only);
        let who = By { who: by.into(), reason: reason.into(), at: self.now };
        let mut touched = Vec::new();
        let mut left = Left::default();
        let mut judge = Vec::new();
        for i in 0..self.d.steps.len() {
            if !self.d.has_failed(i) {
                continue;
            }
            let step = &mut self.d.steps[i];
            if step.state == StepState::Failed {
                if only.is_empty() {
                    touched.push(step.id.clone());
                    self.leave_out(i);
                }
                continue;
            }
            let StepRunKind::Rollout(r) = &mut step.kind else { continue };
            for (w, wave) in r.waves.iter_mut().enumerate().filter(|(_, w)| w.state == WaveState::Failed) {
                if wave.failed_by_probes() && only.is_empty() {
                    touched.push(format!("{}#{w}", step.id));
                    judge.push((i, w, true));
                    continue;
                }
                for h in wave.hosts.iter_mut().filter(|h| named.has(&h.host)) {
                    // An unknown host is not ignored away: it may still be running.
                    if h.state == HostState::Unknown {
                        left.unsettled.push(format!("{} is unknown: override it first, or wait for it", h.host));
                    } else if h.state.is_failure() {
                        h.state = HostState::Ignored;
                        h.by = Some(who.clone());
                        touched.push(h.host.clone());
                    }
                }
                judge.push((i, w, false));
            }
        }
        if touched.is_empty() {
            return Err(left.refusal("ignore", "no failed host or step among them"));
        }
        let payload = json!({ "by": by, "verb": "ignore", "on": touched, "reason": reason });
        self.event("deployment.intervened", Severity::Info, payload);
        for (i, w, probes) in judge {
            if probes { self.pass_probes(i, w) } else { self.wave_ended(i, w) }
        }
        Ok(())
    }

    pub(super) fn exclude(&mut self, by: &str, only: &[String], reason: &str) -> Result<(), Refusal> {
        self.step_in(by)?;
        self.hosts_exist(only)?;
        if only.is_empty() {
            return Err(Refusal::Invalid("name the hosts to exclude".into()));
        }
        let named = Named::of(only);
        let busy: Vec<&str> = self
            .d
            .hosts()
            .filter(|h| matches!(h.state, HostState::Running | HostState::Unknown) && named.has(&h.host))
            .map(|h| h.host.as_str())
            .collect();
        if !busy.is_empty() {
            let busy = busy.join(", ");
            return Err(Refusal::Unsettled(format!("{busy} may be running: wait, stop or override first")));
        }
        let who = By { who: by.into(), reason: reason.into(), at: self.now };
        let mut judge = Vec::new();
        let mut changed = false;
        for (i, s) in self.d.steps.iter_mut().enumerate() {
            let StepRunKind::Rollout(r) = &mut s.kind else { continue };
            for (w, wave) in r.waves.iter_mut().enumerate() {
                let mut here = false;
                let done = |h: &HostRun| matches!(h.state, HostState::Succeeded | HostState::Excluded);
                for h in wave.hosts.iter_mut().filter(|h| !done(h) && named.has(&h.host)) {
                    h.state = HostState::Excluded;
                    h.by = Some(who.clone());
                    here = true;
                }
                changed |= here;
                if here && wave.state == WaveState::Failed && s.state == StepState::Running {
                    judge.push((i, w));
                }
            }
        }
        if !changed {
            return Err(Refusal::NothingToDo("these hosts are done or excluded already".into()));
        }
        let payload = json!({ "by": by, "verb": "exclude", "on": only, "reason": reason });
        self.event("deployment.intervened", Severity::Info, payload);
        for (i, w) in judge {
            self.wave_ended(i, w);
        }
        Ok(())
    }

    /// Stops hosts that run. What becomes of them comes with the result of their wave.
    pub(super) fn stop(&mut self, by: &str, only: Vec<String>, reason: &str) -> Result<(), Refusal> {
        if only.is_empty() {
            return Err(Refusal::Invalid("name the hosts to stop; abort stops all of them".into()));
        }
        self.hosts_exist(&only)?;
        let who = By { who: by.into(), reason: reason.into(), at: self.now };
        let named = Named::of(&only);
        let mut running = BTreeSet::new();
        let mut silent = Vec::new();
        for s in &mut self.d.steps {
            let StepRunKind::Rollout(r) = &mut s.kind else { continue };
            for h in r.waves.iter_mut().flat_map(|w| &mut w.hosts).filter(|h| named.has(&h.host)) {
                if h.state == HostState::Running {
                    h.by = Some(who.clone());
                    running.insert(h.host.clone());
                } else if h.state == HostState::Unknown {
                    silent.push(h.host.clone());
                }
            }
        }
        let idle: Vec<&str> = only.iter().filter(|h| !running.contains(*h)).map(String::as_str).collect();
        if let Some(h) = silent.iter().find(|h| !running.contains(*h)) {
            return Err(Refusal::Unsettled(format!(
                "{h} is unknown: nobody can reach it; override it, or wait for it"
            )));
        }
        if !idle.is_empty() {
            return Err(Refusal::NothingToDo(format!("{} does not run: name hosts that do", idle.join(", "))));
        }
        let payload = json!({ "by": by, "reason": reason, "hosts": only });
        self.event("deployment.hosts_stopped", Severity::Notice, payload);
        self.effects.push(Effect::StopTasks { hosts: only, by: by.into(), reason: reason.into() });
        Ok(())
    }

    /// A person takes responsibility for unknown hosts: they count as failed from here on. Also after the end, because an unknown
    /// host keeps the environment's lock.
    pub(super) fn override_unknown(&mut self, by: &str, only: Vec<String>, reason: &str) -> Result<(), Refusal> {
        self.hosts_exist(&only)?;
        let named = Named::of(&only);
        let who = By { who: by.into(), reason: reason.into(), at: self.now };
        let mut touched = Vec::new();
        for s in &mut self.d.steps {
            let StepRunKind::Rollout(r) = &mut s.kind else { continue };
            for h in r.waves.iter_mut().flat_map(|w| w.hosts.iter_mut()) {
                if h.state == HostState::Unknown && named.has(&h.host) {
                    h.state = HostState::Failed;
                    h.reason = Some(format!("unknown, overridden by {by}: {reason}"));
                    h.by = Some(who.clone());
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

    pub(super) fn hosts_exist(&self, names: &[String]) -> Result<(), Refusal> {
        if names.is_empty() {
            return Ok(());
        }
        let known: HashSet<&str> = self.d.hosts().map(|h| h.host.as_str()).collect();
        match names.iter().find(|n| !known.contains(n.as_str())) {
            Some(n) => Err(Refusal::Invalid(format!("host {n:?} takes no part in this deployment"))),
            None => Ok(()),
        }
    }

    pub(super) fn index_of(&self, step: &str) -> Result<usize, Refusal> {
        let found = self.d.steps.iter().position(|s| s.id == step);
        found.ok_or_else(|| Refusal::Invalid(format!("this deployment has no step {step:?}")))
    }
}

impl HostRun {
    /// A person lets it run again from this step on.
    pub(super) fn goes_on_at(&mut self, step: u32) {
        self.start_at = step;
        self.state = HostState::Waiting;
        self.retried = 0;
        self.by = None;
    }
}

impl StepRun {
    /// A person dealt with its failure.
    pub(super) fn forget_failure(&mut self) {
        self.reason = None;
        self.class = None;
        self.forced = None;
        self.tries = Tries::default();
    }
}
