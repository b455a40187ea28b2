//! The agent process: carries out what `dispatch` decides, on the journal, the runners and the link.

use crate::{
    dispatch::{Dispatch, Found, Input, Now, Output, Policy, Verifier, empty_report},
    facts, files,
    identity::{Identity, IdentityError},
    journal::{Accepted, Journal, JournalError, Record},
    link::{Link, LinkError, LinkEvent},
    logs::LogStream,
    settings::Settings,
    taskdir::{RunSpec, StepLine, TaskDir},
};
use futures::StreamExt;
use nkeys::KeyPair;
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::{
    net::unix::pipe,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
};
use windlass_contracts::frames::{self, Down, DownBody, Hello, Offer, RefuseCode, UpBody};
use windlass_domain::{
    ids::TaskId,
    task::{ReportedOutcome, TaskReport},
};

const HEARTBEAT: Duration = Duration::from_secs(5);
const RESEND: Duration = Duration::from_millis(250);
const RESEND_MAX: Duration = Duration::from_secs(15);
/// A log nobody acknowledges is given up this long after its result was.
const LOG_PATIENCE: Duration = Duration::from_secs(3600);
/// The journal is compacted at start when it has grown beyond this.
const COMPACT_ABOVE: u64 = 4 << 20;
/// One wake-up for all the doorbells within this time.
const BELL_PAUSE: Duration = Duration::from_millis(10);

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
    /// Until HELLO_ACK.
    hello: Option<Retry>,
    beat_at: Duration,
    events: mpsc::UnboundedSender<Event>,
    bells: JoinSet<()>,
    _lock: File,
}

/// Runs until SIGTERM or SIGINT. Runners go on without it.
pub async fn run(state: PathBuf, settings: Settings) -> Result<(), AgentError> {
    let lock = lock_state(&state)?;
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
    let (link, mut down) = Link::open(&state, identity.clone(), journal.instance(), link_tx).await?;
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
        hello: Some(Retry::new(Duration::ZERO)),
        beat_at: Duration::ZERO,
        events,
        bells: JoinSet::new(),
        _lock: lock,
    };
    agent.recover().await?;
    loop {
        let wait = agent.tick().await?;
        tokio::select! {
            m = down.next() => if let Some(m) = m { agent.down(&m.payload).await? },
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

fn lock_state(state: &Path) -> Result<File, AgentError> {
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

    /// After a start: what became of the tasks that an earlier process had started, and logs still on their way.
    async fn recover(&mut self) -> Result<(), AgentError> {
        for (task, boot) in self.dispatch.running() {
            let found = self.look(task, boot == self.boot_id);
            tracing::info!(%task, ?found, "found a task of an earlier agent process");
            self.input(Input::Looked { task, found }).await?;
        }
        for (task, _) in self.dispatch.unacked() {
            self.results.insert(task, Retry::new(self.mono()));
        }
        let tasks = self.state.join("tasks");
        let Ok(dir) = std::fs::read_dir(&tasks) else { return Ok(()) };
        for task in dir.flatten().filter_map(|e| e.file_name().to_string_lossy().parse::<TaskId>().ok()) {
            if self.live.contains_key(&task) {
                continue;
            }
            match self.dispatch.report(task).map(|r| r.log_frames) {
                Some(frames) => self.watch_log(task, Some(frames))?,
                None if !self.dispatch.knows(task) => {
                    TaskDir::of(&self.state, task).remove().map_err(io_error("remove", &tasks))?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// What the task's directory says. Nothing is guessed: without proof of either it is Gone.
    fn look(&self, task: TaskId, same_boot: bool) -> Found {
        let dir = TaskDir::of(&self.state, task);
        let alive = dir.is_locked().unwrap_or_else(|e| {
            tracing::error!(%task, error = %e, "cannot tell whether the runner lives");
            false
        });
        if alive {
            return Found::Alive;
        }
        match dir.exit() {
            Ok(Some(report)) => return Found::Exit(Box::new(self.completed(task, &dir, report))),
            Ok(None) => {}
            Err(e) => tracing::error!(%task, error = %e, "the runner's report cannot be read"),
        }
        if same_boot && dir.path().is_dir() && !dir.has_begun() {
            return Found::NotBegun;
        }
        let mut report = empty_report(ReportedOutcome::Interrupted);
        let lines = dir.read_steps(&mut 0).unwrap_or_default();
        report.steps.extend(lines.into_iter().filter_map(|l| match l {
            StepLine::End(r) => Some(r),
            StepLine::Begin { .. } => None,
        }));
        Found::Gone(Box::new(self.completed(task, &dir, report)))
    }

    /// With the counters of the log as it will be sent.
    fn completed(&self, task: TaskId, dir: &TaskDir, mut report: TaskReport) -> TaskReport {
        let totals = match self.live.get(&task) {
            Some(l) => l.log.totals(),
            None => LogStream::open(task, dir.clone(), self.mono()).and_then(|l| l.totals()),
        };
        match totals {
            Ok(t) => {
                report.log_bytes = report.log_bytes.max(t.seen);
                report.log_dropped = t.dropped + (report.log_bytes - t.seen);
                report.log_frames = t.frames;
            }
            Err(e) => tracing::error!(%task, error = %e, "the task's log cannot be read"),
        }
        report
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
                return;
            }
            UpBody::Accept { task, nonce, .. } => UpBody::Accept { task, nonce, journal_seq: self.journal.seq() },
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
        match spawn(&dir, &spec) {
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

    /// Waits for the doorbell and, on a thread, for the lock that the runner holds as long as it lives.
    fn watch_runner(&mut self, task: TaskId, child: Option<Child>) -> Result<(), AgentError> {
        let dir = TaskDir::of(&self.state, task);
        let bell = pipe::OpenOptions::new()
            .read_write(true)
            .open_receiver(dir.doorbell())
            .map_err(io_error("open the doorbell of", dir.path()))?;
        let events = self.events.clone();
        self.bells.spawn(async move {
            let mut buf = [0; 4096];
            while !events.is_closed() && bell.readable().await.is_ok() {
                match bell.try_read(&mut buf) {
                    Ok(0) => return,
                    Ok(n) => {
                        if buf[..n].contains(&END) || events.send(Event::Bell(task)).is_err() {
                            return;
                        }
                        tokio::time::sleep(BELL_PAUSE).await;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        });
        let events = self.events.clone();
        let thread = std::thread::Builder::new().name("runner-watch".into()).stack_size(64 * 1024);
        let body = move || {
            if let Some(mut c) = child {
                let _ = c.wait();
            }
            if let Err(e) = dir.wait_unlocked() {
                tracing::error!(%task, error = %e, "cannot wait for the runner's lock");
            }
            let _ = events.send(Event::Ended(task));
            // Ends the doorbell's reader.
            if let Ok(mut f) = OpenOptions::new().read(true).write(true).open(dir.doorbell()) {
                let _ = io::Write::write(&mut f, &[END]);
            }
        };
        thread.spawn(body).map_err(io_error("watch the runner of", &self.state))?;
        Ok(())
    }

    async fn event(&mut self, e: Event) -> Result<(), AgentError> {
        match e {
            Event::Bell(task) => self.report_steps(task).await,
            Event::Ended(task) => {
                self.report_steps(task).await?;
                let found = self.look(task, true);
                if matches!(found, Found::Alive) {
                    return Ok(());
                }
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

    async fn down(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        let frame: Down = match frames::open(bytes, &self.executor) {
            Ok(f) => f,
            Err(e) => {
                tracing::warn!(error = %e, "a frame is ignored");
                return Ok(());
            }
        };
        if frame.aud != self.identity.agent_id {
            tracing::warn!(aud = %frame.aud, "a frame for another agent is ignored");
            return Ok(());
        }
        let free = matches!(frame.body, DownBody::HelloAck { .. } | DownBody::Fence { .. } | DownBody::WhoAreYou);
        match &frame.instance {
            Some(i) if i != self.journal.instance() => {
                tracing::warn!(instance = i, "a frame for another instance is ignored");
                self.hello.get_or_insert(Retry::new(self.started.elapsed()));
                return Ok(());
            }
            None if !free => return Ok(()),
            _ => {}
        }
        match frame.body {
            DownBody::Offer(offer) => self.offer(offer).await,
            DownBody::Grant { task, nonce, epoch, lease_s } => {
                let fresh_nonce = files::random_hex(16);
                self.input(Input::Grant { task, nonce, epoch, lease_s, fresh_nonce }).await
            }
            DownBody::Fence { task, work, epoch } => self.input(Input::Fence { task, work, epoch }).await,
            DownBody::ResultAck { task } => self.input(Input::ResultAck { task }).await,
            DownBody::LogAck { task, seq, window } => {
                let now = self.mono();
                if let Some(l) = self.live.get_mut(&task) {
                    l.log.acked(seq, window, now).map_err(io_error("note the sent log of", l.dir.path()))?;
                }
                Ok(())
            }
            DownBody::HelloAck { instance } => {
                if instance == self.journal.instance() {
                    self.hello = None;
                }
                Ok(())
            }
            DownBody::WhoAreYou => {
                self.hello = Some(Retry::new(self.mono()));
                Ok(())
            }
        }
    }

    async fn offer(&mut self, offer: Box<Offer>) -> Result<(), AgentError> {
        if !self.dispatch.knows(offer.task) {
            let free = files::free_bytes(&self.state).map_err(io_error("ask for the free space of", &self.state))?;
            if free < self.settings.reserve_bytes {
                let detail = format!(
                    "{free} bytes are free in {}, the agent keeps {} in reserve; free some space",
                    self.state.display(),
                    self.settings.reserve_bytes
                );
                let code = RefuseCode::NoResources;
                self.link.send(UpBody::Refuse { task: offer.task, code, detail }).await;
                return Ok(());
            }
        }
        self.input(Input::Offer { offer, nonce: files::random_hex(16) }).await
    }

    /// Sends what is due and says how long nothing will be.
    async fn tick(&mut self) -> Result<Duration, AgentError> {
        let now = self.mono();
        if !self.link.is_up() {
            return Ok(Duration::from_millis(500));
        }
        if self.hello.as_mut().is_some_and(|h| h.due(now)) {
            let hello = Hello {
                boot_id: self.boot_id.clone(),
                journal_seq: self.journal.seq(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                open: self.dispatch.open(),
                facts: facts::facts(Some(&self.root)),
            };
            self.link.send(UpBody::Hello(hello)).await;
        }
        if now >= self.beat_at {
            self.beat_at = now + HEARTBEAT.mul_f64(rand::random_range(0.8..1.2));
            let running = self.dispatch.running().into_iter().map(|(t, _)| t).collect();
            self.link.send(UpBody::Heartbeat { journal_seq: self.journal.seq(), running }).await;
        }
        let mut next = self.beat_at.min(self.hello.as_ref().map_or(Duration::MAX, |h| h.at));
        for (task, retry) in &mut self.results {
            if retry.due(now)
                && let Some(report) = self.dispatch.report(*task)
            {
                self.link.send(UpBody::Result { task: *task, report: report.clone() }).await;
            }
            next = next.min(retry.at);
        }
        let mut gone = Vec::new();
        for (task, l) in &mut self.live {
            for f in l.log.due(now).map_err(io_error("read the log of", l.dir.path()))? {
                self.link.send(UpBody::Log(f)).await;
            }
            next = next.min(l.log.next_retry().unwrap_or(Duration::MAX));
            let settled = self.dispatch.is_settled(*task);
            let since = *l.settled_at.get_or_insert(now);
            if !settled {
                l.settled_at = None;
            } else if l.frames.is_some_and(|n| l.log.is_done(n)) || now.saturating_sub(since) > LOG_PATIENCE {
                gone.push(*task);
            }
        }
        for task in gone {
            if let Some(l) = self.live.remove(&task) {
                l.dir.remove().map_err(io_error("remove", l.dir.path()))?;
            }
        }
        Ok(next.saturating_sub(self.mono()).max(Duration::from_millis(1)))
    }
}

/// Written into the doorbell when the runner is gone.
const END: u8 = 2;

fn spawn(dir: &TaskDir, spec: &RunSpec) -> io::Result<Child> {
    let lock = dir.prepare(spec)?;
    let errors = OpenOptions::new().create(true).append(true).open(dir.path().join("runner.err"))?;
    let mut c = Command::new("/proc/self/exe");
    c.arg("runner").arg("--task").arg(dir.path());
    c.env_clear().current_dir("/").stdin(Stdio::from(lock)).stdout(Stdio::null()).stderr(errors);
    for name in ["HOME", "PATH", "TMPDIR"] {
        if let Some(v) = std::env::var_os(name) {
            c.env(name, v);
        }
    }
    c.spawn()
}
