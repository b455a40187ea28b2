//! What people have said that whoever grants tasks must hear: stops of tasks and hosts, locks of hosts. One statement, because
//! it is asked before every grant.

use crate::{
    Error, Tx,
    latches::{self, Latch},
    sql,
};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use uuid::Uuid;
use windlass_domain::{
    deployment::By,
    ids::{TaskId, WorkId},
};

/// By whom, why and since when.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Words {
    /// The work's tasks that are to stop.
    pub stops: BTreeMap<TaskId, By>,
    /// Hosts of the work that are to stop, also before they had a task.
    pub host_stops: BTreeMap<String, By>,
    /// All hosts that are locked.
    pub locks: BTreeMap<String, By>,
}

/// Task or host, whether it is a lock, who, why, when.
type Row = (Option<Uuid>, Option<String>, bool, String, String, DateTime<Utc>);

/// All that is said about a work. Until this transaction ends no host is locked and no agent revoked; stops wait for the work's
/// row, which whoever grants has locked.
pub async fn of_work(tx: &mut Tx, work: WorkId) -> Result<Words, Error> {
    latches::share(tx, Latch::Grants).await?;
    let rows: Vec<Row> = sql(
        "SELECT task_id, CAST(NULL AS TEXT) AS host, FALSE AS locked, person, reason, at FROM task_stops WHERE work_id = $1
         UNION ALL SELECT NULL, host, FALSE, person, reason, at FROM host_stops WHERE work_id = $1
         UNION ALL SELECT NULL, host, TRUE, locked_by, reason, locked_at FROM host_locks",
    )
    .bind(work)
    .fetch_all(tx)
    .await?;
    let mut words = Words::default();
    for (task, host, locked, who, reason, at) in rows {
        let by = By { who, reason, at };
        match (task, host) {
            (Some(task), _) => drop(words.stops.insert(TaskId(task), by)),
            (None, Some(host)) if locked => drop(words.locks.insert(host, by)),
            (None, Some(host)) => drop(words.host_stops.insert(host, by)),
            (None, None) => return Err(Error::Unknown("a word about nothing")),
        }
    }
    Ok(words)
}
