//! The scheduler's side of commands: what is yet to be decided, and the one outcome of each.

use crate::{Error, Tx, commands::Row, sql};
use uuid::Uuid;
use windlass_contracts::command::{Command, CommandOutcome, Verb};
use windlass_domain::ids::{CommandId, DeploymentId};

/// Undecided commands of a deployment, oldest first.
pub async fn queued(tx: &mut Tx, deployment: DeploymentId) -> Result<Vec<Command>, Error> {
    let rows: Vec<Row> = sql("SELECT c.id, c.project, c.environment, c.deployment_id, c.actor, c.payload, c.trace, c.created_at
         FROM command_queue q JOIN commands c ON c.id = q.command_id WHERE q.deployment_id = $1 ORDER BY q.created_at, q.command_id")
    .bind(deployment)
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(Command::try_from).collect()
}

/// The deployment a command is about: what a doorbell with a command's id leads to.
pub async fn deployment_of(tx: &mut Tx, id: CommandId) -> Result<Option<DeploymentId>, Error> {
    let found: Option<Option<Uuid>> =
        sql("SELECT deployment_id FROM commands WHERE id = $1").bind(id).fetch_scalar(tx).await?;
    Ok(found.flatten().map(DeploymentId))
}

/// The command that asked for this rollback of a deployment. None: it was not asked for by a command of its own.
pub async fn rollback_of(
    tx: &mut Tx,
    deployment: DeploymentId,
    rollback: DeploymentId,
) -> Result<Option<Command>, Error> {
    let rows: Vec<Row> =
        sql("SELECT id, project, environment, deployment_id, actor, payload, trace, created_at FROM commands
         WHERE deployment_id = $1 AND verb = 'rollback' ORDER BY created_at DESC, id LIMIT 100")
        .bind(deployment)
        .fetch_all(tx)
        .await?;
    let asks = |c: &Command| matches!(&c.verb, Verb::Rollback { rollback: r, .. } if *r == rollback);
    let all: Vec<Command> = rows.into_iter().map(Command::try_from).collect::<Result<_, _>>()?;
    Ok(all.into_iter().find(asks))
}

/// Records the outcome and takes the command off the queue. [`Error::Conflict`]: another process has decided it.
pub async fn decide(tx: &mut Tx, id: CommandId, outcome: &CommandOutcome) -> Result<(), Error> {
    sql("DELETE FROM command_queue WHERE command_id = $1").bind(id).execute_one(tx).await?;
    sql("INSERT INTO command_outcomes (command_id, accepted, code, detail, deployment_id, decided_at) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(id)
        .bind(outcome.accepted)
        .bind(&outcome.code)
        .bind(&outcome.detail)
        .bind(outcome.deployment)
        .bind(outcome.decided_at)
        .execute_one(tx)
        .await
}
