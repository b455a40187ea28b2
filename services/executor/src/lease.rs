//! The claim on a work while it is held: renewed at a third of its time, given up when the database says so or has not
//! answered for all of it.

use crate::{error::Stop, shared::Shared};
use std::sync::Arc;
use tokio::time::{Duration, Instant};
use windlass_domain::ids::WorkId;
use windlass_store::works;

#[derive(Debug)]
pub(crate) struct Lease {
    shared: Arc<Shared>,
    work: WorkId,
    pub(crate) epoch: u64,
    renewed: Instant,
    next: Instant,
    ttl: Duration,
    /// Another driver of the same claim renews it; here it is only looked at.
    second: bool,
}

/// A time that does not come.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Lease {
    pub(crate) fn new(shared: Arc<Shared>, work: WorkId, epoch: u64) -> Lease {
        let ttl = shared.ctx.settings.executor.lease_s.get();
        let now = Instant::now();
        Lease { shared, work, epoch, renewed: now, next: now + ttl / 3, ttl, second: false }
    }

    /// For what is driven beside the owner of the claim, which renews it and whose end is the end of this too.
    pub(crate) fn second(shared: Arc<Shared>, work: WorkId, epoch: u64) -> Lease {
        let one = Lease::new(shared, work, epoch);
        Lease { next: one.next + NEVER, second: true, ..one }
    }

    /// When to renew.
    pub(crate) fn due(&self) -> Instant {
        self.next
    }

    pub(crate) async fn renew(&mut self) -> Result<(), Stop> {
        let started = Instant::now();
        let renewed = async {
            let mut tx = self.shared.ctx.store.write().await?;
            let ours = works::renew(&mut tx, self.work, self.epoch, self.ttl).await?;
            tx.commit().await?;
            Ok::<bool, windlass_store::Error>(ours)
        };
        match renewed.await {
            Ok(true) => {
                self.renewed = started;
                self.next = started + self.ttl / 3;
                Ok(())
            }
            Ok(false) => Err(Stop::Lost),
            Err(_) if self.renewed.elapsed() >= self.ttl => Err(Stop::Lost),
            Err(error) => {
                tracing::warn!(work = %self.work, error = &error as &dyn std::error::Error, "claim not renewed, trying again");
                self.next = Instant::now() + self.ttl / 10;
                Ok(())
            }
        }
    }

    /// The database failed. Whether to go on: pauses, and gives up once the claim's time is over.
    pub(crate) async fn after_failure(&mut self, error: &windlass_store::Error) -> Result<(), Stop> {
        if self.second {
            return self.still_ours(error).await;
        }
        if self.renewed.elapsed() >= self.ttl {
            return Err(Stop::Lost);
        }
        if !error.is_retryable() {
            tracing::warn!(work = %self.work, error = error as &dyn std::error::Error, "a transaction failed, trying again");
            tokio::time::sleep((self.ttl / 30).min(Duration::from_millis(500))).await;
        }
        self.renew().await
    }

    /// Waits until the database answers again, for as long as the claim's time at most.
    async fn still_ours(&self, error: &windlass_store::Error) -> Result<(), Stop> {
        let pause = (self.ttl / 30).min(Duration::from_millis(500));
        tracing::debug!(work = %self.work, error = error as &dyn std::error::Error, "a transaction failed, trying again");
        let until = Instant::now() + self.ttl;
        loop {
            tokio::time::sleep(pause).await;
            let state = async { works::claim_state(&mut self.shared.ctx.store.read().await?, self.work).await };
            match state.await {
                Ok(Some(c)) if c.epoch == self.epoch && c.phase == "running" => return Ok(()),
                Ok(_) => return Err(Stop::Lost),
                Err(_) if Instant::now() >= until => return Err(Stop::Lost),
                Err::<_, windlass_store::Error>(_) => {}
            }
        }
    }

    /// Lets another executor take over at once.
    pub(crate) async fn release(self) {
        let released = async {
            let mut tx = self.shared.ctx.store.write().await?;
            works::release(&mut tx, self.work, self.epoch).await?;
            tx.commit().await
        };
        if let Err(error) = released.await {
            tracing::debug!(work = %self.work, error = &error as &dyn std::error::Error, "claim not released; it expires");
        }
    }
}
