//! Bad input: a clear error each, and the service still up.

use crate::world::{World, answer, signed};
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use windlass_testkit::{Db, databases};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_input_is_answered_in_the_envelope() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let deep = "[".repeat(100_000);
        let big = "x".repeat(10 * 1024 * 1024);
        let artifact = |extra: &str| {
            format!(r#"{{"version":"1","digest":"sha256:{}","url":"https://x/y"{extra}}}"#, "a".repeat(64)).into_bytes()
        };
        let cases: Vec<(Method, &str, Vec<u8>, u16)> = vec![
            (Method::POST, "/projects/shop/artifacts", artifact(r#","colour":"red""#), 400),
            (Method::POST, "/projects/shop/artifacts", artifact(r#","size":"big""#), 400),
            (Method::POST, "/projects/shop/artifacts", br#"{"version":"../1","digest":"x","url":"y"}"#.to_vec(), 422),
            (Method::POST, "/projects/shop/artifacts", b"{\"version\":\"\xff\"}".to_vec(), 400),
            (Method::POST, "/projects/shop/artifacts", deep.clone().into_bytes(), 400),
            (Method::POST, "/projects/shop/artifacts", big.clone().into_bytes(), 413),
            (Method::POST, "/projects/shop/deployments", br#"{"environment":"beta","version":"9"}"#.to_vec(), 422),
            (Method::POST, "/projects/shop/deployments", br#"{"environment":"nope","version":"9"}"#.to_vec(), 422),
            (Method::POST, "/projects/sh%00p/deployments", b"{}".to_vec(), 404),
            (Method::POST, "/apply", b"kind: host\nname: h1\naddress: a\ncolour: red\n".to_vec(), 422),
            (Method::POST, "/projects/shop/artifacts", artifact(r#","committer":"a\u0000""#), 400),
            (Method::GET, "/deployments?project=%00", vec![], 400),
            (Method::POST, "/apply", b"kind: host\nname: h1\naddress: \"a\\0\"\n".to_vec(), 422),
            (Method::POST, "/apply", b"\xff\xfe".to_vec(), 422),
            (Method::POST, "/apply", b"a: &x [*x]\n".to_vec(), 422),
            (Method::POST, "/apply", Vec::new(), 422),
            (Method::POST, "/apply?dryrun=true", b"kind: host\n".to_vec(), 400),
            (Method::POST, "/apply", big.into_bytes(), 413),
            (Method::POST, "/people", br#"{"name":"Ann"}"#.to_vec(), 400),
            (Method::POST, "/people", br#"{"name":"ann","grants":[{"project_group":"*","role":"god"}]}"#.to_vec(), 400),
            (Method::POST, "/tokens", br#"{"person":"nobody"}"#.to_vec(), 422),
            (Method::POST, "/tokens", br#"{"person":"admin","scopes":["all"]}"#.to_vec(), 400),
            (Method::POST, "/enroll", br#"{"token":"x","public_key":"y"}"#.to_vec(), 401),
            (Method::GET, "/deployments?limit=0", vec![], 400),
            (Method::GET, "/deployments?limit=501", vec![], 400),
            (Method::GET, "/deployments?cursor=%00", vec![], 400),
            (Method::GET, "/deployments?state=done", vec![], 400),
            (Method::GET, "/deployments?projekt=shop", vec![], 400),
            (Method::GET, "/deployments/not-an-id", vec![], 404),
            (Method::GET, "/nothing", vec![], 404),
            (Method::PATCH, "/people", vec![], 405),
            (Method::GET, "/apply", vec![], 405),
            (Method::PUT, "/secrets/project.shop/A", br#"{"value":"x"}"#.to_vec(), 400),
            (Method::PUT, "/secrets/elsewhere/a", br#"{"value":"x"}"#.to_vec(), 404),
        ];
        for (method, path, body, wanted) in cases {
            let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
            let r = w.request(method.clone(), path, &w.admin).body(body).send().await;
            // A server that stops reading a body it will not take may close before all of it is sent.
            let Ok(r) = r else {
                assert_eq!(wanted, 413, "{method} {path} broke off");
                continue;
            };
            let (status, p) = answer(r).await;
            assert_eq!(status, wanted, "{method} {path} {shown}: {p}");
        }
        for body in [b"\xff\xfe{}".to_vec(), deep.clone().into_bytes(), b"{}".to_vec(), b"[1]".to_vec(), Vec::new()] {
            let (status, p) = w.hook("/hooks/cdevents/shop", &signed("m1", &body), body.clone()).await;
            assert!((400..=422).contains(&status) && status != 403, "{status} {p}");
        }
        let (status, p) = w.post("/projects/shop/artifacts", json!({ "version": 1 })).await;
        assert_eq!((status, &p["errors"][0]["line"]), (400, &json!(1)), "{p}");
        assert_eq!(w.get("/healthz").await.0, 200);
        assert_eq!(w.get("/me").await.1["person"], "admin");
        w.stop().await;
    }
}

/// The answer comes before the body: nothing of it is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_too_large_is_refused_by_its_announced_length() {
    let w = World::start(Db::sqlite()).await;
    let mut c = tokio::net::TcpStream::connect(w.base.trim_start_matches("http://")).await.expect("connects");
    c.write_all(b"POST /hooks/cdevents/shop HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")
        .await
        .expect("writes");
    let mut buffer = vec![0; 512];
    let n = tokio::time::timeout(crate::world::PATIENCE, c.read(&mut buffer))
        .await
        .expect("answers at once")
        .expect("reads");
    assert!(buffer[..n].starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&buffer[..n]));
    w.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_are_told_when_to_come_back() {
    let w = World::start_with(Db::sqlite(), |s| {
        (s.api.hook_rate_per_s, s.api.hook_burst) = (0.01, 3.0);
        (s.api.rate_per_s, s.api.rate_burst) = (0.01, 3.0);
    })
    .await;
    let mut seen = vec![];
    for _ in 0..5 {
        seen.push(w.hook("/hooks/cdevents/shop", &[], vec![]).await.0);
    }
    assert_eq!(seen, [403, 403, 403, 429, 429]);
    let mut seen = vec![];
    for _ in 0..4 {
        let r = w.request(Method::GET, "/me", &w.admin).send().await.expect("answers");
        seen.push((r.status().as_u16(), r.headers().contains_key("retry-after")));
    }
    assert_eq!(seen, [(200, false), (200, false), (200, false), (429, true)]);
    w.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_is_served_with_its_guards() {
    let w = World::start(Db::sqlite()).await;
    for path in ["/", "/deployments/x"] {
        let r = w.http.get(format!("{}{path}", w.base)).send().await.expect("answers");
        assert_eq!(r.status(), 200);
        let h = |n: &str| r.headers().get(n).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        assert!(h("content-security-policy").contains("frame-ancestors 'none'"));
        assert_eq!((h("x-content-type-options"), h("cache-control")), ("nosniff".into(), "no-store".into()));
        assert!(h("content-type").starts_with("text/html"));
    }
    assert_eq!(w.http.get(format!("{}/missing.js", w.base)).send().await.expect("answers").status(), 404);
    w.stop().await;
}
