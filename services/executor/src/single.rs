//! Drives what one executor does by itself: a central step, or the looks at a wave. Waves of hosts have a driver of their
//! own (`wave`); what is the same for both is the lease.

use crate::{error::Stop, lease::Lease, shared::Shared};
use std::{future::Future, pin::pin, sync::Arc};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use windlass_contracts::subjects;
use windlass_domain::work::Desired;
use windlass_store::{
    Error,
    works::{self, Claim},
};

/// What reaches the work while it is done.
#[derive(Debug, Default)]
pub(crate) struct Control {
    /// The deployment was aborted: end soon.
    pub(crate) abort: CancellationToken,
    /// There may be something new for the work in the database.
    pub(crate) wake: Notify,
}

/// Runs `run` to its end, again where the database failed it, and stores what came of it with `settle`. Ends early when
/// the claim is lost or the process is told to stop.
pub(crate) async fn drive<T, R, S>(
    shared: &Arc<Shared>,
    claim: &Claim,
    control: &Control,
    bell: &Notify,
    stop: &CancellationToken,
    run: impl Fn() -> R,
    settle: impl Fn(T) -> S,
) -> Result<(), Stop>
where
    T: Clone,
    R: Future<Output = Result<Result<T, Error>, Stop>>,
    S: Future<Output = Result<(), Error>>,
{
    let mut lease = Lease::new(Arc::clone(shared), claim.work.id, claim.epoch);
    let poll = shared.ctx.settings.poll_s.get();
    let mut next_poll = Instant::now();
    let mut running = pin!(run());
    let done = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                lease.release().await;
                return Err(Stop::Shutdown);
            }
            () = tokio::time::sleep_until(lease.due()) => lease.renew().await?,
            () = bell.notified() => {
                next_poll = Instant::now();
                control.wake.notify_one();
            }
            () = tokio::time::sleep_until(next_poll) => {
                next_poll = Instant::now() + poll;
                let desired = async { works::desired_now(&mut shared.ctx.store.read().await?, claim.work.id).await };
                match desired.await {
                    // It ends itself, so that it can put its house in order.
                    Ok(Some(Desired::Abort)) => control.abort.cancel(),
                    Ok(_) => {}
                    Err::<_, Error>(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "cannot read the work");
                    }
                }
            }
            done = &mut running => match done? {
                Ok(done) => break done,
                Err(error) => {
                    lease.after_failure(&error).await?;
                    running.set(run());
                }
            },
        }
    };
    while let Err(error) = settle(done.clone()).await {
        lease.after_failure(&error).await?;
    }
    shared.ctx.bus.ring(subjects::WORK_SETTLED, claim.work.deployment.to_string()).await;
    Ok(())
}
