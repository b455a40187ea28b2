//! A scripted control plane with one agent.

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::StreamExt;
use nkeys::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};
use windlass_agent::identity::Identity;
use windlass_contracts::{
    frames::{Down, DownBody, Hello, LogFrame, Offer, Stream, Up, UpBody, open, seal},
    subjects,
};
use windlass_domain::{
    ids::{AgentId, TaskId},
    merkle::{leaf_hash, root},
    plan::{PlanDigest, SpecProof, canonical_json},
    task::{TaskReport, TaskSpec, TaskStep},
};
use windlass_testkit::{Nats, nats, temp_dir};

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Control {
    pub dir: tempfile::TempDir,
    pub nats: Nats,
    client: async_nats::Client,
    up: async_nats::Subscriber,
    pub executor: KeyPair,
    agent_key: KeyPair,
    pub agent: AgentId,
    child: Option<Child>,
    pub env: Vec<String>,
    pub instance: Option<String>,
    pub hello: Option<Hello>,
    pub ack_results: bool,
    pub logs: Vec<LogFrame>,
    pub results: usize,
    seen: Vec<UpBody>,
    attempt: u32,
}

/// What is left of a task.
pub(crate) struct Ran {
    pub report: TaskReport,
    pub out: Vec<u8>,
}

impl Ran {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

impl Control {
    /// An enrolled agent that is not started yet.
    pub(crate) async fn new() -> Control {
        let nats = nats().await;
        let dir = temp_dir();
        let (executor, approval, agent_key) = (KeyPair::new_user(), KeyPair::new_user(), KeyPair::new_user());
        let agent: AgentId = uuid::Uuid::new_v4().into();
        let identity = Identity {
            agent_id: agent,
            host: "h1".into(),
            nats_urls: vec![nats.url()],
            jwt: "unused".into(),
            executor_key: executor.public_key(),
            approval_key: approval.public_key(),
            nats_ca: None,
        };
        let state = dir.path().join("state");
        windlass_agent::files::private_dir(&state).expect("state");
        std::fs::create_dir(dir.path().join("root")).expect("root");
        identity.save(&state, &agent_key).expect("identity");
        let client = async_nats::connect(nats.url()).await.expect("connects");
        let up = client.subscribe("up.>").await.expect("subscribes");
        client.flush().await.expect("flushes");
        Control {
            dir,
            nats,
            client,
            up,
            executor,
            agent_key,
            agent,
            child: None,
            env: vec![],
            instance: None,
            hello: None,
            ack_results: true,
            logs: vec![],
            results: 0,
            seen: vec![],
            attempt: 0,
        }
    }

    /// With its agent running and greeted.
    pub(crate) async fn started() -> Control {
        let mut c = Control::new().await;
        c.start_agent().await;
        c
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }
    pub(crate) fn task_dir(&self, task: TaskId) -> PathBuf {
        self.state().join("tasks").join(task.to_string())
    }

    pub(crate) fn command(&self) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_windlass-agent"));
        c.arg("run").arg("--state").arg(self.state()).arg("--root").arg(self.root());
        for e in &self.env {
            c.arg("--env").arg(e);
        }
        c.stdin(Stdio::null());
        c
    }

    pub(crate) async fn start_agent(&mut self) -> Hello {
        self.hello = None;
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("agent.log"));
        self.child =
            Some(self.command().stderr(log.expect("log")).env("SECRET_OF_THE_AGENT", "1").spawn().expect("starts"));
        self.until("HELLO", |c| c.hello.clone()).await
    }

    /// `kill -9` of the agent alone.
    pub(crate) fn kill_agent(&mut self) {
        if let Some(mut c) = self.child.take() {
            c.kill().expect("kills");
            c.wait().expect("waits");
        }
    }

    pub(crate) fn agent_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    pub(crate) async fn send_raw(&self, bytes: Vec<u8>) {
        self.client.publish(subjects::agent_down(self.agent), bytes.into()).await.expect("publishes");
        self.client.flush().await.expect("flushes");
    }
    pub(crate) fn frame(&self, body: DownBody) -> Down {
        let free = matches!(body, DownBody::HelloAck { .. } | DownBody::Fence { .. } | DownBody::WhoAreYou { .. });
        Down { aud: self.agent, instance: if free { None } else { self.instance.clone() }, body }
    }
    pub(crate) async fn send(&self, body: DownBody) {
        self.send_raw(seal(&self.frame(body), &self.executor).expect("seals")).await;
    }

    /// Takes frames, answering as an executor does, until `found` finds something.
    pub(crate) async fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut Control) -> Option<T>) -> T {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(t) = found(self) {
                return t;
            }
            let Ok(Some(m)) = timeout_at(until, self.up.next()).await else {
                panic!("no {what} within {DEADLINE:?}; the agent said:\n{}", self.agent_log());
            };
            let public = KeyPair::from_public_key(&self.agent_key.public_key()).expect("key");
            let up: Up = open(&m.payload, &public).expect("the agent signs its frames");
            assert_eq!(up.agent, self.agent);
            self.take(up).await;
        }
    }

    async fn take(&mut self, up: Up) {
        match &up.body {
            UpBody::Hello(h) => {
                self.instance = Some(up.instance.clone());
                self.hello = Some(h.clone());
                self.send(DownBody::HelloAck { instance: up.instance.clone() }).await;
            }
            UpBody::Result { task, .. } => {
                self.results += 1;
                if self.ack_results {
                    self.send(DownBody::ResultAck { task: *task }).await;
                }
            }
            UpBody::Log(_) | UpBody::Logs { .. } => {
                let frames = match &up.body {
                    UpBody::Logs { frames } => frames.clone(),
                    UpBody::Log(f) => vec![f.clone()],
                    _ => vec![],
                };
                for f in frames {
                    let data = STANDARD.decode(&f.data).expect("base64");
                    assert_eq!(crc32c::crc32c(&data), f.crc);
                    let next = self.logs.iter().filter(|l| l.task == f.task).count() as u64;
                    assert!(f.seq <= next, "frame {} came, {next} is next", f.seq);
                    self.send(DownBody::LogAck { task: f.task, seq: next.max(f.seq), window: 1 << 20 }).await;
                    if f.seq == next {
                        self.logs.push(f);
                    }
                }
            }
            _ => {}
        }
        self.seen.push(up.body);
    }

    /// The first frame of that kind since the last call that found one.
    pub(crate) async fn next<T>(&mut self, what: &str, pick: impl Fn(&UpBody) -> Option<T>) -> T {
        self.until(what, |c| {
            let at = c.seen.iter().position(|b| pick(b).is_some())?;
            let got = pick(&c.seen[at]);
            c.seen.drain(..=at);
            got
        })
        .await
    }

    pub(crate) fn offer_of(&mut self, steps: Vec<TaskStep>) -> Offer {
        self.attempt += 1;
        let spec = TaskSpec {
            project: "shop".into(),
            environment: "beta".into(),
            version: "1.0.0".into(),
            host: "h1".into(),
            step: "rollout".into(),
            segment: 0,
            steps,
        };
        Offer {
            outputs: Default::default(),
            task: uuid::Uuid::new_v4().into(),
            work: uuid::Uuid::from_u128(1).into(),
            deployment: uuid::Uuid::from_u128(2).into(),
            attempt: self.attempt,
            epoch: 1,
            fence: 1,
            start_at: 0,
            proof: proof(&spec),
            spec,
            approvals: vec![],
            not_after: chrono::Utc::now() + chrono::TimeDelta::seconds(60),
            trace: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        }
    }

    /// OFFER, ACCEPT, GRANT, STARTED.
    pub(crate) async fn begin(&mut self, offer: &Offer) -> TaskId {
        let task = offer.task;
        self.send(DownBody::Offer(Box::new(offer.clone()))).await;
        let nonce = self
            .next("ACCEPT", |b| match b {
                UpBody::Accept { task: t, nonce, .. } if *t == task => Some(Ok(nonce.clone())),
                UpBody::Refuse { task: t, detail, .. } if *t == task => Some(Err(detail.clone())),
                _ => None,
            })
            .await
            .expect("accepted");
        self.send(DownBody::Grant { secrets: None, task, nonce, epoch: 1, lease_s: 10 }).await;
        self.next("STARTED", |b| matches!(b, UpBody::Started { task: t } if *t == task).then_some(())).await;
        task
    }

    pub(crate) async fn result(&mut self, task: TaskId) -> TaskReport {
        self.next("RESULT", |b| match b {
            UpBody::Result { task: t, report } if *t == task => Some(report.clone()),
            _ => None,
        })
        .await
    }

    /// The result with the whole log.
    pub(crate) async fn end(&mut self, task: TaskId) -> Ran {
        let report = self.result(task).await;
        let frames = report.log_frames;
        self.until("the whole log", |c| {
            (c.logs.iter().filter(|l| l.task == task).count() as u64 >= frames).then_some(())
        })
        .await;
        let all: Vec<&LogFrame> = self.logs.iter().filter(|l| l.task == task).collect();
        assert_eq!(all.len() as u64, frames, "frames promised and sent");
        let out = all
            .iter()
            .filter(|l| l.stream != Stream::Note)
            .flat_map(|l| STANDARD.decode(&l.data).expect("base64"))
            .collect();
        Ran { report, out }
    }

    pub(crate) async fn run(&mut self, steps: Vec<TaskStep>) -> Ran {
        let offer = self.offer_of(steps);
        let task = self.begin(&offer).await;
        self.end(task).await
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(c) = &mut self.child {
            let _ = c.kill();
            let _ = c.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the agent said:\n{}", self.agent_log());
        }
    }
}

pub(crate) fn step(id: &str, action: &str, with: Value) -> TaskStep {
    let Value::Object(with) = with else { panic!("`with` is a map") };
    TaskStep { id: id.into(), action: action.into(), with, always: false, timeout_s: 60 }
}
pub(crate) fn script(id: &str, run: &str) -> TaskStep {
    step(id, "script", json!({ "run": run }))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// A plan of one spec: its Merkle root is the leaf.
pub(crate) fn proof(spec: &TaskSpec) -> SpecProof {
    let root = root(&[leaf_hash(canonical_json(spec).expect("json").as_bytes())]).to_string();
    let body = "0".repeat(64);
    let digest = sha256(format!("windlass-plan-v1\n{body}\n{root}\n1").as_bytes());
    SpecProof { digest: PlanDigest { digest, body, root, leaves: 1 }, index: 0, path: vec![] }
}

/// Pids whose command line holds `token`.
pub(crate) fn processes_with(token: &str) -> Vec<i32> {
    let me = std::process::id();
    std::fs::read_dir("/proc")
        .expect("proc")
        .flatten()
        .filter_map(|e| e.file_name().to_string_lossy().parse::<i32>().ok())
        .filter(|p| *p != me as i32)
        .filter(|p| {
            let line = std::fs::read(format!("/proc/{p}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ").contains(token)
        })
        .collect()
}

/// Polls for a condition of the file system or of processes.
pub(crate) async fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(t) = probe() {
            return t;
        }
        assert!(Instant::now() < until, "{what} did not come within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
