//! Retry: what failed is made ready to go on, as far as a person means it. Tries that a policy makes are in `retrying.rs`, taking
//! up again after the end in `reopen.rs`.

use super::{
    graph::Graph,
    intervene::{Left, Named},
    transition::Step,
    *,
};
use serde_json::json;

/// What a retry goes for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scope {
    /// Empty: all that failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Only this step, or what failed within this subflow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole_wave: bool,
}

impl Scope {
    pub(super) fn has_step(&self, id: &str) -> bool {
        let within = |s: &String| id == s || id.strip_prefix(s.as_str()).is_some_and(|rest| rest.starts_with('/'));
        self.step.as_ref().is_none_or(within)
    }

    pub(super) fn named(&self) -> Named<'_> {
        Named::of(&self.hosts)
    }
}

/// What a retry found.
struct Parts<'a> {
    named: Named<'a>,
    touched: Vec<String>,
    left: Left,
}

impl Step<'_> {
    /// Failed hosts and steps again, at the step that failed; hosts that were stopped with them run too.
    pub(super) fn retry(&mut self, by: &str, scope: &Scope) -> Result<(), Refusal> {
        self.step_in(by)?;
        self.check_scope(scope)?;
        let touched = self.retry_failed(scope)?;
        let payload = json!({ "by": by, "verb": "retry", "on": touched, "whole_wave": scope.whole_wave });
        self.event("deployment.intervened", Severity::Info, payload);
        Ok(())
    }

    pub(super) fn check_scope(&self, scope: &Scope) -> Result<(), Refusal> {
        self.hosts_exist(&scope.hosts)?;
        if let Some(step) = &scope.step {
            self.index_of(step)?;
        }
        if scope.whole_wave && !scope.hosts.is_empty() {
            let why = "a whole wave has all its hosts: leave the hosts away, or the whole wave";
            return Err(Refusal::Invalid(why.into()));
        }
        Ok(())
    }

    /// Makes what failed within the scope ready to go on; the answer is what that was.
    pub(super) fn retry_failed(&mut self, scope: &Scope) -> Result<Vec<String>, Refusal> {
        let mut parts = Parts { named: scope.named(), touched: Vec::new(), left: Left::default() };
        for i in 0..self.d.steps.len() {
            if !self.d.has_failed(i) || !scope.has_step(&self.d.steps[i].id) {
                continue;
            }
            if self.d.steps[i].state == StepState::Failed {
                if scope.hosts.is_empty() {
                    self.mend(i, scope);
                    parts.touched.push(self.d.steps[i].id.clone());
                }
                continue;
            }
            let StepRunKind::Rollout(r) = &self.d.steps[i].kind else { continue };
            for w in 0..r.waves.len() {
                self.retry_wave(i, w, scope, &mut parts)?;
            }
        }
        let Parts { touched, left, .. } = parts;
        if touched.is_empty() { Err(left.refusal("retry", "nothing has failed there")) } else { Ok(touched) }
    }

    fn retry_wave(&mut self, i: usize, w: usize, scope: &Scope, parts: &mut Parts<'_>) -> Result<(), Refusal> {
        let step = &mut self.d.steps[i];
        let StepRunKind::Rollout(r) = &mut step.kind else { return Ok(()) };
        let wave = &mut r.waves[w];
        if wave.state != WaveState::Failed {
            return Ok(());
        }
        if scope.whole_wave {
            let busy = |h: &&HostRun| matches!(h.state, HostState::Unknown | HostState::Running);
            if let Some(h) = wave.hosts.iter().find(busy) {
                let why = format!("{} may still be running: wait for it, or override it first", h.host);
                return Err(Refusal::Unsettled(format!("wave {} cannot run again as a whole: {why}", w + 1)));
            }
            wave.again = true;
            wave.state = WaveState::Waiting;
            for h in wave.hosts.iter_mut().filter(|h| h.state != HostState::Excluded) {
                (h.failed_step, h.reason) = (None, None);
                h.outputs.clear();
                h.goes_on_at(0);
                parts.touched.push(h.host.clone());
            }
            return Ok(());
        }
        // Hosts that failed within the budget run again only where they are named: it was not for them that the wave failed.
        if wave.failed_by_probes() && scope.hosts.is_empty() {
            parts.touched.push(format!("{}#{w}", step.id));
            self.probe_again(i, w);
            return Ok(());
        }
        let mut any = false;
        for h in wave.hosts.iter_mut().filter(|h| parts.named.has(&h.host)) {
            match h.state {
                HostState::Failed | HostState::HandStopped | HostState::NotStarted => h.goes_on_at(h.resume_at()),
                HostState::Unknown => {
                    parts.left.unsettled.push(format!("{} is unknown: override it first, or wait for it", h.host));
                    continue;
                }
                _ => continue,
            }
            any = true;
            parts.touched.push(h.host.clone());
        }
        if any {
            wave.state = WaveState::Waiting;
        }
        Ok(())
    }

    /// A step that failed as a whole, once more. A subflow goes on within where it stood still, a rollout on its failed hosts,
    /// but both begin anew when it was their repeats that were used up.
    pub(super) fn mend(&mut self, i: usize, scope: &Scope) {
        let graph = Graph::of(&self.d.steps);
        let used_up = self.d.is_used_up(&graph, i);
        let s = &mut self.d.steps[i];
        s.forget_failure();
        if used_up && let Some(r) = &mut s.repeat {
            r.runs = 0;
        }
        s.state = StepState::Waiting;
        if let StepRunKind::Rollout(r) = &mut s.kind
            && !used_up
            && r.has_begun()
        {
            r.take_up(scope, true);
            s.state = StepState::Running;
            return;
        }
        let leaves = matches!(s.kind, StepRunKind::Leave { .. }).then(|| self.d.within(&self.d.steps[i].id));
        if used_up || leaves.is_none() {
            return self.reset_run(i);
        }
        let mut within = leaves.unwrap_or_default();
        // What `any` or `done` went on from has had its effect: it is not run again.
        within.retain(|w| self.d.steps[*w].state != StepState::Failed || !graph.is_joined_over(&self.d, *w));
        within.into_iter().for_each(|w| self.d.steps[w].resume(scope));
    }
}

impl Deployment {
    /// Its last run ended well, and its expression was still false: not a run that failed, but all runs.
    pub(super) fn is_used_up(&self, graph: &Graph, i: usize) -> bool {
        let step = &self.steps[i];
        let last = step.repeat.as_ref().is_some_and(|r| r.runs >= r.max);
        last && match &step.kind {
            StepRunKind::Leave { scope } => {
                self.members(scope).all(|m| self.has_ended(m)) && graph.verdict(self, scope).is_ok()
            }
            StepRunKind::Rollout(r) => r.waves.iter().all(|w| w.state == WaveState::Succeeded),
            StepRunKind::Central { .. } | StepRunKind::Gateway(_) | StepRunKind::Enter { .. } => true,
        }
    }
}
