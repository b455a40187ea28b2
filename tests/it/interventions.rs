//! Stepping in, on real agents: retries of what failed and of nothing else, claims, required steps, stops by hand, programs
//! that will not die, hosts that fall silent, and other inputs.

use crate::{
    lab::{Lab, host},
    world::{PATIENCE, program},
};
use serde_json::{Value, json};
use windlass_testkit::{Db, eventually};

const PAIR: [(&str, &str); 2] = [("h1", "role=web"), ("h2", "role=web")];

/// Requirement: resume from the failed step, on failed hosts only, nested flows too.
async fn resumes_at_the_failed_step(db: Db) {
    let lab = Lab::start(db, &PAIR).await;
    let part = format!(
        "kind: flow\nproject: shop\nflow: part\nsteps:\n  - id: roll\n    waves: \"100%\"\n    budget: {{ hosts: 1 }}\n    steps:\n{}",
        lab.steps(&["first", "work", "last"])
    );
    let whole = "kind: flow\nproject: shop\nflow: web\non_failure: pause\nsteps:\n  - { id: before, uses: wait, with: { for: 1s } }\n  \
                 - { id: inner, needs: [before], uses: flow/part }\n  - { id: after, needs: [inner], uses: wait, with: { for: 1s } }\n";
    lab.w.apply(&format!("{}---\n{whole}", part.replace("hosts: 1", "hosts: 0"))).await;
    lab.fail("h2", "work", 9);
    let id = lab.deploy("1.0.0").await;
    let d = lab.asks(&id, "intervention").await;
    let failed = host(&d, "inner/roll", "h2");
    assert_eq!((&failed["state"], &failed["failed_id"]), (&json!("failed"), &json!("work")), "{d:#}");
    lab.sees(&id, "h1 is done", |d| host(d, "inner/roll", "h1")["state"] == "succeeded").await;
    lab.mend("h2", "work");
    lab.verb(&id, "retry", json!({})).await;
    let d = lab.w.until(&id, &["succeeded"]).await;
    for (h, step, times) in [
        ("h1", "first", 1),
        ("h1", "work", 1),
        ("h1", "last", 1),
        ("h2", "first", 1),
        ("h2", "work", 2),
        ("h2", "last", 1),
    ] {
        assert_eq!(lab.times(h, step), times, "{step} of {h}: {:#?}", lab.marks());
    }
    assert_eq!(host(&d, "inner/roll", "h2")["attempt"], 2, "{d:#}");
    lab.assert_started_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_begins_at_the_failed_step_of_the_failed_hosts_in_nested_flows_too_on_sqlite() {
    resumes_at_the_failed_step(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_begins_at_the_failed_step_of_the_failed_hosts_in_nested_flows_too_on_postgres() {
    resumes_at_the_failed_step(Db::postgres().await).await;
}

/// What must run is left out by no verb, whichever way it comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_required_step_is_skipped_by_no_route() {
    let lab = Lab::start(Db::sqlite(), &PAIR).await;
    let flow = lab.rollout("waves: \"100%\"\nrequired: true", &["work"]);
    lab.w.apply(&flow).await;
    lab.fail("h1", "work", 1);
    let id = lab.deploy("1.0.0").await;
    lab.asks(&id, "intervention").await;
    let admin = lab.w.admin.clone();
    lab.refused(&admin, &id, "skip", json!({}), "required").await;
    lab.refused(&admin, &id, "skip", json!({ "hosts": ["h1"] }), "required").await;
    lab.refused(&admin, &id, "ignore", json!({ "hosts": ["h1"], "reason": "it will do" }), "required").await;
    for (verb, more) in [("skip", vec![]), ("ignore", vec!["--reason", "it will do"])] {
        let out = std::process::Command::new(program("windlass"))
            .args(["--server", &lab.w.base, "--token", &admin, verb, &id])
            .args(more)
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains("required"), "{verb}: {said}");
    }
    lab.mend("h1", "work");
    lab.verb(&id, "retry", json!({})).await;
    lab.w.until(&id, &["succeeded"]).await;
}

/// Whoever steps in first answers for it; another has to take it over, and say why.
async fn claims(db: Db) {
    let lab = Lab::start(db, &PAIR).await;
    lab.w.apply(&lab.rollout("waves: \"100%\"", &["work"])).await;
    let (ann, bob) = (lab.w.person("ann", "operator").await, lab.w.person("bob", "operator").await);
    lab.fail("h1", "work", 1);
    let id = lab.deploy("1.0.0").await;
    lab.asks(&id, "intervention").await;
    lab.w.post_as(&ann, &format!("/deployments/{id}/claim"), json!({})).await;
    let refused = lab.refused(&bob, &id, "retry", json!({}), "claimed").await;
    assert!(refused.to_string().contains("ann"), "it says who: {refused}");
    lab.refused(&bob, &id, "exclude", json!({ "hosts": ["h1"], "reason": "broken" }), "claimed").await;
    lab.refused(&bob, &id, "claim", json!({}), "claimed").await;
    let (status, answer) = lab
        .w
        .send("POST", &format!("/deployments/{id}/claim"), &bob, Some(json!({ "take_over": true })))
        .await
        .expect("answers");
    assert!((400..500).contains(&status), "a take-over needs a reason: {answer}");
    lab.w
        .post_as(&bob, &format!("/deployments/{id}/claim"), json!({ "take_over": true, "reason": "ann went home" }))
        .await;
    assert_eq!(lab.get(&id).await["claim"]["who"], "bob");
    lab.refused(&ann, &id, "retry", json!({}), "claimed").await;
    lab.mend("h1", "work");
    lab.w.post_as(&bob, &format!("/deployments/{id}/retry"), json!({})).await;
    let d = lab.w.until(&id, &["succeeded"]).await;
    assert!(d["claim"].is_null(), "nothing is left to answer for: {d:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_person_answers_for_a_deployment_at_a_time_on_sqlite() {
    claims(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_person_answers_for_a_deployment_at_a_time_on_postgres() {
    claims(Db::postgres().await).await;
}

/// One host is stopped by hand while the others go on; who, when and why stays with it.
async fn stops_one_host(db: Db) {
    let lab = Lab::start(db, &PAIR).await;
    lab.w.apply(&lab.rollout("waves: \"100%\"\nbudget: { hosts: 0 }", &["first", "work"])).await;
    lab.hold("h1", "work");
    lab.hold("h2", "work");
    let id = lab.deploy("1.0.0").await;
    lab.until_began("h1", "work").await;
    lab.until_began("h2", "work").await;
    lab.verb(&id, "stop", json!({ "hosts": ["h1"], "reason": "its disk is full" })).await;
    let d = lab.sees(&id, "h1 has stopped", |d| host(d, "rollout", "h1")["task"]["state"] == "cancelled").await;
    assert_eq!(host(&d, "rollout", "h2")["task"]["state"], "granted", "the other goes on: {d:#}");
    lab.let_go("h2", "work");
    let d = lab.sees(&id, "the wave has ended", |d| host(d, "rollout", "h2")["state"] == "succeeded").await;
    let h1 = host(&d, "rollout", "h1");
    assert_eq!(h1["state"], "hand_stopped", "{d:#}");
    assert_eq!((&h1["by"]["who"], &h1["by"]["reason"]), (&json!("admin"), &json!("its disk is full")), "{h1:#}");
    assert_eq!((&d["hosts"]["hand_stopped"], &d["hosts"]["auto_stopped"]), (&json!(1), &json!(0)), "{d:#}");
    let ended = lab.times("h1", "work.end");
    assert_eq!(ended, 0, "it was stopped in the middle");
    let events = lab.w.get(&format!("/deployments/{id}")).await;
    assert!(events["ended_at"].is_null(), "somebody has to say what becomes of it: {events:#}");
    lab.let_go("h1", "work");
    lab.verb(&id, "retry", json!({ "hosts": ["h1"] })).await;
    lab.w.until(&id, &["succeeded"]).await;
    assert_eq!((lab.times("h2", "work"), lab.times("h1", "first")), (1, 1));
    lab.assert_started_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_is_stopped_by_hand_on_sqlite() {
    stops_one_host(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_is_stopped_by_hand_on_postgres() {
    stops_one_host(Db::postgres().await).await;
}

fn alive(pid: &str) -> bool {
    // A process that has ended and is not yet reaped is a zombie: it runs nothing.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|s| !s.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

/// An abort ends the whole tree of processes, those in sessions of their own and deaf to TERM too.
#[tokio::test(flavor = "multi_thread")]
async fn an_abort_ends_processes_that_ignore_term() {
    let lab = Lab::start(Db::sqlite(), &PAIR[..1]).await;
    let dir = lab.dir();
    let flow = format!(
        r#"kind: flow
project: shop
flow: web
steps:
  - id: rollout
    waves: "1"
    steps:
      - id: stubborn
        uses: script
        with:
          run: |
            trap '' TERM INT HUP
            setsid bash -c 'trap "" TERM INT HUP; echo $$ > {dir}/far; while :; do sleep 1; done' &
            bash -c 'trap "" TERM INT HUP; echo $$ > {dir}/near; while :; do sleep 1; done' &
            echo $$ > {dir}/self
            while :; do sleep 1; done
"#
    );
    lab.w.apply(&flow).await;
    let id = lab.deploy("1.0.0").await;
    let read = |name: &str| {
        std::fs::read_to_string(lab.w.dir.path().join(name)).ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
    };
    let pids = eventually(PATIENCE, "all three run", async || Some([read("far")?, read("near")?, read("self")?])).await;
    assert!(pids.iter().all(|p| alive(p)));
    lab.verb(&id, "abort", json!({ "reason": "enough" })).await;
    let d = lab.w.until(&id, &["aborted"]).await;
    let left: Vec<&String> = pids.iter().filter(|p| alive(p)).collect();
    assert!(left.is_empty(), "aborted is said when nothing runs any more, but {left:?} do: {d:#}");
}

/// Other inputs for what failed: the plan is another, and nothing goes on until it is approved anew.
async fn other_inputs(db: Db) {
    let lab = Lab::start(db, &PAIR).await;
    let dir = lab.dir();
    let flow = format!(
        r#"kind: flow
project: shop
flow: web
on_failure: pause
inputs:
  mode: {{ type: string, default: wrong }}
steps:
  - id: rollout
    waves: "1"
    steps:
      - id: work
        uses: script
        with:
          env: {{ MODE: "${{{{ inputs.mode }}}}" }}
          run: |
            echo "$TASK_KEY $WINDLASS_HOST $MODE $(date +%s%N)" >> {dir}/marks
            [ "$MODE" != wrong ] || [ "$WINDLASS_HOST" != h2 ]
---
kind: policy
name: beta
match: {{ projects: [shop], environments: [beta] }}
approvals:
  - {{ name: ops, quorum: 1 }}
"#
    );
    lab.w.apply(&flow).await;
    let bob = lab.w.person("bob", "approver").await;
    let id = lab.deploy("1.0.0").await;
    let d = lab.w.until(&id, &["awaiting_approval"]).await;
    let first = d["plan_digest"].clone();
    lab.w.post_as(&bob, &format!("/deployments/{id}/approve"), json!({ "digest": first })).await;
    lab.asks(&id, "intervention").await;
    lab.verb(&id, "retry", json!({ "inputs": { "mode": "right" }, "reason": "the mode was wrong" })).await;
    let d = lab.sees(&id, "the amendment waits", |d| !d["amendment"].is_null()).await;
    let digest = d["amendment"]["digest"].clone();
    assert_ne!(digest, first, "{d:#}");
    assert_eq!((&d["state"], lab.times("h2", "right")), (&json!("paused"), 0), "nothing runs before it is approved");
    // Who asked for the change does not approve it; nor does an approval of the old plan count.
    let admin = lab.w.admin.clone();
    let (status, refused): (u16, Value) = lab
        .w
        .send("POST", &format!("/deployments/{id}/approve"), &admin, Some(json!({ "digest": digest })))
        .await
        .expect("answers");
    assert!((400..500).contains(&status), "{refused}");
    lab.refused(&bob, &id, "approve", json!({ "digest": first }), "plan_changed").await;
    assert_eq!(lab.times("h2", "right"), 0);
    lab.w.post_as(&bob, &format!("/deployments/{id}/approve"), json!({ "digest": digest })).await;
    let d = lab.w.until(&id, &["succeeded"]).await;
    assert_eq!(d["plan_digest"], digest, "it goes on under the new plan");
    assert_eq!((lab.times("h1", "wrong"), lab.times("h1", "right")), (1, 0), "what succeeded stays as it is");
    assert_eq!((lab.times("h2", "wrong"), lab.times("h2", "right")), (1, 1));
    lab.assert_started_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_with_other_inputs_is_approved_anew_on_sqlite() {
    other_inputs(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_with_other_inputs_is_approved_anew_on_postgres() {
    other_inputs(Db::postgres().await).await;
}

/// A host that falls silent is UNKNOWN, never a failure by guess: it settles when its agent speaks again, or a person answers
/// for it; until then its environment stays locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_host_is_unknown_until_it_settles_or_a_person_answers_for_it() {
    let mut lab = Lab::start(Db::sqlite(), &PAIR).await;
    lab.w.apply(&lab.rollout("waves: \"100%\"\nbudget: { hosts: 0 }", &["work"])).await;
    lab.hold("h1", "work");
    lab.hold("h2", "work");
    let id = lab.deploy("1.0.0").await;
    lab.until_began("h1", "work").await;
    lab.until_began("h2", "work").await;
    lab.w.kill("h1");
    lab.w.kill("h2");
    let unknown = |d: &Value, h: &str| host(d, "rollout", h)["state"] == "unknown";
    let d = lab.sees(&id, "both are unknown", |d| unknown(d, "h1") && unknown(d, "h2")).await;
    assert_eq!(d["hosts"]["unknown"], 2, "{d:#}");
    let admin = lab.w.admin.clone();
    let (status, refused) = lab
        .w
        .send("POST", &format!("/deployments/{id}/retry"), &admin, Some(json!({ "hosts": ["h1"] })))
        .await
        .expect("answers");
    assert_eq!(status, 409, "nobody knows whether it still runs: {refused}");
    let waiting = lab.deploy("1.1.0").await;
    lab.w.until(&waiting, &["queued"]).await;

    // The runner of h1 never stopped: its agent finds it, and tells how it ended.
    lab.let_go("h1", "work");
    lab.w.start_process("h1");
    lab.sees(&id, "h1 has settled late", |d| host(d, "rollout", "h1")["state"] == "succeeded").await;
    lab.verb(&id, "override", json!({ "hosts": ["h2"], "reason": "its power is off" })).await;
    let answered = |d: &Value| !unknown(d, "h2") && host(d, "rollout", "h2")["task"]["state"] == "overridden";
    let d = lab.sees(&id, "a person answers for h2", answered).await;
    assert_eq!((&d["hosts"]["unknown"], &d["hosts"]["failed"]), (&json!(0), &json!(1)), "never a success: {d:#}");
    lab.verb(&waiting, "cancel", json!({ "reason": "not now" })).await;
    lab.verb(&id, "abort", json!({ "reason": "h2 is gone" })).await;
    lab.w.until(&id, &["aborted"]).await;
    assert_eq!((lab.times("h1", "work"), lab.times("h2", "work")), (1, 1));
    lab.let_go("h2", "work");
}
