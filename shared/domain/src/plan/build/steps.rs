//! The steps of a plan: first their places in the graph, with what can be decided beforehand, then what each will do.

use super::{
    super::{PlanError, PlanStep, PlanStepKind, graph, render},
    Planner,
    rollout::without_hosts,
    wrong,
};
use crate::{
    expression::Expression,
    flow::{Flow, StepKind},
};
use serde_json::Map;
use std::collections::{BTreeMap, BTreeSet};

impl Planner<'_> {
    /// What is decided beforehand comes first: what it leaves out is not rendered, and nothing of it can ever be offered.
    pub(super) fn steps(&self, flow: &Flow) -> Result<Vec<PlanStep>, PlanError> {
        let scopes: BTreeSet<&str> = flow.steps.iter().map(|s| graph::scope_of(&s.id)).collect();
        let within: BTreeMap<&str, Planner<'_>> = scopes
            .into_iter()
            .map(|scope| (scope, Planner { context: render::context_in(self.plan, scope), scope, ..self.clone() }))
            .collect();
        let here = |s: &crate::flow::Step| &within[graph::scope_of(&s.id)];
        let mut steps = flow.steps.iter().map(|s| here(s).sketch(s)).collect::<Result<Vec<_>, _>>()?;
        graph::leave_out(&mut steps);
        for (s, planned) in flow.steps.iter().zip(&mut steps) {
            here(s).complete(s, planned)?;
        }
        Ok(steps)
    }

    /// Its place in the graph, with the conditions decided that read no steps.
    fn sketch(&self, s: &crate::flow::Step) -> Result<PlanStep, PlanError> {
        let mut condition = s.condition.clone();
        let mut skipped = false;
        if let Some(now) = s.condition.as_deref().map(|c| self.decide(&s.id, c)).transpose()?.flatten() {
            (skipped, condition) = (!now, None);
        }
        let kind = match &s.kind {
            StepKind::Central(c) => PlanStepKind::Central { action: c.uses.clone(), with: Map::new(), timeout_s: 0 },
            StepKind::Rollout(r) => PlanStepKind::Rollout(without_hosts(r)),
            StepKind::Enter { scope } => PlanStepKind::Enter { scope: scope.clone() },
            StepKind::Leave { scope } => PlanStepKind::Leave { scope: scope.clone() },
            StepKind::Subflow(f) => {
                return Err(PlanError::NotLinked { step: s.id.clone(), flow: f.flow.clone() });
            }
            StepKind::Gateway(g) => {
                let mut g = g.clone();
                for b in &mut g.branches {
                    if let Some(c) = &b.condition
                        && let Some(now) = self.decide(&s.id, c)?
                    {
                        b.condition = Some(now.to_string());
                    }
                }
                PlanStepKind::Gateway(g)
            }
        };
        Ok(PlanStep {
            join: Some(s.join),
            skipped,
            condition,
            on_failure: s.on_failure,
            repeat: s.repeat.clone(),
            required: s.required,
            retry: s.retry.clone(),
            on_timeout: s.on_timeout,
            phase: s.phase,
            ..PlanStep::new(s.id.clone(), s.needs.clone(), kind)
        })
    }

    /// The value of a condition; `None` when it has to wait for steps.
    fn decide(&self, id: &str, condition: &str) -> Result<Option<bool>, PlanError> {
        let e = Expression::compile(condition).map_err(wrong(id))?;
        self.no_host_values(id, &[&e])?;
        if graph::is_late(self.plan, self.scope, &e) {
            return Ok(None);
        }
        e.eval_bool(&self.context).map(Some).map_err(wrong(id))
    }

    fn complete(&self, s: &crate::flow::Step, planned: &mut PlanStep) -> Result<(), PlanError> {
        let skipped = planned.skipped;
        match &s.kind {
            StepKind::Central(call) => {
                let (action, with, timeout_s) = if call.uses.starts_with(crate::plugin::PREFIX) {
                    let with = if skipped { None } else { Some(self.rendered(&s.id, &call.with)?) };
                    super::super::plugins::step(&s.id, call, self.plugins, with)?
                } else {
                    let with = if skipped { Map::new() } else { self.central(&s.id, call)? };
                    (call.uses.clone(), with, call.timeout_s)
                };
                planned.kind = PlanStepKind::Central { action, with, timeout_s };
            }
            StepKind::Rollout(r) if !skipped => {
                let (rollout, note) = self.rollout(&s.id, r)?;
                planned.note = match rollout.waves.is_empty() {
                    true => {
                        let on = r.on.as_deref().unwrap_or_default();
                        Some(format!("no host of the deployment fits `on: {on}`"))
                    }
                    false => note,
                };
                planned.skipped = rollout.steps.is_empty() || rollout.waves.is_empty();
                if !planned.skipped {
                    planned.kind = PlanStepKind::Rollout(rollout);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
