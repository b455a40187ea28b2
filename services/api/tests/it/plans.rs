//! Looking ahead: forms, previews, values with their scopes, drift and locks of hosts.

use crate::world::{World, digest};
use serde_json::{Value, json};
use windlass_contracts::command::Verb;
use windlass_domain::{artifact::Artifact, ids::AgentId};
use windlass_store::{agents, artifacts, commands, deployments, sessions, sql};
use windlass_testkit::databases;

const MORE: &str = r#"
kind: group
name: retail
values: { region: north, port: 80 }
---
kind: project
name: shop
group: retail
values: { port: 8080 }
accounts: { deploy: { user: web } }
---
kind: host
name: h1
address: 127.0.0.1
labels: { role: web }
values: { rack: r1 }
---
kind: host
name: h2
address: 127.0.0.2
labels: { role: db }
---
kind: host
name: spare
address: 127.0.0.3
---
kind: host_group
name: all
hosts: [h2, h1]
---
kind: flow
project: shop
flow: asking
inputs:
  batch: { type: number, min: 1, max: 5 }
  mode: { type: choice, options: [fast, slow], default: fast, description: How it goes. }
  token: { type: secret, optional: true }
steps:
  - id: rollout
    waves: "1 *2"
    confirm: first
    steps:
      - { id: say, uses: script, with: { run: "true", account: deploy, env: { PORT: "${{ values.port }}" } } }
---
kind: environment
project: shop
name: sdk_beta
groups: [all]
flow: asking
values: { port: 9090 }
"#;

async fn world(db: windlass_testkit::Db) -> World {
    let w = World::start(db).await;
    w.fill().await;
    let (status, body) = w.apply(&w.admin, MORE).await;
    assert_eq!(status, 200, "{body}");
    let a = json!({ "version": "1.0.0", "digest": digest('a'), "url": "https://ci/x.tar.gz" });
    let (status, body) = w.post("/projects/shop/artifacts", a).await;
    assert_eq!(status, 201, "{body}");
    w
}

/// An agent of the host that was heard now and reports this release.
async fn agent(w: &World, host: &str, current: Option<&str>) {
    let now = chrono::Utc::now();
    let id = AgentId(uuid::Uuid::now_v7());
    let mut tx = w.ctx.store.write().await.expect("begins");
    let a =
        agents::Agent { id: id.0, host: host.into(), public_key: format!("U{id}"), enrolled_at: now, revoked_at: None };
    agents::insert(&mut tx, &a).await.expect("stores");
    let s = sessions::Session {
        agent: id,
        host: host.into(),
        instance: "i".into(),
        boot_id: "b".into(),
        journal_seq: 1,
        agent_version: "0.1.0".into(),
        last_seen_at: now,
        facts: json!({ "current_release": current }),
    };
    sessions::upsert(&mut tx, &s).await.expect("stores");
    tx.commit().await.expect("commits");
}

fn ask(inputs: Value) -> Value {
    json!({ "environment": "sdk_beta", "version": "1.0.0", "inputs": inputs })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_asks_and_the_request_is_held_against_it() {
    for db in databases().await {
        let w = world(db).await;
        let (status, form) = w.get("/projects/shop/environments/sdk_beta/form").await;
        assert_eq!(status, 200, "{form}");
        assert_eq!(form["fields"][0]["name"], "batch", "what must be given comes first: {form}");
        assert_eq!(
            (&form["fields"][0]["hint"], &form["fields"][1]["options"]),
            (&json!("1 to 5"), &json!(["fast", "slow"]))
        );
        assert_eq!(form["schema"]["required"], json!(["batch"]));
        assert_eq!((&form["hosts"], &form["versions"]), (&json!(["h2", "h1"]), &json!(["1.0.0"])));

        let before = w.count("commands").await;
        for path in ["/projects/shop/deployments", "/projects/shop/plan"] {
            let (status, p) = w.post(path, ask(json!({ "batch": 9, "mode": "medium", "more": 1 }))).await;
            assert_eq!(status, 422, "{p}");
            let at: Vec<&str> =
                p["errors"].as_array().expect("faults").iter().filter_map(|f| f["at"].as_str()).collect();
            assert_eq!(at, ["inputs.more", "inputs.batch", "inputs.mode"], "{path} tells all at once");
            let (status, p) = w.post(path, ask(json!({}))).await;
            assert_eq!(status, 422, "{p}");
        }
        assert_eq!(w.count("commands").await, before, "nothing came of it");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_value_of_a_secret_input_is_sealed_with_the_command() {
    for db in databases().await {
        let w = world(db).await;
        let plain = "the-plain-value-of-it";
        let (status, c) = w.post("/projects/shop/deployments", ask(json!({ "batch": 1, "token": plain }))).await;
        assert_eq!(status, 202, "{c}");
        let mut tx = w.ctx.store.read().await.expect("reads");
        let id = c["id"].as_str().expect("id").parse().expect("id");
        let stored = commands::get(&mut tx, id).await.expect("reads").expect("there");
        let Verb::Request(r) = &stored.verb else { panic!("{stored:?}") };
        assert_eq!(r.inputs["token"], json!({ "secret": "input.token" }));
        let text: Vec<(String,)> =
            sql("SELECT CAST(payload AS TEXT) FROM events").fetch_all(&mut tx).await.expect("reads");
        assert!(!text.iter().any(|(t,)| t.contains(plain)), "no event holds it");
        let scope = windlass_store::secrets::deployment_scope(r.deployment);
        let sealed =
            windlass_store::secrets::sealed(&mut tx, &scope, "input.token").await.expect("reads").expect("kept");
        let open = w.ctx.sealer.open(&scope, "input.token", &sealed).expect("opens");
        assert_eq!(AsRef::<[u8]>::as_ref(&open), plain.as_bytes());
        drop(tx);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preview_says_what_would_change_and_creates_nothing() {
    for db in databases().await {
        let w = world(db).await;
        agent(&w, "h1", Some("shop_sdk-beta_0.9.0_main_20261120T000000Z_ann")).await;
        let (status, _) = w.post("/hosts/h2/lock", json!({ "reason": "disk swap" })).await;
        assert_eq!(status, 200);
        let before = (w.count("deployments").await, w.count("releases").await, w.count("events").await);
        let (status, p) = w.post("/projects/shop/plan", ask(json!({ "batch": 2, "token": "long enough" }))).await;
        assert_eq!(status, 200, "{p}");
        let r = &p["report"];
        let host = |i: usize, key: &str| r["hosts"][i][key].clone();
        assert_eq!(
            (host(0, "name"), host(0, "agent"), host(0, "change")),
            (json!("h2"), json!("no_agent"), json!("unknown"))
        );
        assert_eq!(host(0, "locked"), "locked by admin: disk swap");
        assert_eq!(
            (host(1, "from"), host(1, "to"), host(1, "change")),
            (json!("0.9.0"), json!("1.0.0"), json!("changes"))
        );
        assert_eq!(r["steps"][0]["waves"], json!([["h2"], ["h1"]]));
        assert_eq!(r["gates"], json!(["a person confirms the first wave of rollout"]));
        assert_eq!(r["inputs"]["token"], json!({ "secret": "input.token" }), "by name only");
        assert!(!p.to_string().contains("long enough"));
        let warnings = r["warnings"].to_string();
        assert!(warnings.contains("h2: its agent is no agent") && warnings.contains("disk swap"), "{warnings}");
        assert_eq!((w.count("deployments").await, w.count("releases").await, w.count("events").await), before);

        // Hosts as asked for: the digest is another one.
        let mut only = ask(json!({ "batch": 2 }));
        only["exclude_hosts"] = json!(["h2"]);
        only["add_hosts"] = json!(["spare"]);
        let (status, q) = w.post("/projects/shop/plan", only).await;
        assert_eq!(status, 200, "{q}");
        assert_eq!(
            (&q["report"]["hosts"][1]["name"], &q["report"]["hosts"][1]["temporary"]),
            (&json!("spare"), &json!(true))
        );
        assert_eq!(q["report"]["left_out"], json!([{ "host": "h2", "reason": "excluded by the request" }]));
        assert_ne!(q["digest"], p["digest"]);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_explained_and_names_are_read() {
    for db in databases().await {
        let w = world(db).await;
        let (_, e) = w.get("/catalog/environment/shop.sdk_beta").await;
        assert_eq!((&e["doc"]["service"], &e["doc"]["tier"]), (&json!("sdk"), &json!("beta")));
        let (status, x) = w.get("/projects/shop/environments/sdk_beta/values?host=h1").await;
        assert_eq!(status, 200, "{x}");
        let value =
            |key: &str| x["values"].as_array().expect("values").iter().find(|v| v["key"] == key).expect(key).clone();
        let port = value("port");
        assert_eq!((&port["value"], &port["scope"]), (&json!(9090), &json!("environment")));
        assert_eq!(port["shadows"], json!([{ "scope": "project", "value": 8080 }, { "scope": "group", "value": 80 }]));
        assert_eq!((&value("rack")["scope"], &value("region")["scope"]), (&json!("host"), &json!("group")));
        assert_eq!(x["secrets"][0], json!({ "name": "ci", "scope": "project", "shadows": [] }), "by name only");

        let two = "kind: environment\nproject: shop\nname: beta_online\nhosts: [h1]\nflow: asking\n";
        let (status, p) = w.apply(&w.admin, two).await;
        assert_eq!((status, &p["errors"][0]["line"]), (422, &json!(1)), "{p}");
        assert!(p["errors"][0]["detail"].as_str().expect("text").contains("tier `beta` or tier `online`"), "{p}");
        let (status, p) = w.apply(&w.admin, &format!("{two}tier: online\n")).await;
        assert_eq!(status, 200, "{p}");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drift_is_what_hosts_report_against_what_is_good() {
    for db in databases().await {
        let w = world(db).await;
        let mut tx = w.ctx.store.write().await.expect("begins");
        let a: Artifact =
            artifacts::by_version(&mut tx, "shop", "1.0.0").await.expect("reads").expect("there").artifact;
        let good = deployments::Good {
            release: uuid::Uuid::now_v7().into(),
            artifact: a.id,
            deployment: uuid::Uuid::now_v7().into(),
            version: "1.0.0".into(),
            at: chrono::Utc::now(),
        };
        deployments::record_good(&mut tx, "shop", "sdk_beta", good).await.expect("stores");
        tx.commit().await.expect("commits");
        agent(&w, "h1", Some(&a.release_dir("sdk_beta"))).await;
        agent(&w, "h2", Some("shop_sdk-beta_0.9.0_main_20261120T000000Z_ann")).await;
        let (status, d) = w.get("/drift?project=shop").await;
        assert_eq!(status, 200, "{d}");
        let rows: Vec<(&str, &str)> = d["items"]
            .as_array()
            .expect("rows")
            .iter()
            .map(|r| (r["host"].as_str().expect("host"), r["state"].as_str().expect("state")))
            .collect();
        assert_eq!(rows, [("h2", "differs"), ("h1", "same")]);
        assert_eq!(d["items"][0]["reported"], "0.9.0");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_locked_with_a_reason_and_unlocked_once() {
    for db in databases().await {
        let w = world(db).await;
        let (status, p) = w.post("/hosts/h1/lock", json!({ "reason": " " })).await;
        assert_eq!(status, 400, "{p}");
        assert_eq!(w.post("/hosts/nobody/lock", json!({ "reason": "x" })).await.0, 404);
        let (status, l) = w.post("/hosts/h1/lock", json!({ "reason": "memory test" })).await;
        assert_eq!((status, &l["by"]), (200, &json!("admin")), "{l}");
        let (_, hosts) = w.get("/hosts").await;
        assert_eq!(hosts["items"][0]["lock"]["reason"], "memory test", "{hosts}");
        assert_eq!(hosts["items"][0]["max_tasks"], 4);
        assert_eq!(w.post("/hosts/h1/unlock", json!({})).await.0, 200);
        assert_eq!(w.post("/hosts/h1/unlock", json!({})).await.0, 409);
        w.stop().await;
    }
}
