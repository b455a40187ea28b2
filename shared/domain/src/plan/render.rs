//! A rollout's steps for one host, from the plan alone: what is offered to an agent, and hashed into the plan's digest.

use super::{Plan, PlanError, PlanHost, PlanRollout, PlanStepKind, graph::scope_of};
use crate::{
    expression::{Context, Expression, ExpressionError, Template},
    flow::{
        actions::{self, Action},
        form,
    },
    task::{TaskSpec, TaskStep},
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The steps of a rollout, compiled once for all its hosts.
#[derive(Debug)]
pub(super) struct Compiled {
    step: String,
    segment: u32,
    context: Context,
    steps: Vec<CompiledStep>,
    reads: Reads,
}

/// What its expressions read of a host; what none reads is not made for each of thousands.
#[derive(Debug, Clone, Copy, Default)]
struct Reads {
    host: bool,
    files: bool,
    values: bool,
}

impl Reads {
    fn of(steps: &[CompiledStep]) -> Reads {
        let mut out = Reads::default();
        let templates = steps.iter().flat_map(|s| s.computed.iter().flat_map(|(_, t)| t.expressions()));
        for e in templates.chain(steps.iter().filter_map(|s| s.condition.as_ref())) {
            out.host |= e.reads("host");
            out.values |= e.reads("values");
            out.files |= e.fields().iter().any(|(root, field)| root == "host" && field == "files");
        }
        out
    }
}

#[derive(Debug)]
struct CompiledStep {
    /// With the parameters that are the same on every host.
    fixed: TaskStep,
    condition: Option<Expression>,
    computed: Vec<(String, Template)>,
    action: &'static Action,
}

impl Compiled {
    pub(super) fn new(plan: &Plan, step: &str) -> Result<Compiled, PlanError> {
        let r = rollout(plan, step)?;
        Compiled::of(plan, step, super::segment::MAIN, &r.steps, &r.conditions)
    }

    /// The probes that run on hosts; `None` if there are none.
    pub(super) fn probes(plan: &Plan, step: &str, r: &PlanRollout) -> Result<Option<Compiled>, PlanError> {
        let on_hosts = r.probes.as_ref().map(|p| &p.on_hosts).filter(|s| !s.is_empty());
        on_hosts.map(|s| Compiled::of(plan, step, super::segment::PROBES, s, &BTreeMap::new())).transpose()
    }

    fn of(
        plan: &Plan,
        step: &str,
        segment: u32,
        written: &[TaskStep],
        conditions: &BTreeMap<String, String>,
    ) -> Result<Compiled, PlanError> {
        let wrong = |id: &str| {
            let step = format!("{step}.{id}");
            move |error| PlanError::Expression { step, host: None, error }
        };
        let mut steps = Vec::with_capacity(written.len());
        for s in written {
            let unknown = || PlanError::UnknownAction { step: s.id.clone(), action: s.action.clone() };
            let action = actions::find(&s.action).ok_or_else(unknown)?;
            let condition = conditions.get(&s.id).map(|c| Expression::compile(c)).transpose().map_err(wrong(&s.id))?;
            let mut fixed = Map::new();
            let mut computed = Vec::new();
            for (key, value) in &s.with {
                let template = Template::compile(value).map_err(wrong(&s.id))?;
                match template.fixed() {
                    Some(v) => {
                        fixed.insert(key.clone(), v.clone());
                    }
                    None => computed.push((key.clone(), template)),
                }
            }
            steps.push(CompiledStep { fixed: TaskStep { with: fixed, ..s.clone() }, condition, computed, action });
        }
        let reads = Reads::of(&steps);
        let own = steps.iter().map(|s| s.fixed.id.clone());
        let context = context_in(plan, scope_of(step)).with_own_steps(own);
        Ok(Compiled { step: step.into(), segment, context, steps, reads })
    }

    /// Is there anything that may differ from host to host?
    pub(super) fn varies(&self) -> bool {
        self.steps.iter().any(|s| s.condition.is_some() || !s.computed.is_empty())
    }

    fn context_on(&self, plan: &Plan, host: &PlanHost) -> Context {
        let mut context = self.context.clone();
        if self.reads.host {
            context = context.with("host", host_value(host, self.reads.files));
        }
        if self.reads.values && !host.values.is_empty() {
            let mut values = plan.context.get("values").and_then(Value::as_object).cloned().unwrap_or_default();
            let inner = host.values.iter().chain(&plan.release_values);
            values.extend(inner.map(|(k, v)| (k.clone(), v.clone())));
            context = context.with("values", Value::Object(values));
        }
        context
    }

    pub(super) fn spec(&self, plan: &Plan, host: &PlanHost) -> Result<TaskSpec, PlanError> {
        let context = if self.varies() { self.context_on(plan, host) } else { Context::default() };
        let mut steps = Vec::with_capacity(self.steps.len());
        for s in &self.steps {
            let place = || (format!("{}.{}", self.step, s.fixed.id), Some(host.name.clone()));
            let wrong = |error: ExpressionError| {
                let (step, host) = place();
                PlanError::Expression { step, host, error }
            };
            if let Some(c) = &s.condition
                && !c.eval_bool(&context).map_err(wrong)?
            {
                continue;
            }
            let mut step = s.fixed.clone();
            for (key, template) in &s.computed {
                let value = template.render(&context).map_err(wrong)?;
                match s.action.parameter(key) {
                    None => step.with.insert(key.clone(), value),
                    Some(p) => {
                        let resolved = p.resolve(&value).map_err(|problem| {
                            let (step, host) = place();
                            PlanError::Parameter { step, host, parameter: key.clone(), problem }
                        })?;
                        step.with.insert(p.resolved_name(), resolved)
                    }
                };
            }
            super::references::places(&place().0, Some(&host.name), s.action, &step.with)?;
            steps.push(step);
        }
        if steps.is_empty() {
            return Err(PlanError::NothingToDo { step: self.step.clone(), host: host.name.clone() });
        }
        Ok(TaskSpec {
            project: plan.project.clone(),
            environment: plan.environment.clone(),
            version: plan.artifact.shipped().to_owned(),
            host: host.name.clone(),
            step: self.step.clone(),
            segment: self.segment,
            steps,
        })
    }
}

pub(super) fn rollout<'p>(plan: &'p Plan, step: &str) -> Result<&'p PlanRollout, PlanError> {
    let found = plan.steps.iter().find(|s| s.id == step).map(|s| &s.kind);
    match found {
        Some(PlanStepKind::Rollout(r)) => Ok(r),
        _ => Err(PlanError::UnknownStep(step.into())),
    }
}

/// Everything but `host`, as the steps of a subflow (or, for `""`, those outside of any) read it.
pub(super) fn context_in(plan: &Plan, scope: &str) -> Context {
    let inputs = plan.scopes.get(scope).map_or(&plan.inputs, |s| &s.inputs);
    let inputs: Map<String, Value> = inputs.iter().map(|(k, v)| (k.clone(), form::seen(v))).collect();
    let base = Context::default().with("inputs", Value::Object(inputs)).in_scope(scope);
    plan.context.iter().fold(base, |c, (root, value)| c.with(root, value.clone()))
}

pub(super) fn host_value(h: &PlanHost, files: bool) -> Value {
    let mut out = json!({ "name": h.name, "address": h.address, "labels": h.labels, "values": h.values });
    if files {
        out["files"] = json!(h.files);
    }
    out
}

impl Plan {
    /// How many steps each host of a rollout has, by its index: those whose conditions are true there.
    pub fn steps_by_host(&self, step: &str) -> Result<BTreeMap<u32, u32>, PlanError> {
        let compiled = Compiled::new(self, step)?;
        let mut out = BTreeMap::new();
        for h in rollout(self, step)?.waves.iter().flatten() {
            let unknown = || PlanError::UnknownHost { step: step.into(), host: *h };
            let context = compiled.context_on(self, self.hosts.get(*h as usize).ok_or_else(unknown)?);
            let mut count = 0;
            for s in &compiled.steps {
                let wrong = |error| PlanError::Expression { step: format!("{step}.{}", s.fixed.id), host: None, error };
                count += u32::from(s.condition.as_ref().map_or(Ok(true), |c| c.eval_bool(&context)).map_err(wrong)?);
            }
            out.insert(*h, count);
        }
        Ok(out)
    }

    /// What an agent is asked to do for one host of a rollout. For many hosts use a [`super::PlanTree`].
    pub fn task_spec(&self, step: &str, host: u32) -> Result<TaskSpec, PlanError> {
        self.task_spec_at(step, super::segment::MAIN, host)
    }
}
