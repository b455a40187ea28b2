//! A simulation of the whole from one seed: two schedulers, two executors, agents on ten hosts, a database, a broker, people,
//! and faults in all of them. One thread, one clock; every choice comes from the seed, so the same seed is the same run.
//!
//! Deployments and tasks are the real ones (`Deployment::apply`, `Task::apply`). What stands around them in the services is said
//! here anew, as small as it can be, in the order of reads, transactions and messages that the services have. An oracle that
//! knows what each host truly did looks at every commit and every start.

mod agent;
pub(crate) mod coverage;
mod db;
mod dice;
mod executor;
mod oracle;
mod people;
mod plans;
pub(crate) mod plants;
mod scheduler;
mod turn;

use agent::{Down, Host, Up};
use coverage::Coverage;
use db::{Commit, Db, Dep};
use dice::{Dice, mix};
use executor::Executor;
use oracle::Oracle;
use plants::Plant;
use scheduler::Scheduler;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};
use windlass_domain::{
    Timestamp,
    ids::{TaskId, WorkId},
};

pub(crate) const ENVIRONMENTS: usize = 2;
/// Hosts of an environment: `a` to `e`.
pub(crate) const HOSTS: usize = 5;
/// Milliseconds of a run with faults; what is begun then has to end by itself, and with a patient person, after it.
const FAULTY: i64 = 240_000;
/// When all has to be over, in milliseconds.
const PATIENCE: i64 = 40_000_000;
/// Faults are for the first part; a run that does not end is broken.
const MOST_EVENTS: u64 = 240_000;

/// What happens at a time.
#[derive(Debug, Clone)]
enum Event {
    /// A doorbell: a scheduler looks at a deployment.
    Look(usize, Dep),
    /// The transaction of a scheduler's look; the process that began it may be gone.
    Decide(usize, u64),
    SchedulerPolls(usize, u64),
    ExecutorPolls(usize, u64),
    Turn(usize, u64, WorkId),
    ToAgent(usize, Down),
    ToExecutor(usize, usize, Up),
    Beat(usize, u64),
    /// The program of a task ends on a host, unless its machine went down before.
    ProgramEnds(usize, TaskId, u64),
    /// The journal is written late: only where a plant says so.
    Intent(usize, TaskId, u64),
    Consume(usize),
    Effect(usize, usize),
    Person,
    Repeat(Box<people::Request>),
    Fault,
    SchedulerBack(usize),
    ExecutorBack(usize),
    AgentBack(usize),
}

#[derive(Debug)]
struct At(i64, u64, Event);

impl PartialEq for At {
    fn eq(&self, other: &At) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for At {}
impl PartialOrd for At {
    fn partial_cmp(&self, other: &At) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for At {
    fn cmp(&self, other: &At) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub(crate) struct Sim {
    dice: Dice,
    plant: Option<Plant>,
    /// Milliseconds since it began, the only true time.
    now: i64,
    /// The database's clock is that much off.
    skew: i64,
    agenda: BinaryHeap<Reverse<At>>,
    planned: u64,
    db: Db,
    schedulers: [Scheduler; 2],
    executors: [Executor; 2],
    hosts: Vec<Host>,
    oracle: Oracle,
    people: people::People,
    coverage: Coverage,
    hash: u64,
    tell: bool,
    tail: VecDeque<String>,
}

/// How a run came out.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) seed: u64,
    /// What was broken.
    pub(crate) wrong: Option<String>,
    pub(crate) events: u64,
    /// Simulated milliseconds.
    pub(crate) time: i64,
    pub(crate) hash: u64,
    /// The last lines of the trace, where they were asked for.
    pub(crate) tail: Vec<String>,
    pub(crate) coverage: Coverage,
}

/// One run.
pub(crate) fn run(seed: u64, plant: Option<Plant>, tell: bool) -> Run {
    let mut sim = Sim::new(seed, plant, tell);
    let mut events = 0;
    while sim.oracle.wrong.is_none() {
        let Some(Reverse(At(at, _, event))) = sim.agenda.pop() else { break };
        sim.now = at;
        events += 1;
        sim.happens(event);
        if !sim.faulty() && sim.is_over() {
            sim.check_end();
            break;
        }
        if at > PATIENCE || events > MOST_EVENTS {
            sim.stands_still();
        }
    }
    Run {
        seed,
        wrong: sim.oracle.wrong,
        events,
        time: sim.now,
        hash: sim.hash,
        tail: sim.tail.into(),
        coverage: sim.coverage,
    }
}

impl Sim {
    fn new(seed: u64, plant: Option<Plant>, tell: bool) -> Sim {
        let mut dice = Dice::new(seed);
        let hosts = (0..ENVIRONMENTS * HOSTS).map(|_| Host::new(dice.next())).collect();
        let mut sim = Sim {
            dice,
            plant,
            now: 0,
            skew: 0,
            agenda: BinaryHeap::new(),
            planned: 0,
            db: Db::default(),
            schedulers: Default::default(),
            executors: Default::default(),
            hosts,
            oracle: Oracle::default(),
            people: people::People::default(),
            coverage: Coverage::default(),
            hash: seed,
            tell,
            tail: VecDeque::new(),
        };
        for e in 0..ENVIRONMENTS {
            sim.db.locks.insert(e, db::LockRow::default());
        }
        for n in 0..2 {
            sim.at(100, Event::SchedulerPolls(n, 0));
            sim.at(200, Event::ExecutorPolls(n, 0));
            sim.at(300, Event::Consume(n));
        }
        for h in 0..sim.hosts.len() {
            sim.db.sessions.insert(h, sim.hosts[h].instance);
            sim.at(50 + h as i64, Event::Beat(h, 0));
        }
        sim.at(1, Event::Person);
        sim.at(500, Event::Fault);
        sim
    }

    /// The database's clock.
    fn clock(&self) -> Timestamp {
        let base = chrono::DateTime::UNIX_EPOCH + chrono::Duration::seconds(1_800_000_000);
        base + chrono::Duration::milliseconds(self.now + self.skew)
    }

    fn faulty(&self) -> bool {
        self.now < FAULTY
    }

    fn is(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    fn at(&mut self, after: i64, event: Event) {
        self.planned += 1;
        self.agenda.push(Reverse(At(self.now + after.max(0), self.planned, event)));
    }

    /// A message. While there are faults it may be lost, be late, or come twice; so messages overtake each other.
    fn send(&mut self, event: Event) {
        if self.faulty() && self.dice.one_in(8) {
            self.coverage.hit("fault", "message lost");
            return;
        }
        // Frames to hosts most of all: an old one that comes back is what a new journal has to stand.
        let often = if matches!(event, Event::ToAgent(..)) { 4 } else { 12 };
        if self.faulty() && self.dice.one_in(often) {
            self.coverage.hit("fault", "message twice");
            let late = 1 + self.dice.roll(60_000) as i64;
            self.at(late, event.clone());
        }
        let after = if self.faulty() { self.dice.between(1, 3_000) } else { self.dice.between(1, 50) };
        self.at(after, event);
    }

    fn commit(&mut self) -> Commit {
        if !self.faulty() || !self.dice.one_in(25) {
            return Commit::Done;
        }
        let how = if self.dice.one_in(2) { Commit::Failed } else { Commit::Unheard };
        self.coverage.hit("fault", if how == Commit::Failed { "commit failed" } else { "commit not heard of" });
        how
    }

    /// A line of the trace. All of them make the hash.
    fn note(&mut self, line: String) {
        for b in line.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..b.len()].copy_from_slice(b);
            self.hash = mix(self.hash.rotate_left(7) ^ u64::from_le_bytes(word));
        }
        self.hash = mix(self.hash ^ self.now as u64);
        if self.tell {
            if self.tail.len() > 120 {
                self.tail.pop_front();
            }
            self.tail.push_back(format!("{:>9.3} {line}", self.now as f64 / 1000.0));
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Look(s, dep) => self.look(s, dep),
            Event::Decide(s, life) => self.decide(s, life),
            Event::SchedulerPolls(s, life) => self.scheduler_polls(s, life),
            Event::ExecutorPolls(e, life) => self.executor_polls(e, life),
            Event::Turn(e, life, work) => self.turn(e, life, work),
            Event::ToAgent(h, down) => self.agent_hears(h, down),
            Event::ToExecutor(e, h, up) => self.executor_hears(e, h, up),
            Event::Beat(h, life) => self.beat(h, life),
            Event::ProgramEnds(h, task, boot) => self.program_ends(h, task, boot),
            Event::Intent(h, task, life) => self.late_intent(h, task, life),
            Event::Consume(k) => self.consume(k),
            Event::Effect(k, event) => self.effect(k, event),
            Event::Person => self.person(),
            Event::Repeat(request) => self.request(*request),
            Event::Fault => self.fault(),
            Event::SchedulerBack(s) => {
                let life = self.schedulers[s].life;
                self.at(0, Event::SchedulerPolls(s, life));
            }
            Event::ExecutorBack(e) => {
                self.executors[e].up = true;
                let life = self.executors[e].life;
                self.at(0, Event::ExecutorPolls(e, life));
            }
            Event::AgentBack(h) => self.agent_back(h),
        }
    }

    /// Something breaks.
    fn fault(&mut self) {
        if !self.faulty() {
            self.skew = self.skew.max(0);
            return;
        }
        let next = self.dice.between(500, 20_000);
        self.at(next, Event::Fault);
        let what = self.dice.roll(9);
        // Mostly where something is under way: elsewhere nothing can break.
        let busy: Vec<usize> = (0..self.hosts.len()).filter(|h| self.hosts[*h].is_busy()).collect();
        let any = self.dice.roll(self.hosts.len());
        let host = if self.dice.one_in(4) { any } else { self.dice.pick(&busy).copied().unwrap_or(any) };
        let who = self.dice.roll(2);
        let away = self.dice.between(200, 40_000);
        // Long enough for a lease to run out.
        let sleeps = if self.dice.one_in(2) { away } else { 15_000 + away };
        let name = match what {
            0 => {
                self.schedulers[who].dies();
                self.at(away, Event::SchedulerBack(who));
                "scheduler dies"
            }
            1 => {
                self.executors[who].dies();
                self.at(away, Event::ExecutorBack(who));
                "executor dies"
            }
            2 => {
                // Frozen beyond its lease; then it goes on as if nothing had been.
                self.executors[who].frozen_until = self.now + sleeps;
                "executor freezes"
            }
            3 => {
                self.schedulers[who].frozen_until = self.now + away;
                "scheduler freezes"
            }
            4 => {
                self.agent_dies(host, false, false);
                self.at(away, Event::AgentBack(host));
                "agent dies"
            }
            5 => {
                self.agent_dies(host, true, false);
                self.at(away, Event::AgentBack(host));
                "machine restarts"
            }
            6 => {
                self.agent_dies(host, true, true);
                self.at(away, Event::AgentBack(host));
                "machine is installed anew"
            }
            7 => {
                let long = if self.dice.one_in(4) { 0 } else { 95_000 };
                self.hosts[host].cut_until = self.now + long + self.dice.between(1_000, 90_000);
                self.hosts[host].one_way = self.dice.one_in(2);
                if self.hosts[host].one_way { "a host is not heard" } else { "network of a host is cut" }
            }
            _ => {
                self.skew = self.dice.between(0, 200_000) - 60_000;
                "clock jumps"
            }
        };
        self.coverage.hit("fault", name);
        self.note(format!("fault: {name} ({who}, host {host})"));
    }

    /// The consumer of events: looks for a row, and does its work some time later.
    fn consume(&mut self, k: usize) {
        let rows: Vec<usize> = self.db.queue.iter().copied().take(8).collect();
        if let Some(event) = self.dice.pick(&rows).copied() {
            if self.is(Plant::RowBeforeEffect) {
                self.db.queue.remove(&event);
            }
            // Its process may die in between.
            if !(self.faulty() && self.dice.one_in(30)) {
                let after = self.dice.between(1, 2_000);
                self.at(after, Event::Effect(k, event));
            }
        }
        let next = if rows.len() > 4 { 40 } else { 1_000 };
        self.at(next, Event::Consume(k));
    }

    fn effect(&mut self, _: usize, event: usize) {
        let there = self.db.queue.contains(&event) || self.is(Plant::RowBeforeEffect);
        let how = self.commit();
        if there && how != Commit::Failed {
            self.db.queue.remove(&event);
            *self.db.effects.entry(event).or_default() += 1;
        }
    }

    fn is_over(&self) -> bool {
        use windlass_domain::task::TaskState::{Granted, Offered};
        let over = |r: &db::DepRow| r.d.state.is_terminal() && r.d.lock.is_none();
        self.db.deployments.iter().all(over)
            && self.db.commands.iter().all(|c| !c.queued)
            && self.people.waits == 0
            && self.db.queue.is_empty()
            && self.db.tasks.values().all(|t| !matches!(t.task.state, Offered | Granted))
            && self.db.works.values().all(|w| w.result_version == w.applied && w.phase == db::Phase::Settled)
    }

    /// All faults are mended, a patient person is there, and yet it does not end.
    fn stands_still(&mut self) {
        let open: Vec<String> = self
            .db
            .deployments
            .iter()
            .enumerate()
            .filter(|(_, r)| !r.d.state.is_terminal() || r.d.lock.is_some())
            .map(|(i, r)| {
                let on: Vec<String> = r.d.waiting_on().iter().map(ToString::to_string).collect();
                format!("deployment {i} is {:?} and waits for {}", r.d.state, on.join("; "))
            })
            .collect();
        let works = self.db.works.values().filter(|w| w.phase != db::Phase::Settled).count();
        let (commands, events) = (self.db.commands.iter().filter(|c| c.queued).count(), self.db.queue.len());
        let rest = format!("{works} works, {commands} commands and {events} events are open");
        self.oracle.broken(format!("P3: it does not end: {}; {rest}", open.join(" | ")));
    }
}
