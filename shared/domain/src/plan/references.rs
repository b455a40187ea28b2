//! References in a plan: nothing that people wrote may hold the characters of markers, and a secret may only stand where it
//! is not seen: never in a command line, an address, a path or a message.

use super::{Plan, PlanError};
use crate::{
    flow::{Flow, actions::Action},
    reference,
};
use serde_json::{Map, Value};

/// Refuses marker characters in everything a plan is made of, so that every marker in it comes from a reference.
pub(super) fn forbid(plan: &Plan, flow: &Flow) -> Result<(), PlanError> {
    let written = |place: &str, value: &Value| reference::forbid(place, value).map_err(PlanError::Marker);
    written("the flow", &serde_json::to_value(flow).map_err(|_| PlanError::Json)?)?;
    for (name, value) in &plan.inputs {
        written(&format!("inputs.{name}"), value)?;
    }
    for (root, value) in &plan.context {
        written(root, value)?;
    }
    for (name, value) in &plan.release_values {
        written(&format!("values.{name}"), value)?;
    }
    let text = |place: String, text: &str| match reference::is_marked(text) {
        true => written(&place, &Value::String(text.to_owned())),
        false => Ok(()),
    };
    for h in &plan.hosts {
        let host = format!("host {}", h.name);
        text(format!("{host}: address"), &h.address)?;
        h.labels.iter().try_for_each(|(k, v)| {
            text(format!("{host}: labels"), k).and_then(|()| text(format!("{host}: labels.{k}"), v))
        })?;
        h.values.iter().try_for_each(|(k, v)| written(&format!("{host}: values.{k}"), v))?;
        h.files.iter().try_for_each(|(k, v)| text(format!("{host}: files.{k}"), v))?;
    }
    Ok(())
}

/// Refuses secrets where they would be seen.
pub(super) fn places(
    step: &str,
    host: Option<&str>,
    action: &Action,
    with: &Map<String, Value>,
) -> Result<(), PlanError> {
    for (key, value) in with {
        let takes = action.parameters.iter().any(|p| p.secret && (p.name == key || p.resolved_name() == *key));
        // What the planner adds by itself (the environment of scripts) goes to the same place as the step's own.
        if let Some(secret) = reference::secrets(value).into_iter().next().filter(|_| !takes) {
            let others: Vec<&str> = action.parameters.iter().filter(|p| p.secret).map(|p| p.name).collect();
            let remedy = match others.as_slice() {
                [] => format!("`{}` takes no secrets at all", action.name),
                some => format!("give it in {}", some.join(" or ")),
            };
            let problem = format!("would show the secret `{secret}` to others on the machine or in logs: {remedy}");
            let (step, host, parameter) = (step.to_owned(), host.map(str::to_owned), key.clone());
            return Err(PlanError::Parameter { step, host, parameter, problem });
        }
    }
    Ok(())
}
