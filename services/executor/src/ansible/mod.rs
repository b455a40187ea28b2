//! `ansible.playbook`: runs a playbook against the plan's hosts. It runs in a private directory that is removed afterwards;
//! what Ansible prints is the step's log, and what came out for each host are the step's outputs.

mod inventory;

use crate::{
    central::{Done, failed, failed_as},
    program::{End, PrivateDir, Program},
    shared::Shared,
    single::Control,
    ssh,
    steplog::StepLog,
};
use futures::StreamExt;
use inventory::Host;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, process::Stdio, time::Duration};
use windlass_domain::{
    catalog::{Item, Kind, Ssh},
    plan::Plan,
    work::FailureClass,
};
use windlass_store::{catalog, secrets};

pub(crate) const ACTION: &str = "ansible.playbook";
const REPORT: &str = include_str!("report.py");
/// Hosts a jump may lead over, so that a circle ends.
const MAX_JUMPS: usize = 4;
/// Failed hosts that are named with their reason.
const TOLD: usize = 5;

/// For the answer of a shared connection that is to end.
const CLOSING: Duration = Duration::from_secs(5);
const CLOSED_AT_ONCE: usize = 16;

/// What is known of a host afterwards.
#[derive(Debug, Deserialize)]
struct Outcome {
    ok: u64,
    changed: u64,
    failures: u64,
    unreachable: u64,
    #[serde(default)]
    skipped: u64,
    #[serde(default)]
    reason: Option<String>,
}

/// Runs the step; `with` holds secrets in the clear, so nothing of it is told or kept but in private files.
pub(crate) async fn run(
    shared: &Shared,
    plan: &Plan,
    with: &Map<String, Value>,
    timeout: Duration,
    log: &StepLog,
    control: &Control,
) -> Done {
    let Some(program) = &shared.ctx.settings.executor.ansible_playbook else {
        return failed(
            "this executor runs no playbooks: set `executor.ansible_playbook` to the path of ansible-playbook; a playbook can \
             run commands on the executor's own machine, so that is off by default",
        );
    };
    let dir = match prepare(shared, plan, with).await {
        Ok(dir) => dir,
        Err(reason) => return failed(reason),
    };
    let path = dir.path().to_string_lossy().into_owned();
    let text = |key: &str| with.get(key).and_then(Value::as_str);
    let mut args: Vec<String> = ["-i", "inventory.yml", "-e", "@vars.yml", "-f", "10"].map(str::to_owned).into();
    if text("check") == Some("yes") {
        args.extend(["--check".into(), "--diff".into()]);
    }
    if text("become") == Some("yes") {
        args.push("--become".into());
        args.extend(text("become_user").into_iter().map(|u| format!("--become-user={u}")));
    }
    for tag in with.get("tags").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        args.push(format!("--tags={tag}"));
    }
    args.push("playbook.yml".into());
    let set = |k: &'static str, v: &str| (k, v.into());
    let env = vec![
        set("ANSIBLE_CONFIG", &format!("{path}/ansible.cfg")),
        set("ANSIBLE_LOCAL_TEMP", &format!("{path}/tmp")),
        set("ANSIBLE_NOCOLOR", "1"),
        set("ANSIBLE_RETRY_FILES_ENABLED", "0"),
        set("ANSIBLE_INVENTORY_ENABLED", "yaml"),
        set("ANSIBLE_CALLBACK_PLUGINS", &format!("{path}/callbacks")),
        set("ANSIBLE_CALLBACKS_ENABLED", "windlass_report"),
        set("ANSIBLE_SSH_ARGS", &format!("-F {path}/ssh_config")),
        set("PYTHONDONTWRITEBYTECODE", "1"),
        set("WINDLASS_REPORT", &format!("{path}/report.json")),
    ];
    let args = args.into_iter().map(Into::into).collect();
    let run = Program { program: program.clone(), args, env, dir: &dir, input: String::new(), log_output: true };
    let halt = async {
        tokio::select! {
            () = control.abort.cancelled() => {}
            () = tokio::time::sleep(timeout) => {}
        }
    };
    let ran = run.run(log, halt).await;
    close(&dir).await;
    let ran = match ran {
        Ok(ran) => ran,
        Err(e) => return failed(format!("{} cannot be started: {e}", program.display())),
    };
    let report = std::fs::read_to_string(dir.path().join("report.json")).ok();
    let report: Option<BTreeMap<String, Outcome>> = report.and_then(|t| serde_json::from_str(&t).ok());
    match ran.end {
        End::Stopped if control.abort.is_cancelled() => failed("stopped: the deployment was aborted"),
        End::Stopped => {
            let reason = format!("the step took longer than its timeout of {} s", timeout.as_secs());
            failed_as(FailureClass::Timeout, reason)
        }
        End::Killed => failed("ansible-playbook was killed"),
        End::Exited(code) => judge(report, code, log),
    }
}

/// Ends the connections that the hosts' tasks shared. They are sessions of their own, so the end of the run's process group does not
/// reach them; what cannot be ended here goes by itself after some idle seconds.
async fn close(dir: &PrivateDir) {
    let sockets = std::fs::read_dir(dir.path()).into_iter().flatten().flatten();
    let sockets = sockets.filter(|e| e.file_name().to_string_lossy().starts_with(inventory::CONTROL));
    let closing = sockets.map(|socket| async move {
        let mut path = std::ffi::OsString::from("ControlPath=");
        path.push(socket.path());
        let ssh = tokio::process::Command::new("ssh")
            .args(["-F", "none", "-O", "exit", "-o"])
            .arg(path)
            .arg("any")
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let _ = tokio::time::timeout(CLOSING, ssh).await;
    });
    futures::stream::iter(closing).buffer_unordered(CLOSED_AT_ONCE).collect::<Vec<()>>().await;
}

fn judge(report: Option<BTreeMap<String, Outcome>>, code: i32, log: &StepLog) -> Done {
    let Some(hosts) = report else {
        return failed(format!(
            "ansible-playbook ended with code {code} before it ran on any host; the step's log says why"
        ));
    };
    let outputs: Map<String, Value> = hosts
        .iter()
        .map(|(name, o)| {
            let counts = json!({ "ok": o.ok, "changed": o.changed, "failures": o.failures, "unreachable": o.unreachable, "skipped": o.skipped });
            (name.clone(), counts)
        })
        .collect();
    let bad: Vec<(&String, &Outcome)> = hosts.iter().filter(|(_, o)| o.failures + o.unreachable > 0).collect();
    let reason = if hosts.is_empty() {
        Some("the playbook ran on no host: `hosts:` in it names none of the deployment's hosts or groups".to_owned())
    } else if !bad.is_empty() {
        let told: Vec<String> = bad
            .iter()
            .take(TOLD)
            .map(|(name, o)| {
                let what = if o.unreachable > 0 { "unreachable" } else { "failed" };
                log.masker().text(&format!("{name} {what}: {}", o.reason.as_deref().unwrap_or("see the step's log")))
            })
            .collect();
        Some(format!("{} of {} hosts did not come through; {}", bad.len(), hosts.len(), told.join("; ")))
    } else if code != 0 {
        Some(format!("ansible-playbook ended with code {code}; the step's log says why"))
    } else {
        None
    };
    Done { failed: reason, output: json!({ "hosts": outputs }), ..Done::default() }
}

/// Writes all files of a run.
async fn prepare(shared: &Shared, plan: &Plan, with: &Map<String, Value>) -> Result<PrivateDir, String> {
    let wrong = |e: std::io::Error| format!("no private directory for the run: {e}");
    let text = |key: &str| with.get(key).and_then(Value::as_str);
    let playbook = text("playbook").ok_or("`playbook` is missing")?;
    let connection = text("connection").unwrap_or("ssh");
    let dir = PrivateDir::new(&shared.ctx.settings.state_dir).map_err(wrong)?;
    std::fs::create_dir(dir.path().join("callbacks")).map_err(wrong)?;
    let mut vars = BTreeMap::new();
    for (name, value) in with.get("vars").and_then(Value::as_object).into_iter().flatten() {
        let fits = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        if !fits || name.starts_with("ansible_") || name.starts_with("windlass_") {
            return Err(format!(
                "`vars` holds `{name}`: a name has letters, digits and `_`, and begins neither with `ansible_` nor `windlass_`"
            ));
        }
        vars.insert(name.clone(), value.as_str().unwrap_or_default().to_owned());
    }
    for (name, value) in [
        ("windlass_project", &plan.project),
        ("windlass_environment", &plan.environment),
        ("windlass_version", &plan.artifact.version),
        ("windlass_artifact_url", &plan.artifact.url),
        ("windlass_artifact_digest", &plan.artifact.digest),
        ("windlass_release_dir", &plan.artifact.dir),
    ] {
        vars.insert(name.into(), value.clone());
    }
    let hosts: Vec<Host<'_>> = plan.hosts.iter().map(|h| Host { name: &h.name, labels: &h.labels }).collect();
    let mut files = vec![
        ("playbook.yml", playbook.to_owned()),
        ("vars.yml", inventory::variables(&vars)),
        ("inventory.yml", inventory::inventory(&hosts, connection)),
        ("callbacks/windlass_report.py", REPORT.to_owned()),
        ("ansible.cfg", "[defaults]\ndeprecation_warnings = False\n".to_owned()),
    ];
    let mut keys = Vec::new();
    if connection == "ssh" {
        let reached = reached(shared, plan).await?;
        for (name, (_, ssh)) in &reached {
            let key = private_key(shared, name, ssh).await?;
            keys.push((format!("key-{name}"), key));
        }
        files.push(("known_hosts", inventory::known_hosts(&reached)));
        files.push(("ssh_config", inventory::ssh_config(&reached, &dir.path().to_string_lossy())));
    } else {
        files.push(("ssh_config", String::new()));
    }
    for (name, content) in files {
        dir.write(name, content.as_bytes()).map_err(wrong)?;
    }
    for (name, key) in keys {
        // OpenSSH refuses a key file whose last line has no end.
        dir.write(&name, format!("{}\n", key.trim_end()).as_bytes()).map_err(wrong)?;
    }
    Ok(dir)
}

/// How each host of the plan is reached, and those in between: address and SSH as the catalog has them now.
async fn reached(shared: &Shared, plan: &Plan) -> Result<BTreeMap<String, (String, Ssh)>, String> {
    let mut out = BTreeMap::new();
    let mut wanted: Vec<String> = plan.hosts.iter().map(|h| h.name.clone()).collect();
    for _ in 0..=MAX_JUMPS {
        let mut next = Vec::new();
        for name in wanted {
            if out.contains_key(&name) {
                continue;
            }
            let read = async { catalog::get(&mut shared.ctx.store.read().await?, Kind::Host, &name).await };
            let found = read.await.map_err(|e| format!("the catalog cannot be read: {e}"))?;
            let Some(Item::Host(host)) = found.map(|e| e.item) else {
                return Err(format!("host `{name}` is not in the catalog"));
            };
            let Some(own) = host.ssh else {
                return Err(format!(
                    "host `{name}` has no `ssh` in the catalog, so Ansible cannot reach it: add account, key and host key there"
                ));
            };
            let accounts = match &own.project {
                Some(p) => Some(async { ssh::accounts(&mut shared.ctx.store.read().await?, p).await }.await),
                None => None,
            };
            let accounts = accounts.transpose().map_err(|e| format!("the catalog cannot be read: {e}"))?;
            let ssh = own.resolved(accounts.as_ref()).map_err(|e| format!("host `{name}` cannot be reached: {e}"))?;
            next.extend(ssh.jump.clone());
            out.insert(name, (host.address, ssh));
        }
        wanted = next;
    }
    Ok(out)
}

/// The private key of a host, as text.
async fn private_key(shared: &Shared, host: &str, ssh: &Ssh) -> Result<String, String> {
    let name = ssh.key.as_deref().unwrap_or_default();
    for scope in ssh.key_scopes(host) {
        let read = async { secrets::sealed(&mut shared.ctx.store.read().await?, &scope, name).await };
        let sealed = read.await.map_err(|e| format!("the secret `{name}` cannot be read: {e}"))?;
        let Some(sealed) = sealed else { continue };
        let open = shared.ctx.sealer.open(&scope, name, &sealed);
        let bytes = open.map_err(|e| format!("the secret `{name}` cannot be opened: {e}"))?;
        return String::from_utf8(bytes).map_err(|_| format!("the secret `{name}` is not the text of a private key"));
    }
    Err(format!(
        "host `{host}` names the key `{name}`, which is stored neither for it nor for all hosts: `windlass secret set host.{host}/{name}`"
    ))
}
