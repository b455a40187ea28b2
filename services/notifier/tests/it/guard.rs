//! What channels may not reach: the inside of the network, by address or by name; and no secret in any error.

use crate::{
    http::{Reply, Target},
    smtp::{Behaviour, Sink, Tls},
    world::{World, drain, quick},
};
use std::{future::Future, net::SocketAddr, pin::Pin, sync::Arc};
use windlass_runtime::{Outbound, outbound::Lookup};
use windlass_store::notifications::State;

/// Answers every name with loopback.
struct Inside;

impl Lookup for Inside {
    fn lookup(&self, _: String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<SocketAddr>>> + Send>> {
        Box::pin(async { Ok(vec![SocketAddr::from(([127, 0, 0, 1], 0))]) })
    }
}

#[tokio::test]
async fn private_addresses_are_refused_by_number_and_by_name_for_http_and_mail() {
    let w = World::sqlite().await;
    let t = Target::start(Reply::status(200)).await;
    let sink = Sink::start(Tls::None, Behaviour::default());
    let mut names = vec![];
    for (i, host) in
        ["127.0.0.1", "hooks.example.com", "2130706433", "[::ffff:127.0.0.1]", "localhost"].iter().enumerate()
    {
        let name = format!("http{i}");
        w.hook(&name, &format!("http://{host}:{}/in?token=abcdefghijkl", t.port)).await;
        names.push(name);
    }
    for (i, host) in ["127.0.0.1", "mail.example.com"].iter().enumerate() {
        let name = format!("mail{i}");
        let p = serde_json::json!({"type": "email", "server": format!("{host}:{}", sink.port), "tls": "none",
            "from": "w@example.com", "to": ["ops@example.com"]});
        w.channel(&name, p).await;
        names.push(name);
    }
    let guarded = Outbound::with_lookup(vec![], Arc::new(Inside)).expect("client");
    let n = w.notifier_with(quick(), guarded).await;
    w.failed().await;
    n.take_events().await.expect("takes");
    for name in &names {
        drain(&w, &n, name).await;
        let dead = w.of(name).await.into_iter().min_by_key(|n| n.created_at).expect("row");
        assert_eq!((dead.state, dead.attempts), (State::Dead, 1), "{name}");
        let error = dead.last_error.expect("error");
        assert!(error.contains("loopback") && error.contains("allow_private_addresses"), "{name}: {error}");
        assert!(!error.contains("abcdefghijkl") && !error.contains("://"), "{name}: {error}");
    }
    assert!(t.seen().is_empty() && sink.commands().is_empty(), "nothing connected");

    // The same names pass once an administrator allows the network.
    let allowed = Outbound::with_lookup(vec!["127.0.0.0/8".parse().expect("net")], Arc::new(Inside)).expect("client");
    let n = w.notifier_with(quick(), allowed).await;
    w.failed().await;
    n.take_events().await.expect("takes");
    n.serve("http1").await.expect("serves");
    n.serve("mail1").await.expect("serves");
    assert!(!t.seen().is_empty());
    assert!(!sink.mails().is_empty());
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let w = World::sqlite().await;
    let (inside, t) = (Target::start(Reply::status(200)).await, Target::start(Reply::status(200)).await);
    t.script([Reply::Answer {
        status: 302,
        headers: vec![("location", inside.url("/metadata"))],
        body: String::new(),
    }]);
    w.hook("hook", &t.url("/in")).await;
    let n = w.notifier(quick()).await;
    w.failed().await;
    n.take_events().await.expect("takes");
    drain(&w, &n, "hook").await;
    assert!(inside.seen().is_empty());
    let dead = w.only("hook").await;
    assert_eq!(dead.state, State::Dead);
    assert!(dead.last_error.expect("error").contains("redirects"));
}

#[tokio::test]
async fn what_a_far_end_says_back_cannot_leak_the_address_it_was_called_by() {
    let w = World::sqlite().await;
    let t = Target::start(Reply::status(200)).await;
    let url = t.url("/services/T00000000/abcdefghijkl?access_token=zzzzzzzzzzzz");
    t.script([
        Reply::body(500, &format!("cannot serve {url}")),
        Reply::body(500, "token zzzzzzzzzzzz unknown; path abcdefghijkl"),
        Reply::Reset,
        Reply::Hang,
        Reply::body(403, "no"),
    ]);
    w.secret("u", &url).await;
    w.channel("ops", serde_json::json!({"type": "slack", "url": "u"})).await;
    let n = w.notifier(quick()).await;
    w.failed().await;
    n.take_events().await.expect("takes");
    let mut errors = vec![];
    for _ in 0..5 {
        // Slack's own pace is one a second.
        let mut tx = w.store.write().await.expect("write");
        windlass_store::sql("UPDATE channel_rates SET tokens = 1").execute(&mut tx).await.expect("runs");
        tx.commit().await.expect("commit");
        w.hurry("ops").await;
        n.serve("ops").await.expect("serves");
        errors.push(w.only("ops").await.last_error.expect("error"));
    }
    assert_eq!(t.seen().len(), 5, "{errors:?}");
    assert!(errors[4].contains("HTTP 403"), "{errors:?}");
    for e in &errors {
        assert!(!e.contains("abcdefghijkl") && !e.contains("zzzzzzzzzzzz") && !e.contains("://"), "{e}");
    }
}
