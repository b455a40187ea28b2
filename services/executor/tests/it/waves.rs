//! Waves from claim to result.

use crate::{
    agent::instance,
    world::{SOON, World},
};
use std::time::Duration;
use windlass_contracts::frames::{RefuseCode, UpBody};
use windlass_domain::{
    task::ReportedOutcome,
    work::{FailureClass, Outcome::*, WaveHost, WaveWork, WorkResult, WorkSpec},
};
use windlass_store::{tasks, works};
use windlass_testkit::{databases, eventually};

#[tokio::test]
async fn a_wave_runs_every_host_once_and_tells_of_it() {
    for db in databases().await {
        let mut w = World::new(db, 3, 3).await;
        w.start_agents();
        let e = w.executor().await;
        let work = w.wave(3, 0, 0).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded, Succeeded, Succeeded]);
        w.assert_single_starts();
        assert_eq!(w.starts(), 3);
        let events = w.events().await;
        let count = |what: &str| events.iter().filter(|e| e.what == what).count();
        assert_eq!(
            (count("task.started"), count("step.finished"), count("task.settled"), count("work.settled")),
            (3, 6, 3, 1)
        );
        assert!(events.iter().all(|e| e.trace.is_some()), "the trace goes on");
        assert_eq!(events.last().map(|e| e.what.as_str()), Some("work.settled"));
        let offer = w.agent(0).lock().offers.values().next().cloned().expect("offer");
        let trace = offer.trace.expect("trace");
        assert!(trace.contains("4bf92f3577b34da6a3ce929d0e0e4736"), "{trace}");
        e.shut_down().await;
    }
}

#[tokio::test]
async fn lost_and_doubled_frames_change_nothing() {
    for db in databases().await {
        let mut w = World::new(db, 4, 4).await;
        for (i, a) in w.agents.values().enumerate() {
            let mut s = a.lock();
            s.double = true;
            s.lose_every = 2 + (i as u32 % 3);
            s.seed = 1000 * i as u32;
        }
        w.start_agents();
        let e = w.executor_with(|s| s.executor.offer_timeout_s = SOON.into()).await;
        let work = w.wave(4, 2, 0).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded; 4]);
        w.assert_single_starts();
        eventually(SOON, "every result is acknowledged", async || {
            let open = |a: &crate::agent::Agent| {
                a.lock().tasks.values().any(|p| !matches!(p, crate::agent::Phase::Ended { acked: true, .. }))
            };
            (!w.agents.values().any(open)).then_some(())
        })
        .await;
        let settled = w.events().await.iter().filter(|e| e.what == "task.settled").count();
        assert_eq!(settled, 4, "a repeated result is not a second event");
        e.shut_down().await;
    }
}

// Agents are machines of their own: they do not wait for the executor's thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wave_larger_than_one_turn_runs_whole() {
    for db in databases().await {
        let hosts = 150;
        let mut w = World::new(db, hosts, hosts).await;
        w.start_agents();
        let e = w.executor().await;
        for a in w.agents.values() {
            eventually(SOON, "HELLO is taken", async || (a.lock().hellos_acked > 0).then_some(())).await;
        }
        let started = std::time::Instant::now();
        let work = w.wave(hosts, 0, 0).await;
        assert_eq!(w.outcomes(work, 1).await, vec![Succeeded; hosts]);
        eprintln!("{hosts} hosts in {:?}", started.elapsed());
        w.assert_single_starts();
        assert_eq!(w.starts(), hosts);
        e.shut_down().await;
    }
}

#[tokio::test]
async fn at_most_parallel_hosts_at_a_time() {
    for db in databases().await {
        let mut w = World::new(db, 3, 3).await;
        w.agents.values().for_each(|a| a.lock().hang = true);
        w.start_agents();
        let e = w.executor().await;
        let work = w.wave(3, 1, 0).await;
        for i in 0..3 {
            w.until_state(work, i, "granted").await;
            eventually(SOON, "the host runs", async || (!w.agent(i).running().is_empty()).then_some(())).await;
            let states: Vec<_> = w.tasks(work).await.iter().map(|t| t.task.state.as_str()).collect();
            assert_eq!(states.iter().filter(|s| ["offered", "granted"].contains(s)).count(), 1, "{states:?}");
            w.agent(i).end_running(ReportedOutcome::Succeeded).await;
        }
        assert_eq!(w.outcomes(work, 1).await, [Succeeded; 3]);
        e.shut_down().await;
    }
}

#[tokio::test]
async fn the_budget_stops_the_rest_and_hosts_without_agent_are_named() {
    for db in databases().await {
        let mut w = World::new(db, 5, 4).await;
        w.agent(1).lock().fail = true;
        w.agent(2).lock().refuse = Some(RefuseCode::Policy);
        w.start_agents();
        let e = w.executor().await;
        let work = w.wave(4, 1, 1).await;
        let WorkResult::Wave { hosts } = w.result(work, 1).await else { panic!("a wave") };
        assert_eq!(hosts.iter().map(|h| h.outcome).collect::<Vec<_>>(), [Succeeded, Failed, NotStarted, AutoStopped]);
        assert_eq!((hosts[1].failed_step, hosts[1].failed_id.as_deref()), (Some(1), Some("second")));
        assert_eq!(
            hosts.iter().map(|h| h.class).collect::<Vec<_>>(),
            [None, Some(FailureClass::Exit), Some(FailureClass::Refused), None]
        );
        assert!(hosts[2].reason.as_deref().is_some_and(|r| r.contains("scripted")), "{:?}", hosts[2]);
        assert!(w.agent(3).lock().offers.is_empty(), "it was never offered");

        let hosts = vec![WaveHost { host: "h4".into(), attempt: 1, start_at: 0 }];
        let spec = WaveWork {
            stagger: None,
            again: false,
            outputs: Default::default(),
            step: "roll".into(),
            wave: 1,
            hosts,
            parallel: 0,
            max_failures: 0,
        };
        let work = w.insert(WorkSpec::Wave(spec)).await;
        let WorkResult::Wave { hosts } = w.result(work, 1).await else { panic!("a wave") };
        assert_eq!(hosts[0].outcome, NotStarted);
        assert!(hosts[0].reason.as_deref().is_some_and(|r| r.contains("windlass enroll h4")), "{:?}", hosts[0]);
        assert_eq!(hosts[0].class, Some(FailureClass::Unreachable));
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_second_executor_takes_over_in_mid_wave() {
    for db in databases().await {
        let mut w = World::new(db, 4, 4).await;
        w.agent(1).lock().hang = true;
        w.agent(3).lock().hang = true;
        w.start_agents();
        let first = w.executor().await;
        let work = w.wave(4, 2, 0).await;
        w.until_state(work, 0, "succeeded").await;
        w.until_state(work, 1, "granted").await;
        first.crash().await;
        let second = w.executor().await;
        eventually(SOON, "the claim is taken over", async || {
            let c = works::claim_state(&mut w.store.read().await.ok()?, work).await.ok()??;
            (c.owner.as_deref() == Some(second.ctx.owner.as_str()) && c.epoch >= 2).then_some(())
        })
        .await;
        w.agent(1).end_running(ReportedOutcome::Succeeded).await;
        eventually(SOON, "the last host runs", async || (!w.agent(3).running().is_empty()).then_some(())).await;
        w.agent(3).end_running(ReportedOutcome::Succeeded).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded; 4]);
        w.assert_single_starts();
        assert_eq!(w.starts(), 4);
        second.shut_down().await;
    }
}

#[tokio::test]
async fn shutdown_hands_over_at_once_and_a_zombie_writes_nothing() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.agent(0).lock().hang = true;
        w.start_agents();
        // A lease so long that only a release can hand over in time.
        let first = w.executor_with(|s| s.executor.lease_s = std::time::Duration::from_secs(600).into()).await;
        let work = w.wave(1, 0, 0).await;
        w.until_state(work, 0, "granted").await;
        first.shut_down().await;
        let second = w.executor().await;
        eventually(SOON, "the claim is taken over", async || {
            let c = works::claim_state(&mut w.store.read().await.ok()?, work).await.ok()??;
            (c.epoch >= 2).then_some(())
        })
        .await;
        // What an executor of epoch 1 would still write.
        let row = w.tasks(work).await.remove(0);
        let mut tx = w.store.write().await.expect("tx");
        let now = tx.now().await.expect("now");
        let zombie = tasks::store(&mut tx, &row, row.task.clone(), 1, now).await;
        assert!(matches!(zombie, Err(windlass_store::Error::Conflict)), "{zombie:?}");
        assert!(!works::renew(&mut tx, work, 1, SOON).await.expect("renews"));
        let settle = works::settle(&mut tx, work, 1, &WorkResult::Wave { hosts: vec![] }).await;
        assert!(matches!(settle, Err(windlass_store::Error::Conflict)), "{settle:?}");
        drop(tx);
        w.agent(0).end_running(ReportedOutcome::Succeeded).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded]);
        second.shut_down().await;
    }
}

#[tokio::test]
async fn an_abort_stops_what_runs_and_starts_nothing_more() {
    for db in databases().await {
        let mut w = World::new(db, 4, 4).await;
        w.agent(0).lock().hang = true; // granted, runs
        w.agent(1).lock().no_accept = true; // offered
        w.start_agents();
        let e = w.executor_with(|s| s.executor.offer_timeout_s = std::time::Duration::from_secs(60).into()).await;
        let work = w.wave(4, 2, 0).await; // h2 and h3 stay pending
        eventually(SOON, "h0 runs", async || (!w.agent(0).running().is_empty()).then_some(())).await;
        w.until_state(work, 1, "offered").await;
        w.abort().await;
        assert_eq!(w.outcomes(work, 1).await, [Cancelled, NotStarted, NotStarted, NotStarted]);
        // An accept that comes after the abort is never granted.
        let task = w.task(work, 1).await;
        w.agent(1).say(UpBody::Accept { seal_to: None, task, nonce: "a".repeat(32), journal_seq: 9 }).await;
        let more = w.wave_retry(1, 2).await;
        assert_eq!(w.outcomes(more, 1).await, [Succeeded], "another work of the deployment is its own");
        assert_eq!(w.state(work, 1).await, Some("not_started"));
        w.assert_single_starts();
        e.shut_down().await;
    }
}

impl World {
    /// A later attempt on one host that accepts again.
    pub(crate) async fn wave_retry(&self, host: usize, attempt: u32) -> windlass_domain::ids::WorkId {
        self.agent(host).lock().no_accept = false;
        let hosts = vec![WaveHost { host: format!("h{host}"), attempt, start_at: 0 }];
        let spec = WaveWork {
            stagger: None,
            again: false,
            outputs: Default::default(),
            step: "roll".into(),
            wave: 0,
            hosts,
            parallel: 0,
            max_failures: 0,
        };
        self.insert(WorkSpec::Wave(spec)).await
    }
}

#[tokio::test]
async fn a_silent_host_is_unknown_until_its_own_journal_speaks() {
    for db in databases().await {
        let mut w = World::new(db, 2, 2).await;
        w.agent(1).lock().hang = true;
        w.start_agents();
        let e = w.impatient_executor().await;
        let work = w.wave(2, 0, 0).await;
        eventually(SOON, "h1 runs", async || (!w.agent(1).running().is_empty()).then_some(())).await;
        w.agent(1).lock().deaf = true;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded, Unknown]);
        // I7: the next attempt does not start while this one is unknown.
        let retry = w.wave_retry(1, 2).await;
        let WorkResult::Wave { hosts } = w.result(retry, 1).await else { panic!("a wave") };
        assert_eq!(hosts[0].outcome, NotStarted);
        assert!(
            hosts[0].reason.as_deref().is_some_and(|r| r.contains("attempt 1") && r.contains("unknown")),
            "{hosts:?}"
        );
        w.agent(1).lock().deaf = false;
        w.agent(1).end_running(ReportedOutcome::Succeeded).await;
        assert_eq!(w.outcomes(work, 2).await, [Succeeded, Succeeded]);
        eventually(SOON, "the late result is acknowledged", async || {
            let acked = |p: &crate::agent::Phase| matches!(p, crate::agent::Phase::Ended { acked: true, .. });
            w.agent(1).lock().tasks.values().all(acked).then_some(())
        })
        .await;
        w.assert_single_starts();
        e.shut_down().await;
    }
}

/// The deployment counts with the override from its commit on, so what the host says later must not make it something else;
/// whether an executor has come to the override or not, and whether its work goes on or is settled.
#[tokio::test]
async fn an_override_stands_whatever_its_host_says_later() {
    let both = [databases().await, databases().await].into_iter().zip([false, true]);
    for (db, goes_on) in both.flat_map(|(dbs, goes_on)| dbs.into_iter().map(move |db| (db, goes_on))) {
        let mut w = World::new(db, 2, 2).await;
        w.agent(0).lock().hang = true;
        w.agent(1).lock().hang = goes_on;
        w.start_agents();
        let e = w
            .executor_with(|s| {
                s.executor.unknown_s = Duration::from_millis(900).into();
                // No poll comes to the override.
                s.poll_s = Duration::from_secs(600).into();
                s.executor.lease_s = Duration::from_secs(1800).into();
            })
            .await;
        let work = w.wave(2, 0, 1).await;
        eventually(SOON, "h0 runs", async || (!w.agent(0).running().is_empty()).then_some(())).await;
        w.agent(0).lock().deaf = true;
        w.until_state(work, 0, "unknown").await;
        if !goes_on {
            assert_eq!(w.outcomes(work, 1).await, [Unknown, Succeeded]);
        }
        let task = w.task(work, 0).await;
        let mut tx = w.store.write().await.expect("tx");
        let o = tasks::Override { task, by: "ann".into(), reason: "looked".into(), at: chrono::Utc::now() };
        tasks::insert_override(&mut tx, work, &o).await.expect("inserts");
        tx.commit().await.expect("commits");
        w.agent(0).lock().deaf = false;
        w.agent(0).end_running(ReportedOutcome::Succeeded).await;
        w.until_state(work, 0, "overridden").await;
        if goes_on {
            w.agent(1).end_running(ReportedOutcome::Succeeded).await;
        }
        let version = if goes_on { 1 } else { 2 };
        assert_eq!(w.outcomes(work, version).await, [Failed, Succeeded]);
        e.shut_down().await;
    }
}

#[tokio::test]
async fn another_journal_is_not_believed_about_what_it_never_held() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.agent(0).lock().hang = true;
        w.start_agents();
        let e = w.executor().await;
        let work = w.wave(1, 0, 0).await;
        eventually(SOON, "h0 runs", async || (!w.agent(0).running().is_empty()).then_some(())).await;
        let task = w.task(work, 0).await;
        w.agent(0).reimage();
        w.agent(0).hello().await;
        assert_eq!(w.outcomes(work, 1).await, [Unknown]);
        // The re-imaged host would say "never started", and it would be wrong (mutant M9 of the model).
        w.agent(0).end(task, ReportedOutcome::Fenced).await;
        eventually(SOON, "the report is answered", async || {
            let acked = |p: &crate::agent::Phase| matches!(p, crate::agent::Phase::Ended { acked: true, .. });
            w.agent(0).lock().tasks.values().all(acked).then_some(())
        })
        .await;
        assert_eq!(w.state(work, 0).await, Some("unknown"));
        // A person takes responsibility; then the next attempt may start, on the new journal.
        let mut tx = w.store.write().await.expect("tx");
        let o = tasks::Override { task, by: "ann".into(), reason: "looked".into(), at: chrono::Utc::now() };
        tasks::insert_override(&mut tx, work, &o).await.expect("inserts");
        tx.commit().await.expect("commits");
        assert_eq!(w.outcomes(work, 2).await, [Failed]);
        w.agent(0).lock().hang = false;
        let retry = w.wave_retry(0, 2).await;
        assert_eq!(w.outcomes(retry, 1).await, [Succeeded]);
        assert!(w.agent_events(w.agent(0).id).await.contains(&"agent.replaced".to_owned()));
        e.shut_down().await;
    }
}

#[tokio::test]
async fn an_unreachable_host_is_provably_not_started() {
    for db in databases().await {
        let mut w = World::new(db, 2, 2).await;
        w.agent(0).lock().deaf = true;
        w.agent(1).lock().refuse = Some(RefuseCode::Busy);
        w.start_agents();
        let e = w.executor_with(|s| s.executor.offer_timeout_s = std::time::Duration::from_millis(800).into()).await;
        let work = w.wave(2, 0, 5).await;
        let WorkResult::Wave { hosts } = w.result(work, 1).await else { panic!("a wave") };
        assert_eq!(hosts.iter().map(|h| h.outcome).collect::<Vec<_>>(), [NotStarted, NotStarted]);
        assert!(hosts.iter().all(|h| h.class == Some(FailureClass::Unreachable)), "{hosts:?}");
        assert_eq!(w.starts(), 0);
        e.shut_down().await;
    }
}

#[tokio::test]
async fn an_interrupted_task_is_unknown_and_cancelled_by_abort_only_if_it_says_so() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.agent(0).lock().hang = true;
        w.start_agents();
        let e = w.executor().await;
        let work = w.wave(1, 0, 0).await;
        eventually(SOON, "h0 runs", async || (!w.agent(0).running().is_empty()).then_some(())).await;
        w.agent(0).end_running(ReportedOutcome::Interrupted).await;
        assert_eq!(w.outcomes(work, 1).await, [Unknown]);
        e.shut_down().await;
    }
}

#[tokio::test]
async fn two_machines_with_one_identity_are_quarantined() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.start_agents();
        let e = w.executor().await;
        let a = w.agent(0).clone();
        let first = a.lock().instance.clone();
        eventually(SOON, "the first HELLO is taken", async || (a.lock().hellos_acked > 0).then_some(())).await;
        for id in [instance(), first] {
            let before = a.lock().hellos_acked;
            a.lock().instance = id;
            a.hello().await;
            eventually(SOON, "taken or quarantined", async || {
                let alarmed = w.agent_events(a.id).await.contains(&"agent.cloned".to_owned());
                (a.lock().hellos_acked > before || alarmed).then_some(())
            })
            .await;
        }
        assert!(w.agent_events(a.id).await.contains(&"agent.cloned".to_owned()));
        let work = w.wave(1, 0, 0).await;
        let WorkResult::Wave { hosts } = w.result(work, 1).await else { panic!("a wave") };
        assert_eq!(hosts[0].outcome, NotStarted);
        assert!(hosts[0].reason.as_deref().is_some_and(|r| r.contains("quarantined")), "{hosts:?}");
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_task_the_database_does_not_know_is_fenced_and_reported() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        let stray = uuid::Uuid::now_v7().into();
        w.agent(0).lock().tasks.insert(stray, crate::agent::Phase::Running);
        w.start_agents();
        let e = w.executor().await;
        eventually(SOON, "it is fenced and its answer taken", async || {
            let done =
                matches!(w.agent(0).lock().tasks.get(&stray), Some(crate::agent::Phase::Ended { acked: true, .. }));
            done.then_some(())
        })
        .await;
        assert!(w.agent_events(w.agent(0).id).await.contains(&"agent.orphan".to_owned()));
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_grant_the_same_journal_does_not_list_is_settled_by_its_fenced_report() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.agent(0).lock().hang = true;
        w.start_agents();
        let e = w.executor().await;
        let work = w.wave(1, 0, 0).await;
        w.until_state(work, 0, "granted").await;
        let task = w.task(work, 0).await;
        // The GRANT never came through and the task is gone from the journal: only possible before INTENT.
        {
            let mut s = w.agent(0).lock();
            s.no_accept = true;
            s.tasks.remove(&task);
            s.starts.remove(&task);
        }
        eventually(SOON, "settled", async || {
            w.agent(0).hello().await;
            (w.state(work, 0).await? == "not_started").then_some(())
        })
        .await;
        assert_eq!(w.outcomes(work, 1).await, [NotStarted]);
        e.shut_down().await;
    }
}
