//! The runner: one process a task, in a session of its own, that outlives the agent. It runs the steps, keeps their
//! records and leaves `exit.json`.

pub(crate) mod process;
pub(crate) mod stop;
pub mod tree;

use crate::{
    actions, secrets,
    spool::Writer,
    taskdir::{RunSpec, StepLine, TaskDir},
};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Write},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use stop::{Reason, Stop};
use tokio::{
    io::AsyncReadExt,
    process::{ChildStderr, ChildStdout},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use windlass_contracts::frames::Stream;
use windlass_domain::{
    mask::{MaskStream, Masker},
    reference::{self, Reference},
    secret::{self, Secrets},
    task::{ReportedOutcome, StepOutcome, StepReport, TaskReport, TaskStep},
};

/// Outputs of all steps of a task together: its report must fit in a frame.
const MAX_OUTPUTS: usize = 128 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    #[error("cannot {what} in {dir}")]
    Io {
        what: &'static str,
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What the steps of one task share.
#[derive(Debug)]
pub(crate) struct Context {
    pub dir: TaskDir,
    pub spec: RunSpec,
    secrets: Secrets,
    masker: Masker,
    /// What the steps so far gave, by id, masked.
    outputs: Mutex<Map<String, Value>>,
    log: Arc<Mutex<Writer>>,
    /// Processes that steps which ended normally have left behind.
    spared: Mutex<BTreeSet<tree::Proc>>,
    drains: Mutex<JoinSet<()>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Context {
    pub(crate) fn log(&self, step: u32, stream: Stream, data: &[u8]) {
        lock(&self.log).write(step, stream, chrono::Utc::now(), data);
        self.dir.ring();
    }
    pub(crate) fn note(&self, step: u32, text: &str) {
        self.log(step, Stream::Note, format!("{}\n", self.masker.text(text)).as_bytes());
    }
    pub(crate) fn masker(&self) -> &Masker {
        &self.masker
    }

    /// The parameters with what their references mean: secrets, outputs of this task's earlier steps, and of others.
    pub(crate) fn fill(&self, with: &Map<String, Value>) -> Result<Map<String, Value>, String> {
        let own = lock(&self.outputs);
        let before = &self.spec.accepted.outputs;
        let mut lookup = |r: &Reference| match r {
            Reference::Secret { name } => self.secrets.get(name).map(|s| Value::String(s.expose().to_owned())),
            Reference::Output { step, path } if own.contains_key(step) => reference::output(&own, step, path).cloned(),
            Reference::Output { step, path } => reference::output(before, step, path).cloned(),
        };
        reference::fill_map(with, &mut lookup).map_err(|e| e.to_string())
    }

    /// Whether there is room for a step's outputs.
    pub(crate) fn gave(&self, outputs: &Map<String, Value>) -> Result<(), String> {
        let size = |m: &Map<String, Value>| serde_json::to_string(m).map_or(usize::MAX, |t| t.len());
        let all = size(&lock(&self.outputs)).saturating_add(size(outputs));
        if all > MAX_OUTPUTS {
            return Err(format!(
                "the outputs of this task's steps have {all} bytes together, {MAX_OUTPUTS} are allowed"
            ));
        }
        Ok(())
    }
    pub(crate) fn grace(&self) -> Duration {
        Duration::from_millis(self.spec.grace_ms)
    }
    pub(crate) fn spared(&self) -> BTreeSet<tree::Proc> {
        lock(&self.spared).clone()
    }
    pub(crate) fn spare(&self, left: Vec<tree::Proc>) {
        lock(&self.spared).extend(left);
    }

    /// Goes on reading pipes that a left-behind process holds open, so that it does not block while this task lasts.
    pub(crate) fn keep_draining(
        &self,
        step: u32,
        out: Option<(ChildStdout, MaskStream)>,
        err: Option<(ChildStderr, MaskStream)>,
    ) {
        let mut drains = lock(&self.drains);
        if let Some((pipe, mask)) = out {
            drains.spawn(drain(self.log.clone(), step, Stream::Out, pipe, mask));
        }
        if let Some((pipe, mask)) = err {
            drains.spawn(drain(self.log.clone(), step, Stream::Err, pipe, mask));
        }
    }

    /// The environment every process of the task gets: nothing of the agent's own but what was set for it.
    pub(crate) fn env(&self) -> BTreeMap<String, String> {
        let home = std::env::var("HOME").unwrap_or_else(|_| "/".into());
        let a = &self.spec.accepted;
        let mut env: BTreeMap<String, String> = [
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
            ("HOME", home),
            ("LANG", "C.UTF-8".to_owned()),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into();
        env.extend(self.spec.env.clone());
        env.extend(
            [
                ("TASK_KEY", a.task.to_string()),
                ("WINDLASS_ROOT", self.spec.root.display().to_string()),
                ("WINDLASS_PROJECT", a.spec.project.clone()),
                ("WINDLASS_ENVIRONMENT", a.spec.environment.clone()),
                ("WINDLASS_VERSION", a.spec.version.clone()),
                ("WINDLASS_HOST", a.spec.host.clone()),
            ]
            .map(|(k, v)| (k.to_owned(), v)),
        );
        env.extend(a.trace.clone().map(|t| ("TRACEPARENT".to_owned(), t)));
        env
    }
}

async fn drain(
    log: Arc<Mutex<Writer>>,
    step: u32,
    stream: Stream,
    mut pipe: impl tokio::io::AsyncRead + Unpin,
    mut mask: MaskStream,
) {
    let mut buf = vec![0; 16 * 1024];
    let write = |bytes: &[u8]| lock(&log).write(step, stream, chrono::Utc::now(), bytes);
    while let Ok(n) = pipe.read(&mut buf).await {
        if n == 0 {
            break;
        }
        write(&mask.push(&buf[..n]));
    }
    write(&mask.finish());
}

/// The whole life of a runner. Standard input is the task's lock, held open until the process ends.
pub fn main(dir: PathBuf) -> Result<(), RunnerError> {
    let at = |what| {
        let dir = dir.clone();
        move |source: io::Error| RunnerError::Io { what, dir, source }
    };
    // Away from the agent's terminal, process group and signals.
    rustix::process::setsid().map_err(|e| at("make a session")(e.into()))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| at("become the reaper of the task's processes")(e.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .map_err(at("start"))?;
    let done = runtime.block_on(run(TaskDir::new(dir.clone())));
    // A file operation that was told to stop may still be in a system call; its effect is only ever a partial file.
    runtime.shutdown_timeout(Duration::from_secs(2));
    done
}

async fn run(dir: TaskDir) -> Result<(), RunnerError> {
    let at = |what| {
        let dir = dir.path().to_owned();
        move |source| RunnerError::Io { what, dir, source }
    };
    let mut term = signal(SignalKind::terminate()).map_err(at("handle signals"))?;
    dir.write_pid().map_err(at("write the pid"))?;
    let spec = dir.spec().map_err(at("read the specification"))?;
    dir.reserve_exit().map_err(at("reserve room for the result"))?;
    let secrets = match secrets::names(&spec.accepted.spec).is_empty() {
        true => Secrets::new(),
        false => secrets::receive().map_err(at("take the secrets"))?,
    };
    let log = Writer::create(&dir.log(), spec.caps).map_err(at("create the log"))?;
    let steps = dir.steps_file().map_err(at("create the step records"))?;
    let (cancel, cancelled) = watch::channel(dir.abort_requested());
    let ctx = Context {
        dir: dir.clone(),
        spec,
        masker: secret::masker(&secrets),
        secrets,
        outputs: Mutex::default(),
        log: Arc::new(Mutex::new(log)),
        spared: Mutex::new(BTreeSet::new()),
        drains: Mutex::new(JoinSet::new()),
    };
    if *cancelled.borrow() {
        // Asked to stop before anything began: nothing is marked as begun, and the report says so.
        let report = crate::dispatch::empty_report(ReportedOutcome::Fenced);
        dir.write_exit(&report).map_err(at("write the result"))?;
        return Ok(());
    }
    dir.mark().map_err(at("mark the begin"))?;
    let body = run_steps(&ctx, steps, cancelled);
    tokio::pin!(body);
    let report = loop {
        tokio::select! {
            r = &mut body => break r.map_err(at("write the step records"))?,
            // A SIGTERM without the abort file is the machine's shutdown: the steps get theirs from the system.
            _ = term.recv() => if dir.abort_requested() { let _ = cancel.send(true); }
        }
    };
    dir.write_exit(&report).map_err(at("write the result"))?;
    dir.ring();
    Ok(())
}

async fn run_steps(ctx: &Context, mut file: File, cancelled: watch::Receiver<bool>) -> io::Result<TaskReport> {
    let accepted = &ctx.spec.accepted;
    let mut reports = Vec::new();
    let mut failed = false;
    for (step, index) in accepted.spec.steps.iter().zip(0u32..) {
        let stop_now = *cancelled.borrow();
        if index < accepted.start_at || ((failed || stop_now) && !step.always) {
            reports.push(skipped(index));
            continue;
        }
        record(&mut file, &StepLine::Begin { index, at: chrono::Utc::now() })?;
        // Clean-up is not interrupted by the abort that makes it necessary; its timeout bounds it.
        let cancel = (!step.always).then(|| cancelled.clone());
        let stop = Stop::new(Duration::from_secs(step.timeout_s.max(1).into()), cancel);
        let report = run_step(ctx, index, step, &stop).await;
        failed |= report.outcome != StepOutcome::Succeeded;
        lock(&ctx.outputs).insert(step.id.clone(), Value::Object(report.outputs.clone()));
        record(&mut file, &StepLine::End(report.clone()))?;
        ctx.dir.ring();
        reports.push(report);
    }
    let outcome = match (*cancelled.borrow() && reports.iter().any(|r| r.outcome == StepOutcome::Cancelled), failed) {
        (true, _) => ReportedOutcome::Cancelled,
        (false, true) => ReportedOutcome::Failed,
        // An abort that came between two steps left the rest undone.
        (false, false) if skipped_some(ctx, &reports) => ReportedOutcome::Cancelled,
        (false, false) => ReportedOutcome::Succeeded,
    };
    let log = lock(&ctx.log);
    Ok(TaskReport { outcome, steps: reports, log_bytes: log.total(), log_dropped: log.dropped(), log_frames: 0 })
}

fn skipped_some(ctx: &Context, reports: &[StepReport]) -> bool {
    reports.iter().any(|r| r.outcome == StepOutcome::Skipped && r.index >= ctx.spec.accepted.start_at)
}

fn skipped(index: u32) -> StepReport {
    let now = chrono::Utc::now();
    StepReport {
        index,
        outcome: StepOutcome::Skipped,
        exit_code: None,
        started_at: now,
        ended_at: now,
        message: String::new(),
        left_processes: 0,
        outputs: serde_json::Map::new(),
    }
}

fn record(file: &mut File, line: &StepLine) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)?;
    file.sync_data()
}

async fn run_step(ctx: &Context, index: u32, step: &TaskStep, stop: &Stop) -> StepReport {
    let started_at = chrono::Utc::now();
    ctx.note(index, &format!("{} ({}) starts", step.id, step.action));
    let done = actions::run(ctx, index, step, stop).await;
    let (outcome, exit_code, message, left, outputs) = match done {
        Ok(d) => (StepOutcome::Succeeded, d.exit_code, String::new(), d.left, d.outputs),
        Err(f) => {
            let outcome = match f.stopped {
                None => StepOutcome::Failed,
                Some(Reason::TimedOut) => StepOutcome::TimedOut,
                Some(Reason::Cancelled) => StepOutcome::Cancelled,
            };
            (outcome, f.exit_code, ctx.masker.text(&f.message), f.left, f.outputs)
        }
    };
    let word = serde_json::to_value(outcome).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    let more = if message.is_empty() { String::new() } else { format!(": {message}") };
    ctx.note(index, &format!("{} {word}{more}", step.id));
    StepReport {
        outputs,
        index,
        outcome,
        exit_code,
        started_at,
        ended_at: chrono::Utc::now(),
        message,
        left_processes: left,
    }
}
