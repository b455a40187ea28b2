//! `http.check`: ask a URL from the host until it answers as it should.
//!
//! Parameters: `url`; optional `within` (default 30s), `status` (default: any 2xx), `expect_body` (a text the body must
//! hold), `interval` (default 1s; the first tries come quicker).

use super::{Done, Outcome, fetch::chain, params::Params};
use crate::runner::Context;
use serde_json::Value;
use std::time::Duration;
use tokio::time::Instant;

const MAX_BODY: usize = 1 << 20;

/// One request never follows a redirect by itself. Plain HTTP skips loading the system's certificates, which costs more
/// than the whole rest of a check.
pub(super) fn client(tls: bool) -> Result<reqwest::Client, String> {
    let b = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(10))
        .user_agent(concat!("windlass-agent/", env!("CARGO_PKG_VERSION")));
    let b = if tls { b } else { b.tls_certs_only([]) };
    b.build().map_err(|e| format!("cannot make an HTTP client: {}", chain(&e)))
}

pub(super) async fn check(ctx: &Context, index: u32, p: &Params<'_>) -> Outcome {
    let url = p.text("url")?;
    let within = p.opt_duration("within")?.unwrap_or(Duration::from_secs(30));
    let interval = p.opt_duration("interval")?.unwrap_or(Duration::from_secs(1));
    let body = p.opt_text("expect_body")?;
    let status = statuses(p.get("status"))?;
    let parsed = reqwest::Url::parse(&url).map_err(|e| format!("`url` {url:?} is not a URL: {e}"))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(format!("`url` must be http or https, got {url:?}").into());
    }
    let client = client(parsed.scheme() == "https")?;
    let until = Instant::now() + within;
    // A service that was just started answers soon: the first tries come quicker than the interval.
    let mut pause = interval.min(Duration::from_millis(25));
    let mut tries = 0;
    let mut last = String::new();
    loop {
        tries += 1;
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
        let one = ask(&client, &parsed, &status, body.as_deref());
        let why = match tokio::time::timeout(left.min(Duration::from_secs(10)), one).await {
            Ok(Ok(said)) => {
                ctx.note(index, &format!("{url} {said}, try {tries}"));
                return Ok(Done::default());
            }
            Ok(Err(why)) => why,
            Err(_) => "did not answer in time".to_owned(),
        };
        if why != last {
            ctx.note(index, &format!("{url} {why}"));
            last.clone_from(&why);
        }
        if Instant::now() + pause >= until {
            return Err(format!("{url} {why}; tried {tries} times within {} s", within.as_secs_f32()).into());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(interval).max(Duration::from_millis(1));
    }
}

fn statuses(v: Option<&Value>) -> Result<Vec<u16>, String> {
    let one = |v: &Value| {
        let n = v.as_u64().or_else(|| v.as_str().and_then(|s| s.parse().ok()));
        n.and_then(|n| u16::try_from(n).ok()).filter(|n| (100..600).contains(n))
    };
    let bad = || "`status` must be an HTTP status or a list of them".to_owned();
    match v {
        None => Ok(vec![]),
        Some(Value::Array(a)) => a.iter().map(|v| one(v).ok_or_else(bad)).collect(),
        Some(v) => Ok(vec![one(v).ok_or_else(bad)?]),
    }
}

async fn ask(c: &reqwest::Client, url: &reqwest::Url, status: &[u16], body: Option<&str>) -> Result<String, String> {
    let mut r = c.get(url.clone()).send().await.map_err(|e| format!("cannot be asked: {}", chain(&e)))?;
    let got = r.status();
    let fits = if status.is_empty() { got.is_success() } else { status.contains(&got.as_u16()) };
    if !fits {
        return Err(format!("answered {got}"));
    }
    let Some(want) = body else { return Ok(format!("answered {got}")) };
    let mut bytes = Vec::new();
    while let Some(c) = r.chunk().await.map_err(|e| format!("broke off: {}", chain(&e)))? {
        bytes.extend_from_slice(&c[..c.len().min(MAX_BODY - bytes.len())]);
        if bytes.len() >= MAX_BODY {
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    if text.contains(want) {
        return Ok(format!("answered {got} with the expected text"));
    }
    let start: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
    Err(format!("answered {got}, but its body has no {want:?}; it begins with {start:?}"))
}
