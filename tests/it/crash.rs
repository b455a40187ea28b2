//! Crashes: every service, NATS and an agent killed in the middle of deployments, and the broker's store wiped. Each
//! deployment ends right, and each step's own append to a file shows exactly one start an attempt.

use crate::{
    ssh::Reach,
    world::{Form, SERVICES, World},
};
use rand::Rng;
use serde_json::json;
use std::time::Duration;
use windlass_testkit::{Db, eventually};

/// Moments of death for each victim.
pub(crate) const MOMENTS: usize = 10;
pub(crate) const HOSTS: [&str; 4] = ["h1", "h2", "h3", "h4"];
const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];

pub(crate) async fn world(db: Db, form: Form, reach: Reach) -> World {
    let mut w = World::start(db, form).await;
    w.reach(reach, &HOSTS).await;
    w.apply(&w.catalog(&HOSTS, "1 *2", 0, "parallel: 0")).await;
    w.agents(&HOSTS).await;
    for v in VERSIONS {
        w.version("shop", v, "sleep 0.2").await;
    }
    w
}

/// Runs a deployment, kills `victim` when a random one of its steps has begun (or none yet), starts it again after a
/// random while, and sees the end.
pub(crate) async fn kill_once(w: &mut World, victim: &str, round: usize, wipe: bool) {
    let before = w.starts().len();
    let id = w.deploy("shop", "beta", VERSIONS[round % 2]).await;
    let (begun, moment, pause) = {
        let mut rng = rand::rng();
        (rng.random_range(0..HOSTS.len() * 2), rng.random_range(0..150), rng.random_range(0..300))
    };
    eventually(Duration::from_secs(60), "so many steps have begun", async || {
        (w.starts().len() >= before + begun).then_some(())
    })
    .await;
    // Any moment is as good as another; each step takes longer than this, so the deployment cannot be over by then.
    tokio::time::sleep(Duration::from_millis(moment)).await;
    w.kill(victim);
    if wipe {
        wipe_store(w);
    }
    tokio::time::sleep(Duration::from_millis(pause)).await;
    w.start_process(victim);
    let d = w.until(&id, &["succeeded", "paused"]).await;
    if d["state"] == "paused" {
        // Killed between its promise and the start of its runner: the agent says that nothing began. That is true, as the number of
        // marks shows below, and a person goes on.
        let waves =
            d["steps"].as_array().into_iter().flatten().flat_map(|s| s["waves"].as_array().into_iter().flatten());
        let hosts = waves.flat_map(|w| w["hosts"].as_array().into_iter().flatten());
        let other = hosts.filter(|h| !["succeeded", "waiting"].contains(&h["state"].as_str().unwrap_or_default()));
        let other: Vec<_> = other.map(|h| (&h["host"], &h["state"], &h["reason"])).collect();
        let unstarted = (&json!(victim), &json!("not_started"), &json!("fenced before it started"));
        assert_eq!(other, [unstarted], "{victim} {moment} ms after step {begun}: {d:#}");
        w.post(&format!("/deployments/{id}/retry"), json!({})).await;
        w.until(&id, &["succeeded"]).await;
    }
    w.assert_started_once();
    let marks = w.starts().len() - before;
    assert_eq!(marks, HOSTS.len() * 2, "{victim} {moment} ms after step {begun}: every step of every host ran once");
    for h in HOSTS {
        assert_eq!(w.current(h).as_deref(), Some(VERSIONS[round % 2]), "{victim} {moment} ms after step {begun}");
    }
}

fn wipe_store(w: &World) {
    for dir in [w.dir.path().join("nats"), w.state().join("nats")] {
        let mut open = vec![dir];
        while let Some(d) = open.pop() {
            for e in std::fs::read_dir(&d).into_iter().flatten().flatten() {
                if e.file_name() == "jetstream" {
                    std::fs::remove_dir_all(e.path()).expect("wiped");
                } else if e.path().is_dir() {
                    open.push(e.path());
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_one_process_of_the_embedded_form() {
    let mut w = world(Db::sqlite(), Form::Embedded, Reach::Agent).await;
    assert_eq!(w.form(), Form::Embedded);
    for round in 0..MOMENTS {
        kill_once(&mut w, "up", round, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_each_service_and_nats_of_the_scaled_form() {
    let mut w = world(Db::postgres().await, Form::Scaled, Reach::Agent).await;
    for victim in SERVICES.into_iter().chain(["nats"]) {
        for round in 0..MOMENTS {
            kill_once(&mut w, victim, round, false).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_an_agent_but_not_its_runner() {
    let mut w = world(Db::sqlite(), Form::Embedded, Reach::Agent).await;
    for round in 0..MOMENTS {
        kill_once(&mut w, HOSTS[round % HOSTS.len()], round, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wiping_the_brokers_store_in_the_middle() {
    let mut w = world(Db::postgres().await, Form::Scaled, Reach::Agent).await;
    for round in 0..MOMENTS {
        kill_once(&mut w, "nats", round, true).await;
    }
    // Nothing is left behind in a queue either.
    eventually(Duration::from_secs(30), "doctor finds nothing overdue", async || {
        let d = w.get("/doctor").await;
        (!d.to_string().contains("\"failing\"")).then_some(())
    })
    .await;
}
