//! The oracle: what each host truly ran, and what must hold of every commit, every start, and the end.

use super::{ENVIRONMENTS, HOSTS, Sim, agent::Offer, db::Dep};
use std::collections::{BTreeMap, BTreeSet};
use windlass_domain::{
    deployment::{
        Bound, Deployment, Effect, HostRun, HostState, Input, State, StepRun, StepRunKind, StepState, WaitingOn,
    },
    flow::Join,
    ids::TaskId,
    task::{Task, TaskState},
    work::{Desired, WorkSpec},
};

#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub(super) wrong: Option<String>,
    /// Tasks that began, with where, and whether they ended well.
    began: BTreeMap<TaskId, (usize, Option<bool>)>,
    attempts: BTreeSet<(Dep, String, String, u32)>,
}

impl Oracle {
    /// The first thing that is broken is told.
    pub(super) fn broken(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    /// A program has ended, or its machine went down under it.
    pub(super) fn ends(&mut self, host: usize, task: TaskId, well: bool) {
        if let Some(t) = self.began.get_mut(&task).filter(|t| t.0 == host) {
            t.1 = Some(well);
        }
    }

    fn runs(&self, task: &TaskId) -> bool {
        self.began.get(task).is_some_and(|t| t.1.is_none())
    }
}

/// The number of a host.
pub(super) fn host_of(env: usize, name: &str) -> usize {
    let n = name.bytes().next().map_or(0, |b| usize::from(b.saturating_sub(b'a')));
    (env % ENVIRONMENTS) * HOSTS + n.min(HOSTS - 1)
}

impl Sim {
    /// A program begins on a host.
    pub(super) fn check_start(&mut self, h: usize, task: TaskId, offer: &Offer) {
        let what = format!("attempt {} of {} of deployment {} on host {h}", offer.attempt, offer.step, offer.dep);
        if self.oracle.began.contains_key(&task) {
            return self.oracle.broken(format!("P2: {what} starts twice"));
        }
        // Two rollouts of one graph may be under way on a host at once; two attempts, or two releases, may not.
        let meets = |id: &TaskId| self.db.tasks.get(id).is_none_or(|r| r.dep != offer.dep || r.step == offer.step);
        let beside = self.oracle.began.iter().find(|(id, t)| t.0 == h && t.1.is_none() && meets(id)).map(|b| *b.0);
        if let Some(id) = beside {
            return self.oracle.broken(format!("P4: {what} starts beside {id}"));
        }
        let Some(row) = self.db.tasks.get(&task) else {
            return self.oracle.broken(format!("P2: {what} starts, and the database does not know it"));
        };
        if !matches!(row.task.state, TaskState::Granted | TaskState::Unknown | TaskState::Overridden) {
            let state = row.task.state.as_str();
            let d = self.db.deployments[offer.dep].d.state.as_str();
            return self.oracle.broken(format!("P6: {what} starts, and is {state}; the deployment is {d}"));
        }
        let again = self.db.works.get(&row.work).is_some_and(|w| match &w.spec {
            WorkSpec::Wave(v) => v.again,
            _ => false,
        });
        let earlier = self.db.tasks.values().find(|r| {
            let same = r.dep == offer.dep && r.step == offer.step && r.task.host == row.task.host;
            let good = again && r.task.state == TaskState::Succeeded;
            same && r.task.attempt < offer.attempt && !r.task.allows_next_attempt() && !good
        });
        if let Some(e) = earlier {
            let state = e.task.state.as_str();
            return self.oracle.broken(format!("P2: {what} starts while attempt {} is {state}", e.task.attempt));
        }
        self.oracle.began.insert(task, (h, None));
    }

    /// A row of a task was written.
    pub(super) fn check_task(&mut self, id: TaskId, before: &Task) {
        let Some(row) = self.db.tasks.get(&id) else { return };
        let (was, is) = (before.state, row.task.state);
        if was == is {
            return;
        }
        let began = self.oracle.began.get(&id).copied();
        let what =
            format!("attempt {} of {} of deployment {} on {}", row.task.attempt, row.step, row.dep, row.task.host);
        let wrong = match is {
            TaskState::NotStarted if began.is_some() => Some("P5: not started, and yet it began"),
            TaskState::Succeeded if began.is_none_or(|b| b.1 != Some(true)) => {
                Some("P5: succeeded, and yet it has not")
            }
            TaskState::Succeeded | TaskState::Failed | TaskState::Cancelled if self.oracle.runs(&id) => {
                Some("P5: over, and yet it runs")
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            return self.oracle.broken(format!("{wrong}: {what}"));
        }
        if was == TaskState::Unknown && is != TaskState::Overridden && self.db.overrides.contains_key(&id) {
            return self.oracle.broken(format!("P5: {what} is {}, and a person had overridden it", is.as_str()));
        }
        if was == TaskState::Offered && is == TaskState::Granted {
            let d = &self.db.deployments[row.dep].d;
            let work = self.db.works.get(&row.work);
            let (state, paused) = (d.state, d.pause.is_some());
            let stopped =
                self.db.stops.contains_key(&id) || self.db.host_stops.contains_key(&(row.work, row.task.host.clone()));
            let wanted = work.map(|w| w.desired);
            let max = work.map_or(0, |w| if let WorkSpec::Wave(v) = &w.spec { v.max_failures } else { 0 });
            let failed = |t: &Task| matches!(t.state, TaskState::Failed | TaskState::Unknown | TaskState::Overridden);
            let failures = self.db.tasks_of(row.work).filter(|(_, t)| failed(&t.task)).count() as u32;
            if !state.is_active() || state == State::Aborting || wanted == Some(Desired::Abort) {
                self.oracle.broken(format!("P6: {what} is granted, and the deployment is {}", state.as_str()));
            } else if paused || wanted == Some(Desired::Hold) {
                self.oracle.broken(format!("{what} is granted under a pause"));
            } else if stopped {
                self.oracle.broken(format!("{what} is granted though a person stopped it"));
            } else if failures > max {
                self.oracle.broken(format!("{what} is granted though {failures} have failed and {max} may"));
            }
        }
    }

    pub(super) fn check_central(&mut self, dep: Dep) {
        let d = &self.db.deployments[dep].d;
        if d.pause.is_some() || !d.state.is_active() || d.state == State::Aborting {
            let state = d.state.as_str();
            self.oracle.broken(format!("P6: a central step of deployment {dep} begins, and it is {state}"));
        }
    }

    /// A deployment was written.
    pub(super) fn check_change(&mut self, dep: Dep, before: &Deployment, input: &Input, effects: &[Effect]) {
        if let Some(wrong) = self.wrong_change(dep, before, input, effects) {
            self.oracle.broken(format!("{wrong} (deployment {dep}, by {})", label(input)));
        }
    }

    fn wrong_change(&mut self, dep: Dep, before: &Deployment, input: &Input, effects: &[Effect]) -> Option<String> {
        let row = self.db.deployments[dep].clone();
        let (d, env) = (&row.d, row.env);
        let active = self.db.deployments.iter().filter(|r| r.env == env && r.d.state.is_active()).count();
        if active > 1 {
            return Some(format!("P4: {active} deployments of environment {env} are active"));
        }
        let holder = self.db.locks[&env].holder == Some(dep);
        if holder != d.lock.is_some() {
            return Some(format!("P4: the lock's row and the deployment, {}, do not agree", d.state.as_str()));
        }
        for e in effects {
            let Effect::StartWork { spec, .. } = e else { continue };
            let over = |s: State| s.is_terminal() || s == State::Aborting;
            if d.pause.is_some() || over(before.state) || over(d.state) {
                return Some(format!("P6: a work begins, and it is {}", d.state.as_str()));
            }
            let (step, parts): (&String, Vec<(String, u32)>) = match spec {
                WorkSpec::Wave(v) => (&v.step, v.hosts.iter().map(|h| (h.host.clone(), h.attempt)).collect()),
                WorkSpec::Central(c) => (&c.step, vec![(String::new(), c.attempt)]),
                WorkSpec::Probe(p) => (&p.step, vec![(format!("probes {}", p.wave), p.attempt)]),
            };
            if let Some(wrong) = out_of_turn(before, d, step) {
                return Some(wrong);
            }
            for (host, attempt) in parts {
                if !self.oracle.attempts.insert((dep, step.clone(), host.clone(), attempt)) {
                    return Some(format!("P2: attempt {attempt} of {step} {host} is used twice"));
                }
            }
        }
        self.wrong_hosts(dep, before, d, input).or_else(|| self.wrong_waits(d))
    }

    fn wrong_hosts(&self, dep: Dep, before: &Deployment, d: &Deployment, input: &Input) -> Option<String> {
        let settled = matches!(input, Input::WorkSettled { .. });
        let over = matches!(input, Input::Override { .. });
        for (s, was) in d.steps.iter().zip(&before.steps) {
            let (StepRunKind::Rollout(r), StepRunKind::Rollout(old)) = (&s.kind, &was.kind) else { continue };
            let hosts = r.waves.iter().flat_map(|w| &w.hosts).zip(old.waves.iter().flat_map(|w| &w.hosts));
            let mut changed =
                hosts.clone().filter(|(h, b)| over && b.state == HostState::Unknown && h.attempt == b.attempt);
            let spoke = |h: &HostRun| {
                let mut of = self.db.tasks.values().filter(|t| t.dep == dep && t.step == s.id && t.task.host == h.host);
                of.any(|t| t.task.attempt == h.attempt && t.task.state.is_final())
            };
            if let Some((h, _)) = changed.find(|(h, _)| spoke(h)) {
                return Some(format!("P5: {} is overridden at {}, and had said what became of it", h.host, s.id));
            }
            for (h, b) in hosts.filter(|(h, b)| settled && h.state != b.state && h.state == HostState::Succeeded) {
                let of = |(_, t): &(&TaskId, &super::db::TaskRow)| {
                    t.dep == dep && t.step == s.id && t.task.host == h.host && t.task.attempt == b.attempt
                };
                let well = self.db.tasks.iter().find(of).and_then(|(id, _)| self.oracle.began.get(id)?.1);
                if well != Some(true) {
                    return Some(format!("P5: {} is said to have succeeded at {}, and has not", h.host, s.id));
                }
            }
        }
        if d.state.is_terminal() && d.lock.is_none() {
            let mut of = self.db.tasks.iter().filter(|(_, t)| t.dep == dep);
            let open = of.find(|(id, t)| self.oracle.runs(id) && t.task.state != TaskState::Overridden);
            // What a person answered for is overridden by an executor soon.
            let said = |id: &TaskId| self.db.overrides.contains_key(id);
            if let Some((_, t)) = open.filter(|(id, _)| !said(id)) {
                return Some(format!("P6: its lock is free, and {} still runs", t.task.host));
            }
            let unknown = |(id, t): &(&TaskId, &super::db::TaskRow)| {
                t.dep == dep && t.task.state == TaskState::Unknown && !said(id)
            };
            if let Some((_, t)) = self.db.tasks.iter().find(unknown) {
                return Some(format!("P5: its lock is free, and nobody knows what {} did", t.task.host));
            }
        }
        None
    }

    fn wrong_waits(&self, d: &Deployment) -> Option<String> {
        let waits = d.waiting_on();
        let should = d.state.is_active() || d.state == State::Queued || d.lock.is_some();
        if should && waits.is_empty() {
            return Some(format!("P3: it stands in {} and does not say why", d.state.as_str()));
        }
        for on in &waits {
            if let Bound::Person { owner, deadline } = on.bound() {
                let due = !matches!(on, WaitingOn::Unknown { .. } | WaitingOn::Turn { .. }) || d.state.is_terminal();
                if owner.is_empty() || due && deadline.is_none() && d.state != State::Aborting {
                    return Some(format!("P3: nobody answers for {on}"));
                }
            }
        }
        let asleep = d.state.is_active() && d.works_in_flight().is_empty() && d.wake_at().is_none();
        asleep.then(|| format!("P3: nothing runs and nothing wakes it: {waits:?}"))
    }

    /// Everything is over: the ledgers are compared.
    pub(super) fn check_end(&mut self) {
        for key in self.people.accepted.clone() {
            let rows = self.db.commands.iter().filter(|c| c.key == key).count();
            if rows != 1 {
                self.oracle.broken(format!("P1: request {key} was accepted and is there {rows} times"));
            }
        }
        if self.db.commands.iter().any(|c| c.outcome.is_none()) {
            self.oracle.broken("P1: an accepted command was never decided".into());
        }
        for e in 0..self.db.events.len() {
            match self.db.effects.get(&e).copied().unwrap_or(0) {
                1 => {}
                n => self.oracle.broken(format!("event {e} was done {n} times by its consumer")),
            }
        }
    }
}

fn label(input: &Input) -> &'static str {
    match input {
        Input::WorkSettled { .. } => "a result",
        Input::Tick => "time",
        Input::LockTaken { .. } => "its lock",
        Input::PlanChanged(_) => "a changed plan",
        other => windlass_domain::deployment::table::Verb::of(other).map_or("another deployment", |v| v.as_str()),
    }
}

/// A work of a step begins: what the step needs has to be over, and well. Hosts that go on have had their turn; what they
/// needed then may be under repair beside them.
fn out_of_turn(before: &Deployment, d: &Deployment, step: &str) -> Option<String> {
    let fresh = |h: &HostRun| matches!(h.state, HostState::Waiting | HostState::AutoStopped | HostState::Excluded);
    let went_on = |s: &StepRun| match &s.kind {
        StepRunKind::Rollout(r) => r.waves.iter().flat_map(|w| &w.hosts).any(|h| !fresh(h)),
        _ => false,
    };
    let (at, step) = d.steps.iter().enumerate().find(|(_, s)| s.id == step)?;
    if before.steps.get(at).is_some_and(went_on) {
        return None;
    }
    let mut needs = step.needs.iter().filter_map(|n| d.steps.iter().find(|s| s.id == *n));
    let open = |s: &StepRun| matches!(s.state, StepState::Waiting | StepState::Running);
    let well = |s: &StepRun| matches!(s.state, StepState::Succeeded | StepState::Skipped | StepState::NotTaken);
    let wrong = match step.join {
        Join::All => needs.find(|s| !well(s)),
        Join::Done => needs.find(|s| open(s)),
        Join::Any => needs.clone().all(|s| !well(s)).then(|| needs.next()).flatten(),
    };
    wrong.map(|n| format!("a work of {} begins, and {}, which it needs, is {:?}", step.id, n.id, n.state))
}
