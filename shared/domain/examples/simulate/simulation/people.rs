//! People: they ask for deployments and use every verb at any moment while there are faults; afterwards one patient person
//! answers whatever waits for one. What a person asks is a request that is repeated until it is answered.

use super::{
    ENVIRONMENTS, Event, Sim,
    db::{CommandRow, Commit, Dep},
    plans,
    plants::Plant,
};
use serde_json::json;
use std::collections::BTreeMap;
use windlass_domain::{
    Timestamp,
    approval::{Approval, ApprovalRule, Decision},
    deployment::{Deployment, Effect, Input, New, PlanFacts, Rollback, State, WaitingOn},
    ids::{DeploymentId, WorkId},
    release::{ReleaseKind, RollbackMode},
};

#[derive(Debug, Default)]
pub(super) struct People {
    /// Keys of requests that were answered with a 2xx.
    pub(super) accepted: Vec<u64>,
    /// Requests without an answer yet.
    pub(super) waits: u32,
    keys: u64,
    made: u32,
    plans: BTreeMap<Dep, PlanFacts>,
    amended: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Request {
    key: u64,
    dep: Dep,
    input: Input,
}

const MOST: u32 = 7;

/// A new deployment, as the scheduler makes it.
#[expect(clippy::too_many_arguments, reason = "they are the fields of a request")]
pub(super) fn requested(
    id: DeploymentId,
    env: usize,
    plan: PlanFacts,
    rollback: Option<Rollback>,
    by: &str,
    now: Timestamp,
    expires_s: i64,
    not_before: Option<Timestamp>,
) -> (Deployment, Vec<Effect>) {
    let kind = if rollback.is_some() { ReleaseKind::Rollback } else { ReleaseKind::Normal };
    let new = New {
        id,
        project: "shop".into(),
        environment: if env == 0 { "beta".into() } else { "online".into() },
        release: uuid::Uuid::from_u128(id.0.as_u128() ^ 1).into(),
        version: "1.0".into(),
        kind,
        rollback,
        requested_by: by.into(),
        note: String::new(),
        trace: None,
        pool: "default".into(),
        only_hosts: Vec::new(),
        not_before,
        expires_at: now + chrono::Duration::seconds(expires_s),
        plan,
    };
    // Nothing begins before it has its lock.
    Deployment::request(new, now, &mut || WorkId(uuid::Uuid::nil()))
}

fn why() -> String {
    "r".into()
}

impl Sim {
    pub(super) fn person(&mut self) {
        if !self.faulty() {
            self.skew = self.skew.max(0);
            self.patient();
            self.at(2_000, Event::Person);
            return;
        }
        if self.people.made < 3 || self.people.made < MOST && self.dice.one_in(9) {
            self.new_deployment();
        } else {
            let dep = self.dice.roll(self.db.deployments.len());
            if let Some(input) = self.any_verb(dep) {
                self.ask(dep, input);
            }
        }
        let next = self.dice.between(100, 9_000);
        self.at(next, Event::Person);
    }

    fn new_deployment(&mut self) {
        self.people.made += 1;
        let bytes: Vec<u8> = (0..20 + self.dice.roll(60)).map(|_| self.dice.next() as u8).collect();
        let mut plan = plans::plan_of(&bytes);
        if self.dice.one_in(3) {
            plan.rules = vec![ApprovalRule { name: "ops".into(), quorum: 1, people: Vec::new() }];
        }
        let env = self.dice.roll(ENVIRONMENTS);
        let now = self.clock();
        let waits = self.dice.one_in(5).then(|| now + chrono::Duration::seconds(20));
        let expires = if self.dice.one_in(5) { 30 } else { 7_200 };
        let id = DeploymentId(uuid::Uuid::from_u128(u128::from(self.dice.next())));
        self.people.plans.insert(self.db.deployments.len(), plan.clone());
        let (d, effects) = requested(id, env, plan, None, "ann", now, expires, waits);
        self.create(d, env, effects);
        self.start_if_free(self.db.deployments.len() - 1);
    }

    fn ask(&mut self, dep: Dep, input: Input) {
        self.people.keys += 1;
        self.people.waits += 1;
        self.request(Request { key: self.people.keys, dep, input });
    }

    /// One try of a request.
    pub(super) fn request(&mut self, r: Request) {
        let known = self.db.commands.iter().any(|c| c.key == r.key) && !self.is(Plant::NoIdempotency);
        let how = self.commit();
        if how != Commit::Failed && !known {
            let (key, dep, input) = (r.key, r.dep, r.input.clone());
            self.db.commands.push(CommandRow { key, dep, input, queued: true, outcome: None });
            self.db.append(dep);
        }
        if how == Commit::Done {
            self.people.waits -= 1;
            self.people.accepted.push(r.key);
            let s = self.dice.roll(2);
            self.send(Event::Look(s, r.dep));
        } else {
            let again = self.dice.between(200, 8_000);
            self.at(again, Event::Repeat(Box::new(r)));
        }
    }

    fn any_verb(&mut self, dep: Dep) -> Option<Input> {
        let d = self.db.deployments[dep].d.clone();
        let x = self.dice.roll(256);
        let by = if x % 7 == 6 { "bob".to_owned() } else { "olga".to_owned() };
        let names: Vec<String> = d.hosts().map(|h| h.host.clone()).collect();
        let one = self.dice.pick(&names).cloned().unwrap_or_else(|| "zz".into());
        let some = if x.is_multiple_of(3) { vec![one.clone()] } else { Vec::new() };
        let steps: Vec<String> = d.steps.iter().map(|s| s.id.clone()).collect();
        let step = self.dice.pick(&steps).cloned();
        let reason = why();
        // Nobody is that patient: what is unknown is overridden, and what failed is tried again.
        if !d.unknown_hosts().is_empty() && self.dice.one_in(3) {
            return Some(Input::Override { by, hosts: Vec::new(), reason });
        }
        let mends = |on: &WaitingOn| matches!(on, WaitingOn::Intervention { .. });
        let ended = matches!(d.state, State::Failed | State::Aborted) && self.dice.one_in(2);
        if ended || self.dice.one_in(3) && d.waiting_on().iter().any(mends) {
            return Some(Input::Retry { by, hosts: Vec::new(), step: None, whole_wave: false });
        }
        Some(match self.dice.roll(32) {
            0..=2 => Input::Retry {
                step: step.filter(|_| x.is_multiple_of(4)),
                whole_wave: x.is_multiple_of(5) && some.is_empty(),
                by,
                hosts: some,
            },
            3 => Input::Skip { by, hosts: some },
            4 => Input::Ignore { by, hosts: some, reason },
            5 | 6 => Input::Override { by, hosts: some, reason },
            7 if x.is_multiple_of(2) => Input::Abort { by, reason },
            7 => Input::Cancel { by, reason },
            8 | 9 => Input::Pause { by, reason },
            10..=12 => Input::Resume { by },
            13 | 14 => {
                let asks = d.steps.iter().find(|s| s.asks.is_some());
                let step = asks.map_or_else(|| step.unwrap_or_default(), |s| s.id.clone());
                let choices = asks.map(|s| s.choices()).unwrap_or_default();
                let branch = self.dice.pick(&choices).cloned().unwrap_or_else(|| "default".into());
                Input::Choose { by, step, branch }
            }
            15 => Input::Exclude { by, hosts: vec![one], reason },
            16 => Input::Confirm { by, wave: (x % 3) as u32 },
            17 => Input::Claim { by, take_over: x.is_multiple_of(2), reason },
            18 => Input::Unclaim { by },
            19 | 20 => Input::Stop { by, hosts: vec![one], reason },
            21 => Input::Fail { by, step: step.unwrap_or_default(), reason },
            22 => Input::Succeed { by, step: None, hosts: vec![one], reason },
            23 => Input::Succeed { by, step, hosts: Vec::new(), reason },
            24 => {
                let rollback = DeploymentId(uuid::Uuid::from_u128(u128::from(self.dice.next())));
                Input::Rollback { by, mode: RollbackMode::Normal, rollback, reason }
            }
            25 => {
                self.people.amended += 1;
                let mut facts = self.people.plans.get(&dep)?.clone();
                facts.digest = format!("a{}", self.people.amended);
                if x.is_multiple_of(2) {
                    facts.rules = vec![ApprovalRule { name: "ops".into(), quorum: 1, people: Vec::new() }];
                }
                let inputs = BTreeMap::from([("flag".to_owned(), json!(true))]);
                Input::Amend { by, inputs, facts: Box::new(facts), hosts: Vec::new(), reason }
            }
            26 => Input::Accept { by, digest: if x % 5 == 1 { "none".into() } else { d.plan_digest } },
            n => {
                let decision = if x % 9 == 8 { Decision::Reject } else { Decision::Approve };
                let person = if n == 27 { "ann" } else { "carl" };
                self.decision(&d, person, decision)
            }
        })
    }

    fn decision(&self, d: &Deployment, person: &str, decision: Decision) -> Input {
        let amended = d.amendment.as_ref().map(|a| a.facts.digest.clone());
        let plan_digest = amended.unwrap_or_else(|| d.plan_digest.clone());
        let (comment, signature) = (String::new(), String::new());
        let (deployment, at) = (d.id, self.clock());
        Input::Decide(Approval { deployment, plan_digest, person: person.into(), decision, comment, at, signature })
    }

    /// All faults are over: whatever waits for a person gets one.
    fn patient(&mut self) {
        for dep in 0..self.db.deployments.len() {
            let d = self.db.deployments[dep].d.clone();
            if self.db.commands.iter().any(|c| c.dep == dep && c.queued) || d.state.is_terminal() && d.lock.is_none() {
                continue;
            }
            let olga = || "olga".to_owned();
            if d.claim.as_ref().is_some_and(|c| c.who != olga()) {
                self.ask(dep, Input::Claim { by: olga(), take_over: true, reason: why() });
                continue;
            }
            let mut waits = d.waiting_on();
            // First things first: nobody mends what may still be running.
            waits.sort_by_key(|on| !matches!(on, WaitingOn::Unknown { .. }));
            for on in waits {
                let input = match on {
                    WaitingOn::Unknown { .. } if d.works_in_flight().is_empty() => {
                        Input::Override { by: olga(), hosts: Vec::new(), reason: why() }
                    }
                    WaitingOn::Operator { .. } => Input::Resume { by: olga() },
                    WaitingOn::Amendment { .. } | WaitingOn::Approval { .. } => {
                        self.decision(&d, "carl", Decision::Approve)
                    }
                    WaitingOn::Acceptance { new, .. } => Input::Accept { by: olga(), digest: new },
                    WaitingOn::Confirmation { wave, .. } => Input::Confirm { by: olga(), wave },
                    WaitingOn::Choice { step, branches, .. } => {
                        let Some(branch) = self.dice.pick(&branches).cloned() else { continue };
                        Input::Choose { by: olga(), step, branch }
                    }
                    WaitingOn::Intervention { .. } if self.dice.one_in(3) => {
                        let (step, whole_wave) = (None, false);
                        Input::Retry { by: olga(), hosts: Vec::new(), step, whole_wave }
                    }
                    WaitingOn::Intervention { .. } => Input::Ignore { by: olga(), hosts: Vec::new(), reason: why() },
                    _ => continue,
                };
                self.ask(dep, input);
                break;
            }
        }
    }
}
