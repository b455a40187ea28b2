//! What the first version wrote still loads: its documents, messages, frames, and a whole database of it, taken from its demo
//! and a few deployments beside it, one of them in the middle of its run. See `tests/fixtures/first/README.md`.

use crate::{
    lab::host,
    world::{Form, PATIENCE, World},
};
use nkeys::KeyPair;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};
use windlass_contracts::{
    audit::{note::PublicKey, verify::verify_export},
    command::{CommandOutcome, Verb},
    envelope::CloudEvent,
    frames::{self, Down, DownBody, Up},
};
use windlass_domain::{
    approval::Approval,
    catalog::Item,
    deployment::{Deployment, Input, State},
    event::Aggregate,
    plan::{Plan, PlanTree, verify_spec},
    release::Release,
    task::Task,
    work::{WorkResult, WorkSpec},
};
use windlass_store::{Store, audit, deployments, events, sql, tasks, works};
use windlass_testkit::{Db, eventually, temp_dir, workspace};

fn folder() -> PathBuf {
    workspace().join("tests/fixtures/first")
}

/// The JSON lines of a fixture; never none.
fn lines(name: &str) -> Vec<Value> {
    let path = folder().join(format!("{name}.jsonl"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let all: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert!(!all.is_empty(), "{name} is empty");
    all
}

/// Everything that stood in `old` stands in `new` as well.
fn kept(old: &Value, new: &Value, at: &str) {
    match (old, new) {
        (Value::Object(o), Value::Object(n)) => {
            for (k, v) in o {
                // A field whose value says nothing may go.
                let empty = v.is_null()
                    || v.as_array().is_some_and(Vec::is_empty)
                    || v.as_object().is_some_and(|m| m.is_empty());
                match n.get(k) {
                    Some(new) => kept(v, new, &format!("{at}.{k}")),
                    None => assert!(empty, "{at}.{k} = {v} is lost"),
                }
            }
        }
        (Value::Array(o), Value::Array(n)) => {
            assert_eq!(o.len(), n.len(), "{at}");
            for (i, (o, n)) in o.iter().zip(n).enumerate() {
                kept(o, n, &format!("{at}[{i}]"));
            }
        }
        _ => assert_eq!(old, new, "{at}"),
    }
}

fn read<T: Serialize + DeserializeOwned>(name: &str, old: &Value) -> T {
    let new: T = serde_json::from_value(old.clone()).unwrap_or_else(|e| panic!("{name}: {e}: {old:#}"));
    kept(old, &serde_json::to_value(&new).expect("serializes"), name);
    new
}

fn all<T: Serialize + DeserializeOwned>(name: &str) -> Vec<T> {
    lines(name).iter().map(|l| read(name, l)).collect()
}

#[test]
fn documents_of_the_first_version_read_as_they_were_written() {
    all::<Release>("releases");
    all::<Approval>("approvals");
    all::<WorkSpec>("works");
    all::<WorkResult>("results");
    all::<Verb>("commands");
    all::<deployments::EnvironmentState>("environments");
    let states: BTreeSet<&str> = all::<Deployment>("deployments").iter().map(|d| d.state.as_str()).collect();
    let wanted = [
        "aborted",
        "awaiting_approval",
        "cancelled",
        "queued",
        "rejected",
        "rolled_back",
        "running",
        "scheduled",
        "succeeded",
    ];
    assert_eq!(states, BTreeSet::from(wanted));
    let states: BTreeSet<&str> = all::<Task>("tasks").iter().map(|t| t.state.as_str()).collect();
    assert_eq!(states, BTreeSet::from(["failed", "granted", "succeeded"]));
    for l in lines("catalog") {
        let item: Item = read("catalog", &l["doc"]);
        assert_eq!(item.kind().as_str(), l["kind"], "{l}");
    }
}

/// Approvals were given for a digest: it must come out the same for ever.
#[test]
fn plans_of_the_first_version_keep_their_digest() {
    for l in lines("plans") {
        let plan: Plan = read("plans", &l["doc"]);
        let tree = PlanTree::new(&plan).expect("a plan");
        assert_eq!(tree.digest().digest, l["digest"], "{:#}", l["doc"]);
    }
}

#[test]
fn messages_of_the_first_version_read() {
    for l in lines("messages") {
        let event: CloudEvent = read("messages", &l["body"]);
        assert!(l["subject"].as_str().is_some_and(|s| s.starts_with("windlass.evt.")), "{event:?}");
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex")).collect()
}

#[test]
fn frames_of_the_first_version_open_with_the_keys_of_their_senders() {
    let text = std::fs::read_to_string(folder().join("keys.json")).expect("keys");
    let keys: Value = serde_json::from_str(&text).expect("JSON");
    let key = |v: &Value| KeyPair::from_public_key(v.as_str().expect("key")).expect("a public key");
    let mut seen = BTreeMap::new();
    for l in lines("frames") {
        let bytes = unhex(l["frame"].as_str().expect("frame"));
        let old: Value = serde_json::from_slice(&bytes[67..]).expect("JSON");
        let body = if l["subject"].as_str().is_some_and(|s| s.starts_with("dn.")) {
            let down: Down = frames::open(&bytes, &key(&keys["executor"])).expect("the executor's");
            if let DownBody::Offer(o) = &down.body {
                assert!(verify_spec(&o.spec, &o.proof), "the proof of a first version's offer holds");
            }
            serde_json::to_value(&down)
        } else {
            let agent = old["agent"].as_str().expect("agent");
            serde_json::to_value(frames::open::<Up>(&bytes, &key(&keys["agents"][agent])).expect("the agent's"))
        };
        kept(&old, &body.expect("serializes"), "frame");
        *seen.entry(old["body"]["t"].as_str().expect("type").to_owned()).or_insert(0) += 1;
    }
    let wanted = ["accept", "grant", "heartbeat", "log", "log_ack", "offer", "result", "result_ack", "started", "step"];
    assert_eq!(seen.keys().map(String::as_str).collect::<Vec<_>>(), wanted);
}

/// The database of the first version, as the file that is named.
fn unpack(file: &Path) {
    let out = std::process::Command::new("gzip").args(["-dc"]).arg(folder().join("windlass.db.gz")).output();
    std::fs::write(file, out.expect("gzip runs").stdout).expect("written");
}

async fn old_store() -> (tempfile::TempDir, Store) {
    let dir = temp_dir();
    let file = dir.path().join("windlass.db");
    unpack(&file);
    let store = Store::open(&format!("sqlite://{}", file.display())).await.expect("migrates");
    (dir, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_the_first_version_opens_and_everything_in_it_loads() {
    let (_dir, store) = old_store().await;
    let mut c = store.read().await.expect("reads");
    let all = deployments::list(&mut c, &deployments::Filter::default(), 100).await.expect("lists");
    assert_eq!(all.len(), 12);
    let (mut of_works, mut of_tasks, mut of_events) = (0, 0, 0);
    for s in &all {
        let d = &s.deployment;
        let asks = !d.waiting_on().is_empty();
        assert!(asks || d.state.is_terminal() || d.state == State::Running, "{:?} waits for nothing", d.state);
        assert_eq!((d.run, &d.claim, &d.attention), (1, &None, &None), "what did not exist is not there");
        let works = works::of_deployment(&mut c, d.id).await.expect("works");
        of_works += works.len();
        of_tasks += tasks::of_deployment(&mut c, d.id).await.expect("tasks").len();
        of_events +=
            events::after(&mut c, Aggregate::Deployment, &d.id.to_string(), 0, 1000).await.expect("events").len();
        deployments::release(&mut c, d.release).await.expect("reads").expect("its release");
        let plan = deployments::plan(&mut c, d.id, &d.plan_digest).await.expect("reads").expect("its plan");
        assert_eq!(PlanTree::new(&plan).expect("a plan").digest().digest, d.plan_digest);
    }
    assert_eq!((of_works, of_tasks), (14, 14));
    assert!(of_events > 150, "{of_events}");
    let outcomes: Vec<(uuid::Uuid,)> =
        sql("SELECT command_id FROM command_outcomes").fetch_all(&mut c).await.expect("ids");
    for (id,) in outcomes {
        let _: CommandOutcome =
            windlass_store::commands::outcome(&mut c, id.into()).await.expect("reads").expect("an outcome");
        windlass_store::commands::get(&mut c, id.into()).await.expect("reads").expect("its command");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_trail_of_the_first_version_verifies() {
    let (_dir, store) = old_store().await;
    let keys: Value =
        serde_json::from_str(&std::fs::read_to_string(folder().join("keys.json")).expect("keys")).expect("JSON");
    let key: PublicKey = keys["audit"].as_str().expect("key").parse().expect("a public key");
    let mut export = audit::Export::begin(&store, 0).await.expect("begins").expect("checkpoints");
    let mut bytes = Vec::new();
    while let Some(page) = export.next_page().await.expect("a page") {
        bytes.extend(page);
    }
    let report = verify_export(bytes.as_slice(), &key, None).expect("reads");
    assert!(report.is_good(), "{:?}", report.findings);
    assert_eq!((report.leaves, report.signed_size), (260, 260));
}

/// What was in the middle of its run goes on under today's rules.
#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_the_first_version_left_running_takes_todays_verbs() {
    let (_dir, store) = old_store().await;
    let mut c = store.read().await.expect("reads");
    let filter = deployments::Filter { state: Some("running".into()), ..Default::default() };
    let d = deployments::list(&mut c, &filter, 1).await.expect("lists").remove(0).deployment;
    let at = d.started_at.expect("it runs") + chrono::TimeDelta::seconds(10);
    let to = |d: &Deployment, input| d.apply(input, at, &mut || uuid::Uuid::from_u128(7).into()).expect("moves").0;
    let paused = to(&d, Input::Pause { by: "ann".into(), reason: "look".into() });
    assert_eq!(paused.state, State::Paused);
    let resumed = to(&paused, Input::Resume { by: "ann".into() });
    assert_eq!(resumed.state, State::Running);
    let aborting = to(&resumed, Input::Abort { by: "ann".into(), reason: "enough".into() });
    assert_eq!(aborting.state, State::Aborting, "a host still runs");
}

/// The whole of this version on the database of the first one: the host that was running is unknown, a person answers for it,
/// and the next release goes out.
#[tokio::test(flavor = "multi_thread")]
async fn an_installation_of_the_first_version_goes_on_under_this_one() {
    let db = Db::sqlite();
    unpack(Path::new(db.url().trim_start_matches("sqlite://")));
    let store = Store::open(db.url()).await.expect("migrates");
    let mut tx = store.write().await.expect("writes");
    // Its tokens were left out of the fixture, so the first person is let in anew.
    for all in ["DELETE FROM people", "DELETE FROM grants"] {
        sql(all).execute(&mut tx).await.expect("deletes");
    }
    tx.commit().await.expect("commits");
    store.close().await;
    let mut w = World::start(db, Form::Embedded).await;

    let items = w.get("/deployments?project=shop&limit=50").await["items"].as_array().cloned().expect("items");
    assert_eq!(items.len(), 12);
    let of = |state: &str| {
        let found = items.iter().find(|d| d["state"] == state && d["environment"] == "lab");
        found.and_then(|d| d["id"].as_str()).unwrap_or_else(|| panic!("none {state}: {items:#?}")).to_owned()
    };
    w.post(&format!("/deployments/{}/cancel", of("queued")), json!({})).await;
    let running = items.iter().find(|d| ["running", "paused"].contains(&d["state"].as_str().unwrap_or_default()));
    let running = running.and_then(|d| d["id"].as_str()).expect("one runs").to_owned();
    eventually(PATIENCE, "the silent host is unknown", async || {
        let d = w.get(&format!("/deployments/{running}")).await;
        (host(&d, "rollout", "demo-1")["state"] == "unknown").then_some(())
    })
    .await;
    let answer = json!({ "hosts": ["demo-1"], "reason": "that machine is gone" });
    w.post(&format!("/deployments/{running}/override"), answer).await;
    w.post(&format!("/deployments/{running}/abort"), json!({ "reason": "with it" })).await;
    w.until(&running, &["aborted"]).await;

    let hosts = ["demo-1", "demo-2", "demo-3"];
    for h in w.get("/hosts").await["items"].as_array().expect("hosts") {
        let id = h["agent"]["id"].as_str().or(h["agent_id"].as_str()).unwrap_or_else(|| panic!("no agent: {h:#}"));
        w.post(&format!("/agents/{id}/revoke"), json!({})).await;
    }
    w.agents(&hosts).await;
    w.apply("kind: flow\nproject: shop\nflow: lab\nsteps:\n  - id: all\n    waves: \"1 *2\"\n    steps:\n      - { uses: script, with: { run: \"true\" } }\n").await;
    let versions = w.get("/projects/shop/artifacts").await;
    let version = versions["items"][0]["version"].as_str().unwrap_or_else(|| panic!("{versions:#}"));
    let id = w.deploy("shop", "lab", version).await;
    w.until(&id, &["succeeded"]).await;
}
