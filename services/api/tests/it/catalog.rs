//! The catalog: all or nothing, twice is once, and rights item by item.

use crate::world::{CATALOG, World, answer};
use reqwest::Method;
use serde_json::json;
use windlass_testkit::databases;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_is_idempotent_and_all_or_nothing() {
    for db in databases().await {
        let w = World::start(db).await;
        let dry = answer(
            w.request(Method::POST, "/apply?dry_run=true", &w.admin).body(CATALOG).send().await.expect("answers"),
        )
        .await;
        assert_eq!((dry.0, dry.1["items"][0]["change"].clone()), (200, json!("created")), "{}", dry.1);
        assert_eq!(w.count("catalog").await, 0);
        w.fill().await;
        let (_, again) = w.apply(&w.admin, CATALOG).await;
        assert!(again["items"].as_array().expect("items").iter().all(|i| i["change"] == "unchanged"), "{again}");
        let rows = w.count("catalog_revisions").await;
        // One bad reference saves none of the good ones, and the place is named.
        let bad = "kind: host\nname: h9\naddress: a\n---\nkind: environment\nproject: shop\nname: gamma\nhosts: [h8]\nflow: rolling\n";
        let (status, p) = w.apply(&w.admin, bad).await;
        assert_eq!((status, &p["errors"][0]["line"]), (422, &json!(5)), "{p}");
        assert!(p["errors"][0]["detail"].as_str().is_some_and(|d| d.contains("h8")), "{p}");
        assert_eq!(w.count("catalog_revisions").await, rows);
        // A difference names its field.
        let (_, changed) = w.apply(&w.admin, &CATALOG.replace("address: 127.0.0.1", "address: 127.0.0.2")).await;
        let host = changed["items"].as_array().expect("items").iter().find(|i| i["kind"] == "host").expect("host");
        assert_eq!(
            (&host["change"], &host["revision"], &host["diff"][0]["to"]),
            (&json!("changed"), &json!(2), &json!("127.0.0.2")),
            "{host}"
        );
        let (_, revisions) = w.get("/catalog/host/h1/revisions").await;
        assert_eq!(revisions["items"].as_array().map(Vec::len), Some(2));
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etag_guards_what_somebody_else_saved() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let put = |tag: &'static str, address: &'static str| {
            let body = format!("{{\"kind\": \"host\", \"name\": \"h1\", \"address\": \"{address}\"}}");
            w.request(Method::PUT, "/catalog/host/h1", &w.admin).header("if-match", tag).body(body).send()
        };
        let r = w.request(Method::GET, "/catalog/environment/shop/beta", &w.admin).send().await.expect("answers");
        assert_eq!(r.headers().get("etag").map(|t| t.as_bytes().to_vec()), Some(b"\"1\"".to_vec()));
        let dotted = w.get("/catalog/environment/shop.beta").await;
        assert_eq!(dotted, answer(r).await);
        assert_eq!(put("\"1\"", "10.0.0.1").await.expect("answers").status(), 200);
        assert_eq!(answer(put("\"1\"", "10.0.0.2").await.expect("answers")).await.0, 412);
        let delete = |path: &'static str| w.request(Method::DELETE, path, &w.admin).send();
        let (status, p) = answer(delete("/catalog/host/h1").await.expect("answers")).await;
        assert_eq!((status, &p["code"]), (409, &json!("in_use")), "{p}");
        assert_eq!(delete("/catalog/policy/auto").await.expect("answers").status(), 204);
        assert_eq!(w.get("/catalog/policy/auto").await.0, 404);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_defines_outside_their_group() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let ann = w.person("ann", &[("retail", "admin")]).await;
        let project = |name: &str, group: &str| format!("kind: project\nname: {name}\ngroup: {group}\n");
        assert_eq!(w.apply(&ann, &project("stall", "retail")).await.0, 200);
        for text in [
            project("bank", "money"),
            // Neither pulled in nor pushed out.
            project("bank", "retail"),
            project("stall", "money"),
            "kind: host\nname: h2\naddress: a\n".to_owned(),
            "kind: policy\nname: p\n".to_owned(),
            format!("{}---\n{}", project("stall", "retail"), project("bank", "money")),
        ] {
            let (status, p) = w.apply(&ann, &text).await;
            assert_eq!(status, 403, "{text}: {p}");
        }
        // What exists elsewhere is answered like what does not.
        let flow = |project: &str| {
            CATALOG.split("---").nth(3).expect("flow").replace("project: shop", &format!("project: {project}"))
        };
        let (known, unknown) = (w.apply(&ann, &flow("bank")).await, w.apply(&ann, &flow("nope")).await);
        assert_eq!(known.0, 403);
        assert_eq!(known.1["detail"], unknown.1["detail"]);
        assert_eq!(known.1["errors"][0]["detail"], unknown.1["errors"][0]["detail"]);
        let (_, list) = answer(w.request(Method::GET, "/catalog/project", &ann).send().await.expect("answers")).await;
        let names: Vec<_> = list["items"].as_array().expect("items").iter().map(|i| i["key"].clone()).collect();
        assert_eq!(names, [json!("shop"), json!("stall")]);
        w.stop().await;
    }
}
