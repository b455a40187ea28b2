//! What people say about versions and environments: vetoes, pins and holds. Writers: see migration 0007.
//!
//! Who changes a row here appends the event of it in the same transaction, to the aggregate `environment` with the id that
//! [`aggregate_id`] gives, and after the row: rows before event heads is the order everywhere.

use crate::{Error, Tx, catalog, deployments, sql};
use uuid::Uuid;
use windlass_domain::{Timestamp, catalog::Kind as Item, ids::DeploymentId};

/// The stream of events of an environment, or of all environments of a project.
pub fn aggregate_id(project: &str, environment: Option<&str>) -> String {
    environment.map_or_else(|| project.to_owned(), |e| format!("{project}/{e}"))
}

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

impl Hold {
    /// Stable code of what is refused because of it.
    pub const CODE: &'static str = "held";

    /// Why automation is refused, and what to do.
    pub fn text(&self) -> String {
        format!(
            "{}/{} is held since {} by {}: {}; nothing is released there by itself until a person releases the hold, or \
             requests a deployment",
            self.project,
            self.environment,
            moment(self.at),
            self.by,
            reason(&self.reason)
        )
    }
}

/// Sets a hold; a second one takes the first one's place.
pub async fn hold(tx: &mut Tx, h: &Hold) -> Result<(), Error> {
    deployments::lock_row(tx, &h.project, &h.environment).await?;
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

fn hold_of((project, environment, by, reason, at, d): HoldRow) -> Hold {
    Hold { project, environment, by, reason, at, deployment: d.map(DeploymentId) }
}

/// The hold of an environment.
pub async fn held(tx: &mut Tx, project: &str, environment: &str) -> Result<Option<Hold>, Error> {
    let row: Option<HoldRow> =
        sql("SELECT project, environment, person, reason, at, deployment_id FROM holds WHERE project = $1 AND environment = $2")
            .bind(project)
            .bind(environment)
            .fetch_optional(tx)
            .await?;
    Ok(row.map(hold_of))
}

/// Holds of one project, or of all, in the order of their places.
pub async fn holds(tx: &mut Tx, project: Option<&str>) -> Result<Vec<Hold>, Error> {
    let rows: Vec<HoldRow> = sql("SELECT project, environment, person, reason, at, deployment_id FROM holds
         WHERE $1 IS NULL OR project = $1 ORDER BY project, environment")
    .bind(project)
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(hold_of).collect())
}

/// Lets automation release here again. The answer is the hold that was there.
pub async fn release(tx: &mut Tx, project: &str, environment: &str) -> Result<Option<Hold>, Error> {
    let row: Option<HoldRow> = sql("DELETE FROM holds WHERE project = $1 AND environment = $2
         RETURNING project, environment, person, reason, at, deployment_id")
    .bind(project)
    .bind(environment)
    .fetch_optional(tx)
    .await?;
    Ok(row.map(hold_of))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Never this version.
    Veto,
    /// This version and no other.
    Pin,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Veto => "veto",
            Kind::Pin => "pin",
        }
    }

    /// `veto` or `pin`.
    pub fn parse(text: &str) -> Option<Kind> {
        [Kind::Veto, Kind::Pin].into_iter().find(|k| k.as_str() == text)
    }
}

/// What a person said about a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub project: String,
    /// None: in all environments of the project.
    pub environment: Option<String>,
    pub kind: Kind,
    pub version: String,
    pub by: String,
    pub reason: String,
    pub at: Timestamp,
}

impl Mark {
    /// Stable code of what is refused because of it.
    pub fn code(&self) -> &'static str {
        match self.kind {
            Kind::Veto => "vetoed",
            Kind::Pin => "pinned",
        }
    }

    /// Why `version` is refused, by whom, since when, and what to do.
    pub fn text(&self, version: &str) -> String {
        let place = match &self.environment {
            Some(e) => format!("{}/{e}", self.project),
            None => format!("all environments of {}", self.project),
        };
        let (by, at, why) = (&self.by, moment(self.at), reason(&self.reason));
        match self.kind {
            Kind::Veto => format!(
                "version {version} is vetoed in {place} by {by} since {at}: {why}; release another version, or remove the veto first"
            ),
            Kind::Pin => format!(
                "{place} is pinned to version {} by {by} since {at}: {why}; version {version} may not go there until the pin is removed",
                self.version
            ),
        }
    }
}

fn moment(at: Timestamp) -> String {
    at.format("%Y-%m-%d %H:%M UTC").to_string()
}

fn reason(text: &str) -> &str {
    if text.trim().is_empty() { "no reason was given" } else { text }
}

/// Sets a mark; the same one again gets the new reason. A pin takes the place of the pin that was there before it.
pub async fn set(tx: &mut Tx, m: &Mark) -> Result<(), Error> {
    match &m.environment {
        Some(e) => deployments::lock_row(tx, &m.project, e).await?,
        None => {
            for key in catalog::keys(tx, Item::Environment, Some(&m.project)).await? {
                let (_, e) = key.split_once('/').ok_or(Error::Unknown("catalog.key"))?;
                deployments::lock_row(tx, &m.project, e).await?;
            }
        }
    }
    let environment = m.environment.as_deref().unwrap_or_default();
    if m.kind == Kind::Pin {
        sql("DELETE FROM marks WHERE project = $1 AND environment = $2 AND kind = 'pin' AND version <> $3")
            .bind(&m.project)
            .bind(environment)
            .bind(&m.version)
            .execute(tx)
            .await?;
    }
    sql("INSERT INTO marks (project, environment, kind, version, person, reason, at) VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (project, environment, kind, version) DO UPDATE SET person = excluded.person, reason = excluded.reason,
         at = excluded.at")
    .bind(&m.project)
    .bind(environment)
    .bind(m.kind.as_str())
    .bind(&m.version)
    .bind(&m.by)
    .bind(&m.reason)
    .bind(m.at)
    .execute_one(tx)
    .await
}

/// Takes a mark away; exactly the one of this place: a veto in all environments is not removed by naming one of them. The
/// answer is what was there.
pub async fn remove(
    tx: &mut Tx,
    project: &str,
    environment: Option<&str>,
    kind: Kind,
    version: &str,
) -> Result<Option<Mark>, Error> {
    let row: Option<MarkRow> =
        sql("DELETE FROM marks WHERE project = $1 AND environment = $2 AND kind = $3 AND version = $4
         RETURNING project, environment, kind, version, person, reason, at")
        .bind(project)
        .bind(environment.unwrap_or_default())
        .bind(kind.as_str())
        .bind(version)
        .fetch_optional(tx)
        .await?;
    row.map(mark_of).transpose()
}

type MarkRow = (String, String, String, String, String, String, Timestamp);

fn mark_of((project, environment, kind, version, by, reason, at): MarkRow) -> Result<Mark, Error> {
    let environment = Some(environment).filter(|e| !e.is_empty());
    let kind = Kind::parse(&kind).ok_or(Error::Unknown("marks.kind"))?;
    Ok(Mark { project, environment, kind, version, by, reason, at })
}

/// All marks of a project, those of all environments first.
pub async fn list(tx: &mut Tx, project: &str) -> Result<Vec<Mark>, Error> {
    let rows: Vec<MarkRow> = sql("SELECT project, environment, kind, version, person, reason, at FROM marks
         WHERE project = $1 ORDER BY environment, kind, at, version")
    .bind(project)
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(mark_of).collect()
}

/// All marks that count in an environment: its own, and those of all environments.
pub async fn of(tx: &mut Tx, project: &str, environment: &str) -> Result<Vec<Mark>, Error> {
    let rows: Vec<MarkRow> = sql("SELECT project, environment, kind, version, person, reason, at FROM marks
         WHERE project = $1 AND environment IN ($2, '') ORDER BY environment DESC, kind, version")
    .bind(project)
    .bind(environment)
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(mark_of).collect()
}

/// The mark that keeps `version` out, of those that [`of`] gave. A veto counts wherever it was set; the environment's own
/// pin takes the place of the project's.
pub fn keeps_out<'m>(marks: &'m [Mark], version: &str) -> Option<&'m Mark> {
    let veto = marks.iter().find(|m| m.kind == Kind::Veto && m.version == version);
    let pins = || marks.iter().filter(|m| m.kind == Kind::Pin);
    let pin = pins().find(|m| m.environment.is_some()).or_else(|| pins().next());
    veto.or_else(|| pin.filter(|p| p.version != version))
}

/// The mark that keeps `version` out of an environment now; one query.
pub async fn against(tx: &mut Tx, project: &str, environment: &str, version: &str) -> Result<Option<Mark>, Error> {
    Ok(keeps_out(&of(tx, project, environment).await?, version).cloned())
}
