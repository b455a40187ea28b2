//! What a rollback has plugins take back, read from the deployment it is of; and kept from then on.

use crate::{Error, Tx, deployments, works};
use std::collections::BTreeMap;
use windlass_domain::{
    deployment::{Deployment, StepRunKind},
    flow::Phase,
    plan::Undoing,
    plugin::{self, Verb},
    release::RollbackMode,
    work::{Work, WorkSpec},
};

fn called_a_plugin(d: &Deployment) -> bool {
    let called = |k: &StepRunKind| matches!(k, StepRunKind::Central { action, attempt, .. } if *attempt > 0 && action.starts_with(plugin::PREFIX));
    d.steps.iter().any(|s| called(&s.kind))
}

/// What plugins can take back of a deployment, as it stands now.
pub async fn undoing(tx: &mut Tx, d: &Deployment, from: Option<Phase>, mode: RollbackMode) -> Result<Undoing, Error> {
    if !called_a_plugin(d) {
        return Ok(Undoing::default());
    }
    let Some(plan) = deployments::plan(tx, d.id, &d.plan_digest).await? else { return Ok(Undoing::default()) };
    // Other inputs change what a step is called with, never what it calls.
    if !plan.plugins.values().any(|p| p.has(Verb::Undo)) {
        return Ok(Undoing::default());
    }
    let mut plans = BTreeMap::from([(d.plan_digest.clone(), plan)]);
    let stored = works::of_deployment(tx, d.id).await?.into_iter().map(|w| w.work);
    let calls: Vec<Work> = stored.filter(|w| matches!(w.spec, WorkSpec::Central(_))).collect();
    for digest in calls.iter().map(|w| &w.plan_digest) {
        if !plans.contains_key(digest)
            && let Some(plan) = deployments::plan(tx, d.id, digest).await?
        {
            plans.insert(digest.clone(), plan);
        }
    }
    Ok(Undoing::of(d, from, mode, &calls, &plans))
}

/// What the plan of a stored rollback takes back. It is about what has happened, so a plan that is made anew keeps it.
pub(super) async fn kept(tx: &mut Tx, d: &Deployment) -> Result<Undoing, Error> {
    let has = d.rollback.is_some()
        && d.steps
            .iter()
            .any(|s| matches!(&s.kind, StepRunKind::Central { action, .. } if action.starts_with(plugin::PREFIX)));
    if !has {
        return Ok(Undoing::default());
    }
    let plan = deployments::plan(tx, d.id, &d.plan_digest).await?;
    Ok(plan.map(|p| Undoing::in_plan(&p)).unwrap_or_default())
}
