//! Repeats: a step that ended well runs again until its expression is true. A repeated subflow runs all its steps again;
//! attempt numbers go on growing, so that no attempt is ever used twice.

use super::{mend::Scope, transition::Step, *};
use serde_json::{Value, json};
use std::time::Duration;

impl Step<'_> {
    /// A run of the step ended well: it is done, or runs again, or nobody can tell.
    pub(super) fn run_ended_well(&mut self, i: usize, output: Option<&Value>) {
        if let StepRunKind::Leave { scope } = &self.d.steps[i].kind {
            let outputs = self.d.scope_outputs(scope);
            let step = &mut self.d.steps[i];
            step.outputs = outputs;
            if let Some(r) = &mut step.repeat {
                r.runs = r.runs.max(1);
            }
        }
        let step = &self.d.steps[i];
        let until = step.repeat.as_ref().filter(|_| self.d.state != State::Aborting).map(|r| r.until.clone());
        let Some(until) = until else { return self.succeed(i, output) };
        match self.d.decides(step.scope(), &until) {
            Ok(true) => self.succeed(i, output),
            Ok(false) => self.run_again(i),
            Err(why) => {
                self.rest(i);
                self.ask(i, About::Until, why);
            }
        }
    }

    pub(super) fn succeed(&mut self, i: usize, output: Option<&Value>) {
        let step = &mut self.d.steps[i];
        step.state = StepState::Succeeded;
        let mut payload = json!({ "step": step.id });
        if let Some(o) = output {
            payload["reason"] = Value::Null;
            payload["output"] = o.clone();
        }
        self.event("step.succeeded", Severity::Info, payload);
    }

    pub(super) fn run_again(&mut self, i: usize) {
        self.rest(i);
        let now = self.now;
        let step = &mut self.d.steps[i];
        let Some(r) = &mut step.repeat else { return };
        if r.runs >= r.max {
            let why = format!("`{}` was still false after {} run(s)", r.until, r.runs);
            self.event("step.failed", Severity::Info, json!({ "step": self.d.steps[i].id, "reason": why }));
            return self.step_failed(i, None, &why);
        }
        let at = now + Duration::from_secs(r.every_s.into());
        r.next_at = Some(at);
        let payload = json!({ "step": step.id, "runs": r.runs, "max": r.max, "next_at": at });
        self.event("step.repeating", Severity::Info, payload);
    }

    /// Between two runs the step is running, but no work of it is.
    fn rest(&mut self, i: usize) {
        let step = &mut self.d.steps[i];
        step.state = StepState::Running;
        if let StepRunKind::Central { work, .. } = &mut step.kind {
            *work = None;
        }
    }

    /// Starts the runs whose time has come.
    pub(super) fn begin_due_runs(&mut self) {
        if !self.d.may_start() {
            return;
        }
        for i in 0..self.d.steps.len() {
            if self.d.steps[i].next_run().is_some_and(|at| at <= self.now) && !self.d.is_held_by_unknown(i) {
                self.reset_run(i);
                if !matches!(self.d.steps[i].kind, StepRunKind::Leave { .. }) {
                    self.begin(i);
                }
            }
        }
    }

    /// Makes a step fit to run anew. Of a subflow, all within.
    pub(super) fn reset_run(&mut self, i: usize) {
        let step = &mut self.d.steps[i];
        if let Some(r) = &mut step.repeat {
            r.next_at = None;
        }
        step.reason = None;
        step.tries = Tries::default();
        step.outputs.clear();
        match &mut step.kind {
            StepRunKind::Rollout(r) => r.reset(),
            StepRunKind::Leave { scope } => {
                let scope = scope.clone();
                if let Some(r) = &mut step.repeat {
                    r.runs += 1;
                }
                step.state = StepState::Waiting;
                step.reached = false;
                for w in self.d.within(&scope) {
                    self.d.steps[w].renew();
                }
            }
            _ => {}
        }
    }
}

impl Deployment {
    /// The step or a subflow it stands in is repeated: its hosts may run again after a success.
    pub(super) fn is_repeated(&self, i: usize) -> bool {
        let scope = self.steps[i].scope();
        let around = |s: &&StepRun| scope == s.id || scope.strip_prefix(&s.id).is_some_and(|r| r.starts_with('/'));
        self.steps.iter().filter(|s| s.repeat.is_some()).any(|s| around(&s))
    }

    /// A host that went silent may still be running: no further run begins before that is settled.
    pub(super) fn is_held_by_unknown(&self, i: usize) -> bool {
        let has = |s: &StepRun| match &s.kind {
            StepRunKind::Rollout(r) => r.waves.iter().flat_map(|w| &w.hosts).any(|h| h.state == HostState::Unknown),
            _ => false,
        };
        let within = match &self.steps[i].kind {
            StepRunKind::Leave { scope } => self.within(scope),
            _ => Vec::new(),
        };
        has(&self.steps[i]) || within.iter().any(|w| has(&self.steps[*w]))
    }
}

impl StepRun {
    /// When the next run of a repeated step begins.
    pub(super) fn next_run(&self) -> Option<Timestamp> {
        self.repeat.as_ref().filter(|_| self.state == StepState::Running)?.next_at
    }

    /// As the plan has it, but for the attempts that were used.
    fn renew(&mut self) {
        self.state = if self.left_out { StepState::Skipped } else { StepState::Waiting };
        self.reached = false;
        (self.asks, self.chosen, self.reason) = (None, None, None);
        (self.class, self.forced, self.tries) = (None, None, Tries::default());
        self.outputs.clear();
        if let Some(r) = &mut self.repeat {
            (r.runs, r.next_at) = (0, None);
        }
        match &mut self.kind {
            StepRunKind::Central { work, reason, .. } => (*work, *reason) = (None, None),
            StepRunKind::Gateway(g) => (g.taken, g.chosen_by, g.reason) = (None, None, None),
            StepRunKind::Rollout(r) => r.reset(),
            StepRunKind::Enter { .. } | StepRunKind::Leave { .. } => {}
        }
    }
}

impl StepRun {
    /// Of a subflow that failed and is retried: what failed or was held up by that goes on; what is done stays done.
    pub(super) fn resume(&mut self, scope: &Scope) {
        if !matches!(self.state, StepState::Failed | StepState::Stopped) {
            return;
        }
        self.state = StepState::Waiting;
        self.forget_failure();
        if let Some(r) = self.repeat.as_mut().filter(|r| r.runs >= r.max) {
            r.runs = 0;
        }
        if let StepRunKind::Rollout(r) = &mut self.kind {
            r.take_up(scope, true);
        }
    }
}

impl RolloutRun {
    /// What is left of it is not done any more.
    pub(super) fn stop(&mut self, reason: &str) {
        for w in &mut self.waves {
            w.state = match w.state {
                WaveState::Waiting | WaveState::Running => WaveState::Stopped,
                WaveState::Confirming | WaveState::Baking { .. } | WaveState::Probing { .. } => WaveState::Succeeded,
                WaveState::Retrying { .. } => WaveState::Failed,
                over => over,
            };
            for h in w.hosts.iter_mut().filter(|h| h.state == HostState::Waiting) {
                h.state = HostState::AutoStopped;
                h.reason = Some(reason.into());
            }
        }
    }

    /// All hosts from the start, but for those a person took out, and those that may still be running.
    fn reset(&mut self) {
        for w in &mut self.waves {
            w.keep_earlier();
            (w.state, w.work, w.probe) = (WaveState::Waiting, None, None);
            for h in w.hosts.iter_mut().filter(|h| !matches!(h.state, HostState::Excluded | HostState::Unknown)) {
                (h.state, h.start_at, h.failed_step, h.reason) = (HostState::Waiting, 0, None, None);
                (h.failed_id, h.class, h.exit_code, h.by, h.retried) = (None, None, None, None, 0);
                h.outputs.clear();
            }
        }
    }
}
