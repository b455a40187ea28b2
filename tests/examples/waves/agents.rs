//! Agents simulated at the wire: each has its own identity, connection and signatures and says what a real one says for a
//! task whose steps all succeed; nothing is run and nothing is written to a disk.

use crate::Fail;
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{StreamExt, stream};
use nkeys::KeyPair;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use windlass_contracts::{
    frames::{self, Down, DownBody, Hello, LogFrame, Offer, OpenState, OpenTask, Stream, Up, UpBody},
    http::{Enroll, Enrolled},
    subjects,
};
use windlass_domain::{
    ids::{AgentId, TaskId},
    task::{ReportedOutcome, StepOutcome, StepReport, TaskReport},
};

/// As real agents: every 5 s, a fifth more or less.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// What was not acknowledged is said again after this long, then after twice as long each time.
const RESEND: Duration = Duration::from_secs(1);
const RESEND_MOST: Duration = Duration::from_secs(15);
/// A real runner notes the start and the end of each step.
const NOTES_PER_STEP: u64 = 2;
const ENROL_AT_ONCE: usize = 16;

/// What all agents have sent and got since the start, heartbeats and HELLOs apart.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) up: AtomicU64,
    pub(crate) down: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) beats: AtomicU64,
    pub(crate) repeated: AtomicU64,
    pub(crate) said_hello: AtomicU64,
    /// When each task was granted, since [`Counts::restart_clock`].
    starts: Mutex<(Option<Instant>, Vec<Duration>)>,
}

impl Counts {
    pub(crate) fn restart_clock(&self) {
        *self.starts.lock().unwrap_or_else(PoisonError::into_inner) = (Some(Instant::now()), Vec::new());
    }

    /// The earliest first.
    pub(crate) fn starts(&self) -> Vec<Duration> {
        let mut all = self.starts.lock().unwrap_or_else(PoisonError::into_inner).1.clone();
        all.sort_unstable();
        all
    }

    fn started(&self) {
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = starts.0 {
            starts.1.push(since.elapsed());
        }
    }
}

/// A task this agent knows of.
enum Phase {
    Accepted { nonce: String, steps: u32 },
    Ended { report: TaskReport, logs: Vec<LogFrame>, acked: bool, again_at: Instant, pause: Duration },
}

struct Agent {
    id: AgentId,
    host: String,
    key: KeyPair,
    control: KeyPair,
    client: async_nats::Client,
    instance: String,
    /// The challenge that HELLO answers.
    asked: String,
    seq: u64,
    tasks: BTreeMap<TaskId, Phase>,
    counts: Arc<Counts>,
}

/// Enrols an agent for each host over the api and starts them all. They end with the program.
pub(crate) async fn start(
    http: &reqwest::Client,
    base: &str,
    token: &str,
    hosts: &[String],
) -> Result<Arc<Counts>, Fail> {
    let counts = Arc::new(Counts::default());
    let made: Vec<Result<(), Fail>> = stream::iter(hosts)
        .map(|host| one(http, base, token, host, counts.clone()))
        .buffer_unordered(ENROL_AT_ONCE)
        .collect()
        .await;
    made.into_iter().collect::<Result<Vec<()>, Fail>>()?;
    Ok(counts)
}

async fn one(http: &reqwest::Client, base: &str, token: &str, host: &str, counts: Arc<Counts>) -> Result<(), Fail> {
    let new = serde_json::json!({ "host": host });
    let answer = http.post(format!("{base}/api/v1/enroll-tokens")).bearer_auth(token).json(&new).send().await?;
    let made: serde_json::Value = answer.error_for_status()?.json().await?;
    let key = KeyPair::new_user();
    let body = Enroll {
        token: made["token"].as_str().ok_or("no token in the answer")?.to_owned(),
        public_key: key.public_key(),
        facts: serde_json::json!({ "os": "linux" }),
    };
    let answer = http.post(format!("{base}/api/v1/enroll")).json(&body).send().await?;
    let got: Enrolled = answer.error_for_status()?.json().await?;
    let signer = Arc::new(KeyPair::from_seed(&key.seed()?)?);
    let client = async_nats::ConnectOptions::with_jwt(got.jwt, move |nonce| {
        let signer = signer.clone();
        async move { signer.sign(&nonce).map_err(async_nats::AuthError::new) }
    })
    .custom_inbox_prefix(format!("_INBOX_{}", got.agent_id))
    .read_buffer_capacity(4096)
    .client_capacity(256)
    .subscription_capacity(256)
    .ping_interval(Duration::from_secs(20))
    .connection_timeout(Duration::from_secs(60))
    .connect(got.nats_urls)
    .await?;
    let id = AgentId::from(got.agent_id);
    let down = client.subscribe(subjects::agent_down(id)).await?;
    client.flush().await?;
    let agent = Agent {
        id,
        host: host.to_owned(),
        key,
        control: KeyPair::from_public_key(&got.executor_key)?,
        client,
        instance: uuid::Uuid::now_v7().simple().to_string(),
        asked: String::new(),
        seq: 1,
        tasks: BTreeMap::new(),
        counts,
    };
    // Ends with the program, whose only purpose is this.
    drop(tokio::spawn(agent.run(down)));
    Ok(())
}

impl Agent {
    async fn run(mut self, mut down: async_nats::Subscriber) {
        self.hello().await;
        let spread = HEARTBEAT.mul_f64(0.8 + 0.4 * rand::random::<f64>());
        let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + spread, spread);
        loop {
            let again = self.again_at();
            tokio::select! {
                m = down.next() => {
                    let Some(m) = m else { return };
                    match frames::open::<Down>(&m.payload, &self.control) {
                        Ok(d) if d.aud == self.id => self.take(d).await,
                        _ => eprintln!("{}: a frame that is not the executor's", self.host),
                    }
                }
                _ = beat.tick() => {
                    self.counts.beats.fetch_add(1, Relaxed);
                    let body = UpBody::Heartbeat { journal_seq: self.seq, running: vec![], current: None };
                    self.publish(subjects::agent_hello(self.id), body).await;
                }
                () = tokio::time::sleep_until(again.into()) => self.say_again().await,
            }
        }
    }

    /// When something is to be said again; far away when nothing is.
    fn again_at(&self) -> Instant {
        let due = self.tasks.values().filter_map(|p| match p {
            Phase::Ended { acked: false, again_at, .. } => Some(*again_at),
            Phase::Ended { logs, again_at, .. } if !logs.is_empty() => Some(*again_at),
            _ => None,
        });
        due.min().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))
    }

    async fn say_again(&mut self) {
        let now = Instant::now();
        let mut say = Vec::new();
        for (task, p) in &mut self.tasks {
            if let Phase::Ended { report, logs, acked, again_at, pause } = p
                && *again_at <= now
            {
                if !*acked {
                    say.push(UpBody::Result { task: *task, report: report.clone() });
                }
                say.extend(logs.iter().cloned().map(UpBody::Log));
                *pause = (*pause * 2).min(RESEND_MOST);
                *again_at = now + *pause;
            }
        }
        self.counts.repeated.fetch_add(say.len() as u64, Relaxed);
        for body in say {
            self.say(body).await;
        }
    }

    async fn hello(&mut self) {
        let open = self.tasks.iter().filter_map(|(id, p)| match p {
            Phase::Accepted { .. } => Some(OpenTask { task: *id, state: OpenState::Accepted }),
            Phase::Ended { acked: false, .. } => Some(OpenTask { task: *id, state: OpenState::Ended }),
            Phase::Ended { .. } => None,
        });
        let body = UpBody::Hello(Hello {
            boot_id: "simulated".into(),
            journal_seq: self.seq,
            version: env!("CARGO_PKG_VERSION").into(),
            open: open.collect(),
            facts: serde_json::json!({ "os": "linux" }),
            answers: Some(self.asked.clone()),
        });
        self.publish(subjects::agent_hello(self.id), body).await;
    }

    async fn say(&self, body: UpBody) {
        self.counts.up.fetch_add(1, Relaxed);
        let subject = match body {
            UpBody::Log(_) | UpBody::Logs { .. } => subjects::agent_log(self.id),
            _ => subjects::agent_up(self.id),
        };
        self.publish(subject, body).await;
    }

    async fn publish(&self, subject: String, body: UpBody) {
        let up = Up { agent: self.id, instance: self.instance.clone(), body };
        match frames::seal(&up, &self.key) {
            Ok(bytes) => {
                self.counts.bytes.fetch_add(bytes.len() as u64, Relaxed);
                if let Err(e) = self.client.publish(subject, bytes.into()).await {
                    eprintln!("{}: {e}", self.host);
                }
            }
            Err(e) => eprintln!("{}: {e}", self.host),
        }
    }

    async fn take(&mut self, down: Down) {
        if down.instance.as_ref().is_some_and(|i| *i != self.instance) {
            return;
        }
        if !matches!(down.body, DownBody::HelloAck { .. } | DownBody::WhoAreYou { .. }) {
            self.counts.down.fetch_add(1, Relaxed);
        }
        match down.body {
            DownBody::WhoAreYou { challenge } => {
                if let Some(c) = challenge {
                    self.asked = c;
                }
                self.hello().await;
            }
            DownBody::HelloAck { .. } => {
                self.asked.clear();
                self.counts.said_hello.fetch_add(1, Relaxed);
            }
            DownBody::Offer(o) => self.offer(&o).await,
            DownBody::Grant { task, nonce, .. } => self.grant(task, &nonce).await,
            DownBody::Fence { task, .. } => {
                let report = self.end(task, ReportedOutcome::Fenced, 0, vec![]);
                self.say(UpBody::Result { task, report }).await;
            }
            DownBody::ResultAck { task } => {
                if let Some(Phase::Ended { acked, .. }) = self.tasks.get_mut(&task) {
                    *acked = true;
                }
            }
            DownBody::LogAck { task, seq, .. } => {
                if let Some(Phase::Ended { logs, .. }) = self.tasks.get_mut(&task) {
                    logs.retain(|l| l.seq > seq);
                }
            }
        }
    }

    async fn offer(&mut self, o: &Offer) {
        let steps = o.spec.steps.len() as u32;
        // Real agents check the proof before they say yes; it costs what it costs on the host, not here.
        let nonce = match self.tasks.get(&o.task) {
            Some(Phase::Ended { report, .. }) => {
                let body = UpBody::Result { task: o.task, report: report.clone() };
                return self.say(body).await;
            }
            Some(Phase::Accepted { nonce, .. }) => nonce.clone(),
            None => {
                self.seq += 1;
                format!("{:032x}", rand::random::<u128>())
            }
        };
        self.tasks.insert(o.task, Phase::Accepted { nonce: nonce.clone(), steps });
        let body = UpBody::Accept { task: o.task, nonce, journal_seq: self.seq, seal_to: None };
        self.say(body).await;
    }

    /// Starts and at once ends the task: STARTED, a report and two notes a step, RESULT.
    async fn grant(&mut self, task: TaskId, nonce: &str) {
        let steps = match self.tasks.get(&task) {
            Some(Phase::Accepted { nonce: n, steps }) if n == nonce => *steps,
            Some(Phase::Ended { report, .. }) => {
                let body = UpBody::Result { task, report: report.clone() };
                return self.say(body).await;
            }
            _ => return,
        };
        self.counts.started();
        self.say(UpBody::Started { task }).await;
        let logs = notes(task, steps);
        for l in &logs {
            self.say(UpBody::Log(l.clone())).await;
        }
        let report = self.end(task, ReportedOutcome::Succeeded, steps, logs);
        for s in &report.steps {
            self.say(UpBody::Step { task, report: s.clone() }).await;
        }
        self.say(UpBody::Result { task, report }).await;
    }

    fn end(&mut self, task: TaskId, outcome: ReportedOutcome, steps: u32, logs: Vec<LogFrame>) -> TaskReport {
        let at = chrono::Utc::now();
        let step = |index| StepReport {
            index,
            outcome: StepOutcome::Succeeded,
            exit_code: Some(0),
            started_at: at,
            ended_at: at,
            message: String::new(),
            left_processes: 0,
            outputs: Default::default(),
        };
        let report = TaskReport {
            outcome,
            steps: (0..steps).map(step).collect(),
            log_bytes: 0,
            log_dropped: 0,
            log_frames: logs.len() as u64,
        };
        self.seq += 2;
        let again_at = Instant::now() + RESEND;
        self.tasks.insert(task, Phase::Ended { report: report.clone(), logs, acked: false, again_at, pause: RESEND });
        report
    }
}

fn notes(task: TaskId, steps: u32) -> Vec<LogFrame> {
    (0..u64::from(steps) * NOTES_PER_STEP)
        .map(|seq| {
            let data = b"step (service.restart) starts\n";
            LogFrame {
                task,
                seq,
                step: (seq / NOTES_PER_STEP) as u32,
                stream: Stream::Note,
                at: chrono::Utc::now(),
                data: STANDARD.encode(data),
                crc: crc32c::crc32c(data),
            }
        })
        .collect()
}
