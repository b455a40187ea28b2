//! Secrets over the API: scopes, who may set them, and what is refused.

use crate::world::{World, answer};
use reqwest::Method;
use serde_json::{Value, json};
use windlass_testkit::databases;

async fn put(w: &World, token: &str, place: &str, body: Value) -> (u16, Value) {
    answer(
        w.request(Method::PUT, &format!("/api/v1/secrets/{place}"), token).json(&body).send().await.expect("answers"),
    )
    .await
}

#[tokio::test]
async fn each_scope_belongs_to_who_administers_it_and_values_never_come_back() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let retail = w.person("rita", &[("retail", "admin")]).await;
        let all = w.person("ada", &[("*", "admin")]).await;
        let operator = w.person("oleg", &[("retail", "operator")]).await;
        let value = json!({ "value": "canary-of-the-api" });
        for (place, own) in [
            ("project.shop/a", true),
            ("environment.shop.beta/a", true),
            ("group.retail/a", true),
            ("group.money/a", false),
            ("project.bank/a", false),
            ("environment.bank.beta/a", false),
            ("host.h1/a", false),
            ("channel/a", false),
        ] {
            let (status, body) = put(&w, &retail, place, value.clone()).await;
            assert_eq!(status == 200, own, "{place} by the group's admin: {status} {body}");
            let (status, body) = put(&w, &all, place, value.clone()).await;
            assert_eq!(status, 200, "{place} by the admin of all: {body}");
            let (status, _) = put(&w, &operator, place, value.clone()).await;
            assert!(matches!(status, 403 | 404), "{place} by an operator: {status}");
        }
        for (token, n) in [(&retail, 5), (&all, 10)] {
            let r = w.request(Method::GET, "/api/v1/secrets", token).send().await.expect("answers");
            let (_, list) = answer(r).await;
            let scopes: Vec<&str> =
                list["items"].as_array().expect("items").iter().filter_map(|s| s["scope"].as_str()).collect();
            assert_eq!(scopes.len(), n, "{scopes:?}");
            assert!(!list.to_string().contains("canary"), "{list}");
            assert_eq!(list.to_string().contains("money"), n == 10, "{list}");
        }
        w.stop().await;
    }
}

#[tokio::test]
async fn what_cannot_be_kept_secret_is_refused_with_the_reason() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let all = w.person("ada", &[("*", "admin")]).await;
        for (place, body, status, part) in [
            ("project.shop/a", json!({ "value": "abc" }), 400, "4 bytes"),
            ("project.shop/a", json!({ "value": "" }), 400, "empty"),
            ("project.shop/a", json!({ "value": "abcd", "vault": "secret/x#k" }), 400, "not both"),
            ("project.shop/a", json!({ "vault": "nonsense" }), 400, "secret/web/db#password"),
            ("project.shop/a", json!({ "vault": "secret/x#k" }), 409, "vault.address"),
            ("channel/a", json!({ "vault": "secret/x#k" }), 400, "kept here"),
            ("project.shop/A", json!({ "value": "abcd" }), 400, "must match"),
        ] {
            let (got, answer) = put(&w, &all, place, body.clone()).await;
            assert_eq!(got, status, "{place} {body}: {answer}");
            assert!(answer.to_string().contains(part), "{place} {body}: {answer}");
        }
        let (status, _) = put(&w, &all, "nowhere.x/a", json!({ "value": "abcd" })).await;
        assert_eq!(status, 404);
        let (status, _) = put(&w, &all, "deployment.x/a", json!({ "value": "abcd" })).await;
        assert_eq!(status, 404);
        w.stop().await;
    }
}
