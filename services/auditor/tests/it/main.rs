//! The auditor on both databases: complete under load, crashes and rivals; loud about what was tampered with.

mod service;
mod sweep;
mod tamper;

use std::{path::Path, sync::Arc, time::Duration};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;
use windlass_auditor::Auditor;
use windlass_contracts::audit::{
    note::PublicKey,
    verify::{Report, verify_export},
};
use windlass_domain::event::{Aggregate, Event, NewEvent, Severity};
use windlass_runtime::Health;
use windlass_store::{Store, audit, events, sql};
use windlass_testkit::{databases, eventually, temp_dir};

const LONG: Duration = Duration::from_secs(60);

fn auditor(store: &Store, dir: &Path, owner: &str) -> Auditor {
    Auditor {
        store: store.clone(),
        state_dir: dir.into(),
        key_file: dir.join("keys/auditor.nk"),
        owner: owner.into(),
        poll: Duration::from_millis(50),
        health: Health::new(),
        shutdown: CancellationToken::new(),
        doorbell: Arc::new(Notify::new()),
    }
}

fn event(stream: &str, n: u64) -> NewEvent {
    NewEvent {
        id: uuid::Uuid::now_v7().into(),
        aggregate: Aggregate::Deployment,
        aggregate_id: stream.into(),
        what: "deployment.paused".into(),
        project: Some("shop".into()),
        environment: None,
        severity: Severity::Info,
        actor: "person:ann".into(),
        at: "2026-11-21T00:00:00.123456Z".parse().expect("time"),
        payload: serde_json::json!({ "by": "ann", "n": n, "share": 0.5, "text": "Größe \u{1F680} \"quoted\"\n" }),
        trace: None,
    }
}

async fn append(store: &Store, stream: &str, n: u64) -> Event {
    let mut tx = store.write().await.expect("tx");
    let e = events::append(&mut tx, event(stream, n)).await.expect("append");
    tx.commit().await.expect("commit");
    e
}

/// 16 writers over 7 streams.
async fn crowd(store: &Store, each: u64) -> u64 {
    let mut writers = JoinSet::new();
    for w in 0..16_u64 {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0..each {
                append(&store, &format!("s{}", (w + n) % 7), n).await;
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("writer");
    }
    16 * each
}

async fn signed_size(store: &Store) -> u64 {
    let mut c = store.read().await.expect("read");
    audit::latest_checkpoint(&mut c).await.expect("checkpoint").map_or(0, |c| c.size)
}

async fn signed(store: &Store, size: u64) {
    eventually(LONG, &format!("{size} leaves are signed"), async || (signed_size(store).await >= size).then_some(()))
        .await;
}

async fn export(store: &Store, from: u64) -> Vec<u8> {
    let mut export = audit::Export::begin(store, from).await.expect("begins").expect("a checkpoint");
    let mut out = Vec::new();
    while let Some(page) = export.next_page().await.expect("page") {
        out.extend(page);
    }
    out
}

async fn key(store: &Store) -> PublicKey {
    let mut c = store.read().await.expect("read");
    let latest = audit::latest_checkpoint(&mut c).await.expect("reads").expect("a checkpoint");
    latest.edge.key.parse().expect("a key")
}

async fn verify(store: &Store, earlier: Option<&str>) -> Report {
    verify_export(export(store, 0).await.as_slice(), &key(store).await, earlier).expect("reads")
}

async fn notes(store: &Store) -> Vec<String> {
    let mut c = store.read().await.expect("read");
    audit::notes(&mut c, 0, u64::MAX).await.expect("notes").into_iter().map(|(_, note)| note).collect()
}

/// As if the holder had been silent for long enough.
async fn expire_lease(store: &Store) {
    let mut tx = store.write().await.expect("tx");
    sql("UPDATE leases SET expires_at = $1 WHERE name = 'auditor'")
        .bind(chrono_epoch())
        .execute(&mut tx)
        .await
        .expect("expires");
    tx.commit().await.expect("commit");
}

fn chrono_epoch() -> windlass_domain::Timestamp {
    "1970-01-01T00:00:00Z".parse().expect("time")
}

/// Every event has one leaf, and the whole trail verifies against every checkpoint that was ever signed.
async fn assert_whole(store: &Store, kind: &str, count: u64) {
    let mut c = store.read().await.expect("read");
    assert_eq!(audit::size(&mut c).await.expect("size"), count, "{kind}: no leaf twice, none lost");
    assert_eq!(events::backlog(&mut c, events::AUDITOR).await.expect("backlog").0, 0, "{kind}");
    drop(c);
    for note in notes(store).await.iter().rev().step_by(10) {
        let report = verify(store, Some(note)).await;
        assert!(report.is_good(), "{kind}: {:?}", report.findings);
        assert_eq!((report.leaves, report.signed_size), (count, count), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_gets_its_leaf_and_the_export_verifies() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let dir = temp_dir();
        let a = auditor(&store, dir.path(), "one");
        let (stop, task) = (a.shutdown.clone(), tokio::spawn(async move { a.run().await }));
        // An empty trail is signed already.
        let empty = eventually(LONG, "the empty trail is signed", async || notes(&store).await.first().cloned()).await;
        assert!(verify(&store, Some(&empty)).await.is_good());
        let count = crowd(&store, 75).await;
        signed(&store, count).await;
        assert_whole(&store, db.kind(), count).await;
        // One more event alone is signed without another to push it along.
        append(&store, "s1", 0).await;
        signed(&store, count + 1).await;
        stop.cancel();
        task.await.expect("joins").expect("ends well");
        let report = verify(&store, Some(&empty)).await;
        assert_eq!(report.deployments["s0"].others[0].who, "ann");
        // A part of it continues from the checkpoint before.
        let part = export(&store, count / 2).await;
        let report = verify_export(part.as_slice(), &key(&store).await, None).expect("reads");
        assert!(report.is_good() && report.from > 0 && report.from <= count / 2, "{:?}", report.findings);
        // The file beside the database says the same as its last checkpoint.
        let file = std::fs::read_to_string(dir.path().join("audit/checkpoints")).expect("sink");
        let last = windlass_contracts::audit::note::last_in(&file);
        assert_eq!(last.as_ref(), notes(&store).await.last(), "{db}");
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_at_any_moment_it_goes_on_without_loss_or_repeat() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let dir = temp_dir();
        let writer = tokio::spawn({
            let store = store.clone();
            async move { crowd(&store, 40).await }
        });
        // Stopping points spread over the whole cycle of batch, gathering and signing.
        for n in 0..40_u64 {
            let a = auditor(&store, dir.path(), &format!("owner {n}"));
            let task = tokio::spawn(async move { a.run().await });
            tokio::time::sleep(Duration::from_micros(n * n * 397 % 61_000)).await;
            task.abort();
            drop(task.await);
            expire_lease(&store).await;
        }
        let count = writer.await.expect("writer");
        let a = auditor(&store, dir.path(), "the last one");
        let (stop, task) = (a.shutdown.clone(), tokio::spawn(async move { a.run().await }));
        signed(&store, count).await;
        stop.cancel();
        task.await.expect("joins").expect("ends well");
        assert_whole(&store, db.kind(), count).await;
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rivals_that_take_the_lease_from_each_other_grow_one_tree() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let dir = temp_dir();
        let mut rivals = JoinSet::new();
        let stop = CancellationToken::new();
        for n in 0..3 {
            // One signing key, as processes of one installation share it; each with a sink of its own.
            let own = dir.path().join(n.to_string());
            let key_file = dir.path().join("keys/auditor.nk");
            let a = Auditor { shutdown: stop.clone(), key_file, ..auditor(&store, &own, &format!("rival {n}")) };
            rivals.spawn(async move { a.run().await });
        }
        let thief = tokio::spawn({
            let (store, stop) = (store.clone(), stop.clone());
            async move {
                let mut taken = 0;
                while !stop.is_cancelled() {
                    tokio::time::sleep(Duration::from_millis(40)).await;
                    expire_lease(&store).await;
                    taken += 1;
                }
                taken
            }
        });
        let count = crowd(&store, 60).await;
        signed(&store, count).await;
        stop.cancel();
        assert!(thief.await.expect("thief") > 2);
        while let Some(end) = rivals.join_next().await {
            end.expect("joins").expect("ends well");
        }
        let mut c = store.read().await.expect("read");
        let epoch: Option<i64> = sql("SELECT epoch FROM leases").fetch_scalar(&mut c).await.expect("epoch");
        assert!(epoch > Some(2), "{db}: the lease never moved: {epoch:?}");
        drop(c);
        assert_whole(&store, db.kind(), count).await;
        store.close().await;
    }
}
