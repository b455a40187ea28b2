//! Each rule by itself, and all of them under loss, duplication, reordering and crashes.

use super::*;
use crate::journal::Entry;
use nkeys::KeyPair;
use proptest::prelude::*;
use windlass_domain::{
    approval::{Approval, Decision},
    plan::{PlanDigest, SpecProof},
    task::{TaskSpec, TaskStep},
};

fn id<T: From<uuid::Uuid>>(n: u128) -> T {
    uuid::Uuid::from_u128(n).into()
}
fn at(s: u64) -> Now {
    Now { mono: Duration::from_secs(s), wall: wall() }
}
fn wall() -> Timestamp {
    "2026-11-21T00:00:00Z".parse().expect("time")
}
fn spec() -> TaskSpec {
    let step = TaskStep {
        id: "s".into(),
        action: "script".into(),
        with: serde_json::Map::new(),
        always: false,
        timeout_s: 10,
    };
    TaskSpec {
        project: "shop".into(),
        environment: "beta".into(),
        version: "1".into(),
        host: "h".into(),
        step: "roll".into(),
        segment: 0,
        steps: vec![step],
    }
}

/// A plan of one spec: its Merkle root is the leaf.
pub(crate) fn proof(spec: &TaskSpec) -> SpecProof {
    use sha2::{Digest, Sha256};
    use windlass_domain::{
        merkle::{leaf_hash, root},
        plan::canonical_json,
    };
    let leaf = leaf_hash(canonical_json(spec).expect("json").as_bytes());
    let root = root(&[leaf]).to_string();
    let body = "0".repeat(64);
    let hex: String =
        Sha256::digest(format!("windlass-plan-v1\n{body}\n{root}\n1")).iter().map(|b| format!("{b:02x}")).collect();
    let digest = PlanDigest { digest: format!("sha256:{hex}"), body, root, leaves: 1 };
    SpecProof { digest, index: 0, path: vec![] }
}

fn offer(task: u128, attempt: u32) -> Offer {
    let spec = spec();
    Offer {
        outputs: Default::default(),
        task: id(task),
        work: id(7),
        deployment: id(8),
        attempt,
        epoch: 1,
        fence: 1,
        start_at: 0,
        proof: proof(&spec),
        spec,
        approvals: vec![],
        not_after: wall() + chrono::TimeDelta::seconds(60),
        trace: None,
    }
}

fn verifier(policy: Policy, key: &KeyPair) -> Verifier {
    Verifier { policy, host: "h".into(), approval_key: KeyPair::from_public_key(&key.public_key()).expect("key") }
}

/// A host: the state machine and what it would leave on disk.
struct Host {
    d: Dispatch,
    journal: Vec<Entry>,
}

impl Host {
    fn new() -> Host {
        Host::with(Policy::default(), &KeyPair::new_user())
    }
    fn with(policy: Policy, key: &KeyPair) -> Host {
        Host { d: Dispatch::new(verifier(policy, key), "boot", &[]), journal: vec![] }
    }
    fn step(&mut self, i: Input, now: Now) -> Vec<Output> {
        let out = self.d.step(i, now);
        for o in &out {
            if let Output::Journal(r) = o {
                let seq = self.journal.len() as u64 + 1;
                self.journal.push(Entry { seq, at: now.wall, r: r.clone() });
            }
        }
        out
    }
    fn offer(&mut self, o: &Offer, nonce: &str) -> Vec<Output> {
        self.step(Input::Offer { offer: Box::new(o.clone()), nonce: nonce.into() }, at(0))
    }
    fn grant(&mut self, task: u128, nonce: &str, s: u64) -> Vec<Output> {
        let i = Input::Grant {
            task: id(task),
            nonce: nonce.into(),
            epoch: 1,
            lease_s: 10,
            fresh_nonce: format!("fresh-{nonce}"),
        };
        self.step(i, at(s))
    }
    fn fence(&mut self, task: u128) -> Vec<Output> {
        self.step(Input::Fence { task: id(task), work: id(7), epoch: 1 }, at(0))
    }
    fn restart(&mut self) {
        let key = KeyPair::new_user();
        self.d = Dispatch::new(verifier(Policy::default(), &key), "boot", &self.journal);
    }
}

fn starts(out: &[Output]) -> usize {
    out.iter().filter(|o| matches!(o, Output::Start(_))).count()
}
fn nonce_of(out: &[Output]) -> Option<String> {
    out.iter().find_map(|o| match o {
        Output::Send(UpBody::Accept { nonce, .. }) => Some(nonce.clone()),
        _ => None,
    })
}
fn refusal(out: &[Output]) -> Option<RefuseCode> {
    out.iter().find_map(|o| match o {
        Output::Send(UpBody::Refuse { code, .. }) => Some(*code),
        _ => None,
    })
}
fn outcome(out: &[Output]) -> Option<ReportedOutcome> {
    out.iter().find_map(|o| match o {
        Output::Send(UpBody::Result { report, .. }) => Some(report.outcome),
        _ => None,
    })
}

#[test]
fn offer_then_grant_starts_once_and_journals_first() {
    let mut h = Host::new();
    let out = h.offer(&offer(1, 1), "n1");
    assert!(matches!(out[0], Output::Journal(Record::Accepted(_))), "{out:?}");
    assert_eq!(nonce_of(&out), Some("n1".into()));
    assert_eq!(nonce_of(&h.offer(&offer(1, 1), "n2")), Some("n1".into()), "the same attempt keeps its nonce");
    let out = h.grant(1, "n1", 9);
    assert!(matches!(out[0], Output::Journal(Record::Intent { .. })));
    assert_eq!(starts(&out), 1);
    assert_eq!(starts(&h.grant(1, "n1", 9)), 0);
    assert!(matches!(h.offer(&offer(1, 1), "n3")[..], [Output::Send(UpBody::Started { .. })]));
}

#[test]
fn wrong_late_and_old_grants_start_nothing() {
    let mut h = Host::new();
    h.offer(&offer(1, 1), "n1");
    let out = h.grant(1, "other", 1);
    assert_eq!((starts(&out), nonce_of(&out)), (0, Some("n1".into())));
    let out = h.grant(1, "n1", 20);
    assert_eq!((starts(&out), nonce_of(&out)), (0, Some("fresh-n1".into())), "late: accepted anew");
    assert_eq!(starts(&h.grant(1, "n1", 21)), 0, "the late nonce is dead");
    assert_eq!(starts(&h.grant(1, "fresh-n1", 22)), 1);
    assert_eq!(starts(&h.grant(99, "n", 0)), 0, "never offered");
}

#[test]
fn a_restart_asks_for_a_new_grant() {
    let mut h = Host::new();
    h.offer(&offer(1, 1), "n1");
    h.restart();
    let out = h.grant(1, "n1", 1);
    assert_eq!((starts(&out), nonce_of(&out)), (0, Some("fresh-n1".into())));
    h.restart();
    assert_eq!(nonce_of(&h.offer(&offer(1, 1), "n2")), Some("n2".into()));
    assert_eq!(starts(&h.grant(1, "n2", 1)), 1);
}

#[test]
fn attempts_epochs_and_fences_only_grow() {
    let mut h = Host::new();
    h.offer(&Offer { epoch: 5, fence: 5, ..offer(1, 2) }, "n1");
    assert_eq!(refusal(&h.offer(&Offer { epoch: 5, fence: 5, ..offer(2, 1) }, "n")), Some(RefuseCode::Known));
    // Of a database that was restored: what is known here comes before what is old.
    assert_eq!(refusal(&h.offer(&Offer { epoch: 0, fence: 1, ..offer(2, 2) }, "n")), Some(RefuseCode::Known));
    assert_eq!(refusal(&h.offer(&Offer { epoch: 4, fence: 5, ..offer(3, 3) }, "n")), Some(RefuseCode::Stale));
    assert_eq!(refusal(&h.offer(&Offer { epoch: 5, fence: 4, ..offer(3, 3) }, "n")), Some(RefuseCode::Stale));
    assert_eq!(starts(&h.grant(1, "n1", 1)), 0, "a grant of an older epoch");
    h.restart();
    assert_eq!(refusal(&h.offer(&Offer { epoch: 4, fence: 9, ..offer(3, 3) }, "n")), Some(RefuseCode::Stale));
    let out = h.offer(&Offer { epoch: 5, fence: 5, ..offer(3, 3) }, "n3");
    assert!(out.iter().any(|o| matches!(o, Output::Journal(Record::Fenced { task, .. }) if *task == id(1))));
    assert_eq!(outcome(&out), Some(ReportedOutcome::Fenced), "the overtaken attempt is reported");
}

#[test]
fn an_older_attempt_that_runs_makes_the_host_busy() {
    let mut h = Host::new();
    h.offer(&offer(1, 1), "n1");
    h.grant(1, "n1", 1);
    assert_eq!(refusal(&h.offer(&offer(2, 2), "n2")), Some(RefuseCode::Busy));
    let other = Offer { deployment: id(80), work: id(70), fence: 2, ..offer(3, 1) };
    assert_eq!(refusal(&h.offer(&other, "n")), Some(RefuseCode::Busy), "an older deployment of the environment runs");
    let report = Box::new(empty_report(ReportedOutcome::Failed));
    let out = h.step(Input::Looked { task: id(1), found: Found::Exit(report) }, at(2));
    assert_eq!(outcome(&out), Some(ReportedOutcome::Failed));
    assert_eq!(nonce_of(&h.offer(&offer(2, 2), "n2")), Some("n2".into()));
}

#[test]
fn a_fence_before_during_and_after() {
    let mut h = Host::new();
    assert_eq!(outcome(&h.fence(1)), Some(ReportedOutcome::Fenced), "never heard of: it can never run now");
    assert_eq!(outcome(&h.offer(&offer(1, 1), "n")), Some(ReportedOutcome::Fenced));
    h.offer(&offer(2, 2), "n2");
    assert_eq!(outcome(&h.fence(2)), Some(ReportedOutcome::Fenced));
    assert_eq!(starts(&h.grant(2, "n2", 1)), 0);
    h.offer(&offer(3, 3), "n3");
    h.grant(3, "n3", 1);
    let out = h.fence(3);
    assert!(out.contains(&Output::Stop(id(3))) && outcome(&out).is_none(), "no report before the processes are gone");
    h.restart();
    let out = h.step(Input::Looked { task: id(3), found: Found::Alive }, at(0));
    assert!(out.contains(&Output::Stop(id(3))) && out.contains(&Output::Adopt(id(3))));
    let report = Box::new(empty_report(ReportedOutcome::Cancelled));
    h.step(Input::Looked { task: id(3), found: Found::Exit(report) }, at(0));
    assert_eq!(outcome(&h.fence(3)), Some(ReportedOutcome::Cancelled));
    assert_eq!(h.d.unacked().len(), 3);
    h.step(Input::ResultAck { task: id(3) }, at(0));
    assert_eq!((h.d.unacked().len(), h.d.open().len()), (2, 2));
}

#[test]
fn what_a_restart_finds_decides() {
    let run = |found| {
        let mut h = Host::new();
        h.offer(&offer(1, 1), "n1");
        h.grant(1, "n1", 1);
        h.restart();
        assert_eq!(h.d.running(), vec![(id(1), "boot".to_owned())]);
        outcome(&h.step(Input::Looked { task: id(1), found }, at(0)))
    };
    assert_eq!(run(Found::NotBegun), Some(ReportedOutcome::Fenced));
    let gone = Box::new(empty_report(ReportedOutcome::Interrupted));
    assert_eq!(run(Found::Gone(gone)), Some(ReportedOutcome::Interrupted));
    assert_eq!(run(Found::Alive), None);
}

#[test]
fn an_accepted_task_that_is_never_granted_frees_its_place_and_is_fenced_at_last() {
    let mut h = Host::with(Policy { max_parallel: 1, ..Policy::default() }, &KeyPair::new_user());
    h.offer(&offer(1, 1), "n1");
    let other = |d| Box::new(Offer { deployment: id(d), ..offer(d, 1) });
    let at_s = |h: &mut Host, d, s| h.step(Input::Offer { offer: other(d), nonce: "n".into() }, at(s));
    assert_eq!(refusal(&at_s(&mut h, 2, 59)), Some(RefuseCode::Busy));
    assert_eq!(refusal(&at_s(&mut h, 2, 60)), None);
    assert!(h.step(Input::Expire, at(899)).is_empty());
    assert_eq!(outcome(&h.step(Input::Expire, at(900))), Some(ReportedOutcome::Fenced));
    assert_eq!(starts(&h.grant(1, "n1", 5)), 0);
}

fn approval(o: &Offer, person: &str, key: &KeyPair) -> Approval {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let mut a = Approval {
        deployment: o.deployment,
        plan_digest: o.proof.digest.digest.clone(),
        person: person.into(),
        decision: Decision::Approve,
        comment: String::new(),
        at: wall(),
        signature: String::new(),
    };
    a.signature = STANDARD.encode(key.sign(a.signed_text().as_bytes()).expect("signs"));
    a
}

#[test]
fn a_protected_environment_needs_distinct_signed_approvals_of_this_plan() {
    let (key, forger) = (KeyPair::new_user(), KeyPair::new_user());
    let mut policy = Policy::default();
    policy.protected_environments.insert("beta".into(), ProtectedEnvironment { approvals: 2 });
    let refused = |approvals: Vec<Approval>| {
        let mut h = Host::with(policy.clone(), &key);
        refusal(&h.offer(&Offer { approvals, ..offer(1, 1) }, "n"))
    };
    let o = offer(1, 1);
    let (ann, bob) = (approval(&o, "ann", &key), approval(&o, "bob", &key));
    assert_eq!(refused(vec![ann.clone(), bob.clone()]), None);
    let bad = Some(RefuseCode::Unproven);
    assert_eq!(refused(vec![]), bad);
    assert_eq!(refused(vec![ann.clone(), ann.clone()]), bad, "one person twice");
    assert_eq!(refused(vec![ann.clone(), approval(&o, "bob", &forger)]), bad, "forged");
    assert_eq!(refused(vec![ann.clone(), Approval { person: "cat".into(), ..bob.clone() }]), bad, "renamed");
    assert_eq!(refused(vec![ann.clone(), Approval { decision: Decision::Reject, ..bob.clone() }]), bad);
    let mut other = bob;
    other.plan_digest = format!("sha256:{}", "1".repeat(64));
    other.signature = approval(
        &Offer {
            proof: SpecProof {
                digest: PlanDigest { digest: other.plan_digest.clone(), ..o.proof.digest.clone() },
                ..o.proof.clone()
            },
            ..o
        },
        "bob",
        &key,
    )
    .signature;
    assert_eq!(refused(vec![ann, other]), bad, "for another plan");
}

#[test]
fn unproven_forbidden_and_strange_offers_are_refused() {
    let refused = |policy: Policy, o: Offer| refusal(&Host::with(policy, &KeyPair::new_user()).offer(&o, "n"));
    let plain = Policy::default;
    let mut o = offer(1, 1);
    o.spec.steps[0].timeout_s = 11;
    assert_eq!(refused(plain(), o), Some(RefuseCode::Unproven), "not the approved spec");
    let late = wall() - chrono::TimeDelta::seconds(1);
    assert_eq!(refused(plain(), Offer { not_after: late, ..offer(1, 1) }), Some(RefuseCode::Unproven));
    let with = |change: fn(&mut TaskSpec)| {
        let mut o = offer(1, 1);
        change(&mut o.spec);
        o.proof = proof(&o.spec);
        o
    };
    assert_eq!(refused(plain(), with(|s| s.host = "other".into())), Some(RefuseCode::Unproven));
    assert_eq!(refused(plain(), with(|s| s.steps[0].action = "rm".into())), Some(RefuseCode::Invalid));
    assert_eq!(refused(plain(), with(|s| s.steps.clear())), Some(RefuseCode::Invalid));
    assert_eq!(refused(plain(), Offer { start_at: 2, ..offer(1, 1) }), Some(RefuseCode::Invalid));
    assert_eq!(refused(plain(), Offer { start_at: 1, ..offer(1, 1) }), None, "nothing left to run");
    let only = Policy { allowed_projects: vec!["web".into()], ..plain() };
    assert_eq!(refused(only, offer(1, 1)), Some(RefuseCode::Policy));
    let only = Policy { allowed_actions: vec!["http.check".into()], ..plain() };
    assert_eq!(refused(only, offer(1, 1)), Some(RefuseCode::Policy));
    let none = Policy { max_parallel: 0, ..plain() };
    assert_eq!(refused(none, offer(1, 1)), Some(RefuseCode::Busy));
}

/// What the world can do to one host: deliver any message it ever saw in any order and number, crash the agent anywhere,
/// also between a fact on disk and the act that follows it, let runners end or die, and reboot.
#[derive(Debug, Clone)]
enum Move {
    Offer(u8),
    Grant(u8, u8),
    Fence(u8),
    Ack(u8),
    Ends(u8),
    /// Crash after that many outputs of the next step.
    CrashIn(u8),
    Reboot,
    Expire,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let m = prop_oneof![
        4 => (0u8..4).prop_map(Move::Offer),
        6 => (0u8..4, 0u8..8).prop_map(|(t, n)| Move::Grant(t, n)),
        1 => (0u8..4).prop_map(Move::Fence),
        1 => (0u8..4).prop_map(Move::Ack),
        2 => (0u8..4).prop_map(Move::Ends),
        3 => (0u8..5).prop_map(Move::CrashIn),
        1 => Just(Move::Reboot),
        1 => Just(Move::Expire),
    ];
    prop::collection::vec(m, 1..80)
}

/// Ground truth.
#[derive(Default)]
struct World {
    started: BTreeMap<TaskId, usize>,
    alive: BTreeSet<TaskId>,
    exits: BTreeSet<TaskId>,
    reported: BTreeMap<TaskId, ReportedOutcome>,
    nonces: Vec<String>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn an_attempt_starts_at_most_once(moves in moves()) {
        // Without this a verifier that refuses everything would make all below true.
        prop_assert!(nonce_of(&Host::new().offer(&offer(1, 1), "n")).is_some());
        let (mut h, mut w) = (Host::new(), World::default());
        let mut boot = 0;
        let mut crash_in = None;
        let mut fresh = 0;
        let mut name = || { fresh += 1; format!("n{fresh}") };
        let mut clock = 0;
        for m in moves {
            clock += 1;
            let task = |n: u8| id::<TaskId>(1 + u128::from(n));
            let input = match m {
                // Tasks 0 and 1 are attempts of one thing, 2 and 3 of another.
                Move::Offer(n) => {
                    let o = Offer { deployment: id(u128::from(n / 2)), ..offer(1 + u128::from(n), 1 + u32::from(n % 2)) };
                    Input::Offer { offer: Box::new(o), nonce: name() }
                }
                Move::Grant(n, k) => {
                    let nonce = w.nonces.iter().rev().nth(k as usize).cloned().unwrap_or_default();
                    Input::Grant { task: task(n), nonce, epoch: 1, lease_s: 10, fresh_nonce: name() }
                }
                Move::Fence(n) => Input::Fence { task: task(n), work: id(7), epoch: 1 },
                Move::Expire => {
                    clock += 900;
                    Input::Expire
                }
                Move::Ack(n) => Input::ResultAck { task: task(n) },
                Move::Ends(n) => {
                    if !w.alive.remove(&task(n)) { continue }
                    w.exits.insert(task(n));
                    let report = Box::new(empty_report(ReportedOutcome::Succeeded));
                    Input::Looked { task: task(n), found: Found::Exit(report) }
                }
                Move::CrashIn(n) => { crash_in = Some(n); continue }
                Move::Reboot => {
                    w.alive.clear();
                    boot += 1;
                    recover(&mut h, &mut w, boot);
                    continue;
                }
            };
            let out = h.d.step(input, at(clock));
            let cut = crash_in.take().map(usize::from);
            apply(&mut h, &mut w, &out[..cut.unwrap_or(out.len()).min(out.len())]);
            if cut.is_some() {
                recover(&mut h, &mut w, boot);
            }
            prop_assert!(w.started.values().all(|n| *n <= 1), "started twice: {:?}", w.started);
            for pair in [(1, 2), (3, 4)] {
                let both = w.alive.contains(&id(pair.0)) && w.alive.contains(&id(pair.1));
                prop_assert!(!both, "two attempts at once");
            }
            for (t, r) in &w.reported {
                let ran = w.started.contains_key(t);
                prop_assert!(!(ran && *r == ReportedOutcome::Fenced), "{t} ran and was reported as never started");
                prop_assert!(ran || *r == ReportedOutcome::Fenced || *r == ReportedOutcome::Interrupted);
                prop_assert!(!w.alive.contains(t), "{t} is reported as ended and runs");
            }
        }
    }
}

fn apply(h: &mut Host, w: &mut World, out: &[Output]) {
    for o in out {
        match o {
            Output::Journal(r) => {
                let seq = h.journal.len() as u64 + 1;
                h.journal.push(Entry { seq, at: wall(), r: r.clone() });
            }
            Output::Start(a) => {
                *w.started.entry(a.task).or_default() += 1;
                w.alive.insert(a.task);
            }
            Output::Send(UpBody::Accept { nonce, .. }) => w.nonces.push(nonce.clone()),
            Output::Send(UpBody::Result { task, report }) => {
                w.reported.insert(*task, report.outcome);
            }
            _ => {}
        }
    }
}

fn recover(h: &mut Host, w: &mut World, boot: u32) {
    let key = KeyPair::new_user();
    h.d = Dispatch::new(verifier(Policy::default(), &key), &boot.to_string(), &h.journal);
    for (task, _) in h.d.running() {
        let found = if w.alive.contains(&task) {
            Found::Alive
        } else if w.exits.contains(&task) {
            Found::Exit(Box::new(empty_report(ReportedOutcome::Succeeded)))
        } else if !w.started.contains_key(&task) {
            Found::NotBegun
        } else {
            Found::Gone(Box::new(empty_report(ReportedOutcome::Interrupted)))
        };
        let out = h.d.step(Input::Looked { task, found }, at(0));
        apply(h, w, &out);
    }
}
