//! `doctor run`: causes told from real rows, and repairs that wake who decides.

use crate::world::{PATIENCE, World};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};
use uuid::Uuid;
use windlass_contracts::{
    command::{Command, Verb},
    subjects,
};
use windlass_domain::{
    approval::ApprovalRule,
    deployment::{
        Deployment, HostRun, HostState, RolloutRun, State, StepRun, StepRunKind, StepState, WaveRun, WaveState,
    },
    flow::Confirm,
    ids::{DeploymentId, WorkId},
    task::Task,
    work::{CentralWork, Desired, Work, WorkSpec},
};
use windlass_store::{commands, deployments, diagnosis, events, sql, tasks, works};
use windlass_testkit::databases;

async fn look(w: &World, id: DeploymentId) -> Value {
    let (status, d) = w.get(&format!("/deployments/{id}/diagnosis")).await;
    assert_eq!(status, 200, "{d}");
    d
}

fn causes(d: &Value) -> BTreeSet<&str> {
    d["findings"].as_array().expect("findings").iter().filter_map(|f| f["cause"].as_str()).collect()
}

fn finding<'a>(d: &'a Value, cause: &str) -> &'a Value {
    let all = d["findings"].as_array().expect("findings");
    all.iter().find(|f| f["cause"] == cause).unwrap_or_else(|| panic!("no {cause} in {d}"))
}

/// A command as an api stores it whose doorbell was lost.
async fn command(w: &World, d: &Deployment, age: Duration) -> Command {
    let c = Command {
        id: Uuid::now_v7().into(),
        project: d.project.clone(),
        environment: Some(d.environment.clone()),
        deployment: Some(d.id),
        actor: "person:ann".into(),
        verb: Verb::Resume,
        created_at: chrono::Utc::now() - age,
        trace: None,
    };
    let mut tx = w.ctx.store.write().await.expect("begins");
    commands::insert(&mut tx, &c).await.expect("stores");
    tx.commit().await.expect("commits");
    c
}

/// The deployment runs and holds its environment; `h1` of it is in this state.
async fn running(w: &World, environment: &str, host: HostState) -> Deployment {
    let mut d = w.deployment("shop", environment).await;
    let mut wave = WaveRun::waiting(vec![HostRun { state: host, attempt: 1, ..HostRun::waiting("h1") }]);
    wave.state = WaveState::Running;
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
    (d.state, d.steps, d.started_at) = (State::Running, vec![step], Some(chrono::Utc::now()));
    let mut tx = w.ctx.store.write().await.expect("begins");
    deployments::lock_row(&mut tx, &d.project, &d.environment).await.expect("makes the row");
    d.lock = deployments::try_lock(&mut tx, &d, chrono::Utc::now()).await.expect("locks");
    tx.commit().await.expect("commits");
    assert!(d.lock.is_some());
    w.store(&d).await;
    d
}

async fn work(w: &World, d: &Deployment) -> WorkId {
    let id = WorkId(Uuid::now_v7());
    let work = Work {
        id,
        deployment: d.id,
        project: d.project.clone(),
        environment: d.environment.clone(),
        pool: "default".into(),
        desired: Desired::Run,
        fence: 1,
        plan_digest: d.plan_digest.clone(),
        spec: WorkSpec::Central(CentralWork { step: "smoke".into(), attempt: 1, outputs: Default::default() }),
        trace: None,
    };
    let mut tx = w.ctx.store.write().await.expect("begins");
    works::insert(&mut tx, &work).await.expect("stores");
    tx.commit().await.expect("commits");
    id
}

async fn claim(w: &World, owner: &str, lease: Duration) -> Vec<works::Claim> {
    let mut tx = w.ctx.store.write().await.expect("begins");
    let claims = works::claim(&mut tx, &["default".into()], owner, lease, 10, &[]).await.expect("claims");
    tx.commit().await.expect("commits");
    claims
}

async fn task(w: &World, d: &Deployment, work: WorkId, state: &str) {
    let text = json!({
        "id": Uuid::now_v7(), "host": "h1", "agent": null, "attempt": 1, "start_at": 0, "state": state,
        "granted": null, "report": null, "offered_at": null, "granted_at": null, "started_at": null, "settled_at": null
    });
    let task: Task = serde_json::from_value(text).expect("a task");
    let stored = tasks::StoredTask { work, deployment: d.id, step: "roll".into(), segment: 0, version: 1, task };
    let mut tx = w.ctx.store.write().await.expect("begins");
    tasks::insert(&mut tx, &stored, chrono::Utc::now()).await.expect("stores");
    tx.commit().await.expect("commits");
}

/// What the repair did, by cause.
async fn repair(w: &World, id: DeploymentId, body: Value) -> (u16, Value) {
    w.post(&format!("/deployments/{id}/repair"), body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_doorbell_is_rung_again_and_only_when_it_is_said() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let d = w.deployment("shop", "beta").await;
        let young = command(&w, &d, Duration::ZERO).await;
        assert!(!causes(&look(&w, d.id).await).contains("command_undecided"), "doorbells and polls come first");
        let c = command(&w, &d, Duration::from_secs(60)).await;
        let found = look(&w, d.id).await;
        let f = finding(&found, "command_undecided");
        assert_eq!((&f["severity"], &f["repair"]["kind"]), (&json!("fault"), &json!("ring_scheduler")), "{f}");
        assert!(f["evidence"][0].as_str().is_some_and(|e| e.contains(&c.id.to_string())), "{f}");
        assert!(found["never"].as_array().is_some_and(|n| n.iter().any(|n| n == "approve anything")));

        let mut bell = w.ctx.bus.subscribe(subjects::ALL_COMMANDS).await.expect("listens");
        w.ctx.bus.flush().await.expect("flushes");
        let (status, dry) = repair(&w, d.id, json!({})).await;
        assert_eq!((status, &dry["applied"], &dry["steps"][0]["outcome"]), (200, &json!(false), &json!("")), "{dry}");
        assert_eq!(w.count("events WHERE type = 'deployment.repaired'").await, 0);
        let (status, done) = repair(&w, d.id, json!({ "apply": true, "cause": "command_undecided" })).await;
        assert_eq!((status, &done["applied"]), (200, &json!(true)), "{done}");
        let heard = tokio::time::timeout(PATIENCE, bell.next()).await.expect("in time").expect("a bell");
        // The dry run rang nothing: this is the first bell, and it is not the young one's.
        assert_eq!(heard.text(), Some(c.id.to_string().as_str()));
        assert_ne!(c.id, young.id);
        assert_eq!(w.count("events WHERE type = 'deployment.repaired' AND actor = 'person:admin'").await, 1);
        // It decided nothing.
        assert_eq!((w.count("command_queue").await, w.count("command_outcomes").await), (2, 0));
        let (status, p) = repair(&w, d.id, json!({ "apply": true, "cause": "executor_dead" })).await;
        assert_eq!((status, &p["code"]), (409, &json!("nothing_to_do")), "{p}");
        let (status, p) = repair(&w, d.id, json!({ "apply": true, "cause": "hosts_unknown" })).await;
        assert_eq!(status, 400, "what has no repair cannot be asked for: {p}");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_executors_claim_is_given_back_and_a_live_one_never() {
    for db in databases().await {
        let w = World::start_with(db, |s| s.poll_s = Duration::from_millis(1).into()).await;
        w.fill().await;
        let d = running(&w, "beta", HostState::Running).await;
        let id = work(&w, &d).await;
        let found = look(&w, d.id).await;
        let f = finding(&found, "no_executor");
        assert!(f["text"].as_str().is_some_and(|t| t.contains("pool default")), "{f}");

        let held = claim(&w, "live", Duration::from_secs(3600)).await;
        assert_eq!(held.len(), 1);
        let found = look(&w, d.id).await;
        assert_eq!(causes(&found), BTreeSet::from(["working"]), "{found}");
        let mut tx = w.ctx.store.write().await.expect("begins");
        assert_eq!(diagnosis::release_expired(&mut tx, id).await.expect("asks"), None, "it holds");
        // Its executor dies.
        assert!(works::release(&mut tx, id, held[0].epoch).await.expect("lets go"));
        tx.commit().await.expect("commits");

        let found = look(&w, d.id).await;
        let f = finding(&found, "executor_dead");
        assert!(f["evidence"][0].as_str().is_some_and(|e| e.contains("live")), "{f}");
        let mut bell = w.ctx.bus.subscribe(subjects::work("default")).await.expect("listens");
        w.ctx.bus.flush().await.expect("flushes");
        let (status, done) = repair(&w, d.id, json!({ "apply": true, "cause": "executor_dead" })).await;
        assert_eq!(status, 200, "{done}");
        assert!(done["steps"][0]["outcome"].as_str().is_some_and(|o| o.starts_with("1 of 1")), "{done}");
        let heard = tokio::time::timeout(PATIENCE, bell.next()).await.expect("in time").expect("a bell");
        assert_eq!(heard.text(), Some(id.to_string().as_str()));

        let mut tx = w.ctx.store.write().await.expect("begins");
        let state = works::claim_state(&mut tx, id).await.expect("reads").expect("there");
        assert_eq!((state.owner, state.phase.as_str(), state.epoch), (None, "ready", held[0].epoch + 1));
        let zombie = works::renew(&mut tx, id, held[0].epoch, Duration::from_secs(60)).await.expect("asks");
        assert!(!zombie, "who held it can write nothing any more");
        tx.commit().await.expect("commits");
        let taken = claim(&w, "other", Duration::from_secs(3600)).await;
        assert!(taken[0].takeover && taken[0].epoch > state.epoch);
        assert!(causes(&look(&w, d.id).await).is_disjoint(&BTreeSet::from(["executor_dead", "no_executor"])));
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn causes_are_told_from_what_the_database_holds() {
    for db in databases().await {
        let w = World::start_with(db, |s| s.poll_s = Duration::from_secs(3600).into()).await;
        w.fill().await;

        // A host that is locked and has no agent; then nobody knows what it did, and the deployment ends.
        let mut first = running(&w, "beta", HostState::Running).await;
        let id = work(&w, &first).await;
        claim(&w, "executor", Duration::from_secs(3600)).await;
        task(&w, &first, id, "pending").await;
        assert_eq!(w.post("/hosts/h1/lock", json!({ "reason": "disk" })).await.0, 200);
        let found = look(&w, first.id).await;
        assert!(causes(&found).is_superset(&BTreeSet::from(["agent_missing", "host_locked", "working"])), "{found}");
        let f = finding(&found, "host_locked");
        assert!(f["evidence"][0].as_str().is_some_and(|e| e.contains("admin: disk")), "{f}");

        let StepRunKind::Rollout(r) = &mut first.steps[0].kind else { panic!("a rollout") };
        r.waves[0].hosts[0].state = HostState::Unknown;
        (first.state, first.ended_at) = (State::Failed, Some(chrono::Utc::now()));
        w.store(&first).await;
        assert!(causes(&look(&w, first.id).await).contains("hosts_unknown"));

        // Who comes after it waits for that, and for others before it.
        let mut second = w.deployment("shop", "beta").await;
        second.state = State::Queued;
        w.store(&second).await;
        let mut third = w.deployment("shop", "beta").await;
        (third.state, third.requested_by) = (State::Queued, "hook:cdevents".into());
        w.store(&third).await;
        let (status, body) =
            w.post("/projects/shop/marks", json!({ "kind": "veto", "version": "1.0.0", "reason": "leaks" })).await;
        assert_eq!(status, 201, "{body}");
        let r = w.request(reqwest::Method::PUT, "/projects/shop/environments/beta/hold", &w.admin);
        assert_eq!(r.json(&json!({ "reason": "calm" })).send().await.expect("answers").status(), 200);
        let found = look(&w, third.id).await;
        // Its release is not in the database, so it cannot be planned either.
        let wanted = BTreeSet::from(["lock_held_by_ended", "marked", "held", "plan_impossible"]);
        assert!(causes(&found).is_superset(&wanted), "{found}");
        let evidence = finding(&found, "lock_held_by_ended")["evidence"].to_string();
        assert!(evidence.contains("h1") || evidence.contains(&first.id.to_string()), "{evidence}");

        // People: a rule that nobody can meet.
        let mut asks = w.deployment("shop", "online").await;
        asks.rules = vec![ApprovalRule { name: "boss".into(), quorum: 1, people: vec!["zoe".into(), "ann".into()] }];
        w.store(&asks).await;
        let found = look(&w, asks.id).await;
        assert!(causes(&found).is_superset(&BTreeSet::from(["approval_impossible", "waits_for_person"])), "{found}");
        let evidence = finding(&found, "approval_impossible")["evidence"].to_string();
        assert!(evidence.contains("zoe has no right") && evidence.contains("ann requested it"), "{evidence}");
        w.person("zoe", &[("retail", "approver")]).await;
        assert!(!causes(&look(&w, asks.id).await).contains("approval_impossible"), "now somebody can");

        // Events that nobody takes: the auditor does not run in this world.
        let mut tx = w.ctx.store.write().await.expect("begins");
        sql("UPDATE event_queue SET at = $1 WHERE consumer = 'auditor'")
            .bind(chrono::Utc::now() - Duration::from_secs(600))
            .execute(&mut tx)
            .await
            .expect("ages");
        assert!(events::backlog(&mut tx, events::AUDITOR).await.expect("counts").0 > 0);
        tx.commit().await.expect("commits");
        let found = look(&w, asks.id).await;
        assert!(finding(&found, "events_not_taken")["text"].as_str().is_some_and(|t| t.contains("auditor")), "{found}");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_projects_are_counted_and_not_named() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let (_, body) = w.apply(&w.admin, "kind: host\nname: h1\naddress: 127.0.0.1\nmax_tasks: 1\n").await;
        assert!(body.is_object(), "{body}");
        let bank = w.deployment("bank", "beta").await;
        let theirs = work(&w, &bank).await;
        task(&w, &bank, theirs, "granted").await;
        let d = running(&w, "beta", HostState::Running).await;
        let id = work(&w, &d).await;
        claim(&w, "executor", Duration::from_secs(3600)).await;
        task(&w, &d, id, "pending").await;
        let found = look(&w, d.id).await;
        let f = finding(&found, "host_busy");
        assert!(f["evidence"][0].as_str().is_some_and(|e| e.contains("1 of other projects")), "{f}");
        assert!(!found.to_string().contains(&bank.id.to_string()), "{found}");
        w.stop().await;
    }
}
