//! The service's loop: hold the lease, take batches, sign in time, say how it is.

use crate::{
    Error,
    sink::FileSink,
    trail::{Taken, Trail},
};
use nkeys::KeyPair;
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use windlass_runtime::{Health, keys};
use windlass_store::{
    Store,
    events::{self, AUDITOR},
    leases::{self, Lease},
};

const LEASE: &str = "auditor";
const LEASE_FOR: Duration = Duration::from_secs(15);
/// Longest pause before the next try to hold the lease.
const RETRY: Duration = Duration::from_secs(2);
/// Events of one burst share a transaction: nobody waits for the auditor, and every turn it takes is one the others wait for.
const GATHER: Duration = Duration::from_millis(100);
/// Events or leaves older than this unaudited are an alarm.
const ALARM_AGE: Duration = Duration::from_secs(60);

/// The service without its surroundings.
#[derive(Debug, Clone)]
pub struct Auditor {
    pub store: Store,
    pub state_dir: PathBuf,
    /// The signing key; made on first use.
    pub key_file: PathBuf,
    pub owner: String,
    pub poll: Duration,
    pub health: Health,
    pub shutdown: CancellationToken,
    /// Rung when there may be new events.
    pub doorbell: Arc<Notify>,
}

impl Auditor {
    /// Runs until shutdown. Whatever goes wrong on the way shows in `health` and is tried again.
    pub async fn run(&self) -> Result<(), Error> {
        self.signing_key()?;
        while !self.shutdown.is_cancelled() {
            match leases::acquire(&self.store, LEASE, &self.owner, LEASE_FOR).await {
                Ok(Some(lease)) => {
                    match self.lead(lease.clone()).await {
                        Ok(()) => {}
                        Err(Error::Superseded) => tracing::info!("another auditor has taken over"),
                        Err(e) => self.health.failing("auditor", with_causes(&e)),
                    }
                    // Best effort: without it the next holder waits for the lease to run out.
                    if let Err(e) = leases::release(&self.store, &lease).await {
                        tracing::debug!(error = %e, "the auditor's lease was not released");
                    }
                }
                Ok(None) => self.health.ok("auditor"),
                Err(e) => self.health.failing("auditor", with_causes(&e.into())),
            }
            self.pause(RETRY.min(self.poll)).await;
        }
        Ok(())
    }

    fn signing_key(&self) -> Result<KeyPair, Error> {
        let fresh = KeyPair::new_user().seed().map_err(|_| Error::Seed(self.key_file.clone()))?;
        let bytes = keys::load_or_create(&self.key_file, || fresh.into_bytes())?;
        let seed = String::from_utf8_lossy(&bytes);
        KeyPair::from_seed(seed.trim()).map_err(|_| Error::Seed(self.key_file.clone()))
    }

    async fn pause(&self, time: Duration) {
        self.shutdown.run_until_cancelled(tokio::time::sleep(time)).await;
    }

    /// Works as the one auditor until shutdown or failure.
    async fn lead(&self, mut lease: Lease) -> Result<(), Error> {
        let sink = FileSink::new(&self.state_dir);
        let mut committed = self.store.committed();
        let mut trail = Trail::open(&self.store, lease.clone(), self.signing_key()?, sink).await?;
        let mut renewed = Instant::now();
        let mut measured = None;
        loop {
            if renewed.elapsed() > LEASE_FOR / 3 {
                lease = self.renew(lease).await?;
                renewed = Instant::now();
            }
            let taken = trail.take_batch().await?;
            self.report(&trail, &taken);
            let ending = self.shutdown.is_cancelled();
            if trail.due_in().is_some_and(|d| d.is_zero() || ending) {
                trail.sign().await?;
            }
            let pushed = trail.push().await;
            if let Err(e) = &pushed {
                self.health
                    .counter("windlass_audit_sink_errors_total", "Checkpoints that a sink did not take", &[])
                    .with_label_values::<&str>(&[])
                    .inc();
                self.health.degraded("auditor", with_causes(e));
            }
            if ending {
                return Ok(());
            }
            if taken.full {
                continue;
            }
            if measured.is_none_or(|m: Instant| m.elapsed() > Duration::from_secs(1)) {
                self.measure(&trail, pushed.is_ok()).await?;
                measured = Some(Instant::now());
            }
            let longest = if trail.holds() { GATHER } else { self.poll.min(LEASE_FOR / 3) };
            let wait = trail.due_in().map_or(longest, |due| due.min(longest));
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
                () = self.doorbell.notified() => self.pause(GATHER).await,
                _ = committed.recv() => {
                    self.pause(GATHER).await;
                    committed = committed.resubscribe();
                }
            }
        }
    }

    async fn renew(&self, lease: Lease) -> Result<Lease, Error> {
        match leases::acquire(&self.store, LEASE, &self.owner, LEASE_FOR).await? {
            Some(now) if now.epoch == lease.epoch => Ok(now),
            _ => Err(Error::Superseded),
        }
    }

    fn report(&self, trail: &Trail, taken: &Taken) {
        let h = &self.health;
        h.gauge("windlass_audit_size", "Leaves of the audit trail", &[])
            .with_label_values::<&str>(&[])
            .set(whole(trail.size()));
        let leaves = h.counter("windlass_audit_leaves_total", "Leaves appended by this process", &[]);
        leaves.with_label_values::<&str>(&[]).inc_by(taken.leaves);
        for a in &taken.anomalies {
            let (aggregate, id) = &a.stream;
            tracing::error!(
                kind = a.kind(),
                aggregate,
                id,
                expected = a.expected,
                got = a.got,
                "audit: a stream is not contiguous"
            );
            h.counter("windlass_audit_anomalies_total", "Gaps and repeats in event streams", &["kind"])
                .with_label_values(&[a.kind()])
                .inc();
        }
    }

    async fn measure(&self, trail: &Trail, pushed: bool) -> Result<(), Error> {
        let h = &self.health;
        let mut c = self.store.read().await?;
        let (queued, oldest) = events::backlog(&mut c, AUDITOR).await?;
        let now = c.now().await?;
        let waited = oldest.and_then(|at| (now - at).to_std().ok()).unwrap_or_default();
        let set =
            |name: &str, help: &str, n: u64| h.gauge(name, help, &[]).with_label_values::<&str>(&[]).set(whole(n));
        set("windlass_audit_unsigned_leaves", "Leaves that no checkpoint covers yet", trail.unsigned());
        set("windlass_audit_unsigned_age_seconds", "Age of the oldest unsigned leaf", trail.unsigned_age().as_secs());
        set("windlass_audit_queue", "Events that have no leaf yet", queued);
        set("windlass_audit_queue_age_seconds", "Age of the oldest event without a leaf", waited.as_secs());
        let age = waited.max(trail.unsigned_age());
        if age >= ALARM_AGE {
            h.degraded(
                "auditor",
                format!("{queued} events wait for the audit trail, the oldest for {} s", age.as_secs()),
            );
        } else if pushed {
            h.ok("auditor");
        }
        Ok(())
    }
}

fn whole(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn with_causes(e: &Error) -> String {
    let mut text = e.to_string();
    let mut cause = std::error::Error::source(e);
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}
