//! Signed webhooks by the Standard Webhooks specification: the event as `CloudEvent`, the text beside it.

use super::{Answer, Delivery, Post, Verdict, hmac_base64};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::json;

/// Secrets are pasted with and without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub(super) fn post(url: &str, sign: &str, d: &Delivery<'_>) -> Result<Post, String> {
    let m = d.message;
    let body = json!({
        "type": m.event,
        "timestamp": m.data.as_ref().map(|e| e["time"].clone()).unwrap_or_default(),
        "data": m.data,
        "title": m.title,
        "text": m.text,
        "severity": m.severity,
        "link": m.link,
    })
    .to_string();
    let (id, ts) = (d.key.to_string(), d.now.timestamp().to_string());
    let mut signatures = Vec::new();
    // Several secrets apart by spaces: each signs, so that keys can be changed without a gap.
    for secret in sign.split_whitespace() {
        let key = secret
            .strip_prefix("whsec_")
            .and_then(|s| LENIENT.decode(s).ok())
            .filter(|k| !k.is_empty())
            .ok_or("the channel's `sign` secret must be `whsec_` and base64")?;
        signatures.push(format!("v1,{}", hmac_base64(&key, format!("{id}.{ts}.{body}").as_bytes())));
    }
    if signatures.is_empty() {
        return Err("the channel's `sign` secret is empty; it must be `whsec_` and base64".into());
    }
    let headers = vec![("webhook-id", id), ("webhook-timestamp", ts), ("webhook-signature", signatures.join(" "))];
    Ok(Post { headers, ..Post { url: url.into(), headers: vec![], body: body.into_bytes() } })
}

/// By the specification any 2xx is success and anything else is tried again, but for 410: the receiver is gone for good.
pub(super) fn judge(a: &Answer) -> Verdict {
    match a.status {
        200..300 => Verdict::SENT,
        410 => Verdict::permanent(format!("{}: the receiver says it is gone for good", a.quote())),
        429 => Verdict::RateLimited { after: a.retry_after, reason: a.quote() },
        300..400 => Verdict::permanent(format!(
            "{}: the address redirects, and redirects are not followed; set the address it leads to",
            a.quote()
        )),
        _ => Verdict::Retry { after: a.retry_after, reason: a.quote() },
    }
}
