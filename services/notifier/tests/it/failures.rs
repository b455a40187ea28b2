//! Far ends that fail: every message arrives or lies where people see it, with one key for all its tries.

use crate::{
    http::{Reply, Target},
    world::{World, drain, quick},
};
use std::{collections::BTreeSet, time::Duration};
use windlass_domain::event::Severity;
use windlass_store::notifications::{self, State};
use windlass_testkit::databases;

fn keys(t: &Target) -> BTreeSet<String> {
    t.seen().iter().map(|s| s.header("webhook-id").expect("key").to_owned()).collect()
}

#[tokio::test]
async fn errors_hangs_and_resets_are_retried_with_the_same_key_until_it_is_taken() {
    for db in databases().await {
        let w = World::new(db).await;
        let t = Target::start(Reply::status(204)).await;
        t.script([Reply::status(500), Reply::Hang, Reply::Reset, Reply::status(404)]);
        w.hook("hook", &t.url("/in")).await;
        w.failed().await;
        let n = w.notifier(quick()).await;
        assert_eq!(n.take_events().await.expect("takes").into_iter().collect::<Vec<_>>(), ["hook"]);
        drain(&w, &n, "hook").await;

        let sent = w.only("hook").await;
        assert_eq!((sent.state, sent.attempts), (State::Sent, 5), "{}: {sent:?}", w.db);
        assert_eq!(t.seen().len(), 5);
        assert_eq!(keys(&t), BTreeSet::from([sent.id.to_string()]), "one key for all tries");
        let bodies: BTreeSet<String> = t.seen().iter().map(|s| s.body.clone()).collect();
        assert_eq!(bodies.len(), 1, "and one body");
        assert_eq!(
            w.told("hook").await,
            [("notification.failing".to_owned(), Severity::Info)],
            "the first failure is on record"
        );
        // Nothing more is sent.
        assert_eq!(n.serve("hook").await.expect("serves"), None);
        assert_eq!(t.seen().len(), 5);
    }
}

#[tokio::test]
async fn after_its_tries_a_message_is_dead_and_the_others_hear_of_it_once() {
    for db in databases().await {
        let w = World::new(db).await;
        let (bad, good) =
            (Target::start(Reply::body(500, "no <b>way</b>")).await, Target::start(Reply::status(200)).await);
        w.hook("bad", &bad.url("/in")).await;
        w.hook("good", &good.url("/in")).await;
        let n = w.notifier(quick()).await;
        w.failed().await;
        w.failed().await;
        n.take_events().await.expect("takes");
        drain(&w, &n, "bad").await;
        for dead in w.of("bad").await {
            assert_eq!((dead.state, dead.attempts), (State::Dead, 5));
            let error = dead.last_error.expect("error");
            assert!(error.contains("after 5 tries") && error.contains("HTTP 500"), "{error}");
        }
        let dead: Vec<_> = w.told("bad").await.into_iter().filter(|(what, _)| what == "notification.dead").collect();
        assert_eq!(dead.iter().filter(|(_, s)| *s == Severity::Alert).count(), 1, "one alert an hour: {dead:?}");
        assert_eq!(dead.len(), 2, "both are on record");

        assert_eq!(n.take_events().await.expect("takes").into_iter().collect::<Vec<_>>(), ["good"]);
        drain(&w, &n, "good").await;
        assert_eq!(w.of("bad").await.len(), 2, "the dead channel is not told about itself");
        let alert = good.seen().into_iter().find(|s| s.body.contains("notification.dead")).expect("alert");
        assert!(alert.json()["text"].as_str().expect("text").contains("Channel `bad` did not take"), "{}", alert.body);
        assert_eq!(w.queued().await, 0, "every event is taken, heard or not");
    }
}

#[tokio::test]
async fn a_dead_letter_about_a_dead_letter_wakes_nobody() {
    let w = World::sqlite().await;
    let t = Target::start(Reply::status(410)).await;
    for (name, events) in [("a", "deployment."), ("b", "notification."), ("c", "notification.")] {
        w.hook(name, &t.url("/in")).await;
        let p = serde_json::json!({"type": "webhook", "url": format!("{name}-url"), "sign": format!("{name}-sign")});
        w.channel_with(name, p, serde_json::json!([{"events": [events]}]), None).await;
    }
    let n = w.notifier(quick()).await;
    w.failed().await;
    for woken in [vec!["a"], vec!["b", "c"], vec![]] {
        let got = n.take_events().await.expect("takes");
        assert_eq!(got.iter().map(String::as_str).collect::<Vec<_>>(), woken);
        for name in got {
            drain(&w, &n, &name).await;
        }
    }
    assert_eq!(w.told("a").await, [("notification.dead".to_owned(), Severity::Alert)]);
    assert_eq!(w.told("b").await, [("notification.dead".to_owned(), Severity::Info)]);
}

#[tokio::test]
async fn a_person_queues_a_dead_message_again() {
    for db in databases().await {
        let w = World::new(db).await;
        let t = Target::start(Reply::status(410)).await;
        w.hook("hook", &t.url("/in")).await;
        w.failed().await;
        let n = w.notifier(quick()).await;
        n.take_events().await.expect("takes");
        drain(&w, &n, "hook").await;
        let dead = w.only("hook").await;
        assert_eq!((dead.state, dead.attempts), (State::Dead, 1), "410 is for good");
        let mut tx = w.store.read().await.expect("read");
        let listed = notifications::list(&mut tx, Some(State::Dead), None, None, 10).await.expect("lists");
        assert_eq!(listed.len(), 1);
        drop(tx);

        t.then_always(Reply::status(200));
        for (id, known) in [(dead.id, true), (uuid::Uuid::now_v7().into(), false)] {
            let mut tx = w.store.write().await.expect("write");
            let now = tx.now().await.expect("now");
            assert_eq!(notifications::request_retry(&mut tx, id, "person:ann", now).await.expect("asks"), known);
            tx.commit().await.expect("commit");
        }
        assert_eq!(n.take_events().await.expect("takes").into_iter().collect::<Vec<_>>(), ["hook"]);
        drain(&w, &n, "hook").await;
        let sent = w.get(dead.id).await;
        assert_eq!((sent.state, sent.attempts), (State::Sent, 1));
        assert!(sent.retried_at.is_some());
        assert_eq!(keys(&t).len(), 1, "the same key again");
    }
}

#[tokio::test]
async fn retry_after_is_honoured_for_the_whole_channel_and_no_try_is_charged() {
    let w = World::sqlite().await;
    let t = Target::start(Reply::status(200)).await;
    t.script([Reply::later(429, "120")]);
    w.hook("hook", &t.url("/in")).await;
    let n = w.notifier(quick()).await;
    w.failed().await;
    n.take_events().await.expect("takes");
    let pause = n.serve("hook").await.expect("serves").expect("waits");
    assert!((118..=120).contains(&pause.as_secs()), "{pause:?}");
    let waiting = w.only("hook").await;
    assert_eq!((waiting.state, waiting.attempts), (State::Pending, 0));
    let wait = (waiting.next_at - chrono::Utc::now()).num_seconds();
    assert!((117..=120).contains(&wait), "{wait}");
    // A new message to the same far end waits as well.
    w.failed().await;
    n.take_events().await.expect("takes");
    assert!(n.serve("hook").await.expect("serves").expect("waits") > Duration::from_secs(100));
    assert_eq!(t.seen().len(), 1);
    w.hurry("hook").await;
    drain(&w, &n, "hook").await;
    assert_eq!(t.seen().len(), 3);

    // An absurd wish is cut to an hour; a 503 may wish too.
    t.script([Reply::later(503, "999999999")]);
    w.failed().await;
    n.take_events().await.expect("takes");
    n.serve("hook").await.expect("serves");
    let waiting = w.of("hook").await.into_iter().find(|n| n.state == State::Pending).expect("pending");
    let wait = (waiting.next_at - chrono::Utc::now()).num_seconds();
    assert!((3_590..=3_600).contains(&wait), "{wait}");
    assert_eq!(waiting.attempts, 1);
}

#[tokio::test]
async fn pauses_grow_from_the_first_to_the_longest() {
    let w = World::sqlite().await;
    let t = Target::start(Reply::status(500)).await;
    w.hook("hook", &t.url("/in")).await;
    let mut knobs = quick();
    (knobs.retry_first, knobs.retry_max, knobs.tries) = (Duration::from_secs(5), Duration::from_secs(100), 9);
    let n = w.notifier(knobs).await;
    w.failed().await;
    n.take_events().await.expect("takes");
    let mut pauses = vec![];
    for _ in 0..5 {
        w.hurry("hook").await;
        n.serve("hook").await.expect("serves");
        let row = w.only("hook").await;
        pauses.push((row.next_at - row.updated_at).as_seconds_f64());
    }
    for (pause, want) in pauses.iter().zip([5.0, 20.0, 80.0, 100.0, 100.0]) {
        assert!((want * 0.8..=want * 1.2).contains(pause), "{pauses:?}");
    }
}

#[tokio::test]
async fn a_missing_secret_holds_the_message_and_names_the_remedy() {
    for db in databases().await {
        let w = World::new(db).await;
        let t = Target::start(Reply::body(200, "ok")).await;
        w.channel("ops", serde_json::json!({"type": "slack", "url": "ops-url"})).await;
        let n = w.notifier(quick()).await;
        w.failed().await;
        n.take_events().await.expect("takes");
        assert_eq!(n.serve("ops").await.expect("serves"), None);
        let held = w.only("ops").await;
        assert_eq!((held.state, held.attempts), (State::Pending, 0));
        let error = held.last_error.expect("error");
        assert!(error.contains("windlass secret set channel/ops-url"), "{error}");
        w.secret("ops-url", &t.url("/services/x")).await;
        drain(&w, &n, "ops").await;
        assert_eq!(w.only("ops").await.state, State::Sent);
        assert_eq!(t.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_channel_that_is_gone_buries_what_waits_for_it() {
    let w = World::sqlite().await;
    let t = Target::start(Reply::status(500)).await;
    w.hook("hook", &t.url("/in")).await;
    let n = w.notifier(quick()).await;
    w.failed().await;
    n.take_events().await.expect("takes");
    w.delete_channel("hook").await;
    n.serve("hook").await.expect("serves");
    let dead = w.only("hook").await;
    assert_eq!(dead.state, State::Dead);
    assert!(dead.last_error.expect("error").contains("no longer in the catalog"));
    assert!(t.seen().is_empty());
}

#[tokio::test]
async fn a_full_channel_refuses_what_is_beyond_and_shows_it() {
    let w = World::sqlite().await;
    w.hook("hook", "http://127.0.0.1:9/").await;
    let mut knobs = quick();
    knobs.max_pending = 3;
    let n = w.notifier(knobs).await;
    for _ in 0..5 {
        w.failed().await;
    }
    n.take_events().await.expect("takes");
    let all = w.of("hook").await;
    assert_eq!(all.iter().filter(|n| n.state == State::Pending).count(), 3);
    let dead: Vec<_> = all.iter().filter(|n| n.state == State::Dead).collect();
    assert_eq!(dead.len(), 2);
    assert!(dead[0].last_error.as_deref().expect("error").contains("already has 3"), "{dead:?}");
    assert_eq!(w.told("hook").await.iter().filter(|(_, s)| *s == Severity::Alert).count(), 1);
}

#[tokio::test]
async fn a_failing_far_end_is_tried_one_at_a_time_and_a_hanging_one_keeps_nobody_else_waiting() {
    let w = World::sqlite().await;
    let (hangs, works) = (Target::start(Reply::Hang).await, Target::start(Reply::status(200)).await);
    w.hook("hangs", &hangs.url("/in")).await;
    w.hook("works", &works.url("/in")).await;
    let mut knobs = quick();
    (knobs.tries, knobs.per_channel) = (50, 2);
    (knobs.break_first, knobs.break_max) = (Duration::from_secs(60), Duration::from_secs(60));
    let n = w.notifier(knobs).await;
    for _ in 0..12 {
        w.failed().await;
    }
    n.take_events().await.expect("takes");
    let both = async { tokio::join!(n.serve("hangs"), drain(&w, &n, "works")) };
    let (stuck, ()) = tokio::time::timeout(Duration::from_secs(20), both).await.expect("the breaker opens");
    assert_eq!(works.seen().len(), 12);
    // Two at once, until the fifth failure (of the third pair) opened the breaker.
    assert_eq!(hangs.seen().len(), 6);
    assert!(stuck.expect("serves").expect("waits") > Duration::from_secs(40));
}

#[tokio::test]
async fn a_broken_template_sends_the_default_text_and_stays_visible() {
    let w = World::sqlite().await;
    let t = Target::start(Reply::body(200, "ok")).await;
    w.secret("u", &t.url("/in")).await;
    let slack = serde_json::json!({"type": "slack", "url": "u"});
    w.channel_with("ops", slack, serde_json::json!([{}]), Some("{{ oops(")).await;
    let n = w.notifier(quick()).await;
    w.failed().await;
    n.take_events().await.expect("takes");
    drain(&w, &n, "ops").await;
    let sent = w.only("ops").await;
    assert_eq!(sent.state, State::Sent);
    assert!(sent.last_error.expect("note").contains("template of channel `ops`"));
    let text = t.seen()[0].body.clone();
    assert!(text.contains("deployment FAILED") && text.contains("template of channel `ops`"), "{text}");
}

#[tokio::test]
async fn a_channel_whose_provider_changed_gets_the_message_in_its_new_form() {
    let w = World::sqlite().await;
    let t = Target::start(Reply::status(200)).await;
    w.channel("ops", serde_json::json!({"type": "slack", "url": "not-set"})).await;
    let n = w.notifier(quick()).await;
    let event = w.failed().await;
    n.take_events().await.expect("takes");
    n.serve("ops").await.expect("serves");
    w.hook("ops", &t.url("/in")).await;
    drain(&w, &n, "ops").await;
    let body = t.seen()[0].json();
    assert_eq!(body["data"]["id"], event.to_string());
    assert!(!body["text"].as_str().expect("text").contains("<https"), "{body}");
}
