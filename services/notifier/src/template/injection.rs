//! Texts that chats obey, in every field a message is made of, for every provider: shown, not obeyed.

use super::*;
use crate::message::Known;
use serde_json::json;
use windlass_domain::event::Aggregate;
use windlass_testkit::hostile_strings;

const ALL: [Markup; 6] = [Markup::Slack, Markup::Feishu, Markup::Dingtalk, Markup::Wecom, Markup::Teams, Markup::Plain];

/// Each with the text in another field.
fn events(text: &str) -> Vec<(&'static str, Event)> {
    let event = |what: &str, project: &str, actor: &str, payload: serde_json::Value| Event {
        id: EventId(uuid::Uuid::nil()),
        aggregate: Aggregate::Deployment.as_str().into(),
        aggregate_id: "0193".into(),
        agg_seq: 1,
        what: what.into(),
        project: Some(project.into()),
        environment: Some("prod".into()),
        severity: Severity::Alert,
        actor: actor.into(),
        at: chrono::DateTime::UNIX_EPOCH,
        payload,
        trace: None,
    };
    let payload = |key: &str| event("deployment.failed", "shop", "person:ann", json!({ key: text }));
    vec![
        ("reason", payload("reason")),
        ("title", payload("title")),
        ("version", payload("version")),
        ("hosts", event("deployment.failed", "shop", "person:ann", json!({ "hosts": [text, { "name": text }] }))),
        ("by", payload("by")),
        ("remedy", payload("remedy")),
        ("project", event("deployment.failed", text, "person:ann", json!({}))),
        ("what", event(text, "shop", "person:ann", json!({}))),
        ("actor", event("deployment.failed", "shop", &format!("person:{text}"), json!({}))),
    ]
}

/// What the markup could obey in the text, besides what the template itself writes.
fn obeyed(markup: Markup, text: &str, link: &str) -> Option<String> {
    let mut rest =
        text.replace(&format!("<{link}|Open in Windlass>"), "").replace(&format!("[Open in Windlass]({link})"), "");
    rest = rest
        .replace(&format!("<{link}|all of it>"), "")
        .replace(&format!("[all of it]({link})"), "")
        .replace("(shortened; )", "");
    if let Some(c) = rest.chars().find(|c| {
        c.is_control() && !matches!(c, '\n' | '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    }) {
        return Some(format!("{c:?}"));
    }
    let entities = |mut t: &str, known: &dyn Fn(&str) -> bool| {
        while let Some(at) = t.find('&') {
            t = &t[at + 1..];
            let Some((name, after)) = t.split_once(';') else { return Some("&".to_owned()) };
            if !known(name) {
                return Some(format!("&{name};"));
            }
            t = after;
        }
        None
    };
    match markup {
        Markup::Plain => None,
        Markup::Slack => rest
            .contains(['<', '>'])
            .then(|| "a tag".to_owned())
            .or_else(|| entities(&rest, &|n| ["amp", "lt", "gt"].contains(&n))),
        Markup::Feishu => {
            let shown = rest.replace("**", "");
            let numbered = |n: &str| n.strip_prefix('#').is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
            let bare: String = shown.split('&').map(|p| p.split_once(';').map_or(p, |(_, rest)| rest)).collect();
            bare.contains(['<', '>', '*', '_', '~', '`', '[', ']', '(', ')', '!', '\\', '$'])
                .then_some(bare)
                .or_else(|| entities(&shown, &numbered))
        }
        Markup::Teams => {
            let mut chars = rest.replace("**", "").replace("&amp;", "").chars().collect::<Vec<_>>().into_iter();
            while let Some(c) = chars.next() {
                match c {
                    '\\' => drop(chars.next()),
                    '*' | '_' | '`' | '[' | ']' | '(' | ')' | '<' | '>' | '!' | '~' | '&' => {
                        return Some(c.to_string());
                    }
                    _ => {}
                }
            }
            None
        }
        Markup::Dingtalk | Markup::Wecom => {
            // Their own headings, quotes and bold labels stand at the begin of lines.
            let own = |l: &str| {
                l.trim_start_matches("### ").trim_start_matches("> ").trim_start_matches("- ").replace("**", "")
            };
            let shown: Vec<String> = rest.lines().map(own).collect();
            shown.into_iter().find(|l| l.contains(['<', '>', '[', ']', '`', '*', '#', '&', '@']))
        }
    }
}

#[test]
fn no_text_is_obeyed_by_any_chat() {
    let mut tried = 0;
    for text in hostile_strings() {
        for (field, event) in events(&text) {
            let known = Known { version: Some(text.clone()), waiting_on: Some(text.clone()) };
            let facts = Facts::of(&event, &known, "https://w.example");
            assert!(!facts.title.chars().any(char::is_control), "{field} {text:?}: the title has lines");
            for markup in ALL {
                let out = markup.fit(&default_text(markup, &facts), &facts.link);
                assert!(out.len() <= markup.limit(), "{markup:?} {field} {text:?}: {} bytes", out.len());
                let found = obeyed(markup, &out, &facts.link);
                assert_eq!(found, None, "{markup:?} {field} {text:?}:\n{out}");
                tried += 1;
            }
        }
    }
    eprintln!("injection: {tried} messages, none with anything to obey");
    assert!(tried > 5000);
}
