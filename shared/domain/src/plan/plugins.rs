//! Steps that are plugins: their values are held against the frozen definition's schema while the plan is made,
//! so that what does not fit is told before anybody approves it.

use super::{PlanError, PlanStep, PlanStepKind};
use crate::{
    flow::Call,
    plugin::{Plugin, check},
    reference::{self, Reference},
};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Action, parameters and timeout of the planned step; `with` is rendered, and absent when the step is skipped. What a secret or an output will stand for is not known yet; the
/// executor checks again with the values in place.
pub(super) fn step(
    id: &str,
    call: &Call,
    plugins: &BTreeMap<String, Plugin>,
    with: Option<Map<String, Value>>,
) -> Result<(String, Map<String, Value>, u32), PlanError> {
    let missing = || PlanError::NoPlugin { step: id.into(), uses: call.uses.clone() };
    let plugin = plugins.get(&call.uses).ok_or_else(missing)?;
    let timeout_s = if call.timeout_s == 0 { plugin.timeout_s } else { call.timeout_s };
    let Some(with) = with else { return Ok((plugin.action(), Map::new(), timeout_s)) };
    let unfit = |faults| PlanError::PluginInputs { step: id.into(), plugin: plugin.key(), faults };
    for (key, value) in with.iter().filter(|(k, _)| !plugin.secrets.contains(k)) {
        let secret = reference::scan(value).into_iter().find_map(|r| match r {
            Reference::Secret { name } => Some(name),
            Reference::Output { .. } => None,
        });
        if let Some(name) = secret {
            let text = format!(
                "`{key}` takes no secret, but holds `secrets.{name}`: use an input that the plugin lists under `secrets`"
            );
            return Err(unfit(text));
        }
    }
    let with = Value::Object(with);
    let open = |v: &Value| v.is_string() && !reference::scan(v).is_empty();
    let faults = check(&plugin.inputs, &with, &open);
    if !faults.is_empty() {
        let shown =
            |f: &crate::plugin::Fault| if f.at.is_empty() { f.text.clone() } else { format!("{}: {}", f.at, f.text) };
        return Err(unfit(faults.iter().map(shown).collect::<Vec<_>>().join("; ")));
    }
    let Value::Object(with) = with else { return Err(missing()) };
    Ok((plugin.action(), with, timeout_s))
}

/// The definitions that the plan's steps call.
pub(super) fn used(steps: &[PlanStep], plugins: &BTreeMap<String, Plugin>) -> BTreeMap<String, Plugin> {
    let called = |p: &&Plugin| {
        let action = p.action();
        steps.iter().any(|s| matches!(&s.kind, PlanStepKind::Central { action: a, .. } if *a == action))
    };
    plugins.values().filter(called).map(|p| (p.key(), p.clone())).collect()
}
