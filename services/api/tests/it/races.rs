//! Idempotency, outcomes, the first start.

use crate::world::{World, answer, digest, settings};
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use std::{future::Future, net::TcpListener, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use windlass_bus::Context;
use windlass_domain::catalog::{Host, Item, Kind};
use windlass_runtime::Health;
use windlass_store::{
    Tx, catalog,
    latches::{self, Latch},
    people,
};
use windlass_testkit::{databases, nats, temp_dir};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_is_one_effect_whoever_comes_first() {
    for db in databases().await {
        let mut w = World::start(db).await;
        w.fill().await;
        let second = w.another_api().await;
        let body = json!({ "version": "1.0.0", "digest": digest('a'), "url": "https://ci.example/1.tar.gz" });
        assert_eq!(w.post("/projects/shop/artifacts", body.clone()).await.0, 201);
        assert_eq!(w.post("/projects/shop/artifacts", body.clone()).await.0, 200);
        let other = json!({ "version": "1.0.0", "digest": digest('b'), "url": "https://ci.example/1.tar.gz" });
        let (status, p) = w.post("/projects/shop/artifacts", other).await;
        assert_eq!((status, &p["code"]), (409, &json!("other_digest")), "{p}");

        let ask = |key: &str, base: &str, version: &str| {
            let r = w.http.post(format!("{base}/api/v1/projects/shop/deployments")).bearer_auth(&w.admin);
            r.header("idempotency-key", key)
                .json(&json!({ "environment": "beta", "version": version, "note": "n" }))
                .send()
        };
        let all = join_all((0..40).map(|i| ask("k1", if i % 2 == 0 { &w.base } else { &second }, "1.0.0"))).await;
        let mut ids = std::collections::BTreeSet::new();
        for r in all {
            let (status, c) = answer(r.expect("answers")).await;
            assert_eq!((status, &c["state"]), (202, &json!("pending")), "{c}");
            ids.insert(c["id"].to_string());
        }
        assert_eq!(ids.len(), 1);
        assert_eq!(w.count("commands").await, 1);
        assert_eq!(w.count("events WHERE type = 'command.accepted'").await, 1);
        let r = w
            .http
            .post(format!("{}/api/v1/projects/shop/deployments", w.base))
            .bearer_auth(&w.admin)
            .header("idempotency-key", "k1");
        let (status, p) =
            answer(r.json(&json!({ "environment": "online", "version": "1.0.0" })).send().await.expect("answers"))
                .await;
        assert_eq!((status, &p["code"]), (422, &json!("idempotency_key_reused")), "{p}");
        // What a stored answer holds is sealed: a token must not rest in clear.
        let r = w
            .request(Method::POST, "/tokens", &w.admin)
            .header("idempotency-key", "k2")
            .json(&json!({ "person": "admin" }));
        let (_, first) = answer(r.try_clone().expect("clones").send().await.expect("answers")).await;
        assert_eq!(answer(r.send().await.expect("answers")).await, (201, first.clone()));
        let token = first["token"].as_str().expect("token");
        let mut tx = w.ctx.store.read().await.expect("reads");
        let rows: Vec<(String,)> = windlass_store::sql("SELECT CAST(response AS TEXT) FROM idempotency")
            .fetch_all(&mut tx)
            .await
            .expect("reads");
        assert!(rows.len() >= 2 && rows.iter().all(|(r,)| !r.contains(token)));
        drop(tx);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_answers_with_its_outcome() {
    for db in databases().await {
        let w = World::start_with(db, |s| s.api.command_wait_s = Duration::from_secs(10).into()).await;
        w.fill().await;
        let d = w.deployment("shop", "beta").await;
        let approver = w.person("bob", &[("retail", "approver")]).await;
        let path = format!("/deployments/{}/approve", d.id);
        let approve = || {
            w.request(Method::POST, &path, &approver)
                .json(&json!({ "digest": "sha256:plan", "comment": "fine" }))
                .send()
        };
        let scheduler = w.decide(true);
        let (status, c) = answer(approve().await.expect("answers")).await;
        assert_eq!((status, &c["state"], &c["code"]), (200, &json!("accepted"), &json!("ok")), "{c}");
        scheduler.abort();
        let _ = scheduler.await;
        // The decision is signed for the agents, with the key they are told at enrolment.
        let mut tx = w.ctx.store.read().await.expect("reads");
        let id: uuid::Uuid = c["id"].as_str().expect("id").parse().expect("uuid");
        let stored = windlass_store::commands::get(&mut tx, id.into()).await.expect("reads").expect("there");
        drop(tx);
        let windlass_contracts::command::Verb::Decide { approval, .. } = stored.verb else { panic!("{stored:?}") };
        assert_eq!((approval.person.as_str(), approval.plan_digest.as_str()), ("bob", "sha256:plan"));
        let key =
            windlass_bus::identity::load_key(&w.ctx.settings.keys_dir().join("approval.nk"), nkeys::KeyPairType::User)
                .expect("key");
        use base64::Engine;
        let signature = base64::engine::general_purpose::STANDARD.decode(&approval.signature).expect("base64");
        key.verify(approval.signed_text().as_bytes(), &signature).expect("signed");

        let scheduler = w.decide(false);
        let (status, p) = answer(approve().await.expect("answers")).await;
        assert_eq!((status, &p["code"], p["command"].is_string()), (409, &json!("wrong_state"), true), "{p}");
        scheduler.abort();
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_first_starts_make_one_admin() {
    for db in databases().await {
        let (dir, nats) = (temp_dir(), nats().await);
        let settings = Arc::new(settings(dir.path(), &db, &nats));
        let shutdown = CancellationToken::new();
        let first = Context::open(settings, Health::new(), shutdown.clone()).await.expect("context");
        let runs: Vec<_> = (0..4)
            .map(|_| {
                let listener = TcpListener::bind("127.0.0.1:0").expect("port");
                let base = format!("http://{}", listener.local_addr().expect("address"));
                let ctx = first.for_service();
                (base, tokio::spawn(async move { windlass_api::run_on(ctx, listener).await.expect("ends well") }))
            })
            .collect();
        let http = reqwest::Client::new();
        for (base, _) in &runs {
            windlass_testkit::wait_http(&format!("{base}/healthz")).await;
            let token = std::fs::read_to_string(dir.path().join("admin.token")).expect("token");
            let r = http.get(format!("{base}/api/v1/me")).bearer_auth(token.trim()).send().await.expect("answers");
            assert_eq!(r.status(), 200);
        }
        let mut tx = first.store.read().await.expect("reads");
        for table in ["SELECT COUNT(*) FROM people", "SELECT COUNT(*) FROM tokens", "SELECT COUNT(*) FROM events"] {
            let n: Option<i64> = windlass_store::sql(table).fetch_scalar(&mut tx).await.expect("counts");
            assert_eq!(n, Some(1), "{table}");
        }
        drop(tx);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(dir.path().join("admin.token")).expect("meta").permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        shutdown.cancel();
        for (_, run) in runs {
            run.await.expect("no panic");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_end_at_once() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let ann = w.person("ann", &[("retail", "viewer")]).await;
        let me = |token: String| {
            let r = w.request(Method::GET, "/me", &token);
            async move { r.send().await.expect("answers").status().as_u16() }
        };
        assert_eq!(me(ann.clone()).await, 200);
        assert_eq!(w.post("/people", json!({ "name": "ann", "disabled": true })).await.0, 200);
        assert_eq!(me(ann.clone()).await, 401);
        assert_eq!(w.post("/people", json!({ "name": "ann" })).await.0, 200);
        assert_eq!(me(ann.clone()).await, 200);
        let id = ann.split('_').nth(1).expect("id").to_owned();
        let r = w.request(Method::DELETE, &format!("/tokens/{id}"), &w.admin).send().await.expect("answers");
        assert_eq!(r.status(), 204);
        assert_eq!(me(ann).await, 401);
        let (status, p) = w.post("/people", json!({ "name": "admin", "grants": [] })).await;
        assert_eq!((status, &p["code"]), (409, &json!("last_admin")), "{p}");
        w.stop().await;
    }
}

/// Long enough for the other request to come as far as it gets.
const BESIDE: Duration = Duration::from_millis(600);

/// Sends a request beside this open transaction, which commits a little later.
async fn beside(tx: Tx, other: impl Future<Output = (u16, Value)>) -> (u16, Value) {
    let commit = async {
        tokio::time::sleep(BESIDE).await;
        tx.commit().await.expect("commits");
    };
    tokio::join!(other, commit).0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_who_save_the_catalog_at_once_the_second_sees_the_first() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let mut tx = w.ctx.store.write().await.expect("tx");
        latches::take(&mut tx, Latch::Catalog).await.expect("takes");
        let stamp = catalog::stamp(&mut tx).await.expect("reads");
        let host = Host { name: "h9".into(), address: "10.0.0.9".into(), ..Host::default() };
        catalog::save(&mut tx, &Item::Host(host), 0, false, "zoe", chrono::Utc::now()).await.expect("saves");
        let other = w.request(Method::POST, "/apply", &w.admin).header("if-match", format!("\"{stamp}\""));
        let other = other.body("kind: host\nname: h8\naddress: 10.0.0.8\n").send();
        let (status, p) = beside(tx, async { answer(other.await.expect("answers")).await }).await;
        assert_eq!((status, &p["code"]), (412, &json!("changed_meanwhile")), "{p}");

        // What somebody begins to use cannot be removed, nor what is being removed be used.
        let mut tx = w.ctx.store.write().await.expect("tx");
        latches::take(&mut tx, Latch::Catalog).await.expect("takes");
        let row = catalog::row(&mut tx, Kind::Host, "h9").await.expect("reads").expect("it is there");
        let host = Host { name: "h9".into(), address: "10.0.0.9".into(), ..Host::default() };
        catalog::save(&mut tx, &Item::Host(host), row.revision, true, "zoe", chrono::Utc::now())
            .await
            .expect("removes");
        let group = "kind: host_group\nname: nine\nhosts: [h9]\n";
        let (status, p) = beside(tx, w.apply(&w.admin, group)).await;
        assert_eq!(status, 422, "{p}");
        assert!(p.to_string().contains("there is no host `h9`"), "{p}");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_admins_do_not_shut_each_other_out_at_once() {
    for db in databases().await {
        let w = World::start(db).await;
        w.person("zoe", &[("*", "admin")]).await;
        let mut tx = w.ctx.store.write().await.expect("tx");
        latches::take(&mut tx, Latch::Access).await.expect("takes");
        people::update(&mut tx, "zoe", "zoe", true).await.expect("disabled");
        let (status, p) = beside(tx, w.post("/people/admin/grants", json!({ "grants": [] }))).await;
        assert_eq!((status, &p["code"]), (409, &json!("last_admin")), "{p}");
        w.stop().await;
    }
}
