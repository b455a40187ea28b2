//! Waves on real agents: their order, their spread over time, their budgets, pauses in the middle of one, confirmations, and
//! what is tried again by itself.

use crate::lab::{Lab, host, now_ns, wave};
use serde_json::{Value, json};
use windlass_testkit::{Db, eventually};

const PAIR: [(&str, &str); 2] = [("h1", "role=web"), ("h2", "role=web")];
const FOUR: [(&str, &str); 4] = [("h1", "role=web"), ("h2", "role=web"), ("h3", "role=web"), ("h4", "role=web")];

fn pairs(states: &[(&str, &str)]) -> Vec<(String, String)> {
    states.iter().map(|(h, s)| ((*h).to_owned(), (*s).to_owned())).collect()
}

/// Canaries, then zone after zone, the expression from its start in each: nothing of a wave begins before all of the one
/// before it has ended.
async fn groups_and_canaries(db: Db) {
    let hosts = [
        ("h1", "zone=b"),
        ("h2", "zone=a"),
        ("h3", "zone=b,role=canary"),
        ("h4", "zone=a"),
        ("h5", "zone=a"),
        ("h6", "zone=b"),
    ];
    let lab = Lab::start(db, &hosts).await;
    lab.w.apply(&lab.rollout("waves: \"1 *2\"\ngroup_by: zone\ncanary: role=canary", &["work"])).await;
    let id = lab.released("1.0.0").await;
    let d = lab.get(&id).await;
    let waves: Vec<Vec<String>> =
        (0..5).map(|n| wave(&d, "rollout", n).into_iter().map(|(h, _)| h).collect()).collect();
    assert_eq!(waves, [vec!["h3"], vec!["h2"], vec!["h4", "h5"], vec!["h1"], vec!["h6"]], "{d:#}");
    for pair in waves.windows(2) {
        let ended = pair[0].iter().map(|h| lab.began(h, "work.end")).max();
        let began = pair[1].iter().map(|h| lab.began(h, "work")).min();
        assert!(ended < began, "{pair:?}: {:#?}", lab.marks());
    }
    lab.assert_started_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn canaries_come_first_then_group_after_group_on_sqlite() {
    groups_and_canaries(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn canaries_come_first_then_group_after_group_on_postgres() {
    groups_and_canaries(Db::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wave_is_spread_by_its_stagger() {
    let lab = Lab::start(Db::sqlite(), &FOUR).await;
    lab.w.apply(&lab.rollout("waves: \"100%\"\nstagger: { every: 1s, jitter: 1s }", &["work"])).await;
    lab.released("1.0.0").await;
    let mut began: Vec<i64> = lab.hosts.iter().map(|h| lab.began(h, "work")).collect();
    began.sort_unstable();
    let first = began[0];
    for (n, at) in began.iter().enumerate() {
        // The n-th host starts n seconds after the first one, give or take its own draw and the first one's.
        let late = (at - first) as f64 / 1e9;
        assert!(late >= n as f64 - 1.1, "host {n} began after {late:.2} s: {began:?}");
    }
    assert!(began[3] - first > 1_900_000_000, "they began together: {began:?}");
}

/// The first failing host stops those that have not run; every kind of host is counted by itself.
async fn first_failure_stops_the_rest(db: Db) {
    let lab = Lab::start(db, &FOUR).await;
    lab.w.apply(&lab.rollout("waves: \"100%\"\nparallel: 1\nbudget: { hosts: 0 }", &["first", "work"])).await;
    lab.fail("h2", "work", 3);
    let id = lab.deploy("1.0.0").await;
    let d = lab.asks(&id, "intervention").await;
    let states = [("h1", "succeeded"), ("h2", "failed"), ("h3", "auto_stopped"), ("h4", "auto_stopped")];
    assert_eq!(wave(&d, "rollout", 0), pairs(&states), "{d:#}");
    let c = &d["hosts"];
    let counts = ["total", "succeeded", "failed", "auto_stopped", "hand_stopped", "running", "unknown", "not_started"];
    let counts: Vec<i64> = counts.iter().map(|k| c[k].as_i64().unwrap_or(-1)).collect();
    assert_eq!(counts, [4, 1, 1, 2, 0, 0, 0, 0], "{c:#}");
    assert!(lab.marks().iter().all(|m| m.host == "h1" || m.host == "h2"), "h3 and h4 ran nothing");

    // Again: only what failed or never ran, at the step it stood at.
    lab.mend("h2", "work");
    lab.verb(&id, "retry", json!({})).await;
    lab.w.until(&id, &["succeeded"]).await;
    assert_eq!((lab.times("h1", "work"), lab.times("h2", "first"), lab.times("h2", "work")), (1, 1, 2));
    assert_eq!((lab.times("h3", "first"), lab.times("h4", "work")), (1, 1));
    lab.assert_started_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_failing_host_stops_those_that_have_not_run_on_sqlite() {
    first_failure_stops_the_rest(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_failing_host_stops_those_that_have_not_run_on_postgres() {
    first_failure_stops_the_rest(Db::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wave_has_a_budget_of_its_own_beside_the_one_in_all() {
    let lab = Lab::start(Db::sqlite(), &FOUR).await;
    lab.w.apply(&lab.rollout("waves: \"2\"\nbudget: { hosts: 3, wave: { hosts: 1 } }", &["work"])).await;
    lab.fail("h1", "work", 1);
    lab.fail("h3", "work", 1);
    lab.fail("h4", "work", 1);
    // One of the first wave is borne; two of the second are not, though three would be borne in all.
    let id = lab.deploy("1.0.0").await;
    let d = lab.asks(&id, "intervention").await;
    assert_eq!(wave(&d, "rollout", 0), pairs(&[("h1", "failed"), ("h2", "succeeded")]), "{d:#}");
    assert_eq!(wave(&d, "rollout", 1), pairs(&[("h3", "failed"), ("h4", "failed")]), "{d:#}");
    lab.verb(&id, "abort", json!({ "reason": "seen enough" })).await;
    lab.w.until(&id, &["aborted"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_in_all_counts_the_failures_of_every_wave() {
    let lab = Lab::start(Db::sqlite(), &FOUR).await;
    lab.w.apply(&lab.rollout("waves: \"1\"\nbudget: { percent: 50 }", &["work"])).await;
    for h in ["h1", "h2", "h3"] {
        lab.fail(h, "work", 1);
    }
    let id = lab.deploy("1.0.0").await;
    let d = lab.asks(&id, "intervention").await;
    assert_eq!(wave(&d, "rollout", 2), pairs(&[("h3", "failed")]), "two of four are borne: {d:#}");
    assert_eq!(lab.times("h4", "work"), 0, "the third failure is one too many");
    lab.verb(&id, "abort", json!({ "reason": "seen enough" })).await;
    lab.w.until(&id, &["aborted"]).await;
}

/// A pause holds a wave that is under way: what runs goes to its end, nothing more begins until somebody resumes.
async fn paused_in_mid_wave(lab: &Lab, id: &str) {
    lab.until_began("h1", "work").await;
    lab.verb(id, "pause", json!({ "reason": "lunch" })).await;
    lab.let_go("h1", "work");
    let d = lab.sees(id, "h1 has ended", |d| host(d, "rollout", "h1")["task"]["state"] == "succeeded").await;
    assert_eq!(d["state"], "paused", "{d:#}");
    // Without the pause h2 would be under way within milliseconds.
    let ended = lab.began("h1", "work.end");
    eventually(std::time::Duration::from_secs(10), "two seconds have gone by", async || {
        (now_ns() - ended > 2_000_000_000).then_some(())
    })
    .await;
    let resumed = now_ns();
    lab.verb(id, "resume", json!({})).await;
    lab.w.until(id, &["succeeded"]).await;
    assert!(lab.began("h2", "work") > resumed, "h2 began while it was paused: {:#?}", lab.marks());
    lab.assert_started_once();
}

async fn pauses(db: Db, scheduled: bool) {
    let lab = Lab::start(db, &PAIR).await;
    lab.w.apply(&lab.rollout("waves: \"100%\"\nparallel: 1", &["work"])).await;
    lab.hold("h1", "work");
    let id = if scheduled { lab.schedule("1.0.0").await } else { lab.deploy("1.0.0").await };
    paused_in_mid_wave(&lab, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_takes_effect_in_the_middle_of_a_wave_on_sqlite() {
    pauses(Db::sqlite(), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_takes_effect_in_the_middle_of_a_wave_on_postgres() {
    pauses(Db::postgres().await, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_deployment_pauses_in_the_middle_of_a_wave_too() {
    pauses(Db::sqlite(), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_wave_waits_for_a_person_however_it_was_started() {
    let lab = Lab::start(Db::sqlite(), &PAIR).await;
    lab.w.apply(&lab.rollout("waves: \"1\"\nconfirm: first", &["work"])).await;
    for scheduled in [false, true] {
        let before = lab.times("h2", "work");
        let id = if scheduled { lab.schedule("1.0.0").await } else { lab.deploy("1.1.0").await };
        let d = lab.asks(&id, "confirmation").await;
        assert_eq!(wave(&d, "rollout", 0), pairs(&[("h1", "succeeded")]), "{d:#}");
        assert_eq!(lab.times("h2", "work"), before, "the second wave waits");
        lab.verb(&id, "confirm", json!({ "wave": 0 })).await;
        lab.w.until(&id, &["succeeded"]).await;
        assert_eq!(lab.times("h2", "work"), before + 1);
    }
}

/// `exit 75` is worth another try, as the flow says; another exit code is not.
async fn retries(db: Db) {
    let lab = Lab::start(db, &PAIR).await;
    let policy = "retry: { max: 3, on: [exit], exit_codes: [75], backoff: 1s, factor: 2 }\nwaves: \"1\"";
    lab.w.apply(&lab.rollout(policy, &["first", "work"])).await;
    lab.fail("h1", "work", 75);
    let id = lab.deploy("1.0.0").await;
    // Its end, not its beginning: what is mended earlier could still mend it.
    let failed_twice =
        |d: &Value| host(d, "rollout", "h1")["attempt"] == 2 && d["steps"][0]["waves"][0]["state"] == "retrying";
    lab.sees(&id, "the second try has failed", failed_twice).await;
    lab.mend("h1", "work");
    lab.fail("h2", "work", 3);
    let d = lab.asks(&id, "intervention").await;
    let began: Vec<i64> = lab.marks().iter().filter(|m| m.host == "h1" && m.step == "work").map(|m| m.at).collect();
    assert_eq!(began.len(), 3, "two tries failed, the third did not: {d:#}");
    assert!(began[1] - began[0] >= 1_000_000_000, "{began:?}");
    assert!(began[2] - began[1] >= 2_000_000_000, "each wait is twice as long: {began:?}");
    assert_eq!(lab.times("h1", "first"), 1, "a try begins at the step that failed");
    assert_eq!(lab.times("h2", "work"), 1, "exit 3 is not tried again");
    lab.mend("h2", "work");
    lab.verb(&id, "retry", json!({})).await;
    lab.w.until(&id, &["succeeded"]).await;
    lab.assert_started_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_75_is_tried_again_after_a_growing_wait_on_sqlite() {
    retries(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_75_is_tried_again_after_a_growing_wait_on_postgres() {
    retries(Db::postgres().await).await;
}

/// Killed while paused, while a retry waits, and while a wave bakes: each goes on as it stood, and nothing runs twice.
async fn killed_in_between(db: Db) {
    let mut lab = Lab::start(db, &PAIR).await;
    let lines = "waves: \"100%\"\nparallel: 1\nbake: 3s\nretry: { max: 2, on: [exit], exit_codes: [75], backoff: 3s }";
    lab.w.apply(&lab.rollout(lines, &["first", "work"])).await;
    lab.hold("h1", "work");
    lab.fail("h2", "work", 75);
    let id = lab.deploy("1.0.0").await;
    lab.until_began("h1", "work").await;
    lab.verb(&id, "pause", json!({ "reason": "look" })).await;
    again(&mut lab).await;
    lab.let_go("h1", "work");
    let d = lab.sees(&id, "h1 has ended", |d| host(d, "rollout", "h1")["task"]["state"] == "succeeded").await;
    assert_eq!(d["state"], "paused", "a pause outlives the process: {d:#}");
    assert_eq!(lab.times("h2", "first"), 0, "nothing begins meanwhile");
    lab.verb(&id, "resume", json!({})).await;

    lab.sees(&id, "a retry waits", |d| d["steps"][0]["waves"][0]["state"] == "retrying").await;
    again(&mut lab).await;
    lab.mend("h2", "work");
    lab.sees(&id, "the wave bakes", |d| d["steps"][0]["waves"][0]["state"] == "baking" || !d["ended_at"].is_null())
        .await;
    again(&mut lab).await;
    lab.w.until(&id, &["succeeded"]).await;
    assert_eq!(
        (lab.times("h1", "work"), lab.times("h2", "first"), lab.times("h2", "work")),
        (1, 1, 2),
        "{:#?}",
        lab.marks()
    );
    lab.assert_started_once();
}

/// Kills the control plane, and starts it again.
async fn again(lab: &mut Lab) {
    lab.w.kill("up");
    lab.w.start_process("up");
    windlass_testkit::wait_http(&format!("{}/readyz", lab.w.base)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_during_a_pause_a_retry_or_a_bake_loses_nothing_on_sqlite() {
    killed_in_between(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_during_a_pause_a_retry_or_a_bake_loses_nothing_on_postgres() {
    killed_in_between(Db::postgres().await).await;
}
