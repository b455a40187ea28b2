//! The reconciler: what wakes it, and one look at one deployment.

use crate::{
    Error, bundles,
    change::{Cause, Change, Ring},
    decide, promotion, request, rollback,
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tracing::Instrument;
use windlass_bus::{ConsumerSpec, Context, Message, Outcome, Wake, consume, run_reconciler};
use windlass_contracts::subjects;
use windlass_domain::{
    deployment::{Input, State},
    ids::{BundleId, CommandId, DeploymentId},
};
use windlass_store::{decisions, deployments, works};

/// Deployments looked at at the same time.
const CONCURRENCY: usize = 16;
const SIDE_CONCURRENCY: usize = 4;
/// Moves of one deployment in one look, and tries of one move that another process got in the way of.
const MAX_MOVES: usize = 64;
const MAX_TRIES: usize = 20;
/// How far back a poll looks for results that were not applied. Now and then one looks at all there are: nothing that this process
/// slept through, or could not apply for long, stays behind.
const RESULTS_BACK: Duration = Duration::from_secs(3600);
const ALL_RESULTS: Duration = Duration::from_secs(600);

/// Runs until the context's shutdown is cancelled.
pub async fn run(ctx: Context) -> Result<(), Error> {
    let wake = Wake::new();
    let side = Wake::new();
    let looked = Mutex::new(None);
    let scheduler = Arc::new(Scheduler { ctx: ctx.clone(), wake: wake.clone(), side: side.clone(), looked });

    let commands = ConsumerSpec::new("scheduler", subjects::STREAM_COMMANDS, "scheduler", subjects::ALL_COMMANDS);
    let me = scheduler.clone();
    ctx.spawn(consume(ctx.clone(), commands, move |m| {
        let me = me.clone();
        async move { me.command_rang(m).await }
    }));
    let me = scheduler.clone();
    ctx.spawn(async move { me.listen_for_results().await });
    ctx.spawn(crate::gauges::run(ctx.clone()));

    let (due, handle) = (scheduler.clone(), scheduler.clone());
    ctx.spawn(run_reconciler(
        ctx.clone(),
        side,
        SIDE_CONCURRENCY,
        move || {
            let me = due.clone();
            async move { me.side_due().await }
        },
        move |job| {
            let me = handle.clone();
            async move { me.side_look(job).await }
        },
    ));

    let due = {
        let me = scheduler.clone();
        move || {
            let me = me.clone();
            async move { me.due().await }
        }
    };
    let handle = move |id| {
        let me = scheduler.clone();
        async move { me.reconcile(id).await }
    };
    run_reconciler(ctx.clone(), wake, CONCURRENCY, due, handle).await;
    ctx.tracker.close();
    ctx.tracker.wait().await;
    Ok(())
}

pub(crate) struct Scheduler {
    ctx: Context,
    wake: Wake<DeploymentId>,
    side: Wake<Side>,
    /// When all results there are were looked at last.
    looked: Mutex<Option<Instant>>,
}

/// What is looked at beside deployments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Side {
    Bundle(BundleId),
    /// Promotions that policies ask for.
    Promotions,
}

impl Scheduler {
    /// A doorbell carries the id of the command; which deployment it is about stands in the database.
    async fn command_rang(&self, m: Message) -> Outcome {
        let Some(id) = m.id::<CommandId>() else {
            return Outcome::Reject("the body is not a command's id".into());
        };
        let found = async {
            let mut tx = self.ctx.store.read().await?;
            let deployment = decisions::deployment_of(&mut tx, id).await?;
            if deployment.is_none()
                && let Some(bundle) = windlass_store::bundles::of_command(&mut tx, id).await?
            {
                self.side.ring(Side::Bundle(bundle));
            }
            Ok::<_, Error>(deployment)
        };
        match found.await {
            Ok(Some(deployment)) => {
                self.wake.ring(deployment);
                Outcome::Ack
            }
            // The command's own transaction is over before its doorbell rings, so an unknown id is a stranger's.
            Ok(None) => Outcome::Ack,
            Err(e) => {
                tracing::warn!(error = %e, "a command's doorbell could not be followed; it will ring again");
                Outcome::Retry(std::time::Duration::from_secs(1))
            }
        }
    }

    async fn listen_for_results(&self) {
        let shutdown = self.ctx.shutdown.clone();
        while !shutdown.is_cancelled() {
            let mut sub = match self.ctx.bus.subscribe(subjects::WORK_SETTLED).await {
                Ok(s) => s,
                Err(e) => {
                    tracing::warn!(error = %e, "cannot listen for settled works; polling goes on");
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = self.ctx.bus.up() => continue,
                    }
                }
            };
            loop {
                let message = tokio::select! {
                    () = shutdown.cancelled() => return,
                    m = sub.next() => m,
                };
                match message {
                    Some(m) => {
                        if let Some(id) = m.id::<DeploymentId>() {
                            self.wake.ring(id);
                        }
                    }
                    None => break,
                }
            }
        }
    }

    async fn due(&self) -> Result<Vec<DeploymentId>, Error> {
        let mut tx = self.ctx.store.read().await?;
        let now = tx.now().await?;
        let all = self.looked().is_none_or(|at| at.elapsed() >= ALL_RESULTS);
        let due = deployments::due(&mut tx, now, (!all).then(|| now - RESULTS_BACK)).await?;
        // More than fit are asked for again before less is looked at.
        if all && due.len() < deployments::DUE_AT_ONCE {
            *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        Ok(due)
    }

    fn looked(&self) -> Option<Instant> {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn side_due(&self) -> Result<Vec<Side>, Error> {
        let mut tx = self.ctx.store.read().await?;
        let now = tx.now().await?;
        let due = windlass_store::bundles::due(&mut tx, now).await?;
        Ok(due.into_iter().map(Side::Bundle).chain([Side::Promotions]).collect())
    }

    /// One look at a bundle, or at the promotions.
    async fn side_look(&self, job: Side) -> Result<(), Error> {
        let mut tries = 0;
        for _ in 0..MAX_MOVES {
            let store = &self.ctx.store;
            let done = match job {
                Side::Bundle(id) => {
                    let span = tracing::info_span!("reconcile", bundle = %id);
                    Box::pin(bundles::one_move(store, id)).instrument(span).await
                }
                Side::Promotions => Box::pin(promotion::next(store)).await,
            };
            match done {
                Ok(Some(rings)) => self.ring(rings).await,
                Ok(None) => return Ok(()),
                Err(e) if e.is_retryable() && tries < MAX_TRIES => tries += 1,
                Err(e) => return Err(e),
            }
        }
        self.side.ring(job);
        Ok(())
    }

    /// One look: moves the deployment until there is nothing left to do for it.
    pub(crate) async fn reconcile(&self, id: DeploymentId) -> Result<(), Error> {
        let mut tries = 0;
        for _ in 0..MAX_MOVES {
            let span = tracing::info_span!("reconcile", deployment = %id);
            match Box::pin(self.one_move(id)).instrument(span).await {
                Ok(Some(rings)) => self.ring(rings).await,
                Ok(None) => return Ok(()),
                Err(e) if e.is_retryable() && tries < MAX_TRIES => tries += 1,
                Err(e) => return Err(e),
            }
        }
        // Still more to do: let others have their turn first.
        self.wake.ring(id);
        Ok(())
    }

    /// One transaction's worth of progress; `None` when there is nothing to do.
    async fn one_move(&self, id: DeploymentId) -> Result<Option<Vec<Ring>>, Error> {
        let store = &self.ctx.store;
        if let Some(rings) = Box::pin(decide::next(store, id)).await? {
            return Ok(Some(rings));
        }
        let mut read = store.read().await?;
        let Some(stored) = deployments::get(&mut read, id).await? else { return Ok(None) };
        if let Some(found) = works::results_to_apply(&mut read, Some(id), 1).await?.into_iter().next() {
            let ready = rollback::plan_waiting(&mut read, &stored.deployment).await?;
            drop(read);
            let mut change = Change::begin(store, Cause::own(found.work.trace.clone())).await?;
            change.ready = ready;
            works::mark_applied(&mut change.tx, found.work.id, found.version).await?;
            let input = Input::WorkSettled { work: found.work.id, result: found.result };
            if let Err(refusal) = change.apply(&stored.deployment, stored.version, input, None).await? {
                tracing::info!(work = %found.work.id, %refusal, "a result changes nothing");
            }
            return change.commit().await.map(Some);
        }
        let now = read.now().await?;
        let d = &stored.deployment;
        let waits_for_lock =
            d.state == State::Queued && deployments::may_lock(&mut read, d.id, &d.project, &d.environment).await?;
        if stored.deployment.wake_at().is_some_and(|t| t <= now) || waits_for_lock {
            // What was taken up again keeps the plan that was approved.
            let planned = if d.run == 1 && (waits_for_lock || d.state.is_before_running()) {
                match request::plan_now(&mut read, &stored.deployment).await? {
                    Ok(p) => Some(p),
                    Err(why) => {
                        // It stays queued and expires in the end; the catalog may be mended before.
                        tracing::warn!(deployment = %id, %why, "a queued deployment cannot be planned any more");
                        None
                    }
                }
            } else {
                None
            };
            drop(read);
            let mut change = Change::begin(store, Cause::own(None)).await?;
            let next = change.apply(&stored.deployment, stored.version, Input::Tick, planned.as_ref()).await?;
            return match next {
                Ok(next) if next != stored.deployment => change.commit().await.map(Some),
                // Nothing to write: the lock is held, or another is ahead.
                _ => Ok(None),
            };
        }
        Ok(None)
    }

    async fn ring(&self, rings: Vec<Ring>) {
        for r in rings {
            match r {
                Ring::Work { pool, id } => self.ctx.bus.ring(subjects::work(&pool), id.to_string()).await,
                Ring::Outcome(id) => self.ctx.bus.ring(subjects::command_outcome(id.0), id.to_string()).await,
                Ring::Deployment(id) => self.wake.ring(id),
                Ring::Bundle(id) => self.side.ring(Side::Bundle(id)),
                Ring::Promotions => self.side.ring(Side::Promotions),
            }
        }
    }
}
