//! What a rollback takes back besides hosts: the plugin steps of the deployment it is of, as far as the plugins can.
//!
//! Whether such a step ended well does not matter, as it does not for hosts: one that failed may have done half of its work, and
//! `undo` does no harm where there is nothing to take back. The last call goes first. What ran after a rollout whose hosts are
//! taken back is undone before them and the rest behind them; in an emergency the hosts go before everything.

use super::{Plan, PlanStep, PlanStepKind};
use crate::{
    deployment::{Deployment, RolloutRun},
    flow::Phase,
    ids::{DeploymentId, WorkId},
    plugin::{self, Plugin, Verb},
    reference::{self, Reference},
    release::RollbackMode,
    work::{CentralWork, Work, WorkSpec},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The call that a step takes back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Undo {
    /// The deployment whose step it is.
    pub deployment: DeploymentId,
    pub step: String,
    /// Of the step's last run; it counts from 1.
    pub attempt: u32,
    /// What every request of that run had as `call`.
    pub call: WorkId,
    /// What the run gave, masked.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub outputs: Map<String, Value>,
}

/// Steps of a rollback besides its rollout, in the order they go.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Undoing {
    pub before: Vec<PlanStep>,
    pub after: Vec<PlanStep>,
}

/// What the id of such a step begins with.
const ID: &str = "undo-";

impl Undoing {
    /// Everything of this deployment that can be taken back. `from`: the first phase that is taken back, as for hosts; `works`:
    /// those of the deployment; `plans`: the plans they were made of, by digest.
    pub fn of(
        d: &Deployment,
        from: Option<Phase>,
        mode: RollbackMode,
        works: &[Work],
        plans: &BTreeMap<String, Plan>,
    ) -> Undoing {
        let Some(plan) = plans.get(&d.plan_digest) else { return Undoing::default() };
        let calls = last_calls(works);
        let (mut out, order) = (Undoing::default(), order(&plan.steps));
        let behind = behind_hosts(d, from, plan, &order);
        for step in order.iter().rev().filter_map(|i| plan.steps.get(*i)) {
            let run = d.steps.iter().find(|s| s.id == step.id);
            let Some(run) = run.filter(|s| d.is_taken_back(s, from)) else { continue };
            let Some((work, call)) = calls.get(step.id.as_str()) else { continue };
            // As it was called, though the deployment may have got other inputs since.
            let Some(made_of) = plans.get(&work.plan_digest) else { continue };
            let of = Undo {
                deployment: d.id,
                step: step.id.clone(),
                attempt: call.attempt,
                call: work.id,
                outputs: run.outputs.clone(),
            };
            let Some(step) = undo(made_of, of, &call.outputs) else { continue };
            let first = mode == RollbackMode::Normal && behind.contains(of_step(&step));
            let step = out.with_new_id(step);
            if first { &mut out.before } else { &mut out.after }.push(step);
        }
        out
    }

    /// `a/b` of a subflow and a step `a.b` beside it would have one id.
    fn with_new_id(&self, step: PlanStep) -> PlanStep {
        let taken = |id: &str| self.before.iter().chain(&self.after).any(|s| s.id == id);
        let numbered = (2_u32..).map(|n| format!("{}-{n}", step.id));
        let id = std::iter::once(step.id.clone()).chain(numbered).find(|id| !taken(id));
        PlanStep { id: id.unwrap_or_default(), ..step }
    }

    /// The undo steps of a rollback's plan.
    pub fn in_plan(plan: &Plan) -> Undoing {
        let at = plan.steps.iter().position(|s| matches!(s.kind, PlanStepKind::Rollout(_))).unwrap_or(0);
        let (before, after) = plan.steps.split_at(at);
        let undo = |s: &[PlanStep]| s.iter().filter(|s| s.undo.is_some()).cloned().collect();
        Undoing { before: undo(before), after: undo(after) }
    }

    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }

    /// One after the other, with the rollback's rollout in its place.
    pub(super) fn around(self, rollout: PlanStep) -> Vec<PlanStep> {
        let mut steps: Vec<PlanStep> = self.before;
        steps.push(rollout);
        steps.extend(self.after);
        for i in 0..steps.len() {
            steps[i].needs = i.checked_sub(1).map(|before| steps[before].id.clone()).into_iter().collect();
        }
        steps
    }
}

fn of_step(step: &PlanStep) -> &str {
    step.undo.as_ref().map(|u| u.step.as_str()).unwrap_or_default()
}

/// The last central work of each step.
fn last_calls(works: &[Work]) -> BTreeMap<&str, (&Work, &CentralWork)> {
    let mut out: BTreeMap<&str, (&Work, &CentralWork)> = BTreeMap::new();
    for work in works {
        if let WorkSpec::Central(c) = &work.spec
            && out.get(c.step.as_str()).is_none_or(|(_, last)| last.attempt < c.attempt)
        {
            out.insert(&c.step, (work, c));
        }
    }
    out
}

/// The planned undo of a step; none where it is no plugin, or one that cannot.
fn undo(plan: &Plan, of: Undo, outputs: &Map<String, Value>) -> Option<PlanStep> {
    let PlanStepKind::Central { action, with, timeout_s } = &plan.steps.iter().find(|s| s.id == of.step)?.kind else {
        return None;
    };
    let called: &Plugin = plan.plugins.get(action.strip_prefix(plugin::PREFIX)?)?;
    if !called.has(Verb::Undo) {
        return None;
    }
    // Steps of another deployment cannot be referred to, so what they gave then is put in; secrets stay names.
    let mut lookup = |r: &Reference| match r {
        Reference::Output { step, path } => reference::output(outputs, step, path).cloned(),
        secret @ Reference::Secret { .. } => Some(Value::String(secret.marker())),
    };
    let with = reference::fill_map(with, &mut lookup).unwrap_or_else(|_| with.clone());
    let kind = PlanStepKind::Central { action: action.clone(), with, timeout_s: *timeout_s };
    let note = format!("undo: takes back step `{}` (attempt {}) of deployment {}", of.step, of.attempt, of.deployment);
    // A `/` would put it into a subflow, and the rollback has none.
    let id = format!("{ID}{}", of.step.replace('/', "."));
    Some(PlanStep { note: Some(note), undo: Some(of), ..PlanStep::new(id, Vec::new(), kind) })
}

/// Indices of the steps, each behind all it needs, else as they are written.
fn order(steps: &[PlanStep]) -> Vec<usize> {
    let at: BTreeMap<&str, usize> = steps.iter().enumerate().map(|(i, s)| (s.id.as_str(), i)).collect();
    let (mut out, mut done) = (Vec::new(), BTreeSet::new());
    // A graph without circles: each round places a step at least, or nothing is left to place.
    while out.len() < steps.len() {
        let placed = out.len();
        for (i, s) in steps.iter().enumerate() {
            let ready = s.needs.iter().filter_map(|n| at.get(n.as_str())).all(|n| done.contains(n));
            if ready && done.insert(i) {
                out.push(i);
            }
        }
        if out.len() == placed {
            break;
        }
    }
    out
}

/// Ids of the steps that ran behind a rollout whose hosts are taken back.
fn behind_hosts<'p>(d: &Deployment, from: Option<Phase>, plan: &'p Plan, order: &[usize]) -> BTreeSet<&'p str> {
    let touched = |r: &RolloutRun| r.waves.iter().flat_map(|w| &w.hosts).any(|h| h.state.is_touched());
    let back = |id: &str| d.rollouts().any(|(s, r)| s.id == id && d.is_taken_back(s, from) && touched(r));
    let mut behind = BTreeSet::new();
    for s in order.iter().filter_map(|i| plan.steps.get(*i)) {
        if s.needs.iter().any(|n| behind.contains(n.as_str()) || back(n)) {
            behind.insert(s.id.as_str());
        }
    }
    behind
}
