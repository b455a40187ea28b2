//! Releases under traffic, through a real HAProxy and a real nginx, with a load generator running: nothing fails, nothing is
//! left off, and never too few are on.

mod load;
mod site;

use crate::world::Form;
use load::Load;
use serde_json::json;
use site::{Front, Site};

const MEMBERS: usize = 12;
/// Of the twelve.
const LEAST: usize = 8;

/// Twelve back ends are released in waves and rolled back, each really restarted, while requests come.
async fn rolling(front: Front) {
    let options = "    min_healthy: \"8\"\n    drain_timeout: 60s\n    attach_timeout: 60s\n";
    let s = Site::start(Form::Embedded, front, MEMBERS, "1 *2", options).await;
    s.version("1.0.0").await;
    s.version("2.0.0").await;
    s.released("1.0.0").await;
    s.assert_attached("after the first release").await;
    for h in &s.hosts {
        assert_eq!(s.w.current(h).as_deref(), Some("1.0.0"));
    }
    let all_up = || async {
        let states = s.states().await;
        states.values().filter(|v| v.starts_with("UP") || *v == "up").count()
    };
    assert_eq!(all_up().await, MEMBERS);

    let before = s.restarts();
    let (load, watch) = (Load::on(s.url(), front == Front::Nginx), s.watch());
    let id = s.deploy("2.0.0").await;
    s.ends(&id, "succeeded").await;
    let (told, least) = (load.end().await, watch.least());
    s.assert_attached("after the release").await;
    assert_eq!(s.restarts() - before, MEMBERS, "each service was restarted once");
    told.assert_served("the release");
    assert!(least >= LEAST, "at one time only {least} members were up");
    assert!(least < MEMBERS, "somebody was off while it was released");

    let before = s.restarts();
    let (load, watch) = (Load::on(s.url(), front == Front::Nginx), s.watch());
    let body = json!({ "reason": "found bad", "mode": "normal" });
    let answer = s.w.post(&format!("/deployments/{id}/rollback"), body).await;
    let back = answer["new_deployment"].as_str().expect("the rollback's id").to_owned();
    s.ends(&back, "succeeded").await;
    let (told, least) = (load.end().await, watch.least());
    s.assert_attached("after the rollback").await;
    assert_eq!(s.restarts() - before, MEMBERS, "each service was restarted once");
    for h in &s.hosts {
        assert_eq!(s.w.current(h).as_deref(), Some("1.0.0"));
    }
    told.assert_served("the rollback");
    assert!(least >= LEAST, "at one time only {least} members were up");
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_a_release_and_its_rollback_under_load_without_one_failed_request() {
    rolling(Front::Haproxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_a_release_and_its_rollback_under_load_without_one_failed_request() {
    rolling(Front::Nginx).await;
}

const SHORT: &str = "    drain_timeout: 2s\n    attach_timeout: 20s\n";
const LONG: &str = "    drain_timeout: 60s\n    attach_timeout: 20s\n";

/// Why the deployment waits for a person.
async fn stops(s: &Site, id: &str) -> String {
    let d = s.w.until(id, &["paused"]).await;
    assert_eq!(d["waiting_on"][0]["on"], "intervention", "{d:#}");
    d.to_string()
}

/// The executor dies while a host is being taken off: another one goes on, and everything is back at the end. So it is when
/// people abort at that very moment.
#[tokio::test(flavor = "multi_thread")]
async fn killing_the_executor_in_mid_drain_or_aborting_then_leaves_no_member_off() {
    let mut s = Site::start(Form::Scaled, Front::Haproxy, 3, "1 *2", LONG).await;
    for v in ["1.0.0", "2.0.0"] {
        s.version(v).await;
    }
    s.released("1.0.0").await;
    let mut held = s.hold("web1").await;
    let id = s.deploy("2.0.0").await;
    s.state_is("web1", "DRAIN").await;
    s.w.kill("executor");
    assert!(held.goes_on().await, "its connection is left alone");
    s.assert_drain_waits("web1").await;
    s.w.start_process("executor-2");
    drop(held);
    s.ends(&id, "succeeded").await;
    s.assert_attached("after a takeover").await;
    assert_eq!(s.w.current("web1").as_deref(), Some("2.0.0"));

    let held = s.hold("web1").await;
    let id = s.deploy("1.0.0").await;
    s.state_is("web1", "DRAIN").await;
    s.w.post(&format!("/deployments/{id}/abort"), json!({ "reason": "not now" })).await;
    s.w.until(&id, &["aborted"]).await;
    s.assert_attached("after an abort in mid-drain").await;
    s.state_is("web1", "UP").await;
    assert_eq!(s.w.current("web1").as_deref(), Some("2.0.0"), "nothing ran on it");
    drop(held);
}

/// Whatever people do about a host that failed: it is back behind the load balancer while they think, and after.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_host_is_attached_while_people_think_and_whatever_they_choose() {
    let s = Site::start(Form::Embedded, Front::Haproxy, 3, "1 *2", LONG).await;
    for v in ["1.0.0", "2.0.0"] {
        s.version(v).await;
    }
    s.released("1.0.0").await;
    for (verb, end) in [("ignore", "succeeded"), ("skip", "succeeded"), ("abort", "aborted")] {
        s.refuse("web1", true);
        let id = s.deploy(if s.w.current("web2").as_deref() == Some("1.0.0") { "2.0.0" } else { "1.0.0" }).await;
        let why = stops(&s, &id).await;
        assert!(why.contains("told to refuse"), "{why}");
        s.assert_attached(&format!("when it waits for a person who then says {verb}")).await;
        s.state_is("web1", "UP").await;
        let body = if verb == "skip" { json!({}) } else { json!({ "reason": "test" }) };
        s.w.post(&format!("/deployments/{id}/{verb}"), body).await;
        s.refuse("web1", false);
        s.ends(&id, end).await;
        s.assert_attached(&format!("after {verb}")).await;
        for h in &s.hosts {
            s.state_is(h, "UP").await;
        }
    }
}

/// A connection that does not end: by default the host fails before anything ran on it, and goes on serving; with `go_on`
/// the connection is cut.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_do_not_end_stop_a_release_or_are_cut() {
    let s = Site::start(Form::Embedded, Front::Haproxy, 2, "1 *2", SHORT).await;
    for v in ["1.0.0", "2.0.0"] {
        s.version(v).await;
    }
    s.released("1.0.0").await;
    let mut held = s.hold("web1").await;
    let before = s.restarts();
    let id = s.deploy("2.0.0").await;
    let why = stops(&s, &id).await;
    assert!(why.contains("1 sessions of web1"), "{why}");
    assert!(held.goes_on().await, "its connection is left alone");
    assert_eq!(s.restarts(), before, "nothing ran on it");
    s.state_is("web1", "UP").await;
    s.w.post(&format!("/deployments/{id}/abort"), json!({ "reason": "busy" })).await;
    s.w.until(&id, &["aborted"]).await;
    s.assert_attached("after the abort").await;

    s.w.apply(&s.catalog(&format!("{SHORT}    on_drain_timeout: go_on\n"))).await;
    let id = s.deploy("2.0.0").await;
    s.ends(&id, "succeeded").await;
    held.was_cut().await;
    s.assert_attached("after it went on").await;
}
