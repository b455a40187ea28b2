//! The database: the one place that decides. One file an aggregate; `db` alone knows that there are two databases.

pub mod agents;
pub mod artifacts;
pub mod audit;
pub mod bundles;
pub mod catalog;
pub mod commands;
mod db;
pub mod decisions;
pub mod deployments;
pub mod diagnosis;
pub mod events;
pub mod hosts;
pub mod idempotency;
pub mod intake;
pub mod latches;
pub mod leases;
pub mod logs;
pub mod marks;
pub mod notifications;
pub mod people;
pub mod planning;
pub mod plugins;
pub mod processes;
pub mod promotions;
mod readers;
pub mod restored;
pub mod retention;
mod rows;
pub mod schema;
pub mod secrets;
pub mod sessions;
pub mod sources;
pub mod ssh;
pub mod tasks;
pub mod tokens;
mod value;
pub mod words;
pub mod works;
mod writer;

pub use db::{Dialect, Sql, Store, Tx, sql};
pub use value::Value;

/// What can go wrong with the store. `Display` leaves the cause to `source`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database refused a statement")]
    Database(#[source] sqlx::Error),
    #[error("the write transaction of a group could not be committed")]
    GroupCommit(#[source] std::sync::Arc<sqlx::Error>),
    #[error("the database's schema could not be brought up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    #[error(
        "the database's schema lacks migrations {missing:?}, and this role may not change it: run `windlass init --database …` as the owner of the schema, then `ops/postgres/roles.sql`"
    )]
    SchemaBehind { missing: Vec<i64> },
    #[error(
        "the database's schema is too new for this program: it needs one that knows migration {least}, and this one ends with {known}; install the newer version"
    )]
    SchemaAhead { least: i64, known: i64 },
    #[error("`{0}` is not a database URL: use sqlite:///path/to/file.db or postgres://user:password@host/database")]
    Url(String),
    #[error("a stored document of `{what}` cannot be read")]
    Decode { what: &'static str, source: serde_json::Error },
    #[error("a value could not be written as JSON")]
    Encode(#[source] serde_json::Error),
    #[error("a value in column `{0}` is not one this version knows")]
    Unknown(&'static str),
    /// Somebody else changed the row since it was read: load it again and decide again.
    #[error("the row was changed by somebody else")]
    Conflict,
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// A UNIQUE constraint said no.
    pub fn is_unique_violation(&self) -> bool {
        matches!(self, Error::Database(sqlx::Error::Database(e)) if e.is_unique_violation())
    }

    /// The same transaction may succeed when run again: version conflicts, serialization failures, deadlocks, a busy file.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Conflict => true,
            Error::Database(sqlx::Error::Database(e)) => {
                e.code().is_some_and(|c| ["40001", "40P01", "5", "6", "517"].contains(&c.as_ref()))
            }
            _ => false,
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(e: sqlx::Error) -> Self {
        Error::Database(e)
    }
}

/// Comes before the first page of every list: newer than all rows. A condition that may be absent would keep an index from being used.
pub(crate) fn newest() -> (chrono::DateTime<chrono::Utc>, uuid::Uuid) {
    // The last second of the year 9999.
    (chrono::DateTime::from_timestamp(253_402_300_799, 0).unwrap_or_default(), uuid::Uuid::max())
}

/// A document column as it stands in the row: read once, straight into its type, by [`read_doc`].
pub(crate) type Doc = sqlx::types::Json<Box<sqlx::types::JsonRawValue>>;

/// Reads a stored JSON document as its domain type.
pub(crate) fn read_doc<T: serde::de::DeserializeOwned>(what: &'static str, doc: &Doc) -> Result<T, Error> {
    serde_json::from_str(doc.0.get()).map_err(|source| Error::Decode { what, source })
}

/// Reads a stored JSON document as its domain type.
pub fn decode<T: serde::de::DeserializeOwned>(what: &'static str, doc: serde_json::Value) -> Result<T, Error> {
    serde_json::from_value(doc).map_err(|source| Error::Decode { what, source })
}
