//! Bundles, promotions and history over HTTP: what is asked, what is shown, and to whom.

use crate::world::{World, answer, digest};
use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::Utc;
use nkeys::KeyPair;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;
use windlass_contracts::command::{BundleAsk, Verb};
use windlass_domain::{
    bundle::{Bundle, New, NewMember},
    deployment::Deployment,
    flow::OnFailure,
    ids::CommandId,
};
use windlass_store::{bundles, commands, promotions, sql};
use windlass_testkit::databases;

impl World {
    /// A bundle over these projects' `beta`, as the scheduler would store it.
    pub(crate) async fn bundle(&self, projects: &[&str]) -> (Bundle, Vec<Deployment>) {
        let mut all = Vec::new();
        for p in projects {
            all.push(self.deployment(p, "beta").await);
        }
        let member = |d: &Deployment| NewMember {
            name: d.project.clone(),
            project: d.project.clone(),
            environment: d.environment.clone(),
            version: d.version.clone(),
            needs: vec![],
            deployment: d.id,
            plan_digest: d.plan_digest.clone(),
            unapproved: true,
        };
        let new = New {
            id: Uuid::now_v7().into(),
            title: "both".into(),
            requested_by: "ann".into(),
            note: String::new(),
            on_failure: OnFailure::Pause,
            expires_at: Utc::now() + chrono::Duration::hours(1),
            members: all.iter().map(member).collect(),
        };
        let (b, _) = Bundle::request(new, Utc::now());
        let mut tx = self.ctx.store.write().await.expect("begins");
        bundles::insert(&mut tx, &b).await.expect("stores");
        tx.commit().await.expect("commits");
        (b, all)
    }

    async fn as_person(&self, method: Method, path: &str, token: &str, body: Value) -> (u16, Value) {
        answer(self.request(method, path, token).json(&body).send().await.expect("answers")).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_asks_for_the_right_on_every_project_of_it() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let (b, _) = w.bundle(&["shop", "bank"]).await;
        let path = format!("/bundles/{}", b.id);
        let half = w.person("half", &[("retail", "admin")]).await;
        let view = w.person("view", &[("retail", "approver"), ("money", "viewer")]).await;
        let both = w.person("both", &[("retail", "approver"), ("money", "approver")]).await;
        let body = json!({ "digest": b.digest });
        // Half of it is none of it: not shown, not decided.
        assert_eq!(w.as_person(Method::GET, &path, &half, json!({})).await.0, 404);
        assert_eq!(w.as_person(Method::GET, "/bundles", &half, json!({})).await.1["items"], json!([]));
        assert_eq!(w.as_person(Method::GET, "/bundles", &both, json!({})).await.1["items"][0]["id"], json!(b.id));
        let approve = format!("{path}/approve");
        assert_eq!(w.as_person(Method::POST, &approve, &half, body.clone()).await.0, 404);
        assert_eq!(w.as_person(Method::POST, &approve, &view, body.clone()).await.0, 403);
        assert_eq!(w.count("commands").await, 0);
        let (_, shown) = w.as_person(Method::GET, &path, &both, json!({})).await;
        assert_eq!(shown["actions"], json!(["approve", "reject"]), "{shown:#}");
        assert_eq!(shown["waiting_on"][0]["text"], "approval of shop, bank");
        assert_eq!(shown["deployments"].as_array().map(Vec::len), Some(2));

        // One approval is a signed approval of each member's own plan.
        let (status, answer) = w.as_person(Method::POST, &approve, &both, body).await;
        assert_eq!(status, 202, "{answer}");
        assert_eq!(answer["bundle"], json!(b.id));
        let id: Uuid = answer["id"].as_str().expect("id").parse().expect("uuid");
        let mut tx = w.ctx.store.read().await.expect("reads");
        let stored = commands::get(&mut tx, CommandId(id)).await.expect("reads").expect("stored");
        let Verb::Bundle { ask: BundleAsk::Approve { approvals, .. }, .. } = stored.verb else { panic!("{stored:?}") };
        assert_eq!(approvals.len(), 2);
        let key = std::fs::read_to_string(w.ctx.settings.keys_dir().join("approval.nk")).expect("key");
        let key = KeyPair::from_seed(key.trim()).expect("seed");
        for (a, m) in approvals.iter().zip(&b.members) {
            assert_eq!((a.deployment, &a.plan_digest, a.person.as_str()), (m.deployment, &m.plan_digest, "both"));
            let signature = STANDARD.decode(&a.signature).expect("base64");
            key.verify(a.signed_text().as_bytes(), &signature).expect("signed by the api's approval key");
        }
        // No signature is shown in the record.
        let payload: Option<String> = sql("SELECT CAST(payload AS TEXT) FROM events WHERE aggregate = 'bundle'")
            .fetch_scalar(&mut tx)
            .await
            .expect("reads");
        assert!(payload.is_some_and(|p| p.contains("bundle_approve") && !p.contains("signature")));
        drop(tx);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_is_refused_with_the_member_and_the_reason() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let artifact = json!({ "version": "1.0.0", "digest": digest('a'), "url": "https://ci.example/a.tar.gz" });
        assert!(w.post("/projects/shop/artifacts", artifact).await.0 < 300);
        let member = |name: &str, e: &str, v: &str, needs: Value| json!({ "name": name, "project": "shop", "environment": e, "version": v, "needs": needs });
        let dev = w.person("dev", &[("retail", "developer")]).await;
        let half = json!({ "title": "x", "members": [{ "project": "bank", "environment": "beta", "version": "1" }] });
        let (status, p) = w.as_person(Method::POST, "/bundles", &dev, half).await;
        assert!(status == 422 && p["detail"].as_str().is_some_and(|d| d.contains("no project \"bank\"")), "{p}");
        let wrong = [
            (json!([]), "1 to 50"),
            (json!([member("a", "nowhere", "1.0.0", json!([]))]), "no environment \"nowhere\""),
            (json!([member("a", "beta", "9", json!([]))]), "no artifact of version \"9\""),
            (json!([member("a", "beta", "1.0.0", json!(["b"]))]), "needs \"b\""),
            (
                json!([member("a", "beta", "1.0.0", json!(["b"])), member("b", "online", "1.0.0", json!(["a"]))]),
                "circle",
            ),
        ];
        for (members, text) in wrong {
            let (status, p) = w.post("/bundles", json!({ "title": "x", "members": members })).await;
            assert!(status == 422 && p["detail"].as_str().is_some_and(|d| d.contains(text)), "{text}: {p}");
        }
        assert_eq!(w.count("commands").await, 0);
        let good = json!({ "title": "x", "members": [member("a", "beta", "1.0.0", json!([])), member("b", "online", "1.0.0", json!(["a"]))] });
        let (status, p) = w.as_person(Method::POST, "/bundles", &dev, good).await;
        assert_eq!(status, 202, "{p}");
        assert_eq!(w.count("command_queue WHERE bundle_id IS NOT NULL").await, 1);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_board_shows_what_was_verified_where() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let (status, p) = w.post("/projects/shop/promotions", json!({ "from": "beta", "to": "online" })).await;
        assert_eq!((status, &p["code"]), (409, &json!("no_last_known_good")), "{p}");
        let (status, p) = w.post("/projects/shop/promotions", json!({ "from": "beta", "to": "beta" })).await;
        assert_eq!(status, 400, "{p}");
        let mut tx = w.ctx.store.write().await.expect("begins");
        let mut proof = promotions::Proof {
            environment: "beta".into(),
            digest: digest('a'),
            version: "1.0.0".into(),
            artifact: Uuid::now_v7().into(),
            deployment: Uuid::now_v7().into(),
            at: Utc::now(),
            withdrawn: None,
        };
        promotions::verify(&mut tx, "shop", &proof).await.expect("stores");
        proof.environment = "online".into();
        proof.deployment = Uuid::now_v7().into();
        promotions::verify(&mut tx, "shop", &proof).await.expect("stores");
        assert!(promotions::withdraw(&mut tx, proof.deployment, "bob", "bad", Utc::now()).await.expect("withdraws"));
        assert!(!promotions::withdraw(&mut tx, proof.deployment, "bob", "bad", Utc::now()).await.expect("withdraws"));
        tx.commit().await.expect("commits");
        let (_, board) = w.get("/projects/shop/promotions").await;
        let row = &board["artifacts"][0];
        assert_eq!(
            (&row["version"], row["verified"].as_array().map(Vec::len)),
            (&json!("1.0.0"), Some(2)),
            "{board:#}"
        );
        let online =
            row["verified"].as_array().expect("list").iter().find(|p| p["environment"] == "online").expect("it");
        assert_eq!((&online["withdrawn"], &online["reason"]), (&json!(true), &json!("bad")));
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_shows_what_changed_and_goes_back() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let flow = |run: &str| {
            format!(
                "kind: flow\nproject: shop\nflow: rolling\nsteps:\n  - id: rollout\n    waves: \"1 *2\"\n    steps:\n      - id: say\n        uses: script\n        with: {{ run: \"{run}\" }}\n"
            )
        };
        assert_eq!(w.apply(&w.admin, &flow("echo two")).await.0, 200);
        let (_, d) = w.get("/catalog/flow/shop.rolling/diff").await;
        let text = d["diff"].as_str().expect("text");
        assert!(
            text.contains("-        with: { run: \"echo hello\" }")
                && text.contains("+        with: { run: \"echo two\" }"),
            "{text}"
        );
        assert!(text.starts_with("--- flow shop/rolling revision 1\n+++ flow shop/rolling revision 2\n"), "{text}");
        assert_eq!(w.get("/catalog/flow/shop.rolling/diff?from=2&to=2").await.1["diff"], "");
        let (status, p) = w.get("/catalog/flow/shop.rolling/diff?from=7").await;
        assert!(status == 422 && p["detail"].as_str().is_some_and(|d| d.contains("no revision 7")), "{p}");
        assert_eq!(w.get("/catalog/flow/shop.none/diff").await.0, 404);
        assert_eq!(w.get("/catalog/flow/shop.rolling/diff?from=x").await.0, 400);

        let (status, p) = w.post("/catalog/flow/shop.rolling/revert", json!({ "revision": 1 })).await;
        assert_eq!((status, &p["revision"]), (200, &json!(3)), "{p}");
        let (_, d) = w.get("/catalog/flow/shop.rolling/diff?from=1&to=3").await;
        assert_eq!(d["diff"], "", "the third is the first again");
        let (_, all) = w.get("/catalog/flow/shop.rolling/revisions").await;
        let authors: Vec<&Value> = all["items"].as_array().expect("items").iter().map(|r| &r["author"]).collect();
        assert_eq!(authors, ["admin", "admin", "admin"]);
        let (status, p) = w.post("/catalog/flow/shop.rolling/revert", json!({ "revision": 9 })).await;
        assert!(status == 422 && p["detail"].as_str().is_some_and(|d| d.contains("its newest is 3")), "{p}");
        // What an old content names must still exist.
        let two = "kind: host\nname: h2\naddress: a\n---\nkind: environment\nproject: shop\nname: beta\nhosts: [h2]\nflow: rolling\n";
        assert_eq!(w.apply(&w.admin, two).await.0, 200);
        assert_eq!(w.post("/catalog/environment/shop.beta/revert", json!({ "revision": 1 })).await.0, 200);
        let r = w.request(Method::DELETE, "/catalog/host/h2", &w.admin).send().await.expect("answers");
        assert_eq!(r.status(), 204);
        let (status, p) = w.post("/catalog/environment/shop.beta/revert", json!({ "revision": 2 })).await;
        assert!(status == 422 && p["errors"][0]["detail"].as_str().is_some_and(|d| d.contains("h2")), "{p}");
        // Reading is not defining.
        let viewer = w.person("vic", &[("retail", "viewer")]).await;
        let (status, _) =
            w.as_person(Method::POST, "/catalog/flow/shop.rolling/revert", &viewer, json!({ "revision": 1 })).await;
        assert_eq!(status, 403);
        w.stop().await;
    }
}
