//! What a step does on the host. Actions that start a process stop it themselves; the others are dropped when their
//! step must stop.

mod archive;
mod fetch;
mod file_put;
mod http;
mod lb;
pub(crate) mod output;
mod params;
mod release;
mod script;
mod service;

pub use archive::{ArchiveError, Limits, unpack};

use crate::runner::{
    Context,
    process::Ended,
    stop::{Reason, Stop},
};
use params::Params;
use serde_json::{Map, Value};
use windlass_domain::task::TaskStep;

/// A step that went well.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub exit_code: Option<i32>,
    pub left: u32,
    /// Masked.
    pub outputs: Map<String, Value>,
}

/// One that did not.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    pub message: String,
    pub exit_code: Option<i32>,
    pub left: u32,
    pub stopped: Option<Reason>,
    /// What it had given before it failed, masked.
    pub outputs: Map<String, Value>,
}

impl<S: Into<String>> From<S> for Failure {
    fn from(message: S) -> Self {
        Failure { message: message.into(), ..Failure::default() }
    }
}

type Outcome = Result<Done, Failure>;

pub(crate) async fn run(ctx: &Context, index: u32, step: &TaskStep, stop: &Stop) -> Outcome {
    // Only now, and only in memory: the task's directory holds references.
    let with = ctx.fill(&step.with)?;
    let p = Params::new(&with);
    match step.action.as_str() {
        "script" => script::run(ctx, index, &p, stop).await,
        "service.restart" => service::restart(ctx, index, &p, stop).await,
        "lb.member" => lb::run(ctx, index, &p, stop).await,
        _ => {
            let work = async {
                match step.action.as_str() {
                    "artifact.fetch" => fetch::run(ctx, index, &p).await,
                    "artifact.verify" => release::verify(ctx, index, &p),
                    "release.switch" => release::switch(ctx, index, &p),
                    "file.put" => file_put::run(ctx, index, &p),
                    "http.check" => http::check(ctx, index, &p).await,
                    other => Err(format!("this agent does not know the action {other:?}").into()),
                }
            };
            tokio::select! {
                done = Box::pin(work) => done,
                reason = stop.requested() => Err(stopped(reason)),
            }
        }
    }
}

fn stopped(reason: Reason) -> Failure {
    let message = match reason {
        Reason::TimedOut => "took longer than its timeout",
        Reason::Cancelled => "stopped on request",
    };
    Failure { message: message.into(), stopped: Some(reason), ..Failure::default() }
}

/// How a process ended, as the outcome of its step.
fn outcome(e: Ended) -> Outcome {
    if let Some(reason) = e.stopped {
        let mut f = stopped(reason);
        if e.left > 0 {
            f.message = format!("{}; {} processes could not be killed", f.message, e.left);
        }
        return Err(Failure { exit_code: e.code, left: e.left, ..f });
    }
    if e.code == Some(0) {
        return Ok(Done { exit_code: Some(0), left: e.left, ..Done::default() });
    }
    let mut message = match (e.code, e.signal) {
        (Some(c), _) => format!("exited with code {c}"),
        (None, Some(s)) => format!("was killed by signal {s}"),
        (None, None) => "ended in an unknown way".to_owned(),
    };
    if !e.last_line.is_empty() {
        message = format!("{message}: {}", e.last_line);
    }
    Err(Failure { message, exit_code: e.code, left: e.left, ..Failure::default() })
}
