//! Rollbacks: whether one can be, where it goes to, and its deployment.
//!
//! A rollback is asked about before anything is stopped, so that no deployment is aborted for one that cannot be. It goes to a
//! version that was good here, over the hosts on which something of phase `release` or later ran (or of the phase that was asked for).

use crate::{
    Error, Refused,
    change::{Change, mint},
    gate,
    planner::{Planned, Snapshot, Unplannable, undoing},
    promotion,
};
use serde_json::json;
use std::{collections::BTreeSet, time::Duration};
use uuid::Uuid;
use windlass_contracts::command::Verb;
use windlass_domain::{
    Timestamp,
    deployment::{Deployment, Effect, New, Rollback, State},
    event::Severity,
    flow::Phase,
    ids::{DeploymentId, ReleaseId},
    plan::Undoing,
    release::{Release, ReleaseKind, RollbackMode},
};
use windlass_store::{Tx, artifacts, catalog, decisions, deployments, deployments::Good, marks};

/// Known good versions that a refusal lists.
const LISTED: usize = 20;

/// Where a rollback goes to, and which hosts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Where {
    /// A version that was good here; the newest other one when absent.
    pub to: Option<String>,
    /// The first phase whose hosts are taken back.
    pub from: Option<Phase>,
}

impl Where {
    /// What a rollback command says about it; none of any other command.
    pub(crate) fn of(verb: &Verb) -> Option<Where> {
        match verb {
            Verb::Rollback { to, from_phase, .. } => Some(Where { to: to.clone(), from: *from_phase }),
            _ => None,
        }
    }
}

/// What is known before anything is stopped: nothing stands against this rollback of `d`.
pub(crate) async fn check(tx: &mut Tx, d: &Deployment, at: &Where) -> Result<Result<(), Refused>, Error> {
    if d.release_hosts(at.from).is_empty() {
        return Ok(Err(("nothing_to_do", nothing_ran(d, at.from))));
    }
    if d.state.is_terminal() {
        if tx.is_write() {
            deployments::lock_row(tx, &d.project, &d.environment).await?;
        }
        if let Some(why) = gate::superseded(tx, d, true).await? {
            return Ok(Err(why));
        }
    }
    Ok(target(tx, d, at.to.as_deref()).await?.map(|_| ()))
}

/// A rollback's release and plan, made before the transaction that requests it: thousands of hosts are not planned while others
/// wait to write.
pub(crate) struct Ready {
    of: DeploymentId,
    hosts: Vec<String>,
    /// What plugins take back.
    undoing: Undoing,
    release: Release,
    planned: Planned,
}

/// Plans the rollback that a command asks for, or says why there can be none. Nothing is stored.
pub(crate) async fn plan(
    tx: &mut Tx,
    d: &Deployment,
    mode: RollbackMode,
    at: &Where,
    by: &str,
) -> Result<Result<Ready, Refused>, Error> {
    if let Err(why) = check(tx, d, at).await? {
        return Ok(Err(why));
    }
    let hosts = d.release_hosts(at.from);
    let undoing = undoing(tx, d, at.from, mode).await?;
    let now = tx.now().await?;
    Ok(match prepare(tx, d, mode, at, (&hosts, &undoing), by, now).await? {
        Ok((release, planned)) => Ok(Ready { of: d.id, hosts, undoing, release, planned }),
        Err(Unplannable(text)) => Err(("invalid", text)),
    })
}

/// Plans the rollback that waits for the end of this abort; none where there is nothing to wait for.
pub(crate) async fn plan_waiting(tx: &mut Tx, d: &Deployment) -> Result<Option<Ready>, Error> {
    let Some((mode, id)) = d.then_rollback else { return Ok(None) };
    let (at, _) = asked(tx, d, Some(id)).await?;
    let by = d.end.as_ref().map(|e| e.who.clone()).unwrap_or_default();
    Ok(plan(tx, d, mode, &at, &by).await?.ok())
}

/// The deployment as a rollback may be asked of it: one that was asked for before and did not work out stands in nobody's way.
pub(crate) async fn ready(tx: &mut Tx, d: &Deployment) -> Result<Deployment, Error> {
    let mut d = d.clone();
    if let Some(id) = d.rolled_back_by.filter(|_| d.state.is_terminal())
        && let Some(before) = deployments::get(tx, id).await?
        && before.deployment.state.is_terminal()
        && before.deployment.state != State::Succeeded
    {
        d.rolled_back_by = None;
    }
    Ok(d)
}

fn nothing_ran(d: &Deployment, from: Option<Phase>) -> String {
    let phase = |p: Option<Phase>| {
        let word = p.and_then(|p| serde_json::to_value(p).ok());
        word.and_then(|w| w.as_str().map(str::to_owned)).unwrap_or_else(|| "no phase".into())
    };
    let ran = d.rollouts().filter(|(_, r)| r.waves.iter().flat_map(|w| &w.hosts).any(|h| h.state.is_touched()));
    let ran: Vec<String> = ran.map(|(s, _)| format!("{} ({})", s.id, phase(s.phase))).collect();
    let from = phase(from.or(Some(Phase::Release)));
    let after = if d.state.is_terminal() { "" } else { "; abort it to stop it" };
    match ran.is_empty() {
        true => format!("nothing ran on any host: there is nothing to roll back{after}"),
        false => {
            let steps = ran.join(", ");
            format!(
                "nothing of phase {from} or later ran on any host; what ran: {steps}; name an earlier phase to take that back{after}"
            )
        }
    }
}

/// The release to go back to from `d`: the version that was asked for, else the newest other one that may run here.
pub(crate) async fn target(tx: &mut Tx, d: &Deployment, to: Option<&str>) -> Result<Result<Good, Refused>, Error> {
    let own = deployments::release(tx, d.release).await?.ok_or(Error::Missing("release"))?;
    let good = deployments::environment_state(tx, &d.project, &d.environment).await?.good;
    let marks = marks::of(tx, &d.project, &d.environment).await?;
    let place = format!("{}/{}", d.project, d.environment);
    let mut others = good.iter().filter(|g| g.artifact != own.artifact);
    let Some(to) = to else {
        let Some(newest) = others.clone().next() else {
            return Ok(Err(("no_last_known_good", format!("no other version is known good in {place}"))));
        };
        let free = others.find(|g| marks::keeps_out(&marks, &g.version).is_none());
        return Ok(match (free, marks::keeps_out(&marks, &newest.version)) {
            (Some(g), _) => Ok(g.clone()),
            (None, Some(m)) => {
                let (code, text) = gate::refusal(m, &newest.version);
                Err((code, format!("no version that is known good in {place} may run there now: {text}")))
            }
            (None, None) => Err(("no_last_known_good", format!("no other version is known good in {place}"))),
        });
    };
    let Some(g) = others.find(|g| g.version == to) else {
        let mut seen = BTreeSet::new();
        let known = good.iter().filter(|g| g.artifact != own.artifact && seen.insert(&g.version));
        let known: Vec<&str> = known.map(|g| g.version.as_str()).take(LISTED).collect();
        let what = if own.version == to { "is what would be rolled back" } else { "was never good" };
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        let text = format!("version {to} {what} in {place}; known good there, newest first: {known}");
        return Ok(Err(("not_known_good", text)));
    };
    Ok(match marks::keeps_out(&marks, to) {
        Some(m) => Err(gate::refusal(m, to)),
        None => Ok(g.clone()),
    })
}

/// Where the command that asked for this rollback wants to go; one that nobody sent (automatic, of a bundle) goes to the last
/// known good.
async fn asked(tx: &mut Tx, d: &Deployment, id: Option<DeploymentId>) -> Result<(Where, String), Error> {
    let Some(id) = id else { return Ok(Default::default()) };
    Ok(match decisions::rollback_of(tx, d.id, id).await?.map(|c| c.verb) {
        Some(Verb::Rollback { to, from_phase, reason, .. }) => (Where { to, from: from_phase }, reason),
        _ => Default::default(),
    })
}

/// Requests the rollback of `d` within its own change, and leaves it to that change to start it once `d` is stored. Where there
/// is nothing to go back to, or no plan for it, `d` stays as it is and an alert says why.
pub(crate) async fn request(
    change: &mut Change,
    d: &mut Deployment,
    mode: RollbackMode,
    id: Option<DeploymentId>,
    by: &str,
) -> Result<(), Error> {
    let (to, reason) = asked(&mut change.tx, d, id).await?;
    let id = id.unwrap_or_else(|| DeploymentId(Uuid::now_v7()));
    let hosts = d.release_hosts(to.from);
    let undoing = undoing(&mut change.tx, d, to.from, mode).await?;
    let back = (hosts.as_slice(), &undoing);
    let same = |r: &Ready| r.of == d.id && r.hosts == hosts && r.undoing == undoing;
    let prepared = match change.ready.take() {
        Some(r) if same(&r) && catalog::stamp(&mut change.tx).await? == r.planned.stamp => {
            // What may be gone back to was asked again behind the plan.
            match target(&mut change.tx, d, to.to.as_deref()).await? {
                Ok(g) if g.artifact == r.release.artifact => Ok((r.release, r.planned)),
                _ => prepare(&mut change.tx, d, mode, &to, back, by, change.now).await?,
            }
        }
        _ => prepare(&mut change.tx, d, mode, &to, back, by, change.now).await?,
    };
    match prepared {
        Err(Unplannable(reason)) => {
            d.rolled_back_by = None;
            change.event(d, "deployment.rollback_impossible", Severity::Alert, json!({ "reason": reason })).await
        }
        Ok((release, planned)) => {
            d.rolled_back_by = Some(id);
            promotion::withdraw(change, d, by, "it was rolled back").await?;
            deployments::insert_release(&mut change.tx, &release).await?;
            let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            let new = New {
                id,
                project: d.project.clone(),
                environment: d.environment.clone(),
                release: release.id,
                version: release.version.clone(),
                kind: ReleaseKind::Rollback,
                rollback: Some(Rollback { of: d.id, mode }),
                requested_by: by.to_owned(),
                note: format!("rollback of {} ({}){why}", d.version, d.id),
                trace: change.cause.trace.clone(),
                pool: planned.pool.clone(),
                only_hosts: hosts,
                not_before: None,
                expires_at: change.now + Duration::from_secs(planned.expires_s),
                plan: planned.facts.clone(),
            };
            let (r, effects) = Deployment::request(new, change.now, &mut mint);
            deployments::insert_plan(&mut change.tx, id, &r.plan_digest, &planned.plan, change.now).await?;
            for e in effects {
                if let Effect::Event { what, severity, payload } = e {
                    change.event(&r, what, severity, payload).await?;
                }
            }
            deployments::insert(&mut change.tx, &r).await?;
            change.born.push((r, planned));
            Ok(())
        }
    }
}

async fn prepare(
    tx: &mut Tx,
    d: &Deployment,
    mode: RollbackMode,
    to: &Where,
    (hosts, undoing): (&[String], &Undoing),
    by: &str,
    now: Timestamp,
) -> Result<Result<(Release, Planned), Unplannable>, Error> {
    if hosts.is_empty() {
        return Ok(Err(Unplannable(nothing_ran(d, to.from))));
    }
    let good = match target(tx, d, to.to.as_deref()).await? {
        Ok(g) => g,
        Err((_, text)) => return Ok(Err(Unplannable(text))),
    };
    let artifact = artifacts::by_id(tx, good.artifact).await?.ok_or(Error::Missing("artifact"))?;
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
        Ok(s) => Ok(s.plan(&release, &artifact, Some(mode), hosts, undoing.clone()).map(|p| (release, p))),
        Err(e) => Ok(Err(e)),
    }
}
