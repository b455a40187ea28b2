//! A command: stored with its event in one transaction, the scheduler woken, its outcome waited for.

use crate::{
    call::{Answer, Call, Once, json, now},
    problem::{Fail, Problem, transact},
    state::State,
    view,
};
use actix_web::http::StatusCode;
use serde_json::{Value, json as value};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;
use uuid::Uuid;
use windlass_contracts::{
    command::{Command, CommandOutcome, Verb},
    subjects,
};
use windlass_domain::{
    event::{Aggregate, NewEvent, Severity},
    ids::{CommandId, DeploymentId},
    reference::INPUT_PREFIX,
};
use windlass_store::{Tx, commands, events, secrets};

/// Between looks at the database while the outcome's doorbell may have been missed.
const LOOK: Duration = Duration::from_millis(250);

/// Stores a command with its event. False when its id is known. Refused when too many wait; the caller then drops the
/// transaction, and nothing is left of it.
pub(crate) async fn accept(state: &State, tx: &mut Tx, c: &Command) -> Result<bool, Fail> {
    if !commands::insert(tx, c).await? {
        return Ok(false);
    }
    // Behind the insert: what was accepted before is never refused.
    state.queue.admit(tx, &c.verb).await?;
    let (aggregate, id) = match &c.verb {
        Verb::Bundle { bundle, .. } => (Aggregate::Bundle, bundle.to_string()),
        _ => (Aggregate::Deployment, c.deployment.map(|d| d.to_string()).unwrap_or_default()),
    };
    events::append(
        tx,
        NewEvent {
            id: Uuid::now_v7().into(),
            aggregate,
            aggregate_id: id,
            what: "command.accepted".into(),
            // A bundle's is of several projects, and is not shown to who may see one.
            project: (aggregate == Aggregate::Deployment).then(|| c.project.clone()),
            environment: c.environment.clone(),
            severity: Severity::Info,
            actor: c.actor.clone(),
            at: c.created_at,
            payload: value!({ "command": c.id, "verb": c.verb.name(), "body": payload(&c.verb) }),
            trace: c.trace.clone(),
        },
    )
    .await?;
    Ok(true)
}

/// What was asked, for the record; signatures stay out of it.
fn payload(v: &Verb) -> Value {
    let mut body = serde_json::to_value(v).unwrap_or_default();
    for a in body.pointer_mut("/ask/approvals").and_then(Value::as_array_mut).into_iter().flatten() {
        a.as_object_mut().and_then(|a| a.remove("signature"));
    }
    if let Some(a) = body.get_mut("approval").and_then(Value::as_object_mut) {
        a.remove("signature");
    }
    body
}

/// Wakes the scheduler; it would find the command by itself within its poll.
pub(crate) async fn ring(state: &State, verb: &str, id: CommandId) {
    state.ctx.bus.ring_once(subjects::command(verb), id.to_string(), &id.to_string()).await;
}

/// Accepts a command of this call and answers with its outcome, or 202 when that is late.
pub(crate) async fn submit(call: &Call, deployment: DeploymentId, environment: &str, verb: Verb) -> Answer {
    let (project, _) = call.project()?;
    submit_to(call, project, Some(deployment), Some(environment), verb).await
}

/// [`submit`] with the values of secret inputs, which are sealed and stored in the transaction that stores the command.
pub(crate) async fn submit_with(
    call: &Call,
    deployment: DeploymentId,
    environment: &str,
    verb: Verb,
    plain: &BTreeMap<String, String>,
) -> Answer {
    let (project, _) = call.project()?;
    let scope = secrets::deployment_scope(deployment);
    let mut sealed = Vec::with_capacity(plain.len());
    for (input, value) in plain {
        let name = format!("{INPUT_PREFIX}{input}");
        let bytes = call.state.ctx.sealer.seal(&scope, &name, value.as_bytes());
        sealed.push((name, bytes.map_err(|e| Fail::Internal(e.to_string()))?));
    }
    store(call, project, Some(deployment), Some(environment), verb, &sealed).await
}

/// [`submit`] of what is not about one deployment.
pub(crate) async fn submit_to(
    call: &Call,
    project: &str,
    deployment: Option<DeploymentId>,
    environment: Option<&str>,
    verb: Verb,
) -> Answer {
    store(call, project, deployment, environment, verb, &[]).await
}

async fn store(
    call: &Call,
    project: &str,
    deployment: Option<DeploymentId>,
    environment: Option<&str>,
    verb: Verb,
    sealed: &[(String, Vec<u8>)],
) -> Answer {
    let name = verb.name();
    let by = call.who()?.actor.person.clone();
    let command = Command {
        id: Uuid::now_v7().into(),
        project: project.to_owned(),
        environment: environment.map(str::to_owned),
        deployment,
        actor: call.who()?.name(),
        verb,
        created_at: now(),
        trace: Some(call.trace.clone()),
    };
    // Listening begins before the command can be decided.
    let bus = &call.state.ctx.bus;
    let heard = bus.subscribe(subjects::command_outcome(command.id.0)).await.ok();
    let stored: Result<Once, Fail> = transact!(call.store(), tx => {
        match call.once(&mut tx).await? {
            Once::New => {
                if let Some(id) = deployment {
                    for (name, sealed) in sealed {
                        secrets::put(&mut tx, &secrets::deployment_scope(id), name, sealed, &by, command.created_at).await?;
                    }
                }
                accept(&call.state, &mut tx, &command).await?;
                call.keep(&mut tx, StatusCode::ACCEPTED, &command.id).await?;
                Once::New
            }
            again => again,
        }
    });
    let id = match stored? {
        Once::New => {
            ring(&call.state, name, command.id).await;
            command.id
        }
        Once::Again(_, id) => serde_json::from_value(id).map_err(|e| Fail::Internal(e.to_string()))?,
    };
    let outcome = wait(call, id, heard).await?;
    answer(call, id, outcome).await
}

/// The outcome once there is one, at most `api.command_wait_s`.
async fn wait(
    call: &Call,
    id: CommandId,
    mut heard: Option<windlass_bus::Subscription>,
) -> Result<Option<CommandOutcome>, Fail> {
    let until = Instant::now() + call.settings().api.command_wait_s.get();
    loop {
        let mut tx = call.store().read().await?;
        let found = commands::outcome(&mut tx, id).await?;
        drop(tx);
        if found.is_some() || Instant::now() >= until || call.state.ctx.shutdown.is_cancelled() {
            return Ok(found);
        }
        let pause = tokio::time::sleep_until((Instant::now() + LOOK).min(until));
        match &mut heard {
            Some(s) => tokio::select! {
                _ = s.next() => {}
                () = pause => {}
            },
            None => pause.await,
        }
    }
}

pub(crate) async fn answer(call: &Call, id: CommandId, outcome: Option<CommandOutcome>) -> Answer {
    let mut tx = call.store().read().await?;
    let stored = commands::get(&mut tx, id).await?.ok_or_else(Problem::not_found)?;
    let body = view::command(&stored, outcome.as_ref());
    match outcome {
        None => json(StatusCode::ACCEPTED, &body),
        Some(o) if o.accepted => json(StatusCode::OK, &body),
        Some(o) => {
            let p = Problem::conflict(&o.code, o.detail);
            Err(Problem { command: Some(id.0), ..p }.into())
        }
    }
}
