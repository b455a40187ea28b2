//! Notifications: one row an event and channel, leased while it is being delivered, and what each far end still allows.

use crate::{Dialect, Error, Tx, Value, sql};
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{AssertSqlSafe, types::Json};
use std::time::Duration;
use uuid::Uuid;
use windlass_domain::{
    catalog::{Channel, Item},
    ids::{EventId, NotificationId},
};

/// Where a notification is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for its (next) try.
    Pending,
    /// The provider said it has it.
    Sent,
    /// Given up; a person sees it and may retry it.
    Dead,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Sent => "sent",
            State::Dead => "dead",
        }
    }
}

impl std::str::FromStr for State {
    type Err = Error;
    fn from_str(s: &str) -> Result<State, Error> {
        match s {
            "pending" => Ok(State::Pending),
            "sent" => Ok(State::Sent),
            "dead" => Ok(State::Dead),
            _ => Err(Error::Unknown("notifications.state")),
        }
    }
}

/// A stored notification.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Notification {
    pub id: NotificationId,
    pub event_id: EventId,
    pub channel: String,
    pub project: Option<String>,
    pub state: State,
    /// Tries that were begun and not taken back by a rate limit. With a lease it is the fence of that lease.
    pub attempts: u32,
    pub next_at: DateTime<Utc>,
    pub leased_until: Option<DateTime<Utc>>,
    pub message: serde_json::Value,
    pub last_error: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    /// When a person last queued it again.
    pub retried_at: Option<DateTime<Utc>>,
}

/// One to insert.
#[derive(Debug, Clone)]
pub struct NewNotification {
    pub id: NotificationId,
    pub event_id: EventId,
    pub channel: String,
    pub project: Option<String>,
    pub message: serde_json::Value,
    /// `Pending`, or `Dead` for one that is refused because its channel's queue is full.
    pub state: State,
    pub last_error: Option<String>,
}

const COLUMNS: &str = "id, event_id, channel, project, state, attempts, next_at, leased_until, message, last_error, created_at, \
                       updated_at, retried_at";

#[derive(Debug, sqlx::FromRow)]
struct Row {
    id: Uuid,
    event_id: Uuid,
    channel: String,
    project: Option<String>,
    state: String,
    attempts: i64,
    next_at: DateTime<Utc>,
    leased_until: Option<DateTime<Utc>>,
    message: Json<serde_json::Value>,
    last_error: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    retried_at: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for Notification {
    type Error = Error;
    fn try_from(r: Row) -> Result<Notification, Error> {
        Ok(Notification {
            id: NotificationId(r.id),
            event_id: EventId(r.event_id),
            channel: r.channel,
            project: r.project,
            state: r.state.parse()?,
            attempts: u32::try_from(r.attempts).unwrap_or(u32::MAX),
            next_at: r.next_at,
            leased_until: r.leased_until,
            message: r.message.0,
            last_error: r.last_error,
            created_at: r.created_at,
            updated_at: r.updated_at,
            retried_at: r.retried_at,
        })
    }
}

/// Stores a notification; `false` when this event and channel already have theirs.
pub async fn insert(tx: &mut Tx, n: &NewNotification, now: DateTime<Utc>) -> Result<bool, Error> {
    let rows = sql(
        "INSERT INTO notifications (id, event_id, channel, project, state, attempts, next_at, leased_until, message, last_error,
                                    created_at, updated_at, retried_at)
         VALUES ($1, $2, $3, $4, $5, 0, $6, NULL, $7, $8, $6, $6, NULL) ON CONFLICT DO NOTHING",
    )
    .bind(n.id)
    .bind(n.event_id)
    .bind(&n.channel)
    .bind(n.project.as_deref())
    .bind(n.state.as_str())
    .bind(now)
    .bind(Value::Json(Some(n.message.clone())))
    .bind(n.last_error.as_deref())
    .execute(tx)
    .await?;
    Ok(rows == 1)
}

pub async fn get(tx: &mut Tx, id: NotificationId) -> Result<Option<Notification>, Error> {
    let row: Option<Row> = sql(AssertSqlSafe(format!("SELECT {COLUMNS} FROM notifications WHERE id = $1")))
        .bind(id)
        .fetch_optional(tx)
        .await?;
    row.map(Notification::try_from).transpose()
}

/// A page, newest first. `after` is the `(created_at, id)` of the last row of the page before.
pub async fn list(
    tx: &mut Tx,
    state: Option<State>,
    channel: Option<&str>,
    after: Option<(DateTime<Utc>, NotificationId)>,
    limit: u32,
) -> Result<Vec<Notification>, Error> {
    let mut text = format!("SELECT {COLUMNS} FROM notifications WHERE 1 = 1");
    let mut values: Vec<Value> = Vec::new();
    if let Some(s) = state {
        values.push(s.as_str().into());
        text.push_str(&format!(" AND state = ${}", values.len()));
    }
    if let Some(c) = channel {
        values.push(c.into());
        text.push_str(&format!(" AND channel = ${}", values.len()));
    }
    if let Some((at, id)) = after {
        values.push(at.into());
        values.push(id.into());
        text.push_str(&format!(" AND (created_at, id) < (${}, ${})", values.len() - 1, values.len()));
    }
    values.push(limit.into());
    text.push_str(&format!(" ORDER BY created_at DESC, id DESC LIMIT ${}", values.len()));
    let rows: Vec<Row> = values.into_iter().fold(sql(AssertSqlSafe(text)), |q, v| q.bind(v)).fetch_all(tx).await?;
    rows.into_iter().map(Notification::try_from).collect()
}

/// Number of notifications of a channel that wait.
pub async fn pending(tx: &mut Tx, channel: &str) -> Result<u64, Error> {
    let n: Option<i64> = sql("SELECT COUNT(*) FROM notifications WHERE state = 'pending' AND channel = $1")
        .bind(channel)
        .fetch_scalar(tx)
        .await?;
    Ok(n.unwrap_or_default().unsigned_abs())
}

/// Channels with something to send now, the one that waited longest first.
pub async fn due_channels(tx: &mut Tx, now: DateTime<Utc>) -> Result<Vec<String>, Error> {
    let rows: Vec<(String,)> = sql("SELECT channel FROM notifications
         WHERE state = 'pending' AND next_at <= $1 AND (leased_until IS NULL OR leased_until <= $1)
         GROUP BY channel ORDER BY MIN(next_at)")
    .bind(now)
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(|(c,)| c).collect())
}

/// When the next notification of a channel comes due, or a lease on one ends.
pub async fn next_due(tx: &mut Tx, channel: &str) -> Result<Option<DateTime<Utc>>, Error> {
    let next: Option<(Option<DateTime<Utc>>,)> = sql(
        "SELECT MIN(CASE WHEN leased_until IS NOT NULL AND leased_until > next_at THEN leased_until ELSE next_at END)
         FROM notifications WHERE state = 'pending' AND channel = $1",
    )
    .bind(channel)
    .fetch_optional(tx)
    .await?;
    Ok(next.and_then(|(t,)| t))
}

/// Leases up to `limit` due notifications of one channel for `lease`. Call it with the far end's rate row locked
/// ([`rate`]), which is what keeps two processes from claiming beyond its limits.
pub async fn claim(
    tx: &mut Tx,
    channel: &str,
    now: DateTime<Utc>,
    lease: Duration,
    limit: u32,
) -> Result<Vec<Notification>, Error> {
    let skip = match tx.dialect() {
        Dialect::Sqlite => "",
        Dialect::Postgres => " FOR UPDATE SKIP LOCKED",
    };
    let rows: Vec<Row> = sql(AssertSqlSafe(format!(
        "UPDATE notifications SET leased_until = $1, attempts = attempts + 1, updated_at = $2
         WHERE id IN (SELECT id FROM notifications
                      WHERE state = 'pending' AND channel = $3 AND next_at <= $2 AND (leased_until IS NULL OR leased_until <= $2)
                      ORDER BY next_at, id LIMIT $4{skip})
         RETURNING {COLUMNS}"
    )))
    .bind(now + lease)
    .bind(now)
    .bind(channel)
    .bind(limit)
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(Notification::try_from).collect()
}

/// Number of notifications of a channel being delivered right now, by any process.
pub async fn leased(tx: &mut Tx, channel: &str, now: DateTime<Utc>) -> Result<u32, Error> {
    let n: Option<i64> =
        sql("SELECT COUNT(*) FROM notifications WHERE state = 'pending' AND channel = $1 AND leased_until > $2")
            .bind(channel)
            .bind(now)
            .fetch_scalar(tx)
            .await?;
    Ok(u32::try_from(n.unwrap_or_default()).unwrap_or(u32::MAX))
}

/// Notes on all waiting notifications of a channel why they cannot be tried yet; they stay due.
pub async fn hold(tx: &mut Tx, channel: &str, reason: &str, now: DateTime<Utc>) -> Result<u64, Error> {
    sql("UPDATE notifications SET last_error = $1, updated_at = $2
         WHERE state = 'pending' AND channel = $3 AND (last_error IS NULL OR last_error <> $1)")
    .bind(reason)
    .bind(now)
    .bind(channel)
    .execute(tx)
    .await
}

/// Whether [`hold`] with this reason would change anything.
pub async fn unheld(tx: &mut Tx, channel: &str, reason: &str) -> Result<bool, Error> {
    let n: Option<i64> = sql("SELECT COUNT(*) FROM notifications
         WHERE state = 'pending' AND channel = $2 AND (last_error IS NULL OR last_error <> $1)")
    .bind(reason)
    .bind(channel)
    .fetch_scalar(tx)
    .await?;
    Ok(n.unwrap_or_default() > 0)
}

/// How a try ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// With a note when it went well only in part.
    Sent {
        note: Option<String>,
    },
    /// `counted`: the try counts towards the bound.
    Again {
        at: DateTime<Utc>,
        error: String,
        counted: bool,
    },
    Dead {
        error: String,
    },
}

/// Records how the leased try `n.attempts` ended. `false`: the lease was lost and somebody else decides. Only that it was
/// sent is true whoever holds the lease, and recording it keeps the other from sending once more.
pub async fn settle(tx: &mut Tx, n: &Notification, settled: &Settled, now: DateTime<Utc>) -> Result<bool, Error> {
    let rows = match settled {
        Settled::Sent { note } => {
            sql("UPDATE notifications SET state = 'sent', last_error = $1, leased_until = NULL, updated_at = $2
                 WHERE id = $3 AND state = 'pending'")
            .bind(note.as_deref())
            .bind(now)
            .bind(n.id)
            .execute(tx)
            .await?
        }
        Settled::Again { at, error, counted } => {
            failed(
                tx,
                n,
                State::Pending,
                *at,
                error,
                if *counted { n.attempts } else { n.attempts.saturating_sub(1) },
                now,
            )
            .await?
        }
        Settled::Dead { error } => failed(tx, n, State::Dead, n.next_at, error, n.attempts, now).await?,
    };
    Ok(rows == 1)
}

async fn failed(
    tx: &mut Tx,
    n: &Notification,
    state: State,
    next_at: DateTime<Utc>,
    error: &str,
    attempts: u32,
    now: DateTime<Utc>,
) -> Result<u64, Error> {
    sql(
        "UPDATE notifications SET state = $1, next_at = $2, last_error = $3, attempts = $4, leased_until = NULL, updated_at = $5
         WHERE id = $6 AND state = 'pending' AND attempts = $7 AND leased_until IS NOT NULL",
    )
    .bind(state.as_str())
    .bind(next_at)
    .bind(error)
    .bind(attempts)
    .bind(now)
    .bind(n.id)
    .bind(n.attempts)
    .execute(tx)
    .await
}

/// Gives up every waiting notification of a channel that nobody is delivering; returns them.
pub async fn bury(tx: &mut Tx, channel: &str, reason: &str, now: DateTime<Utc>) -> Result<Vec<Notification>, Error> {
    let rows: Vec<Row> = sql(AssertSqlSafe(format!(
        "UPDATE notifications SET state = 'dead', last_error = $1, leased_until = NULL, updated_at = $2
         WHERE state = 'pending' AND channel = $3 AND (leased_until IS NULL OR leased_until <= $2) RETURNING {COLUMNS}"
    )))
    .bind(reason)
    .bind(now)
    .bind(channel)
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(Notification::try_from).collect()
}

/// For the api: asks that a dead notification be queued again. `false` when there is no dead one of this id. Append an
/// event in the same transaction: it is the audit, and it wakes the notifier.
pub async fn request_retry(
    tx: &mut Tx,
    id: NotificationId,
    requested_by: &str,
    now: DateTime<Utc>,
) -> Result<bool, Error> {
    let dead: Option<i64> =
        sql("SELECT COUNT(*) FROM notifications WHERE id = $1 AND state = 'dead'").bind(id).fetch_scalar(tx).await?;
    if dead != Some(1) {
        return Ok(false);
    }
    sql("INSERT INTO notification_retries (id, requested_by, at) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING")
        .bind(id)
        .bind(requested_by)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(true)
}

/// Queues again what people asked for; returns the ids.
pub async fn apply_retries(tx: &mut Tx, now: DateTime<Utc>) -> Result<Vec<NotificationId>, Error> {
    let asked: Vec<(Uuid,)> = sql("DELETE FROM notification_retries RETURNING id").fetch_all(tx).await?;
    let mut queued = Vec::new();
    for (id,) in asked {
        let rows = sql(
            "UPDATE notifications SET state = 'pending', attempts = 0, next_at = $1, retried_at = $1, updated_at = $1,
                    leased_until = NULL WHERE id = $2 AND state = 'dead'",
        )
        .bind(now)
        .bind(id)
        .execute(tx)
        .await?;
        if rows == 1 {
            queued.push(NotificationId(id));
        }
    }
    Ok(queued)
}

/// Whether somebody asked for a retry.
pub async fn has_retries(tx: &mut Tx) -> Result<bool, Error> {
    let n: Option<i64> = sql("SELECT COUNT(*) FROM notification_retries").fetch_scalar(tx).await?;
    Ok(n.unwrap_or_default() > 0)
}

/// What a far end still allows.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Rate {
    pub tokens: f64,
    pub refilled_at: DateTime<Utc>,
    pub blocked_until: Option<DateTime<Utc>>,
    /// Failed tries in a row.
    pub failures: i64,
}

/// The rate row of a far end, made full on first use. It stays locked until commit.
pub async fn rate(tx: &mut Tx, key: &str, full: f64, now: DateTime<Utc>) -> Result<Rate, Error> {
    let rate: Option<Rate> = sql(
        "INSERT INTO channel_rates (channel, tokens, refilled_at, blocked_until, failures) VALUES ($1, $2, $3, NULL, 0)
         ON CONFLICT (channel) DO UPDATE SET failures = channel_rates.failures
         RETURNING tokens, refilled_at, blocked_until, failures",
    )
    .bind(key)
    .bind(full)
    .bind(now)
    .fetch_optional(tx)
    .await?;
    rate.ok_or(Error::Conflict)
}

pub async fn set_rate(tx: &mut Tx, key: &str, rate: &Rate) -> Result<(), Error> {
    sql("UPDATE channel_rates SET tokens = $1, refilled_at = $2, blocked_until = $3, failures = $4 WHERE channel = $5")
        .bind(rate.tokens)
        .bind(rate.refilled_at)
        .bind(rate.blocked_until)
        .bind(rate.failures)
        .bind(key)
        .execute_one(tx)
        .await
}

/// Counts by state, and since when the oldest waiting notification waits: for metrics and `doctor`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backlog {
    pub pending: u64,
    pub dead: u64,
    pub oldest_pending: Option<DateTime<Utc>>,
}

pub async fn backlog(tx: &mut Tx) -> Result<Backlog, Error> {
    let rows: Vec<(String, i64, Option<DateTime<Utc>>)> = sql(
        "SELECT state, COUNT(*), MIN(created_at) FROM notifications WHERE state IN ('pending', 'dead') GROUP BY state",
    )
    .fetch_all(tx)
    .await?;
    let mut b = Backlog::default();
    for (state, n, oldest) in rows {
        match state.parse()? {
            State::Pending => (b.pending, b.oldest_pending) = (n.unsigned_abs(), oldest),
            State::Dead => b.dead = n.unsigned_abs(),
            State::Sent => {}
        }
    }
    Ok(b)
}

/// The channels of the catalog. One that this version cannot read is named instead of failing them all.
pub async fn channels(tx: &mut Tx) -> Result<(Vec<Channel>, Vec<String>), Error> {
    let rows: Vec<(String, Json<serde_json::Value>)> =
        sql("SELECT key, doc FROM catalog WHERE kind = 'channel' AND deleted = FALSE ORDER BY key")
            .fetch_all(tx)
            .await?;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (key, doc) in rows {
        match serde_json::from_value(doc.0) {
            Ok(Item::Channel(c)) => good.push(c),
            Ok(_) | Err(_) => bad.push(key),
        }
    }
    Ok((good, bad))
}

/// One channel; `None` when it is not in the catalog.
pub async fn channel(tx: &mut Tx, name: &str) -> Result<Option<Channel>, Error> {
    let doc: Option<Json<serde_json::Value>> =
        sql("SELECT doc FROM catalog WHERE kind = 'channel' AND key = $1 AND deleted = FALSE")
            .bind(name)
            .fetch_scalar(tx)
            .await?;
    match doc.map(|d| crate::decode("channel", d.0)).transpose()? {
        Some(Item::Channel(c)) => Ok(Some(c)),
        Some(_) => Err(Error::Unknown("catalog.doc")),
        None => Ok(None),
    }
}

/// A sealed channel secret (`windlass secret set channel/<name>`).
pub async fn channel_secret(tx: &mut Tx, name: &str) -> Result<Option<Vec<u8>>, Error> {
    sql("SELECT sealed FROM secrets WHERE scope = 'channel' AND name = $1").bind(name).fetch_scalar(tx).await
}

/// Whether an alert about a channel's dead letters was raised since.
pub async fn alerted_since(tx: &mut Tx, channel: &str, since: DateTime<Utc>) -> Result<bool, Error> {
    let n: Option<i64> = sql(
        "SELECT COUNT(*) FROM events WHERE aggregate = 'notification' AND aggregate_id = $1 AND type = 'notification.dead'
         AND severity = 'alert' AND at > $2",
    )
    .bind(channel)
    .bind(since)
    .fetch_scalar(tx)
    .await?;
    Ok(n.unwrap_or_default() > 0)
}
