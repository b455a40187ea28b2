//! What people say about versions and environments: holds, vetoes and pins.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Body of `PUT /projects/{p}/environments/{e}/hold`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HoldBody {
    /// Shown to whoever meets the hold.
    pub reason: String,
}

/// Hooks and promotions release nothing here until a person releases it; people still can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hold {
    pub project: String,
    pub environment: String,
    pub by: String,
    pub reason: String,
    pub at: DateTime<Utc>,
    /// The rollback that set it.
    pub deployment: Option<Uuid>,
}

/// Whether an environment is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HoldState {
    pub project: String,
    pub environment: String,
    pub hold: Option<Hold>,
}

/// Body of `POST /projects/{p}/marks`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MarkNew {
    /// veto (never this version) or pin (this version and no other)
    pub kind: String,
    pub version: String,
    /// All environments of the project when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    pub reason: String,
}

/// A veto or a pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mark {
    pub project: String,
    /// None: all environments of the project.
    pub environment: Option<String>,
    /// veto or pin
    pub kind: String,
    pub version: String,
    pub by: String,
    pub reason: String,
    pub at: DateTime<Utc>,
}

/// All that is said about a project's versions and environments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Marks {
    pub items: Vec<Mark>,
    pub holds: Vec<Hold>,
}
