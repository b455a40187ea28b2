//! The whole service on real NATS and both databases: from a committed event to the far end, and with a broker that dies.

use crate::{
    http::{Reply, Target},
    world::{KEY, World},
};
use std::{sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use windlass_bus::{Bus, BusOptions, Context};
use windlass_contracts::subjects;
use windlass_runtime::{Health, Sealer, Settings, settings::Seconds};
use windlass_store::{Store, notifications::State};
use windlass_testkit::{databases, eventually, nats};

async fn context(db: &str, nats: &str, poll: Duration) -> Context {
    let mut settings = Settings::default();
    settings.notifier.allow_private_addresses = vec!["127.0.0.0/8".parse().expect("net")];
    settings.poll_s = Seconds(poll);
    let health = Health::new();
    Context {
        store: Store::open(db).await.expect("opens"),
        bus: Bus::connect(BusOptions::open(nats), &health).await.expect("connects"),
        settings: Arc::new(settings),
        shutdown: CancellationToken::new(),
        health,
        owner: "test".into(),
        tracker: TaskTracker::new(),
        sealer: Sealer::from_key(&KEY),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_event_of_another_process_is_heard_over_nats_long_before_the_poll() {
    let nats = nats().await;
    for db in databases().await {
        let w = World::new(db).await;
        let t = Target::start(Reply::status(200)).await;
        w.hook("hook", &t.url("/in")).await;
        // Two notifiers, as in the scaled form.
        let a = context(w.db.url(), &nats.url(), Duration::from_secs(3_600)).await;
        let b = context(w.db.url(), &nats.url(), Duration::from_secs(3_600)).await;
        a.bus.ensure_topology().await.expect("streams");
        let running: Vec<_> = [&a, &b].map(|c| tokio::spawn(windlass_notifier::run(c.clone()))).into();
        // `w` has a store of its own: its commits are another process's.
        let event = w.failed().await;
        let subject = subjects::event("deployment", "x", "deployment.failed");
        for i in 0..100 {
            a.bus.publish_stored(subject.clone(), "{}", &format!("{event}-{i}"), None).await.expect("publishes");
        }
        t.wait_for(1).await;
        eventually(Duration::from_secs(10), "the row is sent", async || {
            (w.only("hook").await.state == State::Sent).then_some(())
        })
        .await;
        assert_eq!(w.queued().await, 0);
        assert!(b.health.ready(), "{:?}", b.health.checks());
        for c in [&a, &b] {
            c.shutdown.cancel();
        }
        for r in running {
            let ended = tokio::time::timeout(Duration::from_secs(15), r).await.expect("ends soon");
            ended.expect("joins").expect("runs");
        }
        assert_eq!(t.seen().len(), 1, "{}: a hundred messages, one delivery", w.db);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_a_broker_the_poll_finds_the_work() {
    let mut nats = nats().await;
    nats.kill();
    let w = World::sqlite().await;
    let t = Target::start(Reply::status(500)).await;
    t.script([Reply::status(503)]);
    t.then_always(Reply::status(200));
    w.hook("hook", &t.url("/in")).await;
    let c = context(w.db.url(), &nats.url(), Duration::from_millis(100)).await;
    let running = tokio::spawn(windlass_notifier::run(c.clone()));
    w.failed().await;
    t.wait_for(1).await;
    w.hurry("hook").await;
    t.wait_for(2).await;
    eventually(Duration::from_secs(10), "the row is sent", async || {
        (w.only("hook").await.state == State::Sent).then_some(())
    })
    .await;
    let text = eventually(Duration::from_secs(10), "the metrics say so", async || {
        let text = c.health.metrics_text().expect("metrics");
        (text.contains(r#"windlass_notifications_total{outcome="sent",provider="webhook"} 1"#)
            && text.contains("windlass_notifications_pending 0"))
        .then_some(text)
    })
    .await;
    assert!(text.contains(r#"outcome="failed",provider="webhook"} 1"#), "{text}");
    c.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(15), running).await.expect("ends soon").expect("joins").expect("runs");
}
