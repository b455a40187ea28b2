//! Gateways, joins, subflows, repeats and outputs, journey by journey.

use super::*;
use crate::flow::{Branch, Gateway, GatewayMode, Join, StepFailure};
use serde_json::json;

pub(super) fn gateway(
    id: &str,
    needs: &[&str],
    mode: GatewayMode,
    branches: &[(&str, &str, &[&str])],
    default: &[&str],
) -> StepRun {
    let names = |n: &[&str]| n.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    let branches = branches
        .iter()
        .map(|(name, condition, to)| Branch {
            name: name.to_string(),
            condition: (mode != GatewayMode::Parallel).then(|| condition.to_string()),
            to: names(to),
        })
        .collect();
    let gateway = Gateway { mode, branches, default: names(default) };
    let run = GatewayRun { gateway, taken: None, chosen_by: None, reason: None };
    StepRun::waiting(id, names(needs), StepRunKind::Gateway(run))
}

pub(super) fn enter(scope: &str, needs: &[&str]) -> StepRun {
    let needs = needs.iter().map(|n| n.to_string()).collect();
    StepRun::waiting(format!("{scope}/enter"), needs, StepRunKind::Enter { scope: scope.into() })
}

pub(super) fn leave(scope: &str, needs: &[&str]) -> StepRun {
    let needs = needs.iter().map(|n| n.to_string()).collect();
    StepRun::waiting(scope, needs, StepRunKind::Leave { scope: scope.into() })
}

fn joined(mut s: StepRun, join: Join) -> StepRun {
    s.join = join;
    s
}

fn on_failure(mut s: StepRun, f: StepFailure) -> StepRun {
    s.on_failure = Some(f);
    s
}

pub(super) fn repeated(mut s: StepRun, until: &str, max: u32, every_s: u32) -> StepRun {
    s.repeat = Some(RepeatRun { until: until.into(), max, every_s, runs: 0, next_at: None });
    s
}

impl World {
    pub(super) fn open(&self) -> Vec<String> {
        let step = |id| match &self.works[&id] {
            WorkSpec::Central(c) => c.step.clone(),
            WorkSpec::Probe(p) => p.step.clone(),
            WorkSpec::Wave(w) => w.step.clone(),
        };
        self.d.works_in_flight().into_iter().map(step).collect()
    }

    fn work_of(&self, step: &str) -> WorkId {
        let at = self.open().iter().position(|s| s == step).unwrap_or_else(|| panic!("{step} does not run"));
        self.d.works_in_flight()[at]
    }

    pub(super) fn give(&mut self, step: &str, output: serde_json::Value) -> Vec<Effect> {
        let result = WorkResult::Central { class: None, succeeded: true, reason: None, output };
        self.go(Input::WorkSettled { work: self.work_of(step), result })
    }

    pub(super) fn fail(&mut self, step: &str) -> Vec<Effect> {
        let result =
            WorkResult::Central { class: None, succeeded: false, reason: Some("boom".into()), output: json!(null) };
        self.go(Input::WorkSettled { work: self.work_of(step), result })
    }

    pub(super) fn state(&self, step: &str) -> StepState {
        self.d.steps.iter().find(|s| s.id == step).unwrap_or_else(|| panic!("no step {step}")).state
    }

    fn attempts(&self, step: &str) -> Vec<u32> {
        let of = |e: &Effect| match e {
            Effect::StartWork { spec: WorkSpec::Central(c), .. } if c.step == step => Some(c.attempt),
            _ => None,
        };
        self.log.iter().filter_map(of).collect()
    }
}

#[test]
fn parallel_branches_run_at_once_and_all_waits_for_both() {
    let steps = vec![
        gateway("fan", &[], GatewayMode::Parallel, &[("a", "", &["a"]), ("b", "", &["b"])], &[]),
        central("a", &["fan"]),
        central("b", &["fan"]),
        central("z", &["a", "b"]),
    ];
    let mut w = World::running(facts(steps, 0));
    assert_eq!(w.open(), ["a", "b"]);
    w.give("a", json!({}));
    assert_eq!(w.open(), ["b"]);
    w.give("b", json!({}));
    assert_eq!(w.open(), ["z"]);
    w.give("z", json!({}));
    assert_eq!(w.d.state, State::Succeeded);
}

#[test]
fn any_fires_once_at_the_first_success() {
    let steps = vec![central("a", &[]), central("b", &[]), joined(central("z", &["a", "b"]), Join::Any)];
    let mut w = World::running(facts(steps, 0));
    w.give("b", json!({}));
    assert_eq!(w.open(), ["a", "z"]);
    w.give("z", json!({}));
    w.give("a", json!({}));
    assert_eq!((w.d.state, w.attempts("z")), (State::Succeeded, vec![1]));
}

#[test]
fn done_goes_on_over_a_borne_failure_and_all_does_not() {
    for (join, state, end) in [
        (Join::Done, StepState::Succeeded, State::Succeeded),
        (Join::Any, StepState::Succeeded, State::Succeeded),
        (Join::All, StepState::Stopped, State::Failed),
    ] {
        let steps = vec![
            on_failure(central("a", &[]), StepFailure::Continue),
            central("b", &[]),
            joined(central("z", &["a", "b"]), join),
        ];
        let mut w = World::running(facts(steps, 0));
        w.fail("a");
        w.give("b", json!({}));
        if join != Join::All {
            w.give("z", json!({}));
        }
        assert_eq!((w.state("z"), w.d.state), (state, end), "{join:?}");
    }
    // Nothing joins over it: the deployment has failed, at its end.
    let steps = vec![on_failure(central("a", &[]), StepFailure::Continue), central("b", &[])];
    let mut w = World::running(facts(steps, 0));
    w.fail("a");
    assert_eq!(w.open(), ["b"]);
    w.give("b", json!({}));
    assert_eq!(w.d.state, State::Failed);
    assert!(w.d.end.as_ref().expect("an end").reason.contains("no step joins over it"));
}

#[test]
fn an_exclusive_gateway_goes_by_an_output_and_the_other_branch_is_dead_to_its_end() {
    for (status, taken, dead) in [(200, "fast", "slow"), (503, "slow", "fast")] {
        let steps = vec![
            // A step before what it needs in the list is found all the same.
            central("end", &["fast2", "slow2"]),
            central("probe", &[]),
            gateway(
                "which",
                &["probe"],
                GatewayMode::Exclusive,
                &[("ok", "steps.probe.outputs.status == 200", &["fast"])],
                &["slow"],
            ),
            central("fast", &["which"]),
            central("fast2", &["fast"]),
            central("slow", &["which"]),
            central("slow2", &["slow"]),
        ];
        let mut w = World::running(facts(steps, 0));
        w.give("probe", json!({ "status": status }));
        assert_eq!(w.open(), [taken]);
        assert_eq!(w.state(&format!("{dead}2")), StepState::NotTaken);
        w.give(taken, json!({}));
        w.give(&format!("{taken}2"), json!({}));
        w.give("end", json!({}));
        assert_eq!(w.d.state, State::Succeeded);
    }
}

#[test]
fn a_conditional_gateway_takes_every_true_branch_and_the_default_only_without_one() {
    for (x, want) in [(1, vec!["a"]), (3, vec!["a", "b"]), (0, vec!["c"])] {
        let steps = vec![
            central("p", &[]),
            gateway(
                "g",
                &["p"],
                GatewayMode::Conditional,
                &[("a", "steps.p.outputs.x > 0", &["a"]), ("b", "steps.p.outputs.x > 2", &["b"])],
                &["c"],
            ),
            central("a", &["g"]),
            central("b", &["g"]),
            central("c", &["g"]),
        ];
        let mut w = World::running(facts(steps, 0));
        w.give("p", json!({ "x": x }));
        assert_eq!(w.open(), want);
    }
}

#[test]
fn an_expression_that_fails_waits_for_a_person_to_choose() {
    let steps = vec![
        central("p", &[]),
        gateway("g", &["p"], GatewayMode::Exclusive, &[("up", "steps.p.outputs.x == 1", &["a"])], &["b"]),
        central("a", &["g"]),
        central("b", &["g"]),
    ];
    let mut plan = facts(steps, 0);
    // Whatever failures lead to: this is no failure.
    plan.on_failure = OnFailure::Stop;
    let mut w = World::running(plan);
    let effects = w.give("p", json!({}));
    assert_eq!(w.d.state, State::Paused);
    let alert = effects.iter().find_map(|e| match e {
        Effect::Event { what: "deployment.needs_intervention", severity: Severity::Alert, payload } => Some(payload),
        _ => None,
    });
    assert_eq!(alert.expect("an alert")["branches"], json!(["up", "default"]));
    assert!(
        matches!(&w.d.waiting_on()[..], [WaitingOn::Choice { step, branches, .. }] if step == "g" && branches.len() == 2)
    );
    let choose = |step: &str, branch: &str| Input::Choose { by: ops(), step: step.into(), branch: branch.into() };
    assert_eq!(w.try_do(choose("g", "down")).expect_err("no such branch").code(), "invalid");
    assert_eq!(w.try_do(choose("a", "up")).expect_err("asks nothing").code(), "nothing_to_do");
    assert_eq!(w.try_do(choose("nope", "up")).expect_err("no such step").code(), "invalid");
    w.go(choose("g", "up"));
    assert_eq!(w.open(), ["a"]);
    let StepRunKind::Gateway(g) = &w.d.steps[1].kind else { panic!("a gateway") };
    assert_eq!(g.chosen_by.as_ref().expect("recorded").who, ops());
    assert_eq!(w.try_do(choose("g", "up")).expect_err("once").code(), "nothing_to_do");
}

#[test]
fn a_person_may_choose_to_go_nowhere() {
    let up: &[(&str, &str, &[&str])] = &[("up", "steps.p.outputs.x == 1", &["a"])];
    let steps = vec![central("p", &[]), gateway("g", &["p"], GatewayMode::Exclusive, up, &[]), central("a", &["g"])];
    let mut w = World::running(facts(steps, 0));
    w.give("p", json!({}));
    w.go(Input::Choose { by: ops(), step: "g".into(), branch: "default".into() });
    assert_eq!((w.state("a"), w.d.state), (StepState::NotTaken, State::Succeeded));
}

#[test]
fn a_condition_that_fails_is_answered_with_run_or_skip() {
    for (answer, state) in [("run", StepState::Running), ("skip", StepState::Skipped)] {
        let mut last = central("z", &["p"]);
        last.condition = Some("steps.p.outputs.x".into());
        let mut w = World::running(facts(vec![central("p", &[]), last], 0));
        w.give("p", json!({ "x": "not a boolean" }));
        w.go(Input::Choose { by: ops(), step: "z".into(), branch: answer.into() });
        assert_eq!(w.state("z"), state);
    }
}

#[test]
fn a_repeated_step_runs_until_its_expression_is_true() {
    let step = || repeated(central("probe", &[]), "steps.probe.outputs.status == 200", 3, 30);
    let mut w = World::running(facts(vec![step(), central("z", &["probe"])], 0));
    w.give("probe", json!({ "status": 503 }));
    assert!(matches!(&w.d.waiting_on()[..], [WaitingOn::Repeat { run: 2, max: 3, .. }]));
    assert_eq!((w.d.wake_at(), w.d.works_in_flight().len()), (Some(t(30)), 0));
    w.go(Input::Tick);
    assert!(w.d.works_in_flight().is_empty(), "not before its time");
    w.now = 30;
    w.go(Input::Tick);
    w.give("probe", json!({ "status": 200 }));
    assert_eq!((w.open(), w.attempts("probe")), (vec!["z".to_owned()], vec![1, 2]));
    // Used up: a failure like any other; a retry has all runs again.
    let mut w = World::running(facts(vec![step()], 0));
    for now in [30, 60] {
        w.give("probe", json!({ "status": 503 }));
        w.now = now;
        w.go(Input::Tick);
    }
    w.give("probe", json!({ "status": 503 }));
    assert!(matches!(&w.d.waiting_on()[..], [WaitingOn::Intervention { reason, .. }] if reason.contains("3 run(s)")));
    w.go(Input::Retry { step: None, whole_wave: false, by: ops(), hosts: vec![] });
    w.give("probe", json!({ "status": 503 }));
    assert!(matches!(&w.d.waiting_on()[..], [WaitingOn::Repeat { run: 2, .. }]));
    // A pause holds the next run.
    w.go(Input::Pause { by: ops(), reason: "wait".into() });
    w.now = 500;
    w.go(Input::Tick);
    let deadline = w.d.attention.as_ref().map(|a| a.deadline);
    assert_eq!((w.d.works_in_flight().len(), w.d.wake_at()), (0, deadline), "only the operator is waited for");
    w.go(Input::Resume { by: ops() });
    w.give("probe", json!({ "status": 200 }));
    assert_eq!(w.d.state, State::Succeeded);
}

#[test]
fn a_repeated_rollout_starts_its_hosts_from_the_first_step_as_new_attempts() {
    let go = rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::None, 0);
    let mut w = World::running(facts(vec![repeated(go, "false", 2, 1)], 0));
    w.settle(&[]);
    w.settle(&[]);
    w.now = 1;
    w.go(Input::Tick);
    assert_eq!(w.wave_hosts(), [("a".into(), 2, 0)]);
    let WorkSpec::Wave(wave) = &w.works[&w.d.works_in_flight()[0]] else { panic!("a wave") };
    assert!(wave.again);
    w.settle(&[]);
    w.settle(&[]);
    assert!(matches!(&w.d.waiting_on()[..], [WaitingOn::Intervention { .. }]));
    w.go(Input::Skip { by: ops(), hosts: vec![] });
    assert_eq!(w.d.state, State::Succeeded);
}

/// `sub` with two steps in a row, and one after it.
fn with_subflow(change: impl FnOnce(&mut Vec<StepRun>)) -> World {
    let mut steps = vec![
        enter("sub", &[]),
        central("sub/a", &["sub/enter"]),
        central("sub/b", &["sub/a"]),
        leave("sub", &["sub/b"]),
        central("z", &["sub"]),
    ];
    change(&mut steps);
    let mut plan = facts(steps, 0);
    plan.context = serde_json::from_value(json!({
        "inputs": { "n": 1 },
        "scopes": { "sub": {
            "inputs": { "n": 7 },
            "outputs": { "got": "${{ steps.a.outputs.v + inputs.n }}", "lost": "${{ steps.a.outputs.nothing }}" },
        } },
    }))
    .expect("a context");
    World::running(plan)
}

#[test]
fn a_subflow_reads_its_own_inputs_and_steps_and_gives_outputs() {
    let mut w = with_subflow(|s| s[2].condition = Some("steps.a.outputs.v == 1 && inputs.n == 7".into()));
    w.give("sub/a", json!({ "v": 1 }));
    w.give("sub/b", json!({}));
    assert_eq!(w.open(), ["z"]);
    let outputs = &w.d.steps[3].outputs;
    assert_eq!(json!(outputs), json!({ "got": 8 }), "what cannot be computed is left out");
}

#[test]
fn a_subflow_that_is_skipped_counts_as_success_and_runs_nothing() {
    let mut w = with_subflow(|s| s[0].condition = Some("inputs.n > 1".into()));
    assert_eq!(
        (w.state("sub/a"), w.state("sub"), w.open()),
        (StepState::NotTaken, StepState::Skipped, vec!["z".to_owned()])
    );
    w.give("z", json!({}));
    assert_eq!(w.d.state, State::Succeeded);
}

#[test]
fn retry_and_skip_reach_into_a_subflow() {
    let mut w = with_subflow(|_| ());
    w.fail("sub/a");
    assert!(matches!(&w.d.waiting_on()[..], [WaitingOn::Intervention { step, .. }] if step == "sub/a"));
    w.go(Input::Retry { step: None, whole_wave: false, by: ops(), hosts: vec![] });
    w.give("sub/a", json!({ "v": 1 }));
    w.fail("sub/b");
    w.go(Input::Skip { by: ops(), hosts: vec![] });
    assert_eq!((w.open(), w.attempts("sub/a")), (vec!["z".to_owned()], vec![1, 2]));
}

#[test]
fn a_failure_in_a_subflow_is_a_failure_outside() {
    // Ended by the step's own word.
    let mut w = with_subflow(|s| s[1].on_failure = Some(StepFailure::Stop));
    w.fail("sub/a");
    assert_eq!((w.d.state, w.state("sub"), w.state("z")), (State::Failed, StepState::Failed, StepState::Stopped));
    // Borne within, and nothing joins over it: the subflow fails and waits for a person; a retry goes on within.
    let mut w = with_subflow(|s| s[1].on_failure = Some(StepFailure::Continue));
    w.fail("sub/a");
    assert_eq!((w.state("sub/b"), w.state("sub")), (StepState::Stopped, StepState::Failed));
    assert!(matches!(&w.d.waiting_on()[..], [WaitingOn::Intervention { step, .. }] if step == "sub"));
    w.go(Input::Retry { step: None, whole_wave: false, by: ops(), hosts: vec![] });
    w.give("sub/a", json!({ "v": 1 }));
    w.give("sub/b", json!({}));
    assert_eq!(w.open(), ["z"]);
    // The subflow's own `continue` bears what fails within, and a `done` after it goes on.
    let mut w = with_subflow(|s| {
        s[3].on_failure = Some(StepFailure::Continue);
        s[4].join = Join::Done;
    });
    w.fail("sub/a");
    assert_eq!((w.state("sub"), w.open()), (StepState::Failed, vec!["z".to_owned()]));
    w.give("z", json!({}));
    assert_eq!(w.d.state, State::Succeeded);
}

#[test]
fn a_repeated_subflow_runs_all_its_steps_again() {
    let mut w = with_subflow(|s| {
        let sub = s.remove(3);
        s.insert(3, repeated(sub, "steps.sub.outputs.got > 8", 5, 10));
    });
    w.give("sub/a", json!({ "v": 1 }));
    w.give("sub/b", json!({}));
    assert!(w.open().is_empty());
    w.now = 10;
    w.go(Input::Tick);
    assert_eq!((w.open(), w.attempts("sub/a")), (vec!["sub/a".to_owned()], vec![1, 2]));
    w.give("sub/a", json!({ "v": 2 }));
    w.give("sub/b", json!({}));
    assert_eq!((w.open(), w.attempts("sub/b")), (vec!["z".to_owned()], vec![1, 2]));
}

#[test]
fn a_step_the_plan_skipped_keeps_the_order() {
    let mut skipped = central("b", &["a"]);
    (skipped.state, skipped.left_out) = (StepState::Skipped, true);
    let mut w = World::running(facts(vec![central("a", &[]), skipped, central("c", &["b"])], 0));
    assert_eq!(w.open(), ["a"], "c waits for what the skipped step waits for");
    w.give("a", json!({}));
    assert_eq!(w.open(), ["c"]);
}

#[test]
fn after_a_failure_that_ends_it_nothing_new_starts() {
    let steps = vec![on_failure(central("a", &[]), StepFailure::Stop), central("b", &[]), central("c", &["b"])];
    let mut w = World::running(facts(steps, 0));
    w.fail("a");
    w.give("b", json!({}));
    assert_eq!((w.d.state, w.state("c")), (State::Failed, StepState::Stopped));
}

#[test]
fn hosts_give_alike_or_not_at_all() {
    let mut go = rollout("go", &[], &[&["a", "b"]], 0, Confirm::None, 0);
    go.id = "go".into();
    let mut last = central("z", &["go"]);
    last.reads = vec!["go".into()];
    let mut w = World::running(facts(vec![go, last], 0));
    let work = w.d.works_in_flight()[0];
    let host = |h: &str, o: serde_json::Value| HostResult {
        outputs: serde_json::from_value(o).expect("a map"),
        ..of_host(h, Outcome::Succeeded)
    };
    let hosts = vec![
        host("a", json!({ "pack": { "version": "1", "where": "a" }, "only": { "x": "1" } })),
        host("b", json!({ "pack": { "version": "1", "where": "b" } })),
    ];
    w.go(Input::WorkSettled { work, result: WorkResult::Wave { hosts } });
    let WorkSpec::Central(c) = &w.works[&w.d.works_in_flight()[0]] else { panic!("central") };
    assert_eq!(json!(c.outputs), json!({ "go": { "pack": { "version": "1" }, "only": { "x": "1" } } }));
}

#[test]
fn outputs_too_large_to_go_along_fail_the_step_with_the_reason() {
    let mut last = central("z", &["p"]);
    last.reads = vec!["p".into()];
    let mut w = World::running(facts(vec![central("p", &[]), last], 0));
    w.give("p", json!({ "x": "y".repeat(300 * 1024) }));
    assert!(matches!(&w.d.waiting_on()[..], [WaitingOn::Intervention { reason, .. }] if reason.contains("bytes")));
}
