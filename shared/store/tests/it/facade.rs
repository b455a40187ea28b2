//! Transactions, conflicts, events and leases behave alike on both databases, also with 64 writers at once.

use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::Barrier, task::JoinSet};
use windlass_domain::event::{Aggregate, NewEvent, Severity};
use windlass_store::{Error, Store, events, leases, sql};
use windlass_testkit::databases;

const WRITERS: usize = 64;

async fn heads(store: &Store) -> BTreeMap<String, i64> {
    let mut c = store.read().await.expect("read");
    let rows: Vec<(String, i64)> =
        sql("SELECT aggregate_id, next FROM event_heads").fetch_all(&mut c).await.expect("heads");
    rows.into_iter().collect()
}

async fn set_head(store: &Store, id: &str, from: Option<i64>, to: i64) -> Result<(), Error> {
    let mut tx = store.write().await?;
    match from {
        None => sql("INSERT INTO event_heads (aggregate, aggregate_id, next) VALUES ('t', $1, $2)").bind(id).bind(to),
        Some(from) => sql("UPDATE event_heads SET next = $2 WHERE aggregate = 't' AND aggregate_id = $1 AND next = $3")
            .bind(id)
            .bind(to)
            .bind(from),
    }
    .execute_one(&mut tx)
    .await?;
    tx.commit().await
}

fn event(stream: &str) -> NewEvent {
    NewEvent {
        id: uuid::Uuid::now_v7().into(),
        aggregate: Aggregate::Deployment,
        aggregate_id: stream.into(),
        what: "deployment.paused".into(),
        project: None,
        environment: Some("beta".into()),
        severity: Severity::Notice,
        actor: "person:ann".into(),
        at: "2026-11-21T01:02:03.123456789Z".parse().expect("time"),
        payload: serde_json::json!({ "n": 1.5, "text": "Größe \u{1F680}", "list": [null, true, {}] }),
        trace: None,
    }
}

async fn open(db: &windlass_testkit::Db) -> Store {
    Store::open(db.url()).await.expect("opens")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_committed_never_was() {
    for db in databases().await {
        let store = open(&db).await;
        set_head(&store, "kept", None, 1).await.expect("insert");
        let mut tx = store.write().await.expect("tx");
        sql("UPDATE event_heads SET next = 99").execute(&mut tx).await.expect("update");
        let seen: Option<i64> = sql("SELECT next FROM event_heads").fetch_scalar(&mut tx).await.expect("own");
        assert_eq!(seen, Some(99), "{db}: a transaction sees its own writes");
        assert_eq!(heads(&store).await["kept"], 1, "{db}: others do not");
        drop(tx);
        set_head(&store, "next", None, 5).await.expect("the next turn comes");
        assert_eq!(heads(&store).await, BTreeMap::from([("kept".into(), 1), ("next".into(), 5)]), "{db}");
        // A refused statement takes its whole transaction back when it is dropped.
        let again = set_head(&store, "kept", None, 7).await.expect_err("a duplicate");
        assert!(again.is_unique_violation() && !again.is_retryable(), "{db}: {again:?}");
        assert_eq!(heads(&store).await["kept"], 1, "{db}");
        store.close().await;
        // It is in the file, not in the process.
        let store = open(&db).await;
        assert_eq!(heads(&store).await.len(), 2, "{db}");
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_that_change_one_version_one_wins() {
    for db in databases().await {
        let store = open(&db).await;
        set_head(&store, "row", None, 0).await.expect("insert");
        for round in 0..5_i64 {
            let barrier = std::sync::Arc::new(Barrier::new(WRITERS));
            let mut race = JoinSet::new();
            for _ in 0..WRITERS {
                let (store, barrier) = (store.clone(), barrier.clone());
                race.spawn(async move {
                    barrier.wait().await;
                    set_head(&store, "row", Some(round), round + 1).await
                });
            }
            let (mut won, mut lost) = (0, 0);
            while let Some(r) = race.join_next().await {
                match r.expect("joins") {
                    Ok(()) => won += 1,
                    Err(Error::Conflict) => lost += 1,
                    Err(e) => panic!("{db}: {e:?}"),
                }
            }
            assert_eq!((won, lost), (1, WRITERS - 1), "{db}");
        }
        assert_eq!(heads(&store).await["row"], 5, "{db}");
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_have_no_gap_whoever_gives_up() {
    for db in databases().await {
        let store = open(&db).await;
        let mut heard = store.committed();
        let mut writers = JoinSet::new();
        for w in 0..WRITERS {
            let store = store.clone();
            writers.spawn(async move {
                let mut kept = 0;
                for n in 0..6 {
                    let mut tx = store.write().await.expect("tx");
                    events::append(&mut tx, event(&format!("s{}", (w + n) % 4))).await.expect("append");
                    // Every third changes its mind.
                    if (w + n) % 3 == 0 {
                        drop(tx);
                    } else {
                        tx.commit().await.expect("commit");
                        kept += 1;
                    }
                }
                kept
            });
        }
        let mut count = 0;
        while let Some(kept) = writers.join_next().await {
            count += kept.expect("joins");
        }
        let mut c = store.read().await.expect("read");
        let mut total = 0;
        for s in 0..4 {
            let stream = events::after(&mut c, Aggregate::Deployment, &format!("s{s}"), 0, 1000).await.expect("stream");
            let places: Vec<u64> = stream.iter().map(|e| e.agg_seq).collect();
            assert_eq!(places, (1..=places.len() as u64).collect::<Vec<_>>(), "{db}");
            total += stream.len();
            let (got, sent) = (&stream[0], event("x"));
            assert_eq!(
                (&got.payload, &got.environment, &got.project),
                (&sent.payload, &sent.environment, &None),
                "{db}"
            );
            assert_eq!(got.at.to_rfc3339(), "2026-11-21T01:02:03.123456+00:00", "{db}: cut to microseconds");
        }
        assert_eq!(total, count, "{db}");
        for consumer in [events::BUS, events::NOTIFIER, events::AUDITOR] {
            assert_eq!(events::backlog(&mut c, consumer).await.expect("backlog").0, count as u64, "{db} {consumer}");
        }
        drop(c);
        let mut told = 0;
        while let Ok(group) = heard.try_recv() {
            told += group.len();
        }
        assert_eq!(told, count, "{db}: listeners hear what was committed and nothing else");
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_taken_once() {
    for db in databases().await {
        let store = open(&db).await;
        for _ in 0..20 {
            let mut tx = store.write().await.expect("tx");
            events::append(&mut tx, event("s")).await.expect("append");
            tx.commit().await.expect("commit");
        }
        let mut takers = JoinSet::new();
        for _ in 0..8 {
            let store = store.clone();
            takers.spawn(async move {
                let mut c = store.read().await.expect("read");
                let queued = events::queued(&mut c, events::NOTIFIER, None, 100).await.expect("queued");
                drop(c);
                let mut taken = 0;
                for e in queued {
                    let mut tx = store.write().await.expect("tx");
                    taken += events::done(&mut tx, events::NOTIFIER, &[e.id]).await.expect("done");
                    tx.commit().await.expect("commit");
                }
                taken
            });
        }
        let mut taken = 0;
        while let Some(n) = takers.join_next().await {
            taken += n.expect("joins");
        }
        assert_eq!(taken, 20, "{db}");
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_has_one_holder_and_a_growing_epoch() {
    for db in databases().await {
        let store = open(&db).await;
        let long = Duration::from_secs(60);
        let mut race = JoinSet::new();
        for n in 0..WRITERS {
            let store = store.clone();
            race.spawn(async move { leases::acquire(&store, "l", &format!("o{n}"), long).await.expect("acquire") });
        }
        let mut holders = Vec::new();
        while let Some(r) = race.join_next().await {
            holders.extend(r.expect("joins"));
        }
        assert_eq!(holders.len(), 1, "{db}");
        let first = holders.remove(0);
        let again = leases::acquire(&store, "l", &first.owner, long).await.expect("renews").expect("its own");
        assert_eq!(again, first, "{db}: renewing keeps the epoch");
        leases::release(&store, &first).await.expect("release");
        let second = leases::acquire(&store, "l", "other", long).await.expect("acquire").expect("free");
        assert!(second.epoch > first.epoch, "{db}");
        let mut tx = store.write().await.expect("tx");
        assert!(matches!(leases::check(&mut tx, &first).await, Err(Error::Conflict)), "{db}");
        leases::check(&mut tx, &second).await.expect("the holder may write");
        tx.commit().await.expect("commit");
        store.close().await;
    }
}

#[tokio::test]
async fn what_is_no_database_url_is_refused_with_the_remedy() {
    for bad in ["", "windlass.db", "mysql://u:secret@h/d", "/var/lib/x.db"] {
        let e = Store::open(bad).await.expect_err("refused").to_string();
        assert!(e.contains("sqlite://") && !e.contains("secret"), "{e}");
    }
}
