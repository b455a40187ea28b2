//! The one envelope: CloudEvents 1.0 as structured JSON. Events leave in it; build-ready events of CI come in it.

use serde::{Deserialize, Serialize};
use windlass_domain::{Timestamp, event::Event};

pub const SPEC_VERSION: &str = "1.0";
/// Header that carries the W3C trace context over NATS.
pub const TRACE_HEADER: &str = "traceparent";

/// CloudEvents 1.0 JSON. Unknown attributes of other senders are kept in `extensions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CloudEvent {
    pub specversion: String,
    pub id: String,
    pub source: String,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacontenttype: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
    #[serde(flatten)]
    pub extensions: std::collections::BTreeMap<String, serde_json::Value>,
}

/// What `data` of our own events holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventData {
    pub agg_seq: u64,
    pub actor: String,
    pub severity: windlass_domain::event::Severity,
    pub project: Option<String>,
    pub environment: Option<String>,
    pub payload: serde_json::Value,
}

impl CloudEvent {
    /// `io.windlass.<what>.v1`, source `/windlass/<aggregate>/<id>`.
    pub fn of(e: &Event) -> CloudEvent {
        let data = EventData {
            agg_seq: e.agg_seq,
            actor: e.actor.clone(),
            severity: e.severity,
            project: e.project.clone(),
            environment: e.environment.clone(),
            payload: e.payload.clone(),
        };
        CloudEvent {
            specversion: SPEC_VERSION.into(),
            id: e.id.to_string(),
            source: format!("/windlass/{}/{}", e.aggregate, e.aggregate_id),
            kind: format!("io.windlass.{}.v1", e.what),
            subject: Some(e.aggregate_id.clone()),
            time: Some(e.at),
            datacontenttype: Some("application/json".into()),
            data: serde_json::to_value(data).ok(),
            extensions: e.trace.iter().map(|t| ("traceparent".to_owned(), t.clone().into())).collect(),
        }
    }
}
