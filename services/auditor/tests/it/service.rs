//! The service as the windlass binary runs it.

use crate::{append, key, notes, signed, verify};
use std::{sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use windlass_bus::{Bus, BusOptions, Context};
use windlass_contracts::subjects;
use windlass_runtime::{Health, Sealer, Settings};
use windlass_store::Store;
use windlass_testkit::{Db, eventually, nats, temp_dir};

async fn context(database_url: &str, nats_url: &str, state_dir: &std::path::Path) -> Context {
    let mut settings = Settings { state_dir: state_dir.into(), ..Settings::default() };
    // So long that only the doorbell can explain what comes sooner.
    settings.poll_s = Duration::from_secs(3600).into();
    let health = Health::new();
    Context {
        store: Store::open(database_url).await.expect("opens"),
        bus: Bus::connect(BusOptions::open(nats_url), &health).await.expect("connects"),
        settings: Arc::new(settings),
        shutdown: CancellationToken::new(),
        health,
        owner: "test".into(),
        tracker: TaskTracker::new(),
        sealer: Sealer::from_key(&[1; 32]),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_wakes_by_the_bus_signs_and_ends_in_order() {
    let (db, nats, dir) = (Db::postgres().await, nats().await, temp_dir());
    let ctx = context(db.url(), &nats.url(), dir.path()).await;
    let service = tokio::spawn(windlass_auditor::run(ctx.clone()));
    // Another process: its commits reach this one by the bus or not at all.
    let other = Store::open(db.url()).await.expect("opens");
    signed(&other, 0).await;
    eventually(Duration::from_secs(20), "the empty trail is signed", async || notes(&other).await.pop()).await;
    append(&other, "s", 1).await;
    eventually(Duration::from_secs(4), "the event is signed after the doorbell", async || {
        // The subscription may come after the first ring.
        ctx.bus.ring(subjects::event("deployment", "s", "deployment.paused"), "").await;
        (crate::signed_size(&other).await == 1).then_some(())
    })
    .await;
    assert!(verify(&other, None).await.is_good());
    assert!(key(&other).await.name().starts_with("windlass/"));
    assert!(ctx.health.ready(), "{:?}", ctx.health.checks());
    ctx.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), service).await.expect("ends").expect("joins").expect("ends well");
    assert_eq!(ctx.tracker.len(), 0, "no task is left");
    // Its lease is free at once.
    let free = windlass_store::leases::acquire(&other, "auditor", "next", Duration::from_secs(5)).await.expect("asks");
    assert!(free.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_file_that_holds_no_key_ends_it_with_the_path() {
    let (db, nats, dir) = (Db::sqlite(), nats().await, temp_dir());
    let ctx = context(db.url(), &nats.url(), dir.path()).await;
    let file = ctx.settings.keys_dir().join("auditor.nk");
    windlass_runtime::keys::replace(&file, b"not a seed").expect("writes");
    let e = windlass_auditor::run(ctx).await.expect_err("refuses").to_string();
    assert!(e.contains("auditor.nk"), "{e}");
    assert!(windlass_runtime::keys::load(&file).expect("still there") == b"not a seed");
}
