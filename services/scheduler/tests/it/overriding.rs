//! A host's own word comes before a person's about it.

use crate::world::World;
use serde_json::json;
use windlass_contracts::command::Verb;
use windlass_domain::{
    deployment::{HostState, State},
    ids::{DeploymentId, WorkId},
    task::Task,
    work::{Outcome, WorkResult},
};
use windlass_store::{Tx, tasks, works};
use windlass_testkit::databases;

const EXECUTOR: &str = "test";

fn override_all() -> Verb {
    Verb::Override { hosts: vec![], reason: "its machine burnt down".into() }
}

/// A deployment whose one host fell silent; its work, which an executor takes for the transaction that is given along.
async fn silent(w: &World) -> (DeploymentId, WorkId, Tx, u64) {
    let artifact = w.built("shop", "1.0.0").await;
    let (id, o) = w.request("person:ann", artifact).await;
    assert!(o.accepted, "{o:?}");
    w.settle(id, &[("h1", Outcome::Unknown)]).await;
    let d = w.until(id, State::Paused).await;
    let (work, _) = d.unknown_works().first().cloned().expect("the work of the silent host");
    let mut tx = w.store().write().await.expect("tx");
    let epoch = works::reopen(&mut tx, work, EXECUTOR).await.expect("reopens").expect("it is settled");
    (id, work, tx, epoch)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_spoken_is_heard_before_it_is_overridden() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let (id, work, mut tx, epoch) = silent(&w).await;
        let d = w.until(id, State::Paused).await;
        let said = d.hosts().map(|h| json!({ "host": h.host, "attempt": h.attempt, "outcome": "succeeded" }));
        let result = json!({ "kind": "wave", "hosts": said.collect::<Vec<_>>() });
        let result: WorkResult = serde_json::from_value(result).expect("a result");
        works::resettle(&mut tx, work, epoch, &result).await.expect("resettles");
        // Both are there when the scheduler looks; nobody rings for the result.
        let o = w.command_with(tx, "person:olga", id, override_all()).await;
        assert_eq!(o.code, "wrong_state", "{o:?}");
        let d = w.until(id, State::Succeeded).await;
        assert!(d.hosts().all(|h| h.state == HostState::Succeeded));
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_on_its_way_back_to_its_load_balancers_is_not_overridden() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let (id, work, mut tx, epoch) = silent(&w).await;
        let task: Task = serde_json::from_value(json!({
            "id": uuid::Uuid::now_v7(), "host": "h1", "agent": null, "attempt": 1, "start_at": 0, "state": "succeeded",
            "granted": null, "report": null, "offered_at": null, "granted_at": null, "started_at": null, "settled_at": null,
        }))
        .expect("a task");
        let row = tasks::StoredTask { work, deployment: id, step: "roll".into(), segment: 0, version: 1, task };
        tasks::insert(&mut tx, &row, chrono::Utc::now()).await.expect("stores");
        works::take_up_again(&mut tx, work, epoch).await.expect("goes on");
        let o = w.command_with(tx, "person:olga", id, override_all()).await;
        assert_eq!(o.code, "unsettled", "{o:?}");
        assert!(o.detail.contains("h1") && o.detail.contains("succeeded"), "{}", o.detail);
        w.settle(id, &[]).await;
        w.until(id, State::Succeeded).await;
        w.stop().await;
    }
}
