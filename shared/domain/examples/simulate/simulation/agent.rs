//! Agents: the journal, the programs they start, and what may befall them. Said anew after `services/agent`: journal before
//! promise, one nonce for each ACCEPT, nothing runs but under a grant that names it.

use super::{Event, Sim, db::Dep, plants::Plant};
use std::collections::BTreeMap;
use windlass_domain::{
    ids::{TaskId, WorkId},
    task::ReportedOutcome,
};

/// Frames to an agent.
#[derive(Debug, Clone)]
pub(super) enum Down {
    Offer(Offer),
    Grant { task: TaskId, nonce: u64, epoch: u64 },
    Fence { task: TaskId, work: WorkId },
    Ack { task: TaskId },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Offer {
    pub(super) task: TaskId,
    pub(super) work: WorkId,
    pub(super) dep: Dep,
    pub(super) step: String,
    pub(super) attempt: u32,
    pub(super) epoch: u64,
    pub(super) fence: u64,
}

/// Frames from an agent.
#[derive(Debug, Clone)]
pub(super) enum Up {
    Accept { task: TaskId, nonce: u64, instance: u64 },
    Started { task: TaskId, instance: u64 },
    Result { task: TaskId, instance: u64, outcome: ReportedOutcome, failed: u32 },
    Hello { instance: u64, listed: Vec<TaskId> },
}

#[derive(Debug, Clone, PartialEq)]
enum Kept {
    Accepted,
    Intent,
    Ended { outcome: ReportedOutcome, failed: u32, acked: bool },
}

/// The journal's record of a task, on disk.
#[derive(Debug, Clone)]
struct Entry {
    /// `None`: fenced before it was ever offered.
    offer: Option<Offer>,
    kept: Kept,
    stop: bool,
}

/// A program, which outlives the agent but not the machine.
#[derive(Debug, Clone)]
struct Program {
    outcome: ReportedOutcome,
    failed: u32,
    /// It has ended and left its exit.
    exit: bool,
}

#[derive(Debug)]
pub(super) struct Host {
    up: bool,
    life: u64,
    boot: u64,
    pub(super) instance: u64,
    pub(super) cut_until: i64,
    /// It hears, and is not heard.
    pub(super) one_way: bool,
    journal: BTreeMap<TaskId, Entry>,
    /// Of this process: nonce, and when it was sent.
    nonces: BTreeMap<TaskId, (u64, i64)>,
    programs: BTreeMap<TaskId, Program>,
    epochs: BTreeMap<WorkId, u64>,
    fence: u64,
}

impl Host {
    pub(super) fn new(instance: u64) -> Host {
        Host {
            up: true,
            life: 0,
            boot: 0,
            instance,
            cut_until: 0,
            one_way: false,
            journal: BTreeMap::new(),
            nonces: BTreeMap::new(),
            programs: BTreeMap::new(),
            epochs: BTreeMap::new(),
            fence: 0,
        }
    }
}

impl Host {
    /// It holds a task, or runs one.
    pub(super) fn is_busy(&self) -> bool {
        self.journal.values().any(|e| matches!(e.kept, Kept::Accepted | Kept::Intent))
    }
}

const LEASE: i64 = 10_000;

impl Sim {
    pub(super) fn agent_dies(&mut self, h: usize, machine: bool, disk: bool) {
        let host = &mut self.hosts[h];
        host.up = false;
        host.life += 1;
        host.nonces.clear();
        if machine {
            host.boot += 1;
            // What was still running is no more, and left no exit.
            let lost: Vec<TaskId> = host.programs.iter().filter(|(_, p)| !p.exit).map(|(t, _)| *t).collect();
            for t in lost {
                host.programs.remove(&t);
                self.oracle.ends(h, t, false);
            }
        }
        if disk {
            let host = &mut self.hosts[h];
            host.instance = self.dice.next();
            host.journal.clear();
            host.programs.clear();
            host.epochs.clear();
            host.fence = 0;
        }
    }

    pub(super) fn agent_back(&mut self, h: usize) {
        if self.hosts[h].up {
            return;
        }
        self.hosts[h].up = true;
        let intents: Vec<TaskId> =
            self.hosts[h].journal.iter().filter(|(_, e)| e.kept == Kept::Intent).map(|(t, _)| *t).collect();
        for task in intents {
            match self.hosts[h].programs.get(&task).cloned() {
                Some(p) if p.exit => self.ended(h, task, p.outcome, p.failed),
                Some(_) => {
                    if self.hosts[h].journal.get(&task).is_some_and(|e| e.stop) {
                        self.stop_program(h, task);
                    }
                }
                None => self.ended(h, task, ReportedOutcome::Interrupted, 0),
            }
        }
        let life = self.hosts[h].life;
        self.beat(h, life);
    }

    /// Heartbeat and HELLO in one, and whatever result is not acknowledged yet.
    pub(super) fn beat(&mut self, h: usize, life: u64) {
        if !self.hosts[h].up || self.hosts[h].life != life {
            return;
        }
        let host = &self.hosts[h];
        let open = |e: &Entry| matches!(e.kept, Kept::Accepted | Kept::Intent);
        let listed = host.journal.iter().filter(|(_, e)| open(e)).map(|(t, _)| *t).collect();
        let instance = host.instance;
        let unacked: Vec<(TaskId, ReportedOutcome, u32)> = host
            .journal
            .iter()
            .filter_map(|(t, e)| match &e.kept {
                Kept::Ended { outcome, failed, acked: false } => Some((*t, *outcome, *failed)),
                _ => None,
            })
            .collect();
        self.up(h, Up::Hello { instance, listed });
        for (task, outcome, failed) in unacked {
            self.up(h, Up::Result { task, instance, outcome, failed });
        }
        let next = self.dice.between(4_000, 6_000);
        self.at(next, Event::Beat(h, life));
    }

    fn up(&mut self, h: usize, up: Up) {
        if self.hosts[h].cut_until > self.now && self.faulty() {
            return;
        }
        for e in 0..2 {
            self.send(Event::ToExecutor(e, h, up.clone()));
        }
    }

    fn result(&mut self, h: usize, task: TaskId) {
        let instance = self.hosts[h].instance;
        if let Some(Entry { kept: Kept::Ended { outcome, failed, .. }, .. }) = self.hosts[h].journal.get(&task) {
            let (outcome, failed) = (*outcome, *failed);
            self.up(h, Up::Result { task, instance, outcome, failed });
        }
    }

    fn ended(&mut self, h: usize, task: TaskId, outcome: ReportedOutcome, failed: u32) {
        let Some(e) = self.hosts[h].journal.get_mut(&task) else { return };
        e.kept = Kept::Ended { outcome, failed, acked: false };
        self.result(h, task);
    }

    pub(super) fn agent_hears(&mut self, h: usize, down: Down) {
        if !self.hosts[h].up || self.hosts[h].cut_until > self.now && !self.hosts[h].one_way && self.faulty() {
            return;
        }
        match down {
            Down::Offer(o) => self.offered(h, o),
            Down::Grant { task, nonce, epoch } => self.granted(h, task, nonce, epoch),
            Down::Fence { task, work } => self.fenced(h, task, work),
            Down::Ack { task } => {
                if let Some(Entry { kept: Kept::Ended { acked, .. }, .. }) = self.hosts[h].journal.get_mut(&task) {
                    *acked = true;
                }
            }
        }
    }

    fn accept(&mut self, h: usize, task: TaskId) {
        let fresh = self.dice.next();
        let now = self.now;
        let host = &mut self.hosts[h];
        let n = host.nonces.entry(task).or_insert((fresh, now));
        n.1 = now;
        let (nonce, instance) = (n.0, host.instance);
        self.up(h, Up::Accept { task, nonce, instance });
    }

    fn offered(&mut self, h: usize, o: Offer) {
        let careless = self.is(Plant::OlderAttemptsRunOn);
        let host = &self.hosts[h];
        match host.journal.get(&o.task).map(|e| e.kept.clone()) {
            Some(Kept::Accepted) => return self.accept(h, o.task),
            Some(Kept::Intent) => {
                let instance = host.instance;
                return self.up(h, Up::Started { task: o.task, instance });
            }
            Some(Kept::Ended { .. }) => return self.result(h, o.task),
            None => {}
        }
        if o.epoch < host.epochs.get(&o.work).copied().unwrap_or(0) || o.fence < host.fence {
            self.coverage.hit("agent", "refuses what is stale");
            return;
        }
        let mut overtaken = Vec::new();
        for (id, e) in &host.journal {
            let Some(old) = &e.offer else { continue };
            let same = old.dep == o.dep && old.step == o.step;
            if same && old.attempt >= o.attempt {
                return;
            }
            let older = same || old.fence < o.fence;
            match e.kept {
                Kept::Intent if older && !careless => {
                    self.coverage.hit("agent", "refuses beside an older attempt");
                    return;
                }
                Kept::Accepted if older => overtaken.push(*id),
                _ => {}
            }
        }
        for id in overtaken {
            self.hosts[h].nonces.remove(&id);
            self.ended(h, id, ReportedOutcome::Fenced, 0);
        }
        let host = &mut self.hosts[h];
        host.fence = host.fence.max(o.fence);
        let epoch = host.epochs.entry(o.work).or_default();
        *epoch = (*epoch).max(o.epoch);
        let task = o.task;
        host.journal.insert(task, Entry { offer: Some(o), kept: Kept::Accepted, stop: false });
        self.accept(h, task);
    }

    fn granted(&mut self, h: usize, task: TaskId, nonce: u64, epoch: u64) {
        let any = self.is(Plant::AnyNonce);
        let host = &mut self.hosts[h];
        let instance = host.instance;
        match host.journal.get(&task).map(|e| (e.kept.clone(), e.offer.as_ref().map(|o| o.work))) {
            Some((Kept::Accepted, Some(work))) => {
                if epoch < host.epochs.get(&work).copied().unwrap_or(0) {
                    return;
                }
                let known = host.nonces.get(&task).copied();
                let fits = known.is_some_and(|(n, _)| n == nonce);
                let in_time = known.is_some_and(|(_, sent)| self.now - sent < LEASE);
                if fits && in_time || any {
                    self.begin(h, task);
                } else {
                    self.coverage.hit("agent", "refuses a grant of before");
                    if fits {
                        self.hosts[h].nonces.remove(&task);
                    }
                    self.accept(h, task);
                }
            }
            Some((Kept::Intent, _)) => self.up(h, Up::Started { task, instance }),
            Some((Kept::Ended { .. }, _)) => self.result(h, task),
            _ => {}
        }
    }

    /// INTENT is on disk before anything runs.
    fn begin(&mut self, h: usize, task: TaskId) {
        let careless = self.is(Plant::NoIntent);
        let boot = self.hosts[h].boot;
        let Some(e) = self.hosts[h].journal.get_mut(&task) else { return };
        let Some(offer) = e.offer.clone() else { return };
        if careless {
            let (after, life) = (self.dice.between(50, 6_000), self.hosts[h].life);
            self.at(after, Event::Intent(h, task, life));
        } else {
            e.kept = Kept::Intent;
            self.hosts[h].nonces.remove(&task);
        }
        self.note(format!("host {h} starts attempt {} of {} of deployment {}", offer.attempt, offer.step, offer.dep));
        self.check_start(h, task, &offer);
        let (outcome, failed) = match self.dice.roll(6) {
            0 => (ReportedOutcome::Failed, self.dice.roll(5) as u32),
            _ => (ReportedOutcome::Succeeded, 0),
        };
        // Some run on long after their host fell silent.
        let takes =
            if self.dice.one_in(3) { 60_000 + self.dice.between(1, 200_000) } else { self.dice.between(50, 60_000) };
        self.hosts[h].programs.insert(task, Program { outcome, failed, exit: false });
        self.at(takes, Event::ProgramEnds(h, task, boot));
        let instance = self.hosts[h].instance;
        self.up(h, Up::Started { task, instance });
    }

    pub(super) fn late_intent(&mut self, h: usize, task: TaskId, life: u64) {
        if self.hosts[h].life == life
            && let Some(e) = self.hosts[h].journal.get_mut(&task).filter(|e| e.kept == Kept::Accepted)
        {
            e.kept = Kept::Intent;
        }
    }

    pub(super) fn program_ends(&mut self, h: usize, task: TaskId, boot: u64) {
        if self.hosts[h].boot != boot {
            return;
        }
        let Some(p) = self.hosts[h].programs.get_mut(&task).filter(|p| !p.exit) else { return };
        p.exit = true;
        let (outcome, failed) = (p.outcome, p.failed);
        self.oracle.ends(h, task, outcome == ReportedOutcome::Succeeded);
        if self.hosts[h].up {
            self.ended(h, task, outcome, failed);
        }
    }

    fn stop_program(&mut self, h: usize, task: TaskId) {
        let boot = self.hosts[h].boot;
        if let Some(p) = self.hosts[h].programs.get_mut(&task).filter(|p| !p.exit) {
            p.outcome = ReportedOutcome::Cancelled;
            let grace = self.dice.between(10, 3_000);
            self.at(grace, Event::ProgramEnds(h, task, boot));
        }
    }

    fn fenced(&mut self, h: usize, task: TaskId, _: WorkId) {
        let kept = self.hosts[h].journal.get(&task).map(|e| e.kept.clone());
        match kept {
            None => {
                let entry = Entry { offer: None, kept: Kept::Accepted, stop: true };
                self.hosts[h].journal.insert(task, entry);
                self.ended(h, task, ReportedOutcome::Fenced, 0);
            }
            Some(Kept::Accepted) => {
                self.hosts[h].nonces.remove(&task);
                self.ended(h, task, ReportedOutcome::Fenced, 0);
            }
            Some(Kept::Intent) => {
                if let Some(e) = self.hosts[h].journal.get_mut(&task) {
                    e.stop = true;
                }
                self.stop_program(h, task);
            }
            Some(Kept::Ended { .. }) => self.result(h, task),
        }
    }
}
