//! Promotion: what must have been verified before a deployment may be requested and started, what a success proves, and what
//! a policy asks for by itself.
//!
//! The question is asked twice: when a deployment is requested, and in the transaction that would start it, because what was
//! verified then may have been rolled back since.

use crate::{
    Error,
    change::{Cause, Change, Ring},
    request,
};
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;
use windlass_contracts::command::{Command, Request, Verb};
use windlass_domain::{
    Timestamp,
    catalog::{Environment, Item, Kind, Policy},
    deployment::Deployment,
    event::Severity,
    ids::{ArtifactId, CommandId, DeploymentId},
    promotion::{self, Missing, Passed},
    release::{Release, ReleaseKind},
};
use windlass_store::{Store, Tx, artifacts, catalog, deployments, promotions};

/// Whether this artifact may go to this environment, or what is missing.
pub(crate) async fn check(
    tx: &mut Tx,
    project: &str,
    environment: &str,
    kind: ReleaseKind,
    artifact: ArtifactId,
    at: Timestamp,
) -> Result<Result<Passed, Box<Missing>>, Error> {
    // What is not there is refused by the planner, with its own words.
    let Some(to) = environment_of(tx, project, environment).await? else { return Ok(Ok(Passed::NotAsked)) };
    if to.promote_from.is_empty() || kind == ReleaseKind::Rollback {
        return Ok(Ok(Passed::NotAsked));
    }
    let Some(a) = artifacts::by_id(tx, artifact).await? else { return Ok(Ok(Passed::NotAsked)) };
    let policies = policies_of(tx, &to).await?;
    let skips = policies.iter().any(|p| p.hotfix_skips_promotion);
    let verified = promotions::of_digest(tx, project, &a.digest).await?;
    Ok(promotion::check(&to, kind, skips, &a.version, &a.digest, &verified, at))
}

async fn environment_of(tx: &mut Tx, project: &str, name: &str) -> Result<Option<Environment>, Error> {
    let found = catalog::get(tx, Kind::Environment, &format!("{project}/{name}")).await?;
    Ok(match found.map(|e| e.item) {
        Some(Item::Environment(e)) => Some(e),
        _ => None,
    })
}

async fn policies_of(tx: &mut Tx, e: &Environment) -> Result<Vec<Policy>, Error> {
    let all = catalog::all(tx, Kind::Policy).await?;
    Ok(all
        .into_iter()
        .filter_map(|i| match i {
            Item::Policy(p) if p.matches.fits(e) => Some(p),
            _ => None,
        })
        .collect())
}

/// A deployment ended well: where it was of all of its environment, its artifact is verified there, and the policies that
/// wait for it ask for what comes next.
pub(crate) async fn verified(change: &mut Change, d: &Deployment, release: &Release) -> Result<(), Error> {
    let artifact = release.artifact;
    if d.rollback.is_some() || !d.only_hosts.is_empty() || !release.exclude_hosts.is_empty() {
        return Ok(());
    }
    let Some(a) = artifacts::by_id(&mut change.tx, artifact).await? else { return Ok(()) };
    let proof = promotions::Proof {
        environment: d.environment.clone(),
        digest: a.digest.clone(),
        version: a.version.clone(),
        artifact,
        deployment: d.id,
        at: change.now,
        withdrawn: None,
    };
    // Promotions before proofs: who leaves one waiting locks them in this order too.
    if promotions::wake(&mut change.tx, &d.project, &a.digest, change.now).await? {
        change.rings.push(Ring::Promotions);
    }
    promotions::verify(&mut change.tx, &d.project, &proof).await?;
    let payload = json!({ "digest": a.digest, "version": a.version });
    change.event(d, "deployment.verified", Severity::Info, payload).await?;
    let Some(from) = environment_of(&mut change.tx, &d.project, &d.environment).await? else { return Ok(()) };
    for p in policies_of(&mut change.tx, &from).await? {
        for name in p.on_verified.iter().filter(|n| **n != d.environment) {
            let Some(to) = environment_of(&mut change.tx, &d.project, name).await? else { continue };
            let ask = promotions::Promotion {
                project: d.project.clone(),
                environment: name.clone(),
                digest: a.digest.clone(),
                from: d.environment.clone(),
                policy: p.name.clone(),
                artifact,
                deployment: DeploymentId(Uuid::now_v7()),
                due_at: change.now + Duration::from_secs(to.verified_for_s()),
            };
            if promotions::ask(&mut change.tx, &ask, change.now).await? {
                change.rings.push(Ring::Promotions);
            }
        }
    }
    Ok(())
}

/// What a deployment proved is taken back.
pub(crate) async fn withdraw(change: &mut Change, d: &Deployment, by: &str, reason: &str) -> Result<(), Error> {
    if promotions::withdraw(&mut change.tx, d.id, by, reason, change.now).await? {
        let payload = json!({ "by": by, "reason": reason });
        change.event(d, "deployment.verification_withdrawn", Severity::Notice, payload).await?;
    }
    Ok(())
}

/// Whether a queued deployment may start now; the text says what is missing since it was requested.
pub(crate) async fn may_start(change: &mut Change, d: &Deployment) -> Result<Result<(), String>, Error> {
    let release = deployments::release(&mut change.tx, d.release).await?.ok_or(Error::Missing("release"))?;
    let now = change.now;
    let asked = check(&mut change.tx, &d.project, &d.environment, d.kind, release.artifact, now).await?;
    Ok(asked.map(|_| ()).map_err(|m| m.to_string()))
}

/// Whether the policy that asked for a promotion asks for it still: a person may have taken it away while the promotion waited.
async fn is_still_asked(tx: &mut Tx, p: &promotions::Promotion) -> Result<bool, Error> {
    let Some(from) = environment_of(tx, &p.project, &p.from).await? else { return Ok(false) };
    let asks = |policy: &Policy| policy.name == p.policy && policy.on_verified.contains(&p.environment);
    Ok(policies_of(tx, &from).await?.iter().any(asks))
}

/// Requests the oldest promotion whose time has come; `None` when there is none. Approvals, locks and everything else are
/// those of any other deployment.
pub(crate) async fn next(store: &Store) -> Result<Option<Vec<Ring>>, Error> {
    let mut read = store.read().await?;
    let now = read.now().await?;
    let Some(p) = promotions::due(&mut read, now, 1).await?.into_iter().next() else { return Ok(None) };
    let ask = Request {
        deployment: p.deployment,
        environment: p.environment.clone(),
        artifact: p.artifact,
        kind: ReleaseKind::Normal,
        inputs: Default::default(),
        hosts: vec![],
        add_hosts: vec![],
        exclude_hosts: vec![],
        values: Default::default(),
        not_before: None,
        note: format!("verified in {}, asked for by policy {}", p.from, p.policy),
    };
    // Not stored as a command: nobody sent it. It only says in whose name the deployment is requested.
    let command = Command {
        id: CommandId(Uuid::nil()),
        project: p.project.clone(),
        environment: Some(p.environment.clone()),
        deployment: Some(p.deployment),
        actor: format!("policy:{}", p.policy),
        verb: Verb::Resume,
        created_at: now,
        trace: None,
    };
    let asked = is_still_asked(&mut read, &p).await?;
    let missing = check(&mut read, &p.project, &p.environment, ask.kind, p.artifact, now).await?.err();
    let prepared = match (asked, &missing) {
        (false, _) => Err(("policy_changed", format!("policy {} does not ask for it any more", p.policy))),
        (true, Some(m)) => Err(("not_verified", m.to_string())),
        (true, None) => request::prepare(&mut read, &command, &ask).await?,
    };
    drop(read);
    let mut change = Change::begin(store, Cause { actor: command.actor.clone(), trace: None }).await?;
    // A proof may have come since: behind the row it is seen, or waits, and then wakes what is left waiting here.
    let is_due = promotions::lock_due(&mut change.tx, &p).await?;
    let now_missing = check(&mut change.tx, &p.project, &p.environment, ask.kind, p.artifact, now).await?.err();
    if !is_due || missing.is_some() && now_missing.is_none() {
        return Ok(Some(vec![Ring::Promotions]));
    }
    match prepared {
        // The time that it must have been good for was made longer; or not all that must have verified it have.
        Err(_) if asked && let Some(Missing::TooSoon { until, .. }) = missing.as_deref() => {
            promotions::postpone(&mut change.tx, &p, *until).await?;
        }
        Err((_, reason)) if asked && missing.is_some() => {
            promotions::settle(&mut change.tx, &p, "waiting", &reason).await?;
        }
        Ok(prepared) => {
            promotions::settle(&mut change.tx, &p, "requested", "").await?;
            request::insert(&mut change, &command, &ask, &prepared, None).await?;
        }
        Err((code, reason)) => {
            promotions::settle(&mut change.tx, &p, "refused", &reason).await?;
            change.refused_event(p.deployment, &p.project, &p.environment, code, &reason).await?;
        }
    }
    change.commit().await.map(Some)
}
