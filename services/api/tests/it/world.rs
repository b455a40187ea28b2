//! One api on a port of its own, with projects, people and tokens.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use sha2::Sha256;
use std::{
    net::TcpListener,
    sync::{Arc, Once},
    time::Duration,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use windlass_bus::Context;
use windlass_contracts::{command::CommandOutcome, subjects};
use windlass_domain::{
    deployment::{Deployment, New, PlanFacts},
    ids::{CommandId, DeploymentId},
    release::ReleaseKind,
};
use windlass_runtime::{Health, Settings};
use windlass_store::{Store, decisions, deployments, sql};
use windlass_testkit::{Db, Nats, eventually, nats, temp_dir};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const CATALOG: &str = r#"
kind: project
name: shop
group: retail
hooks:
  cdevents: { secret: ci }
  github: { secret: gh }
  generic:
    secret: ci
    when: body.status == "ok"
    version: body.v
    url: body.url
    digest: body.digest
---
kind: project
name: bank
group: money
---
kind: host
name: h1
address: 127.0.0.1
---
kind: flow
project: shop
flow: rolling
steps:
  - id: rollout
    waves: "1 *2"
    steps:
      - id: say
        uses: script
        with: { run: "echo hello" }
---
kind: environment
project: shop
name: beta
hosts: [h1]
flow: rolling
---
kind: environment
project: shop
name: online
hosts: [h1]
flow: rolling
---
kind: policy
name: auto
match: { projects: [shop] }
on_artifact: [beta, online]
"#;

pub(crate) struct World {
    pub(crate) base: String,
    pub(crate) admin: String,
    pub(crate) http: reqwest::Client,
    pub(crate) ctx: Context,
    pub(crate) dir: Arc<tempfile::TempDir>,
    shutdown: CancellationToken,
    apis: Vec<JoinHandle<()>>,
    _nats: Nats,
    pub(crate) db: Db,
}

pub(crate) fn settings(dir: &std::path::Path, db: &Db, nats: &Nats) -> Settings {
    let mut s = Settings { state_dir: dir.into(), ..Settings::default() };
    s.database.url = Some(db.url().into());
    s.nats.urls = vec![nats.url()];
    s.api.command_wait_s = Duration::from_millis(30).into();
    s.api.rate_per_s = 1e6;
    s.api.rate_burst = 1e6;
    s.api.hook_rate_per_s = 1e6;
    s.api.hook_burst = 1e6;
    s
}

impl World {
    pub(crate) async fn start(db: Db) -> World {
        World::start_with(db, |_| {}).await
    }

    pub(crate) async fn start_with(db: Db, change: impl FnOnce(&mut Settings)) -> World {
        static TLS: Once = Once::new();
        TLS.call_once(|| rustls::crypto::ring::default_provider().install_default().expect("first provider"));
        let (dir, nats) = (Arc::new(temp_dir()), nats().await);
        let mut settings = settings(dir.path(), &db, &nats);
        change(&mut settings);
        let shutdown = CancellationToken::new();
        let ctx = Context::open(Arc::new(settings), Health::new(), shutdown.clone()).await.expect("context");
        let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().expect("client");
        let mut w = World {
            base: String::new(),
            admin: String::new(),
            http,
            ctx,
            dir,
            shutdown,
            apis: vec![],
            _nats: nats,
            db,
        };
        w.base = w.another_api().await;
        w.admin = w.admin_token();
        w
    }

    /// One more api on the same database; its address.
    pub(crate) async fn another_api(&mut self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("port");
        let base = format!("http://{}", listener.local_addr().expect("address"));
        // As another process: leases tell processes apart by their owner.
        let mut ctx = self.ctx.for_service();
        // SQLite has no roles, and one writer, which is shared.
        if self.db.kind() == "postgres" {
            ctx.store = Store::open(&self.db.url_of("api").await).await.expect("opens with its own rights");
        }
        ctx.owner = uuid::Uuid::now_v7().to_string();
        self.apis.push(tokio::spawn(async move { windlass_api::run_on(ctx, listener).await.expect("ends well") }));
        windlass_testkit::wait_http(&format!("{base}/healthz")).await;
        base
    }

    pub(crate) fn admin_token(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("admin.token")).expect("token file").trim().to_owned()
    }

    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        for api in self.apis.drain(..) {
            tokio::time::timeout(PATIENCE, api).await.expect("stops in time").expect("no panic");
        }
    }

    pub(crate) fn request(&self, method: Method, path: &str, token: &str) -> RequestBuilder {
        let path = if path.starts_with("/hooks")
            || path.starts_with("/healthz")
            || path.starts_with("/metrics")
            || path.starts_with("/readyz")
            || path.starts_with("/api")
        {
            path.to_owned()
        } else {
            format!("/api/v1{path}")
        };
        let r = self.http.request(method, format!("{}{path}", self.base));
        if token.is_empty() { r } else { r.bearer_auth(token) }
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.request(Method::GET, path, &self.admin).send().await.expect("answers")).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        answer(self.request(Method::POST, path, &self.admin).json(&body).send().await.expect("answers")).await
    }

    pub(crate) async fn apply(&self, token: &str, text: &str) -> (u16, Value) {
        answer(self.request(Method::POST, "/apply", token).body(text.to_owned()).send().await.expect("answers")).await
    }

    /// The catalog with secrets.
    pub(crate) async fn fill(&self) {
        let (status, body) = self.apply(&self.admin, CATALOG).await;
        assert_eq!(status, 200, "{body}");
        for (scope, name) in [("project.shop", "ci"), ("project.shop", "gh")] {
            let r = self
                .request(Method::PUT, &format!("/secrets/{scope}/{name}"), &self.admin)
                .json(&json!({ "value": SECRET }));
            assert_eq!(r.send().await.expect("answers").status(), 200);
        }
    }

    /// A person with these grants and a token of theirs.
    pub(crate) async fn person(&self, name: &str, grants: &[(&str, &str)]) -> String {
        let grants: Vec<Value> = grants.iter().map(|(g, r)| json!({ "project_group": g, "role": r })).collect();
        let (status, body) = self.post("/people", json!({ "name": name, "display": name, "grants": grants })).await;
        assert_eq!(status, 201, "{body}");
        self.token(json!({ "person": name })).await
    }

    pub(crate) async fn token(&self, body: Value) -> String {
        let (status, body) = self.post("/tokens", body).await;
        assert_eq!(status, 201, "{body}");
        body["token"].as_str().expect("token").to_owned()
    }

    pub(crate) async fn count(&self, table: &'static str) -> i64 {
        let mut tx = self.ctx.store.read().await.expect("reads");
        let text = sqlx_safe(format!("SELECT COUNT(*) FROM {table}"));
        sql(text).fetch_scalar::<i64>(&mut tx).await.expect("counts").expect("a row")
    }

    /// A deployment as the scheduler would store it.
    pub(crate) async fn deployment(&self, project: &str, environment: &str) -> Deployment {
        let now = chrono::Utc::now();
        let new = New {
            id: DeploymentId(Uuid::now_v7()),
            project: project.into(),
            environment: environment.into(),
            release: Uuid::now_v7().into(),
            version: "1.0.0".into(),
            kind: ReleaseKind::Normal,
            rollback: None,
            requested_by: "ann".into(),
            note: String::new(),
            trace: None,
            pool: "default".into(),
            only_hosts: vec![],
            not_before: None,
            expires_at: now + Duration::from_secs(3600),
            plan: PlanFacts {
                automatic: None,
                patience: Default::default(),
                context: Default::default(),
                digest: "sha256:plan".into(),
                rules: vec![windlass_domain::approval::ApprovalRule { name: "ops".into(), quorum: 1, people: vec![] }],
                on_failure: windlass_domain::flow::OnFailure::Pause,
                steps: vec![],
            },
        };
        let (d, _) = Deployment::request(new, now, &mut || Uuid::now_v7().into());
        let mut tx = self.ctx.store.write().await.expect("begins");
        deployments::insert(&mut tx, &d).await.expect("stores");
        tx.commit().await.expect("commits");
        d
    }

    pub(crate) async fn store(&self, d: &Deployment) {
        let mut tx = self.ctx.store.write().await.expect("begins");
        let v = deployments::get(&mut tx, d.id).await.expect("reads").expect("there").version;
        deployments::save(&mut tx, d, v, chrono::Utc::now()).await.expect("saves");
        tx.commit().await.expect("commits");
    }

    /// Stands in for the scheduler: decides every command that comes, `accept` says how.
    pub(crate) fn decide(&self, accept: bool) -> JoinHandle<()> {
        let (store, bus) = (self.ctx.store.clone(), self.ctx.bus.clone());
        tokio::spawn(async move {
            loop {
                let mut tx = store.write().await.expect("begins");
                let queued: Vec<(Uuid,)> =
                    sql("SELECT command_id FROM command_queue").fetch_all(&mut tx).await.expect("reads");
                for (id,) in &queued {
                    let (code, detail) = if accept { ("ok", "done") } else { ("wrong_state", "not in this state") };
                    let outcome = CommandOutcome {
                        accepted: accept,
                        code: code.into(),
                        detail: detail.into(),
                        deployment: None,
                        decided_at: chrono::Utc::now(),
                    };
                    decisions::decide(&mut tx, CommandId(*id), &outcome).await.expect("decides");
                }
                tx.commit().await.expect("commits");
                for (id,) in queued {
                    bus.ring(subjects::command_outcome(id), id.to_string()).await;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    }

    pub(crate) async fn hook(&self, path: &str, headers: &[(String, String)], body: Vec<u8>) -> (u16, Value) {
        let mut r = self.request(Method::POST, path, "").header("content-type", "application/json").body(body);
        for (k, v) in headers {
            r = r.header(k, v);
        }
        answer(r.send().await.expect("answers")).await
    }
}

fn sqlx_safe(text: String) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(text)
}

pub(crate) const SECRET: &str = "not much of a secret";

pub(crate) async fn answer(r: Response) -> (u16, Value) {
    let status = r.status().as_u16();
    let problem = r.headers().get("content-type").is_some_and(|t| t == "application/problem+json");
    let text = r.text().await.expect("a body");
    let body: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
    if status >= 400 && status != 503 {
        assert!(problem, "{status} without the envelope: {body}");
        assert_eq!(body["status"], status);
        assert_eq!(body["type"], format!("urn:windlass:problem:{}", body["code"].as_str().unwrap_or_default()));
        assert!(!body["detail"].as_str().unwrap_or_default().is_empty());
    }
    (status, body)
}

pub(crate) fn signed(id: &str, body: &[u8]) -> Vec<(String, String)> {
    let t = chrono::Utc::now().timestamp();
    let mut m = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("key");
    m.update(format!("{id}.{t}.").as_bytes());
    m.update(body);
    let sig = format!("v1,{}", STANDARD.encode(m.finalize().into_bytes()));
    [("webhook-id", id.to_owned()), ("webhook-timestamp", t.to_string()), ("webhook-signature", sig)]
        .map(|(k, v)| (k.to_owned(), v))
        .to_vec()
}

pub(crate) fn digest(c: char) -> String {
    format!("sha256:{}", c.to_string().repeat(64))
}

pub(crate) fn cdevent(id: &str, version: &str, digest: &str) -> Vec<u8> {
    let event = json!({
        "context": { "version": "0.4.1", "id": id, "source": "/ci", "type": "dev.cdevents.artifact.published.0.2.0", "timestamp": "2026-11-21T05:00:00Z" },
        "subject": { "id": format!("pkg:generic/shop@{version}?checksum={digest}&download_url=https://ci.example/{version}.tar.gz"), "type": "artifact", "content": {} },
        "customData": { "committer": "ann" },
    });
    event.to_string().into_bytes()
}

/// Waits for a count.
pub(crate) async fn until(w: &World, table: &'static str, n: i64) {
    eventually(PATIENCE, table, async || (w.count(table).await == n).then_some(())).await;
}
