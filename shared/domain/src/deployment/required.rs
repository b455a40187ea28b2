//! What must run: a required step is left out by no verb, whichever way it comes.

use super::{intervene::Named, *};

impl Deployment {
    /// Refuses where going on would leave a required step undone: of these hosts, or (`only` empty) of all that failed. `past`
    /// leaves out the one step that failed, otherwise all that the host had yet to do.
    pub(super) fn required_stay(&self, only: &[String], past: bool) -> Result<(), Refusal> {
        let named = Named::of(only);
        let mut undone = Vec::new();
        for (i, s) in self.steps.iter().enumerate().filter(|(i, _)| self.has_failed(*i)) {
            let whole = s.state == StepState::Failed;
            match &s.kind {
                StepRunKind::Rollout(r) if !whole => {
                    for wave in r.waves.iter().filter(|w| w.state == WaveState::Failed) {
                        if wave.failed_by_probes() && only.is_empty() && !past && s.required {
                            undone.push(format!("step {} is required, and its probes failed", s.id));
                        }
                        let meant = |h: &&HostRun| named.has(&h.host);
                        let failed = |h: &&HostRun| h.state.is_failure() && h.state != HostState::Unknown;
                        for h in wave.hosts.iter().filter(meant).filter(failed) {
                            let step = r.undone_by(s, h, past);
                            undone.extend(step.map(|step| format!("step {step} is required on {}", h.host)));
                        }
                    }
                }
                _ if whole && only.is_empty() => {
                    undone.extend(self.required_step(i).map(|step| format!("step {step} is required")));
                }
                _ => {}
            }
        }
        if undone.is_empty() {
            return Ok(());
        }
        let (n, shown) = (undone.len(), undone.into_iter().take(5).collect::<Vec<_>>().join(", "));
        let more = if n > 5 { format!(" and {} more", n - 5) } else { String::new() };
        Err(Refusal::Required(format!("{shown}{more}: retry it, exclude the hosts, or abort")))
    }

    /// The required step that would be left undone if this step, or the subflow that it leads into or out of, were left out.
    pub(super) fn required_step(&self, i: usize) -> Option<String> {
        let step = &self.steps[i];
        let scope = match &step.kind {
            StepRunKind::Enter { scope } | StepRunKind::Leave { scope } => scope,
            _ => return step.required.then(|| step.id.clone()),
        };
        let well = |s: &StepRun| match s.state {
            StepState::Succeeded | StepState::NotTaken => true,
            // What the plan left out, or its condition, was never to run.
            StepState::Skipped => true,
            StepState::Waiting | StepState::Running | StepState::Failed | StepState::Stopped => false,
        };
        let out = self.steps.iter().find(|s| s.required && (s.id == *scope || s.id == step.id) && !well(s));
        let within = || self.within(scope).into_iter().map(|w| &self.steps[w]).filter(|s| !well(s));
        let on_hosts = |s: &StepRun| match &s.kind {
            StepRunKind::Rollout(r) => r.required.first().map(|id| format!("{}/{id}", s.id)),
            _ => None,
        };
        let required = within().find(|s| s.required).map(|s| s.id.clone());
        out.map(|s| s.id.clone()).or(required).or_else(|| within().find_map(on_hosts))
    }
}

impl RolloutRun {
    /// The required step of the host that would be left undone if its failed step were passed over, or (not `past`) the
    /// host counted as well.
    pub(super) fn undone_by(&self, step: &StepRun, h: &HostRun, past: bool) -> Option<String> {
        if step.required {
            return Some(step.id.clone());
        }
        match &h.failed_id {
            Some(id) => self.required.contains(id).then(|| id.clone()),
            // Passed over is only a step that is known to have failed.
            None if past => None,
            None => self.required.first().cloned(),
        }
    }
}
