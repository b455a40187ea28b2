//! Events from outside: once each, only when signed.

use crate::world::{SECRET, World, cdevent, digest, signed, until};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::Sha256;
use windlass_testkit::databases;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_event_a_hundred_times_at_once_counts_once() {
    for db in databases().await {
        let mut w = World::start(db).await;
        w.fill().await;
        let second = w.another_api().await;
        let body = cdevent("e1", "1.0.0", &digest('a'));
        let posts = (0..100).map(|i| {
            let base = if i % 2 == 0 { w.base.clone() } else { second.clone() };
            let mut r = w.http.post(format!("{base}/hooks/cdevents/shop")).body(body.clone());
            for (k, v) in signed("m1", &body) {
                r = r.header(k, v);
            }
            async move { crate::world::answer(r.send().await.expect("answers")).await }
        });
        let answers = futures::future::join_all(posts).await;
        let firsts = answers.iter().filter(|(_, a)| a["duplicate"] == false).count();
        assert_eq!(firsts, 1);
        for (status, a) in &answers {
            assert_eq!((*status, &a["outcome"]), (200, &json!("matched")), "{a}");
            assert_eq!((a["commands"].as_array().map(Vec::len), &a["artifact"]), (Some(2), &answers[0].1["artifact"]));
        }
        assert_eq!(
            [
                w.count("artifacts").await,
                w.count("commands").await,
                w.count("command_queue").await,
                w.count("intake").await
            ],
            [1, 2, 2, 1]
        );
        // Another delivery of the same build requests nothing again.
        let body = cdevent("e2", "1.0.0", &digest('a'));
        let (status, a) = w.hook("/hooks/cdevents/shop", &signed("m2", &body), body).await;
        assert_eq!((status, a["commands"].as_array().map(Vec::len)), (200, Some(0)), "{a}");
        // The same version with another content is refused, and says so again.
        for _ in 0..2 {
            let body = cdevent("e3", "1.0.0", &digest('b'));
            let (status, a) = w.hook("/hooks/cdevents/shop", &signed("m3", &body), body).await;
            assert_eq!((status, &a["code"]), (422, &json!("refused")), "{a}");
        }
        assert_eq!(w.count("artifacts").await, 1);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_unsigned_gets_in() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let body = cdevent("e1", "1.0.0", &digest('a'));
        let headers = signed("m1", &body);
        for i in 0..body.len() {
            let mut bad = body.clone();
            bad[i] ^= 1;
            assert_eq!(w.hook("/hooks/cdevents/shop", &headers, bad).await.0, 403, "byte {i}");
        }
        for (project, headers) in [("shop", vec![]), ("bank", headers.clone()), ("nope", headers.clone())] {
            let path = format!("/hooks/cdevents/{project}");
            let (status, a) = w.hook(&path, &headers, body.clone()).await;
            assert_eq!((status, &a["code"]), (403, &json!("forbidden")), "{project}");
        }
        assert_eq!(w.count("artifacts").await, 0);
        let (_, log) = w.get("/triggers?project=shop").await;
        let refused = log["items"].as_array().expect("items").len();
        assert!(
            (1..=30).contains(&refused),
            "a flood must not fill the log: {refused} rows for {} refusals",
            body.len()
        );
        // The true event still counts: no forged one took its id.
        assert_eq!(w.hook("/hooks/cdevents/shop", &headers, body).await.1["duplicate"], false);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_source_registers_and_says_why_not() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let github = |event: &str, delivery: &str, body: &[u8]| {
            let mut m = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("key");
            m.update(body);
            let hex: String = m.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
            [
                ("x-hub-signature-256", format!("sha256={hex}")),
                ("x-github-event", event.into()),
                ("x-github-delivery", delivery.into()),
            ]
            .map(|(k, v): (&str, String)| (k.to_owned(), v))
            .to_vec()
        };
        let body = json!({ "action": "published", "release": { "tag_name": "v2.0.0", "assets": [
            { "name": "shop.tar.gz", "digest": digest('c'), "browser_download_url": "https://gh.example/s.tar.gz", "size": 3 }] } });
        let body = body.to_string().into_bytes();
        let (status, a) = w.hook("/hooks/github/shop", &github("release", "d1", &body), body.clone()).await;
        assert_eq!((status, &a["outcome"]), (200, &json!("matched")), "{a}");
        let (_, a) = w.hook("/hooks/github/shop", &github("ping", "d2", b"{}"), b"{}".to_vec()).await;
        assert_eq!(a["outcome"], "ignored");
        let body = json!({ "status": "ok", "v": "3.0.0", "url": "https://ci.example/3.tar.gz", "digest": digest('d') })
            .to_string()
            .into_bytes();
        let (_, a) = w.hook("/hooks/generic/shop", &signed("g1", &body), body).await;
        assert_eq!(a["outcome"], "matched", "{a}");
        let body = json!({ "status": "no" }).to_string().into_bytes();
        let (_, a) = w.hook("/hooks/generic/shop", &signed("g2", &body), body).await;
        assert_eq!(a["outcome"], "ignored", "{a}");
        // Over JetStream: twice the same, once.
        let event: serde_json::Value = serde_json::from_slice(&cdevent("b1", "4.0.0", &digest('e'))).expect("json");
        let event =
            json!({ "specversion": "1.0", "id": "x", "source": "/ci", "type": "t", "project": "shop", "data": event });
        for _ in 0..2 {
            let id = uuid::Uuid::now_v7().to_string();
            windlass_testkit::eventually(crate::world::PATIENCE, "the stream takes it", async || {
                w.ctx.bus.publish_stored("windlass.in.ci", event.to_string(), &id, None).await.ok()
            })
            .await;
        }
        until(&w, "artifacts", 3).await;
        until(&w, "intake", 5).await;
        let (_, log) = w.get("/triggers").await;
        let mut seen: Vec<String> = log["items"]
            .as_array()
            .expect("items")
            .iter()
            .map(|t| format!("{} {}", t["source"], t["outcome"]))
            .collect();
        seen.sort();
        assert_eq!(
            seen,
            [
                "\"bus\" \"matched\"",
                "\"generic\" \"ignored\"",
                "\"generic\" \"matched\"",
                "\"github\" \"ignored\"",
                "\"github\" \"matched\""
            ]
        );
        w.stop().await;
    }
}
