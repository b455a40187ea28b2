//! The facade over SQLite and PostgreSQL: transactions, one SQL text a query, typed values in, typed rows out.

use crate::{
    Error, Value,
    readers::{Reader, Readers},
    writer::{Turn, Writer},
};
use chrono::{DateTime, SubsecRound, Utc};
use sqlx::{
    FromRow, PgPool, Postgres, SqlSafeStr, SqlStr, Sqlite, SqlitePool,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
    query::{Query, QueryAs, QueryScalar},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous},
};
use std::{str::FromStr, sync::Arc, time::Duration};
use tokio::sync::broadcast;
use windlass_domain::event::Event;

/// How many committed groups of events a slow in-process listener may lag behind before it must read the table instead.
const COMMITTED_BACKLOG: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Sqlite,
    Postgres,
}

/// A connected database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Inner,
    committed: broadcast::Sender<Arc<Vec<Event>>>,
}

#[derive(Debug, Clone)]
enum Inner {
    Pg(PgPool),
    Lite { writer: Writer, readers: Readers },
}

impl Store {
    /// Connects and brings the schema up to date. `sqlite:///path/file.db` (made if absent) or `postgres://…`.
    pub async fn open(url: &str) -> Result<Store, Error> {
        let committed = broadcast::channel(COMMITTED_BACKLOG).0;
        let inner = if url.starts_with("sqlite:") {
            Self::open_sqlite(url).await?
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            Self::open_postgres(url).await?
        } else {
            return Err(Error::Url(url.split('@').next_back().unwrap_or_default().to_owned()));
        };
        Ok(Store { inner, committed })
    }

    async fn open_sqlite(url: &str) -> Result<Inner, Error> {
        let path = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")).unwrap_or(url);
        // FULL: a commit is on disk when it returns. NORMAL loses the last commits at a power cut.
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5))
            .statement_cache_capacity(256);
        let migrator = SqlitePool::connect_with(options.clone()).await?;
        crate::schema::migrate_sqlite(&migrator).await?;
        migrator.close().await;
        let writer = Writer::open(&options).await?;
        let readers = Readers::open(options.read_only(true).create_if_missing(false)).await?;
        Ok(Inner::Lite { writer, readers })
    }

    async fn open_postgres(url: &str) -> Result<Inner, Error> {
        let options = PgConnectOptions::from_str(url)?
            .application_name("windlass")
            .options([("statement_timeout", "30s"), ("idle_in_transaction_session_timeout", "30s")]);
        let pool = PgPoolOptions::new()
            .max_connections(16)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(options)
            .await?;
        crate::schema::migrate_postgres(&pool).await?;
        Ok(Inner::Pg(pool))
    }

    pub fn dialect(&self) -> Dialect {
        match self.inner {
            Inner::Pg(_) => Dialect::Postgres,
            Inner::Lite { .. } => Dialect::Sqlite,
        }
    }

    /// A write transaction. On SQLite this is the one writer's turn: hold it for SQL only, never across other waits.
    pub async fn write(&self) -> Result<Tx, Error> {
        let conn = match &self.inner {
            Inner::Pg(pool) => Conn::Pg(pool.begin().await?),
            Inner::Lite { writer, .. } => Conn::Lite(writer.turn().await?),
        };
        Ok(Tx { conn, appended: Vec::new(), committed: Some(self.committed.clone()) })
    }

    /// A read-only connection; each statement sees what was committed before it. There are few of them: a caller that has one
    /// asks for no second one and waits for nothing else, a turn to write least of all.
    #[track_caller]
    pub fn read(&self) -> impl Future<Output = Result<Tx, Error>> + Send + '_ {
        let caller = std::panic::Location::caller();
        async move {
            let conn = match &self.inner {
                Inner::Pg(pool) => Conn::PgRead(pool.acquire().await?),
                Inner::Lite { readers, .. } => Conn::LiteRead(readers.lend(caller).await?),
            };
            Ok(Tx { conn, appended: Vec::new(), committed: None })
        }
    }

    /// Hears the events of every transaction this process commits, after the commit. A listener that lags gets
    /// `RecvError::Lagged` and reads the table.
    pub fn committed(&self) -> broadcast::Receiver<Arc<Vec<Event>>> {
        self.committed.subscribe()
    }

    /// Ends open transactions and connections.
    pub async fn close(&self) {
        match &self.inner {
            Inner::Pg(pool) => pool.close().await,
            Inner::Lite { writer, readers } => {
                writer.close().await;
                readers.close();
            }
        }
    }
}

#[derive(Debug)]
enum Conn {
    Pg(sqlx::Transaction<'static, Postgres>),
    PgRead(PoolConnection<Postgres>),
    Lite(Turn),
    LiteRead(Reader),
}

/// A transaction (from [`Store::write`]) or a read-only connection (from [`Store::read`]).
#[derive(Debug)]
pub struct Tx {
    conn: Conn,
    pub(crate) appended: Vec<Event>,
    committed: Option<broadcast::Sender<Arc<Vec<Event>>>>,
}

impl Tx {
    /// Durable when it returns. Dropping the transaction instead takes everything back.
    pub async fn commit(self) -> Result<(), Error> {
        match self.conn {
            Conn::Pg(tx) => tx.commit().await?,
            Conn::Lite(turn) => turn.commit().await?,
            Conn::PgRead(_) | Conn::LiteRead(_) => {}
        }
        if let (Some(committed), false) = (self.committed, self.appended.is_empty()) {
            // Nobody listening is fine: the queue table holds the events.
            drop(committed.send(Arc::new(self.appended)));
        }
        Ok(())
    }

    /// From [`Store::write`].
    pub fn is_write(&self) -> bool {
        matches!(self.conn, Conn::Pg(_) | Conn::Lite(_))
    }

    pub fn dialect(&self) -> Dialect {
        match self.conn {
            Conn::Pg(_) | Conn::PgRead(_) => Dialect::Postgres,
            Conn::Lite(_) | Conn::LiteRead(_) => Dialect::Sqlite,
        }
    }

    /// The database's clock, which all leases are judged by.
    pub async fn now(&mut self) -> Result<DateTime<Utc>, Error> {
        match self.dialect() {
            Dialect::Sqlite => Ok(Utc::now().trunc_subsecs(6)),
            Dialect::Postgres => {
                let now: Option<DateTime<Utc>> = sql("SELECT clock_timestamp()").fetch_scalar(self).await?;
                now.ok_or(Error::Closed)
            }
        }
    }
}

/// Locking clause for a SELECT whose row must not change before commit: on PostgreSQL append it to the text
/// (`sql_dyn(format!("SELECT … {}", tx.for_update()))`); empty on SQLite, where the writer's turn is the lock.
impl Tx {
    pub fn for_update(&self) -> &'static str {
        match self.dialect() {
            Dialect::Sqlite => "",
            Dialect::Postgres => " FOR UPDATE",
        }
    }

    /// The same for a row that others may read so too.
    pub fn for_share(&self) -> &'static str {
        match self.dialect() {
            Dialect::Sqlite => "",
            Dialect::Postgres => " FOR SHARE",
        }
    }
}

/// A statement with `$1`, `$2` … parameters, the same text for both databases.
#[derive(Debug)]
pub struct Sql {
    text: SqlStr,
    values: Vec<Value>,
}

/// Starts a statement. Text that is not a constant needs `sqlx::AssertSqlSafe`, as a reminder to bind instead.
pub fn sql(text: impl SqlSafeStr) -> Sql {
    Sql { text: text.into_sql_str(), values: Vec::new() }
}

macro_rules! bind_all {
    ($query:expr, $values:expr) => {{
        let mut q = $query;
        for v in $values {
            q = match v {
                Value::Text(x) => q.bind(x),
                Value::Int(x) => q.bind(x),
                Value::Float(x) => q.bind(x),
                Value::Bool(x) => q.bind(x),
                Value::Bytes(x) => q.bind(x),
                Value::Uuid(x) => q.bind(x),
                Value::Time(x) => q.bind(x),
                Value::Json(x) => q.bind(x),
                Value::Broken(e) => {
                    return Err(Error::Encode(serde::ser::Error::custom(e.to_string())));
                }
            };
        }
        q
    }};
}

macro_rules! run {
    ($self:ident, $tx:ident, |$text:ident| $make:expr, $method:ident) => {
        match &mut $tx.conn {
            Conn::Pg(c) => {
                let $text = $self.text;
                bind_all!($make, $self.values).$method(&mut **c).await
            }
            Conn::PgRead(c) => {
                let $text = $self.text;
                bind_all!($make, $self.values).$method(&mut **c).await
            }
            Conn::Lite(c) => {
                let $text = $self.text;
                bind_all!($make, $self.values).$method(c.connection()?).await
            }
            Conn::LiteRead(c) => {
                let $text = $self.text;
                let done = bind_all!($make, $self.values).$method(c.begin()?).await;
                c.end();
                done
            }
        }
    };
}

impl Sql {
    /// Binds the next parameter.
    pub fn bind(mut self, value: impl Into<Value>) -> Sql {
        self.values.push(value.into());
        self
    }

    /// Rows affected.
    pub async fn execute(self, tx: &mut Tx) -> Result<u64, Error> {
        Ok(match &mut tx.conn {
            Conn::Pg(c) => {
                let q: Query<'_, Postgres, _> = sqlx::query(self.text);
                bind_all!(q, self.values).execute(&mut **c).await?.rows_affected()
            }
            Conn::PgRead(c) => {
                let q: Query<'_, Postgres, _> = sqlx::query(self.text);
                bind_all!(q, self.values).execute(&mut **c).await?.rows_affected()
            }
            Conn::Lite(c) => {
                let q: Query<'_, Sqlite, _> = sqlx::query(self.text);
                bind_all!(q, self.values).execute(c.connection()?).await?.rows_affected()
            }
            Conn::LiteRead(c) => {
                let q: Query<'_, Sqlite, _> = sqlx::query(self.text);
                let done = bind_all!(q, self.values).execute(c.begin()?).await;
                c.end();
                done?.rows_affected()
            }
        })
    }

    /// For writes that must hit exactly one row; none means somebody else was quicker.
    pub async fn execute_one(self, tx: &mut Tx) -> Result<(), Error> {
        if self.execute(tx).await? == 1 { Ok(()) } else { Err(Error::Conflict) }
    }

    pub async fn fetch_all<T>(self, tx: &mut Tx) -> Result<Vec<T>, Error>
    where
        T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
    {
        Ok(run!(self, tx, |text| sqlx::query_as(text) as QueryAs<'_, _, T, _>, fetch_all)?)
    }

    pub async fn fetch_optional<T>(self, tx: &mut Tx) -> Result<Option<T>, Error>
    where
        T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
    {
        Ok(run!(self, tx, |text| sqlx::query_as(text) as QueryAs<'_, _, T, _>, fetch_optional)?)
    }

    /// The first column of the first row; `None` when there is no row.
    pub async fn fetch_scalar<T>(self, tx: &mut Tx) -> Result<Option<T>, Error>
    where
        T: Send + Unpin,
        (T,): for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow>,
    {
        Ok(run!(self, tx, |text| sqlx::query_scalar(text) as QueryScalar<'_, _, T, _>, fetch_optional)?)
    }
}
