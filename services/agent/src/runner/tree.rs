//! Every descendant of the runner, however it was forked, and how to end them.
//!
//! The runner is a child subreaper: a process that double-forks or makes its own session still ends up below it, so
//! walking the children finds it. No process group or session id is trusted.

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::{collections::BTreeSet, fs};

/// A process for certain: pids are used again, start times are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Proc {
    pub pid: i32,
    pub started: u64,
}

/// What `/proc/<pid>/stat` says.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    pub zombie: bool,
    pub parent: i32,
    pub started: u64,
}

/// `None`: no such process (any more).
pub fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields follow the last parenthesis.
    let end = text.iter().rposition(|b| *b == b')')?;
    let rest = String::from_utf8_lossy(&text[end + 1..]).into_owned();
    let f: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Stat {
        zombie: matches!(*f.first()?, "Z" | "X"),
        parent: f.get(1)?.parse().ok()?,
        started: f.get(19)?.parse().ok()?,
    })
}

fn children(pid: i32) -> Vec<i32> {
    let mut out = Vec::new();
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return out };
    for t in tasks.flatten() {
        match fs::read_to_string(t.path().join("children")) {
            Ok(text) => out.extend(text.split_ascii_whitespace().filter_map(|p| p.parse::<i32>().ok())),
            // A kernel without that file: look at every process.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && t.path().exists() => return scan(pid),
            Err(_) => {}
        }
    }
    out
}

fn scan(parent: i32) -> Vec<i32> {
    let Ok(dir) = fs::read_dir("/proc") else { return Vec::new() };
    dir.flatten()
        .filter_map(|e| e.file_name().to_string_lossy().parse::<i32>().ok())
        .filter(|p| stat(*p).is_some_and(|s| s.parent == parent))
        .collect()
}

/// Living descendants of this process, but for the trees below `spared`. Reaps dead orphans that were handed to it,
/// except `main`, whose status somebody else waits for.
pub fn descendants(spared: &BTreeSet<Proc>, main: Option<i32>) -> Vec<Proc> {
    let mut out = Vec::new();
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    let mut todo = children(me);
    while let Some(pid) = todo.pop() {
        let Some(s) = stat(pid) else { continue };
        let p = Proc { pid, started: s.started };
        if s.zombie {
            if s.parent == me && Some(pid) != main {
                let _ = Pid::from_raw(pid).map(|p| waitpid(Some(p), WaitOptions::NOHANG));
            }
            continue;
        }
        if spared.contains(&p) {
            continue;
        }
        todo.extend(children(pid));
        out.push(p);
    }
    out
}

/// Signals those that are still the same processes.
pub fn signal(procs: &[Proc], sig: Signal) {
    for p in procs {
        if stat(p.pid).is_some_and(|s| s.started == p.started)
            && let Some(pid) = Pid::from_raw(p.pid)
        {
            let _ = kill_process(pid, sig);
        }
    }
}
