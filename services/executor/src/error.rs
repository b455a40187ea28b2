//! What can end the executor, or one work on it.

/// Fatal: the service cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the key that signs frames to agents cannot be used")]
    Key(#[from] windlass_bus::IdentityError),
    #[error("the connection into the agents' NATS account cannot be made")]
    Connect(#[from] windlass_bus::ConnectError),
    #[error("the subscription to agents' frames cannot be made")]
    Subscribe(#[source] windlass_bus::doorbell::BusError),
    #[error("the client for HTTP steps cannot be built")]
    Outbound(#[from] windlass_runtime::outbound::OutboundError),
    #[error("the settings of `vault` cannot be used")]
    Vault(#[from] windlass_runtime::vault::VaultError),
    #[error("a part of the executor ended unexpectedly: {0}")]
    Ended(&'static str),
}

/// Why a work is no longer driven here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// Another executor has the claim: nothing of what is in memory counts any more.
    #[error("the claim was lost")]
    Lost,
    #[error("the executor shuts down")]
    Shutdown,
    #[error("the database did not answer")]
    Store(#[from] windlass_store::Error),
    #[error("{0}")]
    Plan(#[from] crate::plans::PlanProblem),
}
