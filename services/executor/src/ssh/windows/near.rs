//! The near half of a Windows host: what an agent decides and says, with its journal and its runners on the other side of the
//! channel. The decisions are the agent's own (`windlass_agent::dispatch`); this carries them out.

use super::{
    far::{Far, bytes_of, text_of},
    generate,
    journal::{self, Journal},
    log::Log,
    wire::{Ask, Current, Data, Exit, Facts, HelloSaid, Identity, LogLine, LookSaid, Said, StepLine, lines},
};
use crate::ssh::Fault;
use base64::{Engine, engine::general_purpose::STANDARD};
use nkeys::{KeyPair, KeyPairType};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use windlass_agent::{
    dispatch::{Dispatch, Found, Input, Now, Output, Policy, Verifier, empty_report},
    journal::{Accepted, Record},
};
use windlass_bus::wake::Backoff;
use windlass_contracts::{
    frames::{self, Down, DownBody, Hello, LogFrame, MAX_CHALLENGE, Offer, RefuseCode, Up, UpBody},
    stdio::Welcome,
};
use windlass_domain::{
    catalog::{Host, Ssh},
    ids::{AgentId, TaskId},
    platform,
    task::{ReportedOutcome, StepOutcome, StepReport, TaskReport, TaskSpec},
};

const HEARTBEAT: Duration = Duration::from_secs(5);
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
/// A running task is looked at this often: the far half speaks only when it is asked.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// A log nobody acknowledges is given up this long after its result was.
const LOG_PATIENCE: Duration = Duration::from_secs(3600);
const RESEND: Duration = Duration::from_millis(250);
const RESEND_MAX: Duration = Duration::from_secs(15);

/// Sending again with growing pauses.
struct Retry {
    at: Duration,
    pause: Backoff,
}

impl Retry {
    fn new(now: Duration) -> Retry {
        Retry { at: now, pause: Backoff::new(RESEND, RESEND_MAX) }
    }
    fn due(&mut self, now: Duration) -> bool {
        let due = now >= self.at;
        if due {
            self.at = now + self.pause.next();
        }
        due
    }
}

/// A task with a directory on the host: it runs, or its log is still on the way.
struct Live {
    log: Log,
    steps_at: u64,
    log_at: u64,
    ended: Vec<StepReport>,
    running: bool,
    settled_at: Option<Duration>,
}

/// The identity that lies on the host, and what the host said first.
pub(super) struct Met {
    pub(super) key: KeyPair,
    pub(super) agent: Option<AgentId>,
    said: HelloSaid,
}

pub(super) struct Near {
    pub(super) far: Far,
    /// To be published, in this order.
    pub(super) out: Vec<Up>,
    key: KeyPair,
    agent: AgentId,
    executor: KeyPair,
    root: String,
    journal: Journal,
    dispatch: Dispatch,
    facts: Facts,
    current: String,
    started: Instant,
    live: BTreeMap<TaskId, Live>,
    results: BTreeMap<TaskId, Retry>,
    hello: Option<Retry>,
    /// The challenge that HELLO answers; empty when there is none.
    asked: String,
    beat_at: Duration,
    look_at: Duration,
    expire_at: Duration,
}

/// Who the host is; a new one gets its key now.
pub(super) async fn meet(far: &mut Far) -> Result<Met, Fault> {
    let said: HelloSaid = far.ask(&Ask::Hello).await?;
    let text = bytes_of(&said.identity)?;
    if text.is_empty() {
        let key = KeyPair::new_user();
        write_identity(far, &key, None).await?;
        return Ok(Met { key, agent: None, said });
    }
    let bad = || Fault::Agent { said: "identity.json in its state directory holds no key of an agent".into() };
    let identity: Identity = serde_json::from_slice(&text).map_err(|_| bad())?;
    let key = KeyPair::from_seed(&identity.seed).ok().filter(|k| k.key_pair_type() == KeyPairType::User);
    Ok(Met { key: key.ok_or_else(bad)?, agent: identity.agent, said })
}

async fn write_identity(far: &mut Far, key: &KeyPair, agent: Option<AgentId>) -> Result<(), Fault> {
    let bad = |_| Fault::Agent { said: "a key cannot be written".into() };
    let identity = Identity { seed: key.seed().map_err(bad)?, agent };
    let data = STANDARD.encode(serde_json::to_vec(&identity).map_err(Fault::Hi)?);
    far.ask::<Said>(&Ask::Identity { data }).await.map(drop)
}

impl Near {
    /// Reads the journal and finds out what became of everything in it.
    pub(super) async fn open(mut far: Far, met: Met, host: &Host, ssh: &Ssh, welcome: &Welcome) -> Result<Near, Fault> {
        let Met { key, agent, said } = met;
        if agent != Some(welcome.agent) {
            write_identity(&mut far, &key, Some(welcome.agent)).await?;
        }
        let mut bytes = Vec::new();
        loop {
            let part: Data = far.ask(&Ask::Journal { from: bytes.len() as u64 }).await?;
            let part = bytes_of(&part.data)?;
            if part.is_empty() {
                break;
            }
            bytes.extend(part);
            if bytes.len() > journal::MAX_BYTES {
                let said = format!("its journal is longer than {} MiB", journal::MAX_BYTES >> 20);
                return Err(Fault::Agent { said });
            }
        }
        let (entries, whole) = journal::read(&bytes)?;
        let public = |k: &str| {
            KeyPair::from_public_key(k).map_err(|_| Fault::Agent { said: "a key of the control plane is none".into() })
        };
        let verifier = Verifier {
            policy: Policy::default(),
            host: host.name.clone(),
            approval_key: public(&welcome.approval_key)?,
        };
        let mut near = Near {
            far,
            out: Vec::new(),
            key,
            agent: welcome.agent,
            executor: public(&welcome.executor_key)?,
            root: ssh.root.clone(),
            journal: Journal {
                bytes: whole,
                seq: entries.last().map_or(0, |e| e.seq),
                instance: entries.first().map_or_else(String::new, |e| match &e.r {
                    Record::Created { instance } => instance.clone(),
                    _ => String::new(),
                }),
            },
            dispatch: Dispatch::new(verifier, &said.facts.boot, &entries),
            facts: said.facts,
            current: said.current,
            started: Instant::now(),
            live: BTreeMap::new(),
            results: BTreeMap::new(),
            hello: Some(Retry::new(Duration::ZERO)),
            asked: String::new(),
            beat_at: Duration::ZERO,
            look_at: Duration::ZERO,
            expire_at: Duration::ZERO,
        };
        if entries.is_empty() {
            let instance = nonce();
            near.append(vec![Record::Created { instance: instance.clone() }]).await?;
            near.journal.instance = instance;
        }
        near.recover(&said.tasks).await?;
        Ok(near)
    }

    fn mono(&self) -> Duration {
        self.started.elapsed()
    }

    fn say(&mut self, body: UpBody) {
        self.out.push(Up { agent: self.agent, instance: self.journal.instance.clone(), body });
    }

    /// A frame as it goes to its subject.
    pub(super) fn seal(&self, up: &Up) -> Result<Vec<u8>, frames::FrameError> {
        frames::seal(up, &self.key)
    }

    async fn recover(&mut self, dirs: &str) -> Result<(), Fault> {
        for (task, _) in self.dispatch.running() {
            self.watch(task);
            self.look(task, true, None).await?;
        }
        let now = self.mono();
        self.results = self.dispatch.unacked().into_iter().map(|(t, _)| (t, Retry::new(now))).collect();
        let dirs: BTreeSet<TaskId> = dirs.split(' ').filter_map(|d| d.parse().ok()).collect();
        for task in dirs {
            if self.live.contains_key(&task) {
                continue;
            }
            if self.dispatch.report(task).is_some() {
                self.watch(task);
                self.look(task, false, None).await?;
            } else if !self.dispatch.knows(task) {
                self.far.ask::<Said>(&Ask::Forget { task }).await?;
            }
        }
        Ok(())
    }

    fn watch(&mut self, task: TaskId) {
        let log = Log::new(task, self.mono());
        let live = Live { log, steps_at: 0, log_at: 0, ended: Vec::new(), running: true, settled_at: None };
        self.live.insert(task, live);
    }

    /// Sends what is due and says how long nothing will be.
    pub(super) async fn tick(&mut self) -> Result<Duration, Fault> {
        let now = self.mono();
        if now >= self.expire_at {
            self.expire_at = now + EXPIRE_EVERY;
            self.input(Input::Expire).await?;
        }
        if now >= self.look_at {
            let running: Vec<TaskId> = self.live.iter().filter(|(_, l)| l.running).map(|(t, _)| *t).collect();
            for task in running {
                self.look(task, false, None).await?;
            }
            self.look_at = self.mono() + LOOK_EVERY;
        }
        if self.hello.as_mut().is_some_and(|h| h.due(now)) {
            let hello = Hello {
                boot_id: self.facts.boot.clone(),
                journal_seq: self.journal.seq,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                open: self.dispatch.open(),
                facts: self.facts(),
                answers: Some(self.asked.clone()),
            };
            self.say(UpBody::Hello(hello));
        }
        if now >= self.beat_at {
            self.beat_at = now + HEARTBEAT;
            // The far half ends without a word for 20 s.
            self.current = self.far.ask::<Current>(&Ask::Ping).await?.current;
            let running = self.dispatch.running().into_iter().map(|(t, _)| t).collect();
            let current = Some(self.current.clone()).filter(|c| !c.is_empty());
            self.say(UpBody::Heartbeat { journal_seq: self.journal.seq, running, current });
        }
        let due: Vec<TaskId> = self.results.iter_mut().filter_map(|(t, r)| r.due(now).then_some(*t)).collect();
        for task in due {
            if let Some(report) = self.dispatch.report(task).cloned() {
                self.say(UpBody::Result { task, report });
            }
        }
        let mut logs: Vec<LogFrame> = Vec::new();
        let mut gone = Vec::new();
        for (task, l) in &mut self.live {
            logs.extend(l.log.due(now));
            if !self.dispatch.is_settled(*task) {
                l.settled_at = None;
                continue;
            }
            let since = *l.settled_at.get_or_insert(now);
            if !l.running && (l.log.is_empty() || now.saturating_sub(since) > LOG_PATIENCE) {
                gone.push(*task);
            }
        }
        logs.into_iter().for_each(|f| self.say(UpBody::Log(f)));
        for task in gone {
            self.live.remove(&task);
            self.far.ask::<Said>(&Ask::Forget { task }).await?;
        }
        let live = if self.live.is_empty() { HEARTBEAT } else { LOOK_EVERY };
        let results = self.results.values().map(|r| r.at).min().unwrap_or(Duration::MAX);
        let hello = self.hello.as_ref().map_or(Duration::MAX, |h| h.at);
        let next = self.beat_at.min(results).min(hello).saturating_sub(self.mono());
        Ok(next.min(live).max(Duration::from_millis(5)))
    }

    fn facts(&self) -> serde_json::Value {
        let f = &self.facts;
        serde_json::json!({
            "os": f.os, "arch": f.arch, "hostname": f.hostname, "cores": f.cores, "memory_mb": f.memory,
            "shell": format!("PowerShell {}", f.shell), "root": self.root, "current_release": self.current,
        })
    }

    /// A frame from the control plane.
    pub(super) async fn down(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let frame: Down = match frames::open(bytes, &self.executor) {
            Ok(f) => f,
            Err(e) => {
                tracing::warn!(error = %e, "a frame is ignored");
                return Ok(());
            }
        };
        if frame.aud != self.agent {
            return Ok(());
        }
        let free =
            matches!(frame.body, DownBody::HelloAck { .. } | DownBody::Fence { .. } | DownBody::WhoAreYou { .. });
        match &frame.instance {
            Some(i) if *i != self.journal.instance => {
                let now = self.mono();
                self.hello.get_or_insert_with(|| Retry::new(now));
                return Ok(());
            }
            None if !free => return Ok(()),
            _ => {}
        }
        match frame.body {
            DownBody::Offer(offer) => self.offer(offer).await,
            // Tasks with secrets are refused when they are offered.
            DownBody::Grant { task, nonce: given, epoch, lease_s, secrets: _ } => {
                self.input(Input::Grant { task, nonce: given, epoch, lease_s, fresh_nonce: nonce() }).await
            }
            DownBody::Fence { task, work, epoch } => self.input(Input::Fence { task, work, epoch }).await,
            DownBody::ResultAck { task } => self.input(Input::ResultAck { task }).await,
            DownBody::LogAck { task, seq, window } => {
                let now = self.mono();
                if let Some(l) = self.live.get_mut(&task) {
                    l.log.acked(seq, window, now);
                }
                Ok(())
            }
            DownBody::HelloAck { instance } => {
                if instance == self.journal.instance {
                    self.hello = None;
                    self.asked.clear();
                }
                Ok(())
            }
            DownBody::WhoAreYou { challenge } => {
                // One who asks without a challenge does not take back another's.
                if let Some(c) = challenge.filter(|c| c.len() <= MAX_CHALLENGE) {
                    self.asked = c;
                }
                self.hello = Some(Retry::new(self.mono()));
                Ok(())
            }
        }
    }

    async fn offer(&mut self, offer: Box<Offer>) -> Result<(), Fault> {
        if !self.dispatch.knows(offer.task) {
            let unfit = offer.spec.steps.iter().find_map(|s| Some(format!("step {}: {}", s.id, platform::problem(s)?)));
            if let Some(detail) = unfit {
                self.say(UpBody::Refuse { task: offer.task, code: RefuseCode::Invalid, detail });
                return Ok(());
            }
        }
        self.input(Input::Offer { offer, nonce: nonce() }).await
    }

    async fn input(&mut self, input: Input) -> Result<(), Fault> {
        let now = Now { mono: self.mono(), wall: chrono::Utc::now() };
        let outputs = self.dispatch.step(input, now);
        Box::pin(self.perform(outputs)).await
    }

    async fn append(&mut self, records: Vec<Record>) -> Result<(), Fault> {
        let accepted = records.iter().filter_map(|r| match r {
            Record::Accepted(a) => Some(a.task.to_string()),
            _ => None,
        });
        // There before the promise, so that its absence later is never taken for "not begun".
        let prepare = accepted.collect::<Vec<_>>().join(" ");
        let (bytes, seq) = journal::write(records, self.journal.seq, chrono::Utc::now()).map_err(Fault::Hi)?;
        let ask = Ask::Append { at: self.journal.bytes, data: STANDARD.encode(&bytes), prepare };
        self.far.ask::<Said>(&ask).await?;
        self.journal.bytes += bytes.len() as u64;
        self.journal.seq = seq;
        Ok(())
    }

    /// All facts are on the host's disk before anything that relies on them is done.
    async fn perform(&mut self, outputs: Vec<Output>) -> Result<(), Fault> {
        let mut records = Vec::new();
        let mut rest = Vec::new();
        for o in outputs {
            match o {
                Output::Journal(r) => records.push(r),
                o => rest.push(o),
            }
        }
        if !records.is_empty() {
            self.append(records).await?;
        }
        for o in rest {
            match o {
                Output::Journal(_) | Output::Adopt(_) => {}
                Output::Send(UpBody::Result { task, .. }) if !self.dispatch.is_settled(task) => {
                    // Sent by `tick`, until it is acknowledged.
                    let now = self.mono();
                    self.results.insert(task, Retry::new(now));
                }
                Output::Send(UpBody::Accept { task, nonce, .. }) => {
                    let journal_seq = self.journal.seq;
                    self.say(UpBody::Accept { seal_to: None, task, nonce, journal_seq });
                }
                Output::Send(body) => self.say(body),
                Output::Start(a) => self.start(*a).await?,
                Output::Stop(task) => drop(self.far.ask::<Said>(&Ask::Stop { task }).await?),
                Output::Settled(task) => {
                    self.results.remove(&task);
                    if !self.live.contains_key(&task) {
                        self.far.ask::<Said>(&Ask::Forget { task }).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn start(&mut self, a: Accepted) -> Result<(), Fault> {
        let task = a.task;
        let reason = match generate::run_spec(&a.spec, a.start_at, &self.variables(&a)) {
            Err(problem) => Some(problem),
            Ok(spec) => {
                let spec = STANDARD.encode(serde_json::to_vec(&spec).map_err(Fault::Hi)?);
                match self.far.ask::<Said>(&Ask::Start { task, spec }).await {
                    Ok(_) => None,
                    Err(Fault::Far { said }) => Some(said),
                    Err(other) => return Err(other),
                }
            }
        };
        self.watch(task);
        // Also after a failure: only the task's directory says whether something came of it.
        self.look(task, false, reason).await
    }

    fn variables(&self, a: &Accepted) -> Vec<(String, String)> {
        let s = &a.spec;
        let mut all = vec![
            ("TASK_KEY", a.task.to_string()),
            ("WINDLASS_ROOT", self.root.clone()),
            ("WINDLASS_PROJECT", s.project.clone()),
            ("WINDLASS_ENVIRONMENT", s.environment.clone()),
            ("WINDLASS_VERSION", s.version.clone()),
            ("WINDLASS_HOST", s.host.clone()),
        ];
        all.extend(a.trace.clone().map(|t| ("TRACEPARENT", t)));
        all.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
    }

    /// Asks what became of a task, takes its records and log, and tells `dispatch` when it is over. `found`: an earlier
    /// process had started it. `failure`: why it could not be started.
    async fn look(&mut self, task: TaskId, found: bool, failure: Option<String>) -> Result<(), Fault> {
        let said = self.read(task).await?;
        if said.alive {
            return if found { self.input(Input::Looked { task, found: Found::Alive }).await } else { Ok(()) };
        }
        // Nothing more is written there: all of it is read now, and counted.
        loop {
            let before = self.live.get(&task).map(|l| (l.steps_at, l.log_at));
            self.read(task).await?;
            if self.live.get(&task).map(|l| (l.steps_at, l.log_at)) == before {
                break;
            }
        }
        let Some(live) = self.live.get_mut(&task) else { return Ok(()) };
        live.running = false;
        if !self.dispatch.running().iter().any(|(t, _)| *t == task) {
            return Ok(());
        }
        let exit: Option<Exit> = serde_json::from_slice(&bytes_of(&said.exit)?).ok();
        let input = match exit {
            Some(exit) => {
                let found = Found::Exit(Box::new(report(live, exit.outcome, Some(&exit), self.dispatch.spec(task))));
                Input::Looked { task, found }
            }
            None if said.there && !said.begun => match failure {
                Some(reason) => Input::StartFailed { task, reason },
                None => Input::Looked { task, found: Found::NotBegun },
            },
            None => {
                let error = text_of(&said.error)?;
                tracing::warn!(%task, error, "a runner is gone without a report");
                let gone = report(live, ReportedOutcome::Interrupted, None, None);
                Input::Looked { task, found: Found::Gone(Box::new(gone)) }
            }
        };
        self.input(input).await
    }

    /// One answer about a task; what is new of its records and log is kept.
    async fn read(&mut self, task: TaskId) -> Result<LookSaid, Fault> {
        let (steps, log) = self.live.get(&task).map_or((0, 0), |l| (l.steps_at, l.log_at));
        let said: LookSaid = self.far.ask(&Ask::Look { task, steps, log }).await?;
        let Some(live) = self.live.get_mut(&task) else { return Ok(said) };
        let (new, length) = lines::<LogLine>(&bytes_of(&said.log)?);
        live.log_at += length as u64;
        new.into_iter().for_each(|l| live.log.push(l, chrono::Utc::now()));
        let (new, length) = lines::<StepLine>(&bytes_of(&said.steps)?);
        live.steps_at += length as u64;
        let mut told = Vec::new();
        for line in new.into_iter().flatten() {
            let report = StepReport {
                index: line.index,
                outcome: line.outcome,
                exit_code: line.code,
                started_at: line.from,
                ended_at: line.to,
                message: text_of(&line.message)?,
                left_processes: 0,
                outputs: serde_json::Map::new(),
            };
            live.ended.push(report.clone());
            told.push(report);
        }
        told.into_iter().for_each(|report| self.say(UpBody::Step { task, report }));
        Ok(said)
    }
}

/// With the steps that were never reached, when the runner ended in order (`spec`), and the log as it will be sent.
fn report(live: &Live, outcome: ReportedOutcome, exit: Option<&Exit>, spec: Option<&TaskSpec>) -> TaskReport {
    let mut steps = live.ended.clone();
    let now = chrono::Utc::now();
    for (index, _) in (0u32..).zip(spec.iter().flat_map(|s| &s.steps)) {
        if outcome != ReportedOutcome::Fenced && !steps.iter().any(|s| s.index == index) {
            steps.push(StepReport {
                index,
                outcome: StepOutcome::Skipped,
                exit_code: None,
                started_at: now,
                ended_at: now,
                message: String::new(),
                left_processes: 0,
                outputs: serde_json::Map::new(),
            });
        }
    }
    steps.sort_by_key(|s| s.index);
    TaskReport {
        steps,
        log_bytes: exit.map_or(live.log.bytes(), |e| e.log_bytes),
        log_dropped: exit.map_or(0, |e| e.log_dropped),
        log_frames: live.log.frames(),
        ..empty_report(outcome)
    }
}

/// 128 random bits, hex.
fn nonce() -> String {
    format!("{:032x}", rand::random::<u128>())
}
