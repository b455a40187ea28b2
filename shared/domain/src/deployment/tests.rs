//! Journeys through the state machine, and random histories.

use super::*;
use crate::approval::Decision;
use crate::work::Outcome;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

mod attention;
mod cost;
mod graph;
mod probing;
mod random;
mod reopen;
mod retrying;
mod rollout;
mod table;
mod tasks;
mod verbs;

fn t(s: i64) -> Timestamp {
    chrono::DateTime::from_timestamp(1_800_000_000 + s, 0).expect("time")
}

/// Ids in order, as the caller would mint them.
fn minter() -> impl FnMut() -> WorkId {
    let mut n = 0_u128;
    move || {
        n += 1;
        WorkId(uuid::Uuid::from_u128(n))
    }
}

fn rollout(id: &str, needs: &[&str], waves: &[&[&str]], max_failures: u32, confirm: Confirm, bake_s: u32) -> StepRun {
    let waves = waves.iter().map(|w| WaveRun::waiting(w.iter().map(|h| HostRun::waiting(*h)).collect())).collect();
    let kind = StepRunKind::Rollout(RolloutRun {
        probes: None,
        required: Vec::new(),
        stagger: None,
        confirm,
        bake_s,
        max_failures,
        parallel: 0,
        host_steps: 5,
        waves,
    });
    StepRun::waiting(id, needs.iter().map(|n| n.to_string()).collect(), kind)
}

fn central(id: &str, needs: &[&str]) -> StepRun {
    let kind = StepRunKind::Central { action: "http.request".into(), attempt: 0, work: None, reason: None };
    StepRun::waiting(id, needs.iter().map(|n| n.to_string()).collect(), kind)
}

/// What a host's first attempt came to.
fn of_host(host: &str, outcome: Outcome) -> HostResult {
    HostResult {
        host: host.into(),
        attempt: 1,
        outcome,
        failed_step: None,
        reason: None,
        failed_id: None,
        class: None,
        exit_code: None,
        outputs: Default::default(),
    }
}

fn facts(steps: Vec<StepRun>, quorum: u32) -> PlanFacts {
    let rules = if quorum == 0 { vec![] } else { vec![ApprovalRule { name: "ops".into(), quorum, people: vec![] }] };
    PlanFacts {
        automatic: None,
        patience: Default::default(),
        digest: "d1".into(),
        rules,
        on_failure: OnFailure::Pause,
        steps,
        context: Default::default(),
    }
}

struct World {
    d: Deployment,
    mint: Box<dyn FnMut() -> WorkId>,
    now: i64,
    works: BTreeMap<WorkId, WorkSpec>,
    log: Vec<Effect>,
}

impl World {
    fn new(plan: PlanFacts) -> World {
        let mut mint: Box<dyn FnMut() -> WorkId> = Box::new(minter());
        let new = New {
            id: uuid::Uuid::from_u128(7).into(),
            project: "shop".into(),
            environment: "beta".into(),
            release: uuid::Uuid::from_u128(8).into(),
            version: "1.0".into(),
            kind: ReleaseKind::Normal,
            rollback: None,
            requested_by: "ann".into(),
            note: String::new(),
            trace: None,
            pool: "default".into(),
            only_hosts: vec![],
            not_before: None,
            expires_at: t(1_000_000),
            plan,
        };
        let (d, log) = Deployment::request(new, t(0), &mut mint);
        World { d, mint, now: 0, works: BTreeMap::new(), log }
    }
    fn try_do(&mut self, input: Input) -> Result<Vec<Effect>, Refusal> {
        let verb = crate::deployment::table::Verb::of(&input);
        let (d, effects) = self.d.apply(input, t(self.now), &mut self.mint)?;
        // Whatever was done to get here: the table says where a verb can lead. Only time can lead elsewhere.
        let by_time = d.state == State::Expired || d.patience.then != crate::flow::Overdue::Remind;
        if let Some(verb) = verb.filter(|_| !by_time)
            && let crate::deployment::table::Answer::Moves(to) = crate::deployment::table::answer(self.d.state, verb)
        {
            assert!(to.contains(&d.state), "{} of {:?} leads to {:?}", verb.as_str(), self.d.state, d.state);
        }
        self.d = d;
        for e in &effects {
            if let Effect::StartWork { id, spec } = e {
                self.works.insert(*id, spec.clone());
            }
        }
        self.log.extend(effects.clone());
        Ok(effects)
    }
    fn go(&mut self, input: Input) -> Vec<Effect> {
        self.try_do(input).expect("accepted")
    }
    fn running(plan: PlanFacts) -> World {
        let mut w = World::new(plan);
        w.go(Input::LockTaken { fence: 3 });
        w
    }
    fn approve(&mut self, person: &str) -> Result<Vec<Effect>, Refusal> {
        self.try_do(Input::Decide(Approval {
            deployment: self.d.id,
            plan_digest: "d1".into(),
            person: person.into(),
            decision: Decision::Approve,
            comment: String::new(),
            at: t(0),
            signature: String::new(),
        }))
    }
    /// Settles the one open work: hosts named fail with their outcome, the others succeed.
    fn settle(&mut self, bad: &[(&str, Outcome)]) -> Vec<Effect> {
        let id = self.d.works_in_flight()[0];
        let result = match &self.works[&id] {
            WorkSpec::Probe(_) => {
                WorkResult::Probe { verdict: crate::work::Verdict::Success, probes: vec![], reason: None }
            }
            WorkSpec::Central(_) => WorkResult::Central {
                class: None,
                succeeded: bad.is_empty(),
                reason: None,
                output: serde_json::Value::Null,
            },
            WorkSpec::Wave(w) => WorkResult::Wave {
                hosts: w
                    .hosts
                    .iter()
                    .map(|h| {
                        let outcome = bad.iter().find(|b| b.0 == h.host).map_or(Outcome::Succeeded, |b| b.1);
                        let failed_step = (outcome == Outcome::Failed).then_some(3);
                        HostResult {
                            class: None,
                            exit_code: None,
                            failed_id: None,
                            host: h.host.clone(),
                            attempt: h.attempt,
                            outcome,
                            failed_step,
                            reason: None,
                            outputs: Default::default(),
                        }
                    })
                    .collect(),
            },
        };
        self.go(Input::WorkSettled { work: id, result })
    }
    fn wave_hosts(&self) -> Vec<(String, u32, u32)> {
        match &self.works[&self.d.works_in_flight()[0]] {
            WorkSpec::Wave(w) => w.hosts.iter().map(|h| (h.host.clone(), h.attempt, h.start_at)).collect(),
            WorkSpec::Central(_) | WorkSpec::Probe(_) => vec![],
        }
    }
}

fn ops() -> String {
    "olga".into()
}

#[test]
fn from_request_to_success_wave_by_wave() {
    let steps = vec![central("verify", &[]), rollout("go", &["verify"], &[&["a"], &["b", "c"]], 0, Confirm::First, 60)];
    let mut w = World::new(facts(steps, 1));
    assert_eq!(w.d.state, State::AwaitingApproval);
    assert!(matches!(w.approve("ann"), Err(Refusal::Approval(_))), "nobody approves what they requested");
    w.approve("bob").expect("approved");
    assert_eq!(w.d.state, State::Queued);
    w.go(Input::LockTaken { fence: 9 });
    assert_eq!(w.d.works_in_flight().len(), 1, "only the first step");
    w.settle(&[]);
    assert_eq!(w.wave_hosts(), [("a".into(), 1, 0)]);
    w.settle(&[]);
    assert_eq!(w.d.state, State::Paused);
    assert!(matches!(w.d.waiting_on()[..], [WaitingOn::Confirmation { .. }]));
    w.go(Input::Confirm { by: ops(), wave: 0 });
    assert_eq!(w.d.wake_at(), Some(t(60)));
    w.now = 60;
    w.go(Input::Tick);
    assert_eq!(w.wave_hosts().len(), 2);
    let effects = w.settle(&[]);
    assert_eq!(w.d.state, State::Succeeded);
    assert!(effects.contains(&Effect::RecordGood) && effects.contains(&Effect::FreeLock));
    assert!(w.d.waiting_on().is_empty());
}

#[test]
fn the_canary_fails_and_the_rest_is_left_alone() {
    let mut w = World::running(facts(vec![rollout("go", &[], &[&["a"], &["b", "c"]], 0, Confirm::None, 0)], 0));
    w.settle(&[("a", Outcome::Failed)]);
    assert_eq!(w.d.state, State::Paused);
    assert!(matches!(&w.d.waiting_on()[..], [WaitingOn::Intervention { hosts, .. }] if hosts == &["a"]));
    assert_eq!(w.d.touched_hosts(), ["a"]);
    // Retry resumes at the step that failed, as a new attempt.
    w.go(Input::Retry { step: None, whole_wave: false, by: ops(), hosts: vec![] });
    assert_eq!(w.wave_hosts(), [("a".into(), 2, 3)]);
    w.settle(&[("a", Outcome::Failed)]);
    w.go(Input::Skip { by: ops(), hosts: vec![] });
    assert_eq!(w.wave_hosts(), [("a".into(), 3, 4)]);
    w.settle(&[]);
    assert_eq!(w.wave_hosts().len(), 2);
    w.settle(&[]);
    assert_eq!(w.d.state, State::Succeeded);
}

#[test]
fn hosts_stopped_with_a_failed_one_run_when_it_is_ignored_or_excluded() {
    for exclude in [false, true] {
        let mut w = World::running(facts(vec![rollout("go", &[], &[&["a", "b"]], 0, Confirm::None, 0)], 0));
        w.settle(&[("a", Outcome::Failed), ("b", Outcome::AutoStopped)]);
        assert_eq!(w.d.state, State::Paused);
        let hosts = vec!["a".to_owned()];
        if exclude {
            w.go(Input::Exclude { by: ops(), hosts, reason: "broken disk".into() });
        } else {
            w.go(Input::Ignore { by: ops(), hosts, reason: "known".into() });
        }
        assert_eq!(w.wave_hosts(), [("b".into(), 2, 0)]);
        w.settle(&[]);
        assert_eq!(w.d.state, State::Succeeded);
    }
}

#[test]
fn a_budget_is_spent_over_all_waves() {
    let mut w = World::running(facts(vec![rollout("go", &[], &[&["a", "b"], &["c", "d"]], 1, Confirm::None, 0)], 0));
    w.settle(&[("a", Outcome::Failed)]);
    assert_eq!(w.d.state, State::Running, "one failure is borne");
    let WorkSpec::Wave(second) = &w.works[&w.d.works_in_flight()[0]] else { panic!("a wave") };
    assert_eq!(second.max_failures, 0, "and has used the budget up");
    w.settle(&[("d", Outcome::Failed)]);
    assert_eq!(w.d.state, State::Paused);
}

#[test]
fn an_unknown_host_keeps_the_lock_until_it_settles_or_is_overridden() {
    let steps = || facts(vec![rollout("go", &[], &[&["a", "b"]], 1, Confirm::None, 0)], 0);
    // It comes back well.
    let mut w = World::running(steps());
    let work = w.d.works_in_flight()[0];
    w.settle(&[("a", Outcome::Unknown)]);
    assert_eq!(w.d.state, State::Paused, "success is not said while a host is unknown");
    let hosts = vec![of_host("a", Outcome::Succeeded)];
    w.go(Input::WorkSettled { work, result: WorkResult::Wave { hosts } });
    assert_eq!(w.d.state, State::Succeeded);
    // Aborted with an unknown host: ended, but the lock stays until a person answers for it.
    let mut w = World::running(steps());
    let first = w.go(Input::Abort { by: ops(), reason: "no".into() });
    assert!(first.contains(&Effect::AbortWorks));
    assert_eq!(w.d.state, State::Aborting);
    let effects = w.settle(&[("a", Outcome::Unknown), ("b", Outcome::NotStarted)]);
    assert_eq!(w.d.state, State::Aborted);
    assert!(!effects.contains(&Effect::FreeLock));
    assert!(matches!(&w.d.waiting_on()[..], [WaitingOn::Unknown { hosts, .. }] if hosts == &["a"]));
    let effects = w.go(Input::Override { by: ops(), hosts: vec![], reason: "machine is gone".into() });
    assert!(effects.contains(&Effect::FreeLock));
    assert!(effects.iter().any(|e| matches!(e, Effect::OverrideTasks { .. })));
}

#[test]
fn a_changed_plan_voids_approvals() {
    let steps = || vec![rollout("go", &[], &[&["a"]], 0, Confirm::None, 0)];
    let mut w = World::new(facts(steps(), 1));
    w.approve("bob").expect("approved");
    let mut changed = facts(steps(), 1);
    changed.digest = "d2".into();
    w.go(Input::PlanChanged(Box::new(changed)));
    assert_eq!(w.d.state, State::AwaitingApproval);
    assert!(w.d.approvals.is_empty());
    assert!(matches!(w.approve("bob"), Err(Refusal::Approval(crate::approval::Refusal::OtherPlan { .. }))));
    assert!(w.try_do(Input::LockTaken { fence: 1 }).is_err(), "it cannot start");
}

#[test]
fn a_changed_plan_that_nobody_approves_waits_until_somebody_accepts_it() {
    let steps = || vec![rollout("go", &[], &[&["a"]], 0, Confirm::None, 0)];
    let changed = |digest: &str| {
        let mut plan = facts(steps(), 0);
        plan.digest = digest.into();
        Input::PlanChanged(Box::new(plan))
    };
    let accept = |digest: &str| Input::Accept { by: "ann".into(), digest: digest.into() };
    let mut w = World::new(facts(steps(), 0));
    assert_eq!(w.d.state, State::Queued);
    assert_eq!(w.try_do(accept("d1")).expect_err("nothing changed").code(), "wrong_state");
    w.go(changed("d2"));
    assert_eq!(w.d.state, State::AwaitingApproval);
    assert!(matches!(&w.d.waiting_on()[..], [WaitingOn::Acceptance { old, new, .. }] if old == "d1" && new == "d2"));
    assert!(w.try_do(Input::LockTaken { fence: 1 }).is_err(), "it cannot start");
    assert_eq!(w.try_do(accept("d1")).expect_err("another plan").code(), "plan_changed");
    w.go(accept("d2"));
    assert_eq!(w.d.state, State::Queued);
    // Back to what was asked for needs nobody.
    let mut w = World::new(facts(steps(), 0));
    w.go(changed("d2"));
    w.go(changed("d1"));
    assert_eq!(w.d.state, State::Queued);
    // Where people approve, they do.
    let mut w = World::new(facts(steps(), 1));
    w.approve("bob").expect("approved");
    let mut plan = facts(steps(), 1);
    plan.digest = "d2".into();
    w.go(Input::PlanChanged(Box::new(plan)));
    assert_eq!(w.try_do(accept("d2")).expect_err("approve it").code(), "nothing_to_do");
}

#[test]
fn rolling_back_a_running_deployment_aborts_it_first() {
    let mut w = World::running(facts(vec![rollout("go", &[], &[&["a"], &["b"]], 0, Confirm::None, 0)], 0));
    let id: DeploymentId = uuid::Uuid::from_u128(99).into();
    let input = Input::Rollback { by: ops(), mode: RollbackMode::Emergency, rollback: id, reason: "bad".into() };
    w.go(input.clone());
    assert_eq!(w.d.state, State::Aborting);
    let effects = w.settle(&[("a", Outcome::Cancelled)]);
    assert_eq!(w.d.state, State::Aborted);
    let want = Effect::RequestRollback { mode: RollbackMode::Emergency, id: Some(id), by: ops() };
    assert!(effects.contains(&want) && effects.contains(&Effect::FreeLock));
    // Nothing looks as if it would still happen.
    assert_eq!(w.d.steps[0].state, StepState::Failed);
    let StepRunKind::Rollout(r) = &w.d.steps[0].kind else { panic!("a rollout") };
    assert_eq!((r.waves[1].state, r.waves[1].hosts[0].state), (WaveState::Stopped, HostState::AutoStopped));
    assert!(w.try_do(input).is_err(), "once is enough");
    w.go(Input::RolledBack);
    assert_eq!(w.d.state, State::RolledBack);
}

#[test]
fn it_waits_for_its_time_and_expires() {
    let mut plan = facts(vec![rollout("go", &[], &[&["a"]], 0, Confirm::None, 0)], 0);
    plan.rules = vec![ApprovalRule { name: "ops".into(), quorum: 1, people: vec![] }];
    let mut w = World::new(plan);
    w.d.not_before = Some(t(100));
    w.d.expires_at = t(200);
    w.approve("bob").expect("approved");
    assert_eq!((w.d.state, w.d.wake_at()), (State::Scheduled, Some(t(100))));
    w.now = 100;
    w.go(Input::Tick);
    assert_eq!(w.d.state, State::Queued);
    w.now = 200;
    w.go(Input::Tick);
    assert_eq!(w.d.state, State::Expired);
}

fn inputs() -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
    proptest::collection::vec((0_u8..12, any::<u8>(), any::<u8>()), 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    /// Random failures and random verbs: it ends or says what it waits for; no host runs twice at once; a host that
    /// succeeded is never started again; after the abort is done nothing starts; budgets hold when a wave starts.
    #[test]
    fn random_histories_keep_the_promises(script in inputs(), budget in 0_u32..3, confirm in 0_u8..3) {
        let confirm = [Confirm::None, Confirm::First, Confirm::Each][usize::from(confirm)];
        let steps = vec![
            central("pre", &[]),
            rollout("go", &["pre"], &[&["a"], &["b", "c"], &["d", "e", "f"]], budget, confirm, 5),
            central("post", &["go"]),
        ];
        let mut w = World::running(facts(steps, 0));
        let mut unknown: Vec<(WorkId, HostResult)> = vec![];
        let mut succeeded: BTreeSet<String> = BTreeSet::new();
        for (verb, x, y) in script {
            w.now += 3;
            let before = w.d.clone();
            let names = ["a", "b", "c", "d", "e", "f"];
            let some = if x % 3 == 0 { vec![] } else { vec![names[usize::from(y) % 6].to_owned()] };
            let input = match verb {
                0..=3 => match w.d.works_in_flight().first() {
                    None => Input::Tick,
                    Some(id) => {
                        let result = match &w.works[id] {
                            WorkSpec::Probe(_) => WorkResult::Probe { verdict: crate::work::Verdict::Success, probes: vec![], reason: None },
                            WorkSpec::Central(_) => WorkResult::Central { class: None, succeeded: x % 4 != 0, reason: None, output: serde_json::Value::Null },
                            WorkSpec::Wave(wave) => {
                                prop_assert!(wave.max_failures <= budget);
                                let hosts: Vec<HostResult> = wave.hosts.iter().enumerate().map(|(n, h)| {
                                    prop_assert!(!succeeded.contains(&h.host), "{} runs again after success", h.host);
                                    let outcome = match (usize::from(x) >> n) % 7 {
                                        0..=3 => Outcome::Succeeded, 4 => Outcome::Failed, 5 => Outcome::Unknown, _ => Outcome::NotStarted,
                                    };
                                    Ok(HostResult { class: None, exit_code: None, failed_id: None, host: h.host.clone(), attempt: h.attempt, outcome, failed_step: None, reason: None, outputs: Default::default() })
                                }).collect::<Result<_, TestCaseError>>()?;
                                for h in &hosts {
                                    if h.outcome == Outcome::Unknown { unknown.push((*id, h.clone())); }
                                    if h.outcome == Outcome::Succeeded { succeeded.insert(h.host.clone()); }
                                }
                                WorkResult::Wave { hosts }
                            }
                        };
                        Input::WorkSettled { work: *id, result }
                    }
                },
                4 => Input::Retry { step: None, whole_wave: false, by: ops(), hosts: some },
                5 => Input::Skip { by: ops(), hosts: some },
                6 => Input::Ignore { by: ops(), hosts: some, reason: "r".into() },
                7 => Input::Exclude { by: ops(), hosts: some, reason: "r".into() },
                8 => Input::Override { by: ops(), hosts: some, reason: "r".into() },
                9 if x % 16 == 0 => Input::Abort { by: ops(), reason: "r".into() },
                9 => if x % 2 == 0 { Input::Pause { by: ops(), reason: "r".into() } } else { Input::Resume { by: ops() } },
                10 => Input::Confirm { by: ops(), wave: u32::from(y % 3) },
                _ => match unknown.pop() {
                    None => Input::Tick,
                    Some((work, mut h)) => { h.outcome = Outcome::Failed; Input::WorkSettled { work, result: WorkResult::Wave { hosts: vec![h] } } }
                },
            };
            let effects = w.try_do(input).unwrap_or_default();
            if before.state.is_terminal() || before.state == State::Aborting || before.pause.is_some() && w.d.pause.is_some() {
                prop_assert!(!effects.iter().any(|e| matches!(e, Effect::StartWork { .. })), "started though {:?}", before.state);
            }
            if w.d.state.is_active() || !w.d.unknown_hosts().is_empty() {
                prop_assert!(!w.d.waiting_on().is_empty(), "stands in {:?} and does not say why: {:?}", w.d.state, w.d.steps);
            }
            if w.d.state == State::Succeeded { prop_assert!(w.d.unknown_hosts().is_empty()); }
            prop_assert_eq!(w.d.lock.is_some(), w.d.state.is_active() || !w.d.unknown_hosts().is_empty());
        }
    }
}

#[test]
fn skipping_the_last_step_of_a_host_with_fewer_steps_ends_its_part() {
    let mut plan = facts(vec![rollout("go", &[], &[&["a", "b"]], 1, Confirm::None, 0)], 0);
    if let StepRunKind::Rollout(r) = &mut plan.steps[0].kind {
        r.max_failures = 0;
        r.waves[0].hosts[0].steps = 4;
    }
    let mut w = World::running(plan);
    // The fourth of five steps fails on both; for `a` it is the last.
    w.settle(&[("a", Outcome::Failed), ("b", Outcome::Failed)]);
    w.go(Input::Skip { by: ops(), hosts: vec![] });
    assert_eq!(w.wave_hosts(), [("b".into(), 2, 4)]);
    w.settle(&[]);
    assert_eq!(w.d.state, State::Succeeded);
}
