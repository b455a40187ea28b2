//! The main job by API only, on both databases: a signed build-ready event, approval by another person, waves on real
//! agents, the chat told, the audit proven; then a version that fails on the canary, and the way back.

use crate::{
    package::pack,
    ssh::Reach,
    world::{Form, PATIENCE, World},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use std::io::{Read, Write};
use windlass_testkit::{Db, eventually};

/// Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`.
pub(crate) fn sign(secret: &str, id: &str, timestamp: i64, body: &[u8]) -> String {
    let key = STANDARD.decode(secret.trim_start_matches("whsec_")).expect("base64");
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("any length");
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

/// The CI's trace: every event comes with it, and the process on the host belongs to it.
pub(crate) const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A CDEvents `artifact.published` for a package.
pub(crate) fn cdevent(id: &str, version: &str, url: &str, digest: &str) -> Value {
    json!({
        "specversion": "1.0", "id": id, "source": "/ci/shop", "type": "dev.cdevents.artifact.published.0.2.0",
        "datacontenttype": "application/json",
        "data": {
            "context": { "version": "0.4.1", "id": id, "source": "/ci/shop", "type": "dev.cdevents.artifact.published.0.2.0",
                         "timestamp": chrono::Utc::now().to_rfc3339() },
            "subject": { "id": format!("pkg:generic/shop@{version}"), "source": "/ci/shop", "type": "artifact", "content": {} },
            "customData": { "url": url, "digest": digest, "version": version, "committer": "ann", "ref": "main" }
        }
    })
}

impl World {
    pub(crate) async fn hook(&self, id: &str, body: &Value) -> (u16, Value) {
        let bytes = body.to_string();
        let now = chrono::Utc::now().timestamp();
        let r = self
            .http
            .post(format!("{}/hooks/cdevents/shop", self.base))
            .header("content-type", "application/cloudevents+json")
            .header("webhook-id", id)
            .header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"))
            .header("webhook-timestamp", now.to_string())
            .header("webhook-signature", sign(SECRET, id, now, bytes.as_bytes()))
            .body(bytes)
            .send()
            .await
            .expect("answers");
        let status = r.status().as_u16();
        let text = r.text().await.expect("body");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }
}

/// A chat's incoming webhook: keeps what it is sent.
fn chat() -> (String, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let url = format!("http://{}/chat", listener.local_addr().expect("address"));
    let heard = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let keep = heard.clone();
    std::thread::spawn(move || {
        for c in listener.incoming().flatten() {
            let mut c = c;
            let mut buffer = Vec::new();
            let mut piece = [0; 4096];
            let _ = c.set_read_timeout(Some(std::time::Duration::from_secs(2)));
            loop {
                let text = String::from_utf8_lossy(&buffer).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head
                        .lines()
                        .find_map(|l| {
                            l.to_ascii_lowercase().strip_prefix("content-length:").map(|n| n.trim().to_owned())
                        })
                        .and_then(|n| n.parse::<usize>().ok())
                        .unwrap_or(0);
                    if body.len() >= length {
                        keep.lock().expect("lock").push(text);
                        break;
                    }
                }
                match c.read(&mut piece) {
                    Ok(n) if n > 0 => buffer.extend_from_slice(&piece[..n]),
                    _ => break,
                }
            }
            let _ = c.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
        }
    });
    (url, heard)
}

/// The same whatever reaches the hosts.
pub(crate) async fn journey(db: Db, reach: Reach) {
    let mut w = World::start(db, Form::Embedded).await;
    journey_in(&mut w, reach).await;
}

async fn journey_in(w: &mut World, reach: Reach) {
    let hosts = ["h1", "h2", "h3"];
    w.reach(reach, &hosts).await;
    let catalog = w.catalog(&hosts, "1 *2", 1, "parallel: 0")
        + "---\nkind: channel\nname: ops\nprovider: { type: slack, url: ops-url }\nrules:\n  - { severity: notice }\n";
    w.apply(&catalog).await;
    let again = w.apply(&catalog).await;
    assert!(again["items"].as_array().expect("items").iter().all(|i| i["change"] == "unchanged"), "{again:#}");
    w.secret("project.shop", "ci", SECRET).await;
    let (url, heard) = chat();
    w.secret("channel", "ops-url", &url).await;
    let bob = w.person("bob", "approver").await;
    w.agents(&hosts).await;

    // A signed event registers the artifact and requests the deployment.
    let (package, digest, _) = pack(
        w.dir.path(),
        "one",
        &[("VERSION", "1.0.0"), ("bin/go", "echo hello from one; echo $TRACEPARENT > $WINDLASS_ROOT/trace")],
    );
    let (status, answer) = w.hook("evt-1", &cdevent("evt-1", "1.0.0", &package, &digest)).await;
    assert!((200..300).contains(&status), "{status} {answer}");
    let id = answer["deployments"][0].as_str().expect("a deployment").to_owned();
    let d = w.until(&id, &["awaiting_approval"]).await;
    assert_eq!(d["waiting_on"][0]["on"], "approval", "{d:#}");
    assert!(w.current("h1").is_none(), "nothing runs before it is approved");
    w.post_as(&bob, &format!("/deployments/{id}/approve"), json!({ "digest": d["plan_digest"], "comment": "fine" }))
        .await;
    w.until(&id, &["succeeded"]).await;
    for h in hosts {
        assert_eq!(w.current(h).as_deref(), Some("1.0.0"));
    }
    w.assert_started_once();
    assert_eq!(w.starts().len(), 6, "two marks a host: {:?}", w.starts());
    let logs = w.get(&format!("/deployments/{id}/logs")).await.to_string();
    assert!(logs.contains(&STANDARD.encode("hello from one\n")), "{logs}");

    let trace = std::fs::read_to_string(w.root("h1").join("trace")).expect("the step wrote it");
    assert!(trace.contains(TRACE), "one trace from the webhook to the process: {trace}");

    // The next version fails on the canary: the wave stops, the rest is untouched, the alert is sent.
    let (package, digest, _) = pack(w.dir.path(), "two", &[("VERSION", "1.1.0"), ("bin/go", "exit 7")]);
    let (_, answer) = w.hook("evt-2", &cdevent("evt-2", "1.1.0", &package, &digest)).await;
    let bad = answer["deployments"][0].as_str().expect("a deployment").to_owned();
    let d = w.until(&bad, &["awaiting_approval"]).await;
    w.post_as(&bob, &format!("/deployments/{bad}/approve"), json!({ "digest": d["plan_digest"] })).await;
    let d = w.until(&bad, &["paused"]).await;
    assert_eq!(d["waiting_on"][0]["on"], "intervention", "{d:#}");
    assert_eq!(w.current("h1").as_deref(), Some("1.1.0"));
    assert_eq!(w.current("h2").as_deref(), Some("1.0.0"), "the rest is untouched");
    eventually(PATIENCE, "the alert reaches the chat", async || {
        heard.lock().expect("lock").iter().any(|m| m.contains("1.1.0") && m.contains("needs")).then_some(())
    })
    .await;

    // Back to the last known good, by its own deployment.
    let answer = w.post(&format!("/deployments/{bad}/rollback"), json!({ "reason": "bad build" })).await;
    let back = answer["new_deployment"].as_str().expect("the rollback's id").to_owned();
    w.until(&back, &["succeeded"]).await;
    w.until(&bad, &["rolled_back"]).await;
    assert_eq!(w.current("h1").as_deref(), Some("1.0.0"));

    // Who asked and who approved can be proven without the database.
    crate::audit::verify(w, &[("bob", "approve"), (id.as_str(), "deployment.succeeded")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_on_sqlite() {
    let mut w = World::start_with(Db::sqlite(), Form::Embedded, crate::statements::LOGGED).await;
    journey_in(&mut w, Reach::Agent).await;
    crate::statements::judge(w).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_on_postgres() {
    journey(Db::postgres().await, Reach::Agent).await;
}

/// A deployment approved for one digest does not run after its plan changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_plan_does_not_run_on_old_approvals() {
    let mut w = World::start(Db::sqlite(), Form::Embedded).await;
    let hosts = ["h1"];
    w.apply(&w.catalog(&hosts, "1", 1, "parallel: 0")).await;
    let bob = w.person("bob", "approver").await;
    w.agents(&hosts).await;
    w.version("shop", "1.0.0", "echo one").await;
    let at = chrono::Utc::now() + chrono::TimeDelta::seconds(4);
    let body = json!({ "environment": "beta", "version": "1.0.0", "not_before": at.to_rfc3339() });
    let answer = w.post("/projects/shop/deployments", body).await;
    let id = answer["new_deployment"].as_str().or(answer["deployment"].as_str()).expect("id").to_owned();
    let first = w.until(&id, &["awaiting_approval"]).await;
    w.post_as(&bob, &format!("/deployments/{id}/approve"), json!({ "digest": first["plan_digest"] })).await;
    w.until(&id, &["scheduled"]).await;
    // The environment gets another host before its time comes.
    w.apply(&w.catalog(&["h1", "h2"], "1", 1, "parallel: 0")).await;
    let second = w.until(&id, &["awaiting_approval"]).await;
    assert_ne!(first["plan_digest"], second["plan_digest"]);
    assert!(w.starts().is_empty(), "nothing ran");
    let (status, refused) = w
        .send("POST", &format!("/deployments/{id}/approve"), &bob, Some(json!({ "digest": first["plan_digest"] })))
        .await
        .expect("answers");
    assert_eq!((status, refused["code"].as_str()), (409, Some("plan_changed")), "{refused}");
}
