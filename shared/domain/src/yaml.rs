//! YAML as a tree in which every key and value knows its place, so that whatever is wrong can be shown where it stands.
//! Sizes, depth and aliases are bounded: a small text cannot become a large tree.

use crate::span::{Place, Problem, suggestion};
use serde::{
    Deserialize,
    de::{self, Deserializer, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Location, Spanned, options::DuplicateKeyPolicy, options::MergeKeyPolicy};
use std::{collections::HashMap, fmt};

/// Largest text that is read.
pub(crate) const MAX_BYTES: usize = 1024 * 1024;
/// Most documents in one text.
pub(crate) const MAX_DOCUMENTS: usize = 10_000;

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub place: Place,
    /// Where the text of the value stands: elsewhere when `place` is an alias.
    defined: Place,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// With the digits as written: `1.10` is a number to YAML, but a version to its author.
    Number(serde_json::Number, String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub name: String,
    pub place: Place,
}

/// All documents of a text; empty ones are left out.
pub(crate) fn documents(source: &str) -> Result<Vec<Node>, Problem> {
    let problem = |place, message: String| Problem { place, path: String::new(), message };
    if source.len() > MAX_BYTES {
        let text =
            format!("the text has {} bytes, the limit is {MAX_BYTES}: split it into several files", source.len());
        return Err(problem(None, text));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: MAX_DOCUMENTS,
            max_depth: 32,
            flow_nesting_limit: 32,
            max_nodes: 250_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: 50_000,
            max_total_scalar_bytes: 4 * MAX_BYTES,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 50_000, max_replay_stack_depth: 16 },
        strict_booleans: true,
        with_snippet: false,
        emit_comments: false,
    };
    let mut nodes: Vec<Node> = serde_saphyr::from_multiple_with_options(source, options).map_err(|e| {
        let place = e.location().and_then(|l| place_of(&l));
        let place = place.or_else(|| e.locations().and_then(|l| l.primary_location()).and_then(|l| place_of(&l)));
        problem(place, explain(&e))
    })?;
    let mut lines = Lines { text: source.lines().collect(), wide: HashMap::new() };
    nodes.iter_mut().for_each(|n| n.read_digits(&mut lines));
    Ok(nodes)
}

/// The lines of a text. A column counts characters: finding it must not cost the length of the line each time.
struct Lines<'s> {
    text: Vec<&'s str>,
    /// Where each character begins, of lines that were looked at; `None` if they are bytes.
    wide: HashMap<usize, Option<Vec<usize>>>,
}

impl<'s> Lines<'s> {
    fn from(&mut self, at: Place) -> &'s str {
        let i = (at.line as usize).saturating_sub(1);
        let column = (at.column as usize).saturating_sub(1);
        let Some(line) = self.text.get(i).copied() else { return "" };
        let starts = |l: &str| (!l.is_ascii()).then(|| l.char_indices().map(|(i, _)| i).collect());
        let offset = match self.wide.entry(i).or_insert_with(|| starts(line)) {
            None => column,
            Some(l) => l.get(column).copied().unwrap_or(line.len()),
        };
        line.get(offset..).unwrap_or_default()
    }
}

/// What the parser says, without the place, which is told apart, and with a remedy.
fn explain(e: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error as E;
    match e.without_snippet() {
        E::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key `{}` stands twice in this map; keep one of them", shorten(key))
        }
        E::DuplicateMappingKey { .. } => "a key stands twice in this map; keep one of them".into(),
        E::MergeKeyNotAllowed { .. } => "`<<` is not supported; write the keys out".into(),
        E::Budget { .. }
        | E::AliasReplayLimitExceeded { .. }
        | E::AliasExpansionLimitExceeded { .. }
        | E::AliasReplayStackDepthExceeded { .. }
        | E::AliasReplayCounterOverflow { .. } => {
            "too large for a catalog text: nested too deep, too many documents or too many aliases; write it flatter, \
             or in several files"
                .into()
        }
        other => {
            let message = other.to_string();
            let first = message.lines().next().unwrap_or_default();
            let text = first.split(" at line ").next().unwrap_or(first).trim_end_matches([':', ' ']);
            format!("not valid YAML: {}", shorten(text))
        }
    }
}

fn place_of(l: &Location) -> Option<Place> {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    (l.line() > 0).then(|| Place { line: number(l.line()), column: number(l.column()).max(1) })
}

const NOWHERE: Place = Place { line: 1, column: 1 };

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let s = Spanned::<Value>::deserialize(deserializer)?;
        let place = place_of(&s.referenced).unwrap_or(NOWHERE);
        Ok(Node { place, defined: place_of(&s.defined).unwrap_or(place), value: s.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
                Ok(Value::Bool(b))
            }
            fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
                Ok(Value::Number(n.into(), n.to_string()))
            }
            fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
                Ok(Value::Number(n.into(), n.to_string()))
            }
            fn visit_f64<E: de::Error>(self, n: f64) -> Result<Value, E> {
                let number = serde_json::Number::from_f64(n).ok_or_else(|| E::custom("not a finite number"))?;
                Ok(Value::Number(number, n.to_string()))
            }
            fn visit_str<E: de::Error>(self, s: &str) -> Result<Value, E> {
                // PostgreSQL cannot keep it, and no shell or file name can hold it.
                if s.contains('\0') {
                    return Err(E::custom("a text holds a NUL character; remove it"));
                }
                // They frame references to secrets and outputs, which only the planner writes.
                if s.contains(['\u{fdd0}', '\u{fdd1}']) {
                    return Err(E::custom("a text holds U+FDD0 or U+FDD1, which are no characters; remove them"));
                }
                Ok(Value::Text(s.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(n) = seq.next_element()? {
                    list.push(n);
                }
                Ok(Value::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(k) = map.next_key::<Spanned<String>>()? {
                    let key = Key { place: place_of(&k.referenced).unwrap_or(NOWHERE), name: k.value };
                    entries.push((key, map.next_value()?));
                }
                Ok(Value::Map(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl Node {
    fn read_digits(&mut self, lines: &mut Lines<'_>) {
        let at = self.defined;
        match &mut self.value {
            Value::Number(_, digits) => {
                let end = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | '_'));
                let word = lines.from(at).split(end).next().unwrap_or_default();
                if word.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
                    *digits = word.into();
                }
            }
            Value::List(l) => l.iter_mut().for_each(|n| n.read_digits(lines)),
            Value::Map(m) => m.iter_mut().for_each(|(_, n)| n.read_digits(lines)),
            _ => {}
        }
    }

    /// What it is, for messages.
    pub(crate) fn kind(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::Bool(b) => format!("`{b}`"),
            Value::Number(_, d) => format!("the number {d}"),
            Value::Text(t) if t.chars().count() <= 60 => format!("the text {t:?}"),
            Value::Text(_) => "a long text".into(),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a map".into(),
        }
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(t) => Some(t),
            _ => None,
        }
    }

    /// Text, or what YAML took for a number or boolean but was written where only text can stand.
    pub(crate) fn as_word(&self) -> Option<String> {
        match &self.value {
            Value::Text(t) => Some(t.clone()),
            Value::Number(_, digits) => Some(digits.clone()),
            Value::Bool(b) => Some(b.to_string()),
            _ => None,
        }
    }

    /// The value under a key of a map.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(m) => m.iter().find(|(k, _)| k.name == key).map(|(_, n)| n),
            _ => None,
        }
    }

    pub(crate) fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(l) => l,
            _ => &[],
        }
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Number(n, _) => Json::Number(n.clone()),
            Value::Text(t) => Json::String(t.clone()),
            Value::List(l) => Json::Array(l.iter().map(Node::to_json).collect()),
            Value::Map(m) => Json::Object(m.iter().map(|(k, n)| (k.name.clone(), n.to_json())).collect()),
        }
    }
}

/// Everything that is wrong with a text, as far as it can be said in one go.
#[derive(Debug, Default)]
pub(crate) struct Problems(pub Vec<Problem>);

/// More are of no use to anybody.
const MAX_PROBLEMS: usize = 100;

impl Problems {
    /// No more are taken, so finding them is a waste.
    pub(crate) fn full(&self) -> bool {
        self.0.len() >= MAX_PROBLEMS
    }

    pub(crate) fn add(&mut self, place: Place, path: &str, message: impl Into<String>) {
        if !self.full() {
            self.0.push(Problem { place: Some(place), path: path.into(), message: message.into() });
        }
    }
}

/// A map being read key by key; what was not asked for is unknown.
pub(crate) struct Fields<'n> {
    pub place: Place,
    pub path: String,
    entries: &'n [(Key, Node)],
    known: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// `None`, with a problem noted, if the node is no map.
    pub(crate) fn of(node: &'n Node, path: &str, what: &str, problems: &mut Problems) -> Option<Fields<'n>> {
        match &node.value {
            Value::Map(entries) => Some(Fields { place: node.place, path: path.into(), entries, known: Vec::new() }),
            _ => {
                problems.add(node.place, path, format!("{what} must be a map of keys and values, not {}", node.kind()));
                None
            }
        }
    }

    /// The value of a key; a key without a value counts as absent.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<&'n Node> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        let (_, node) = self.entries.iter().find(|(k, _)| k.name == key)?;
        (!matches!(node.value, Value::Null)).then_some(node)
    }

    /// The path of a key of this map.
    pub(crate) fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Notes the keys nobody asked for.
    pub(crate) fn finish(self, problems: &mut Problems) {
        for (key, _) in self.entries.iter().filter(|(k, _)| !self.known.contains(&k.name.as_str())) {
            if problems.full() {
                return;
            }
            let near = suggestion(&key.name, self.known.iter().copied());
            let message =
                format!("unknown key `{}`{near}; known keys are: {}", shorten(&key.name), self.known.join(", "));
            problems.add(key.place, &self.path, message);
        }
    }
}

pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.into() } else { format!("{path}.{key}") }
}

/// A name for a message: never more than a line.
pub(crate) fn shorten(s: &str) -> String {
    let s: String = s.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if s.chars().count() <= 80 { s } else { format!("{}...", s.chars().take(80).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_know_their_places() {
        let d = documents("# c\na: 1\nb:\n  - x\n  - {c: \"d\", e: 1.10}\n---\nf: true\n").expect("parses");
        assert_eq!(d.len(), 2);
        let Value::Map(m) = &d[0].value else { panic!("a map") };
        assert_eq!((m[1].0.place, m[1].1.place), (Place { line: 3, column: 1 }, Place { line: 4, column: 3 }));
        let inner = &m[1].1.items()[1];
        assert_eq!(inner.get("c").expect("c").place, Place { line: 5, column: 9 });
        assert_eq!(inner.get("e").and_then(Node::as_word).as_deref(), Some("1.10"));
        assert_eq!(d[1].get("f").expect("f").place, Place { line: 7, column: 4 });
        assert_eq!(d[0].to_json(), serde_json::json!({"a": 1, "b": ["x", {"c": "d", "e": 1.1}]}));
    }

    #[test]
    fn words_keep_their_digits() {
        let d = documents("a: 007\nb: yes\nc: 1e3\nd: &x 1.50\ne: *x\nf: -5\n").expect("parses");
        let words: Vec<String> =
            ["a", "b", "c", "d", "e", "f"].map(|k| d[0].get(k).and_then(Node::as_word).expect(k)).into();
        assert_eq!(words, ["007", "yes", "1e3", "1.50", "1.50", "-5"]);
    }

    #[test]
    fn hostile_texts_are_refused_at_once() {
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_string()
            + &('b'..='i')
                .map(|c| {
                    let before = (c as u8 - 1) as char;
                    format!("{c}: &{c} [{}]\n", vec![format!("*{before}"); 9].join(","))
                })
                .collect::<String>();
        let deep = "[".repeat(5000);
        let block = (0..300).map(|i| format!("{}a:\n", " ".repeat(i))).collect::<String>();
        let many = "a: 1\n---\n".repeat(MAX_DOCUMENTS + 1);
        for text in [
            bomb,
            deep,
            block,
            many,
            "x".repeat(MAX_BYTES + 1),
            "a: 1\na: 2\n".into(),
            "a: &a {b: 1}\nc: {<<: *a}\n".into(),
        ] {
            let begun = std::time::Instant::now();
            let e = documents(&text).expect_err("refused");
            assert!(!e.message.contains(" at line "), "{e}");
            assert!(begun.elapsed().as_secs() < 2, "{e}");
        }
    }
}
