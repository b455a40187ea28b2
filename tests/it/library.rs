//! The flow library (`ops/flows/`), each flow with the software it is for: through api, scheduler, executor and agents.
//!
//! Hosts and packages are those of `ops/flows/examples/`, which `ops/flow` uses as well.

mod files;
mod jobs;
mod services;
mod sites;

use crate::world::{Form, PATIENCE, World};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use windlass_testkit::{Db, Supervised, eventually, free_port, http_get, workspace};

fn library() -> PathBuf {
    workspace().join("ops/flows")
}

/// Project of every flow in the library's files; users put theirs.
const ANY_PROJECT: &str = "project: my-project";
const PROJECT: &str = "example";

/// A library flow as a document of the test's project.
fn flow(name: &str) -> String {
    let path = library().join(format!("{name}.yaml"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(text.contains(ANY_PROJECT), "{name} names no project to replace");
    text.replace(ANY_PROJECT, &format!("project: {PROJECT}"))
}

/// A host of an example: every one has an address of its own, so that one port serves all, as on real machines.
struct Host {
    name: String,
    address: String,
    labels: String,
}

/// An installation with the example's software on each host, and the flow in environment `online`.
struct Lab {
    // Before the world: what runs on the hosts ends before their directories go.
    running: Vec<Supervised>,
    w: World,
    example: PathBuf,
    hosts: Vec<Host>,
    port: u16,
}

impl Lab {
    /// With the hosts of the example, made ready. `more` is catalog text on top.
    async fn start(flow_name: &str, more: &str) -> Lab {
        let mut lab = Lab::bare(flow_name, more).await;
        for h in &lab.hosts {
            let (root, log) = (lab.w.root(&h.name), lab.w.dir.path().join(format!("{}.up.log", h.name)));
            let args = ["hold".to_owned(), root.display().to_string()];
            lab.running.push(Supervised::start(&lab.example.join("host"), &args, &log));
            let mut up = Command::new(lab.example.join("host"));
            up.arg("up").arg(&root).arg(&h.address).arg(lab.port.to_string());
            run(up.env("LABELS", &h.labels).env("FIRST", &lab.hosts[0].address));
        }
        lab
    }

    /// With agents on its hosts, and nothing else.
    async fn bare(flow_name: &str, more: &str) -> Lab {
        let mut w = World::start(Db::sqlite(), Form::Embedded).await;
        let port = free_port();
        let example = library().join("examples").join(flow_name);
        let labels = std::fs::read_to_string(example.join("hosts")).expect("the example's hosts");
        let hosts: Vec<Host> = (1..)
            .zip(labels.lines())
            .map(|(n, labels)| Host { name: format!("h{n}"), address: format!("127.0.0.{n}"), labels: labels.into() })
            .collect();
        let mut catalog = format!("kind: project\nname: {PROJECT}\ngroup: examples\n");
        for h in &hosts {
            let Host { name, address, labels } = h;
            catalog += &format!("---\nkind: host\nname: {name}\naddress: {address}\nlabels: {{ {labels} }}\n");
        }
        let names: Vec<&str> = hosts.iter().map(|h| h.name.as_str()).collect();
        catalog += &format!("---\n{}{}", flow(flow_name), environment("online", flow_name, &names));
        w.apply(&(catalog + more)).await;
        w.agents(&names).await;
        Lab { running: Vec::new(), w, example, hosts, port }
    }

    /// Packs the example's app as this version, with files changed or added, and registers it.
    async fn release(&self, version: &str, changes: &[(&str, &str)]) {
        let dir = self.w.dir.path().join(format!("app-{version}"));
        copy(&self.example.join("app"), &dir);
        for (path, text) in [("VERSION", version)].iter().chain(changes) {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            std::fs::write(path, text).expect("file");
        }
        let package = self.w.dir.path().join(format!("{version}.tar.gz"));
        // Reproducible, as good builds are: every file has the same time.
        run(Command::new("tar").args(["--mtime=@0", "-czf"]).arg(&package).arg("-C").arg(&dir).arg("."));
        let digest = digest(&package);
        let body = json!({ "version": version, "url": format!("file://{}", package.display()), "digest": digest });
        self.w.post(&format!("/projects/{PROJECT}/artifacts"), body).await;
    }

    async fn request(&self, environment: &str, body: Value) -> String {
        let mut all = json!({ "environment": environment });
        let given = body.as_object().expect("map").iter().filter(|(_, v)| !v.is_null());
        all.as_object_mut().expect("map").extend(given.map(|(k, v)| (k.clone(), v.clone())));
        let answer = self.w.post(&format!("/projects/{PROJECT}/deployments"), all).await;
        answer["new_deployment"].as_str().or(answer["deployment"].as_str()).expect("id").to_owned()
    }

    /// Deploys to `online` and waits for the end of it; the answer is the deployment.
    async fn deploy(&self, version: &str, inputs: Value) -> Value {
        let id = self.request("online", json!({ "version": version, "inputs": inputs })).await;
        self.ends(&id, "succeeded").await
    }

    async fn ends(&self, id: &str, state: &str) -> Value {
        let d = self.w.until(id, &[state, "paused", "failed"]).await;
        if d["state"] != state {
            let logs = self.w.get(&format!("/deployments/{id}/logs?limit=200")).await;
            panic!("{state} was expected: {d:#}\n{}", told(&logs));
        }
        d
    }

    /// Goes back from a deployment that was found bad; `mode` is `normal` or `emergency`.
    async fn roll_back(&self, id: &str, mode: &str) {
        let body = json!({ "reason": "test", "mode": mode });
        let answer = self.w.post(&format!("/deployments/{id}/rollback"), body).await;
        let back = answer["new_deployment"].as_str().expect("the rollback's id").to_owned();
        self.ends(&back, "succeeded").await;
    }

    /// What a host answers to `GET path` now; empty when it does not.
    async fn get(&self, host: usize, path: &str) -> String {
        let url = format!("http://{}:{}{path}", self.hosts[host].address, self.port);
        http_get(&url).await.map(|(_, body)| body.trim().to_owned()).unwrap_or_default()
    }

    fn root(&self, host: usize) -> PathBuf {
        self.w.root(&self.hosts[host].name)
    }

    fn shared(&self, host: usize, name: &str) -> PathBuf {
        self.root(host).join("shared").join(name)
    }
}

fn environment(name: &str, flow: &str, hosts: &[&str]) -> String {
    let hosts = hosts.join(", ");
    format!("---\nkind: environment\nproject: {PROJECT}\nname: {name}\nflow: {flow}\nhosts: [{hosts}]\n")
}

fn run(command: &mut Command) -> String {
    // Output by files: what a host script leaves running would hold a pipe open.
    let out = tempfile::NamedTempFile::new().expect("file");
    let done = command
        .stdout(out.reopen().expect("file"))
        .stderr(out.reopen().expect("file"))
        .stdin(std::process::Stdio::null())
        .status()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = std::fs::read_to_string(out.path()).unwrap_or_default();
    assert!(done.success(), "{command:?} ended with {done}: {text}\n(./ops/test installs what is missing)");
    text
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("directory");
    run(Command::new("cp").arg("-r").arg(from.join(".")).arg(to));
}

fn digest(file: &Path) -> String {
    let bytes = std::fs::read(file).expect("readable");
    format!("sha256:{}", Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect::<String>())
}

/// The log pages as people read them.
fn told(logs: &Value) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let items = logs["items"].as_array().or(logs.as_array()).cloned().unwrap_or_default();
    let text = |i: &Value| i["data"].as_str().and_then(|d| STANDARD.decode(d).ok()).unwrap_or_default();
    items.iter().map(|i| String::from_utf8_lossy(&text(i)).into_owned()).collect()
}

/// Until the deployment waits for a person because a host failed; the answer is the reason it gives.
async fn stops(lab: &Lab, id: &str) -> String {
    let d = lab.w.until(id, &["paused"]).await;
    assert_eq!(d["waiting_on"][0]["on"], "intervention", "{d:#}");
    d["waiting_on"][0]["text"].as_str().expect("text").to_owned()
}

/// Does the process run? One that ended and was not waited for has no program any more.
fn runs(pid: &str) -> bool {
    !pid.is_empty() && std::fs::read_link(Path::new("/proc").join(pid).join("exe")).is_ok()
}

/// Waits until a host answers so.
async fn answers(lab: &Lab, host: usize, path: &str, body: &str) {
    eventually(PATIENCE, &format!("{path} answers {body}"), async || (lab.get(host, path).await == body).then_some(()))
        .await;
}
