//! One turn of an executor at a work it drives: a transaction, and the frames that follow it. Said anew after
//! `executor::dispatch::decide` and `executor::wave::turn`.

use super::{
    Event, Sim,
    agent::{Down, Offer},
    db::{Commit, Phase, TaskRow},
    executor::Drive,
    oracle::host_of,
    plants::Plant,
};
use serde_json::json;
use std::collections::BTreeMap;
use windlass_domain::{
    Timestamp,
    ids::{AgentId, TaskId, WorkId},
    task::{Grant, Refusal, StepOutcome, Task, TaskInput, TaskReport, TaskState},
    work::{Desired, FailureClass, HostResult, Outcome, Verdict, WaveWork, WorkResult, WorkSpec},
};

#[derive(Debug, Clone)]
pub(super) enum Say {
    Accept { nonce: u64, instance: u64 },
    Started { instance: u64 },
    Result { instance: u64, report: TaskReport },
    Override { by: String, reason: String },
}

/// The class of a failure, given when a task is settled.
pub(super) fn settled_class(t: &Task, unstarted: Option<FailureClass>) -> Option<FailureClass> {
    match t.state {
        TaskState::NotStarted if t.auto_stopped => None,
        TaskState::NotStarted if t.stop.is_some() => Some(FailureClass::Stopped),
        TaskState::NotStarted => Some(unstarted.unwrap_or(FailureClass::Unreachable)),
        TaskState::Cancelled => Some(FailureClass::Stopped),
        TaskState::Unknown | TaskState::Overridden => Some(FailureClass::Unknown),
        TaskState::Failed => {
            let timed_out = t.steps.iter().any(|s| s.outcome == StepOutcome::TimedOut);
            Some(if timed_out { FailureClass::Timeout } else { FailureClass::Exit })
        }
        _ => None,
    }
}

/// The result of a wave, once no host can start any more and none is granted.
pub(super) fn result_of<'a>(v: &WaveWork, tasks: impl Iterator<Item = &'a Task>) -> Option<WorkResult> {
    let by_host: BTreeMap<&str, &Task> = tasks.map(|t| (t.host.as_str(), t)).collect();
    let host = |h: &windlass_domain::work::WaveHost| {
        let t = by_host.get(h.host.as_str())?;
        Some(HostResult {
            host: h.host.clone(),
            attempt: h.attempt,
            outcome: t.outcome()?,
            failed_step: t.failed_step(),
            reason: t.reason.clone(),
            failed_id: t.failed_step().map(|s| format!("s{s}")),
            class: t.class,
            exit_code: None,
            outputs: serde_json::Map::new(),
        })
    };
    v.hosts.iter().map(host).collect::<Option<Vec<_>>>().map(|hosts| WorkResult::Wave { hosts })
}

fn counts(t: &Task) -> bool {
    match t.outcome() {
        Some(Outcome::Failed | Outcome::Unknown) => true,
        Some(Outcome::NotStarted) => t.stop.is_none(),
        _ => false,
    }
}

/// A turn under way: the board with what changes.
struct Turn {
    tasks: BTreeMap<TaskId, Task>,
    frames: Vec<(TaskId, Frame)>,
    now: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Frame {
    Offer,
    Grant,
    Fence,
    Ack,
}

impl Turn {
    fn apply(&mut self, id: TaskId, input: TaskInput, class: Option<FailureClass>) -> Result<(), Refusal> {
        let before = self.tasks.get(&id).ok_or(Refusal::Unfitting)?;
        let mut next = before.apply(input, self.now)?;
        if next.state != before.state && next.state.is_settled() {
            next.class = settled_class(&next, class);
        }
        self.tasks.insert(id, next);
        Ok(())
    }

    fn unstarted(&mut self, id: TaskId, input: TaskInput, class: Option<FailureClass>) {
        let offered = self.tasks.get(&id).is_some_and(|t| t.state == TaskState::Offered);
        if self.apply(id, input, class).is_ok() && offered {
            self.frames.push((id, Frame::Fence));
        }
    }
}

impl Sim {
    pub(super) fn turn(&mut self, e: usize, life: u64, work: WorkId) {
        if self.executors[e].life != life {
            return;
        }
        let (now, frozen) = (self.now, self.executors[e].frozen_until);
        let Some(due) = self.executors[e].drives.get_mut(&work).map(|d| &mut d.due).filter(|d| **d == now) else {
            return;
        };
        if frozen > now {
            *due = frozen;
            self.at(frozen - now, Event::Turn(e, life, work));
            return;
        }
        let Some(mut drive) = self.executors[e].drives.remove(&work) else { return };
        if self.one_turn(e, work, &mut drive) {
            let after = if drive.said.is_empty() { 1_000 } else { 1 };
            drive.due = now + after;
            self.executors[e].drives.insert(work, drive);
            self.at(after, Event::Turn(e, life, work));
        }
    }

    /// Whether the executor still drives it.
    fn one_turn(&mut self, e: usize, work: WorkId, drive: &mut Drive) -> bool {
        let careless = self.is(Plant::NoEpochCheck);
        let clock = self.clock();
        let Some(row) = self.db.works.get(&work) else { return false };
        let held = row.epoch == drive.epoch && row.phase == Phase::Running;
        if !held && !careless {
            self.coverage.hit("fault", "work was lost");
            return false;
        }
        if !held && row.phase == Phase::Settled {
            return false;
        }
        if self.now - drive.renewed >= 5_000 && held && self.commit() != Commit::Failed {
            drive.renewed = self.now;
            if let Some(w) = self.db.works.get_mut(&work) {
                w.expires = Some(clock + chrono::Duration::seconds(15));
            }
        }
        let spec = self.db.works[&work].spec.clone();
        match &spec {
            WorkSpec::Wave(v) => self.wave_turn(e, work, drive, v),
            WorkSpec::Central(_) | WorkSpec::Probe(_) => self.central_turn(work, drive, &spec),
        }
    }

    /// A central step, or a look at probes. It may be done more than once, by a new owner.
    fn central_turn(&mut self, work: WorkId, drive: &mut Drive, spec: &WorkSpec) -> bool {
        let row = &self.db.works[&work];
        let (desired, dep) = (row.desired, row.dep);
        if drive.ends.is_none() && desired == Desired::Run {
            let takes = match spec {
                WorkSpec::Probe(p) => (p.until - self.clock()).num_milliseconds().clamp(500, 20_000),
                _ => self.dice.between(100, 20_000),
            };
            drive.ends = Some(self.now + takes);
            self.check_central(dep);
        }
        let abort = desired == Desired::Abort;
        if !abort && drive.ends.is_none_or(|at| at > self.now) {
            return true;
        }
        let result = match spec {
            WorkSpec::Probe(_) => {
                let all = [Verdict::Success, Verdict::Success, Verdict::Success, Verdict::Fail, Verdict::Inconclusive];
                let verdict = if abort { Verdict::Inconclusive } else { all[self.dice.roll(5)] };
                WorkResult::Probe { verdict, probes: Vec::new(), reason: Some("r".into()) }
            }
            _ => {
                let ok = !abort && !self.dice.one_in(5);
                let classes = [FailureClass::Exit, FailureClass::Timeout];
                let class = if abort { Some(FailureClass::Stopped) } else { (!ok).then(|| classes[self.dice.roll(2)]) };
                let output = if self.dice.one_in(8) { json!({}) } else { json!({ "ok": !self.dice.one_in(3) }) };
                WorkResult::Central { succeeded: ok, reason: None, output, class }
            }
        };
        self.settle(work, result)
    }

    /// Whether the executor still drives it.
    fn settle(&mut self, work: WorkId, result: WorkResult) -> bool {
        let how = self.commit();
        if how == Commit::Failed {
            return true;
        }
        let Some(w) = self.db.works.get_mut(&work) else { return false };
        (w.result, w.phase, w.expires) = (Some(result), Phase::Settled, None);
        w.result_version += 1;
        let dep = w.dep;
        self.db.append(dep);
        self.ring(dep);
        false
    }

    fn wave_turn(&mut self, e: usize, work: WorkId, drive: &mut Drive, v: &WaveWork) -> bool {
        let now = self.clock();
        let row = &self.db.works[&work];
        let (dep, fence, wanted) = (row.dep, row.fence, row.desired);
        let env = self.db.deployments[dep].env;
        // What a grant may look at; the rest of the turn sees what is there.
        let desired = match wanted {
            Desired::Abort if self.is(Plant::AbortNotSeen) => Desired::Run,
            Desired::Hold if self.is(Plant::HoldNotSeen) => Desired::Run,
            other => other,
        };
        if drive.held && desired != Desired::Hold {
            drive.released = Some(now);
        }
        drive.held = desired == Desired::Hold;
        let mut t =
            Turn { tasks: drive.board.iter().map(|(id, r)| (*id, r.0.clone())).collect(), frames: Vec::new(), now };
        let said = std::mem::take(&mut drive.said);
        let (accepts, rest): (Vec<_>, Vec<_>) = said.into_iter().partition(|(_, s)| matches!(s, Say::Accept { .. }));
        self.take_words(&mut t, rest);
        self.take_time(e, env, &mut t, drive, desired);
        self.make_tasks(work, dep, v, &mut t);
        self.take_host_stops(work, &mut t);
        let over = t.tasks.values().filter(|t| counts(t)).count() as u32 > v.max_failures && !self.is(Plant::NoBudget);
        for (id, say) in accepts {
            let Say::Accept { nonce, instance } = say else { continue };
            let Some(task) = t.tasks.get(&id) else { continue };
            let stopped = task.stop.is_some() && !task.state.is_final();
            if desired != Desired::Run || stopped || over && task.state == TaskState::Offered {
                continue;
            }
            let instance = if self.is(Plant::AnyInstance) { self.believed(&id, instance) } else { instance };
            let grant = Grant { nonce: nonce.to_string(), instance: instance.to_string() };
            match t.apply(id, TaskInput::Accepted(grant), None) {
                Ok(()) | Err(Refusal::Duplicate) => t.frames.push((id, Frame::Grant)),
                Err(Refusal::Settled) => t.frames.push((id, Frame::Fence)),
                Err(_) => {}
            }
        }
        let ids: Vec<TaskId> = t.tasks.keys().copied().collect();
        if desired == Desired::Abort || over {
            for id in ids {
                let (input, class) = if desired == Desired::Abort {
                    (TaskInput::Withdraw { reason: "aborted".into() }, Some(FailureClass::Stopped))
                } else {
                    (TaskInput::AutoStop { reason: "over budget".into() }, None)
                };
                t.unstarted(id, input, class);
            }
        } else if desired == Desired::Run {
            let active = |t: &&Task| matches!(t.state, TaskState::Offered | TaskState::Granted);
            let limit = if v.parallel == 0 { usize::MAX } else { v.parallel as usize };
            let mut room = limit.saturating_sub(t.tasks.values().filter(active).count());
            for id in ids {
                if room > 0 && t.apply(id, TaskInput::Offer, None).is_ok() {
                    room -= 1;
                    t.frames.push((id, Frame::Offer));
                }
            }
        }
        // The transaction: every row at the version that the board holds.
        let how = self.commit();
        let fits = |id: &TaskId| self.db.tasks.get(id).map(|r| r.version) == drive.board.get(id).map(|r| r.1);
        let changed: Vec<TaskId> = t
            .tasks
            .iter()
            .filter(|(id, task)| drive.board.get(id).is_none_or(|(old, _)| old != *task))
            .map(|(id, _)| *id)
            .collect();
        let conflict = !changed.iter().all(fits) && !self.is(Plant::NoEpochCheck);
        if how == Commit::Failed || conflict {
            drive.board = self.db.tasks_of(work).map(|(t, r)| (*t, (r.task.clone(), r.version))).collect();
            return true;
        }
        for id in changed {
            let Some(task) = t.tasks.get(&id).cloned() else { continue };
            if self.db.tasks.contains_key(&id) {
                self.store(id, task);
            } else {
                let row = TaskRow { task, work, dep, env, step: v.step.clone(), version: 1 };
                self.insert(id, row);
            }
        }
        drive.board = self.db.tasks_of(work).map(|(t, r)| (*t, (r.task.clone(), r.version))).collect();
        let all = result_of(v, t.tasks.values()).filter(|_| t.tasks.values().all(Task::is_over));
        let goes_on = match all {
            Some(result) => self.settle(work, result),
            None => true,
        };
        if how == Commit::Done {
            self.frames(work, dep, fence, v, drive, &t, desired);
        }
        goes_on
    }

    fn insert(&mut self, id: TaskId, row: TaskRow) {
        let same = |r: &TaskRow| r.dep == row.dep && r.step == row.step && r.task.host == row.task.host;
        if self.db.tasks.values().any(|r| same(r) && r.task.attempt == row.task.attempt) {
            // A unique index stands in the way; whoever drives the work has made it.
            return;
        }
        self.coverage.hit("task", row.task.state.as_str());
        self.db.tasks.insert(id, row);
    }

    fn take_words(&mut self, t: &mut Turn, said: Vec<(TaskId, Say)>) {
        for (id, say) in said {
            if let Some(input) = self.overridden(id) {
                let _ = t.apply(id, input, None);
            }
            let input = match say {
                Say::Started { instance } => TaskInput::Started { instance: self.believed(&id, instance).to_string() },
                Say::Result { instance, report } => {
                    let instance = self.believed(&id, instance).to_string();
                    let done = t.apply(id, TaskInput::Reported { instance, report }, None);
                    if done != Err(Refusal::Unfitting) {
                        t.frames.push((id, Frame::Ack));
                    }
                    continue;
                }
                Say::Override { by, reason } => TaskInput::Override { by, reason },
                Say::Accept { .. } => continue,
            };
            let _ = t.apply(id, input, None);
        }
        if self.is(Plant::StopNotSeen) {
            return;
        }
        let ids: Vec<TaskId> = t.tasks.keys().copied().collect();
        for id in ids {
            if let Some(by) = self.db.stops.get(&id).cloned()
                && t.apply(id, TaskInput::Stop { by }, Some(FailureClass::Stopped)).is_ok()
            {
                t.frames.push((id, Frame::Fence));
            }
        }
    }

    /// What a person said of hosts, perhaps before they had a task.
    fn take_host_stops(&mut self, work: WorkId, t: &mut Turn) {
        if self.is(Plant::StopNotSeen) {
            return;
        }
        let ids: Vec<TaskId> = t.tasks.keys().copied().collect();
        for id in ids {
            let Some(task) = t.tasks.get(&id).filter(|t| t.stop.is_none() && !t.state.is_final()) else { continue };
            let Some(by) = self.db.host_stops.get(&(work, task.host.clone())).cloned() else { continue };
            if !self.db.tasks.contains_key(&id) {
                self.coverage.hit("executor", "a stop came before its task");
            }
            if t.apply(id, TaskInput::Stop { by }, Some(FailureClass::Stopped)).is_ok() {
                t.frames.push((id, Frame::Fence));
            }
        }
    }

    fn take_time(&mut self, e: usize, env: usize, t: &mut Turn, drive: &Drive, desired: Desired) {
        let now = t.now;
        let over = |since: Timestamp, s: i64| now - since >= chrono::Duration::seconds(s);
        let mut inputs = Vec::new();
        for (id, task) in &t.tasks {
            let h = host_of(env, &task.host);
            match task.state {
                TaskState::Offered if desired != Desired::Hold => {
                    let Some(at) = task.offered_at else { continue };
                    if over(at.max(drive.listening).max(drive.released.unwrap_or(at)), 60) {
                        inputs.push((*id, TaskInput::Withdraw { reason: "not taken".into() }));
                    }
                }
                TaskState::Granted => {
                    let session = self.db.sessions.get(&h).map(u64::to_string);
                    let other = task.granted.as_ref().is_some_and(|g| Some(&g.instance) != session.as_ref());
                    let Some(granted) = task.granted_at else { continue };
                    let since = self.executors[e].seen[h].unwrap_or(drive.listening).max(granted).max(drive.listening);
                    if other && !self.is(Plant::AnyInstance) || over(since, 90) {
                        inputs.push((*id, TaskInput::Silent { reason: "silent".into() }));
                    }
                }
                _ => {}
            }
        }
        for (id, input) in inputs {
            let silent = matches!(input, TaskInput::Silent { .. });
            t.unstarted(id, input, Some(FailureClass::Unreachable));
            if silent
                && self.is(Plant::SilenceIsNotStarted)
                && let Some(task) = t.tasks.get_mut(&id)
            {
                task.state = TaskState::NotStarted;
            }
        }
    }

    /// A row for each host that has none, unless an earlier attempt stands in the way.
    fn make_tasks(&mut self, work: WorkId, dep: usize, v: &WaveWork, t: &mut Turn) {
        for h in &v.hosts {
            if t.tasks.values().any(|x| x.host == h.host && x.attempt == h.attempt) {
                continue;
            }
            self.db.tasks_made += 1;
            let id = TaskId(uuid::Uuid::from_u128(self.db.tasks_made << 64 | work.0.as_u128()));
            let task = Task {
                id,
                host: h.host.clone(),
                agent: Some(AgentId(uuid::Uuid::nil())),
                attempt: h.attempt,
                start_at: h.start_at,
                state: TaskState::Pending,
                granted: None,
                report: None,
                steps: Vec::new(),
                reason: None,
                auto_stopped: false,
                traffic: None,
                stop: None,
                class: None,
                offered_at: None,
                granted_at: None,
                started_at: None,
                settled_at: None,
            };
            t.tasks.insert(id, task);
            let earlier =
                self.db.tasks.values().filter(|r| {
                    r.dep == dep && r.step == v.step && r.task.host == h.host && r.task.attempt < h.attempt
                });
            let in_the_way = |r: &&TaskRow| {
                let good = r.task.state == TaskState::Succeeded;
                !(r.task.allows_next_attempt() || good && v.again)
            };
            if earlier.clone().any(|r| in_the_way(&r)) {
                let reason = "an earlier attempt is not settled".to_owned();
                t.unstarted(id, TaskInput::Withdraw { reason }, Some(FailureClass::Refused));
                self.coverage.hit("executor", "an earlier attempt is in the way");
            }
        }
    }

    /// What follows the commit, and what is said again.
    #[expect(clippy::too_many_arguments, reason = "they are the fields of the frames")]
    fn frames(
        &mut self,
        work: WorkId,
        dep: usize,
        fence: u64,
        v: &WaveWork,
        drive: &mut Drive,
        t: &Turn,
        desired: Desired,
    ) {
        let mut frames = t.frames.clone();
        for (id, task) in &t.tasks {
            let frame = match task.state {
                TaskState::Offered if desired == Desired::Run => Frame::Offer,
                TaskState::Granted | TaskState::Unknown if desired == Desired::Abort || task.stop.is_some() => {
                    Frame::Fence
                }
                TaskState::Granted if task.started_at.is_none() && desired == Desired::Run => Frame::Grant,
                _ => continue,
            };
            let (at, pause) = drive.again.get(id).copied().unwrap_or((self.now, 1_000));
            if at <= self.now {
                drive.again.insert(*id, (self.now + pause, (pause * 2).min(15_000)));
                frames.push((*id, frame));
            }
        }
        frames.dedup();
        let env = self.db.deployments[dep].env;
        for (id, frame) in frames {
            let Some(task) = t.tasks.get(&id) else { continue };
            let down = match frame {
                Frame::Offer => Down::Offer(Offer {
                    task: id,
                    work,
                    dep,
                    step: v.step.clone(),
                    attempt: task.attempt,
                    epoch: drive.epoch,
                    fence,
                }),
                Frame::Grant => {
                    let Some(nonce) = task.granted.as_ref().and_then(|g| g.nonce.parse().ok()) else { continue };
                    Down::Grant { task: id, nonce, epoch: drive.epoch }
                }
                Frame::Fence => Down::Fence { task: id, work },
                Frame::Ack => Down::Ack { task: id },
            };
            self.send(Event::ToAgent(host_of(env, &task.host), down));
        }
    }
}
