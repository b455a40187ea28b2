//! What can happen next: the scheduler, time, executors, hosts that speak late, and people.

use super::{
    checks,
    mutants::Mutant,
    world::{Machine, Phase, Row, World, now},
};
use crate::search::Steps;
use windlass_domain::{
    deployment::{Effect, HostState, Input, State, StepState, WaveState},
    ids::WorkId,
    release::RollbackMode,
    work::{Desired, FailureClass, HostResult, Outcome, Verdict, WaveWork, WorkResult, WorkSpec},
};

const PEOPLE: [&str; 2] = ["olga", "bob"];
/// Attempts of a host that people still ask for more after.
const ATTEMPTS: u32 = 2;

fn why() -> String {
    "r".into()
}

fn host_result(host: &str, attempt: u32, outcome: Outcome, failed_step: Option<u32>, stopped: bool) -> HostResult {
    let class = match outcome {
        Outcome::Failed => Some(FailureClass::Exit),
        Outcome::Unknown => Some(FailureClass::Unknown),
        Outcome::NotStarted if !stopped => Some(FailureClass::Unreachable),
        Outcome::NotStarted | Outcome::Cancelled => Some(FailureClass::Stopped),
        Outcome::Succeeded | Outcome::AutoStopped => None,
    };
    let outputs = serde_json::Map::new();
    let failed_id = failed_step.map(|s| format!("s{s}"));
    let host = host.to_owned();
    HostResult { host, attempt, outcome, failed_step, failed_id, class, exit_code: None, reason: None, outputs }
}

/// Every way in which the hosts of a work may come out.
fn outcomes(v: &WaveWork, row: &Row) -> Vec<Vec<HostResult>> {
    let mut all: Vec<Vec<HostResult>> = vec![Vec::new()];
    for h in &v.hosts {
        let mut more = Vec::new();
        for before in all {
            let bad = |r: &&HostResult| {
                let by_hand = r.outcome == Outcome::NotStarted && r.class == Some(FailureClass::Stopped);
                matches!(r.outcome, Outcome::Failed | Outcome::Unknown | Outcome::NotStarted) && !by_hand
            };
            let over = before.iter().filter(bad).count() as u32 > v.max_failures;
            let stopped = row.stops.contains(&h.host);
            let abort = row.desired == Desired::Abort;
            let mut may = Vec::new();
            match row.phase {
                Phase::Started => {
                    may.extend([Outcome::Succeeded, Outcome::Failed, Outcome::Unknown]);
                    if stopped || abort {
                        may.extend([Outcome::Cancelled, Outcome::NotStarted]);
                    } else if over {
                        may.push(Outcome::AutoStopped);
                    }
                }
                // Nobody took the offer; or it was not to start.
                _ => may.push(Outcome::NotStarted),
            }
            for o in may {
                let failed_step = (o == Outcome::Failed).then_some(h.start_at.min(1));
                let mut next = before.clone();
                next.push(host_result(&h.host, h.attempt, o, failed_step, stopped || abort));
                more.push(next);
            }
        }
        all = more;
    }
    all
}

impl Machine {
    pub(super) fn moves(&self, w: &World, out: &mut Steps<World>) {
        if w.d.state == State::Queued && !w.locked {
            self.take(w, Input::LockTaken { fence: u64::from(w.d.run) }, out, true);
        }
        if let Some(at) = w.d.wake_at() {
            // Time passes, as far as it has to.
            let at = at.max(now());
            self.act(w, Input::Tick, at, out, true, |_| {});
        }
        self.executors(w, out);
        self.people(w, out);
    }

    fn take(&self, w: &World, input: Input, out: &mut Steps<World>, way_out: bool) {
        self.act(w, input, now(), out, way_out, |_| {});
    }

    /// A transaction of the scheduler. `truth` is what the world does with it.
    fn act(
        &self,
        w: &World,
        input: Input,
        at: windlass_domain::Timestamp,
        out: &mut Steps<World>,
        way_out: bool,
        truth: impl Fn(&mut World),
    ) {
        let words = input.clone();
        let Ok((d, effects)) = self.apply(w, input.clone(), at) else { return };
        let mut wrong = checks::transition(w, &input, &d, &effects);
        let mut next = World { d, ..w.clone() };
        if matches!(input, Input::LockTaken { .. }) {
            next.locked = true;
        }
        if matches!(input, Input::Skip { .. } | Input::Succeed { .. }) {
            for h in next.d.hosts().filter(|h| h.state == HostState::Succeeded) {
                if w.d.hosts().any(|b| b.host == h.host && b.state != HostState::Succeeded) {
                    next.said.insert(h.host.clone());
                }
            }
        }
        truth(&mut next);
        wrong = wrong.or_else(|| self.carry_out(&mut next, effects));
        let done = |r: &Row| r.phase == Phase::Settled && r.silent.is_empty();
        next.works.retain(|_, r| !done(r));
        out.add(|| format!("{words:?}"), next, way_out, wrong);
    }

    /// The effects, as the scheduler stores them. The answer is what must not be.
    fn carry_out(&self, w: &mut World, effects: Vec<Effect>) -> Option<String> {
        let mut wrong = None;
        for e in effects {
            match e {
                Effect::StartWork { id, spec } => {
                    if let WorkSpec::Wave(v) = &spec {
                        for h in &v.hosts {
                            w.well.remove(&h.host);
                            w.said.remove(&h.host);
                            // A host that a person answered for is told by its agent to let the old attempt go first.
                            let over = w.d.hosts().any(|x| x.host == h.host && x.attempt == h.attempt);
                            debug_assert!(over);
                        }
                    }
                    let row = Row {
                        spec,
                        desired: Desired::Run,
                        phase: Phase::Ready,
                        stops: Default::default(),
                        silent: Default::default(),
                    };
                    if w.works.insert(id, row).is_some() {
                        wrong = Some(format!("the work {id} is there already: an attempt is used twice"));
                    }
                }
                Effect::AbortWorks if self.mutant != Some(Mutant::AbortIsForgotten) => {
                    w.works.values_mut().for_each(|r| r.desired = Desired::Abort);
                }
                Effect::AbortWork(id) => {
                    if let Some(r) = w.works.get_mut(&id) {
                        r.desired = Desired::Abort;
                    }
                }
                Effect::HoldWorks(hold) => {
                    let dropped = if hold { Mutant::HoldIsForgotten } else { Mutant::HeldForEver };
                    if self.mutant != Some(dropped) {
                        let (from, to) =
                            if hold { (Desired::Run, Desired::Hold) } else { (Desired::Hold, Desired::Run) };
                        w.works.values_mut().filter(|r| r.desired == from).for_each(|r| r.desired = to);
                    }
                }
                Effect::FreeLock if self.mutant != Some(Mutant::LockIsKept) => w.locked = false,
                Effect::StopTasks { hosts, .. } if self.mutant != Some(Mutant::StopIsForgotten) => {
                    for r in w.works.values_mut().filter(|r| r.phase != Phase::Settled) {
                        r.stops.extend(hosts.iter().cloned());
                    }
                }
                _ => {}
            }
        }
        wrong
    }

    fn executors(&self, w: &World, out: &mut Steps<World>) {
        for (id, row) in &w.works {
            match &row.spec {
                WorkSpec::Wave(v) => self.wave(w, *id, row, v, out),
                WorkSpec::Central(c) if row.phase != Phase::Settled => {
                    let can: &[bool] = match (row.desired, row.phase) {
                        (Desired::Abort, _) => &[false],
                        (_, Phase::Started) => &[true, false],
                        _ => &[],
                    };
                    self.start(w, *id, row, out);
                    for succeeded in can {
                        let class = (!succeeded).then_some(FailureClass::Exit);
                        let output = serde_json::Value::Null;
                        let result = WorkResult::Central { succeeded: *succeeded, reason: None, output, class };
                        self.settle(w, *id, result, out);
                    }
                    debug_assert!(c.attempt > 0);
                }
                WorkSpec::Probe(_) if row.phase != Phase::Settled => {
                    for verdict in [Verdict::Success, Verdict::Fail, Verdict::Inconclusive] {
                        if row.desired == Desired::Abort && verdict != Verdict::Inconclusive {
                            continue;
                        }
                        let result = WorkResult::Probe { verdict, probes: Vec::new(), reason: Some(why()) };
                        self.settle(w, *id, result, out);
                    }
                }
                _ => {}
            }
        }
    }

    fn start(&self, w: &World, id: WorkId, row: &Row, out: &mut Steps<World>) {
        if row.phase != Phase::Ready || row.desired != Desired::Run {
            return;
        }
        let mut next = w.clone();
        let wrong = checks::start(w, &row.spec);
        if let Some(r) = next.works.get_mut(&id) {
            r.phase = Phase::Started;
        }
        out.add(|| format!("an executor starts {:?}", row.spec), next, true, wrong);
    }

    fn settle(&self, w: &World, id: WorkId, result: WorkResult, out: &mut Steps<World>) {
        let told = result.clone();
        self.act(w, Input::WorkSettled { work: id, result }, now(), out, true, |n| {
            let Some(row) = n.works.get_mut(&id) else { return };
            row.phase = Phase::Settled;
            if let WorkResult::Wave { hosts } = &told {
                for h in hosts {
                    match h.outcome {
                        Outcome::Succeeded => drop(n.well.insert(h.host.clone())),
                        Outcome::Unknown => drop(row.silent.insert(h.host.clone(), h.attempt)),
                        _ => {}
                    }
                }
            }
        });
    }

    fn wave(&self, w: &World, id: WorkId, row: &Row, v: &WaveWork, out: &mut Steps<World>) {
        match row.phase {
            Phase::Ready => {
                self.start(w, id, row, out);
                if row.desired != Desired::Hold {
                    for hosts in outcomes(v, row) {
                        self.settle(w, id, WorkResult::Wave { hosts }, out);
                    }
                }
            }
            Phase::Started => {
                for hosts in outcomes(v, row) {
                    self.settle(w, id, WorkResult::Wave { hosts }, out);
                }
            }
            Phase::Settled => {
                for (host, attempt) in &row.silent {
                    for outcome in [Outcome::Succeeded, Outcome::Failed] {
                        let failed_step = (outcome == Outcome::Failed).then_some(1);
                        let hosts = vec![host_result(host, *attempt, outcome, failed_step, false)];
                        self.late(w, id, host, *attempt, WorkResult::Wave { hosts }, out);
                    }
                }
            }
        }
    }

    /// A silent host speaks. What it says counts while it is unknown, and only then.
    fn late(&self, w: &World, id: WorkId, host: &str, attempt: u32, result: WorkResult, out: &mut Steps<World>) {
        let unknown = w.d.hosts().any(|h| h.host == host && h.attempt == attempt && h.state == HostState::Unknown);
        let succeeded = matches!(&result, WorkResult::Wave { hosts } if hosts[0].outcome == Outcome::Succeeded);
        let input = Input::WorkSettled { work: id, result };
        let speaks = |n: &mut World| {
            if let Some(row) = n.works.get_mut(&id) {
                row.silent.remove(host);
            }
            if succeeded && unknown {
                n.well.insert(host.to_owned());
            }
        };
        let taken = self.apply(w, input.clone(), now()).is_ok();
        if taken {
            self.act(w, input, now(), out, true, speaks);
        } else {
            let mut next = w.clone();
            speaks(&mut next);
            next.works.retain(|_, r| !(r.phase == Phase::Settled && r.silent.is_empty()));
            let wrong = unknown.then(|| format!("{host} is unknown, and what it says at last does not count"));
            out.add(|| format!("{host} says late what nobody asks any more"), next, true, wrong);
        }
    }

    /// What leads on is always open; of all else people have a number of acts.
    fn people(&self, w: &World, out: &mut Steps<World>) {
        let d = &w.d;
        let state = d.state;
        for by in PEOPLE.map(str::to_owned) {
            let by = || by.clone();
            if d.pause.is_some() {
                self.take(w, Input::Resume { by: by() }, out, true);
            }
            self.take(w, Input::Ignore { by: by(), hosts: Vec::new(), reason: why() }, out, true);
            for (n, wave) in d.rollouts().flat_map(|(_, r)| &r.waves).enumerate() {
                if wave.state == WaveState::Confirming {
                    self.take(w, Input::Confirm { by: by(), wave: n as u32 }, out, true);
                }
            }
            if let Some(c) = d.claim.as_ref().filter(|c| c.who != by()) {
                debug_assert!(!c.who.is_empty());
                self.take(w, Input::Claim { by: by(), take_over: true, reason: why() }, out, true);
            }
        }
        let by = || "olga".to_owned();
        if !d.unknown_hosts().is_empty() {
            self.take(w, Input::Override { by: by(), hosts: Vec::new(), reason: why() }, out, true);
        }
        if d.rolled_back_by.is_some() && state.is_terminal() {
            self.take(w, Input::RolledBack, out, true);
        }
        if w.acts == 0 {
            return;
        }
        let spent = World { acts: w.acts - 1, ..w.clone() };
        let mut does = |input: Input| self.take(&spent, input, out, false);
        does(Input::Abort { by: by(), reason: why() });
        let rollback = uuid::Uuid::from_u128(9).into();
        does(Input::Rollback { by: by(), mode: RollbackMode::Normal, rollback, reason: why() });
        if state.is_before_running() {
            does(Input::Cancel { by: by(), reason: why() });
        }
        let runs = matches!(state, State::Running | State::Paused);
        let more = d.run < 2 && d.hosts().all(|h| h.attempt < ATTEMPTS);
        if more {
            for who in PEOPLE.map(str::to_owned) {
                let hosts: Vec<String> = Vec::new();
                does(Input::Retry { by: who, hosts, step: None, whole_wave: false });
            }
            does(Input::Retry { by: by(), hosts: vec!["a".into()], step: None, whole_wave: false });
            does(Input::Retry { by: by(), hosts: Vec::new(), step: None, whole_wave: true });
            does(Input::Skip { by: "bob".into(), hosts: Vec::new() });
            does(Input::Skip { by: by(), hosts: vec!["b".into()] });
        }
        if runs {
            does(Input::Pause { by: by(), reason: why() });
            does(Input::Claim { by: by(), take_over: false, reason: why() });
            does(Input::Unclaim { by: by() });
            does(Input::Exclude { by: by(), hosts: vec!["a".into()], reason: why() });
            does(Input::Succeed { by: by(), step: None, hosts: vec!["a".into()], reason: why() });
            does(Input::Succeed { by: by(), step: Some("smoke".into()), hosts: Vec::new(), reason: why() });
            does(Input::Ignore { by: by(), hosts: vec!["b".into()], reason: why() });
            for h in d.hosts().filter(|h| h.state == HostState::Running) {
                does(Input::Stop { by: by(), hosts: vec![h.host.clone()], reason: why() });
            }
            if d.steps[1].state == StepState::Running {
                does(Input::Fail { by: by(), step: "smoke".into(), reason: why() });
            }
        }
    }
}
