//! Hosts that take no tasks now: locked ones, and ones that are busy with all they take at once.

use crate::world::{SOON, World};
use std::time::Duration;
use windlass_contracts::frames::RefuseCode;
use windlass_domain::{
    catalog::{Host, Item},
    ids::{AgentId, TaskId, WorkId},
    task::TaskState,
    work::Outcome::*,
};
use windlass_runtime::Settings;
use windlass_store::{Store, agents, catalog, hosts, sql, tasks, words};
use windlass_testkit::{databases, eventually};

async fn lock(w: &World, host: &str) {
    lock_in(&w.store, host).await;
}

async fn lock_in(store: &Store, host: &str) {
    let mut tx = store.write().await.expect("begins");
    let l = hosts::HostLock {
        host: host.into(),
        reason: "disk swap".into(),
        locked_by: "ann".into(),
        locked_at: chrono::Utc::now(),
    };
    hosts::lock(&mut tx, &l).await.expect("locks");
    tx.commit().await.expect("commits");
}

async fn unlock(w: &World, host: &str) {
    let mut tx = w.store.write().await.expect("begins");
    assert!(hosts::unlock(&mut tx, host).await.expect("unlocks"));
    tx.commit().await.expect("commits");
}

/// The one host of this work was locked too long.
async fn never_started(w: &World, work: WorkId) {
    assert_eq!(w.outcomes(work, 1).await, [NotStarted]);
    let reason = w.tasks(work).await[0].task.reason.clone().unwrap_or_default();
    assert!(reason.contains("locked by ann: disk swap"), "{reason}");
    assert_eq!(w.starts(), 0);
}

#[tokio::test]
async fn a_locked_host_waits_until_it_is_unlocked() {
    for db in databases().await {
        let mut w = World::new(db, 2, 2).await;
        w.start_agents();
        lock(&w, "h0").await;
        let e = w.executor().await;
        let work = w.wave(2, 0, 0).await;
        w.until_state(work, 1, "succeeded").await;
        assert_eq!(w.state(work, 0).await, Some("pending"), "the other one did not wait for it");
        unlock(&w, "h0").await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded, Succeeded]);
        w.assert_single_starts();
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_host_that_stays_locked_is_not_started_and_the_reason_says_so() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.start_agents();
        lock(&w, "h0").await;
        let e = w.executor_with(|s| s.executor.host_wait_s = Duration::from_millis(300).into()).await;
        let work = w.wave(1, 0, 1).await;
        never_started(&w, work).await;
        e.shut_down().await;
    }
}

/// An offer that a host takes only when it is back, and a person locked it meanwhile.
#[tokio::test]
async fn what_was_offered_is_not_granted_on_a_locked_host() {
    let brief = |s: &mut Settings, wait: u64| {
        s.executor.offer_timeout_s = Duration::from_millis(700).into();
        s.executor.host_wait_s = Duration::from_millis(wait).into();
    };
    for unlocks in [false, true] {
        for db in databases().await {
            let mut w = World::new(db, 1, 1).await;
            w.agent(0).lock().refuse = Some(RefuseCode::Busy);
            w.start_agents();
            let e = w.executor_with(|s| brief(s, if unlocks { 60_000 } else { 2_000 })).await;
            let work = w.wave(1, 0, 1).await;
            w.until_state(work, 0, "offered").await;
            lock(&w, "h0").await;
            w.agent(0).lock().refuse = None;
            if unlocks {
                let offered = w.tasks(work).await[0].task.offered_at.expect("it is offered");
                eventually(SOON, "the offer's time would be up", async || {
                    (chrono::Utc::now() - offered > chrono::Duration::seconds(1)).then_some(())
                })
                .await;
                assert_eq!(w.state(work, 0).await, Some("offered"));
                unlock(&w, "h0").await;
                assert_eq!(w.outcomes(work, 1).await, [Succeeded]);
            } else {
                never_started(&w, work).await;
            }
            e.shut_down().await;
        }
    }
}

async fn revoke_in(store: &Store, agent: AgentId) {
    let mut tx = store.write().await.expect("begins");
    assert!(agents::revoke(&mut tx, agent, chrono::Utc::now()).await.expect("revokes"));
    tx.commit().await.expect("commits");
}

/// The executor does not hear of it before it looks at all agents again.
#[tokio::test]
async fn what_was_offered_is_not_granted_to_a_revoked_agent() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.agent(0).lock().refuse = Some(RefuseCode::Busy);
        w.start_agents();
        let e = w
            .executor_with(|s| {
                s.poll_s = Duration::from_secs(30).into();
                s.executor.suspect_s = Duration::from_secs(60).into();
                s.executor.offer_timeout_s = Duration::from_millis(1_500).into();
            })
            .await;
        let work = w.wave(1, 0, 1).await;
        w.until_state(work, 0, "offered").await;
        revoke_in(&w.store, w.agent(0).id).await;
        w.agent(0).lock().refuse = None;
        assert_eq!(w.outcomes(work, 1).await, [NotStarted]);
        assert_eq!(w.starts(), 0);
        e.shut_down().await;
    }
}

/// Else a grant that had looked before the word could be made after the word was answered with yes.
#[tokio::test]
async fn locks_and_revocations_wait_for_grants_under_way() {
    for db in databases().await {
        let w = World::new(db, 1, 1).await;
        for revokes in [false, true] {
            let mut grant = w.store.write().await.expect("begins");
            words::of_work(&mut grant, WorkId(uuid::Uuid::now_v7())).await.expect("reads");
            let (store, agent) = (w.store.clone(), w.agent(0).id);
            let mut word = tokio::spawn(async move {
                match revokes {
                    true => revoke_in(&store, agent).await,
                    false => lock_in(&store, "h0").await,
                }
            });
            let early = tokio::time::timeout(Duration::from_millis(300), &mut word).await;
            assert!(early.is_err(), "it did not wait");
            grant.commit().await.expect("commits");
            tokio::time::timeout(SOON, word).await.expect("it goes on").expect("it is said");
        }
    }
}

#[tokio::test]
async fn a_host_takes_no_more_tasks_at_once_than_it_says() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.start_agents();
        let one = Host { name: "h0".into(), address: "127.0.0.1".into(), max_tasks: Some(1), ..Host::default() };
        let other = TaskId(uuid::Uuid::now_v7());
        let mut tx = w.store.write().await.expect("begins");
        catalog::save(&mut tx, &Item::Host(one), 0, false, "test", chrono::Utc::now()).await.expect("saves");
        let task = windlass_domain::task::Task {
            class: None,
            stop: None,
            traffic: None,
            id: other,
            host: "h0".into(),
            agent: None,
            attempt: 1,
            start_at: 0,
            state: TaskState::Granted,
            granted: None,
            report: None,
            steps: vec![],
            reason: None,
            auto_stopped: false,
            offered_at: None,
            granted_at: None,
            started_at: None,
            settled_at: None,
        };
        let stored = tasks::StoredTask {
            work: uuid::Uuid::now_v7().into(),
            deployment: uuid::Uuid::now_v7().into(),
            step: "other".into(),
            segment: 0,
            version: 1,
            task,
        };
        tasks::insert(&mut tx, &stored, chrono::Utc::now()).await.expect("stores");
        tx.commit().await.expect("commits");

        let e = w.executor().await;
        let work = w.wave(1, 0, 0).await;
        w.until_state(work, 0, "pending").await;
        // Turns go by; what another deployment runs there keeps this one out.
        let looked = windlass_testkit::eventually(SOON, "an open place, which must not come", async || {
            (w.state(work, 0).await != Some("pending")).then_some(())
        });
        let came = tokio::time::timeout(Duration::from_millis(1500), looked).await;
        assert!(came.is_err(), "the host was full");
        let mut tx = w.store.write().await.expect("begins");
        sql("UPDATE tasks SET state = 'succeeded' WHERE id = $1").bind(other).execute(&mut tx).await.expect("ends");
        tx.commit().await.expect("commits");
        assert_eq!(w.outcomes(work, 1).await, [Succeeded]);
        e.shut_down().await;
    }
}
