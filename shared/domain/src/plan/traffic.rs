//! Load balancers in a plan: those that the `lb.drain` steps of a rollout name, with what each host is called there.

use super::{PlanError, PlanHost, render::host_value, segment::MAX_LOAD_BALANCERS};
use crate::{
    catalog::Environment,
    expression::{Context, Template},
    flow::HostStep,
    traffic::{LoadBalancer, PlanTraffic},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Said of a rollout whose steps find no load balancer.
pub(super) const NONE: &str =
    "the environment has no `load_balancers`, so `lb.drain` and `lb.attach` do nothing and hosts keep their traffic";

const DRAIN: &str = "lb.drain";
const ATTACH: &str = "lb.attach";

/// Is it one of the two that are no step of the host's own task?
pub(super) fn is(s: &HostStep) -> bool {
    s.call.uses == DRAIN || s.call.uses == ATTACH
}

/// The load balancer a step takes hosts off (`None`: all); nothing for one that brings them back.
pub(super) fn drains(s: &HostStep) -> impl Iterator<Item = Option<String>> {
    let lb = s.call.with.get("lb").and_then(Value::as_str).map(str::to_owned);
    (s.call.uses == DRAIN).then_some(lb).into_iter()
}

/// The load balancers of a rollout, in the order of its drains; those of a drain of all by name.
pub(super) fn of(
    env: &Environment,
    step: &str,
    drains: &[Option<String>],
    hosts: &[PlanHost],
    waves: &[Vec<u32>],
) -> Result<Vec<PlanTraffic>, PlanError> {
    let mut found: Vec<(&String, &LoadBalancer)> = Vec::new();
    if env.load_balancers.is_empty() {
        return Ok(Vec::new());
    }
    for drain in drains {
        match drain {
            None => found.extend(&env.load_balancers),
            Some(lb) => found.push(env.load_balancers.get_key_value(lb).ok_or_else(|| {
                let known: Vec<&str> = env.load_balancers.keys().map(String::as_str).collect();
                PlanError::UnknownLoadBalancer { step: step.into(), lb: lb.clone(), known: known.join(", ") }
            })?),
        }
    }
    let wrong =
        |lb: &str, problem: String| PlanError::Traffic { step: step.into(), lb: lb.into(), host: None, problem };
    if let Some((lb, _)) = found.get(MAX_LOAD_BALANCERS) {
        let problem = format!(
            "is one more than the {MAX_LOAD_BALANCERS} that a rollout can take hosts off; name some by `lb:`, and the \
             others in another rollout"
        );
        return Err(wrong(lb, problem));
    }
    let one = |(name, lb): (&String, &LoadBalancer)| {
        let times = lb.times().map_err(|(key, text)| wrong(name, format!("`{key}` {text}")))?;
        Ok(PlanTraffic {
            name: name.clone(),
            kind: lb.kind.clone(),
            members: members(step, name, lb, hosts, waves)?,
            min_healthy: times.min_healthy,
            drain_timeout_s: times.drain_s,
            on_drain_timeout: lb.on_drain_timeout,
            attach_timeout_s: times.attach_s,
        })
    };
    found.into_iter().map(one).collect()
}

/// What each host is called there, by index.
fn members(
    step: &str,
    name: &str,
    lb: &LoadBalancer,
    hosts: &[PlanHost],
    waves: &[Vec<u32>],
) -> Result<BTreeMap<u32, String>, PlanError> {
    let wrong = |host: Option<&PlanHost>, problem: String| PlanError::Traffic {
        step: step.into(),
        lb: name.into(),
        host: host.map(|h| h.name.clone()),
        problem,
    };
    let template = lb.member.as_ref().map(|m| Template::compile(&json!(m))).transpose();
    let template = template.map_err(|e| wrong(None, e.to_string()))?;
    let files = |t: &Template| {
        t.expressions().iter().any(|e| e.fields().iter().any(|(root, field)| root == "host" && field == "files"))
    };
    let files = template.as_ref().is_some_and(files);
    let mut out = BTreeMap::new();
    let mut named: BTreeMap<String, &str> = BTreeMap::new();
    for h in waves.iter().flatten() {
        let host = hosts.get(*h as usize).ok_or_else(|| PlanError::UnknownHost { step: step.into(), host: *h })?;
        let member = match &template {
            None => json!(host.name),
            Some(t) => {
                let context = Context::default().with("host", host_value(host, files));
                t.render(&context).map_err(|e| wrong(Some(host), e.to_string()))?
            }
        };
        let member = match member {
            Value::String(s) => s,
            Value::Number(n) => n.to_string(),
            other => {
                let problem = format!("`member` gives {}, not a name", crate::flow::actions::brief(&other));
                return Err(wrong(Some(host), problem));
            }
        };
        if !crate::traffic::is_member(&member) {
            let problem = format!("`member` gives {member:?}; a member's name has {}", crate::traffic::MEMBER_RULE);
            return Err(wrong(Some(host), problem));
        }
        if let Some(other) = named.insert(member.clone(), &host.name) {
            let problem = format!("host `{other}` is called `{member}` there too; let `member` tell them apart");
            return Err(wrong(Some(host), problem));
        }
        out.insert(*h, member);
    }
    Ok(out)
}
