//! Hosts without an agent of their own: the executor reaches them by SSH, puts the agent there and carries its frames. What
//! runs there is the ordinary agent, with its journal and its runners; only its link is this connection (`bridge`) instead of
//! NATS. So a cut link is what a restarted agent is: the runner goes on, and the next connection takes it over.
//!
//! One executor at a time carries a host: who holds the lease `ssh/<host>`. Connections are made when the host has work (or
//! was not looked at for long), and closed when it has none (`manager`).

mod bridge;
mod connect;
mod enrol;
mod manager;
mod push;
mod scan;
mod targets;
mod windows;

pub(crate) use manager::{accounts, run};
pub use scan::{ScanError, scan};

use crate::shared::Shared;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit},
    time::Instant,
};
use windlass_domain::catalog;

/// A host that was asked for is wanted this long, whatever the database says.
const ASKED: Duration = Duration::from_secs(30);

/// Why a host is not reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{address} does not answer")]
    Dial {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the jump host does not connect to {address}")]
    Through {
        address: String,
        #[source]
        source: russh::Error,
    },
    #[error("through jump host {host}")]
    Jump {
        host: String,
        #[source]
        source: Box<Fault>,
    },
    #[error("{what} took longer than {} s", limit.as_secs_f64())]
    Slow { what: String, limit: Duration },
    #[error(
        "HOST KEY REFUSED: host {host} presents {presented}, which is not the pinned `ssh.host_key`. Either somebody is in \
         between, or the host was installed anew; find out which before you pin another key (windlass hosts scan-key {host})"
    )]
    HostKey { host: String, presented: String },
    #[error("the SSH connection to {address} failed")]
    Protocol {
        address: String,
        #[source]
        source: russh::Error,
    },
    #[error(
        "{address} does not let account {account} in with the key that is named for it; put its public half into \
         ~{account}/.ssh/authorized_keys there"
    )]
    Login { account: String, address: String },
    #[error("a command cannot be started over SSH")]
    Exec {
        #[source]
        source: russh::Error,
    },
    #[error(
        "the secret `{name}` is missing: windlass secret set host.{host}/{name} (or ssh/{name}), with the private key"
    )]
    NoKey { host: String, name: String },
    #[error("host {host} cannot be logged in to: {why}")]
    NoAccount { host: String, why: catalog::NoAccount },
    #[error("the secret `{name}` does not open")]
    Sealed {
        name: String,
        #[source]
        source: windlass_runtime::seal::SealError,
    },
    #[error("the secret `{name}` is not a private key without passphrase, in OpenSSH's or PEM form")]
    BadKey { name: String },
    #[error("`ssh.host_key` of host {host} is not a public key: {line}")]
    BadPin { host: String, line: String },
    #[error("jump host {jump} is not in the catalog, or has no `ssh`, or the way to it leads through itself")]
    NoJump { jump: String },
    #[error(
        "there is no agent for processor {machine}: {} cannot be read; set `ssh.agent_binary`, or put it there",
        path.display()
    )]
    NoAgentBinary {
        path: PathBuf,
        machine: String,
        #[source]
        source: std::io::Error,
    },
    #[error("host {host} is not a Linux host with `sh` and `uname` ({said:?})")]
    Machine { host: String, said: String },
    #[error("the agent arrived damaged ({said}); it was removed, and will be sent again")]
    Digest { said: String },
    #[error("the agent could not be put into {state_dir}/bin: {said}")]
    Push { state_dir: String, said: String },
    #[error("the agent on the host did not start: {said}")]
    Agent { said: String },
    #[error("what the agent on the host says cannot be understood")]
    Stream(#[from] windlass_contracts::stdio::StreamError),
    #[error("the agent's first word cannot be understood")]
    Hi(#[source] serde_json::Error),
    #[error(
        "host {host} has an agent that was enrolled with a token; revoke it before the host is reached by SSH, or remove \
         `ssh` from the host"
    )]
    HasAgent { host: String },
    #[error(
        "the agent of host {host} was revoked; if the host may be used again, remove {state_dir} there, and it gets a new \
         identity"
    )]
    Revoked { host: String, state_dir: String },
    #[error("the api has not written its approval key yet; start it once with this database")]
    NoApprovalKey,
    #[error("the database did not answer")]
    Store(#[from] windlass_store::Error),
    #[error("the agents' NATS account cannot be used")]
    Bus(#[from] windlass_bus::doorbell::BusError),
    #[error("the PowerShell script on the host cannot do what it is asked: {said}")]
    Far { said: String },
    #[error(
        "the journal in the host's state directory is damaged at byte {offset}. Nothing is started on it, because a task could \
         start twice. Move the state directory away: the host then gets a new identity, and what was granted becomes unknown"
    )]
    Journal { offset: u64 },
    #[error("a frame cannot be sealed")]
    Frame(#[source] windlass_contracts::frames::FrameError),
    #[error("the connection was cut ({why})")]
    Cut { why: String },
}

impl Fault {
    /// The whole story on one line.
    pub(crate) fn story(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(s) = source {
            text = format!("{text}: {s}");
            source = s.source();
        }
        text
    }

    fn is_host_key(&self) -> bool {
        match self {
            Fault::HostKey { .. } => true,
            Fault::Jump { source, .. } => source.is_host_key(),
            _ => false,
        }
    }
}

/// How the last connection to a host went, or goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) error: Option<String>,
    pub(crate) at: Instant,
}

#[derive(Debug, Default)]
struct Inner {
    /// Hosts of the catalog with `ssh`, as of `stamp`.
    hosts: BTreeMap<String, Arc<catalog::Host>>,
    /// Of these, those whose project's account cannot be used.
    no_account: HashMap<String, catalog::NoAccount>,
    stamp: Option<i64>,
    asked: HashMap<String, Instant>,
    at_work: HashSet<String>,
    status: HashMap<String, Status>,
}

/// What waves and connections tell each other.
#[derive(Debug)]
pub(crate) struct Ssh {
    inner: Mutex<Inner>,
    agents: push::Agents,
    /// Turns to start an agent: a fleet that is met all at once would else share the CPU and the link so thinly that every
    /// host runs into its limit, and none is met.
    starts: Semaphore,
    pushes: Semaphore,
    /// Somebody was asked for.
    wake: Notify,
    /// A connection was made, or could not be made.
    news: Notify,
}

impl Ssh {
    pub(crate) fn new(settings: &windlass_runtime::settings::Ssh) -> Ssh {
        Ssh {
            inner: Mutex::default(),
            agents: push::Agents::default(),
            starts: Semaphore::new(settings.starts_at_once.min(Semaphore::MAX_PERMITS)),
            pushes: Semaphore::new(settings.pushes_at_once.min(Semaphore::MAX_PERMITS)),
            wake: Notify::new(),
            news: Notify::new(),
        }
    }

    /// Waits for a turn to start an agent; it ends with what is returned.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // `None` only if the semaphore were closed, which nothing does.
        self.starts.acquire().await.ok()
    }

    /// The same for putting it there.
    async fn push_turn(&self) -> Option<SemaphorePermit<'_>> {
        self.pushes.acquire().await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host has work: connect, and stay connected for a while. Nothing happens for hosts that have an agent.
    pub(crate) fn ask(&self, host: &str) {
        let mut inner = self.lock();
        if inner.hosts.contains_key(host) {
            let before = inner.asked.insert(host.to_owned(), Instant::now());
            drop(inner);
            if before.is_none_or(|b| b.elapsed() > Duration::from_secs(1)) {
                self.wake.notify_one();
            }
        }
    }

    /// Why the host was not reached when it was last tried.
    pub(crate) fn error(&self, host: &str) -> Option<String> {
        let inner = self.lock();
        inner.hosts.get(host)?;
        inner.status.get(host).and_then(|s| s.error.clone())
    }

    /// Whether somebody needs the connection.
    fn wants(&self, host: &str) -> bool {
        let inner = self.lock();
        inner.at_work.contains(host) || inner.asked.get(host).is_some_and(|a| a.elapsed() < ASKED)
    }

    fn host(&self, name: &str) -> Option<Arc<catalog::Host>> {
        self.lock().hosts.get(name).cloned()
    }

    fn no_account(&self, name: &str) -> Option<catalog::NoAccount> {
        self.lock().no_account.get(name).cloned()
    }

    /// Sets the outcome of a try; whether it is news.
    fn set_status(&self, host: &str, error: Option<String>) -> bool {
        let mut inner = self.lock();
        let news = inner.status.get(host).is_none_or(|s| s.error != error);
        inner.status.insert(host.to_owned(), Status { error, at: Instant::now() });
        drop(inner);
        self.news.notify_waiters();
        news
    }
}

/// Hosts that are reached by SSH for the first time, until they have an identity or were tried in vain.
#[derive(Debug)]
pub(crate) struct FirstContact {
    begun: Instant,
    open: Vec<String>,
}

impl FirstContact {
    pub(crate) async fn of(shared: &Shared, hosts: Vec<String>) -> FirstContact {
        if let Err(error) = manager::refresh_hosts(shared).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the hosts that are reached by SSH cannot be read"
            );
        }
        let inner = shared.ssh.lock();
        let new = |h: &String| inner.hosts.contains_key(h) && shared.directory.agent_of_host(h).is_none();
        FirstContact { begun: Instant::now(), open: hosts.into_iter().filter(new).collect() }
    }

    /// Whether some are still to be met, `limit` after the beginning.
    pub(crate) fn goes_on(&self, limit: Duration) -> bool {
        !self.open.is_empty() && self.begun.elapsed() < limit
    }

    /// Waits a little for news.
    pub(crate) async fn wait(&mut self, shared: &Shared) {
        let news = shared.ssh.news.notified();
        self.open.iter().for_each(|h| shared.ssh.ask(h));
        let _ = tokio::time::timeout(Duration::from_millis(500), news).await;
        shared.directory.refresh_on_demand(&shared.ctx.store).await;
        let inner = shared.ssh.lock();
        let tried = |h: &str| inner.status.get(h).is_some_and(|s| s.error.is_some() && s.at >= self.begun);
        self.open.retain(|h| shared.directory.agent_of_host(h).is_none() && !tried(h));
    }
}
