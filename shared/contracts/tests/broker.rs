//! A broker in wrong hands: it has every frame that ever passed, and changes, cuts, joins, swaps and re-addresses them as it
//! likes. Whatever it makes, neither side may take it.
//!
//! `WINDLASS_MUTATIONS=1000000 cargo test -p windlass-contracts --test broker` is the long form.

use nkeys::KeyPair;
use serde_json::{Value, json};
use std::collections::HashSet;
use windlass_contracts::frames::{
    Down, DownBody, FrameError, Hello, LogFrame, NotTaken, OpenState, OpenTask, RefuseCode, SealedSecrets, Stream, Up,
    UpBody, open_down, open_up, seal,
};
use windlass_domain::{
    ids::{AgentId, TaskId},
    task::{ReportedOutcome, TaskReport},
};

/// In the automatic tests; enough that each kind of change meets each kind of frame many times.
const SHORT: u64 = 50_000;
const HEAD: usize = 67;

/// Small, seeded, and the same on every machine.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// What the broker has seen of two agents, `a` and `b`, and one executor.
struct Wire {
    a: AgentId,
    b: AgentId,
    key_a: KeyPair,
    key_b: KeyPair,
    executor: KeyPair,
    /// To `a`, from `a`, to `b`, from `b`: all true.
    down_a: Vec<Vec<u8>>,
    up_a: Vec<Vec<u8>>,
    down_b: Vec<Vec<u8>>,
    up_b: Vec<Vec<u8>>,
}

const INSTANCE: &str = "0123456789abcdef0123456789abcdef";

fn downs(task: TaskId) -> Vec<DownBody> {
    let work = uuid::Uuid::from_u128(9).into();
    let (from, data) = ("XKEY".to_owned(), "c2VhbGVk".to_owned());
    vec![
        DownBody::Grant { task, nonce: "a".repeat(32), epoch: 3, lease_s: 10, secrets: None },
        DownBody::Grant {
            task,
            nonce: "b".repeat(32),
            epoch: 4,
            lease_s: 10,
            secrets: Some(SealedSecrets { from, data }),
        },
        DownBody::Fence { task, work, epoch: 3 },
        DownBody::ResultAck { task },
        DownBody::LogAck { task, seq: 7, window: 1 << 20 },
        DownBody::HelloAck { instance: INSTANCE.into() },
        DownBody::WhoAreYou { challenge: None },
        DownBody::WhoAreYou { challenge: Some("c0ffee".repeat(5)) },
    ]
}

fn ups(task: TaskId) -> Vec<UpBody> {
    let report = |outcome| TaskReport { outcome, steps: vec![], log_bytes: 1, log_dropped: 0, log_frames: 1 };
    let at = "2026-11-21T00:00:00Z".parse().expect("time");
    vec![
        UpBody::Hello(Hello {
            boot_id: "boot".into(),
            journal_seq: 5,
            version: "1".into(),
            open: vec![OpenTask { task, state: OpenState::Running }],
            facts: json!({ "os": "linux", "cores": 4 }),
            answers: Some("c0ffee".repeat(5)),
        }),
        UpBody::Heartbeat { journal_seq: 6, running: vec![task], current: Some("shop_1".into()) },
        UpBody::Accept { task, nonce: "a".repeat(32), journal_seq: 7, seal_to: None },
        UpBody::Refuse { task, code: RefuseCode::Busy, detail: "one runs".into() },
        UpBody::Started { task },
        UpBody::Result { task, report: report(ReportedOutcome::Failed) },
        UpBody::Result { task, report: report(ReportedOutcome::Fenced) },
        UpBody::Log(LogFrame { task, seq: 1, step: 0, stream: Stream::Out, at, data: "aGVsbG8=".into(), crc: 1 }),
        UpBody::Logs {
            frames: vec![LogFrame { task, seq: 2, step: 0, stream: Stream::Out, at, data: "aGVsbG8=".into(), crc: 1 }],
        },
    ]
}

impl Wire {
    fn new() -> Wire {
        let (a, b) = (uuid::Uuid::from_u128(1).into(), uuid::Uuid::from_u128(2).into());
        let (key_a, key_b, executor) = (KeyPair::new_user(), KeyPair::new_user(), KeyPair::new_user());
        let down = |aud| {
            let all = downs(uuid::Uuid::from_u128(77).into()).into_iter().map(|body| {
                let free =
                    matches!(body, DownBody::HelloAck { .. } | DownBody::Fence { .. } | DownBody::WhoAreYou { .. });
                seal(&Down { aud, instance: (!free).then(|| INSTANCE.into()), body }, &executor).expect("seals")
            });
            all.collect::<Vec<_>>()
        };
        let up = |agent, key: &KeyPair| {
            let all = ups(uuid::Uuid::from_u128(77).into()).into_iter();
            all.map(|body| seal(&Up { agent, instance: INSTANCE.into(), body }, key).expect("seals")).collect()
        };
        Wire {
            down_a: down(a),
            down_b: down(b),
            up_a: up(a, &key_a),
            up_b: up(b, &key_b),
            a,
            b,
            key_a,
            key_b,
            executor,
        }
    }

    fn all(&self) -> Vec<&Vec<u8>> {
        self.down_a.iter().chain(&self.up_a).chain(&self.down_b).chain(&self.up_b).collect()
    }

    /// Who would take these bytes: each side, at each address.
    fn takers(&self, bytes: &[u8]) -> usize {
        [
            open_down(bytes, &self.executor, self.a, INSTANCE).is_ok(),
            open_down(bytes, &self.executor, self.b, INSTANCE).is_ok(),
            open_up(bytes, &self.key_a, self.a).is_ok(),
            open_up(bytes, &self.key_b, self.b).is_ok(),
        ]
        .into_iter()
        .filter(|t| *t)
        .count()
    }
}

const KINDS: usize = 16;

/// Changes one leaf of a JSON text, wherever it is, and nothing else; the signature stays.
fn edit(body: &[u8], dice: &mut Dice) -> Vec<u8> {
    let Ok(mut v) = serde_json::from_slice::<Value>(body) else { return body.to_vec() };
    fn leaves(v: &Value, at: String, out: &mut Vec<String>) {
        match v {
            Value::Object(m) => m.iter().for_each(|(k, v)| leaves(v, format!("{at}/{k}"), out)),
            Value::Array(l) => l.iter().enumerate().for_each(|(i, v)| leaves(v, format!("{at}/{i}"), out)),
            _ => out.push(at),
        }
    }
    let mut all = Vec::new();
    leaves(&v, String::new(), &mut all);
    let at = all.swap_remove(dice.below(all.len()));
    let Some(leaf) = v.pointer_mut(&at) else { return body.to_vec() };
    *leaf = match leaf {
        Value::Number(n) => json!(n.as_u64().unwrap_or(0).wrapping_add(1 + dice.next() % 1000)),
        Value::Bool(b) => json!(!*b),
        Value::Null => json!(INSTANCE),
        Value::String(s) if s.len() == 36 && dice.below(2) == 0 => json!(uuid::Uuid::from_u128(2)),
        Value::String(s) => json!(format!("{s}{}", dice.below(10))),
        _ => json!(null),
    };
    v.to_string().into_bytes()
}

/// One change of kind `kind` to frames that are all true.
fn change(kind: usize, all: &[&Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let one = all[dice.below(all.len())];
    let two = all[dice.below(all.len())];
    let at = dice.below(one.len());
    let mut out = one.clone();
    match kind {
        0 => out[at] ^= 1 << dice.below(8),
        1 => out[at] = dice.next() as u8,
        2 => out.truncate(at),
        3 => out.extend_from_slice(&dice.next().to_le_bytes()[..1 + dice.below(8)]),
        4 => out.insert(at, dice.next() as u8),
        5 => drop(out.remove(at)),
        6 => {
            let other = dice.below(out.len());
            out.swap(at, other);
        }
        // One's signature before another's body.
        7 => out = [&one[..HEAD], &two[HEAD..]].concat(),
        // Cut and joined anywhere.
        8 => out = [&one[..at], &two[at.min(two.len())..]].concat(),
        9 => out = [one.as_slice(), two.as_slice()].concat(),
        10..=12 => out = [&one[..HEAD], &edit(&one[HEAD..], dice)].concat(),
        // The same JSON, written in another way.
        13 => {
            let v: Value = serde_json::from_slice(&one[HEAD..]).expect("json");
            out = [&one[..HEAD], serde_json::to_string_pretty(&v).expect("json").as_bytes()].concat();
        }
        // A key of the broker's own.
        14 => {
            let v: Value = serde_json::from_slice(&one[HEAD..]).expect("json");
            out = seal(&v, &KeyPair::new_user()).expect("seals");
        }
        // A signature of all kinds of nothing.
        _ => {
            let fill = [0, 0xff, 1][dice.below(3)];
            out[3..HEAD].fill(fill);
        }
    }
    out
}

#[test]
fn nothing_a_broker_makes_is_taken_by_either_side() {
    let n = std::env::var("WINDLASS_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(SHORT);
    let seed = std::env::var("WINDLASS_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(20_261_121);
    let (wire, mut dice) = (Wire::new(), Dice(seed));
    let all = wire.all();
    let known: HashSet<&[u8]> = all.iter().map(|f| f.as_slice()).collect();
    // Each true frame is taken by the one it is for, and by nobody else.
    for f in &all {
        assert_eq!(wire.takers(f), 1);
    }
    let (mut tried, mut by_kind) = (0, [0_u64; KINDS]);
    while tried < n {
        let kind = dice.below(KINDS);
        let frame = change(kind, &all, &mut dice);
        if known.contains(frame.as_slice()) {
            continue;
        }
        assert_eq!(wire.takers(&frame), 0, "seed {seed}, kind {kind}: {:?}", String::from_utf8_lossy(&frame));
        tried += 1;
        by_kind[kind] += 1;
    }
    assert!(by_kind.iter().all(|k| *k > n / 50), "every kind of change was made: {by_kind:?}");
}

/// The plant: a reader that forgets one check. The same frames must then find somebody who takes them, or they prove nothing.
#[test]
fn readers_that_forget_a_check_are_found_out() {
    let (wire, mut dice) = (Wire::new(), Dice(7));
    let all = wire.all();
    let known: HashSet<&[u8]> = all.iter().map(|f| f.as_slice()).collect();
    let body = |bytes: &[u8]| bytes.get(HEAD..).map(<[u8]>::to_vec).unwrap_or_default();
    let unsigned = |bytes: &[u8]| serde_json::from_slice::<Up>(&body(bytes)).is_ok_and(|u| u.agent == wire.a);
    let (mut taken, mut readdressed) = (0, 0);
    for n in 0..5000 {
        let frame = change(n % KINDS, &all, &mut dice);
        taken += usize::from(!known.contains(frame.as_slice()) && unsigned(&frame));
    }
    assert!(taken > 500, "without the signature {taken} would be taken");
    for frame in &wire.down_b {
        let anybodys = windlass_contracts::frames::open::<Down>(frame, &wire.executor).is_ok();
        readdressed += usize::from(anybodys && open_down(frame, &wire.executor, wire.a, INSTANCE).is_err());
    }
    assert_eq!(readdressed, wire.down_b.len(), "without the address every frame of another's would be taken");
}

#[test]
fn a_true_frame_is_taken_only_where_it_belongs() {
    let wire = Wire::new();
    for f in &wire.down_a {
        assert!(matches!(open_down(f, &wire.executor, wire.b, INSTANCE), Err(NotTaken::OtherAgent(a)) if a == wire.a));
        let frame = open_down(f, &wire.executor, wire.a, INSTANCE).expect("its own");
        let former = open_down(f, &wire.executor, wire.a, "a later journal");
        match frame.body {
            DownBody::HelloAck { .. } | DownBody::Fence { .. } | DownBody::WhoAreYou { .. } => assert!(former.is_ok()),
            _ => assert!(matches!(former, Err(NotTaken::OtherInstance(Some(_)))), "{former:?}"),
        }
    }
    for f in &wire.up_a {
        for (key, agent) in [(&wire.key_b, wire.a), (&wire.key_b, wire.b), (&wire.executor, wire.a)] {
            assert!(matches!(open_up(f, key, agent), Err(NotTaken::Frame(FrameError::Signature))));
        }
        assert!(matches!(open_up(f, &wire.key_a, wire.b), Err(NotTaken::OtherAgent(_))));
    }
    // A frame that starts something names the journal it is for, whatever its signature says.
    for body in downs(uuid::Uuid::from_u128(77).into()) {
        let free = matches!(body, DownBody::HelloAck { .. } | DownBody::Fence { .. } | DownBody::WhoAreYou { .. });
        let f = seal(&Down { aud: wire.a, instance: None, body }, &wire.executor).expect("seals");
        assert_eq!(open_down(&f, &wire.executor, wire.a, INSTANCE).is_ok(), free);
    }
}
