//! Slack incoming webhooks (and what speaks like them): blocks in mrkdwn, answered by the word `ok`.

use super::{Answer, Delivery, Post, Verdict, footer};
use crate::markup::Markup;
use serde_json::json;

pub(super) fn post(url: &str, d: &Delivery<'_>) -> Post {
    let m = d.message;
    let body = json!({
        // Shown in notifications and by clients without blocks.
        "text": Markup::Slack.escape(&m.title),
        "link_names": false,
        "unfurl_links": false,
        "unfurl_media": false,
        "blocks": [
            // `verbatim`: nothing in the text becomes a mention or a channel link by itself.
            { "type": "section", "text": { "type": "mrkdwn", "text": m.text, "verbatim": true } },
            { "type": "context", "elements": [{ "type": "plain_text", "text": footer(d), "emoji": false }] },
        ],
    });
    Post::json(url, &body)
}

pub(super) fn judge(a: &Answer) -> Verdict {
    if let Some(v) = a.by_status() {
        return v;
    }
    let said = a.body.trim();
    let flag = |key: &str| a.json().is_some_and(|j| j[key] == json!(true));
    if said == "ok" || flag("ok") || flag("success") {
        return Verdict::SENT;
    }
    Verdict::retry(format!("{}: Slack answers `ok` when it has taken a message", a.quote()))
}
