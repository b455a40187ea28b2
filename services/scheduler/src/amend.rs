//! Going on with other inputs: the same release, planned anew, and what is kept of it.
//!
//! The inputs are kept in a release row of their own, a copy of the first one: releases never change, and the record shows what
//! each plan was made of. Its id follows from the deployment and the new plan's digest, so whoever makes the plan the
//! deployment's own, days later perhaps, finds it without a note about it.

use crate::{
    Error, Refused,
    change::Change,
    planner::{self, Planned, Unplannable},
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;
use windlass_domain::{
    deployment::Deployment,
    flow::InputKind,
    ids::{DeploymentId, ReleaseId},
    plan::Plan,
    release::Release,
};
use windlass_store::{Tx, deployments};

/// Names releases made from others.
const NAMESPACE: Uuid = Uuid::from_u128(0x5b0e_2c77_9f1d_4a64_8c3e_71a4_d05f_62b9);

/// The release that the plan with this digest was made of.
pub(crate) fn release_id(d: DeploymentId, digest: &str) -> ReleaseId {
    ReleaseId(Uuid::new_v5(&NAMESPACE, format!("{d}\n{digest}").as_bytes()))
}

/// A plan of the same release with other inputs, not stored yet.
pub(crate) struct Amended {
    release: Release,
    pub planned: Planned,
}

/// Plans a deployment's release with these inputs over its own. The catalog is read as it is now, the flow is the release's own.
pub(crate) async fn prepare(
    tx: &mut Tx,
    d: &Deployment,
    inputs: &BTreeMap<String, serde_json::Value>,
) -> Result<Result<Amended, Refused>, Error> {
    let old = deployments::release(tx, d.release).await?.ok_or(Error::Missing("release"))?;
    let secret = |name: &&String| old.flow.inputs.get(*name).is_some_and(|i| matches!(i.kind, InputKind::Secret));
    if let Some(name) = inputs.keys().find(secret) {
        let text = format!(
            "input `{name}` is secret: it was sealed for this deployment when it was requested, and is not replaced while it runs; \
             request a new deployment with the other secret"
        );
        return Ok(Err(("invalid", text)));
    }
    // `created_by` stays: expressions read it, and it is not what the person changes. The event says who did.
    let mut release = Release { created_at: tx.now().await?, ..old };
    release.inputs.extend(inputs.iter().map(|(k, v)| (k.clone(), v.clone())));
    let planned = match planner::of_release(tx, d, &release).await? {
        Ok(p) => p,
        Err(Unplannable(text)) => return Ok(Err(("invalid", text))),
    };
    if planned.facts.digest == d.plan_digest {
        let text = "with these inputs the plan is the same as it is now: retry without inputs".into();
        return Ok(Err(("nothing_to_do", text)));
    }
    let before = deployments::plan(tx, d.id, &d.plan_digest).await?.ok_or(Error::Missing("plan"))?;
    if let Some(text) = other_hosts(&before, &planned.plan) {
        return Ok(Err(("invalid", text)));
    }
    release.id = release_id(d.id, &planned.facts.digest);
    Ok(Ok(Amended { release, planned }))
}

/// How the hosts differ; a run that is under way cannot get or lose any.
fn other_hosts(before: &Plan, now: &Plan) -> Option<String> {
    let names = |p: &Plan| p.hosts.iter().map(|h| h.name.clone()).collect::<BTreeSet<_>>();
    let (before, after) = (names(before), names(now));
    let list = |what: &str, names: Vec<&String>| {
        let shown: Vec<&str> = names.iter().take(10).map(|n| n.as_str()).collect();
        let more =
            if names.len() > shown.len() { format!(" and {} more", names.len() - shown.len()) } else { String::new() };
        (!names.is_empty()).then(|| format!("{what} {}{more}", shown.join(", ")))
    };
    let new = list("it would also go to", after.difference(&before).collect());
    let gone = list("it would leave out", before.difference(&after).collect());
    let said: Vec<String> = new.into_iter().chain(gone).collect();
    (!said.is_empty()).then(|| {
        format!(
            "the environment has other hosts now than when this deployment was planned ({}): other inputs cannot change who takes \
             part; put the hosts back as they were, or request a new deployment",
            said.join("; ")
        )
    })
}

/// Stores the plan and its release; what was asked for once before is there already.
pub(crate) async fn keep(change: &mut Change, d: &Deployment, a: &Amended) -> Result<(), Error> {
    if deployments::release(&mut change.tx, a.release.id).await?.is_none() {
        deployments::insert_release(&mut change.tx, &a.release).await?;
    }
    deployments::insert_plan(&mut change.tx, d.id, &a.planned.facts.digest, &a.planned.plan, change.now).await?;
    Ok(())
}
