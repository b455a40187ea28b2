//! Mail over a real SMTP server: encryption is never given up, the key is the message id, one bad recipient does not
//! silence the rest.

use crate::{
    smtp::{Behaviour, Sink, Tls},
    world::{World, drain, quick},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use std::collections::BTreeSet;
use windlass_domain::event::Severity;
use windlass_store::notifications::{Notification, State};

async fn send(sink: &Sink, tls: &str, login: bool) -> (Notification, World) {
    let w = World::sqlite().await;
    let mut p = serde_json::json!({"type": "email", "server": sink.server(), "tls": tls, "from": "Windlass <w@example.com>",
        "to": ["ops@example.com", "bad@example.com"]});
    if login {
        p["username"] = "robot".into();
        p["password"] = "mail-password".into();
        w.secret("mail-password", "hunter2hunter2").await;
    }
    w.channel("mail", p).await;
    let n = w.notifier(quick()).await;
    let payload = serde_json::json!({"reason": "späte Störung\r\nBcc: evil@example.com", "version": "1.2.0"});
    w.emit("deployment.failed", Severity::Alert, payload).await;
    n.take_events().await.expect("takes");
    drain(&w, &n, "mail").await;
    (w.only("mail").await, w)
}

fn header<'a>(mail: &'a str, name: &str) -> &'a str {
    mail.lines().take_while(|l| !l.is_empty()).find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim()
}

#[tokio::test]
async fn a_mail_says_what_happened_under_a_stable_id() {
    let sink =
        Sink::start(Tls::None, Behaviour { data_replies: vec!["451 later", "421 later"], ..Behaviour::default() });
    let (sent, _w) = send(&sink, "none", false).await;
    assert_eq!((sent.state, sent.attempts), (State::Sent, 3), "{sent:?}");
    let mails = sink.mails();
    assert_eq!(mails.len(), 3);
    let ids: BTreeSet<&str> = mails.iter().map(|m| header(&m.text, "Message-ID:")).collect();
    assert_eq!(ids, BTreeSet::from([format!("<{}@example.com>", sent.id).as_str()]));
    let m = &mails[0];
    assert_eq!((m.from.as_str(), m.to.len()), ("w@example.com", 2));
    assert_eq!(header(&m.text, "Subject:"), "[ALERT] shop/prod: deployment FAILED");
    assert_eq!(header(&m.text, "Auto-Submitted:"), "auto-generated");
    assert_eq!(header(&m.text, "Bcc:"), "", "an event cannot write headers");
    let body = m.text.split_once("\r\n\r\n").expect("body").1.replace("=\r\n", "");
    for want in ["Version: 1.2.0", "By: ann", "https://windlass.example/#/deployments/", "What to do:"] {
        assert!(body.contains(want), "{want} in {body}");
    }
}

#[tokio::test]
async fn starttls_and_implicit_tls_encrypt_login_and_mail() {
    for (tls, name) in [(Tls::Starttls, "starttls"), (Tls::Implicit, "implicit")] {
        let sink = Sink::start(tls, Behaviour::default());
        let (sent, _w) = send(&sink, name, true).await;
        assert_eq!(sent.state, State::Sent, "{name}: {sent:?}");
        let m = sink.mails().remove(0);
        assert!(m.encrypted, "{name}");
        assert_eq!(m.auth, Some(BASE64_STANDARD.encode("\0robot\0hunter2hunter2")), "{name}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_encrypt_gets_neither_password_nor_mail() {
    for name in ["starttls", "implicit"] {
        let sink = Sink::start(Tls::None, Behaviour::default());
        let (dead, _w) = send(&sink, name, true).await;
        assert_eq!(dead.state, State::Dead, "{name}");
        assert!(sink.mails().is_empty());
        let said = sink.commands().join("\n");
        assert!(!said.contains("AUTH") && !said.contains("MAIL FROM"), "{name}: {said}");
    }
}

#[tokio::test]
async fn refused_recipients_are_named_and_the_others_get_the_mail() {
    let refuse = vec![("bad@example.com", "550 no such user")];
    let sink = Sink::start(Tls::None, Behaviour { refuse, ..Behaviour::default() });
    let (sent, _w) = send(&sink, "none", false).await;
    assert_eq!(sent.state, State::Sent);
    assert!(sent.last_error.expect("note").contains("bad@example.com"));
    assert_eq!(sink.mails().len(), 1);
    assert_eq!(sink.mails()[0].to, ["ops@example.com"]);

    let refuse = vec![("bad@example.com", "550 no such user"), ("ops@example.com", "550 no such user")];
    let sink = Sink::start(Tls::None, Behaviour { refuse, ..Behaviour::default() });
    let (dead, _w) = send(&sink, "none", false).await;
    assert_eq!((dead.state, dead.attempts), (State::Dead, 1), "{dead:?}");
    assert!(sink.mails().is_empty());
}

#[tokio::test]
async fn a_bad_login_is_final_and_does_not_show_the_password() {
    let b = Behaviour { auth_reply: Some("535 bad credentials for hunter2hunter2"), ..Behaviour::default() };
    let sink = Sink::start(Tls::Starttls, b);
    let (dead, _w) = send(&sink, "starttls", true).await;
    assert_eq!((dead.state, dead.attempts), (State::Dead, 1));
    let error = dead.last_error.expect("error");
    assert!(error.contains("bad credentials") && !error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_silent_server_costs_one_deadline_a_try() {
    let sink = Sink::start(Tls::None, Behaviour { hang: true, ..Behaviour::default() });
    let (dead, _w) = send(&sink, "none", false).await;
    assert_eq!((dead.state, dead.attempts), (State::Dead, 5));
    assert!(dead.last_error.expect("error").contains("no answer within"));
}

#[tokio::test]
async fn a_mail_that_was_taken_is_not_sent_again_because_the_farewell_failed() {
    let sink = Sink::start(Tls::None, Behaviour { no_farewell: true, ..Behaviour::default() });
    let (sent, _w) = send(&sink, "none", false).await;
    assert_eq!((sent.state, sent.attempts), (State::Sent, 1));
    assert_eq!(sink.mails().len(), 1);
}
