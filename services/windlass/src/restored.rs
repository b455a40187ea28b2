//! `restored`: tells a database that it was put back from a backup, before any service is started on it.

use crate::{
    cli::RestoredArgs,
    exit::Exit,
    service::part,
    up::{Error, progress},
};
use std::path::Path;
use windlass_contracts::audit::note::{Checkpoint, last_in};
use windlass_runtime::Settings;
use windlass_store::{Store, audit, restored};

pub(crate) async fn run(args: RestoredArgs) -> Result<Exit, Error> {
    let mut settings = Settings::load(args.config.as_deref())?;
    if let Some(state) = args.state {
        settings.state_dir = state;
    }
    let store = Store::open(&settings.database_url()?).await.map_err(part("the database"))?;
    let witness = settings.state_dir.join("audit").join("checkpoints");
    let stored = {
        let mut c = store.read().await.map_err(part("the database"))?;
        audit::size(&mut c).await.map_err(part("the audit trail"))?
    };
    let known = last(&witness);
    let lost = known.as_ref().map_or(0, |c| c.size.saturating_sub(stored));
    let mut tx = store.write().await.map_err(part("the database"))?;
    let lost_leaves = i64::try_from(lost).unwrap_or(i64::MAX);
    let done = restored::mark(&mut tx, &args.backup, lost_leaves).await.map_err(part("the database"))?;
    tx.commit().await.map_err(part("the database"))?;
    store.close().await;
    if known.is_some_and(|c| c.size > stored) {
        // The auditor would take it, rightly, as the proof that the trail was cut short. It stays as just that, under another name.
        let kept = witness.with_file_name(format!("checkpoints.before-restore-{}", uuid::Uuid::now_v7().simple()));
        std::fs::rename(&witness, &kept).map_err(part("the checkpoints"))?;
        progress(format!(
            "a checkpoint kept outside knows {lost} records of the audit trail that this backup does not; it is now {}: keep it, \
             `windlass audit verify --since` shows with it what was lost",
            kept.display()
        ));
    }
    progress(format!(
        "{} releases that ran will be paused, automation is held in {} environments, the audit trail has {stored} records",
        done.paused, done.held
    ));
    progress(
        "start the services now; then look at each host of a paused release before you resume it, and release the holds",
    );
    progress("tokens and agents that were revoked after the backup are valid again: revoke them anew");
    Ok(Exit::Ok)
}

/// The last checkpoint of a file of them.
fn last(path: &Path) -> Option<Checkpoint> {
    let text = std::fs::read_to_string(path).ok()?;
    Checkpoint::read_unverified(&last_in(&text)?).ok()
}
