//! The providers: each turns a message into its own request and reads its own answer. What differs between them is here
//! and nowhere else. All but `email` are pure.

mod dingtalk;
mod email;
mod feishu;
mod slack;
mod teams;
mod webhook;
mod wecom;

pub(crate) use email::Mail;

use crate::template::Message;
use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::{collections::BTreeMap, time::Duration};
use windlass_domain::{Timestamp, catalog::Provider, ids::NotificationId};
use windlass_runtime::outbound::Response;

/// How one try ended, by the provider's own words. Reasons never hold a URL or a secret once [`mask`](crate::mask)ed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// With a note when only part of the recipients took it.
    Sent { note: Option<String> },
    /// It may work later.
    Retry { after: Option<Duration>, reason: String },
    /// The far end is well and wants fewer messages.
    RateLimited { after: Option<Duration>, reason: String },
    /// It will not work however often it is tried.
    Permanent { reason: String },
}

impl Verdict {
    pub(crate) const SENT: Verdict = Verdict::Sent { note: None };
    pub(crate) fn retry(reason: impl Into<String>) -> Verdict {
        Verdict::Retry { after: None, reason: reason.into() }
    }
    pub(crate) fn permanent(reason: impl Into<String>) -> Verdict {
        Verdict::Permanent { reason: reason.into() }
    }
    pub(crate) fn rate_limited(after: impl Into<Option<Duration>>, reason: impl Into<String>) -> Verdict {
        Verdict::RateLimited { after: after.into(), reason: reason.into() }
    }
}

/// What a delivery is made of.
#[derive(Debug)]
pub(crate) struct Delivery<'a> {
    /// The dedupe key, the same at every try.
    pub(crate) key: NotificationId,
    pub(crate) message: &'a Message,
    /// Opened channel secrets by name.
    pub(crate) secrets: &'a BTreeMap<String, String>,
    pub(crate) now: Timestamp,
}

impl Delivery<'_> {
    fn secret(&self, name: &str) -> &str {
        self.secrets.get(name).map(|s| s.trim()).unwrap_or_default()
    }
}

/// An HTTP POST to make.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Post {
    pub(crate) url: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

impl Post {
    fn json(url: impl Into<String>, body: &serde_json::Value) -> Post {
        Post { url: url.into(), headers: vec![], body: body.to_string().into_bytes() }
    }
}

/// What to do for a delivery.
#[derive(Debug)]
pub(crate) enum Job {
    Http(Post),
    Mail(Box<Mail>),
}

/// The request of one try. `Err` is a permanent reason.
pub(crate) fn job(provider: &Provider, d: &Delivery<'_>) -> Result<Job, String> {
    Ok(match provider {
        Provider::Slack { url } => Job::Http(slack::post(d.secret(url), d)),
        Provider::Feishu { url, sign } => {
            Job::Http(feishu::post(d.secret(url), sign.as_deref().map(|s| d.secret(s)), d))
        }
        Provider::Dingtalk { url, sign } => {
            Job::Http(dingtalk::post(d.secret(url), sign.as_deref().map(|s| d.secret(s)), d)?)
        }
        Provider::Wecom { url } => Job::Http(wecom::post(d.secret(url), d)),
        Provider::Teams { url } => Job::Http(teams::post(d.secret(url), d)),
        Provider::Webhook { url, sign } => Job::Http(webhook::post(d.secret(url), d.secret(sign), d)?),
        Provider::Email { server, tls, from, to, username, password } => {
            let login = match (username, password) {
                (Some(user), Some(password)) => Some((user.clone(), d.secret(password).to_owned())),
                (None, None) => None,
                _ => return Err("the channel gives a user name without a password, or the other way round".into()),
            };
            Job::Mail(Box::new(Mail::new(server, *tls, from, to, login, d)?))
        }
    })
}

/// The provider's verdict on an HTTP answer.
pub(crate) fn judge(provider: &Provider, answer: &Answer) -> Verdict {
    match provider {
        Provider::Slack { .. } => slack::judge(answer),
        Provider::Feishu { .. } => feishu::judge(answer),
        Provider::Dingtalk { .. } => dingtalk::judge(answer),
        Provider::Wecom { .. } => wecom::judge(answer),
        Provider::Teams { .. } => teams::judge(answer),
        Provider::Webhook { .. } => webhook::judge(answer),
        Provider::Email { .. } => Verdict::permanent("mail has no HTTP answer"),
    }
}

/// The names of the channel secrets a provider needs.
pub(crate) fn secrets_of(provider: &Provider) -> Vec<&str> {
    match provider {
        Provider::Slack { url } | Provider::Wecom { url } | Provider::Teams { url } => vec![url],
        Provider::Feishu { url, sign } | Provider::Dingtalk { url, sign } => {
            std::iter::once(url.as_str()).chain(sign.as_deref()).collect()
        }
        Provider::Webhook { url, sign } => vec![url, sign],
        Provider::Email { password, .. } => password.iter().map(String::as_str).collect(),
    }
}

pub(crate) fn kind(provider: &Provider) -> &'static str {
    match provider {
        Provider::Slack { .. } => "slack",
        Provider::Feishu { .. } => "feishu",
        Provider::Dingtalk { .. } => "dingtalk",
        Provider::Wecom { .. } => "wecom",
        Provider::Teams { .. } => "teams",
        Provider::Webhook { .. } => "webhook",
        Provider::Email { .. } => "email",
    }
}

/// What a provider lets through: `burst` at once, then `per_second`. Chosen so that burst + a whole window's refill stays
/// within what the provider documents.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Limit {
    pub(crate) burst: f64,
    pub(crate) per_second: f64,
}

pub(crate) fn limit(provider: &Provider) -> Limit {
    match provider {
        Provider::Slack { .. } => Limit { burst: 1.0, per_second: 1.0 },
        // 100 a minute and 5 a second: 3 + 1.6 in any second, 3 + 96 in any minute.
        Provider::Feishu { .. } => Limit { burst: 3.0, per_second: 1.6 },
        // 20 a minute; DingTalk silences a robot that goes over for ten minutes.
        Provider::Dingtalk { .. } | Provider::Wecom { .. } => Limit { burst: 5.0, per_second: 0.25 },
        Provider::Teams { .. } => Limit { burst: 2.0, per_second: 1.0 },
        Provider::Email { .. } => Limit { burst: 10.0, per_second: 2.0 },
        Provider::Webhook { .. } => Limit { burst: 50.0, per_second: 50.0 },
    }
}

/// Names the far end whose limit is shared: channels that use one URL secret are one robot.
pub(crate) fn rate_key(provider: &Provider) -> String {
    match provider {
        Provider::Email { server, .. } => format!("email:{server}"),
        other => format!("{}:{}", kind(other), secrets_of(other).first().copied().unwrap_or_default()),
    }
}

/// An HTTP answer as the providers read it.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn of(r: &Response, now: Timestamp) -> Answer {
        let header = |name: &str| r.headers.get(name).and_then(|v| v.to_str().ok());
        Answer {
            status: r.status,
            retry_after: header("retry-after").and_then(|v| retry_after(v, now)),
            body: String::from_utf8_lossy(&r.body).into_owned(),
        }
    }

    fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_str(&self.body).ok()
    }

    /// A short quotation for people.
    fn quote(&self) -> String {
        let line = crate::markup::one_line(&self.body, 200);
        if line.is_empty() { format!("HTTP {}", self.status) } else { format!("HTTP {}: {line}", self.status) }
    }

    /// The verdict by status alone, for a chat: a refused request will be refused again.
    fn by_status(&self) -> Option<Verdict> {
        match self.status {
            200..300 => None,
            429 => Some(Verdict::RateLimited { after: self.retry_after, reason: self.quote() }),
            300..400 => Some(Verdict::permanent(format!(
                "{}: the address redirects, and redirects are not followed; set the address it leads to",
                self.quote()
            ))),
            408 | 425 => Some(Verdict::Retry { after: self.retry_after, reason: self.quote() }),
            400..500 => Some(Verdict::permanent(self.quote())),
            _ => Some(Verdict::Retry { after: self.retry_after, reason: self.quote() }),
        }
    }
}

/// `Retry-After`: seconds or an HTTP date.
fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(s) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(s).ok();
    }
    let at = chrono::DateTime::parse_from_rfc2822(value).ok()?;
    Some((at.to_utc() - now).to_std().unwrap_or_default())
}

/// HMAC-SHA256, base64.
fn hmac_base64(key: &[u8], message: &[u8]) -> String {
    // HMAC takes keys of any length; the error type exists for other MACs.
    Hmac::<Sha256>::new_from_slice(key)
        .map(|mut mac| {
            mac.update(message);
            BASE64_STANDARD.encode(mac.finalize().into_bytes())
        })
        .unwrap_or_default()
}

/// The dedupe key as a reader's line, where the provider has no field for it.
fn footer(d: &Delivery<'_>) -> String {
    format!("windlass {}", d.key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = chrono::DateTime::parse_from_rfc2822("Wed, 21 Oct 2026 07:28:00 GMT").expect("date").to_utc();
        assert_eq!(retry_after("12", now), Some(Duration::from_secs(12)));
        assert_eq!(retry_after(" 0.5 ", now), Some(Duration::from_millis(500)));
        assert_eq!(retry_after("Wed, 21 Oct 2026 07:28:30 GMT", now), Some(Duration::from_secs(30)));
        assert_eq!(retry_after("Wed, 21 Oct 2026 07:27:30 GMT", now), Some(Duration::ZERO));
        for bad in ["soon", "-3", "nan", ""] {
            assert_eq!(retry_after(bad, now), None, "{bad}");
        }
    }

    #[test]
    fn the_mac_is_that_of_rfc_4231() {
        // Test case 2.
        assert_eq!(hmac_base64(b"Jefe", b"what do ya want for nothing?"), BASE64_STANDARD.encode(RFC_4231_2));
    }
    const RFC_4231_2: [u8; 32] = [
        0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e, 0x6a, 0x04, 0x24, 0x26, 0x08, 0x95, 0x75, 0xc7, 0x5a, 0x00,
        0x3f, 0x08, 0x9d, 0x27, 0x39, 0x83, 0x9d, 0xec, 0x58, 0xb9, 0x64, 0xec, 0x38, 0x43,
    ];
}
