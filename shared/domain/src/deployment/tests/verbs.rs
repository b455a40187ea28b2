//! The corner cases of stepping in, by their names.

use super::{
    graph::{enter, leave},
    table::{BOB, other_plan},
    *,
};
use crate::deployment::table::{Verb, offered};
use crate::flow::StepFailure;
use serde_json::json;

pub(super) fn events(effects: &[Effect]) -> Vec<&'static str> {
    let what = |e: &Effect| match e {
        Effect::Event { what, .. } => Some(*what),
        _ => None,
    };
    effects.iter().filter_map(what).collect()
}

pub(super) fn severity(effects: &[Effect], name: &str) -> Severity {
    let of = |e: &Effect| match e {
        Effect::Event { what, severity, .. } if *what == name => Some(*severity),
        _ => None,
    };
    effects.iter().find_map(of).unwrap_or_else(|| panic!("no event {name}"))
}

pub(super) fn names(hosts: &[&str]) -> Vec<String> {
    hosts.iter().map(|h| h.to_string()).collect()
}

pub(super) fn retry(hosts: &[&str]) -> Input {
    Input::Retry { by: ops(), hosts: names(hosts), step: None, whole_wave: false }
}

pub(super) fn on_failure(mut s: StepRun, f: StepFailure) -> StepRun {
    s.on_failure = Some(f);
    s
}

impl World {
    pub(super) fn host(&self, name: &str) -> &HostRun {
        self.d.hosts().find(|h| h.host == name).unwrap_or_else(|| panic!("no host {name}"))
    }

    pub(super) fn refused(&mut self, input: Input) -> &'static str {
        let before = self.d.clone();
        let refusal = self.try_do(input).expect_err("refused");
        assert_eq!(self.d, before);
        assert!(!refusal.to_string().is_empty());
        refusal.code()
    }

    /// Takes it up again, and its lock comes.
    pub(super) fn reopen(&mut self, input: Input) -> Vec<Effect> {
        self.go(input);
        assert_eq!((self.d.state, self.d.lock), (State::Queued, None));
        self.go(Input::LockTaken { fence: 8 })
    }
}

#[test]
fn the_tenth_retry_still_asks() {
    let mut w = World::running(facts(vec![rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::None, 0)], 0));
    w.settle(&[("a", Outcome::Failed)]);
    for attempt in 2..=11 {
        assert!(matches!(&w.d.waiting_on()[..], [WaitingOn::Intervention { .. }]), "{:?}", w.d.waiting_on());
        w.go(retry(&[]));
        assert_eq!(w.wave_hosts(), [("a".into(), attempt, 3)]);
        let effects = w.settle(&[("a", Outcome::Failed)]);
        assert_eq!(w.d.state, State::Paused, "it never goes on silently");
        assert!(events(&effects).contains(&"deployment.needs_intervention"));
    }
    let mut w = World::running(facts(vec![central("x", &[]), central("y", &["x"])], 0));
    for _ in 0..10 {
        w.fail("x");
        assert_eq!(w.d.state, State::Paused);
        w.go(retry(&[]));
        assert_eq!(w.open(), ["x"]);
    }
}

#[test]
fn an_excluded_host_takes_no_part_in_later_waves_nor_in_later_rollouts() {
    let steps = vec![
        rollout("one", &[], &[&["a"], &["b", "c"]], 0, Confirm::First, 0),
        rollout("two", &["one"], &[&["a"], &["b", "c"]], 0, Confirm::None, 0),
    ];
    let mut w = World::running(facts(steps, 0));
    w.settle(&[]);
    w.go(Input::Exclude { by: ops(), hosts: names(&["b"]), reason: "on fire".into() });
    assert_eq!(w.host("b").by.as_ref().map(|b| b.who.as_str()), Some("olga"));
    w.go(Input::Confirm { by: ops(), wave: 0 });
    let mut ran = w.wave_hosts();
    for _ in 0..3 {
        w.settle(&[]);
        if w.d.state == State::Running {
            ran.extend(w.wave_hosts());
        }
    }
    assert_eq!(w.d.state, State::Succeeded);
    let ran: Vec<&str> = ran.iter().map(|h| h.0.as_str()).collect();
    assert_eq!(ran, ["c", "a", "c"]);
    // A wave all of whose hosts are out is passed by.
    let mut w = World::running(facts(vec![rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::None, 0)], 0));
    w.go(Input::Exclude { by: ops(), hosts: names(&["b"]), reason: "on fire".into() });
    w.settle(&[]);
    assert_eq!(w.d.state, State::Succeeded);
}

#[test]
fn a_required_step_is_skipped_or_ignored_by_no_verb() {
    let required = |mut s: StepRun| {
        s.required = true;
        s
    };
    let skip = |hosts: &[&str]| Input::Skip { by: ops(), hosts: names(hosts) };
    let ignore = |hosts: &[&str]| Input::Ignore { by: ops(), hosts: names(hosts), reason: "r".into() };
    let choose = |step: &str| Input::Choose { by: ops(), step: step.into(), branch: "skip".into() };
    // A central step; and what else has failed is not passed over with it.
    let mut w = World::running(facts(vec![required(central("x", &[])), central("y", &[])], 0));
    w.fail("x");
    w.fail("y");
    assert_eq!([w.refused(skip(&[])), w.refused(ignore(&[]))], ["required", "required"]);
    assert!(offered(&w.d, "olga").iter().all(|v| !matches!(v, Verb::Skip | Verb::Ignore)));
    w.go(retry(&[]));
    // Its condition could not be decided.
    let mut x = required(central("x", &[]));
    x.condition = Some("inputs.none".into());
    let mut w = World::running(facts(vec![x], 0));
    assert_eq!(w.refused(choose("x")), "required");
    w.go(Input::Choose { by: ops(), step: "x".into(), branch: "run".into() });
    assert_eq!(w.open(), ["x"]);
    // Within a subflow that would be left out.
    let mut sub = leave("sub", &["sub/x"]);
    sub.repeat = Some(RepeatRun { until: "false".into(), max: 1, every_s: 1, runs: 0, next_at: None });
    let steps = vec![enter("sub", &[]), required(central("sub/x", &["sub/enter"])), sub];
    let mut w = World::running(facts(steps.clone(), 0));
    w.fail("sub/x");
    assert_eq!([w.refused(skip(&[])), w.refused(ignore(&[]))], ["required", "required"]);
    // Once it has run, what comes after it may be passed over.
    w.go(retry(&[]));
    w.give("sub/x", json!({}));
    assert_eq!(w.state("sub"), StepState::Failed, "its repeats are used up");
    w.go(skip(&[]));
    assert_eq!(w.d.state, State::Succeeded);
    let mut w = World::new(facts(steps, 0));
    w.d.steps[0].asks = Some(Ask { about: About::Inputs, reason: "no such key".into() });
    w.go(Input::LockTaken { fence: 1 });
    assert_eq!(w.refused(choose("sub/enter")), "required");
    // On hosts: the step that failed there; a host that never ran it; and a rollout that is required itself.
    let rollouts = |whole: bool| {
        let mut go = rollout("go", &[], &[&["a", "b"]], 0, Confirm::None, 0);
        go.required = whole;
        if let StepRunKind::Rollout(r) = &mut go.kind {
            r.required = if whole { vec![] } else { vec!["must".into()] };
        }
        let w = World::running(facts(vec![go], 0));
        let work = w.d.works_in_flight()[0];
        let failed = |host: &str, id: &str, outcome| HostResult {
            host: host.into(),
            attempt: 1,
            outcome,
            failed_step: (outcome == Outcome::Failed).then_some(1),
            reason: None,
            failed_id: (outcome == Outcome::Failed).then(|| id.to_owned()),
            class: None,
            exit_code: None,
            outputs: Default::default(),
        };
        let hosts = |b| vec![failed("a", "must", Outcome::Failed), failed("b", "may", b)];
        (w.d.clone(), work, hosts(Outcome::Failed), hosts(Outcome::NotStarted), w)
    };
    let (d, work, both, never, mut w) = rollouts(false);
    w.go(Input::WorkSettled { work, result: WorkResult::Wave { hosts: both } });
    for hosts in [&[][..], &["a"], &["a", "b"]] {
        assert_eq!([w.refused(skip(hosts)), w.refused(ignore(hosts))], ["required", "required"], "{hosts:?}");
    }
    w.go(ignore(&["b"]));
    w.d = d;
    w.go(Input::WorkSettled { work, result: WorkResult::Wave { hosts: never } });
    assert_eq!(w.refused(ignore(&["b"])), "required", "it never ran the step there");
    w.go(Input::Exclude { by: ops(), hosts: names(&["b"]), reason: "gone".into() });
    let (_, work, both, _, mut w) = rollouts(true);
    w.go(Input::WorkSettled { work, result: WorkResult::Wave { hosts: both } });
    assert_eq!([w.refused(skip(&["b"])), w.refused(ignore(&["b"]))], ["required", "required"]);
}

#[test]
fn a_rollback_is_not_rolled_back() {
    let mut w = World::running(facts(vec![central("x", &[])], 0));
    w.d.kind = ReleaseKind::Rollback;
    let rollback = uuid::Uuid::from_u128(5).into();
    let input = Input::Rollback { by: ops(), mode: RollbackMode::Emergency, rollback, reason: "r".into() };
    assert_eq!(w.refused(input.clone()), "invalid");
    assert!(!offered(&w.d, "olga").contains(&Verb::Rollback));
    w.fail("x");
    assert_eq!(w.refused(input), "invalid");
}

#[test]
fn a_pause_holds_the_works_that_run_and_keeps_the_lock() {
    let steps = vec![rollout("go", &[], &[&["a", "b"], &["c"]], 0, Confirm::None, 0), central("x", &[])];
    let mut w = World::running(facts(steps, 0));
    let pause = || Input::Pause { by: ops(), reason: "look".into() };
    let effects = w.go(pause());
    assert!(effects.contains(&Effect::HoldWorks(true)));
    assert_eq!((w.d.state, w.d.lock), (State::Paused, Some(3)));
    assert_eq!(w.refused(pause()), "nothing_to_do");
    // Works end meanwhile, people step in, and still nothing starts.
    let x = w.d.works_in_flight()[1];
    let failed = WorkResult::Central { succeeded: false, reason: None, output: json!(null), class: None };
    w.go(Input::WorkSettled { work: x, result: failed });
    let effects = w.settle(&[]);
    assert!(!effects.iter().any(|e| matches!(e, Effect::FreeLock | Effect::StartWork { .. })));
    let effects = w.go(retry(&[]));
    assert!(!effects.iter().any(|e| matches!(e, Effect::StartWork { .. })));
    assert_eq!((w.d.state, w.d.lock, w.d.works_in_flight().len()), (State::Paused, Some(3), 0));
    let effects = w.go(Input::Resume { by: ops() });
    assert!(effects.contains(&Effect::HoldWorks(false)));
    assert_eq!(w.open(), ["go", "x"]);
    assert_eq!(w.refused(Input::Resume { by: ops() }), "wrong_state");
}

#[test]
fn an_abort_of_a_paused_and_held_deployment_ends() {
    let mut w = World::running(facts(vec![rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::None, 0)], 0));
    w.go(Input::Pause { by: ops(), reason: "look".into() });
    let effects = w.go(Input::Abort { by: ops(), reason: "no".into() });
    assert!(effects.contains(&Effect::AbortWorks));
    assert_eq!((w.d.state, &w.d.pause), (State::Aborting, &None));
    let again = w.go(Input::Abort { by: "eve".into(), reason: "no!".into() });
    assert!(again.is_empty(), "once is enough, and it is a yes");
    let effects = w.settle(&[("a", Outcome::NotStarted)]);
    assert_eq!(w.d.state, State::Aborted);
    assert!(effects.contains(&Effect::FreeLock));
    // With nothing under way it ends at once.
    let mut w = World::running(facts(vec![central("x", &[])], 0));
    w.fail("x");
    w.go(Input::Pause { by: ops(), reason: "look".into() });
    w.go(Input::Abort { by: ops(), reason: "no".into() });
    assert_eq!(w.d.state, State::Aborted);
}

#[test]
fn who_steps_in_first_answers_for_it_until_it_is_taken_over() {
    let claim = |by: &str, take_over, reason: &str| Input::Claim { by: by.into(), take_over, reason: reason.into() };
    let by =
        |who: &str, hosts: &[&str]| Input::Retry { by: who.into(), hosts: names(hosts), step: None, whole_wave: false };
    let failed = || {
        let mut w =
            World::running(facts(vec![rollout("go", &[], &[&["a", "b"]], 0, Confirm::None, 0), central("x", &[])], 0));
        w.settle(&[("a", Outcome::Failed), ("b", Outcome::Failed)]);
        w
    };
    let mut w = World::running(facts(vec![central("x", &[])], 0));
    assert_eq!(w.refused(claim("ann", false, "")), "nothing_to_do");
    let mut w = failed();
    assert_eq!(w.refused(claim("hook:ci", false, "")), "invalid");
    w.go(by("hook:ci", &["a"]));
    assert_eq!(w.d.claim, None, "a hook answers for nothing");
    let mut w = failed();
    w.fail("x");
    // Stepping in claims, in the same change.
    let effects = w.go(by("ann", &["a"]));
    assert!(events(&effects).contains(&"deployment.claimed"));
    assert_eq!(w.d.claim.as_ref().map(|c| c.who.as_str()), Some("ann"));
    let refusal = w.try_do(by("eve", &[])).expect_err("claimed");
    assert!(refusal.code() == "claimed" && refusal.to_string().contains("ann"), "{refusal}");
    let reason = || "r".to_owned();
    let eve = || "eve".to_owned();
    for gated in [
        Input::Skip { by: eve(), hosts: vec![] },
        Input::Ignore { by: eve(), hosts: vec![], reason: reason() },
        Input::Exclude { by: eve(), hosts: names(&["b"]), reason: reason() },
        Input::Succeed { by: eve(), step: Some("x".into()), hosts: vec![], reason: reason() },
        Input::Fail { by: eve(), step: "x".into(), reason: reason() },
        Input::Choose { by: eve(), step: "x".into(), branch: "run".into() },
        Input::Amend {
            by: eve(),
            inputs: BTreeMap::new(),
            facts: Box::new(other_plan(&w.d, 0)),
            hosts: vec![],
            reason: reason(),
        },
        claim("eve", false, ""),
        Input::Unclaim { by: eve() },
    ] {
        assert_eq!(w.refused(gated), "claimed");
    }
    assert!(!offered(&w.d, "eve").contains(&Verb::Retry) && offered(&w.d, "eve").contains(&Verb::Claim));
    // What stops harm waits for nobody.
    for open in [
        Input::Pause { by: eve(), reason: reason() },
        Input::Stop { by: eve(), hosts: names(&["a"]), reason: reason() },
        Input::Abort { by: eve(), reason: reason() },
        Input::Rollback {
            by: eve(),
            mode: RollbackMode::Normal,
            rollback: uuid::Uuid::from_u128(5).into(),
            reason: reason(),
        },
    ] {
        assert!(w.d.apply(open.clone(), t(0), &mut minter()).is_ok(), "{open:?}");
    }
    assert_eq!(w.refused(claim("eve", true, " ")), "invalid");
    let effects = w.go(claim("eve", true, "ann is asleep"));
    assert_eq!(severity(&effects, "deployment.claim_taken_over"), Severity::Notice);
    assert_eq!(w.refused(by("ann", &["b"])), "claimed");
    assert!(w.go(claim("eve", false, "")).is_empty(), "hers already");
    let effects = w.go(Input::Unclaim { by: eve() });
    assert_eq!((events(&effects), &w.d.claim), (vec!["deployment.unclaimed"], &None));
    // It ends by itself when nothing waits for a person any more.
    w.go(claim("ann", false, ""));
    w.settle(&[]);
    let effects = w.go(by("ann", &[]));
    assert_eq!(w.d.claim, None);
    assert!(events(&effects).contains(&"deployment.unclaimed"));
    // And with the deployment.
    let mut w = failed();
    w.go(claim("ann", false, ""));
    w.go(Input::Abort { by: ops(), reason: reason() });
    assert_eq!(w.d.claim, None);
}

#[test]
fn a_confirmation_is_claimed_only_where_probes_could_not_tell() {
    let confirm = |by: &str| Input::Confirm { by: by.into(), wave: 0 };
    for unclear in [false, true] {
        let steps = vec![rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::First, 0), central("x", &[])];
        let mut w = World::running(facts(steps, 0));
        w.settle(&[]);
        w.fail("x");
        w.go(Input::Claim { by: "ann".into(), take_over: false, reason: String::new() });
        let StepRunKind::Rollout(r) = &mut w.d.steps[0].kind else { panic!("a rollout") };
        let work = WorkId(uuid::Uuid::from_u128(70));
        let verdict = Some(crate::work::Verdict::Inconclusive);
        let probe = ProbeRun { work, attempt: 1, until: t(0), verdict, probes: vec![], reason: None };
        r.waves[0].probe = Some(probe).filter(|_| unclear);
        assert_eq!(offered(&w.d, "eve").contains(&Verb::Confirm), !unclear);
        if unclear {
            assert_eq!(w.refused(confirm("eve")), "claimed");
            w.go(confirm("ann"));
        } else {
            w.go(confirm("eve"));
            assert_eq!(w.d.claim.as_ref().map(|c| c.who.as_str()), Some("ann"));
        }
        assert_eq!(w.wave_hosts(), [("b".into(), 1, 0)]);
    }
}

#[test]
fn hosts_stopped_by_hand_count_apart_with_who_and_why() {
    let mut w = World::running(facts(vec![rollout("go", &[], &[&["a", "b", "c"], &["d"]], 0, Confirm::None, 0)], 0));
    let stop = |hosts: &[&str]| Input::Stop { by: ops(), hosts: names(hosts), reason: "it hangs".into() };
    assert_eq!(w.refused(stop(&[])), "invalid");
    assert_eq!(w.refused(stop(&["a", "d"])), "nothing_to_do");
    let effects = w.go(stop(&["a", "b", "c"]));
    assert_eq!(severity(&effects, "deployment.hosts_stopped"), Severity::Notice);
    let want = Effect::StopTasks { hosts: names(&["a", "b", "c"]), by: ops(), reason: "it hangs".into() };
    assert!(effects.contains(&want));
    assert_eq!(w.host("a").state, HostState::Running, "until it is known what became of it");
    w.settle(&[("a", Outcome::Cancelled), ("b", Outcome::NotStarted)]);
    let by = |h: &HostRun| h.by.as_ref().map(|b| (b.who.clone(), b.reason.clone(), b.at));
    assert_eq!((w.host("a").state, w.host("b").state), (HostState::HandStopped, HostState::NotStarted));
    assert_eq!(by(w.host("a")), Some((ops(), "it hangs".into(), t(0))));
    assert!(by(w.host("b")).is_some());
    assert_eq!((w.host("c").state, by(w.host("c"))), (HostState::Succeeded, None), "it had come to its own end");
    assert_eq!(w.d.state, State::Paused);
    w.go(retry(&[]));
    assert_eq!(by(w.host("a")), None);
    w.settle(&[("a", Outcome::Unknown)]);
    assert_eq!(w.refused(stop(&["a"])), "unsettled");
}

#[test]
fn a_step_called_failed_has_failed_whatever_its_work_says() {
    let mut w = World::running(facts(vec![central("x", &[]), central("y", &["x"])], 0));
    let fail = |step: &str| Input::Fail { by: ops(), step: step.into(), reason: "it hangs".into() };
    let work = w.d.works_in_flight()[0];
    assert_eq!((w.refused(fail("y")), w.refused(fail("z"))), ("nothing_to_do", "invalid"));
    let effects = w.go(fail("x"));
    assert!(effects.contains(&Effect::AbortWork(work)));
    assert_eq!(severity(&effects, "deployment.forced"), Severity::Alert);
    assert_eq!(w.refused(retry(&[])), "nothing_to_do", "no second attempt meets the first");
    assert_eq!(w.refused(fail("x")), "nothing_to_do");
    let well = WorkResult::Central { succeeded: true, reason: None, output: json!({ "ok": true }), class: None };
    w.go(Input::WorkSettled { work, result: well });
    assert_eq!((w.state("x"), w.d.state), (StepState::Failed, State::Paused));
    assert!(w.d.steps[0].outputs.is_empty());
    assert!(
        matches!(&w.d.waiting_on()[..], [WaitingOn::Intervention { reason, .. }] if reason.contains("olga: it hangs"))
    );
    w.go(retry(&[]));
    assert_eq!(w.d.steps[0].forced, None);
    w.settle(&[]);
    assert_eq!(w.open(), ["y"]);
    // Retried by way of its subflow, it is judged by its new attempt.
    let x = on_failure(central("sub/x", &["sub/enter"]), StepFailure::Continue);
    let sub = leave("sub", &["sub/x", "sub/y"]);
    let mut w = World::running(facts(vec![enter("sub", &[]), x, central("sub/y", &["sub/x"]), sub], 0));
    w.go(fail("sub/x"));
    w.settle(&[]);
    assert_eq!((w.state("sub/x"), w.state("sub")), (StepState::Failed, StepState::Failed));
    w.go(retry(&[]));
    w.give("sub/x", json!({}));
    assert_eq!(w.open(), ["sub/y"]);
    // Between two runs of a repeated step nothing is under way: it fails at once.
    let mut w = World::running(facts(vec![super::graph::repeated(central("x", &[]), "false", 9, 60)], 0));
    w.settle(&[]);
    assert_eq!(w.d.works_in_flight().len(), 0);
    w.go(fail("x"));
    assert_eq!((w.state("x"), w.d.state), (StepState::Failed, State::Paused));
    w.now = 100;
    w.go(Input::Tick);
    assert_eq!(w.d.works_in_flight().len(), 0, "and does not run again by itself");
}

#[test]
fn what_failed_is_well_by_a_persons_word_that_stands_in_the_record() {
    let well = |step: Option<&str>, hosts: &[&str]| {
        let step = step.map(str::to_owned);
        Input::Succeed { by: ops(), step, hosts: names(hosts), reason: "mended by hand".into() }
    };
    let mut x = central("x", &[]);
    x.required = true;
    let mut w =
        World::running(facts(vec![x, rollout("go", &["x"], &[&["a", "b", "c", "d"], &["e"]], 0, Confirm::None, 0)], 0));
    assert_eq!(w.refused(well(Some("x"), &[])), "nothing_to_do");
    w.fail("x");
    assert_eq!((w.refused(well(None, &[])), w.refused(well(Some("go"), &[]))), ("invalid", "invalid"));
    let effects = w.go(well(Some("x"), &[]));
    assert_eq!(severity(&effects, "deployment.forced"), Severity::Alert);
    assert_eq!(w.d.steps[0].forced.as_ref().map(|b| b.reason.as_str()), Some("mended by hand"));
    assert_eq!(w.open(), ["go"]);
    w.settle(&[("a", Outcome::Failed), ("b", Outcome::Unknown), ("c", Outcome::NotStarted)]);
    assert_eq!((w.refused(well(None, &["b"])), w.refused(well(None, &["d"]))), ("unsettled", "nothing_to_do"));
    assert_eq!(w.refused(well(None, &["a", "b"])), "unsettled", "all of it or nothing");
    w.go(well(None, &["a", "c"]));
    assert_eq!((w.host("c").state, w.host("c").by.is_some(), w.d.state), (HostState::Succeeded, true, State::Paused));
    w.go(Input::Override { by: ops(), hosts: names(&["b"]), reason: "gone".into() });
    w.go(well(None, &["b"]));
    assert_eq!(w.wave_hosts(), [("e".into(), 1, 0)]);
}

#[test]
fn a_whole_wave_runs_again_from_its_first_step() {
    let whole = |hosts: &[&str]| Input::Retry { by: ops(), hosts: names(hosts), step: None, whole_wave: true };
    let mut w =
        World::running(facts(vec![rollout("go", &[], &[&["z"], &["a", "b", "c", "out"]], 0, Confirm::None, 0)], 0));
    w.go(Input::Exclude { by: ops(), hosts: names(&["out"]), reason: "r".into() });
    w.settle(&[]);
    w.settle(&[("b", Outcome::Failed), ("c", Outcome::Unknown)]);
    assert_eq!((w.refused(whole(&["b"])), w.refused(whole(&[]))), ("invalid", "unsettled"));
    w.go(Input::Override { by: ops(), hosts: vec![], reason: "gone".into() });
    w.go(whole(&[]));
    assert_eq!(w.wave_hosts(), [("a".into(), 2, 0), ("b".into(), 2, 0), ("c".into(), 2, 0)]);
    let WorkSpec::Wave(work) = &w.works[&w.d.works_in_flight()[0]] else { panic!("a wave") };
    assert!(work.again, "a host may run again though it had succeeded");
    w.settle(&[]);
    assert_eq!((w.d.state, w.host("z").attempt), (State::Succeeded, 1));
}

#[test]
fn other_inputs_wait_for_approvals_of_their_own_plan() {
    let steps = vec![
        rollout("go", &[], &[&["a", "b"], &["c"]], 0, Confirm::None, 0),
        central("x", &[]),
        central("late", &["go"]),
    ];
    let failed = || {
        let mut w = World::running(facts(steps.clone(), 0));
        w.settle(&[("a", Outcome::Failed)]);
        w
    };
    let amend = |plan: PlanFacts, hosts: &[&str]| {
        let inputs = BTreeMap::from([("memory".to_owned(), json!("2g"))]);
        Input::Amend {
            by: ops(),
            inputs,
            facts: Box::new(plan),
            hosts: names(hosts),
            reason: "too little memory".into(),
        }
    };
    let decide = |w: &World, who: &str, digest: &str, decision| {
        Input::Decide(Approval {
            deployment: w.d.id,
            plan_digest: digest.into(),
            person: who.into(),
            decision,
            comment: String::new(),
            at: t(0),
            signature: String::new(),
        })
    };
    let changed = |w: &World, quorum| {
        let mut plan = other_plan(&w.d, quorum);
        plan.digest = "d2".into();
        plan.steps[2].condition = Some("false".into());
        plan.context.insert("inputs".into(), json!({ "memory": "2g" }));
        plan
    };
    let mut w = failed();
    let plan = changed(&w, 1);
    let effects = w.go(amend(plan.clone(), &[]));
    assert_eq!(severity(&effects, "deployment.amended"), Severity::Action);
    assert_eq!((w.d.plan_digest.as_str(), w.d.works_in_flight().len()), ("d1", 1), "nothing runs under it yet");
    assert_eq!(w.host("a").state, HostState::Failed);
    // The work of `x` was made under the old plan, and goes on under it.
    let effects = w.give("x", json!({}));
    assert!(!events(&effects).contains(&"deployment.amendment_approved"));
    assert_eq!(w.d.state, State::Paused);
    assert!(offered(&w.d, BOB).contains(&Verb::Approve) && !offered(&w.d, "olga").contains(&Verb::Approve));
    use Decision::{Approve, Reject};
    assert_eq!(w.refused(decide(&w, "olga", "d2", Approve)), "own_request");
    assert_eq!(w.refused(decide(&w, "ann", "d2", Approve)), "own_request", "she asked for the deployment");
    assert_eq!(w.refused(decide(&w, BOB, "d1", Approve)), "plan_changed");
    let effects = w.go(decide(&w, BOB, "d2", Reject));
    assert!(events(&effects).contains(&"deployment.amendment_rejected"));
    assert_eq!((&w.d.amendment, w.d.plan_digest.as_str(), w.host("a").state), (&None, "d1", HostState::Failed));
    w.go(amend(plan, &["a"]));
    let effects = w.go(decide(&w, BOB, "d2", Approve));
    assert!(events(&effects).contains(&"deployment.amendment_approved"));
    assert_eq!((w.d.plan_digest.as_str(), w.d.approvals.len(), w.d.rules.len()), ("d2", 1, 1));
    assert_eq!(w.d.context["inputs"], json!({ "memory": "2g" }));
    assert_eq!(w.wave_hosts(), [("a".into(), 2, 3)]);
    assert_eq!(w.refused(decide(&w, "eve", "d2", Approve)), "nothing_to_do");
    w.settle(&[]);
    w.settle(&[]);
    assert_eq!(
        (w.d.state, w.state("late")),
        (State::Succeeded, StepState::Skipped),
        "what had yet to run is as the new plan has it"
    );
    // Where nobody has to approve, it counts at once.
    let mut w = failed();
    let plan = changed(&w, 0);
    let effects = w.go(amend(plan, &[]));
    assert_eq!(severity(&effects, "deployment.amended"), Severity::Notice);
    assert_eq!((w.d.plan_digest.as_str(), w.host("a").attempt), ("d2", 2));
    // It must be the same steps on the same hosts, and something must have failed.
    let mut w = failed();
    let good = changed(&w, 0);
    let but = |f: &dyn Fn(&mut PlanFacts)| {
        let mut plan = good.clone();
        f(&mut plan);
        amend(plan, &[])
    };
    let wave = |p: &mut PlanFacts, f: &dyn Fn(&mut RolloutRun)| {
        if let StepRunKind::Rollout(r) = &mut p.steps[0].kind {
            f(r);
        }
    };
    for other in [
        but(&|p| drop(p.steps.pop())),
        but(&|p| p.steps[1].id = "y".into()),
        but(&|p| p.steps[1].needs.push("go".into())),
        but(&|p| p.steps[1] = rollout("x", &[], &[&["a"]], 0, Confirm::None, 0)),
        but(&|p| p.steps[0].state = StepState::Skipped),
        but(&|p| wave(p, &|r| r.waves[0].hosts[1].host = "q".into())),
        but(&|p| wave(p, &|r| drop(r.waves.pop()))),
        but(&|p| wave(p, &|r| r.host_steps = 4)),
    ] {
        assert_eq!(w.refused(other), "invalid");
    }
    assert_eq!(w.refused(but(&|p| p.digest = "d1".into())), "nothing_to_do");
    let mut w = World::running(facts(steps.clone(), 0));
    let plan = changed(&w, 0);
    assert_eq!(w.refused(amend(plan, &[])), "nothing_to_do");
    // An end drops it.
    let mut w = failed();
    let plan = changed(&w, 1);
    w.go(amend(plan, &[]));
    w.go(Input::Abort { by: ops(), reason: "r".into() });
    assert_eq!(w.d.amendment, None);
}

/// Its failure was borne, and under the new plan it is not: the hosts that failed run again, and no others.
#[test]
fn a_rollout_whose_failure_is_borne_no_more_goes_on_where_it_failed() {
    let borne = StepRun {
        on_failure: Some(StepFailure::Continue),
        ..rollout("go", &[], &[&["a", "b"], &["c"]], 0, Confirm::None, 0)
    };
    let mut w = World::running(facts(vec![borne, central("x", &[])], 0));
    w.settle(&[("b", Outcome::Failed)]);
    w.fail("x");
    let mut plan = other_plan(&w.d, 0);
    plan.steps[0].on_failure = None;
    w.go(Input::Amend { by: ops(), inputs: BTreeMap::new(), facts: Box::new(plan), hosts: vec![], reason: "r".into() });
    assert_eq!(w.wave_hosts(), [("b".into(), 2, 3)]);
    w.settle(&[]);
    assert_eq!(w.wave_hosts(), [("c".into(), 1, 0)]);
}

#[test]
fn what_subflows_were_entered_with_outlives_other_inputs() {
    let mut plan = facts(vec![enter("sub", &[]), central("sub/x", &["sub/enter"]), leave("sub", &["sub/x"])], 0);
    plan.steps[1].condition = None;
    plan.context.insert("scopes".into(), json!({ "sub": { "inputs": { "n": 1 }, "outputs": {} } }));
    let mut w = World::running(plan);
    w.fail("sub/x");
    let mut plan = other_plan(&w.d, 0);
    plan.context.insert("scopes".into(), json!({ "sub": { "inputs": { "n": 2 }, "outputs": { "m": 3 } } }));
    w.go(Input::Amend { by: ops(), inputs: BTreeMap::new(), facts: Box::new(plan), hosts: vec![], reason: "r".into() });
    let sub = &w.d.context["scopes"]["sub"];
    assert_eq!((&sub["values"], &sub["outputs"]), (&json!({ "n": 1 }), &json!({ "m": 3 })));
}

#[test]
fn deployments_that_were_stored_before_still_load() {
    let mut w = World::running(facts(vec![rollout("go", &[], &[&["a"]], 0, Confirm::None, 0), central("x", &[])], 0));
    w.settle(&[("a", Outcome::Failed)]);
    let mut doc = serde_json::to_value(&w.d).expect("json");
    let new =
        ["claim", "patience", "attention", "run", "reopened", "resume", "amendment", "automatic", "then_automatic"];
    for field in new {
        doc.as_object_mut().expect("an object").remove(field);
    }
    let loaded: Deployment = serde_json::from_value(doc).expect("loads");
    assert_eq!((loaded.run, &loaded.claim, &loaded.resume), (1, &None, &None));
    w.d = loaded;
    w.go(retry(&[]));
}
