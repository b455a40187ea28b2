//! Commands to inputs: each command is decided once, in the transaction that carries it out.

use crate::{
    Error,
    change::{Cause, Change, Ring},
    request,
};
use windlass_contracts::command::{Command, Verb};
use windlass_domain::{
    deployment::{Deployment, Input, Refusal},
    ids::DeploymentId,
};
use windlass_store::{Store, decisions, deployments};

/// Decides the oldest command of a deployment; `None` when there is none.
pub(crate) async fn next(store: &Store, id: DeploymentId) -> Result<Option<Vec<Ring>>, Error> {
    let mut read = store.read().await?;
    let Some(command) = decisions::queued(&mut read, id).await?.into_iter().next() else { return Ok(None) };
    let stored = deployments::get(&mut read, id).await?;
    // Planning is done before the transaction, which then only checks that the catalog is still the same.
    let planned = match &stored {
        Some(s) if s.deployment.state.is_before_running() => request::plan_now(&mut read, &s.deployment).await?.ok(),
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
        (Verb::Request(r), None) => request::decide(store, &mut change, &command, r).await?,
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
                match one(&mut change, d, stored.version, &command, planned.as_ref()).await? {
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

async fn one(
    change: &mut Change,
    d: &Deployment,
    version: u64,
    command: &Command,
    planned: Option<&crate::planner::Planned>,
) -> Result<Result<Deployment, (&'static str, String)>, Error> {
    let by = request::person(&command.actor);
    if let Verb::Rollback { .. } = &command.verb {
        // Asked before anything is stopped: a deployment must not be aborted for a rollback that cannot be.
        if request::last_known_good(&mut change.tx, d).await?.is_none() {
            let text = format!("no other version is known good in {}/{}", d.project, d.environment);
            return Ok(Err(("no_last_known_good", text)));
        }
    }
    if let Verb::Decide { approval } = &command.verb
        && (approval.person != by || approval.deployment != d.id)
    {
        return Ok(Err(("invalid", "the decision is not one of the person who sends it".into())));
    }
    let Some(input) = input(&command.verb, by) else {
        return Ok(Err(("invalid", "a request is not a command to an existing deployment".into())));
    };
    let result = change.apply(d, version, input, planned).await?;
    if let (Ok(_), Verb::Decide { approval }) = (&result, &command.verb) {
        deployments::insert_approval(&mut change.tx, approval).await?;
    }
    Ok(result.map_err(|r: Refusal| (r.code(), r.to_string())))
}

fn input(verb: &Verb, by: String) -> Option<Input> {
    Some(match verb.clone() {
        Verb::Request(_) | Verb::Bundle { .. } => return None,
        Verb::Decide { approval } => Input::Decide(approval),
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
