//! Streams: made when they are missing, extended when they lack a subject, never shrunk and never deleted. What an
//! administrator changed on a stream (replicas, limits) stays.

use crate::Bus;
use async_nats::jetstream::{
    ErrorCode,
    context::{CreateStreamError, GetStreamError, GetStreamErrorKind, UpdateStreamError},
    stream::{Config, DiscardPolicy, RetentionPolicy, StorageType},
};
use std::time::Duration;
use tokio::{sync::Mutex, time::Instant};
use windlass_contracts::subjects;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MIB: i64 = 1024 * 1024;
/// Equal message ids inside this window are stored once. It covers the relay's own retries; consumers decide from state.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(600);
/// Several loops that find the broker wiped share one repair.
const REPAIR_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    #[error("cannot look up stream {name}; is JetStream enabled for this account?")]
    Get {
        name: &'static str,
        #[source]
        source: GetStreamError,
    },
    #[error("cannot create stream {name}")]
    Create {
        name: &'static str,
        #[source]
        source: CreateStreamError,
    },
    #[error("cannot extend stream {name}")]
    Update {
        name: &'static str,
        #[source]
        source: UpdateStreamError,
    },
}

#[derive(Debug)]
pub(crate) struct Topology {
    replicas: usize,
    last: Mutex<Option<Instant>>,
}

impl Topology {
    pub(crate) fn new(replicas: usize) -> Topology {
        Topology { replicas: replicas.max(1), last: Mutex::new(None) }
    }
}

/// Every stream is a plain log with an age and a size: doorbells may be dropped when old, events have the database behind
/// them, and only what came from outside (`IN`) and dead letters are kept for long.
fn streams() -> Vec<(&'static str, &'static str, Duration, i64)> {
    vec![
        (subjects::STREAM_EVENTS, subjects::ALL_EVENTS, 7 * DAY, 1024 * MIB),
        (subjects::STREAM_COMMANDS, subjects::ALL_COMMANDS, HOUR, 64 * MIB),
        (subjects::STREAM_WORK, subjects::ALL_WORK, HOUR, 64 * MIB),
        (subjects::STREAM_IN, subjects::ALL_IN, 30 * DAY, 1024 * MIB),
        (subjects::STREAM_DEAD, subjects::ALL_DEAD, 30 * DAY, 256 * MIB),
    ]
}

impl Bus {
    /// Makes sure that all streams exist. Safe to call at any time, from any number of processes.
    pub async fn ensure_topology(&self) -> Result<(), TopologyError> {
        let mut last = self.topology.last.lock().await;
        if last.is_some_and(|t| t.elapsed() < REPAIR_PAUSE) {
            return Ok(());
        }
        for (name, subject, max_age, max_bytes) in streams() {
            let wanted = Config {
                name: name.into(),
                subjects: vec![subject.into()],
                retention: RetentionPolicy::Limits,
                discard: DiscardPolicy::Old,
                storage: StorageType::File,
                duplicate_window: DUPLICATE_WINDOW.min(max_age),
                num_replicas: self.topology.replicas,
                max_age,
                max_bytes,
                ..Config::default()
            };
            self.ensure_stream(name, wanted).await?;
        }
        *last = Some(Instant::now());
        Ok(())
    }

    async fn ensure_stream(&self, name: &'static str, wanted: Config) -> Result<(), TopologyError> {
        match self.jetstream().get_stream(name).await {
            Ok(stream) => {
                let mut config = stream.cached_info().config.clone();
                let missing: Vec<String> =
                    wanted.subjects.into_iter().filter(|s| !config.subjects.contains(s)).collect();
                if missing.is_empty() {
                    return Ok(());
                }
                config.subjects.extend(missing);
                let updated = self.jetstream().update_stream(&config).await;
                updated.map(drop).map_err(|source| TopologyError::Update { name, source })
            }
            Err(e) if is_absent(&e) => {
                tracing::info!(stream = name, "creating stream");
                let made = self.jetstream().create_stream(wanted).await;
                made.map(drop).map_err(|source| TopologyError::Create { name, source })
            }
            Err(source) => Err(TopologyError::Get { name, source }),
        }
    }
}

fn is_absent(e: &GetStreamError) -> bool {
    matches!(e.kind(), GetStreamErrorKind::JetStream(e) if e.error_code() == ErrorCode::STREAM_NOT_FOUND)
}
