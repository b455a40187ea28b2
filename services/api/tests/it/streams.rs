//! Live streams: nothing twice, nothing missed, whatever breaks in between.

use crate::world::{PATIENCE, World};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;
use windlass_domain::{
    deployment::{Deployment, State},
    event::{Aggregate, NewEvent, Severity},
};
use windlass_store::events;
use windlass_testkit::{databases, eventually};

async fn event(w: &World, d: &Deployment, n: u32) {
    let e = NewEvent {
        id: Uuid::now_v7().into(),
        aggregate: Aggregate::Deployment,
        aggregate_id: d.id.to_string(),
        what: "step.finished".into(),
        project: Some("shop".into()),
        environment: None,
        severity: Severity::Info,
        actor: "service:test".into(),
        at: chrono::Utc::now(),
        payload: json!({ "n": n }),
        trace: None,
    };
    let mut tx = w.ctx.store.write().await.expect("begins");
    events::append(&mut tx, e).await.expect("appends");
    tx.commit().await.expect("commits");
}

/// Reads up to `n` messages: id, event, data.
async fn read(w: &World, token: &str, path: &str, last: Option<&str>, n: usize) -> Vec<(String, String, Value)> {
    let mut r = w.request(Method::GET, path, token).header("accept", "text/event-stream");
    if let Some(id) = last {
        r = r.header("last-event-id", id);
    }
    let r = r.send().await.expect("answers");
    assert_eq!(r.status(), 200);
    drain(r, n).await
}

async fn drain(mut r: reqwest::Response, n: usize) -> Vec<(String, String, Value)> {
    let (mut text, mut out) = (String::new(), vec![]);
    let all = async {
        while out.len() < n {
            let Some(bytes) = r.chunk().await.expect("reads") else { break };
            text.push_str(std::str::from_utf8(&bytes).expect("text"));
            while let Some(end) = text.find("\n\n") {
                let block: String = text.drain(..end + 2).collect();
                let field = |f: &str| block.lines().find_map(|l| l.strip_prefix(f)).unwrap_or_default().to_owned();
                if !field("data: ").is_empty() {
                    out.push((field("id: "), field("event: "), serde_json::from_str(&field("data: ")).expect("json")));
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("messages in time");
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_where_it_broke_and_ends_with_the_deployment() {
    for db in databases().await {
        let mut w = World::start(db).await;
        w.fill().await;
        let mut d = w.deployment("shop", "beta").await;
        let path = format!("/deployments/{}/events", d.id);
        for n in 1..=250 {
            event(&w, &d, n).await;
        }
        let token = w.admin.clone();
        let first = read(&w, &token, &path, None, 120).await;
        let seen = first.last().expect("some").0.clone();
        // Another api takes it up.
        w.base = w.another_api().await;
        let (rest, ()) = tokio::join!(read(&w, &token, &path, Some(&seen), usize::MAX), async {
            event(&w, &d, 251).await;
            d.state = State::Succeeded;
            w.store(&d).await;
        });
        let mut numbers: Vec<u64> = first
            .iter()
            .chain(&rest)
            .filter(|m| m.1 == "event")
            .map(|m| m.2["payload"]["n"].as_u64().expect("n"))
            .collect();
        let last = rest.last().expect("some");
        assert_eq!((last.1.as_str(), &last.2["state"]), ("end", &json!("succeeded")));
        let before = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), before, "nothing twice");
        assert_eq!(numbers, (1..=251).collect::<Vec<u64>>(), "nothing missed");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_ends_its_stream() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let d = w.deployment("shop", "beta").await;
        let ann = w.person("ann", &[("retail", "viewer")]).await;
        let path = format!("/deployments/{}/logs", d.id);
        let open = w.request(Method::GET, &path, &ann).send().await.expect("answers");
        assert_eq!(open.status(), 200);
        let id = ann.split('_').nth(1).expect("id");
        let revoked = w.request(Method::DELETE, &format!("/tokens/{id}"), &w.admin).send().await.expect("answers");
        assert_eq!(revoked.status(), 204);
        let all = drain(open, usize::MAX).await;
        assert_eq!(all, [(String::new(), "end".to_owned(), json!({ "state": "unauthorized" }))]);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_so_many_streams_and_a_closed_one_is_free_again() {
    for db in databases().await {
        // Four, so one for each token.
        let w = World::start_with(db, |s| s.api.max_streams = 4).await;
        w.fill().await;
        let d = w.deployment("shop", "beta").await;
        let path = format!("/deployments/{}/events", d.id);
        let mut people = Vec::new();
        for name in ["ann", "ben", "cem", "dan", "eve"] {
            people.push(w.person(name, &[("retail", "viewer")]).await);
        }
        let ask = async |token: &str| w.request(Method::GET, &path, token).send().await.expect("answers");
        let refused = async |token: &str| {
            let r = ask(token).await;
            let (status, later) = (r.status().as_u16(), r.headers().contains_key("retry-after"));
            let problem: Value = r.json().await.expect("a problem");
            assert!(later && problem["code"] == "streams_full", "{problem}");
            assert!(problem["detail"].as_str().is_some_and(|t| t.contains("api.max_streams")), "{problem}");
            status
        };
        let mut open = vec![ask(&people[0]).await, ask(&people[1]).await, ask(&people[2]).await];
        assert_eq!(refused(&people[0]).await, 429, "its share is taken");
        open.push(ask(&people[3]).await);
        assert!(open.iter().all(|r| r.status() == 200), "{open:?}");
        assert_eq!(refused(&people[4]).await, 503, "all are taken");
        open.remove(0);
        let again = async || Some(ask(&people[4]).await).filter(|r| r.status() == 200);
        eventually(PATIENCE, "the closed one's place", again).await;
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_page_without_gaps() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let mut wanted = std::collections::BTreeSet::new();
        for i in 0..23 {
            let d = w.deployment(if i % 3 == 0 { "bank" } else { "shop" }, "beta").await;
            if i % 3 != 0 {
                wanted.insert(d.id.to_string());
            }
        }
        let ann = w.person("ann", &[("retail", "viewer")]).await;
        let (mut got, mut cursor) = (std::collections::BTreeSet::new(), String::new());
        for _ in 0..30 {
            let path = format!("/deployments?limit=4{cursor}");
            let (_, p) = crate::world::answer(w.request(Method::GET, &path, &ann).send().await.expect("answers")).await;
            for d in p["items"].as_array().expect("items") {
                assert!(got.insert(d["id"].as_str().expect("id").to_owned()), "twice");
            }
            match p["next"].as_str() {
                Some(n) => cursor = format!("&cursor={n}"),
                None => break,
            }
        }
        assert_eq!(got, wanted);
        let (status, detail) = w.get(&format!("/deployments/{}", wanted.first().expect("one"))).await;
        assert_eq!((status, &detail["waiting_on"][0]["on"]), (200, &json!("approval")), "{detail}");
        w.stop().await;
    }
}
