//! What people say about versions and environments: vetoes, pins and holds. Writers: see migration 0007.

use crate::{Error, Tx, sql};
use uuid::Uuid;
use windlass_domain::{Timestamp, ids::DeploymentId};

/// Automation does not release here until a person lets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub project: String,
    pub environment: String,
    pub by: String,
    pub reason: String,
    pub at: Timestamp,
    /// The rollback that set it.
    pub deployment: Option<DeploymentId>,
}

/// Sets a hold; a second one replaces the first one's reason.
pub async fn hold(tx: &mut Tx, h: &Hold) -> Result<(), Error> {
    sql("INSERT INTO holds (project, environment, person, reason, at, deployment_id) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (project, environment) DO UPDATE SET person = excluded.person, reason = excluded.reason,
         at = excluded.at, deployment_id = excluded.deployment_id")
    .bind(&h.project)
    .bind(&h.environment)
    .bind(&h.by)
    .bind(&h.reason)
    .bind(h.at)
    .bind(h.deployment.map(|d| d.0))
    .execute_one(tx)
    .await
}

type HoldRow = (String, String, String, String, Timestamp, Option<Uuid>);

/// The hold of an environment.
pub async fn held(tx: &mut Tx, project: &str, environment: &str) -> Result<Option<Hold>, Error> {
    let row: Option<HoldRow> =
        sql("SELECT project, environment, person, reason, at, deployment_id FROM holds WHERE project = $1 AND environment = $2")
            .bind(project)
            .bind(environment)
            .fetch_optional(tx)
            .await?;
    let of = |(project, environment, by, reason, at, d): HoldRow| Hold {
        project,
        environment,
        by,
        reason,
        at,
        deployment: d.map(DeploymentId),
    };
    Ok(row.map(of))
}
