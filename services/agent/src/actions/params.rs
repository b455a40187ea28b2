//! Reading the parameters of a step, with errors that name the parameter.

use serde_json::{Map, Value};
use std::{collections::BTreeMap, time::Duration};

#[derive(Debug)]
pub(super) struct Params<'a>(&'a Map<String, Value>);

impl<'a> Params<'a> {
    pub(super) fn new(with: &'a Map<String, Value>) -> Self {
        Params(with)
    }

    /// A parameter that is there and not null.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    pub(super) fn opt_text(&self, name: &str) -> Result<Option<String>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s.clone())),
            Some(Value::Number(n)) => Ok(Some(n.to_string())),
            Some(Value::Bool(b)) => Ok(Some(b.to_string())),
            Some(_) => Err(format!("`{name}` must be a text")),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<String, String> {
        self.opt_text(name)?.ok_or_else(|| format!("`{name}` is missing"))
    }

    pub(super) fn opt_number(&self, name: &str) -> Result<Option<u64>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => s.trim().parse().map(Some).map_err(|_| format!("`{name}` must be a number")),
            Some(v) => v.as_u64().map(Some).ok_or_else(|| format!("`{name}` must be a whole number, 0 or more")),
        }
    }

    /// A list of texts. A lone text is refused: splitting it would need a shell's rules.
    pub(super) fn list(&self, name: &str) -> Result<Vec<String>, String> {
        let bad = || format!("`{name}` must be a list of texts, one item an argument");
        match self.get(name) {
            None => Ok(vec![]),
            Some(Value::Array(items)) => items
                .iter()
                .map(|v| match v {
                    Value::String(s) => Ok(s.clone()),
                    Value::Number(n) => Ok(n.to_string()),
                    Value::Bool(b) => Ok(b.to_string()),
                    _ => Err(bad()),
                })
                .collect(),
            Some(_) => Err(bad()),
        }
    }

    pub(super) fn map(&self, name: &str) -> Result<BTreeMap<String, String>, String> {
        let Some(v) = self.get(name) else { return Ok(BTreeMap::new()) };
        let Value::Object(m) = v else { return Err(format!("`{name}` must be a map of texts")) };
        m.iter()
            .map(|(k, v)| {
                let text = match v {
                    Value::String(s) => s.clone(),
                    Value::Null => String::new(),
                    Value::Number(n) => n.to_string(),
                    Value::Bool(b) => b.to_string(),
                    _ => return Err(format!("`{name}.{k}` must be a text")),
                };
                if k.is_empty() || k.contains('=') || k.contains('\0') || text.contains('\0') {
                    return Err(format!("`{name}.{k}` is not a valid environment variable"));
                }
                Ok((k.clone(), text))
            })
            .collect()
    }

    /// The planner resolves a duration `x` to `x_s`. Seconds as a number, or `500ms`, `60s`, `2m`, `1h`, `7d`.
    pub(super) fn opt_duration(&self, name: &str) -> Result<Option<Duration>, String> {
        let bad = || format!("`{name}` must be a duration such as 500ms, 60s, 2m, 1h or 7d");
        match self.get(&format!("{name}_s")).or_else(|| self.get(name)) {
            None => Ok(None),
            Some(Value::String(s)) => duration(s).map(Some).ok_or_else(bad),
            Some(v) => v.as_f64().and_then(|s| Duration::try_from_secs_f64(s).ok()).map(Some).ok_or_else(bad),
        }
    }
}

fn duration(s: &str) -> Option<Duration> {
    let s = s.trim();
    let split = s.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(s.len());
    let n: f64 = s[..split].parse().ok()?;
    let unit = match s[split..].trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(n * unit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_nonsense_does_not() {
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("7d"), Some(Duration::from_secs(604_800)));
        assert_eq!(duration("90"), Some(Duration::from_secs(90)));
        for bad in ["", "s", "5 weeks", "-1s", "1e400s", "nan"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
