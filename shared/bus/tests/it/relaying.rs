//! The relay: exactly what was committed reaches the stream, through outages of the broker, on both databases.

use crate::support::{SOON, context, end};
use std::collections::BTreeMap;
use windlass_bus::{Context, relay};
use windlass_contracts::{envelope::CloudEvent, subjects};
use windlass_domain::{
    event::{Aggregate, NewEvent, Severity},
    ids::EventId,
};
use windlass_store::{Store, events};
use windlass_testkit::{databases, eventually, nats};

fn event(n: u32, age_s: i64) -> NewEvent {
    NewEvent {
        id: EventId(uuid::Uuid::now_v7()),
        aggregate: Aggregate::Deployment,
        aggregate_id: "shop/beta".into(),
        what: "task.settled".into(),
        project: Some("shop".into()),
        environment: None,
        severity: Severity::Info,
        actor: "service:test".into(),
        at: chrono::Utc::now() - chrono::Duration::seconds(age_s),
        payload: serde_json::json!({ "n": n }),
        trace: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
    }
}

async fn commit(store: &Store, count: u32, age_s: i64) -> Vec<EventId> {
    let mut ids = vec![];
    for n in 0..count {
        let mut tx = store.write().await.expect("begins");
        ids.push(events::append(&mut tx, event(n, age_s)).await.expect("appends").id);
        tx.commit().await.expect("commits");
    }
    ids
}

/// How often each event is in the stream.
async fn published(ctx: &Context) -> BTreeMap<EventId, u32> {
    let mut found = BTreeMap::new();
    let Ok(stream) = ctx.bus.jetstream().get_stream(subjects::STREAM_EVENTS).await else { return found };
    for n in 1..=stream.cached_info().state.last_sequence {
        let m = stream.get_raw_message(n).await.expect("message");
        assert_eq!(m.subject.as_str(), "windlass.evt.deployment.shop_beta.task_settled");
        assert!(m.headers.get("traceparent").is_some());
        let e: CloudEvent = serde_json::from_slice(&m.payload).expect("a CloudEvent");
        assert_eq!(e.kind, "io.windlass.task.settled.v1");
        assert_eq!(m.headers.get("Nats-Msg-Id").expect("id").as_str(), e.id);
        *found.entry(e.id.parse().expect("id")).or_default() += 1;
    }
    found
}

async fn all_arrive(ctx: &Context, committed: &[EventId], what: &str) {
    ctx.bus.up().await;
    let expected: BTreeMap<EventId, u32> = committed.iter().map(|id| (*id, 1)).collect();
    eventually(SOON, what, async || (published(ctx).await == expected).then_some(())).await;
    eventually(SOON, "the queue is empty", async || {
        let mut c = ctx.store.read().await.ok()?;
        (events::backlog(&mut c, events::BUS).await.ok()?.0 == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_relay_publishes_exactly_what_was_committed() {
    for db in databases().await {
        let mut nats = nats().await;
        let (ctx, _dir) = context(db.url(), &nats.url()).await;
        // Left over from a process that died.
        let mut committed = commit(&ctx.store, 3, 60).await;
        ctx.spawn(relay(ctx.clone()));
        all_arrive(&ctx, &committed, "left-overs").await;

        // Fresh ones, and one that is taken back.
        committed.extend(commit(&ctx.store, 20, 0).await);
        let mut tx = ctx.store.write().await.expect("begins");
        events::append(&mut tx, event(99, 0)).await.expect("appends");
        drop(tx);
        all_arrive(&ctx, &committed, "fresh events").await;

        // Another process's, which this one only finds in the table.
        let other = Store::open(db.url()).await.expect("opens");
        committed.extend(commit(&other, 5, 60).await);
        all_arrive(&ctx, &committed, "events of another process").await;

        // The broker is away while things happen.
        nats.kill();
        committed.extend(commit(&ctx.store, 30, 0).await);
        eventually(SOON, "the loss is noticed", async || (!ctx.bus.is_up()).then_some(())).await;
        committed.extend(commit(&ctx.store, 10, 0).await);
        nats.restart().await;
        all_arrive(&ctx, &committed, "events of the outage").await;

        // The broker loses everything: what was published is history, what follows arrives.
        nats.wipe_store().await;
        let after = commit(&ctx.store, 10, 0).await;
        all_arrive(&ctx, &after, "events after the wipe").await;
        end(ctx).await;
    }
}

#[tokio::test]
async fn two_relays_publish_each_event_once() {
    for db in databases().await {
        let nats = nats().await;
        let (ctx, _dir) = context(db.url(), &nats.url()).await;
        let committed = commit(&ctx.store, 300, 60).await;
        ctx.spawn(relay(ctx.clone()));
        ctx.spawn(relay(ctx.clone()));
        all_arrive(&ctx, &committed, "all events, once each").await;
        end(ctx).await;
    }
}
