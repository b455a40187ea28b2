//! Random graphs, random outcomes, random verbs at random times: what the engine promises holds for all of them.

use super::*;
use crate::flow::{Join, StepFailure};
use crate::work::{FailureClass, Verdict, WaveHost, WaveWork};
use maker::graph_of;
use serde_json::{Map, json};

mod maker;

const HOST_STEPS: u32 = 5;

/// What a needed step is to one that needs it, said anew from the documentation of [`Join`].
fn seen(d: &Deployment, need: &str, by: &str) -> &'static str {
    let n = d.steps.iter().position(|s| s.id == need).expect("a step");
    let s = &d.steps[n];
    let leads = match &s.kind {
        StepRunKind::Gateway(g) => g.gateway.leads_to(by),
        _ => false,
    };
    let took = match &s.kind {
        StepRunKind::Gateway(g) => g.taken.iter().flatten().any(|t| t == by),
        _ => false,
    };
    match s.state {
        StepState::NotTaken => "dead",
        StepState::Succeeded if leads && !took => "dead",
        StepState::Succeeded => "success",
        StepState::Skipped if !s.reached => "open",
        StepState::Skipped if leads || matches!(s.kind, StepRunKind::Enter { .. }) => "dead",
        StepState::Skipped => "success",
        StepState::Stopped => "other",
        StepState::Failed if d.on_failure_of(n) == StepFailure::Continue => "other",
        _ => "open",
    }
}

fn may_have_started(d: &Deployment, id: &str) -> bool {
    let s = d.steps.iter().find(|s| s.id == id).expect("a step");
    let all: Vec<&str> = s.needs.iter().map(|n| seen(d, n, id)).collect();
    let has = |what: &str| all.contains(&what);
    all.is_empty()
        || match s.join {
            Join::All => has("success") && !has("open") && !has("other"),
            Join::Any => has("success"),
            Join::Done => !has("open") && (has("success") || has("other")),
        }
}

/// A deployment in few words, for the messages of failures.
fn brief(d: &Deployment) -> String {
    let host = |h: &HostRun| format!("{}:{:?}/{}@{}", h.host, h.state, h.attempt, h.start_at);
    let wave = |w: &WaveRun| {
        let hosts: Vec<String> = w.hosts.iter().map(host).collect();
        let probe = w.probe.as_ref().map(|p| format!("{:?}", p.verdict)).unwrap_or_default();
        format!("[{:?} {probe} max {:?}: {}]", w.state, w.max_failures, hosts.join(" "))
    };
    let step = |s: &StepRun| {
        let policy = (s.on_failure, s.on_timeout, s.class);
        let waves: Vec<String> = match &s.kind {
            StepRunKind::Rollout(r) => r.waves.iter().map(wave).collect(),
            _ => vec![],
        };
        format!("{} <- {:?} {:?} {policy:?} reached {} {}", s.id, s.needs, s.state, s.reached, waves.join(" "))
    };
    let steps: Vec<String> = d.steps.iter().map(step).collect();
    format!("{:?}, pause {}:\n{}", d.state, d.pause.is_some(), steps.join("\n"))
}

fn position(d: &Deployment, step: &str) -> usize {
    d.steps.iter().position(|s| s.id == step).expect("a step")
}

/// A result that came, as the executor knows it.
#[derive(Clone, Copy, PartialEq)]
struct Known {
    outcome: Outcome,
    /// Steps that are done, in all attempts together.
    done: u32,
}

struct Watch {
    w: World,
    started: BTreeMap<String, u32>,
    attempts: BTreeSet<(String, String, u32)>,
    /// What became of each host of each rollout.
    hosts: BTreeMap<(String, String), Known>,
    succeeded: BTreeSet<String>,
    begun: BTreeSet<String>,
    /// Hosts that went silent, with the work that they did so in.
    silent: Vec<(WorkId, String, u32)>,
    settled: Vec<(WorkId, WorkResult)>,
    intervened: bool,
    plan: PlanFacts,
    plans: u32,
}

impl Watch {
    fn new(plan: PlanFacts) -> Result<Watch, TestCaseError> {
        let w = World::new(plan.clone());
        let mut watch = Watch {
            w,
            started: BTreeMap::new(),
            attempts: BTreeSet::new(),
            hosts: BTreeMap::new(),
            succeeded: BTreeSet::new(),
            begun: BTreeSet::new(),
            silent: Vec::new(),
            settled: Vec::new(),
            intervened: false,
            plan,
            plans: 1,
        };
        watch.must(Input::LockTaken { fence: 3 })?;
        Ok(watch)
    }

    fn act(&mut self, input: Input) -> Result<bool, TestCaseError> {
        use Input::*;
        self.intervened |= matches!(
            input,
            Retry { .. } | Skip { .. } | Exclude { .. } | Succeed { .. } | Amend { .. } | Decide(_) | LockTaken { .. }
        ) && !self.attempts.is_empty();
        let before = self.w.d.clone();
        let told = matches!(input, Override { .. } | WorkSettled { .. });
        let Ok(effects) = self.w.try_do(input) else {
            prop_assert_eq!(&before, &self.w.d);
            return Ok(false);
        };
        for e in &effects {
            if let Effect::StartWork { spec, .. } = e {
                self.check_start(&before, spec, told)?;
            }
        }
        self.check_rest()?;
        Ok(true)
    }

    /// What has to be taken.
    fn must(&mut self, input: Input) -> Result<(), TestCaseError> {
        let shown = format!("{input:?}");
        let taken = self.act(input)?;
        prop_assert!(taken, "{} is refused: {:?}", shown, self.w.d.waiting_on());
        Ok(())
    }

    fn check_start(&mut self, before: &Deployment, spec: &WorkSpec, told: bool) -> Result<(), TestCaseError> {
        let d = &self.w.d;
        prop_assert!(d.pause.is_none(), "started under a pause");
        prop_assert!(!before.state.is_terminal() && before.state != State::Aborting, "started in {:?}", before.state);
        prop_assert!(!d.state.is_terminal() && d.state != State::Aborting, "started and {:?}", d.state);
        let (step, attempts): (&str, Vec<(String, u32)>) = match spec {
            WorkSpec::Central(c) => (&c.step, vec![(String::new(), c.attempt)]),
            WorkSpec::Probe(p) => (&p.step, vec![(format!("probes of {}", p.wave), p.attempt)]),
            WorkSpec::Wave(v) => (&v.step, v.hosts.iter().map(|h| (h.host.clone(), h.attempt)).collect()),
        };
        for (host, attempt) in attempts {
            prop_assert!(self.attempts.insert((step.into(), host, attempt)), "an attempt of {step} is used twice");
        }
        let i = position(d, step);
        // What a person takes up again began when its time was.
        let begun = self.intervened && self.begun.contains(step);
        prop_assert!(begun || may_have_started(d, step), "{step} started too early: {}", brief(d));
        self.begun.insert(step.into());
        let repeats = d.is_repeated(i) || d.steps[i].repeat.is_some();
        match spec {
            WorkSpec::Central(c) => {
                let runs = self.started.entry(step.into()).or_default();
                *runs += 1;
                let tried = d.steps[i].tries.made;
                if !self.intervened && !repeats {
                    prop_assert_eq!(*runs, 1 + tried, "{} fired twice: {}", step, brief(d));
                    prop_assert!(
                        tried <= d.steps[i].retry.as_ref().map_or(0, |r| r.max),
                        "more tries than the policy has"
                    );
                }
                prop_assert!(
                    repeats || !self.succeeded.contains(&c.step),
                    "{step} runs again after it succeeded: {}",
                    brief(d)
                );
            }
            WorkSpec::Probe(p) => {
                let (_, r) = d.rollouts().find(|(s, _)| s.id == step).expect("a rollout");
                let wave = &r.waves[p.wave as usize];
                let well = |h: &&HostRun| h.state == HostState::Succeeded;
                let hosts: Vec<&String> = wave.hosts.iter().filter(well).map(|h| &h.host).collect();
                prop_assert_eq!(p.hosts.iter().collect::<Vec<_>>(), hosts);
                prop_assert!(p.until > t(self.w.now));
            }
            WorkSpec::Wave(v) => self.check_wave(before, v, i, repeats, told)?,
        }
        Ok(())
    }

    fn check_wave(
        &mut self,
        before: &Deployment,
        v: &WaveWork,
        i: usize,
        repeats: bool,
        told: bool,
    ) -> Result<(), TestCaseError> {
        let StepRunKind::Rollout(r) = &self.w.d.steps[i].kind else { return Err(TestCaseError::fail("no rollout")) };
        let StepRunKind::Rollout(was) = &before.steps[i].kind else { return Err(TestCaseError::fail("no rollout")) };
        let wave = &r.waves[v.wave as usize];
        let failures = |w: &WaveRun| w.hosts.iter().filter(|h| h.state.is_failure()).count() as u32;
        let (all, here) = (r.waves.iter().map(failures).sum::<u32>(), failures(wave));
        let bears = |max: u32, used: u32| v.max_failures <= max.saturating_sub(used);
        prop_assert!(bears(r.max_failures, all), "the work may fail more than the rollout bears");
        prop_assert!(wave.max_failures.is_none_or(|m| bears(m, here)), "the work may fail more than the wave bears");
        let overdrawn = all > r.max_failures || wave.max_failures.is_some_and(|m| here > m);
        prop_assert!(v.again || !repeats);
        for h in &v.hosts {
            let key = (v.step.clone(), h.host.clone());
            let known = self.hosts.get(&key).copied();
            let stood = was.waves[v.wave as usize].hosts.iter().find(|x| x.host == h.host).expect("a host").state;
            prop_assert!(
                told || !matches!(stood, HostState::Unknown | HostState::Running),
                "{} may be running",
                h.host
            );
            if overdrawn {
                let failed = known.is_some_and(|k| k.outcome != Outcome::AutoStopped);
                prop_assert!(failed, "{} started though the budget is used up: {}", h.host, brief(&self.w.d));
            }
            if let Some(k) = known.filter(|_| !v.again) {
                prop_assert!(
                    h.start_at >= k.done,
                    "{} repeats a step that succeeded ({}): {h:?} {}\nbefore: {}",
                    h.host,
                    k.done,
                    brief(&self.w.d),
                    brief(before)
                );
            }
            prop_assert!(h.start_at < HOST_STEPS);
        }
        Ok(())
    }

    fn check_rest(&self) -> Result<(), TestCaseError> {
        let w = &self.w;
        let open = w.open();
        let distinct: BTreeSet<&String> = open.iter().collect();
        prop_assert_eq!(open.len(), distinct.len(), "one step runs twice at once");
        let waits = w.d.waiting_on();
        if w.d.state.is_active() || !w.d.unknown_hosts().is_empty() || w.d.state == State::Queued {
            prop_assert!(!waits.is_empty(), "stands in {:?} and does not say why: {}", w.d.state, brief(&w.d));
        }
        for on in &waits {
            match on.bound() {
                Bound::Until(_) | Bound::Executor(_) => {}
                Bound::Person { owner, deadline } => {
                    // What is silent while the rest goes on is no person's matter yet.
                    let due = !matches!(on, WaitingOn::Unknown { .. }) || w.d.state.is_terminal();
                    let has = deadline.is_some() || !due || w.d.state == State::Aborting;
                    prop_assert!(!owner.is_empty() && has, "nobody answers for {on}: {}", brief(&w.d));
                }
            }
        }
        let person = !w.d.waits_for_person().is_empty();
        prop_assert_eq!(person, w.d.attention.is_some());
        if w.d.state.is_active() && open.is_empty() {
            prop_assert!(w.d.wake_at().is_some(), "nothing runs and nothing wakes it: {waits:?} {}", brief(&w.d));
        }
        if let Some(at) = w.d.wake_at().filter(|_| !w.d.state.is_before_running()) {
            // A run of a repeat may be due at once: it begins with the next look.
            prop_assert!(at >= t(w.now), "it was due before now: {at}, {waits:?} {}", brief(&w.d));
        }
        prop_assert_eq!(
            w.d.lock.is_some(),
            w.d.state.is_active() || w.d.state.is_terminal() && !w.d.unknown_hosts().is_empty()
        );
        let c = w.d.host_counts();
        let apart = c.waiting + c.running + c.succeeded + c.failed + c.auto_stopped + c.hand_stopped;
        prop_assert_eq!(apart + c.not_started + c.unknown + c.ignored + c.excluded, c.total);
        prop_assert_eq!(c.unknown == 0, w.d.unknown_hosts().is_empty());
        if w.d.state == State::Succeeded {
            prop_assert_eq!((c.unknown, c.running), (0, 0));
            for s in w.d.steps.iter().filter(|s| !s.id.contains('/')) {
                let well = matches!(s.state, StepState::Succeeded | StepState::Skipped | StepState::NotTaken);
                let needed = w.d.steps.iter().any(|o| o.reached && o.join != Join::All && o.needs.contains(&s.id));
                prop_assert!(well || s.state == StepState::Failed && needed, "succeeded with {} {:?}", s.id, s.state);
            }
        }
        Ok(())
    }

    /// How hosts of a wave come out: as an executor does it, it starts none once more have failed than it may bear.
    fn wave_result(&mut self, work: WorkId, v: &WaveWork, x: usize, well: bool) -> WorkResult {
        let mut failures = 0;
        let mut hosts = Vec::new();
        for (n, h) in v.hosts.iter().enumerate() {
            let roll = (x >> n) % 9;
            let (outcome, class) = match roll {
                _ if failures > v.max_failures => (Outcome::AutoStopped, None),
                _ if well => (Outcome::Succeeded, None),
                3 => (Outcome::Failed, Some([FailureClass::Exit, FailureClass::Timeout][x % 2])),
                4 => (Outcome::Unknown, Some(FailureClass::Unknown)),
                5 => (Outcome::NotStarted, Some([FailureClass::Unreachable, FailureClass::Refused][x % 2])),
                6 => (Outcome::Cancelled, Some(FailureClass::Stopped)),
                _ => (Outcome::Succeeded, None),
            };
            let bad = !matches!(outcome, Outcome::Succeeded | Outcome::AutoStopped);
            failures += u32::from(bad);
            let at = h.start_at + (x as u32 / 3) % (HOST_STEPS - h.start_at);
            let failed_step = (outcome == Outcome::Failed && !x.is_multiple_of(5)).then_some(at);
            if outcome == Outcome::Unknown {
                self.silent.push((work, h.host.clone(), h.attempt));
            }
            self.learn(&v.step, h, outcome, failed_step);
            hosts.push(result(&h.host, h.attempt, outcome, failed_step, class, Some([1, 75][x % 2])));
        }
        WorkResult::Wave { hosts }
    }

    fn learn(&mut self, step: &str, h: &WaveHost, outcome: Outcome, failed_step: Option<u32>) {
        let done = match outcome {
            Outcome::Succeeded => HOST_STEPS,
            _ => failed_step.unwrap_or(h.start_at),
        };
        self.hosts.insert((step.into(), h.host.clone()), Known { outcome, done });
    }

    fn settle_one(&mut self, x: usize, well: bool) -> Result<bool, TestCaseError> {
        let flying = self.w.d.works_in_flight();
        let Some(id) = flying.get(x % flying.len().max(1)).copied() else { return self.act(Input::Tick) };
        let result = match self.w.works[&id].clone() {
            WorkSpec::Probe(_) => {
                let verdict = match x % 4 {
                    _ if well => Verdict::Success,
                    0 => Verdict::Fail,
                    1 => Verdict::Inconclusive,
                    _ => Verdict::Success,
                };
                WorkResult::Probe { verdict, probes: vec![], reason: Some("r".into()) }
            }
            WorkSpec::Central(c) => {
                let output = match x % 5 {
                    _ if well => json!({ "ok": true }),
                    0 => json!({}),
                    1 => json!({ "ok": false }),
                    _ => json!({ "ok": true }),
                };
                let class = [None, Some(FailureClass::Timeout), Some(FailureClass::Exit)][x % 3];
                let succeeded = well || x % 4 != 3;
                if succeeded && self.w.d.steps[position(&self.w.d, &c.step)].forced.is_none() {
                    self.succeeded.insert(c.step);
                }
                WorkResult::Central { class, succeeded, reason: None, output }
            }
            WorkSpec::Wave(v) => self.wave_result(id, &v, x, well),
        };
        self.settled.push((id, result.clone()));
        let taken = self.act(Input::WorkSettled { work: id, result })?;
        prop_assert!(taken, "the result of a work in flight is refused: {}", brief(&self.w.d));
        Ok(true)
    }

    /// A host that was silent speaks, under the work that it was given then.
    fn late(&mut self, x: usize) -> Result<(), TestCaseError> {
        if self.silent.is_empty() {
            return Ok(());
        }
        let (work, host, attempt) = self.silent.remove(x % self.silent.len());
        let Some(WorkSpec::Wave(v)) = self.w.works.get(&work).cloned() else { return Ok(()) };
        let outcome = [Outcome::Succeeded, Outcome::Failed, Outcome::Cancelled][x % 3];
        let unknown = |d: &Deployment| {
            let (_, r) = d.rollouts().find(|(s, _)| s.id == v.step).expect("a rollout");
            let wave = &r.waves[v.wave as usize];
            wave.hosts.iter().any(|h| h.host == host && h.attempt == attempt && h.state == HostState::Unknown)
        };
        let was = unknown(&self.w.d);
        if was {
            let h = v.hosts.iter().find(|h| h.host == host).expect("a host of the work").clone();
            self.learn(&v.step, &h, outcome, None);
        }
        let hosts = vec![result(&host, attempt, outcome, None, Some(FailureClass::Exit), None)];
        let taken = self.act(Input::WorkSettled { work, result: WorkResult::Wave { hosts } })?;
        prop_assert_eq!(taken, was, "what a silent host says counts while it is unknown, and only then");
        prop_assert!(!unknown(&self.w.d));
        Ok(())
    }

    /// A result that came before comes once more.
    fn again(&mut self, x: usize) -> Result<(), TestCaseError> {
        let Some((work, result)) = self.settled.get(x % self.settled.len().max(1)).cloned() else { return Ok(()) };
        if self.w.d.works_in_flight().contains(&work) {
            return Ok(());
        }
        let taken = self.act(Input::WorkSettled { work, result })?;
        prop_assert!(!taken, "a result is taken twice: {}", brief(&self.w.d));
        Ok(())
    }

    fn amend(&mut self, by: &str, x: usize) -> Result<(), TestCaseError> {
        self.plans += 1;
        let mut facts = self.plan.clone();
        facts.digest = format!("d{}", self.plans);
        if x.is_multiple_of(2) {
            facts.rules = vec![ApprovalRule { name: "ops".into(), quorum: 1, people: vec![] }];
        }
        let inputs = BTreeMap::from([("flag".to_owned(), json!(true))]);
        let facts = Box::new(facts);
        self.act(Input::Amend { by: by.into(), inputs, facts, hosts: vec![], reason: "r".into() })?;
        Ok(())
    }

    fn decide(&mut self, decision: Decision) -> Result<bool, TestCaseError> {
        let Some(a) = &self.w.d.amendment else { return Ok(false) };
        let plan_digest = a.facts.digest.clone();
        let (deployment, at) = (self.w.d.id, t(self.w.now));
        let (person, comment, signature) = ("carl".into(), String::new(), String::new());
        self.act(Input::Decide(Approval { deployment, plan_digest, person, decision, comment, at, signature }))
    }

    /// What a patient person does until it is over.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..3000 {
            let d = &self.w.d;
            let reason = || "r".to_owned();
            if d.state.is_terminal() && d.lock.is_none() {
                return Ok(());
            }
            if d.state == State::Queued {
                self.act(Input::LockTaken { fence: 4 })?;
                continue;
            }
            if !d.works_in_flight().is_empty() {
                self.settle_one(0, true)?;
                continue;
            }
            if d.claim.as_ref().is_some_and(|c| c.who != ops()) {
                self.must(Input::Claim { by: ops(), take_over: true, reason: reason() })?;
                continue;
            }
            let waits = d.waiting_on();
            let has = |f: fn(&WaitingOn) -> bool| waits.iter().find(|w| f(w));
            if has(|w| matches!(w, WaitingOn::Unknown { .. })).is_some() {
                self.must(Input::Override { by: ops(), hosts: vec![], reason: reason() })?;
            } else if has(|w| matches!(w, WaitingOn::Operator { .. })).is_some() {
                self.must(Input::Resume { by: ops() })?;
            } else if has(|w| matches!(w, WaitingOn::Amendment { .. })).is_some() {
                prop_assert!(self.decide(Decision::Approve)?);
            } else if let Some(WaitingOn::Confirmation { wave, .. }) =
                has(|w| matches!(w, WaitingOn::Confirmation { .. }))
            {
                self.must(Input::Confirm { by: ops(), wave: *wave })?;
            } else if let Some(WaitingOn::Choice { step, branches, .. }) =
                has(|w| matches!(w, WaitingOn::Choice { .. }))
            {
                // A gateway that leads nowhere else still has to be left; what is required can only run.
                let mut chose = false;
                for branch in branches {
                    chose =
                        chose || self.act(Input::Choose { by: ops(), step: step.clone(), branch: branch.clone() })?;
                }
                prop_assert!(chose, "no way out of {step}");
            } else if has(|w| matches!(w, WaitingOn::Intervention { .. })).is_some() {
                let ignored = self.act(Input::Ignore { by: ops(), hosts: vec![], reason: reason() })?;
                let (step, whole_wave) = (None, false);
                let out = ignored || self.act(Input::Retry { by: ops(), hosts: vec![], step, whole_wave })?;
                prop_assert!(out, "an intervention with no way out: {waits:?}");
            } else {
                let wake = d.wake_at().ok_or_else(|| TestCaseError::fail(format!("nothing wakes it: {waits:?}")))?;
                self.w.now = self.w.now.max((wake - t(0)).num_seconds());
                self.act(Input::Tick)?;
            }
        }
        Err(TestCaseError::fail(format!("it does not end: {:?} {}", self.w.d.waiting_on(), brief(&self.w.d))))
    }

    fn move_once(&mut self, verb: u8, x: usize) -> Result<(), TestCaseError> {
        let by = if x % 7 == 6 { "bob".to_owned() } else { ops() };
        let reason = || "r".to_owned();
        let d = &self.w.d;
        let names = ["a", "b", "c", "d", "e"];
        let one = names[x % 5].to_owned();
        let known = d.hosts().any(|h| h.host == one);
        let some = if x.is_multiple_of(3) && known { vec![one.clone()] } else { vec![] };
        let steps: Vec<String> = d.steps.iter().map(|s| s.id.clone()).collect();
        let step = steps.get(x % steps.len()).cloned();
        let input = match verb {
            0..=9 => return self.settle_one(x, false).map(drop),
            10 => Input::Tick,
            11 => Input::Retry {
                step: step.filter(|_| x.is_multiple_of(4)),
                whole_wave: x.is_multiple_of(5) && some.is_empty(),
                by,
                hosts: some,
            },
            12 => Input::Skip { by, hosts: some },
            13 => Input::Ignore { by, hosts: some, reason: reason() },
            14 => Input::Override { by, hosts: some, reason: reason() },
            15 if x.is_multiple_of(24) => Input::Abort { by, reason: reason() },
            15 => Input::Pause { by, reason: reason() },
            16 | 17 => Input::Resume { by },
            18 => match d.steps.iter().find(|s| s.asks.is_some()) {
                Some(s) => {
                    let choices = s.choices();
                    let branch = choices[x % choices.len()].clone();
                    Input::Choose { by, step: s.id.clone(), branch }
                }
                None => Input::Tick,
            },
            19 => Input::Exclude { by, hosts: vec![one], reason: reason() },
            20 => Input::Confirm { by, wave: x as u32 % 3 },
            21 => return self.late(x),
            22 => return self.again(x),
            23 => Input::Claim { by, take_over: x.is_multiple_of(2), reason: reason() },
            24 => Input::Unclaim { by },
            25 => Input::Stop { by, hosts: vec![one], reason: reason() },
            26 => Input::Fail { by, step: step.unwrap_or_default(), reason: reason() },
            27 if x.is_multiple_of(2) => Input::Succeed { by, step: None, hosts: vec![one], reason: reason() },
            27 => Input::Succeed { by, step, hosts: vec![], reason: reason() },
            28 => return self.amend(&by, x),
            29 => {
                let decision = if x.is_multiple_of(2) { Decision::Approve } else { Decision::Reject };
                return self.decide(decision).map(drop);
            }
            _ if d.state == State::Queued => Input::LockTaken { fence: 4 },
            _ => Input::Tick,
        };
        self.act(input).map(drop)
    }
}

fn result(
    host: &str,
    attempt: u32,
    outcome: Outcome,
    failed_step: Option<u32>,
    class: Option<FailureClass>,
    exit_code: Option<i32>,
) -> HostResult {
    let (host, failed_id) = (host.to_owned(), failed_step.map(|s| format!("s{s}")));
    HostResult { host, attempt, outcome, failed_step, failed_id, class, exit_code, reason: None, outputs: Map::new() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, ..ProptestConfig::default() })]
    #[test]
    fn random_graphs_keep_the_promises(
        bytes in proptest::collection::vec(any::<u8>(), 20..120),
        script in proptest::collection::vec((0_u8..32, any::<u8>(), 0_u8..40), 0..70),
    ) {
        let mut watch = Watch::new(graph_of(&bytes))?;
        for (verb, x, passes) in script {
            watch.w.now += i64::from(passes);
            watch.move_once(verb, usize::from(x))?;
        }
        watch.finish()?;
    }
}
