//! What comes after a wave whose hosts ended well: a person's word, a bake time, probes. The order is always that: who is
//! to confirm a wave looks at it first, then it bakes while its probes are looked at. The last wave of a rollout has nothing to
//! wait for unless there are probes: with them, the release is judged before it counts as a success.
//!
//! A wave whose probes say no has failed as one over its budget has, but its hosts stay as they are. A retry of it looks again,
//! `ignore` goes on.

use super::{transition::Step, *};
use crate::{
    flow::Inconclusive,
    work::{ProbeResult, ProbeWork, Verdict},
};
use serde_json::json;
use std::time::Duration;

/// How a look at probes came out.
pub(super) struct Looked {
    pub verdict: Verdict,
    pub probes: Vec<ProbeResult>,
    pub reason: Option<String>,
}

impl Looked {
    /// Why the wave is not simply well, for people.
    fn why(&self) -> String {
        let of = |v: Verdict| self.probes.iter().find(|p| p.verdict == v);
        let said = |p: &ProbeResult| p.reason.clone().or(self.reason.clone()).unwrap_or_else(|| p.value.to_string());
        let overall = self.reason.clone().unwrap_or_else(|| "no reason was given".into());
        match self.verdict {
            Verdict::Success => String::new(),
            Verdict::Fail => match of(Verdict::Fail) {
                Some(p) => format!("probe {} failed: {}", p.probe, said(p)),
                None => format!("the probes failed: {overall}"),
            },
            Verdict::Inconclusive => match of(Verdict::Inconclusive) {
                Some(p) => format!("probe {} is inconclusive: {}", p.probe, said(p)),
                None => format!("the probes are inconclusive: {overall}"),
            },
        }
    }
}

impl Step<'_> {
    /// Nobody has to look at the wave (any more): it bakes, is looked at by probes, or is done.
    pub(super) fn bake(&mut self, i: usize, w: usize) {
        let now = self.now;
        let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else { return };
        let last = w + 1 == r.waves.len();
        let (bake_s, probes) = (r.bake_s, r.probes.is_some());
        let wave = &mut r.waves[w];
        // Probes that could not tell are what the person has just answered for.
        let judged = wave.probe.is_some();
        let well = wave.hosts.iter().any(|h| h.state == HostState::Succeeded);
        let until = now + Duration::from_secs(bake_s.into());
        wave.state = match probes {
            _ if bake_s == 0 || judged => WaveState::Succeeded,
            true if well => WaveState::Probing { until },
            _ if !last => WaveState::Baking { until },
            _ => WaveState::Succeeded,
        };
    }

    /// Hands the probes of a wave to an executor.
    pub(super) fn start_probes(&mut self, i: usize, w: usize) {
        let id = (self.mint)();
        let outputs = self.d.outputs_for(i).unwrap_or_default();
        let step = self.d.steps[i].id.clone();
        let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else { return };
        let until = self.now + Duration::from_secs(r.bake_s.into());
        let wave = &mut r.waves[w];
        wave.probes_made += 1;
        let attempt = wave.probes_made;
        wave.state = WaveState::Probing { until };
        wave.probe = Some(ProbeRun { work: id, attempt, until, verdict: None, probes: Vec::new(), reason: None });
        let well = wave.hosts.iter().filter(|h| h.state == HostState::Succeeded);
        let hosts = well.map(|h| h.host.clone()).collect();
        let payload = json!({ "step": step, "wave": w, "attempt": attempt, "until": until });
        let spec = WorkSpec::Probe(ProbeWork { step, wave: w as u32, attempt, hosts, until, outputs });
        self.effects.push(Effect::StartWork { id, spec });
        self.event("wave.probing", Severity::Info, payload);
    }

    /// The probes of a wave that failed by them, once more. They start when something may start.
    pub(super) fn probe_again(&mut self, i: usize, w: usize) {
        let now = self.now;
        let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else { return };
        let wave = &mut r.waves[w];
        wave.probe = None;
        wave.state = WaveState::Probing { until: now + Duration::from_secs(r.bake_s.into()) };
    }

    /// A person goes on regardless of what the probes said.
    pub(super) fn pass_probes(&mut self, i: usize, w: usize) {
        if let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind {
            r.waves[w].state = WaveState::Succeeded;
        }
    }

    pub(super) fn probes_settled(&mut self, i: usize, w: usize, looked: Looked) -> Result<(), Refusal> {
        let over = self.d.state == State::Aborting || self.d.is_stopping();
        let step = self.d.steps[i].id.clone();
        let why = looked.why();
        let StepRunKind::Rollout(r) = &mut self.d.steps[i].kind else {
            return Err(Refusal::Invalid("not a rollout".into()));
        };
        let unclear = r.probes.unwrap_or_default();
        let wave = &mut r.waves[w];
        let Some(probe) = wave.probe.as_mut().filter(|p| p.verdict.is_none()) else {
            return Err(Refusal::NothingToDo("nothing new in this result".into()));
        };
        let verdict = looked.verdict;
        let said = Some(why.clone()).filter(|w| !w.is_empty());
        (probe.verdict, probe.reason) = (Some(verdict), said.clone().or(looked.reason));
        let payload = json!({ "step": step, "wave": w, "attempt": probe.attempt, "verdict": verdict,
            "probes": looked.probes, "reason": said });
        probe.probes = looked.probes;
        let fails = verdict == Verdict::Fail || verdict == Verdict::Inconclusive && unclear == Inconclusive::Fail;
        if fails {
            wave.state = WaveState::Failed;
            self.event("wave.probe_failed", Severity::Info, payload);
            // What ends the deployment has been said already.
            if !over {
                self.d.steps[i].class = None;
                self.step_failed(i, Some((w, Vec::new())), &why);
            }
            return Ok(());
        }
        // An abort cut the look short: there is nobody to ask.
        let asks = verdict == Verdict::Inconclusive && unclear == Inconclusive::Ask && !over;
        wave.state = if asks { WaveState::Confirming } else { WaveState::Succeeded };
        self.event("wave.probed", Severity::Info, payload.clone());
        if asks {
            self.event("deployment.awaiting_confirmation", Severity::Action, payload);
        }
        Ok(())
    }

    /// A failure ends the deployment: what its probes would say does not matter any more.
    pub(super) fn end_probes(&mut self) {
        let ids: Vec<WorkId> = self.d.probe_works().collect();
        self.effects.extend(ids.into_iter().map(Effect::AbortWork));
    }
}

impl WaveRun {
    /// An executor looks at its probes.
    pub(super) fn probe_work(&self) -> Option<WorkId> {
        let looks = matches!(self.state, WaveState::Probing { .. });
        self.probe.as_ref().filter(|p| looks && p.verdict.is_none()).map(|p| p.work)
    }
}

impl Deployment {
    pub(super) fn probe_works(&self) -> impl Iterator<Item = WorkId> {
        self.rollouts().flat_map(|(_, r)| &r.waves).filter_map(WaveRun::probe_work)
    }
}
