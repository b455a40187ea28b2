//! Drives what one executor does by itself: a central step, or the looks at a wave. Waves of hosts have a driver of their
//! own (`wave`); what is the same for both is the lease.

use crate::{error::Stop, lease::Lease, shared::Shared};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use windlass_contracts::subjects;
use windlass_domain::{ids::WorkId, work::Desired};
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
    /// It was let begin.
    begun: AtomicBool,
}

impl Control {
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }
}

/// Waits until the work may begin; what has begun under an executor before this one goes on in a pause. Returns with `abort`
/// cancelled when the deployment was aborted: however long nobody took the work, nothing of it begins after that.
pub(crate) async fn until_it_may_begin(shared: &Shared, claim: &Claim, control: &Control) -> Result<(), Error> {
    loop {
        let mut tx = shared.ctx.store.write().await?;
        let (desired, begun) = works::begin(&mut tx, claim.work.id, claim.epoch).await?;
        tx.commit().await?;
        control.begun.store(begun, Ordering::Relaxed);
        if desired == Desired::Abort {
            control.abort.cancel();
        }
        if begun || desired == Desired::Abort {
            return Ok(());
        }
        tokio::select! {
            () = control.wake.notified() => {}
            () = tokio::time::sleep(shared.ctx.settings.poll_s.get()) => {}
        }
    }
}

/// Cancels `abort` where the deployment was aborted before anybody looked.
pub(crate) async fn heed_abort(shared: &Shared, work: WorkId, control: &Control) -> Result<(), Error> {
    if works::desired_now(&mut shared.ctx.store.read().await?, work).await? == Some(Desired::Abort) {
        control.abort.cancel();
    }
    Ok(())
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
    let (work, epoch) = (claim.work.id, claim.epoch);
    let mut lease = Lease::new(Arc::clone(shared), work, epoch);
    let ended = {
        let running = async {
            let mut beside = Lease::second(Arc::clone(shared), work, epoch);
            loop {
                match run().await? {
                    Ok(done) => break Ok::<T, Stop>(done),
                    Err(error) => beside.after_failure(&error).await?,
                }
            }
        };
        // Both are polled all the time: what runs may hold a transaction that the renewal of the claim waits for, so neither
        // may stand still while the other one is waited for.
        tokio::select! {
            biased;
            why = keep(shared, &mut lease, work, control, bell, stop) => Err(why),
            done = running => done,
        }
    };
    let done = match ended {
        Ok(done) => done,
        Err(Stop::Shutdown) => {
            lease.release().await;
            return Err(Stop::Shutdown);
        }
        Err(why) => return Err(why),
    };
    while let Err(error) = settle(done.clone()).await {
        lease.after_failure(&error).await?;
    }
    shared.ctx.bus.ring(subjects::WORK_SETTLED, claim.work.deployment.to_string()).await;
    Ok(())
}

/// Keeps the claim and passes on what is said about the work, until this executor has nothing more to say about it.
async fn keep(
    shared: &Shared,
    lease: &mut Lease,
    work: WorkId,
    control: &Control,
    bell: &Notify,
    stop: &CancellationToken,
) -> Stop {
    let poll = shared.ctx.settings.poll_s.get();
    let mut next_poll = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Stop::Shutdown,
            () = tokio::time::sleep_until(lease.due()) => {
                if let Err(why) = lease.renew().await {
                    return why;
                }
            }
            () = bell.notified() => {
                next_poll = Instant::now();
                control.wake.notify_one();
            }
            () = tokio::time::sleep_until(next_poll) => {
                next_poll = Instant::now() + poll;
                let desired = async { works::desired_now(&mut shared.ctx.store.read().await?, work).await };
                match desired.await {
                    // It ends itself, so that it can put its house in order.
                    Ok(Some(Desired::Abort)) => control.abort.cancel(),
                    Ok(_) => {}
                    Err::<_, Error>(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "cannot read the work");
                    }
                }
            }
        }
    }
}
