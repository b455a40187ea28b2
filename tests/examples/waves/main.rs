//! What a deployment in ten waves costs the control plane at 100, 1,000 and 5,000 hosts: processor seconds, rows, bytes and
//! messages a host. The control plane, NATS and the database are real processes; the agents are simulated at the wire by this
//! one. Run by `ops/bench waves`: `waves [sqlite|postgres] [N...]`; by `ops/bench broadcast`: `waves broadcast [sqlite|postgres] [N...]`.
#![expect(clippy::print_stdout, reason = "the figures are what the program is for")]

mod agents;
mod broadcast;
mod plane;

use plane::{Plane, Reading};
use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

pub(crate) type Fail = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

/// Each wave is a tenth; the last part of a wave expression repeats.
const WAVES: &str = "10%";
/// Hosts of one `POST /apply`.
const APPLY: usize = 500;
/// How long the fleet is watched doing nothing, to know what heartbeats alone cost.
const IDLE: Duration = Duration::from_secs(15);
/// PostgreSQL writes its counts of rows down up to ten seconds late.
const COUNTS_LATE: Duration = Duration::from_secs(12);
const MOST: Duration = Duration::from_secs(1800);

fn main() -> Result<(), Fail> {
    let mut kinds = vec![Kind::Sqlite, Kind::Postgres];
    let (mut sizes, mut one_command) = (Vec::new(), false);
    for a in std::env::args().skip(1) {
        match a.as_str() {
            "broadcast" => (one_command, kinds) = (true, vec![Kind::Sqlite]),
            "sqlite" => kinds = vec![Kind::Sqlite],
            "postgres" => kinds = vec![Kind::Postgres],
            n => {
                sizes.push(n.parse::<usize>().map_err(|_| format!("{n} is neither a database nor a number of hosts"))?)
            }
        }
    }
    if sizes.is_empty() {
        sizes = if one_command { vec![10_000] } else { vec![100, 1_000, 5_000] };
    }
    // Ring is the one TLS provider of the build.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        for kind in kinds {
            if one_command {
                println!("{kind:?}");
                for n in &sizes {
                    broadcast::measure(kind, *n).await?;
                }
                continue;
            }
            println!(
                "{kind:?}\n{:>6} {:>7} {:>8} {:>11} {:>9} {:>10} {:>10} {:>9} {:>9}",
                "hosts", "wall s", "CPU s", "CPU ms/host", "idle ms/s", "rows/host", "KiB/host", "up/host", "down/host"
            );
            for n in &sizes {
                measure(kind, *n).await?;
            }
        }
        Ok(())
    })
}

fn catalog(hosts: &[String]) -> String {
    let mut y = String::new();
    for h in hosts {
        y += &format!("---\nkind: host\nname: {h}\naddress: 127.0.0.1\nlabels: {{ fleet: bench }}\n");
    }
    y
}

const FLOW: &str = r#"kind: project
name: bench
group: bench
---
kind: environment
project: bench
name: fleet
selector: fleet=bench
flow: five
---
kind: flow
project: bench
flow: five
on_failure: stop
steps:
  - id: rollout
    waves: "WAVES"
    steps:
      - { id: fetch, uses: artifact.fetch }
      - { id: verify, uses: artifact.verify }
      - { id: switch, uses: release.switch, with: { keep: 2 } }
      - { id: restart, uses: service.restart, with: { command: ["./bin/restart"] } }
      - { id: check, uses: script, with: { run: "./bin/check" } }
"#;

/// One control plane, one fleet, one deployment.
async fn measure(kind: Kind, n: usize) -> Result<(), Fail> {
    let exe = std::env::current_exe()?;
    let bin = exe.ancestors().nth(2).ok_or("the program is in no target directory")?;
    let plane = Plane::start(kind, bin).await?;
    let hosts: Vec<String> = (0..n).map(|i| format!("h{i:05}")).collect();
    plane.apply(FLOW.replace("WAVES", WAVES)).await?;
    for part in hosts.chunks(APPLY) {
        plane.apply(catalog(part)).await?;
    }
    let counts = agents::start(&plane.http, &plane.base, &plane.token, &hosts).await?;
    let until = Instant::now() + MOST;
    while plane.sessions().await? < n as i64 || counts.said_hello.load(Relaxed) < n as u64 {
        too_late(until, "all agents have said HELLO")?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let digest = format!("sha256:{}", "0".repeat(64));
    let artifact =
        serde_json::json!({ "version": "1.0.0", "url": "http://127.0.0.1:9/p.tgz", "digest": digest, "size": 1 });
    plane.post("/projects/bench/artifacts", &artifact).await?;

    let idle = (plane.reading().await?, settled(&plane, IDLE).await?);
    let before = idle.1.clone();
    let messages = (counts.up.load(Relaxed), counts.down.load(Relaxed), counts.bytes.load(Relaxed));
    let asked = serde_json::json!({ "environment": "fleet", "version": "1.0.0" });
    let answer = plane.post("/projects/bench/deployments", &asked).await?;
    let id = answer["new_deployment"].as_str().or(answer["deployment"].as_str()).ok_or("no deployment")?.parse()?;
    let until = Instant::now() + MOST;
    loop {
        match plane.state(id).await?.as_str() {
            "succeeded" => break,
            "failed" | "paused" | "aborted" => {
                let tasks = plane.tasks(id).await?;
                return Err(format!("the deployment of {n} hosts did not succeed:{tasks}").into());
            }
            _ => too_late(until, "the deployment's end")?,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let after = plane.reading().await?;
    let late = match kind {
        Kind::Postgres => settled(&plane, COUNTS_LATE).await?,
        Kind::Sqlite => after.clone(),
    };
    let sent = (counts.up.load(Relaxed) - messages.0, counts.down.load(Relaxed) - messages.1);
    show(n, &idle.0, &before, &after, &late, sent);
    println!("{:>6} frames said again: {}", "", counts.repeated.load(Relaxed));
    Ok(())
}

fn too_late(until: Instant, what: &str) -> Result<(), Fail> {
    if Instant::now() > until { Err(format!("{what}: not within {} s", MOST.as_secs()).into()) } else { Ok(()) }
}

/// A reading after a while of watching.
async fn settled(plane: &Plane, after: Duration) -> Result<Reading, Fail> {
    tokio::time::sleep(after).await;
    plane.reading().await
}

fn total(r: &Reading) -> f64 {
    r.cpu.values().sum()
}

fn show(n: usize, idle: &Reading, before: &Reading, after: &Reading, late: &Reading, sent: (u64, u64)) {
    let hosts = n as f64;
    let idle_s = (before.at - idle.at).as_secs_f64();
    let wall = (after.at - before.at).as_secs_f64();
    let cpu = total(after) - total(before);
    let idle_cpu = (total(before) - total(idle)) / idle_s;
    let grown: i64 = after.rows.iter().map(|(t, n)| n - before.rows.get(t).unwrap_or(&0)).sum();
    let rows = match (late.changed, before.changed, idle.changed) {
        (Some(l), Some(b), Some(i)) => {
            // Heartbeats change rows too, as long as anybody looks.
            let alone = (b - i) as f64 / idle_s * (late.at - before.at).as_secs_f64();
            ((l - b) as f64 - alone) / hosts
        }
        _ => grown as f64 / hosts,
    };
    let alone = (before.written - idle.written) as f64 / idle_s * wall;
    let kib = ((after.written - before.written) as f64 - alone) / 1024.0 / hosts;
    println!(
        "{n:>6} {wall:>7.2} {cpu:>8.2} {:>11.2} {:>9.1} {rows:>10.1} {kib:>10.2} {:>9.1} {:>9.1}",
        (cpu - idle_cpu * wall).max(0.0) * 1000.0 / hosts,
        idle_cpu * 1000.0,
        sent.0 as f64 / hosts,
        sent.1 as f64 / hosts,
    );
    let parts = after.cpu.iter().map(|(part, s)| format!("{part} {:.2}", s - before.cpu.get(part).unwrap_or(&0.0)));
    let tables = after.rows.iter().map(|(t, n)| format!("{t} {}", n - before.rows.get(t).unwrap_or(&0)));
    println!(
        "{:>6} CPU s: {}; rows more: {}",
        "",
        parts.collect::<Vec<_>>().join(", "),
        tables.collect::<Vec<_>>().join(", ")
    );
}
