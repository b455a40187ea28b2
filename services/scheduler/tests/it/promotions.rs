//! Promotions that policies ask for by themselves: when they are requested, what they wait for, what ends them.

use crate::{
    ordered::environment,
    world::{PATIENCE, World},
};
use chrono::{TimeDelta, Utc};
use windlass_domain::{
    catalog::{Environment, Item, Kind, Policy, PolicyMatch},
    deployment::State,
    ids::DeploymentId,
};
use windlass_store::{catalog, sql};
use windlass_testkit::databases;

impl World {
    /// An environment that takes what these have verified, and a policy of beta that asks for it.
    pub(crate) async fn asked_for_by_beta(&self, from: &[&str], verified_for: Option<&str>) {
        self.save(Item::Environment(Environment {
            promote_from: from.iter().map(|f| f.to_string()).collect(),
            verified_for: verified_for.map(Into::into),
            ..environment("shop", "online", "h1")
        }))
        .await;
        let matches = PolicyMatch { environments: vec!["beta".into()], ..PolicyMatch::default() };
        let policy = Policy { name: "on".into(), matches, on_verified: vec!["online".into()], ..Policy::default() };
        self.save(Item::Policy(policy)).await;
    }

    /// The one promotion, once it is in this state: the deployment it asks for, and the reason.
    pub(crate) async fn promotion(&self, state: &str) -> (DeploymentId, String) {
        windlass_testkit::eventually(PATIENCE, state, async || {
            let mut tx = self.store().read().await.expect("read");
            let rows: Vec<(uuid::Uuid, String, String)> =
                sql("SELECT deployment_id, state, reason FROM promotions").fetch_all(&mut tx).await.expect("rows");
            rows.into_iter().find(|r| r.1 == state).map(|r| (DeploymentId(r.0), r.2))
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_waits_until_all_that_must_have_verified_it_have() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        w.save(Item::Environment(environment("shop", "gray", "h1"))).await;
        w.asked_for_by_beta(&["beta", "gray"], None).await;
        let one = w.built("shop", "1.0.0").await;
        w.released("shop", "beta", one).await;
        assert!(w.promotion("waiting").await.1.contains("verified in gray"));
        w.released("shop", "gray", one).await;
        let (id, _) = w.promotion("requested").await;
        w.settle(id, &[]).await;
        w.until(id, State::Succeeded).await;
        w.stop().await;
    }
}

/// The time was made longer, and then the policy was taken away, while a promotion waited for its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_asked_for_as_the_catalog_says_when_its_time_comes() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        for (version, gone) in [("1.0.0", false), ("2.0.0", true)] {
            w.asked_for_by_beta(&["beta"], Some("2s")).await;
            let built = w.built("shop", version).await;
            w.released("shop", "beta", built).await;
            let verified = Utc::now();
            if gone {
                let mut tx = w.store().write().await.expect("tx");
                let row = catalog::row(&mut tx, Kind::Policy, "on").await.expect("row").expect("it is there");
                let policy = Policy { name: "on".into(), ..Policy::default() };
                catalog::save(&mut tx, &Item::Policy(policy), row.revision, true, "test", Utc::now())
                    .await
                    .expect("gone");
                tx.commit().await.expect("commits");
                let (id, reason) = w.promotion("refused").await;
                assert!(reason.contains("policy on does not ask"), "{reason}");
                assert_eq!(w.works(id).await, 0);
            } else {
                w.asked_for_by_beta(&["beta"], Some("4s")).await;
                let (id, _) = w.promotion("requested").await;
                assert!(Utc::now() - verified > TimeDelta::milliseconds(3_500), "it was good for long enough");
                w.settle(id, &[]).await;
                w.until(id, State::Succeeded).await;
            }
        }
        w.stop().await;
    }
}
