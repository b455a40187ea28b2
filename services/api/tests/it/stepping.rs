//! Stepping in: the verbs as they are stored, and what people say about versions and environments.

use crate::world::{World, answer};
use reqwest::Method;
use serde_json::{Value, json};
use windlass_testkit::databases;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_verb_is_stored_as_it_was_asked_and_nothing_wrong_is() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let d = w.deployment("shop", "beta").await;
        let send = async |verb: &str, body: Value| w.post(&format!("/deployments/{}/{verb}", d.id), body).await;
        let asked = [
            ("claim", json!({}), json!({ "verb": "claim", "take_over": false, "reason": "" })),
            (
                "claim",
                json!({ "take_over": true, "reason": "ann sleeps" }),
                json!({ "verb": "claim", "take_over": true, "reason": "ann sleeps" }),
            ),
            ("unclaim", json!({}), json!({ "verb": "unclaim" })),
            (
                "retry",
                json!({ "hosts": ["h1"], "step": "roll", "whole_wave": true }),
                json!({ "verb": "retry", "hosts": ["h1"], "step": "roll", "whole_wave": true }),
            ),
            (
                "retry",
                json!({ "inputs": { "n": 3 }, "reason": "was 2" }),
                json!({ "verb": "retry", "hosts": [], "inputs": { "n": 3 }, "reason": "was 2" }),
            ),
            (
                "stop",
                json!({ "hosts": ["h1"], "reason": "smoke" }),
                json!({ "verb": "stop", "hosts": ["h1"], "reason": "smoke" }),
            ),
            (
                "fail",
                json!({ "step": "smoke", "reason": "hangs" }),
                json!({ "verb": "fail", "step": "smoke", "reason": "hangs" }),
            ),
            (
                "succeed",
                json!({ "step": "smoke", "reason": "seen by eye" }),
                json!({ "verb": "succeed", "step": "smoke", "hosts": [], "reason": "seen by eye" }),
            ),
            (
                "succeed",
                json!({ "hosts": ["h1"], "reason": "seen by eye" }),
                json!({ "verb": "succeed", "hosts": ["h1"], "reason": "seen by eye" }),
            ),
        ];
        for (verb, body, stored) in asked {
            let (status, c) = send(verb, body).await;
            assert_eq!((status, &c["verb"]), (202, &json!(verb)), "{c}");
            let mut tx = w.ctx.store.read().await.expect("reads");
            let id: uuid::Uuid = c["id"].as_str().expect("id").parse().expect("uuid");
            let found = windlass_store::commands::get(&mut tx, id.into()).await.expect("reads").expect("there");
            assert_eq!(serde_json::to_value(found.verb).expect("json"), stored);
        }
        let all =
            json!({ "mode": "emergency", "to": "0.9.0", "veto": true, "from_phase": "pre-release", "reason": "leaks" });
        let (status, c) = send("rollback", all).await;
        assert_eq!(status, 202, "{c}");
        let mut tx = w.ctx.store.read().await.expect("reads");
        let id: uuid::Uuid = c["id"].as_str().expect("id").parse().expect("uuid");
        let found = windlass_store::commands::get(&mut tx, id.into()).await.expect("reads").expect("there");
        drop(tx);
        let v = serde_json::to_value(found.verb).expect("json");
        let told = (&v["mode"], &v["to"], &v["veto"], &v["from_phase"], &v["rollback"]);
        assert_eq!(
            told,
            (&json!("emergency"), &json!("0.9.0"), &json!(true), &json!("pre-release"), &c["new_deployment"])
        );

        let before = w.count("commands").await;
        for (verb, body, word) in [
            ("claim", json!({ "take_over": true }), "`reason`"),
            ("retry", json!({ "inputs": { "n": 3 } }), "`reason`"),
            ("retry", json!({ "inputs": { "n": 3 }, "reason": "r", "whole_wave": true }), "`inputs`"),
            ("retry", json!({ "step": "" }), "`step`"),
            ("stop", json!({ "reason": "r" }), "`hosts`"),
            ("stop", json!({ "hosts": ["h1"], "reason": " " }), "`reason`"),
            ("fail", json!({ "step": "", "reason": "r" }), "`step`"),
            ("fail", json!({ "step": "s", "reason": "" }), "`reason`"),
            ("succeed", json!({ "reason": "r" }), "`step`"),
            ("succeed", json!({ "step": "s", "hosts": ["h1"], "reason": "r" }), "`hosts`"),
            ("rollback", json!({ "from_phase": "later" }), "`from_phase`"),
            ("rollback", json!({ "to": " " }), "`to`"),
            ("rollback", json!({ "veto": true }), "`reason`"),
            ("unclaim", json!({ "reason": "r" }), "reason"),
        ] {
            let (status, p) = send(verb, body.clone()).await;
            assert_eq!(status, 400, "{verb} {body}: {p}");
            assert!(p["detail"].as_str().is_some_and(|d| d.contains(word)), "{verb} {body}: {p}");
        }
        assert_eq!(w.count("commands").await, before);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_say_about_versions_is_kept_shown_and_taken_back() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let ops = w.person("olga", &[("retail", "operator")]).await;
        let send = async |method: Method, path: &str, body: Value| {
            let r = w.request(method, path, &ops).json(&body);
            answer(r.send().await.expect("answers")).await
        };
        let hold = "/projects/shop/environments/beta/hold";
        assert_eq!(w.get(hold).await.1["hold"], Value::Null);
        assert_eq!(send(Method::PUT, hold, json!({ "reason": "" })).await.0, 400);
        let (status, p) = send(Method::PUT, "/projects/shop/environments/moon/hold", json!({ "reason": "r" })).await;
        assert_eq!(status, 400, "{p}");
        let (status, h) = send(Method::PUT, hold, json!({ "reason": "db is moving" })).await;
        assert_eq!((status, &h["by"], &h["reason"]), (200, &json!("olga"), &json!("db is moving")), "{h}");
        assert_eq!(w.get(hold).await.1["hold"], h);

        let veto = json!({ "kind": "veto", "version": "1.0.0", "reason": "leaks" });
        let (status, m) = send(Method::POST, "/projects/shop/marks", veto).await;
        assert_eq!((status, &m["environment"]), (201, &Value::Null), "{m}");
        let pin = json!({ "kind": "pin", "version": "0.9.0", "environment": "online", "reason": "fair" });
        assert_eq!(send(Method::POST, "/projects/shop/marks", pin).await.0, 201);
        let moon = json!({ "kind": "pin", "version": "0.9.0", "environment": "moon", "reason": "fair" });
        assert_eq!(send(Method::POST, "/projects/shop/marks", moon).await.0, 400);
        let never = json!({ "kind": "never", "version": "0.9.0", "reason": "fair" });
        assert_eq!(send(Method::POST, "/projects/shop/marks", never).await.0, 400);
        let (_, all) = w.get("/projects/shop/marks").await;
        assert_eq!((all["items"].as_array().map(Vec::len), &all["holds"]), (Some(2), &json!([h])), "{all}");

        // Exactly the mark that is named goes.
        let gone = async |q: &str| send(Method::DELETE, &format!("/projects/shop/marks?{q}"), json!({})).await;
        let (status, p) = gone("kind=veto&version=1.0.0&environment=beta").await;
        assert_eq!((status, &p["code"]), (409, &json!("nothing_to_do")), "{p}");
        assert_eq!(gone("kind=veto&version=1.0.0").await.0, 200);
        assert_eq!(gone("kind=pin&version=0.9.0&environment=online").await.0, 200);
        let (status, h) = send(Method::DELETE, hold, json!({})).await;
        assert_eq!((status, &h["reason"]), (200, &json!("db is moving")));
        let (status, p) = send(Method::DELETE, hold, json!({})).await;
        assert_eq!((status, &p["code"]), (409, &json!("nothing_to_do")), "{p}");
        let (_, all) = w.get("/projects/shop/marks").await;
        assert_eq!((&all["items"], &all["holds"]), (&json!([]), &json!([])));
        for (what, n) in [
            ("events WHERE type = 'environment.held' AND actor = 'person:olga' AND environment = 'beta'", 1),
            ("events WHERE type = 'environment.released'", 1),
            ("events WHERE type = 'environment.vetoed' AND aggregate_id = 'shop'", 1),
            ("events WHERE type = 'environment.pinned' AND aggregate_id = 'shop/online'", 1),
            ("events WHERE type = 'environment.mark_removed'", 2),
        ] {
            assert_eq!(w.count(what).await, n, "{what}");
        }
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_are_listed_by_the_tier_of_their_environment() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let beta = w.deployment("shop", "beta").await;
        let online = w.deployment("shop", "online").await;
        let listed = async |q: &str| {
            let (status, page) = w.get(&format!("/deployments{q}")).await;
            assert_eq!(status, 200, "{page}");
            let items = page["items"].as_array().expect("items");
            items.iter().map(|d| d["id"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(listed("").await.len(), 2);
        assert_eq!(listed("?tier=beta").await, [beta.id.to_string()]);
        assert_eq!(listed("?tier=online&project=shop").await, [online.id.to_string()]);
        assert!(listed("?tier=moon").await.is_empty());
        w.stop().await;
    }
}
