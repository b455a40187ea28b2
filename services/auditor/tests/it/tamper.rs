//! What somebody with write access to the database can do, and how it comes to light.

use crate::{append, auditor, crowd, expire_lease, export, key, notes, signed, signed_size, verify};
use std::{path::Path, time::Duration};
use windlass_auditor::Auditor;
use windlass_contracts::audit::verify::verify_export;
use windlass_domain::event::Event;
use windlass_runtime::health::Check;
use windlass_store::{Store, Value, events, sql};
use windlass_testkit::{databases, eventually, temp_dir};

const LONG: Duration = Duration::from_secs(60);

async fn statement(store: &Store, text: &'static str, values: Vec<Value>) -> u64 {
    let mut tx = store.write().await.expect("tx");
    let n = values.into_iter().fold(sql(text), |s, v| s.bind(v)).execute(&mut tx).await.expect("executes");
    tx.commit().await.expect("commit");
    n
}

pub(crate) async fn run_until_signed(a: Auditor, size: u64) {
    let (store, stop) = (a.store.clone(), a.shutdown.clone());
    let task = tokio::spawn(async move { a.run().await });
    signed(&store, size).await;
    stop.cancel();
    task.await.expect("joins").expect("ends well");
}

/// Runs an auditor until it refuses, and returns why.
async fn refusal(store: &Store, dir: &Path) -> String {
    expire_lease(store).await;
    let before = signed_size(store).await;
    let a = auditor(store, dir, "suspicious");
    let (stop, health) = (a.shutdown.clone(), a.health.clone());
    let task = tokio::spawn(async move { a.run().await });
    let why = eventually(LONG, "the auditor refuses", async || match health.checks().get("auditor") {
        Some(Check::Failing(why)) => Some(why.clone()),
        _ => None,
    })
    .await;
    stop.cancel();
    task.await.expect("joins").expect("ends well");
    assert_eq!(signed_size(store).await, before, "nothing is signed on top of it");
    why
}

/// The alarm event, once it has its own leaf.
async fn alarm(store: &Store) -> Event {
    eventually(LONG, "the auditor raises an alarm", async || {
        let mut c = store.read().await.expect("read");
        let audit = windlass_domain::event::Aggregate::Audit;
        events::after(&mut c, audit, "trail", 0, 10).await.expect("events").pop()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_vanished_is_an_alarm_and_a_finding() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let dir = temp_dir();
        append(&store, "s", 1).await;
        let gone = append(&store, "s", 2).await;
        append(&store, "s", 3).await;
        append(&store, "other", 1).await;
        statement(&store, "DELETE FROM events WHERE id = $1", vec![gone.id.into()]).await;
        // Three events and the alarm.
        run_until_signed(auditor(&store, dir.path(), "one"), 4).await;
        let alarm = alarm(&store).await;
        assert_eq!(
            (alarm.what.as_str(), &alarm.payload["expected"], &alarm.payload["got"]),
            ("audit.gap", &2.into(), &3.into())
        );
        let report = verify(&store, None).await;
        assert_eq!(report.leaves, 4, "{db}: the event behind the gap is recorded all the same");
        assert_eq!(report.findings.len(), 1, "{db}: {:?}", report.findings);
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_comes_again_is_an_alarm_and_no_second_leaf() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let dir = temp_dir();
        let again = append(&store, "s", 1).await;
        append(&store, "s", 2).await;
        run_until_signed(auditor(&store, dir.path(), "one"), 2).await;
        let row = vec![again.id.into(), again.at.into()];
        statement(&store, "INSERT INTO event_queue (consumer, event_id, at) VALUES ('auditor', $1, $2)", row).await;
        run_until_signed(auditor(&store, dir.path(), "two"), 3).await;
        assert_eq!(alarm(&store).await.what, "audit.repeat");
        let report = verify(&store, None).await;
        assert!(report.is_good() && report.leaves == 3, "{db}: {:?}", report.findings);
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_leaves_are_found_in_the_export() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let dir = temp_dir();
        let count = crowd(&store, 2).await;
        run_until_signed(auditor(&store, dir.path(), "one"), count).await;
        let good = export(&store, 0).await;
        let key = key(&store).await;
        assert!(verify_export(good.as_slice(), &key, None).expect("reads").is_good());
        let mut c = store.read().await.expect("read");
        let leaves = windlass_store::audit::leaves(&mut c, 0, 100).await.expect("leaves");
        drop(c);
        for leaf in &leaves {
            let mut bytes = leaf.leaf.clone();
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            let change = "UPDATE audit_leaves SET leaf = $2 WHERE idx = $1";
            statement(&store, change, vec![leaf.idx.into(), bytes.into()]).await;
            assert!(!verify(&store, None).await.is_good(), "{db}: leaf {}", leaf.idx);
            statement(&store, change, vec![leaf.idx.into(), leaf.leaf.clone().into()]).await;
        }
        assert_eq!(export(&store, 0).await, good);
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_not_sign_on_top_of_a_trail_that_was_cut_or_rewritten() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let dir = temp_dir();
        let count = crowd(&store, 2).await;
        run_until_signed(auditor(&store, dir.path(), "one"), count).await;
        let kept = notes(&store).await.pop().expect("a note");
        append(&store, "s0", 9).await;

        // An unsigned leaf that does not have its hash.
        let leaf = "INSERT INTO audit_leaves (idx, event_id, leaf, hash) VALUES ($1, $2, $3, $4)";
        let forged = vec![count.into(), uuid::Uuid::now_v7().into(), b"{}".to_vec().into(), vec![0_u8; 32].into()];
        statement(&store, leaf, forged).await;
        assert!(refusal(&store, dir.path()).await.contains(&format!("leaf {count}")), "{db}");
        statement(&store, "DELETE FROM audit_leaves WHERE idx = $1", vec![count.into()]).await;

        // The last leaves and their checkpoints vanish: only the file beside the database knows.
        let half = count / 2;
        statement(&store, "DELETE FROM audit_leaves WHERE idx >= $1", vec![half.into()]).await;
        assert!(refusal(&store, dir.path()).await.contains("cut short"), "{db}");
        statement(&store, "DELETE FROM audit_checkpoints WHERE size > $1", vec![half.into()]).await;
        assert!(refusal(&store, dir.path()).await.contains("cut short"), "{db}");
        assert!(!verify(&store, Some(&kept)).await.is_good(), "{db}");

        // Another auditor that does not see the file signs a new history; the file's owner does not follow it.
        let elsewhere = temp_dir();
        let key_file = dir.path().join("keys/auditor.nk");
        expire_lease(&store).await;
        for n in 0..count {
            append(&store, "made up", n).await;
        }
        let forger = Auditor { key_file, ..auditor(&store, elsewhere.path(), "forger") };
        run_until_signed(forger, half + count).await;
        let why = refusal(&store, dir.path()).await;
        assert!(why.contains("rewritten"), "{db}: {why}");
        assert!(!verify(&store, Some(&kept)).await.is_good(), "{db}");
        store.close().await;
    }
}

/// A backup made between leaves and their signature: the file beside the database knows a checkpoint that the database does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_on_where_only_the_checkpoint_of_the_stored_leaves_is_missing() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let dir = temp_dir();
        append(&store, "s", 1).await;
        run_until_signed(auditor(&store, dir.path(), "one"), 1).await;
        for n in 2..6 {
            append(&store, "s", n).await;
        }
        run_until_signed(auditor(&store, dir.path(), "two"), 5).await;
        let kept = notes(&store).await.pop().expect("a note");
        statement(&store, "DELETE FROM audit_checkpoints WHERE size > $1", vec![1_u64.into()]).await;
        append(&store, "s", 6).await;
        run_until_signed(auditor(&store, dir.path(), "three"), 6).await;
        let report = verify(&store, Some(&kept)).await;
        assert!(report.is_good() && report.leaves == 6, "{db}: {:?}", report.findings);

        // Not so when the leaves are others than those that were signed.
        statement(&store, "DELETE FROM audit_checkpoints WHERE size > $1", vec![1_u64.into()]).await;
        let other = b"{}".to_vec();
        let hash = windlass_domain::merkle::leaf_hash(&other);
        statement(
            &store,
            "UPDATE audit_leaves SET leaf = $2, hash = $3 WHERE idx = $1",
            vec![3_u64.into(), other.into(), hash.0.to_vec().into()],
        )
        .await;
        assert!(refusal(&store, dir.path()).await.contains("rewritten"), "{db}");
        store.close().await;
    }
}
