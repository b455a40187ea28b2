//! Which statuses an HTTP answer may have: one, a range, or a list of both.

use serde_json::{Value, json};
use std::ops::RangeInclusive;

const ALL: RangeInclusive<u64> = 100..=599;
/// Entries of a list.
const MOST: usize = 20;

/// The value as a plan holds it: a number, a range as its text, or a list of them.
pub(super) fn resolve(value: &Value) -> Result<Value, String> {
    let wrong = || {
        let shown = super::actions::brief(value);
        format!(
            "must be a status from 100 to 599, a range such as \"200-299\", or a list of 1 to {MOST} of them, not {shown}"
        )
    };
    match value {
        Value::Array(l) if (1..=MOST).contains(&l.len()) => {
            l.iter().map(one).collect::<Option<_>>().map(Value::Array).ok_or_else(wrong)
        }
        other => one(other).ok_or_else(wrong),
    }
}

fn one(value: &Value) -> Option<Value> {
    let range = range(value)?;
    let (from, to) = (*range.start(), *range.end());
    Some(if from == to { json!(from) } else { json!(format!("{from}-{to}")) })
}

fn range(value: &Value) -> Option<RangeInclusive<u64>> {
    let number = |t: &str| (t.len() == 3).then(|| t.parse::<u64>().ok()).flatten().filter(|n| ALL.contains(n));
    match value {
        Value::Number(n) => n.as_u64().filter(|n| ALL.contains(n)).map(|n| n..=n),
        Value::String(s) => match s.split_once('-') {
            Some((from, to)) => Some(number(from.trim())?..=number(to.trim())?).filter(|r| !r.is_empty()),
            None => number(s.trim()).map(|n| n..=n),
        },
        _ => None,
    }
}

/// Whether an answer with this status is one of those.
pub fn fits(expected: &Value, status: u16) -> bool {
    match expected {
        Value::Array(l) => l.iter().any(|v| fits(v, status)),
        one => range(one).is_some_and(|r| r.contains(&u64::from(status))),
    }
}

/// Those for people: `200-299 or 404`.
pub fn shown(expected: &Value) -> String {
    match expected {
        Value::Array(l) => l.iter().map(shown).collect::<Vec<_>>().join(" or "),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_a_range_or_a_list_of_them() {
        for (written, resolved, yes, no) in [
            (json!(201), json!(201), 201, 200),
            (json!("204"), json!(204), 204, 200),
            (json!("200-299"), json!("200-299"), 299, 300),
            (json!("200 - 200"), json!(200), 200, 201),
            (json!([200, "404"]), json!([200, 404]), 404, 403),
            (json!(["200-204", 301]), json!(["200-204", 301]), 202, 300),
        ] {
            let got = resolve(&written).unwrap_or_else(|e| panic!("{written}: {e}"));
            assert_eq!(got, resolved);
            assert_eq!(resolve(&got), Ok(got.clone()), "as it stands in a plan");
            assert!(fits(&got, yes) && !fits(&got, no), "{written}");
        }
        assert_eq!(shown(&json!(["200-204", 301])), "200-204 or 301");
        let none = json!([]);
        let many = json!(vec![200; 21]);
        for wrong in
            [json!("ok"), json!(99), json!(600), json!("299-200"), json!("20-299"), json!(true), json!({}), none, many]
        {
            let e = resolve(&wrong).expect_err("no status");
            assert!(e.contains("100 to 599") && e.contains("\"200-299\""), "{wrong}: {e}");
        }
    }
}
