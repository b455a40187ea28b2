//! The graph in a plan: what is never reached is found before anybody approves it, subflows get their inputs, and each
//! step says whose outputs it refers to.

use super::{Plan, PlanError, PlanScope, PlanStep, PlanStepKind, render};
use crate::{
    expression::{Expression, Template},
    flow::{Flow, Gateway, GatewayMode, form, link::ENTER},
    reference::{self, Reference},
};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The subflow a step of this id stands in; empty at the top. For the way into a subflow that is the subflow around it.
pub(crate) fn scope_of(id: &str) -> &str {
    let outer = |id: &'_ str| id.rfind('/').map_or(0, |at| at);
    match id.strip_suffix(ENTER).and_then(|s| s.strip_suffix('/')) {
        Some(scope) => &id[..outer(scope)],
        None => &id[..outer(id)],
    }
}

/// The inputs of every subflow, outer ones first: what they are set to, over their defaults.
pub(super) fn scopes(plan: &mut Plan, flow: &Flow) -> Result<(), PlanError> {
    // By name, so that a subflow comes after the one it stands in.
    for (id, scope) in &flow.scopes {
        let outer = render::context_in(plan, scope_of(id));
        let wrong = |error| PlanError::Expression { step: id.clone(), host: None, error };
        let mut inputs = BTreeMap::new();
        for (name, input) in &scope.inputs {
            let unfit = |problem: String| {
                let (step, parameter) = (id.clone(), name.clone());
                PlanError::Parameter { step, host: None, parameter, problem }
            };
            let given = match scope.with.get(name) {
                Some(v) => Some(Template::compile(v).and_then(|t| t.render(&outer)).map_err(wrong)?),
                None => None,
            };
            let value = match given {
                // What it will be is known when the step's turn comes.
                Some(v) if !reference::scan(&v).is_empty() => v,
                // A file as expressions see it fitted when it was given.
                Some(v) if v.is_object() => v,
                v => input
                    .value(v.as_ref())
                    .map_err(|problem| unfit(problem.unwrap_or_else(|| "has no default and is not given".into())))?,
            };
            inputs.insert(name.clone(), value);
        }
        let (flow, flow_revision) = (scope.flow.clone(), scope.revision);
        plan.scopes.insert(id.clone(), PlanScope { flow, flow_revision, inputs, outputs: scope.outputs.clone() });
    }
    Ok(())
}

/// Inputs of a subflow whose values are not known before it runs.
fn late(plan: &Plan, scope: &str) -> BTreeSet<String> {
    let open = |v: &Value| reference::scan(v).iter().any(|r| matches!(r, Reference::Output { .. }));
    let inputs = plan.scopes.get(scope).into_iter().flat_map(|s| &s.inputs);
    inputs.filter(|(_, v)| open(v)).map(|(n, _)| n.clone()).collect()
}

/// Must the expression wait until steps have run?
pub(super) fn is_late(plan: &Plan, scope: &str, e: &Expression) -> bool {
    let late = late(plan, scope);
    e.reads("steps") || e.fields().iter().any(|(root, field)| root == "inputs" && late.contains(field))
}

/// Marks what can never be reached: steps on branches that are not taken for certain, and steps of skipped subflows.
pub(super) fn leave_out(steps: &mut [PlanStep]) {
    for (i, dead) in dead(steps).into_iter().enumerate() {
        steps[i].skipped |= dead;
        if dead {
            steps[i].condition = None;
            // Within a subflow the subflow's own line says it.
            if scope_of(&steps[i].id).is_empty() {
                steps[i].note = Some("no branch leads to it".into());
            }
        }
    }
    let skipped: BTreeSet<String> = steps
        .iter()
        .filter(|s| s.skipped)
        .filter_map(|s| match &s.kind {
            PlanStepKind::Enter { scope } => Some(scope.clone()),
            _ => None,
        })
        .collect();
    let out = |s: &&mut PlanStep| matches!(&s.kind, PlanStepKind::Leave { scope } if skipped.contains(scope));
    steps.iter_mut().filter(out).for_each(|s| s.skipped = true);
}

/// Ids of the steps of a plan that are not taken, whatever happens.
pub(crate) fn not_taken(plan: &Plan) -> BTreeSet<&str> {
    plan.steps.iter().zip(dead(&plan.steps)).filter(|(_, dead)| *dead).map(|(s, _)| s.id.as_str()).collect()
}

/// Which steps hang on dead branches alone.
fn dead(steps: &[PlanStep]) -> Vec<bool> {
    let at: BTreeMap<&str, usize> = steps.iter().enumerate().map(|(i, s)| (s.id.as_str(), i)).collect();
    let mut dead = vec![false; steps.len()];
    loop {
        let mut moved = false;
        for (i, s) in steps.iter().enumerate().filter(|(_, s)| !s.needs.is_empty()) {
            let now = match &s.kind {
                // The way out shares the fate of the way in; a subflow that is skipped is a success.
                PlanStepKind::Leave { scope } => at.get(format!("{scope}/{ENTER}").as_str()).is_some_and(|e| dead[*e]),
                _ => s
                    .needs
                    .iter()
                    .all(|n| at.get(n.as_str()).is_some_and(|n| dead[*n] || is_dead_end(&steps[*n], &s.id))),
            };
            moved |= now && !dead[i];
            dead[i] |= now;
        }
        if !moved {
            return dead;
        }
    }
}

/// Whether `from`, though reached, never goes on to `to`.
fn is_dead_end(from: &PlanStep, to: &str) -> bool {
    match &from.kind {
        PlanStepKind::Enter { .. } => from.skipped,
        PlanStepKind::Gateway(g) => g.leads_to(to) && (from.skipped || !possible(g).contains(to)),
        _ => false,
    }
}

/// The steps a gateway may still go to, by the conditions that are decided.
fn possible(g: &Gateway) -> BTreeSet<&str> {
    let mut out = BTreeSet::new();
    let mut sure = false;
    for b in &g.branches {
        match b.condition.as_deref().filter(|_| g.mode != GatewayMode::Parallel) {
            Some("false") => continue,
            Some("true") | None => sure = true,
            Some(_) => {}
        }
        out.extend(b.to.iter().map(String::as_str));
        if sure && g.mode == GatewayMode::Exclusive {
            return out;
        }
    }
    if !sure {
        out.extend(g.default.iter().map(String::as_str));
    }
    out
}

/// Ids of the steps whose outputs the parameters of a step refer to.
pub(crate) fn reads(plan: &Plan, step: &PlanStep) -> Vec<String> {
    let scope = scope_of(&step.id);
    let mut found = Vec::new();
    match &step.kind {
        PlanStepKind::Central { with, .. } => found.extend(with.values().flat_map(reference::scan)),
        PlanStepKind::Rollout(r) => {
            let prefix = if scope.is_empty() { String::new() } else { format!("{scope}/") };
            let probes = r.probes.as_ref();
            found
                .extend(probes.iter().flat_map(|p| &p.central).flat_map(|p| p.with.values()).flat_map(reference::scan));
            let on_hosts = probes.into_iter().flat_map(|p| &p.on_hosts);
            for value in r.steps.iter().chain(on_hosts).flat_map(|s| s.with.values()) {
                found.extend(reference::scan(value));
                // What is rendered host by host is still a template.
                let Ok(t) = Template::compile(value) else { continue };
                found.extend(t.references().into_iter().filter_map(|r| match r {
                    Reference::Output { step, path } => {
                        Some(Reference::Output { step: format!("{prefix}{step}"), path: path.clone() })
                    }
                    Reference::Secret { .. } => None,
                }));
                let inputs = plan.scopes.get(scope).map(|s| &s.inputs);
                let named = t.expressions().into_iter().flat_map(|e| e.fields().clone());
                let named = named.filter(|(root, _)| root == "inputs").filter_map(|(_, n)| inputs?.get(&n));
                found.extend(named.flat_map(reference::scan));
            }
        }
        PlanStepKind::Gateway(_) | PlanStepKind::Enter { .. } | PlanStepKind::Leave { .. } => {}
    }
    let named: BTreeSet<String> = found
        .into_iter()
        .filter_map(|r| match r {
            Reference::Output { step, .. } => Some(step),
            Reference::Secret { .. } => None,
        })
        .collect();
    // A step of the rollout itself is nobody else's.
    named.into_iter().filter(|n| plan.steps.iter().any(|s| s.id == *n)).collect()
}

/// What a deployment keeps for expressions that are decided while it runs; empty when there are none.
pub(crate) fn run_context(plan: &Plan) -> Map<String, Value> {
    let open = |s: &PlanStep| {
        let gateway = matches!(&s.kind, PlanStepKind::Gateway(g) if g.branches.iter().any(is_open));
        s.condition.is_some() || s.repeat.is_some() || gateway
    };
    if plan.scopes.is_empty() && !plan.steps.iter().any(open) {
        return Map::new();
    }
    let seen = |inputs: &BTreeMap<String, Value>| -> Map<String, Value> {
        inputs.iter().map(|(k, v)| (k.clone(), form::seen(v))).collect()
    };
    let mut out = plan.context.clone();
    out.insert("inputs".into(), Value::Object(seen(&plan.inputs)));
    if !plan.scopes.is_empty() {
        let scope =
            |(id, s): (&String, &PlanScope)| (id.clone(), json!({ "inputs": seen(&s.inputs), "outputs": s.outputs }));
        out.insert("scopes".into(), Value::Object(plan.scopes.iter().map(scope).collect()));
    }
    out
}

fn is_open(b: &crate::flow::Branch) -> bool {
    b.condition.as_deref().is_some_and(|c| !matches!(c, "true" | "false"))
}
