//! Bodies of what people do to a deployment: `POST /deployments/{id}/<verb>`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `approve` and `reject`. `digest` is the plan's, as the person saw it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecisionBody {
    pub digest: String,
    #[serde(default)]
    pub comment: String,
}

/// Body of `cancel`, `pause` and `abort`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReasonBody {
    #[serde(default)]
    pub reason: String,
}

/// Body of `resume`: nothing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoBody {}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmBody {
    /// From 0.
    pub wave: u32,
}

/// Body of `choose`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChooseBody {
    /// Id of the step that asks.
    pub step: String,
    /// One of its `choices`.
    pub branch: String,
}

/// Body of `accept`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptBody {
    /// Digest of the plan that was read.
    pub digest: String,
}

/// Body of `retry` and `skip`. No hosts: all that failed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostsBody {
    #[serde(default)]
    pub hosts: Vec<String>,
}

/// Body of `ignore` (no hosts: all that failed), `exclude` and `override` (hosts are named).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostsReasonBody {
    #[serde(default)]
    pub hosts: Vec<String>,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackBody {
    /// normal (default) or emergency
    #[serde(default)]
    pub mode: Option<String>,
    #[serde(default)]
    pub reason: String,
}
