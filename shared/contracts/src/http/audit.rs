//! Checkpoints and the key of the audit trail.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The newest signed checkpoint, a C2SP note.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditCheckpoint {
    pub size: u64,
    pub root: String,
    pub note: String,
    pub at: DateTime<Utc>,
}

/// The key that checkpoints verify with; keep a copy outside this system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditKey {
    /// C2SP verifier key, `<name>+<hash>+<key>`.
    pub key: String,
}
