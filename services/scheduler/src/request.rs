//! New deployments: of a release somebody asked for, and of the last known good one.

use crate::{
    Error,
    change::{Change, mint},
    planner::{self, Ask, Planned, Snapshot, Unplannable},
    promotion,
};
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;
use windlass_contracts::command::{Command, Request};
use windlass_domain::{
    artifact::Artifact,
    bundle::Turn,
    deployment::{Deployment, New, Rollback},
    event::Severity,
    ids::{ArtifactId, DeploymentId, ReleaseId},
    promotion::Passed,
    release::{Release, ReleaseKind, RollbackMode},
};
use windlass_store::{Store, Tx, artifacts, deployments};

/// A release and its plan, ready to be stored.
pub(crate) struct Prepared {
    pub release: Release,
    pub planned: Planned,
    passed: Passed,
}

/// Decides a request command: a deployment, or a refusal that says what to mend.
pub(crate) async fn decide(store: &Store, change: &mut Change, command: &Command, r: &Request) -> Result<(), Error> {
    match prepare(store, command, r).await? {
        Err((code, reason)) => {
            change.refused_event(r.deployment, &command.project, &r.environment, &reason).await?;
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
    if *passed == Passed::Hotfix {
        let payload = json!({ "by": d.requested_by, "reason": r.note });
        change.event(&d, "deployment.promotion_skipped", Severity::Notice, payload).await?;
    }
    change.create(d, effects, planned).await
}

/// Reads what a request asks for and plans it; a refusal has its code.
pub(crate) async fn prepare(
    store: &Store,
    command: &Command,
    r: &Request,
) -> Result<Result<Prepared, (&'static str, String)>, Error> {
    if r.kind == ReleaseKind::Hotfix && r.note.trim().is_empty() {
        return Ok(Err(("invalid", "a hotfix needs a `note` that says why; it stays in the record".into())));
    }
    let mut tx = store.read().await?;
    let at = r.not_before.unwrap_or(command.created_at).max(tx.now().await?);
    let asked = promotion::check(&mut tx, &command.project, &r.environment, r.kind, r.artifact, at).await?;
    let passed = match asked {
        Ok(p) => p,
        Err(missing) => return Ok(Err(("not_verified", missing))),
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
    Ok(match planner::prepare(&mut tx, ReleaseId(Uuid::now_v7()), &ask).await? {
        Ok((release, planned)) => Ok(Prepared { release, planned, passed }),
        Err(Unplannable(reason)) => Err(("invalid", reason)),
    })
}

/// The plan of a stored deployment as it would be made now.
pub(crate) async fn plan_now(tx: &mut Tx, d: &Deployment) -> Result<Result<Planned, Unplannable>, Error> {
    Ok(planner::of(tx, d).await?)
}

/// The release to go back to from `d`: the newest one known good here that is another than its own.
pub(crate) async fn last_known_good(tx: &mut Tx, d: &Deployment) -> Result<Option<deployments::Good>, Error> {
    let own = deployments::release(tx, d.release).await?.ok_or(Error::Missing("release"))?;
    let state = deployments::environment_state(tx, &d.project, &d.environment).await?;
    Ok(state.good.into_iter().find(|g| g.artifact != own.artifact))
}

/// Requests the rollback of `d` within its own change. Where there is nothing to go back to, or no plan for it, `d` stays as
/// it is and an alert says why.
pub(crate) async fn rollback(
    change: &mut Change,
    d: &mut Deployment,
    mode: RollbackMode,
    id: Option<DeploymentId>,
    by: &str,
) -> Result<(), Error> {
    let id = id.unwrap_or_else(|| DeploymentId(Uuid::now_v7()));
    match prepare_rollback(&mut change.tx, d, mode, by, change.now).await? {
        Err(Unplannable(reason)) => {
            d.rolled_back_by = None;
            change.event(d, "deployment.rollback_impossible", Severity::Alert, json!({ "reason": reason })).await
        }
        Ok((release, planned)) => {
            d.rolled_back_by = Some(id);
            promotion::withdraw(change, d, by, "it was rolled back").await?;
            deployments::insert_release(&mut change.tx, &release).await?;
            let new = New {
                id,
                project: d.project.clone(),
                environment: d.environment.clone(),
                release: release.id,
                version: release.version.clone(),
                kind: ReleaseKind::Rollback,
                rollback: Some(Rollback { of: d.id, mode }),
                requested_by: by.to_owned(),
                note: format!("rollback of {} ({})", d.version, d.id),
                trace: change.cause.trace.clone(),
                pool: planned.pool.clone(),
                only_hosts: d.touched_hosts(),
                not_before: None,
                expires_at: change.now + Duration::from_secs(planned.expires_s),
                plan: planned.facts.clone(),
            };
            let (r, effects) = Deployment::request(new, change.now, &mut mint);
            // The original holds its lock until the end of this very change, so the start is left to a look of its own.
            change.rings.push(crate::change::Ring::Deployment(id));
            deployments::insert_plan(&mut change.tx, id, &r.plan_digest, &planned.plan, change.now).await?;
            for e in effects {
                if let windlass_domain::deployment::Effect::Event { what, severity, payload } = e {
                    change.event(&r, what, severity, payload).await?;
                }
            }
            Ok(deployments::insert(&mut change.tx, &r).await?)
        }
    }
}

async fn prepare_rollback(
    tx: &mut Tx,
    d: &Deployment,
    mode: RollbackMode,
    by: &str,
    now: windlass_domain::Timestamp,
) -> Result<Result<(Release, Planned), Unplannable>, Error> {
    let hosts = d.touched_hosts();
    if hosts.is_empty() {
        return Ok(Err(Unplannable("nothing ran on any host: there is nothing to roll back".into())));
    }
    let Some(good) = last_known_good(tx, d).await? else {
        let text = format!("no other version is known good in {}/{}", d.project, d.environment);
        return Ok(Err(Unplannable(text)));
    };
    let artifact = artifact(tx, good.artifact).await?.ok_or(Error::Missing("artifact"))?;
    let original = deployments::release(tx, d.release).await?.ok_or(Error::Missing("release"))?;
    let release = Release {
        id: ReleaseId(Uuid::now_v7()),
        version: artifact.version.clone(),
        kind: ReleaseKind::Rollback,
        artifact: artifact.id,
        created_at: now,
        created_by: by.to_owned(),
        ..original
    };
    match Snapshot::read(tx, &d.project, &d.environment, &release.add_hosts).await? {
        Ok(s) => Ok(s.plan(&release, &artifact, Some(mode), &hosts).map(|p| (release, p))),
        Err(e) => Ok(Err(e)),
    }
}

async fn artifact(tx: &mut Tx, id: ArtifactId) -> Result<Option<Artifact>, Error> {
    Ok(artifacts::by_id(tx, id).await?)
}

/// The name in `person:<name>`; other actors (`hook:<source>`) stay as they are, and so are never equal to a person.
pub(crate) fn person(actor: &str) -> String {
    actor.strip_prefix("person:").unwrap_or(actor).to_owned()
}
