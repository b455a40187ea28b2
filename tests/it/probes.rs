//! Waves that bake under probes of all four kinds: a request and a question to a real Prometheus from the executor, a check
//! and a command on the hosts themselves; what a bad answer stops, and what no answer leaves to a person.

use crate::lab::{Lab, host};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};
use windlass_testkit::{Db, Supervised, eventually, free_port, workspace};

const PAIR: [(&str, &str); 2] = [("h1", "role=web"), ("h2", "role=web")];

/// What is released, as it looks from outside: `/health` has this status, `/metrics` this many errors.
#[derive(Clone)]
struct Service {
    url: String,
    status: Arc<AtomicU32>,
    errors: Arc<AtomicU32>,
}

fn service() -> Service {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let s = Service { url, status: Arc::new(AtomicU32::new(200)), errors: Arc::new(AtomicU32::new(0)) };
    let told = s.clone();
    std::thread::spawn(move || {
        for mut c in listener.incoming().flatten() {
            let _ = c.set_read_timeout(Some(Duration::from_secs(2)));
            let mut head = Vec::new();
            let mut byte = [0; 1];
            while !head.ends_with(b"\r\n\r\n") && matches!(c.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let metrics = head.starts_with(b"GET /metrics");
            let (status, body) = match metrics {
                true => (200, format!("# TYPE errors gauge\nerrors {}\n", told.errors.load(SeqCst))),
                false => (told.status.load(SeqCst), "{\"ok\": true}".to_owned()),
            };
            let kind = if metrics { "text/plain; version=0.0.4" } else { "application/json" };
            let _ = c.write_all(
                format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                )
                .as_bytes(),
            );
        }
    });
    s
}

fn prometheus_binary() -> PathBuf {
    let ours = workspace().join(".windlass/tools/prometheus/usr/bin/prometheus");
    if ours.is_file() {
        return ours;
    }
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|d| d.join("prometheus"))
        .find(|p| p.is_file())
        .unwrap_or_else(|| panic!("no prometheus: run ./ops/test, which fetches one, or install the Debian package"))
}

/// A real Prometheus that looks at the service every second.
struct Prometheus {
    url: String,
    _process: Supervised,
}

async fn prometheus(lab: &Lab, s: &Service) -> Prometheus {
    let dir = lab.w.dir.path();
    let config = dir.join("prometheus.yml");
    let target = s.url.trim_start_matches("http://");
    let text = format!(
        "global: {{ scrape_interval: 1s }}\nscrape_configs:\n  - job_name: shop\n    static_configs: [{{ targets: [\"{target}\"] }}]\n"
    );
    std::fs::write(&config, text).expect("configuration");
    let port = free_port();
    let args = [
        format!("--config.file={}", config.display()),
        format!("--storage.tsdb.path={}", dir.join("prometheus").display()),
        format!("--web.listen-address=127.0.0.1:{port}"),
        "--query.lookback-delta=5s".into(),
    ];
    let process = Supervised::start(&prometheus_binary(), &args, &dir.join("prometheus.log"));
    Prometheus { url: format!("http://127.0.0.1:{port}"), _process: process }
}

/// What Prometheus says of `errors`.
async fn told(lab: &Lab, p: &Prometheus, wanted: u32) {
    let url = format!("{}/api/v1/query?query=errors", p.url);
    let text = wanted.to_string();
    eventually(Duration::from_secs(30), &format!("Prometheus has seen {wanted} errors"), async || {
        let answer: Value = lab.w.http.get(&url).send().await.ok()?.json().await.ok()?;
        (answer["data"]["result"][0]["value"][1] == text.as_str()).then_some(())
    })
    .await;
}

fn flow(lab: &Lab, s: &Service, p: &Prometheus, inconclusive: &str) -> String {
    let (dir, url, asked) = (lab.dir(), &s.url, &p.url);
    lab.rollout(
        &format!(
            r#"
waves: "1"
bake:
  for: 3s
  every: 1s
  inconclusive: {inconclusive}
  probes:
    - {{ id: front, uses: http.request, with: {{ url: "{url}/health", expect_status: 200, within: 1s }}, success: "value.status == 200 && value.json.ok" }}
    - {{ id: errors, uses: prometheus.query, with: {{ url: "{asked}", query: "sum(errors)" }}, success: "value < 5.0", fail: "value > 10.0" }}
    - {{ id: page, uses: http.check, with: {{ url: "{url}/health", within: 1s }} }}
    - {{ id: well, uses: script, with: {{ run: "test ! -e {dir}/sick-$WINDLASS_HOST" }} }}
"#
        ),
        &["work"],
    )
}

fn probe(d: &Value, wave: usize, name: &str) -> Value {
    let probes =
        d["steps"][0]["waves"][wave]["probe"]["probes"].as_array().unwrap_or_else(|| panic!("no probes: {d:#}"));
    probes.iter().find(|p| p["probe"] == name).unwrap_or_else(|| panic!("no probe {name}: {d:#}")).clone()
}

async fn judged_by_all_four(db: Db) {
    let lab = Lab::start(db, &PAIR).await;
    let s = service();
    let p = prometheus(&lab, &s).await;
    told(&lab, &p, 0).await;
    lab.w.apply(&flow(&lab, &s, &p, "fail")).await;
    let id = lab.released("1.0.0").await;
    let d = lab.get(&id).await;
    for wave in 0..2 {
        for name in ["front", "errors", "page", "well"] {
            let p = probe(&d, wave, name);
            assert_eq!(p["verdict"], "success", "{name}: {p:#}");
            assert!(p["looks"].as_u64() >= Some(2), "it is looked at all the while: {p:#}");
        }
    }
    // Each wave bakes before the next one begins, the last one before the release is called well.
    assert!(lab.began("h2", "work") - lab.began("h1", "work.end") >= 3_000_000_000, "{:#?}", lab.marks());
    let ended: chrono::DateTime<chrono::Utc> = d["ended_at"].as_str().expect("ended").parse().expect("time");
    assert!(ended.timestamp_nanos_opt().expect("in range") - lab.began("h2", "work.end") >= 3_000_000_000);

    // One bad answer of any of them stops the rollout at the wave it was seen on; well again, the wave is looked at again.
    let sick = lab.w.dir.path().join("sick-h1");
    for (n, bad) in ["front", "errors", "well"].into_iter().enumerate() {
        match bad {
            "front" => s.status.store(500, SeqCst),
            "errors" => {
                s.errors.store(50, SeqCst);
                told(&lab, &p, 50).await;
            }
            _ => std::fs::write(&sick, "").expect("file"),
        }
        let id = lab.deploy(if n % 2 == 0 { "1.1.0" } else { "1.2.0" }).await;
        let d = lab.asks(&id, "intervention").await;
        let step = &d["steps"][0]["waves"];
        assert_eq!((&step[0]["state"], &step[1]["state"]), (&json!("failed"), &json!("waiting")), "{bad}: {d:#}");
        assert_eq!(host(&d, "rollout", "h1")["state"], "succeeded", "the host itself did well: {d:#}");
        assert_ne!(probe(&d, 0, bad)["verdict"], "success", "{bad}: {d:#}");
        let (h1, h2) = (lab.times("h1", "work"), lab.times("h2", "work"));
        s.status.store(200, SeqCst);
        s.errors.store(0, SeqCst);
        told(&lab, &p, 0).await;
        let _ = std::fs::remove_file(&sick);
        lab.verb(&id, "retry", json!({})).await;
        let d = lab.w.until(&id, &["succeeded"]).await;
        assert_eq!(d["steps"][0]["waves"][0]["probe"]["attempt"], 2, "{d:#}");
        assert_eq!((lab.times("h1", "work"), lab.times("h2", "work")), (h1, h2 + 1), "looked at again, not done again");
    }
    lab.assert_started_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wave_is_judged_by_probes_of_every_kind_on_sqlite() {
    judged_by_all_four(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wave_is_judged_by_probes_of_every_kind_on_postgres() {
    judged_by_all_four(Db::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_probes_cannot_tell_is_left_to_a_person() {
    let lab = Lab::start(Db::sqlite(), &PAIR).await;
    let s = service();
    let p = prometheus(&lab, &s).await;
    // Neither good enough nor bad enough.
    s.errors.store(7, SeqCst);
    told(&lab, &p, 7).await;
    lab.w.apply(&flow(&lab, &s, &p, "ask")).await;
    let id = lab.deploy("1.0.0").await;
    for wave in 0..2 {
        let d = lab.asks(&id, "confirmation").await;
        let p = probe(&d, wave, "errors");
        assert_eq!(p["verdict"], "inconclusive", "{p:#}");
        assert_eq!(lab.times("h2", "work"), wave, "the next wave waits");
        lab.verb(&id, "confirm", json!({ "wave": wave })).await;
        lab.sees(&id, "it goes on", |d| d["steps"][0]["waves"][wave]["state"] == "succeeded").await;
    }
    lab.w.until(&id, &["succeeded"]).await;
}
