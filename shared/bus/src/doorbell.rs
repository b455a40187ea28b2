//! The handle to NATS: doorbells out, core subscriptions in. A doorbell never waits for the broker and never fails: whoever
//! misses it finds the work in the database.

use crate::{LinkState, topology::Topology};
use async_nats::{HeaderMap, Subscriber, jetstream};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::watch;
use windlass_contracts::envelope::TRACE_HEADER;
use windlass_runtime::telemetry;

/// The client's queue is only ever full when the connection is in trouble; then the doorbell is dropped.
const RING_WAIT: Duration = Duration::from_millis(100);
const ACK_WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("NATS is not connected")]
    Down,
    #[error("cannot subscribe to `{subject}`")]
    Subscribe {
        subject: String,
        #[source]
        source: async_nats::SubscribeError,
    },
    #[error("cannot publish to `{subject}`")]
    Publish {
        subject: String,
        #[source]
        source: async_nats::PublishError,
    },
    #[error("no stream confirmed the message to `{subject}`")]
    Ack {
        subject: String,
        #[source]
        source: jetstream::context::PublishError,
    },
    #[error("the message to `{subject}` was not confirmed in time; whether it was stored is unknown")]
    AckTimeout { subject: String },
}

/// A received message.
#[derive(Debug, Clone)]
pub struct Message {
    pub subject: String,
    pub payload: Bytes,
    pub headers: HeaderMap,
    /// 1 at the first delivery; always 1 on core NATS.
    pub delivered: u64,
}

impl Message {
    /// The sender's trace context.
    pub fn traceparent(&self) -> Option<&str> {
        self.headers.get(TRACE_HEADER).map(async_nats::HeaderValue::as_str)
    }

    /// The body as text; doorbells carry an id.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.payload).ok()
    }

    /// The body as an id (`None`: not one).
    pub fn id<T: std::str::FromStr>(&self) -> Option<T> {
        self.text()?.trim().parse().ok()
    }

    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.payload)
    }
}

impl From<async_nats::Message> for Message {
    fn from(m: async_nats::Message) -> Self {
        Message {
            subject: m.subject.into_string(),
            payload: m.payload,
            headers: m.headers.unwrap_or_default(),
            delivered: 1,
        }
    }
}

/// A core subscription. It outlives reconnects; what is sent while the connection is down is missed.
#[derive(Debug)]
pub struct Subscription(Subscriber);

impl Subscription {
    /// The next message; `None` when the connection was closed for good.
    pub async fn next(&mut self) -> Option<Message> {
        self.0.next().await.map(Message::from)
    }
}

impl Stream for Subscription {
    type Item = Message;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.0.poll_next_unpin(cx).map(|m| m.map(Message::from))
    }
}

/// The handle. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bus {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    state: watch::Receiver<LinkState>,
    pub(crate) topology: Arc<Topology>,
}

impl Bus {
    pub(crate) fn new(client: async_nats::Client, state: watch::Receiver<LinkState>, replicas: usize) -> Bus {
        let jetstream =
            jetstream::context::ContextBuilder::new().timeout(ACK_WAIT).ack_timeout(ACK_WAIT).build(client.clone());
        Bus { client, jetstream, state, topology: Arc::new(Topology::new(replicas)) }
    }

    /// Wakes whoever listens on `subject`, also through its stream if it has one. Best effort, returns at once.
    pub async fn ring(&self, subject: impl Into<String>, body: impl Into<Bytes>) {
        self.send(subject.into(), body.into(), None).await;
    }

    /// [`Bus::ring`] with a message id: the stream keeps only the first of equal ids inside its window.
    pub async fn ring_once(&self, subject: impl Into<String>, body: impl Into<Bytes>, id: &str) {
        self.send(subject.into(), body.into(), Some(id)).await;
    }

    async fn send(&self, subject: String, body: Bytes, id: Option<&str>) {
        if !self.is_up() {
            tracing::trace!(subject, "doorbell dropped: NATS is not connected");
            return;
        }
        let headers = headers(id, telemetry::traceparent_of_current().as_deref());
        match tokio::time::timeout(RING_WAIT, self.client.publish_with_headers(subject.clone(), headers, body)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(subject, %error, "doorbell dropped"),
            Err(_) => tracing::debug!(subject, "doorbell dropped: the connection is not keeping up"),
        }
    }

    /// Publishes on core NATS and says whether the message left. For frames to agents, which are re-sent from the database.
    pub async fn publish(&self, subject: impl Into<String>, body: impl Into<Bytes>) -> Result<(), BusError> {
        let subject = subject.into();
        if !self.is_up() {
            return Err(BusError::Down);
        }
        let sent = self.client.publish(subject.clone(), body.into());
        match tokio::time::timeout(RING_WAIT, sent).await {
            Ok(r) => r.map_err(|source| BusError::Publish { subject, source }),
            Err(_) => Err(BusError::Down),
        }
    }

    /// Publishes into a stream and waits until it is stored. `id` makes a repeated publish harmless.
    pub async fn publish_stored(
        &self,
        subject: impl Into<String>,
        body: impl Into<Bytes>,
        id: &str,
        traceparent: Option<&str>,
    ) -> Result<(), BusError> {
        self.publish_stored_with(subject.into(), body.into(), headers(Some(id), traceparent)).await
    }

    pub(crate) async fn publish_stored_with(
        &self,
        subject: String,
        body: Bytes,
        headers: HeaderMap,
    ) -> Result<(), BusError> {
        if !self.is_up() {
            return Err(BusError::Down);
        }
        let stored = async {
            let failed = |source| BusError::Ack { subject: subject.clone(), source };
            let sent = self.jetstream.publish_with_headers(subject.clone(), headers, body).await.map_err(failed)?;
            // The second wait is the one for the stream's confirmation.
            sent.await.map(drop).map_err(failed)
        };
        // A confirmation cannot come over a connection that is gone; waiting it out would hold up what comes after.
        let mut link = self.state.clone();
        tokio::select! {
            r = tokio::time::timeout(ACK_WAIT, stored) => r.unwrap_or_else(|_| Err(BusError::AckTimeout { subject: subject.clone() })),
            _ = link.wait_for(|s| *s != LinkState::Up) => Err(BusError::AckTimeout { subject: subject.clone() }),
        }
    }

    /// A core subscription: for doorbells without a stream, and frames of agents.
    pub async fn subscribe(&self, subject: impl Into<String>) -> Result<Subscription, BusError> {
        let subject = subject.into();
        let s = self.client.subscribe(subject.clone()).await;
        s.map(Subscription).map_err(|source| BusError::Subscribe { subject, source })
    }

    /// A core subscription shared by all members of `group`: each message goes to one of them.
    pub async fn subscribe_shared(&self, subject: impl Into<String>, group: &str) -> Result<Subscription, BusError> {
        let subject = subject.into();
        let s = self.client.queue_subscribe(subject.clone(), group.to_owned()).await;
        s.map(Subscription).map_err(|source| BusError::Subscribe { subject, source })
    }

    /// Waits until everything sent so far, subscriptions too, has reached the server.
    pub async fn flush(&self) -> Result<(), BusError> {
        match tokio::time::timeout(ACK_WAIT, self.client.flush()).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(BusError::Down),
        }
    }

    pub fn is_up(&self) -> bool {
        *self.state.borrow() == LinkState::Up
    }

    /// Changes of the connection.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Waits until the connection is up.
    pub async fn up(&self) {
        let mut state = self.state.clone();
        if state.wait_for(|s| *s == LinkState::Up).await.is_err() {
            // The connection is gone for good; there is nothing to wait for, and the caller ends by its token.
            std::future::pending::<()>().await;
        }
    }

    /// The plain client, for what this handle does not offer.
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }

    pub fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    /// Sends what is buffered and closes the connection.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(Duration::from_secs(2), self.client.flush()).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), self.client.drain()).await;
    }
}

fn headers(id: Option<&str>, traceparent: Option<&str>) -> HeaderMap {
    let mut h = HeaderMap::new();
    if let Some(id) = id {
        h.insert(async_nats::header::NATS_MESSAGE_ID, id);
    }
    if let Some(t) = traceparent {
        h.insert(TRACE_HEADER, t);
    }
    h
}
