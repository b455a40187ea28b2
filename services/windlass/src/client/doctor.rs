//! `doctor`: what is wrong with this machine and with the server, and what to do about it.

use super::{error::Error, http::Api, out::Out};
use crate::{
    cli::{API_PORT, Connection, NATS_PORT},
    up,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use windlass_contracts::http::{Check, Doctor};

const LEAST_FREE: u64 = 1024 * 1024 * 1024;
const LEAST_FILES: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    Warning,
    Fault,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    what: String,
    verdict: Verdict,
    detail: String,
    /// Empty when all is well.
    remedy: String,
}

fn ok(what: &str, detail: impl Into<String>) -> Finding {
    Finding { what: what.into(), verdict: Verdict::Ok, detail: detail.into(), remedy: String::new() }
}
fn bad(what: &str, verdict: Verdict, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { what: what.into(), verdict, detail: detail.into(), remedy: remedy.into() }
}

pub(crate) async fn run(state: &Path, connection: &Connection, out: Out) -> Result<(), Error> {
    let mut findings = local(state).await;
    findings.extend(server(connection).await);
    let faults = findings.iter().filter(|f| f.verdict == Verdict::Fault).count();
    if out.json {
        out.json(&json!({ "findings": findings, "faults": faults }))?;
    } else {
        for f in &findings {
            let mark = match f.verdict {
                Verdict::Ok => "ok     ",
                Verdict::Warning => "warning",
                Verdict::Fault => "FAULT  ",
            };
            out.line(format!("{mark}  {}: {}", f.what, super::text::clean(&f.detail, false)))?;
            if !f.remedy.is_empty() {
                out.line(format!("         -> {}", super::text::clean(&f.remedy, false)))?;
            }
        }
    }
    match faults {
        0 => Ok(()),
        n => Err(Error::Negative(format!("{n} fault(s) found"))),
    }
}

async fn local(state: &Path) -> Vec<Finding> {
    let mut found = vec![nats(state).await, agent(), files()];
    if !state.is_dir() {
        found.push(bad(
            "state directory",
            Verdict::Warning,
            format!("{} does not exist", state.display()),
            "./ops/up makes it; name another one with --state",
        ));
        return found;
    }
    found.push(space(state));
    found.extend(private(state));
    found.extend(running(state));
    found
}

async fn nats(state: &Path) -> Finding {
    const WHAT: &str = "nats-server";
    match up::find_nats(None, state).await {
        Ok(path) => ok(WHAT, path.display().to_string()),
        Err(e) => bad(WHAT, Verdict::Warning, e.to_string(), "only `windlass up` needs it; ./ops/up fetches it"),
    }
}

fn agent() -> Finding {
    const WHAT: &str = "windlass-agent";
    match up::find_program("windlass-agent", "--agent-bin", None) {
        Ok(path) => ok(WHAT, path.display().to_string()),
        Err(e) => bad(WHAT, Verdict::Warning, e.to_string(), "only demo agents need it here"),
    }
}

fn files() -> Finding {
    const WHAT: &str = "open files";
    match rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        Some(n) if n < LEAST_FILES => bad(
            WHAT,
            Verdict::Warning,
            format!("the limit is {n}"),
            format!("each agent needs one: raise it to {LEAST_FILES} or more (ulimit -n, LimitNOFILE= in the unit)"),
        ),
        n => ok(WHAT, n.map_or("no limit".into(), |n| format!("limit {n}"))),
    }
}

fn space(state: &Path) -> Finding {
    const WHAT: &str = "disk";
    match rustix::fs::statvfs(state) {
        Ok(s) => {
            let free = s.f_bavail * s.f_frsize;
            let detail = format!("{} MiB free below {}", free / 1024 / 1024, state.display());
            if free < LEAST_FREE {
                bad(WHAT, Verdict::Fault, detail, "free at least 1 GiB: a full disk stops every release")
            } else {
                ok(WHAT, detail)
            }
        }
        Err(e) => bad(WHAT, Verdict::Warning, e.to_string(), "check the state directory"),
    }
}

/// Keys and tokens that others may read.
fn private(state: &Path) -> Vec<Finding> {
    let mut exposed: Vec<PathBuf> = vec![];
    let keys = std::fs::read_dir(state.join("keys")).into_iter().flatten().flatten().map(|e| e.path());
    for path in keys.chain([state.join("admin.token")]) {
        let mode = std::fs::metadata(&path).map_or(0, |m| m.permissions().mode());
        if mode & 0o077 != 0 {
            exposed.push(path);
        }
    }
    if exposed.is_empty() {
        return vec![ok("secrets", "readable by their owner alone")];
    }
    let faults = exposed.iter().map(|p| {
        let remedy = format!("chmod 600 {}; replace it if it may have leaked", p.display());
        bad("secrets", Verdict::Fault, format!("{} may be read by others", p.display()), remedy)
    });
    faults.collect()
}

fn running(state: &Path) -> Vec<Finding> {
    const WHAT: &str = "windlass up";
    match up::Record::read(state) {
        Some(r) if r.process.is_alive() => {
            let mut found = vec![ok(WHAT, format!("runs with pid {} on {}", r.process.pid, r.server))];
            for child in r.children.iter().filter(|c| !c.is_alive()) {
                let what = format!("{} (pid {}) is gone", child.what, child.pid);
                found.push(bad(WHAT, Verdict::Fault, what, "./ops/down && ./ops/up --detach"));
            }
            found
        }
        Some(_) => {
            vec![bad(WHAT, Verdict::Fault, "it ended without cleaning up", "./ops/down, then ./ops/up --detach")]
        }
        None => {
            let taken = [(API_PORT, "--port"), (NATS_PORT, "--nats-port")];
            let taken = taken.into_iter().filter_map(|(port, option)| up::check_free(port, option).err());
            let faults: Vec<Finding> =
                taken.map(|e| bad("ports", Verdict::Warning, e.to_string(), "as it says")).collect();
            if faults.is_empty() { vec![ok(WHAT, "not running here; its default ports are free")] } else { faults }
        }
    }
}

async fn server(connection: &Connection) -> Vec<Finding> {
    const WHAT: &str = "server";
    let api = match super::config::Target::find(connection).and_then(Api::new) {
        Ok(api) => api,
        Err(Error::NoServer) => {
            return vec![bad(WHAT, Verdict::Warning, "none is configured", Error::NoServer.to_string())];
        }
        Err(e) => return vec![bad(WHAT, Verdict::Fault, e.to_string(), "correct the setting")],
    };
    let ready = api.get::<Value>("/readyz").await;
    let mut found = match ready {
        Ok(_) => vec![ok(WHAT, format!("{} is ready", api.server()))],
        Err(Error::Problem { status, body, .. }) => {
            vec![bad(WHAT, Verdict::Fault, format!("{} is not ready ({status}): {body}", api.server()), "see its log")]
        }
        Err(e) => return vec![bad(WHAT, Verdict::Fault, e.to_string(), "start it, or correct --server")],
    };
    match api.get::<Doctor>("/doctor").await {
        Ok(answer) => found.extend(of_server(answer)),
        Err(e) => found.push(bad(WHAT, Verdict::Warning, e.to_string(), "its own checks need an admin's token")),
    }
    found
}

/// The findings of `GET /doctor`.
fn of_server(answer: Doctor) -> Vec<Finding> {
    let one = |c: Check| {
        let verdict = match c.status.as_str() {
            "ok" => Verdict::Ok,
            "warning" => Verdict::Warning,
            _ => Verdict::Fault,
        };
        Finding { what: format!("server: {}", c.name), verdict, detail: c.detail, remedy: c.remedy }
    };
    answer.checks.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposed_keys_are_faults_with_a_remedy() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir(dir.path().join("keys")).expect("mkdir");
        let key = dir.path().join("keys/master.key");
        std::fs::write(&key, "x").expect("write");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        assert!(private(dir.path()).iter().all(|f| f.verdict == Verdict::Ok));
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        let found = private(dir.path());
        assert_eq!(found[0].verdict, Verdict::Fault);
        assert!(found[0].remedy.contains("chmod 600"));
    }

    #[test]
    fn a_dead_up_is_a_fault() {
        let dir = tempfile::tempdir().expect("dir");
        let dead = up::Process { what: "windlass up".into(), pid: u32::MAX >> 1, started: 1 };
        let record = up::Record {
            process: dead,
            ready: true,
            server: "http://127.0.0.1:1".into(),
            token_file: "t".into(),
            agents: vec![],
            children: vec![],
        };
        record.write(dir.path()).expect("write");
        assert!(running(dir.path()).iter().any(|f| f.verdict == Verdict::Fault));
    }
}
