//! Plugins over the API: who defines them, what is refused, the list with its schemas, and callbacks, once.

use crate::world::{World, answer};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::Duration;
use windlass_domain::{
    ids::WorkId,
    work::{CentralWork, Desired, Work, WorkResult, WorkSpec},
};
use windlass_store::{plugins, works};
use windlass_testkit::databases;

fn document(version: &str, inputs: &str) -> String {
    format!(
        "kind: plugin\nname: page\nversion: \"{version}\"\ntransport: {{ type: exec, path: page.py, digest: \"sha256:{}\" }}\n\
         inputs: {inputs}\nretry_safe: true\n",
        "a".repeat(64)
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_are_defined_by_those_who_may_everywhere_and_listed_with_their_schemas() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let local = w.person("local", &[("retail", "admin")]).await;
        let good = "{ type: object, properties: { path: { type: string } } }";
        let (status, p) = w.apply(&local, &document("1.0.0", good)).await;
        assert_eq!(status, 403, "an admin of one group runs nothing on the control plane: {p}");
        for version in ["1.9.0", "1.10.0"] {
            let (status, p) = w.apply(&w.admin, &document(version, good)).await;
            assert_eq!(status, 200, "{p}");
        }
        for (inputs, says) in [
            ("{ type: object, properties: { a: { $ref: \"http://127.0.0.1/x\" } } }", "nothing else is followed"),
            ("{ type: strin }", "is not a JSON Schema"),
            ("{ type: string }", "begin with `type: object`"),
        ] {
            let (status, p) = w.apply(&w.admin, &document("2.0.0", inputs)).await;
            let text = p.to_string();
            assert!(status == 422 && text.contains(says) && p["errors"][0]["line"] == 5, "{status} {text}");
        }
        let (status, all) = w.get("/plugins").await;
        let versions: Vec<&Value> = all["plugins"].as_array().expect("list").iter().map(|p| &p["version"]).collect();
        assert_eq!((status, versions), (200, vec![&json!("1.10.0"), &json!("1.9.0")]), "{all}");
        assert_eq!(all["plugins"][0]["uses"], "plugin/page@1.10.0");
        assert_eq!(all["plugins"][0]["inputs"]["properties"]["path"]["type"], "string");
        let (status, one) = w.get("/catalog/plugin/page@1.9.0").await;
        assert_eq!((status, &one["key"]), (200, &json!("page@1.9.0")), "{one}");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callback_is_taken_once_and_only_while_its_call_is_open() {
    for db in databases().await {
        let w = World::start(db).await;
        let store = &w.ctx.store;
        let id: WorkId = uuid::Uuid::now_v7().into();
        let work = Work {
            id,
            deployment: uuid::Uuid::now_v7().into(),
            project: "shop".into(),
            environment: "beta".into(),
            pool: "default".into(),
            desired: Desired::Run,
            fence: 1,
            plan_digest: "sha256:x".into(),
            spec: WorkSpec::Central(CentralWork { outputs: Default::default(), step: "ask".into(), attempt: 1 }),
            trace: None,
        };
        let hash = Sha256::digest(b"cafe").to_vec();
        let mut tx = store.write().await.expect("begins");
        works::insert(&mut tx, &work).await.expect("inserts");
        tx.commit().await.expect("commits");
        let mut tx = store.write().await.expect("begins");
        let pools = ["default".to_owned()];
        let claim =
            works::claim(&mut tx, &pools, "me", Duration::from_secs(60), 1, &[]).await.expect("claims").remove(0);
        plugins::begin(&mut tx, id, claim.epoch, "page@1.0.0", "execute", Some(&hash)).await.expect("begins");
        tx.commit().await.expect("commits");

        let post = async |token: &str, body: String| {
            let r = w.request(Method::POST, &format!("/plugin-callbacks/{token}"), "").body(body);
            answer(r.send().await.expect("answers")).await
        };
        let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        for wrong in ["beef", &hex, "cafe%00"] {
            assert_eq!(post(wrong, "{}".into()).await.0, 404, "{wrong}");
        }
        assert_eq!(post("cafe", "{".into()).await.0, 400);
        assert_eq!(post("cafe", format!("\"{}\"", "x".repeat(70_000))).await.0, 413);
        let all = futures::future::join_all((0..8).map(|n| post("cafe", json!({ "n": n }).to_string()))).await;
        let taken = all.iter().filter(|(s, _)| *s == 202).count();
        assert!(taken == 1 && all.iter().all(|(s, _)| matches!(s, 202 | 409)), "{all:?}");
        let kept = plugins::callback(&mut store.read().await.expect("reads"), &hash).await.expect("reads");
        assert!(kept.is_some_and(|k| k["n"].is_number()));

        let mut tx = store.write().await.expect("begins");
        let result = WorkResult::Central { class: None, succeeded: true, reason: None, output: Value::Null };
        works::settle(&mut tx, id, claim.epoch, &result).await.expect("settles");
        tx.commit().await.expect("commits");
        assert_eq!(post("cafe", "{}".into()).await.0, 404, "the call is over");
        w.stop().await;
    }
}
