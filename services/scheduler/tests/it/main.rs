//! The scheduler on both databases and a real broker; the test plays api and executor through the same tables.

mod amend;
mod cost;
mod holds;
mod marks;
mod meanwhile;
mod ordered;
mod overriding;
mod planning;
mod promotions;
mod reopen;
mod rights;
mod rollback;
mod world;

use std::time::Duration;
use windlass_contracts::command::Verb;
use windlass_domain::{
    approval::{Approval, Decision},
    deployment::{HostState, State},
    ids::DeploymentId,
    release::RollbackMode,
    work::Outcome,
};
use windlass_testkit::databases;
use world::World;

fn approve(d: DeploymentId, digest: &str, person: &str) -> Verb {
    let approval = Approval {
        deployment: d,
        plan_digest: digest.into(),
        person: person.into(),
        decision: Decision::Approve,
        comment: String::new(),
        at: chrono::Utc::now(),
        signature: "test".into(),
    };
    Verb::Decide { approval, token: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_request_to_success_and_back() {
    for db in databases().await {
        let w = World::start(db, &["h1", "h2", "h3"], 1).await;
        let one = w.artifact("1.0.0").await;
        let (id, outcome) = w.request("hook:cdevents", one).await;
        assert!(outcome.accepted, "{outcome:?}");
        let d = w.until(id, State::AwaitingApproval).await;
        let refused = w.command("person:bob", id, approve(id, "sha256:old", "bob")).await;
        assert_eq!(refused.code, "plan_changed");
        assert!(w.command("person:bob", id, approve(id, &d.plan_digest, "bob")).await.accepted);
        // The canary, then the rest.
        assert_eq!(w.settle(id, &[]).await, ["h1"]);
        assert_eq!(w.settle(id, &[]).await, ["h2", "h3"]);
        w.until(id, State::Succeeded).await;
        assert_eq!(w.good().await, ["1.0.0"]);

        let two = w.artifact("2.0.0").await;
        let (bad, _) = w.request("person:ann", two).await;
        let d = w.until(bad, State::AwaitingApproval).await;
        assert_eq!(w.command("person:ann", bad, approve(bad, &d.plan_digest, "ann")).await.code, "own_request");
        assert!(w.command("person:bob", bad, approve(bad, &d.plan_digest, "bob")).await.accepted);
        w.settle(bad, &[("h1", Outcome::Failed)]).await;
        let d = w.until(bad, State::Paused).await;
        assert!(d.hosts().any(|h| h.host == "h1" && h.state == HostState::Failed));
        assert!(d.hosts().filter(|h| h.host != "h1").all(|h| h.state == HostState::Waiting));

        let back = DeploymentId(uuid::Uuid::now_v7());
        let verb = Verb::Rollback {
            from_phase: None,
            to: None,
            veto: false,
            mode: RollbackMode::Normal,
            reason: "bad".into(),
            rollback: back,
        };
        assert!(w.command("person:olga", bad, verb).await.accepted);
        w.until(bad, State::Aborted).await;
        // Only what was touched goes back, and no approval is asked for it.
        assert_eq!(w.settle(back, &[]).await, ["h1"]);
        w.until(back, State::Succeeded).await;
        w.until(bad, State::RolledBack).await;
        assert_eq!(w.good().await, ["1.0.0", "1.0.0"]);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_planned_is_refused_with_the_reason() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let one = w.artifact("1.0.0").await;
        let (_, outcome) = w.request_to("staging", one).await;
        assert!(!outcome.accepted && outcome.code == "invalid");
        assert!(outcome.detail.contains("staging") && outcome.detail.contains("beta"), "{}", outcome.detail);
        let first = DeploymentId(uuid::Uuid::now_v7());
        let gone = w.command("person:ann", first, Verb::Resume).await;
        assert_eq!(gone.code, "not_found");
        // A rollback with nothing to go back to stops nothing.
        let (id, _) = w.request("person:ann", one).await;
        w.until(id, State::Running).await;
        let verb = Verb::Rollback {
            from_phase: None,
            to: None,
            veto: false,
            mode: RollbackMode::Normal,
            reason: "x".into(),
            rollback: DeploymentId(uuid::Uuid::now_v7()),
        };
        assert_eq!(w.command("person:olga", id, verb).await.code, "no_last_known_good");
        w.until(id, State::Running).await;
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_in_the_queue_starts_when_the_lock_is_freed() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let one = w.artifact("1.0.0").await;
        let (first, _) = w.request("person:ann", one).await;
        w.until(first, State::Running).await;
        let (second, _) = w.request("person:ann", one).await;
        let (third, _) = w.request("person:ann", one).await;
        w.until(third, State::Queued).await;
        assert!(w.command("person:olga", first, Verb::Abort { reason: "x".into() }).await.accepted);
        w.settle(first, &[("h1", Outcome::Cancelled)]).await;
        w.until(first, State::Aborted).await;
        w.settle(second, &[]).await;
        w.until(second, State::Succeeded).await;
        w.settle(third, &[]).await;
        w.until(third, State::Succeeded).await;
        w.stop().await;
    }
}

/// Two schedulers, and a broker that loses everything: each command is decided once, each work made once.
#[tokio::test(flavor = "multi_thread")]
async fn two_schedulers_without_messages_decide_each_command_once() {
    for db in databases().await {
        let mut w = World::start(db, &["h1"], 0).await;
        w.second_scheduler().await;
        let one = w.artifact("1.0.0").await;
        w.nats.kill();
        let mut ids = Vec::new();
        for _ in 0..8 {
            ids.push(w.request("person:ann", one).await.0);
        }
        for id in ids {
            assert_eq!(w.settle(id, &[]).await, ["h1"]);
            w.until(id, State::Succeeded).await;
            assert_eq!(w.works(id).await, 1);
        }
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_deployment_starts_at_its_time_and_not_before() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let one = w.artifact("1.0.0").await;
        let at = chrono::Utc::now() + Duration::from_millis(1500);
        let id = w.request_at(one, at).await;
        w.until(id, State::Scheduled).await;
        let d = w.until(id, State::Running).await;
        assert!(d.started_at.expect("started") >= at);
        w.stop().await;
    }
}
