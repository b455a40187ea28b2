//! Microsoft Teams: an adaptive card to a workflow webhook.

use super::{Answer, Delivery, Post, Verdict, footer};
use crate::markup::Markup;
use serde_json::json;
use windlass_domain::event::Severity;

pub(super) fn post(url: &str, d: &Delivery<'_>) -> Post {
    let m = d.message;
    let colour = match m.severity {
        Severity::Info => "default",
        Severity::Notice => "good",
        Severity::Action => "warning",
        Severity::Alert => "attention",
    };
    let title = Markup::Teams.escape(&m.title);
    let card = json!({
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [
            { "type": "TextBlock", "text": title, "weight": "bolder", "size": "medium", "color": colour, "wrap": true },
            { "type": "TextBlock", "text": m.text, "wrap": true },
            { "type": "TextBlock", "text": footer(d), "isSubtle": true, "size": "small" },
        ],
        "actions": [{ "type": "Action.OpenUrl", "title": "Open in Windlass", "url": m.link }],
    });
    let attachment =
        json!({ "contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": null, "content": card });
    Post::json(url, &json!({ "type": "message", "attachments": [attachment] }))
}

pub(super) fn judge(a: &Answer) -> Verdict {
    if let Some(v) = a.by_status() {
        return v;
    }
    // Connectors answer 200 and tell of a failure behind them in the text.
    let said = a.body.to_ascii_lowercase();
    if said.contains("delivery failed") || said.contains("returned http error") {
        return if said.contains("429") {
            Verdict::rate_limited(a.retry_after, a.quote())
        } else {
            Verdict::retry(a.quote())
        };
    }
    if said.trim_start().starts_with("<!doctype") || said.trim_start().starts_with("<html") {
        return Verdict::retry(format!("HTTP {}: a web page answered, not a workflow", a.status));
    }
    Verdict::SENT
}
