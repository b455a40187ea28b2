//! Thousands of agents connected at once: what they cost while nothing happens, and how long one command takes to reach all.

use crate::{Fail, Kind, agents, catalog, plane::Plane, too_late};
use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

/// Hosts of one `POST /apply`.
const APPLY: usize = 500;
/// How long the fleet is watched doing nothing.
const IDLE: Duration = Duration::from_secs(20);
const MOST: Duration = Duration::from_secs(1200);
/// Figures of `performance.md` of the project's targets.
const MEMORY_MIB: f64 = 1536.0;

const FLOW: &str = r#"kind: project
name: bench
group: bench
---
kind: environment
project: bench
name: fleet
selector: fleet=bench
flow: one
---
kind: flow
project: bench
flow: one
on_failure: stop
steps:
  - id: rollout
    waves: "100%"
    steps:
      - { id: only, uses: script, with: { run: "true" } }
"#;

pub(crate) async fn measure(kind: Kind, n: usize) -> Result<(), Fail> {
    let exe = std::env::current_exe()?;
    let bin = exe.ancestors().nth(2).ok_or("the program is in no target directory")?;
    let plane = Plane::start(kind, bin).await?;
    let empty = plane.memory();
    let hosts: Vec<String> = (0..n).map(|i| format!("h{i:05}")).collect();
    plane.apply(FLOW.to_owned()).await?;
    for part in hosts.chunks(APPLY) {
        plane.apply(catalog(part)).await?;
    }
    let began = Instant::now();
    let counts = agents::start(&plane.http, &plane.base, &plane.token, &hosts).await?;
    let until = Instant::now() + MOST;
    while plane.sessions().await? < n as i64 || counts.said_hello.load(Relaxed) < n as u64 {
        too_late(until, "all agents have said HELLO")?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("  {n} agents enrolled and connected in {:.0} s", began.elapsed().as_secs_f64());
    let (before, beats) = (plane.reading().await?, counts.beats.load(Relaxed));
    tokio::time::sleep(IDLE).await;
    let after = plane.reading().await?;
    let idle_s = (after.at - before.at).as_secs_f64();
    let used: Vec<String> = (after.cpu.iter())
        .map(|(part, s)| format!("{part} {:.2}", (s - before.cpu.get(part).unwrap_or(&0.0)) / idle_s))
        .collect();
    let idle: f64 = (after.cpu.values().sum::<f64>() - before.cpu.values().sum::<f64>()) / idle_s;
    println!(
        "  cores in use while idle: {idle:.2} ({}), {:.0} heartbeats a second",
        used.join(", "),
        (counts.beats.load(Relaxed) - beats) as f64 / idle_s
    );
    let resting = plane.memory();

    let digest = format!("sha256:{}", "0".repeat(64));
    let artifact =
        serde_json::json!({ "version": "1.0.0", "url": "http://127.0.0.1:9/p.tgz", "digest": digest, "size": 1 });
    plane.post("/projects/bench/artifacts", &artifact).await?;
    counts.restart_clock();
    let said = Instant::now();
    let asked = serde_json::json!({ "environment": "fleet", "version": "1.0.0" });
    let answer = plane.post("/projects/bench/deployments", &asked).await?;
    let answered = said.elapsed();
    let id = answer["new_deployment"].as_str().ok_or("no deployment")?.parse()?;
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
    let ended = said.elapsed();
    let used = plane.reading().await?.cpu.values().sum::<f64>() - after.cpu.values().sum::<f64>();
    let peak = plane.memory();
    let starts = counts.starts();
    let at = |part: f64| {
        let i = ((starts.len() as f64 * part).ceil() as usize).clamp(1, starts.len().max(1)) - 1;
        starts.get(i).map_or(f64::NAN, Duration::as_secs_f64)
    };
    println!(
        "  one command to all: answered after {:.2} s; started on the first host after {:.2} s, on half of them after {:.2} s, \
         on the last of {} after {:.2} s; ended after {:.2} s; {:.1} ms of CPU a host; frames said again: {}",
        answered.as_secs_f64(),
        at(0.0),
        at(0.5),
        starts.len(),
        at(1.0),
        ended.as_secs_f64(),
        used * 1000.0 / n as f64,
        counts.repeated.load(Relaxed)
    );
    println!(
        "  memory MiB, control plane and broker: {:.0} + {:.0} without agents, {:.0} + {:.0} at rest, {:.0} + {:.0} at most",
        empty.now.0, empty.now.1, resting.now.0, resting.now.1, peak.most.0, peak.most.1
    );
    let worst = peak.most.0 + peak.most.1;
    let holds = if worst <= MEMORY_MIB { "holds" } else { "MISSED" };
    println!("  memory with {n} agents, at most: {worst:.0} MiB (target <= {MEMORY_MIB:.0}: {holds})");
    if starts.len() != n {
        return Err(format!("{} of {n} hosts started", starts.len()).into());
    }
    if worst > MEMORY_MIB {
        return Err(format!("{worst:.0} MiB are more than {MEMORY_MIB:.0}").into());
    }
    Ok(())
}
