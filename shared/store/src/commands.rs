//! Commands as the api accepts them, and their outcomes as it reads them. Writer: api; outcomes come from the scheduler.

use crate::{Error, Tx, Value, decode, sql};
use chrono::{DateTime, Utc};
use sqlx::types::Json;
use uuid::Uuid;
use windlass_contracts::command::{Command, CommandOutcome, Verb};
use windlass_domain::ids::{CommandId, DeploymentId};

/// Stores a command and queues it for the scheduler. False when its id is known: it was accepted before.
pub async fn insert(tx: &mut Tx, c: &Command) -> Result<bool, Error> {
    let n =
        sql("INSERT INTO commands (id, verb, project, environment, deployment_id, actor, payload, trace, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING")
        .bind(c.id)
        .bind(c.verb.name())
        .bind(&c.project)
        .bind(c.environment.as_deref())
        .bind(c.deployment)
        .bind(&c.actor)
        .bind(Value::json(&c.verb))
        .bind(c.trace.as_deref())
        .bind(c.created_at)
        .execute(tx)
        .await?;
    if n == 1 {
        let bundle = match &c.verb {
            Verb::Bundle { bundle, .. } => Some(*bundle),
            _ => None,
        };
        sql("INSERT INTO command_queue (command_id, deployment_id, bundle_id, created_at) VALUES ($1, $2, $3, $4)")
            .bind(c.id)
            .bind(c.deployment)
            .bind(bundle)
            .bind(c.created_at)
            .execute_one(tx)
            .await?;
    }
    Ok(n == 1)
}

/// A command as its table holds it.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Row {
    id: Uuid,
    project: String,
    environment: Option<String>,
    deployment_id: Option<Uuid>,
    actor: String,
    payload: Json<serde_json::Value>,
    trace: Option<String>,
    created_at: DateTime<Utc>,
}

impl TryFrom<Row> for Command {
    type Error = Error;
    fn try_from(r: Row) -> Result<Command, Error> {
        Ok(Command {
            id: CommandId(r.id),
            project: r.project,
            environment: r.environment,
            deployment: r.deployment_id.map(DeploymentId),
            actor: r.actor,
            verb: decode("command", r.payload.0)?,
            created_at: r.created_at,
            trace: r.trace,
        })
    }
}

pub async fn get(tx: &mut Tx, id: CommandId) -> Result<Option<Command>, Error> {
    let row: Option<Row> = sql("SELECT id, project, environment, deployment_id, actor, payload, trace, created_at
         FROM commands WHERE id = $1")
    .bind(id)
    .fetch_optional(tx)
    .await?;
    row.map(Command::try_from).transpose()
}

#[derive(Debug, sqlx::FromRow)]
struct OutcomeRow {
    accepted: bool,
    code: String,
    detail: String,
    deployment_id: Option<Uuid>,
    decided_at: DateTime<Utc>,
}

/// `None` while the scheduler has not decided.
pub async fn outcome(tx: &mut Tx, id: CommandId) -> Result<Option<CommandOutcome>, Error> {
    let row: Option<OutcomeRow> =
        sql("SELECT accepted, code, detail, deployment_id, decided_at FROM command_outcomes WHERE command_id = $1")
            .bind(id)
            .fetch_optional(tx)
            .await?;
    Ok(row.map(|r| CommandOutcome {
        accepted: r.accepted,
        code: r.code,
        detail: r.detail,
        deployment: r.deployment_id.map(DeploymentId),
        decided_at: r.decided_at,
    }))
}

/// Commands not decided yet. It names no column, so an index alone can answer it.
pub async fn waiting(tx: &mut Tx) -> Result<u64, Error> {
    let n: Option<i64> = sql("SELECT COUNT(*) FROM command_queue").fetch_scalar(tx).await?;
    Ok(n.unwrap_or(0).unsigned_abs())
}

/// Commands not decided yet, and the oldest of them.
pub async fn backlog(tx: &mut Tx) -> Result<(u64, Option<DateTime<Utc>>), Error> {
    let row: Option<(i64, Option<DateTime<Utc>>)> =
        sql("SELECT COUNT(*), MIN(created_at) FROM command_queue").fetch_optional(tx).await?;
    Ok(row.map_or((0, None), |(n, at)| (n.unsigned_abs(), at)))
}
