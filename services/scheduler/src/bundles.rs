//! Bundles: one look at one bundle, and what is asked of it.
//!
//! A look reads the members' deployments and tells the bundle what it sees; the bundle says what follows. Members are carried
//! by the same changes as any deployment, within the transaction that saves the bundle.

use crate::{
    Error, Refused,
    change::{Cause, Change, Ring},
    planner::Planned,
    request::{self, person},
    rights,
    rollback::{self, Where},
};
use std::collections::{BTreeMap, VecDeque};
use uuid::Uuid;
use windlass_contracts::command::{BundleAsk, BundleRequest, Command, Request, Verb};
use windlass_domain::{
    approval::Approval,
    bundle::{Bundle, Effect, Input, New, NewMember, Refusal, Seen, Turn},
    deployment::{self, Deployment},
    event::{Aggregate, NewEvent, Severity},
    ids::{BundleId, DeploymentId, EventId},
};
use windlass_store::{Store, Tx, bundles, deployments, events};

/// One transaction's worth of progress; `None` when there is nothing to do.
pub(crate) async fn one_move(store: &Store, id: BundleId) -> Result<Option<Vec<Ring>>, Error> {
    let mut read = store.read().await?;
    let stored = bundles::get(&mut read, id).await?;
    if let Some(command) = bundles::queued(&mut read, id).await?.into_iter().next() {
        drop(read);
        return Box::pin(decide(store, id, stored, command)).await.map(Some);
    }
    let Some(stored) = stored else { return Ok(None) };
    let now = read.now().await?;
    let (mut next, mut effects) = (stored.bundle.clone(), Vec::new());
    let mut inputs = Vec::new();
    for m in &stored.bundle.members {
        inputs.extend(seen(&mut read, m.deployment).await?.map(|s| Input::Seen(Box::new(s))));
    }
    drop(read);
    for input in inputs.into_iter().chain([Input::Tick]) {
        if let Ok((b, e)) = next.apply(input, now) {
            next = b;
            effects.extend(e);
        }
    }
    if next == stored.bundle && effects.is_empty() {
        return Ok(None);
    }
    let mut change = Change::begin(store, Cause::own(None)).await?;
    match Box::pin(carry_out(&mut change, None, next, effects)).await? {
        Ok(next) => {
            bundles::save(&mut change.tx, &next, stored.version, change.now).await?;
            change.commit().await.map(Some)
        }
        Err((code, text)) => {
            tracing::warn!(bundle = %id, code, text, "what a bundle asked for was refused");
            Ok(None)
        }
    }
}

async fn seen(tx: &mut Tx, id: DeploymentId) -> Result<Option<Seen>, Error> {
    let Some(d) = deployments::get(tx, id).await? else { return Ok(None) };
    let back = match d.deployment.rolled_back_by {
        Some(r) => deployments::get(tx, r).await?.map(|r| r.deployment.state),
        None => None,
    };
    Ok(Some(Seen::of(&d.deployment, back)))
}

/// Decides one command.
async fn decide(
    store: &Store,
    id: BundleId,
    stored: Option<bundles::Stored>,
    command: Command,
) -> Result<Vec<Ring>, Error> {
    let cause = || Cause { actor: command.actor.clone(), trace: command.trace.clone() };
    let Verb::Bundle { ask, .. } = &command.verb else { return Err(Error::Missing("bundle command")) };
    let refused = match (ask, stored) {
        (BundleAsk::Request(_), Some(_)) => {
            let mut change = Change::begin(store, cause()).await?;
            change.outcome(command.id, None, Ok(format!("bundle {id} exists already"))).await?;
            return change.commit().await;
        }
        (BundleAsk::Request(r), None) => match Box::pin(create(store, cause(), id, &command, r)).await? {
            Ok(rings) => return Ok(rings),
            Err(why) => why,
        },
        (_, None) => ("not_found", format!("there is no bundle {id}: its request was refused")),
        (ask, Some(stored)) => match Box::pin(act(store, cause(), stored, &command, ask)).await? {
            Ok(rings) => return Ok(rings),
            Err(why) => why,
        },
    };
    // What was tried is gone with its transaction; only the refusal stays.
    let mut change = Change::begin(store, cause()).await?;
    change.outcome(command.id, None, Err(refused)).await?;
    change.commit().await
}

async fn create(
    store: &Store,
    cause: Cause,
    id: BundleId,
    command: &Command,
    r: &BundleRequest,
) -> Result<Result<Vec<Ring>, Refused>, Error> {
    let places = r
        .members
        .iter()
        .map(|m| (m.name.as_str(), m.project.as_str(), m.request.environment.as_str(), m.needs.as_slice()));
    if let Err(text) = windlass_domain::bundle::check_members(places) {
        return Ok(Err(("invalid", text)));
    }
    let mut prepared = Vec::new();
    let mut read = store.read().await?;
    for m in &r.members {
        let own = Command { project: m.project.clone(), ..command.clone() };
        match request::prepare(&mut read, &own, &m.request).await? {
            Ok(p) => prepared.push((own, m, p)),
            Err((code, text)) => return Ok(Err((code, format!("member {}: {text}", m.name)))),
        }
    }
    drop(read);
    let mut change = Change::begin(store, cause).await?;
    let (mut members, mut expires) = (Vec::new(), Vec::new());
    for (own, m, p) in &prepared {
        let turn = Turn { bundle: id, member: m.name.clone(), released: false };
        let d = request::insert(&mut change, own, &m.request, p, Some(turn)).await?;
        expires.push(d.expires_at);
        members.push(NewMember {
            name: m.name.clone(),
            project: d.project.clone(),
            environment: d.environment.clone(),
            version: d.version.clone(),
            needs: m.needs.clone(),
            deployment: d.id,
            unapproved: d.state == deployment::State::AwaitingApproval,
            plan_digest: d.plan_digest,
        });
    }
    let new = New {
        id,
        title: r.title.clone(),
        requested_by: person(&command.actor),
        note: r.note.clone(),
        on_failure: r.on_failure,
        expires_at: expires.into_iter().min().unwrap_or(change.now),
        members,
    };
    let (b, effects) = Bundle::request(new, change.now);
    bundles::insert(&mut change.tx, &b).await?;
    let b = match Box::pin(carry_out(&mut change, Some(command), b, effects)).await? {
        Ok(b) => b,
        Err(why) => return Ok(Err(why)),
    };
    bundles::save(&mut change.tx, &b, 1, change.now).await?;
    change.rings.push(Ring::Bundle(id));
    let detail = format!("bundle {id} is {}", b.state.as_str());
    change.outcome(command.id, None, Ok(detail)).await?;
    change.commit().await.map(Ok)
}

/// Carries out a command to a bundle that exists. Refused: nothing of it stays.
async fn act(
    store: &Store,
    cause: Cause,
    stored: bundles::Stored,
    command: &Command,
    ask: &BundleAsk,
) -> Result<Result<Vec<Ring>, Refused>, Error> {
    let by = person(&command.actor);
    let b = &stored.bundle;
    let (approvals, token): (&[Approval], _) = match ask {
        BundleAsk::Approve { approvals, token, .. } => (approvals, *token),
        _ => (&[], None),
    };
    // Planned before the transaction, as for deployments: the person must have looked at what would run now.
    let mut planned: BTreeMap<DeploymentId, Planned> = BTreeMap::new();
    let mut read = store.read().await?;
    for a in approvals {
        if let Some(d) = deployments::get(&mut read, a.deployment).await?
            && let Ok(p) = request::plan_now(&mut read, &d.deployment).await?
        {
            planned.insert(a.deployment, p);
        }
    }
    drop(read);
    let mut change = Change::begin(store, cause).await?;
    let (next, effects) = match b.apply(input(b, ask, by.clone()), change.now) {
        Ok(done) => done,
        Err(refusal) => return Ok(Err(refused(refusal))),
    };
    if let Some(changed) = drift(&mut change, approvals, &planned).await? {
        let text = format!("the plan of {changed} has changed since; read the bundle and decide again");
        change.outcome(command.id, None, Err(("plan_changed", text))).await?;
        change.rings.push(Ring::Bundle(b.id));
        return change.commit().await.map(Ok);
    }
    let mut taken = 0;
    for a in approvals {
        if a.person != by || b.members.iter().all(|m| m.deployment != a.deployment) {
            return Ok(Err(("invalid", "the decision is not one of the person who sends it on this bundle".into())));
        }
        let Some(d) = deployments::get(&mut change.tx, a.deployment).await? else { continue };
        if let Some(why) = rights::gone(&mut change.tx, a, token, &d.deployment.project).await? {
            return Ok(Err(why));
        }
        // Another's approval was the last it waited for: this one is not needed there any more.
        if d.deployment.state != deployment::State::AwaitingApproval {
            continue;
        }
        taken += 1;
        let input = deployment::Input::Decide(a.clone());
        if let Err(r) = change.apply(&d.deployment, d.version, input, planned.get(&a.deployment)).await? {
            return Ok(Err((r.code(), format!("{}/{}: {r}", d.deployment.project, d.deployment.environment))));
        }
        deployments::insert_approval(&mut change.tx, a).await?;
    }
    if taken == 0 && !approvals.is_empty() {
        return Ok(Err(("nothing_to_do", "no member's plan waits for an approval any more".into())));
    }
    let next = match Box::pin(carry_out(&mut change, Some(command), next, effects)).await? {
        Ok(b) => b,
        Err(why) => return Ok(Err(why)),
    };
    bundles::save(&mut change.tx, &next, stored.version, change.now).await?;
    change.rings.push(Ring::Bundle(next.id));
    let detail = format!("bundle {} is {}", next.id, next.state.as_str());
    change.outcome(command.id, None, Ok(detail)).await?;
    change.commit().await.map(Ok)
}

fn input(b: &Bundle, ask: &BundleAsk, by: String) -> Input {
    match ask.clone() {
        // Asked before: a bundle that exists is not requested again.
        BundleAsk::Request(_) => Input::Tick,
        BundleAsk::Approve { digest, approvals, comment, .. } => {
            let of = |a: &Approval| b.members.iter().find(|m| m.deployment == a.deployment).map(|m| m.name.clone());
            Input::Approve { by, digest, members: approvals.iter().filter_map(of).collect(), comment }
        }
        BundleAsk::Reject { digest, comment } => Input::Reject { by, digest, comment },
        BundleAsk::Cancel { reason } => Input::Cancel { by, reason },
        BundleAsk::Pause { reason } => Input::Pause { by, reason },
        BundleAsk::Resume => Input::Resume { by },
        BundleAsk::Retry { members } => Input::Retry { by, members },
        BundleAsk::Skip { member, reason } => Input::Skip { by, member, reason },
        BundleAsk::Rollback { mode, reason, members } => Input::Rollback { by, mode, reason, members },
    }
}

fn refused(r: Refusal) -> Refused {
    (r.code(), r.to_string())
}

/// Gives members whose plan would be another now that plan; the answer names one of them.
async fn drift(
    change: &mut Change,
    approvals: &[Approval],
    planned: &BTreeMap<DeploymentId, Planned>,
) -> Result<Option<String>, Error> {
    let mut changed = None;
    for a in approvals {
        let (Some(p), Some(d)) = (planned.get(&a.deployment), deployments::get(&mut change.tx, a.deployment).await?)
        else {
            continue;
        };
        if p.facts.digest != d.deployment.plan_digest {
            let input = deployment::Input::PlanChanged(Box::new(p.facts.clone()));
            if change.apply(&d.deployment, d.version, input, Some(p)).await?.is_ok() {
                changed = Some(format!("{}/{}", d.deployment.project, d.deployment.environment));
            }
        }
    }
    Ok(changed)
}

/// Carries out what a bundle asks of its members, and tells it what became of that, until nothing is left.
async fn carry_out(
    change: &mut Change,
    command: Option<&Command>,
    mut b: Bundle,
    effects: Vec<Effect>,
) -> Result<Result<Bundle, Refused>, Error> {
    let mut open: VecDeque<Effect> = effects.into();
    while let Some(effect) = open.pop_front() {
        let told = match effect {
            Effect::Event { what, severity, payload } => {
                event(change, &b, what, severity, payload).await?;
                None
            }
            Effect::Release { deployment } => {
                tell(change, deployment, deployment::Input::TurnCame).await?;
                change.rings.push(Ring::Deployment(deployment));
                None
            }
            Effect::Cancel { deployment, by, reason } => {
                // One that has ended by itself meanwhile will be seen so.
                tell(change, deployment, deployment::Input::Cancel { by, reason }).await?;
                None
            }
            Effect::Retry { deployment, by } => {
                let input = deployment::Input::Retry { step: None, whole_wave: false, by, hosts: vec![] };
                if let Some(Err(r)) = tell(change, deployment, input).await? {
                    return Ok(Err((r.code(), r.to_string())));
                }
                None
            }
            Effect::Redo { member, deployment, by } => {
                match Box::pin(redo(change, &b, command, &member, deployment, &by)).await? {
                    Ok(input) => Some(input),
                    Err(why) => return Ok(Err(why)),
                }
            }
            Effect::RollBack { deployment, by, mode, reason } => {
                let why = roll_back(change, deployment, by, mode, reason).await?;
                why.map(|reason| Input::Refused { deployment, reason })
            }
        };
        if let Some(input) = told {
            match b.apply(input, change.now) {
                Ok((next, more)) => {
                    b = next;
                    open.extend(more);
                }
                Err(r) => return Ok(Err(refused(r))),
            }
        }
    }
    Ok(Ok(b))
}

async fn tell(
    change: &mut Change,
    id: DeploymentId,
    input: deployment::Input,
) -> Result<Option<Result<Deployment, deployment::Refusal>>, Error> {
    match deployments::get(&mut change.tx, id).await? {
        Some(d) => change.apply(&d.deployment, d.version, input, None).await.map(Some),
        None => Ok(None),
    }
}

/// The answer says why not.
async fn roll_back(
    change: &mut Change,
    id: DeploymentId,
    by: String,
    mode: windlass_domain::release::RollbackMode,
    reason: String,
) -> Result<Option<String>, Error> {
    let Some(stored) = deployments::get(&mut change.tx, id).await? else { return Ok(None) };
    let d = &stored.deployment;
    if d.rolled_back_by.is_some() && !d.state.is_terminal() {
        return Ok(None);
    }
    let input = if d.state.is_before_running() {
        deployment::Input::Cancel { by, reason }
    } else {
        // Asked before anything is stopped, as for a deployment alone.
        if !d.touched_hosts().is_empty()
            && let Err((_, why)) = rollback::check(&mut change.tx, d, &Where::default()).await?
        {
            return Ok(Some(why));
        }
        deployment::Input::Rollback { by, mode, rollback: DeploymentId(Uuid::now_v7()), reason }
    };
    let d = d.clone();
    Ok(change.apply(&d, stored.version, input, None).await?.err().map(|r| r.to_string()))
}

/// Requests the release of an ended member anew; its turn has come already.
async fn redo(
    change: &mut Change,
    b: &Bundle,
    command: Option<&Command>,
    member: &str,
    old: DeploymentId,
    by: &str,
) -> Result<Result<Input, Refused>, Error> {
    let stored = deployments::get(&mut change.tx, old).await?.ok_or(Error::Missing("deployment"))?.deployment;
    let release = deployments::release(&mut change.tx, stored.release).await?.ok_or(Error::Missing("release"))?;
    let id = DeploymentId(Uuid::now_v7());
    let ask = Request {
        deployment: id,
        environment: stored.environment.clone(),
        artifact: release.artifact,
        kind: release.kind,
        inputs: release.inputs.clone(),
        hosts: stored.only_hosts.clone(),
        add_hosts: release.add_hosts.clone(),
        exclude_hosts: release.exclude_hosts.clone(),
        values: release.values.clone(),
        not_before: None,
        note: format!("{member} of bundle {} again, after {old}", b.title),
    };
    let own = Command {
        id: command.map_or(Uuid::nil().into(), |c| c.id),
        project: stored.project.clone(),
        environment: Some(stored.environment.clone()),
        deployment: Some(id),
        actor: command.map_or_else(|| format!("person:{by}"), |c| c.actor.clone()),
        verb: Verb::Resume,
        created_at: change.now,
        trace: change.cause.trace.clone(),
    };
    let prepared = match request::prepare(&mut change.tx, &own, &ask).await? {
        Ok(p) => p,
        Err((code, text)) => return Ok(Err((code, format!("member {member}: {text}")))),
    };
    let turn = Turn { bundle: b.id, member: member.to_owned(), released: true };
    bundles::add_member(&mut change.tx, b.id, id, &stored.project).await?;
    let d = request::insert(change, &own, &ask, &prepared, Some(turn)).await?;
    change.rings.push(Ring::Deployment(id));
    let unapproved = d.state == deployment::State::AwaitingApproval;
    Ok(Ok(Input::Redone { member: member.to_owned(), deployment: id, plan_digest: d.plan_digest, unapproved }))
}

async fn event(
    change: &mut Change,
    b: &Bundle,
    what: &str,
    severity: Severity,
    payload: serde_json::Value,
) -> Result<(), Error> {
    // Of one project only where all members are of it: what tells of several is not shown to who may see one.
    let first = b.members.first().map(|m| m.project.clone());
    let project = first.filter(|p| b.members.iter().all(|m| m.project == *p));
    let event = NewEvent {
        id: EventId(Uuid::now_v7()),
        aggregate: Aggregate::Bundle,
        aggregate_id: b.id.to_string(),
        what: what.into(),
        project,
        environment: None,
        severity,
        actor: change.cause.actor.clone(),
        at: change.now,
        payload,
        trace: change.cause.trace.clone(),
    };
    events::append(&mut change.tx, event).await?;
    Ok(())
}
