//! Tasks beside those of a wave: probes on its hosts, and what is done on a load balancer's host. They belong to the same
//! work, are leaves of the same plan and go the same way (offer, accept, grant, result), but they are other segments and no
//! part of the work's result. The work's owner drives them under its claim; its end is theirs.
//!
//! What was left open by an earlier owner (a crash) or by a side that was dropped is taken up, not begun anew, so that two
//! attempts never run at once.

use super::{Role, Wave};
use crate::{error::Stop, lease::Lease, plans::PlanView, shared::Shared};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use windlass_domain::{
    plan::segment,
    task::{Task, TaskReport, TaskState},
    work::{WaveHost, WaveWork},
};
use windlass_store::{Error, tasks, works::Claim};

/// What the tasks of a side go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heeds {
    /// Pause and abort, as the wave itself.
    Work,
    /// Clean-up: goes on in a pause and in an abort.
    Nothing,
    /// Whatever is open is ended, and nothing is begun.
    End,
}

/// One task on each of these hosts.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    /// Id of the rollout step.
    pub(crate) step: String,
    pub(crate) segment: u32,
    /// Where it runs.
    pub(crate) hosts: Vec<String>,
    /// Outputs of earlier steps that its steps may refer to.
    pub(crate) outputs: serde_json::Map<String, serde_json::Value>,
    pub(crate) heeds: Heeds,
}

/// Drives the task of one host to its end: its report, or why there is none.
pub(crate) async fn one(
    shared: &Arc<Shared>,
    claim: &Claim,
    plan: &Arc<PlanView>,
    side: Side,
) -> Result<Result<TaskReport, String>, Stop> {
    let ended = run(shared, claim, plan, side).await?;
    let Some(task) = ended.into_iter().next() else { return Ok(Err("nothing was to be done".into())) };
    let why = || task.reason.clone().unwrap_or_else(|| format!("it is {}", task.state.as_str()));
    Ok(match (&task.report, task.state) {
        (Some(report), TaskState::Succeeded | TaskState::Failed | TaskState::Cancelled) => Ok(report.clone()),
        _ => Err(why()),
    })
}

/// Drives one task on each host to its end: settled, or unknown. What the opposite direction of a load balancer's segment
/// left open there is ended first.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    claim: &Claim,
    plan: &Arc<PlanView>,
    side: Side,
) -> Result<Vec<Task>, Stop> {
    if let Some((lb, host, attach)) = segment::of_traffic(side.segment)
        && let Some(opposite) = segment::traffic(lb, host, !attach)
    {
        let hosts = open(shared, claim, opposite).await?;
        let other = Side { segment: opposite, heeds: Heeds::End, ..side.clone() };
        drive(shared, claim, plan, other, hosts).await?;
    }
    let hosts = hosts_of(shared, claim, &side).await?;
    drive(shared, claim, plan, side, hosts).await
}

/// The attempt of each host that is open, or the next one.
async fn hosts_of(shared: &Arc<Shared>, claim: &Claim, side: &Side) -> Result<Vec<WaveHost>, Stop> {
    let mut hosts = open(shared, claim, side.segment).await?;
    if side.heeds == Heeds::End {
        return Ok(hosts);
    }
    let open: BTreeSet<String> = hosts.iter().map(|h| h.host.clone()).collect();
    let mut lease = Lease::second(Arc::clone(shared), claim.work.id, claim.epoch);
    let last = loop {
        match last_attempts(shared, claim, side).await {
            Ok(last) => break last,
            Err(error) => lease.after_failure(&error).await?,
        }
    };
    let next = side.hosts.iter().filter(|h| !open.contains(*h)).map(|h| WaveHost {
        host: h.clone(),
        attempt: last.get(h).copied().unwrap_or(0).saturating_add(1),
        start_at: 0,
    });
    hosts.extend(next);
    Ok(hosts)
}

async fn last_attempts(shared: &Shared, claim: &Claim, side: &Side) -> Result<BTreeMap<String, u32>, Error> {
    let mut tx = shared.ctx.store.read().await?;
    tasks::last_attempts(&mut tx, claim.work.deployment, &side.step, side.segment).await
}

async fn open(shared: &Arc<Shared>, claim: &Claim, segment: u32) -> Result<Vec<WaveHost>, Stop> {
    let mut lease = Lease::second(Arc::clone(shared), claim.work.id, claim.epoch);
    let rows = loop {
        match read_open(shared, claim, segment).await {
            Ok(rows) => break rows,
            Err(error) => lease.after_failure(&error).await?,
        }
    };
    Ok(rows.into_iter().map(|(host, attempt)| WaveHost { host, attempt, start_at: 0 }).collect())
}

async fn read_open(shared: &Shared, claim: &Claim, segment: u32) -> Result<Vec<(String, u32)>, Error> {
    tasks::open_of_segment(&mut shared.ctx.store.read().await?, claim.work.id, segment).await
}

async fn drive(
    shared: &Arc<Shared>,
    claim: &Claim,
    plan: &Arc<PlanView>,
    side: Side,
    hosts: Vec<WaveHost>,
) -> Result<Vec<Task>, Stop> {
    if hosts.is_empty() {
        return Ok(Vec::new());
    }
    let max_failures = u32::try_from(hosts.len()).unwrap_or(u32::MAX);
    let wave = WaveWork {
        step: side.step,
        wave: 0,
        hosts,
        parallel: 0,
        max_failures,
        stagger: None,
        // It may be done again after it went well.
        again: true,
        outputs: side.outputs,
    };
    let lease = Lease::second(Arc::clone(shared), claim.work.id, claim.epoch);
    let plan = Ok(Arc::clone(plan));
    let board = Wave::board(&plan, wave, side.segment);
    let role = Role::Side(side.heeds);
    let mut me = Wave::new(role, Arc::clone(shared), claim.clone(), lease, plan, board);
    // The owner hears of pauses, aborts and the shutdown; here the database is asked, and the owner drops this future.
    Box::pin(me.run(Arc::new(Notify::new()), CancellationToken::new())).await?;
    Ok(me.board.tasks.values().map(|row| row.task.clone()).collect())
}
