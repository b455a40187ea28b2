//! The one writer of a SQLite file, with group commit.
//!
//! Callers take turns on a single connection, each inside a savepoint of a shared transaction. Whoever finishes while
//! others wait leaves the transaction open for them; whoever finishes last commits for all, with one fsync, and then all
//! are answered. So a commit is durable when it returns, and a crowd pays for one fsync instead of one each.

use crate::Error;
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

/// A group is committed at this size even when more callers wait, so that the first of a crowd is not kept for long.
const MAX_GROUP: usize = 128;

type GroupResult = Option<Result<(), Arc<sqlx::Error>>>;

#[derive(Debug, Clone)]
pub(crate) struct Writer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    connection: Arc<Mutex<State>>,
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct State {
    connection: SqliteConnection,
    group: Option<Group>,
}

#[derive(Debug)]
struct Group {
    members: usize,
    done: watch::Sender<GroupResult>,
}

/// Counts a caller as waiting until it gets its turn or gives up.
struct Waiting(Option<Arc<Shared>>);

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(shared) = self.0.take() else { return };
        if shared.waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
            // A caller that gave up may have been the one a group relied on to commit it.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move {
                    let mut state = shared.connection.lock().await;
                    if shared.waiting.load(Ordering::SeqCst) == 0 {
                        state.commit().await;
                    }
                });
            }
        }
    }
}

impl Writer {
    pub(crate) async fn open(options: &SqliteConnectOptions) -> Result<Writer, sqlx::Error> {
        let connection = SqliteConnection::connect_with(options).await?;
        let connection = Arc::new(Mutex::new(State { connection, group: None }));
        Ok(Writer(Arc::new(Shared { connection, waiting: AtomicUsize::new(0) })))
    }

    /// Waits for the turn, then opens a savepoint.
    pub(crate) async fn turn(&self) -> Result<Turn, Error> {
        self.0.waiting.fetch_add(1, Ordering::SeqCst);
        let waiting = Waiting(Some(self.0.clone()));
        let state = self.0.connection.clone().lock_owned().await;
        let mut waiting = waiting;
        if let Some(shared) = waiting.0.take() {
            shared.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        // A task of its own, which ends by itself: a caller that gives up in the middle must not leave a transaction that
        // nobody knows of.
        tokio::spawn(Turn::begin(self.0.clone(), state)).await.map_err(|_| Error::Closed)?
    }

    pub(crate) async fn close(&self) {
        let mut state = self.0.connection.lock().await;
        state.commit().await;
    }
}

impl State {
    /// Ends the open transaction, if any, and answers its members.
    async fn commit(&mut self) {
        let Some(group) = self.group.take() else { return };
        let end = if group.members == 0 { "ROLLBACK" } else { "COMMIT" };
        let result = sqlx::raw_sql(end).execute(&mut self.connection).await;
        if result.is_err() && group.members > 0 {
            // A failed COMMIT may leave the transaction open; nothing of it was promised to anyone.
            if let Err(e) = sqlx::raw_sql("ROLLBACK").execute(&mut self.connection).await {
                tracing::debug!(error = %e, "no transaction was left to roll back");
            }
        }
        group.done.send_replace(Some(result.map(|_| ()).map_err(Arc::new)));
    }
}

/// The right to write. Dropping it takes back what was written in it.
#[derive(Debug)]
pub(crate) struct Turn {
    shared: Arc<Shared>,
    state: Option<OwnedMutexGuard<State>>,
}

impl Turn {
    pub(crate) fn connection(&mut self) -> Result<&mut SqliteConnection, Error> {
        self.state.as_mut().map(|s| &mut s.connection).ok_or(Error::Closed)
    }

    async fn begin(shared: Arc<Shared>, mut state: OwnedMutexGuard<State>) -> Result<Turn, Error> {
        if state.group.is_none() {
            sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut state.connection).await?;
            state.group = Some(Group { members: 0, done: watch::channel(None).0 });
        }
        // From here on a failure or a drop must clean up, which `Turn` does.
        let mut turn = Turn { shared, state: Some(state) };
        sqlx::raw_sql("SAVEPOINT caller").execute(turn.connection()?).await?;
        Ok(turn)
    }

    /// Returns when the group's transaction is on disk.
    pub(crate) async fn commit(self) -> Result<(), Error> {
        // A task of its own for the same reason: once the savepoint is released the change belongs to the group, and the
        // other members need their answer even if this caller is gone.
        let mut done = tokio::spawn(self.join_group()).await.map_err(|_| Error::Closed)??;
        let result = done.wait_for(Option::is_some).await.map_err(|_| Error::Closed)?.clone();
        match result {
            Some(Ok(())) => Ok(()),
            Some(Err(e)) => Err(Error::GroupCommit(e)),
            None => Err(Error::Closed),
        }
    }

    /// Gives the change to the group, and commits the group unless another caller will.
    async fn join_group(mut self) -> Result<watch::Receiver<GroupResult>, Error> {
        sqlx::raw_sql("RELEASE caller").execute(self.connection()?).await?;
        let mut state = self.state.take().ok_or(Error::Closed)?;
        let group = state.group.as_mut().ok_or(Error::Closed)?;
        group.members += 1;
        let done = group.done.subscribe();
        if self.shared.waiting.load(Ordering::SeqCst) == 0 || group.members >= MAX_GROUP {
            state.commit().await;
        }
        Ok(done)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (Some(mut state), Ok(runtime)) = (self.state.take(), tokio::runtime::Handle::try_current()) else { return };
        let shared = self.shared.clone();
        runtime.spawn(async move {
            let undo = sqlx::raw_sql("ROLLBACK TO caller; RELEASE caller").execute(&mut state.connection).await;
            if let Err(e) = undo {
                // Without the savepoint the whole group is in doubt: let it fail as one.
                tracing::error!(error = %e, "a savepoint could not be rolled back");
                if let Some(group) = state.group.take() {
                    let rolled = sqlx::raw_sql("ROLLBACK").execute(&mut state.connection).await;
                    tracing::error!(ok = rolled.is_ok(), "the group was rolled back");
                    group.done.send_replace(Some(Err(Arc::new(e))));
                }
                return;
            }
            if shared.waiting.load(Ordering::SeqCst) == 0 {
                state.commit().await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::{Store, sql};
    use std::time::Duration;

    async fn store(dir: &tempfile::TempDir) -> Store {
        Store::open(&format!("sqlite://{}/t.db", dir.path().display())).await.expect("opens")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_crowd_is_committed_and_a_dropped_turn_is_taken_back() {
        let dir = tempfile::tempdir().expect("dir");
        let s = store(&dir).await;
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..200_i64 {
            let s = s.clone();
            tasks.spawn(async move {
                let mut tx = s.write().await.expect("turn");
                sql("INSERT INTO leases (name, owner, epoch, expires_at) VALUES ($1, 'x', $2, $3)")
                    .bind(format!("l{i}"))
                    .bind(i)
                    .bind(chrono::Utc::now())
                    .execute_one(&mut tx)
                    .await
                    .expect("insert");
                // Every third caller changes its mind.
                if i % 3 == 0 {
                    drop(tx);
                } else {
                    tx.commit().await.expect("commit");
                }
            });
        }
        // Callers that give up while waiting must not strand the others.
        for _ in 0..50 {
            let s = s.clone();
            tasks.spawn(async move {
                let gave_up = tokio::time::timeout(Duration::from_micros(50), s.write()).await;
                drop(gave_up);
            });
        }
        let all = async { while tasks.join_next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("nobody is left waiting");
        let mut c = s.read().await.expect("read");
        let n: Option<i64> = sql("SELECT COUNT(*) FROM leases").fetch_scalar(&mut c).await.expect("count");
        assert_eq!(n, Some(200 - 67));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn callers_that_end_at_any_moment_do_not_hurt_the_others() {
        let dir = tempfile::tempdir().expect("dir");
        let s = store(&dir).await;
        let insert = async |s: &Store, name: String| {
            let mut tx = s.write().await?;
            sql("INSERT INTO leases (name, owner, epoch, expires_at) VALUES ($1, 'x', 0, $2)")
                .bind(name)
                .bind(chrono::Utc::now())
                .execute_one(&mut tx)
                .await?;
            tx.commit().await
        };
        let mut steady = tokio::task::JoinSet::new();
        for w in 0..4 {
            let s = s.clone();
            steady.spawn(async move {
                for n in 0..150 {
                    insert(&s, format!("steady {w} {n}")).await.expect("a caller that stays is served");
                }
            });
        }
        // From the first step of a turn to the last.
        for n in 0..600_u64 {
            let s = s.clone();
            let brief = tokio::spawn(async move { insert(&s, format!("brief {n}")).await });
            tokio::time::sleep(Duration::from_micros(n * 7 % 2000)).await;
            brief.abort();
        }
        let all = async {
            while let Some(end) = steady.join_next().await {
                end.expect("joins");
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("nobody is left waiting");
        let mut c = s.read().await.expect("read");
        let n: Option<i64> =
            sql("SELECT COUNT(*) FROM leases WHERE name LIKE 'steady%'").fetch_scalar(&mut c).await.expect("count");
        assert_eq!(n, Some(600));
    }
}
