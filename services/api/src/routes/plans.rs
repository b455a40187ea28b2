//! What a deployment would do before there is one: previews, the form of an environment's flow, values and their scopes,
//! drift.

use crate::{
    call::{Answer, Call, now, ok},
    problem::{Fail, Problem},
    report, view,
};
use serde_json::json as value;
use std::collections::BTreeMap;
use uuid::Uuid;
use windlass_contracts::{http, preview as body};
use windlass_domain::{
    access::Permission,
    artifact::Artifact,
    catalog::{Environment, Item, Kind},
    flow::{Flow, InputKind, form},
    ids::ReleaseId,
    reference,
    release::ReleaseKind,
};
use windlass_store::{
    Tx, artifacts, catalog, deployments,
    planning::{self, Ask, Snapshot, Unplannable},
    secrets,
};

/// Versions offered in a form.
const MOST_VERSIONS: u32 = 50;

/// A request that was looked at: what it names exists, and its inputs fit.
pub(crate) struct Asked {
    pub(crate) artifact: Artifact,
    /// With secrets replaced by their names.
    pub(crate) inputs: BTreeMap<String, serde_json::Value>,
    /// Plain values of secret inputs, by input. They go to the sealer and nowhere else.
    pub(crate) secrets: BTreeMap<String, String>,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked").field("artifact", &self.artifact).field("inputs", &self.inputs).finish_non_exhaustive()
    }
}

/// Checks a request against the environment's form, or says everything that is wrong with it.
pub(crate) async fn asked(tx: &mut Tx, project: &str, g: &http::DeploymentNew) -> Result<Asked, Fail> {
    let (_, flow, _) = environment(tx, project, &g.environment).await?;
    let artifact = match &g.version {
        // Whether the flow ships anything is seen when it is planned.
        None => Artifact::none(project),
        Some(version) => match artifacts::by_version(tx, project, version).await? {
            Some(a) => a.artifact,
            None => {
                let detail = format!("project {project:?} has no artifact of version {version:?}; register it first");
                return Err(Problem::unprocessable(detail, vec![]).into());
            }
        },
    };
    let mut wrong = body::input_faults(form::check(&flow, &g.inputs));
    for key in g.values.keys().filter(|k| !windlass_domain::values::is_key(k)) {
        let detail = format!("{key:?} is no name of a value: write letters, digits and `_`");
        wrong.push(http::Fault { at: format!("values.{key}"), detail, line: None, column: None });
    }
    if let Some(first) = wrong.first() {
        let detail = format!("{} of the given values do not fit; the first: {}", wrong.len(), first.detail);
        return Err(Problem::unprocessable(detail, wrong).into());
    }
    let (mut inputs, mut secrets) = (g.inputs.clone(), BTreeMap::new());
    for (name, v) in &mut inputs {
        if flow.inputs.get(name).is_some_and(|i| i.kind == InputKind::Secret)
            && let Some(plain) = v.as_str()
        {
            if let Err(e) = windlass_domain::mask::check(plain.as_bytes()) {
                let at = format!("inputs.{name}");
                let fault = http::Fault { at: at.clone(), detail: e.to_string(), line: None, column: None };
                return Err(Problem::unprocessable(format!("{at}: {e}"), vec![fault]).into());
            }
            secrets.insert(name.clone(), plain.to_owned());
            *v = reference::secret_input(name);
        }
    }
    Ok(Asked { artifact, inputs, secrets })
}

/// Normal unless a hotfix is asked for; rollbacks are asked for otherwise.
pub(crate) fn kind(g: &http::DeploymentNew) -> Result<ReleaseKind, Problem> {
    match g.kind.as_deref() {
        None | Some("normal") => Ok(ReleaseKind::Normal),
        Some("hotfix") => Ok(ReleaseKind::Hotfix),
        Some(other) => Err(Problem::invalid(format!("`kind` must be normal or hotfix, got {other:?}"))),
    }
}

/// An environment with its flow and the flow's revision.
async fn environment(tx: &mut Tx, project: &str, name: &str) -> Result<(Environment, Flow, u64), Fail> {
    let key = format!("{project}/{name}");
    let Some(Item::Environment(env)) = catalog::get(tx, Kind::Environment, &key).await?.map(|e| e.item) else {
        let detail = format!("project {project:?} has no environment {name:?}");
        return Err(Problem::unprocessable(detail, vec![]).into());
    };
    match planning::flow_of(tx, &env).await? {
        Ok((flow, revision)) => Ok((env, flow, revision)),
        Err(Unplannable(why)) => Err(Problem::unprocessable(why, vec![]).into()),
    }
}

#[utoipa::path(post, path = "/api/v1/projects/{project}/plan", tag = "deployments", params(("project" = String, Path,)), request_body = http::DeploymentNew, responses((status = 200, body = body::PlanPreview), (status = "default", body = http::Problem)))]
pub(crate) async fn preview(call: Call) -> Answer {
    let g: http::DeploymentNew = call.body()?;
    let (project, _) = call.project()?;
    let by = call.who()?.actor.person.clone();
    let mut tx = call.store().read().await?;
    let a = asked(&mut tx, project, &g).await?;
    let ask = Ask {
        project,
        environment: &g.environment,
        artifact: a.artifact.id,
        kind: kind(&g)?,
        inputs: &a.inputs,
        values: &g.values,
        hosts: &g.hosts,
        add_hosts: &g.add_hosts,
        exclude_hosts: &g.exclude_hosts,
        at: now(),
        by: &by,
    };
    let planned = match planning::prepare(&mut tx, ReleaseId(Uuid::nil()), &ask).await? {
        Ok((_, planned)) => planned,
        Err(Unplannable(why)) => return Err(Problem::conflict("invalid", why).into()),
    };
    let mut report = report::report(&call, &mut tx, &planned.plan, g.not_before).await?;
    if !planned.unconnected.is_empty() && planned.plan.left_out.is_empty() {
        report
            .warnings
            .push(format!("not connected, though the environment checks it: {}", planned.unconnected.join(", ")));
    }
    ok(&body::PlanPreview { digest: planned.facts.digest, report, plan: value!(planned.plan) })
}

#[utoipa::path(get, path = "/api/v1/projects/{project}/environments/{environment}/form", tag = "deployments", params(("project" = String, Path,), ("environment" = String, Path,)), responses((status = 200, body = body::FormView), (status = "default", body = http::Problem)))]
pub(crate) async fn form(call: Call) -> Answer {
    let (project, _) = call.project()?;
    let mut tx = call.store().read().await?;
    let key = format!("{project}/{}", call.param("environment"));
    if catalog::get(&mut tx, Kind::Environment, &key).await?.is_none() {
        return Err(Problem::not_found().into());
    }
    let (env, flow, revision) = environment(&mut tx, project, call.param("environment")).await?;
    let f = form::form(&flow);
    let hosts = match Snapshot::read(&mut tx, project, &env.name, &[]).await? {
        Ok(s) => s.members().map(|m| m.iter().map(|h| h.name.clone()).collect()).unwrap_or_default(),
        Err(_) => vec![],
    };
    let linked = planning::linked(&mut tx, project, flow.clone()).await?;
    let versions = artifacts::list(&mut tx, project, None, MOST_VERSIONS).await?;
    let field = |f: form::Field| body::FormField {
        widget: view::name(&f.widget),
        name: f.name,
        label: f.label,
        description: f.description,
        required: f.required,
        default: f.default,
        options: f.options,
        hint: f.hint,
    };
    ok(&body::FormView {
        project: project.into(),
        environment: env.name,
        flow: f.flow,
        flow_revision: revision,
        schema: f.schema,
        fields: f.fields.into_iter().map(field).collect(),
        hosts,
        versions: versions.into_iter().map(|v| v.artifact.version).collect(),
        ships: linked.map_or(true, |f| f.ships().is_some()),
    })
}

#[utoipa::path(get, path = "/api/v1/projects/{project}/environments/{environment}/values", tag = "catalog", params(("project" = String, Path,), ("environment" = String, Path,), ("host" = Option<String>, Query,)), responses((status = 200, body = body::Explanation), (status = "default", body = http::Problem)))]
pub(crate) async fn explain(call: Call) -> Answer {
    call.only(&["host"])?;
    let (project, group) = call.project()?;
    let (environment, host) = (call.param("environment"), call.ask("host"));
    let mut tx = call.store().read().await?;
    if catalog::get(&mut tx, Kind::Environment, &format!("{project}/{environment}")).await?.is_none() {
        return Err(Problem::not_found().into());
    }
    let others: Vec<String> = host.iter().map(|h| (*h).to_owned()).collect();
    let unplannable = |Unplannable(why)| Problem::unprocessable(why, vec![]);
    let snapshot = Snapshot::read(&mut tx, project, environment, &others).await?.map_err(unplannable)?;
    let values = snapshot.explain(host).map_err(unplannable)?;
    // From the innermost scope outwards, as steps look for them.
    let mut scopes: Vec<(String, &str)> = host.iter().map(|h| (format!("host/{h}"), "host")).collect();
    scopes.push((format!("environment/{project}/{environment}"), "environment"));
    scopes.push((format!("project/{project}"), "project"));
    scopes.push((format!("group/{group}"), "group"));
    let mut named: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let names = secrets::names(&mut tx).await?;
    for (scope, word) in &scopes {
        for n in names.iter().filter(|n| n.scope == *scope) {
            named.entry(n.name.clone()).or_default().push(word);
        }
    }
    let shadowed =
        |(s, v): (windlass_domain::values::Scope, _)| body::ShadowedValue { scope: s.as_str().into(), value: v };
    ok(&body::Explanation {
        project: project.into(),
        environment: environment.into(),
        host: host.map(str::to_owned),
        values: values
            .into_iter()
            .map(|e| body::ExplainedValue {
                key: e.key,
                value: e.value,
                scope: e.scope.as_str().into(),
                shadows: e.shadows.into_iter().map(shadowed).collect(),
            })
            .collect(),
        secrets: named
            .into_iter()
            .map(|(name, scopes)| body::ExplainedSecret {
                name,
                scope: scopes.first().copied().unwrap_or_default().into(),
                shadows: scopes.iter().skip(1).map(|s| (*s).to_owned()).collect(),
            })
            .collect(),
    })
}

#[utoipa::path(get, path = "/api/v1/drift", tag = "hosts", params(("project" = Option<String>, Query,), ("environment" = Option<String>, Query,)), responses((status = 200, body = http::Page<body::Drift>), (status = "default", body = http::Problem)))]
pub(crate) async fn drift(call: Call) -> Answer {
    call.only(&["project", "environment"])?;
    let mut tx = call.store().read().await?;
    let keys = catalog::keys(&mut tx, Kind::Environment, call.ask("project")).await?;
    let fleet = report::fleet(&mut tx).await?;
    let mut items = Vec::new();
    for key in keys {
        let Some((project, environment)) = key.split_once('/') else { continue };
        if call.ask("environment").is_some_and(|e| e != environment)
            || !call.may(&mut tx, Permission::View, Some(project)).await?
        {
            continue;
        }
        let state = deployments::environment_state(&mut tx, project, environment).await?;
        let Some(good) = state.good.first() else { continue };
        let Some(artifact) = artifacts::by_id(&mut tx, good.artifact).await? else { continue };
        let intended = artifact.release_dir(environment);
        let Ok(snapshot) = Snapshot::read(&mut tx, project, environment, &[]).await? else { continue };
        let Ok(members) = snapshot.members() else { continue };
        for h in members {
            let known = fleet.get(&h.name).cloned().unwrap_or_default();
            let reported = known.current();
            let version = reported.as_deref().and_then(|r| report::version_like(r, &intended));
            let state = match &reported {
                None => "unknown",
                Some(r) if *r == intended => "same",
                Some(_) if version.is_some() => "differs",
                Some(_) => "other",
            };
            items.push(body::Drift {
                project: project.into(),
                environment: environment.into(),
                host: h.name.clone(),
                state: state.into(),
                intended: good.version.clone(),
                reported: version,
                intended_dir: intended.clone(),
                reported_dir: reported,
                last_seen_at: known.session.as_ref().map(|s| s.last_seen_at),
            });
        }
    }
    ok(&http::Page { items, next: None })
}
