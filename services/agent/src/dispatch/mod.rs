//! What the agent answers and starts: a state machine without clock, disk or network.
//!
//! `step` returns outputs in the order they must happen; everything after a `Journal` waits until that record is durable.
//! Rules: E4, E5, E7 and E8 of the protocol. The one that matters most: a task that has an INTENT is never started again.

mod verify;
mod view;

#[cfg(test)]
mod tests;

pub use verify::{Policy, PolicyError, ProtectedEnvironment, Verifier};

use crate::journal::{Accepted, Entry, Record};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use windlass_contracts::frames::{Offer, RefuseCode, UpBody};
use windlass_domain::{
    Timestamp,
    ids::{DeploymentId, TaskId, WorkId},
    task::{ReportedOutcome, TaskReport},
};

/// An accepted task counts against the host's limit this long: its GRANT may come any moment.
const TAKEN: Duration = Duration::from_secs(60);
/// An accepted task that was not granted within this time will not be.
const FORGOTTEN: Duration = Duration::from_secs(900);

/// Both clocks: leases are judged by the monotonic one, `not_after` of an offer by the wall.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub mono: Duration,
    pub wall: Timestamp,
}

/// Attempts with the same key are attempts of the same thing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    deployment: DeploymentId,
    step: String,
    segment: u32,
}

impl Key {
    fn is_of(&self, a: &Accepted) -> bool {
        a.deployment == self.deployment && a.spec.step == self.step && a.spec.segment == self.segment
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    /// `nonce` is that of the last ACCEPT of this process; a restart forgets it.
    Accepted {
        nonce: Option<Nonce>,
        since: Duration,
    },
    /// INTENT is journaled. `stop`: a FENCE came.
    Running {
        stop: bool,
        boot_id: String,
    },
    Ended {
        report: Box<TaskReport>,
        acked: bool,
    },
}

const UNSET: Phase = Phase::Accepted { nonce: None, since: Duration::ZERO };

#[derive(Debug, Clone, PartialEq)]
struct Nonce {
    text: String,
    sent: Duration,
}

#[derive(Debug, Clone, PartialEq)]
struct Task {
    /// `None` for a task that was fenced before it was ever offered.
    accepted: Option<Box<Accepted>>,
    phase: Phase,
}

/// What the agent finds about a task that has an INTENT and no exit: when its runner ended, and after a restart.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// The runner holds its lock.
    Alive,
    /// `exit.json` is there.
    Exit(Box<TaskReport>),
    /// The same boot, no runner, and it never reached its first step.
    NotBegun,
    /// No runner and no exit, or another boot: what is known of its steps.
    Gone(Box<TaskReport>),
}

#[derive(Debug)]
pub enum Input {
    Offer {
        offer: Box<Offer>,
        nonce: String,
    },
    Grant {
        task: TaskId,
        nonce: String,
        epoch: u64,
        lease_s: u32,
        fresh_nonce: String,
    },
    Fence {
        task: TaskId,
        work: WorkId,
        epoch: u64,
    },
    ResultAck {
        task: TaskId,
    },
    /// The runner could not be started at all.
    StartFailed {
        task: TaskId,
        reason: String,
    },
    /// Time passed.
    Expire,
    /// The runner ended; after a restart, for each task of [`Dispatch::running`].
    Looked {
        task: TaskId,
        found: Found,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    Journal(Record),
    Send(UpBody),
    /// Start the runner, exactly once.
    Start(Box<Accepted>),
    /// Stop the runner; repeated requests are harmless.
    Stop(TaskId),
    /// The runner of an earlier agent process lives: watch it.
    Adopt(TaskId),
    /// The result is with the control plane.
    Settled(TaskId),
}

/// The state. All of it can be rebuilt from the journal but for nonces, which is what makes a restart demand a new GRANT.
#[derive(Debug)]
pub struct Dispatch {
    verifier: Verifier,
    boot_id: String,
    tasks: BTreeMap<TaskId, Task>,
    /// Ids whose details are forgotten.
    known: BTreeSet<TaskId>,
    epochs: BTreeMap<WorkId, u64>,
    fences: BTreeMap<(String, String), u64>,
}

impl Dispatch {
    pub fn new(verifier: Verifier, boot_id: &str, journal: &[Entry]) -> Dispatch {
        let mut d = Dispatch {
            verifier,
            boot_id: boot_id.to_owned(),
            tasks: BTreeMap::new(),
            known: BTreeSet::new(),
            epochs: BTreeMap::new(),
            fences: BTreeMap::new(),
        };
        for e in journal {
            d.replay(&e.r);
        }
        d
    }

    /// Applies a durable fact. `step` uses it too, so that memory and disk cannot disagree.
    fn replay(&mut self, r: &Record) {
        match r {
            Record::Created { .. } => {}
            Record::Accepted(a) => {
                self.raise_epoch(a.work, a.epoch);
                self.raise_fence((a.spec.project.clone(), a.spec.environment.clone()), a.fence);
                let phase = Phase::Accepted { nonce: None, since: Duration::ZERO };
                self.tasks.insert(a.task, Task { accepted: Some(a.clone()), phase });
            }
            Record::Intent { task, epoch, boot_id } => {
                if let Some(t) = self.tasks.get_mut(task) {
                    t.phase = Phase::Running { stop: false, boot_id: boot_id.clone() };
                    let work = t.accepted.as_ref().map(|a| a.work);
                    work.into_iter().for_each(|w| self.raise_epoch(w, *epoch));
                }
            }
            Record::Exited { task, report } => self.end(*task, report.clone()),
            Record::Fenced { task, work, epoch } => {
                self.raise_epoch(*work, *epoch);
                self.end(*task, Box::new(empty_report(ReportedOutcome::Fenced)));
            }
            Record::Cancelled { task } => {
                if let Some(Task { phase: Phase::Running { stop, .. }, .. }) = self.tasks.get_mut(task) {
                    *stop = true;
                }
            }
            Record::Acked { task } => {
                if let Some(Task { phase: Phase::Ended { acked, .. }, .. }) = self.tasks.get_mut(task) {
                    *acked = true;
                }
            }
            Record::Known { tasks } => self.known.extend(tasks.iter().copied()),
            Record::Epoch { work, epoch } => self.raise_epoch(*work, *epoch),
            Record::Fence { project, environment, fence } => {
                self.raise_fence((project.clone(), environment.clone()), *fence);
            }
        }
    }

    fn end(&mut self, task: TaskId, report: Box<TaskReport>) {
        let t = self.tasks.entry(task).or_insert(Task { accepted: None, phase: UNSET });
        t.phase = Phase::Ended { report, acked: false };
    }

    fn raise_epoch(&mut self, work: WorkId, epoch: u64) {
        let e = self.epochs.entry(work).or_default();
        *e = (*e).max(epoch);
    }

    fn raise_fence(&mut self, at: (String, String), fence: u64) {
        let f = self.fences.entry(at).or_default();
        *f = (*f).max(fence);
    }

    fn journal(&mut self, r: Record, out: &mut Vec<Output>) {
        self.replay(&r);
        out.push(Output::Journal(r));
    }

    /// The transition function.
    pub fn step(&mut self, input: Input, now: Now) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Offer { offer, nonce } => self.offer(*offer, nonce, now, &mut out),
            Input::Grant { task, nonce, epoch, lease_s, fresh_nonce } => {
                self.grant(task, &nonce, epoch, lease_s, fresh_nonce, now, &mut out);
            }
            Input::Fence { task, work, epoch } => self.fence(task, work, epoch, &mut out),
            Input::ResultAck { task } => {
                if let Some(Task { phase: Phase::Ended { acked, .. }, .. }) = self.tasks.get(&task) {
                    if !acked {
                        self.journal(Record::Acked { task }, &mut out);
                    }
                    out.push(Output::Settled(task));
                }
            }
            Input::StartFailed { task, reason } => {
                // Nothing ran, but it was granted: a failure that says why is of more use to people than "not started".
                let mut report = empty_report(ReportedOutcome::Failed);
                report.steps.extend(self.start_failure(task, reason, now));
                self.ended(task, Box::new(report), &mut out);
            }
            Input::Expire => self.expire(now, &mut out),
            Input::Looked { task, found } => self.looked(task, found, &mut out),
        }
        out
    }

    fn start_failure(&self, task: TaskId, reason: String, now: Now) -> Option<windlass_domain::task::StepReport> {
        let a = self.tasks.get(&task)?.accepted.as_ref()?;
        Some(windlass_domain::task::StepReport {
            index: a.start_at.min(u32::try_from(a.spec.steps.len().saturating_sub(1)).unwrap_or(0)),
            outcome: windlass_domain::task::StepOutcome::Failed,
            exit_code: None,
            started_at: now.wall,
            ended_at: now.wall,
            message: reason,
            left_processes: 0,
            outputs: serde_json::Map::new(),
        })
    }

    fn offer(&mut self, offer: Offer, nonce: String, now: Now, out: &mut Vec<Output>) {
        let refuse = |code, detail: String| Output::Send(UpBody::Refuse { task: offer.task, code, detail });
        if let Some(t) = self.tasks.get_mut(&offer.task) {
            match &mut t.phase {
                Phase::Accepted { nonce: current, since } => {
                    *since = now.mono;
                    let n = current.get_or_insert(Nonce { text: nonce, sent: now.mono });
                    n.sent = now.mono;
                    out.push(accept(offer.task, &n.text));
                }
                Phase::Running { .. } => out.push(Output::Send(UpBody::Started { task: offer.task })),
                Phase::Ended { report, .. } => out.push(result(offer.task, report)),
            }
            return;
        }
        if self.known.contains(&offer.task) {
            out.push(refuse(RefuseCode::Known, "this task ended here long ago; its report is gone".into()));
            return;
        }
        let key = Key { deployment: offer.deployment, step: offer.spec.step.clone(), segment: offer.spec.segment };
        // Before its age is looked at: a database that was restored offers with old fences, and a person must hear that this host
        // has had the attempt, not that it takes nothing.
        let had = self.tasks.values().filter_map(|t| t.accepted.as_ref());
        if let Some(a) = had.filter(|a| key.is_of(a)).find(|a| a.attempt >= offer.attempt) {
            let detail = format!("attempt {} is known here, the offer is attempt {}", a.attempt, offer.attempt);
            out.push(refuse(RefuseCode::Known, detail));
            return;
        }
        let epoch = self.epochs.get(&offer.work).copied().unwrap_or(0);
        if offer.epoch < epoch {
            let detail = format!("epoch {} of the offer is older than {epoch}, which this host has seen", offer.epoch);
            out.push(refuse(RefuseCode::Stale, detail));
            return;
        }
        let place = (offer.spec.project.clone(), offer.spec.environment.clone());
        let fence = self.fences.get(&place).copied().unwrap_or(0);
        if offer.fence < fence {
            let detail = format!("lock fence {} of the offer is older than {fence}, seen here", offer.fence);
            out.push(refuse(RefuseCode::Stale, detail));
            return;
        }
        let mut overtaken = Vec::new();
        let mut running = 0;
        for (id, t) in &self.tasks {
            let Some(a) = &t.accepted else { continue };
            let same = key.is_of(a);
            let older = same || (a.spec.project == place.0 && a.spec.environment == place.1 && a.fence < offer.fence);
            match &t.phase {
                Phase::Running { .. } if older => {
                    let detail = format!("task {id} (attempt {}) still runs here", a.attempt);
                    out.push(refuse(RefuseCode::Busy, detail));
                    return;
                }
                Phase::Running { .. } => running += 1,
                Phase::Accepted { .. } if older => overtaken.push((*id, a.work)),
                Phase::Accepted { since, .. } if now.mono.saturating_sub(*since) < TAKEN => running += 1,
                Phase::Accepted { .. } => {}
                Phase::Ended { .. } => {}
            }
        }
        if let Err((code, detail)) = self.verifier.check(&offer, running, now.wall) {
            out.push(refuse(code, detail));
            return;
        }
        for (task, work) in overtaken {
            self.journal(Record::Fenced { task, work, epoch: 0 }, out);
            out.push(result(task, &empty_report(ReportedOutcome::Fenced)));
        }
        let record = Record::Accepted(Box::new(Accepted {
            task: offer.task,
            work: offer.work,
            deployment: offer.deployment,
            attempt: offer.attempt,
            epoch: offer.epoch,
            fence: offer.fence,
            start_at: offer.start_at,
            spec: offer.spec,
            outputs: offer.outputs,
            trace: offer.trace,
        }));
        self.journal(record, out);
        out.push(accept(offer.task, &nonce));
        if let Some(t) = self.tasks.get_mut(&offer.task) {
            let nonce = Some(Nonce { text: nonce, sent: now.mono });
            t.phase = Phase::Accepted { nonce, since: now.mono };
        }
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of one frame")]
    fn grant(
        &mut self,
        task: TaskId,
        nonce: &str,
        epoch: u64,
        lease_s: u32,
        fresh: String,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        let Some(t) = self.tasks.get_mut(&task) else { return };
        match &mut t.phase {
            Phase::Accepted { nonce: current, .. } => {
                let Some(accepted) = t.accepted.clone() else { return };
                if epoch < self.epochs.get(&accepted.work).copied().unwrap_or(0) {
                    return;
                }
                let fits = current.as_ref().is_some_and(|n| n.text == nonce);
                let in_time = current
                    .as_ref()
                    .is_some_and(|n| now.mono.saturating_sub(n.sent) < Duration::from_secs(lease_s.into()));
                if fits && in_time {
                    let boot_id = self.boot_id.clone();
                    self.journal(Record::Intent { task, epoch, boot_id }, out);
                    out.push(Output::Start(accepted));
                    out.push(Output::Send(UpBody::Started { task }));
                    return;
                }
                // A grant of an earlier process, or one that came too late: it starts nothing. Accepting anew lets the
                // executor decide again whether the task should still run.
                if fits || current.is_none() {
                    *current = Some(Nonce { text: fresh, sent: now.mono });
                }
                if let Some(n) = current {
                    n.sent = now.mono;
                    out.push(accept(task, &n.text));
                }
            }
            Phase::Running { .. } => out.push(Output::Send(UpBody::Started { task })),
            Phase::Ended { report, .. } => out.push(result(task, report)),
        }
    }

    /// Obeyed at any epoch: stopping is always safe, and after a restored backup the sender's epoch may be an old one.
    fn fence(&mut self, task: TaskId, work: WorkId, epoch: u64, out: &mut Vec<Output>) {
        match self.tasks.get(&task).map(|t| &t.phase) {
            None if self.known.contains(&task) => {}
            None | Some(Phase::Accepted { .. }) => {
                self.journal(Record::Fenced { task, work, epoch }, out);
                out.push(result(task, &empty_report(ReportedOutcome::Fenced)));
            }
            Some(Phase::Running { stop, .. }) => {
                if !stop {
                    self.journal(Record::Cancelled { task }, out);
                }
                out.push(Output::Stop(task));
            }
            Some(Phase::Ended { report, .. }) => out.push(result(task, report)),
        }
    }

    /// An executor that withdraws an offer need not tell: what is accepted and never granted is fenced here some day, so
    /// that it is not listed for ever.
    fn expire(&mut self, now: Now, out: &mut Vec<Output>) {
        let old = |t: &Task| match (&t.phase, &t.accepted) {
            (Phase::Accepted { since, .. }, Some(a)) if now.mono.saturating_sub(*since) >= FORGOTTEN => Some(a.work),
            _ => None,
        };
        let all: Vec<_> = self.tasks.iter().filter_map(|(id, t)| Some((*id, old(t)?))).collect();
        for (task, work) in all {
            self.journal(Record::Fenced { task, work, epoch: 0 }, out);
            out.push(result(task, &empty_report(ReportedOutcome::Fenced)));
        }
    }

    fn ended(&mut self, task: TaskId, report: Box<TaskReport>, out: &mut Vec<Output>) {
        if !matches!(self.tasks.get(&task).map(|t| &t.phase), Some(Phase::Running { .. })) {
            return;
        }
        self.journal(Record::Exited { task, report: report.clone() }, out);
        out.push(result(task, &report));
    }

    fn looked(&mut self, task: TaskId, found: Found, out: &mut Vec<Output>) {
        let Some(Task { phase: Phase::Running { stop, .. }, accepted }) = self.tasks.get(&task) else { return };
        let (stop, work) = (*stop, accepted.as_ref().map(|a| a.work));
        match (found, work) {
            (Found::Alive, _) => {
                out.push(Output::Adopt(task));
                if stop {
                    out.push(Output::Stop(task));
                }
                out.push(Output::Send(UpBody::Started { task }));
            }
            (Found::Exit(report) | Found::Gone(report), _) => self.ended(task, report, out),
            (Found::NotBegun, Some(work)) => {
                self.journal(Record::Fenced { task, work, epoch: 0 }, out);
                out.push(result(task, &empty_report(ReportedOutcome::Fenced)));
            }
            (Found::NotBegun, None) => self.ended(task, Box::new(empty_report(ReportedOutcome::Interrupted)), out),
        }
    }
}

/// A report of a task none of whose steps is known.
pub fn empty_report(outcome: ReportedOutcome) -> TaskReport {
    TaskReport { outcome, steps: vec![], log_bytes: 0, log_dropped: 0, log_frames: 0 }
}

/// The driver fills `journal_seq` in when it sends.
fn accept(task: TaskId, nonce: &str) -> Output {
    Output::Send(UpBody::Accept { seal_to: None, task, nonce: nonce.to_owned(), journal_seq: 0 })
}

fn result(task: TaskId, report: &TaskReport) -> Output {
    Output::Send(UpBody::Result { task, report: report.clone() })
}
