//! DingTalk robots: Markdown; time and signature in the URL; success is `errcode` 0 in a 200.

use super::{Answer, Delivery, Post, Verdict, footer, hmac_base64};
use serde_json::json;
use std::time::Duration;

/// A robot that went over its limit is silenced this long.
const SILENCED: Duration = Duration::from_secs(600);

pub(super) fn post(url: &str, sign: Option<&str>, d: &Delivery<'_>) -> Result<Post, String> {
    let m = d.message;
    let body = json!({
        "msgtype": "markdown",
        "markdown": { "title": m.title, "text": format!("{}\n\n{}", m.text, footer(d)) },
        "at": { "isAtAll": false },
    });
    let mut url = reqwest::Url::parse(url).map_err(|e| format!("the channel's address is no URL: {e}"))?;
    if let Some(secret) = sign {
        let ts = d.now.timestamp_millis().to_string();
        let sign = hmac_base64(secret.as_bytes(), format!("{ts}\n{secret}").as_bytes());
        url.query_pairs_mut().append_pair("timestamp", &ts).append_pair("sign", &sign);
    }
    Ok(Post::json(url, &body))
}

pub(super) fn judge(a: &Answer) -> Verdict {
    let json = a.json().unwrap_or_default();
    match json["errcode"].as_i64() {
        Some(0) if a.ok() => Verdict::SENT,
        Some(130101 | 302033 | 410100) => Verdict::rate_limited(a.retry_after.unwrap_or(SILENCED), a.quote()),
        Some(310000) => Verdict::permanent(format!(
            "{}: the robot's security settings refuse it; check the `sign` secret, its keywords and allowed addresses",
            a.quote()
        )),
        Some(300001 | 300005 | 400101 | 400102 | 400013 | 400014 | 40035 | 43004 | 430101..=430104) => {
            Verdict::permanent(a.quote())
        }
        _ => a.by_status().unwrap_or_else(|| Verdict::retry(a.quote())),
    }
}
