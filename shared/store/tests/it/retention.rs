//! What is only kept for a while goes, a bounded number of rows at a time; everything else stays. And what a restored database
//! says of itself. On both databases.

use chrono::{DateTime, Duration, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;
use windlass_domain::{
    catalog::{Item, Kind},
    ids::{DeploymentId, TaskId},
};
use windlass_store::{Store, Tx, Value, catalog, logs, marks, processes, restored, retention, sql};
use windlass_testkit::databases;

async fn count(tx: &mut Tx, what: &str) -> i64 {
    let n: Option<i64> =
        sql(AssertSqlSafe(format!("SELECT COUNT(*) FROM {what}"))).fetch_scalar(tx).await.expect("counts");
    n.unwrap_or(-1)
}

async fn deployment(tx: &mut Tx, state: &str, updated: DateTime<Utc>) -> Uuid {
    // Made when it was last touched, or a little before.
    let at = u64::try_from(updated.timestamp()).expect("after 1970");
    let id = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, at, 0));
    sql("INSERT INTO deployments (id, project, environment, release_id, state, version, created_at, updated_at, doc)
         VALUES ($1, $2, 'online', $1, $3, 1, $4, $4, $5)")
    .bind(id)
    .bind(format!("p{}", id.simple()))
    .bind(state)
    .bind(updated)
    .bind(Value::json(&serde_json::json!({})))
    .execute_one(tx)
    .await
    .expect("a deployment");
    id
}

async fn task(tx: &mut Tx, deployment: Uuid, segment: i64, state: &str, updated: DateTime<Utc>) {
    sql("INSERT INTO tasks (id, work_id, deployment_id, step, segment, host, attempt, state, version, doc, created_at, updated_at)
         VALUES ($1, $1, $2, 's', $3, 'h', 1, $4, 1, $5, $6, $6)")
    .bind(Uuid::now_v7())
    .bind(deployment)
    .bind(segment)
    .bind(state)
    .bind(Value::json(&serde_json::json!({})))
    .bind(updated)
    .execute_one(tx)
    .await
    .expect("a task");
}

async fn log(tx: &mut Tx, deployment: Uuid, chunks: u64) {
    let task = TaskId(Uuid::now_v7());
    let chunk = |seq| logs::Chunk {
        task,
        seq,
        host: "h".into(),
        step: "s".into(),
        stream: "out".into(),
        at: Utc::now(),
        data: vec![b'x'],
    };
    let all: Vec<_> = (0..chunks).map(chunk).collect();
    logs::append(tx, DeploymentId(deployment), &all).await.expect("a log");
}

#[tokio::test]
async fn logs_and_probe_tasks_of_old_deployments_go_and_nothing_else() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let mut tx = store.write().await.expect("tx");
        let now = tx.now().await.expect("now");
        let (old, before) = (now - Duration::days(100), now - Duration::days(90));
        let ended = deployment(&mut tx, "succeeded", old).await;
        let young = deployment(&mut tx, "failed", now).await;
        let running = deployment(&mut tx, "running", old).await;
        let unknown = deployment(&mut tx, "aborted", old).await;
        for d in [ended, young, running, unknown] {
            log(&mut tx, d, 25).await;
            task(&mut tx, d, 1, "succeeded", old).await;
            task(&mut tx, d, 0, if d == unknown { "unknown" } else { "succeeded" }, old).await;
        }
        let mut removed = Vec::new();
        loop {
            let n = retention::logs(&mut tx, before, now, 10).await.expect("removes");
            if n == 0 {
                break;
            }
            removed.push(n);
        }
        assert_eq!(removed, [10, 10, 5], "{db}: bounded");
        let page = |d| DeploymentId(d);
        let left = logs::after(&mut tx, page(ended), 0, None, 100).await.expect("reads");
        assert_eq!(left.len(), 1, "{db}");
        assert!(
            left[0].n == 26 && String::from_utf8_lossy(&left[0].chunk.data).contains("removed"),
            "{db}: a reader is told"
        );
        for d in [young, running, unknown] {
            assert_eq!(logs::after(&mut tx, page(d), 0, None, 100).await.expect("reads").len(), 25, "{db}");
        }
        assert_eq!(retention::probe_tasks(&mut tx, before, 1).await.expect("removes"), 1, "{db}");
        assert_eq!(retention::probe_tasks(&mut tx, before, 10).await.expect("removes"), 1, "{db}");
        assert_eq!(retention::probe_tasks(&mut tx, before, 10).await.expect("removes"), 0, "{db}");
        assert_eq!(count(&mut tx, "tasks").await, 6, "{db}");
        assert_eq!(count(&mut tx, "deployments").await, 4, "{db}");
        tx.commit().await.expect("commits");
        store.close().await;
    }
}

#[tokio::test]
async fn messages_callbacks_and_sessions_of_revoked_agents_go_when_they_are_old() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let mut tx = store.write().await.expect("tx");
        let now = tx.now().await.expect("now");
        let (old, before) = (now - Duration::days(100), now - Duration::days(90));
        for (n, (state, at)) in [("sent", old), ("dead", old), ("pending", old), ("sent", now)].into_iter().enumerate()
        {
            sql("INSERT INTO notifications (id, event_id, channel, state, attempts, next_at, message, created_at, updated_at)
                 VALUES ($1, $1, $2, $3, 1, $4, $5, $4, $4)")
            .bind(Uuid::now_v7())
            .bind(format!("c{n}"))
            .bind(state)
            .bind(at)
            .bind(Value::json(&serde_json::json!({})))
            .execute_one(&mut tx)
            .await
            .expect("a notification");
        }
        for (key, revoked) in [("a", Some(old)), ("b", Some(now)), ("c", None)] {
            let id = Uuid::now_v7();
            sql("INSERT INTO agents (id, host, public_key, enrolled_at, revoked_at) VALUES ($1, $2, $2, $3, $4)")
                .bind(id)
                .bind(key)
                .bind(old)
                .bind(revoked)
                .execute_one(&mut tx)
                .await
                .expect("an agent");
            sql("INSERT INTO agent_sessions (agent_id, host, instance, boot_id, journal_seq, agent_version, last_seen_at, facts)
                 VALUES ($1, $2, 'i', 'b', 1, '1', $3, $4)")
            .bind(id)
            .bind(key)
            .bind(old)
            .bind(Value::json(&serde_json::json!({})))
            .execute_one(&mut tx)
            .await
            .expect("a session");
        }
        for (token, at) in [(1u8, old), (2, now)] {
            sql("INSERT INTO plugin_callbacks (token, work_id, body, received_at) VALUES ($1, $2, $3, $4)")
                .bind(vec![token].as_slice())
                .bind(Uuid::now_v7())
                .bind(Value::json(&serde_json::json!({})))
                .bind(at)
                .execute_one(&mut tx)
                .await
                .expect("a callback");
        }
        assert_eq!(retention::notifications(&mut tx, before, 10).await.expect("removes"), 2, "{db}");
        assert_eq!(count(&mut tx, "notifications WHERE state = 'pending'").await, 1, "{db}: what waits is kept");
        assert_eq!(retention::sessions(&mut tx, before, 10).await.expect("removes"), 1, "{db}");
        assert_eq!(count(&mut tx, "agents").await, 3, "{db}: ids are never reused");
        assert_eq!(retention::callbacks(&mut tx, before, 10).await.expect("removes"), 1, "{db}");
        tx.commit().await.expect("commits");
        store.close().await;
    }
}

#[tokio::test]
async fn processes_say_that_they_are_there_and_are_forgotten() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let mut tx = store.write().await.expect("tx");
        let now = tx.now().await.expect("now");
        let process = |owner: &str, seen_at| processes::Process {
            owner: owner.into(),
            services: "api".into(),
            version: "1".into(),
            migration: 11,
            machine: "m".into(),
            started_at: now,
            seen_at,
            skew_ms: -3,
            disk_free: 1 << 40,
        };
        processes::beat(&mut tx, &process("old", now - Duration::hours(23))).await.expect("beats");
        processes::beat(&mut tx, &process("a", now - Duration::seconds(40))).await.expect("beats");
        processes::beat(&mut tx, &process("a", now)).await.expect("beats");
        let since = now - Duration::seconds(30);
        assert_eq!(processes::alive(&mut tx, since).await.expect("reads"), [process("a", now)], "{db}");
        processes::beat(&mut tx, &process("b", now + Duration::hours(2))).await.expect("beats");
        assert_eq!(count(&mut tx, "processes").await, 2, "{db}: one that was silent for a day is forgotten");
        processes::gone(&mut tx, "a").await.expect("goes");
        assert_eq!(count(&mut tx, "processes").await, 1, "{db}");
        tx.commit().await.expect("commits");
        store.close().await;
    }
}

#[tokio::test]
async fn a_restored_database_lets_nothing_go_on_by_itself() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let mut tx = store.write().await.expect("tx");
        let now = tx.now().await.expect("now");
        let doc =
            serde_json::json!({ "kind": "environment", "project": "shop", "name": "online", "hosts": [], "flow": "f" });
        let item: Item = serde_json::from_value(doc).expect("an environment");
        assert_eq!(item.kind(), Kind::Environment);
        catalog::save(&mut tx, &item, 0, false, "ann", now).await.expect("saves");
        let running = deployment(&mut tx, "running", now).await;
        deployment(&mut tx, "succeeded", now).await;
        sql("INSERT INTO locks (project, environment, deployment_id, fence, taken_at) VALUES ('shop', 'online', NULL, 7, NULL)")
            .execute_one(&mut tx)
            .await
            .expect("a lock");
        sql("INSERT INTO work_claims (work_id, deployment_id, pool, owner, epoch, expires_at, phase, result_version, updated_at)
             VALUES ($1, $1, 'default', NULL, 0, NULL, 'ready', 0, $2)")
        .bind(running)
        .bind(now)
        .execute_one(&mut tx)
        .await
        .expect("a claim");
        let done = restored::mark(&mut tx, "of yesterday", 12).await.expect("marks");
        assert_eq!((done.paused, done.held), (1, 1), "{db}");
        assert_eq!(count(&mut tx, "command_queue").await, 1, "{db}");
        let verb: Option<String> = sql("SELECT verb FROM commands").fetch_scalar(&mut tx).await.expect("reads");
        assert_eq!(verb.as_deref(), Some("pause"), "{db}");
        assert!(marks::held(&mut tx, "shop", "online").await.expect("reads").is_some(), "{db}");
        assert_eq!(count(&mut tx, "locks WHERE fence > 1000000").await, 1, "{db}: newer than what any host has seen");
        assert_eq!(
            count(&mut tx, "events WHERE type = 'audit.restored' AND severity = 'alert'").await,
            1,
            "{db}: a person is told"
        );
        let pools = ["default".to_owned()];
        let claimed =
            windlass_store::works::claim(&mut tx, &pools, "x", std::time::Duration::from_secs(15), 10, &[]).await;
        assert!(claimed.expect("asks").is_empty(), "{db}: nobody takes the work before its release is paused");
        assert_eq!(restored::mark(&mut tx, "again", 0).await.expect("marks").held, 0, "{db}");
        tx.commit().await.expect("commits");
        store.close().await;
    }
}
