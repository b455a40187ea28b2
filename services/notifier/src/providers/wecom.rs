//! WeCom group robots: Markdown of at most 4,096 bytes; the key is in the URL; success is `errcode` 0 in a 200.

use super::{Answer, Delivery, Post, Verdict, footer};
use serde_json::json;
use std::time::Duration;

pub(super) fn post(url: &str, d: &Delivery<'_>) -> Post {
    let content = format!("{}\n{}", d.message.text, footer(d));
    Post::json(url, &json!({ "msgtype": "markdown", "markdown": { "content": content } }))
}

pub(super) fn judge(a: &Answer) -> Verdict {
    let json = a.json().unwrap_or_default();
    match json["errcode"].as_i64() {
        Some(0) if a.ok() => Verdict::SENT,
        Some(45009 | 45033 | 45047) => {
            Verdict::rate_limited(a.retry_after.unwrap_or(Duration::from_secs(60)), a.quote())
        }
        Some(40001 | 40008 | 40014 | 40035 | 40058 | 41001 | 44004 | 45002 | 93000 | 93004 | 93008 | 93017) => {
            Verdict::permanent(a.quote())
        }
        _ => a.by_status().unwrap_or_else(|| Verdict::retry(a.quote())),
    }
}
