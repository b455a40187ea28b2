//! The few types that cross into SQL, the same for both databases.

use chrono::{DateTime, SubsecRound, Utc};
use uuid::Uuid;
use windlass_domain::ids;

/// A bound parameter. `None` is SQL NULL of that type. Times are cut to microseconds, the finest both databases keep.
#[derive(Debug, Clone)]
pub enum Value {
    Text(Option<String>),
    Int(Option<i64>),
    Float(Option<f64>),
    Bool(Option<bool>),
    Bytes(Option<Vec<u8>>),
    Uuid(Option<Uuid>),
    Time(Option<DateTime<Utc>>),
    Json(Option<serde_json::Value>),
    /// Could not be written as JSON; running the statement reports it.
    #[doc(hidden)]
    Broken(std::sync::Arc<serde_json::Error>),
}

impl Value {
    /// A document column.
    pub fn json<T: serde::Serialize + ?Sized>(value: &T) -> Value {
        match serde_json::to_value(value) {
            Ok(v) => Value::Json(Some(v)),
            Err(e) => Value::Broken(std::sync::Arc::new(e)),
        }
    }
    /// A document column that may be NULL.
    pub fn json_opt<T: serde::Serialize>(value: Option<&T>) -> Value {
        value.map_or(Value::Json(None), Value::json)
    }
}

macro_rules! from {
    ($($t:ty => $variant:ident($x:ident) $e:expr;)+) => {$(
        impl From<$t> for Value {
            fn from($x: $t) -> Value { Value::$variant(Some($e)) }
        }
        impl From<Option<$t>> for Value {
            fn from(x: Option<$t>) -> Value { Value::$variant(x.map(|$x| $e)) }
        }
    )+};
}

from! {
    String => Text(x) x;
    &str => Text(x) x.to_owned();
    &String => Text(x) x.clone();
    i64 => Int(x) x;
    i32 => Int(x) i64::from(x);
    u32 => Int(x) i64::from(x);
    // Counters here never come near 2^63; one that did must not wrap into a negative.
    u64 => Int(x) i64::try_from(x).unwrap_or(i64::MAX);
    usize => Int(x) i64::try_from(x).unwrap_or(i64::MAX);
    f64 => Float(x) x;
    bool => Bool(x) x;
    Vec<u8> => Bytes(x) x;
    &[u8] => Bytes(x) x.to_vec();
    Uuid => Uuid(x) x;
    DateTime<Utc> => Time(x) x.trunc_subsecs(6);
    serde_json::Value => Json(x) x;
    ids::ArtifactId => Uuid(x) x.0;
    ids::ReleaseId => Uuid(x) x.0;
    ids::DeploymentId => Uuid(x) x.0;
    ids::WorkId => Uuid(x) x.0;
    ids::TaskId => Uuid(x) x.0;
    ids::EventId => Uuid(x) x.0;
    ids::CommandId => Uuid(x) x.0;
    ids::BundleId => Uuid(x) x.0;
    ids::AgentId => Uuid(x) x.0;
    ids::NotificationId => Uuid(x) x.0;
    ids::TokenId => Uuid(x) x.0;
}
