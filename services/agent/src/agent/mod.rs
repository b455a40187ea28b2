//! The agent process: carries out what `dispatch` decides, on the journal, the runners and the link.

mod inbound;
mod outbound;
mod recover;
mod watch;

use crate::{
    dispatch::{Dispatch, Found, Input, Now, Output, Policy, Verifier},
    files,
    identity::{Identity, IdentityError},
    journal::{Accepted, Journal, JournalError, Record},
    link::{Link, LinkError, LinkEvent},
    logs::LogStream,
    secrets::{self, Keyring},
    settings::Settings,
    stdio::Streams,
    taskdir::{RunSpec, StepLine, TaskDir},
};
use nkeys::KeyPair;
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
};
use windlass_contracts::frames::UpBody;
use windlass_domain::ids::TaskId;

const RESEND: Duration = Duration::from_millis(250);
const RESEND_MAX: Duration = Duration::from_secs(15);
/// The journal is compacted at start when it has grown beyond this.
const COMPACT_ABOVE: u64 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Policy(#[from] crate::dispatch::PolicyError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("another agent runs on the state directory {0}; stop it first, or give this one its own --state")]
    Running(PathBuf),
    #[error("cannot {what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AgentError + use<> {
    let path = path.to_owned();
    move |source| AgentError::Io { what, path, source }
}

#[derive(Debug)]
enum Event {
    Bell(TaskId),
    /// The runner lives no longer.
    Ended(TaskId),
}

/// Sending again with growing pauses.
#[derive(Debug)]
struct Retry {
    at: Duration,
    pause: Duration,
}

impl Retry {
    fn new(now: Duration) -> Retry {
        Retry { at: now, pause: RESEND }
    }
    /// Whether it is time; if so, sets the next time.
    fn due(&mut self, now: Duration) -> bool {
        if now < self.at {
            return false;
        }
        self.at = now + self.pause.mul_f64(rand::random_range(0.8..1.2));
        self.pause = (self.pause * 2).min(RESEND_MAX);
        true
    }
}

/// A task with a directory: it runs, or its log is still on the way.
#[derive(Debug)]
struct Live {
    dir: TaskDir,
    log: LogStream,
    steps_at: usize,
    /// Frames of the whole log, once the runner has ended.
    frames: Option<u64>,
    settled_at: Option<Duration>,
}

#[derive(Debug)]
struct Agent {
    state: PathBuf,
    root: PathBuf,
    settings: Settings,
    identity: Identity,
    executor: KeyPair,
    boot_id: String,
    started: Instant,
    journal: Journal,
    dispatch: Dispatch,
    link: Link,
    live: BTreeMap<TaskId, Live>,
    results: BTreeMap<TaskId, Retry>,
    keyring: Keyring,
    /// Until `HELLO_ACK`.
    hello: Option<Retry>,
    /// The challenge that HELLO answers; empty when there is none.
    asked: String,
    beat_at: Duration,
    expire_at: Duration,
    events: mpsc::UnboundedSender<Event>,
    bells: JoinSet<()>,
    _lock: File,
}

/// Runs until SIGTERM or SIGINT. Runners go on without it.
pub async fn run(state: PathBuf, settings: Settings) -> Result<(), AgentError> {
    let lock = lock_state(&state)?;
    serve(state, settings, lock, None).await
}

/// Over streams instead of NATS: runs until they end, too.
pub(crate) async fn run_over(
    state: PathBuf,
    settings: Settings,
    lock: File,
    streams: (Streams, mpsc::Receiver<Vec<u8>>),
) -> Result<(), AgentError> {
    serve(state, settings, lock, Some(streams)).await
}

async fn serve(
    state: PathBuf,
    settings: Settings,
    lock: File,
    streams: Option<(Streams, mpsc::Receiver<Vec<u8>>)>,
) -> Result<(), AgentError> {
    let identity = Identity::load(&state)?;
    let verifier = Verifier {
        policy: Policy::load(&state.join("policy.yaml"))?,
        host: identity.host.clone(),
        approval_key: identity.approval_key(&state)?,
    };
    let executor = identity.executor_key(&state)?;
    let (mut journal, mut entries) = Journal::open(&state.join("journal"), &files::random_hex(16), chrono::Utc::now())?;
    if journal.bytes() > COMPACT_ABOVE {
        entries = journal.compact(&entries, chrono::Utc::now())?;
    }
    let instance_file = state.join("instance");
    files::write_atomic(&instance_file, journal.instance().as_bytes(), 0o600)
        .map_err(io_error("write", &instance_file))?;
    let boot_id = files::boot_id();
    let dispatch = Dispatch::new(verifier, &boot_id, &entries);
    drop(entries);
    let root = settings.root.clone().unwrap_or_else(|| "/".into());
    std::fs::create_dir_all(root.join("releases")).map_err(io_error("make", &root))?;

    let (link_tx, mut link_rx) = mpsc::unbounded_channel();
    let (events, mut event_rx) = mpsc::unbounded_channel();
    let (link, mut down) = match streams {
        None => Link::open(&state, identity.clone(), journal.instance(), link_tx).await?,
        Some((streams, inbox)) => Link::over(&state, identity.clone(), journal.instance(), streams, inbox)?,
    };
    let mut term = signal(SignalKind::terminate()).map_err(io_error("handle signals of", &state))?;
    let mut int = signal(SignalKind::interrupt()).map_err(io_error("handle signals of", &state))?;
    tracing::info!(host = identity.host, agent = %identity.agent_id, instance = journal.instance(), "agent starts");
    let mut agent = Agent {
        state,
        root,
        settings,
        identity,
        executor,
        boot_id,
        started: Instant::now(),
        journal,
        dispatch,
        link,
        live: BTreeMap::new(),
        results: BTreeMap::new(),
        keyring: Keyring::default(),
        hello: Some(Retry::new(Duration::ZERO)),
        asked: String::new(),
        beat_at: Duration::ZERO,
        expire_at: Duration::ZERO,
        events,
        bells: JoinSet::new(),
        _lock: lock,
    };
    agent.recover().await?;
    loop {
        let wait = agent.tick().await?;
        tokio::select! {
            m = down.next() => match m {
                Some(m) => agent.down(&m).await?,
                None => break,
            },
            Some(e) = link_rx.recv() => agent.link_event(e),
            Some(e) = event_rx.recv() => agent.event(e).await?,
            Some(_) = agent.bells.join_next() => {}
            () = tokio::time::sleep(wait) => {}
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
    }
    tracing::info!("agent stops; running tasks go on");
    agent.link.flush().await;
    Ok(())
}

pub(crate) fn lock_state(state: &Path) -> Result<File, AgentError> {
    let path = state.join("agent.lock");
    let f = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(io_error("open", &path))?;
    match rustix::fs::flock(&f, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(f),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(AgentError::Running(state.to_owned())),
        Err(e) => Err(io_error("lock", &path)(e.into())),
    }
}

impl Agent {
    fn mono(&self) -> Duration {
        self.started.elapsed()
    }
    fn now(&self) -> Now {
        Now { mono: self.mono(), wall: chrono::Utc::now() }
    }

    fn watch_log(&mut self, task: TaskId, frames: Option<u64>) -> Result<(), AgentError> {
        let dir = TaskDir::of(&self.state, task);
        let log = LogStream::open(task, dir.clone(), self.mono()).map_err(io_error("read the log of", dir.path()))?;
        self.live.insert(task, Live { dir, log, steps_at: 0, frames, settled_at: None });
        Ok(())
    }

    async fn input(&mut self, input: Input) -> Result<(), AgentError> {
        let now = self.now();
        let outputs = self.dispatch.step(input, now);
        self.perform(outputs).await
    }

    /// All facts become durable with one fsync before anything that relies on them is done.
    async fn perform(&mut self, outputs: Vec<Output>) -> Result<(), AgentError> {
        let mut records = Vec::new();
        let mut rest = Vec::new();
        for o in outputs {
            match o {
                Output::Journal(r) => {
                    if let Record::Accepted(a) = &r {
                        // There before the promise, so that its absence later is never taken for "not begun".
                        let dir = TaskDir::of(&self.state, a.task);
                        files::private_dir(dir.path()).map_err(io_error("make", dir.path()))?;
                    }
                    records.push(r);
                }
                o => rest.push(o),
            }
        }
        if !records.is_empty() {
            self.journal.append(records, chrono::Utc::now())?;
        }
        for o in rest {
            match o {
                Output::Journal(_) => {}
                Output::Send(body) => self.send(body).await,
                Output::Start(a) => Box::pin(self.start(*a)).await?,
                Output::Stop(task) => {
                    let dir = TaskDir::of(&self.state, task);
                    tracing::info!(%task, "stopping on request");
                    dir.abort().map_err(io_error("ask for the stop of", dir.path()))?;
                }
                Output::Adopt(task) => {
                    self.watch_log(task, None)?;
                    self.watch_runner(task, None)?;
                }
                Output::Settled(task) => {
                    self.results.remove(&task);
                    let now = self.mono();
                    if let Some(l) = self.live.get_mut(&task) {
                        l.settled_at.get_or_insert(now);
                    }
                }
            }
        }
        Ok(())
    }

    async fn send(&mut self, body: UpBody) {
        let body = match body {
            UpBody::Result { task, .. } if !self.dispatch.is_settled(task) => {
                // Sent by `tick`, until it is acknowledged.
                let now = self.mono();
                self.results.insert(task, Retry::new(now));
                self.keyring.forget(task);
                return;
            }
            UpBody::Accept { task, nonce, .. } => {
                let secret = self.dispatch.spec(task).is_some_and(|s| !secrets::names(s).is_empty());
                let seal_to = secret.then(|| self.keyring.key(task, &nonce));
                UpBody::Accept { seal_to, task, nonce, journal_seq: self.journal.seq() }
            }
            b => b,
        };
        self.link.send(body).await;
    }

    async fn start(&mut self, a: Accepted) -> Result<(), AgentError> {
        let task = a.task;
        let spec = RunSpec {
            accepted: a,
            root: self.root.clone(),
            state: self.state.clone(),
            env: self.settings.env.clone(),
            caps: self.settings.log,
            grace_ms: (self.settings.grace_s.clamp(0.0, 3600.0) * 1000.0) as u64,
            run_as: self.dispatch.policy().run_as.clone(),
            writable: self.dispatch.policy().writable.clone(),
        };
        let dir = TaskDir::of(&self.state, task);
        let secrets = self.keyring.take(task);
        match watch::spawn(&dir, &spec, &secrets) {
            Ok(child) => {
                self.watch_log(task, None)?;
                self.watch_runner(task, Some(child))
            }
            Err(e) => {
                tracing::error!(%task, error = %e, "the runner cannot be started");
                let reason = format!("the agent could not start the runner: {e}");
                let now = self.now();
                let outputs = self.dispatch.step(Input::StartFailed { task, reason }, now);
                Box::pin(self.perform(outputs)).await
            }
        }
    }

    async fn event(&mut self, e: Event) -> Result<(), AgentError> {
        match e {
            Event::Bell(task) => self.report_steps(task).await,
            Event::Ended(task) => {
                let found = self.look(task, true)?;
                if matches!(found, Found::Alive) {
                    return Ok(());
                }
                // Steps that were not told of yet are in the report.
                self.input(Input::Looked { task, found }).await?;
                let frames = self.dispatch.report(task).map(|r| r.log_frames);
                if let Some(l) = self.live.get_mut(&task) {
                    l.frames = frames;
                }
                Ok(())
            }
        }
    }

    async fn report_steps(&mut self, task: TaskId) -> Result<(), AgentError> {
        let Some(l) = self.live.get_mut(&task) else { return Ok(()) };
        let lines = l.dir.read_steps(&mut l.steps_at).map_err(io_error("read the steps of", l.dir.path()))?;
        for line in lines {
            if let StepLine::End(report) = line {
                self.link.send(UpBody::Step { task, report }).await;
            }
        }
        Ok(())
    }

    fn link_event(&mut self, e: LinkEvent) {
        match e {
            LinkEvent::Connected => {
                tracing::info!("connected");
                let now = self.mono();
                self.hello = Some(Retry::new(now));
                self.results.values_mut().for_each(|r| *r = Retry::new(now));
                self.live.values_mut().for_each(|l| l.log.reconnected(now));
            }
            LinkEvent::Disconnected => tracing::warn!("disconnected"),
        }
    }
}
