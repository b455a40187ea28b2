//! Frames nobody should believe.

use crate::world::{SOON, World};
use nkeys::KeyPair;
use windlass_contracts::{
    frames::{self, Hello, Up, UpBody},
    subjects,
};
use windlass_domain::{
    ids::AgentId,
    task::{ReportedOutcome, StepOutcome, StepReport, TaskReport},
    work::Outcome::*,
};
use windlass_store::sessions;
use windlass_testkit::{databases, eventually};

fn result(task: windlass_domain::ids::TaskId, steps: Vec<StepReport>) -> UpBody {
    let report = TaskReport { outcome: ReportedOutcome::Succeeded, steps, log_bytes: 0, log_dropped: 0, log_frames: 0 };
    UpBody::Result { task, report }
}

fn step(index: u32) -> StepReport {
    let at = chrono::Utc::now();
    StepReport {
        outputs: Default::default(),
        index,
        outcome: StepOutcome::Succeeded,
        exit_code: Some(0),
        started_at: at,
        ended_at: at,
        message: String::new(),
        left_processes: 0,
    }
}

async fn send(w: &World, subject: String, agent: AgentId, instance: &str, body: UpBody, key: &KeyPair) {
    let up = Up { agent, instance: instance.into(), body };
    w.client.publish(subject, frames::seal(&up, key).expect("seals").into()).await.expect("publishes");
    w.client.flush().await.expect("flushes");
}

#[tokio::test]
async fn forged_frames_change_nothing_and_the_executor_stays_up() {
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
        let (a, b) = (w.agent(0).clone(), w.agent(1).clone());
        let task = w.task(work, 0).await;
        let (of_a, of_b) = (a.lock().instance.clone(), b.lock().instance.clone());
        let stranger = KeyPair::new_user();
        // Another key; another agent's task, from its own subject; a lie about who speaks; another subject.
        send(&w, subjects::agent_up(a.id), a.id, &of_a, result(task, vec![]), &stranger).await;
        send(&w, subjects::agent_up(b.id), b.id, &of_b, result(task, vec![]), &b.key).await;
        send(&w, subjects::agent_up(b.id), a.id, &of_a, result(task, vec![]), &b.key).await;
        send(&w, subjects::agent_up(a.id), b.id, &of_b, result(task, vec![]), &b.key).await;
        // An unknown agent, another instance, steps that are not there, and bytes.
        let nobody: AgentId = uuid::Uuid::now_v7().into();
        send(&w, subjects::agent_up(nobody), nobody, &of_a, result(task, vec![]), &stranger).await;
        send(&w, subjects::agent_up(a.id), a.id, "other", result(task, vec![]), &a.key).await;
        send(&w, subjects::agent_up(a.id), a.id, &of_a, result(task, vec![step(2)]), &a.key).await;
        send(&w, subjects::agent_up(a.id), a.id, &of_a, result(task, vec![step(0), step(0)]), &a.key).await;
        send(&w, subjects::agent_up(a.id), a.id, &of_a, result(task, (0..5000).map(step).collect()), &a.key).await;
        let mut whole =
            frames::seal(&Up { agent: a.id, instance: of_a, body: result(task, vec![]) }, &a.key).expect("seals");
        *whole.last_mut().expect("bytes") ^= 1;
        for bytes in [vec![], b"WF1".to_vec(), vec![0; 100_000], whole] {
            for subject in
                [subjects::agent_up(a.id), subjects::agent_hello(a.id), subjects::agent_log(a.id), "up.x.msg".into()]
            {
                w.client.publish(subject, bytes.clone().into()).await.expect("publishes");
            }
        }
        w.client.flush().await.expect("flushes");
        // Frames are taken in order: when a later true one has been heard, the forged ones were, too.
        b.end_running(ReportedOutcome::Succeeded).await;
        w.until_state(work, 1, "succeeded").await;
        assert_eq!(w.state(work, 0).await, Some("granted"));
        a.end_running(ReportedOutcome::Succeeded).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded, Succeeded]);
        let metrics = e.ctx.health.metrics_text().expect("metrics");
        for why in ["signature", "other_agent", "unknown", "other_task", "shape", "form"] {
            let line = format!("windlass_agent_frames_refused_total{{why=\"{why}\"}}");
            assert!(metrics.contains(&line), "{line} in\n{metrics}");
        }
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_revoked_agent_is_not_heard_any_more() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.agent(0).lock().hang = true;
        w.start_agents();
        let e = w.impatient_executor().await;
        let work = w.wave(1, 0, 0).await;
        eventually(SOON, "it runs", async || (!w.agent(0).running().is_empty()).then_some(())).await;
        let mut tx = w.store.write().await.expect("tx");
        windlass_store::sql("UPDATE agents SET revoked_at = $2 WHERE id = $1")
            .bind(w.agent(0).id)
            .bind(chrono::Utc::now())
            .execute_one(&mut tx)
            .await
            .expect("revokes");
        tx.commit().await.expect("commits");
        eventually(SOON, "a frame of it is refused", async || {
            let m = e.ctx.health.metrics_text().ok()?;
            m.contains("windlass_agent_frames_refused_total{why=\"unknown\"}").then_some(())
        })
        .await;
        w.agent(0).end_running(ReportedOutcome::Succeeded).await;
        assert_eq!(w.outcomes(work, 1).await, [Unknown], "nobody believed its result, so nobody knows");
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_hello_of_monstrous_size_is_cut_to_measure() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        w.start_agents();
        let e = w.executor().await;
        let a = w.agent(0).clone();
        eventually(SOON, "HELLO", async || (a.lock().hellos_acked > 0).then_some(())).await;
        let hello = Hello {
            boot_id: "b\0".repeat(50_000),
            journal_seq: 10,
            version: "v".repeat(100_000),
            open: vec![],
            facts: serde_json::json!({ "x": "\0", "y": "z".repeat(100_000) }),
            answers: Some("a".repeat(100_000)),
        };
        let instance = a.lock().instance.clone();
        send(&w, subjects::agent_hello(a.id), a.id, &instance, UpBody::Hello(hello), &a.key).await;
        let s = eventually(SOON, "the session is stored", async || {
            let s = sessions::get(&mut w.store.read().await.ok()?, a.id).await.ok()??;
            (s.journal_seq == 10).then_some(s)
        })
        .await;
        assert!(s.boot_id.len() < 500 && s.agent_version.len() < 200 && s.facts.to_string().len() < 20_000);
        // Ten frames later the same journal claims to be behind: a restored disk.
        a.lock().seq = 3;
        eventually(SOON, "the rollback is seen", async || {
            a.hello().await;
            w.agent_events(a.id).await.contains(&"agent.journal_lost".to_owned()).then_some(())
        })
        .await;
        e.shut_down().await;
    }
}
