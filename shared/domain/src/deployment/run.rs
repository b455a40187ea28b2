//! What happens while a deployment runs: steps become ready, waves start, results come back, budgets are judged.

use super::{
    graph::{Graph, Turn},
    probing::Looked,
    transition::Step,
    *,
};
use crate::flow::StepFailure;
use crate::work::{CentralWork, FailureClass, WaveHost, WaveWork};
use serde_json::json;
use std::collections::HashMap;

impl Step<'_> {
    /// Starts all that can start; finds out whether the deployment is over, and whether it stands still.
    pub(super) fn run_progress(&mut self) {
        let graph = Graph::of(&self.d.steps);
        // Once a transition, so that no transition is without end.
        self.begin_due_runs();
        // Steps that do no work end at once, and steps before them in the list may hang on them.
        loop {
            let mut moved = false;
            for i in 0..self.d.steps.len() {
                moved |= self.step_progress(&graph, i);
            }
            if !moved {
                break;
            }
        }
        self.judge(&graph);
        if matches!(self.d.state, State::Running | State::Paused) {
            let moving = !self.d.works_in_flight().is_empty();
            // A pause by an operator shows at once, though a wave in flight still ends.
            self.d.state = if self.d.pause.is_some() || !moving { State::Paused } else { State::Running };
        }
    }

    /// Whether the step moved.
    fn step_progress(&mut self, graph: &Graph, i: usize) -> bool {
        let step = &self.d.steps[i];
        match step.state {
            StepState::Waiting if step.asks.is_some() => false,
            StepState::Waiting if step.tries.next_at.is_some() => self.try_again(i),
            StepState::Waiting | StepState::Skipped if !(step.state == StepState::Skipped && step.reached) => {
                let turn = graph.turn(&self.d, i);
                self.turn_came(graph, i, turn)
            }
            StepState::Running if matches!(step.kind, StepRunKind::Rollout(_)) => {
                self.rollout_progress(i);
                self.d.steps[i].state != StepState::Running
            }
            _ => false,
        }
    }

    fn turn_came(&mut self, graph: &Graph, i: usize, turn: Turn) -> bool {
        let may_start = self.d.may_start();
        let step = &mut self.d.steps[i];
        match turn {
            Turn::NotYet => return false,
            Turn::Dead => step.state = StepState::NotTaken,
            Turn::Skip => {
                step.state = StepState::Skipped;
                step.reached = true;
            }
            Turn::Blocked(why) => {
                step.state = StepState::Stopped;
                step.reason = Some(why);
            }
            Turn::Start if step.state == StepState::Skipped => step.reached = true,
            Turn::Start => {
                if let StepRunKind::Leave { scope } = &step.kind {
                    let scope = scope.clone();
                    step.reached = true;
                    match graph.verdict(&self.d, &scope) {
                        Ok(()) => self.run_ended_well(i, None),
                        Err(why) => self.step_failed(i, None, &why),
                    }
                    return true;
                }
                if !may_start {
                    return false;
                }
                self.start_step(i);
            }
        }
        true
    }

    fn start_step(&mut self, i: usize) {
        let step = &self.d.steps[i];
        let said = step.chosen.as_ref().is_some_and(|c| c.branch == "run");
        if let Some(condition) = step.condition.as_ref().filter(|_| !said) {
            match self.d.decides(step.scope(), condition) {
                Ok(true) => {}
                Ok(false) => {
                    let payload = json!({ "step": step.id, "condition": condition });
                    let step = &mut self.d.steps[i];
                    step.state = StepState::Skipped;
                    step.reached = true;
                    return self.event("step.skipped", Severity::Info, payload);
                }
                Err(why) => return self.ask(i, About::Condition, why),
            }
        }
        self.begin(i);
    }

    /// One run of a step whose condition holds.
    pub(super) fn begin(&mut self, i: usize) {
        let step = &mut self.d.steps[i];
        step.reached = true;
        step.reason = None;
        if let Some(r) = step.repeat.as_mut().filter(|_| !matches!(step.kind, StepRunKind::Leave { .. })) {
            r.runs += 1;
            r.next_at = None;
        }
        let step = &self.d.steps[i];
        match &step.kind {
            StepRunKind::Gateway(g) => match self.d.branch(step.scope(), &g.gateway) {
                Ok(taken) => self.go_on_to(i, taken, None),
                Err(why) => self.ask(i, About::Branch, why),
            },
            StepRunKind::Enter { scope } => {
                let scope = scope.clone();
                match self.d.enter_scope(&scope) {
                    Ok(()) => {
                        self.d.steps[i].state = StepState::Succeeded;
                        self.event("step.started", Severity::Info, json!({ "step": scope }));
                    }
                    Err(why) => self.ask(i, About::Inputs, why),
                }
            }
            StepRunKind::Leave { .. } => {}
            StepRunKind::Rollout(_) => match self.d.outputs_for(i) {
                Ok(_) => self.d.steps[i].state = StepState::Running,
                Err(why) => self.step_failed(i, None, &why),
            },
            StepRunKind::Central { .. } => match self.d.outputs_for(i) {
                Ok(outputs) => self.start_central(i, outputs),
                Err(why) => self.step_failed(i, None, &why),
            },
        }
    }

    /// A central step that failed, when its next try is due: the same run of it goes on, so nothing is decided anew.
    fn try_again(&mut self, i: usize) -> bool {
        if self.d.steps[i].tries.next_at.is_none_or(|at| at > self.now) || !self.d.may_start() {
            return false;
        }
        match self.d.outputs_for(i) {
            Ok(outputs) => self.start_central(i, outputs),
            Err(why) => self.step_failed(i, None, &why),
        }
        true
    }

    fn start_central(&mut self, i: usize, outputs: serde_json::Map<String, serde_json::Value>) {
        let id = (self.mint)();
        let step = &mut self.d.steps[i];
        step.outputs.clear();
        // What a person said was about an earlier attempt.
        (step.class, step.forced) = (None, None);
        step.tries.next_at = None;
        let StepRunKind::Central { attempt, work, reason, .. } = &mut step.kind else { return };
        *attempt += 1;
        *reason = None;
        *work = Some(id);
        step.state = StepState::Running;
        let spec = WorkSpec::Central(CentralWork { step: step.id.clone(), attempt: *attempt, outputs });
        let payload = json!({ "step": step.id, "attempt": *attempt });
        self.effects.push(Effect::StartWork { id, spec });
        self.event("step.started", Severity::Info, payload);
    }

    /// A gateway has gone on, by its expressions or a person's word.
    pub(super) fn go_on_to(&mut self, i: usize, taken: Vec<String>, by: Option<By>) {
        let step = &mut self.d.steps[i];
        step.state = StepState::Succeeded;
        let payload = json!({ "step": step.id, "taken": taken, "by": by.as_ref().map(|b| b.who.clone()) });
        if let StepRunKind::Gateway(g) = &mut step.kind {
            g.taken = Some(taken);
            g.chosen_by = by;
            g.reason = None;
        }
        self.event("step.branched", Severity::Info, payload);
    }

    /// An expression failed: a person has to decide, whatever failures lead to.
    pub(super) fn ask(&mut self, i: usize, about: About, why: String) {
        let step = &mut self.d.steps[i];
        if let StepRunKind::Gateway(g) = &mut step.kind {
            g.reason = Some(why.clone());
        }
        step.asks = Some(Ask { about, reason: why.clone() });
        let payload = json!({ "step": step.id, "about": about, "error": why, "reason": why, "branches": step.choices(),
            "verbs": ["choose", "abort", "rollback"] });
        self.event("deployment.needs_intervention", Severity::Alert, payload);
    }

    /// Walks a rollout's waves in order: each has to be done before the next starts.
    fn rollout_progress(&mut self, i: usize) {
        let now = self.now;
        let step = &self.d.steps[i];
        if step.asks.is_some() || step.repeat.as_ref().is_some_and(|r| r.next_at.is_some()) {
            return;
        }
        loop {
            let may_start = self.d.may_start();
            let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else { return };
            let Some(w) = r.waves.iter().position(|w| w.state != WaveState::Succeeded) else {
                return self.run_ended_well(i, None);
            };
            match r.waves[w].state {
                WaveState::Baking { until } if until <= now => r.waves[w].state = WaveState::Succeeded,
                WaveState::Waiting if may_start => self.start_wave(i, w),
                WaveState::Retrying { at } if at <= now && may_start => self.retry_hosts(i, w),
                WaveState::Probing { .. } if may_start && r.waves[w].probe.is_none() => self.start_probes(i, w),
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
        let repeats = self.d.steps[i].repeat.is_some() || self.d.is_repeated(i);
        // Measured when the step began; outputs of steps before it do not change meanwhile.
        let outputs = self.d.outputs_for(i).unwrap_or_default();
        self.d.steps[i].class = None;
        let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else { return };
        // What failed before (and was not ignored or excluded) has used up its part of the budget; what is retried has not.
        let borne = |w: &WaveRun| w.hosts.iter().filter(|h| h.state.is_failure()).count() as u32;
        let left = r.max_failures.saturating_sub(r.waves.iter().map(borne).sum());
        let left_here = r.waves[w].max_failures.map(|m| m.saturating_sub(borne(&r.waves[w])));
        let max_failures = left_here.map_or(left, |l| l.min(left));
        // With the budget overdrawn by others, what a person or the policy tries again runs, and nothing besides.
        let overdrawn = r.is_over_budget(w, |_| false);
        let (parallel, stagger) = (r.parallel, r.stagger);
        let wave = &mut r.waves[w];
        wave.keep_earlier();
        wave.probe = None;
        let again = repeats || wave.again;
        let mut hosts = Vec::new();
        for h in &mut wave.hosts {
            if h.state == HostState::Waiting || h.state == HostState::AutoStopped && !overdrawn {
                h.attempt += 1;
                h.state = HostState::Running;
                (h.failed_step, h.failed_id, h.class, h.exit_code) = (None, None, None, None);
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
            again,
            stagger,
            step: step_id,
            wave: w as u32,
            hosts,
            parallel,
            max_failures,
            outputs,
        });
        self.effects.push(Effect::StartWork { id, spec });
        self.event("wave.started", Severity::Info, payload);
    }

    pub(super) fn work_settled(&mut self, work: WorkId, result: WorkResult) -> Result<(), Refusal> {
        let unfit = || Refusal::NothingToDo("this result belongs to no open work of the deployment".into());
        let i = (0..self.d.steps.len()).find(|i| self.d.steps[*i].has_work(work)).ok_or_else(unfit)?;
        let StepRunKind::Rollout(r) = &self.d.steps[i].kind else {
            return match result {
                WorkResult::Central { succeeded, reason, output, class } => {
                    self.central_settled(i, succeeded, reason, &output, class)
                }
                WorkResult::Wave { .. } | WorkResult::Probe { .. } => Err(unfit()),
            };
        };
        match result {
            WorkResult::Wave { hosts } => {
                let w = r.waves.iter().position(|w| w.work == Some(work) || w.earlier.contains(&work));
                self.wave_settled(i, w.ok_or_else(unfit)?, work, &hosts)
            }
            WorkResult::Probe { verdict, probes, reason } => {
                let w = r.waves.iter().position(|w| w.probe_work() == Some(work)).ok_or_else(unfit)?;
                self.probes_settled(i, w, Looked { verdict, probes, reason })
            }
            WorkResult::Central { .. } => Err(unfit()),
        }
    }

    fn central_settled(
        &mut self,
        i: usize,
        succeeded: bool,
        why: Option<String>,
        output: &serde_json::Value,
        class: Option<FailureClass>,
    ) -> Result<(), Refusal> {
        let step = &mut self.d.steps[i];
        let StepRunKind::Central { reason, .. } = &mut step.kind else {
            return Err(Refusal::Invalid("not a central step".into()));
        };
        if step.state != StepState::Running {
            return Err(Refusal::NothingToDo("this work of the deployment is settled already".into()));
        }
        reason.clone_from(&why);
        if let serde_json::Value::Object(o) = output {
            step.outputs.clone_from(o);
        }
        if succeeded {
            self.run_ended_well(i, Some(output));
            return Ok(());
        }
        // Executors before there were classes told only that it had failed.
        let class = class.unwrap_or(FailureClass::Exit);
        step.class = Some(class);
        let payload = json!({ "step": step.id, "reason": why, "output": output, "class": class });
        self.event("step.failed", Severity::Info, payload);
        if self.retries_central(i, class, why.as_deref()) {
            return Ok(());
        }
        self.d.steps[i].state = StepState::Failed;
        if self.d.state != State::Aborting {
            let why = why.unwrap_or_else(|| "the step failed".into());
            self.step_failed(i, None, &why);
        }
        Ok(())
    }

    fn wave_settled(&mut self, i: usize, w: usize, work: WorkId, results: &[HostResult]) -> Result<(), Refusal> {
        let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else {
            return Err(Refusal::Invalid("not a rollout".into()));
        };
        let wave = &mut r.waves[w];
        let first = wave.state == WaveState::Running && wave.work == Some(work);
        let at: HashMap<&str, usize> = results.iter().enumerate().map(|(n, r)| (r.host.as_str(), n)).collect();
        let mut changed = false;
        let mut gave = Vec::new();
        for h in &mut wave.hosts {
            let Some(res) = at.get(h.host.as_str()).map(|n| &results[*n]).filter(|r| r.attempt == h.attempt) else {
                continue;
            };
            // A later settling may only say what became of a host that was unknown.
            if h.state == HostState::Running || h.state == HostState::Unknown {
                let before = h.state;
                h.take(res);
                changed |= before != h.state;
                if h.state == HostState::Succeeded {
                    gave.push(std::mem::take(&mut h.outputs));
                }
            }
        }
        if first {
            // An executor settles all hosts it was given; one it says nothing about is not known.
            for h in wave.hosts.iter_mut().filter(|h| h.state == HostState::Running) {
                h.state = HostState::Unknown;
                h.class = Some(FailureClass::Unknown);
                h.reason = Some("the executor's result does not mention this host".into());
            }
        } else if !changed {
            return Err(Refusal::NothingToDo("nothing new in this result".into()));
        }
        wave.forget_earlier();
        let was_failed = wave.state == WaveState::Failed;
        gave.iter().for_each(|g| self.d.steps[i].merge_outputs(g));
        // A failure that was borne stands: what an unknown host says later changes its state alone.
        let over = self.d.steps[i].state != StepState::Running && !first;
        if over || self.d.state.is_terminal() || self.d.state == State::Aborting {
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
        let StepRunKind::Rollout(r) = &self.d.steps[i].kind else { return };
        // What its hosts do now, or are said to have done, does not make its probes well.
        if r.waves[w].failed_by_probes() {
            return;
        }
        let again = r.waves[w].state == WaveState::Failed;
        if !again && self.retries_hosts(i, w) {
            return;
        }
        let step = self.d.steps[i].id.clone();
        let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else { return };
        let hosts = &r.waves[w].hosts;
        let stopped = hosts.iter().any(|h| h.state == HostState::AutoStopped);
        let failing = || hosts.iter().filter(|h| h.state.is_failure());
        let failed: Vec<String> = failing().map(|h| h.host.clone()).collect();
        let last = w + 1 == r.waves.len();
        if r.is_over_budget(w, |_| false) || stopped && !failed.is_empty() {
            let timeouts = !failed.is_empty() && failing().all(|h| h.class == Some(FailureClass::Timeout));
            let why = hosts.iter().find_map(|h| h.reason.clone()).unwrap_or_default();
            r.waves[w].state = WaveState::Failed;
            if !again {
                self.d.steps[i].class = timeouts.then_some(FailureClass::Timeout);
                self.event("wave.failed", Severity::Info, json!({ "step": step, "wave": w, "failed": failed }));
                self.step_failed(i, Some((w, failed)), &why);
            }
            return;
        }
        if stopped {
            // What had stopped the rest is mended: go on with it.
            r.waves[w].state = WaveState::Waiting;
            return;
        }
        r.waves[w].again = false;
        let confirm = match r.confirm {
            Confirm::None => false,
            Confirm::First => w == 0 && !last,
            Confirm::Each => !last,
        };
        let payload = json!({ "step": step, "wave": w, "failed": failed });
        if confirm {
            r.waves[w].state = WaveState::Confirming;
        } else {
            self.bake(i, w);
        }
        self.event("wave.succeeded", Severity::Info, payload.clone());
        if confirm {
            self.event("deployment.awaiting_confirmation", Severity::Action, payload);
        }
    }

    /// A step failed: do what its failure leads to.
    pub(super) fn step_failed(&mut self, i: usize, wave: Option<(usize, Vec<String>)>, why: &str) {
        let policy = self.d.on_failure_of(i);
        let of_wave = wave.is_some();
        let (w, hosts) = wave.map_or((None, vec![]), |(w, h)| (Some(w), h));
        let no_hosts = hosts.is_empty();
        let step = &mut self.d.steps[i];
        let payload = json!({ "step": step.id, "wave": w, "failed": hosts, "reason": why });
        // A failed wave leaves its rollout running: its hosts can be retried one by one.
        if !of_wave {
            step.state = StepState::Failed;
            match &mut step.kind {
                StepRunKind::Central { reason, .. } => drop(reason.get_or_insert_with(|| why.into())),
                _ => step.reason = Some(why.into()),
            }
        }
        match policy {
            StepFailure::Pause => {
                let mut payload = payload;
                payload["verbs"] = match of_wave && no_hosts {
                    // Its probes failed: no host did.
                    true => json!(["retry", "ignore", "abort", "rollback"]),
                    false => json!(["retry", "skip", "ignore", "exclude", "abort", "rollback"]),
                };
                self.event("deployment.needs_intervention", Severity::Alert, payload);
            }
            StepFailure::Continue => {
                step.state = StepState::Failed;
                step.reason = Some(why.into());
                if let StepRunKind::Rollout(r) = &mut step.kind {
                    r.stop("the step failed, and the deployment goes on without it");
                }
                self.event("step.failure_borne", Severity::Notice, payload);
            }
            // `judge` ends it when nothing is in flight any more.
            StepFailure::Stop | StepFailure::Rollback => {
                self.event("deployment.stopping", Severity::Info, payload);
                self.end_probes();
            }
        }
    }

    /// Whether the deployment is over.
    fn judge(&mut self, graph: &Graph) {
        if !self.d.works_in_flight().is_empty() {
            return;
        }
        let failed: Vec<usize> = (0..self.d.steps.len()).filter(|i| self.d.has_failed(*i)).collect();
        let policy = |i: &usize| self.d.on_failure_of(*i);
        if let Some(i) = failed.iter().find(|i| matches!(policy(i), StepFailure::Stop | StepFailure::Rollback)) {
            let back = failed.iter().any(|i| policy(i) == StepFailure::Rollback);
            let reason = format!("step {} failed", self.d.steps[*i].id);
            return self.end_failed(&reason, back);
        }
        let over = |i: usize| self.d.has_ended(i);
        if !failed.is_empty() || !(0..self.d.steps.len()).all(over) {
            return;
        }
        if let Err(reason) = graph.verdict(&self.d, "") {
            return self.end_failed(&reason, self.d.on_failure == OnFailure::Rollback);
        }
        // Success is said only when it is known of every host.
        if self.d.unknown_hosts().is_empty() {
            self.end(State::Succeeded, "windlass", "");
            self.effects.push(Effect::RecordGood);
            if let Some(of) = self.d.rollback.as_ref().map(|r| r.of) {
                self.effects.push(Effect::TellRolledBack { of });
            }
        }
    }

    fn end_failed(&mut self, reason: &str, back: bool) {
        self.end(State::Failed, "windlass", reason);
        if back && self.d.kind != ReleaseKind::Rollback {
            let (mode, by) = (self.d.automatic.unwrap_or(RollbackMode::Normal), "windlass".to_owned());
            self.effects.push(Effect::RequestRollback { mode, id: None, by });
        }
    }
}

impl StepRun {
    /// The work is one of this step whose result would be listened to.
    fn has_work(&self, work: WorkId) -> bool {
        match &self.kind {
            StepRunKind::Central { work: w, .. } => *w == Some(work),
            StepRunKind::Rollout(r) => r.waves.iter().any(|w| {
                w.work == Some(work) || w.probe.as_ref().is_some_and(|p| p.work == work) || w.earlier.contains(&work)
            }),
            StepRunKind::Gateway(_) | StepRunKind::Enter { .. } | StepRunKind::Leave { .. } => false,
        }
    }
}

impl WaveRun {
    /// Before its hosts run again: what a host that went silent did is still told under the work it was given by.
    pub(super) fn keep_earlier(&mut self) {
        let silent = self.hosts.iter().any(|h| h.state == HostState::Unknown);
        match self.work.take() {
            _ if !silent => self.earlier.clear(),
            Some(w) if !self.earlier.contains(&w) => self.earlier.push(w),
            _ => {}
        }
    }

    /// Nobody is silent any more.
    fn forget_earlier(&mut self) {
        if self.hosts.iter().all(|h| h.state != HostState::Unknown) {
            self.earlier.clear();
        }
    }
}
