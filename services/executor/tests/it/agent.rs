//! An agent that follows a script: the protocol done right, with knobs to lose, double, hang, die and be re-imaged.

use futures::StreamExt;
use nkeys::{KeyPair, XKey};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use windlass_contracts::{
    frames::{self, Down, DownBody, Hello, LogFrame, Offer, OpenState, OpenTask, RefuseCode, Up, UpBody},
    subjects,
};
use windlass_domain::{
    ids::{AgentId, TaskId},
    secret::Secrets,
    task::{ReportedOutcome, StepOutcome, StepReport, TaskReport},
};

#[derive(Debug, Clone)]
pub(crate) enum Phase {
    Accepted { nonce: String },
    Running,
    Ended { report: TaskReport, acked: bool },
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) instance: String,
    pub(crate) seq: u64,
    pub(crate) tasks: BTreeMap<TaskId, Phase>,
    pub(crate) offers: BTreeMap<TaskId, Offer>,
    /// (task) -> starts. Outlives re-imaging: it is what happened in the world.
    pub(crate) starts: BTreeMap<TaskId, u32>,
    pub(crate) log_acks: BTreeMap<TaskId, u64>,
    // Knobs.
    pub(crate) deaf: bool,
    pub(crate) silent_tasks: bool,
    pub(crate) no_accept: bool,
    pub(crate) refuse: Option<RefuseCode>,
    pub(crate) hang: bool,
    pub(crate) fail: bool,
    pub(crate) lose_every: u32,
    pub(crate) double: bool,
    pub(crate) counter: u32,
    pub(crate) seed: u32,
    pub(crate) fences: u32,
    /// Grants are not heard.
    pub(crate) lose_grants: bool,
    /// What came with the last grant.
    pub(crate) secrets: Secrets,
    pub(crate) hellos_acked: u32,
    /// The challenge that HELLO answers.
    pub(crate) asked: String,
    /// It is of the version before: its HELLO answers nothing.
    pub(crate) former: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Agent {
    pub(crate) id: AgentId,
    pub(crate) host: String,
    pub(crate) key: Arc<KeyPair>,
    /// What secrets are sealed to.
    xkey: Arc<XKey>,
    pub(crate) client: async_nats::Client,
    pub(crate) state: Arc<Mutex<State>>,
    control: Arc<KeyPair>,
}

fn report(outcome: ReportedOutcome, offer: Option<&Offer>) -> TaskReport {
    let at = chrono::Utc::now();
    let last = match outcome {
        ReportedOutcome::Succeeded => StepOutcome::Succeeded,
        ReportedOutcome::Cancelled => StepOutcome::Cancelled,
        _ => StepOutcome::Failed,
    };
    let steps = match (outcome, offer) {
        (ReportedOutcome::Fenced | ReportedOutcome::Interrupted, _) | (_, None) => vec![],
        (_, Some(o)) => (0..o.spec.steps.len())
            .map(|i| StepReport {
                outputs: Default::default(),
                index: i as u32,
                outcome: if i + 1 == o.spec.steps.len() { last } else { StepOutcome::Succeeded },
                exit_code: Some(0),
                started_at: at,
                ended_at: at,
                message: if last == StepOutcome::Failed { "exit code 3".into() } else { String::new() },
                left_processes: 0,
            })
            .collect(),
    };
    TaskReport { outcome, steps, log_bytes: 0, log_dropped: 0, log_frames: 0 }
}

impl Agent {
    pub(crate) fn new(id: AgentId, host: &str, key: KeyPair, control: &KeyPair, client: async_nats::Client) -> Agent {
        let state = State {
            instance: instance(),
            seq: 1,
            tasks: BTreeMap::new(),
            offers: BTreeMap::new(),
            starts: BTreeMap::new(),
            log_acks: BTreeMap::new(),
            deaf: false,
            silent_tasks: false,
            no_accept: false,
            refuse: None,
            hang: false,
            fail: false,
            lose_every: 0,
            double: false,
            counter: 0,
            seed: 0,
            fences: 0,
            lose_grants: false,
            secrets: Secrets::new(),
            hellos_acked: 0,
            asked: String::new(),
            former: false,
        };
        let control = KeyPair::from_public_key(&control.public_key()).expect("key");
        Agent {
            id,
            host: host.into(),
            key: Arc::new(key),
            xkey: Arc::new(XKey::new()),
            client,
            state: Arc::new(Mutex::new(state)),
            control: Arc::new(control),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no poison")
    }

    pub(crate) async fn run(self) {
        let mut down = self.client.subscribe(subjects::agent_down(self.id)).await.expect("subscribes");
        self.client.flush().await.expect("flushes");
        self.hello().await;
        let mut beat = tokio::time::interval(Duration::from_millis(80));
        // On a crowded machine beats are left out: hundreds of agents that catch up keep the test's one thread busy for good.
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                m = down.next() => {
                    let Some(m) = m else { return };
                    let down: Down = frames::open(&m.payload, &self.control).expect("signed by the executor");
                    assert_eq!(down.aud, self.id);
                    if !self.lock().deaf && !self.lost() {
                        self.take(down).await;
                    }
                }
                _ = beat.tick() => {
                    if self.lock().deaf { continue }
                    let (seq, unacked) = {
                        let s = self.lock();
                        let unacked: Vec<_> = s.tasks.iter().filter_map(|(id, p)| match p {
                            Phase::Ended { report, acked: false } => Some((*id, report.clone())),
                            _ => None,
                        }).collect();
                        (s.seq, unacked)
                    };
                    self.say_on(subjects::agent_hello(self.id), UpBody::Heartbeat { journal_seq: seq, running: vec![], current: None }).await;
                    for (task, report) in unacked {
                        self.say(UpBody::Result { task, report }).await;
                    }
                }
            }
        }
    }

    fn lost(&self) -> bool {
        let mut s = self.lock();
        s.counter += 1;
        // Mixed, because a strict rhythm would lose every answer to every repeat.
        let mixed = s.counter.wrapping_add(s.seed).wrapping_mul(0x9E37_79B9) >> 15;
        s.lose_every > 0 && mixed.is_multiple_of(s.lose_every)
    }

    pub(crate) async fn hello(&self) {
        self.say_hello(true).await;
    }

    /// As it was before any task began.
    pub(crate) async fn hello_without_tasks(&self) {
        self.say_hello(false).await;
    }

    async fn say_hello(&self, tasks: bool) {
        let body = {
            let s = self.lock();
            let open = s.tasks.iter().filter_map(|(id, p)| {
                let state = match p {
                    Phase::Accepted { .. } => OpenState::Accepted,
                    Phase::Running => OpenState::Running,
                    Phase::Ended { acked: false, .. } => OpenState::Ended,
                    Phase::Ended { .. } => return None,
                };
                Some(OpenTask { task: *id, state })
            });
            UpBody::Hello(Hello {
                boot_id: "boot".into(),
                journal_seq: s.seq,
                version: "0".into(),
                open: open.filter(|_| tasks).collect(),
                facts: serde_json::json!({ "os": "test" }),
                // What was said before any question.
                answers: (!s.former).then(|| if tasks { s.asked.clone() } else { String::new() }),
            })
        };
        self.say_on(subjects::agent_hello(self.id), body).await;
    }

    pub(crate) async fn say(&self, body: UpBody) {
        if self.lock().silent_tasks || self.lost() {
            return;
        }
        let twice = self.lock().double;
        for _ in 0..=u32::from(twice) {
            self.say_on(subjects::agent_up(self.id), body.clone()).await;
        }
    }

    async fn say_on(&self, subject: String, body: UpBody) {
        let up = Up { agent: self.id, instance: self.lock().instance.clone(), body };
        let bytes = frames::seal(&up, &self.key).expect("seals");
        self.client.publish(subject, bytes.into()).await.expect("publishes");
    }

    pub(crate) async fn log(&self, frame: LogFrame) {
        self.say_on(subjects::agent_log(self.id), UpBody::Log(frame)).await;
    }

    pub(crate) async fn logs(&self, frames: Vec<LogFrame>) {
        self.say_on(subjects::agent_log(self.id), UpBody::Logs { frames }).await;
    }

    async fn take(&self, down: Down) {
        let mine = self.lock().instance.clone();
        if down.instance.as_ref().is_some_and(|i| *i != mine) {
            return;
        }
        match down.body {
            DownBody::WhoAreYou { challenge } => {
                if let Some(c) = challenge {
                    self.lock().asked = c;
                }
                self.hello().await;
            }
            DownBody::HelloAck { instance } if instance == mine => {
                let mut s = self.lock();
                s.hellos_acked += 1;
                s.asked.clear();
            }
            DownBody::HelloAck { .. } => {}
            DownBody::Offer(o) => self.offer(*o).await,
            DownBody::Grant { task, nonce, secrets, .. } => {
                if self.lock().lose_grants {
                    return;
                }
                if let Some(s) = secrets {
                    let opened = s.open(&self.xkey).expect("sealed to this agent's key");
                    self.lock().secrets = opened;
                }
                self.grant(task, &nonce).await;
            }
            DownBody::Fence { task, .. } => {
                let phase = {
                    let mut s = self.lock();
                    s.fences += 1;
                    s.tasks.get(&task).cloned()
                };
                match phase {
                    None | Some(Phase::Accepted { .. }) => self.end(task, ReportedOutcome::Fenced).await,
                    Some(Phase::Running) => self.end(task, ReportedOutcome::Cancelled).await,
                    Some(Phase::Ended { report, .. }) => self.say(UpBody::Result { task, report }).await,
                }
            }
            DownBody::ResultAck { task } => {
                if let Some(Phase::Ended { acked, .. }) = self.lock().tasks.get_mut(&task) {
                    *acked = true;
                }
            }
            DownBody::LogAck { task, seq, .. } => {
                self.lock().log_acks.insert(task, seq);
            }
        }
    }

    async fn offer(&self, o: Offer) {
        let task = o.task;
        assert!(windlass_domain::plan::verify_spec(&o.spec, &o.proof), "the proof fits the spec");
        let known = {
            let mut s = self.lock();
            s.offers.insert(task, o);
            s.tasks.get(&task).cloned()
        };
        let refuse = self.lock().refuse;
        if let Some(code) = refuse.filter(|_| known.is_none()) {
            return self.say(UpBody::Refuse { task, code, detail: "scripted".into() }).await;
        }
        match known {
            None => {
                if self.lock().no_accept {
                    return;
                }
                let nonce = format!("{:032x}", uuid::Uuid::now_v7().as_u128());
                let seq = {
                    let mut s = self.lock();
                    s.seq += 1;
                    s.tasks.insert(task, Phase::Accepted { nonce: nonce.clone() });
                    s.seq
                };
                self.say(UpBody::Accept { seal_to: Some(self.xkey.public_key()), task, nonce, journal_seq: seq }).await;
            }
            Some(Phase::Accepted { nonce }) => {
                let journal_seq = self.lock().seq;
                self.say(UpBody::Accept { seal_to: Some(self.xkey.public_key()), task, nonce, journal_seq }).await;
            }
            Some(Phase::Running) => self.say(UpBody::Started { task }).await,
            Some(Phase::Ended { report, .. }) => self.say(UpBody::Result { task, report }).await,
        }
    }

    async fn grant(&self, task: TaskId, nonce: &str) {
        let phase = self.lock().tasks.get(&task).cloned();
        match phase {
            Some(Phase::Accepted { nonce: n }) if n == nonce => {
                let (hang, fail) = {
                    let mut s = self.lock();
                    s.seq += 1;
                    s.tasks.insert(task, Phase::Running);
                    *s.starts.entry(task).or_default() += 1;
                    (s.hang, s.fail)
                };
                self.say(UpBody::Started { task }).await;
                if !hang {
                    self.end(task, if fail { ReportedOutcome::Failed } else { ReportedOutcome::Succeeded }).await;
                }
            }
            Some(Phase::Running) => self.say(UpBody::Started { task }).await,
            Some(Phase::Ended { report, .. }) => self.say(UpBody::Result { task, report }).await,
            _ => {}
        }
    }

    /// The task ends, and says so.
    pub(crate) async fn end(&self, task: TaskId, outcome: ReportedOutcome) {
        let report = {
            let mut s = self.lock();
            s.seq += 1;
            let r = report(outcome, s.offers.get(&task));
            s.tasks.insert(task, Phase::Ended { report: r.clone(), acked: false });
            r
        };
        self.say(UpBody::Result { task, report }).await;
    }

    pub(crate) async fn end_running(&self, outcome: ReportedOutcome) {
        for task in self.running() {
            self.end(task, outcome).await;
        }
    }

    pub(crate) fn running(&self) -> Vec<TaskId> {
        self.lock().tasks.iter().filter(|(_, p)| matches!(p, Phase::Running)).map(|(id, _)| *id).collect()
    }

    /// As if the report had been taken: it is not said again by itself.
    pub(crate) fn forget_unacked(&self, task: TaskId) {
        if let Some(Phase::Ended { acked, .. }) = self.lock().tasks.get_mut(&task) {
            *acked = true;
        }
    }

    /// A new disk: the journal is gone, the identity is not.
    pub(crate) fn reimage(&self) {
        let mut s = self.lock();
        s.instance = instance();
        s.seq = 1;
        s.tasks.clear();
    }
}

pub(crate) fn instance() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}
