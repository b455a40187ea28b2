//! A service context on a test's own broker and database.

use std::{sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use windlass_bus::{Bus, BusOptions, Context};
use windlass_runtime::{Health, Sealer, Settings};
use windlass_store::Store;

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Nobody listens there.
pub(crate) const NOWHERE: &str = "nats://127.0.0.1:1";

/// A context; its directory goes with the second value.
pub(crate) async fn context(database_url: &str, nats_url: &str) -> (Context, TempDir) {
    let dir = tempfile::tempdir().expect("dir");
    let mut settings = Settings { state_dir: dir.path().to_path_buf(), ..Settings::default() };
    settings.poll_s = Duration::from_millis(200).into();
    let health = Health::new();
    // Waiting for the first connection is pointless where nobody listens.
    let first_wait = if nats_url == NOWHERE { Duration::ZERO } else { SOON };
    let options = BusOptions { first_wait, ..BusOptions::open(nats_url) };
    let bus = Bus::connect(options, &health).await.expect("connects");
    let ctx = Context {
        store: Store::open(database_url).await.expect("opens"),
        bus,
        settings: Arc::new(settings),
        shutdown: CancellationToken::new(),
        health,
        owner: "test".into(),
        tracker: TaskTracker::new(),
        sealer: Sealer::from_key(&[1; 32]),
    };
    (ctx, dir)
}

/// Ends everything the context runs; fails if something does not end.
pub(crate) async fn end(ctx: Context) {
    ctx.shutdown.cancel();
    ctx.tracker.close();
    tokio::time::timeout(SOON, ctx.tracker.wait()).await.expect("all tasks end");
}
