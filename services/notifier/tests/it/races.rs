//! Doubles, crashes and rivals: one row an event and channel, one process at a time on it.

use crate::{
    http::{Reply, Target},
    world::{World, drain, quick},
};
use futures::future::join_all;
use std::{collections::BTreeSet, time::Duration};
use windlass_domain::event::Severity;
use windlass_store::notifications::State;
use windlass_testkit::{databases, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_event_rung_a_hundred_times_makes_one_row_and_one_message() {
    for db in databases().await {
        let w = World::new(db).await;
        let t = Target::start(Reply::status(200)).await;
        w.hook("hook", &t.url("/in")).await;
        let (a, b) = (w.notifier(quick()).await, w.notifier(quick()).await);
        let event = w.failed().await;
        let takes = (0..100).map(|i| {
            let n = if i % 2 == 0 { a.clone() } else { b.clone() };
            tokio::spawn(async move { n.take_events().await.expect("takes") })
        });
        let woken = join_all(takes).await.into_iter().filter(|w| !w.as_ref().expect("joins").is_empty()).count();
        assert_eq!(woken, 1, "{}: one of them took it", w.db);
        drain(&w, &a, "hook").await;
        assert_eq!(w.only("hook").await.event_id, event);
        assert_eq!(t.seen().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_notifiers_never_send_the_same_message_at_once() {
    for db in databases().await {
        let w = World::new(db).await;
        let t = Target::start(Reply::status(200)).await;
        w.hook("hook", &t.url("/in")).await;
        let rivals = [w.notifier(quick()).await, w.notifier(quick()).await, w.notifier(quick()).await];
        for _ in 0..40 {
            w.failed().await;
        }
        rivals[0].take_events().await.expect("takes");
        join_all(rivals.iter().map(|n| drain(&w, n, "hook"))).await;
        let keys: BTreeSet<_> = t.seen().iter().map(|s| s.header("webhook-id").expect("key").to_owned()).collect();
        assert_eq!((t.seen().len(), keys.len()), (40, 40), "{}: each once", w.db);
        assert!(w.of("hook").await.iter().all(|n| n.state == State::Sent && n.attempts == 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crash_between_post_and_mark_sends_again_with_the_same_key_once_the_lease_is_over() {
    for db in databases().await {
        let w = World::new(db).await;
        let t = Target::start(Reply::status(200)).await;
        t.script([Reply::Hang]);
        w.hook("hook", &t.url("/in")).await;
        let mut knobs = quick();
        (knobs.timeout, knobs.lease) = (Duration::from_millis(900), Duration::from_secs(1));
        let dies = w.notifier(knobs).await;
        w.failed().await;
        dies.take_events().await.expect("takes");
        let life = tokio::spawn(async move { dies.serve("hook").await });
        t.wait_for(1).await;
        life.abort();
        assert!(life.await.expect_err("aborted").is_cancelled());
        let leased = w.only("hook").await;
        assert!(leased.leased_until.is_some() && leased.state == State::Pending, "{leased:?}");

        let lives = w.notifier(quick()).await;
        assert!(lives.serve("hook").await.expect("serves").is_some());
        assert_eq!(t.seen().len(), 1, "not while the lease holds");
        drain(&w, &lives, "hook").await;
        let sent = w.only("hook").await;
        assert_eq!((sent.state, sent.attempts), (State::Sent, 2), "{}: the lost try counts", w.db);
        let keys: BTreeSet<_> = t.seen().iter().map(|s| s.header("webhook-id").expect("key").to_owned()).collect();
        assert_eq!((t.seen().len(), keys.len()), (2, 1), "{}", w.db);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_lost_the_lease_decides_nothing_but_that_it_was_sent() {
    for db in databases().await {
        let w = World::new(db).await;
        let t = Target::start(Reply::status(500)).await;
        w.hook("hook", &t.url("/in")).await;
        let mut patient = quick();
        (patient.timeout, patient.lease) = (Duration::from_secs(20), Duration::from_secs(21));
        for (late, rival) in [(500, false), (200, true)] {
            let (first, second) = (w.notifier(patient.clone()).await, w.notifier(patient.clone()).await);
            let before = t.seen().len();
            t.script([Reply::Held(late), Reply::Held(500)]);
            let event = w.failed().await;
            first.take_events().await.expect("takes");
            let holding = tokio::spawn(async move { first.serve("hook").await });
            t.wait_for(before + 1).await;
            // The database's clock goes on without the first one.
            let mut tx = w.store.write().await.expect("write");
            windlass_store::sql("UPDATE notifications SET leased_until = created_at WHERE state = 'pending'")
                .execute(&mut tx)
                .await
                .expect("expires");
            tx.commit().await.expect("commit");
            let taking_over = tokio::spawn(async move { second.serve("hook").await });
            t.wait_for(before + 2).await;
            t.release(1);
            // Its own later looks at the channel end with the test.
            let settled = async || {
                let row = w.of("hook").await.into_iter().find(|n| n.event_id == event).expect("row");
                if rival { (row.state == State::Sent).then_some(row) } else { Some(row) }
            };
            if !rival {
                tokio::time::timeout(Duration::from_secs(10), holding)
                    .await
                    .expect("ends")
                    .expect("joins")
                    .expect("serves");
            }
            let row = eventually(Duration::from_secs(10), "the late word", settled).await;
            assert_eq!(row.attempts, 2, "{}: {row:?}", w.db);
            assert_eq!(row.leased_until.is_some(), !rival, "{}: a late failure leaves the other's lease alone", w.db);
            taking_over.abort();
            t.release(1);
            w.delete_rows().await;
        }
    }
}

#[tokio::test]
async fn events_nobody_hears_just_leave_the_queue() {
    for db in databases().await {
        let w = World::new(db).await;
        w.hook("hook", "http://127.0.0.1:9/").await;
        let n = w.notifier(quick()).await;
        for _ in 0..150 {
            w.emit("task.settled", Severity::Info, serde_json::json!({})).await;
        }
        assert!(n.take_events().await.expect("takes").is_empty());
        assert_eq!(w.queued().await, 0);
        assert!(w.all().await.is_empty());
    }
}

#[tokio::test]
async fn limits_hold_over_processes_and_channels_of_one_robot() {
    for db in databases().await {
        let w = World::new(db).await;
        let t = Target::start(Reply::body(200, r#"{"errcode":0,"errmsg":"ok"}"#)).await;
        w.secret("robot", &t.url("/robot/send?key=abcdefgh")).await;
        for name in ["one", "two"] {
            w.channel(name, serde_json::json!({"type": "wecom", "url": "robot"})).await;
        }
        let (a, b) = (w.notifier(quick()).await, w.notifier(quick()).await);
        for _ in 0..6 {
            w.failed().await;
        }
        a.take_events().await.expect("takes");
        let (p, q) = tokio::join!(a.serve("one"), b.serve("two"));
        let pause = p.expect("serves").or(q.expect("serves")).expect("waits");
        assert!(pause > Duration::from_secs(1) && pause <= Duration::from_secs(4), "{pause:?}");
        eventually(Duration::from_secs(5), "the burst", async || (t.seen().len() == 5).then_some(())).await;
        a.serve("one").await.expect("serves");
        b.serve("two").await.expect("serves");
        assert!(t.seen().len() <= 6, "{}: 5 at once and one every 4 s, together: {}", w.db, t.seen().len());
    }
}
