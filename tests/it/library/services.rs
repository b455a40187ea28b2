//! A scaled service behind nginx; a Compose project and a systemd unit as far as that goes where neither runs.

use super::{Lab, PATIENCE, answers, eventually, library, run, runs, stops};
use serde_json::{Value, json};
use std::{path::Path, process::Command};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_scaled_out_and_in_behind_its_balancer() {
    let lab = Lab::start("scale", "").await;
    let conf = |extra: Value| {
        let mut all = json!({ "port": lab.port, "nginx_conf": "shared/nginx.conf", "drain_seconds": 0 });
        all.as_object_mut().expect("map").extend(extra.as_object().expect("map").clone());
        all
    };
    let (a, b) = (format!("127.0.0.2:{}", lab.port), format!("127.0.0.3:{}", lab.port));
    lab.release("1.0.0", &[]).await;
    lab.deploy("1.0.0", conf(json!({ "where": "slot=a", "members": a }))).await;
    answers(&lab, 0, "/version", "1.0.0").await;
    assert_eq!(lab.get(2, "/version").await, "", "the other host does not serve yet");
    let first = lab.get(1, "/pid").await;

    // Out: the second host serves, and the balancer sends requests to both; the first was left alone.
    let out = conf(json!({ "action": "out", "where": "slot=b", "members": format!("{a} {b}") }));
    lab.deploy("1.0.0", out).await;
    let second = lab.get(2, "/pid").await;
    assert!(runs(&second));
    assert_eq!(lab.get(1, "/pid").await, first);
    eventually(PATIENCE, "both are asked", async || {
        let seen = [lab.get(0, "/pid").await, lab.get(0, "/pid").await, lab.get(0, "/pid").await];
        (seen.contains(&first) && seen.contains(&second)).then_some(())
    })
    .await;

    // Members that nginx does not take are taken back, and nothing stops.
    let wrong = conf(json!({ "action": "in", "where": "slot=a", "members": "no.such.host.invalid:80" }));
    let bad = lab.request("online", json!({ "version": "1.0.0", "inputs": wrong })).await;
    let reason = stops(&lab, &bad).await;
    assert!(reason.contains("nginx does not accept"), "{reason}");
    assert!(std::fs::read_to_string(lab.shared(0, "members.conf")).expect("conf").contains(&b));
    assert!(runs(&first) && runs(&second));
    lab.w.post(&format!("/deployments/{bad}/abort"), json!({ "reason": "wrong members" })).await;
    lab.w.until(&bad, &["aborted"]).await;

    // In: the first host leaves the balancer and stops; who asks notices nothing.
    let d = lab.deploy("1.0.0", conf(json!({ "action": "in", "where": "slot=a", "members": b }))).await;
    assert!(!runs(&first), "it stopped");
    for _ in 0..4 {
        assert_eq!(lab.get(0, "/pid").await, second);
    }
    let state =
        |id: &str| d["steps"].as_array().expect("steps").iter().find(|s| s["id"] == id).expect("step")["state"].clone();
    assert_eq!(state("start"), "not_taken", "the gateway chose the other branch: {d:#}");
}

impl Lab {
    /// The plan of a deployment that is held back, so that it is planned and nothing more.
    async fn plan_only(&self, inputs: Value) -> String {
        self.release("1.0.0", &[]).await;
        let at = chrono::Utc::now() + chrono::TimeDelta::hours(1);
        let body = json!({ "version": "1.0.0", "inputs": inputs, "not_before": at.to_rfc3339() });
        let id = self.request("online", body).await;
        self.w.until(&id, &["scheduled"]).await;
        self.w.get(&format!("/deployments/{id}/plan")).await.to_string()
    }
}

fn plans(plan: &str, steps: &[&str]) {
    for step in steps {
        assert!(plan.contains(&format!("\"id\":\"{step}\"")), "{step} is planned: {plan}");
    }
}

/// No engine runs where the tests do: the plan, and what Compose itself says of the example's file.
#[tokio::test(flavor = "multi_thread")]
async fn a_compose_project_is_planned_and_its_file_is_good() {
    let lab = Lab::bare("docker-compose", "").await;
    let plan = lab.plan_only(json!({ "port": lab.port, "prune": true })).await;
    plans(&plan, &["prepare", "switch", "up", "check", "state", "prune"]);
    assert!(plan.contains("\"docker compose\""), "{plan}");
    let file = library().join("examples/docker-compose/app/compose.yaml");
    let mut c = Command::new("docker-compose");
    c.args(["-p", "example", "-f"]).arg(file).arg("config");
    let said = run(c.env("HOST", "127.0.0.1").env("PORT", "8080").env("VERSION", "1.0.0"));
    assert!(said.contains("nginx") && said.contains("8080"), "{said}");
}

/// systemd does not run where the tests do: the plan, and that such a host says so instead of half a release.
#[tokio::test(flavor = "multi_thread")]
async fn a_systemd_unit_is_planned_and_a_host_without_systemd_is_told() {
    if Path::new("/run/systemd/system").is_dir() {
        // On a machine with systemd this would write a unit of the machine's own.
        let lab = Lab::bare("systemd-service", "").await;
        plans(&lab.plan_only(json!({})).await, &["unit", "switch", "restart", "check", "forget"]);
        return;
    }
    let lab = Lab::bare("systemd-service", "").await;
    let inputs = json!({ "port": lab.port, "unit": "shop.service" });
    plans(&lab.plan_only(inputs.clone()).await, &["unit", "switch", "restart", "check", "forget"]);
    let id = lab.request("online", json!({ "version": "1.0.0", "inputs": inputs })).await;
    let reason = stops(&lab, &id).await;
    assert!(reason.contains("systemd does not run"), "{reason}");
    assert!(!lab.root(0).join("current").exists(), "nothing was switched");
}
