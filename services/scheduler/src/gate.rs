//! What may be released where, now: what was verified before, what people marked, and whether automation is held off.
//!
//! All of it is asked when a deployment is requested, and again in the transaction that would start it, because a person may
//! have spoken since.

use crate::{Error, Refused, change::Change, promotion};
use serde_json::json;
use windlass_domain::{
    artifact::NO_ARTIFACT,
    deployment::{By, Deployment, State},
    event::Severity,
    release::ReleaseKind,
};
use windlass_store::{
    Tx, deployments,
    marks::{self, Hold, Mark},
};

/// Whether this is no person: a hook, a policy's promotion, the program itself. Takes an actor (`person:ann`) or what a
/// deployment keeps of it (`ann`).
pub(crate) fn is_automation(who: &str) -> bool {
    !who.starts_with("person:") && who.contains(':')
}

/// The mark that keeps a version out of an environment, as a refusal.
pub(crate) async fn marked(
    tx: &mut Tx,
    project: &str,
    environment: &str,
    version: &str,
) -> Result<Option<Refused>, Error> {
    // A pin is about versions: what ships none runs beside it.
    if version == NO_ARTIFACT {
        return Ok(None);
    }
    let found = marks::against(tx, project, environment, version).await?;
    Ok(found.map(|m| refusal(&m, version)))
}

pub(crate) fn refusal(m: &Mark, version: &str) -> Refused {
    (m.code(), m.text(version))
}

/// The hold that refuses what `who` asks for; none for people.
pub(crate) async fn held(tx: &mut Tx, project: &str, environment: &str, who: &str) -> Result<Option<Refused>, Error> {
    if !is_automation(who) {
        return Ok(None);
    }
    Ok(marks::held(tx, project, environment).await?.map(|h| (Hold::CODE, h.text())))
}

/// Whether a queued deployment may start now; else what stands against it. A rollback asks for no proof and knows no hold, but a
/// version that was vetoed meanwhile is not gone back to either.
pub(crate) async fn may_start(change: &mut Change, d: &Deployment) -> Result<Result<(), Refused>, Error> {
    let tx = &mut change.tx;
    if let Some(why) = marked(tx, &d.project, &d.environment, &d.version).await? {
        return Ok(Err(why));
    }
    // Who takes a deployment up again is a person, whoever requested it.
    if d.kind != ReleaseKind::Rollback && d.run == 1 {
        if let Some(why) = held(tx, &d.project, &d.environment, &d.requested_by).await? {
            return Ok(Err(why));
        }
        if let Err(missing) = promotion::may_start(change, d).await? {
            return Ok(Err(("not_verified", missing)));
        }
    }
    Ok(Ok(()))
}

/// Something newer started in the environment since `d` did, as a refusal; with `that_ran`, only what ran on a host or still runs.
pub(crate) async fn superseded(tx: &mut Tx, d: &Deployment, that_ran: bool) -> Result<Option<Refused>, Error> {
    for id in deployments::started_after(tx, d).await? {
        let Some(newer) = deployments::get(tx, id).await?.map(|s| s.deployment) else { continue };
        // What was tried to take `d` back is no release of its own.
        let goes_back_from_it = newer.rollback.as_ref().is_some_and(|r| r.of == d.id);
        if that_ran && (goes_back_from_it || leaves_no_trace(&newer, d)) {
            continue;
        }
        let kind = if newer.kind == ReleaseKind::Rollback { "the rollback to" } else { "version" };
        let since = newer.started_at.map(|t| t.format("%Y-%m-%d %H:%M UTC").to_string()).unwrap_or_default();
        let text = format!(
            "{kind} {} (deployment {id}, {}) started in {}/{} after it, at {since}: that is what counts there now; go on from \
             that one, or release the version you want",
            newer.version,
            newer.state.as_str().replace('_', " "),
            d.project,
            d.environment
        );
        return Ok(Some(("superseded", text)));
    }
    Ok(None)
}

/// It came to no good end, and on all hosts that it ran on `d` ran too: going back from `d` takes them along.
fn leaves_no_trace(newer: &Deployment, d: &Deployment) -> bool {
    let mine = d.touched_hosts();
    newer.state.is_terminal()
        && newer.state != State::Succeeded
        && newer.unknown_hosts().is_empty()
        && newer.touched_hosts().iter().all(|h| mine.contains(h))
}

impl Change {
    /// Keeps automation off an environment until a person lets it.
    pub(crate) async fn hold(&mut self, d: &Deployment, by: &str, reason: &str) -> Result<(), Error> {
        let hold = Hold {
            project: d.project.clone(),
            environment: d.environment.clone(),
            by: by.to_owned(),
            reason: reason.to_owned(),
            at: self.now,
            deployment: Some(d.id),
        };
        marks::hold(&mut self.tx, &hold).await?;
        let payload = json!({
            "by": by, "reason": reason, "version": d.version, "deployment": d.id,
            "remedy": "hooks and promotions are refused here until a person releases the hold",
        });
        self.environment_event(d, "environment.held", Severity::Action, payload).await
    }

    /// Says that the version of `d` is never to run in its environment again.
    pub(crate) async fn veto(&mut self, d: &Deployment, said: &By) -> Result<(), Error> {
        let mark = Mark {
            project: d.project.clone(),
            environment: Some(d.environment.clone()),
            kind: marks::Kind::Veto,
            version: d.version.clone(),
            by: said.who.clone(),
            reason: said.reason.clone(),
            at: said.at,
        };
        Ok(marks::set(&mut self.tx, &mark).await?)
    }

    /// Tells of [`Change::veto`].
    pub(crate) async fn vetoed(&mut self, d: &Deployment, said: &By) -> Result<(), Error> {
        let payload = json!({ "by": said.who, "reason": said.reason, "version": d.version, "deployment": d.id });
        self.environment_event(d, "environment.vetoed", Severity::Notice, payload).await
    }
}
