//! `down`: stops what `up` started, by pid and start time, children that lost their parent included.

use super::{error::Error, record::Record};
use std::{path::Path, time::Duration};

/// How long an orderly shutdown may take.
const GRACE: Duration = Duration::from_secs(40);
const CHILD_GRACE: Duration = Duration::from_secs(10);

/// True when something was running.
pub(crate) async fn run(state: &Path) -> Result<bool, Error> {
    let Some(record) = Record::read(state) else { return Ok(false) };
    let was_alive = record.process.is_alive();
    if was_alive {
        super::progress(format!("stopping pid {}", record.process.pid));
        if !record.process.stop(GRACE).await {
            return Err(Error::Undying { pid: record.process.pid });
        }
    }
    // The process writes its record anew as it starts children: read what it said last.
    let record = Record::read(state).unwrap_or(record);
    let left = stop_children(&record).await?;
    Record::remove(state);
    Ok(was_alive || left)
}

/// Stops children that outlived their parent. True when there were any.
pub(crate) async fn stop_children(record: &Record) -> Result<bool, Error> {
    let left: Vec<_> = record.children.iter().filter(|c| c.is_alive()).collect();
    for child in &left {
        super::progress(format!("stopping {} (pid {}), left over", child.what, child.pid));
        child.terminate();
    }
    for child in &left {
        if !child.stop(CHILD_GRACE).await {
            return Err(Error::Undying { pid: child.pid });
        }
    }
    Ok(!left.is_empty())
}
