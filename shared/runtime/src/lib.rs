//! What every `main` needs and no domain rule touches: settings, telemetry, health, ordered shutdown, key files,
//! sealing of secrets, and the guarded HTTP client.

pub mod health;
pub mod keys;
pub mod outbound;
pub mod seal;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
pub mod vault;

pub use health::Health;
pub use outbound::Outbound;
pub use seal::Sealer;
pub use settings::Settings;
pub use vault::Vault;
