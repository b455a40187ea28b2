//! Taking up again what had ended, and going back: to the last good version, to a named one, in an emergency; and what holds
//! automation off afterwards, keeps a version out, or keeps all others out.

use crate::{
    journey::{SECRET, cdevent},
    lab::{Lab, host},
    package::pack,
};
use serde_json::{Value, json};
use windlass_testkit::Db;

const PAIR: [(&str, &str); 2] = [("h1", "role=web"), ("h2", "role=web")];

/// A flow that switches the release, runs the steered step `work`, and can go back in both ways.
fn switching(lab: &Lab, on_failure: &str) -> String {
    let dir = lab.dir();
    format!(
        r#"kind: flow
project: shop
flow: web
on_failure: {on_failure}
steps:
  - id: check
    phase: prepare
    waves: "100%"
    steps:
{}  - id: rollout
    phase: release
    needs: [check]
    waves: "1"
    steps:
      - uses: artifact.fetch
      - uses: release.switch
{}rollback:
  normal:
    steps:
      - {{ id: slow, uses: script, with: {{ run: "echo \"$TASK_KEY $WINDLASS_HOST normal $(date +%s%N)\" >> {dir}/marks" }} }}
      - {{ uses: release.switch, with: {{ to: last_known_good }} }}
  emergency:
    - {{ uses: release.switch, with: {{ to: last_known_good }} }}
"#,
        lab.steps(&["look"]),
        lab.steps(&["work"]),
    )
}

async fn roll_back(lab: &Lab, id: &str, body: Value) -> String {
    let answer = lab.verb(id, "rollback", body).await;
    let back = answer["new_deployment"].as_str().unwrap_or_else(|| panic!("{answer:#}")).to_owned();
    lab.w.until(&back, &["succeeded"]).await;
    back
}

/// A deployment that failed is taken up again where it stood: same plan, next run, only what failed.
async fn taken_up_again(db: Db) {
    let lab = Lab::start(db, &PAIR).await;
    lab.w.apply(&switching(&lab, "stop")).await;
    lab.fail("h2", "work", 4);
    let id = lab.deploy("1.0.0").await;
    let d = lab.w.until(&id, &["failed"]).await;
    assert_eq!(d["run"], 1);
    lab.mend("h2", "work");
    lab.verb(&id, "retry", json!({ "reason": "the disk was full" })).await;
    let again = lab.w.until(&id, &["succeeded"]).await;
    assert_eq!((&again["run"], &again["plan_digest"]), (&json!(2), &d["plan_digest"]), "{again:#}");
    assert_eq!(again["reopened"]["who"], "admin");
    for (h, step, times) in [("h1", "look", 1), ("h2", "look", 1), ("h1", "work", 1), ("h2", "work", 2)] {
        assert_eq!(lab.times(h, step), times, "{step} of {h}: {:#?}", lab.marks());
    }
    lab.assert_started_once();

    // Something newer has started since: there is no way back into the old one.
    lab.fail("h1", "work", 4);
    let old = lab.deploy("1.1.0").await;
    lab.w.until(&old, &["failed"]).await;
    lab.mend("h1", "work");
    let newer = lab.released("1.2.0").await;
    let admin = lab.w.admin.clone();
    let refused = lab.refused(&admin, &old, "retry", json!({}), "superseded").await;
    assert!(refused.to_string().contains(&newer), "it names what is newer: {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_deployment_is_taken_up_again_at_the_failed_step_on_sqlite() {
    taken_up_again(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_deployment_is_taken_up_again_at_the_failed_step_on_postgres() {
    taken_up_again(Db::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_deployment_is_taken_up_again() {
    let lab = Lab::start(Db::sqlite(), &PAIR).await;
    lab.w.apply(&switching(&lab, "pause")).await;
    lab.hold("h1", "work");
    let id = lab.deploy("1.0.0").await;
    lab.until_began("h1", "work").await;
    lab.verb(&id, "abort", json!({ "reason": "not now" })).await;
    lab.w.until(&id, &["aborted"]).await;
    lab.let_go("h1", "work");
    lab.verb(&id, "retry", json!({})).await;
    let d = lab.w.until(&id, &["succeeded"]).await;
    assert_eq!(d["run"], 2);
    assert_eq!(
        (lab.times("h1", "look"), lab.times("h2", "look"), lab.times("h1", "work")),
        (1, 1, 2),
        "{:#?}",
        lab.marks()
    );
    lab.assert_started_once();
}

/// After a rollback nothing releases there by itself: not the next build, until a person lets it. People still can.
async fn held_after_a_rollback(db: Db) {
    let lab = Lab::start(db, &PAIR).await;
    let policy =
        "---\nkind: policy\nname: beta\nmatch: { projects: [shop], environments: [beta] }\non_artifact: [beta]\n";
    lab.w.apply(&(switching(&lab, "pause") + policy)).await;
    lab.w.secret("project.shop", "ci", SECRET).await;
    lab.released("1.0.0").await;
    lab.released("1.1.0").await;
    let bad = lab.released("1.2.0").await;
    // To a version that is named; it ran two releases ago.
    let back = roll_back(&lab, &bad, json!({ "to": "1.0.0", "veto": true, "reason": "prices are wrong" })).await;
    assert_eq!((lab.w.current("h1").as_deref(), lab.w.current("h2").as_deref()), (Some("1.0.0"), Some("1.0.0")));
    assert_eq!(lab.times("h1", "normal"), 1, "the normal way");
    let admin = lab.w.admin.clone();
    let (status, answer) = lab
        .w
        .send("POST", &format!("/deployments/{back}/rollback"), &admin, Some(json!({ "reason": "?" })))
        .await
        .expect("answers");
    assert_eq!(status, 409, "a rollback is not rolled back: {answer}");

    // The next build is registered and released by nobody.
    let hold = "/projects/shop/environments/beta/hold";
    let held = lab.w.get(hold).await;
    assert!(!held["hold"].is_null(), "{held:#}");
    let (url, digest, _) = pack(lab.w.dir.path(), "next", &[("VERSION", "1.3.0"), ("bin/go", "true")]);
    let (status, answer) = lab.w.hook("evt-1", &cdevent("evt-1", "1.3.0", &url, &digest)).await;
    assert!(status < 300, "{answer}");
    assert!(answer["deployments"].as_array().is_none_or(Vec::is_empty), "nothing is requested: {answer}");
    let log = lab.w.get("/triggers?project=shop").await.to_string();
    assert!(log.contains("held") || log.contains("hold"), "the trigger log says why: {log}");

    // A person may; not the version that was vetoed.
    let vetoed = json!({ "environment": "beta", "version": "1.2.0" });
    let (status, refused) =
        lab.w.send("POST", "/projects/shop/deployments", &admin, Some(vetoed)).await.expect("answers");
    assert_eq!((status, refused["code"].as_str()), (409, Some("vetoed")), "{refused}");
    lab.released("1.3.0").await;

    // Released, the next build goes its way again.
    let (status, answer) = lab.w.send("DELETE", hold, &admin, None).await.expect("answers");
    assert!(status < 300, "{answer}");
    let (url, digest, _) = pack(lab.w.dir.path(), "last", &[("VERSION", "1.4.0"), ("bin/go", "true")]);
    let (_, answer) = lab.w.hook("evt-2", &cdevent("evt-2", "1.4.0", &url, &digest)).await;
    let id = answer["deployments"][0].as_str().unwrap_or_else(|| panic!("a deployment: {answer}"));
    lab.w.until(id, &["succeeded"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_holds_the_next_build_until_a_person_lets_it_on_sqlite() {
    held_after_a_rollback(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_holds_the_next_build_until_a_person_lets_it_on_postgres() {
    held_after_a_rollback(Db::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emergency_rollback_switches_and_nothing_else() {
    let lab = Lab::start(Db::sqlite(), &PAIR).await;
    lab.w.apply(&switching(&lab, "pause")).await;
    lab.released("1.0.0").await;
    lab.fail("h2", "work", 1);
    let id = lab.deploy("1.1.0").await;
    let d = lab.asks(&id, "intervention").await;
    assert_eq!(host(&d, "rollout", "h2")["state"], "failed", "{d:#}");
    assert_eq!(lab.w.current("h2").as_deref(), Some("1.1.0"));
    roll_back(&lab, &id, json!({ "mode": "emergency", "reason": "it is down" })).await;
    lab.w.until(&id, &["rolled_back"]).await;
    assert_eq!((lab.w.current("h1").as_deref(), lab.w.current("h2").as_deref()), (Some("1.0.0"), Some("1.0.0")));
    assert_eq!(lab.times("h1", "normal") + lab.times("h2", "normal"), 0);
}

/// Only hosts that a step of the release phase, or of a later one, ran on are taken back.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_takes_back_what_the_phase_that_failed_had_reached() {
    let lab = Lab::start(Db::sqlite(), &PAIR).await;
    lab.w.apply(&switching(&lab, "pause")).await;
    lab.released("1.0.0").await;
    // In `prepare` nothing was released: there is nothing to take back.
    lab.fail("h1", "look", 1);
    let id = lab.deploy("1.1.0").await;
    lab.asks(&id, "intervention").await;
    let admin = lab.w.admin.clone();
    lab.refused(&admin, &id, "rollback", json!({ "reason": "no" }), "nothing_to_do").await;
    lab.mend("h1", "look");
    lab.fail("h1", "work", 1);
    lab.verb(&id, "retry", json!({})).await;
    lab.sees(&id, "the release fails", |d| host(d, "rollout", "h1")["state"] == "failed").await;
    lab.asks(&id, "intervention").await;
    let back = roll_back(&lab, &id, json!({ "reason": "no good" })).await;
    let d = lab.get(&back).await;
    assert_eq!(d["hosts"]["total"], 1, "h2 was only looked at: {d:#}");
    assert_eq!((lab.times("h1", "normal"), lab.times("h2", "normal")), (1, 0));
    assert_eq!((lab.w.current("h1").as_deref(), lab.w.current("h2").as_deref()), (Some("1.0.0"), Some("1.0.0")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_keeps_all_other_versions_out() {
    let lab = Lab::start(Db::sqlite(), &PAIR).await;
    lab.w.apply(&switching(&lab, "pause")).await;
    let pin = json!({ "kind": "pin", "version": "1.0.0", "environment": "beta", "reason": "the fair" });
    lab.w.post("/projects/shop/marks", pin).await;
    let admin = lab.w.admin.clone();
    let other = json!({ "environment": "beta", "version": "1.1.0" });
    let (status, refused) =
        lab.w.send("POST", "/projects/shop/deployments", &admin, Some(other)).await.expect("answers");
    assert_eq!((status, refused["code"].as_str()), (409, Some("pinned")), "{refused}");
    assert!(refused.to_string().contains("the fair"), "it says why: {refused}");
    lab.released("1.0.0").await;
}
