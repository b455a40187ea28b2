//! What happens while a deployment runs: steps become ready, waves start, results come back, budgets are judged.

use super::{
    graph::{Graph, Turn},
    transition::Step,
    *,
};
use crate::flow::StepFailure;
use crate::work::{CentralWork, WaveHost, WaveWork};
use serde_json::json;

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

    fn start_central(&mut self, i: usize, outputs: serde_json::Map<String, serde_json::Value>) {
        let id = (self.mint)();
        let step = &mut self.d.steps[i];
        step.outputs.clear();
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
        let again = self.d.steps[i].repeat.is_some() || self.d.is_repeated(i);
        // Measured when the step began; outputs of steps before it do not change meanwhile.
        let outputs = self.d.outputs_for(i).unwrap_or_default();
        let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else { return };
        // What failed before (and was not ignored or excluded) has used up its part of the budget; what is retried has not.
        let borne = r.waves.iter().flat_map(|w| &w.hosts).filter(|h| h.state.is_failure()).count() as u32;
        let (parallel, max_failures) = (r.parallel, r.max_failures.saturating_sub(borne));
        let stagger = r.stagger;
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
        for i in 0..self.d.steps.len() {
            let state = self.d.steps[i].state;
            match (&mut self.d.steps[i].kind, &result) {
                (
                    StepRunKind::Central { work: w, reason, .. },
                    WorkResult::Central { succeeded, reason: why, output, .. },
                ) if *w == Some(work) => {
                    if state != StepState::Running {
                        return Err(unfit());
                    }
                    reason.clone_from(why);
                    if let serde_json::Value::Object(o) = output {
                        self.d.steps[i].outputs.clone_from(o);
                    }
                    if *succeeded {
                        self.run_ended_well(i, Some(output));
                    } else {
                        let payload = json!({ "step": self.d.steps[i].id, "reason": why, "output": output });
                        self.event("step.failed", Severity::Info, payload);
                        self.d.steps[i].state = StepState::Failed;
                        if self.d.state != State::Aborting {
                            let why = why.clone().unwrap_or_else(|| "the step failed".into());
                            self.step_failed(i, None, &why);
                        }
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
        let mut gave = Vec::new();
        for res in results {
            for h in wave.hosts.iter_mut().filter(|h| h.host == res.host && h.attempt == res.attempt) {
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
                self.step_failed(i, Some((w, failed)), &why);
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

    /// A step failed: do what its failure leads to.
    pub(super) fn step_failed(&mut self, i: usize, wave: Option<(usize, Vec<String>)>, why: &str) {
        let policy = self.d.on_failure_of(i);
        let of_wave = wave.is_some();
        let (w, hosts) = wave.map_or((None, vec![]), |(w, h)| (Some(w), h));
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
                payload["verbs"] = json!(["retry", "skip", "ignore", "exclude", "abort", "rollback"]);
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
            StepFailure::Stop | StepFailure::Rollback => self.event("deployment.stopping", Severity::Info, payload),
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
            let (mode, by) = (RollbackMode::Normal, "windlass".to_owned());
            self.effects.push(Effect::RequestRollback { mode, id: None, by });
        }
    }
}
