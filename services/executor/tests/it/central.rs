//! Central steps.

use crate::world::{SOON, World};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use windlass_domain::work::WorkResult;
use windlass_testkit::{databases, eventually, temp_dir};

/// An HTTP server that answers with what `answer` makes of the number of requests so far; keeps every request's text.
pub(crate) async fn server(
    answer: impl Fn(usize) -> Option<String> + Send + 'static,
) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let to = Arc::clone(&seen);
    tokio::spawn(async move {
        let mut held = vec![];
        while let Ok((mut c, _)) = listener.accept().await {
            let mut buffer = vec![0; 64 * 1024];
            let n = c.read(&mut buffer).await.unwrap_or(0);
            let count = {
                let mut seen = to.lock().expect("no poison");
                seen.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
                seen.len()
            };
            match answer(count) {
                Some(text) => {
                    let _ = c.write_all(text.as_bytes()).await;
                }
                // Never answered; the connection stays open.
                None => held.push(c),
            }
        }
    });
    (url, seen)
}

pub(crate) fn http(status: u16, body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()))
}

async fn central(w: &World, step: &str) -> (bool, String, serde_json::Value) {
    let work = w.central(step).await;
    match w.result(work, 1).await {
        WorkResult::Central { succeeded, reason, output, .. } => (succeeded, reason.unwrap_or_default(), output),
        other => panic!("not central: {other:?}"),
    }
}

#[tokio::test]
async fn http_requests_are_tried_until_the_answer_fits() {
    for db in databases().await {
        let (good, seen) = server(|n| if n < 3 { http(503, "not yet") } else { http(201, "it is ready now") }).await;
        let (bad, _) = server(|_| http(500, "no")).await;
        let expect = |url: &str, within: u64| {
            serde_json::json!({ "url": url, "method": "POST", "headers": { "x-team": "shop" }, "body": "hi",
                "expect_status": [200, "201-204"], "expect_body": "ready", "within_s": within })
        };
        let w = World::with_central(
            db,
            1,
            0,
            vec![
                ("http.request", expect(&good, 10)),
                ("http.request", expect(&bad, 1)),
                ("http.request", expect("http://169.254.169.254/", 10)),
                ("teleport", serde_json::json!({})),
            ],
        )
        .await;
        let e = w.executor().await;
        let (ok, reason, output) = central(&w, "c0").await;
        assert!(ok, "{reason}");
        assert_eq!(output["tries"], 3);
        let texts = seen.lock().expect("no poison").clone();
        let key = |t: &String| t.lines().find(|l| l.to_lowercase().starts_with("idempotency-key")).map(str::to_owned);
        assert!(key(&texts[0]).is_some() && texts.iter().all(|t| key(t) == key(&texts[0])), "{texts:?}");
        assert!(texts[0].contains("x-team: shop") && texts[0].ends_with("hi"));
        let (ok, reason, _) = central(&w, "c1").await;
        assert!(!ok && reason.contains("answered 500 instead of 200 or 201-204"), "{reason}");
        let started = Instant::now();
        let (ok, reason, _) = central(&w, "c2").await;
        assert!(!ok && started.elapsed() < Duration::from_secs(5), "a forbidden address is not retried: {reason}");
        let (ok, reason, _) = central(&w, "c3").await;
        assert!(!ok && reason.contains("teleport"), "{reason}");
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_step_whose_executor_died_is_started_again_with_the_same_key() {
    for db in databases().await {
        let (url, seen) = server(|n| if n == 1 { None } else { http(200, "ok") }).await;
        let with = serde_json::json!({ "url": url, "method": "POST", "within_s": 15 });
        let w = World::with_central(db, 1, 0, vec![("http.request", with)]).await;
        let first = w.executor().await;
        let work = w.central("c0").await;
        eventually(SOON, "the first request is out", async || (seen.lock().ok()?.len() == 1).then_some(())).await;
        first.crash().await;
        let second = w.executor().await;
        let WorkResult::Central { succeeded, reason, .. } = w.result(work, 1).await else { panic!("central") };
        assert!(succeeded, "{reason:?}");
        let texts = seen.lock().expect("no poison").clone();
        assert_eq!(texts.len(), 2);
        assert!(texts.iter().all(|t| t.to_lowercase().contains(&format!("idempotency-key: {work}"))), "{texts:?}");
        second.shut_down().await;
    }
}

#[tokio::test]
async fn artifacts_are_read_whole_and_compared() {
    use sha2::{Digest, Sha256};
    for db in databases().await {
        let dir = temp_dir();
        let body = "a package".repeat(1000);
        let path = dir.path().join("p.tar.gz");
        std::fs::write(&path, &body).expect("writes");
        let digest = format!(
            "sha256:{}",
            Sha256::digest(body.as_bytes()).iter().map(|b| format!("{b:02x}")).collect::<String>()
        );
        let text = body.clone();
        let (url, _) = server(move |_| http(200, &text)).await;
        let file = format!("file://{}", path.display());
        let with = |url: &str, digest: &str, size: Option<usize>, age: Option<u64>| {
            serde_json::json!({ "url": url, "digest": digest, "size": size, "dir": "d", "max_age_s": age,
                "built_at": "2020-01-01T00:00:00Z" })
        };
        let wrong = format!("sha256:{}", "0".repeat(64));
        let steps = vec![
            ("artifact.verify", with(&url, &digest, Some(9000), None)),
            ("artifact.verify", with(&file, &digest, None, Some(u64::MAX / 4))),
            ("artifact.verify", with(&url, &wrong, None, None)),
            ("artifact.verify", with(&url, &digest, Some(1), None)),
            ("artifact.verify", with(&url, &digest, None, Some(60))),
            ("artifact.verify", with("file:///no/such/file", &digest, None, None)),
        ];
        let w = World::with_central(db, 1, 0, steps).await;
        let e = w.executor().await;
        for (step, want) in
            [("c0", ""), ("c1", ""), ("c2", "digest"), ("c3", "9000 bytes"), ("c4", "built"), ("c5", "cannot read")]
        {
            let (ok, reason, _) = central(&w, step).await;
            assert_eq!(ok, want.is_empty(), "{step}: {reason}");
            assert!(reason.contains(want), "{step}: {reason}");
        }
        e.shut_down().await;
    }
}

#[tokio::test]
async fn notify_is_said_once_and_wait_waits_until_aborted() {
    for db in databases().await {
        let steps = vec![
            ("notify", serde_json::json!({ "message": "look here", "severity": "action" })),
            ("wait", serde_json::json!({ "for_s": 1 })),
            ("wait", serde_json::json!({ "for_s": 3600 })),
        ];
        let w = World::with_central(db, 1, 0, steps).await;
        let e = w.executor().await;
        assert!(central(&w, "c0").await.0);
        let said: Vec<_> = w.events().await.into_iter().filter(|e| e.what == "notify.requested").collect();
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].payload["message"], "look here");
        assert_eq!(said[0].severity, windlass_domain::event::Severity::Action);
        let started = Instant::now();
        assert!(central(&w, "c1").await.0);
        assert!(started.elapsed() >= Duration::from_millis(900), "it waited");
        let work = w.central("c2").await;
        eventually(SOON, "claimed", async || {
            let c = windlass_store::works::claim_state(&mut w.store.read().await.ok()?, work).await.ok()??;
            (c.phase == "running").then_some(())
        })
        .await;
        w.abort().await;
        let WorkResult::Central { succeeded, reason, .. } = w.result(work, 1).await else { panic!("central") };
        assert!(!succeeded && reason.is_some_and(|r| r.contains("aborted")));
        e.shut_down().await;
    }
}

/// Nobody took the work for a while, and meanwhile a person spoke: after an abort nothing of it begins, under a pause it waits.
#[tokio::test]
async fn a_step_that_nobody_had_taken_does_not_begin_past_an_abort_or_a_pause() {
    for db in databases().await {
        let (url, asked) = server(|_| http(200, "")).await;
        let post = || ("http.request", serde_json::json!({ "method": "POST", "url": url }));
        let w = World::with_central(db, 1, 0, vec![post(), post()]).await;
        let held = w.central("c0").await;
        w.hold(held, true).await;
        let e = w.executor().await;
        eventually(SOON, "claimed", async || {
            let c = windlass_store::works::claim_state(&mut w.store.read().await.ok()?, held).await.ok()??;
            (c.phase == "running").then_some(())
        })
        .await;
        let early = tokio::time::timeout(Duration::from_millis(1_000), w.result(held, 1)).await;
        assert!(early.is_err() && asked.lock().expect("lock").is_empty(), "it began under a pause");
        // Nor does it with the next executor.
        e.shut_down().await;
        let e = w.executor().await;
        let early = tokio::time::timeout(Duration::from_millis(1_000), w.result(held, 1)).await;
        assert!(early.is_err() && asked.lock().expect("lock").is_empty(), "it began under a pause, taken over");
        w.hold(held, false).await;
        let WorkResult::Central { succeeded, .. } = w.result(held, 1).await else { panic!("central") };
        assert!(succeeded && asked.lock().expect("lock").len() == 1);
        e.shut_down().await;

        for _ in 0..5 {
            let aborted = w.central("c1").await;
            w.abort().await;
            let e = w.executor().await;
            let WorkResult::Central { reason, class, .. } = w.result(aborted, 1).await else { panic!("central") };
            assert_eq!(reason.as_deref(), Some("not started: the deployment was aborted"));
            assert_eq!(class, Some(windlass_domain::work::FailureClass::Stopped));
            e.shut_down().await;
        }
        assert_eq!(asked.lock().expect("lock").len(), 1, "it was asked after the abort");
    }
}

#[tokio::test]
async fn prometheus_is_asked_for_a_number() {
    for db in databases().await {
        let vector = |values: &[&str]| {
            let series: Vec<_> =
                values.iter().map(|v| serde_json::json!({ "metric": { "job": "web" }, "value": [1, v] })).collect();
            let data = serde_json::json!({ "resultType": "vector", "result": series });
            serde_json::json!({ "status": "success", "data": data }).to_string()
        };
        let (one, seen) = server(move |n| if n == 1 { http(200, "") } else { http(200, &vector(&["0.5"])) }).await;
        let (many, _) = server(move |_| http(200, &vector(&["1", "2"]))).await;
        let (refused, _) =
            server(|_| http(400, r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#)).await;
        let ask = |url: &str| {
            let headers = serde_json::json!({ "x-scope-orgid": "shop" });
            ("prometheus.query", serde_json::json!({ "url": url, "query": "up", "headers": headers, "within_s": 8 }))
        };
        let w = World::with_central(db, 1, 0, vec![ask(&one), ask(&many), ask(&refused)]).await;
        let e = w.executor().await;
        let (ok, reason, _) = central(&w, "c0").await;
        assert!(!ok && reason.contains("check `url`"), "{reason}");
        let (ok, reason, output) = central(&w, "c0").await;
        assert!(ok, "{reason}");
        assert_eq!(output["value"], 0.5);
        assert_eq!(output["series"][0]["labels"]["job"], "web");
        assert!(seen.lock().expect("no poison").iter().any(|t| t.contains("x-scope-orgid: shop")));
        let (ok, _, output) = central(&w, "c1").await;
        assert!(ok && output["value"].is_null(), "two samples are no one number: {output}");
        let (ok, reason, _) = central(&w, "c2").await;
        assert!(!ok && reason.contains("parse error"), "{reason}");
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_central_failure_says_what_kind_it_was() {
    use windlass_domain::work::FailureClass::{self, *};
    for db in databases().await {
        let (bad, _) = server(|_| http(500, "no")).await;
        let (silent, _) = server(|_| None).await;
        let request = |url: &str| ("http.request", serde_json::json!({ "url": url, "within_s": 1 }));
        let none = format!("sha256:{}", "0".repeat(64));
        let package =
            serde_json::json!({ "url": bad, "digest": none, "built_at": "2020-01-01T00:00:00Z", "max_age_s": 60 });
        let steps = vec![
            request(&bad),
            request(&silent),
            request("http://169.254.169.254/"),
            ("artifact.verify", package),
            ("teleport", serde_json::json!({})),
            ("wait", serde_json::json!({ "for_s": 3600 })),
        ];
        let w = World::with_central(db, 1, 0, steps).await;
        let e = w.executor().await;
        let class = async |step: &str| -> (Option<FailureClass>, serde_json::Value) {
            let work = w.central(step).await;
            if step == "c5" {
                w.abort().await;
            }
            let WorkResult::Central { class, output, .. } = w.result(work, 1).await else { panic!("central") };
            (class, output)
        };
        let (first, output) = class("c0").await;
        assert_eq!((first, &output["status"]), (Some(Exit), &serde_json::json!(500)), "what it answered is kept");
        for (step, want) in [("c1", Timeout), ("c2", Refused), ("c3", Artifact), ("c4", Refused), ("c5", Stopped)] {
            assert_eq!(class(step).await.0, Some(want), "{step}");
        }
        e.shut_down().await;
    }
}
