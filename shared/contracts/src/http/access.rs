//! People, their rights, and tokens.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// `*` is every group.
    pub project_group: String,
    /// viewer, developer, approver, operator or admin
    pub role: String,
}

/// Who the token speaks for, and what limits it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Me {
    pub person: String,
    pub display: String,
    pub token: Uuid,
    pub grants: Vec<Grant>,
    /// Empty: all that the person may do.
    pub scopes: Vec<String>,
    /// The token works for this project only.
    pub project: Option<String>,
    pub expires_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Person {
    pub name: String,
    pub display: String,
    pub disabled: bool,
    pub grants: Vec<Grant>,
    pub created_at: DateTime<Utc>,
}

/// Makes a person, or changes the one of this name. Grants left out stay as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PersonPut {
    pub name: String,
    #[serde(default)]
    pub display: String,
    #[serde(default)]
    pub disabled: bool,
    #[serde(default)]
    pub grants: Option<Vec<Grant>>,
}

/// All grants of a person; what is not named is taken away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantsPut {
    pub grants: Vec<Grant>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenNew {
    pub person: String,
    #[serde(default)]
    pub label: String,
    /// Permissions (view, trigger, approve, operate, override, define, admin, audit); empty: all of the person's.
    #[serde(default)]
    pub scopes: Vec<String>,
    #[serde(default)]
    pub project: Option<String>,
    #[serde(default)]
    pub expires_at: Option<DateTime<Utc>>,
}

/// The only time the token itself is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenMade {
    pub id: Uuid,
    pub token: String,
    pub person: String,
    pub expires_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    pub id: Uuid,
    pub person: String,
    pub label: String,
    pub scopes: Vec<String>,
    pub project: Option<String>,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
}
