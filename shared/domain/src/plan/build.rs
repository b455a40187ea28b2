//! Release + environment + hosts to [`Plan`]. A pure function: the same input gives the same digest.

use super::{LeftOut, Plan, PlanArtifact, PlanError, PlanHost, PlanStepKind, Undoing, graph, render};
use crate::{
    approval::ApprovalRule,
    artifact::Artifact,
    catalog::{Account, Environment},
    expression::{Context, Expression, ExpressionError, Template, escape},
    flow::{
        Call, Flow, HostStep, OnFailure,
        actions::{self, Action},
    },
    ids::ReleaseId,
    release::{Release, RollbackMode},
    selector::Selector,
    task::TaskStep,
    values::Layers,
};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

mod rollout;
mod steps;

/// A host as the catalog has it at planning time.
#[derive(Debug, Clone, PartialEq)]
pub struct HostFacts {
    pub name: String,
    pub address: String,
    pub labels: BTreeMap<String, String>,
    pub values: BTreeMap<String, Value>,
    pub files: BTreeMap<String, String>,
    pub temporary: bool,
}

#[derive(Debug)]
pub struct BuildInput<'a> {
    pub project: &'a str,
    pub environment: &'a Environment,
    pub release: &'a Release,
    /// What is released; in a rollback the last known good artifact.
    pub artifact: &'a Artifact,
    /// Those selected, in the order they are released to.
    pub hosts: Vec<HostFacts>,
    /// Plan the flow's rollback steps instead of its steps.
    pub rollback: Option<RollbackMode>,
    pub approvals: Vec<ApprovalRule>,
    pub surroundings: Surroundings<'a>,
    /// Hosts that could have taken part, and why they do not.
    pub left_out: Vec<LeftOut>,
    /// In a rollback: what plugins take back.
    pub undoing: Undoing,
}

/// What lies around an environment: its project and the project's group.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings<'a> {
    pub group_values: Option<&'a BTreeMap<String, Value>>,
    pub project_values: Option<&'a BTreeMap<String, Value>>,
    pub accounts: Option<&'a BTreeMap<String, Account>>,
}

/// Id of the one step of a rollback plan.
pub const ROLLBACK_STEP: &str = "rollback";

/// Computes the whole plan. Every host's steps are rendered once, so what fails on one host fails here, by name.
pub fn build(input: BuildInput<'_>) -> Result<Plan, PlanError> {
    let flow = &input.release.flow;
    let hosts = check_hosts(&input.hosts)?;
    let a = input.artifact;
    let mut values = input.release.values.clone();
    values.extend(rollout::values(flow, input.rollback));
    let artifact = PlanArtifact {
        version: a.version.clone(),
        url: a.url.clone(),
        digest: a.digest.clone(),
        size: a.size,
        dir: if a.digest.is_empty() { String::new() } else { a.release_dir(&input.environment.name) },
        built_at: a.built_at,
    };
    let mut plan = Plan {
        project: input.project.into(),
        environment: input.environment.name.clone(),
        release: ReleaseId(uuid::Uuid::nil()),
        kind: input.release.kind,
        rollback: input.rollback,
        inputs: inputs(flow, &input.release.inputs)?,
        context: roots(&input, &artifact, &values),
        artifact,
        flow: flow.name.clone(),
        flow_revision: input.release.flow_revision,
        // A rollback that fails must not ask for another one.
        on_failure: if input.rollback.is_some() { OnFailure::Pause } else { flow.on_failure },
        patience: flow.patience,
        automatic: flow.rollback.automatic,
        approvals: input.approvals,
        hosts,
        left_out: input.left_out,
        release_values: values,
        steps: Vec::new(),
        scopes: BTreeMap::new(),
        plugins: BTreeMap::new(),
    };
    super::references::forbid(&plan, flow)?;
    if input.rollback.is_none() {
        graph::scopes(&mut plan, flow)?;
    }
    let context = render::context_in(&plan, "");
    let host_values = plan.hosts.iter().any(|h| !h.values.is_empty());
    let planner = Planner {
        plan: &plan,
        context,
        scope: "",
        environment: input.environment,
        accounts: input.surroundings.accounts,
        host_values,
        plugins: &input.release.plugins,
    };
    plan.steps = match input.rollback {
        None => planner.steps(flow)?,
        Some(mode) => input.undoing.around(planner.rollback(flow, mode)?),
    };
    plan.plugins = super::plugins::used(&plan.steps, &input.release.plugins);
    for step in plan.steps.iter().filter(|s| !s.skipped) {
        if let PlanStepKind::Rollout(r) = &step.kind {
            let compiled = render::Compiled::new(&plan, &step.id)?;
            for compiled in std::iter::once(compiled).chain(render::Compiled::probes(&plan, &step.id, r)?) {
                let which = if compiled.varies() { usize::MAX } else { 1 };
                let mut hosts = r.waves.iter().flatten().filter_map(|h| plan.hosts.get(*h as usize)).take(which);
                hosts.try_for_each(|h| compiled.spec(&plan, h).map(drop))?;
            }
        }
    }
    Ok(plan)
}

fn check_hosts(hosts: &[HostFacts]) -> Result<Vec<PlanHost>, PlanError> {
    let mut seen = BTreeSet::new();
    if let Some(twice) = hosts.iter().find(|h| !seen.insert(h.name.as_str())) {
        return Err(PlanError::DuplicateHost(twice.name.clone()));
    }
    if hosts.is_empty() {
        return Err(PlanError::NoHosts);
    }
    let plan = |h: &HostFacts| PlanHost {
        name: h.name.clone(),
        address: h.address.clone(),
        labels: h.labels.clone(),
        values: h.values.clone(),
        files: h.files.clone(),
        temporary: h.temporary,
    };
    Ok(hosts.iter().map(plan).collect())
}

/// The given values over the defaults.
fn inputs(flow: &Flow, given: &BTreeMap<String, Value>) -> Result<BTreeMap<String, Value>, PlanError> {
    if let Some(name) = given.keys().find(|k| !flow.inputs.contains_key(*k)) {
        let known: Vec<&str> = flow.inputs.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        return Err(PlanError::UnknownInput { name: name.clone(), known });
    }
    let mut out = BTreeMap::new();
    for (name, input) in &flow.inputs {
        let value = input.value(given.get(name)).map_err(|problem| match problem {
            None => PlanError::MissingInput(name.clone()),
            Some(problem) => PlanError::Input { name: name.clone(), problem },
        })?;
        out.insert(name.clone(), value);
    }
    Ok(out)
}

fn roots(input: &BuildInput<'_>, p: &PlanArtifact, own: &BTreeMap<String, Value>) -> Map<String, Value> {
    let (project, env, release, a) = (input.project, input.environment, input.release, input.artifact);
    let layers = Layers {
        group: input.surroundings.group_values,
        project: input.surroundings.project_values,
        environment: Some(&env.values),
        host: None,
        release: Some(own),
    };
    let mut values: Map<String, Value> = env.values.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    values.insert("name".into(), json!(env.name));
    values.insert("project".into(), json!(project));
    values.insert("service".into(), json!(env.service));
    values.insert("tier".into(), json!(env.tier));
    let mut out = Map::new();
    let artifact = json!({
        "version": p.version, "url": p.url, "digest": p.digest, "size": p.size, "dir": p.dir, "built_at": time(p.built_at),
        "git_ref": a.git_ref, "commit": a.commit, "committer": a.committer,
    });
    let about = json!({
        "version": release.version, "kind": release.kind, "flow": release.flow.name, "created_by": release.created_by,
    });
    out.insert("artifact".into(), if p.is_none() { Value::Null } else { artifact });
    out.insert("release".into(), about);
    out.insert("env".into(), Value::Object(values));
    out.insert("values".into(), Value::Object(layers.merged()));
    out
}

fn time(t: crate::Timestamp) -> String {
    t.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

#[derive(Clone)]
struct Planner<'a> {
    plan: &'a Plan,
    /// Without `host`; within the subflow `scope`.
    context: Context,
    scope: &'a str,
    environment: &'a Environment,
    accounts: Option<&'a BTreeMap<String, Account>>,
    /// Some host has values, so `values` may differ from host to host.
    host_values: bool,
    plugins: &'a BTreeMap<String, crate::plugin::Plugin>,
}

impl Planner<'_> {
    /// Does it have to wait for a host?
    fn on_host(&self, e: &Expression) -> bool {
        e.reads("host") || (self.host_values && e.reads("values"))
    }

    /// A step that runs on no host must not read a value that only hosts have.
    fn no_host_values(&self, place: &str, expressions: &[&Expression]) -> Result<(), PlanError> {
        let known = self.plan.context.get("values").and_then(Value::as_object);
        let keys = expressions.iter().flat_map(|e| e.fields()).filter(|(root, _)| root == "values").map(|(_, k)| k);
        for key in keys.filter(|k| known.is_none_or(|v| !v.contains_key(*k))) {
            if let Some(h) = self.plan.hosts.iter().find(|h| h.values.contains_key(key)) {
                let (step, key, host) = (place.into(), key.clone(), h.name.clone());
                return Err(PlanError::HostValue { step, key, host });
            }
        }
        Ok(())
    }

    /// The hosts that `on` picks, by index.
    fn on(&self, id: &str, on: Option<&str>) -> Result<Vec<u32>, PlanError> {
        let all = (0u32..).zip(&self.plan.hosts);
        let Some(text) = on else { return Ok(all.map(|(i, _)| i).collect()) };
        let wrong_on = |problem: String| PlanError::On { step: id.into(), problem };
        let template = Template::compile(&json!(text)).map_err(wrong(id))?;
        self.no_host_values(id, &template.expressions())?;
        let selector: Selector = match template.render(&self.context).map_err(wrong(id))? {
            // An optional input that was not given picks every host.
            Value::Null => return Ok(all.map(|(i, _)| i).collect()),
            Value::String(s) => s.parse().map_err(|e| wrong_on(format!("{s:?}, which is no selector: {e}")))?,
            other => return Err(wrong_on(format!("{}, which is no selector", actions::brief(&other)))),
        };
        Ok(all.filter(|(_, h)| selector.matches(&h.labels)).map(|(i, _)| i).collect())
    }

    /// `account: <name>` becomes the user it stands for.
    fn account(&self, place: &str, with: &mut Map<String, Value>) -> Result<(), PlanError> {
        let Some(name) = with.remove("account") else { return Ok(()) };
        let name = name.as_str().unwrap_or_default().to_owned();
        let Some(account) = self.accounts.and_then(|a| a.get(&name)) else {
            let known: Vec<&str> = self.accounts.into_iter().flatten().map(|(n, _)| n.as_str()).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(PlanError::UnknownAccount { step: place.into(), account: name, known });
        };
        with.insert("user".into(), json!(account.user));
        Ok(())
    }

    fn central(&self, place: &str, call: &Call) -> Result<Map<String, Value>, PlanError> {
        let action = find(place, call)?;
        let mut with = Map::new();
        for (key, value) in self.rendered(place, &call.with)? {
            let (key, value) = resolve(place, action, &key, &value)?;
            with.insert(key, value);
        }
        super::references::places(place, None, action, &with)?;
        defaults(action, &mut with);
        self.add(action, &mut with);
        Ok(with)
    }

    /// The parameters of a central step.
    fn rendered(&self, place: &str, with: &Map<String, Value>) -> Result<Map<String, Value>, PlanError> {
        let render = |(key, value): (&String, &Value)| {
            let template = Template::compile(value).map_err(wrong(place))?;
            self.no_host_values(place, &template.expressions())?;
            Ok((key.clone(), template.render(&self.context).map_err(wrong(place))?))
        };
        with.iter().map(render).collect()
    }

    fn host_step(&self, place: &str, s: &HostStep) -> Result<TaskStep, PlanError> {
        let action = find(place, &s.call)?;
        let mut with = Map::new();
        for (key, value) in &s.call.with {
            let template = Template::compile(value).map_err(wrong(place))?;
            if template.expressions().iter().any(|e| self.on_host(e)) {
                with.insert(key.clone(), value.clone());
            } else {
                let value = template.render(&self.context).map_err(wrong(place))?;
                let (key, value) = resolve(place, action, key, &value)?;
                with.insert(key, escape(&value));
            }
        }
        self.account(place, &mut with)?;
        if action.name == "release.switch" {
            let to = with.remove("to");
            if to.is_some_and(|v| v == "last_known_good") && self.plan.rollback.is_none() {
                let problem = "`last_known_good` is for rollbacks; use `artifact`".into();
                return Err(PlanError::Parameter { step: place.into(), host: None, parameter: "to".into(), problem });
            }
        }
        defaults(action, &mut with);
        if action.name == "release.switch" {
            with.remove("to");
        }
        let mut added = Map::new();
        self.add(action, &mut added);
        added.into_iter().for_each(|(k, v)| {
            with.insert(k, escape(&v));
        });
        if matches!(action.name, "script" | "service.restart") {
            let env = with.entry("env").or_insert_with(|| json!({}));
            if let Value::Object(env) = env {
                self.environment(env);
            }
        }
        Ok(TaskStep {
            id: s.id.clone(),
            action: action.name.into(),
            with,
            always: s.always,
            timeout_s: s.call.timeout_s,
        })
    }

    /// What [`actions`] documents as added, but for the environment of scripts.
    fn add(&self, action: &Action, with: &mut Map<String, Value>) {
        let a = &self.plan.artifact;
        for (key, _) in action.added {
            let value = match *key {
                "url" => json!(a.url),
                "digest" => json!(a.digest),
                "size" => json!(a.size),
                "dir" => json!(a.dir),
                "built_at" => json!(time(a.built_at)),
                _ => continue,
            };
            with.insert((*key).into(), value);
        }
    }

    fn environment(&self, env: &mut Map<String, Value>) {
        let p = self.plan;
        let fixed = [
            ("WINDLASS_PROJECT", p.project.as_str()),
            ("WINDLASS_ENVIRONMENT", &p.environment),
            ("WINDLASS_VERSION", p.artifact.shipped()),
            ("WINDLASS_RELEASE_DIR", &p.artifact.dir),
        ];
        for (key, value) in fixed {
            env.insert(key.into(), escape(&json!(value)));
        }
        env.insert("WINDLASS_HOST".into(), json!("${{ host.name }}"));
    }
}

fn wrong(place: &str) -> impl Fn(ExpressionError) -> PlanError + '_ {
    move |error| PlanError::Expression { step: place.into(), host: None, error }
}

fn find(place: &str, call: &Call) -> Result<&'static Action, PlanError> {
    actions::find(&call.uses).ok_or_else(|| PlanError::UnknownAction { step: place.into(), action: call.uses.clone() })
}

fn resolve(place: &str, action: &Action, key: &str, value: &Value) -> Result<(String, Value), PlanError> {
    let wrong = |problem| PlanError::Parameter { step: place.into(), host: None, parameter: key.into(), problem };
    let p = action.parameter(key).ok_or_else(|| wrong("does not exist".into()))?;
    Ok((p.resolved_name(), p.resolve(value).map_err(wrong)?))
}

fn defaults(action: &Action, with: &mut Map<String, Value>) {
    for p in action.parameters {
        let name = p.resolved_name();
        // A parameter that reads `host` still stands under its own name.
        if let Some(v) = p.default_value()
            && !with.contains_key(&name)
            && !with.contains_key(p.name)
        {
            with.insert(name, v);
        }
    }
}

#[cfg(test)]
mod tests;
