//! The consumer loop: redelivery, rejection, panics, progress, bounds, and a broker that loses its store.

use crate::support::{SOON, context, end};
use async_nats::jetstream;
use futures::StreamExt;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use windlass_bus::{ConsumerSpec, Context, Message, Outcome, consume};
use windlass_contracts::subjects;
use windlass_testkit::{Db, eventually, nats};

fn spec() -> ConsumerSpec {
    ConsumerSpec::new("test", subjects::STREAM_IN, "test-in", subjects::ALL_IN)
}

async fn store(ctx: &Context, subject: &str, body: &str, id: &str) {
    let sent = ctx.bus.publish_stored(
        subject.to_owned(),
        body.to_owned(),
        id,
        Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    );
    sent.await.expect("stored");
}

/// Every dead letter so far.
async fn dead_letters(ctx: &Context) -> Vec<jetstream::message::StreamMessage> {
    let Ok(stream) = ctx.bus.jetstream().get_stream(subjects::STREAM_DEAD).await else { return vec![] };
    let mut all = vec![];
    for n in 1..=stream.cached_info().state.last_sequence {
        all.push(stream.get_raw_message(n).await.expect("dead letter"));
    }
    all
}

/// Nothing waits, runs, or will come again.
async fn settled(ctx: &Context) {
    eventually(SOON, "the consumer has settled everything", async || {
        let stream = ctx.bus.jetstream().get_stream(subjects::STREAM_IN).await.ok()?;
        let mut c: jetstream::consumer::PullConsumer = stream.get_consumer("test-in").await.ok()?;
        let info = c.info().await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_message_comes_again_until_it_is_acked_and_carries_its_trace() {
    let (nats, db) = (nats().await, Db::sqlite());
    let (ctx, _dir) = context(db.url(), &nats.url()).await;
    let (seen, mut log) = mpsc::unbounded_channel();
    let handler = move |m: Message| {
        let seen = seen.clone();
        async move {
            seen.send((m.text().map(str::to_owned), m.delivered, m.traceparent().map(str::to_owned))).expect("sends");
            if m.delivered < 3 { Outcome::Retry(Duration::from_millis(10)) } else { Outcome::Ack }
        }
    };
    // The loop makes the missing streams itself.
    ctx.spawn(consume(ctx.clone(), spec(), handler));
    eventually(SOON, "the stream", async || ctx.bus.jetstream().get_stream(subjects::STREAM_IN).await.ok()).await;
    store(&ctx, "windlass.in.build", "one", "1").await;
    for n in 1..=3 {
        let (text, delivered, trace) = log.recv().await.expect("delivered");
        assert_eq!((text.as_deref(), delivered), (Some("one"), n));
        assert!(trace.is_some_and(|t| t.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736")));
    }
    settled(&ctx).await;
    assert!(dead_letters(&ctx).await.is_empty());
    end(ctx).await;
    assert!(log.recv().await.is_none(), "acked: never again");
}

#[tokio::test]
async fn rejected_and_panicking_messages_become_dead_letters_and_the_rest_goes_on() {
    let (nats, db) = (nats().await, Db::sqlite());
    let (ctx, _dir) = context(db.url(), &nats.url()).await;
    ctx.bus.ensure_topology().await.expect("streams");
    let tries: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let counted = Arc::clone(&tries);
    let handler = move |m: Message| {
        let text = m.text().expect("text").to_owned();
        *counted.lock().expect("lock").entry(text.clone()).or_default() += 1;
        async move {
            match text.as_str() {
                "bad" => Outcome::Reject("no such\nkind".into()),
                "boom" => panic!("poisoned"),
                "never" => Outcome::Retry(Duration::ZERO),
                _ => Outcome::Ack,
            }
        }
    };
    ctx.spawn(consume(ctx.clone(), ConsumerSpec { max_deliver: 3, ..spec() }, handler));
    for text in ["bad", "boom", "never", "good"] {
        store(&ctx, "windlass.in.build", text, text).await;
    }
    let dead =
        eventually(SOON, "three dead letters", async || Some(dead_letters(&ctx).await).filter(|d| d.len() == 3)).await;
    let reason: HashMap<String, String> = dead
        .iter()
        .map(|d| {
            assert_eq!(d.subject.as_str(), "windlass.dlq.test");
            assert_eq!(d.headers.get("Windlass-Subject").expect("subject").as_str(), "windlass.in.build");
            assert!(d.headers.get("traceparent").is_some(), "original headers are kept");
            let text = String::from_utf8(d.payload.to_vec()).expect("text");
            (text, d.headers.get("Windlass-Reason").expect("reason").as_str().to_owned())
        })
        .collect();
    assert_eq!(reason["bad"], "no such kind");
    assert_eq!(reason["boom"], "handler panicked: poisoned");
    assert_eq!(reason["never"], "gave up after 3 deliveries");
    settled(&ctx).await;
    let tries = tries.lock().expect("lock").clone();
    assert_eq!(tries, [("bad", 1), ("boom", 3), ("never", 3), ("good", 1)].map(|(t, n)| (t.to_owned(), n)).into());
    end(ctx).await;
}

#[tokio::test]
async fn a_message_whose_handler_lives_is_not_handed_out_again() {
    let (nats, db) = (nats().await, Db::sqlite());
    let (ctx, _dir) = context(db.url(), &nats.url()).await;
    ctx.bus.ensure_topology().await.expect("streams");
    store(&ctx, "windlass.in.build", "x", "1").await;
    let starts = Arc::new(AtomicUsize::new(0));
    let s = Arc::clone(&starts);
    let handler = move |_: Message| {
        s.fetch_add(1, Ordering::SeqCst);
        async {
            tokio::time::sleep(Duration::from_millis(1200)).await;
            Outcome::Ack
        }
    };
    // Places are free, so a redelivery would be taken.
    let spec = ConsumerSpec { max_in_flight: 4, ack_wait: Duration::from_millis(300), ..spec() };
    ctx.spawn(consume(ctx.clone(), spec, handler));
    eventually(SOON, "it starts", async || (starts.load(Ordering::SeqCst) > 0).then_some(())).await;
    settled(&ctx).await;
    assert_eq!(starts.load(Ordering::SeqCst), 1);
    end(ctx).await;
}

#[tokio::test]
async fn no_more_handlers_run_than_allowed() {
    let (nats, db) = (nats().await, Db::sqlite());
    let (ctx, _dir) = context(db.url(), &nats.url()).await;
    ctx.bus.ensure_topology().await.expect("streams");
    let (running, most, done) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (r, m, d) = (Arc::clone(&running), Arc::clone(&most), Arc::clone(&done));
    let handler = move |_: Message| {
        let (r, m, d) = (Arc::clone(&r), Arc::clone(&m), Arc::clone(&d));
        async move {
            m.fetch_max(r.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
            r.fetch_sub(1, Ordering::SeqCst);
            d.fetch_add(1, Ordering::SeqCst);
            Outcome::Ack
        }
    };
    for n in 0..6 {
        store(&ctx, "windlass.in.build", "x", &n.to_string()).await;
    }
    let spec = ConsumerSpec { max_in_flight: 2, ..spec() };
    ctx.spawn(consume(ctx.clone(), spec, handler));
    eventually(SOON, "six handled", async || (done.load(Ordering::SeqCst) >= 6).then_some(())).await;
    settled(&ctx).await;
    assert_eq!(done.load(Ordering::SeqCst), 6, "no message came twice");
    assert_eq!(most.load(Ordering::SeqCst), 2);
    end(ctx).await;
}

#[tokio::test]
async fn shutdown_lets_running_handlers_end() {
    let (nats, db) = (nats().await, Db::sqlite());
    let (ctx, _dir) = context(db.url(), &nats.url()).await;
    ctx.bus.ensure_topology().await.expect("streams");
    let (started, mut start) = mpsc::unbounded_channel();
    let (release, ended) = (Arc::new(tokio::sync::Notify::new()), Arc::new(AtomicBool::new(false)));
    let (r, e) = (Arc::clone(&release), Arc::clone(&ended));
    let handler = move |_: Message| {
        let (started, r, e) = (started.clone(), Arc::clone(&r), Arc::clone(&e));
        async move {
            started.send(()).expect("sends");
            r.notified().await;
            e.store(true, Ordering::SeqCst);
            Outcome::Ack
        }
    };
    ctx.spawn(consume(ctx.clone(), spec(), handler));
    store(&ctx, "windlass.in.build", "x", "1").await;
    start.recv().await.expect("starts");
    ctx.shutdown.cancel();
    ctx.tracker.close();
    assert!(
        tokio::time::timeout(Duration::from_millis(200), ctx.tracker.wait()).await.is_err(),
        "waits for the handler"
    );
    release.notify_one();
    tokio::time::timeout(SOON, ctx.tracker.wait()).await.expect("ends");
    assert!(ended.load(Ordering::SeqCst));
    settled(&ctx).await;
}

#[tokio::test]
async fn a_wiped_broker_is_repaired_and_a_dead_one_does_not_hold_up_the_sender() {
    let (mut nats, db) = (nats().await, Db::sqlite());
    let (ctx, _dir) = context(db.url(), &nats.url()).await;
    let (seen, mut log) = mpsc::unbounded_channel();
    let handler = move |m: Message| {
        let seen = seen.clone();
        async move {
            seen.send(m.text().map(str::to_owned)).expect("sends");
            Outcome::Ack
        }
    };
    let spec = ConsumerSpec::new("test", subjects::STREAM_WORK, "test-work", subjects::work("p"));
    ctx.spawn(consume(ctx.clone(), spec, handler));
    // A doorbell is best effort: ring until it is heard, as a poll would.
    let mut heard = async |ctx: &Context, what: &'static str| {
        eventually(SOON, what, async || {
            ctx.bus.ring(subjects::work("p"), what).await;
            let next = tokio::time::timeout(Duration::from_millis(100), log.recv()).await;
            matches!(next, Ok(Some(Some(text))) if text == what).then_some(())
        })
        .await;
    };
    heard(&ctx, "before").await;
    nats.wipe_store().await;
    heard(&ctx, "after the wipe").await;
    nats.kill();
    eventually(SOON, "the loss is noticed", async || (!ctx.bus.is_up()).then_some(())).await;
    let start = Instant::now();
    for _ in 0..5000 {
        ctx.bus.ring(subjects::work("p"), "lost").await;
    }
    assert!(start.elapsed() < Duration::from_secs(2), "ringing a dead broker took {:?}", start.elapsed());
    assert!(ctx.health.ready(), "a dead broker slows down, it does not stop");
    nats.restart().await;
    heard(&ctx, "after the restart").await;
    end(ctx).await;
}

#[tokio::test]
async fn a_stream_is_extended_and_never_cut_down() {
    let (nats, db) = (nats().await, Db::sqlite());
    let (ctx, _dir) = context(db.url(), &nats.url()).await;
    let js = ctx.bus.jetstream();
    let made = jetstream::stream::Config {
        name: subjects::STREAM_EVENTS.into(),
        subjects: vec!["other.>".into()],
        max_messages: 77,
        ..Default::default()
    };
    js.create_stream(made).await.expect("creates");
    js.publish("other.x", "kept".into()).await.expect("sent").await.expect("stored");
    ctx.bus.ensure_topology().await.expect("ensures");
    let stream = js.get_stream(subjects::STREAM_EVENTS).await.expect("there");
    let info = stream.cached_info();
    assert_eq!(info.config.subjects, ["other.>", subjects::ALL_EVENTS]);
    assert_eq!((info.config.max_messages, info.state.messages), (77, 1));
    assert_eq!(js.stream_names().collect::<Vec<_>>().await.len(), 5);
    end(ctx).await;
}
