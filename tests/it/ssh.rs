//! Hosts reached by SSH: a real sshd for each, with keys of its own. They pass what hosts with agents pass, and what only a
//! connection can go through: cut in the middle of a step, carried on by another executor, refused for its key.

use crate::{
    crash,
    journey::journey,
    world::{Form, PATIENCE, World},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};
use windlass_testkit::{Db, eventually, free_port};

/// How the control plane reaches the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// An agent was enrolled on each.
    Agent,
    Ssh,
}

/// The sshd's of one test.
pub(crate) struct Fleet {
    dir: PathBuf,
    account: String,
    hosts: BTreeMap<String, Sshd>,
}

struct Sshd {
    port: u16,
    /// `ssh-ed25519 AAAA…`
    public: String,
    /// More for the host's `ssh:`.
    more: String,
    /// More for its sshd.
    config: String,
}

/// An ed25519 or other key pair without passphrase; the answer is the public half.
fn keygen(path: &Path, kind: &str) -> String {
    let done = Command::new("ssh-keygen").args(["-q", "-t", kind, "-N", "", "-C", "test", "-f"]).arg(path).status();
    assert!(done.expect("ssh-keygen: install openssh-client").success());
    let text = std::fs::read_to_string(path.with_extension("pub")).expect("public key");
    text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

fn me() -> String {
    let out = Command::new("id").arg("-un").output().expect("id");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

impl World {
    /// Decides how the hosts are reached; before the catalog is applied.
    pub(crate) async fn reach(&mut self, reach: Reach, hosts: &[&str]) {
        if reach == Reach::Agent {
            return;
        }
        let dir = self.dir.path().join("ssh");
        std::fs::create_dir_all(&dir).expect("directory");
        let public = keygen(&dir.join("fleet"), "ed25519");
        std::fs::write(dir.join("authorized_keys"), format!("{public}\n")).expect("keys");
        self.fleet = Some(Fleet { dir: dir.clone(), account: me(), hosts: BTreeMap::new() });
        let private = std::fs::read_to_string(dir.join("fleet")).expect("private key");
        self.secret("ssh", "fleet", &private).await;
        for host in hosts {
            self.add_host(host, "ed25519");
            self.start_process(host);
        }
    }

    /// One host whose sshd runs `command` whatever it is asked for, named as one with PowerShell.
    pub(crate) async fn reach_windows(&mut self, host: &str, command: &str) {
        self.reach(Reach::Ssh, &[]).await;
        self.add_host(host, "ed25519");
        let sshd = self.host_mut(host);
        sshd.more = "  shell: powershell\n  untested: true\n".into();
        sshd.config = format!("ForceCommand {command}\n");
        self.start_process(host);
    }

    /// The processes that serve the connections to a host.
    pub(crate) fn links(&self, host: &str) -> Vec<u32> {
        self.processes.get(host).map(|p| connections(p.pid())).unwrap_or_default()
    }

    /// One more host, not started yet.
    fn add_host(&mut self, host: &str, kind: &str) {
        std::fs::create_dir_all(self.root(host)).expect("root");
        let fleet = self.fleet.as_mut().expect("reach was called");
        let public = keygen(&fleet.dir.join(format!("{host}_key")), kind);
        fleet.hosts.insert(host.into(), Sshd { port: free_port(), public, more: String::new(), config: String::new() });
    }

    fn host_mut(&mut self, host: &str) -> &mut Sshd {
        self.fleet.as_mut().and_then(|f| f.hosts.get_mut(host)).expect("a host of the fleet")
    }

    /// What starts the sshd of a host.
    pub(crate) fn sshd(&self, host: &str) -> (PathBuf, Vec<String>) {
        let fleet = self.fleet.as_ref().expect("a fleet");
        let (dir, s) = (&fleet.dir, &fleet.hosts[host]);
        if me() == "root" {
            // What Debian's unit makes at start.
            std::fs::create_dir_all("/run/sshd").expect("directory");
        }
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {}\nHostKey {key}\nAuthorizedKeysFile {keys}\nPidFile none\nUsePAM no\n\
             StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n\
             PrintMotd no\nLogLevel INFO\nMaxStartups 100\n{}",
            s.port,
            s.config,
            key = dir.join(format!("{host}_key")).display(),
            keys = dir.join("authorized_keys").display(),
        );
        let path = dir.join(format!("{host}.conf"));
        std::fs::write(&path, config).expect("configuration");
        let program = PathBuf::from("/usr/sbin/sshd");
        assert!(program.is_file(), "install openssh-server (ops/test does)");
        (program, ["-D", "-e", "-f", &path.display().to_string()].map(str::to_owned).to_vec())
    }

    /// The `ssh:` of a host in the catalog; nothing where agents are used.
    pub(crate) fn ssh_of(&self, host: &str) -> String {
        let Some(fleet) = &self.fleet else { return String::new() };
        let s = &fleet.hosts[host];
        format!(
            "ssh:\n  port: {}\n  account: {}\n  key: fleet\n  host_key: {}\n  state_dir: {}\n  root: {}\n{}",
            s.port,
            fleet.account,
            s.public,
            self.agent_dir(host).display(),
            self.root(host).display(),
            s.more,
        )
    }

    /// Kills the processes that serve the connections to a host, as a cable that is cut does; sshd goes on.
    pub(crate) fn cut(&self, host: &str) {
        let Some(server) =
            self.processes.get(host).filter(|_| self.fleet.as_ref().is_some_and(|f| f.hosts.contains_key(host)))
        else {
            return;
        };
        for pid in connections(server.pid()) {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
    }

    pub(crate) async fn host(&self, name: &str) -> Value {
        let hosts = self.get("/hosts").await;
        let items = hosts["items"].as_array().expect("items");
        items.iter().find(|h| h["name"] == name).cloned().unwrap_or_default()
    }

    /// All events about agents and hosts of this kind.
    async fn agent_events(&self, what: &str) -> Vec<String> {
        let r =
            self.http.get(format!("{}/api/v1/audit/export?from=0", self.base)).bearer_auth(&self.admin).send().await;
        let text = r.expect("answers").text().await.expect("body");
        text.lines().filter(|l| l.contains(what)).map(str::to_owned).collect()
    }
}

/// Processes `sshd` below a pid.
fn connections(server: u32) -> Vec<u32> {
    let mut parents: BTreeMap<u32, Vec<(u32, String)>> = BTreeMap::new();
    for e in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Ok(stat) = std::fs::read_to_string(e.path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(") ") else { continue };
        let Some((pid, name)) = head.split_once(" (") else { continue };
        let (Ok(pid), Some(Ok(parent))) = (pid.parse(), tail.split(' ').nth(1).map(str::parse::<u32>)) else {
            continue;
        };
        parents.entry(parent).or_default().push((pid, name.to_owned()));
    }
    let (mut open, mut found) = (vec![server], Vec::new());
    while let Some(p) = open.pop() {
        for (pid, _) in parents.get(&p).into_iter().flatten().filter(|(_, n)| n.starts_with("sshd")) {
            open.push(*pid);
            found.push(*pid);
        }
    }
    found
}

async fn one_host(db: Db, form: Form) -> World {
    let mut w = World::start(db, form).await;
    w.reach(Reach::Ssh, &["h1"]).await;
    w.apply(&w.catalog(&["h1"], "1", 0, "parallel: 0")).await;
    w
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_over_ssh_on_sqlite() {
    journey(Db::sqlite(), Reach::Ssh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_over_ssh_on_postgres() {
    journey(Db::postgres().await, Reach::Ssh).await;
}

/// As `killing_an_agent_but_not_its_runner`, with the connection and its sshd in the agent's place.
#[tokio::test(flavor = "multi_thread")]
async fn cutting_links_at_any_moment() {
    let mut w = crash::world(Db::sqlite(), Form::Embedded, Reach::Ssh).await;
    for round in 0..crash::MOMENTS {
        crash::kill_once(&mut w, crash::HOSTS[round % crash::HOSTS.len()], round, false).await;
    }
}

/// A step that says one line, waits for a file, and says another.
fn waits_for(gate: &Path) -> String {
    format!("echo before the cut\nwhile [ ! -e {0} ]; do sleep 0.05; done\necho after the cut\n", gate.display())
}

pub(crate) async fn log_of(w: &World, id: &str) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let page = w.get(&format!("/deployments/{id}/logs?limit=500")).await;
    let items = page["items"].as_array().expect("items");
    let bytes = items.iter().flat_map(|l| STANDARD.decode(l["data"].as_str().expect("data")).expect("base64"));
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_cut_in_mid_step_finds_the_step_again() {
    let w = one_host(Db::sqlite(), Form::Embedded).await;
    let gate = w.dir.path().join("gate");
    w.version("shop", "1.0.0", &waits_for(&gate)).await;
    let id = w.deploy("shop", "beta", "1.0.0").await;
    eventually(PATIENCE, "the step runs", async || (w.starts().len() == 1).then_some(())).await;
    let first = w.host("h1").await["agent"]["instance"].clone();
    // Twice: the second cut finds a process that took the step over.
    for round in 0..2 {
        eventually(PATIENCE, "a connection", async || (!connections(w.processes["h1"].pid()).is_empty()).then_some(()))
            .await;
        let before = connections(w.processes["h1"].pid());
        w.cut("h1");
        if round == 0 {
            eventually(PATIENCE, "another connection", async || {
                connections(w.processes["h1"].pid()).iter().any(|p| !before.contains(p)).then_some(())
            })
            .await;
        }
    }
    std::fs::write(&gate, "").expect("gate");
    w.until(&id, &["succeeded"]).await;
    assert_eq!(w.starts().len(), 2, "{:?}", w.starts());
    w.assert_started_once();
    assert_eq!(w.current("h1").as_deref(), Some("1.0.0"));
    assert_eq!(w.host("h1").await["agent"]["instance"], first, "the same journal all along");
    eventually(PATIENCE, "the whole log, once", async || {
        (log_of(&w, &id).await.contains("before the cut\nafter the cut\n")).then_some(())
    })
    .await;
    assert_eq!(log_of(&w, &id).await.matches("the cut").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_executor_carries_the_host_on() {
    let mut w = one_host(Db::postgres().await, Form::Scaled).await;
    let gate = w.dir.path().join("gate");
    w.version("shop", "1.0.0", &waits_for(&gate)).await;
    let id = w.deploy("shop", "beta", "1.0.0").await;
    eventually(PATIENCE, "the step runs", async || (w.starts().len() == 1).then_some(())).await;
    w.start_process("executor-2");
    w.kill("executor");
    eventually(PATIENCE, "the dead executor's connection is gone", async || {
        connections(w.processes["h1"].pid()).is_empty().then_some(())
    })
    .await;
    eventually(PATIENCE, "the other executor's connection", async || {
        (!connections(w.processes["h1"].pid()).is_empty()).then_some(())
    })
    .await;
    std::fs::write(&gate, "").expect("gate");
    w.until(&id, &["succeeded"]).await;
    assert_eq!(w.starts().len(), 2, "{:?}", w.starts());
    w.assert_started_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_host_key_is_refused_loudly() {
    let mut w = World::start(Db::sqlite(), Form::Embedded).await;
    w.reach(Reach::Ssh, &["h1"]).await;
    let other = keygen(&w.dir.path().join("other"), "ed25519");
    let right = std::mem::replace(&mut w.host_mut("h1").public, other);
    w.apply(&w.catalog(&["h1"], "1", 0, "parallel: 0")).await;
    w.version("shop", "1.0.0", "true").await;
    let id = w.deploy("shop", "beta", "1.0.0").await;
    let d = w.until(&id, &["paused"]).await;
    assert!(d.to_string().contains("HOST KEY REFUSED"), "{d:#}");
    assert!(w.starts().is_empty());
    assert!(!w.agent_dir("h1").exists(), "nothing was put there");
    let host = w.host("h1").await;
    assert_eq!(host["state"], "unreachable", "{host:#}");
    assert!(host["ssh"]["error"].as_str().expect("why").contains("presents ssh-ed25519 SHA256:"), "{host:#}");
    eventually(PATIENCE, "the alert is recorded", async || {
        let events = w.agent_events("agent.host_key_refused").await;
        (events.len() == 1 && events[0].contains("h1")).then_some(())
    })
    .await;
    // Somebody looked, and pins what the host really has.
    w.host_mut("h1").public = right;
    w.apply(&w.catalog(&["h1"], "1", 0, "parallel: 0")).await;
    w.post(&format!("/deployments/{id}/retry"), json!({})).await;
    w.until(&id, &["succeeded"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_behind_a_jump_host() {
    let mut w = World::start(Db::sqlite(), Form::Embedded).await;
    w.reach(Reach::Ssh, &["gate"]).await;
    // Other kinds of keys on the way.
    w.add_host("h1", "ecdsa");
    w.start_process("h1");
    w.host_mut("h1").more = "  jump: gate\n".into();
    let gate = format!("---\nkind: host\nname: gate\naddress: 127.0.0.1\n{}", w.ssh_of("gate"));
    w.apply(&(w.catalog(&["h1"], "1", 0, "parallel: 0") + &gate)).await;
    w.version("shop", "1.0.0", "true").await;
    let id = w.deploy("shop", "beta", "1.0.0").await;
    w.until(&id, &["succeeded"]).await;
    // It is the jump host that carries it: without it there is no way.
    w.kill("gate");
    let id = w.deploy("shop", "beta", "1.0.0").await;
    let d = w.until(&id, &["paused"]).await;
    assert!(d.to_string().contains("through jump host gate"), "{d:#}");
    assert_eq!(w.starts().len(), 2, "{:?}", w.starts());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_host_is_not_started() {
    let mut w = World::start(Db::sqlite(), Form::Embedded).await;
    w.reach(Reach::Ssh, &[]).await;
    w.add_host("h1", "ed25519");
    w.apply(&w.catalog(&["h1"], "1", 0, "parallel: 0")).await;
    w.version("shop", "1.0.0", "true").await;
    // It is known before a release: where a policy asks for that, the release is refused.
    eventually(PATIENCE, "it was looked at", async || (w.host("h1").await["state"] == "unreachable").then_some(()))
        .await;
    w.apply("kind: policy\nname: reach\nconnectivity: { check: refuse }\n").await;
    let body = json!({ "environment": "beta", "version": "1.0.0" });
    let (status, refused) = w.send("POST", "/projects/shop/deployments", &w.admin, Some(body)).await.expect("answers");
    assert!(status == 409 && refused.to_string().contains("h1 are not connected"), "{status} {refused}");
    w.apply("kind: policy\nname: reach\nconnectivity: { check: alert }\n").await;
    let id = w.deploy("shop", "beta", "1.0.0").await;
    let d = w.until(&id, &["paused"]).await;
    let text = d.to_string();
    assert!(text.contains("not reachable over SSH") && text.contains("does not answer"), "{d:#}");
    let tasks = w.get(&format!("/deployments/{id}/tasks")).await.to_string();
    assert!(tasks.contains("not_started"), "{tasks}");
    w.start_process("h1");
    w.post(&format!("/deployments/{id}/retry"), json!({})).await;
    w.until(&id, &["succeeded"]).await;
    w.assert_started_once();
}

/// Stopped processes, which end with the test however it ends.
struct Frozen(Vec<u32>);

impl Frozen {
    fn of(pids: Vec<u32>) -> Frozen {
        for pid in &pids {
            let _ = Command::new("kill").args(["-STOP", &pid.to_string()]).status();
        }
        Frozen(pids)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
    }
}

/// The link is there and carries nothing: both ends must find that out by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_link_is_given_up() {
    let w = one_host(Db::sqlite(), Form::Embedded).await;
    let gate = w.dir.path().join("gate");
    w.version("shop", "1.0.0", &waits_for(&gate)).await;
    let id = w.deploy("shop", "beta", "1.0.0").await;
    eventually(PATIENCE, "the step runs", async || (w.starts().len() == 1).then_some(())).await;
    let frozen = Frozen::of(connections(w.processes["h1"].pid()));
    assert!(!frozen.0.is_empty());
    std::fs::write(&gate, "").expect("gate");
    w.until(&id, &["succeeded"]).await;
    assert_eq!(w.starts().len(), 2, "{:?}", w.starts());
    w.assert_started_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_lost_its_state_gets_a_new_identity_and_a_revoked_one_none() {
    let w = one_host(Db::sqlite(), Form::Embedded).await;
    let known = |h: &Value| h["agent"]["id"].as_str().map(str::to_owned);
    let first = eventually(PATIENCE, "an identity", async || known(&w.host("h1").await)).await;
    // Its state is gone with all it knew, as when the host is installed anew behind the same key. In one move: its agent, known
    // as it is, may still be writing there, and what is written while a directory is being removed keeps it.
    std::fs::rename(w.agent_dir("h1"), w.dir.path().join("h1-as-it-was")).expect("moved away");
    w.cut("h1");
    let second =
        eventually(PATIENCE, "another identity", async || known(&w.host("h1").await).filter(|i| *i != first)).await;
    w.version("shop", "1.0.0", "true").await;
    let id = w.deploy("shop", "beta", "1.0.0").await;
    w.until(&id, &["succeeded"]).await;
    // Revoked: the same key does not come back by itself.
    let (status, _) = w.send("POST", &format!("/agents/{second}/revoke"), &w.admin, None).await.expect("answers");
    assert_eq!(status, 204);
    eventually(PATIENCE, "the reason", async || {
        let h = w.host("h1").await;
        (h["agent"].is_null() && h["ssh"]["error"].as_str().is_some_and(|e| e.contains("was revoked"))).then_some(())
    })
    .await;
    let starts = w.starts().len();
    let id = w.deploy("shop", "beta", "1.0.0").await;
    let d = w.until(&id, &["paused"]).await;
    assert!(d.to_string().contains("was revoked"), "{d:#}");
    assert_eq!(w.starts().len(), starts);
}

/// A user of this machine for the test alone, who may become root without a password.
struct User(&'static str);

impl User {
    fn make(name: &'static str) -> User {
        let as_root = |args: &[&str]| {
            let mut c = Command::new(if me() == "root" { args[0] } else { "sudo" });
            if me() == "root" {
                c.args(&args[1..])
            } else {
                c.arg("-n").args(args)
            };
            c.status().is_ok_and(|s| s.success())
        };
        let _ = as_root(&["userdel", name]);
        let made = as_root(&["useradd", "-M", "-d", "/tmp", "-s", "/bin/sh", "-p", "*", name]);
        assert!(made, "this test makes a user for itself: run it as root, or with `sudo -n`");
        let rule =
            format!("echo '{name} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{name} && chmod 440 /etc/sudoers.d/{name}");
        assert!(as_root(&["sh", "-c", &rule]), "sudo: install it (ops/test does)");
        User(name)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let undo = format!("rm -f /etc/sudoers.d/{0}; userdel {0}", self.0);
        let mut c = Command::new(if me() == "root" { "sh" } else { "sudo" });
        if me() != "root" {
            c.args(["-n", "sh"]);
        }
        let _ = c.args(["-c", &undo]).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_runs_as_root_by_sudo() {
    let user = User::make("windlass-e2e");
    let mut w = World::start(Db::sqlite(), Form::Embedded).await;
    w.reach(Reach::Ssh, &["h1"]).await;
    // The account must get as far as its keys and its commands.
    std::fs::set_permissions(w.dir.path(), std::fs::Permissions::from_mode(0o755)).expect("mode");
    w.fleet.as_mut().expect("fleet").account = user.0.into();
    w.host_mut("h1").more = "  sudo: true\n".into();
    w.apply(&w.catalog(&["h1"], "1", 0, "parallel: 0")).await;
    w.version("shop", "1.0.0", "id -un > $WINDLASS_ROOT/who; echo $SUDO_USER >> $WINDLASS_ROOT/who").await;
    let became_root = async |w: &World| {
        let who = w.root("h1").join("who");
        let id = w.deploy("shop", "beta", "1.0.0").await;
        w.until(&id, &["succeeded"]).await;
        let said = std::fs::read_to_string(&who).expect("the step wrote it");
        assert!(said.starts_with("root\n"), "{said}");
        std::fs::remove_file(who).expect("it is there");
    };
    became_root(&w).await;

    // The project's account has all of it: the user, a key of the project alone, and sudo.
    let private = std::fs::read_to_string(w.fleet.as_ref().expect("fleet").dir.join("fleet")).expect("private key");
    w.secret("project.shop", "robot", &private).await;
    let by_account = |w: &World| {
        let account = format!("accounts: {{ deploy: {{ user: {}, ssh_key: robot, sudo: true }} }}\n", user.0);
        let own = format!("  account: {}\n  key: fleet\n", user.0);
        let y = w.catalog(&["h1"], "1", 0, "parallel: 0");
        assert!(y.contains(&own), "{y}");
        y.replacen("group: retail\n", &format!("group: retail\n{account}"), 1)
            .replace(&own, "  account: deploy\n  project: shop\n")
    };
    w.host_mut("h1").more = String::new();
    w.apply(&by_account(&w)).await;
    became_root(&w).await;
    let told = async |w: &World, words: &str| {
        eventually(PATIENCE, "the reason", async || {
            let host = w.host("h1").await;
            host["ssh"]["error"].as_str().is_some_and(|e| e.contains(words)).then_some(())
        })
        .await;
    };
    // An account that the project does not have.
    w.apply(&by_account(&w).replace("account: deploy", "account: nobody")).await;
    w.deploy("shop", "beta", "1.0.0").await;
    told(&w, "has no account `nobody`").await;
    // What the host says goes before: without sudo the same user is not let into what root made, and the reason says so.
    w.host_mut("h1").more = "  sudo: false\n".into();
    w.apply(&by_account(&w)).await;
    told(&w, "ermission denied").await;
}
