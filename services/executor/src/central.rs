//! Central steps, run by the executor itself. All of them happen at least once: an executor that dies in the middle is
//! followed by another that starts the step again. `http.request` carries `Idempotency-Key: <work id>`, the same at every
//! try, so that the far side can tell a repeat; `notify` is an event in the transaction that settles the work, so it is said
//! exactly once; `wait` counts from when the work was made.

pub(crate) mod http;
pub(crate) mod prometheus;

use crate::{
    ansible,
    dispatch::{Draft, SERVICE},
    error::Stop,
    plans::PlanView,
    plugins, secrets,
    shared::{Shared, work_event},
    single::{self, Control},
    steplog,
};
use chrono::Utc;
use reqwest::Method;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{io::AsyncReadExt, sync::Notify};
use tokio_util::sync::CancellationToken;
use windlass_domain::{
    Timestamp,
    event::Severity,
    mask::Masker,
    plugin, reference,
    work::{CentralWork, FailureClass, WorkResult},
};
use windlass_runtime::outbound::Request;
use windlass_store::{Error, events, works, works::Claim};

/// No artifact is larger.
const MAX_ARTIFACT: u64 = 64 * 1024 * 1024 * 1024;

/// How a step came out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Done {
    /// Why it failed.
    pub(crate) failed: Option<String>,
    /// What kind of failure it was; that it said no, when absent.
    pub(crate) class: Option<FailureClass>,
    pub(crate) output: Value,
    pub(crate) event: Option<Draft>,
}

pub(crate) fn failed(reason: impl Into<String>) -> Done {
    Done { failed: Some(reason.into()), ..Done::default() }
}

pub(crate) fn failed_as(class: FailureClass, reason: impl Into<String>) -> Done {
    Done { class: Some(class), ..failed(reason) }
}

/// Runs the step until it ends, is aborted, or the claim is lost.
pub(crate) async fn drive(
    shared: Arc<Shared>,
    claim: Claim,
    step: CentralWork,
    bell: Arc<Notify>,
    stop: CancellationToken,
) -> Result<(), Stop> {
    let control = Control::default();
    let (shared, claim, step) = (&shared, &claim, &step);
    let run = || Box::pin(async { Ok(execute(shared, claim, step, &control).await) });
    let settle = |done: Done| async move { settle(shared, claim, step, &done).await };
    single::drive(shared, claim, &control, &bell, &stop, run, settle).await
}

async fn settle(shared: &Shared, claim: &Claim, step: &CentralWork, done: &Done) -> Result<(), Error> {
    let mut tx = shared.ctx.store.write().await?;
    works::lock_desired(&mut tx, claim.work.id).await?;
    let now = tx.now().await?;
    let result = WorkResult::Central {
        class: done.failed.as_ref().map(|_| done.class.unwrap_or(FailureClass::Exit)),
        succeeded: done.failed.is_none(),
        reason: done.failed.clone(),
        output: done.output.clone(),
    };
    let version = works::settle(&mut tx, claim.work.id, claim.epoch, &result).await?;
    if let Some(event) = &done.event {
        events::append(&mut tx, work_event(&claim.work, event.clone(), now)).await?;
    }
    let payload = serde_json::json!({
        "work": claim.work.id, "step": step.step, "attempt": step.attempt, "version": version,
        "succeeded": done.failed.is_none(), "reason": done.failed,
    });
    let draft = Draft { what: "work.settled", severity: Severity::Info, actor: SERVICE.into(), payload };
    events::append(&mut tx, work_event(&claim.work, draft, now)).await?;
    tx.commit().await
}

/// With everything filled in that the step refers to, and all that comes back masked.
async fn execute(shared: &Shared, claim: &Claim, step: &CentralWork, control: &Control) -> Result<Done, Error> {
    let work = &claim.work;
    single::until_it_may_begin(shared, claim, control).await?;
    let view = match shared.plans.get(&shared.ctx.store, work.deployment, &work.plan_digest).await? {
        Ok(view) => view,
        Err(problem) => return Ok(failed_as(FailureClass::Refused, problem.to_string())),
    };
    let (action, with, timeout_s) = match view.central(&step.step) {
        Ok(found) => found,
        Err(problem) => return Ok(failed_as(FailureClass::Refused, problem.to_string())),
    };
    // Only a plugin may have something under way that is to be cancelled there.
    let begun = control.has_begun() || claim.takeover;
    if control.abort.is_cancelled() && !(begun && action.starts_with(plugin::PREFIX)) {
        let how = if begun { "stopped" } else { "not started" };
        return Ok(failed_as(FailureClass::Stopped, format!("{how}: the deployment was aborted")));
    }
    let (with, masker) = match secrets::fill(shared, work, step, with).await? {
        Ok(filled) => filled,
        Err(reason) => return Ok(failed_as(FailureClass::Refused, format!("not started: {reason}"))),
    };
    let of = Step { view: &view, action, with: &with, timeout_s, masker: &masker };
    let mut done = carry_out(shared, claim, step, control, &of).await?;
    if done.failed.is_some() && control.abort.is_cancelled() {
        done.class = Some(FailureClass::Stopped);
    }
    Ok(Done {
        failed: done.failed.map(|reason| masker.text(&reason)),
        output: reference::clean(masker.value(&done.output)),
        ..done
    })
}

struct Step<'a> {
    view: &'a PlanView,
    action: &'a str,
    with: &'a Map<String, Value>,
    timeout_s: u32,
    masker: &'a Masker,
}

async fn carry_out(
    shared: &Shared,
    claim: &Claim,
    step: &CentralWork,
    control: &Control,
    of: &Step<'_>,
) -> Result<Done, Error> {
    let work = &claim.work;
    let Step { view, action, with, timeout_s, masker } = *of;
    let timeout = Duration::from_secs(timeout_s.max(1).into());
    let calls = plugin::PREFIX;
    if action == ansible::ACTION || action.starts_with(calls) {
        let (log, writer) = steplog::open(masker.clone());
        let logged = async {
            // Its end is the end of the writer.
            let log = log;
            if action == ansible::ACTION {
                return Ok(ansible::run(shared, &view.plan, with, timeout, &log, control).await);
            }
            let Some(plugin) = action.strip_prefix(calls).and_then(|key| view.plan.plugins.get(key)) else {
                return Ok(failed(format!("the plan does not say what `{action}` is")));
            };
            let undo = view.undo(&step.step);
            let call = plugins::Call { shared, claim, step, plugin, undo, inputs: with, timeout, log: &log, control };
            plugins::run(call).await
        };
        return tokio::join!(logged, writer.run(shared, work, &step.step)).0;
    }
    let run = async {
        match action {
            "http.request" => http::run(shared, &work.id.to_string(), with, timeout, masker).await,
            "prometheus.query" => prometheus::run(shared, with, timeout).await,
            "artifact.verify" => verify(shared, with, timeout).await,
            "notify" => notify(&step.step, with),
            "wait" => wait(claim.created_at, with).await,
            other => failed_as(FailureClass::Refused, unknown_action(other)),
        }
    };
    // `wait` has no other end than its own.
    let timeout = if action == "wait" { Duration::MAX } else { timeout };
    Ok(tokio::select! {
        biased;
        () = control.abort.cancelled() => failed("stopped: the deployment was aborted"),
        done = tokio::time::timeout(timeout, run) => match done {
            Ok(done) => done,
            Err(_) => {
                let reason = format!("the step took longer than its timeout of {timeout_s} s");
                failed_as(FailureClass::Timeout, reason)
            }
        },
    })
}

pub(crate) fn unknown_action(action: &str) -> String {
    format!("this executor does not know the action `{action}`: run the same version everywhere")
}

fn text<'a>(with: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    with.get(key).and_then(Value::as_str)
}

fn number(with: &Map<String, Value>, key: &str) -> Option<u64> {
    with.get(key).and_then(Value::as_u64)
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        out.push_str(": ");
        out.push_str(&c.to_string());
        cause = c.source();
    }
    out
}

fn artifact(reason: String) -> Done {
    failed_as(FailureClass::Artifact, reason)
}

/// Reads the whole package and compares digest, size and age.
async fn verify(shared: &Shared, with: &Map<String, Value>, timeout: Duration) -> Done {
    let (Some(url), Some(digest)) = (text(with, "url"), text(with, "digest")) else {
        return failed("`url` or `digest` is missing");
    };
    if let (Some(max), Some(built)) = (number(with, "max_age_s"), text(with, "built_at")) {
        let Ok(built) = built.parse::<Timestamp>() else { return failed("`built_at` is not a time") };
        let age = (Utc::now() - built).num_seconds();
        if i64::try_from(max).is_ok_and(|max| age > max) {
            return artifact(format!(
                "the package was built {age} s ago, more than the {max} s allowed: build it again"
            ));
        }
    }
    let mut hash = Sha256::new();
    let read = match url.strip_prefix("file://") {
        Some(path) => digest_file(Path::new(path), &mut hash).await.map_err(|e| format!("cannot read {path}: {e}")),
        None => {
            let request = Request { timeout, ..Request::new(Method::GET, url) };
            match shared.outbound.stream(request, MAX_ARTIFACT, |chunk| hash.update(chunk)).await {
                Ok((200, bytes)) => Ok(bytes),
                Ok((status, _)) => Err(format!("the package's address answered {status}")),
                Err(error) => Err(chain(&error)),
            }
        }
    };
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(reason) => return failed(reason),
    };
    if let Some(size) = number(with, "size").filter(|s| *s != bytes) {
        return artifact(format!(
            "the package has {bytes} bytes, registered were {size}: it was replaced after it was registered"
        ));
    }
    let found = format!("sha256:{}", hash.finalize().iter().map(|b| format!("{b:02x}")).collect::<String>());
    if found != digest {
        return artifact(format!(
            "the package has digest {found}, registered was {digest}: it was replaced after it was registered"
        ));
    }
    Done { output: serde_json::json!({ "bytes": bytes, "digest": found }), ..Done::default() }
}

pub(crate) async fn digest_file(path: &Path, hash: &mut Sha256) -> std::io::Result<u64> {
    let mut file = tokio::fs::File::open(path).await?;
    if !file.metadata().await?.is_file() {
        return Err(std::io::Error::other("not a file"));
    }
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0;
    loop {
        match file.read(&mut buffer).await? {
            0 => return Ok(total),
            n => {
                hash.update(&buffer[..n]);
                total += n as u64;
            }
        }
    }
}

fn notify(step: &str, with: &Map<String, Value>) -> Done {
    let Some(message) = text(with, "message") else { return failed("`message` is missing") };
    let severity = match text(with, "severity") {
        Some("info") => Severity::Info,
        Some("action") => Severity::Action,
        Some("alert") => Severity::Alert,
        _ => Severity::Notice,
    };
    let payload = serde_json::json!({ "step": step, "message": message, "severity": severity });
    let event = Draft { what: "notify.requested", severity, actor: SERVICE.into(), payload };
    Done { event: Some(event), ..Done::default() }
}

async fn wait(from: Timestamp, with: &Map<String, Value>) -> Done {
    let Some(seconds) = number(with, "for_s") else { return failed("`for_s` is missing") };
    let until = from + Duration::from_secs(seconds);
    // In pieces, because the wall clock may be set meanwhile.
    while let Ok(left) = (until - Utc::now()).to_std() {
        tokio::time::sleep(left.clamp(Duration::from_millis(1), Duration::from_secs(30))).await;
    }
    Done::default()
}
