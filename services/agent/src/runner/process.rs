//! One process of a step: started with a clean environment, its output always drained, stopped with all its descendants.

use super::{
    Context,
    stop::{Reason, Stop},
    tree,
};
use rustix::process::Signal;
use std::{collections::BTreeMap, os::unix::process::ExitStatusExt, path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::{Instant, sleep_until, timeout},
};
use windlass_contracts::frames::{MAX_LOG_DATA, Stream};
use windlass_domain::mask::MaskStream;

/// Output waits this long for more of it, so that a chatty process does not make a frame a line.
const COALESCE: Duration = Duration::from_millis(40);
/// After SIGKILL; a process in uninterruptible sleep may take longer than that, and is then reported.
const KILL_WAIT: Duration = Duration::from_secs(30);
/// How long a pipe that a left-behind process holds open is read on after the step's own process has ended.
const DRAIN: Duration = Duration::from_millis(200);

/// What to run.
#[derive(Debug)]
pub(crate) struct Spawn<'a> {
    pub argv: Vec<String>,
    pub cwd: &'a Path,
    pub env: BTreeMap<String, String>,
    pub stdin: Option<Vec<u8>>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stopped: Option<Reason>,
    /// Still alive and left alone (normal end), or not to be killed (stop).
    pub left: u32,
    /// For the step's message.
    pub last_line: String,
    /// Up to three of them, the last one too.
    pub last_lines: Vec<String>,
}

/// One output stream with what is not spooled yet.
struct Drain<R> {
    pipe: R,
    stream: Stream,
    held: Vec<u8>,
    mask: MaskStream,
    since: Option<Instant>,
    open: bool,
}

impl<R: AsyncRead + Unpin> Drain<R> {
    fn new(pipe: R, stream: Stream, mask: MaskStream) -> Self {
        Drain { pipe, stream, held: Vec::with_capacity(MAX_LOG_DATA), mask, since: None, open: true }
    }

    /// Reads once; returns at least after one read. Safe to cancel.
    async fn read(&mut self) {
        match self.pipe.read_buf(&mut self.held).await {
            Ok(0) | Err(_) => self.open = false,
            Ok(_) => {
                self.since.get_or_insert_with(Instant::now);
            }
        }
    }

    fn flush(&mut self, ctx: &Context, step: u32, last: &mut Vec<u8>) {
        if !self.held.is_empty() {
            let shown = self.mask.push(&self.held);
            self.show(ctx, step, last, &shown);
            self.held.clear();
        }
        self.since = None;
    }

    /// What the mask still held back: nothing more comes that could make a secret of it.
    fn finish(&mut self, ctx: &Context, step: u32, last: &mut Vec<u8>) {
        let shown = self.mask.finish();
        self.show(ctx, step, last, &shown);
    }

    fn show(&self, ctx: &Context, step: u32, last: &mut Vec<u8>, shown: &[u8]) {
        if !shown.is_empty() {
            remember(last, shown);
            ctx.log(step, self.stream, shown);
        }
    }

    fn due(&self) -> Option<Instant> {
        self.since.map(|s| s + COALESCE)
    }

    fn full(&self) -> bool {
        self.held.len() >= MAX_LOG_DATA
    }
}

/// Keeps the end of the output, enough for its last line.
fn remember(last: &mut Vec<u8>, data: &[u8]) {
    last.extend_from_slice(&data[data.len().saturating_sub(600)..]);
    let cut = last.len().saturating_sub(600);
    last.drain(..cut);
}

fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().rev().map(str::trim).find(|l| !l.is_empty()).unwrap_or("");
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn last_lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(3)..];
    last.iter().map(|l| l.chars().filter(|c| !c.is_control()).take(300).collect()).collect()
}

/// Runs it to its end, or to its stop.
pub(crate) async fn run(ctx: &Context, step: u32, spawn: Spawn<'_>, stop: &Stop) -> Result<Ended, String> {
    let (program, args) = spawn.argv.split_first().ok_or("there is no command to run")?;
    let mut child = Command::new(program)
        .args(args)
        .current_dir(spawn.cwd)
        .env_clear()
        .envs(&spawn.env)
        .stdin(if spawn.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|e| format!("cannot start {program:?} in {}: {e}", spawn.cwd.display()))?;
    let main = child.id().and_then(|p| i32::try_from(p).ok());
    let feed = child.stdin.take().zip(spawn.stdin);
    let feeding = async move {
        if let Some((mut pipe, data)) = feed {
            // A process that does not read its input is free not to.
            let _ = pipe.write_all(&data).await;
        }
    };
    tokio::pin!(feeding);
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("the system gave no pipes".into());
    };
    let mut out = Drain::new(out, Stream::Out, ctx.masker().stream());
    let mut err = Drain::new(err, Stream::Err, ctx.masker().stream());
    let mut last = Vec::new();
    let mut fed = false;
    let mut stopped = None;
    let mut term_until = None;
    let mut killed_at: Option<Instant> = None;
    let mut status = None;
    let mut next_look = Instant::now();
    loop {
        if status.is_some() && stopped.is_none() {
            break;
        }
        if stopped.is_some() && Instant::now() >= next_look {
            let alive = tree::descendants(&ctx.spared(), main);
            if alive.is_empty() && status.is_some() && tree::descendants(&ctx.spared(), main).is_empty() {
                break;
            }
            if term_until.is_some_and(|t| Instant::now() >= t) {
                tree::signal(&alive, Signal::KILL);
                let since = *killed_at.get_or_insert_with(Instant::now);
                if since.elapsed() > KILL_WAIT {
                    break;
                }
            }
            next_look = Instant::now() + Duration::from_millis(15);
        }
        let due = [out.due(), err.due()].into_iter().flatten().min();
        tokio::select! {
            () = out.read(), if out.open => {}
            () = err.read(), if err.open => {}
            () = &mut feeding, if !fed => fed = true,
            s = child.wait(), if status.is_none() => status = Some(s),
            reason = stop.requested(), if stopped.is_none() => {
                stopped = Some(reason);
                term_until = Some(Instant::now() + ctx.grace());
                next_look = Instant::now();
                tree::signal(&tree::descendants(&ctx.spared(), main), Signal::TERM);
            }
            () = sleep_until(next_look), if stopped.is_some() => {}
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                out.flush(ctx, step, &mut last);
                err.flush(ctx, step, &mut last);
            }
        }
        for d in [out.full(), err.full()].into_iter().enumerate().filter(|(_, f)| *f).map(|(i, _)| i) {
            if d == 0 { out.flush(ctx, step, &mut last) } else { err.flush(ctx, step, &mut last) }
        }
    }
    // What the process wrote before it ended is in the pipes; a daemon that holds them open must not hold the step.
    let until = Instant::now() + DRAIN;
    while (out.open || err.open) && Instant::now() < until {
        let quiet = Duration::from_millis(20);
        let more = timeout(quiet, async {
            tokio::select! { () = out.read(), if out.open => {}, () = err.read(), if err.open => {} }
        });
        if more.await.is_err() {
            break;
        }
        if out.full() || err.full() {
            out.flush(ctx, step, &mut last);
            err.flush(ctx, step, &mut last);
        }
    }
    out.flush(ctx, step, &mut last);
    err.flush(ctx, step, &mut last);
    let left = tree::descendants(&ctx.spared(), main);
    let count = u32::try_from(left.len()).unwrap_or(u32::MAX);
    let spared = stopped.is_none() && count > 0;
    if !(spared && out.open) {
        out.finish(ctx, step, &mut last);
    }
    if !(spared && err.open) {
        err.finish(ctx, step, &mut last);
    }
    if spared {
        ctx.spare(left);
        ctx.keep_draining(step, out.open.then_some((out.pipe, out.mask)), err.open.then_some((err.pipe, err.mask)));
    }
    let status = match status {
        Some(Ok(s)) => Some(s),
        Some(Err(e)) => return Err(format!("cannot wait for {program:?}: {e}")),
        None => None,
    };
    Ok(Ended {
        code: status.and_then(|s| s.code()),
        signal: status.and_then(|s| s.signal()),
        stopped,
        left: count,
        last_line: last_line(&last),
        last_lines: last_lines(&last),
    })
}
