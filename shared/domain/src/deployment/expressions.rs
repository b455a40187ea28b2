//! What is decided while a deployment runs: conditions, branches, ends of repeats, and the values of subflows. An
//! expression of a subflow reads that subflow's `inputs` and `steps`; the other roots are the same everywhere.

use super::*;
use crate::expression::{Context, Expression, Template};
use crate::flow::{Gateway, GatewayMode};
use crate::reference::{self, Reference};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// In [`Deployment::context`]: the subflows, by the id of their step. Each has `inputs` (with references),
/// `outputs` (templates), and `values`: the inputs as they are since it was entered.
pub(super) const SCOPES: &str = "scopes";
/// Largest sum of the outputs that go along with a work, in bytes of JSON.
const MAX_OUTPUTS: usize = 256 * 1024;

impl Deployment {
    pub(super) fn decides(&self, scope: &str, source: &str) -> Result<bool, String> {
        let e = Expression::compile(source).map_err(|e| e.to_string())?;
        e.eval_bool(&self.readable(scope, &[&e])).map_err(|e| e.to_string())
    }

    fn rendered(&self, scope: &str, value: &Value) -> Result<Value, String> {
        let t = Template::compile(value).map_err(|e| e.to_string())?;
        t.render(&self.readable(scope, &t.expressions())).map_err(|e| e.to_string())
    }

    /// The context of these expressions: of the steps, only those they name.
    fn readable(&self, scope: &str, expressions: &[&Expression]) -> Context {
        let mut c = Context::default();
        for (root, value) in self.context.iter().filter(|(k, _)| *k != SCOPES) {
            c = c.with(root, value.clone());
        }
        if !scope.is_empty() {
            let values = self.context.get(SCOPES).map(|s| s[scope]["values"].clone());
            c = c.with("inputs", values.filter(Value::is_object).unwrap_or_else(|| json!({})));
        }
        if !expressions.iter().any(|e| e.reads("steps")) {
            return c;
        }
        let named: BTreeSet<&str> = expressions
            .iter()
            .flat_map(|e| e.fields())
            .filter_map(|(root, field)| (root == "steps").then_some(field.as_str()))
            .collect();
        let mut steps = Map::new();
        for s in self.steps.iter().filter(|s| s.scope() == scope && !matches!(s.kind, StepRunKind::Enter { .. })) {
            let name = s.id.rsplit_once('/').map_or(s.id.as_str(), |(_, name)| name);
            if named.contains(name) {
                steps.insert(name.into(), json!({ "outputs": s.outputs }));
            }
        }
        c.with("steps", Value::Object(steps))
    }

    /// Where a gateway goes.
    pub(super) fn branch(&self, scope: &str, g: &Gateway) -> Result<Vec<String>, String> {
        let mut taken: Vec<String> = Vec::new();
        let mut any = false;
        for b in &g.branches {
            let goes = match &b.condition {
                Some(c) if g.mode != GatewayMode::Parallel => {
                    self.decides(scope, c).map_err(|e| format!("branch {}: {e}", b.name))?
                }
                _ => true,
            };
            if goes {
                any = true;
                taken.extend(b.to.iter().cloned());
                if g.mode == GatewayMode::Exclusive {
                    break;
                }
            }
        }
        if !any {
            taken.extend(g.default.iter().cloned());
        }
        Ok(taken)
    }

    /// Fills in the inputs of a subflow as it is entered.
    pub(super) fn enter_scope(&mut self, scope: &str) -> Result<(), String> {
        let Some(Value::Object(inputs)) = self.context.get(SCOPES).map(|s| s[scope]["inputs"].clone()) else {
            return Ok(());
        };
        let mut lookup = |r: &Reference| match r {
            Reference::Output { step, path } => {
                let step = self.steps.iter().find(|s| s.id == *step)?;
                path.split_first().and_then(|(key, rest)| reference::at(step.outputs.get(key)?, rest)).cloned()
            }
            // Nothing here knows secrets; what reads one carries the reference on.
            Reference::Secret { .. } => Some(Value::String(r.marker())),
        };
        let mut values = Map::new();
        for (name, value) in inputs {
            let value = reference::fill(&value, &mut lookup).map_err(|e| format!("input {name}: {e}"))?;
            values.insert(name, value);
        }
        self.context[SCOPES][scope]["values"] = Value::Object(values);
        Ok(())
    }

    /// The outputs of a subflow as it is left. One that cannot be computed, because a step it reads was not taken or gave
    /// nothing, is left out; who reads it then fails, with a person to decide.
    pub(super) fn scope_outputs(&self, scope: &str) -> Map<String, Value> {
        let templates = self.context.get(SCOPES).map(|s| s[scope]["outputs"].clone());
        let Some(Value::Object(templates)) = templates else { return Map::new() };
        templates.into_iter().filter_map(|(k, t)| Some((k, self.rendered(scope, &t).ok()?))).collect()
    }

    /// What goes along with a work of this step: the outputs that its parameters refer to.
    pub(super) fn outputs_for(&self, i: usize) -> Result<Map<String, Value>, String> {
        let reads = &self.steps[i].reads;
        let of = |s: &StepRun| (s.id.clone(), Value::Object(s.outputs.clone()));
        let out: Map<String, Value> =
            self.steps.iter().filter(|s| reads.contains(&s.id) && !s.outputs.is_empty()).map(of).collect();
        let size = serde_json::to_vec(&out).map_or(0, |t| t.len());
        if size > MAX_OUTPUTS {
            return Err(format!(
                "the outputs it refers to are {size} bytes long, more than {MAX_OUTPUTS}: let the steps put less out"
            ));
        }
        Ok(out)
    }
}

impl StepRun {
    /// Adds what a host gave that succeeded. Of a host step's values those stay that every host which ran it gave alike.
    pub(super) fn merge_outputs(&mut self, given: &Map<String, Value>) {
        for (id, value) in given {
            match (self.outputs.get_mut(id), value) {
                (None, _) => {
                    self.outputs.insert(id.clone(), value.clone());
                }
                (Some(Value::Object(have)), Value::Object(new)) => have.retain(|k, v| new.get(k) == Some(v)),
                (Some(have), new) if have != new => *have = json!({}),
                _ => {}
            }
        }
    }
}
