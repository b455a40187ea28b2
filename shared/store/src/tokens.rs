//! Bearer tokens: only the hash of the secret half is here. Writer: api.

use crate::{Error, Tx, Value, people::Person, sql};
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, types::Json};
use uuid::Uuid;
use windlass_domain::{
    access::{Grant, Permission},
    ids::TokenId,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub id: TokenId,
    /// SHA-256 of the secret half.
    pub hash: Vec<u8>,
    pub person: String,
    pub label: String,
    pub scopes: Vec<Permission>,
    pub project: Option<String>,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
}

#[derive(Debug, sqlx::FromRow)]
struct Row {
    id: Uuid,
    hash: Vec<u8>,
    person: String,
    label: String,
    scopes: Json<Vec<Permission>>,
    project: Option<String>,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
}

impl From<Row> for Token {
    fn from(r: Row) -> Token {
        Token {
            id: TokenId(r.id),
            hash: r.hash,
            person: r.person,
            label: r.label,
            scopes: r.scopes.0,
            project: r.project,
            created_at: r.created_at,
            expires_at: r.expires_at,
            revoked_at: r.revoked_at,
        }
    }
}

const COLUMNS: &str = "id, hash, person, label, scopes, project, created_at, expires_at, revoked_at";

pub async fn insert(tx: &mut Tx, t: &Token) -> Result<(), Error> {
    sql("INSERT INTO tokens (id, hash, person, label, scopes, project, created_at, expires_at, revoked_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)")
    .bind(t.id)
    .bind(t.hash.as_slice())
    .bind(&t.person)
    .bind(&t.label)
    .bind(Value::json(&t.scopes))
    .bind(t.project.as_deref())
    .bind(t.created_at)
    .bind(t.expires_at)
    .bind(t.revoked_at)
    .execute_one(tx)
    .await
}

pub async fn get(tx: &mut Tx, id: TokenId) -> Result<Option<Token>, Error> {
    let row: Option<Row> =
        sql(AssertSqlSafe(format!("SELECT {COLUMNS} FROM tokens WHERE id = $1"))).bind(id).fetch_optional(tx).await?;
    Ok(row.map(Token::from))
}

/// A token with the person it is of and that person's grants, read by one statement: it is asked at every request.
pub async fn of_person(tx: &mut Tx, id: TokenId) -> Result<Option<(Token, Person, Vec<Grant>)>, Error> {
    #[derive(sqlx::FromRow)]
    struct Found {
        #[sqlx(flatten)]
        token: Row,
        name: String,
        display: String,
        disabled: bool,
        since: DateTime<Utc>,
        project_group: Option<String>,
        role: Option<String>,
    }
    let rows: Vec<Found> =
        sql("SELECT t.id, t.hash, t.person, t.label, t.scopes, t.project, t.created_at, t.expires_at, t.revoked_at,
           p.name, p.display, p.disabled, p.created_at AS since, g.project_group, g.role
         FROM tokens t JOIN people p ON p.name = t.person LEFT JOIN grants g ON g.person = p.name
         WHERE t.id = $1 ORDER BY g.project_group, g.role")
        .bind(id)
        .fetch_all(tx)
        .await?;
    let (mut found, mut grants) = (None, Vec::new());
    for r in rows {
        if let (Some(project_group), Some(role)) = (r.project_group, r.role) {
            grants.push(Grant { project_group, role: role.parse().map_err(|_| Error::Unknown("grants.role"))? });
        }
        let person = Person { name: r.name, display: r.display, disabled: r.disabled, created_at: r.since };
        found = Some((Token::from(r.token), person));
    }
    Ok(found.map(|(token, person)| (token, person, grants)))
}

/// What a token allows, without its secret half: for who decides later than it was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub person: String,
    pub scopes: Vec<Permission>,
    pub project: Option<String>,
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Reads no hash, which services other than the api may not see.
pub async fn standing(tx: &mut Tx, id: TokenId) -> Result<Option<Standing>, Error> {
    type Found = (String, Json<Vec<Permission>>, Option<String>, Option<DateTime<Utc>>, Option<DateTime<Utc>>);
    let row: Option<Found> = sql("SELECT person, scopes, project, expires_at, revoked_at FROM tokens WHERE id = $1")
        .bind(id)
        .fetch_optional(tx)
        .await?;
    Ok(row.map(|(person, scopes, project, expires_at, revoked_at)| Standing {
        person,
        scopes: scopes.0,
        project,
        expires_at,
        revoked_at,
    }))
}

/// Newest first, older than `before`; of one person where given.
pub async fn list(tx: &mut Tx, person: Option<&str>, before: Option<TokenId>, limit: u32) -> Result<Vec<Token>, Error> {
    let rows: Vec<Row> = sql(AssertSqlSafe(format!(
        "SELECT {COLUMNS} FROM tokens WHERE ($1 IS NULL OR person = $1) AND ($2 IS NULL OR id < $2) ORDER BY id DESC LIMIT $3"
    )))
    .bind(person)
    .bind(before)
    .bind(limit)
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(Token::from).collect())
}

/// False when there is no such token, or it was revoked before.
pub async fn revoke(tx: &mut Tx, id: TokenId, now: DateTime<Utc>) -> Result<bool, Error> {
    let n = sql("UPDATE tokens SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")
        .bind(id)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(n == 1)
}
