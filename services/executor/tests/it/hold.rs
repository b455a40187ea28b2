//! Pauses, and people who stop single hosts.

use crate::world::{SOON, World};
use std::time::Duration;
use windlass_contracts::frames::UpBody;
use windlass_domain::{
    ids::WorkId,
    task::ReportedOutcome,
    work::{FailureClass, Outcome::*},
};
use windlass_store::tasks;
use windlass_testkit::{databases, eventually};

/// Nothing of it may come while executors look again and again.
async fn never<T>(what: &str, probe: impl AsyncFn() -> Option<T>) {
    let came = tokio::time::timeout(Duration::from_millis(1500), eventually(SOON, what, probe)).await;
    assert!(came.is_err(), "{what}, in a pause");
}

async fn stop(w: &World, work: WorkId, host: usize, why: &str) {
    let task = w.task(work, host).await;
    let mut tx = w.store.write().await.expect("tx");
    let s = tasks::Stop { task, by: "ann".into(), reason: why.into(), at: chrono::Utc::now() };
    tasks::insert_stop(&mut tx, work, &s).await.expect("stops");
    tx.commit().await.expect("commits");
    w.ring(work).await;
}

#[tokio::test]
async fn after_a_pause_has_committed_nothing_more_starts_and_resume_goes_on() {
    for db in databases().await {
        let mut w = World::new(db, 4, 4).await;
        w.agent(0).lock().hang = true;
        w.agent(1).lock().no_accept = true;
        w.start_agents();
        // Less than the pause lasts: in a pause no offer runs out.
        let e = w.executor_with(|s| s.executor.offer_timeout_s = Duration::from_secs(3).into()).await;
        let work = w.wave(4, 2, 0).await;
        eventually(SOON, "h0 runs", async || (!w.agent(0).running().is_empty()).then_some(())).await;
        w.until_state(work, 1, "offered").await;
        w.hold(work, true).await;
        // h1 accepts now, h0 ends: neither starts anything.
        let task = w.task(work, 1).await;
        w.agent(1).say(UpBody::Accept { seal_to: None, task, nonce: "a".repeat(32), journal_seq: 9 }).await;
        w.agent(0).end_running(ReportedOutcome::Succeeded).await;
        w.until_state(work, 0, "succeeded").await;
        let starts = w.starts();
        never("another start, or another state", async || {
            let states = [w.state(work, 1).await?, w.state(work, 2).await?, w.state(work, 3).await?];
            (w.starts() != starts || states != ["offered", "pending", "pending"]).then_some(())
        })
        .await;
        let offered = w.tasks(work).await.into_iter().filter_map(|t| t.task.offered_at).max().expect("offered");
        eventually(SOON, "the offer's time is over", async || {
            (chrono::Utc::now() - offered > chrono::TimeDelta::seconds(4)).then_some(())
        })
        .await;
        assert_eq!(w.state(work, 1).await, Some("offered"), "the pause is not counted");
        w.agent(1).lock().no_accept = false;
        w.hold(work, false).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded; 4]);
        w.assert_single_starts();
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_pause_outlives_its_executor_and_can_end_in_an_abort() {
    for db in databases().await {
        let mut w = World::new(db, 3, 3).await;
        w.agent(0).lock().hang = true;
        w.start_agents();
        let first = w.executor().await;
        let work = w.wave(3, 1, 0).await;
        eventually(SOON, "h0 runs", async || (!w.agent(0).running().is_empty()).then_some(())).await;
        w.hold(work, true).await;
        first.crash().await;
        let second = w.executor().await;
        w.until_owned(work, &second).await;
        w.agent(0).end_running(ReportedOutcome::Succeeded).await;
        w.until_state(work, 0, "succeeded").await;
        never("a start", async || (w.starts() > 1).then_some(())).await;
        w.abort().await;
        let hosts = w.hosts(work, 1).await;
        assert_eq!(hosts.iter().map(|h| h.outcome).collect::<Vec<_>>(), [Succeeded, NotStarted, NotStarted]);
        assert_eq!(hosts[1].class, Some(FailureClass::Stopped));
        assert_eq!(w.starts(), 1);
        second.shut_down().await;
    }
}

#[tokio::test]
async fn a_grant_that_got_lost_before_a_pause_starts_nothing_in_it() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.agent(0).lock().lose_grants = true;
        w.start_agents();
        let e = w.executor().await;
        let work = w.wave(1, 0, 0).await;
        w.until_state(work, 0, "granted").await;
        w.hold(work, true).await;
        never("a start", async || (w.starts() > 0).then_some(())).await;
        // From here on a grant would be heard, were it said again.
        w.agent(0).lock().lose_grants = false;
        never("a start", async || (w.starts() > 0).then_some(())).await;
        w.hold(work, false).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded]);
        w.assert_single_starts();
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_person_stops_single_hosts() {
    for db in databases().await {
        let mut w = World::new(db, 4, 4).await;
        w.agent(0).lock().hang = true; // runs
        w.agent(1).lock().no_accept = true; // offered
        w.start_agents();
        let e = w.executor_with(|s| s.executor.offer_timeout_s = Duration::from_secs(60).into()).await;
        let work = w.wave(4, 2, 0).await; // h2 and h3 wait
        eventually(SOON, "h0 runs", async || (!w.agent(0).running().is_empty()).then_some(())).await;
        w.until_state(work, 1, "offered").await;
        stop(&w, work, 2, "its disk is full").await;
        w.until_state(work, 2, "not_started").await;
        stop(&w, work, 0, "wrong machine").await;
        stop(&w, work, 1, "wrong machine too").await;
        let hosts = w.hosts(work, 1).await;
        assert_eq!(hosts.iter().map(|h| h.outcome).collect::<Vec<_>>(), [Cancelled, NotStarted, NotStarted, Succeeded]);
        let reasons: Vec<_> = hosts.iter().map(|h| h.reason.clone().unwrap_or_default()).collect();
        assert_eq!(
            reasons[..3],
            ["stopped by ann: wrong machine", "stopped by ann: wrong machine too", "stopped by ann: its disk is full"]
        );
        assert!(hosts[..3].iter().all(|h| h.class == Some(FailureClass::Stopped)), "{hosts:?}");
        assert!(w.agent(2).lock().offers.is_empty(), "it was never offered");
        let row = w.tasks(work).await.into_iter().find(|t| t.task.host == "h0").expect("task");
        assert_eq!(row.task.stop.map(|b| b.who).as_deref(), Some("ann"));
        w.assert_single_starts();
        let told = w.events().await.into_iter().filter(|e| e.what == "task.stop_requested").count();
        assert_eq!(told, 3);
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_host_that_was_stopped_before_it_had_a_task_never_starts() {
    for db in databases().await {
        let mut w = World::new(db, 3, 3).await;
        w.start_agents();
        let work = w.wave(3, 3, 0).await;
        let mut tx = w.store.write().await.expect("tx");
        let word = ("ann", "its disk is full", chrono::Utc::now());
        tasks::insert_host_stops(&mut tx, work, &["h1"], word).await.expect("stops");
        tx.commit().await.expect("commits");
        // No executor ran yet, so there was nothing that could be told.
        let e = w.executor().await;
        let hosts = w.hosts(work, 1).await;
        assert_eq!(hosts.iter().map(|h| h.outcome).collect::<Vec<_>>(), [Succeeded, NotStarted, Succeeded]);
        assert_eq!(hosts[1].class, Some(FailureClass::Stopped));
        assert!(hosts[1].reason.as_ref().is_some_and(|r| r.contains("ann") && r.contains("its disk is full")));
        assert!(w.agent(1).lock().starts.is_empty());
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_stop_nobody_rang_for_is_seen_before_a_grant() {
    for db in databases().await {
        let mut w = World::new(db, 2, 2).await;
        w.agents.values().for_each(|a| a.lock().no_accept = true);
        w.start_agents();
        // It looks by itself after the test.
        let e = w.executor_with(|s| s.poll_s = Duration::from_secs(300).into()).await;
        let work = w.wave(2, 0, 0).await;
        w.until_state(work, 0, "offered").await;
        w.until_state(work, 1, "offered").await;
        let (one, other) = (w.task(work, 0).await, w.task(work, 1).await);
        let mut tx = w.store.write().await.expect("tx");
        let s = tasks::Stop { task: one, by: "ann".into(), reason: "wrong machine".into(), at: chrono::Utc::now() };
        tasks::insert_stop(&mut tx, work, &s).await.expect("stops");
        let word = ("ann", "its disk is full", chrono::Utc::now());
        tasks::insert_host_stops(&mut tx, work, &["h1"], word).await.expect("stops");
        tx.commit().await.expect("commits");
        for (host, task) in [one, other].into_iter().enumerate() {
            w.agent(host).say(UpBody::Accept { seal_to: None, task, nonce: "a".repeat(32), journal_seq: 9 }).await;
            w.until_state(work, host, "not_started").await;
        }
        assert_eq!(w.outcomes(work, 1).await, [NotStarted, NotStarted]);
        assert_eq!(w.starts(), 0);
        e.shut_down().await;
    }
}

/// A database that was restored from a backup may lack a result that its agent was told is kept.
#[tokio::test]
async fn a_result_that_the_database_has_lost_is_asked_for_by_whoever_takes_the_work_over() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.agent(0).lock().hang = true;
        w.start_agents();
        let first = w.executor().await;
        let work = w.wave(1, 0, 0).await;
        eventually(SOON, "h0 runs", async || (!w.agent(0).running().is_empty()).then_some(())).await;
        w.until_state(work, 0, "granted").await;
        first.crash().await;
        w.agent(0).end_running(ReportedOutcome::Succeeded).await;
        let task = w.task(work, 0).await;
        w.agent(0).forget_unacked(task);
        // The HELLO compares only what was granted a while ago.
        let granted = chrono::Utc::now();
        eventually(SOON, "the grant is old", async || {
            (chrono::Utc::now() - granted > chrono::TimeDelta::milliseconds(1200)).then_some(())
        })
        .await;
        let second = w.executor().await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded]);
        w.assert_single_starts();
        second.shut_down().await;
    }
}
