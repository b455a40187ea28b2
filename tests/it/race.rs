//! Races: one event delivered a hundred times at once, sixty-four requests for one environment.

use crate::{
    journey::{SECRET, cdevent},
    package::pack,
    world::{Form, PATIENCE, World},
};
use futures::future::join_all;
use serde_json::json;
use windlass_testkit::{Db, databases, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn one_event_a_hundred_times_is_one_artifact_and_one_deployment() {
    for db in databases().await {
        let w = World::start(db, Form::Embedded).await;
        w.apply(&w.catalog(&["h1"], "1", 1, "parallel: 0")).await;
        w.secret("project.shop", "ci", SECRET).await;
        let (url, digest, _) = pack(w.dir.path(), "p", &[("VERSION", "1")]);
        let event = cdevent("same", "1.0.0", &url, &digest);
        let answers = join_all((0..100).map(|_| w.hook("same", &event))).await;
        // Pressure is answered with 429, and then the event has simply not been accepted yet.
        for (status, body) in &answers {
            assert!(*status < 300 || *status == 429, "{status} {body}");
        }
        assert!(answers.iter().any(|(s, _)| *s < 300));
        let artifacts = w.get("/projects/shop/artifacts").await;
        assert_eq!(artifacts["items"].as_array().expect("items").len(), 1);
        let one = eventually(PATIENCE, "the deployment", async || {
            let list = w.get("/deployments?project=shop").await;
            let n = list["items"].as_array().expect("items").len();
            (n > 0).then_some(n)
        })
        .await;
        assert_eq!(one, 1);
    }
}

/// The release's own script proves it: it takes a lock directory, holds it for a moment, and fails if it was taken.
async fn never_together(db: Db) {
    const REQUESTS: usize = 64;
    let mut w = World::start(db, Form::Embedded).await;
    w.apply(&w.catalog(&["h1"], "1", 0, "parallel: 0")).await;
    w.agents(&["h1"]).await;
    let taken = w.dir.path().join("taken");
    let taken = taken.display();
    w.version("shop", "1.0.0", &format!("mkdir {taken} || exit 9\nsleep 0.05\nrmdir {taken}\n")).await;
    let w = &w;
    let ids = join_all((0..REQUESTS).map(|_| w.deploy("shop", "beta", "1.0.0"))).await;
    let queue = w.get("/queue").await;
    assert!(queue["locks"].as_array().is_some_and(|l| l.len() == 1), "{queue:#}");
    for id in &ids {
        w.until(id, &["succeeded"]).await;
    }
    w.assert_started_once();
    assert_eq!(w.starts().len(), REQUESTS * 2);
    // The history agrees: no start between another's start and end.
    let mut spans = Vec::new();
    for id in &ids {
        let d = w.get(&format!("/deployments/{id}")).await;
        spans.push((
            d["started_at"].as_str().expect("start").to_owned(),
            d["ended_at"].as_str().expect("end").to_owned(),
        ));
    }
    spans.sort();
    for pair in spans.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{pair:?} overlap");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_deployments_of_an_environment_never_run_together_on_sqlite() {
    never_together(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_deployments_of_an_environment_never_run_together_on_postgres() {
    never_together(Db::postgres().await).await;
}

/// A deployment that waits for its turn says so, and goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_queue_says_who_holds_and_who_waits() {
    let mut w = World::start(Db::sqlite(), Form::Embedded).await;
    w.apply(&w.catalog(&["h1"], "1", 0, "parallel: 0")).await;
    w.agents(&["h1"]).await;
    let gate = w.dir.path().join("gate");
    let go = format!("while [ ! -e {} ]; do sleep 0.05; done\n", gate.display());
    w.version("shop", "1.0.0", &go).await;
    let first = w.deploy("shop", "beta", "1.0.0").await;
    w.until(&first, &["running"]).await;
    let second = w.deploy("shop", "beta", "1.0.0").await;
    let d = w.until(&second, &["queued"]).await;
    assert_eq!(d["waiting_on"][0]["on"], "lock", "{d:#}");
    assert!(d["waiting_on"][0].to_string().contains(&first), "names the holder: {d:#}");
    let (status, refused) = w
        .send("POST", &format!("/deployments/{second}/abort"), &w.admin, Some(json!({ "reason": "x" })))
        .await
        .expect("answers");
    assert_eq!((status, refused["code"].as_str()), (409, Some("wrong_state")), "{refused}");
    std::fs::write(&gate, "").expect("gate");
    w.until(&first, &["succeeded"]).await;
    w.until(&second, &["succeeded"]).await;
}
