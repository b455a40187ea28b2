//! Every pair of the tables of verbs, tried on a deployment that stands so: it moves where the table says, stays as it is, or is
//! refused with exactly that code. And what is offered is what would be taken.

use super::*;
use crate::deployment::table::{
    Answer, Verb, answer, offered, page,
    within::{self, Does, WaveKind},
};
use crate::flow::{GatewayMode, Retry};

pub(super) const BOB: &str = "bob";

fn decide(w: &World, digest: &str, decision: Decision) -> Input {
    Input::Decide(Approval {
        deployment: w.d.id,
        plan_digest: digest.into(),
        person: BOB.into(),
        decision,
        comment: String::new(),
        at: t(0),
        signature: String::new(),
    })
}

/// The plan as it was before anything happened, with another digest.
pub(super) fn other_plan(d: &Deployment, quorum: u32) -> PlanFacts {
    let mut steps = d.steps.clone();
    for s in &mut steps {
        if !matches!(s.state, StepState::NotTaken | StepState::Skipped) {
            s.state = StepState::Waiting;
        }
    }
    PlanFacts { digest: format!("{}'", d.plan_digest), ..facts(steps, quorum) }
}

fn waits_for_approval(w: &mut World) {
    let by = By { who: ops(), reason: "less memory".into(), at: t(0) };
    let facts = other_plan(&w.d, 1);
    let amendment = Amendment { by, inputs: BTreeMap::new(), facts, approvals: vec![], hosts: vec![] };
    w.d.amendment = Some(Box::new(amendment));
}

/// The verb, aimed at these parts.
fn aimed(w: &World, verb: Verb, step: &str, hosts: &[&str], wave: u32, branch: &str) -> Input {
    let (by, reason) = (ops(), "because".to_owned());
    let hosts: Vec<String> = hosts.iter().map(|h| h.to_string()).collect();
    let digest = w.d.amendment.as_ref().map_or(&w.d.plan_digest, |a| &a.facts.digest).clone();
    // A step is named where no host is: the two tables are tried apart.
    let only = hosts.is_empty().then(|| step.to_owned());
    match verb {
        Verb::Approve => decide(w, &digest, Decision::Approve),
        Verb::Reject => decide(w, &digest, Decision::Reject),
        Verb::Accept => Input::Accept { by, digest },
        Verb::Cancel => Input::Cancel { by, reason },
        Verb::Claim => Input::Claim { by, take_over: false, reason },
        Verb::Unclaim => Input::Unclaim { by },
        Verb::Pause => Input::Pause { by, reason },
        Verb::Resume => Input::Resume { by },
        Verb::Confirm => Input::Confirm { by, wave },
        Verb::Choose => Input::Choose { by, step: step.into(), branch: branch.into() },
        Verb::Retry => Input::Retry { by, hosts, step: only, whole_wave: false },
        Verb::Skip => Input::Skip { by, hosts },
        Verb::Ignore => Input::Ignore { by, hosts, reason },
        Verb::Exclude => Input::Exclude { by, hosts, reason },
        Verb::Stop => Input::Stop { by, hosts, reason },
        Verb::Fail => Input::Fail { by, step: step.into(), reason },
        Verb::Succeed => Input::Succeed { by, step: only, hosts, reason },
        Verb::Override => Input::Override { by, hosts, reason },
        Verb::Abort => Input::Abort { by, reason },
        Verb::Rollback => {
            let (mode, rollback) = (RollbackMode::Normal, uuid::Uuid::from_u128(99).into());
            Input::Rollback { by, mode, rollback, reason }
        }
        Verb::Amend => {
            let facts = Box::new(other_plan(&w.d, 0));
            Input::Amend { by, inputs: BTreeMap::new(), facts, hosts, reason }
        }
    }
}

fn in_wave(s: &mut StepRun, w: usize, state: WaveState, hosts: &[HostState]) {
    s.state = StepState::Running;
    let StepRunKind::Rollout(r) = &mut s.kind else { panic!("a rollout") };
    let wave = &mut r.waves[w];
    wave.state = state;
    if matches!(state, WaveState::Running) {
        wave.work = Some(WorkId(uuid::Uuid::from_u128(500)));
    }
    for (h, state) in wave.hosts.iter_mut().zip(hosts) {
        h.state = *state;
        h.attempt = u32::from(*state != HostState::Waiting);
        h.failed_step = (*state == HostState::Failed).then_some(3);
    }
}

fn asking(mut s: StepRun, about: About) -> StepRun {
    s.asks = Some(Ask { about, reason: "no such key".into() });
    s
}

fn job(state: StepState) -> StepRun {
    let mut s = central("x", &[]);
    s.state = state;
    s.reached = state != StepState::Waiting;
    if let StepRunKind::Central { work, attempt, .. } = &mut s.kind
        && s.reached
    {
        *attempt = 1;
        *work = (state == StepState::Running).then(|| WorkId(uuid::Uuid::from_u128(600)));
    }
    s
}

/// A deployment in this state in which the verb finds something to do, if ever it may.
fn in_state(state: State, verb: Verb) -> World {
    let mut go = rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::None, 0);
    let mut look = rollout("look", &[], &[&["c"], &["d"]], 0, Confirm::Each, 0);
    let mut run = rollout("run", &[], &[&["r"]], 0, Confirm::None, 0);
    let mut lost = rollout("lost", &[], &[&["u", "v"], &["y"]], 1, Confirm::Each, 0);
    let ended = state.is_terminal();
    if !state.is_before_running() {
        in_wave(&mut go, 0, WaveState::Failed, &[HostState::Failed]);
        in_wave(&mut look, 0, WaveState::Confirming, &[HostState::Succeeded]);
        if !ended {
            in_wave(&mut run, 0, WaveState::Running, &[HostState::Running]);
        }
        if verb == Verb::Override {
            in_wave(&mut lost, 0, WaveState::Confirming, &[HostState::Unknown, HostState::Succeeded]);
        }
        if ended {
            (go.state, look.state) = (StepState::Failed, StepState::Stopped);
        }
    }
    let which = asking(super::graph::gateway("which", &[], GatewayMode::Exclusive, &[], &["go"]), About::Branch);
    let x = job(if state.is_before_running() || ended { StepState::Stopped } else { StepState::Running });
    let steps = vec![go, look, run, lost, which, x];
    let quorum = if verb == Verb::Accept { 0 } else { 2 };
    let mut w = World::new(facts(steps, quorum));
    w.d.state = state;
    w.d.lock = state.is_active().then_some(7);
    w.d.drifted_from = (verb == Verb::Accept).then(|| "d0".into());
    let by = || Some(By { who: ops(), reason: String::new(), at: t(0) });
    let active = matches!(state, State::Running | State::Paused);
    w.d.claim = by().filter(|_| verb == Verb::Unclaim && active);
    w.d.pause = by().filter(|_| verb == Verb::Resume && active);
    if matches!(verb, Verb::Approve | Verb::Reject) && active {
        waits_for_approval(&mut w);
    }
    w
}

#[test]
fn every_state_answers_every_verb() {
    for state in State::ALL {
        for verb in Verb::ALL {
            let hosts: &[&str] = match verb {
                Verb::Stop => &["r"],
                Verb::Exclude => &["b"],
                Verb::Succeed => &["a"],
                Verb::Override => &["u"],
                _ => &[],
            };
            let step = match verb {
                Verb::Choose => "which",
                Verb::Fail => "x",
                _ => "go",
            };
            let mut w = in_state(state, verb);
            let before = w.d.clone();
            let input = aimed(&w, verb, step, hosts, 0, "default");
            assert_eq!(Verb::of(&input), Some(verb));
            let who = if matches!(verb, Verb::Approve | Verb::Reject) { BOB } else { "olga" };
            let offers = offered(&w.d, who).contains(&verb);
            let done = w.try_do(input);
            let name = format!("{} of a deployment that is {}", verb.as_str(), state.as_str());
            match (answer(state, verb), done) {
                (Answer::Moves(to), Ok(effects)) => {
                    assert!(to.contains(&w.d.state), "{name} leads to {:?}", w.d.state);
                    assert!(w.d != before || !effects.is_empty(), "{name} changes nothing");
                    assert!(offers, "{name} is not offered");
                }
                (Answer::Idempotent(_), Ok(effects)) => {
                    assert!(w.d == before && effects.is_empty(), "{name} changes something");
                    assert!(!offers, "{name} is offered");
                }
                (Answer::Refused { code, remedy }, Err(refusal)) => {
                    assert_eq!(refusal.code(), code, "{name}");
                    assert!(refusal.to_string().contains(remedy), "{name}: {refusal}");
                    assert!(!offers, "{name} is offered");
                }
                (told, got) => panic!("{name}: the table says {told:?}, and it is {got:?}"),
            }
        }
    }
}

/// Checks what a verb did to one part against its table.
fn compare<S: PartialEq + std::fmt::Debug>(
    name: &str,
    told: Does<S>,
    before: S,
    after: S,
    done: &Result<Vec<Effect>, Refusal>,
) {
    match (told, done) {
        (Does::Nothing, _) => assert_eq!(after, before, "{name}"),
        (Does::Becomes(to, _), Ok(_)) => assert!(to.contains(&after), "{name}: it becomes {after:?}"),
        (Does::Refused { code, .. }, Err(refusal)) => {
            assert_eq!(refusal.code(), code, "{name}: {refusal}");
            assert_eq!(after, before, "{name}");
        }
        (told, done) => panic!("{name}: the table says {told:?}, and it is {done:?}"),
    }
}

/// Something that waits for a person, so that the run goes on standing whatever becomes of the part that is looked at.
fn gate() -> StepRun {
    asking(central("gate", &[]), About::Condition)
}

fn standing(steps: Vec<StepRun>, verb: Verb) -> World {
    let mut w = World::new(facts(steps, 0));
    w.d.state = State::Running;
    w.d.lock = Some(7);
    if verb == Verb::Approve {
        waits_for_approval(&mut w);
    }
    w
}

#[test]
fn every_step_answers_every_verb() {
    for state in within::STEPS {
        for verb in Verb::ALL {
            let mut x = job(state);
            let mut branch = "run";
            match (verb, state) {
                (Verb::Choose, StepState::Waiting) => x = asking(x, About::Condition),
                (Verb::Choose, StepState::Running) => {
                    branch = "done";
                    x = asking(super::graph::repeated(x, "true", 3, 1), About::Until);
                }
                // It must not start by itself meanwhile.
                (_, StepState::Waiting) => x.needs.push("gate".into()),
                _ => {}
            }
            let mut w = standing(vec![x, gate()], verb);
            let input = aimed(&w, verb, "x", &[], 0, branch);
            let done = w.try_do(input);
            let name = format!("{} with a step that is {state:?}", verb.as_str());
            compare(&name, within::step(state, verb), state, w.d.steps[0].state, &done);
        }
    }
}

#[test]
fn every_wave_answers_every_verb() {
    let until = t(1000);
    for kind in WaveKind::ALL {
        for verb in Verb::ALL {
            let mut x = rollout("x", &[], &[&["h"], &["z"]], 0, Confirm::None, 60);
            let mut at = 0;
            let (state, host) = match kind {
                WaveKind::Waiting => (WaveState::Waiting, HostState::Waiting),
                WaveKind::Running => (WaveState::Running, HostState::Running),
                WaveKind::Confirming => (WaveState::Confirming, HostState::Succeeded),
                WaveKind::Baking => (WaveState::Baking { until }, HostState::Succeeded),
                WaveKind::Probing => (WaveState::Probing { until }, HostState::Succeeded),
                WaveKind::Retrying => (WaveState::Retrying { at: until }, HostState::Failed),
                WaveKind::Succeeded => (WaveState::Succeeded, HostState::Succeeded),
                WaveKind::Failed => (WaveState::Failed, HostState::Failed),
                WaveKind::Stopped => (WaveState::Stopped, HostState::AutoStopped),
            };
            if kind == WaveKind::Waiting {
                in_wave(&mut x, 0, WaveState::Confirming, &[HostState::Succeeded]);
                at = 1;
            }
            in_wave(&mut x, at, state, &[host]);
            let on = vec![crate::work::FailureClass::Exit];
            let policy = Retry { max: 9, on, exit_codes: vec![], backoff_s: 5, factor: 2, max_backoff_s: 60 };
            x.retry = (kind == WaveKind::Retrying).then_some(policy);
            if let StepRunKind::Rollout(r) = &mut x.kind
                && kind == WaveKind::Probing
            {
                r.probes = Some(crate::flow::Inconclusive::Ask);
                let work = WorkId(uuid::Uuid::from_u128(700));
                let probe = ProbeRun { work, attempt: 1, until, verdict: None, probes: vec![], reason: None };
                r.waves[0].probe = Some(probe);
            }
            let mut w = standing(vec![x, gate()], verb);
            let named = if at == 0 { "h" } else { "z" };
            let input = aimed(&w, verb, "x", &[named], at as u32, "run");
            let done = w.try_do(input);
            let StepRunKind::Rollout(r) = &w.d.steps[0].kind else { panic!("a rollout") };
            let name = format!("{} with a wave that is {}", verb.as_str(), kind.as_str());
            compare(&name, within::wave(kind, verb), kind, WaveKind::of(r.waves[at].state), &done);
        }
    }
}

#[test]
fn every_host_answers_every_verb() {
    for state in within::HOSTS {
        for verb in Verb::ALL {
            let mut x = rollout("x", &[], &[&["first", "h"], &["h2"]], 0, Confirm::Each, 0);
            let mut named = "h";
            match state {
                HostState::Waiting => {
                    in_wave(&mut x, 0, WaveState::Confirming, &[HostState::Succeeded, HostState::Succeeded]);
                    named = "h2";
                }
                HostState::Running => in_wave(&mut x, 0, WaveState::Running, &[HostState::Succeeded, state]),
                _ => in_wave(&mut x, 0, WaveState::Failed, &[HostState::Failed, state]),
            }
            let mut w = standing(vec![x, gate()], verb);
            if let Some(a) = &mut w.d.amendment {
                a.hosts = vec![named.into()];
            }
            // No wave is to be confirmed: the next one would start, and that is not what is looked at.
            let input = aimed(&w, verb, "x", &[named], 9, "run");
            let done = w.try_do(input);
            let after = w.d.hosts().find(|h| h.host == named).map(|h| h.state).expect("the host");
            let name = format!("{} with a host that is {state:?}", verb.as_str());
            compare(&name, within::host(state, verb), state, after, &done);
        }
    }
}

/// Every way a person could mean the verb here.
fn ways(w: &World, verb: Verb) -> Vec<Input> {
    let names: Vec<String> = w.d.hosts().map(|h| h.host.clone()).collect();
    let mut ways = Vec::new();
    for s in &w.d.steps {
        for branch in s.choices().iter().map(String::as_str).chain(["default"]) {
            ways.push(aimed(w, verb, &s.id, &[], 0, branch));
        }
    }
    for wave in 0..3 {
        ways.push(aimed(w, verb, "go", &[], wave, "default"));
    }
    ways.extend(names.iter().map(|h| aimed(w, verb, "go", &[h], 0, "default")));
    // Nobody in particular.
    if verb == Verb::Retry {
        ways.push(Input::Retry { by: ops(), hosts: vec![], step: None, whole_wave: false });
    }
    ways
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]
    /// After any history: a verb is offered exactly when some way to mean it is taken.
    #[test]
    fn what_is_offered_is_what_is_taken(script in proptest::collection::vec((0_u8..20, any::<u8>()), 1..25)) {
        let mut go = rollout("go", &["pre"], &[&["a"], &["b", "c"], &["d"]], 1, Confirm::First, 5);
        if let StepRunKind::Rollout(r) = &mut go.kind {
            r.required = vec!["must".into()];
        }
        let which = super::graph::gateway("which", &[], GatewayMode::Exclusive, &[("one", "inputs.none", &["post"])], &[]);
        let mut post = central("post", &["go"]);
        post.required = true;
        let mut w = World::running(facts(vec![central("pre", &[]), go, which, post], 0));
        for (n, (verb, x)) in script.into_iter().enumerate() {
            w.now += 2;
            let flying = w.d.works_in_flight();
            match verb {
                0..=7 if !flying.is_empty() => {
                    let outcomes = [Outcome::Failed, Outcome::Succeeded, Outcome::Unknown, Outcome::NotStarted, Outcome::Cancelled];
                    let outcome = outcomes[usize::from(x) % 5];
                    let names = ["a", "b", "c", "d"];
                    let bad: Vec<(&str, Outcome)> = names.iter().filter(|_| outcome != Outcome::Succeeded).take(usize::from(x) % 3).map(|h| (*h, outcome)).collect();
                    w.settle(&bad);
                    if x % 4 == 0 {
                        // The step that failed is the one that is required.
                        for s in &mut w.d.steps {
                            let StepRunKind::Rollout(r) = &mut s.kind else { continue };
                            for h in r.waves.iter_mut().flat_map(|w| &mut w.hosts).filter(|h| h.state == HostState::Failed) {
                                h.failed_id = Some("must".into());
                            }
                        }
                    }
                }
                8..=18 => {
                    let verb = Verb::ALL[(usize::from(x) + n) % Verb::ALL.len()];
                    let rare = matches!(verb, Verb::Abort | Verb::Rollback) && x % 8 != 0;
                    let ways = ways(&w, verb);
                    if !rare && let Some(input) = ways.get(usize::from(x) % ways.len().max(1)) {
                        drop(w.try_do(input.clone()));
                    }
                }
                _ if w.d.state == State::Queued => drop(w.go(Input::LockTaken { fence: 9 })),
                _ => drop(w.go(Input::Tick)),
            }
            // What is due by now has happened: only the verbs make a difference below.
            w.go(Input::Tick);
            for person in ["olga", "eve"] {
                let offers = offered(&w.d, person);
                for verb in Verb::ALL {
                    let mut mint = minter();
                    let takes = ways(&w, verb).into_iter().any(|i| {
                        w.d.apply(by_person(i, person), t(w.now), &mut mint).is_ok_and(|(d, effects)| d != w.d || !effects.is_empty())
                    });
                    // Taking over asks for more than the verb.
                    let over = verb == Verb::Claim && w.d.claim.as_ref().is_some_and(|c| c.who != person);
                    prop_assert_eq!(offers.contains(&verb), takes || over, "{} for {}: {:#?}", verb.as_str(), person, w.d);
                }
            }
        }
    }
}

/// The same, by somebody else.
fn by_person(input: Input, person: &str) -> Input {
    let by = person.to_owned();
    match input {
        Input::Decide(mut a) => {
            a.person = by;
            Input::Decide(a)
        }
        Input::Accept { digest, .. } => Input::Accept { by, digest },
        Input::Cancel { reason, .. } => Input::Cancel { by, reason },
        Input::Claim { take_over, reason, .. } => Input::Claim { by, take_over, reason },
        Input::Unclaim { .. } => Input::Unclaim { by },
        Input::Pause { reason, .. } => Input::Pause { by, reason },
        Input::Resume { .. } => Input::Resume { by },
        Input::Confirm { wave, .. } => Input::Confirm { by, wave },
        Input::Choose { step, branch, .. } => Input::Choose { by, step, branch },
        Input::Retry { hosts, step, whole_wave, .. } => Input::Retry { by, hosts, step, whole_wave },
        Input::Skip { hosts, .. } => Input::Skip { by, hosts },
        Input::Ignore { hosts, reason, .. } => Input::Ignore { by, hosts, reason },
        Input::Exclude { hosts, reason, .. } => Input::Exclude { by, hosts, reason },
        Input::Stop { hosts, reason, .. } => Input::Stop { by, hosts, reason },
        Input::Fail { step, reason, .. } => Input::Fail { by, step, reason },
        Input::Succeed { step, hosts, reason, .. } => Input::Succeed { by, step, hosts, reason },
        Input::Override { hosts, reason, .. } => Input::Override { by, hosts, reason },
        Input::Abort { reason, .. } => Input::Abort { by, reason },
        Input::Rollback { mode, rollback, reason, .. } => Input::Rollback { by, mode, rollback, reason },
        Input::Amend { inputs, facts, hosts, reason, .. } => Input::Amend { by, inputs, facts, hosts, reason },
        other => other,
    }
}

#[test]
fn verbs_page() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ops/docs/verbs.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, page()).expect("write the page");
    }
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    assert!(stored == page(), "ops/docs/verbs.md is not what the tables say: run this test with UPDATE=1");
}

#[test]
fn every_verb_says_what_it_does_and_what_right_it_takes() {
    let names: BTreeSet<&str> = Verb::ALL.iter().map(|v| v.as_str()).collect();
    assert_eq!(names.len(), Verb::ALL.len());
    for verb in Verb::ALL {
        assert!(verb.says().ends_with('.'), "{}", verb.as_str());
        assert_eq!(serde_json::to_value(verb).expect("json"), verb.as_str());
    }
}
