//! From rows to far ends: claim under the far end's limits, send with no transaction open, record how it went.

use crate::{
    Error, Notifier,
    markup::{Markup, one_line},
    mask::mask,
    providers::{self, Answer, Delivery, Job, Post, Verdict},
    rules,
    template::{self, Message},
};
use futures::future::join_all;
use reqwest::{
    Method,
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
};
use std::{collections::BTreeMap, time::Duration};
use tracing::Instrument;
use uuid::Uuid;
use windlass_domain::{
    Timestamp,
    catalog::{Channel, Provider},
    event::{Aggregate, NewEvent, Severity},
    ids::{EventId, NotificationId},
};
use windlass_runtime::{
    outbound::{OutboundError, Request},
    telemetry,
};
use windlass_store::{
    Error as StoreError, Tx, events,
    notifications::{self, Notification, Settled},
};

/// Failures in a row after which a far end is tried with one notification at a time, and with growing pauses.
const BREAK_AFTER: i64 = 5;
/// What a far end may ask us to wait.
const MIN_WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_secs(3600);
/// All places of a channel are taken, perhaps by another process.
const BUSY: Duration = Duration::from_millis(500);
/// A channel's dead letters raise one alert in this time; the others are there for the record.
const ALERT_EVERY: Duration = Duration::from_secs(3600);

enum Claim {
    Rows(Vec<Notification>),
    /// Nothing may be sent before this.
    Wait(Duration),
    Idle,
}

impl Notifier {
    /// Sends what is due on a channel. Returns when it is worth looking again, unless nothing waits.
    pub async fn serve(&self, name: &str) -> Result<Option<Duration>, Error> {
        loop {
            let mut read = self.store.read().await?;
            let channel = match notifications::channel(&mut read, name).await {
                Ok(Some(c)) => c,
                Ok(None) => {
                    drop(read);
                    self.bury(name, "the channel is no longer in the catalog; apply it again, then retry").await?;
                    return Ok(None);
                }
                Err(e @ (StoreError::Decode { .. } | StoreError::Unknown(_))) => {
                    drop(read);
                    // The next version may read it; the poll comes back to it.
                    self.hold(name, &format!("{e}; apply the channel again")).await?;
                    return Ok(None);
                }
                Err(e) => return Err(e.into()),
            };
            let secrets = match self.secrets(&mut read, &channel.provider).await? {
                Ok(s) => s,
                Err(missing) => {
                    drop(read);
                    // Stays due: once the secret is set, the next poll sends.
                    self.hold(name, &missing).await?;
                    return Ok(None);
                }
            };
            drop(read);
            match self.claim(&channel).await? {
                Claim::Rows(rows) => {
                    for settled in join_all(rows.iter().map(|n| self.deliver(n, &channel, &secrets))).await {
                        settled?;
                    }
                }
                Claim::Wait(pause) => return Ok(Some(pause)),
                Claim::Idle => {
                    let mut read = self.store.read().await?;
                    let now = read.now().await?;
                    let next = notifications::next_due(&mut read, name).await?;
                    return Ok(next.map(|at| (at - now).to_std().unwrap_or_default().max(Duration::from_millis(10))));
                }
            }
        }
    }

    /// Opens the secrets of a provider, or says which one is missing and how to set it.
    async fn secrets(
        &self,
        read: &mut Tx,
        p: &Provider,
    ) -> Result<Result<BTreeMap<String, String>, String>, StoreError> {
        let mut out = BTreeMap::new();
        for name in providers::secrets_of(p) {
            let Some(sealed) = notifications::channel_secret(read, name).await? else {
                return Ok(Err(format!(
                    "the secret `channel/{name}` is not set: run `windlass secret set channel/{name}`"
                )));
            };
            let opened = self.sealer.open("channel", name, &sealed).ok().and_then(|b| String::from_utf8(b).ok());
            let Some(value) = opened else {
                return Ok(Err(format!(
                    "the secret `channel/{name}` does not open with this installation's master key, or is no text: run `windlass secret set channel/{name}`"
                )));
            };
            out.insert(name.to_owned(), value);
        }
        Ok(Ok(out))
    }

    async fn hold(&self, channel: &str, reason: &str) -> Result<(), StoreError> {
        if !notifications::unheld(&mut self.store.read().await?, channel, reason).await? {
            return Ok(());
        }
        tracing::warn!(channel, reason, "notifications are held");
        let mut tx = self.store.write().await?;
        let now = tx.now().await?;
        notifications::hold(&mut tx, channel, reason, now).await?;
        tx.commit().await
    }

    async fn bury(&self, channel: &str, reason: &str) -> Result<(), StoreError> {
        let mut tx = self.store.write().await?;
        let now = tx.now().await?;
        for n in notifications::bury(&mut tx, channel, reason, now).await? {
            let message: Option<Message> = serde_json::from_value(n.message.clone()).ok();
            raise_dead(&mut tx, &DeadLetter::of(&n, reason), message.as_ref(), now).await?;
            self.count("none", "dead");
        }
        tx.commit().await
    }

    /// Leases as many notifications as the far end allows now.
    async fn claim(&self, channel: &Channel) -> Result<Claim, StoreError> {
        let (limit, key) = (providers::limit(&channel.provider), providers::rate_key(&channel.provider));
        let mut tx = self.store.write().await?;
        let now = tx.now().await?;
        let mut rate = notifications::rate(&mut tx, &key, limit.burst, now).await?;
        if let Some(wait) = rate.blocked_until.and_then(|t| (t - now).to_std().ok()).filter(|w| !w.is_zero()) {
            return Ok(Claim::Wait(wait));
        }
        let places = if rate.failures >= BREAK_AFTER { 1 } else { self.knobs.per_channel };
        let places = places.saturating_sub(notifications::leased(&mut tx, &channel.name, now).await?);
        if places == 0 {
            return Ok(Claim::Wait(BUSY));
        }
        let elapsed = (now - rate.refilled_at).to_std().unwrap_or_default().as_secs_f64();
        rate.tokens = (rate.tokens + elapsed * limit.per_second).min(limit.burst);
        rate.refilled_at = now;
        // Both bounds are small; the cast cannot cut.
        let allowed = (rate.tokens.floor() as u32).min(places);
        if allowed == 0 {
            let seconds = (1.0 - rate.tokens) / limit.per_second;
            return Ok(Claim::Wait(Duration::from_secs_f64(seconds.max(0.001))));
        }
        let rows = notifications::claim(&mut tx, &channel.name, now, self.knobs.lease, allowed).await?;
        if rows.is_empty() {
            return Ok(Claim::Idle);
        }
        rate.tokens -= rows.len() as f64;
        notifications::set_rate(&mut tx, &key, &rate).await?;
        tx.commit().await?;
        Ok(Claim::Rows(rows))
    }

    /// One try, from the lease to its end.
    async fn deliver(
        &self,
        n: &Notification,
        channel: &Channel,
        secrets: &BTreeMap<String, String>,
    ) -> Result<(), StoreError> {
        let provider = &channel.provider;
        let message = self.message(n, channel).await?;
        let trace = message.as_ref().and_then(|m| m.trace.as_deref());
        let span = telemetry::span_with_parent(
            tracing::info_span!("deliver", notification = %n.id, channel = channel.name),
            trace,
        );
        let verdict = match &message {
            None => Verdict::permanent("the stored message cannot be read by this version"),
            Some(message) => {
                let d = Delivery { key: n.id, message, secrets, now: chrono::Utc::now() };
                match providers::job(provider, &d) {
                    Err(reason) => Verdict::permanent(reason),
                    Ok(job) => self.attempt(provider, job).instrument(span).await,
                }
            }
        };
        let clean = |reason: &str| one_line(&mask(reason, secrets), 500);
        let verdict = match verdict {
            Verdict::Sent { note } => {
                // That the channel's template is broken stays to be seen after the default text went out.
                let note = note.or_else(|| message.as_ref().and_then(|m| m.template_error.clone()));
                Verdict::Sent { note: note.as_deref().map(clean) }
            }
            Verdict::Retry { after, reason } => Verdict::Retry { after, reason: clean(&reason) },
            Verdict::RateLimited { after, reason } => Verdict::RateLimited { after, reason: clean(&reason) },
            Verdict::Permanent { reason } => Verdict::Permanent { reason: clean(&reason) },
        };
        self.settle(n, provider, message.as_ref(), verdict).await
    }

    /// The stored message; rendered anew when the channel has changed its provider since.
    async fn message(&self, n: &Notification, channel: &Channel) -> Result<Option<Message>, StoreError> {
        let stored: Option<Message> = serde_json::from_value(n.message.clone()).ok();
        let fits = |m: &Message| {
            m.markup == Markup::of(&channel.provider).as_str()
                && (m.data.is_some() || !matches!(channel.provider, Provider::Webhook { .. }))
        };
        if stored.as_ref().is_some_and(fits) {
            return Ok(stored);
        }
        let mut read = self.store.read().await?;
        let Some(event) = events::get(&mut read, n.event_id).await? else { return Ok(stored) };
        let facts = self.facts(&mut read, &event).await?;
        Ok(Some(template::render(&event, &facts, channel)))
    }

    async fn attempt(&self, provider: &Provider, job: Job) -> Verdict {
        match job {
            Job::Http(post) => self.post(provider, post).await,
            Job::Mail(mail) => mail.send(&self.outbound, &self.mail_roots, self.knobs.timeout).await,
        }
    }

    async fn post(&self, provider: &Provider, post: Post) -> Verdict {
        let mut request = Request::new(Method::POST, post.url);
        request.timeout = self.knobs.timeout;
        request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        for (name, value) in post.headers {
            match HeaderValue::from_str(&value) {
                Ok(v) => request.headers.insert(HeaderName::from_static(name), v),
                Err(_) => return Verdict::permanent(format!("the header `{name}` cannot be written")),
            };
        }
        request.body = post.body;
        match self.outbound.send(request).await {
            Ok(response) => providers::judge(provider, &Answer::of(&response, chrono::Utc::now())),
            Err(OutboundError::Url { reason, .. }) => {
                Verdict::permanent(format!("the secret with the channel's address is no usable address: {reason}"))
            }
            Err(e) if !e.retryable() => Verdict::permanent(e.to_string()),
            Err(e) => Verdict::retry(chain(e)),
        }
    }

    async fn settle(
        &self,
        n: &Notification,
        p: &Provider,
        message: Option<&Message>,
        verdict: Verdict,
    ) -> Result<(), StoreError> {
        let (limit, key) = (providers::limit(p), providers::rate_key(p));
        let mut tx = self.store.write().await?;
        let now = tx.now().await?;
        let mut rate = notifications::rate(&mut tx, &key, limit.burst, now).await?;
        let (outcome, settled) = self.decide(n, verdict, &mut rate, now);
        if !notifications::settle(&mut tx, n, &settled, now).await? {
            // The lease ran out and another process has it now; its word counts.
            tracing::warn!(notification = %n.id, channel = n.channel, "a delivery took longer than its lease");
            return Ok(());
        }
        notifications::set_rate(&mut tx, &key, &rate).await?;
        match &settled {
            Settled::Sent { .. } => {}
            Settled::Again { error, counted, .. } => {
                if *counted && n.attempts == 1 {
                    let payload = payload(&DeadLetter::of(n, error), message);
                    events::append(
                        &mut tx,
                        event("notification.failing", &n.channel, n.project.as_deref(), Severity::Info, payload, now),
                    )
                    .await?;
                }
            }
            Settled::Dead { error } => raise_dead(&mut tx, &DeadLetter::of(n, error), message, now).await?,
        }
        tx.commit().await?;
        self.count(providers::kind(p), outcome);
        match &settled {
            Settled::Sent { note } => {
                tracing::debug!(notification = %n.id, channel = n.channel, attempt = n.attempts, note, "notification sent");
            }
            Settled::Again { at, error, .. } => {
                tracing::info!(notification = %n.id, channel = n.channel, attempt = n.attempts, error, next = %at, "notification failed, will be tried again");
            }
            Settled::Dead { error } => {
                tracing::warn!(notification = %n.id, channel = n.channel, attempt = n.attempts, error, "notification given up");
            }
        }
        Ok(())
    }

    /// What a verdict means for the row and for the far end.
    fn decide(
        &self,
        n: &Notification,
        verdict: Verdict,
        rate: &mut notifications::Rate,
        now: Timestamp,
    ) -> (&'static str, Settled) {
        match verdict {
            Verdict::Sent { note } => {
                (rate.failures, rate.blocked_until) = (0, None);
                ("sent", Settled::Sent { note })
            }
            Verdict::Permanent { reason } => ("dead", Settled::Dead { error: reason }),
            Verdict::Retry { after, reason } => {
                rate.failures = rate.failures.saturating_add(1);
                if rate.failures >= BREAK_AFTER {
                    let doublings = u32::try_from(rate.failures - BREAK_AFTER).unwrap_or(u32::MAX).min(16);
                    rate.blocked_until =
                        Some(now + jitter((self.knobs.break_first * (1 << doublings)).min(self.knobs.break_max)));
                }
                if n.attempts >= self.knobs.tries {
                    return (
                        "dead",
                        Settled::Dead { error: format!("given up after {} tries; the last: {reason}", n.attempts) },
                    );
                }
                let asked = after.map(|a| a.clamp(MIN_WAIT, MAX_WAIT)).unwrap_or_default();
                let pause = self.backoff(n.attempts).max(asked);
                ("failed", Settled::Again { at: now + pause, error: reason, counted: true })
            }
            Verdict::RateLimited { after, reason } => {
                let pause = after.unwrap_or_else(|| self.backoff(n.attempts)).clamp(MIN_WAIT, MAX_WAIT);
                let until = now + pause;
                rate.blocked_until = rate.blocked_until.max(Some(until));
                let since = n.retried_at.unwrap_or(n.created_at);
                if (now - since).to_std().is_ok_and(|age| age > self.knobs.patience) {
                    let hours = self.knobs.patience.as_secs() / 3600;
                    return (
                        "dead",
                        Settled::Dead { error: format!("told to come later for {hours} hours; the last: {reason}") },
                    );
                }
                ("rate_limited", Settled::Again { at: until, error: reason, counted: false })
            }
        }
    }

    /// Grows fourfold from the first pause to the longest, with jitter.
    fn backoff(&self, attempts: u32) -> Duration {
        let exponent = attempts.saturating_sub(1).min(15);
        jitter(self.knobs.retry_first.saturating_mul(4u32.saturating_pow(exponent)).min(self.knobs.retry_max))
    }

    fn count(&self, provider: &str, outcome: &str) {
        self.health
            .counter(
                "windlass_notifications_total",
                "Tries to deliver a notification, by provider and outcome",
                &["provider", "outcome"],
            )
            .with_label_values(&[provider, outcome])
            .inc();
    }
}

fn jitter(d: Duration) -> Duration {
    d.mul_f64(rand::random_range(0.8..1.2))
}

/// An error with its causes, but for those that repeat the address.
fn chain(e: OutboundError) -> String {
    let text = e.to_string();
    let cause = match e {
        OutboundError::Connect { source, .. } | OutboundError::Exchange { source, .. } => {
            deepest(&source.without_url())
        }
        OutboundError::Resolve { source, .. } => Some(source.to_string()),
        _ => None,
    };
    cause.map(|c| format!("{text}: {c}")).unwrap_or(text)
}

fn deepest(e: &dyn std::error::Error) -> Option<String> {
    let mut cause = e.source()?;
    while let Some(next) = cause.source() {
        cause = next;
    }
    Some(cause.to_string())
}

/// A notification given up.
pub(crate) struct DeadLetter<'a> {
    pub(crate) id: NotificationId,
    pub(crate) channel: &'a str,
    pub(crate) project: Option<&'a str>,
    pub(crate) attempts: u32,
    pub(crate) reason: &'a str,
}

impl<'a> DeadLetter<'a> {
    fn of(n: &'a Notification, reason: &'a str) -> DeadLetter<'a> {
        DeadLetter { id: n.id, channel: &n.channel, project: n.project.as_deref(), attempts: n.attempts, reason }
    }
}

fn payload(d: &DeadLetter<'_>, about: Option<&Message>) -> serde_json::Value {
    serde_json::json!({
        "notification": d.id,
        "channel": d.channel,
        "about": about.map(|m| &m.event),
        "about_event": about.map(|m| m.event_id),
        "attempts": d.attempts,
        "error": d.reason,
        "message": format!(
            "Channel `{}` did not take the message “{}”: {}",
            d.channel,
            about.map(|m| m.title.as_str()).unwrap_or_default(),
            d.reason
        ),
    })
}

/// Records a dead letter. It alerts once in a while a channel, and never about the message that told of another dead
/// letter: that way two broken channels would keep each other busy.
pub(crate) async fn raise_dead(
    tx: &mut Tx,
    d: &DeadLetter<'_>,
    about: Option<&Message>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let told = about.is_some_and(|m| m.event == rules::DEAD);
    let quiet = told || notifications::alerted_since(tx, d.channel, now - ALERT_EVERY).await?;
    let severity = if quiet { Severity::Info } else { Severity::Alert };
    events::append(tx, event(rules::DEAD, d.channel, d.project, severity, payload(d, about), now)).await?;
    Ok(())
}

/// Events about notifications are streams by channel.
fn event(
    what: &str,
    channel: &str,
    project: Option<&str>,
    severity: Severity,
    payload: serde_json::Value,
    at: Timestamp,
) -> NewEvent {
    NewEvent {
        id: EventId(Uuid::now_v7()),
        aggregate: Aggregate::Notification,
        aggregate_id: channel.into(),
        what: what.into(),
        project: project.map(Into::into),
        environment: None,
        severity,
        actor: "service:notifier".into(),
        at,
        payload,
        trace: None,
    }
}
