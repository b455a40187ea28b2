//! What an input takes: its type and its rules, checked the same way wherever a value comes in.

use super::{Input, InputKind, MAX_INPUT_BYTES, MAX_INPUT_FILE_BYTES, actions::brief};
use crate::selector::Selector;
use base64::{Engine, engine::general_purpose::STANDARD};
use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Memory that a pattern may take once compiled.
const PATTERN_BYTES: usize = 256 * 1024;
/// Longest pattern, in bytes.
const PATTERN_TEXT: usize = 1000;

/// The pattern of a text input, which must match the whole text.
pub fn pattern(source: &str) -> Result<Regex, String> {
    if source.len() > PATTERN_TEXT {
        return Err(format!("has more than {PATTERN_TEXT} bytes"));
    }
    // By itself first: `a)(b` must not become right by what is put around it.
    let build = |s: &str| RegexBuilder::new(s).size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES).build();
    build(source).and_then(|_| build(&format!(r"\A(?:{source})\z"))).map_err(|e| {
        let why = e.to_string();
        format!("is no regular expression: {}", why.lines().last().unwrap_or_default().trim())
    })
}

impl Input {
    /// The value it has: the given one, its default, or null where it is optional. `Err(None)`: there is none.
    pub fn value(&self, given: Option<&Value>) -> Result<Value, Option<String>> {
        let given = given.filter(|v| !v.is_null());
        match given.or(self.default.as_ref()) {
            Some(v) => self.check(v).map(|()| v.clone()).map_err(Some),
            None if self.rules.optional => Ok(Value::Null),
            None => Err(None),
        }
    }

    /// Does the value fit? If not, the error says what to give.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        let shown = brief(value);
        match (self.kind, value) {
            (InputKind::String, Value::String(s)) => self.text(s),
            (InputKind::String, _) => Err(format!("must be text, not {shown}")),
            (InputKind::Number, Value::Number(n)) => self.number(n.as_f64().unwrap_or(f64::NAN)),
            (InputKind::Number, _) => Err(format!("must be a number, not {shown}")),
            (InputKind::Boolean, Value::Bool(_)) => Ok(()),
            (InputKind::Boolean, _) => Err(format!("must be true or false, not {shown}")),
            (InputKind::Choice, Value::String(s)) if self.options.contains(s) => Ok(()),
            (InputKind::Choice, _) => Err(format!("must be one of {}, not {shown}", self.options.join(", "))),
            (InputKind::HostSelector, Value::String(s)) => match s.parse::<Selector>() {
                Ok(_) => Ok(()),
                Err(e) => Err(format!("must be a selector such as `role=web`: {e}")),
            },
            (InputKind::HostSelector, _) => Err(format!("must be a selector such as `role=web`, not {shown}")),
            (InputKind::Secret, Value::Object(o)) if o.len() == 1 && o.get("secret").is_some_and(Value::is_string) => {
                Ok(())
            }
            // The text itself is not shown: it may be the secret.
            (InputKind::Secret, _) => Err("is secret: it is sealed where it comes in, and is never plain here".into()),
            (InputKind::File, Value::Object(o)) => self.file(o),
            (InputKind::File, _) => Err(format!("must be a file (`name=@path` on the command line), not {shown}")),
        }
    }

    /// As [`Input::check`], where a secret comes in as plain text, and has not been sealed yet.
    pub fn check_given(&self, value: &Value) -> Result<(), String> {
        match (self.kind, value) {
            (InputKind::Secret, Value::String(s)) => self.text(s),
            _ => self.check(value),
        }
    }

    fn text(&self, s: &str) -> Result<(), String> {
        let (r, n) = (&self.rules, s.chars().count());
        if s.contains('\0') {
            return Err("must not hold a NUL character".into());
        }
        if s.len() > MAX_INPUT_BYTES {
            return Err(format!("must have at most {MAX_INPUT_BYTES} bytes"));
        }
        if let Some(least) = r.min_length.filter(|m| n < *m as usize) {
            return Err(format!("must have at least {least} characters, not {n}"));
        }
        if let Some(most) = r.max_length.filter(|m| n > *m as usize) {
            return Err(format!("must have at most {most} characters, not {n}"));
        }
        match &r.pattern {
            Some(p) if !pattern(p)?.is_match(s) => {
                let got =
                    if self.kind == InputKind::Secret { String::new() } else { format!(", not {}", brief(&json!(s))) };
                Err(format!("must match the pattern `{p}`{got}"))
            }
            _ => Ok(()),
        }
    }

    fn number(&self, n: f64) -> Result<(), String> {
        match (self.rules.min, self.rules.max) {
            (Some(min), _) if n < min => Err(format!("must be at least {min}, not {n}")),
            (_, Some(max)) if n > max => Err(format!("must be at most {max}, not {n}")),
            _ if n.is_nan() => Err("must be a number".into()),
            _ => Ok(()),
        }
    }

    fn file(&self, o: &Map<String, Value>) -> Result<(), String> {
        let keys = ["content", "name", "sha256", "size"];
        if !(o.keys().map(String::as_str).eq(keys) || o.len() == 4 && keys.iter().all(|k| o.contains_key(*k))) {
            return Err(format!("must be a file with {}", keys.join(", ")));
        }
        let text = |k: &str| o.get(k).and_then(Value::as_str).ok_or_else(|| format!("must have a text as `{k}`"));
        let name = text("name")?;
        if name.is_empty() || name.len() > 255 || name.contains(|c: char| c == '/' || c.is_control()) {
            return Err("must have a file's name without directories as `name`".into());
        }
        let bytes = STANDARD.decode(text("content")?).map_err(|_| "must have base64 as `content`".to_owned())?;
        let (r, n) = (&self.rules, bytes.len());
        let most = r.max_length.map_or(MAX_INPUT_FILE_BYTES, |m| MAX_INPUT_FILE_BYTES.min(m as usize));
        if n > most {
            return Err(format!("must have at most {most} bytes, not {n}: put larger files into the artifact"));
        }
        if let Some(least) = r.min_length.filter(|m| n < *m as usize) {
            return Err(format!("must have at least {least} bytes, not {n}"));
        }
        if o.get("size").and_then(Value::as_u64) != Some(n as u64) {
            return Err(format!("says a `size` that is not its own ({n})"));
        }
        let digest = hex(&bytes);
        if text("sha256")? != digest {
            return Err(format!("says a `sha256` that is not its own ({digest})"));
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A file as an input takes it.
pub fn file_value(name: &str, bytes: &[u8]) -> Value {
    json!({ "name": name, "content": STANDARD.encode(bytes), "sha256": hex(bytes), "size": bytes.len() })
}

#[cfg(test)]
mod tests;
