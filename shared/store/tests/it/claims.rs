//! Whose a work is when a lease has run out.

use std::time::Duration;
use uuid::Uuid;
use windlass_domain::{
    ids::{DeploymentId, WorkId},
    work::{CentralWork, Desired, Work, WorkSpec},
};
use windlass_store::{Store, works};
use windlass_testkit::databases;

const HOUR: Duration = Duration::from_secs(3600);

async fn claim(store: &Store, owner: &str, lease: Duration, room: u32, driven: &[WorkId]) -> Vec<(WorkId, u64)> {
    let mut tx = store.write().await.expect("begins");
    let claims = works::claim(&mut tx, &["default".into()], owner, lease, room, driven).await.expect("claims");
    tx.commit().await.expect("commits");
    claims.into_iter().map(|c| (c.work.id, c.epoch)).collect()
}

#[tokio::test]
async fn an_executor_that_was_starved_does_not_take_its_works_from_itself() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let (mine, other) = (WorkId(Uuid::now_v7()), WorkId(Uuid::now_v7()));
        let mut tx = store.write().await.expect("begins");
        for id in [mine, other] {
            let work = Work {
                id,
                deployment: DeploymentId(Uuid::now_v7()),
                project: "shop".into(),
                environment: "online".into(),
                pool: "default".into(),
                desired: Desired::Run,
                fence: 1,
                plan_digest: "d".into(),
                spec: WorkSpec::Central(CentralWork { step: "s".into(), attempt: 1, outputs: Default::default() }),
                trace: None,
            };
            works::insert(&mut tx, &work).await.expect("stores");
        }
        tx.commit().await.expect("commits");
        // A lease that is over as soon as it is given: this process got no CPU for all of it.
        assert_eq!(claim(&store, "a", Duration::ZERO, 1, &[]).await, [(mine, 1)], "{db}");
        // It drives the first one, which takes no room from the second.
        assert_eq!(claim(&store, "a", HOUR, 1, &[mine]).await, [(other, 1)], "{db}");
        assert!(claim(&store, "a", HOUR, 9, &[mine, other]).await.is_empty(), "{db}");
        // What it drives and has not renewed for a second lease is stuck.
        assert_eq!(claim(&store, "a", Duration::ZERO, 9, &[mine, other]).await, [(mine, 2)], "{db}");
        // Another executor waits for nothing.
        assert_eq!(claim(&store, "b", HOUR, 9, &[]).await, [(mine, 3)], "{db}");
        let mut tx = store.write().await.expect("begins");
        assert!(!works::renew(&mut tx, mine, 2, HOUR).await.expect("asks"), "{db}: the first owner finds out");
        tx.commit().await.expect("commits");
        store.close().await;
    }
}
