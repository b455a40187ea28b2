//! The inputs a flow declares, with the rules their values obey.

use super::{truth, word};
use crate::{
    flow::{Input, InputKind, InputRules},
    yaml::{self, Fields, Node, Problems, Value, shorten},
};
use std::collections::BTreeMap;

/// The words for the types, in the order they are told.
pub(crate) const KINDS: [(&str, InputKind); 7] = [
    ("string", InputKind::String),
    ("number", InputKind::Number),
    ("boolean", InputKind::Boolean),
    ("choice", InputKind::Choice),
    ("host_selector", InputKind::HostSelector),
    ("secret", InputKind::Secret),
    ("file", InputKind::File),
];
const MAX_PATTERN: usize = 1024;
const MAX_INPUTS: usize = 100;

pub(super) fn read(node: &Node, path: &str, problems: &mut Problems) -> BTreeMap<String, Input> {
    let mut out = BTreeMap::new();
    let Value::Map(entries) = &node.value else {
        problems.add(node.place, path, format!("must be a map of inputs, not {}", node.kind()));
        return out;
    };
    if entries.len() > MAX_INPUTS {
        problems.add(node.place, path, format!("holds {} inputs, the limit is {MAX_INPUTS}", entries.len()));
        return out;
    }
    for (key, n) in entries {
        let path = yaml::join(path, &shorten(&key.name));
        let identifier = key.name.len() <= 63
            && key.name.starts_with(|c: char| c.is_ascii_alphabetic())
            && key.name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        if !identifier {
            let rule = "letters, digits and `_`, beginning with a letter, so that expressions can say `inputs.<name>`";
            problems.add(key.place, &path, format!("an input's name has {rule}"));
        }
        if let Some(input) = read_input(n, &path, problems) {
            out.insert(key.name.clone(), input);
        }
    }
    out
}

fn read_input(node: &Node, path: &str, problems: &mut Problems) -> Option<Input> {
    let mut f = Fields::of(node, path, "an input", problems)?;
    if f.take("type").is_none() {
        let all = KINDS.map(|(w, _)| w).join(", ");
        problems.add(f.place, path, format!("the key `type` is missing; write one of {all}"));
    }
    let kind = word(&mut f, "type", &KINDS, problems);
    let options = read_options(&mut f, kind, problems);
    let description = match f.take("description") {
        None => String::new(),
        Some(n) => n.as_word().unwrap_or_else(|| {
            problems.add(n.place, &f.path_of("description"), format!("must be text, not {}", n.kind()));
            String::new()
        }),
    };
    let rules = read_rules(&mut f, kind, problems);
    let default = f.take("default");
    let path_of_default = f.path_of("default");
    f.finish(problems);
    let mut input = Input { kind: kind?, default: None, options, description, rules };
    if let Some(n) = default {
        if let Some(why) = no_default(&input) {
            problems.add(n.place, &path_of_default, why);
            return Some(input);
        }
        // A choice such as 1.10 was meant as it was written.
        let value = match (input.kind, n.as_word()) {
            (InputKind::Choice, Some(w)) => serde_json::Value::String(w),
            _ => n.to_json(),
        };
        match input.check(&value) {
            Ok(()) => input.default = Some(value),
            Err(why) => problems.add(n.place, &path_of_default, format!("the default {why}")),
        }
    }
    Some(input)
}

fn no_default(input: &Input) -> Option<&'static str> {
    match input.kind {
        InputKind::Secret => Some("a secret has no default, as everybody who reads the flow would know it; remove it"),
        InputKind::File => Some("a file has no default; remove it, or add `optional: true`"),
        _ if input.rules.optional => {
            Some("an input with a default can be left out anyway; remove `optional` or the default")
        }
        _ => None,
    }
}

fn read_options(f: &mut Fields<'_>, kind: Option<InputKind>, problems: &mut Problems) -> Vec<String> {
    let node = f.take("options");
    let mut options: Vec<String> = Vec::new();
    match node.map(|n| (n, &n.value)) {
        Some((n, Value::List(l))) if !l.is_empty() && l.iter().all(|n| n.as_word().is_some()) => {
            for w in l.iter().filter_map(Node::as_word) {
                if options.contains(&w) {
                    problems.add(n.place, &f.path_of("options"), format!("lists `{}` twice; keep one", shorten(&w)));
                }
                options.push(w);
            }
        }
        Some((n, _)) => problems.add(n.place, &f.path_of("options"), "must be a list of at least one text"),
        None => {}
    }
    match (kind, node) {
        (Some(InputKind::Choice), None) => {
            problems.add(f.place, &f.path, "an input of type choice needs `options: [...]`");
        }
        (Some(k), Some(n)) if k != InputKind::Choice => {
            problems.add(n.place, &f.path_of("options"), "only an input of type choice has options; remove them");
        }
        _ => {}
    }
    options
}

fn read_rules(f: &mut Fields<'_>, kind: Option<InputKind>, problems: &mut Problems) -> InputRules {
    let mut rules = InputRules {
        min: number(f, "min", kind, problems),
        max: number(f, "max", kind, problems),
        min_length: length(f, "min_length", kind, problems),
        max_length: length(f, "max_length", kind, problems),
        ..InputRules::default()
    };
    let crossed = |a: Option<f64>, b: Option<f64>| a.zip(b).is_some_and(|(a, b)| a > b);
    for (a, b, least, most) in [
        (rules.min, rules.max, "min", "max"),
        (rules.min_length.map(f64::from), rules.max_length.map(f64::from), "min_length", "max_length"),
    ] {
        if crossed(a, b) {
            let text = format!("`{least}` is larger than `{most}`, so no value fits; exchange them");
            let place = f.take(least).map_or(f.place, |n| n.place);
            problems.add(place, &f.path_of(least), text);
        }
    }
    if let Some(n) = f.take("pattern") {
        let path = f.path_of("pattern");
        match n.as_text() {
            Some(_) if kind.is_some_and(|k| k != InputKind::String) => {
                problems.add(n.place, &path, "only an input of type string has a pattern; remove it");
            }
            Some(p) => match pattern(p) {
                Ok(()) => rules.pattern = Some(p.into()),
                Err(why) => problems.add(n.place, &path, why),
            },
            None => problems.add(n.place, &path, format!("must be a regular expression as text, not {}", n.kind())),
        }
    }
    rules.optional = f.take("optional").is_some_and(|n| truth(n, &f.path_of("optional"), problems));
    rules
}

/// Bounded in text and in compiled size: nothing a flow declares may cost much.
fn pattern(p: &str) -> Result<(), String> {
    if p.len() > MAX_PATTERN {
        return Err(format!("the pattern is longer than {MAX_PATTERN} bytes; write a shorter one"));
    }
    match regex::RegexBuilder::new(p).size_limit(1 << 20).nest_limit(50).build() {
        Ok(_) => Ok(()),
        Err(regex::Error::CompiledTooBig(_)) => {
            Err("the pattern is too large when compiled; use smaller repetitions than `{1000}`".into())
        }
        Err(e) => {
            let text = e.to_string();
            let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Err(format!("is not a regular expression: {}; correct it (syntax of Rust's regex)", shorten(last)))
        }
    }
}

fn number(f: &mut Fields<'_>, key: &'static str, kind: Option<InputKind>, problems: &mut Problems) -> Option<f64> {
    let n = f.take(key)?;
    let path = f.path_of(key);
    match (&n.value, kind) {
        (_, Some(k)) if k != InputKind::Number => {
            problems.add(n.place, &path, format!("only an input of type number has `{key}`; remove it"));
            None
        }
        (Value::Number(x, _), _) => x.as_f64(),
        _ => {
            problems.add(n.place, &path, format!("must be a number, not {}", n.kind()));
            None
        }
    }
}

fn length(f: &mut Fields<'_>, key: &'static str, kind: Option<InputKind>, problems: &mut Problems) -> Option<u32> {
    let n = f.take(key)?;
    let path = f.path_of(key);
    let has = [InputKind::String, InputKind::Secret, InputKind::File];
    if kind.is_some_and(|k| !has.contains(&k)) {
        problems.add(n.place, &path, format!("only inputs of type string, secret and file have `{key}`; remove it"));
        return None;
    }
    super::whole(n, &path, 0, 1 << 20, problems)
}
