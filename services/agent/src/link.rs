//! The connection to the control plane, and what it reports to the agent: NATS with authentication by JWT and nkey, or the
//! streams of this process (`stdio`), which an executor carries frames over.

use crate::{
    identity::{Identity, IdentityError},
    stdio::Streams,
};
use async_nats::{Auth, AuthError, Client, ConnectOptions, Event as NatsEvent, connection::State};
use futures::StreamExt;
use nkeys::KeyPair;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;
use windlass_contracts::{
    frames::{self, Up, UpBody},
    stdio::Kind,
    subjects,
};

/// A publish waits at most this long for room in the client's queue; what is lost is sent again by its own rule.
const SEND: Duration = Duration::from_secs(1);

/// What the link tells the agent.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    Connected,
    Disconnected,
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot set up the connection to NATS; check `nats_urls` in identity.json")]
    Connect(#[source] async_nats::ConnectError),
    #[error("cannot subscribe to this agent's frames")]
    Subscribe(#[source] async_nats::SubscribeError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

pub(crate) struct Link {
    carrier: Carrier,
    identity: Identity,
    instance: String,
    key: KeyPair,
}

enum Carrier {
    Nats(Client),
    Streams(Streams),
}

/// Frames to this agent, as they come.
pub(crate) enum Inbox {
    Nats(async_nats::Subscriber),
    Streams(mpsc::Receiver<Vec<u8>>),
}

impl Inbox {
    /// `None`: no more will come.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        match self {
            Inbox::Nats(s) => s.next().await.map(|m| m.payload.to_vec()),
            Inbox::Streams(s) => s.recv().await,
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("agent", &self.identity.agent_id).finish_non_exhaustive()
    }
}

impl Link {
    /// Returns at once; the connection is made, and made again, in the background.
    pub(crate) async fn open(
        state: &Path,
        identity: Identity,
        instance: &str,
        events: mpsc::UnboundedSender<LinkEvent>,
    ) -> Result<(Link, Inbox), LinkError> {
        let key = Identity::key(state)?;
        let signer = Arc::new(key.clone());
        let state: PathBuf = state.to_owned();
        let ca = identity.nats_ca.as_ref().map(|_| crate::identity::ca_path(&state));
        let mut options = ConnectOptions::with_auth_callback(move |nonce| {
            let (state, signer) = (state.clone(), signer.clone());
            async move {
                // Read at every connect, so that a renewed JWT needs no restart.
                let identity = Identity::load(&state).map_err(AuthError::new)?;
                let mut auth = Auth::new();
                // A server without authentication sends no nonce; what to do without one is its own decision.
                if !nonce.is_empty() {
                    auth.signature = Some(signer.sign(&nonce).map_err(AuthError::new)?);
                    auth.jwt = Some(identity.jwt);
                }
                Ok(auth)
            }
        });
        if let Some(ca) = ca {
            options = options.add_root_certificates(ca).require_tls(true);
        }
        let client = options
            .name(format!("windlass-agent {}", identity.host))
            .custom_inbox_prefix(format!("_INBOX_{}", identity.agent_id))
            .read_buffer_capacity(4096)
            .client_capacity(256)
            .subscription_capacity(256)
            .ping_interval(Duration::from_secs(20))
            .connection_timeout(Duration::from_secs(10))
            .retry_on_initial_connect()
            .max_reconnects(None)
            .ignore_discovered_servers()
            .reconnect_delay_callback(|attempt| {
                let base = 100u64.saturating_mul(1 << attempt.min(6)).min(5_000);
                Duration::from_millis(rand::random_range(base / 2..=base))
            })
            .event_callback(move |e| {
                match &e {
                    NatsEvent::Connected => {
                        let _ = events.send(LinkEvent::Connected);
                    }
                    NatsEvent::Disconnected | NatsEvent::Closed => {
                        let _ = events.send(LinkEvent::Disconnected);
                    }
                    other => tracing::warn!(event = %other, "nats"),
                }
                async {}
            })
            .connect(identity.nats_urls.clone())
            .await
            .map_err(LinkError::Connect)?;
        let down = client.subscribe(subjects::agent_down(identity.agent_id)).await.map_err(LinkError::Subscribe)?;
        let carrier = Carrier::Nats(client);
        Ok((Link { carrier, identity, instance: instance.to_owned(), key }, Inbox::Nats(down)))
    }

    /// Over streams that are open already.
    pub(crate) fn over(
        state: &Path,
        identity: Identity,
        instance: &str,
        streams: Streams,
        inbox: mpsc::Receiver<Vec<u8>>,
    ) -> Result<(Link, Inbox), LinkError> {
        let key = Identity::key(state)?;
        let carrier = Carrier::Streams(streams);
        Ok((Link { carrier, identity, instance: instance.to_owned(), key }, Inbox::Streams(inbox)))
    }

    pub(crate) fn is_up(&self) -> bool {
        match &self.carrier {
            Carrier::Nats(client) => client.connection_state() == State::Connected,
            Carrier::Streams(_) => true,
        }
    }

    /// Sends one frame if there is a connection.
    pub(crate) async fn send(&self, body: UpBody) {
        if !self.is_up() {
            return;
        }
        let id = self.identity.agent_id;
        let kind = match &body {
            UpBody::Hello(_) | UpBody::Heartbeat { .. } => Kind::Hello,
            UpBody::Log(_) | UpBody::Logs { .. } => Kind::Log,
            _ => Kind::Msg,
        };
        let up = Up { agent: id, instance: self.instance.clone(), body };
        let bytes = match frames::seal(&up, &self.key) {
            Ok(b) => b,
            Err(e) => return tracing::error!(error = %e, "a frame cannot be sent"),
        };
        let sent = match &self.carrier {
            Carrier::Nats(client) => {
                let subject = match kind {
                    Kind::Hello => subjects::agent_hello(id),
                    Kind::Log => subjects::agent_log(id),
                    _ => subjects::agent_up(id),
                };
                tokio::time::timeout(SEND, client.publish(subject, bytes.into()))
                    .await
                    .map(|r| r.map_err(|e| e.to_string()))
            }
            Carrier::Streams(s) => tokio::time::timeout(SEND, s.send(kind, &bytes)).await.map(Ok),
        };
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error, "a frame was not sent"),
            Err(_) => tracing::debug!("a frame was not sent: the connection takes nothing"),
        }
    }

    /// Waits until what was sent has left this process.
    pub(crate) async fn flush(&self) {
        match &self.carrier {
            Carrier::Nats(client) => drop(tokio::time::timeout(SEND, client.flush()).await),
            Carrier::Streams(s) => drop(tokio::time::timeout(SEND, s.flush()).await),
        }
    }
}
