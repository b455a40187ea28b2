//! Events: appended in the transaction of the change they tell of, then taken by each consumer exactly once.

use crate::{Error, Tx, Value, rows, sql};
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, types::Json};
use std::collections::BTreeMap;
use uuid::Uuid;
use windlass_domain::{
    event::{Aggregate, Event, NewEvent, Severity},
    ids::EventId,
};

/// Who takes every event from `event_queue`. A consumer deletes its row in the transaction of its effect.
pub const BUS: &str = "bus";
pub const NOTIFIER: &str = "notifier";
pub const AUDITOR: &str = "auditor";
const CONSUMERS: [&str; 3] = [BUS, NOTIFIER, AUDITOR];

/// Stores an event in the caller's transaction and returns it with its place in the aggregate's stream.
pub async fn append(tx: &mut Tx, e: NewEvent) -> Result<Event, Error> {
    append_all(tx, vec![e]).await?.pop().ok_or(Error::Conflict)
}

/// Stores events in the caller's transaction, those of one aggregate in the order given, and returns them with their places.
pub async fn append_all(tx: &mut Tx, new: Vec<NewEvent>) -> Result<Vec<Event>, Error> {
    let mut streams: BTreeMap<(&'static str, String), i64> = BTreeMap::new();
    for e in &new {
        *streams.entry((e.aggregate.as_str(), e.aggregate_id.clone())).or_default() += 1;
    }
    for ((aggregate, id), n) in &mut streams {
        // The head row stays locked until commit, so `agg_seq` has no gaps and commits in order.
        let next: Option<i64> = sql("INSERT INTO event_heads (aggregate, aggregate_id, next) VALUES ($1, $2, $3 + 1)
             ON CONFLICT (aggregate, aggregate_id) DO UPDATE SET next = event_heads.next + $3 RETURNING next - $3")
        .bind(*aggregate)
        .bind(&**id)
        .bind(*n)
        .fetch_scalar(tx)
        .await?;
        *n = next.ok_or(Error::Conflict)?;
    }
    let placed = new.into_iter().map(|e| {
        let next = streams.get_mut(&(e.aggregate.as_str(), e.aggregate_id.clone())).ok_or(Error::Conflict)?;
        *next += 1;
        Ok(Event {
            id: e.id,
            aggregate: e.aggregate.as_str().into(),
            aggregate_id: e.aggregate_id,
            agg_seq: (*next - 1).unsigned_abs(),
            what: e.what,
            project: e.project,
            environment: e.environment,
            severity: e.severity,
            actor: e.actor,
            at: e.at,
            payload: e.payload,
            trace: e.trace,
        })
    });
    let placed: Vec<Event> = placed.collect::<Result<_, Error>>()?;
    for piece in rows::pieces(&placed) {
        let text = format!(
            "INSERT INTO events (id, aggregate, aggregate_id, agg_seq, type, project, environment, severity, actor, at, payload, trace)
             VALUES {}",
            rows::places(0, 12, piece.len())
        );
        let insert = piece.iter().fold(sql(AssertSqlSafe(text)), |ask, e| {
            ask.bind(e.id)
                .bind(&e.aggregate)
                .bind(&e.aggregate_id)
                .bind(e.agg_seq)
                .bind(&e.what)
                .bind(e.project.as_deref())
                .bind(e.environment.as_deref())
                .bind(e.severity.as_str())
                .bind(&e.actor)
                .bind(e.at)
                .bind(Value::Json(Some(e.payload.clone())))
                .bind(e.trace.as_deref())
        });
        insert.execute(tx).await?;
        let queued: Vec<(&str, &Event)> = CONSUMERS.iter().flat_map(|c| piece.iter().map(move |e| (*c, e))).collect();
        for piece in rows::pieces(&queued) {
            let places = rows::places(0, 3, piece.len());
            let insert =
                sql(AssertSqlSafe(format!("INSERT INTO event_queue (consumer, event_id, at) VALUES {places}")));
            let insert = piece.iter().fold(insert, |ask, (consumer, e)| ask.bind(*consumer).bind(e.id).bind(e.at));
            insert.execute(tx).await?;
        }
    }
    tx.appended.extend(placed.iter().cloned());
    Ok(placed)
}

#[derive(Debug, sqlx::FromRow)]
struct Row {
    id: Uuid,
    aggregate: String,
    aggregate_id: String,
    agg_seq: i64,
    r#type: String,
    project: Option<String>,
    environment: Option<String>,
    severity: String,
    actor: String,
    at: DateTime<Utc>,
    payload: Json<serde_json::Value>,
    trace: Option<String>,
}

impl TryFrom<Row> for Event {
    type Error = Error;
    fn try_from(r: Row) -> Result<Event, Error> {
        let severity = match r.severity.as_str() {
            "info" => Severity::Info,
            "notice" => Severity::Notice,
            "action" => Severity::Action,
            "alert" => Severity::Alert,
            _ => return Err(Error::Unknown("events.severity")),
        };
        Ok(Event {
            id: EventId(r.id),
            aggregate: r.aggregate,
            aggregate_id: r.aggregate_id,
            agg_seq: r.agg_seq.unsigned_abs(),
            what: r.r#type,
            project: r.project,
            environment: r.environment,
            severity,
            actor: r.actor,
            at: r.at,
            payload: r.payload.0,
            trace: r.trace,
        })
    }
}

fn events(rows: Vec<Row>) -> Result<Vec<Event>, Error> {
    rows.into_iter().map(Event::try_from).collect()
}

/// Events a consumer has yet to take, oldest first; with `older_than`, only those queued before it.
pub async fn queued(
    tx: &mut Tx,
    consumer: &str,
    older_than: Option<DateTime<Utc>>,
    limit: u32,
) -> Result<Vec<Event>, Error> {
    let rows = sql(
        "SELECT e.id, e.aggregate, e.aggregate_id, e.agg_seq, e.type, e.project, e.environment, e.severity, e.actor,
                e.at, e.payload, e.trace
         FROM event_queue q JOIN events e ON e.id = q.event_id
         WHERE q.consumer = $1 AND ($2 IS NULL OR q.at < $2) ORDER BY q.event_id LIMIT $3",
    )
    .bind(consumer)
    .bind(older_than)
    .bind(limit)
    .fetch_all(tx)
    .await?;
    events(rows)
}

/// Events of one stream before `before` that a consumer has yet to take, in the stream's order.
pub async fn queued_of(
    tx: &mut Tx,
    consumer: &str,
    aggregate: &str,
    id: &str,
    before: u64,
    limit: u32,
) -> Result<Vec<Event>, Error> {
    let rows = sql(
        "SELECT e.id, e.aggregate, e.aggregate_id, e.agg_seq, e.type, e.project, e.environment, e.severity, e.actor,
                e.at, e.payload, e.trace
         FROM events e JOIN event_queue q ON q.event_id = e.id AND q.consumer = $1
         WHERE e.aggregate = $2 AND e.aggregate_id = $3 AND e.agg_seq < $4 ORDER BY e.agg_seq LIMIT $5",
    )
    .bind(consumer)
    .bind(aggregate)
    .bind(id)
    .bind(before)
    .bind(limit)
    .fetch_all(tx)
    .await?;
    events(rows)
}

/// Takes events off a consumer's queue; call it in the transaction of the effect. Returns how many were still there:
/// fewer than given means another process took some, and the caller must not apply those again.
pub async fn done(tx: &mut Tx, consumer: &str, ids: &[EventId]) -> Result<u64, Error> {
    let mut taken = 0;
    for piece in rows::pieces(ids) {
        let text =
            format!("DELETE FROM event_queue WHERE consumer = $1 AND event_id IN {}", rows::places(1, piece.len(), 1));
        let delete = sql(AssertSqlSafe(text)).bind(consumer);
        taken += piece.iter().fold(delete, |ask, id| ask.bind(*id)).execute(tx).await?;
    }
    Ok(taken)
}

/// Number of events a consumer has yet to take, and when the oldest was queued.
pub async fn backlog(tx: &mut Tx, consumer: &str) -> Result<(u64, Option<DateTime<Utc>>), Error> {
    let row: Option<(i64, Option<DateTime<Utc>>)> =
        sql("SELECT COUNT(*), MIN(at) FROM event_queue WHERE consumer = $1").bind(consumer).fetch_optional(tx).await?;
    Ok(row.map_or((0, None), |(n, at)| (n.unsigned_abs(), at)))
}

/// The stream of one aggregate after a place in it: what SSE readers and tests follow.
pub async fn after(tx: &mut Tx, aggregate: Aggregate, id: &str, after: u64, limit: u32) -> Result<Vec<Event>, Error> {
    let rows = sql(
        "SELECT id, aggregate, aggregate_id, agg_seq, type, project, environment, severity, actor, at, payload, trace
         FROM events WHERE aggregate = $1 AND aggregate_id = $2 AND agg_seq > $3 ORDER BY agg_seq LIMIT $4",
    )
    .bind(aggregate.as_str())
    .bind(id)
    .bind(after)
    .bind(limit)
    .fetch_all(tx)
    .await?;
    events(rows)
}

/// One event by its id.
pub async fn get(tx: &mut Tx, id: EventId) -> Result<Option<Event>, Error> {
    let row: Option<Row> = sql(
        "SELECT id, aggregate, aggregate_id, agg_seq, type, project, environment, severity, actor, at, payload, trace
         FROM events WHERE id = $1",
    )
    .bind(id)
    .fetch_optional(tx)
    .await?;
    row.map(Event::try_from).transpose()
}
