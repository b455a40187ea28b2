//! Waves whose starts are spread over time.

use crate::world::{SOON, World};
use chrono::TimeDelta;
use windlass_domain::work::{Outcome::*, Stagger, WaveHost, WaveWork, WorkSpec};
use windlass_store::works;
use windlass_testkit::{databases, eventually};

#[tokio::test]
async fn hosts_start_in_their_time_also_under_a_new_owner() {
    for db in databases().await {
        let mut w = World::new(db, 4, 4).await;
        w.start_agents();
        let first = w.executor().await;
        let spec = WaveWork {
            stagger: Some(Stagger { every_s: 1, jitter_s: 1 }),
            again: false,
            outputs: Default::default(),
            step: "roll".into(),
            wave: 0,
            hosts: (0..4).map(|i| WaveHost { host: format!("h{i}"), attempt: 1, start_at: 0 }).collect(),
            parallel: 0,
            max_failures: 0,
        };
        let work = w.insert(WorkSpec::Wave(spec)).await;
        eventually(SOON, "a host is done", async || (w.state(work, 0).await? == "succeeded").then_some(())).await;
        first.crash().await;
        let second = w.executor().await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded; 4]);
        let made =
            works::get(&mut w.store.read().await.expect("reads"), work).await.expect("reads").expect("work").created_at;
        let mut starts = Vec::new();
        for t in w.tasks(work).await {
            let i: i64 = t.task.host[1..].parse().expect("a number");
            let at = t.task.offered_at.expect("offered");
            assert!(at - made >= TimeDelta::seconds(i), "{} started after {}", t.task.host, at - made);
            starts.push(at);
        }
        starts.sort();
        let gaps: Vec<TimeDelta> = starts.windows(2).map(|p| p[1] - p[0]).collect();
        assert!(gaps.iter().all(|g| *g >= TimeDelta::seconds(1)), "{gaps:?}");
        w.assert_single_starts();
        second.shut_down().await;
    }
}
