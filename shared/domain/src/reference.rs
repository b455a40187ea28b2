//! References: what stands in a plan, a task's specification and every event where a secret or a step's output will be
//! filled in by whoever carries the step out. The value itself is never part of any of them.
//!
//! In a flow a reference is a whole expression in `with`: `${{ secrets.token }}` or `${{ steps.build.outputs.pack.version }}`.
//! Rendered, it is a *marker*: U+FDD0 `secret:token` U+FDD1, or U+FDD0 `output:build:pack.version` U+FDD1, inside the text
//! around it. Both characters are noncharacters of Unicode; [`forbid`] keeps them out of everything people write, so a
//! marker is never made by accident or by a value.
//!
//! The path after a step is one key after another, joined with `.`; a `.`, `:` or `\` within a key is written with a `\`
//! before it.

use serde_json::{Map, Value};
use std::collections::BTreeSet;

const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

/// The scope's name of a secret that was given as an input.
pub const INPUT_PREFIX: &str = "input.";

/// What a marker stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    Secret {
        name: String,
    },
    /// `step` as the plan names it, `path` within its outputs.
    Output {
        step: String,
        path: Vec<String>,
    },
}

/// A text that holds a marker character where none may stand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place} holds the character U+{code:04X}, which no text may hold: remove it")]
pub struct Forbidden {
    /// Where in the value, such as `values.token`.
    pub place: String,
    pub code: u32,
}

/// Why a value cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    #[error("a marker in it is damaged")]
    Damaged,
    #[error("the secret `{0}` is not at hand")]
    NoSecret(String),
    #[error("the step `{step}` gave no output `{path}`")]
    NoOutput { step: String, path: String },
    #[error("the output `{path}` of step `{step}` is {kind}, which cannot be written into text; pick a part of it")]
    NotText { step: String, path: String, kind: &'static str },
}

impl Reference {
    /// Reads the source of an expression; `None` for any other expression.
    pub fn of(source: &str) -> Option<Reference> {
        let source = source.trim();
        if let Some(rest) = source.strip_prefix("secrets") {
            // A name may hold `-`, which in any other place would be a minus.
            let name = match rest.strip_prefix('.') {
                Some(name) => name.to_owned(),
                None => match path(rest)?.as_slice() {
                    [one] => one.clone(),
                    _ => return None,
                },
            };
            return crate::artifact::is_name(&name).then_some(Reference::Secret { name });
        }
        let mut path = path(source.strip_prefix("steps")?)?.into_iter();
        let (step, outputs) = (path.next()?, path.next()?);
        (outputs == "outputs").then(|| Reference::Output { step, path: path.collect() })
    }

    /// The text that stands for it.
    pub fn marker(&self) -> String {
        match self {
            Reference::Secret { name } => format!("{OPEN}secret:{name}{CLOSE}"),
            Reference::Output { step, path } => format!("{OPEN}output:{}:{}{CLOSE}", escaped(step), joined(path)),
        }
    }

    fn read(inner: &str) -> Option<Reference> {
        if let Some(name) = inner.strip_prefix("secret:") {
            return Some(Reference::Secret { name: name.to_owned() });
        }
        let mut parts = split(inner.strip_prefix("output:")?);
        let step = parts.next().filter(|(_, end)| *end == Some(':'))?.0;
        let path: Vec<String> = parts.map(|(part, _)| part).collect();
        let whole = path.len() == 1 && path[0].is_empty();
        Some(Reference::Output { step, path: if whole { Vec::new() } else { path } })
    }
}

fn escaped(part: &str) -> String {
    part.chars().flat_map(|c| matches!(c, '.' | ':' | '\\').then_some('\\').into_iter().chain([c])).collect()
}

fn joined(path: &[String]) -> String {
    path.iter().map(|p| escaped(p)).collect::<Vec<_>>().join(".")
}

/// The parts of `step:a.b`, each with the character that ended it.
fn split(text: &str) -> impl Iterator<Item = (String, Option<char>)> + '_ {
    let mut chars = text.chars();
    let mut over = false;
    std::iter::from_fn(move || {
        if over {
            return None;
        }
        let mut part = String::new();
        loop {
            match chars.next() {
                Some('\\') => part.extend(chars.next()),
                Some(c @ ('.' | ':')) => return Some((part, Some(c))),
                Some(c) => part.push(c),
                None => {
                    over = true;
                    return Some((part, None));
                }
            }
        }
    })
}

/// `.a.b["c d"][0]` as its keys; `None` when it is anything else.
fn path(text: &str) -> Option<Vec<String>> {
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
            let key = &after[..end];
            if key.is_empty() || key.starts_with(|c: char| c.is_ascii_digit()) {
                return None;
            }
            out.push(key.to_owned());
            rest = &after[end..];
            continue;
        }
        let (inner, after) = rest.strip_prefix('[')?.split_once(']')?;
        let inner = inner.trim();
        let quoted = ['"', '\''].into_iter().find_map(|q| inner.strip_prefix(q)?.strip_suffix(q));
        match quoted {
            Some(key) if !key.is_empty() && !key.contains(['"', '\'', '\\']) => out.push(key.to_owned()),
            None if !inner.is_empty() && inner.bytes().all(|b| b.is_ascii_digit()) => out.push(inner.to_owned()),
            _ => return None,
        }
        rest = after;
    }
    Some(out)
}

/// What an input of the kind `secret` holds in a release: the name its value is kept under.
pub fn secret_input(name: &str) -> Value {
    serde_json::json!({ "secret": format!("{INPUT_PREFIX}{name}") })
}

/// The reference in the value of a secret input.
pub fn of_input(value: &Value) -> Option<Reference> {
    let map = value.as_object().filter(|m| m.len() == 1)?;
    let name = map.get("secret")?.as_str().filter(|n| n.starts_with(INPUT_PREFIX))?;
    Some(Reference::Secret { name: name.to_owned() })
}

/// Every reference in the value's texts and keys, each once.
pub fn scan(value: &Value) -> Vec<Reference> {
    let mut out = BTreeSet::new();
    walk(value, &mut out);
    out.into_iter().collect()
}

fn walk(value: &Value, out: &mut BTreeSet<Reference>) {
    match value {
        Value::String(s) => {
            for piece in pieces(s).into_iter().flatten() {
                if let Piece::Marker(r) = piece {
                    out.insert(r);
                }
            }
        }
        Value::Array(l) => l.iter().for_each(|v| walk(v, out)),
        Value::Object(m) => m.values().for_each(|v| walk(v, out)),
        _ => {}
    }
}

/// Names of the secrets in it.
pub fn secrets(value: &Value) -> BTreeSet<String> {
    let name = |r| match r {
        Reference::Secret { name } => Some(name),
        Reference::Output { .. } => None,
    };
    scan(value).into_iter().filter_map(name).collect()
}

/// Whether the text holds a marker, or a part of one.
pub fn is_marked(text: &str) -> bool {
    text.contains([OPEN, CLOSE])
}

enum Piece<'t> {
    Text(&'t str),
    Marker(Reference),
}

fn pieces(text: &str) -> Result<Vec<Piece<'_>>, FillError> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(OPEN) {
        let (inner, after) = after.split_once(CLOSE).ok_or(FillError::Damaged)?;
        if !before.is_empty() {
            out.push(Piece::Text(before));
        }
        out.push(Piece::Marker(Reference::read(inner).ok_or(FillError::Damaged)?));
        rest = after;
    }
    if rest.contains(CLOSE) {
        return Err(FillError::Damaged);
    }
    if !rest.is_empty() {
        out.push(Piece::Text(rest));
    }
    Ok(out)
}

/// The value with its markers replaced by what `lookup` finds. A text that is nothing but one marker becomes the value with
/// its type; within a text there may be texts, numbers and booleans.
pub fn fill<L>(value: &Value, lookup: &mut L) -> Result<Value, FillError>
where
    L: FnMut(&Reference) -> Option<Value>,
{
    Ok(match value {
        Value::String(s) if is_marked(s) => {
            let pieces = pieces(s)?;
            if let [Piece::Marker(r)] = pieces.as_slice() {
                return find(r, lookup);
            }
            let mut out = String::new();
            for p in &pieces {
                match p {
                    Piece::Text(t) => out.push_str(t),
                    Piece::Marker(r) => match (find(r, lookup)?, r) {
                        (Value::String(s), _) => out.push_str(&s),
                        (v @ (Value::Number(_) | Value::Bool(_)), _) => out.push_str(&v.to_string()),
                        (v, Reference::Output { step, path }) => {
                            let (step, path, kind) = (step.clone(), joined(path), kind(&v));
                            return Err(FillError::NotText { step, path, kind });
                        }
                        (_, Reference::Secret { name }) => return Err(FillError::NoSecret(name.clone())),
                    },
                }
            }
            Value::String(out)
        }
        Value::Array(l) => Value::Array(l.iter().map(|v| fill(v, lookup)).collect::<Result<_, _>>()?),
        Value::Object(m) => Value::Object(fill_map(m, lookup)?),
        other => other.clone(),
    })
}

/// [`fill`] of every value of a map.
pub fn fill_map<L>(map: &Map<String, Value>, lookup: &mut L) -> Result<Map<String, Value>, FillError>
where
    L: FnMut(&Reference) -> Option<Value>,
{
    map.iter().map(|(k, v)| Ok((k.clone(), fill(v, lookup)?))).collect()
}

fn find<L>(r: &Reference, lookup: &mut L) -> Result<Value, FillError>
where
    L: FnMut(&Reference) -> Option<Value>,
{
    lookup(r).ok_or_else(|| match r {
        Reference::Secret { name } => FillError::NoSecret(name.clone()),
        Reference::Output { step, path } => FillError::NoOutput { step: step.clone(), path: joined(path) },
    })
}

/// The value at a path of keys, and of indices in lists.
pub fn at<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |v, key| match v {
        Value::Object(m) => m.get(key),
        Value::Array(l) => l.get(key.parse::<usize>().ok()?),
        _ => None,
    })
}

/// The output a reference means, from outputs by step.
pub fn output<'v>(outputs: &'v Map<String, Value>, step: &str, path: &[String]) -> Option<&'v Value> {
    at(outputs.get(step)?, path)
}

fn kind(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
        _ => "a value",
    }
}

/// Refuses the characters of markers in what people and other programs write.
pub fn forbid(place: &str, value: &Value) -> Result<(), Forbidden> {
    let text = |place: &str, s: &str| match s.chars().find(|c| matches!(*c, OPEN | CLOSE)) {
        Some(c) => Err(Forbidden { place: place.to_owned(), code: u32::from(c) }),
        None => Ok(()),
    };
    match value {
        Value::String(s) => text(place, s),
        Value::Array(l) => l.iter().enumerate().try_for_each(|(i, v)| forbid(&format!("{place}[{i}]"), v)),
        Value::Object(m) => m.iter().try_for_each(|(k, v)| {
            text(place, k)?;
            forbid(&format!("{place}.{k}"), v)
        }),
        _ => Ok(()),
    }
}

/// The value with the characters of markers replaced, for what programs and servers answered.
pub fn clean(value: Value) -> Value {
    match value {
        Value::String(s) if is_marked(&s) => Value::String(s.replace([OPEN, CLOSE], "\u{FFFD}")),
        Value::Array(l) => Value::Array(l.into_iter().map(clean).collect()),
        Value::Object(m) => {
            Value::Object(m.into_iter().map(|(k, v)| (k.replace([OPEN, CLOSE], "\u{FFFD}"), clean(v))).collect())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(name: &str) -> Reference {
        Reference::Secret { name: name.into() }
    }
    fn output_of(step: &str, path: &[&str]) -> Reference {
        Reference::Output { step: step.into(), path: path.iter().map(|p| (*p).to_owned()).collect() }
    }

    #[test]
    fn only_whole_expressions_are_references() {
        assert_eq!(Reference::of(" secrets.db-password "), Some(secret("db-password")));
        assert_eq!(Reference::of("secrets['a']"), Some(secret("a")));
        assert_eq!(Reference::of("steps.build.outputs.pack.version"), Some(output_of("build", &["pack", "version"])));
        assert_eq!(Reference::of(r#"steps["a-b"].outputs['x.y'][0]"#), Some(output_of("a-b", &["x.y", "0"])));
        assert_eq!(Reference::of("steps.build.outputs"), Some(output_of("build", &[])));
        for not in [
            "secrets",
            "secrets.a.b",
            "secrets.A",
            "secrets.a + 'x'",
            "secretsx.a",
            "steps.a",
            "steps.a.state",
            "steps",
            "steps.a.outputs.b == 1",
            "steps.a.outputs.b-1",
            "steps.a.outputs[x]",
            "steps.a.outputs.1",
            "inputs.a",
        ] {
            assert_eq!(Reference::of(not), None, "{not}");
        }
    }

    #[test]
    fn every_reference_is_read_back_from_its_marker() {
        for r in [
            secret("input.token"),
            output_of("web/build", &["pack", "a.b:c\\d"]),
            output_of("x", &[]),
            output_of("a:b", &["1"]),
        ] {
            let v = json!({ "k": [format!("a{}b{}", r.marker(), r.marker())] });
            assert_eq!(scan(&v), [r]);
        }
    }

    #[test]
    fn filling_keeps_types_and_text_around() {
        let outputs = json!({ "b": { "n": 5, "list": [1, { "x": "y" }] } });
        let outputs = outputs.as_object().expect("map");
        let mut lookup = |r: &Reference| match r {
            Reference::Secret { name } if name == "s" => Some(json!("h\"i\n")),
            Reference::Secret { .. } => None,
            Reference::Output { step, path } => output(outputs, step, path).cloned(),
        };
        let n = output_of("b", &["n"]).marker();
        let v = json!({ "whole": n, "text": format!("n={n} s={}", secret("s").marker()), "plain": 1,
            "deep": output_of("b", &["list", "1", "x"]).marker() });
        assert_eq!(
            fill(&v, &mut lookup).expect("fills"),
            json!({ "whole": 5, "text": "n=5 s=h\"i\n", "plain": 1, "deep": "y" })
        );
        let none = json!(secret("t").marker());
        assert_eq!(fill(&none, &mut lookup), Err(FillError::NoSecret("t".into())));
        let list = json!(format!("x{}", output_of("b", &["list"]).marker()));
        assert!(matches!(fill(&list, &mut lookup), Err(FillError::NotText { .. })));
        let gone = json!(output_of("b", &["m"]).marker());
        assert_eq!(fill(&gone, &mut lookup), Err(FillError::NoOutput { step: "b".into(), path: "m".into() }));
        for damaged in ["\u{FDD0}secret:s", "\u{FDD1}", "\u{FDD0}what:s\u{FDD1}"] {
            assert_eq!(fill(&json!(damaged), &mut lookup), Err(FillError::Damaged));
        }
    }

    #[test]
    fn marker_characters_are_refused_by_place() {
        assert_eq!(forbid("values", &json!({ "a": [1, "fine\u{FDD2}"] })), Ok(()));
        let e = forbid("values", &json!({ "a": [1, "x\u{FDD1}"] })).expect_err("refused");
        assert_eq!(e.to_string(), "values.a[1] holds the character U+FDD1, which no text may hold: remove it");
        assert!(forbid("values", &json!({ "\u{FDD0}": 1 })).is_err());
        assert_eq!(clean(json!({ "\u{FDD0}k": ["\u{FDD1}", 2] })), json!({ "\u{FFFD}k": ["\u{FFFD}", 2] }));
    }

    #[test]
    fn the_value_of_a_secret_input_is_a_reference() {
        assert_eq!(of_input(&secret_input("token")), Some(secret("input.token")));
        assert_eq!(of_input(&json!({ "secret": "token" })), None);
        assert_eq!(of_input(&json!({ "secret": "input.a", "b": 1 })), None);
    }
}
