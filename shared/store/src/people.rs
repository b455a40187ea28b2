//! People and their grants. Writer: api.

use crate::{Error, Tx, sql};
use chrono::{DateTime, Utc};
use windlass_domain::access::Grant;

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Person {
    pub name: String,
    pub display: String,
    pub disabled: bool,
    pub created_at: DateTime<Utc>,
}

/// Whether anybody exists; nobody does before the first start.
pub async fn any(tx: &mut Tx) -> Result<bool, Error> {
    let n: Option<i64> = sql("SELECT COUNT(*) FROM people").fetch_scalar(tx).await?;
    Ok(n.unwrap_or(0) > 0)
}

/// False when the name is taken.
pub async fn insert(tx: &mut Tx, p: &Person) -> Result<bool, Error> {
    let n =
        sql("INSERT INTO people (name, display, disabled, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING")
            .bind(&p.name)
            .bind(&p.display)
            .bind(p.disabled)
            .bind(p.created_at)
            .execute(tx)
            .await?;
    Ok(n == 1)
}

pub async fn update(tx: &mut Tx, name: &str, display: &str, disabled: bool) -> Result<(), Error> {
    sql("UPDATE people SET display = $2, disabled = $3 WHERE name = $1")
        .bind(name)
        .bind(display)
        .bind(disabled)
        .execute_one(tx)
        .await
}

pub async fn get(tx: &mut Tx, name: &str) -> Result<Option<Person>, Error> {
    sql("SELECT name, display, disabled, created_at FROM people WHERE name = $1").bind(name).fetch_optional(tx).await
}

/// By name, after `after`.
pub async fn list(tx: &mut Tx, after: Option<&str>, limit: u32) -> Result<Vec<Person>, Error> {
    sql("SELECT name, display, disabled, created_at FROM people WHERE ($1 IS NULL OR name > $1) ORDER BY name LIMIT $2")
        .bind(after)
        .bind(limit)
        .fetch_all(tx)
        .await
}

pub async fn grants(tx: &mut Tx, person: &str) -> Result<Vec<Grant>, Error> {
    let rows: Vec<(String, String)> =
        sql("SELECT project_group, role FROM grants WHERE person = $1 ORDER BY project_group, role")
            .bind(person)
            .fetch_all(tx)
            .await?;
    rows.into_iter()
        .map(|(project_group, role)| {
            Ok(Grant { project_group, role: role.parse().map_err(|_| Error::Unknown("grants.role"))? })
        })
        .collect()
}

/// Replaces all grants of a person.
pub async fn set_grants(tx: &mut Tx, person: &str, grants: &[Grant]) -> Result<(), Error> {
    sql("DELETE FROM grants WHERE person = $1").bind(person).execute(tx).await?;
    for g in grants {
        sql("INSERT INTO grants (person, project_group, role) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(person)
            .bind(&g.project_group)
            .bind(g.role.as_str())
            .execute(tx)
            .await?;
    }
    Ok(())
}

/// People who are not disabled and hold the admin role on `*`: the last of them must not lock everybody out.
pub async fn count_admins(tx: &mut Tx) -> Result<u64, Error> {
    let n: Option<i64> = sql("SELECT COUNT(*) FROM people p JOIN grants g ON g.person = p.name
         WHERE p.disabled = FALSE AND g.project_group = '*' AND g.role = 'admin'")
    .fetch_scalar(tx)
    .await?;
    Ok(n.unwrap_or(0).unsigned_abs())
}
