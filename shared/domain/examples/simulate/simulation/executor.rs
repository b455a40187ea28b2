//! Executors: claims with epochs, what agents say, and words that come after a work was settled. What a turn of a wave does is
//! in `turn.rs`.

use super::{
    ENVIRONMENTS, Event, HOSTS, Sim,
    agent::{Down, Up},
    db::{Commit, Phase},
    plants::Plant,
    turn::{Say, result_of, settled_class},
};
use std::collections::BTreeMap;
use windlass_domain::{
    Timestamp,
    deployment::By,
    ids::{TaskId, WorkId},
    task::{ReportedOutcome, StepOutcome, StepReport, Task, TaskInput, TaskReport, TaskState},
    work::WorkSpec,
};

#[derive(Debug)]
pub(super) struct Executor {
    pub(super) up: bool,
    pub(super) life: u64,
    pub(super) frozen_until: i64,
    pub(super) drives: BTreeMap<WorkId, Drive>,
    /// When each host was heard last.
    pub(super) seen: Vec<Option<Timestamp>>,
}

impl Default for Executor {
    fn default() -> Executor {
        let seen = vec![None; ENVIRONMENTS * HOSTS];
        Executor { up: true, life: 0, frozen_until: 0, drives: BTreeMap::new(), seen }
    }
}

/// A work that an executor believes to own.
#[derive(Debug)]
pub(super) struct Drive {
    pub(super) epoch: u64,
    /// As last committed, with the version to save over.
    pub(super) board: BTreeMap<TaskId, (Task, u64)>,
    pub(super) said: Vec<(TaskId, Say)>,
    pub(super) listening: Timestamp,
    pub(super) released: Option<Timestamp>,
    pub(super) held: bool,
    pub(super) renewed: i64,
    /// When each task's frame is sent again, and the pause after that.
    pub(super) again: BTreeMap<TaskId, (i64, i64)>,
    /// A central step or a look at probes ends then.
    pub(super) ends: Option<i64>,
    /// When the next turn is due; turns that were planned for another time are none.
    pub(super) due: i64,
}

impl Executor {
    pub(super) fn dies(&mut self) {
        self.life += 1;
        self.up = false;
        self.drives.clear();
        self.seen = vec![None; self.seen.len()];
        self.frozen_until = 0;
    }
}

/// The report of an agent, in the words of the domain.
pub(super) fn report(outcome: ReportedOutcome, failed: u32, at: Timestamp) -> TaskReport {
    let step = |index, outcome| StepReport {
        index,
        outcome,
        exit_code: None,
        started_at: at,
        ended_at: at,
        message: String::new(),
        left_processes: 0,
        outputs: serde_json::Map::new(),
    };
    let failed = (outcome == ReportedOutcome::Failed)
        .then(|| step(failed, if failed.is_multiple_of(2) { StepOutcome::Failed } else { StepOutcome::TimedOut }));
    TaskReport { outcome, steps: failed.into_iter().collect(), log_bytes: 0, log_dropped: 0, log_frames: 0 }
}

impl Sim {
    pub(super) fn executor_polls(&mut self, e: usize, life: u64) {
        if self.executors[e].life != life || !self.executors[e].up {
            return;
        }
        if self.executors[e].frozen_until > self.now {
            self.at(self.executors[e].frozen_until - self.now, Event::ExecutorPolls(e, life));
            return;
        }
        let clock = self.clock();
        let free: Vec<WorkId> = self
            .db
            .works
            .iter()
            .filter(|(_, w)| w.phase != Phase::Settled && w.expires.is_none_or(|t| t < clock))
            .map(|(id, _)| *id)
            .take(4)
            .collect();
        for id in free {
            self.claim(e, id);
        }
        let words: Vec<(TaskId, By)> = self
            .db
            .overrides
            .iter()
            .filter(|(t, _)| self.db.tasks[t].task.state == TaskState::Unknown)
            .map(|(t, by)| (*t, by.clone()))
            .collect();
        for (task, by) in words {
            let input = TaskInput::Override { by: by.who, reason: by.reason };
            self.word(e, task, input, None);
        }
        let next = self.dice.between(400, 2_000);
        self.at(next, Event::ExecutorPolls(e, life));
    }

    fn claim(&mut self, e: usize, id: WorkId) {
        let (how, clock) = (self.commit(), self.clock());
        let Some(w) = self.db.works.get_mut(&id).filter(|_| how != Commit::Failed) else { return };
        if w.epoch > 0 {
            self.coverage.hit("fault", "work is taken over");
        }
        w.owner = Some(e);
        w.epoch += 1;
        w.phase = Phase::Running;
        w.expires = Some(clock + chrono::Duration::seconds(15));
        let epoch = w.epoch;
        if how == Commit::Unheard {
            return;
        }
        let drive = Drive {
            epoch,
            board: BTreeMap::new(),
            said: Vec::new(),
            listening: clock,
            released: None,
            held: false,
            renewed: self.now,
            again: BTreeMap::new(),
            ends: None,
            due: self.now + 1,
        };
        self.executors[e].drives.insert(id, drive);
        self.reload(e, id);
        let life = self.executors[e].life;
        self.at(1, Event::Turn(e, life, id));
    }

    /// What the database holds of the work's tasks.
    pub(super) fn reload(&mut self, e: usize, id: WorkId) {
        let rows: BTreeMap<TaskId, (Task, u64)> =
            self.db.tasks_of(id).map(|(t, r)| (*t, (r.task.clone(), r.version))).collect();
        if let Some(d) = self.executors[e].drives.get_mut(&id) {
            d.again.clear();
            d.board = rows;
        }
    }

    pub(super) fn executor_hears(&mut self, e: usize, h: usize, up: Up) {
        if !self.executors[e].up {
            return;
        }
        if self.executors[e].frozen_until > self.now {
            self.at(self.executors[e].frozen_until - self.now, Event::ToExecutor(e, h, up));
            return;
        }
        let clock = self.clock();
        let (task, say) = match up {
            Up::Hello { instance, listed } => return self.hello(e, h, instance, &listed),
            Up::Accept { task, nonce, instance } => (task, Say::Accept { nonce, instance }),
            Up::Started { task, instance } => (task, Say::Started { instance }),
            Up::Result { task, instance, outcome, failed } => {
                (task, Say::Result { instance, report: report(outcome, failed, clock) })
            }
        };
        self.executors[e].seen[h] = Some(clock);
        let Some(work) = self.db.tasks.get(&task).map(|t| t.work) else { return };
        if let Some(d) = self.executors[e].drives.get_mut(&work) {
            d.said.push((task, say));
            if d.due > self.now + 1 {
                d.due = self.now + 1;
                let life = self.executors[e].life;
                self.at(1, Event::Turn(e, life, work));
            }
        } else if let Say::Result { instance, report } = say {
            let instance = self.believed(&task, instance);
            self.word(e, task, TaskInput::Reported { instance: instance.to_string(), report }, Some(h));
        }
    }

    /// Whose word it is taken for.
    pub(super) fn believed(&self, task: &TaskId, instance: u64) -> u64 {
        let granted = self.db.tasks.get(task).and_then(|t| t.task.granted.as_ref());
        match granted.and_then(|g| g.instance.parse().ok()) {
            Some(held) if self.is(Plant::AnyInstance) => held,
            _ => instance,
        }
    }

    /// What a person said of a task that is unknown comes before what its host says later.
    pub(super) fn overridden(&self, task: TaskId) -> Option<TaskInput> {
        let by = self.db.overrides.get(&task).filter(|_| !self.is(Plant::OverrideInTheDark))?;
        let unknown = self.db.tasks.get(&task)?.task.state == TaskState::Unknown;
        unknown.then(|| TaskInput::Override { by: by.who.clone(), reason: by.reason.clone() })
    }

    /// A word about a task: to whoever drives its work; for a settled work it is taken at once.
    fn word(&mut self, e: usize, task: TaskId, input: TaskInput, from: Option<usize>) {
        let Some(row) = self.db.tasks.get(&task) else { return };
        let work = row.work;
        if let (TaskInput::Override { by, reason }, Some(d)) = (&input, self.executors[e].drives.get_mut(&work)) {
            d.said.push((task, Say::Override { by: by.clone(), reason: reason.clone() }));
            return;
        }
        if self.db.works.get(&work).is_none_or(|w| w.phase != Phase::Settled) {
            return;
        }
        let (how, clock) = (self.commit(), self.clock());
        if how == Commit::Failed {
            return;
        }
        let input = self.overridden(task).unwrap_or(input);
        let done = row_apply(&self.db.tasks[&task].task, input, clock);
        if let Ok(next) = done {
            let changed = next.state != self.db.tasks[&task].task.state;
            self.store(task, next);
            self.coverage.hit("executor", "late word");
            let tasks: Vec<Task> = self.db.tasks_of(work).map(|(_, t)| t.task.clone()).collect();
            if let Some(w) = self.db.works.get_mut(&work) {
                w.epoch += 1;
                if let (true, WorkSpec::Wave(v)) = (changed, &w.spec)
                    && let Some(result) = result_of(v, tasks.iter())
                {
                    w.result = Some(result);
                    w.result_version += 1;
                }
                let dep = w.dep;
                self.db.append(dep);
                self.ring(dep);
            }
        }
        if let Some(h) = from.filter(|_| how == Commit::Done) {
            self.send(Event::ToAgent(h, Down::Ack { task }));
        }
    }

    /// Tells a scheduler, if the message comes through.
    pub(super) fn ring(&mut self, dep: usize) {
        let s = self.dice.roll(2);
        self.send(Event::Look(s, dep));
    }

    /// A new row for a task, whoever writes it.
    pub(super) fn store(&mut self, id: TaskId, next: Task) {
        let Some(row) = self.db.tasks.get_mut(&id) else { return };
        let before = std::mem::replace(&mut row.task, next);
        row.version += 1;
        let state = row.task.state;
        self.coverage.hit("task", state.as_str());
        self.check_task(id, &before);
    }

    /// Which journal speaks for the host, and what it does not know of.
    fn hello(&mut self, e: usize, h: usize, instance: u64, listed: &[TaskId]) {
        // What was said by a journal of before and overtaken by the new one is no clone here: it is not heard.
        if self.hosts[h].instance != instance {
            return;
        }
        let clock = self.clock();
        self.executors[e].seen[h] = Some(clock);
        let mut fences = Vec::new();
        if self.commit() == Commit::Failed {
            return;
        }
        self.db.sessions.insert(h, instance);
        for (id, r) in self.db.tasks.iter().filter(|(_, r)| super::oracle::host_of(r.env, &r.task.host) == h) {
            let here = r.task.granted.as_ref().is_some_and(|g| g.instance == instance.to_string());
            let abort = self.db.works.get(&r.work).is_some_and(|w| w.desired == windlass_domain::work::Desired::Abort);
            let known = listed.contains(id);
            let old = |at: Option<Timestamp>| at.is_some_and(|t| clock - t > chrono::Duration::seconds(1));
            let fence = match r.task.state {
                TaskState::Granted | TaskState::Unknown if !here => false,
                TaskState::Granted | TaskState::Unknown if abort || r.task.stop.is_some() => true,
                TaskState::Granted => !known && old(r.task.granted_at),
                TaskState::Unknown => !known && r.task.report.is_none(),
                TaskState::Pending | TaskState::Offered => false,
                _ => known,
            };
            if fence {
                fences.push((*id, r.work));
            }
        }
        for (task, work) in fences {
            self.send(Event::ToAgent(h, Down::Fence { task, work }));
        }
    }
}

/// A task after an input, with the class of its failure.
pub(super) fn row_apply(
    before: &Task,
    input: TaskInput,
    now: Timestamp,
) -> Result<Task, windlass_domain::task::Refusal> {
    let mut next = before.apply(input, now)?;
    if next.state != before.state && next.state.is_settled() {
        next.class = settled_class(&next, None);
    }
    Ok(next)
}
