//! The schema: brought up to date, and judged when it is newer than this program.
//!
//! A rolling upgrade changes the schema while processes of the version before still run and may be started again. So a migration
//! that this program does not know is no reason to refuse, as long as the schema says that it still fits (`schema_floor`): whoever
//! takes away what an older program needs raises that number in the same migration.

use crate::Error;
use sqlx::{
    PgPool, SqlitePool,
    migrate::{MigrateError, Migrator},
};

/// How often a migration is tried that deadlocks with what runs; each try lasts at least PostgreSQL's `deadlock_timeout` (1 s).
const TRIES: u32 = 20;

/// `version`, whether it went through, and the checksum of its text.
type Applied = (i64, bool, Vec<u8>);

fn sqlite_migrations() -> Migrator {
    sqlx::migrate!("../../migrations/sqlite")
}

fn postgres_migrations() -> Migrator {
    sqlx::migrate!("../../migrations/postgres")
}

/// The number of the newest migration that this program knows.
pub fn newest_known() -> i64 {
    sqlite_migrations().iter().map(|m| m.version).max().unwrap_or_default()
}

/// Runs what is missing. The file has one user, who may change its schema.
pub(crate) async fn migrate_sqlite(pool: &SqlitePool) -> Result<(), Error> {
    let mut wanted = sqlite_migrations();
    wanted.set_ignore_missing(true).run(pool).await.map_err(Error::Migrate)?;
    let (least,): (i64,) = sqlx::query_as("SELECT least FROM schema_floor").fetch_one(pool).await?;
    fits(least, newest_known())
}

/// Runs what is missing, if this role may; a service's role need not be allowed to (`ops/postgres/roles.sql`).
pub(crate) async fn migrate_postgres(pool: &PgPool) -> Result<(), Error> {
    let mut wanted = postgres_migrations();
    let missing = missing(pool, &wanted).await?;
    if !missing.is_empty() {
        let (may,): (bool,) =
            sqlx::query_as("SELECT has_schema_privilege(current_schema(), 'CREATE')").fetch_one(pool).await?;
        if !may {
            return Err(Error::SchemaBehind { missing });
        }
        wanted.set_ignore_missing(true);
        // A migration locks tables that running services use; PostgreSQL may end it to break a circle, and takes all of it back.
        let mut tries = 1;
        while let Err(e) = wanted.run(pool).await {
            if tries >= TRIES || !is_deadlock(&e) {
                return Err(Error::Migrate(e));
            }
            tries += 1;
        }
    }
    let (least,): (i64,) = sqlx::query_as("SELECT least FROM schema_floor").fetch_one(pool).await?;
    fits(least, newest_known())
}

fn is_deadlock(e: &MigrateError) -> bool {
    matches!(e, MigrateError::ExecuteMigration(sqlx::Error::Database(e), _) if e.code().as_deref() == Some("40P01"))
}

/// The numbers of migrations that have yet to run, ran in vain, or ran with another text.
async fn missing(pool: &PgPool, wanted: &Migrator) -> Result<Vec<i64>, Error> {
    let (made,): (bool,) = sqlx::query_as("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(pool).await?;
    let rows: Vec<Applied> = if made {
        sqlx::query_as("SELECT version, success, checksum FROM _sqlx_migrations").fetch_all(pool).await?
    } else {
        Vec::new()
    };
    let there = |m: &sqlx::migrate::Migration| {
        rows.iter().any(|(version, success, sum)| *version == m.version && *success && sum[..] == *m.checksum)
    };
    Ok(wanted.iter().filter(|m| !there(m)).map(|m| m.version).collect())
}

fn fits(least: i64, known: i64) -> Result<(), Error> {
    if known < least { Err(Error::SchemaAhead { least, known }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_folders_end_with_the_same_number() {
        assert_eq!(postgres_migrations().iter().map(|m| m.version).max(), Some(newest_known()));
    }
}
