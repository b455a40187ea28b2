//! Every cause is found when its facts are there, and not when they are not.

use std::{collections::BTreeSet, time::Duration};
use uuid::Uuid;
use windlass_domain::{
    Timestamp,
    approval::{Approval, ApprovalRule, Decision},
    bundle::Turn,
    deployment::{
        Attention, By, Deployment, HostRun, HostState, New, PlanFacts, RolloutRun, State, StepRun, StepRunKind,
        StepState, WaveRun, WaveState,
    },
    diagnosis::{
        AgentNow, Backlog, Cause, Finding, HostNow, Limits, LockNow, Other, Phase, Repair, Severity, Snapshot, TaskNow,
        Undecided, WorkNow, diagnose, page, summary,
    },
    flow::{Confirm, OnFailure},
    release::ReleaseKind,
    task::TaskState,
    traffic::{TaskTraffic, TrafficState},
};

fn at(seconds: i64) -> Timestamp {
    let start: Timestamp = "2026-11-21T10:00:00Z".parse().expect("time");
    start + chrono::Duration::seconds(seconds)
}

const NOW: i64 = 3600;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn by(who: &str, s: i64) -> By {
    By { who: who.into(), reason: "because".into(), at: at(s) }
}

/// One host runs in the first wave, carried by an executor that is well.
fn snapshot() -> Snapshot {
    let mut wave = WaveRun::waiting(vec![HostRun::waiting("h1")]);
    wave.state = WaveState::Running;
    wave.work = Some(id(7).into());
    wave.hosts[0].state = HostState::Running;
    wave.hosts[0].attempt = 1;
    let rollout = RolloutRun {
        confirm: Confirm::None,
        bake_s: 0,
        max_failures: 0,
        parallel: 0,
        host_steps: 1,
        stagger: None,
        probes: None,
        required: vec![],
        waves: vec![wave],
    };
    let mut step = StepRun::waiting("roll", vec![], StepRunKind::Rollout(rollout));
    step.state = StepState::Running;
    let new = New {
        id: id(1).into(),
        project: "shop".into(),
        environment: "beta".into(),
        release: id(2).into(),
        version: "1.0.0".into(),
        kind: ReleaseKind::Normal,
        rollback: None,
        requested_by: "ann".into(),
        note: String::new(),
        trace: None,
        pool: "default".into(),
        only_hosts: vec![],
        not_before: None,
        expires_at: at(100_000),
        plan: PlanFacts {
            digest: "sha256:plan".into(),
            rules: vec![ApprovalRule { name: "ops".into(), quorum: 1, people: vec![] }],
            on_failure: OnFailure::Pause,
            steps: vec![],
            context: Default::default(),
            patience: Default::default(),
            automatic: None,
        },
    };
    let (mut d, _) = Deployment::request(new, at(0), &mut || id(99).into());
    d.state = State::Running;
    d.lock = Some(1);
    d.started_at = Some(at(10));
    d.steps = vec![step];
    let work = WorkNow {
        id: id(7).into(),
        what: "wave 1 of roll".into(),
        pool: "default".into(),
        created_at: at(20),
        phase: Phase::Running,
        owner: Some("process-a".into()),
        expires_at: Some(at(NOW + 10)),
        updated_at: at(NOW - 5),
        result_version: 0,
        applied: 0,
    };
    let task = TaskNow {
        id: id(8).into(),
        work: id(7).into(),
        host: "h1".into(),
        step: "roll".into(),
        attempt: 1,
        state: TaskState::Granted,
        offered_at: Some(at(21)),
        granted_at: Some(at(22)),
        started_at: Some(at(23)),
        reason: None,
        traffic: None,
    };
    let host = HostNow {
        agent: AgentNow::Seen { at: at(NOW - 3) },
        lock: None,
        busy: vec![(Some(id(1).into()), 1)],
        max_tasks: 2,
    };
    Snapshot {
        now: at(NOW),
        wake_at: None,
        updated_at: at(20),
        commands: vec![],
        works: vec![work],
        pools: [("default".to_owned(), at(NOW + 10))].into(),
        tasks: vec![task],
        hosts: [("h1".to_owned(), host)].into(),
        lock: None,
        queue: vec![],
        approvers: vec!["bob".into(), "cat".into()],
        plan: None,
        hold: None,
        mark: None,
        backlogs: vec![Backlog { service: "relay", events: 1, oldest: Some(at(NOW - 1)) }],
        skew_s: 1,
        broker_up: true,
        limits: Limits {
            poll: Duration::from_secs(5),
            disconnected: Duration::from_secs(30),
            events: Duration::from_secs(60),
            traffic: Duration::from_secs(60),
            skew_s: 5,
        },
        deployment: d,
    }
}

/// The same before it started.
fn before(state: State) -> Snapshot {
    let mut s = snapshot();
    s.deployment.state = state;
    s.deployment.steps.clear();
    s.deployment.lock = None;
    s.deployment.started_at = None;
    s.works.clear();
    s.tasks.clear();
    s.updated_at = at(NOW - 1);
    s
}

fn queued() -> Snapshot {
    let mut s = before(State::Queued);
    s.queue = vec![Other { id: s.deployment.id, version: "1.0.0".into() }];
    s
}

fn held_by(state: State) -> Snapshot {
    let mut s = queued();
    s.lock = Some(LockNow {
        holder: id(50).into(),
        taken_at: Some(at(5)),
        version: "0.9.0".into(),
        state,
        ended_at: state.is_terminal().then(|| at(60)),
        unknown: if state.is_terminal() { vec!["h9".into()] } else { vec![] },
        waiting_on: vec!["step verify".into()],
    });
    s
}

fn with(change: impl FnOnce(&mut Snapshot)) -> Snapshot {
    let mut s = snapshot();
    change(&mut s);
    s
}

fn agent(a: AgentNow) -> Snapshot {
    with(|s| s.hosts.get_mut("h1").expect("h1").agent = a)
}

fn task(state: TaskState, change: impl FnOnce(&mut TaskNow)) -> Snapshot {
    with(|s| {
        s.tasks[0].state = state;
        change(&mut s.tasks[0]);
    })
}

fn wave(state: WaveState) -> Snapshot {
    with(|s| {
        let StepRunKind::Rollout(r) = &mut s.deployment.steps[0].kind else { panic!("a rollout") };
        r.waves[0].state = state;
        r.waves[0].hosts[0].state = HostState::Succeeded;
        s.works.clear();
        s.tasks.clear();
    })
}

/// Each cause with facts that show it, in one or more ways.
fn cases() -> Vec<(Cause, Snapshot)> {
    let undecided =
        |seconds| Undecided { id: id(3).into(), verb: "retry".into(), actor: "person:ann".into(), at: at(seconds) };
    vec![
        (Cause::CommandUndecided, with(|s| s.commands = vec![undecided(NOW - 60)])),
        (Cause::NotLookedAt, with(|s| s.wake_at = Some(at(NOW - 60)))),
        (Cause::NotLookedAt, {
            let mut s = queued();
            s.updated_at = at(0);
            s
        }),
        (
            Cause::NotLookedAt,
            with(|s| {
                s.works.clear();
                s.tasks.clear();
            }),
        ),
        (
            Cause::ResultNotApplied,
            with(|s| {
                let w = &mut s.works[0];
                (w.phase, w.result_version, w.updated_at, w.expires_at) = (Phase::Settled, 1, at(NOW - 60), None);
            }),
        ),
        (
            Cause::NoExecutor,
            with(|s| {
                let w = &mut s.works[0];
                (w.phase, w.owner, w.expires_at, w.updated_at) = (Phase::Ready, None, None, at(20));
                s.pools.clear();
                s.tasks.clear();
            }),
        ),
        (
            Cause::ExecutorsFull,
            with(|s| {
                let w = &mut s.works[0];
                (w.phase, w.owner, w.expires_at, w.updated_at) = (Phase::Ready, None, None, at(20));
                s.tasks.clear();
            }),
        ),
        (Cause::ExecutorDead, with(|s| s.works[0].expires_at = Some(at(NOW - 1)))),
        (Cause::BrokerAway, with(|s| s.broker_up = false)),
        (
            Cause::EventsNotRelayed,
            with(|s| s.backlogs = vec![Backlog { service: "relay", events: 9, oldest: Some(at(NOW - 90)) }]),
        ),
        (
            Cause::EventsNotTaken,
            with(|s| s.backlogs = vec![Backlog { service: "auditor", events: 9, oldest: Some(at(NOW - 90)) }]),
        ),
        (Cause::ClockSkew, with(|s| s.skew_s = -30)),
        (Cause::AgentMissing, agent(AgentNow::None)),
        (Cause::AgentMissing, agent(AgentNow::NeverSeen { enrolled_at: at(1) })),
        (Cause::AgentMissing, {
            let mut s = agent(AgentNow::None);
            let StepRunKind::Rollout(r) = &mut s.deployment.steps[0].kind else { panic!("a rollout") };
            r.waves[0].hosts[0].state = HostState::NotStarted;
            s.tasks.clear();
            s
        }),
        (Cause::AgentRevoked, agent(AgentNow::Revoked { at: at(1) })),
        (Cause::AgentQuarantined, agent(AgentNow::Quarantined { why: "cloned".into() })),
        (Cause::AgentSilent, agent(AgentNow::Seen { at: at(NOW - 31) })),
        (Cause::SshUnreachable, agent(AgentNow::Ssh { checked_at: Some(at(5)), error: Some("no route".into()) })),
        (Cause::OfferUnanswered, task(TaskState::Offered, |t| t.offered_at = Some(at(NOW - 30)))),
        (Cause::HostLocked, {
            let mut s = task(TaskState::Pending, |_| {});
            s.hosts.get_mut("h1").expect("h1").lock = Some(by("cat", 4));
            s
        }),
        (Cause::HostBusy, {
            let mut s = task(TaskState::Pending, |_| {});
            s.hosts.get_mut("h1").expect("h1").busy = vec![(Some(id(60).into()), 1), (None, 1)];
            s
        }),
        (
            Cause::HostsUnknown,
            with(|s| {
                let StepRunKind::Rollout(r) = &mut s.deployment.steps[0].kind else { panic!("a rollout") };
                r.waves[0].hosts[0].state = HostState::Unknown;
                s.tasks[0].state = TaskState::Unknown;
            }),
        ),
        (
            Cause::TrafficStuck,
            task(TaskState::Pending, |t| {
                let reason = Some("3 connections left".into());
                t.traffic = Some(TaskTraffic { state: TrafficState::Draining, since: at(NOW - 90), reason });
            }),
        ),
        (
            Cause::TrafficStuck,
            task(TaskState::Succeeded, |t| {
                t.traffic = Some(TaskTraffic { state: TrafficState::AttachFailed, since: at(NOW - 1), reason: None });
            }),
        ),
        (Cause::LockHeldByEnded, held_by(State::Failed)),
        (Cause::WaitsForPerson, wave(WaveState::Confirming)),
        (Cause::WaitsForPerson, before(State::AwaitingApproval)),
        (
            Cause::WaitsForPerson,
            with(|s| {
                s.deployment.state = State::Paused;
                s.deployment.pause = Some(by("cat", 100));
            }),
        ),
        (Cause::ApprovalImpossible, {
            let mut s = before(State::AwaitingApproval);
            s.approvers = vec!["ann".into()];
            s
        }),
        (Cause::ApprovalImpossible, {
            let mut s = before(State::AwaitingApproval);
            s.deployment.rules[0].people = vec!["bob".into(), "zoe".into()];
            s.deployment.rules[0].quorum = 2;
            s
        }),
        (Cause::PlanImpossible, {
            let mut s = queued();
            s.plan = Some("environment shop/beta is gone".into());
            s
        }),
        (Cause::Marked, {
            let mut s = queued();
            s.mark = Some("version 1.0.0 is vetoed by cat".into());
            s
        }),
        (Cause::Held, {
            let mut s = queued();
            s.hold = Some(by("cat", 4));
            s.deployment.requested_by = "hook:cdevents".into();
            s
        }),
        (Cause::Queued, held_by(State::Running)),
        (Cause::Turn, {
            let mut s = before(State::Scheduled);
            s.deployment.turn = Some(Turn { bundle: id(70).into(), member: "web".into(), released: false });
            s
        }),
        (Cause::Timed, wave(WaveState::Baking { until: at(NOW + 60) })),
        (Cause::Timed, wave(WaveState::Retrying { at: at(NOW + 60) })),
        (Cause::Timed, {
            let mut s = before(State::Scheduled);
            s.deployment.not_before = Some(at(NOW + 60));
            s
        }),
        (Cause::Working, snapshot()),
        (Cause::Ended, {
            let mut s = before(State::Succeeded);
            s.deployment.ended_at = Some(at(100));
            s
        }),
    ]
}

fn causes(s: &Snapshot) -> Vec<Cause> {
    diagnose(s).iter().map(|f| f.cause).collect()
}

#[test]
fn every_cause_is_found_when_its_facts_are_there_and_alone() {
    let mut covered = BTreeSet::new();
    for (n, (cause, s)) in cases().into_iter().enumerate() {
        covered.insert(cause);
        let found = diagnose(&s);
        let f = found.iter().find(|f| f.cause == cause).unwrap_or_else(|| panic!("case {n}: {cause:?} in {found:?}"));
        assert_eq!(f.severity, cause.severity(), "case {n}");
        assert!(!f.text.is_empty() && !f.remedy.is_empty(), "case {n}");
        assert!(!f.evidence.is_empty() || cause == Cause::BrokerAway, "case {n}: {f:?}");
        assert_eq!(f.repair.as_ref().map(Repair::kind), cause.repair(), "case {n}");
        // Nothing else is called broken; a wait may have company.
        let others = found.iter().filter(|o| o.severity == Severity::Fault && o.cause != cause);
        let others: Vec<_> = others.map(|o| o.cause).collect();
        assert!(others.is_empty(), "case {n}: {cause:?} and {others:?}");
        assert!(found.is_sorted_by_key(|f| f.severity), "case {n}");
        let text = summary(&s, &found);
        assert!(text.contains(&found[0].text), "{text}");
    }
    let all: BTreeSet<Cause> = Cause::ALL.into();
    assert_eq!(covered, all, "every cause has a case");
}

#[test]
fn what_is_well_is_said_to_be_well() {
    assert_eq!(causes(&snapshot()), [Cause::Working]);
    assert!(summary(&snapshot(), &diagnose(&snapshot())).starts_with("Nothing is wrong."));
    assert_eq!(causes(&before(State::Succeeded)), [Cause::Ended]);
    // Young rows are left to doorbells and polls.
    let young = with(|s| {
        s.commands =
            vec![Undecided { id: id(3).into(), verb: "retry".into(), actor: "person:ann".into(), at: at(NOW - 2) }];
        s.wake_at = Some(at(NOW - 2));
    });
    assert_eq!(causes(&young), [Cause::Working]);
    let mut s = queued();
    s.updated_at = at(NOW - 2);
    assert_eq!(causes(&s), [Cause::Working]);
}

#[test]
fn a_wait_for_a_person_names_who_since_when_and_until_when() {
    let mut s = wave(WaveState::Confirming);
    s.deployment.attention = serde_json::from_value(serde_json::json!({
        "since": at(100), "deadline": at(9000), "reminded": 0, "on": []
    }))
    .map(Some::<Attention>)
    .expect("attention");
    let found = diagnose(&s);
    let f = found.iter().find(|f| f.cause == Cause::WaitsForPerson).expect("found");
    let told = |f: &Finding| f.evidence.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert_eq!(f.since, Some(at(100)));
    assert!(told(f).contains("nobody has claimed it; ann requested it"), "{}", told(f));
    assert!(told(f).contains("until 2026-11-21 12:30:00 UTC, then people are reminded"), "{}", told(f));
    s.deployment.claim = Some(by("cat", 200));
    let found = diagnose(&s);
    let f = found.iter().find(|f| f.cause == Cause::WaitsForPerson).expect("found");
    assert!(told(f).contains("claimed by cat (2026-11-21 10:03:20 UTC)"), "{}", told(f));
}

#[test]
fn an_approval_that_somebody_can_still_give_is_not_impossible() {
    let mut s = before(State::AwaitingApproval);
    assert!(!causes(&s).contains(&Cause::ApprovalImpossible));
    s.deployment.rules[0].quorum = 2;
    assert!(!causes(&s).contains(&Cause::ApprovalImpossible), "bob and cat");
    s.deployment.approvals = vec![Approval {
        deployment: s.deployment.id,
        plan_digest: "sha256:plan".into(),
        person: "bob".into(),
        decision: Decision::Approve,
        comment: String::new(),
        at: at(5),
        signature: String::new(),
    }];
    assert!(!causes(&s).contains(&Cause::ApprovalImpossible), "bob did, cat can");
    s.approvers = vec!["bob".into()];
    assert!(causes(&s).contains(&Cause::ApprovalImpossible), "cat is gone");
}

#[test]
fn a_claim_that_holds_is_never_offered_for_release() {
    for (_, s) in cases() {
        for f in diagnose(&s) {
            if let Some(Repair::ReleaseClaims { works }) = f.repair {
                for (_, id) in works {
                    let w = s.works.iter().find(|w| w.id == id).expect("known");
                    assert!(w.phase == Phase::Running && w.expires_at.is_some_and(|e| e < s.now));
                }
            }
        }
    }
}

#[test]
fn thousands_of_hosts_make_a_short_answer() {
    let s = with(|s| {
        for n in 0..5000u128 {
            let host = format!("x{n}");
            s.tasks.push(TaskNow { id: id(1000 + n).into(), host: host.clone(), ..s.tasks[0].clone() });
            let silent = HostNow { agent: AgentNow::Seen { at: at(1) }, ..s.hosts["h1"].clone() };
            s.hosts.insert(host, silent);
        }
    });
    let f = diagnose(&s).into_iter().find(|f| f.cause == Cause::AgentSilent).expect("found");
    assert!(f.text.contains("and 4995 more") && f.text.len() < 200, "{}", f.text);
    assert_eq!(f.evidence.len(), 21, "twenty facts, and how many more");
}

/// `UPDATE=1 cargo test -p windlass-domain --test diagnosis` writes the page anew.
#[test]
fn the_page_is_made_from_the_causes() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ops/docs/stuck.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, page()).expect("writes");
    }
    let file = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(file == page(), "{} is not what the causes say; run this test with UPDATE=1", path.display());
    for c in Cause::ALL {
        assert_eq!(serde_json::to_value(c).expect("json"), c.as_str());
        assert!(file.contains(&format!("\n### {}\n", c.as_str())));
    }
}
