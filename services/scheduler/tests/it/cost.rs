//! What the scheduler writes for one deployment: linear in its hosts, whatever the waves.

use crate::{
    ordered::{environment, request},
    world::World,
};
use windlass_domain::{
    catalog::{Environment, Host, HostGroup, Item},
    deployment::State,
    flow,
    release::ReleaseKind,
};
use windlass_store::sql;
use windlass_testkit::Db;

const FLOW: &str = "
flow: tens
steps:
  - { id: all, waves: '10%', steps: [ { id: s, uses: release.switch } ] }
rollback:
  normal: [ { id: s, uses: release.switch, with: { to: last_known_good } } ]
";

/// Rows and bytes of documents that were inserted and updated.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Written {
    rows: i64,
    bytes: i64,
}

/// The triggers that count what is inserted into a table and updated in it.
macro_rules! counted {
    ($($table:literal, $what:literal);*) => {[$(
        concat!("CREATE TRIGGER counted_", $table, "_1 AFTER INSERT ON ", $table, " BEGIN
                   INSERT INTO written VALUES ('", $table, "', length(", $what, ")); END"),
        concat!("CREATE TRIGGER counted_", $table, "_2 AFTER UPDATE ON ", $table, " BEGIN
                   INSERT INTO written VALUES ('", $table, "', length(", $what, ")); END"),
    )*]};
}

impl World {
    /// Counts in the database itself, by triggers on every table the scheduler writes.
    async fn count_writes(&self) {
        let mut tx = self.store().write().await.expect("tx");
        sql("CREATE TABLE written (t TEXT NOT NULL, bytes INTEGER NOT NULL) STRICT")
            .execute(&mut tx)
            .await
            .expect("table");
        for trigger in counted! {
            "deployments", "NEW.doc"; "plans", "NEW.doc"; "releases", "NEW.doc"; "works", "NEW.spec";
            "work_claims", "COALESCE(NEW.result, '')"; "events", "NEW.payload"; "event_queue", "NEW.consumer";
            "command_outcomes", "NEW.detail"; "environment_state", "NEW.doc"; "locks", "NEW.environment"
        } {
            sql(trigger).execute(&mut tx).await.expect("trigger");
        }
        tx.commit().await.expect("commit");
    }

    async fn written(&self) -> Vec<(String, i64, i64)> {
        let mut tx = self.store().read().await.expect("read");
        sql("SELECT t, COUNT(*), SUM(bytes) FROM written GROUP BY t ORDER BY t")
            .fetch_all(&mut tx)
            .await
            .expect("reads")
    }
}

/// What one deployment of ten waves over so many hosts writes, from request to success.
async fn cost(hosts: usize) -> Written {
    let w = World::start(Db::sqlite(), &["h1"], 0).await;
    let flow = flow::parse(FLOW).unwrap_or_else(|e| panic!("{e:#?}"));
    let names: Vec<String> = (0..hosts).map(|n| format!("host-{n:05}")).collect();
    let mut tx = w.store().write().await.expect("tx");
    for h in &names {
        let item = Item::Host(Host { name: h.clone(), address: "127.0.0.1".into(), ..Host::default() });
        windlass_store::catalog::save(&mut tx, &item, 0, false, "test", chrono::Utc::now()).await.expect("saved");
    }
    tx.commit().await.expect("commit");
    w.save(Item::Flow { project: "shop".into(), flow, source: String::new() }).await;
    w.save(Item::HostGroup(HostGroup { name: "all".into(), title: String::new(), hosts: names })).await;
    let e = Environment {
        flow: "tens".into(),
        hosts: vec![],
        groups: vec!["all".into()],
        ..environment("shop", "gray", "h1")
    };
    w.save(Item::Environment(e)).await;
    w.count_writes().await;
    let one = w.built("shop", "1.0.0").await;
    let (id, o) = w.ask_for("shop", request("gray", one, ReleaseKind::Normal, "")).await;
    assert!(o.accepted, "{o:?}");
    let mut waves = 0;
    let mut done = 0;
    while done < hosts {
        done += w.settle(id, &[]).await.len();
        waves += 1;
    }
    w.until(id, State::Succeeded).await;
    assert_eq!(waves, 10);
    let all = w.written().await;
    for (table, rows, bytes) in &all {
        eprintln!(
            "{hosts} hosts, {table}: {rows} rows, {bytes} bytes, {:.0} bytes a host",
            *bytes as f64 / hosts as f64
        );
    }
    let sum = Written { rows: all.iter().map(|t| t.1).sum(), bytes: all.iter().map(|t| t.2).sum() };
    eprintln!("{hosts} hosts: {sum:?}, {:.0} bytes a host", sum.bytes as f64 / hosts as f64);
    // From the click to works that executors may claim: one decision, no second look.
    let two = w.built("shop", "2.0.0").await;
    let (bad, o) = w.ask_for("shop", request("gray", two, ReleaseKind::Normal, "")).await;
    assert!(o.accepted, "{o:?}");
    while w.until_any(bad).await != State::Succeeded {
        w.settle(bad, &[]).await;
    }
    let clicked = std::time::Instant::now();
    let (back, o) = w.back(bad, |_| ()).await;
    eprintln!("{hosts} hosts: a rollback has its first work {:?} after the click", clicked.elapsed());
    assert!(o.accepted, "{o:?}");
    assert_eq!((w.until_any(back).await, w.works(back).await), (State::Running, 1));
    w.stop().await;
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_scheduler_writes_grows_with_the_hosts_and_no_faster() {
    let (small, large) = (cost(100).await, cost(1000).await);
    assert_eq!(small.rows, large.rows, "rows are a matter of waves, not of hosts");
    assert!(large.bytes <= 11 * small.bytes, "{small:?}, {large:?}");
}
