//! What every process does beside its services: says that it is there, and removes what is only kept for a while. Each service
//! removes its own tables' rows, as the one writer it is; of many processes the holder of a lease does it.

use crate::service::Service;
use chrono::{DateTime, Utc};
use std::time::Duration;
use windlass_bus::Context;
use windlass_runtime::settings::Retention;
use windlass_store::{
    Error, leases,
    processes::{self, Process},
    retention, schema,
};

/// How often a process says that it is there.
pub(crate) const BEAT: Duration = Duration::from_secs(10);
/// How often is looked for what is old, first a while after the start.
const LOOK: Duration = Duration::from_secs(3600);
const FIRST_LOOK: Duration = Duration::from_secs(120);
/// The lease outlives every run.
const LEASE: Duration = Duration::from_secs(900);
/// Rows of one transaction, and transactions of one run: an hour later there is another one.
const ROWS: u32 = 500;
const BATCHES: u32 = 200;
/// Between two transactions, so that releases have the database to themselves most of the time.
const BREATH: Duration = Duration::from_millis(50);
/// At the end of a process nothing waits longer for a row that only says so.
const FAREWELL: Duration = Duration::from_secs(2);

/// Says every [`BEAT`] that the process is there; takes it back at the end.
pub(crate) async fn beats(ctx: Context, services: Vec<&'static str>) {
    let mut p = Process {
        owner: ctx.owner.clone(),
        services: services.join(","),
        version: env!("CARGO_PKG_VERSION").into(),
        migration: schema::newest_known(),
        machine: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
        started_at: Utc::now(),
        seen_at: Utc::now(),
        skew_ms: 0,
        disk_free: 0,
    };
    loop {
        if let Err(error) = beat(&ctx, &mut p).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "the process could not say that it is there");
        }
        tokio::select! {
            () = ctx.shutdown.cancelled() => break,
            () = tokio::time::sleep(BEAT) => {}
        }
    }
    let farewell = async {
        let mut tx = ctx.store.write().await?;
        processes::gone(&mut tx, &ctx.owner).await?;
        tx.commit().await
    };
    // A row that stays is forgotten a day later, and shown as gone after three beats.
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
}

async fn beat(ctx: &Context, p: &mut Process) -> Result<(), Error> {
    p.disk_free = rustix::fs::statvfs(&ctx.settings.state_dir)
        .map_or(-1, |s| i64::try_from(s.f_bavail.saturating_mul(s.f_frsize)).unwrap_or(i64::MAX));
    let mut tx = ctx.store.write().await?;
    // Half of what the question took lies before the database's answer.
    let asked = Utc::now();
    let now = tx.now().await?;
    p.skew_ms = (asked + (Utc::now() - asked) / 2 - now).num_milliseconds();
    p.seen_at = now;
    processes::beat(&mut tx, p).await?;
    tx.commit().await
}

/// Removes what is old, until shutdown.
pub(crate) async fn retention(ctx: Context, service: Service) {
    let mut pause = FIRST_LOOK;
    loop {
        tokio::select! {
            () = ctx.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = LOOK;
        if let Err(error) = clean(&ctx, service).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, service = service.name(), "what is old could not be removed; tried again in an hour");
        }
    }
}

async fn clean(ctx: &Context, service: Service) -> Result<(), Error> {
    let name = format!("retention/{}", service.name());
    let Some(lease) = leases::acquire(&ctx.store, &name, &ctx.owner, LEASE).await? else { return Ok(()) };
    for kind in Kind::of(service) {
        let Some(before) = kind.before(&ctx.settings.retention, Utc::now()) else { continue };
        let mut removed = 0;
        for _ in 0..BATCHES {
            if ctx.shutdown.is_cancelled() {
                break;
            }
            let mut tx = ctx.store.write().await?;
            let now = tx.now().await?;
            let n = kind.remove(&mut tx, before, now).await?;
            tx.commit().await?;
            removed += n;
            if n == 0 {
                break;
            }
            tokio::time::sleep(BREATH).await;
        }
        if removed > 0 {
            tracing::info!(?kind, removed, %before, "removed what is old");
        }
    }
    leases::release(&ctx.store, &lease).await
}

/// What is removed, each by its table's writer. Incoming deliveries and idempotency keys the api removes itself.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Logs,
    ProbeTasks,
    Sessions,
    Notifications,
    Callbacks,
}

impl Kind {
    fn of(service: Service) -> &'static [Kind] {
        match service {
            Service::Executor => &[Kind::Logs, Kind::ProbeTasks, Kind::Sessions],
            Service::Notifier => &[Kind::Notifications],
            Service::Api => &[Kind::Callbacks],
            Service::Scheduler | Service::Auditor => &[],
        }
    }

    /// What is older goes; `None`: nothing does.
    fn before(self, r: &Retention, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let days = match self {
            Kind::Logs => r.logs_days,
            Kind::ProbeTasks => r.probe_tasks_days,
            Kind::Sessions => r.agents_days,
            Kind::Notifications => r.notifications_days,
            Kind::Callbacks => r.idempotency_days,
        };
        (days > 0).then(|| now - chrono::Duration::days(i64::from(days)))
    }

    async fn remove(
        self,
        tx: &mut windlass_store::Tx,
        before: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<u64, Error> {
        match self {
            Kind::Logs => retention::logs(tx, before, now, ROWS).await,
            Kind::ProbeTasks => retention::probe_tasks(tx, before, ROWS).await,
            Kind::Sessions => retention::sessions(tx, before, ROWS).await,
            Kind::Notifications => retention::notifications(tx, before, ROWS).await,
            Kind::Callbacks => retention::callbacks(tx, before, ROWS).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_removed_that_is_kept_for_ever() {
        let now = Utc::now();
        let r = Retention { logs_days: 0, notifications_days: 7, ..Retention::default() };
        assert_eq!(Kind::Logs.before(&r, now), None);
        assert_eq!(Kind::Notifications.before(&r, now), Some(now - chrono::Duration::days(7)));
    }
}
