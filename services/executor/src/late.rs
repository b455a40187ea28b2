//! Reports and overrides for works that are settled already: an unknown host that came back, or a result whose
//! acknowledgement was lost. Whoever gets one takes the settled claim for one transaction and rewrites the result.

use crate::{
    dispatch::{self, Draft, SERVICE},
    shared::{LateResult, Shared, Signal, agent_event, work_event},
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::mpsc;
use windlass_contracts::{frames::DownBody, subjects};
use windlass_domain::{
    event::Severity,
    ids::{AgentId, TaskId},
    task::{Refusal, TaskInput},
    work::WorkSpec,
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
    events::append(&mut tx, agent_event(agent, "agent.orphan", Severity::Alert, payload)).await?;
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
    let names = names(shared, &row).await?;
    let steps = names.get(&row.task.host).cloned().unwrap_or_default();
    let mut tx = shared.ctx.store.write().await?;
    let now = tx.now().await?;
    if let Err(why) = row.task.apply(input.clone(), now) {
        return Ok(Late::Refused(why));
    }
    // From here on the claim row is locked; what was read before must be read again.
    let Some(epoch) = works::reopen(&mut tx, row.work, &shared.ctx.owner).await? else { return Ok(Late::NotSettled) };
    let (Some(row), Some(stored)) = (tasks::get(&mut tx, task).await?, works::get(&mut tx, row.work).await?) else {
        return Ok(Late::NoTask);
    };
    let next = match row.task.apply(input, now) {
        Ok(next) => next,
        Err(why) => return Ok(Late::Refused(why)),
    };
    let WorkSpec::Wave(wave) = &stored.work.spec else { return Ok(Late::NoTask) };
    let drafts = dispatch::events_of(&row.task, &next, &row.step, &steps, actor);
    let changed_state = row.task.state != next.state;
    tasks::store(&mut tx, &row, next, epoch, now).await?;
    for draft in drafts {
        events::append(&mut tx, work_event(&stored.work, draft, now)).await?;
    }
    if changed_state {
        let rows = tasks::of_work(&mut tx, row.work).await?;
        let board = dispatch::Board {
            wave: wave.clone(),
            carried: crate::wave::carried(&mut tx, &stored.work, wave, &names).await?,
            steps: names,
            tasks: rows.into_iter().map(|t| (t.task.id, t)).collect(),
            closed: Default::default(),
        };
        let result = dispatch::result(&board, &[]).ok_or(Error::Conflict)?;
        let version = works::resettle(&mut tx, row.work, epoch, &result).await?;
        let payload = serde_json::json!({ "work": row.work, "step": wave.step, "wave": wave.wave, "version": version });
        let draft = Draft { what: "work.settled", severity: Severity::Info, actor: SERVICE.into(), payload };
        events::append(&mut tx, work_event(&stored.work, draft, now)).await?;
    }
    tx.commit().await?;
    shared.ctx.bus.ring(subjects::WORK_SETTLED, stored.work.deployment.to_string()).await;
    Ok(Late::Applied)
}

/// Names of the steps of every host of the work, for events and outputs.
async fn names(shared: &Shared, row: &tasks::StoredTask) -> Result<BTreeMap<String, Arc<Vec<String>>>, Error> {
    let Some(w) = works::get(&mut shared.ctx.store.read().await?, row.work).await? else { return Ok(BTreeMap::new()) };
    let view = shared.plans.get(&shared.ctx.store, row.deployment, &w.work.plan_digest).await?;
    let (Ok(view), WorkSpec::Wave(wave)) = (view, &w.work.spec) else { return Ok(BTreeMap::new()) };
    let of = |host: &String| (host.clone(), crate::logs::step_names(&view, &row.step, host));
    Ok(wave.hosts.iter().map(|h| of(&h.host)).collect())
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
