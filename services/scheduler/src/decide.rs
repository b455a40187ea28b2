//! Commands to inputs: each command is decided once, in the transaction that carries it out.

use crate::{
    Error, Refused, amend,
    change::{Cause, Change, Ring, mint},
    gate, overriding, request, rights,
    rollback::{self, Where},
};
use tracing::Instrument;
use windlass_contracts::command::{Command, Verb};
use windlass_domain::{
    deployment::{By, Deployment, Input, Refusal, State},
    ids::DeploymentId,
    release::RollbackMode,
};
use windlass_runtime::telemetry;
use windlass_store::{Store, Tx, catalog, decisions, deployments};

/// Decides the oldest command of a deployment; `None` when there is none.
pub(crate) async fn next(store: &Store, id: DeploymentId) -> Result<Option<Vec<Ring>>, Error> {
    let mut read = store.read().await?;
    let Some(command) = decisions::queued(&mut read, id).await?.into_iter().next() else { return Ok(None) };
    if matches!(command.verb, Verb::Override { .. }) && overriding::waits(&mut read, id).await? {
        return Ok(None);
    }
    let span = tracing::info_span!("decide", command = %command.id, deployment = %id);
    let span = telemetry::span_with_parent(span, command.trace.as_deref());
    Box::pin(decide(store, read, command, id)).instrument(span).await
}

async fn decide(store: &Store, mut read: Tx, command: Command, id: DeploymentId) -> Result<Option<Vec<Ring>>, Error> {
    let stored = deployments::get(&mut read, id).await?;
    // Planning is done before the transaction, which then only checks that the catalog is still the same.
    let planned = match &stored {
        // What was taken up again keeps its plan.
        Some(s) if s.deployment.state.is_before_running() && s.deployment.run == 1 => {
            request::plan_now(&mut read, &s.deployment).await?.ok()
        }
        _ => None,
    };
    let amended = match (&stored, &command.verb) {
        (Some(s), Verb::Retry { inputs, .. }) if !inputs.is_empty() => {
            Some(amend::prepare(&mut read, &s.deployment, inputs).await?)
        }
        _ => None,
    };
    let back = match (&stored, &command.verb) {
        (Some(s), Verb::Rollback { .. }) => Some(rollback_of(&mut read, &s.deployment, &command).await?),
        _ => None,
    };
    let prepared = match (&stored, &command.verb) {
        (None, Verb::Request(r)) => Some(request::prepare(&mut read, &command, r).await?),
        _ => None,
    };
    drop(read);

    let cause = Cause { actor: command.actor.clone(), trace: command.trace.clone() };
    let mut change = Change::begin(store, cause).await?;
    match (&command.verb, stored) {
        (Verb::Request(_), Some(s)) => {
            let text = format!("deployment {} exists already", s.deployment.id);
            change.outcome(command.id, Some(s.deployment.id), Ok(text)).await?;
        }
        (Verb::Request(r), None) => {
            // Always there: it was made from the same row that is not there.
            let Some(prepared) = prepared else { return Ok(Some(vec![Ring::Deployment(id)])) };
            Box::pin(request::decide(&mut change, &command, r, prepared)).await?;
        }
        (_, None) => {
            let text = format!("there is no deployment {id}: its request was refused");
            change.outcome(command.id, None, Err(("not_found", text))).await?;
        }
        (_, Some(stored)) => {
            let d = &stored.deployment;
            if matches!(command.verb, Verb::Decide { .. } | Verb::Accept { .. })
                && let Some(now) = planned.as_ref().filter(|p| p.facts.digest != d.plan_digest)
            {
                // The person looked at a plan that is no longer what would run: say so, and show the new one.
                let changed = Input::PlanChanged(Box::new(now.facts.clone()));
                let next = change.apply(d, stored.version, changed, planned.as_ref()).await?;
                let digest = next.map(|n| n.plan_digest).unwrap_or_default();
                let text = format!("the plan has changed since; it is now {digest}: read it and decide again");
                change.outcome(command.id, Some(id), Err(("plan_changed", text))).await?;
            } else {
                if let Some(Ok(a)) = &amended
                    && catalog::stamp(&mut change.tx).await? != a.planned.stamp
                {
                    // Planned from a catalog that is no more: once again, the command still waits.
                    return Ok(Some(vec![Ring::Deployment(id)]));
                }
                let what =
                    Whole { d, version: stored.version, command: &command, planned: planned.as_ref(), amended, back };
                match one(&mut change, what).await? {
                    Ok(next) => {
                        let text = format!("deployment {id} is {}", next.state.as_str());
                        change.outcome(command.id, Some(id), Ok(text)).await?;
                    }
                    Err((code, text)) => change.outcome(command.id, Some(id), Err((code, text))).await?,
                }
            }
        }
    }
    change.commit().await.map(Some)
}

/// A command with what it is about.
struct Whole<'a> {
    d: &'a Deployment,
    version: u64,
    command: &'a Command,
    /// The plan as of now, of a deployment that has yet to start.
    planned: Option<&'a crate::planner::Planned>,
    /// The plan with the inputs that the command brings.
    amended: Option<Result<amend::Amended, Refused>>,
    /// The rollback that is asked for, planned.
    back: Option<Result<rollback::Ready, Refused>>,
}

/// Asked before anything is stopped: a deployment must not be aborted for a rollback that cannot be.
async fn rollback_of(
    tx: &mut Tx,
    d: &Deployment,
    command: &Command,
) -> Result<Result<rollback::Ready, Refused>, Error> {
    let by = request::person(&command.actor);
    let (Some(input), Some(at)) = (input(&command.verb, by.clone()), Where::of(&command.verb)) else {
        return Ok(Err(("invalid", "this asks for no rollback".into())));
    };
    let (d, now) = (rollback::ready(tx, d).await?, tx.now().await?);
    if let Err(r) = d.apply(input, now, &mut mint) {
        return Ok(Err((r.code(), r.to_string())));
    }
    let mode = match &command.verb {
        Verb::Rollback { mode, .. } => *mode,
        _ => RollbackMode::Normal,
    };
    rollback::plan(tx, &d, mode, &at, &by).await
}

async fn one(change: &mut Change, what: Whole<'_>) -> Result<Result<Deployment, Refused>, Error> {
    let Whole { d, version, command, planned, amended, back } = what;
    let by = request::person(&command.actor);
    let code = |r: Refusal| (r.code(), r.to_string());
    let input = match (&command.verb, &amended) {
        (Verb::Retry { reason, hosts, inputs, .. }, Some(Ok(a))) => Some(Input::Amend {
            by: by.clone(),
            inputs: inputs.clone(),
            facts: Box::new(a.planned.facts.clone()),
            hosts: hosts.clone(),
            reason: reason.clone(),
        }),
        (Verb::Retry { .. }, Some(Err(why))) => return Ok(Err(why.clone())),
        _ => input(&command.verb, by.clone()),
    };
    let Some(input) = input else {
        return Ok(Err(("invalid", "a request is not a command to an existing deployment".into())));
    };
    match &command.verb {
        Verb::Rollback { veto, reason, .. } => {
            match back {
                Some(Ok(ready)) => change.ready = Some(ready),
                Some(Err(why)) => return Ok(Err(why)),
                None => {}
            }
            let d = rollback::ready(&mut change.tx, d).await?;
            if let Err(r) = d.apply(input.clone(), change.now, &mut mint) {
                return Ok(Err(code(r)));
            }
            if let Some(at) = Where::of(&command.verb)
                && let Err(why) = rollback::check(&mut change.tx, &d, &at).await?
            {
                return Ok(Err(why));
            }
            // Nothing refuses it any more. The mark's row goes before all heads of events, as everywhere.
            let said = By { who: by, reason: reason.clone(), at: change.now };
            if *veto {
                change.veto(&d, &said).await?;
            }
            let result = change.apply(&d, version, input, planned).await?;
            if *veto {
                change.vetoed(&d, &said).await?;
            }
            return Ok(result.map_err(code));
        }
        Verb::Retry { .. } if matches!(d.state, State::Failed | State::Aborted) => {
            // Taken up again only while it is still what counts there.
            if let Some(why) = gate::superseded(&mut change.tx, d, false).await? {
                return Ok(Err(why));
            }
            if let Some(why) = gate::marked(&mut change.tx, &d.project, &d.environment, &d.version).await? {
                return Ok(Err(why));
            }
        }
        Verb::Override { hosts, .. } => {
            if let Some(why) = overriding::spoken(&mut change.tx, d, hosts).await? {
                return Ok(Err(why));
            }
        }
        Verb::Decide { approval, .. } if approval.person != by || approval.deployment != d.id => {
            return Ok(Err(("invalid", "the decision is not one of the person who sends it".into())));
        }
        Verb::Decide { approval, token } => {
            if let Some(why) = rights::gone(&mut change.tx, approval, *token, &d.project).await? {
                return Ok(Err(why));
            }
        }
        _ => {}
    }
    if let Some(Ok(a)) = &amended {
        if let Err(r) = d.apply(input.clone(), change.now, &mut mint) {
            return Ok(Err(code(r)));
        }
        amend::keep(change, d, a).await?;
    }
    let result = change.apply(d, version, input, planned).await?;
    if let (Ok(_), Verb::Decide { approval, .. }) = (&result, &command.verb) {
        deployments::insert_approval(&mut change.tx, approval).await?;
    }
    Ok(result.map_err(code))
}

fn input(verb: &Verb, by: String) -> Option<Input> {
    Some(match verb.clone() {
        Verb::Request(_) | Verb::Bundle { .. } => return None,
        Verb::Decide { approval, .. } => Input::Decide(approval),
        Verb::Accept { digest } => Input::Accept { by, digest },
        Verb::Cancel { reason } => Input::Cancel { by, reason },
        Verb::Pause { reason } => Input::Pause { by, reason },
        Verb::Resume => Input::Resume { by },
        Verb::Confirm { wave } => Input::Confirm { by, wave },
        Verb::Choose { step, branch } => Input::Choose { by, step, branch },
        Verb::Claim { take_over, reason } => Input::Claim { by, take_over, reason },
        Verb::Unclaim => Input::Unclaim { by },
        Verb::Stop { hosts, reason } => Input::Stop { by, hosts, reason },
        Verb::Fail { step, reason } => Input::Fail { by, step, reason },
        Verb::Succeed { step, hosts, reason } => Input::Succeed { by, step, hosts, reason },
        Verb::Retry { hosts, step, whole_wave, .. } => Input::Retry { by, hosts, step, whole_wave },
        Verb::Skip { hosts } => Input::Skip { by, hosts },
        Verb::Ignore { hosts, reason } => Input::Ignore { by, hosts, reason },
        Verb::Exclude { hosts, reason } => Input::Exclude { by, hosts, reason },
        Verb::Abort { reason } => Input::Abort { by, reason },
        Verb::Rollback { mode, reason, rollback, .. } => Input::Rollback { by, mode, rollback, reason },
        Verb::Override { hosts, reason } => Input::Override { by, hosts, reason },
    })
}
