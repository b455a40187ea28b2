//! Somebody who was sent away while a page was open: every stream of theirs ends within its bound, whatever ended the right.

use crate::world::World;
use reqwest::Method;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use windlass_testkit::databases;

/// Rights are read anew every 5 s and the database is looked at every second; the rest is for a crowded machine.
const BOUND: Duration = Duration::from_secs(12);

/// Reads to the end: everything that came, and when it ended.
async fn to_the_end(mut r: reqwest::Response) -> (String, Instant) {
    let mut all = String::new();
    while let Some(bytes) = r.chunk().await.expect("reads") {
        all.push_str(&String::from_utf8_lossy(&bytes));
    }
    (all, Instant::now())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_ends_a_right_ends_its_open_streams() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let d = w.deployment("shop", "beta").await;
        let causes =
            ["token revoked", "token expired", "person disabled", "grants taken away", "grant moved elsewhere"];
        let soon = chrono::Utc::now() + chrono::TimeDelta::seconds(3);
        let mut open = Vec::new();
        let mut tokens = Vec::new();
        for (i, cause) in causes.iter().enumerate() {
            let name = format!("p{i}");
            let mut token = w.person(&name, &[("retail", "viewer")]).await;
            if *cause == "token expired" {
                token = w.token(json!({ "person": name, "expires_at": soon })).await;
            }
            for kind in ["events", "logs"] {
                let r = w.request(Method::GET, &format!("/deployments/{}/{kind}", d.id), &token);
                let r = r.header("accept", "text/event-stream").send().await.expect("answers");
                assert_eq!(r.status(), 200, "{cause} {kind}");
                open.push((format!("{cause}: {kind}"), tokio::spawn(to_the_end(r))));
            }
            tokens.push(token);
        }
        let stays = w.person("stays", &[("retail", "viewer")]).await;
        let r = w.request(Method::GET, &format!("/deployments/{}/events", d.id), &stays);
        let kept = tokio::spawn(to_the_end(r.header("accept", "text/event-stream").send().await.expect("answers")));

        let id = tokens[0].split('_').nth(1).expect("id");
        let r = w.request(Method::DELETE, &format!("/tokens/{id}"), &w.admin).send().await.expect("answers");
        assert_eq!(r.status(), 204);
        assert_eq!(w.post("/people", json!({ "name": "p2", "disabled": true })).await.0, 200);
        assert_eq!(w.post("/people/p3/grants", json!({ "grants": [] })).await.0, 200);
        let moved = json!({ "grants": [{ "project_group": "money", "role": "admin" }] });
        assert_eq!(w.post("/people/p4/grants", moved).await.0, 200);
        let ended = Instant::now().max(Instant::now() + (soon - chrono::Utc::now()).to_std().unwrap_or_default());
        for (name, stream) in open {
            let (text, at) = tokio::time::timeout(BOUND * 2, stream).await.expect(&name).expect("no panic");
            assert!(text.contains("\"state\":\"unauthorized\""), "{name}: {text:?}");
            let took = at.saturating_duration_since(ended);
            assert!(took <= BOUND, "{name}: {took:?}");
        }
        assert!(!kept.is_finished(), "who may see it goes on seeing it");
        kept.abort();
        // And no new one opens.
        for token in &tokens {
            let r = w.request(Method::GET, &format!("/deployments/{}/events", d.id), token).send().await;
            assert!([401, 404].contains(&r.expect("answers").status().as_u16()));
        }
        w.stop().await;
    }
}

/// Who holds a request open can finish it when their token has been revoked: it is asked for again then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_comes_after_the_token_was_revoked_does_nothing() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let token = w.person("ann", &[("*", "admin")]).await;
        let body = b"kind: host\nname: h9\naddress: 10.0.0.9\n";
        for revoked in [false, true] {
            let mut c = TcpStream::connect(w.base.trim_start_matches("http://")).await.expect("connects");
            let head = format!(
                "POST /api/v1/apply HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
                 Content-Length: {}\r\n\r\n",
                body.len()
            );
            c.write_all(head.as_bytes()).await.expect("writes");
            c.write_all(&body[..5]).await.expect("writes");
            // It is admitted by now: whoever may not would have been told.
            let mut early = [0; 1];
            let told = tokio::time::timeout(Duration::from_millis(500), c.read(&mut early)).await;
            assert!(told.is_err(), "an answer before the body");
            if revoked {
                let id = token.split('_').nth(1).expect("id");
                let r = w.request(Method::DELETE, &format!("/tokens/{id}"), &w.admin).send().await.expect("answers");
                assert_eq!(r.status(), 204);
            }
            c.write_all(&body[5..]).await.expect("writes");
            let mut answer = String::new();
            tokio::time::timeout(BOUND, c.read_to_string(&mut answer)).await.expect("answers").expect("reads");
            let wanted = if revoked { "HTTP/1.1 401" } else { "HTTP/1.1 200" };
            assert!(answer.starts_with(wanted), "{answer}");
        }
        assert_eq!(w.count("catalog_revisions WHERE kind = 'host' AND key = 'h9'").await, 1);
        w.stop().await;
    }
}
