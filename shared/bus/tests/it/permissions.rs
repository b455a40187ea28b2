//! Each service's own identity on a real server: what it needs works, all else is refused by the server.

use crate::identities::Site;
use crate::support::SOON;
use async_nats::{Client, ConnectOptions, Event};
use futures::StreamExt;
use tokio::sync::mpsc;
use windlass_bus::{Bus, BusOptions, Identities, permissions};
use windlass_runtime::Settings;

fn options(ids: &Identities, url: &str, name: &str) -> BusOptions {
    let mut s = Settings::default();
    s.nats.urls = vec![url.to_owned()];
    s.nats.services_creds = Some(ids.creds_of(name));
    BusOptions::services(&s)
}

/// A connection with an identity, and what the server says to it.
async fn client(site: &Site, name: &str) -> (Client, mpsc::UnboundedReceiver<String>) {
    let (tell, told) = mpsc::unbounded_channel();
    let client = ConnectOptions::with_credentials_file(site.ids.creds_of(name))
        .await
        .expect("credentials")
        .custom_inbox_prefix(format!("_INBOX_{name}"))
        .event_callback(move |e| {
            if let Event::ServerError(e) = e {
                let _ = tell.send(e.to_string());
            }
            std::future::ready(())
        })
        .connect(&site.url)
        .await
        .expect("connects");
    (client, told)
}

/// Whether the server refused what was sent last: it answers in order, so a PONG without a word before it is a yes.
async fn refused(client: &Client, told: &mut mpsc::UnboundedReceiver<String>) -> bool {
    client.flush().await.expect("flushes");
    // The error comes before the PONG on the wire, and its callback runs on a task of its own.
    tokio::time::timeout(std::time::Duration::from_millis(300), told.recv()).await.is_ok()
}

/// Subjects of every kind there is; who may publish and who may hear them.
const MATRIX: [(&str, &[&str], &[&str]); 14] = [
    ("windlass.cmd.deployment.abort", &["api", "scheduler"], &[]),
    ("windlass.work.default", &["api", "scheduler", "executor"], &["executor"]),
    ("windlass.settled", &["api", "executor"], &["scheduler"]),
    (
        "windlass.evt.deployment.x.y",
        &["api", "scheduler", "executor", "notifier", "auditor"],
        &["api", "auditor", "events"],
    ),
    ("windlass.outcome.x", &["scheduler"], &["api"]),
    ("windlass.log.x", &["executor"], &["api"]),
    ("windlass.in.ci", &["events"], &[]),
    ("windlass.plugin.cdn.1_0_0.execute", &["executor"], &["plugins"]),
    ("windlass.dlq.api", &["api"], &[]),
    ("$JS.API.STREAM.DELETE.WINDLASS_EVT", &[], &[]),
    ("$JS.API.STREAM.PURGE.WINDLASS_CMD", &[], &[]),
    ("$JS.API.CONSUMER.DELETE.WINDLASS_CMD.scheduler", &[], &[]),
    ("_INBOX_api.x", &[], &["api"]),
    ("$SYS.REQ.SERVER.PING", &[], &[]),
];

#[tokio::test]
async fn each_service_speaks_and_hears_what_is_its_own() {
    let site = Site::start().await;
    let mut cells = 0;
    for name in permissions::SERVICES.into_iter().chain(permissions::OTHERS) {
        let (client, mut told) = client(&site, name).await;
        for (subject, publish, subscribe) in MATRIX {
            client.publish(subject, "".into()).await.expect("sends");
            assert_eq!(!refused(&client, &mut told).await, publish.contains(&name), "{name} publishes {subject}");
            let heard = client.subscribe(subject).await.expect("sends");
            assert_eq!(!refused(&client, &mut told).await, subscribe.contains(&name), "{name} hears {subject}");
            drop(heard);
            cells += 2;
        }
        for wide in [">", "windlass.>", "_INBOX.>", "$JS.>"] {
            let heard = client.subscribe(wide).await.expect("sends");
            assert!(refused(&client, &mut told).await, "{name} hears {wide}");
            drop(heard);
            cells += 1;
        }
    }
    assert_eq!(cells, 7 * (14 * 2 + 4));
    site.end().await;
}

#[tokio::test]
async fn a_service_makes_streams_consumes_and_publishes_with_its_own_identity() {
    let site = Site::start().await;
    let scheduler = Bus::connect(options(&site.ids, &site.url, "scheduler"), &site.health).await.expect("connects");
    scheduler.ensure_topology().await.expect("makes the streams");
    let api = Bus::connect(options(&site.ids, &site.url, "api"), &site.health).await.expect("connects");
    api.publish_stored("windlass.evt.x.y.z", "1", "id-1", None).await.expect("is stored, and the answer comes");
    let consumer = scheduler
        .jetstream()
        .create_consumer_on_stream(
            async_nats::jetstream::consumer::pull::Config {
                durable_name: Some("scheduler".into()),
                filter_subject: "windlass.cmd.>".into(),
                ..Default::default()
            },
            "WINDLASS_CMD",
        )
        .await
        .expect("makes its consumer");
    api.ring("windlass.cmd.deployment.request", "id").await;
    let mut messages = consumer.messages().await.expect("asks");
    let m = tokio::time::timeout(SOON, messages.next()).await.expect("in time").expect("one").expect("whole");
    assert_eq!(&*m.payload, b"id");
    m.ack().await.expect("settles");
    // Another service's consumer is not its own.
    let taken = api
        .jetstream()
        .get_consumer_from_stream::<async_nats::jetstream::consumer::pull::Config, _, _>("scheduler", "WINDLASS_CMD");
    assert!(taken.await.is_err());
    site.end().await;
}

#[tokio::test]
async fn a_plugin_answers_what_it_was_asked_and_nothing_else() {
    let site = Site::start().await;
    let (plugin, mut told) = client(&site, "plugins").await;
    let mut asked = plugin.subscribe("windlass.plugin.cdn.>").await.expect("subscribes");
    plugin.flush().await.expect("flushes");
    let (executor, _told) = client(&site, "executor").await;
    let answer = tokio::spawn({
        let executor = executor.clone();
        async move { executor.request("windlass.plugin.cdn.1.check", "well?".into()).await }
    });
    let question = tokio::time::timeout(SOON, asked.next()).await.expect("in time").expect("one");
    plugin.publish(question.reply.expect("a place for the answer"), "yes".into()).await.expect("sends");
    assert_eq!(&*answer.await.expect("joins").expect("is answered").payload, b"yes");
    plugin.publish("_INBOX_executor.other", "no".into()).await.expect("sends");
    assert!(refused(&plugin, &mut told).await);
    site.end().await;
}
