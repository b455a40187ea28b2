//! Reports and overrides for works that are settled already: an unknown host that came back, or a result whose
//! acknowledgement was lost. Whoever gets one takes the settled claim for one transaction and rewrites the result. A host
//! that is still off its load balancers has to be brought back first: then the work is given to whoever claims it, goes on
//! as after a takeover, and is settled anew by its owner.

use crate::{
    dispatch::{self, Draft, SERVICE},
    hello,
    plans::PlanView,
    shared::{LateResult, Shared, Signal, work_event},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::sync::mpsc;
use windlass_contracts::{frames::DownBody, subjects};
use windlass_domain::{
    event::Severity,
    ids::{AgentId, TaskId},
    plan::segment,
    task::{Refusal, TaskInput, TaskState},
    work::{WaveWork, WorkSpec},
};
use windlass_store::{Error, events, tasks, works};

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Late {
    Applied,
    Refused(Refusal),
    /// The work has an owner, or waits for one, that takes the report.
    NotSettled,
    NoTask,
    WrongAgent,
}

/// Results of tasks nobody here drives.
pub(crate) async fn results(shared: Arc<Shared>, mut from: mpsc::Receiver<LateResult>) {
    while let Some(r) = from.recv().await {
        let outcome = r.report.outcome;
        let input = TaskInput::Reported { instance: r.instance.clone(), report: r.report };
        let actor = format!("agent:{}", shared.directory.host_of(r.agent).unwrap_or_default());
        let ack = match apply(&shared, r.task, Some(r.agent), input, &actor).await {
            Ok(Late::Applied) => true,
            Ok(Late::Refused(Refusal::Unfitting) | Late::NotSettled) => false,
            // Final already, said before, or said by a journal that never held the grant: hearing it again changes nothing.
            Ok(Late::Refused(why)) => {
                tracing::debug!(task = %r.task, agent = %r.agent, %why, "late result changes nothing");
                true
            }
            Ok(Late::WrongAgent) => {
                shared.metrics.refused.with_label_values(&["other_task"]).inc();
                tracing::warn!(task = %r.task, agent = %r.agent, "agent reports about another agent's task");
                false
            }
            Ok(Late::NoTask) => match orphan(&shared, r.agent, r.task, outcome).await {
                Ok(()) => true,
                Err(error) => {
                    shared.allowances.untold(r.agent);
                    tracing::warn!(error = &error as &dyn std::error::Error, "an orphan result could not be recorded");
                    false
                }
            },
            Err(error) => {
                tracing::warn!(task = %r.task, error = &error as &dyn std::error::Error, "late result not taken; it comes again");
                false
            }
        };
        if ack {
            shared.send(r.agent, Some(r.instance), DownBody::ResultAck { task: r.task }).await;
        }
    }
}

async fn orphan(
    shared: &Shared,
    agent: AgentId,
    task: TaskId,
    outcome: windlass_domain::task::ReportedOutcome,
) -> Result<(), Error> {
    if outcome == windlass_domain::task::ReportedOutcome::Fenced {
        // The answer to our own fence of an orphan that HELLO has already told of.
        return Ok(());
    }
    let payload = serde_json::json!({
        "host": shared.directory.host_of(agent), "task": task, "outcome": outcome,
        "reason": "the agent reports a task the database does not know; if the database was restored from a backup, check \
                   the host by hand",
    });
    let mut tx = shared.ctx.store.write().await?;
    hello::orphan(&mut tx, shared, agent, task, payload).await?;
    tx.commit().await
}

/// Applies `input` to a task of a settled work and rewrites the work's result.
pub(crate) async fn apply(
    shared: &Shared,
    task: TaskId,
    agent: Option<AgentId>,
    input: TaskInput,
    actor: &str,
) -> Result<Late, Error> {
    let mut read = shared.ctx.store.read().await?;
    let Some(row) = tasks::get(&mut read, task).await? else { return Ok(Late::NoTask) };
    drop(read);
    if agent.is_some() && row.task.agent != agent {
        return Ok(Late::WrongAgent);
    }
    let plan = plan_of(shared, &row).await?;
    let mut tx = shared.ctx.store.write().await?;
    let now = tx.now().await?;
    if let Err(why) = row.task.apply(input.clone(), now) {
        return Ok(Late::Refused(why));
    }
    // From here on the work and its claim are locked; what was read before must be read again.
    works::lock_desired(&mut tx, row.work).await?;
    let Some(epoch) = works::reopen(&mut tx, row.work, &shared.ctx.owner).await? else { return Ok(Late::NotSettled) };
    let (Some(row), Some(stored)) = (tasks::get(&mut tx, task).await?, works::get(&mut tx, row.work).await?) else {
        return Ok(Late::NoTask);
    };
    // What a person has said of it stands, whatever its host says later: the deployment counts with it.
    let said = match row.task.state == TaskState::Unknown && matches!(input, TaskInput::Reported { .. }) {
        true => tasks::override_of(&mut tx, task).await?,
        false => None,
    };
    let (input, actor) = match said {
        Some(o) => (TaskInput::Override { by: o.by.clone(), reason: o.reason }, format!("person:{}", o.by)),
        None => (input, actor.to_owned()),
    };
    let next = match dispatch::applied(&row.task, input, None, &plan.steps, &plan.artifact_steps, now) {
        Ok(next) => next,
        Err(why) => return Ok(Late::Refused(why)),
    };
    let drafts = dispatch::events_of(&row.task, &next, (&row.step, row.segment), &plan.steps, &actor);
    let (changed_state, over) = (row.task.state != next.state, next.is_over());
    tasks::store(&mut tx, &row, next, epoch, now).await?;
    for draft in drafts {
        events::append(&mut tx, work_event(&stored.work, draft, now)).await?;
    }
    let wave = match &stored.work.spec {
        WorkSpec::Wave(wave) if row.segment == segment::MAIN => Some(wave),
        // What runs beside a wave is no part of a result.
        _ => None,
    };
    let mut ring = None;
    match wave.filter(|_| changed_state) {
        Some(_) if !over => {
            works::take_up_again(&mut tx, row.work, epoch).await?;
            ring = Some((subjects::work(&stored.work.pool), row.work.to_string()));
        }
        Some(wave) => {
            let names = names(&plan, wave);
            let rows = tasks::of_segment(&mut tx, row.work, segment::MAIN, 1).await?;
            let board = dispatch::Board {
                carried: crate::wave::carried(&mut tx, &stored.work, wave, &names).await?,
                tasks: rows.into_iter().map(|t| (t.task.id, t)).collect(),
                ..dispatch::Board::new(wave.clone(), segment::MAIN, names)
            };
            // Another host of it may be on its way back: then its owner, soon, writes the result.
            if let Some(result) = dispatch::result(&board, &[]) {
                let version = works::resettle(&mut tx, row.work, epoch, &result).await?;
                let payload =
                    serde_json::json!({ "work": row.work, "step": wave.step, "wave": wave.wave, "version": version });
                let draft = Draft { what: "work.settled", severity: Severity::Info, actor: SERVICE.into(), payload };
                events::append(&mut tx, work_event(&stored.work, draft, now)).await?;
                ring = Some((subjects::WORK_SETTLED.to_owned(), stored.work.deployment.to_string()));
            }
        }
        None => {}
    }
    tx.commit().await?;
    if let Some((subject, body)) = ring {
        shared.ctx.bus.ring(subject, body).await;
    }
    Ok(Late::Applied)
}

/// Of a task's plan what its events and its class need.
#[derive(Debug, Default)]
struct OfPlan {
    view: Option<Arc<PlanView>>,
    /// Ids of the steps of the task.
    steps: Arc<Vec<String>>,
    artifact_steps: BTreeSet<String>,
}

async fn plan_of(shared: &Shared, row: &tasks::StoredTask) -> Result<OfPlan, Error> {
    let Some(w) = works::get(&mut shared.ctx.store.read().await?, row.work).await? else {
        return Ok(OfPlan::default());
    };
    let view = shared.plans.get(&shared.ctx.store, row.deployment, &w.work.plan_digest).await?;
    let Ok(view) = view else { return Ok(OfPlan::default()) };
    let steps = crate::logs::step_names(&view, &row.step, row.segment, &row.task.host);
    Ok(OfPlan { artifact_steps: view.artifact_steps(&row.step), steps, view: Some(view) })
}

/// Names of the steps of every host of the wave, for outputs.
fn names(plan: &OfPlan, wave: &WaveWork) -> BTreeMap<String, Arc<Vec<String>>> {
    let Some(view) = &plan.view else { return BTreeMap::new() };
    let of = |host: &String| (host.clone(), crate::logs::step_names(view, &wave.step, segment::MAIN, host));
    wave.hosts.iter().map(|h| of(&h.host)).collect()
}

/// Applies the overrides people have given.
pub(crate) async fn overrides(shared: &Shared) -> Result<(), Error> {
    let mut read = shared.ctx.store.read().await?;
    let due = tasks::overrides_to_apply(&mut read, 100).await?;
    drop(read);
    for o in due {
        let signal = Signal::Override { task: o.task, by: o.by.clone(), reason: o.reason.clone() };
        if shared.router.deliver(None, o.task, signal) == crate::shared::Delivery::Foreign {
            let actor = format!("person:{}", o.by);
            let input = TaskInput::Override { by: o.by, reason: o.reason };
            let outcome = apply(shared, o.task, None, input, &actor).await?;
            tracing::info!(task = %o.task, ?outcome, "override");
        }
    }
    Ok(())
}
