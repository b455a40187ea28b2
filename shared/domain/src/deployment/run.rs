//! What happens while a deployment runs: steps become ready, waves start, results come back, budgets are judged.

use super::{transition::Step, *};
use crate::work::{CentralWork, WaveHost, WaveWork};
use serde_json::json;

impl Step<'_> {
    /// Starts all that can start; finds out whether the deployment is over, and whether it stands still.
    pub(super) fn run_progress(&mut self) {
        for i in 0..self.d.steps.len() {
            self.step_progress(i);
        }
        self.judge();
        if matches!(self.d.state, State::Running | State::Paused) {
            let moving = !self.d.works_in_flight().is_empty();
            // A pause by an operator shows at once, though a wave in flight still ends.
            self.d.state = if self.d.pause.is_some() || !moving { State::Paused } else { State::Running };
        }
    }

    fn may_start(&self) -> bool {
        self.d.pause.is_none()
    }

    fn step_progress(&mut self, i: usize) {
        if self.d.steps[i].state == StepState::Waiting {
            let ready = self.d.steps[i].needs.iter().all(|n| {
                self.d.steps.iter().any(|s| s.id == *n && matches!(s.state, StepState::Succeeded | StepState::Skipped))
            });
            if !ready || !self.may_start() {
                return;
            }
            self.start_step(i);
        }
        if self.d.steps[i].state == StepState::Running && matches!(self.d.steps[i].kind, StepRunKind::Rollout(_)) {
            self.rollout_progress(i);
        }
    }

    fn start_step(&mut self, i: usize) {
        let step = &mut self.d.steps[i];
        step.state = StepState::Running;
        if let StepRunKind::Central { attempt, work, reason, .. } = &mut step.kind {
            *attempt += 1;
            *reason = None;
            let id = (self.mint)();
            *work = Some(id);
            let spec = WorkSpec::Central(CentralWork {
                step: step.id.clone(),
                attempt: *attempt,
                outputs: Default::default(),
            });
            let payload = json!({ "step": step.id, "attempt": *attempt });
            self.effects.push(Effect::StartWork { id, spec });
            self.event("step.started", Severity::Info, payload);
        }
    }

    /// Walks a rollout's waves in order: each has to be done before the next starts.
    fn rollout_progress(&mut self, i: usize) {
        let now = self.now;
        loop {
            let may_start = self.may_start();
            let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else { return };
            let Some(w) = r.waves.iter().position(|w| w.state != WaveState::Succeeded) else {
                self.d.steps[i].state = StepState::Succeeded;
                let id = self.d.steps[i].id.clone();
                self.event("step.succeeded", Severity::Info, json!({ "step": id }));
                return;
            };
            match r.waves[w].state {
                WaveState::Baking { until } if until <= now => r.waves[w].state = WaveState::Succeeded,
                WaveState::Waiting if may_start => self.start_wave(i, w),
                _ => return,
            }
            let StepRunKind::Rollout(r) = &self.d.steps[i].kind else { return };
            if r.waves[w].state == WaveState::Running {
                return;
            }
        }
    }

    /// Hands the hosts of a wave that are still to run to the executors; a wave without such hosts is done.
    pub(super) fn start_wave(&mut self, i: usize, w: usize) {
        let step_id = self.d.steps[i].id.clone();
        let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else { return };
        // What failed before (and was not ignored or excluded) has used up its part of the budget; what is retried has not.
        let borne = r.waves.iter().flat_map(|w| &w.hosts).filter(|h| h.state.is_failure()).count() as u32;
        let (parallel, max_failures) = (r.parallel, r.max_failures.saturating_sub(borne));
        let wave = &mut r.waves[w];
        let mut hosts = Vec::new();
        for h in &mut wave.hosts {
            if matches!(h.state, HostState::Waiting | HostState::AutoStopped) {
                h.attempt += 1;
                h.state = HostState::Running;
                h.failed_step = None;
                h.reason = None;
                hosts.push(WaveHost { host: h.host.clone(), attempt: h.attempt, start_at: h.start_at });
            }
        }
        if hosts.is_empty() {
            self.wave_ended(i, w);
            return;
        }
        let id = (self.mint)();
        wave.work = Some(id);
        wave.state = WaveState::Running;
        let names: Vec<&str> = hosts.iter().map(|h| h.host.as_str()).collect();
        let payload = json!({ "step": step_id, "wave": w, "hosts": names });
        let parallel = if parallel == 0 { hosts.len() as u32 } else { parallel };
        let spec = WorkSpec::Wave(WaveWork {
            step: step_id,
            wave: w as u32,
            hosts,
            parallel,
            max_failures,
            outputs: Default::default(),
        });
        self.effects.push(Effect::StartWork { id, spec });
        self.event("wave.started", Severity::Info, payload);
    }

    pub(super) fn work_settled(&mut self, work: WorkId, result: WorkResult) -> Result<(), Refusal> {
        let unfit = || Refusal::NothingToDo("this result belongs to no open work of the deployment".into());
        for i in 0..self.d.steps.len() {
            let state = self.d.steps[i].state;
            match (&mut self.d.steps[i].kind, &result) {
                (
                    StepRunKind::Central { work: w, reason, .. },
                    WorkResult::Central { succeeded, reason: why, output },
                ) if *w == Some(work) => {
                    if state != StepState::Running {
                        return Err(unfit());
                    }
                    reason.clone_from(why);
                    let state = if *succeeded { StepState::Succeeded } else { StepState::Failed };
                    self.d.steps[i].state = state;
                    let payload = json!({ "step": self.d.steps[i].id, "reason": why, "output": output });
                    let (what, severity) = match succeeded {
                        true => ("step.succeeded", Severity::Info),
                        false => ("step.failed", Severity::Info),
                    };
                    self.event(what, severity, payload);
                    if !*succeeded && self.d.state != State::Aborting {
                        let id = self.d.steps[i].id.clone();
                        let why = why.clone().unwrap_or_else(|| "the step failed".into());
                        self.failure(&id, None, &why);
                    }
                    return Ok(());
                }
                (StepRunKind::Rollout(r), WorkResult::Wave { hosts }) => {
                    if let Some(w) = r.waves.iter().position(|w| w.work == Some(work)) {
                        return self.wave_settled(i, w, hosts);
                    }
                }
                _ => {}
            }
        }
        Err(unfit())
    }

    fn wave_settled(&mut self, i: usize, w: usize, results: &[HostResult]) -> Result<(), Refusal> {
        let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else {
            return Err(Refusal::Invalid("not a rollout".into()));
        };
        let wave = &mut r.waves[w];
        let first = wave.state == WaveState::Running;
        let mut changed = false;
        for res in results {
            for h in wave.hosts.iter_mut().filter(|h| h.host == res.host && h.attempt == res.attempt) {
                // A later settling may only say what became of a host that was unknown.
                if h.state == HostState::Running || h.state == HostState::Unknown {
                    let before = h.state;
                    h.take(res);
                    changed |= before != h.state;
                }
            }
        }
        if first {
            // An executor settles all hosts it was given; one it says nothing about is not known.
            for h in wave.hosts.iter_mut().filter(|h| h.state == HostState::Running) {
                h.state = HostState::Unknown;
                h.reason = Some("the executor's result does not mention this host".into());
            }
        } else if !changed {
            return Err(Refusal::NothingToDo("nothing new in this result".into()));
        }
        let was_failed = wave.state == WaveState::Failed;
        if self.d.state.is_terminal() || self.d.state == State::Aborting {
            if first {
                let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else { return Ok(()) };
                r.waves[w].state = WaveState::Failed;
            }
            self.event("wave.settled", Severity::Info, json!({ "wave": w, "hosts": results }));
            return Ok(());
        }
        if first || was_failed {
            self.wave_ended(i, w);
        }
        Ok(())
    }

    /// Judges a wave none of whose hosts runs any more.
    pub(super) fn wave_ended(&mut self, i: usize, w: usize) {
        let now = self.now;
        let step = self.d.steps[i].id.clone();
        let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else { return };
        let failures = r.waves.iter().flat_map(|w| &w.hosts).filter(|h| h.state.is_failure()).count() as u32;
        let hosts = &r.waves[w].hosts;
        let stopped = hosts.iter().any(|h| h.state == HostState::AutoStopped);
        let failed: Vec<String> = hosts.iter().filter(|h| h.state.is_failure()).map(|h| h.host.clone()).collect();
        let last = w + 1 == r.waves.len();
        if failures > r.max_failures || stopped && !failed.is_empty() {
            let again = r.waves[w].state == WaveState::Failed;
            r.waves[w].state = WaveState::Failed;
            if !again {
                let why = r.waves[w].hosts.iter().find_map(|h| h.reason.clone()).unwrap_or_default();
                self.event("wave.failed", Severity::Info, json!({ "step": step, "wave": w, "failed": failed }));
                self.failure(&step, Some((w, failed)), &why);
            }
            return;
        }
        if stopped {
            // What had stopped the rest is mended: go on with it.
            r.waves[w].state = WaveState::Waiting;
            return;
        }
        let confirm = match r.confirm {
            Confirm::None => false,
            Confirm::First => w == 0 && !last,
            Confirm::Each => !last,
        };
        r.waves[w].state = if confirm {
            WaveState::Confirming
        } else if r.bake_s > 0 && !last {
            WaveState::Baking { until: now + std::time::Duration::from_secs(r.bake_s.into()) }
        } else {
            WaveState::Succeeded
        };
        let state = r.waves[w].state;
        let payload = json!({ "step": step, "wave": w, "failed": failed });
        self.event("wave.succeeded", Severity::Info, payload.clone());
        if state == WaveState::Confirming {
            self.event("deployment.awaiting_confirmation", Severity::Action, payload);
        }
    }

    /// More failed than is borne: do what the flow says.
    fn failure(&mut self, step: &str, wave: Option<(usize, Vec<String>)>, why: &str) {
        let (w, hosts) = wave.map_or((None, vec![]), |(w, h)| (Some(w), h));
        match self.d.on_failure {
            OnFailure::Pause => {
                let payload = json!({ "step": step, "wave": w, "failed": hosts, "reason": why,
                    "verbs": ["retry", "skip", "ignore", "exclude", "abort", "rollback"] });
                self.event("deployment.needs_intervention", Severity::Alert, payload);
            }
            // `judge` ends it when nothing is in flight any more.
            OnFailure::Stop | OnFailure::Rollback => {
                let payload = json!({ "step": step, "wave": w, "failed": hosts, "reason": why });
                self.event("deployment.stopping", Severity::Info, payload);
            }
        }
    }

    /// Whether the deployment is over.
    fn judge(&mut self) {
        if !self.d.works_in_flight().is_empty() {
            return;
        }
        let failed_step = self.d.steps.iter().find(|s| {
            s.state == StepState::Failed
                || matches!(&s.kind, StepRunKind::Rollout(r) if r.waves.iter().any(|w| w.state == WaveState::Failed))
        });
        if let Some(step) = failed_step {
            if self.d.on_failure == OnFailure::Pause {
                return;
            }
            let reason = format!("step {} failed", step.id);
            self.end(State::Failed, "windlass", &reason);
            if self.d.on_failure == OnFailure::Rollback && self.d.kind != ReleaseKind::Rollback {
                let (mode, by) = (RollbackMode::Normal, "windlass".to_owned());
                self.effects.push(Effect::RequestRollback { mode, id: None, by });
            }
            return;
        }
        let done = self.d.steps.iter().all(|s| matches!(s.state, StepState::Succeeded | StepState::Skipped));
        // Success is said only when it is known of every host.
        if done && self.d.unknown_hosts().is_empty() {
            self.end(State::Succeeded, "windlass", "");
            self.effects.push(Effect::RecordGood);
            if let Some(of) = self.d.rollback.as_ref().map(|r| r.of) {
                self.effects.push(Effect::TellRolledBack { of });
            }
        }
    }
}
