//! THE consumer loop. Every durable consumer of every service is this one: bounded, traced, panic-proof, with progress
//! acks, a dead letter that says why, and repair of a broker whose store was lost.

use crate::{
    Bus, Context, LinkState, Message,
    doorbell::BusError,
    wake::{Backoff, panic_text},
};
use async_nats::jetstream::{
    self, AckKind,
    consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
};
use futures::{FutureExt, StreamExt};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use windlass_contracts::subjects;
use windlass_runtime::telemetry;

/// One pull request waits this long for messages before it is renewed.
const PULL: Duration = Duration::from_secs(10);
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long running handlers get to end at shutdown; what they leave is delivered again.
const DRAIN: Duration = Duration::from_secs(10);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);
/// Above every `max_in_flight`: the server's own limit would be shared by all processes of a durable.
const MAX_ACK_PENDING: i64 = 10_000;
const MAX_REASON: usize = 1000;

/// A durable consumer.
#[derive(Debug, Clone)]
pub struct ConsumerSpec {
    pub stream: &'static str,
    /// All processes with this name share the messages.
    pub durable: String,
    pub filter: String,
    /// Whose dead letters these become: `windlass.dlq.<service>`.
    pub service: &'static str,
    /// Messages handled at once in this process.
    pub max_in_flight: usize,
    /// A message is delivered again this long after its handler was last known to be alive. Progress is reported three
    /// times in it, so it may be much shorter than the work.
    pub ack_wait: Duration,
    /// Deliveries after which a message that panics, or asks for another try, becomes a dead letter.
    pub max_deliver: u64,
}

impl ConsumerSpec {
    pub fn new(
        service: &'static str,
        stream: &'static str,
        durable: impl Into<String>,
        filter: impl Into<String>,
    ) -> Self {
        ConsumerSpec {
            stream,
            durable: durable.into(),
            filter: filter.into(),
            service,
            max_in_flight: 32,
            ack_wait: Duration::from_secs(30),
            max_deliver: 10,
        }
    }
}

/// What a handler decided about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done, or nothing to do.
    Ack,
    /// Deliver again after this pause.
    Retry(Duration),
    /// Never again: to the dead letters, with this reason.
    Reject(String),
}

/// Runs the consumer until shutdown. It does not fail: what goes wrong is repaired or waited out.
pub async fn consume<H, F>(ctx: Context, spec: ConsumerSpec, handler: H)
where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output = Outcome> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(spec.max_in_flight.max(1)));
    let shared = Arc::new(Shared { spec, handler, bus: ctx.bus.clone(), ctx: ctx.clone() });
    let running = TaskTracker::new();
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let pull = async {
        loop {
            ctx.bus.up().await;
            match shared.pull(&permits, &running, &mut backoff).await {
                // The connection went down; `up` waits for it.
                Ok(()) => {}
                Err(error) => {
                    let error = telemetry::chain(error.as_ref());
                    tracing::warn!(consumer = shared.spec.durable, error, "consumer interrupted, starting it again");
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    };
    tokio::select! {
        () = ctx.shutdown.cancelled() => {}
        () = pull => {}
    }
    running.close();
    if timeout(DRAIN, running.wait()).await.is_err() {
        tracing::warn!(consumer = shared.spec.durable, left = running.len(), "handlers still run at shutdown");
    }
}

struct Shared<H> {
    spec: ConsumerSpec,
    handler: H,
    bus: Bus,
    ctx: Context,
}

type PullError = Box<dyn std::error::Error + Send + Sync>;

impl<H, F> Shared<H>
where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output = Outcome> + Send + 'static,
{
    /// Pulls until the connection goes down (`Ok`) or something else fails.
    async fn pull(
        self: &Arc<Self>,
        permits: &Arc<Semaphore>,
        running: &TaskTracker,
        backoff: &mut Backoff,
    ) -> Result<(), PullError> {
        let consumer = self.open().await?;
        let mut link = self.bus.state();
        loop {
            // Ask for exactly as many messages as can start now: one that waits here would be delivered again elsewhere.
            let first = Arc::clone(permits).acquire_owned().await?;
            let mut free = vec![first];
            while free.len() < self.spec.max_in_flight {
                let Ok(p) = Arc::clone(permits).try_acquire_owned() else { break };
                free.push(p);
            }
            let mut batch = consumer.batch().max_messages(free.len()).expires(PULL).messages().await?;
            while let Some(permit) = free.pop() {
                let next = tokio::select! {
                    m = batch.next() => m,
                    // A pull request dies with its connection; waiting for its expiry would cost seconds.
                    _ = link.wait_for(|s| *s != LinkState::Up) => return Ok(()),
                };
                match next {
                    Some(Ok(m)) => {
                        backoff.reset();
                        let span = tracing::info_span!("consume", consumer = self.spec.durable, subject = %m.subject);
                        let parent = m.headers.as_ref().and_then(|h| h.get(windlass_contracts::envelope::TRACE_HEADER));
                        let span = telemetry::span_with_parent(span, parent.map(async_nats::HeaderValue::as_str));
                        let task = Arc::clone(self).one(m, permit).instrument(span);
                        // At shutdown the loop is dropped and the tracker is waited for.
                        running.spawn(task);
                    }
                    Some(Err(e)) => return Err(e),
                    None => break,
                }
            }
        }
    }

    async fn open(&self) -> Result<PullConsumer, PullError> {
        match self.create().await {
            Ok(c) => Ok(c),
            Err(first) => {
                // Most likely the stream is not there: a new broker, or one whose store was lost.
                self.bus.ensure_topology().await?;
                tracing::debug!(consumer = self.spec.durable, error = %first, "consumer made after the streams were ensured");
                Ok(self.create().await?)
            }
        }
    }

    async fn create(&self) -> Result<PullConsumer, jetstream::stream::ConsumerError> {
        let config = pull::Config {
            durable_name: Some(self.spec.durable.clone()),
            filter_subject: self.spec.filter.clone(),
            ack_policy: AckPolicy::Explicit,
            deliver_policy: DeliverPolicy::All,
            ack_wait: self.spec.ack_wait,
            // The loop counts deliveries itself, because the server would drop a message without a word.
            max_deliver: -1,
            max_ack_pending: MAX_ACK_PENDING,
            ..pull::Config::default()
        };
        self.bus.jetstream().create_consumer_on_stream(config, self.spec.stream).await
    }

    /// One message, from delivery to its settlement.
    async fn one(self: Arc<Self>, m: jetstream::Message, permit: OwnedSemaphorePermit) {
        let delivered = m.info().map(|i| i.delivered.unsigned_abs()).unwrap_or(1);
        let message = Message {
            subject: m.subject.to_string(),
            payload: m.payload.clone(),
            headers: m.headers.clone().unwrap_or_default(),
            delivered,
        };
        let outcome = if delivered > self.spec.max_deliver {
            // Its handler never lived to settle it: a process that dies of a message must not die of it for ever.
            Outcome::Reject(format!("delivered {delivered} times and never settled"))
        } else {
            self.decide(&m, message, delivered).await
        };
        let label = match &outcome {
            Outcome::Ack => "ack",
            Outcome::Retry(_) => "retry",
            Outcome::Reject(_) => "reject",
        };
        self.ctx
            .health
            .counter("windlass_consumed_total", "Messages settled, by consumer and outcome", &["consumer", "outcome"])
            .with_label_values(&[self.spec.durable.as_str(), label])
            .inc();
        self.settle(&m, outcome, delivered).await;
        drop(permit);
    }

    async fn decide(&self, m: &jetstream::Message, message: Message, delivered: u64) -> Outcome {
        let work = AssertUnwindSafe(async { (self.handler)(message).await }).catch_unwind();
        tokio::pin!(work);
        // Polled beside the handler, not between its steps: one that holds a transaction must not stand still because the
        // broker takes nothing.
        let alive = async {
            let mut due = tokio::time::interval(self.spec.ack_wait / 3);
            due.tick().await;
            loop {
                due.tick().await;
                drop(m.ack_with(AckKind::Progress).await);
            }
        };
        let result = tokio::select! {
            r = &mut work => r,
            never = alive => never,
        };
        let last = delivered >= self.spec.max_deliver;
        match result {
            Ok(Outcome::Retry(_)) if last => Outcome::Reject(format!("gave up after {delivered} deliveries")),
            Ok(outcome) => outcome,
            Err(panic) => {
                let text = panic_text(panic.as_ref());
                tracing::error!(consumer = self.spec.durable, delivered, panic = text, "handler panicked");
                if last {
                    Outcome::Reject(format!("handler panicked: {text}"))
                } else {
                    Outcome::Retry(Duration::from_millis(100 << delivered.min(9)).min(MAX_RETRY_DELAY))
                }
            }
        }
    }

    async fn settle(&self, m: &jetstream::Message, outcome: Outcome, delivered: u64) {
        let kind = match outcome {
            Outcome::Ack => AckKind::Ack,
            Outcome::Retry(pause) => AckKind::Nak(Some(pause)),
            Outcome::Reject(reason) => {
                tracing::warn!(consumer = self.spec.durable, reason, "message rejected to the dead letters");
                match self.dead_letter(m, &reason, delivered).await {
                    Ok(()) => AckKind::Term,
                    Err(error) => {
                        tracing::error!(%error, "dead letter not stored; the message is kept and tried again");
                        AckKind::Nak(Some(Duration::from_secs(5)))
                    }
                }
            }
        };
        // A lost ack means another delivery, which finds the state already moved.
        match timeout(ACK_TIMEOUT, m.double_ack_with(kind)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "ack not confirmed"),
            Err(_) => tracing::debug!("ack not confirmed in time"),
        }
    }

    async fn dead_letter(&self, m: &jetstream::Message, reason: &str, delivered: u64) -> Result<(), BusError> {
        let mut headers = async_nats::HeaderMap::new();
        for (name, values) in m.headers.iter().flat_map(async_nats::HeaderMap::iter) {
            // Instructions to the server (ids, expectations, schedules) must not act a second time.
            if !name.to_string().starts_with("Nats-") {
                values.iter().for_each(|v| headers.append(name.clone(), v.clone()));
            }
        }
        let place = match m.info() {
            Ok(i) => format!("{}:{}:{}", i.stream, i.stream_sequence, i.published.unix_timestamp_nanos()),
            Err(_) => uuid::Uuid::now_v7().to_string(),
        };
        let line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect();
        headers.insert("Windlass-Reason", line.as_str());
        headers.insert("Windlass-Subject", m.subject.as_str());
        headers.insert("Windlass-Consumer", self.spec.durable.as_str());
        headers.insert("Windlass-Delivered", delivered.to_string().as_str());
        headers.insert(async_nats::header::NATS_MESSAGE_ID, format!("{}:{place}", self.spec.durable).as_str());
        self.bus.publish_stored_with(subjects::dead(self.spec.service), m.payload.clone(), headers).await
    }
}
