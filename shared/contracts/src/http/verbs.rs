//! Bodies of what people do to a deployment: `POST /deployments/{id}/<verb>`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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

/// Body of `resume` and `unclaim`: nothing.
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

/// Body of `claim`. Somebody else's claim is only taken over when it is said, with the reason.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimBody {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take_over: bool,
    /// Needed to take over.
    #[serde(default)]
    pub reason: String,
}

/// Body of `retry`. Nothing given: all that failed, each host at the step it failed at. A deployment that ended failed or
/// aborted is taken up again by it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryBody {
    /// Only these hosts.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Only this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// All hosts of the failed wave from their first step on, those that succeeded too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole_wave: bool,
    /// Inputs that are to be others from here on: the plan is made anew and has to be approved before it goes on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Object>)]
    pub inputs: BTreeMap<String, serde_json::Value>,
    /// Needed with `inputs`.
    #[serde(default)]
    pub reason: String,
}

/// Body of `fail`: a central step that runs is stopped and counts as failed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailBody {
    pub step: String,
    pub reason: String,
}

/// Body of `succeed`: a failed step, or failed hosts, count as well on a person's word. One of the two is named.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SucceedBody {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    #[serde(default)]
    pub hosts: Vec<String>,
    pub reason: String,
}

/// Body of `skip`. No hosts: all that failed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostsBody {
    #[serde(default)]
    pub hosts: Vec<String>,
}

/// Body of `ignore` (no hosts: all that failed), `exclude`, `stop` and `override` (hosts are named).
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
    /// A version that was known good here; the last such one when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Never release the version that is left again: a veto, set with the rollback.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub veto: bool,
    /// Only hosts that a step of this phase or a later one ran on: prepare, pre-release, release (default) or post-release
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_phase: Option<String>,
    #[serde(default)]
    pub reason: String,
}
