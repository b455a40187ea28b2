//! Feishu and Lark custom bots: a card; signed with key and message swapped; success is `code` 0 in a 200.

use super::{Answer, Delivery, Post, Verdict, footer, hmac_base64};
use serde_json::{Value, json};
use std::time::Duration;
use windlass_domain::event::Severity;

pub(super) fn post(url: &str, sign: Option<&str>, d: &Delivery<'_>) -> Post {
    let m = d.message;
    let colour = match m.severity {
        Severity::Info => "grey",
        Severity::Notice => "green",
        Severity::Action => "orange",
        Severity::Alert => "red",
    };
    let mut body = json!({
        "msg_type": "interactive",
        "card": {
            "config": { "wide_screen_mode": true },
            "header": { "template": colour, "title": { "tag": "plain_text", "content": m.title } },
            "elements": [
                { "tag": "markdown", "content": m.text },
                { "tag": "note", "elements": [{ "tag": "plain_text", "content": footer(d) }] },
            ],
        },
    });
    if let Some(secret) = sign {
        let ts = d.now.timestamp().to_string();
        // Their scheme: the string to sign is the key, and the message is empty.
        body["sign"] = Value::String(hmac_base64(format!("{ts}\n{secret}").as_bytes(), b""));
        body["timestamp"] = Value::String(ts);
    }
    Post::json(url, &body)
}

pub(super) fn judge(a: &Answer) -> Verdict {
    let json = a.json().unwrap_or_default();
    // The older bots answer `StatusCode`.
    let code = json["code"].as_i64().or_else(|| json["StatusCode"].as_i64());
    match code {
        Some(0) if a.ok() => Verdict::SENT,
        Some(11232 | 11233 | 99991400) => {
            Verdict::rate_limited(a.retry_after.unwrap_or(Duration::from_secs(60)), a.quote())
        }
        Some(19021) => {
            Verdict::permanent(format!("{}: check the channel's `sign` secret and this machine's clock", a.quote()))
        }
        Some(9499 | 19001 | 19002 | 19003 | 19022 | 19024) => Verdict::permanent(a.quote()),
        _ => a.by_status().unwrap_or_else(|| Verdict::retry(a.quote())),
    }
}
