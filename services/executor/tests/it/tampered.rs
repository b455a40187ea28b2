//! A plan that was changed after people approved it: whoever wrote into the database, nothing of it is offered to anybody.

use crate::world::{SOON, World};
use serde_json::{Value, json};
use windlass_domain::{
    ids::{DeploymentId, WorkId},
    plan::Plan,
    work::Outcome::*,
};
use windlass_store::deployments;
use windlass_testkit::{databases, eventually};

fn leaves(v: &Value, at: &str, out: &mut Vec<String>) {
    match v {
        Value::Object(m) if !m.is_empty() => m.iter().for_each(|(k, v)| leaves(v, &format!("{at}/{k}"), out)),
        Value::Array(l) if !l.is_empty() => {
            l.iter().enumerate().for_each(|(i, v)| leaves(v, &format!("{at}/{i}"), out))
        }
        _ => out.push(at.to_owned()),
    }
}

/// Another value of the same kind, where there is one that a plan can hold.
fn other(v: &Value) -> Vec<Value> {
    match v {
        Value::Bool(b) => vec![json!(!b)],
        Value::Number(n) => vec![json!(n.as_u64().unwrap_or(0) + 1)],
        Value::String(s) if s.parse::<windlass_domain::Timestamp>().is_ok() => vec![json!("2020-01-01T00:00:00Z")],
        Value::String(s) if s.parse::<uuid::Uuid>().is_ok() => vec![json!(uuid::Uuid::now_v7())],
        Value::String(s) => vec![json!(format!("{s}x"))],
        Value::Array(_) => vec![json!(["x"]), json!([1]), json!([{ "name": "ops", "quorum": 1, "people": [] }])],
        Value::Object(_) => vec![json!({ "x": "y" })],
        Value::Null => vec![json!(1), json!("x"), json!("2020-01-01T00:00:00Z")],
    }
}

/// Every plan that differs from `plan` in one leaf, or in a host or step more or less.
fn changed(plan: &Plan) -> Vec<(String, Plan)> {
    let doc = serde_json::to_value(plan).expect("json");
    let mut all = Vec::new();
    leaves(&doc, "", &mut all);
    let mut out = Vec::new();
    let mut add = |name: String, doc: Value| {
        // What is no plan at all cannot be read, and runs nowhere.
        out.extend(serde_json::from_value::<Plan>(doc).ok().filter(|p| p != plan).map(|p| (name, p)));
    };
    for at in &all {
        for value in other(doc.pointer(at).expect("a leaf")) {
            let mut made = doc.clone();
            *made.pointer_mut(at).expect("a leaf") = value.clone();
            add(format!("{at} = {value}"), made);
        }
    }
    for list in ["/hosts", "/steps", "/steps/0/kind/steps", "/steps/0/kind/waves", "/steps/0/kind/waves/0"] {
        let Some(n) = doc.pointer(list).and_then(Value::as_array).map(Vec::len) else { continue };
        for i in 0..n {
            let mut less = doc.clone();
            less.pointer_mut(list).and_then(Value::as_array_mut).expect("a list").remove(i);
            add(format!("{list} without {i}"), less);
            let mut more = doc.clone();
            let l = more.pointer_mut(list).and_then(Value::as_array_mut).expect("a list");
            l.push(l[i].clone());
            add(format!("{list} with {i} again"), more);
        }
        let mut turned = doc.clone();
        turned.pointer_mut(list).and_then(Value::as_array_mut).expect("a list").reverse();
        add(format!("{list} reversed"), turned);
    }
    out
}

#[tokio::test]
async fn no_plan_that_was_changed_after_its_approval_reaches_a_host() {
    for db in databases().await {
        let mut w = World::new(db, 2, 2).await;
        w.start_agents();
        let mut tx = w.store.read().await.expect("reads");
        let plan = deployments::plan(&mut tx, w.deployment, &w.digest).await.expect("reads").expect("a plan");
        drop(tx);
        let (approved, mut same, mut works) = (w.deployment, Vec::new(), Vec::<(String, WorkId)>::new());
        let digest = w.digest.clone();
        for (name, changed) in changed(&plan) {
            if changed.digest().is_ok_and(|d| d.digest == digest) {
                same.push(name);
                continue;
            }
            let id: DeploymentId = uuid::Uuid::now_v7().into();
            let mut tx = w.store.write().await.expect("tx");
            deployments::insert_plan(&mut tx, id, &digest, &changed, chrono::Utc::now()).await.expect("plan");
            tx.commit().await.expect("commits");
            w.deployment = id;
            works.push((name, w.wave(2, 0, 1).await));
        }
        // A plan has the digest of every release that would run the same, and says the rest to people only.
        assert!(same.iter().all(|n| n.starts_with("/release ")), "not part of the digest: {same:?}");
        assert!(works.len() >= 60, "only {} changes", works.len());
        let e = w.executor().await;
        for (name, work) in &works {
            let hosts = w.hosts(*work, 1).await;
            let refused = hosts.iter().all(|h| h.outcome == NotStarted);
            assert!(refused, "{name}: {hosts:?}");
        }
        assert_eq!(w.starts(), 0, "no host began anything");
        let reason = w.hosts(works[0].1, 1).await[0].reason.clone().expect("a reason");
        assert!(reason.contains("changed after it was stored"), "{reason}");
        // What was approved runs.
        w.deployment = approved;
        let good = w.wave(2, 0, 0).await;
        assert_eq!(w.outcomes(good, 1).await, [Succeeded, Succeeded]);
        eventually(SOON, "both began", async || (w.starts() == 2).then_some(())).await;
        e.shut_down().await;
    }
}
