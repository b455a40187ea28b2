//! The readers of a SQLite file: a few connections that only read, each lent to one caller at a time, first come first served.
//!
//! Not the pool that PostgreSQL has: that one asks a connection whether it still lives, before and after each use, which for a
//! file costs as much as the query between. A caller that gave up in the middle of a statement takes its connection with it.

use crate::Error;
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use std::{
    panic::Location,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections. More would not read faster: a statement keeps a core busy while it runs.
const MOST: usize = 8;
/// Longest wait for one; then the caller is told that the database does not answer.
const WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub(crate) struct Readers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: SqliteConnectOptions,
    free: Arc<Semaphore>,
    slots: Mutex<[Slot; MOST]>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Opened when it is first needed.
    connection: Option<SqliteConnection>,
    /// Where in the program it was asked for, and when it was lent.
    holder: Option<(&'static Location<'static>, Instant)>,
}

impl Shared {
    fn slots(&self) -> MutexGuard<'_, [Slot; MOST]> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who has one, and for how long.
    fn holders(&self) -> String {
        let slots = self.slots();
        let held = slots.iter().filter_map(|s| s.holder);
        let held = held.map(|(at, since)| format!("{}:{} for {:.1?}", at.file(), at.line(), since.elapsed()));
        held.collect::<Vec<_>>().join(", ")
    }

    /// A free place, one with an open connection before one without.
    fn take(&self, to: &'static Location<'static>) -> Option<(usize, Option<SqliteConnection>)> {
        let mut slots = self.slots();
        let free = |open: bool| move |s: &Slot| s.holder.is_none() && (s.connection.is_some() || !open);
        let place = slots.iter().position(free(true)).or_else(|| slots.iter().position(free(false)))?;
        slots[place].holder = Some((to, Instant::now()));
        Some((place, slots[place].connection.take()))
    }
}

impl Readers {
    /// Opens one at once, so that a file that cannot be read is told at the start.
    pub(crate) async fn open(options: SqliteConnectOptions) -> Result<Readers, Error> {
        let first = SqliteConnection::connect_with(&options).await?;
        let readers = Readers(Arc::new(Shared {
            options,
            free: Arc::new(Semaphore::new(MOST)),
            slots: Mutex::new(std::array::from_fn(|_| Slot::default())),
        }));
        readers.0.slots()[0].connection = Some(first);
        Ok(readers)
    }

    pub(crate) async fn lend(&self, to: &'static Location<'static>) -> Result<Reader, Error> {
        let free = Arc::clone(&self.0.free);
        let permit = match tokio::time::timeout(WAIT, free.acquire_owned()).await {
            Ok(permit) => permit.map_err(|_| Error::Closed)?,
            Err(_) => {
                let held = self.0.holders();
                tracing::error!(%to, held, "no reader of the database became free in {} s", WAIT.as_secs());
                return Err(Error::Database(sqlx::Error::PoolTimedOut));
            }
        };
        let (place, connection) = self.0.take(to).ok_or(Error::Closed)?;
        // From here on a drop gives the place back.
        let mut reader = Reader { connection, amid: false, place, shared: Arc::clone(&self.0), _permit: permit };
        if reader.connection.is_none() {
            reader.connection = Some(SqliteConnection::connect_with(&self.0.options).await?);
        }
        Ok(reader)
    }

    /// Nobody gets one any more; those that are lent end with their callers.
    pub(crate) fn close(&self) {
        self.0.free.close();
        for s in self.0.slots().iter_mut() {
            s.connection = None;
        }
    }
}

/// A connection on loan.
#[derive(Debug)]
pub(crate) struct Reader {
    connection: Option<SqliteConnection>,
    /// A statement was begun and its end was not seen.
    amid: bool,
    place: usize,
    shared: Arc<Shared>,
    // After the connection went back: `drop` runs before fields are dropped.
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// For one statement, which is over when [`Reader::end`] is called.
    pub(crate) fn begin(&mut self) -> Result<&mut SqliteConnection, Error> {
        self.amid = true;
        self.connection.as_mut().ok_or(Error::Closed)
    }

    pub(crate) fn end(&mut self) {
        self.amid = false;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let connection = self.connection.take().filter(|_| !self.amid && !self.shared.free.is_closed());
        let mut slots = self.shared.slots();
        slots[self.place] = Slot { connection, holder: None };
    }
}

#[cfg(test)]
mod tests {
    use crate::{Store, sql};
    use std::time::Duration;

    async fn store(dir: &tempfile::TempDir) -> Store {
        Store::open(&format!("sqlite://{}/t.db", dir.path().display())).await.expect("opens")
    }

    async fn count(s: &Store) -> Option<i64> {
        let mut c = s.read().await.expect("a reader");
        sql("SELECT COUNT(*) FROM leases").fetch_scalar(&mut c).await.expect("counts")
    }

    /// Callers of several runtimes at once, as the workers of the HTTP server are.
    #[test]
    fn a_crowd_of_several_runtimes_is_served() {
        let dir = tempfile::tempdir().expect("dir");
        let main = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let s = main.block_on(store(&dir));
        let crowd = |s: Store| async move {
            let mut all = tokio::task::JoinSet::new();
            for _ in 0..100 {
                let s = s.clone();
                all.spawn(async move {
                    for _ in 0..5 {
                        assert_eq!(count(&s).await, Some(0));
                        let mut tx = s.write().await.expect("turn");
                        sql("DELETE FROM leases").execute(&mut tx).await.expect("deletes");
                        tx.commit().await.expect("commits");
                    }
                });
            }
            let served = async { while all.join_next().await.is_some() {} };
            tokio::time::timeout(Duration::from_secs(20), served).await.expect("all are served");
        };
        let other = {
            let (s, crowd) = (s.clone(), crowd);
            std::thread::spawn(move || {
                let one = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
                one.block_on(crowd(s));
            })
        };
        main.block_on(crowd(s));
        other.join().expect("the other runtime's crowd");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn callers_that_give_up_leave_no_broken_reader_behind() {
        let dir = tempfile::tempdir().expect("dir");
        let s = store(&dir).await;
        let long =
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) SELECT COUNT(*) FROM n";
        for n in 0..100_u64 {
            let s = s.clone();
            let brief = async move {
                let mut c = s.read().await.expect("a reader");
                let _: Option<i64> = sql(long).fetch_scalar(&mut c).await.expect("counts");
            };
            // Some give up while they wait, some in the middle, some are done.
            drop(tokio::time::timeout(Duration::from_micros(n * 200), brief).await);
        }
        for _ in 0..20 {
            assert_eq!(count(&s).await, Some(0));
        }
        s.close().await;
        assert!(s.read().await.is_err(), "a closed store lends nothing");
    }
}
