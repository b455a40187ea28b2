//! The executor's key in wrong hands, and nothing else: it signs whatever it likes, but has no approval for it. A host whose
//! policy protects the environment runs nothing but what people signed, to the letter.

use crate::control::{Control, proof, script, step};
use base64::{Engine, engine::general_purpose::STANDARD};
use nkeys::KeyPair;
use serde_json::{Value, json};
use windlass_contracts::frames::{DownBody, Offer, RefuseCode, UpBody};
use windlass_domain::{
    approval::{Approval, Decision},
    ids::TaskId,
    task::ReportedOutcome,
};

const POLICY: &str = "
allowed_projects: [shop]
allowed_actions: [script]
protected_environments: { beta: { approvals: 2 } }
";

fn signed(o: &Offer, person: &str, key: &KeyPair, change: impl FnOnce(&mut Approval)) -> Approval {
    let mut a = Approval {
        deployment: o.deployment,
        plan_digest: o.proof.digest.digest.clone(),
        person: person.into(),
        decision: Decision::Approve,
        comment: "looks right".into(),
        at: chrono::Utc::now(),
        signature: String::new(),
    };
    change(&mut a);
    a.signature = STANDARD.encode(key.sign(a.signed_text().as_bytes()).expect("signs"));
    a
}

/// Every leaf of a document, by pointer.
fn leaves(v: &Value, at: &str, out: &mut Vec<String>) {
    match v {
        Value::Object(m) if !m.is_empty() => m.iter().for_each(|(k, v)| leaves(v, &format!("{at}/{k}"), out)),
        Value::Array(l) if !l.is_empty() => {
            l.iter().enumerate().for_each(|(i, v)| leaves(v, &format!("{at}/{i}"), out))
        }
        _ => out.push(at.to_owned()),
    }
}

/// Other values of the same type, so that the frame is still one.
fn others(v: &Value) -> Vec<Value> {
    match v {
        Value::Bool(b) => vec![json!(!b)],
        Value::Number(n) => vec![json!(n.as_u64().unwrap_or(0) + 1)],
        Value::String(s) => {
            let id = s.parse::<uuid::Uuid>().is_ok();
            let time = s.parse::<windlass_domain::Timestamp>().is_ok();
            match s.as_str() {
                _ if id => vec![json!(uuid::Uuid::new_v4())],
                _ if time => vec![json!("2020-01-01T00:00:00Z")],
                "approve" => vec![json!("reject")],
                _ => vec![json!(format!("{s}x")), json!(""), json!(s.to_uppercase() + "\u{0}")],
            }
        }
        Value::Array(_) => vec![json!(["00"])],
        Value::Object(_) => vec![json!({ "added": "x" })],
        Value::Null => vec![],
    }
}

/// The offer as a document, changed, with a task id of its own.
fn changed(o: &Offer, change: impl FnOnce(&mut Value)) -> Option<Offer> {
    let mut v = serde_json::to_value(o).expect("json");
    change(&mut v);
    let mut made: Offer = serde_json::from_value(v).ok()?;
    made.task = uuid::Uuid::new_v4().into();
    Some(made)
}

/// Everything a holder of the executor's key alone can make of an approved offer.
fn forgeries(good: &Offer, approval: &KeyPair, executor: &KeyPair) -> Vec<(String, Offer)> {
    let stranger = KeyPair::new_user();
    let doc = serde_json::to_value(good).expect("json");
    let mut out = Vec::new();
    let mut add = |name: String, o: Option<Offer>| out.extend(o.map(|o| (name, o)));
    let mut all = Vec::new();
    for part in ["spec", "proof", "approvals", "deployment"] {
        leaves(&doc[part], &format!("/{part}"), &mut all);
    }
    // A comment is for people and is not signed.
    all.retain(|at| !at.ends_with("/comment"));
    for at in &all {
        for other in others(doc.pointer(at).expect("a leaf")) {
            add(format!("{at} = {other}"), changed(good, |v| *v.pointer_mut(at).expect("a leaf") = other.clone()));
            if !at.starts_with("/spec") {
                continue;
            }
            // The same, with a proof that fits: another plan, and the approvals of the approved one.
            let Some(mut o) = changed(good, |v| *v.pointer_mut(at).expect("a leaf") = other.clone()) else { continue };
            o.proof = proof(&o.spec);
            add(format!("{at} = {other}, proven anew"), Some(o.clone()));
            // And with approvals that name it, signed by every key at hand but the right one.
            for (who, key) in [("the executor", executor), ("a stranger", &stranger)] {
                let mut forged = o.clone();
                forged.task = uuid::Uuid::new_v4().into();
                forged.approvals = ["bob", "cat"].map(|p| signed(&o, p, key, |_| {})).to_vec();
                add(format!("{at} = {other}, approved by {who}"), Some(forged));
            }
            let mut renamed = o.clone();
            renamed.task = uuid::Uuid::new_v4().into();
            renamed.approvals.iter_mut().for_each(|a| a.plan_digest.clone_from(&o.proof.digest.digest));
            add(format!("{at} = {other}, digest rewritten in the approvals"), Some(renamed));
        }
    }
    let with = |name: &str, approvals: Vec<Approval>| {
        let mut o = good.clone();
        (o.task, o.approvals) = (uuid::Uuid::new_v4().into(), approvals);
        (name.to_owned(), o)
    };
    let bob = signed(good, "bob", approval, |_| {});
    let cat = signed(good, "cat", approval, |_| {});
    let elsewhere = |a: &mut Approval| a.deployment = uuid::Uuid::new_v4().into();
    let swapped = (
        Approval { signature: cat.signature.clone(), ..bob.clone() },
        Approval { signature: bob.signature.clone(), ..cat.clone() },
    );
    out.extend([
        with("no approvals", vec![]),
        with("one approval", vec![bob.clone()]),
        with("one approval twice", vec![bob.clone(), bob.clone()]),
        with(
            "one person at two times",
            vec![bob.clone(), signed(good, "bob", approval, |a| a.at += chrono::TimeDelta::seconds(1))],
        ),
        with("one approval a hundred times", vec![bob.clone(); 100]),
        with(
            "one of them rejects",
            vec![bob.clone(), signed(good, "cat", approval, |a| a.decision = Decision::Reject)],
        ),
        with(
            "both reject",
            ["bob", "cat"].map(|p| signed(good, p, approval, |a| a.decision = Decision::Reject)).to_vec(),
        ),
        with("of another deployment", ["bob", "cat"].map(|p| signed(good, p, approval, elsewhere)).to_vec()),
        with(
            "of another plan",
            ["bob", "cat"].map(|p| signed(good, p, approval, |a| a.plan_digest = "sha256:0".into())).to_vec(),
        ),
        with("signatures swapped", vec![swapped.0, swapped.1]),
        with(
            "no signatures",
            vec![Approval { signature: String::new(), ..bob.clone() }, Approval { signature: String::new(), ..cat }],
        ),
        with("a person renamed", vec![bob.clone(), Approval { person: "cat".into(), ..bob.clone() }]),
        with("signed by the executor", ["bob", "cat"].map(|p| signed(good, p, executor, |_| {})).to_vec()),
        with("signed by a stranger", ["bob", "cat"].map(|p| signed(good, p, &stranger, |_| {})).to_vec()),
        with("a line break in a name", vec![bob.clone(), Approval { person: "bob\n".into(), ..bob }]),
    ]);
    // What the host's policy forbids, however well it is approved.
    let approve = |mut o: Offer| {
        o.proof = proof(&o.spec);
        o.approvals = ["bob", "cat"].map(|p| signed(&o, p, approval, |_| {})).to_vec();
        o
    };
    for (name, change) in [
        ("another project", (|o| o.spec.project = "bank".into()) as fn(&mut Offer)),
        ("another host", |o| o.spec.host = "h2".into()),
        ("an action the policy leaves out", |o| o.spec.steps = vec![step("p", "file.put", json!({ "path": "/x" }))]),
        ("an action nobody knows", |o| o.spec.steps = vec![step("p", "shell", json!({}))]),
        ("no steps", |o| o.spec.steps.clear()),
    ] {
        let mut o = good.clone();
        o.task = uuid::Uuid::new_v4().into();
        change(&mut o);
        out.push((format!("{name}, approved"), approve(o)));
    }
    let mut beyond = good.clone();
    (beyond.task, beyond.start_at) = (uuid::Uuid::new_v4().into(), 99);
    out.push(("a start beyond the end".into(), beyond));
    let mut late = good.clone();
    (late.task, late.not_after) = (uuid::Uuid::new_v4().into(), chrono::Utc::now() - chrono::TimeDelta::seconds(5));
    out.push(("an offer that has run out".into(), late));
    out
}

impl Control {
    /// An agent with this policy that knows this approval key.
    async fn guarded(policy: &str, approval: &KeyPair) -> Control {
        let mut c = Control::new().await;
        let path = c.state().join("identity.json");
        let mut identity: Value = serde_json::from_slice(&std::fs::read(&path).expect("identity")).expect("json");
        identity["approval_key"] = approval.public_key().into();
        std::fs::write(&path, identity.to_string()).expect("writes");
        std::fs::write(c.state().join("policy.yaml"), policy).expect("writes");
        c.start_agent().await;
        c
    }

    /// The agent's answer to an offer: `None` is ACCEPT.
    async fn answer(&mut self, o: &Offer) -> Option<RefuseCode> {
        let task: TaskId = o.task;
        self.send(DownBody::Offer(Box::new(o.clone()))).await;
        self.next("an answer to the offer", |b| match b {
            UpBody::Accept { task: t, .. } if *t == task => Some(None),
            UpBody::Refuse { task: t, code, .. } if *t == task => Some(Some(*code)),
            _ => None,
        })
        .await
    }
}

#[tokio::test]
async fn the_executors_key_alone_starts_nothing_in_a_protected_environment() {
    let approval = KeyPair::new_user();
    let mut c = Control::guarded(POLICY, &approval).await;
    let marker = c.dir.path().join("ran");
    let mut good = c.offer_of(vec![script("one", &format!("echo x >> {}", marker.display())), script("two", "true")]);
    good.not_after = chrono::Utc::now() + chrono::TimeDelta::seconds(600);
    good.approvals = ["bob", "cat"].map(|p| signed(&good, p, &approval, |_| {})).to_vec();
    let executor = c.executor.clone();
    let all = forgeries(&good, &approval, &executor);
    assert!(all.len() >= 200, "only {} forgeries", all.len());
    let mut taken = Vec::new();
    for (name, offer) in &all {
        match c.answer(offer).await {
            Some(RefuseCode::Unproven | RefuseCode::Policy | RefuseCode::Invalid) => {}
            other => taken.push(format!("{name}: {other:?}")),
        }
    }
    assert!(taken.is_empty(), "{} of {} were not refused:\n{}", taken.len(), all.len(), taken.join("\n"));
    c.hello = None;
    c.send(DownBody::WhoAreYou { challenge: None }).await;
    let hello = c.until("HELLO", |c| c.hello.clone()).await;
    assert!(hello.open.is_empty() && hello.journal_seq == 1, "nothing was written down: {hello:?}");
    assert!(!marker.exists());
    // What was approved runs.
    let task = c.begin(&good).await;
    assert_eq!(c.result(task).await.outcome, ReportedOutcome::Succeeded);
    assert_eq!(std::fs::read_to_string(&marker).expect("ran"), "x\n");
    // And once: the same offer again, or the same plan as a lower attempt, starts nothing.
    assert!(c.answer_again(&good).await);
    let mut again = good.clone();
    again.task = uuid::Uuid::new_v4().into();
    assert!(c.answer(&again).await.is_some(), "the attempt is known");
    assert_eq!(std::fs::read_to_string(&marker).expect("ran"), "x\n");
}

impl Control {
    /// Whether a known task's offer is answered with its result, and nothing else.
    async fn answer_again(&mut self, o: &Offer) -> bool {
        let task = o.task;
        self.send(DownBody::Offer(Box::new(o.clone()))).await;
        let heard = |b: &UpBody| match b {
            UpBody::Result { task: t, .. } if *t == task => Some(true),
            UpBody::Accept { task: t, .. } | UpBody::Started { task: t } if *t == task => Some(false),
            _ => None,
        };
        self.next("an answer to the known offer", heard).await
    }
}

/// The plant: a host without the policy. The same forgeries must then be taken, or the test above proves nothing.
#[tokio::test]
async fn without_the_policy_the_same_forgeries_are_taken() {
    let approval = KeyPair::new_user();
    let mut c = Control::guarded("max_parallel: 1000\n", &approval).await;
    let mut good = c.offer_of(vec![script("one", "true"), script("two", "true")]);
    good.not_after = chrono::Utc::now() + chrono::TimeDelta::seconds(600);
    let executor = c.executor.clone();
    let all = forgeries(&good, &approval, &executor);
    let mut taken = 0;
    for (n, (_, offer)) in (1..).zip(all.iter().filter(|(n, _)| n.contains("approved by the executor")).take(20)) {
        let mut offer = offer.clone();
        // Each as an attempt of its own: the host takes one after the other.
        offer.attempt = n;
        taken += usize::from(c.answer(&offer).await.is_none());
    }
    assert!(taken >= 10, "only {taken} were taken");
}
