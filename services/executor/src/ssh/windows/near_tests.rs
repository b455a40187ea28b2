//! The near half against a host behind a real sshd. In PowerShell's place stands `tests/it/windows/standin.py`, which runs
//! scripts with `sh`: what is proven here is this side, not the PowerShell scripts.

use super::{
    far::Far,
    near::{Near, meet},
};
use crate::ssh::{
    Fault,
    connect::{Session, Target, connect},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use nkeys::KeyPair;
use russh::keys::{PrivateKey, PublicKey, decode_secret_key};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use windlass_contracts::{
    frames::{self, Down, DownBody, Offer, OpenState, RefuseCode, Up, UpBody},
    stdio::Welcome,
};
use windlass_domain::{
    catalog::{Host, Item, read},
    ids::{AgentId, TaskId},
    merkle::{leaf_hash, root},
    plan::{PlanDigest, SpecProof, canonical_json},
    task::{ReportedOutcome, StepOutcome, TaskReport, TaskSpec, TaskStep},
};
use windlass_testkit::{eventually, free_port};

const PATIENCE: Duration = Duration::from_secs(60);
/// Texts that quoting would have to get right.
const NASTY: [&str; 5] = ["'; exit 9 #", "\"$(exit 9)`", "two\nlines\r\n", "%PATH% ^& | \\", "日本 \u{1F680} --% {0}"];

struct Lab {
    dir: tempfile::TempDir,
    sshd: Child,
    host: Host,
    key: Arc<PrivateKey>,
    pinned: PublicKey,
    executor: KeyPair,
    approval: KeyPair,
    agent: AgentId,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

fn said(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().expect(program);
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

fn keygen(path: &Path) -> String {
    let done =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(path).status();
    assert!(done.expect("ssh-keygen: install openssh-client").success());
    std::fs::read_to_string(path.with_extension("pub")).expect("public key").trim().to_owned()
}

impl Lab {
    fn start() -> Lab {
        let dir = tempfile::tempdir().expect("directory");
        let at = |name: &str| dir.path().join(name);
        let (public, client, port) = (keygen(&at("host")), keygen(&at("client")), free_port());
        std::fs::write(at("authorized_keys"), client).expect("writes");
        std::fs::create_dir(at("faults")).expect("directory");
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (python, me) = (said("python3", &["-c", "import sys; print(sys.executable)"]), said("id", &["-un"]));
        if me == "root" {
            std::fs::create_dir_all("/run/sshd").expect("what Debian's unit makes");
        }
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\n\
             PasswordAuthentication no\nPrintMotd no\nForceCommand {python} {} {} {}\n",
            at("host").display(),
            at("authorized_keys").display(),
            here.join("../../tests/it/windows/standin.py").canonicalize().expect("the stand-in").display(),
            here.join("src/ssh/windows/bootstrap.ps1").display(),
            at("faults").display(),
        );
        std::fs::write(at("sshd.conf"), config).expect("writes");
        let log = std::fs::File::create(at("sshd.log")).expect("log");
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f"]).arg(at("sshd.conf")).stderr(log).stdin(Stdio::null());
        let sshd = sshd.spawn().expect("install openssh-server (ops/test does)");
        let text = format!(
            "kind: host\nname: h\naddress: 127.0.0.1\nssh:\n  port: {port}\n  account: {me}\n  key: k\n  host_key: {public}\n  \
             state_dir: {}\n  root: {}\n  shell: powershell\n  untested: true\n",
            at("state").display(),
            at("root").display()
        );
        let Item::Host(host) = read(&text).expect("reads").remove(0).item else { panic!("a host") };
        let key = decode_secret_key(&std::fs::read_to_string(at("client")).expect("key"), None).expect("reads");
        Lab {
            sshd,
            host,
            key: Arc::new(key),
            pinned: PublicKey::from_openssh(&public).expect("reads"),
            executor: KeyPair::new_user(),
            approval: KeyPair::new_user(),
            agent: AgentId(uuid::Uuid::from_u128(42)),
            dir,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn session(&self) -> Session {
        let ssh = self.host.ssh.as_ref().expect("ssh");
        let target = Target {
            host: "h".into(),
            address: "127.0.0.1".into(),
            port: ssh.port,
            account: ssh.account.clone(),
            key: Arc::clone(&self.key),
            pinned: vec![self.pinned.clone()],
            jump: None,
        };
        eventually(PATIENCE, "a connection", async || connect(&target, Duration::from_secs(20)).await.ok()).await
    }

    async fn open(&self) -> Result<(Session, Near), Fault> {
        let session = self.session().await;
        let ssh = self.host.ssh.as_ref().expect("ssh");
        let mut far = Far::start(&session, ssh, Duration::from_secs(60)).await?;
        let met = meet(&mut far).await?;
        let welcome = Welcome {
            agent: self.agent,
            host: "h".into(),
            executor_key: self.executor.public_key(),
            approval_key: self.approval.public_key(),
        };
        let near = Near::open(far, met, &self.host, ssh, &welcome).await?;
        Ok((session, near))
    }

    async fn down(&self, near: &mut Near, instance: &str, body: DownBody) {
        let down = Down { aud: self.agent, instance: Some(instance.to_owned()), body };
        near.down(&frames::seal(&down, &self.executor).expect("seals")).await.expect("taken");
    }

    fn script(&self, run: &str) -> TaskStep {
        let env: serde_json::Map<String, Value> =
            NASTY.iter().enumerate().map(|(i, v)| (format!("V{i}"), json!(v))).collect();
        step("script", json!({ "run": run, "interpreter": "powershell.exe", "args": [], "env": env }))
    }

    /// Says that it began, keeps its values, and waits for the file `gate`.
    fn waits(&self) -> TaskStep {
        let dir = self.dir.path().display().to_string();
        self.script(&format!(
            "echo $TASK_KEY >> {dir}/starts\nprintf '%s|' \"$V0\" \"$V1\" \"$V2\" \"$V3\" \"$V4\" > {dir}/values\necho one\n\
             while [ ! -e {dir}/gate ]; do sleep 0.02; done\necho two\nexit 3\n"
        ))
    }

    fn starts(&self) -> usize {
        std::fs::read_to_string(self.at("starts")).unwrap_or_default().lines().count()
    }

    async fn grant(&self, near: &mut Near, task: TaskId, instance: &str) {
        let nonce = hear(near, "ACCEPT", |u| match &u.body {
            UpBody::Accept { nonce, .. } => Some(nonce.clone()),
            _ => None,
        })
        .await;
        self.down(near, instance, DownBody::Grant { task, nonce, epoch: 1, lease_s: 10, secrets: None }).await;
    }
}

fn step(action: &str, with: Value) -> TaskStep {
    let Value::Object(with) = with else { panic!("a map") };
    TaskStep { id: "go".into(), action: action.into(), with, always: false, timeout_s: 60 }
}

/// A plan of one spec: its Merkle root is the leaf.
fn offer(task: u128, steps: Vec<TaskStep>) -> DownBody {
    use sha2::{Digest, Sha256};
    let spec = TaskSpec {
        project: "shop".into(),
        environment: "beta".into(),
        version: "1".into(),
        host: "h".into(),
        step: "roll".into(),
        segment: 0,
        steps,
    };
    let root = root(&[leaf_hash(canonical_json(&spec).expect("JSON").as_bytes())]).to_string();
    let body = "0".repeat(64);
    let digest = Sha256::digest(format!("windlass-plan-v1\n{body}\n{root}\n1"));
    let digest = format!("sha256:{}", digest.iter().map(|b| format!("{b:02x}")).collect::<String>());
    DownBody::Offer(Box::new(Offer {
        task: uuid::Uuid::from_u128(task).into(),
        work: uuid::Uuid::from_u128(7).into(),
        deployment: uuid::Uuid::from_u128(task).into(),
        attempt: 1,
        epoch: 1,
        fence: 1,
        start_at: 0,
        proof: SpecProof { digest: PlanDigest { digest, body, root, leaves: 1 }, index: 0, path: vec![] },
        spec,
        approvals: vec![],
        outputs: serde_json::Map::new(),
        not_after: chrono::Utc::now() + chrono::TimeDelta::seconds(60),
        trace: None,
    }))
}

/// Lets the near half work until it says something of this kind. What it says opens with its key.
async fn hear<T>(near: &mut Near, what: &str, mut is: impl FnMut(&Up) -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        let wait = near.tick().await.expect("the host answers");
        let mut found = None;
        for up in std::mem::take(&mut near.out) {
            assert!(!near.seal(&up).expect("seals").is_empty());
            found = found.or(is(&up));
        }
        if let Some(found) = found {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waiting for {what}");
        tokio::time::sleep(wait).await;
    }
}

async fn instance(near: &mut Near) -> (String, Vec<OpenState>) {
    hear(near, "HELLO", |u| match &u.body {
        UpBody::Hello(h) => Some((u.instance.clone(), h.open.iter().map(|o| o.state).collect())),
        _ => None,
    })
    .await
}

async fn result(near: &mut Near) -> TaskReport {
    hear(near, "RESULT", |u| match &u.body {
        UpBody::Result { report, .. } => Some(report.clone()),
        _ => None,
    })
    .await
}

fn is_started(u: &Up) -> Option<()> {
    matches!(u.body, UpBody::Started { .. }).then_some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_goes_on_without_its_link_and_is_found_again() {
    let lab = Lab::start();
    let task: TaskId = uuid::Uuid::from_u128(1).into();
    let (session, mut near) = lab.open().await.expect("opens");
    let (first, _) = instance(&mut near).await;
    let offered = offer(1, vec![lab.waits()]);
    lab.down(&mut near, &first, offered.clone()).await;
    lab.grant(&mut near, task, &first).await;
    hear(&mut near, "STARTED", is_started).await;
    eventually(PATIENCE, "the script runs", async || (lab.starts() == 1).then_some(())).await;
    drop((session, near));
    // Another process finds the same journal, and a task that runs.
    let (_session, mut near) = lab.open().await.expect("opens again");
    assert_eq!(instance(&mut near).await, (first.clone(), vec![OpenState::Running]));
    lab.down(&mut near, &first, offered).await;
    hear(&mut near, "STARTED", is_started).await;
    std::fs::write(lab.at("gate"), "").expect("gate");
    let begun = Instant::now();
    // All that is said counts, also beside what is waited for.
    let mut log = std::collections::BTreeMap::new();
    let report = loop {
        let mut report = None;
        hear(&mut near, "the log and the result", |u| {
            match &u.body {
                UpBody::Log(f) => drop(log.insert(f.seq, STANDARD.decode(&f.data).expect("base64"))),
                UpBody::Result { report: r, .. } => report = Some(r.clone()),
                _ => return None,
            }
            Some(())
        })
        .await;
        // As a receiver does: an acknowledgement means everything before it, too.
        if let Some(seq) = (0..).take_while(|n| log.contains_key(n)).last() {
            lab.down(&mut near, &first, DownBody::LogAck { task, seq, window: 1 << 20 }).await;
        }
        if let Some(report) = report.filter(|r| r.log_frames == log.len() as u64) {
            break report;
        }
        assert!(begun.elapsed() < PATIENCE, "the log has {log:?}");
    };
    assert_eq!((report.outcome, report.steps.len()), (ReportedOutcome::Failed, 1));
    assert_eq!((report.steps[0].outcome, report.steps[0].exit_code), (StepOutcome::Failed, Some(3)));
    assert!(report.steps[0].message.starts_with("exited with code 3: two"), "{report:?}");
    assert_eq!(String::from_utf8_lossy(&log.into_values().collect::<Vec<_>>().concat()), "one\ntwo\n");
    assert_eq!(std::fs::read_to_string(lab.at("values")).expect("kept"), NASTY.map(|v| format!("{v}|")).concat());
    assert_eq!(lab.starts(), 1);
    // What is over is forgotten there, and known for ever.
    lab.down(&mut near, &first, DownBody::ResultAck { task }).await;
    near.tick().await.expect("the host answers");
    assert!(!lab.at("state/tasks").join(task.to_string()).exists());
    drop(near);
    let (_session, mut near) = lab.open().await.expect("opens");
    assert_eq!(instance(&mut near).await, (first, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_began_is_proven_and_cannot_begin_later() {
    let lab = Lab::start();
    let task: TaskId = uuid::Uuid::from_u128(2).into();
    std::fs::write(lab.at("faults/lose-runner"), "").expect("writes");
    let (_session, mut near) = lab.open().await.expect("opens");
    let (i, _) = instance(&mut near).await;
    lab.down(&mut near, &i, offer(2, vec![lab.waits()])).await;
    lab.grant(&mut near, task, &i).await;
    assert_eq!(result(&mut near).await.outcome, ReportedOutcome::Fenced);
    // The runner was only late.
    let standin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/it/windows/standin.py");
    let mut late = Command::new("python3");
    late.arg(standin).args(["run".into(), lab.at("state"), lab.at("root")]).arg(task.to_string());
    assert!(late.status().expect("runs").success());
    assert_eq!(lab.starts(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_what_runs_and_what_is_not_built_is_refused() {
    let lab = Lab::start();
    let task: TaskId = uuid::Uuid::from_u128(3).into();
    let (session, mut near) = lab.open().await.expect("opens");
    let (i, _) = instance(&mut near).await;
    for (challenge, answers) in [(Some("one".to_owned()), "one"), (None, "one"), (Some("x".repeat(129)), "one")] {
        lab.down(&mut near, &i, DownBody::WhoAreYou { challenge }).await;
        let said = hear(&mut near, "HELLO", |u| match &u.body {
            UpBody::Hello(h) => Some(h.answers.clone()),
            _ => None,
        });
        assert_eq!(said.await.as_deref(), Some(answers));
    }
    lab.down(&mut near, &i, offer(4, vec![step("artifact.fetch", json!({}))])).await;
    let code = hear(&mut near, "REFUSE", |u| match &u.body {
        UpBody::Refuse { code, detail, .. } => Some((*code, detail.clone())),
        _ => None,
    });
    let (code, detail) = code.await;
    assert!(code == RefuseCode::Invalid && detail.contains("`artifact.fetch` is not built"), "{detail}");
    lab.down(&mut near, &i, offer(3, vec![lab.waits(), lab.script("exit 0")])).await;
    lab.grant(&mut near, task, &i).await;
    eventually(PATIENCE, "the script runs", async || (lab.starts() == 1).then_some(())).await;
    lab.down(&mut near, &i, DownBody::Fence { task, work: uuid::Uuid::from_u128(7).into(), epoch: 1 }).await;
    let report = result(&mut near).await;
    assert_eq!(report.outcome, ReportedOutcome::Cancelled);
    let outcomes: Vec<StepOutcome> = report.steps.iter().map(|s| s.outcome).collect();
    assert_eq!(outcomes, [StepOutcome::Cancelled, StepOutcome::Skipped]);
    // A journal that was damaged is not worked with.
    drop((session, near));
    let journal = lab.at("state/journal");
    let mut bytes = std::fs::read(&journal).expect("the journal");
    bytes[30] ^= 1;
    std::fs::write(&journal, bytes).expect("writes");
    assert!(matches!(lab.open().await, Err(Fault::Journal { offset: 0 })));
}
