//! Canonical JSON: one text for one value, so that it can be hashed.
//!
//! Keys are sorted by their bytes, there is no white space, texts are escaped as little as JSON allows. A number that is
//! whole and fits 64 bits is written in digits alone, whether it was an integer or a float (`2.0` is `2`), since databases
//! do not keep the difference; any other number is the shortest decimal text that reads back as the same 64-bit float.

use serde::Serialize;
use serde_json::{Number, Value};

/// The canonical JSON of a value; `None` for what JSON cannot express.
pub fn canonical_json(value: &impl Serialize) -> Option<String> {
    let value = serde_json::to_value(value).ok()?;
    let mut out = String::with_capacity(1024);
    write(&value, &mut out)?;
    Some(out)
}

fn write(value: &Value, out: &mut String) -> Option<()> {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => number(n, out)?,
        Value::String(s) => text(s, out),
        Value::Array(l) => {
            out.push('[');
            for (i, v) in l.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(v, out)?;
            }
            out.push(']');
        }
        Value::Object(m) => {
            // The map is sorted already unless some crate of the build asks serde_json to keep the order.
            let mut entries: Vec<(&String, &Value)> = m.iter().collect();
            entries.sort_unstable_by_key(|(k, _)| *k);
            out.push('{');
            for (i, (k, v)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                text(k, out);
                out.push(':');
                write(v, out)?;
            }
            out.push('}');
        }
    }
    Some(())
}

fn number(n: &Number, out: &mut String) -> Option<()> {
    use std::fmt::Write;
    if n.is_i64() || n.is_u64() {
        return write!(out, "{n}").ok();
    }
    let f = n.as_f64()?;
    // Both bounds are floats without a rest; above them the conversion would saturate.
    if f.fract() == 0.0 && (-9_223_372_036_854_775_808.0..18_446_744_073_709_551_616.0).contains(&f) {
        if f < 0.0 { write!(out, "{}", f as i64).ok() } else { write!(out, "{}", f as u64).ok() }
    } else {
        write!(out, "{n}").ok()
    }
}

fn text(s: &str, out: &mut String) {
    out.push('"');
    let mut plain = 0;
    for (i, b) in s.bytes().enumerate() {
        let escaped = match b {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0x08 => "\\b",
            0x0c => "\\f",
            0..=0x1f => "",
            _ => continue,
        };
        out.push_str(&s[plain..i]);
        plain = i + 1;
        if escaped.is_empty() {
            out.push_str(&format!("\\u{b:04x}"));
        } else {
            out.push_str(escaped);
        }
    }
    out.push_str(&s[plain..]);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn one_text_for_one_value() {
        let v = json!({"b": [1, 2.0, -0.0, 1e16, 0.5, -3.0, 1e300, null], "a": {"z": "é\"\\\n\u{1}", "A": true}});
        let expected =
            "{\"a\":{\"A\":true,\"z\":\"é\\\"\\\\\\n\\u0001\"},\"b\":[1,2,0,10000000000000000,0.5,-3,1e+300,null]}";
        assert_eq!(canonical_json(&v).as_deref(), Some(expected));
        assert_eq!(canonical_json(&json!({"a": 1, "b": 2})), canonical_json(&json!({"b": 2.0, "a": 1})));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn reading_it_back_gives_the_same_text(v in any_json()) {
            let text = canonical_json(&v).expect("JSON");
            let back: Value = serde_json::from_str(&text).expect("valid JSON");
            prop_assert_eq!(canonical_json(&back), Some(text));
        }
    }
}
