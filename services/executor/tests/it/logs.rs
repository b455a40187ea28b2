//! Logs from agents: in order, once, durable before they are acknowledged.

use crate::world::{SOON, World};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use windlass_contracts::frames::{LogFrame, MAX_LOGS, Stream};
use windlass_domain::{ids::TaskId, task::ReportedOutcome, work::Outcome::*};
use windlass_store::logs;
use windlass_testkit::{databases, eventually};

fn frame(task: TaskId, seq: u64) -> LogFrame {
    let text = format!("line {seq}\n");
    LogFrame {
        task,
        seq,
        step: 1,
        stream: Stream::Out,
        at: chrono::Utc::now(),
        data: STANDARD.encode(&text),
        crc: crc32c::crc32c(text.as_bytes()),
    }
}

async fn stored(w: &World) -> Vec<logs::StoredChunk> {
    logs::after(&mut w.store.read().await.expect("reads"), w.deployment, 0, None, 10_000).await.expect("logs")
}

#[tokio::test]
async fn repeats_gaps_and_disorder_become_one_whole_log() {
    for db in databases().await {
        let mut w = World::new(db, 2, 2).await;
        w.agent(0).lock().hang = true;
        w.agent(1).lock().hang = true;
        w.start_agents();
        let e = w.executor().await;
        let work = w.wave(2, 0, 0).await;
        for i in 0..2 {
            eventually(SOON, "it runs", async || (!w.agent(i).running().is_empty()).then_some(())).await;
        }
        let a = w.agent(0).clone();
        let task = w.task(work, 0).await;
        for seq in [0, 0, 2, 1, 5, 1, 3] {
            a.log(frame(task, seq)).await;
        }
        // What another agent says about this task, and what was damaged, is nothing.
        w.agent(1).log(frame(task, 4)).await;
        a.log(LogFrame { crc: 7, ..frame(task, 4) }).await;
        let large = LogFrame { data: "A".repeat(60_000), ..frame(task, 5) };
        a.log(LogFrame { seq: 4, ..large.clone() }).await;
        // Several together count all or not at all.
        a.logs(vec![frame(task, 4), large]).await;
        a.logs((4..5 + MAX_LOGS as u64).map(|seq| frame(task, seq)).collect()).await;
        a.logs(vec![]).await;
        eventually(SOON, "what came whole is acknowledged", async || {
            let shapes = "windlass_agent_frames_refused_total{why=\"shape\"} 4\n";
            let refused = e.ctx.health.metrics_text().expect("metrics").contains(shapes);
            (refused && a.lock().log_acks.get(&task) == Some(&3)).then_some(())
        })
        .await;
        assert_eq!(stored(&w).await.len(), 4);
        a.end_running(ReportedOutcome::Succeeded).await;
        w.agent(1).end_running(ReportedOutcome::Succeeded).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded, Succeeded]);
        // The log may trail the result.
        eventually(SOON, "the rest is acknowledged", async || {
            a.logs((4..40).map(|seq| frame(task, seq)).collect()).await;
            (a.lock().log_acks.get(&task) == Some(&39)).then_some(())
        })
        .await;
        let all = stored(&w).await;
        assert_eq!(all.iter().map(|c| c.chunk.seq).collect::<Vec<_>>(), (0..40).collect::<Vec<u64>>());
        assert_eq!(all.iter().map(|c| c.n).collect::<Vec<_>>(), (1..=40).collect::<Vec<u64>>());
        assert_eq!(all[7].chunk.data, b"line 7\n");
        assert!(all.iter().all(|c| c.chunk.step == "second" && c.chunk.host == "h0" && c.chunk.stream == "out"));
        e.shut_down().await;
    }
}

#[tokio::test]
async fn another_executor_takes_the_log_over_when_its_owner_is_gone() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.start_agents();
        let first = w.executor().await;
        let work = w.wave(1, 0, 0).await;
        let task = w.task(work, 0).await;
        let a = w.agent(0).clone();
        assert_eq!(w.outcomes(work, 1).await, [Succeeded]);
        a.log(frame(task, 0)).await;
        eventually(SOON, "acknowledged", async || (a.lock().log_acks.get(&task) == Some(&0)).then_some(())).await;
        first.crash().await;
        let second = w.executor().await;
        eventually(SOON, "acknowledged by the second", async || {
            a.log(frame(task, 1)).await;
            (a.lock().log_acks.get(&task) == Some(&1)).then_some(())
        })
        .await;
        assert_eq!(stored(&w).await.iter().map(|c| c.chunk.seq).collect::<Vec<_>>(), [0, 1]);
        second.shut_down().await;
    }
}
