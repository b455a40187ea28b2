//! Values against JSON Schema (draft 2020-12), with bounds: a schema refers only to its own `$defs`, never to itself, and
//! patterns match in linear time, so a check always ends soon and never leaves the process.

use jsonschema::{Draft, PatternOptions, ValidationError, Validator, error::ValidationErrorKind};
use serde_json::Value;
use std::collections::BTreeMap;

/// Largest schema.
pub const MAX_SCHEMA_BYTES: usize = 64 * 1024;
/// Parts of a schema with every reference followed.
const MAX_PARTS: usize = 10_000;
const MAX_DEPTH: usize = 32;
/// Faults that are told at once.
const MAX_FAULTS: usize = 20;
const PATTERN_BYTES: usize = 1024 * 1024;
const DEFS: &str = "#/$defs/";

/// Where a value does not fit. The text never holds the value: it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// JSON Pointer into the value; empty for the whole.
    pub at: String,
    pub text: String,
}

/// Can it be used as a schema? The error says what to change.
pub fn check_schema(schema: &Value) -> Result<(), String> {
    if schema.to_string().len() > MAX_SCHEMA_BYTES {
        return Err(format!("is larger than {MAX_SCHEMA_BYTES} bytes; make it simpler"));
    }
    let defs = schema.get("$defs").and_then(Value::as_object);
    let mut seen = BTreeMap::new();
    let mut parts = size(schema, defs, &mut seen, 0, true)?;
    for name in defs.into_iter().flat_map(|d| d.keys()) {
        parts = parts.saturating_add(def(name, defs, &mut seen, 0)?);
    }
    if parts > MAX_PARTS {
        return Err(format!("has more than {MAX_PARTS} parts when every `$ref` is followed; make it simpler"));
    }
    validator(schema).map(drop)
}

type Defs<'a> = Option<&'a serde_json::Map<String, Value>>;

/// The size of a definition with its references; `None` in `seen` while it is being looked at.
fn def(name: &str, defs: Defs<'_>, seen: &mut BTreeMap<String, Option<usize>>, depth: usize) -> Result<usize, String> {
    match seen.get(name) {
        Some(Some(n)) => return Ok(*n),
        Some(None) => return Err(format!("`$defs/{name}` refers to itself; write it without the circle")),
        None => {}
    }
    let Some(schema) = defs.and_then(|d| d.get(name)) else {
        return Err(format!("`$ref` names `#/$defs/{name}`, which does not exist"));
    };
    seen.insert(name.into(), None);
    let n = size(schema, defs, seen, depth + 1, false)?;
    seen.insert(name.into(), Some(n));
    Ok(n)
}

fn size(
    schema: &Value,
    defs: Defs<'_>,
    seen: &mut BTreeMap<String, Option<usize>>,
    depth: usize,
    top: bool,
) -> Result<usize, String> {
    if depth > MAX_DEPTH {
        return Err(format!("is nested deeper than {MAX_DEPTH}"));
    }
    let mut n = 1_usize;
    match schema {
        Value::Array(l) => {
            for v in l {
                n = n.saturating_add(size(v, defs, seen, depth + 1, false)?);
            }
        }
        Value::Object(m) => {
            for (k, v) in m {
                if matches!(k.as_str(), "$dynamicRef" | "$recursiveRef" | "$dynamicAnchor" | "$anchor" | "$id") {
                    return Err(format!("holds `{k}`, which is not supported; use `$ref: \"#/$defs/<name>\"`"));
                }
                if k == "$schema"
                    && v.as_str()
                        .is_none_or(|s| s.trim_end_matches('#') != "https://json-schema.org/draft/2020-12/schema")
                {
                    return Err("has another `$schema` than draft 2020-12; leave the key out".into());
                }
                if k == "$ref" {
                    let name = v.as_str().and_then(|r| r.strip_prefix(DEFS)).filter(|n| !n.contains(['/', '~', '%']));
                    let Some(name) = name else {
                        return Err("holds a `$ref` that is not `#/$defs/<name>`; nothing else is followed".into());
                    };
                    n = n.saturating_add(def(name, defs, seen, depth)?);
                } else if !(top && k == "$defs") {
                    n = n.saturating_add(size(v, defs, seen, depth + 1, false)?);
                }
            }
        }
        _ => {}
    }
    Ok(n)
}

fn validator(schema: &Value) -> Result<Validator, String> {
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .offline()
        .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES))
        .build(schema)
        .map_err(|e| {
            let at = e.instance_path().to_string();
            let at = if at.is_empty() { String::new() } else { format!(" (at {at})") };
            format!("is not a JSON Schema{at}: {e}")
        })
}

/// Everything that does not fit, or nothing. With `open`, a part for which it is true stands for a value that is not known
/// yet (a secret, an output of an earlier step): it may be anything.
pub fn check(schema: &Value, value: &Value, open: &dyn Fn(&Value) -> bool) -> Vec<Fault> {
    let validator = match validator(schema) {
        Ok(v) => v,
        Err(text) => return vec![Fault { at: String::new(), text: format!("the schema {text}") }],
    };
    let faults = validator.iter_errors(value).filter(|e| !excused(e, open)).take(MAX_FAULTS);
    faults.map(|e| Fault { at: e.instance_path().to_string(), text: told(&e) }).collect()
}

/// The message without the value, but with the names of keys.
fn told(e: &ValidationError<'_>) -> String {
    match e.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let names: Vec<String> = unexpected.iter().map(|n| format!("`{n}`")).collect();
            format!("holds {}, which it does not take", names.join(", "))
        }
        ValidationErrorKind::Required { property } => format!("{property} is missing"),
        _ => e.masked_with("it").to_string(),
    }
}

/// Names of keys are always known; anything else about a part that is not known yet is told later.
fn excused(e: &ValidationError<'_>, open: &dyn Fn(&Value) -> bool) -> bool {
    let about_keys = matches!(
        e.kind(),
        ValidationErrorKind::AdditionalProperties { .. }
            | ValidationErrorKind::Required { .. }
            | ValidationErrorKind::PropertyNames { .. }
            | ValidationErrorKind::UnevaluatedProperties { .. }
    );
    !about_keys && holds(e.instance(), open)
}

fn holds(v: &Value, open: &dyn Fn(&Value) -> bool) -> bool {
    open(v)
        || match v {
            Value::Array(l) => l.iter().any(|v| holds(v, open)),
            Value::Object(m) => m.values().any(|v| holds(v, open)),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const KNOWN: &dyn Fn(&Value) -> bool = &|_| false;

    #[test]
    fn faults_name_the_place_and_never_the_value() {
        let schema = json!({ "type": "object", "additionalProperties": false, "required": ["port"],
            "properties": { "port": { "type": "integer", "maximum": 65535 }, "token": { "type": "string", "pattern": "^a+$" } } });
        assert_eq!(check(&schema, &json!({ "port": 80, "token": "aaa" }), KNOWN), vec![]);
        let faults = check(&schema, &json!({ "token": "hunter2", "nope": 1 }), KNOWN);
        let text = format!("{faults:?}");
        assert_eq!(faults.len(), 3, "{text}");
        assert!(text.contains("/token") && text.contains("nope") && text.contains("port"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn what_is_not_known_yet_may_be_anything() {
        let schema = json!({ "type": "object", "required": ["a"], "properties": { "n": { "type": "integer" } } });
        let open = |v: &Value| v == "?";
        assert_eq!(check(&schema, &json!({ "a": 1, "n": "?" }), &open), vec![]);
        assert_eq!(check(&schema, &json!({ "n": "?" }), &open).len(), 1, "a missing key is told at once");
        assert_eq!(check(&schema, &json!({ "a": 1, "n": "x" }), &open).len(), 1);
    }

    #[test]
    fn a_schema_is_bounded_and_stays_at_home() {
        let bad = [
            json!({ "$ref": "http://127.0.0.1/x" }),
            json!({ "$ref": "file:///etc/passwd" }),
            json!({ "$ref": "#" }),
            json!({ "$ref": "#/$defs/a" }),
            json!({ "$defs": { "a": { "anyOf": [{ "$ref": "#/$defs/b" }] }, "b": { "$ref": "#/$defs/a" } } }),
            json!({ "$dynamicRef": "#x" }),
            json!({ "$schema": "http://example.org/own" }),
            json!({ "type": "strin" }),
            json!({ "pattern": "(" }),
            json!({ "pattern": "(a{1000}){1000}" }),
            json!({ "pattern": "(?=a)b" }),
            json!({ "enum": vec!["x"; MAX_SCHEMA_BYTES] }),
            (0..40).fold(json!({}), |inner, _| json!({ "not": inner })),
        ];
        for schema in bad {
            assert!(check_schema(&schema).is_err(), "{}", &schema.to_string()[..60.min(schema.to_string().len())]);
        }
        // Each level doubles the one before.
        let mut defs = serde_json::Map::new();
        defs.insert("d0".into(), json!({ "type": "string" }));
        for i in 1..30 {
            let r = json!({ "$ref": format!("#/$defs/d{}", i - 1) });
            defs.insert(format!("d{i}"), json!({ "allOf": [r, r] }));
        }
        let error = check_schema(&json!({ "$defs": defs, "$ref": "#/$defs/d29" })).expect_err("too large");
        assert!(error.contains("parts") || error.contains("deeper"), "{error}");
        let good = json!({ "$defs": { "a": { "type": "string" } }, "properties": { "x": { "$ref": "#/$defs/a" } } });
        assert_eq!(check_schema(&good), Ok(()));
        assert_eq!(check(&good, &json!({ "x": 1 }), KNOWN).len(), 1);
    }
}
