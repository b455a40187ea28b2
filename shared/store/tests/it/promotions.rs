//! Promotions that wait for a proof: whichever of the two comes first, the other sees it.

use chrono::Utc;
use std::time::Duration;
use uuid::Uuid;
use windlass_domain::ids::{ArtifactId, DeploymentId};
use windlass_store::{
    Store,
    promotions::{self, Promotion},
};
use windlass_testkit::databases;

const BESIDE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

async fn asked(store: &Store) -> Promotion {
    let p = Promotion {
        project: "shop".into(),
        environment: "online".into(),
        digest: "sha256:aa".into(),
        from: "beta".into(),
        policy: "on".into(),
        artifact: ArtifactId(Uuid::now_v7()),
        deployment: DeploymentId(Uuid::now_v7()),
        due_at: Utc::now(),
    };
    let mut tx = store.write().await.expect("begins");
    assert!(promotions::ask(&mut tx, &p, Utc::now()).await.expect("asks"));
    tx.commit().await.expect("commits");
    p
}

async fn wake(store: Store) {
    let mut tx = store.write().await.expect("begins");
    assert!(promotions::wake(&mut tx, "shop", "sha256:aa", Utc::now()).await.expect("wakes"));
    tx.commit().await.expect("commits");
}

#[tokio::test]
async fn a_proof_and_a_promotion_that_is_left_waiting_never_miss_each_other() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let p = asked(&store).await;
        // The scheduler came first: the proof waits for it, and then wakes what it left.
        let mut tx = store.write().await.expect("begins");
        assert!(promotions::lock_due(&mut tx, &p).await.expect("locks"));
        let mut proof = tokio::spawn(wake(store.clone()));
        assert!(tokio::time::timeout(BESIDE, &mut proof).await.is_err(), "it did not wait");
        promotions::settle(&mut tx, &p, "waiting", "not verified in gray").await.expect("waits");
        tx.commit().await.expect("commits");
        tokio::time::timeout(PATIENCE, proof).await.expect("goes on").expect("wakes");
        let due = promotions::due(&mut store.read().await.expect("reads"), Utc::now(), 9).await.expect("reads");
        assert_eq!(due.len(), 1, "it was missed");

        // The proof came first: the scheduler waits for it before it looks.
        let mut tx = store.write().await.expect("begins");
        assert!(promotions::wake(&mut tx, "shop", "sha256:aa", Utc::now()).await.expect("wakes"));
        let (other, of) = (store.clone(), p.clone());
        let mut look = tokio::spawn(async move {
            let mut tx = other.write().await.expect("begins");
            promotions::lock_due(&mut tx, &of).await.expect("locks")
        });
        assert!(tokio::time::timeout(BESIDE, &mut look).await.is_err(), "it did not wait");
        tx.commit().await.expect("commits");
        assert!(tokio::time::timeout(PATIENCE, look).await.expect("goes on").expect("looks"), "it is due still");
        store.close().await;
    }
}
