//! Enrolment: one token, one agent, whoever is first.

use crate::world::{World, answer};
use futures::future::join_all;
use nkeys::KeyPair;
use reqwest::Method;
use serde_json::json;
use windlass_testkit::databases;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_enrols_one_agent() {
    for db in databases().await {
        let mut w = World::start(db).await;
        w.fill().await;
        let second = w.another_api().await;
        let (status, t) = w.post("/enroll-tokens", json!({ "host": "h1" })).await;
        assert_eq!(status, 201, "{t}");
        let enrol = |base: String, token: &serde_json::Value, key: String| {
            w.http
                .post(format!("{base}/api/v1/enroll"))
                .json(&json!({ "token": token, "public_key": key, "facts": { "os": "linux" } }))
                .send()
        };
        let keys: Vec<String> = (0..20).map(|_| KeyPair::new_user().public_key()).collect();
        let all = join_all(
            keys.iter()
                .enumerate()
                .map(|(i, k)| enrol(if i % 2 == 0 { w.base.clone() } else { second.clone() }, &t["token"], k.clone())),
        )
        .await;
        let mut made = vec![];
        for r in all {
            let (status, a) = answer(r.expect("answers")).await;
            match status {
                201 => made.push(a),
                401 => {}
                _ => panic!("{status} {a}"),
            }
        }
        assert_eq!((made.len(), w.count("agents").await), (1, 1));
        let a = &made[0];
        assert_eq!((&a["host"], a["jwt"].as_str().map(|j| j.split('.').count())), (&json!("h1"), Some(3)));
        assert!(
            a["executor_key"].as_str().is_some_and(|k| k.starts_with('U'))
                && a["approval_key"].is_string()
                && !a["nats_urls"][0].is_null()
        );
        // The host is taken now; a replacing token takes its place.
        let (status, p) = w.post("/enroll-tokens", json!({ "host": "h1" })).await;
        assert_eq!((status, &p["code"]), (409, &json!("host_taken")), "{p}");
        let (_, t) = w.post("/enroll-tokens", json!({ "host": "h1", "replace": true })).await;
        let (status, p) = answer(enrol(w.base.clone(), &t["token"], "not a key".into()).await.expect("answers")).await;
        assert_eq!(status, 400, "{p}");
        let known = keys.iter().find(|_| true).expect("key").clone();
        let (status, b) =
            answer(enrol(w.base.clone(), &t["token"], KeyPair::new_user().public_key()).await.expect("answers")).await;
        assert_eq!(status, 201, "a token that failed is not used up: {b} {known}");
        let (_, hosts) = w.get("/hosts").await;
        let h1 = &hosts["items"][0];
        assert_eq!((&h1["agent"]["id"], &h1["state"]), (&b["agent_id"], &json!("never_seen")), "{h1}");
        assert_eq!(w.count("agents WHERE revoked_at IS NULL").await, 1);
        let path = format!("/agents/{}/revoke", b["agent_id"].as_str().expect("id"));
        assert_eq!(w.request(Method::POST, &path, &w.admin).send().await.expect("answers").status(), 204);
        assert_eq!(w.count("agents WHERE revoked_at IS NULL").await, 0);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_names_what_is_wrong() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        w.deployment("shop", "beta").await;
        std::fs::set_permissions(
            w.ctx.settings.keys_dir().join("master.key"),
            std::os::unix::fs::PermissionsExt::from_mode(0o644),
        )
        .expect("chmod");
        let (status, d) = w.get("/doctor").await;
        assert_eq!((status, &d["healthy"]), (200, &json!(false)), "{d}");
        let check = |n: &str| {
            d["checks"].as_array().expect("checks").iter().find(|c| c["name"] == n).cloned().unwrap_or_default()
        };
        for name in ["database", "nats", "migrations", "clock", "agents"] {
            assert_eq!(check(name)["status"], "ok", "{name}: {d}");
        }
        assert_eq!(check("keys")["status"], "fault");
        assert!(check("keys")["remedy"].as_str().is_some_and(|r| r.contains("chmod")));
        w.stop().await;
    }
}
