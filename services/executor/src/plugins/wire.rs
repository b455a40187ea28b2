//! What is said to plugins and what they answer: one JSON document each way. `ops/docs/plugins.md` is the reference.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;
use windlass_domain::plugin::Verb;

/// Grows with changes that old plugins would misread.
pub(crate) const PROTOCOL: u32 = 1;
const MAX_MESSAGE: usize = 2048;
/// Of outputs and of state, as JSON.
pub(crate) const MAX_VALUE: usize = 64 * 1024;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Request<'a> {
    pub(crate) protocol: u32,
    pub(crate) verb: Verb,
    /// The same for everything that belongs to one run of a step: the key a plugin knows a repeat by.
    pub(crate) call: Uuid,
    /// `name@version`.
    pub(crate) plugin: &'a str,
    pub(crate) deployment: Uuid,
    pub(crate) project: &'a str,
    pub(crate) environment: &'a str,
    pub(crate) step: &'a str,
    pub(crate) attempt: u32,
    pub(crate) inputs: &'a Map<String, Value>,
    /// The run of a step that is to be taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) undo: Option<Undone<'a>>,
    /// What the plugin's last answer asked to be given back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<Value>,
    /// Where the answer to `waiting` is posted, once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) callback_url: Option<String>,
    /// What was posted there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) callback: Option<Value>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Undone<'a> {
    /// What every request of that run had as `call`.
    pub(crate) call: Uuid,
    pub(crate) deployment: Uuid,
    pub(crate) step: &'a str,
    pub(crate) attempt: u32,
    pub(crate) outputs: &'a Map<String, Value>,
    /// What its last answer asked to be given back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Succeeded,
    Failed,
    /// Ask again with `poll`.
    Running,
    /// A callback will come.
    Waiting,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    #[serde(default)]
    pub(crate) outputs: Map<String, Value>,
    /// For people.
    #[serde(default)]
    pub(crate) message: Option<String>,
    /// Of a failure: the same request may do better soon, and does no harm.
    #[serde(default)]
    pub(crate) retryable: bool,
    #[serde(default)]
    pub(crate) state: Option<Value>,
    #[serde(default)]
    pub(crate) poll_after_s: Option<f64>,
}

impl Answer {
    /// Reads an answer; the error says what is wrong with it, without its content.
    pub(crate) fn read(bytes: &[u8]) -> Result<Answer, String> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Err("it gave no answer".into());
        }
        let mut answer: Answer = serde_json::from_slice(bytes)
            .map_err(|e| format!("its answer is not the JSON of one at line {}, column {}", e.line(), e.column()))?;
        let size = |v: &Value| v.to_string().len();
        if answer.state.as_ref().is_some_and(|s| size(s) > MAX_VALUE) {
            return Err(format!("its answer's `state` is larger than {MAX_VALUE} bytes"));
        }
        if size(&Value::Object(answer.outputs.clone())) > MAX_VALUE {
            return Err(format!("its answer's `outputs` are larger than {MAX_VALUE} bytes"));
        }
        answer.message = answer.message.map(|m| crate::agents::cut(m, MAX_MESSAGE));
        Ok(answer)
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Silence {
    /// The plugin never got the request. `soon`: it may, if asked again.
    NotAsked { reason: String, soon: bool },
    /// It ran, and ended without an answer.
    Broke(String),
    /// It may have the request and may still be working on it.
    Unknown(String),
    /// Stopped from here.
    Halted,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_bounded() {
        let a = Answer::read(br#"{"status":"running","state":{"n":1},"poll_after_s":2,"more":[]}"#).expect("reads");
        assert_eq!((a.status, a.poll_after_s), (Status::Running, Some(2.0)));
        for bad in [&b""[..], b"  \n", b"done", b"{}", b"{\"status\":\"fine\"}", b"{\"status\":\"failed\"} x"] {
            assert!(Answer::read(bad).is_err(), "{bad:?}");
        }
        let big = format!(r#"{{"status":"succeeded","outputs":{{"x":"{}"}}}}"#, "a".repeat(MAX_VALUE));
        assert!(Answer::read(big.as_bytes()).expect_err("too large").contains("outputs"));
        let error = Answer::read(br#"{"status":"hunter2"}"#).expect_err("unknown status");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
