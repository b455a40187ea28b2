//! Plans against a changing fleet: what a preview shows is what is requested, temporary hosts, and agents that are silent.

use crate::world::World;
use serde_json::json;
use std::collections::BTreeMap;
use windlass_domain::{
    Timestamp,
    catalog::{Connectivity, ConnectivityCheck, Host, Item, Kind, Policy, TemporaryHosts},
    deployment::State,
    ids::{AgentId, ArtifactId, ReleaseId},
    release::ReleaseKind,
};
use windlass_store::{
    Tx, agents, catalog, deployments,
    planning::{self, Ask, Planned},
    sessions, sql,
};
use windlass_testkit::databases;

async fn preview(tx: &mut Tx, artifact: ArtifactId, add: &[String]) -> Result<Planned, String> {
    let none = BTreeMap::new();
    let ask = Ask {
        project: "shop",
        environment: "beta",
        artifact,
        kind: ReleaseKind::Normal,
        inputs: &none,
        values: &none,
        hosts: &[],
        add_hosts: add,
        exclude_hosts: &[],
        at: chrono::Utc::now(),
        by: "ann",
    };
    let made = planning::prepare(tx, ReleaseId(uuid::Uuid::nil()), &ask).await.expect("reads");
    made.map(|(_, p)| p).map_err(|e| e.to_string())
}

async fn save(tx: &mut Tx, item: Item) {
    let over = catalog::row(tx, item.kind(), &item.key()).await.expect("reads").map_or(0, |r| r.revision);
    catalog::save(tx, &item, over, false, "test", chrono::Utc::now()).await.expect("saves");
}

async fn check(tx: &mut Tx, check: ConnectivityCheck) {
    let Some(Item::Environment(mut env)) =
        catalog::get(tx, Kind::Environment, "shop/beta").await.expect("reads").map(|e| e.item)
    else {
        panic!("an environment")
    };
    env.connectivity = Some(Connectivity { check, within_s: 30 });
    save(tx, Item::Environment(env)).await;
}

async fn heard(tx: &mut Tx, host: &str, at: Timestamp) {
    let live = agents::live_of_host(tx, host).await.expect("reads").map(|a| AgentId(a.id));
    let id = live.unwrap_or(AgentId(uuid::Uuid::now_v7()));
    if live.is_none() {
        let public_key = format!("U{id}");
        let a = agents::Agent { id: id.0, host: host.into(), public_key, enrolled_at: at, revoked_at: None };
        agents::insert(tx, &a).await.expect("stores");
    }
    let s = sessions::Session {
        agent: id,
        host: host.into(),
        instance: "i".into(),
        boot_id: "b".into(),
        journal_seq: 1,
        agent_version: "0.1.0".into(),
        last_seen_at: at,
        facts: json!({}),
    };
    sessions::upsert(tx, &s).await.expect("stores");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shown_is_what_is_requested() {
    for db in databases().await {
        let w = World::start(db, &["a", "b"], 1).await;
        let artifact = w.artifact("1.0.0").await;
        let shown = preview(&mut w.store().read().await.expect("reads"), artifact, &[]).await.expect("plan");
        let (id, outcome) = w.request("person:ann", artifact).await;
        assert!(outcome.accepted, "{outcome:?}");
        let d = w.until(id, State::AwaitingApproval).await;
        assert_eq!(d.plan_digest, shown.facts.digest);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn temporary_hosts_come_last_unless_a_policy_denies_them() {
    for db in databases().await {
        let w = World::start(db, &["a"], 0).await;
        let artifact = w.artifact("1.0.0").await;
        let spare = ["spare".to_owned()];
        let mut tx = w.store().write().await.expect("begins");
        let refused = preview(&mut tx, artifact, &spare).await.expect_err("not in the catalog");
        assert!(refused.contains("apply it first"), "{refused}");
        save(&mut tx, Item::Host(Host { name: "spare".into(), address: "127.0.0.9".into(), ..Host::default() })).await;
        let p = preview(&mut tx, artifact, &spare).await.expect("plan").plan;
        let hosts: Vec<(&str, bool)> = p.hosts.iter().map(|h| (h.name.as_str(), h.temporary)).collect();
        assert_eq!(hosts, [("a", false), ("spare", true)]);
        let closed = Policy { name: "closed".into(), temporary_hosts: Some(TemporaryHosts::Deny), ..Policy::default() };
        save(&mut tx, Item::Policy(closed)).await;
        let refused = preview(&mut tx, artifact, &spare).await.expect_err("denied");
        assert!(refused.contains("not allowed here by policy"), "{refused}");
        tx.commit().await.expect("commits");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_agents_are_announced_left_out_or_refused() {
    for db in databases().await {
        let w = World::start(db, &["a", "b"], 1).await;
        let artifact = w.artifact("1.0.0").await;
        let now = chrono::Utc::now();
        let mut tx = w.store().write().await.expect("begins");
        heard(&mut tx, "a", now).await;
        heard(&mut tx, "b", now - chrono::TimeDelta::seconds(120)).await;
        let unchecked = preview(&mut tx, artifact, &[]).await.expect("plan");
        assert!(unchecked.unconnected.is_empty(), "nobody asked");
        check(&mut tx, ConnectivityCheck::Alert).await;
        let p = preview(&mut tx, artifact, &[]).await.expect("plan");
        assert_eq!((p.unconnected, p.plan.hosts.len()), (vec!["b".to_owned()], 2));
        assert_eq!(p.facts.digest, unchecked.facts.digest, "the plan itself is the same");
        check(&mut tx, ConnectivityCheck::Refuse).await;
        let refused = preview(&mut tx, artifact, &[]).await.expect_err("refused");
        assert!(refused.contains("agents of b are not connected"), "{refused}");
        check(&mut tx, ConnectivityCheck::Skip).await;
        let p = preview(&mut tx, artifact, &[]).await.expect("plan");
        assert_eq!((p.plan.hosts.len(), p.plan.left_out[0].host.as_str()), (1, "b"));
        assert_ne!(p.facts.digest, unchecked.facts.digest, "another plan needs its own decision");
        tx.commit().await.expect("commits");

        // Requested so, an alert says which host is missing; when it is back, the plan is another one.
        let (id, outcome) = w.request("person:ann", artifact).await;
        assert!(outcome.accepted, "{outcome:?}");
        let d = w.until(id, State::AwaitingApproval).await;
        assert_eq!(d.plan_digest, p.facts.digest);
        let mut tx = w.store().write().await.expect("begins");
        let alerts: Vec<(String,)> =
            sql("SELECT CAST(payload AS TEXT) FROM events WHERE type = 'deployment.hosts_not_connected' AND severity = 'alert'")
                .fetch_all(&mut tx)
                .await
                .expect("reads");
        assert!(alerts.len() == 1 && alerts[0].0.contains("\"b\""), "{alerts:?}");
        heard(&mut tx, "b", chrono::Utc::now()).await;
        let again = deployments::get(&mut tx, id).await.expect("reads").expect("there").deployment;
        let now = planning::of(&mut tx, &again).await.expect("reads").expect("plan");
        assert_ne!(now.facts.digest, d.plan_digest);
        tx.commit().await.expect("commits");
        w.stop().await;
    }
}
