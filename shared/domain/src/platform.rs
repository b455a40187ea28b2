//! What hosts can do that PowerShell answers on: the part of the actions that is built for them. Everything else is refused
//! when the plan is made, and again before anything is accepted there.

use crate::{
    plan::{Plan, PlanError, PlanStepKind, segment},
    reference,
    task::TaskStep,
};
use serde_json::Value;
use std::collections::BTreeSet;

/// The actions that such a host has, each with the parameters it knows.
const ACTIONS: [(&str, &[&str]); 2] = [
    ("script", &["run", "interpreter", "env", "args", "cwd"]),
    ("http.check", &["url", "status", "expect_body", "within_s", "interval_s"]),
];
/// What may run a script there.
const INTERPRETERS: [&str; 4] = ["powershell.exe", "powershell", "pwsh.exe", "pwsh"];

/// A plan asks something of a host that it cannot do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("step `{step}` on host `{host}`, which is reached through PowerShell: {problem}")]
    Step { step: String, host: String, problem: String },
    #[error(
        "step `{step}`: load balancer `{lb}` is changed on host `{host}`, which is reached through PowerShell and cannot do \
         that; use one of kind haproxy or http"
    )]
    LoadBalancer { step: String, lb: String, host: String },
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Whether all that the plan asks of these hosts can be done there; `powershell` holds their names.
pub fn check(plan: &Plan, powershell: &BTreeSet<&str>) -> Result<(), Unfit> {
    if powershell.is_empty() {
        return Ok(());
    }
    for step in plan.steps.iter().filter(|s| !s.skipped) {
        let PlanStepKind::Rollout(r) = &step.kind else { continue };
        for t in &r.traffic {
            if let Some(host) = segment::agent_host(&t.kind).filter(|h| powershell.contains(h)) {
                return Err(Unfit::LoadBalancer { step: step.id.clone(), lb: t.name.clone(), host: host.into() });
            }
        }
        let probed = r.probes.as_ref().is_some_and(|p| !p.on_hosts.is_empty());
        for index in r.waves.iter().flatten() {
            let Some(host) = plan.hosts.get(*index as usize).filter(|h| powershell.contains(h.name.as_str())) else {
                continue;
            };
            for segment in std::iter::once(segment::MAIN).chain(probed.then_some(segment::PROBES)) {
                let spec = plan.task_spec_at(&step.id, segment, *index)?;
                if let Some((id, problem)) = spec.steps.iter().find_map(|s| Some((s.id.clone(), problem(s)?))) {
                    return Err(Unfit::Step { step: format!("{}.{id}", step.id), host: host.name.clone(), problem });
                }
            }
        }
    }
    Ok(())
}

/// Why a host with PowerShell cannot do this step; the text says what to write instead.
pub fn problem(step: &TaskStep) -> Option<String> {
    let Some((_, known)) = ACTIONS.iter().find(|(a, _)| *a == step.action) else {
        let names: Vec<&str> = ACTIONS.iter().map(|(a, _)| *a).collect();
        return Some(format!(
            "`{}` is not built for it; it has {}: write what is to be done as a script",
            step.action,
            names.join(" and ")
        ));
    };
    for (key, value) in step.with.iter().filter(|(_, v)| !v.is_null()) {
        if !known.contains(&key.as_str()) {
            return Some(format!("`{key}` is not built for it; values reach a script in `env`"));
        }
        if !reference::scan(value).is_empty() {
            return Some(format!("`{key}` holds a secret or the output of a step, which are not built for it"));
        }
        if holds_nul(value) {
            return Some(format!("`{key}` holds the character NUL, which no text may hold"));
        }
    }
    if step.action != "script" {
        return None;
    }
    let interpreter = step.with.get("interpreter").and_then(Value::as_str).unwrap_or_default();
    if !INTERPRETERS.contains(&interpreter) {
        return Some(format!(
            "a script's interpreter is {interpreter:?}; write `interpreter: powershell.exe` (or pwsh.exe)"
        ));
    }
    if step.with.get("args").and_then(Value::as_array).is_some_and(|a| !a.is_empty()) {
        return Some("`args` are not built for it; values reach a script in `env`".into());
    }
    let env = step.with.get("env").and_then(Value::as_object);
    let bad = |k: &&String| k.is_empty() || k.contains('=');
    env.and_then(|e| e.keys().find(bad)).map(|k| format!("`env` holds {k:?}, which is not the name of a variable"))
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(s) => s.contains('\0'),
        Value::Array(a) => a.iter().any(holds_nul),
        Value::Object(m) => m.iter().any(|(k, v)| k.contains('\0') || holds_nul(v)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Reference;
    use serde_json::json;

    fn step(action: &str, with: Value) -> TaskStep {
        let Value::Object(with) = with else { panic!("a map") };
        TaskStep { id: "s".into(), action: action.into(), with, always: false, timeout_s: 60 }
    }

    #[test]
    fn what_is_built_fits_and_all_else_says_what_to_write() {
        let script = |more: Value| {
            let mut with = json!({ "run": "exit 0", "interpreter": "powershell.exe", "args": [], "env": { "A": "b" } });
            for (k, v) in more.as_object().expect("a map") {
                with[k] = v.clone();
            }
            step("script", with)
        };
        assert_eq!(problem(&script(json!({}))), None);
        assert_eq!(problem(&script(json!({ "interpreter": "pwsh.exe", "cwd": "x", "user": null }))), None);
        let check = json!({ "url": "http://h/", "status": 200, "within_s": 30, "interval_s": 1 });
        assert_eq!(problem(&step("http.check", check)), None);
        let secret = format!("x{}", Reference::Secret { name: "t".into() }.marker());
        for (step, says) in [
            (step("artifact.fetch", json!({})), "write what is to be done as a script"),
            (step("lb.member", json!({})), "script and http.check"),
            (script(json!({ "interpreter": "bash" })), "interpreter: powershell.exe"),
            (script(json!({ "interpreter": null })), "interpreter: powershell.exe"),
            (script(json!({ "args": ["a"] })), "`env`"),
            (script(json!({ "user": "bob" })), "`user` is not built"),
            (script(json!({ "stdin": "x" })), "`stdin` is not built"),
            (script(json!({ "env": { "A": secret } })), "`env` holds a secret"),
            (script(json!({ "env": { "A": "x\0y" } })), "NUL"),
            (script(json!({ "env": { "A=B": "x" } })), "\"A=B\""),
            (script(json!({ "run": "a\0" })), "NUL"),
        ] {
            assert!(problem(&step).is_some_and(|p| p.contains(says)), "{step:?}: {:?}", problem(&step));
        }
    }
}
