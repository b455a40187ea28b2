//! The relay: publishes what was committed. What this process commits goes out at once; what is older than a moment, from
//! any process, goes out from the queue table. A row leaves the table only after the stream has confirmed its event, so
//! nothing is lost to a broker that is away, and the event id makes a repeat harmless.

use crate::{Bus, Context, wake::Backoff};
use futures::{StreamExt, stream};
use std::time::Duration;
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, MissedTickBehavior},
};
use windlass_contracts::{envelope::CloudEvent, subjects};
use windlass_domain::{event::Event, ids::EventId};
use windlass_runtime::telemetry::chain;
use windlass_store::{Store, events};

/// Younger rows are left to the process that committed them.
const STALE: Duration = Duration::from_secs(2);
const SWEEP: Duration = Duration::from_secs(2);
const BATCH: usize = 256;
/// Below the broker's limit of 1 MiB, with room for headers.
const MAX_BODY: usize = 900 * 1024;
/// Confirmations awaited at once.
const IN_FLIGHT: usize = 64;

enum Work {
    /// What this process has just committed.
    Publish(Vec<Event>),
    /// What is at least this old in the table.
    Drain(Duration),
}

/// Runs until shutdown. One a process.
pub async fn relay(ctx: Context) {
    let mut fresh = ctx.store.committed();
    let mut link = ctx.bus.state();
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut retry_at: Option<Instant> = None;
    loop {
        let retry = async {
            match retry_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let work = tokio::select! {
            () = ctx.shutdown.cancelled() => return,
            // After an outage everything in the queue is overdue, however young.
            Ok(()) = link.changed() => Work::Drain(Duration::ZERO),
            batch = fresh.recv() => match batch {
                Ok(first) => {
                    let mut all: Vec<Event> = first.to_vec();
                    while all.len() < BATCH && let Ok(more) = fresh.try_recv() {
                        all.extend(more.iter().cloned());
                    }
                    Work::Publish(all)
                }
                // Too much at once to follow: the sweep has it all.
                Err(RecvError::Lagged(_)) => Work::Drain(Duration::ZERO),
                Err(RecvError::Closed) => return,
            },
            () = retry => Work::Drain(Duration::ZERO),
            _ = sweep.tick() => Work::Drain(STALE),
        };
        // Only a pass over the table shows that nothing was left behind.
        let whole = matches!(work, Work::Drain(age) if age.is_zero());
        let pass = async {
            match work {
                Work::Publish(events) => publish(&ctx.store, &ctx.bus, &events).await,
                Work::Drain(age) => drain(&ctx.store, &ctx.bus, age).await,
            }
        };
        let result = tokio::select! {
            () = ctx.shutdown.cancelled() => return,
            r = pass => r,
        };
        retry_at = match result {
            Ok(0) if whole => {
                backoff.reset();
                None
            }
            Ok(0) => retry_at,
            // With the connection down, its return is what to wait for.
            Ok(_) if !ctx.bus.is_up() => None,
            Ok(left) => {
                tracing::debug!(left, "events not confirmed; they stay in the queue");
                Some(Instant::now() + backoff.next())
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "events not relayed; they stay in the queue");
                Some(Instant::now() + backoff.next())
            }
        };
    }
}

/// Publishes everything that waits now, whoever put it there. Returns how many were found and not confirmed.
pub async fn drain_now(store: &Store, bus: &Bus) -> Result<usize, windlass_store::Error> {
    drain(store, bus, Duration::ZERO).await
}

/// Publishes what has been in the queue for `age`, whoever put it there. Returns how many were found and not confirmed.
async fn drain(store: &Store, bus: &Bus, age: Duration) -> Result<usize, windlass_store::Error> {
    while bus.is_up() {
        let mut c = store.read().await?;
        let older = c.now().await? - age;
        let stale = events::queued(&mut c, events::BUS, Some(older), BATCH as u32).await?;
        drop(c);
        let n = stale.len();
        let left = publish(store, bus, &stale).await?;
        if n < BATCH || left > 0 {
            return Ok(left);
        }
    }
    Ok(0)
}

/// Publishes, then takes what was confirmed off the queue. Returns how many were not.
async fn publish(store: &Store, bus: &Bus, all: &[Event]) -> Result<usize, windlass_store::Error> {
    if all.is_empty() || !bus.is_up() {
        return Ok(all.len());
    }
    let sends: Vec<_> = all.iter().map(|event| send(bus.clone(), event.clone())).collect();
    let confirmed: Vec<EventId> =
        stream::iter(sends).buffered(IN_FLIGHT).filter_map(std::future::ready).collect().await;
    let left = all.len() - confirmed.len();
    if !confirmed.is_empty() {
        let mut tx = store.write().await?;
        events::done(&mut tx, events::BUS, &confirmed).await?;
        tx.commit().await?;
    }
    if left > 0
        && bus.is_up()
        && let Err(error) = bus.ensure_topology().await
    {
        tracing::warn!(error = chain(&error), "cannot ensure the streams");
    }
    Ok(left)
}

/// Publishes one event; its id when the stream has it.
async fn send(bus: Bus, event: Event) -> Option<EventId> {
    let subject = subjects::event(&event.aggregate, &event.aggregate_id, &event.what);
    let mut envelope = CloudEvent::of(&event);
    let mut body = serde_json::to_vec(&envelope).unwrap_or_default();
    if body.len() > MAX_BODY {
        // Too large for the broker: tell of it without its data, rather than never.
        envelope.data = None;
        envelope.extensions.insert("windlassdataomitted".into(), true.into());
        body = serde_json::to_vec(&envelope).unwrap_or_default();
    }
    match bus.publish_stored(subject, body, &event.id.to_string(), event.trace.as_deref()).await {
        Ok(()) => Some(event.id),
        Err(error) => {
            tracing::debug!(event = %event.id, error = chain(&error), "event not confirmed");
            None
        }
    }
}
