//! After a backup was put back: the database says so itself. History went back, and hosts may have done what is no longer known.
//! Nothing goes on by itself: releases that ran are paused before anything of them is offered, automation is held everywhere.

use crate::{Error, Tx, catalog, commands, events, marks, marks::Hold, sql};
use serde_json::json;
use uuid::Uuid;
use windlass_contracts::command::{Command, Verb};
use windlass_domain::{
    catalog::Kind,
    event::{Aggregate, NewEvent, Severity},
    ids::{CommandId, DeploymentId},
};

/// Far more epochs and fences than the lost time can have used: what this database says is newer than what a host has seen.
const LEAP: i64 = 1_000_000;
/// Executors leave the works alone for this long, so that the schedulers can pause the releases first.
const QUIET: chrono::Duration = chrono::Duration::seconds(15);
const ACTOR: &str = "service:restore";
const REASON: &str = "the database was restored from a backup; look at each host before it goes on";

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Deployments that ran, and are paused.
    pub paused: usize,
    /// Environments in which automation is held.
    pub held: usize,
    /// Leaves of the audit trail as it is now.
    pub leaves: i64,
}

/// Marks the database as restored, in one transaction of its own. `backup` says of which backup, `lost_leaves` how many records of
/// the audit trail a checkpoint kept elsewhere knows beyond it (0: none is known). No service may run meanwhile.
pub async fn mark(tx: &mut Tx, backup: &str, lost_leaves: i64) -> Result<Restored, Error> {
    let now = tx.now().await?;
    sql("UPDATE locks SET fence = fence + $1").bind(LEAP).execute(tx).await?;
    sql("UPDATE work_claims SET epoch = epoch + $1, owner = NULL, expires_at = $2 WHERE phase <> 'settled'")
        .bind(LEAP)
        .bind(now + QUIET)
        .execute(tx)
        .await?;
    sql("UPDATE leases SET epoch = epoch + $1, expires_at = $2").bind(LEAP).bind(now).execute(tx).await?;
    sql("DELETE FROM processes").execute(tx).await?;
    let running: Vec<(Uuid, String, String)> =
        sql("SELECT id, project, environment FROM deployments WHERE state = 'running'").fetch_all(tx).await?;
    for (id, project, environment) in &running {
        let c = Command {
            id: CommandId(Uuid::now_v7()),
            project: project.clone(),
            environment: Some(environment.clone()),
            deployment: Some(DeploymentId(*id)),
            actor: ACTOR.into(),
            verb: Verb::Pause { reason: REASON.into() },
            created_at: now,
            trace: None,
        };
        commands::insert(tx, &c).await?;
    }
    let mut held = 0;
    for key in catalog::keys(tx, Kind::Environment, None).await? {
        let Some((project, environment)) = key.split_once('/') else { continue };
        if marks::held(tx, project, environment).await?.is_some() {
            continue;
        }
        let (project, environment) = (project.to_owned(), environment.to_owned());
        let event = NewEvent {
            aggregate: Aggregate::Environment,
            aggregate_id: marks::aggregate_id(&project, Some(&environment)),
            project: Some(project.clone()),
            environment: Some(environment.clone()),
            severity: Severity::Notice,
            payload: json!({ "reason": REASON }),
            ..event("environment.held", now)
        };
        marks::hold(
            tx,
            &Hold { project, environment, by: ACTOR.into(), reason: REASON.into(), at: now, deployment: None },
        )
        .await?;
        events::append(tx, event).await?;
        held += 1;
    }
    let leaves: Option<i64> = sql("SELECT COUNT(*) FROM audit_leaves").fetch_scalar(tx).await?;
    let done = Restored { paused: running.len(), held, leaves: leaves.unwrap_or(0) };
    let payload = json!({ "backup": backup, "leaves": done.leaves, "lost_leaves": lost_leaves, "paused": done.paused, "held": done.held,
        "reason": "history went back to this backup: what was recorded after it is gone here, and may have happened all the same" });
    events::append(tx, NewEvent { payload, ..event("audit.restored", now) }).await?;
    Ok(done)
}

fn event(what: &str, at: windlass_domain::Timestamp) -> NewEvent {
    NewEvent {
        id: Uuid::now_v7().into(),
        aggregate: Aggregate::Audit,
        aggregate_id: "trail".into(),
        what: what.into(),
        project: None,
        environment: None,
        severity: Severity::Alert,
        actor: ACTOR.into(),
        at,
        payload: serde_json::Value::Null,
        trace: None,
    }
}
