//! A full queue of commands: what is refused leaves nothing behind, what stops something gets through, and all goes on when
//! the queue has drained. Nobody decides commands here but where a test says so.

use crate::world::{World, answer, cdevent, digest, signed, until};
use futures::future::join_all;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;
use windlass_contracts::command::{Command, Verb};
use windlass_domain::ids::DeploymentId;
use windlass_store::{Dialect, commands};
use windlass_testkit::{databases, eventually};

/// What a refused request could have written to.
const TABLES: [&str; 7] = ["commands", "command_queue", "events", "idempotency", "artifacts", "intake", "secrets"];

impl World {
    async fn bounded(db: windlass_testkit::Db, most: u64) -> World {
        let w = World::start_with(db, |s| s.api.max_queued_commands = most).await;
        w.fill().await;
        w
    }

    /// How many commands this process has refused.
    fn turned_away(&self) -> f64 {
        let text = self.ctx.health.metrics_text().expect("metrics");
        let value = text.lines().find_map(|l| l.strip_prefix("windlass_api_commands_refused_total "));
        value.and_then(|v| v.trim().parse().ok()).expect("the counter is there from the beginning")
    }

    async fn rows(&self) -> Vec<i64> {
        let mut all = vec![];
        for t in TABLES {
            all.push(self.count(t).await);
        }
        all
    }

    /// A verb to a deployment, under an `Idempotency-Key`.
    async fn verb(&self, d: DeploymentId, verb: &str, key: &str, body: Value) -> Response {
        let r = self.request(Method::POST, &format!("/deployments/{d}/{verb}"), &self.admin);
        r.header("idempotency-key", key).json(&body).send().await.expect("answers")
    }

    /// Commands that wait, as another api would have accepted them.
    async fn queue(&self, d: DeploymentId, n: u64) {
        let mut tx = self.ctx.store.write().await.expect("begins");
        for _ in 0..n {
            let c = Command {
                id: Uuid::now_v7().into(),
                project: "shop".into(),
                environment: Some("beta".into()),
                deployment: Some(d),
                actor: "person:x".into(),
                verb: Verb::Resume,
                created_at: chrono::Utc::now(),
                trace: None,
            };
            commands::insert(&mut tx, &c).await.expect("stores");
        }
        tx.commit().await.expect("commits");
    }

    async fn drain(&self) {
        let scheduler = self.decide(true);
        until(self, "command_queue", 0).await;
        scheduler.abort();
        let _ = scheduler.await;
    }
}

/// The one envelope, with when to come again and what to do.
async fn refused(r: Response) {
    let after = r.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    assert!(after.is_some_and(|s| s > 0), "{:?} {:?}", r.status(), r.headers());
    assert_eq!(r.headers().get("content-type").expect("a type"), "application/problem+json");
    let (status, p) = answer(r).await;
    assert_eq!((status, &p["status"], &p["code"]), (503, &json!(503), &json!("queue_full")), "{p}");
    assert_eq!((&p["type"], &p["command"]), (&json!("urn:windlass:problem:queue_full"), &Value::Null));
    let detail = p["detail"].as_str().expect("a text");
    for word in ["api.max_queued_commands", "nothing was stored", "windlass doctor"] {
        assert!(detail.contains(word), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_before_it_accepts() {
    for db in databases().await {
        let w = World::bounded(db, 5).await;
        let d = w.deployment("shop", "beta").await;
        let artifact = json!({ "version": "1.0.0", "digest": digest('a'), "url": "https://ci.example/1.tar.gz" });
        assert_eq!(w.post("/projects/shop/artifacts", artifact).await.0, 201);
        let mut first = Value::Null;
        for i in 0..5 {
            let (status, c) = answer(w.verb(d.id, "resume", &format!("k{i}"), json!({})).await).await;
            assert_eq!((status, &c["state"]), (202, &json!("pending")), "{c}");
            if i == 0 {
                first = c;
            }
        }
        let (_, doctor) = w.get("/doctor").await;
        let check = |doctor: &Value| {
            let all = doctor["checks"].as_array().expect("checks");
            all.iter().find(|c| c["name"] == "commands").expect("a check").clone()
        };
        assert_eq!(check(&doctor)["status"], "fault", "{doctor:#}");
        assert!(check(&doctor)["detail"].as_str().is_some_and(|t| t.starts_with("5 not decided of at most 5")));

        let before = w.rows().await;
        refused(w.verb(d.id, "resume", "late", json!({})).await).await;
        refused(w.verb(d.id, "approve", "late", json!({ "digest": "sha256:plan" })).await).await;
        let new = w.request(Method::POST, "/projects/shop/deployments", &w.admin);
        refused(new.json(&json!({ "environment": "beta", "version": "1.0.0" })).send().await.expect("answers")).await;
        assert_eq!(w.rows().await, before, "a refusal leaves nothing: {TABLES:?}");
        let metrics = w.request(Method::GET, "/metrics", "").send().await.expect("answers").text().await.expect("text");
        for line in ["windlass_commands_bound 5", "windlass_api_commands_refused_total 3"] {
            assert!(metrics.lines().any(|l| l == line), "{line}");
        }

        // What was accepted is answered as before, and is no command more.
        let (status, c) = answer(w.verb(d.id, "resume", "k0", json!({})).await).await;
        assert_eq!((status, &c["id"]), (202, &first["id"]), "{c}");
        assert_eq!(w.rows().await, before);
        // What stops something has a place beyond the bound, and one alone: it is bounded too.
        assert_eq!(w.verb(d.id, "abort", "stop", json!({})).await.status(), 202);
        refused(w.verb(d.id, "abort", "again", json!({})).await).await;
        assert_eq!((w.count("command_queue").await, w.count("commands").await), (6, 6));

        // The refused one comes again with its key, and is a new request.
        w.drain().await;
        let (status, c) = eventually(Duration::from_secs(5), "room", async || {
            let (status, c) = answer(w.verb(d.id, "resume", "late", json!({})).await).await;
            (status != 503).then_some((status, c))
        })
        .await;
        assert_eq!((status, &c["state"], w.count("commands").await), (202, &json!("pending"), 7), "{c}");
        assert_eq!(check(&w.get("/doctor").await.1)["status"], "ok");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stops_something_gets_through() {
    for db in databases().await {
        let w = World::bounded(db, 100).await;
        let d = w.deployment("shop", "beta").await;
        w.queue(d.id, 100).await;
        let (hosts, digest) = (json!({ "hosts": ["h1"], "reason": "r" }), json!({ "digest": "sha256:plan" }));
        let ordinary = [
            ("approve", digest.clone()),
            ("accept", digest.clone()),
            ("resume", json!({})),
            ("claim", json!({})),
            ("unclaim", json!({})),
            ("confirm", json!({ "wave": 0 })),
            ("retry", json!({})),
            ("skip", json!({ "hosts": ["h1"] })),
            ("ignore", hosts.clone()),
            ("exclude", hosts.clone()),
            ("override", hosts.clone()),
            ("rollback", json!({ "mode": "normal" })),
        ];
        for (verb, body) in ordinary {
            refused(w.verb(d.id, verb, &format!("ordinary {verb}"), body).await).await;
        }
        assert_eq!(w.count("command_queue").await, 100);
        let stops = [
            ("abort", json!({ "reason": "r" })),
            ("pause", json!({})),
            ("cancel", json!({})),
            ("stop", hosts),
            ("reject", digest),
            ("rollback", json!({ "mode": "emergency", "reason": "r" })),
        ];
        for (verb, body) in stops {
            let (status, c) = answer(w.verb(d.id, verb, &format!("stop {verb}"), body).await).await;
            assert_eq!((status, &c["state"]), (202, &json!("pending")), "{verb}: {c}");
        }
        assert_eq!(w.count("command_queue").await, 106);
        let (b, _) = w.bundle(&["shop"]).await;
        let path = format!("/bundles/{}", b.id);
        for (verb, body, passes) in [
            ("pause", json!({}), true),
            ("resume", json!({}), false),
            ("cancel", json!({}), true),
            ("rollback", json!({ "mode": "emergency", "reason": "r" }), true),
            ("rollback", json!({ "mode": "normal", "reason": "r" }), false),
        ] {
            let r = w.request(Method::POST, &format!("{path}/{verb}"), &w.admin).json(&body).send().await;
            let r = r.expect("answers");
            if passes {
                assert_eq!(r.status(), 202, "{verb}");
            } else {
                refused(r).await;
            }
        }
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_that_finds_no_room_comes_again() {
    for db in databases().await {
        let w = World::bounded(db, 5).await;
        let d = w.deployment("shop", "beta").await;
        w.queue(d.id, 4).await;
        let before = w.rows().await;
        // It leads to two commands, and one has room: it is taken whole or not at all.
        let body = cdevent("e1", "1.0.0", &digest('a'));
        let post = || {
            let r = w.request(Method::POST, "/hooks/cdevents/shop", "").body(body.clone());
            signed("m1", &body).into_iter().fold(r, |r, (k, v)| r.header(k, v)).send()
        };
        for _ in 0..3 {
            refused(post().await.expect("answers")).await;
        }
        assert_eq!(w.rows().await, before, "{TABLES:?}");
        // One over JetStream has nobody to be told: it waits.
        let event: Value = serde_json::from_slice(&cdevent("b1", "2.0.0", &digest('b'))).expect("json");
        let event =
            json!({ "specversion": "1.0", "id": "x", "source": "/ci", "type": "t", "project": "shop", "data": event });
        eventually(crate::world::PATIENCE, "the stream takes it", async || {
            w.ctx.bus.publish_stored("windlass.in.ci", event.to_string(), "b1", None).await.ok()
        })
        .await;
        let turned_away = w.turned_away();
        eventually(crate::world::PATIENCE, "it was tried", async || (w.turned_away() > turned_away).then_some(()))
            .await;
        assert_eq!(w.rows().await, before, "{TABLES:?}");

        w.drain().await;
        until(&w, "artifacts", 1).await;
        w.drain().await;
        let (status, a) = eventually(Duration::from_secs(5), "room", async || {
            let (status, a) = answer(post().await.expect("answers")).await;
            (status != 503).then_some((status, a))
        })
        .await;
        assert_eq!((status, &a["outcome"], &a["duplicate"]), (200, &json!("matched"), &json!(false)), "{a}");
        assert_eq!(a["commands"].as_array().map(Vec::len), Some(2), "{a}");
        assert_eq!((w.count("artifacts").await, w.count("commands").await), (2, 8));
        // Known, it has its answer whatever waits.
        w.queue(d.id, 5).await;
        let (status, a) = answer(post().await.expect("answers")).await;
        assert_eq!((status, &a["duplicate"]), (200, &json!(true)), "{a}");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_at_two_apis_stays_within_the_slack() {
    for db in databases().await {
        let mut w = World::bounded(db, 20).await;
        let second = w.another_api().await;
        let d = w.deployment("shop", "beta").await;
        let ask = |i: u64| {
            let base = if i.is_multiple_of(2) { &w.base } else { &second };
            let path = format!("{base}/api/v1/deployments/{}/resume", d.id);
            w.http.post(path).bearer_auth(&w.admin).json(&json!({})).send()
        };
        let mut taken = 0;
        for r in join_all((0..200).map(ask)).await {
            let r = r.expect("answers");
            if r.status() == 202 {
                taken += 1;
            } else {
                refused(r).await;
            }
        }
        // A count may see what it also expects: then some were turned away a moment too early.
        let last = eventually(crate::world::PATIENCE, "the bound is met", async || {
            let r = ask(0).await.expect("answers");
            if r.status() == 202 {
                taken += 1;
                return None;
            }
            Some(r)
        })
        .await;
        refused(last).await;
        let waiting = w.count("command_queue").await;
        assert_eq!((waiting, w.count("commands").await), (taken, taken), "accepted is stored, and nothing else is");
        // One allowance of 1 for the second api, and on PostgreSQL what was open at a count: 16 connections each.
        let slack = if w.ctx.store.dialect() == Dialect::Postgres { 1 + 2 * 16 } else { 1 };
        assert!((20..=20 + slack).contains(&waiting), "{waiting} wait");
        w.stop().await;
    }
}
