//! Probes of a wave: what executors ask, what hosts are asked, and how it ends.

use crate::{
    central::{http, server},
    world::{SOON, World, step},
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use windlass_domain::{
    flow::Inconclusive,
    ids::WorkId,
    plan::{Judge, PlanProbe, PlanProbes, segment},
    task::TaskStep,
    work::{Outcome::*, ProbeResult, ProbeWork, Verdict, WorkResult, WorkSpec},
};
use windlass_testkit::{databases, eventually};

fn probes(central: Vec<PlanProbe>, on_hosts: Vec<TaskStep>, judge: &[(&str, Judge)]) -> PlanProbes {
    let judge: BTreeMap<String, Judge> = judge.iter().map(|(id, j)| ((*id).to_owned(), j.clone())).collect();
    PlanProbes { every_s: 1, inconclusive: Inconclusive::Ask, central, on_hosts, judge }
}

fn judge(success: Option<&str>, fail: Option<&str>, failures: u32) -> Judge {
    Judge { success: success.map(Into::into), fail: fail.map(Into::into), failures }
}

fn asked(id: &str, action: &str, with: serde_json::Value) -> PlanProbe {
    let with = with.as_object().expect("object").clone();
    PlanProbe { id: id.into(), action: action.into(), with, timeout_s: 5 }
}

/// Looks for so long.
async fn bake(w: &World, hosts: &[&str], seconds: f64) -> WorkId {
    let until = chrono::Utc::now() + chrono::TimeDelta::milliseconds((seconds * 1000.0) as i64);
    w.insert(WorkSpec::Probe(ProbeWork {
        step: "roll".into(),
        wave: 0,
        attempt: 1,
        hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
        until,
        outputs: Default::default(),
    }))
    .await
}

async fn verdict(w: &World, work: WorkId) -> (Verdict, Vec<ProbeResult>, String) {
    match w.result(work, 1).await {
        WorkResult::Probe { verdict, probes, reason } => (verdict, probes, reason.unwrap_or_default()),
        other => panic!("not of probes: {other:?}"),
    }
}

fn sample(n: f64) -> String {
    let data = serde_json::json!({ "resultType": "vector", "result": [{ "metric": {}, "value": [1, n.to_string()] }] });
    serde_json::json!({ "status": "success", "data": data }).to_string()
}

#[tokio::test]
async fn looks_go_on_until_the_end_and_then_all_is_well() {
    for db in databases().await {
        let (prometheus, queries) = server(|_| http(200, &sample(0.01))).await;
        let (web, _) = server(|_| http(404, "{\"up\":true}")).await;
        let rate =
            asked("rate", "prometheus.query", serde_json::json!({ "url": prometheus, "query": "rate(errors[1m])" }));
        let page = asked("page", "http.request", serde_json::json!({ "url": web, "expect_status": 200 }));
        let judges = [
            ("rate", judge(Some("value < 0.05"), Some("value >= 0.5"), 1)),
            ("page", judge(Some("value.status == 404 && value.json.up"), None, 1)),
        ];
        let mut check = step("check", "true");
        check.always = true;
        let mut w = World::rolling(db, 3, |r| r.probes = Some(probes(vec![rate, page], vec![check], &judges))).await;
        w.start_agents();
        let e = w.executor().await;
        let started = Instant::now();
        let work = bake(&w, &["h0", "h2"], 2.5).await;
        let (said, probes, reason) = verdict(&w, work).await;
        assert_eq!(said, Verdict::Success, "{reason}");
        assert!(started.elapsed() >= Duration::from_millis(2400), "it baked to the end");
        assert_eq!(probes.iter().map(|p| p.probe.as_str()).collect::<Vec<_>>(), ["rate", "page", "check"]);
        assert!(probes.iter().all(|p| p.looks >= 2 && p.verdict == Verdict::Success), "{probes:?}");
        assert_eq!(probes[0].value, serde_json::json!(0.01));
        assert_eq!(probes[2].value, serde_json::json!({ "ok": 2, "failed": 0, "total": 2 }));
        assert!(queries.lock().expect("no poison")[0].starts_with("GET /api/v1/query?query=rate%28errors%5B1m%5D%29 "));
        let tasks = w.tasks(work).await;
        assert!(tasks.iter().all(|t| t.segment == segment::PROBES && t.task.host != "h1"), "{tasks:?}");
        assert_eq!(tasks.len() as u32, 2 * probes[2].looks, "a new attempt at every look");
        w.assert_single_starts();
        let told = w.events().await.into_iter().filter(|e| e.what.starts_with("task.")).count();
        assert_eq!(told, 0, "what went well on hosts is told by the work alone");
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_probe_that_fails_in_a_row_ends_the_bake_at_once() {
    for db in databases().await {
        let (prometheus, queries) = server(|n| http(200, &sample(if n == 2 { 0.0 } else { 0.9 }))).await;
        let rate = asked("rate", "prometheus.query", serde_json::json!({ "url": prometheus, "query": "e" }));
        let judges = [("rate", judge(Some("value < 0.05"), None, 2))];
        let w = World::rolling(db, 1, |r| r.probes = Some(probes(vec![rate], vec![], &judges))).await;
        let e = w.executor().await;
        let started = Instant::now();
        let work = bake(&w, &["h0"], 60.0).await;
        let (said, probes, reason) = verdict(&w, work).await;
        assert_eq!((said, probes[0].looks), (Verdict::Fail, 4), "bad, good, bad, bad: {reason}");
        assert!(reason.contains("rate") && reason.contains("value < 0.05"), "{reason}");
        assert!(started.elapsed() < Duration::from_secs(30));
        assert_eq!(queries.lock().expect("no poison").len(), 4);
        e.shut_down().await;
    }
}

#[tokio::test]
async fn what_fails_on_a_host_fails_the_wave_and_what_cannot_be_asked_is_inconclusive() {
    for db in databases().await {
        let (none, _) =
            server(|_| http(200, r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#)).await;
        let rate = asked("rate", "prometheus.query", serde_json::json!({ "url": none, "query": "e" }));
        let judges =
            [("rate", judge(Some("value < 0.05"), None, 1)), ("check", judge(None, Some("value.failed > 1"), 1))];
        let check = step("check", "true");
        let mut w = World::rolling(db, 2, |r| r.probes = Some(probes(vec![rate], vec![check], &judges))).await;
        w.agent(0).lock().fail = true;
        w.start_agents();
        let e = w.executor().await;
        let work = bake(&w, &["h0", "h1"], 1.0).await;
        let (said, probes, reason) = verdict(&w, work).await;
        assert_eq!(said, Verdict::Inconclusive);
        assert!(reason.contains("rate") && reason.contains("0 samples"), "{reason}");
        assert_eq!(probes[1].verdict, Verdict::Success, "one may fail");
        w.agent(1).lock().fail = true;
        let work = bake(&w, &["h0", "h1"], 60.0).await;
        let (said, _, reason) = verdict(&w, work).await;
        assert_eq!(said, Verdict::Fail, "{reason}");
        assert!(reason.contains("check"), "{reason}");
        e.shut_down().await;
    }
}

#[tokio::test]
async fn an_abort_ends_the_bake_and_what_runs_on_hosts_first() {
    for db in databases().await {
        let check = step("check", "sleep 60");
        let mut w = World::rolling(db, 2, |r| r.probes = Some(probes(vec![], vec![check], &[]))).await;
        w.agents.values().for_each(|a| a.lock().hang = true);
        w.start_agents();
        let e = w.executor().await;
        let work = bake(&w, &["h0", "h1"], 3600.0).await;
        for i in 0..2 {
            eventually(SOON, "the probe runs", async || (!w.agent(i).running().is_empty()).then_some(())).await;
        }
        w.abort().await;
        let (said, _, reason) = verdict(&w, work).await;
        assert_eq!(said, Verdict::Inconclusive);
        assert!(reason.contains("aborted"), "{reason}");
        assert!((0..2).all(|i| w.agent(i).running().is_empty()), "nothing runs after it");
        assert!(w.tasks(work).await.iter().all(|t| t.task.state.is_final()));
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_new_owner_goes_on_looking_and_takes_up_what_runs() {
    for db in databases().await {
        let check = step("check", "true");
        let mut w = World::rolling(db, 1, |r| r.probes = Some(probes(vec![], vec![check], &[]))).await;
        w.agent(0).lock().hang = true;
        w.start_agents();
        let first = w.executor().await;
        let work = bake(&w, &["h0"], 6.0).await;
        eventually(SOON, "the probe runs", async || (!w.agent(0).running().is_empty()).then_some(())).await;
        first.crash().await;
        let second = w.executor().await;
        w.until_owned(work, &second).await;
        {
            let state = w.agent(0).lock();
            assert_eq!(state.starts.len(), 1, "the one that runs is waited for, none is begun beside it");
        }
        w.agent(0).lock().hang = false;
        w.agent(0).end_running(windlass_domain::task::ReportedOutcome::Succeeded).await;
        let (said, probes, reason) = verdict(&w, work).await;
        assert_eq!(said, Verdict::Success, "{reason}");
        assert!(probes[0].looks >= 1);
        let attempts: Vec<u32> = w.tasks(work).await.iter().map(|t| t.task.attempt).collect();
        assert_eq!(attempts, (1..=attempts.len() as u32).collect::<Vec<_>>());
        w.assert_single_starts();
        // The wave that was looked at has its own tasks, and a probe is none of them.
        let wave = w.wave(1, 0, 0).await;
        assert_eq!(w.outcomes(wave, 1).await, [Succeeded]);
        second.shut_down().await;
    }
}

/// A look writes to the database and so does the renewal of the claim beside it: neither may wait for the other for good.
#[tokio::test]
async fn a_claim_is_renewed_in_the_middle_of_what_a_look_writes() {
    for db in databases().await {
        let check = step("check", "true");
        let mut w = World::rolling(db, 2, |r| r.probes = Some(probes(vec![], vec![check], &[]))).await;
        w.start_agents();
        let e = w.executor_with(|s| s.executor.lease_s = Duration::from_millis(240).into()).await;
        let work = bake(&w, &["h0", "h1"], 8.0).await;
        let (said, probes, reason) = verdict(&w, work).await;
        assert_eq!(said, Verdict::Success, "{reason}");
        assert!(probes[0].looks >= 3);
        w.assert_single_starts();
        e.shut_down().await;
    }
}
