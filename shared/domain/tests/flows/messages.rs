//! Every message has a flow that shows it: the texts in the source of the parser are held against what the wrong flows
//! of this folder are told. A new message without a wrong flow fails here.

use crate::{folder, read, short, yaml_files};
use regex::Regex;
use std::path::Path;

/// What the reader of flows can say, from which function or line on.
const SOURCES: [(&str, &str); 19] = [
    ("flow/parse.rs", ""),
    ("flow/parse/call.rs", ""),
    ("flow/parse/gateway.rs", ""),
    ("flow/parse/graph.rs", ""),
    ("flow/parse/inputs.rs", ""),
    ("flow/parse/names.rs", ""),
    ("flow/parse/policy.rs", ""),
    ("flow/parse/probes.rs", ""),
    ("flow/parse/rollback.rs", ""),
    ("flow/parse/rollout.rs", ""),
    ("flow/parse/step.rs", ""),
    ("flow/parse/traffic.rs", ""),
    ("flow/actions.rs", "fn resolve("),
    ("flow/statuses.rs", ""),
    ("expression/types.rs", ""),
    ("expression/limits.rs", "fn check_source"),
    ("selector.rs", ""),
    ("wave.rs", ""),
    ("yaml.rs", ""),
];

/// Not to be seen by reading a flow, and why.
const ELSEWHERE: [(&str, &str); 7] = [
    ("it reads {} values", "when an expression is computed"),
    (" of an expression with a loop or `matches`", "part of it"),
    ("the result is", "when an expression is computed"),
    ("`{expression}` splits", "when a plan is made"),
    ("not a finite number", "the reader of YAML refuses it before"),
    ("it holds a NUL character", "the reader of YAML refuses it before"),
    ("a key stands twice in this map", "a key that is no text: the reader of YAML refuses it before"),
];

#[test]
fn every_message_has_a_flow_that_shows_it() {
    let mut told = String::new();
    let texts = yaml_files(&folder("wrong")).into_iter().map(|(_, t)| t).chain(short::texts());
    for text in texts {
        for e in read(&text).err().unwrap_or_default() {
            told.push_str(&e.message);
            told.push('\n');
        }
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut checked, mut missing) = (0, Vec::new());
    for (file, from) in SOURCES {
        let text = std::fs::read_to_string(source.join(file)).expect(file);
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let start = text.find(from).unwrap_or_else(|| panic!("{file} holds no `{from}`"));
        for literal in literals(&text[start..]).into_iter().filter(|l| is_message(l)) {
            if ELSEWHERE.iter().any(|(l, _)| literal.starts_with(l)) {
                continue;
            }
            checked += 1;
            // Whether it is a format or plain text is not to be seen.
            if !pattern(&literal).is_match(&told) && !told.contains(&literal) {
                missing.push(format!("{file}: {literal}"));
            }
        }
    }
    assert!(missing.is_empty(), "no wrong flow shows these {} of {checked}:\n{}", missing.len(), missing.join("\n"));
    assert!(checked > 120, "only {checked} messages were found in the source: is it read as it should be?");
}

/// Words, not a name or a sign.
fn is_message(literal: &str) -> bool {
    literal.matches(' ').count() >= 2 && literal.chars().filter(|c| c.is_alphabetic()).count() >= 8
}

/// What is written into the text may be anything.
fn pattern(literal: &str) -> Regex {
    let mut out = String::from("(?s)");
    let mut rest = literal.replace("{{", "\u{1}").replace("}}", "\u{2}");
    while let Some(at) = rest.find('{') {
        let end = rest[at..].find('}').map_or(rest.len(), |e| at + e + 1);
        out += &regex::escape(&rest[..at]);
        out += ".*?";
        rest = rest[end..].into();
    }
    out += &regex::escape(&rest);
    Regex::new(&out.replace('\u{1}', "\\{").replace('\u{2}', "\\}")).expect("a pattern")
}

/// The string literals of Rust code, comments and characters left out.
fn literals(code: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        if let Some(comment) = rest.strip_prefix("//") {
            rest = comment.find('\n').map_or("", |at| &comment[at..]);
        } else if c == '\'' {
            // A character, or a lifetime.
            let quoted = ["'\\''", "'\"'", "'\\\"'"].iter().find(|q| rest.starts_with(**q));
            rest = &rest[quoted.map_or(1, |q| q.len())..];
        } else if c == '"' {
            let (literal, after) = literal(&rest[1..]);
            out.push(literal);
            rest = after;
        } else {
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// Up to the closing quote, and what follows it.
fn literal(text: &str) -> (String, &str) {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return (out, &text[i + 1..]),
            '\\' => match chars.next() {
                Some((_, '\n')) => {
                    let left = chars.as_str().trim_start();
                    chars = text[text.len() - left.len()..].char_indices();
                    let (more, after) = literal(chars.as_str());
                    return (out + &more, after);
                }
                Some((_, c)) => out.push(match c {
                    'n' => '\n',
                    '0' => '\0',
                    other => other,
                }),
                None => break,
            },
            c => out.push(c),
        }
    }
    (out, "")
}
