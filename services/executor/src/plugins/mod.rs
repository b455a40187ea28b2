//! Steps that are plugins: asks the plugin verb by verb until its call is over.
//!
//! Before a verb is asked its name is stored, and afterwards the answer: an executor that takes the work over knows which
//! answers there are and which question is open. An open `check`, `poll` or `callback` is asked again, as these repeat
//! without harm. Behind an open `execute` the work may be done or not: a plugin with `check` is asked, one that is
//! `retry_safe` executes again, and any other fails with the reason, for a person to look and to decide. An `undo` (in a
//! rollback, in the place of `execute` and without `check`) repeats without harm as well.

mod exec;
mod service;
mod wire;

use crate::{
    central::{Done, failed, failed_as},
    shared::Shared,
    single::Control,
    steplog::StepLog,
};
use rand::Rng;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::time::Instant;
use windlass_bus::wake::Backoff;
use windlass_domain::{
    plan::Undo,
    plugin::{Plugin, Transport, Verb, check},
    work::{CentralWork, FailureClass, Work},
};
use windlass_store::{Error, plugins, works::Claim};
use wire::{Answer, PROTOCOL, Request, Silence, Status, Undone};

/// Tries of a request that nobody took, or that failed and said that another try may help.
const TRIES: u32 = 8;
const CANCEL: Duration = Duration::from_secs(30);
const FIRST_POLL: Duration = Duration::from_secs(2);
const MAX_POLL: f64 = 3600.0;
const MIN_POLL: f64 = 0.05;
/// Where the api takes callbacks.
const CALLBACKS: &str = "/api/v1/plugin-callbacks/";

/// What comes next.
#[derive(Debug)]
enum Next {
    Ask(Verb),
    /// Ask `poll` after this time.
    Pause(Duration),
    Wait,
    End(Done),
}

#[derive(Debug)]
struct Caller<'a> {
    shared: &'a Shared,
    claim: &'a Claim,
    step: &'a CentralWork,
    plugin: &'a Plugin,
    undo: Option<&'a Undo>,
    /// State of the call that is taken back.
    undone: Option<Value>,
    key: String,
    inputs: &'a Map<String, Value>,
    log: &'a StepLog,
    control: &'a Control,
    deadline: Instant,
    timeout: Duration,
    state: Option<Value>,
    /// Hash of the token a callback brings.
    token: Option<Vec<u8>>,
    tries: u32,
    pause: Backoff,
    /// Something may be under way at the plugin.
    open: bool,
}

/// What a call needs.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) claim: &'a Claim,
    pub(crate) step: &'a CentralWork,
    pub(crate) plugin: &'a Plugin,
    /// What is to be taken back, where that is asked.
    pub(crate) undo: Option<&'a Undo>,
    /// With secrets and outputs in place.
    pub(crate) inputs: &'a Map<String, Value>,
    pub(crate) timeout: Duration,
    pub(crate) log: &'a StepLog,
    pub(crate) control: &'a Control,
}

/// Calls the plugin to the end of its call.
pub(crate) async fn run(call: Call<'_>) -> Result<Done, Error> {
    let Call { shared, claim, step, plugin, undo, inputs, timeout, log, control } = call;
    let faults = check(&plugin.inputs, &Value::Object(inputs.clone()), &|_| false);
    if let Some(f) = faults.first() {
        return Ok(failed(format!("`with{}` does not fit the plugin {}: {}", f.at, plugin.key(), f.text)));
    }
    let stored = plugins::call(&mut shared.ctx.store.read().await?, claim.work.id).await?;
    let spent = stored.as_ref().and_then(|s| (chrono::Utc::now() - s.started_at).to_std().ok()).unwrap_or_default();
    let undone = match undo {
        Some(u) => plugins::call(&mut shared.ctx.store.read().await?, u.call).await?,
        None => None,
    };
    let mut caller = Caller {
        shared,
        claim,
        step,
        plugin,
        undo,
        undone: undone.and_then(|c| read_answer(c.answer?)?.state),
        key: plugin.key(),
        inputs,
        log,
        control,
        deadline: Instant::now() + timeout.saturating_sub(spent),
        timeout,
        state: None,
        token: None,
        tries: 0,
        pause: Backoff::new(Duration::from_millis(500), Duration::from_secs(30)),
        open: false,
    };
    let first = match stored {
        None => caller.start(),
        Some(stored) => caller.take_over(stored).await,
    };
    caller.drive(first).await
}

/// An answer as it was stored.
fn read_answer(stored: Value) -> Option<Answer> {
    serde_json::from_value(stored).ok()
}

impl Caller<'_> {
    fn work(&self) -> &Work {
        &self.claim.work
    }

    /// The verb that does what the step is for.
    fn first(&self) -> Verb {
        if self.undo.is_some() { Verb::Undo } else { Verb::Execute }
    }

    fn start(&self) -> Next {
        // Whether the work was done is nothing to ask before it is taken back.
        Next::Ask(if self.undo.is_none() && self.plugin.has(Verb::Check) { Verb::Check } else { self.first() })
    }

    /// Goes on from what is stored.
    async fn take_over(&mut self, stored: plugins::Call) -> Next {
        self.token = stored.callback;
        let answer = stored.answer.and_then(read_answer);
        self.state = answer.as_ref().and_then(|a| a.state.clone());
        let begun = stored.begun.as_deref();
        let begun = Verb::ALL.into_iter().find(|v| Some(v.as_str()) == begun);
        self.log.note("taken over by another executor").await;
        match (begun, answer) {
            (Some(Verb::Check), _) => self.start(),
            (Some(verb @ (Verb::Poll | Verb::Callback)), _) => {
                self.open = true;
                Next::Ask(verb)
            }
            (Some(Verb::Cancel), _) => Next::End(failed("stopped: the call was being cancelled")),
            (Some(Verb::Execute | Verb::Undo), _) => {
                self.open = true;
                self.uncertain("the executor that asked it is gone")
            }
            (None, Some(answer)) => {
                self.open = matches!(answer.status, Status::Running | Status::Waiting);
                // Only `check` answers with a failure that is no end, and then nothing was begun.
                self.judge(if answer.status == Status::Failed { self.first() } else { Verb::Poll }, answer).await
            }
            (None, None) => self.start(),
        }
    }

    /// It may have been executed or not.
    fn uncertain(&self, why: &str) -> Next {
        if self.undo.is_some() {
            Next::Ask(Verb::Undo)
        } else if self.plugin.has(Verb::Check) {
            Next::Ask(Verb::Check)
        } else if self.plugin.retry_safe {
            Next::Ask(Verb::Execute)
        } else {
            let reason = format!(
                "nobody knows whether the plugin {} did its work: {why}, it has no `check`, and it is not `retry_safe`; look, \
                 then retry or skip the step",
                self.key
            );
            // No policy tries it again.
            Next::End(failed_as(FailureClass::Unknown, reason))
        }
    }

    async fn drive(mut self, mut next: Next) -> Result<Done, Error> {
        loop {
            next = match next {
                Next::End(done) => return Ok(done),
                Next::Ask(verb) => self.ask(verb).await?,
                Next::Pause(time) => {
                    tokio::select! {
                        () = tokio::time::sleep(time) => Next::Ask(Verb::Poll),
                        () = self.halted() => Next::End(self.cancel().await?),
                    }
                }
                Next::Wait => {
                    let came = match &self.token {
                        Some(t) => plugins::callback(&mut self.shared.ctx.store.read().await?, t).await?,
                        None => None,
                    };
                    if came.is_some() {
                        Next::Ask(Verb::Callback)
                    } else {
                        let look = self.shared.ctx.settings.poll_s.get();
                        tokio::select! {
                            () = self.control.wake.notified() => Next::Wait,
                            () = tokio::time::sleep(look) => Next::Wait,
                            () = self.halted() => Next::End(self.cancel().await?),
                        }
                    }
                }
            };
        }
    }

    /// Ready when the call must end.
    async fn halted(&self) {
        tokio::select! {
            () = self.control.abort.cancelled() => {}
            () = tokio::time::sleep_until(self.deadline) => {}
        }
    }

    async fn ask(&mut self, verb: Verb) -> Result<Next, Error> {
        if self.control.abort.is_cancelled() || Instant::now() >= self.deadline {
            return Ok(Next::End(self.cancel().await?));
        }
        let mut url = None;
        if verb == self.first() && self.plugin.has(Verb::Callback) {
            let token: String = rand::rng().random::<[u8; 32]>().iter().map(|b| format!("{b:02x}")).collect();
            self.token = Some(Sha256::digest(token.as_bytes()).to_vec());
            url = Some(format!("{}{CALLBACKS}{token}", self.shared.ctx.settings.public_url().trim_end_matches('/')));
        }
        let mut body = None;
        if verb == Verb::Callback {
            let token = self.token.clone().unwrap_or_default();
            body = plugins::callback(&mut self.shared.ctx.store.read().await?, &token).await?;
        }
        let token = if verb == self.first() { self.token.clone() } else { None };
        self.store_begin(verb, token).await?;
        let was_open = self.open;
        self.open |= verb == self.first();
        let answer = self.send(verb, url, body, self.halted(), self.left()).await;
        match answer {
            Ok(answer) => {
                let mut answer = self.masked(answer);
                // State stays until another one comes.
                answer.state = answer.state.or(self.state.take());
                self.state.clone_from(&answer.state);
                self.store_answer(&answer).await?;
                let message = answer.message.as_deref().map(|m| format!(": {m}")).unwrap_or_default();
                let status = serde_json::to_value(answer.status).ok();
                let status = status.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
                self.log.note(&format!("{}: {status}{message}", verb.as_str())).await;
                Ok(self.judge(verb, answer).await)
            }
            Err(Silence::Halted) => Ok(Next::End(self.cancel().await?)),
            Err(Silence::NotAsked { reason, soon }) => {
                self.open = was_open;
                Ok(if soon { self.again(verb, &reason).await } else { Next::End(self.end(verb, &reason)) })
            }
            Err(Silence::Broke(reason)) => Ok(Next::End(self.end(verb, &reason))),
            Err(Silence::Unknown(reason)) if verb == self.first() => {
                self.log.note(&format!("{}: {reason}", verb.as_str())).await;
                let next = self.uncertain(&reason);
                Ok(if matches!(next, Next::Ask(v) if v == verb) { self.again(verb, &reason).await } else { next })
            }
            Err(Silence::Unknown(reason)) => Ok(self.again(verb, &reason).await),
        }
    }

    fn end(&self, verb: Verb, reason: &str) -> Done {
        failed(format!("the plugin {} failed at `{}`: {reason}", self.key, verb.as_str()))
    }

    /// The same request after a pause, a bounded number of times.
    async fn again(&mut self, verb: Verb, reason: &str) -> Next {
        self.tries += 1;
        if self.tries >= TRIES {
            return Next::End(self.end(verb, &format!("{reason} ({} tries)", self.tries)));
        }
        self.log.note(&format!("{}: {reason}; trying again", verb.as_str())).await;
        let pause = self.pause.next();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // The next question sees that it is over.
            () = self.halted() => {}
        }
        Next::Ask(verb)
    }

    /// What an answer leads to.
    async fn judge(&mut self, verb: Verb, answer: Answer) -> Next {
        match answer.status {
            Status::Succeeded => {
                let outputs = Value::Object(answer.outputs);
                // The schema is that of what a step does, not of its undoing.
                let faults = match self.undo {
                    None => check(&self.plugin.outputs, &outputs, &|_| false),
                    Some(_) => Vec::new(),
                };
                match faults.first() {
                    None => Next::End(Done { output: outputs, ..Done::default() }),
                    Some(f) => {
                        Next::End(self.end(verb, &format!("its outputs{} do not fit its own schema: {}", f.at, f.text)))
                    }
                }
            }
            Status::Failed if verb == Verb::Check => {
                self.open = false;
                Next::Ask(Verb::Execute)
            }
            Status::Failed => {
                let reason = answer.message.unwrap_or_else(|| "it gave no reason".into());
                if answer.retryable {
                    let next = self.again(verb, &reason).await;
                    if let Next::Ask(_) = next { Next::Ask(self.first()) } else { next }
                } else {
                    Next::End(self.end(verb, &reason))
                }
            }
            Status::Running if self.plugin.has(Verb::Poll) => {
                self.open = true;
                let wait = answer.poll_after_s.filter(|s| s.is_finite());
                Next::Pause(wait.map_or(FIRST_POLL, |s| Duration::from_secs_f64(s.clamp(MIN_POLL, MAX_POLL))))
            }
            Status::Running => {
                Next::End(self.end(verb, "it answered `running`, but its definition has no verb `poll`"))
            }
            Status::Waiting if verb == Verb::Callback => {
                Next::End(self.end(verb, "it answered `waiting` to its callback, but there is one callback a call"))
            }
            Status::Waiting if self.plugin.has(Verb::Callback) && self.token.is_some() => {
                self.open = true;
                Next::Wait
            }
            Status::Waiting => Next::End(self.end(verb, "it answered `waiting`, but no callback can come")),
        }
    }

    /// Ends a call that is aborted or out of time.
    async fn cancel(&mut self) -> Result<Done, Error> {
        let reason = if self.control.abort.is_cancelled() {
            "stopped: the deployment was aborted".to_owned()
        } else {
            format!("the step took longer than its timeout of {} s", self.timeout.as_secs())
        };
        if !self.open || !self.plugin.has(Verb::Cancel) {
            return Ok(failed_as(FailureClass::Timeout, reason));
        }
        self.store_begin(Verb::Cancel, None).await?;
        let answer = self.send(Verb::Cancel, None, None, tokio::time::sleep(CANCEL), CANCEL).await;
        let (said, how) = match answer.map(|a| self.masked(a)) {
            Ok(a) if a.status == Status::Succeeded => ("cancelled".into(), "its work was cancelled"),
            Ok(a) => (a.message.unwrap_or_else(|| "not cancelled".into()), "it could not cancel its work"),
            Err(Silence::Halted) => ("no answer in time".into(), "it could not cancel its work"),
            Err(Silence::NotAsked { reason, .. } | Silence::Broke(reason) | Silence::Unknown(reason)) => {
                (reason, "it could not cancel its work")
            }
        };
        self.log.note(&format!("cancel: {said}")).await;
        // Where it was aborted, that is its class.
        Ok(failed_as(FailureClass::Timeout, format!("{reason}; {how}")))
    }

    async fn send(
        &self,
        verb: Verb,
        callback_url: Option<String>,
        callback: Option<Value>,
        halt: impl Future<Output = ()>,
        left: Duration,
    ) -> Result<Answer, Silence> {
        let work = self.work();
        let request = Request {
            protocol: PROTOCOL,
            verb,
            call: work.id.0,
            plugin: &self.key,
            deployment: work.deployment.0,
            project: &work.project,
            environment: &work.environment,
            step: &self.step.step,
            attempt: self.step.attempt,
            inputs: self.inputs,
            undo: self.undo.map(|u| Undone {
                call: u.call.0,
                deployment: u.deployment.0,
                step: &u.step,
                attempt: u.attempt,
                outputs: &u.outputs,
                state: self.undone.clone(),
            }),
            state: self.state.clone(),
            callback_url,
            callback,
        };
        match &self.plugin.transport {
            Transport::Exec { path, digest } => exec::ask(self.shared, path, digest, &request, self.log, halt).await,
            Transport::Nats {} => service::ask(self.shared, self.plugin, &request, left, halt).await,
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn masked(&self, answer: Answer) -> Answer {
        let masker = self.log.masker();
        Answer {
            outputs: masker.map(&answer.outputs),
            message: answer.message.map(|m| masker.text(&m)),
            state: answer.state.map(|s| masker.value(&s)),
            ..answer
        }
    }

    async fn store_begin(&self, verb: Verb, token: Option<Vec<u8>>) -> Result<(), Error> {
        let mut tx = self.shared.ctx.store.write().await?;
        plugins::begin(&mut tx, self.work().id, self.claim.epoch, &self.key, verb.as_str(), token.as_deref()).await?;
        tx.commit().await
    }

    async fn store_answer(&self, answer: &Answer) -> Result<(), Error> {
        let value = serde_json::to_value(answer).unwrap_or_default();
        let mut tx = self.shared.ctx.store.write().await?;
        plugins::answered(&mut tx, self.work().id, self.claim.epoch, &value).await?;
        tx.commit().await
    }
}
