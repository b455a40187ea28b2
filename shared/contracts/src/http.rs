//! HTTP request and response bodies of `/api/v1`. What the OpenAPI document, the CLI and the console are made from.
//!
//! Responses are types of their own, so that no stored secret can slip into one. Documents whose shape belongs to the
//! domain (`doc`, `plan`, `payload`) are passed on as JSON.

mod access;
mod artifacts;
mod audit;
mod catalog;
mod deployments;
mod diagnosis;
mod fleet;
mod marks;
mod notices;
mod verbs;

pub use access::*;
pub use artifacts::*;
pub use audit::*;
pub use catalog::*;
pub use deployments::*;
pub use diagnosis::*;
pub use fleet::*;
pub use marks::*;
pub use notices::*;
pub use verbs::{
    AcceptBody, ChooseBody, ClaimBody, ConfirmBody, DecisionBody, FailBody, HostsBody, HostsReasonBody, NoBody,
    ReasonBody, RetryBody, RollbackBody, SucceedBody,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Where every route begins.
pub const PREFIX: &str = "/api/v1";
pub const PROBLEM_JSON: &str = "application/problem+json";
/// `type` of a problem is this and its code.
pub const PROBLEM_URN: &str = "urn:windlass:problem:";
/// Events of the SSE streams: `event` (a [`StreamEvent`]) or `log` (a [`LogChunk`]), and one `end` (a [`StreamEnd`]) at last.
pub const SSE_EVENT: &str = "event";
pub const SSE_LOG: &str = "log";
pub const SSE_END: &str = "end";

/// RFC 9457 problem details: every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:windlass:problem:<code>`
    #[serde(rename = "type")]
    pub kind: String,
    /// Stable and documented; the last part of `type`.
    pub code: String,
    pub title: String,
    pub status: u16,
    /// What went wrong here, and what to do about it.
    pub detail: String,
    /// Single faults of a body, each with its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
    /// The command that was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Uuid>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// Field or item, for example `environment shop/beta: hosts`.
    #[serde(default)]
    pub at: String,
    pub detail: String,
    /// From 1, where the body is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
}

/// One page of a list. Pass `next` as `cursor` for the one after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
