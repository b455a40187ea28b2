//! Releases in order, on both databases and real agents: two projects approved as one, the second fails, both go back; and what
//! may go online only after it was good in beta.

use crate::world::{Form, PATIENCE, World};
use serde_json::{Value, json};
use windlass_testkit::{Db, eventually};

impl World {
    /// `shop` with beta (h1) and online (h4, from beta), `web` with beta (h2) and gray (h3); one approval everywhere.
    fn two_projects(&self) -> String {
        let shop = self.catalog(&["h1"], "1", 0, "parallel: 0");
        let flow = shop.split("---\n").find(|d| d.starts_with("kind: flow")).expect("the flow").to_owned();
        let environment = |project: &str, name: &str, host: &str, more: &str| {
            format!("---\nkind: environment\nproject: {project}\nname: {name}\nflow: web\nhosts: [{host}]\n{more}")
        };
        let mut y = shop;
        for h in ["h2", "h3", "h4"] {
            y += &format!("---\nkind: host\nname: {h}\naddress: 127.0.0.1\n");
        }
        y += "---\nkind: project\nname: web\ngroup: retail\n---\n";
        y += &flow.replace("project: shop", "project: web");
        y += &environment("web", "beta", "h2", "");
        y += &environment("web", "gray", "h3", "");
        y += &environment("shop", "online", "h4", "promote_from: beta\n");
        y + "---\nkind: policy\nname: all\nmatch: { environments: [beta, gray] }\napprovals:\n  - { name: ops, quorum: 1 }\n"
    }

    async fn bundle_until(&self, id: &str, states: &[&str]) -> Value {
        eventually(PATIENCE * 2, &format!("bundle {id} is {states:?}"), async || {
            let b = self.get(&format!("/bundles/{id}")).await;
            let state = b["state"].as_str().unwrap_or_default().to_owned();
            let over = ["succeeded", "failed", "rejected", "expired", "cancelled", "rolled_back"].contains(&&*state);
            assert!(!over || states.contains(&&*state), "the bundle ended as {state}, not {states:?}: {b:#}");
            states.contains(&&*state).then_some(b)
        })
        .await
    }

    async fn asked_bundle(&self, members: Value) -> String {
        let answer = self.post_through("/bundles", json!({ "title": "shop and web", "members": members })).await;
        answer["bundle"].as_str().expect("its id").to_owned()
    }
}

async fn in_order(db: Db) {
    let mut w = World::start(db, Form::Embedded).await;
    w.apply(&w.two_projects()).await;
    let bob = w.person("bob", "approver").await;
    // The administrator of h3 lets nothing into gray that nobody has approved: what a bundle's approval signs must do.
    let policy = w.dir.path().join("agents/h3");
    std::fs::create_dir_all(&policy).expect("directory");
    std::fs::write(policy.join("policy.yaml"), "protected_environments: { gray: { approvals: 1 } }\n").expect("writes");
    w.agents(&["h1", "h2", "h3", "h4"]).await;
    w.version("shop", "1.0.0", "true").await;
    w.version("web", "1.0.0", "true").await;
    let gray = json!({ "name": "gray", "project": "web", "environment": "gray", "version": "1.0.0", "needs": ["web"] });
    let members = |v: &str| {
        vec![
            json!({ "project": "shop", "environment": "beta", "version": v }),
            json!({ "project": "web", "environment": "beta", "version": v, "needs": ["shop"] }),
        ]
    };
    let mut three = members("1.0.0");
    three.push(gray);
    let id = w.asked_bundle(json!(three)).await;
    let b = w.bundle_until(&id, &["awaiting_approval"]).await;
    assert!(w.starts().is_empty());
    w.post_as(&bob, &format!("/bundles/{id}/approve"), json!({ "digest": b["digest"] })).await;
    w.bundle_until(&id, &["succeeded"]).await;
    for h in ["h1", "h2", "h3"] {
        assert_eq!(w.current(h).as_deref(), Some("1.0.0"), "{h}");
    }
    // In order: shop's last mark comes before web's first, and web's before gray's.
    let marks = std::fs::read_to_string(w.marks()).expect("marks");
    let hosts: Vec<&str> = marks.lines().filter_map(|l| l.split(' ').nth(1)).collect();
    assert_eq!(hosts, ["h1", "h1", "h2", "h2", "h3", "h3"], "{marks}");

    // Approved together again; the second fails, and both go back together.
    w.version("shop", "1.1.0", "true").await;
    w.version("web", "1.1.0", "exit 7").await;
    let id = w.asked_bundle(json!(members("1.1.0"))).await;
    let b = w.bundle_until(&id, &["awaiting_approval"]).await;
    w.post_as(&bob, &format!("/bundles/{id}/approve"), json!({ "digest": b["digest"] })).await;
    let b = w.bundle_until(&id, &["paused"]).await;
    assert_eq!((&b["members"][0]["state"], &b["members"][1]["state"]), (&json!("succeeded"), &json!("stuck")), "{b:#}");
    assert!(b["waiting_on"][0]["text"].as_str().is_some_and(|t| t.contains("a person: web")), "{b:#}");
    assert_eq!((w.current("h1").as_deref(), w.current("h2").as_deref()), (Some("1.1.0"), Some("1.1.0")));
    w.post(&format!("/bundles/{id}/rollback"), json!({ "reason": "web does not start" })).await;
    let b = w.bundle_until(&id, &["rolled_back"]).await;
    assert!(b["members"].as_array().expect("members").iter().all(|m| m["state"] == "rolled_back"), "{b:#}");
    assert_eq!((w.current("h1").as_deref(), w.current("h2").as_deref()), (Some("1.0.0"), Some("1.0.0")));
    w.assert_started_once();

    // Online takes what is good in beta: not what was rolled back there, but what stayed.
    let online = |v: &str| json!({ "environment": "online", "version": v });
    let (status, refused) =
        w.send("POST", "/projects/shop/deployments", &w.admin, Some(online("1.1.0"))).await.expect("answers");
    assert_eq!((status, refused["code"].as_str()), (409, Some("not_verified")), "{refused}");
    let answer = w.post_through("/projects/shop/promotions", json!({ "from": "beta", "to": "online" })).await;
    let d = answer["new_deployment"].as_str().expect("its id").to_owned();
    w.until(&d, &["succeeded"]).await;
    assert_eq!(w.current("h4").as_deref(), Some("1.0.0"));
    let board = w.get("/projects/shop/promotions").await;
    let of = |v: &str| {
        let rows = board["artifacts"].as_array().expect("rows");
        rows.iter().find(|r| r["version"] == v).expect("a row")["verified"].as_array().expect("proofs").clone()
    };
    assert_eq!(of("1.0.0").len(), 2, "{board:#}");
    assert!(of("1.1.0").iter().all(|p| p["withdrawn"] == true), "{board:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_projects_in_order_on_sqlite() {
    in_order(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_projects_in_order_on_postgres() {
    in_order(Db::postgres().await).await;
}
