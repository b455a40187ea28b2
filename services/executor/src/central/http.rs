//! `http.request`: asked until the answer is as expected or the time is over; as a probe, asked once a look.

use super::{Done, chain, failed, failed_as, number, text};
use crate::shared::Shared;
use reqwest::{
    Method,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde_json::{Map, Value};
use std::time::Duration;
use tokio::time::Instant;
use windlass_bus::wake::Backoff;
use windlass_domain::{flow::statuses, mask::Masker, work::FailureClass};
use windlass_runtime::outbound::Request;

/// Longest single try of an HTTP request.
pub(super) const MAX_TRY: Duration = Duration::from_secs(30);
const MAX_BODY: usize = 256 * 1024;
/// Of the answer, this much is kept in the result.
const KEPT_BODY: usize = 2048;
/// A JSON answer up to this size is kept whole, for expressions to read.
const KEPT_JSON: usize = 16 * 1024;

/// Headers as a step gives them.
pub(super) fn headers(with: &Map<String, Value>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in with.get("headers").and_then(Value::as_object).into_iter().flatten() {
        let pair = name.parse::<HeaderName>().ok().zip(value.as_str().and_then(|v| HeaderValue::from_str(v).ok()));
        let Some((name, value)) = pair else { return Err(format!("header `{name}` cannot be sent")) };
        headers.insert(name, value);
    }
    Ok(headers)
}

/// Tries until the answer is as expected or `within_s` is over. The last answer is the output even of a failure.
pub(super) async fn run(
    shared: &Shared,
    key: &str,
    with: &Map<String, Value>,
    timeout: Duration,
    masker: &Masker,
) -> Done {
    let within = number(with, "within_s").map_or(timeout, Duration::from_secs).min(timeout);
    let deadline = Instant::now() + within;
    let mut pause = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
    let mut tries = 0_u32;
    loop {
        tries += 1;
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let mut done = once(shared, Some(key), with, left.min(MAX_TRY), tries, masker).await;
        let Some(reason) = done.failed.take() else { return done };
        let pause = pause.next();
        if done.class == Some(FailureClass::Refused) {
            return Done { failed: Some(reason), ..done };
        }
        if Instant::now() + pause >= deadline {
            return Done { failed: Some(format!("{reason} ({tries} tries in {} s)", within.as_secs())), ..done };
        }
        tokio::time::sleep(pause).await;
    }
}

/// One try. A failure of class `Refused` would come again.
pub(crate) async fn once(
    shared: &Shared,
    key: Option<&str>,
    with: &Map<String, Value>,
    timeout: Duration,
    tries: u32,
    masker: &Masker,
) -> Done {
    let refused = |reason: String| failed_as(FailureClass::Refused, reason);
    let Some(url) = text(with, "url") else { return refused("`url` is missing".into()) };
    let Ok(method) = text(with, "method").unwrap_or("GET").parse::<Method>() else {
        return refused("`method` is not one".into());
    };
    let mut headers = match headers(with) {
        Ok(h) => h,
        Err(reason) => return refused(reason),
    };
    if let Some(key) = key.and_then(|k| HeaderValue::from_str(k).ok()) {
        headers.insert("idempotency-key", key);
    }
    let usual = Value::from(200);
    let want = with.get("expect_status").unwrap_or(&usual);
    let contains = text(with, "expect_body");
    let request = Request {
        headers,
        body: text(with, "body").unwrap_or_default().as_bytes().to_vec(),
        timeout,
        max_response: MAX_BODY,
        ..Request::new(method, url)
    };
    let r = match shared.outbound.send(request).await {
        Ok(r) => r,
        Err(error) if error.retryable() => return failed_as(FailureClass::Timeout, chain(&error)),
        Err(error) => return refused(chain(&error)),
    };
    let body = String::from_utf8_lossy(&r.body);
    let fits = contains.is_none_or(|c| body.contains(c));
    let json = (r.body.len() <= KEPT_JSON).then(|| serde_json::from_str::<Value>(&body).ok()).flatten();
    // Masked before it is cut, or half a secret would stand at the end.
    let kept = crate::agents::cut(masker.text(&body), KEPT_BODY);
    let mut output = serde_json::json!({ "status": r.status, "body": kept, "tries": tries });
    if let (Some(json), Some(output)) = (json, output.as_object_mut()) {
        output.insert("json".into(), json);
    }
    let done = Done { output, ..Done::default() };
    let reason = if !statuses::fits(want, r.status) {
        format!("it answered {} instead of {}", r.status, statuses::shown(want))
    } else if !fits {
        format!("it answered {} without the expected text", r.status)
    } else {
        return done;
    };
    Done { output: done.output, ..failed(reason) }
}
