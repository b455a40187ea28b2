//! Promotion: what was verified where, and carrying what is good in one environment to the next.

use crate::{
    call::{Answer, Call, ok},
    commands as submit,
    problem::Problem,
    routes::plans,
};
use std::collections::BTreeMap;
use uuid::Uuid;
use windlass_contracts::{
    bundles as body,
    command::{Request, Verb},
    http,
};
use windlass_domain::{
    catalog::{Item, Kind},
    ids::DeploymentId,
    release::ReleaseKind,
};
use windlass_store::{catalog, deployments, promotions};

/// Proofs looked at for the board.
const MOST_PROOFS: u32 = 1000;

#[utoipa::path(get, path = "/api/v1/projects/{project}/promotions", tag = "promotions", params(("project" = String, Path,)),
    responses((status = 200, body = body::PromotionBoard), (status = "default", body = http::Problem)))]
pub(crate) async fn board(call: Call) -> Answer {
    let (project, _) = call.project()?;
    let mut tx = call.store().read().await?;
    let mut environments = Vec::new();
    for key in catalog::keys(&mut tx, Kind::Environment, Some(project)).await? {
        let Some(Item::Environment(e)) = catalog::get(&mut tx, Kind::Environment, &key).await?.map(|e| e.item) else {
            continue;
        };
        let state = deployments::environment_state(&mut tx, project, &e.name).await?;
        environments.push(body::PromotionPlace {
            verified_for_s: e.verified_for_s(),
            environment: e.name,
            promote_from: e.promote_from,
            good: state.good.into_iter().next().map(|g| g.version),
        });
    }
    let mut artifacts: Vec<body::PromotionRow> = Vec::new();
    let mut place: BTreeMap<String, usize> = BTreeMap::new();
    for p in promotions::of_project(&mut tx, project, MOST_PROOFS).await? {
        let i = *place.entry(p.digest.clone()).or_insert_with(|| {
            artifacts.push(body::PromotionRow {
                version: p.version.clone(),
                digest: p.digest.clone(),
                verified: vec![],
            });
            artifacts.len() - 1
        });
        artifacts[i].verified.push(body::Proof {
            environment: p.environment,
            deployment: p.deployment.0,
            at: p.at,
            withdrawn: p.withdrawn.is_some(),
            reason: p.withdrawn.map(|w| w.reason),
        });
    }
    ok(&body::PromotionBoard { environments, artifacts })
}

#[utoipa::path(post, path = "/api/v1/projects/{project}/promotions", tag = "promotions", params(("project" = String, Path,)), request_body = body::PromotionNew,
    responses((status = 200, body = http::Command), (status = 202, body = http::Command), (status = 409, body = http::Problem), (status = "default", body = http::Problem)))]
pub(crate) async fn promote(call: Call) -> Answer {
    let g: body::PromotionNew = call.body()?;
    let (project, _) = call.project()?;
    if g.from == g.to {
        return Err(Problem::invalid("`from` and `to` must be two environments").into());
    }
    let mut tx = call.store().read().await?;
    for name in [&g.from, &g.to] {
        if catalog::get(&mut tx, Kind::Environment, &format!("{project}/{name}")).await?.is_none() {
            let detail = format!("project {project:?} has no environment {name:?}");
            return Err(Problem::unprocessable(detail, vec![]).into());
        }
    }
    let Some(good) = deployments::environment_state(&mut tx, project, &g.from).await?.good.into_iter().next() else {
        let detail = format!("no version is known good in {project}/{}; deploy one there first", g.from);
        return Err(Problem::conflict("no_last_known_good", detail).into());
    };
    let wish = http::DeploymentNew {
        environment: g.to.clone(),
        version: Some(good.version.clone()),
        inputs: g.inputs,
        ..http::DeploymentNew::default()
    };
    let asked = plans::asked(&mut tx, project, &wish).await?;
    drop(tx);
    let id: DeploymentId = Uuid::now_v7().into();
    let note = if g.note.is_empty() { format!("promoted from {}", g.from) } else { g.note };
    let verb = Verb::Request(Box::new(Request {
        deployment: id,
        environment: g.to.clone(),
        artifact: good.artifact,
        kind: ReleaseKind::Normal,
        inputs: asked.inputs,
        hosts: vec![],
        add_hosts: vec![],
        exclude_hosts: vec![],
        values: Default::default(),
        not_before: g.not_before,
        note,
    }));
    submit::submit_with(&call, id, &g.to, verb, &asked.secrets).await
}
