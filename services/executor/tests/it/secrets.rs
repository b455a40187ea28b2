//! Secrets on their way to an agent: within the grant, to the key of its ACCEPT, or the task is not started.

use crate::world::{Executor, SEALED, SOON, World};
use windlass_domain::{
    ids::WorkId,
    secret::Secret,
    work::{Outcome, WaveHost, WaveWork, WorkResult, WorkSpec},
};
use windlass_store::secrets;
use windlass_testkit::{databases, eventually};

const VALUE: &str = "the-value-of-the-token";

async fn wave(w: &World) -> WorkId {
    w.insert(WorkSpec::Wave(WaveWork {
        stagger: None,
        again: false,
        outputs: Default::default(),
        step: SEALED.into(),
        wave: 0,
        hosts: vec![WaveHost { host: "h0".into(), attempt: 1, start_at: 0 }],
        parallel: 0,
        max_failures: 0,
    }))
    .await
}

async fn store(w: &World, e: &Executor, scope: &str, value: &str) {
    let sealed = e.ctx.sealer.seal(scope, "token", value.as_bytes()).expect("seals");
    let mut tx = w.store.write().await.expect("begins");
    secrets::put(&mut tx, scope, "token", &sealed, "ann", chrono::Utc::now()).await.expect("stores");
    tx.commit().await.expect("commits");
}

#[tokio::test]
async fn a_secret_that_cannot_be_had_starts_nothing_and_says_so() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.start_agents();
        let e = w.executor().await;
        let work = wave(&w).await;
        let WorkResult::Wave { hosts } = w.result(work, 1).await else { panic!("a wave") };
        assert_eq!(hosts[0].outcome, Outcome::NotStarted);
        let reason = hosts[0].reason.clone().unwrap_or_default();
        assert!(
            reason.contains("the secret `token` exists in none of host/h0, environment/shop/prod, project/shop"),
            "{reason}"
        );
        assert_eq!(w.starts(), 0);
        e.shut_down().await;
    }
}

#[tokio::test]
async fn the_grant_brings_the_innermost_value_sealed_to_this_agent() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.start_agents();
        let e = w.executor().await;
        store(&w, &e, "project/shop", "an-outer-value").await;
        store(&w, &e, "host/h0", VALUE).await;
        let work = wave(&w).await;
        assert_eq!(w.outcomes(work, 1).await, [Outcome::Succeeded]);
        assert_eq!(w.agent(0).lock().secrets["token"], Secret::new(VALUE.into()));
        w.assert_single_starts();
        e.shut_down().await;
    }
}

/// The grant was lost with the executor that had sealed the secrets: the next one cannot send it again, and so asks for a
/// new ACCEPT.
#[tokio::test]
async fn after_a_takeover_the_secrets_are_sealed_anew() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.agent(0).lock().lose_grants = true;
        w.start_agents();
        let first = w.executor().await;
        store(&w, &first, "project/shop", VALUE).await;
        let work = wave(&w).await;
        w.until_state(work, 0, "granted").await;
        first.crash().await;
        w.agent(0).lock().lose_grants = false;
        let second = w.executor().await;
        assert_eq!(w.outcomes(work, 1).await, [Outcome::Succeeded]);
        eventually(SOON, "it has the secret", async || w.agent(0).lock().secrets.contains_key("token").then_some(()))
            .await;
        w.assert_single_starts();
        second.shut_down().await;
    }
}
