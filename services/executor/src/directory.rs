//! Who the agents are and when they were last heard: a copy of the `agents` and `agent_sessions` tables, refreshed every few
//! seconds, so that no frame waits for the database.

use crate::metrics::Metrics;
use chrono::Utc;
use nkeys::KeyPair;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use windlass_contracts::frames::{self, FrameError, NotTaken, Up};
use windlass_domain::{Timestamp, ids::AgentId};
use windlass_runtime::settings::Executor as Settings;
use windlass_store::{Store, sessions};

/// A revoked agent is not believed after this long at most. It is granted nothing from its revocation on (`agents::revoked`).
pub(crate) const REFRESH: Duration = Duration::from_secs(5);
/// A frame of an unknown agent asks the database at once, but not more often than this.
const REFRESH_ON_DEMAND: Duration = Duration::from_millis(200);

/// Marks the instance of an agent that nothing is believed of until it is enrolled anew.
pub(crate) const QUARANTINE: &str = "!";

#[derive(Debug, thiserror::Error)]
pub(crate) enum NotBelieved {
    #[error("the subject names no agent")]
    Subject,
    #[error("the agent is not enrolled, or revoked")]
    Unknown,
    #[error("the frame is not this agent's")]
    Frame(#[from] NotTaken),
}

impl NotBelieved {
    pub(crate) fn label(&self) -> &'static str {
        match self {
            NotBelieved::Subject => "subject",
            NotBelieved::Unknown => "unknown",
            NotBelieved::Frame(NotTaken::OtherAgent(_)) => "other_agent",
            NotBelieved::Frame(NotTaken::OtherInstance(_)) => "other_instance",
            NotBelieved::Frame(NotTaken::Frame(FrameError::Signature | FrameError::Key)) => "signature",
            NotBelieved::Frame(_) => "form",
        }
    }
}

/// What is known of an agent's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) instance: String,
    pub(crate) at: Timestamp,
}

#[derive(Debug)]
struct Known {
    host: String,
    public: String,
    key: KeyPair,
    seen: Option<Seen>,
    /// Heard since the last write to the database, with the journal position.
    unsaved: Option<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    agents: HashMap<AgentId, Known>,
    by_host: HashMap<String, AgentId>,
    refreshed: Option<Instant>,
}

#[derive(Debug, Default)]
pub(crate) struct Directory(Mutex<Inner>);

impl Directory {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads both tables. What this process heard itself is kept when it is newer.
    pub(crate) async fn refresh(&self, store: &Store) -> Result<(), windlass_store::Error> {
        let mut tx = store.read().await?;
        let live = sessions::live_agents(&mut tx).await?;
        let seen: HashMap<AgentId, Seen> =
            sessions::seen(&mut tx).await?.into_iter().map(|(id, instance, at)| (id, Seen { instance, at })).collect();
        drop(tx);
        let mut inner = self.lock();
        let mut old = std::mem::take(&mut inner.agents);
        inner.by_host.clear();
        for a in live {
            inner.by_host.insert(a.host.clone(), a.id);
            let known = match old.remove(&a.id) {
                Some(k) if k.public == a.public_key => Some(k),
                _ => match KeyPair::from_public_key(&a.public_key) {
                    Ok(key) => Some(Known { host: a.host, public: a.public_key, key, seen: None, unsaved: None }),
                    Err(error) => {
                        tracing::error!(agent = %a.id, host = a.host, %error, "the stored public key of an agent is not an nkey");
                        None
                    }
                },
            };
            if let Some(mut k) = known {
                if let Some(s) = seen.get(&a.id) {
                    let newer =
                        k.seen.as_ref().filter(|own| own.instance == s.instance).map_or(s.at, |own| own.at.max(s.at));
                    k.seen = Some(Seen { instance: s.instance.clone(), at: newer });
                }
                inner.agents.insert(a.id, k);
            }
        }
        inner.refreshed = Some(Instant::now());
        Ok(())
    }

    /// Refreshes when the last time is long enough ago.
    pub(crate) async fn refresh_on_demand(&self, store: &Store) {
        let due = self.lock().refreshed.is_none_or(|at| at.elapsed() >= REFRESH_ON_DEMAND);
        if due && let Err(error) = self.refresh(store).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot read the agents");
        }
    }

    /// Opens a frame. The agent is the one the subject names, because the broker lets an agent publish nowhere else; its
    /// signature and the id inside must agree.
    pub(crate) fn open(&self, agent: AgentId, payload: &[u8]) -> Result<Up, NotBelieved> {
        let inner = self.lock();
        let known = inner.agents.get(&agent).ok_or(NotBelieved::Unknown)?;
        Ok(frames::open_up(payload, &known.key, agent)?)
    }

    pub(crate) fn knows(&self, agent: AgentId) -> bool {
        self.lock().agents.contains_key(&agent)
    }

    pub(crate) fn agent_of_host(&self, host: &str) -> Option<AgentId> {
        self.lock().by_host.get(host).copied()
    }

    pub(crate) fn host_of(&self, agent: AgentId) -> Option<String> {
        self.lock().agents.get(&agent).map(|k| k.host.clone())
    }

    pub(crate) fn seen(&self, agent: AgentId) -> Option<Seen> {
        self.lock().agents.get(&agent).and_then(|k| k.seen.clone())
    }

    /// A HELLO was accepted, or the session read anew.
    pub(crate) fn set_session(&self, agent: AgentId, instance: &str, at: Timestamp) {
        if let Some(k) = self.lock().agents.get_mut(&agent) {
            k.seen = Some(Seen { instance: instance.to_owned(), at });
        }
    }

    /// A frame of the accepted instance came. `false`: it is not the accepted instance.
    pub(crate) fn heard(&self, agent: AgentId, instance: &str, journal_seq: Option<u64>) -> bool {
        let mut inner = self.lock();
        let Some(k) = inner.agents.get_mut(&agent) else { return false };
        let Some(seen) = k.seen.as_mut().filter(|s| s.instance == instance) else { return false };
        seen.at = seen.at.max(Utc::now());
        k.unsaved = Some(k.unsaved.unwrap_or(0).max(journal_seq.unwrap_or(0)));
        true
    }

    /// Signs of life to write down: agent, instance, journal position, time.
    pub(crate) fn take_unsaved(&self) -> Vec<(AgentId, String, u64, Timestamp)> {
        let mut inner = self.lock();
        let all = inner.agents.iter_mut();
        all.filter_map(|(id, k)| {
            let seen = k.seen.clone()?;
            k.unsaved.take().map(|seq| (*id, seen.instance, seq, seen.at))
        })
        .collect()
    }

    /// How many agents are live, suspect and disconnected.
    pub(crate) fn count(&self, settings: &Settings, metrics: &Metrics) {
        let now = Utc::now();
        let mut n = [0_i64; 3];
        for k in self.lock().agents.values() {
            let silence = k.seen.as_ref().and_then(|s| (now - s.at).to_std().ok());
            let i = match silence {
                Some(s) if s < settings.suspect_s.get() => 0,
                Some(s) if s < settings.disconnected_s.get() => 1,
                _ => 2,
            };
            n[i] += 1;
        }
        for (state, n) in ["live", "suspect", "disconnected"].into_iter().zip(n) {
            metrics.agents.with_label_values(&[state]).set(n);
        }
    }
}
