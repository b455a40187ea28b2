//! Secrets, sealed before they come here, or places in Vault. Writer: api.
//!
//! Scopes: `host/<h>`, `environment/<p>/<e>`, `project/<p>`, `group/<g>` for steps, `channel` for notifications, and
//! `deployment/<id>` for the values of secret inputs.

use crate::{Error, Tx, catalog, deployments, sql};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use windlass_domain::{
    catalog::{Item, Kind},
    deployment::Deployment,
    ids::DeploymentId,
    reference::INPUT_PREFIX,
};

/// What may be shown of a secret.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Name {
    pub scope: String,
    pub name: String,
    pub updated_at: DateTime<Utc>,
    pub updated_by: String,
    /// `<path>#<key>` of a secret that is kept in Vault.
    pub vault: Option<String>,
}

/// A secret as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Kept {
    pub scope: String,
    pub name: String,
    pub sealed: Vec<u8>,
    pub vault: Option<String>,
}

/// Where a step's secrets are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Scopes of secret inputs: the deployment's, and of a rollback those of what it takes back.
    inputs: Vec<String>,
    /// The innermost first.
    scopes: Vec<String>,
}

impl Place {
    /// Of a project's environment; a host's own secrets come first where there is a host.
    pub async fn of(
        tx: &mut Tx,
        project: &str,
        environment: &str,
        host: Option<&str>,
        deployment: Option<DeploymentId>,
    ) -> Result<Place, Error> {
        let group = match catalog::get(tx, Kind::Project, project).await?.map(|s| s.item) {
            Some(Item::Project(p)) => Some(format!("group/{}", p.group)),
            _ => None,
        };
        let mut scopes: Vec<String> = host.iter().map(|h| format!("host/{h}")).collect();
        scopes.extend([format!("environment/{project}/{environment}"), format!("project/{project}")]);
        scopes.extend(group);
        let mut inputs = Vec::new();
        if let Some(id) = deployment {
            inputs.push(deployment_scope(id));
            let of = crate::deployments::get(tx, id).await?.and_then(|d| d.deployment.rollback);
            inputs.extend(of.map(|r| deployment_scope(r.of)));
        }
        Ok(Place { inputs, scopes })
    }

    /// Of one host more.
    pub fn on_host(&self, host: &str) -> Place {
        let mut scopes = vec![format!("host/{host}")];
        scopes.extend(self.scopes.iter().cloned());
        Place { scopes, ..self.clone() }
    }

    /// For messages.
    pub fn scopes(&self) -> String {
        self.scopes.join(", ")
    }
}

/// The scope of a deployment's secret inputs.
pub fn deployment_scope(deployment: DeploymentId) -> String {
    format!("deployment/{deployment}")
}

/// Stores a sealed value.
pub async fn put(
    tx: &mut Tx,
    scope: &str,
    name: &str,
    sealed: &[u8],
    by: &str,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    store(tx, scope, name, sealed, None, by, now).await
}

/// Stores where in Vault the value is: `<path>#<key>`.
pub async fn put_pointer(
    tx: &mut Tx,
    scope: &str,
    name: &str,
    vault: &str,
    by: &str,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    store(tx, scope, name, &[], Some(vault), by, now).await
}

async fn store(
    tx: &mut Tx,
    scope: &str,
    name: &str,
    sealed: &[u8],
    vault: Option<&str>,
    by: &str,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    sql("INSERT INTO secrets (scope, name, sealed, vault, updated_at, updated_by) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (scope, name) DO UPDATE SET sealed = excluded.sealed, vault = excluded.vault,
           updated_at = excluded.updated_at, updated_by = excluded.updated_by")
    .bind(scope)
    .bind(name)
    .bind(sealed)
    .bind(vault.map(str::to_owned))
    .bind(now)
    .bind(by)
    .execute_one(tx)
    .await
}

/// Whether there was one to remove.
pub async fn remove(tx: &mut Tx, scope: &str, name: &str) -> Result<bool, Error> {
    let n = sql("DELETE FROM secrets WHERE scope = $1 AND name = $2").bind(scope).bind(name).execute(tx).await?;
    Ok(n > 0)
}

/// The sealed value; nothing for a secret that is kept in Vault.
pub async fn sealed(tx: &mut Tx, scope: &str, name: &str) -> Result<Option<Vec<u8>>, Error> {
    sql("SELECT sealed FROM secrets WHERE scope = $1 AND name = $2 AND vault IS NULL")
        .bind(scope)
        .bind(name)
        .fetch_scalar(tx)
        .await
}

/// One secret of one scope.
pub async fn kept(tx: &mut Tx, scope: &str, name: &str) -> Result<Option<Kept>, Error> {
    sql("SELECT scope, name, sealed, vault FROM secrets WHERE scope = $1 AND name = $2")
        .bind(scope)
        .bind(name)
        .fetch_optional(tx)
        .await
}

/// The secrets of these names as a step there gets them; names that no scope has are left out.
pub async fn find(tx: &mut Tx, place: &Place, names: &[String]) -> Result<BTreeMap<String, Kept>, Error> {
    let mut out = BTreeMap::new();
    for name in names {
        let scopes = if name.starts_with(INPUT_PREFIX) { &place.inputs } else { &place.scopes };
        for scope in scopes {
            if let Some(found) = kept(tx, scope, name).await? {
                out.insert(name.clone(), found);
                break;
            }
        }
    }
    Ok(out)
}

/// Which of these names no scope has. Values of secret inputs are not asked for: they come with the request.
/// Reads names alone: a scheduler's role may see no sealed value.
pub async fn missing(tx: &mut Tx, place: &Place, names: &[String]) -> Result<Vec<String>, Error> {
    let mut out = Vec::new();
    for name in names.iter().filter(|n| !n.starts_with(INPUT_PREFIX)) {
        let mut found = false;
        for scope in &place.scopes {
            found = found || exists(tx, scope, name).await?;
        }
        if !found {
            out.push(name.clone());
        }
    }
    Ok(out)
}

async fn exists(tx: &mut Tx, scope: &str, name: &str) -> Result<bool, Error> {
    let found: Option<String> =
        sql("SELECT name FROM secrets WHERE scope = $1 AND name = $2").bind(scope).bind(name).fetch_scalar(tx).await?;
    Ok(found.is_some())
}

pub async fn names(tx: &mut Tx) -> Result<Vec<Name>, Error> {
    sql("SELECT scope, name, updated_at, updated_by, vault FROM secrets WHERE scope NOT LIKE 'deployment/%' ORDER BY scope, name")
        .fetch_all(tx)
        .await
}

/// Scopes of secret inputs whose deployment is over, and is not being taken back.
pub async fn of_ended_deployments(tx: &mut Tx) -> Result<Vec<String>, Error> {
    let scopes: Vec<(String,)> =
        sql("SELECT DISTINCT scope FROM secrets WHERE scope LIKE 'deployment/%' ORDER BY scope").fetch_all(tx).await?;
    let mut out = Vec::new();
    for (scope,) in scopes {
        let Ok(id) = scope.trim_start_matches("deployment/").parse::<DeploymentId>() else { continue };
        match crate::deployments::get(tx, id).await? {
            Some(d) if d.deployment.state.is_terminal() && !taken_back(tx, &d.deployment).await? => out.push(scope),
            _ => {}
        }
    }
    Ok(out)
}

async fn taken_back(tx: &mut Tx, d: &Deployment) -> Result<bool, Error> {
    let filter = deployments::Filter {
        project: Some(d.project.clone()),
        environment: Some(d.environment.clone()),
        ..deployments::Filter::default()
    };
    // A rollback is requested while, or at once after, what it takes back runs.
    let newest = deployments::list(tx, &filter, 20).await?;
    let of = |s: &deployments::Stored| {
        !s.deployment.state.is_terminal() && s.deployment.rollback.as_ref().is_some_and(|r| r.of == d.id)
    };
    Ok(newest.iter().any(of))
}

/// Removes every secret of a scope.
pub async fn remove_scope(tx: &mut Tx, scope: &str) -> Result<u64, Error> {
    sql("DELETE FROM secrets WHERE scope = $1").bind(scope).execute(tx).await
}
