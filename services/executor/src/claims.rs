//! Takes works of our pools and drives each in a task of its own. Doorbells say when to look; the database says what there is.

use crate::{central, error::Stop, late, probes, shared::Shared, wave::Wave};
use futures::{StreamExt, stream::SelectAll};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    sync::Notify,
    task::{Id, JoinSet},
    time::Instant,
};
use tracing::Instrument;
use windlass_bus::Subscription;
use windlass_domain::{ids::WorkId, work::WorkSpec};
use windlass_runtime::telemetry;
use windlass_store::works::{self, Claim};

/// How long drivers get at shutdown to finish their transaction and release their claims.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs until shutdown; then the claims are released.
pub(crate) async fn run(shared: Arc<Shared>, bells: Vec<Subscription>) {
    let settings = &shared.ctx.settings;
    let poll = settings.poll_s.get().min(settings.executor.lease_s.get() / 3).max(Duration::from_millis(10));
    let mut bells: SelectAll<Subscription> = bells.into_iter().collect();
    let mut driven: HashMap<WorkId, (Id, Arc<Notify>)> = HashMap::new();
    let mut drivers: JoinSet<(WorkId, Result<(), Stop>)> = JoinSet::new();
    let stop = shared.ctx.shutdown.child_token();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = drivers.join_next_with_id(), if !drivers.is_empty() => {
                let id = match ended {
                    Ok((id, (work, result))) => {
                        if let Err(why) = result {
                            tracing::info!(%work, why = &why as &dyn std::error::Error, "work no longer driven here");
                        }
                        id
                    }
                    Err(join) => {
                        tracing::error!(error = &join as &dyn std::error::Error, "a driver broke; its claim expires");
                        join.id()
                    }
                };
                driven.retain(|_, (task, _)| *task != id);
                // There may be a work that waited for room.
                next = next.min(Instant::now());
            }
            Some(bell) = bells.next(), if !bells.is_empty() => {
                match bell.id::<WorkId>().and_then(|id| driven.get(&id)) {
                    Some((_, driver)) => driver.notify_one(),
                    None => next = next.min(Instant::now()),
                }
            }
            () = tokio::time::sleep_until(next) => {
                next = Instant::now() + until_expiry(&shared, poll).await;
                let room = settings.executor.max_works.saturating_sub(driven.len());
                let mine: Vec<WorkId> = driven.keys().copied().collect();
                match claim(&shared, room, &mine).await {
                    Ok(claims) => {
                        if claims.len() == room && room > 0 {
                            tracing::debug!(room, "all room for works is taken");
                        }
                        for claim in claims {
                            let bell = Arc::new(Notify::new());
                            let id = claim.work.id;
                            let driver = drivers.spawn(drive(Arc::clone(&shared), claim, Arc::clone(&bell), stop.child_token()));
                            driven.insert(id, (driver.id(), bell));
                        }
                    }
                    Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cannot claim works"),
                }
                if let Err(error) = late::overrides(&shared).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot apply overrides");
                }
                shared.metrics.claims.with_label_values(&["held"]).set(i64::try_from(driven.len()).unwrap_or(i64::MAX));
            }
        }
    }
    let drained = tokio::time::timeout(DRAIN, async { while drivers.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(left = drivers.len(), "works were not released in time; their claims expire");
        drivers.shutdown().await;
    }
}

/// The next look: after a poll, or as soon as a claim runs out that nobody renewed. A dead executor's works so wait for
/// its lease and no longer.
async fn until_expiry(shared: &Shared, poll: Duration) -> Duration {
    let look =
        async { works::next_expiry(&mut shared.ctx.store.read().await?, &shared.ctx.settings.executor.pools).await };
    match look.await {
        // A moment later, so that it has run out by then.
        Ok(Some(left)) => poll.min(left + Duration::from_millis(50)),
        Ok(None) | Err(_) => poll,
    }
}

async fn claim(shared: &Shared, room: usize, driven: &[WorkId]) -> Result<Vec<Claim>, windlass_store::Error> {
    if room == 0 {
        return Ok(vec![]);
    }
    let settings = &shared.ctx.settings.executor;
    // Mostly there is nothing: look without the writer's turn first.
    if !works::any_claimable(&mut shared.ctx.store.read().await?, &settings.pools).await? {
        return Ok(vec![]);
    }
    let mut tx = shared.ctx.store.write().await?;
    let limit = u32::try_from(room).unwrap_or(u32::MAX);
    let claims =
        works::claim(&mut tx, &settings.pools, &shared.ctx.owner, settings.lease_s.get(), limit, driven).await?;
    tx.commit().await?;
    Ok(claims)
}

async fn drive(
    shared: Arc<Shared>,
    claim: Claim,
    bell: Arc<Notify>,
    stop: tokio_util::sync::CancellationToken,
) -> (WorkId, Result<(), Stop>) {
    let id = claim.work.id;
    let span = tracing::info_span!("work", work = %id, deployment = %claim.work.deployment, epoch = claim.epoch);
    let span = telemetry::span_with_parent(span, claim.work.trace.as_deref());
    let run = async {
        if claim.takeover {
            shared.metrics.takeovers.with_label_values(&["work"]).inc();
            tracing::info!("work taken over");
        }
        match claim.work.spec.clone() {
            WorkSpec::Wave(wave) => Box::pin(Wave::drive(shared, claim, wave, bell, stop)).await,
            WorkSpec::Probe(probe) => Box::pin(probes::drive(shared, claim, probe, bell, stop)).await,
            WorkSpec::Central(step) => Box::pin(central::drive(shared, claim, step, bell, stop)).await,
        }
    };
    (id, run.instrument(span).await)
}
