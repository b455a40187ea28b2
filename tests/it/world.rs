//! A whole Windlass for one test: `windlass up` (or every service as its own process) on a fresh database, a real
//! nats-server, and real agents, each its own process with its own root.

use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Once,
    time::Duration,
};
use windlass_testkit::{Db, Supervised, eventually, free_port, nats_server_binary, temp_dir, wait_http, workspace};

/// Long enough for a busy two-core machine; a wait that needs it all has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How the control plane runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `windlass up`: one process with a nats-server as its child.
    Embedded,
    /// Every service a process of its own, nats-server beside them.
    Scaled,
}

pub(crate) const SERVICES: [&str; 5] = ["api", "scheduler", "executor", "notifier", "auditor"];

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) base: String,
    pub(crate) admin: String,
    pub(crate) http: reqwest::Client,
    pub(crate) processes: BTreeMap<String, Supervised>,
    form: Form,
    nats_port: u16,
    pub(crate) nats_starts: usize,
    /// Hosts reached by SSH, when `by_ssh` was called.
    pub(crate) fleet: Option<crate::ssh::Fleet>,
    /// The deployment as `until` last saw it, for failure texts.
    last_seen: std::sync::Mutex<Option<Value>>,
    _db: Db,
}

/// Where the programs under test are: beside the test program.
pub(crate) fn program(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("own path");
    let dir = me.ancestors().nth(2).expect("target directory");
    let p = dir.join(name);
    assert!(p.is_file(), "{} is missing: run `cargo build --workspace` first", p.display());
    p
}

fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| rustls::crypto::ring::default_provider().install_default().expect("first provider"));
}

/// Settings that make silence show in seconds instead of minutes.
fn settings(state: &Path, db: &Db, api: u16, nats: u16) -> String {
    format!(
        r#"state_dir = "{state}"
poll_s = 1.0
[database]
url = "{db}"
[nats]
urls = ["nats://127.0.0.1:{nats}"]
[api]
listen = "127.0.0.1:{api}"
[executor]
lease_s = 3.0
suspect_s = 4.0
disconnected_s = 8.0
unknown_s = 30.0
offer_timeout_s = 30.0
resend_max_s = 1.0
allow_private_addresses = ["127.0.0.0/8"]
plugins_dir = "{state}/plugins"
ansible_playbook = "/usr/bin/ansible-playbook"
[ssh]
retry_max_s = 1.0
check_s = 5.0
[notifier]
allow_private_addresses = ["127.0.0.0/8"]
"#,
        state = state.display(),
        db = db.url(),
    )
}

impl World {
    pub(crate) async fn start(db: Db, form: Form) -> World {
        World::start_with(db, form, "").await
    }

    /// With more settings: whole sections of the file.
    pub(crate) async fn start_with(db: Db, form: Form, more: &str) -> World {
        install_tls();
        let dir = temp_dir();
        let state = dir.path().join("state");
        std::fs::create_dir_all(&state).expect("state directory");
        let (api, nats_port) = (free_port(), free_port());
        let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().expect("client");
        let mut w = World {
            base: format!("http://127.0.0.1:{api}"),
            admin: String::new(),
            http,
            processes: BTreeMap::new(),
            form,
            nats_port,
            nats_starts: 0,
            fleet: None,
            dir,
            last_seen: std::sync::Mutex::new(None),
            _db: db,
        };
        let mut text = settings(&state, &w._db, api, nats_port) + more;
        if form == Form::Scaled {
            let nats_store = w.dir.path().join("nats");
            let out = std::process::Command::new(program("windlass"))
                .args(["init", "--nats-host", "127.0.0.1", "--nats-port", &nats_port.to_string(), "--nats-store"])
                .arg(&nats_store)
                .args(["--state"])
                .arg(&state)
                .args(["--database", w._db.url()])
                .output()
                .expect("runs");
            assert!(
                out.status.success(),
                "init: {}{}",
                String::from_utf8_lossy(&out.stdout),
                String::from_utf8_lossy(&out.stderr)
            );
            // What `init` made is used where it is; only the test's own values are added.
            let creds = |n: &str| find(&state, n).display().to_string();
            text = text.replace(
                "[api]",
                &format!(
                    "services_creds = \"{}\"\nagents_creds = \"{}\"\n[api]",
                    creds("services.creds"),
                    creds("agents.creds")
                ),
            );
        }
        std::fs::write(state.join("windlass.toml"), text).expect("settings");
        match form {
            Form::Embedded => w.start_process("up"),
            Form::Scaled => {
                w.start_process("nats");
                for s in SERVICES {
                    w.start_process(s);
                }
            }
        }
        wait_http(&format!("{}/readyz", w.base)).await;
        let path = state.join("admin.token");
        w.admin = eventually(PATIENCE, "the admin's token", async || {
            std::fs::read_to_string(&path).ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
        })
        .await;
        w
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Starts (again) what was stopped or killed. Names: `up`, a service, `nats`, or an agent's host.
    pub(crate) fn start_process(&mut self, name: &str) {
        let log = self.dir.path().join(format!("{name}.log"));
        let state = self.state();
        let config = state.join("windlass.toml").display().to_string();
        let (program, args): (PathBuf, Vec<String>) = match name {
            "up" => {
                let port = self.base.rsplit(':').next().expect("port").to_owned();
                let nats = nats_server_binary().display().to_string();
                let args = ["up", "--state", &state.display().to_string(), "--port", &port, "--nats-port"]
                    .into_iter()
                    .map(str::to_owned)
                    .chain([self.nats_port.to_string(), "--nats-server".into(), nats, "--allow-private".into()])
                    .collect();
                (program("windlass"), args)
            }
            "nats" => {
                self.nats_starts += 1;
                let conf = find(&state, "nats-server.conf").display().to_string();
                (nats_server_binary(), vec!["-c".into(), conf])
            }
            s if SERVICES.contains(&s) => (program("windlass"), vec![s.into(), "--config".into(), config]),
            "executor-2" => (program("windlass"), vec!["executor".into(), "--config".into(), config]),
            host if self.fleet.is_some() => self.sshd(host),
            host => {
                let (state, root) = (self.agent_dir(host), self.root(host));
                let args = vec![
                    "run".into(),
                    "--state".into(),
                    state.display().to_string(),
                    "--root".into(),
                    root.display().to_string(),
                ];
                (program("windlass-agent"), args)
            }
        };
        self.processes.insert(name.into(), Supervised::start(&program, &args, &log));
    }

    pub(crate) fn kill(&mut self, name: &str) {
        if self.fleet.is_some() {
            self.cut(name);
        }
        self.processes.get_mut(name).unwrap_or_else(|| panic!("no process {name}")).kill();
    }

    pub(crate) fn agent_dir(&self, host: &str) -> PathBuf {
        self.dir.path().join("agents").join(host)
    }

    /// The deployment root of a host.
    pub(crate) fn root(&self, host: &str) -> PathBuf {
        self.dir.path().join("hosts").join(host)
    }

    /// Enrols and starts an agent for each host.
    pub(crate) async fn agents(&mut self, hosts: &[&str]) {
        let mine: &[&str] = if self.fleet.is_some() { &[] } else { hosts };
        for host in mine {
            let token = self.post("/enroll-tokens", json!({ "host": host })).await;
            let (state, root) = (self.agent_dir(host), self.root(host));
            std::fs::create_dir_all(&root).expect("root");
            let out = std::process::Command::new(program("windlass-agent"))
                .args(["enroll", "--server", &self.base, "--token", token["token"].as_str().expect("token"), "--state"])
                .arg(&state)
                .output()
                .expect("runs");
            assert!(out.status.success(), "enroll {host}: {}", String::from_utf8_lossy(&out.stderr));
            self.start_process(host);
        }
        eventually(PATIENCE, "all agents connected", async || {
            let hosts = self.get("/hosts").await;
            let items = hosts["items"].as_array().or(hosts.as_array()).cloned().unwrap_or_default();
            assert!(!items.is_empty(), "apply the catalog first");
            items.iter().all(|h| h["state"] == "connected").then_some(())
        })
        .await;
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: Option<Value>,
    ) -> Result<(u16, Value), reqwest::Error> {
        let method = method.parse().expect("method");
        let mut r = self.http.request(method, format!("{}/api/v1{path}", self.base)).bearer_auth(token);
        if let Some(b) = body {
            r = r.header("content-type", "application/json").body(b.to_string());
        }
        let r = r.send().await?;
        let status = r.status().as_u16();
        let text = r.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// As the admin; panics unless 2xx.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send("GET", path, &self.admin, None).await.expect("answers");
        assert!((200..300).contains(&status), "GET {path}: {status} {body}");
        body
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        self.post_as(&self.admin, path, body).await
    }

    pub(crate) async fn post_as(&self, token: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.send("POST", path, token, Some(body)).await.expect("answers");
        assert!((200..300).contains(&status), "POST {path}: {status} {answer}");
        answer
    }

    /// Posts until the api answers, as a client behind a crashing server does; the key makes the repeats one request.
    pub(crate) async fn post_through(&self, path: &str, body: Value) -> Value {
        let key = uuid::Uuid::new_v4().to_string();
        let url = format!("{}/api/v1{path}", self.base);
        eventually(PATIENCE, "the api answers", async || {
            let r = self.http.post(&url).bearer_auth(&self.admin).header("idempotency-key", &key);
            let r = r.header("content-type", "application/json").body(body.to_string()).send().await.ok()?;
            let status = r.status().as_u16();
            let text = r.text().await.ok()?;
            assert!(!(400..500).contains(&status), "POST {path}: {status} {text}");
            (status < 300).then(|| serde_json::from_str(&text).expect("JSON"))
        })
        .await
    }

    pub(crate) async fn apply(&self, yaml: &str) -> Value {
        let r = self
            .http
            .post(format!("{}/api/v1/apply", self.base))
            .bearer_auth(&self.admin)
            .header("content-type", "application/yaml")
            .body(yaml.to_owned())
            .send()
            .await
            .expect("answers");
        let status = r.status().as_u16();
        let text = r.text().await.expect("body");
        assert!(status < 300, "apply: {status} {text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// A person with a role on all groups; the answer is their token.
    pub(crate) async fn person(&self, name: &str, role: &str) -> String {
        let grants = json!([{ "project_group": "*", "role": role }]);
        self.post("/people", json!({ "name": name, "display": name, "grants": grants })).await;
        let made = self.post("/tokens", json!({ "person": name, "label": "test" })).await;
        made["token"].as_str().expect("token").to_owned()
    }

    pub(crate) async fn secret(&self, scope: &str, name: &str, value: &str) {
        let (status, body) = self
            .send("PUT", &format!("/secrets/{scope}/{name}"), &self.admin, Some(json!({ "value": value })))
            .await
            .expect("answers");
        assert!(status < 300, "secret: {status} {body}");
    }

    /// Waits until a deployment rests in one of `states`; panics at once when it ends in another.
    pub(crate) async fn until(&self, id: &str, states: &[&str]) -> Value {
        eventually(PATIENCE * 2, &format!("deployment {id} is {states:?}"), async || {
            let (status, d) = self.send("GET", &format!("/deployments/{id}"), &self.admin, None).await.ok()?;
            if status != 200 {
                return None;
            }
            let state = d["state"].as_str().unwrap_or_default();
            let over = ["succeeded", "failed", "aborted", "rejected", "expired", "cancelled"].contains(&state);
            assert!(!over || states.contains(&state), "deployment ended as {state}, not {states:?}: {d:#}");
            if states.contains(&state) {
                return Some(d);
            }
            *self.last_seen.lock().expect("no panic in between") = Some(d);
            None
        })
        .await
    }

    /// Requests a deployment of a registered version; the answer is its id.
    pub(crate) async fn deploy(&self, project: &str, environment: &str, version: &str) -> String {
        let body = json!({ "environment": environment, "version": version });
        let answer = self.post_through(&format!("/projects/{project}/deployments"), body).await;
        answer["new_deployment"].as_str().or(answer["deployment"].as_str()).expect("id").to_owned()
    }

    /// The last lines of every process and the deployment that was waited for, for failure texts.
    #[expect(clippy::print_stderr, reason = "only when a test has failed already")]
    fn show_logs(&self) {
        for (name, p) in &self.processes {
            eprintln!("---- {name}\n{}", p.log_tail());
        }
        if let Some(Some(d)) = self.last_seen.lock().ok().as_deref() {
            eprintln!("---- last seen\n{d:#}");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        // Agents before the servers they report to, runners with them.
        self.processes.clear();
    }
}

/// A file somewhere below a directory.
fn find(dir: &Path, name: &str) -> PathBuf {
    let mut open = vec![dir.to_path_buf()];
    while let Some(d) = open.pop() {
        for e in std::fs::read_dir(&d).into_iter().flatten().flatten() {
            if e.file_name() == name {
                return e.path();
            }
            if e.path().is_dir() {
                open.push(e.path());
            }
        }
    }
    panic!("no {name} below {} (in {})", dir.display(), workspace().display())
}
