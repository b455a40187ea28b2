//! What every service is given.

use crate::{Bus, BusOptions, ConnectError};
use std::sync::Arc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use windlass_runtime::{Health, Sealer, Settings, seal::SealError, settings::SettingsError};
use windlass_store::Store;

#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("the database cannot be opened; check the setting `database.url`")]
    Store(#[source] windlass_store::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// The service context. Cheap to clone; all clones share everything.
#[derive(Debug, Clone)]
pub struct Context {
    pub store: Store,
    pub bus: Bus,
    pub settings: Arc<Settings>,
    /// Cancelled when the service must end.
    pub shutdown: CancellationToken,
    pub health: Health,
    /// Random id of this process; leases and claims carry it.
    pub owner: String,
    /// Owns the service's tasks.
    pub tracker: TaskTracker,
    pub sealer: Sealer,
}

impl Context {
    /// Opens the database and the keys, and connects to NATS; a broker that is away does not fail it.
    pub async fn open(
        settings: Arc<Settings>,
        health: Health,
        shutdown: CancellationToken,
    ) -> Result<Context, ContextError> {
        let sealer = Sealer::open_or_create(&settings.keys_dir())?;
        let store = Store::open(&settings.database_url()?).await.map_err(ContextError::Store)?;
        health.ok("database");
        let bus = Bus::connect(BusOptions::services(&settings), &health).await?;
        let owner = uuid::Uuid::now_v7().to_string();
        Ok(Context { store, bus, settings, shutdown, health, owner, tracker: TaskTracker::new(), sealer })
    }

    /// The same process for another service: own shutdown and tasks, the rest shared.
    pub fn for_service(&self) -> Context {
        Context { shutdown: self.shutdown.child_token(), tracker: TaskTracker::new(), ..self.clone() }
    }

    /// Runs `task` under the service's tracker. It must end when `shutdown` is cancelled.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }
}
