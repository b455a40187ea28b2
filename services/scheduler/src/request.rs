//! New deployments of a release somebody asked for.

use crate::{
    Error, Refused,
    change::{Change, mint},
    gate,
    planner::{self, Ask, Planned, Unplannable},
    promotion,
};
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;
use windlass_contracts::command::{Command, Request};
use windlass_domain::{
    bundle::Turn,
    deployment::{Deployment, New},
    event::Severity,
    ids::ReleaseId,
    promotion::Passed,
    release::{Release, ReleaseKind},
};
use windlass_store::{Tx, artifacts, deployments, marks};

/// A release and its plan, ready to be stored.
pub(crate) struct Prepared {
    pub release: Release,
    pub planned: Planned,
    passed: Passed,
}

/// Decides a request command with what was prepared for it: a deployment, or a refusal that says what to mend.
pub(crate) async fn decide(
    change: &mut Change,
    command: &Command,
    r: &Request,
    prepared: Result<Prepared, Refused>,
) -> Result<(), Error> {
    match prepared {
        Err((code, reason)) => {
            change.refused_event(r.deployment, &command.project, &r.environment, code, &reason).await?;
            change.outcome(command.id, None, Err((code, reason))).await
        }
        Ok(prepared) => {
            let d = insert(change, command, r, &prepared, None).await?;
            let detail = format!("deployment {} is {}", d.id, d.state.as_str());
            change.outcome(command.id, Some(d.id), Ok(detail)).await
        }
    }
}

/// Stores a prepared deployment; with a `turn`, as a member of a bundle.
pub(crate) async fn insert(
    change: &mut Change,
    command: &Command,
    r: &Request,
    prepared: &Prepared,
    turn: Option<Turn>,
) -> Result<Deployment, Error> {
    let Prepared { release, planned, passed } = prepared;
    deployments::insert_release(&mut change.tx, release).await?;
    let new = New {
        id: r.deployment,
        project: release.project.clone(),
        environment: r.environment.clone(),
        release: release.id,
        version: release.version.clone(),
        kind: release.kind,
        rollback: None,
        requested_by: person(&command.actor),
        note: r.note.clone(),
        trace: command.trace.clone(),
        pool: planned.pool.clone(),
        only_hosts: r.hosts.clone(),
        not_before: r.not_before,
        expires_at: r.not_before.unwrap_or(change.now).max(change.now) + Duration::from_secs(planned.expires_s),
        plan: planned.facts.clone(),
    };
    let (d, effects) = Deployment::request_in_turn(new, turn, change.now, &mut mint);
    if let Some(h) = marks::held(&mut change.tx, &d.project, &d.environment).await? {
        // A person may; who reads the record later sees that it was against a hold.
        let payload = json!({ "by": d.requested_by, "reason": h.reason, "held_by": h.by, "held_since": h.at });
        change.event(&d, "deployment.requested_despite_hold", Severity::Notice, payload).await?;
    }
    if *passed == Passed::Hotfix {
        let payload = json!({ "by": d.requested_by, "reason": r.note });
        change.event(&d, "deployment.promotion_skipped", Severity::Notice, payload).await?;
    }
    change.create(d, effects, planned).await
}

/// Reads what a request asks for and plans it; a refusal has its code. Planning takes long where there are many hosts: best
/// done with a reader, before the transaction that stores what comes of it.
pub(crate) async fn prepare(tx: &mut Tx, command: &Command, r: &Request) -> Result<Result<Prepared, Refused>, Error> {
    if r.kind == ReleaseKind::Hotfix && r.note.trim().is_empty() {
        return Ok(Err(("invalid", "a hotfix needs a `note` that says why; it stays in the record".into())));
    }
    if let Some(why) = gate::held(tx, &command.project, &r.environment, &command.actor).await? {
        return Ok(Err(why));
    }
    if let Some(a) = artifacts::by_id(tx, r.artifact).await?
        && let Some(why) = gate::marked(tx, &command.project, &r.environment, &a.version).await?
    {
        return Ok(Err(why));
    }
    let at = r.not_before.unwrap_or(command.created_at).max(tx.now().await?);
    let asked = promotion::check(tx, &command.project, &r.environment, r.kind, r.artifact, at).await?;
    let passed = match asked {
        Ok(p) => p,
        Err(missing) => return Ok(Err(("not_verified", missing.to_string()))),
    };
    let by = person(&command.actor);
    let ask = Ask {
        project: &command.project,
        environment: &r.environment,
        artifact: r.artifact,
        kind: r.kind,
        inputs: &r.inputs,
        values: &r.values,
        hosts: &r.hosts,
        add_hosts: &r.add_hosts,
        exclude_hosts: &r.exclude_hosts,
        at: command.created_at,
        by: &by,
    };
    Ok(match planner::prepare(tx, ReleaseId(Uuid::now_v7()), &ask).await? {
        Ok((release, planned)) => Ok(Prepared { release, planned, passed }),
        Err(Unplannable(reason)) => Err(("invalid", reason)),
    })
}

/// The plan of a stored deployment as it would be made now.
pub(crate) async fn plan_now(tx: &mut Tx, d: &Deployment) -> Result<Result<Planned, Unplannable>, Error> {
    Ok(planner::of(tx, d).await?)
}

/// The name in `person:<name>`; other actors (`hook:<source>`) stay as they are, and so are never equal to a person.
pub(crate) fn person(actor: &str) -> String {
    actor.strip_prefix("person:").unwrap_or(actor).to_owned()
}
