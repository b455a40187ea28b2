//! Reading the server's JSON. A client may be older or newer than its server: a field that is missing is an empty cell, and
//! `--json` shows what the server said, unchanged.

use serde_json::Value;

/// Text of a field (`a/b` goes deeper); numbers and booleans as written, everything else empty.
pub(crate) fn text(v: &Value, path: &str) -> String {
    match at(v, path) {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Number(n)) => n.to_string(),
        Some(Value::Bool(b)) => b.to_string(),
        _ => String::new(),
    }
}

/// Short form of an RFC 3339 time, for tables.
pub(crate) fn time(v: &Value, path: &str) -> String {
    let t = text(v, path);
    t.parse::<chrono::DateTime<chrono::Utc>>().map(super::out::time).unwrap_or(t)
}

pub(crate) fn at<'a>(v: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('/').try_fold(v, |v, key| v.get(key))
}

pub(crate) fn list<'a>(v: &'a Value, path: &str) -> &'a [Value] {
    at(v, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Texts of a list, joined.
pub(crate) fn joined(v: &Value, path: &str) -> String {
    list(v, path).iter().map(|x| x.as_str().map_or_else(|| x.to_string(), str::to_owned)).collect::<Vec<_>>().join(", ")
}

/// The elements of a page, or of a plain list.
pub(crate) fn items(v: &Value) -> &[Value] {
    v.as_array().map_or_else(|| list(v, "items"), Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn missing_fields_are_empty() {
        let v = json!({"a": {"b": "x", "n": 3, "ok": true}, "l": ["p", 1], "items": [1, 2], "at": "2026-11-21T05:06:07.123Z"});
        assert_eq!((text(&v, "a/b"), text(&v, "a/n"), text(&v, "a/ok")), ("x".into(), "3".into(), "true".into()));
        assert_eq!(text(&v, "a/z/b"), "");
        assert_eq!(joined(&v, "l"), "p, 1");
        assert_eq!(time(&v, "at"), "2026-11-21 05:06:07");
        assert_eq!((items(&v).len(), items(&v["l"]).len(), items(&json!(null)).len()), (2, 2, 0));
    }
}
