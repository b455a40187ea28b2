//! What is sent to a Windows host: the command that starts the far half, and what a runner is to do. Both are pure. Texts of
//! flows are only ever base64 here, so there is nothing to quote and nothing to get wrong in quoting.

use crate::ssh::Fault;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use windlass_domain::{
    catalog::Ssh,
    platform,
    task::{TaskSpec, TaskStep},
};

/// Both scripts are plain ASCII: PowerShell 5.1 reads anything else in the code page of the machine.
pub(super) const BOOTSTRAP: &str = include_str!("bootstrap.ps1");
pub(super) const HOST: &str = include_str!("host.ps1");
/// What `cmd.exe`, the shell that OpenSSH for Windows starts commands with, takes at most.
const MAX_COMMAND: usize = 8191;

/// Base64 of a text as UTF-8.
pub(super) fn b64(text: &str) -> String {
    STANDARD.encode(text)
}

/// A script as the argument of `-EncodedCommand`: base64 of UTF-16LE. Its alphabet means nothing to `cmd.exe` or PowerShell.
pub(super) fn encoded(script: &str) -> String {
    STANDARD.encode(script.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>())
}

/// Starts the bootstrap; the same for every host.
pub(super) fn start_command() -> Result<String, Fault> {
    let command = format!(
        "powershell.exe -NoLogo -NoProfile -NonInteractive -OutputFormat Text -EncodedCommand {}",
        encoded(BOOTSTRAP)
    );
    if command.len() > MAX_COMMAND {
        return Err(Fault::Agent { said: format!("the bootstrap is longer than {MAX_COMMAND} characters") });
    }
    Ok(command)
}

/// SHA-256 of the host script, hex.
pub(super) fn digest() -> String {
    Sha256::digest(HOST).iter().map(|b| format!("{b:02x}")).collect()
}

/// The first line the bootstrap reads: where the state and the root are, and which script is wanted.
pub(super) fn first_line(ssh: &Ssh) -> String {
    format!("{} {} {}", b64(&ssh.state_dir), b64(&ssh.root), digest())
}

/// `spec.json` of a task on the host.
#[derive(Debug, Serialize)]
pub(super) struct RunSpec {
    start_at: u32,
    steps: Vec<RunStep>,
}

/// One step. Every text that somebody wrote is base64; a runner never sees it as anything else.
#[derive(Debug, Serialize)]
#[serde(tag = "kind")]
pub(super) enum RunStep {
    #[serde(rename = "script")]
    Script {
        id: String,
        always: bool,
        timeout_s: u32,
        script: String,
        interpreter: String,
        cwd: String,
        env: Vec<Variable>,
    },
    #[serde(rename = "http.check")]
    Check {
        id: String,
        always: bool,
        timeout_s: u32,
        url: String,
        /// 0: any of 2xx.
        status: u64,
        /// Empty: anything.
        expect: String,
        within_ms: u64,
        interval_ms: u64,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct Variable {
    k: String,
    v: String,
}

/// Makes `spec.json`; `Err` says why this host cannot do it. `more` goes into the environment of scripts, below their own.
pub(super) fn run_spec(spec: &TaskSpec, start_at: u32, more: &[(String, String)]) -> Result<RunSpec, String> {
    let steps = spec.steps.iter().map(|s| run_step(s, more).map_err(|e| format!("step {}: {e}", s.id)));
    Ok(RunSpec { start_at, steps: steps.collect::<Result<_, _>>()? })
}

fn run_step(step: &TaskStep, more: &[(String, String)]) -> Result<RunStep, String> {
    if let Some(problem) = platform::problem(step) {
        return Err(problem);
    }
    let (id, always, timeout_s) = (b64(&step.id), step.always, step.timeout_s.max(1));
    let text = |key: &str| b64(&text_of(step.with.get(key)));
    if step.action == "script" {
        let empty = Map::new();
        let own = step.with.get("env").and_then(Value::as_object).unwrap_or(&empty);
        let given = more.iter().filter(|(k, _)| !own.contains_key(k)).map(|(k, v)| (k.clone(), v.clone()));
        let all = given.chain(own.iter().map(|(k, v)| (k.clone(), text_of(Some(v)))));
        let env = all.map(|(k, v)| Variable { k: b64(&k), v: b64(&v) }).collect();
        let (script, interpreter, cwd) = (text("run"), text("interpreter"), text("cwd"));
        return Ok(RunStep::Script { id, always, timeout_s, script, interpreter, cwd, env });
    }
    let ms = |key: &str, default: u64| {
        let seconds = step.with.get(key).and_then(Value::as_f64);
        seconds.map_or(default, |s| (s * 1000.0).clamp(1.0, 86_400_000.0) as u64)
    };
    Ok(RunStep::Check {
        id,
        always,
        timeout_s,
        url: text("url"),
        status: step.with.get("status").and_then(Value::as_u64).unwrap_or(0),
        expect: text("expect_body"),
        within_ms: ms("within_s", 30_000),
        interval_ms: ms("interval_s", 1000),
    })
}

fn text_of(v: Option<&Value>) -> String {
    match v {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    }
}
