//! Schedulers: a look reads a deployment and finds one move, the transaction some time later makes it. In between another
//! may have moved it, the process may have died, or slept for a minute.

use super::{
    Event, Sim,
    db::{Commit, Dep, DepRow, Phase, WorkRow},
    people::requested,
    plans,
    plants::Plant,
};
use std::collections::VecDeque;
use windlass_domain::{
    deployment::{By, Deployment, Effect, Input, PlanFacts, Refusal, Rollback, State},
    ids::{DeploymentId, WorkId},
    task::TaskState,
    work::{Desired, WorkResult},
};

#[derive(Debug, Default)]
pub(super) struct Scheduler {
    /// Grows with each death.
    pub(super) life: u64,
    pub(super) frozen_until: i64,
    pending: Option<Pending>,
    wants: VecDeque<Dep>,
}

/// What a look has found.
#[derive(Debug)]
struct Pending {
    dep: Dep,
    /// As it was read.
    d: Deployment,
    version: u64,
    moves: Move,
}

#[derive(Debug)]
enum Move {
    Command(usize),
    Result(WorkId, u64, WorkResult),
    Tick,
}

impl Scheduler {
    pub(super) fn dies(&mut self) {
        self.life += 1;
        self.pending = None;
        self.wants.clear();
        self.frozen_until = 0;
    }
}

impl Sim {
    pub(super) fn scheduler_polls(&mut self, s: usize, life: u64) {
        if self.schedulers[s].life != life {
            return;
        }
        if self.is(Plant::NoPolling) {
            return;
        }
        let due: Vec<Dep> = (0..self.db.deployments.len()).filter(|i| self.move_of(*i).is_some()).collect();
        for dep in due {
            self.look(s, dep);
        }
        self.at(5_000, Event::SchedulerPolls(s, life));
    }

    /// The oldest command, else a result, else time. Only an override waits for what hosts have said themselves.
    fn move_of(&self, dep: Dep) -> Option<Move> {
        let command = self.db.commands.iter().position(|c| c.dep == dep && c.queued);
        match command {
            Some(c) if !self.waits_for_hosts(c) => return Some(Move::Command(c)),
            _ => {}
        }
        if let Some(found) = self.fresh_result(dep).or(command.map(Move::Command)) {
            return Some(found);
        }
        let row = &self.db.deployments[dep];
        let due = row.d.wake_at().is_some_and(|t| t <= self.clock());
        (due || self.may_lock(dep)).then_some(Move::Tick)
    }

    fn fresh_result(&self, dep: Dep) -> Option<Move> {
        let fresh = |(id, w): (&WorkId, &WorkRow)| {
            let result = w.result.clone().filter(|_| w.dep == dep && w.result_version > w.applied)?;
            Some(Move::Result(*id, w.result_version, result))
        };
        self.db.works.iter().find_map(fresh)
    }

    fn waits_for_hosts(&self, command: usize) -> bool {
        let c = &self.db.commands[command];
        let over = matches!(c.input, Input::Override { .. }) && !self.is(Plant::OverrideInTheDark);
        over && self.fresh_result(c.dep).is_some()
    }

    fn may_lock(&self, dep: Dep) -> bool {
        let row = &self.db.deployments[dep];
        let free = self.db.locks[&row.env].holder.is_none() || self.is(Plant::NoLock);
        row.d.state == State::Queued && free && self.db.next_in_queue(row.env) == Some(dep)
    }

    pub(super) fn look(&mut self, s: usize, dep: Dep) {
        if self.schedulers[s].pending.is_some() {
            if !self.schedulers[s].wants.contains(&dep) {
                self.schedulers[s].wants.push_back(dep);
            }
            return;
        }
        let Some(moves) = self.move_of(dep) else {
            if let Some(next) = self.schedulers[s].wants.pop_front() {
                self.look(s, next);
            }
            return;
        };
        let row = &self.db.deployments[dep];
        let (d, version) = (row.d.clone(), row.version);
        let life = self.schedulers[s].life;
        self.schedulers[s].pending = Some(Pending { dep, d, version, moves });
        let wait = (self.schedulers[s].frozen_until - self.now).max(0);
        let after = wait + self.dice.between(1, if self.faulty() { 400 } else { 20 });
        self.at(after, Event::Decide(s, life));
    }

    pub(super) fn decide(&mut self, s: usize, life: u64) {
        if self.schedulers[s].life != life {
            return;
        }
        if self.schedulers[s].frozen_until > self.now {
            // It froze after it had read.
            self.at(self.schedulers[s].frozen_until - self.now, Event::Decide(s, life));
            return;
        }
        let Some(p) = self.schedulers[s].pending.take() else { return };
        let dep = p.dep;
        let how = self.commit();
        let version = self.db.deployments[dep].version;
        let time_alone = matches!(p.moves, Move::Tick);
        if how != Commit::Failed {
            self.transact(p);
        }
        let next = self.schedulers[s].wants.pop_front();
        // Where nothing was to be written, there is nothing to look at.
        if !time_alone || self.db.deployments[dep].version != version {
            self.at(1, Event::Look(s, dep));
        }
        if let Some(next) = next {
            self.at(2, Event::Look(s, next));
        }
    }

    /// One transaction. Where the version is not the one that was read, nothing of it happens.
    fn transact(&mut self, p: Pending) {
        let dep = p.dep;
        if self.db.deployments[dep].version != p.version && !self.is(Plant::NoVersionCheck) {
            self.coverage.hit("fault", "version conflict");
            return;
        }
        match p.moves {
            Move::Command(c) => {
                if self.db.commands[c].outcome.is_some() && !self.is(Plant::NoVersionCheck) {
                    return;
                }
                if self.waits_for_hosts(c) {
                    self.coverage.hit("fault", "a host speaks while it is overridden");
                    return;
                }
                let input = self.db.commands[c].input.clone();
                let verb = windlass_domain::deployment::table::Verb::of(&input).map_or("", |v| v.as_str());
                let done = self.apply(dep, &p.d, input);
                let code = match &done {
                    Ok(()) => {
                        self.coverage.hit("verb taken", verb);
                        "ok"
                    }
                    Err(r) => {
                        self.coverage.hit("verb refused", verb);
                        self.coverage.hit("refusal", r.code());
                        r.code()
                    }
                };
                self.note(format!("deployment {dep}: {verb} -> {code}"));
                if self.db.commands[c].outcome.replace(code.into()).is_some() {
                    self.oracle.broken(format!("P1: command {c} is carried out twice"));
                }
                self.db.commands[c].queued = false;
                self.db.append(dep);
            }
            Move::Result(work, version, result) => {
                let Some(w) = self.db.works.get_mut(&work) else { return };
                if w.applied >= version {
                    return;
                }
                w.applied = version;
                let told = format!("{result:?}");
                if let Err(r) = self.apply(dep, &p.d, Input::WorkSettled { work, result }) {
                    self.coverage.hit("refusal of a result", r.code());
                }
                self.note(format!("deployment {dep}: result {version} of {}: {told}", short(work)));
            }
            Move::Tick => {
                let _ = self.apply(dep, &p.d, Input::Tick);
            }
        }
        self.start_if_free(dep);
    }

    /// Applies and saves, with all that follows in the same transaction.
    pub(super) fn apply(&mut self, dep: Dep, before: &Deployment, input: Input) -> Result<(), Refusal> {
        let mut made = self.db.works_made;
        let mut mint = || {
            made += 1;
            WorkId(uuid::Uuid::from_u128(made))
        };
        let now = self.clock();
        let (mut next, mut effects) = before.apply(input.clone(), now, &mut mint)?;
        self.db.works_made = made;
        if self.is(Plant::LockFreedWithUnknown) && next.state.is_terminal() && next.lock.take().is_some() {
            effects.push(Effect::FreeLock);
        }
        if next == *before && effects.is_empty() {
            return Ok(());
        }
        let (state, was) = (next.state, before.state);
        for e in effects.clone() {
            self.carry_out(dep, &mut next, e);
        }
        let row = &mut self.db.deployments[dep];
        row.d = next;
        row.version += 1;
        self.coverage.hit("state", state.as_str());
        if state != was {
            self.note(format!("deployment {dep}: {} -> {}", was.as_str(), state.as_str()));
        }
        self.check_change(dep, before, &input, &effects);
        Ok(())
    }

    fn carry_out(&mut self, dep: Dep, d: &mut Deployment, e: Effect) {
        let now = self.clock();
        let env = self.db.deployments.get(dep).map_or(0, |r| r.env);
        match e {
            Effect::StartWork { id, spec } => {
                let row = WorkRow {
                    dep,
                    desired: Desired::Run,
                    fence: d.lock.unwrap_or(0),
                    spec,
                    applied: 0,
                    owner: None,
                    epoch: 0,
                    expires: None,
                    phase: Phase::Ready,
                    result: None,
                    result_version: 0,
                };
                if self.db.works.insert(id, row).is_some() {
                    self.oracle.broken(format!("the work {id} is made twice"));
                }
            }
            Effect::AbortWorks => {
                self.db.works.values_mut().filter(|w| w.dep == dep).for_each(|w| w.desired = Desired::Abort);
            }
            Effect::AbortWork(id) => {
                if let Some(w) = self.db.works.get_mut(&id) {
                    w.desired = Desired::Abort;
                }
            }
            Effect::HoldWorks(hold) => {
                let (from, to) = if hold { (Desired::Run, Desired::Hold) } else { (Desired::Hold, Desired::Run) };
                let of = |w: &&mut WorkRow| w.dep == dep && w.desired == from;
                self.db.works.values_mut().filter(of).for_each(|w| w.desired = to);
            }
            Effect::FreeLock => {
                if let Some(l) = self.db.locks.get_mut(&env).filter(|l| l.holder == Some(dep)) {
                    l.holder = None;
                }
            }
            Effect::StopTasks { hosts, by, reason } => {
                let open = |s| matches!(s, TaskState::Pending | TaskState::Offered | TaskState::Granted);
                for (work, hosts) in d.running_on(&hosts) {
                    for host in hosts {
                        let by = By { who: by.clone(), reason: reason.clone(), at: now };
                        self.db.host_stops.entry((work, host.to_owned())).or_insert(by);
                    }
                }
                for (id, t) in &self.db.tasks {
                    if t.dep == dep && hosts.contains(&t.task.host) && open(t.task.state) {
                        let by = By { who: by.clone(), reason: reason.clone(), at: now };
                        self.db.stops.entry(*id).or_insert(by);
                    }
                }
            }
            Effect::OverrideTasks { hosts, by, reason } => {
                for (id, t) in &self.db.tasks {
                    if t.dep == dep && hosts.contains(&t.task.host) && t.task.state == TaskState::Unknown {
                        let by = By { who: by.clone(), reason: reason.clone(), at: now };
                        self.db.overrides.entry(*id).or_insert(by);
                    }
                }
            }
            Effect::RequestRollback { id, by, .. } => {
                let hosts = d.release_hosts(None);
                let id = id.unwrap_or_else(|| DeploymentId(uuid::Uuid::from_u128(u128::from(self.dice.next()))));
                if hosts.is_empty() || self.db.index_of(id).is_some() {
                    return;
                }
                d.rolled_back_by = Some(id);
                let (of, mode) = (d.id, windlass_domain::release::RollbackMode::Normal);
                let plan = plans::back_to(&hosts);
                let (new, effects) = requested(id, env, plan, Some(Rollback { of, mode }), &by, now, 3_600, None);
                self.create(new, env, effects);
            }
            Effect::TellRolledBack { of } => {
                if let Some(at) = self.db.index_of(of) {
                    let row = self.db.deployments[at].d.clone();
                    let _ = self.apply(at, &row, Input::RolledBack);
                }
            }
            Effect::Event { .. } => self.db.append(dep),
            Effect::RecordGood | Effect::Hold { .. } => {}
        }
    }

    pub(super) fn create(&mut self, d: Deployment, env: usize, effects: Vec<Effect>) {
        let dep = self.db.deployments.len();
        self.coverage.hit("state", d.state.as_str());
        self.note(format!("deployment {dep} in environment {env}: {}", d.state.as_str()));
        self.db.deployments.push(DepRow { d, version: 1, env });
        for _ in effects {
            self.db.append(dep);
        }
    }

    /// In the same transaction: takes the lock when it is free and this one is next.
    pub(super) fn start_if_free(&mut self, dep: Dep) {
        for _ in 0..3 {
            if !self.may_lock(dep) {
                return;
            }
            let (env, d) = (self.db.deployments[dep].env, self.db.deployments[dep].d.clone());
            let plan_moved = d.run == 1 && d.rollback.is_none() && self.faulty() && self.dice.one_in(9);
            let input = if plan_moved {
                self.coverage.hit("fault", "plan changes before the start");
                let facts = PlanFacts {
                    digest: format!("{}x", d.plan_digest),
                    rules: d.rules.clone(),
                    on_failure: d.on_failure,
                    steps: d.steps.clone(),
                    context: d.context.clone(),
                    patience: d.patience,
                    automatic: d.automatic,
                };
                Input::PlanChanged(Box::new(facts))
            } else {
                let Some(lock) = self.db.locks.get_mut(&env) else { return };
                lock.holder = Some(dep);
                lock.fence += 1;
                Input::LockTaken { fence: lock.fence }
            };
            if self.apply(dep, &d, input).is_err() {
                return;
            }
        }
    }
}

pub(super) fn short(work: WorkId) -> u128 {
    work.0.as_u128()
}
