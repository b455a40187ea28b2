//! The one form definition of a flow's inputs: a JSON Schema for machines, and order, labels and widgets for people. The
//! command line, the console and the api's checks are made from it and from [`Input`], so none can differ from the others.

use super::{Flow, Input, InputKind, MAX_INPUT_FILE_BYTES};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What to ask before a deployment can be requested.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Form {
    pub flow: String,
    /// Draft 2020-12; describes the `inputs` of a request.
    pub schema: Value,
    /// In the order to ask: those that must be given first.
    pub fields: Vec<Field>,
}

/// One input, for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Field {
    pub name: String,
    pub label: String,
    pub widget: Widget,
    pub description: String,
    pub required: bool,
    pub default: Value,
    /// Of a choice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// The rules in words: `1 to 500`, `matches [a-z]+`; empty when there are none.
    pub hint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Widget {
    Text,
    Number,
    Checkbox,
    Select,
    HostSelector,
    Password,
    File,
}

/// The form of a flow.
pub fn form(flow: &Flow) -> Form {
    let required: Vec<&String> = flow.inputs.iter().filter(|(_, i)| is_required(i)).map(|(n, _)| n).collect();
    let properties: Map<String, Value> = flow.inputs.iter().map(|(n, i)| (n.clone(), schema(i))).collect();
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("Inputs of the flow {}", flow.name),
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    });
    let (mut first, mut then) = (Vec::new(), Vec::new());
    for (name, input) in &flow.inputs {
        let field = field(name, input);
        if field.required { first.push(field) } else { then.push(field) }
    }
    first.append(&mut then);
    Form { flow: flow.name.clone(), schema, fields: first }
}

/// Everything that is wrong with given values, by input; a value for no input is told too.
pub fn check(flow: &Flow, given: &BTreeMap<String, Value>) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for name in given.keys().filter(|n| !flow.inputs.contains_key(*n)) {
        let known: Vec<&str> = flow.inputs.keys().map(String::as_str).collect();
        let known =
            if known.is_empty() { "the flow has none".to_owned() } else { format!("there are {}", known.join(", ")) };
        out.push((name.clone(), format!("is no input of the flow; {known}")));
    }
    for (name, input) in &flow.inputs {
        match given.get(name).filter(|v| !v.is_null()) {
            Some(v) => out.extend(input.check_given(v).err().map(|e| (name.clone(), e))),
            None if is_required(input) => out.push((name.clone(), "must be given: it has no default".into())),
            None => {}
        }
    }
    out
}

fn is_required(input: &Input) -> bool {
    input.default.is_none() && !input.rules.optional
}

fn field(name: &str, input: &Input) -> Field {
    let widget = match input.kind {
        InputKind::String => Widget::Text,
        InputKind::Number => Widget::Number,
        InputKind::Boolean => Widget::Checkbox,
        InputKind::Choice => Widget::Select,
        InputKind::HostSelector => Widget::HostSelector,
        InputKind::Secret => Widget::Password,
        InputKind::File => Widget::File,
    };
    let words = name.replace('_', " ");
    let mut letters = words.chars();
    let label = letters.next().map_or_else(String::new, |c| c.to_uppercase().chain(letters).collect());
    Field {
        name: name.into(),
        label,
        widget,
        description: input.description.clone(),
        required: is_required(input),
        default: input.default.clone().unwrap_or(Value::Null),
        options: input.options.clone(),
        hint: hint(input),
    }
}

fn hint(input: &Input) -> String {
    let r = &input.rules;
    let range = |a: Option<String>, b: Option<String>, unit: &str| match (a, b) {
        (Some(a), Some(b)) => Some(format!("{a} to {b}{unit}")),
        (Some(a), None) => Some(format!("at least {a}{unit}")),
        (None, Some(b)) => Some(format!("at most {b}{unit}")),
        (None, None) => None,
    };
    let unit = if input.kind == InputKind::File { " bytes" } else { " characters" };
    let parts = [
        range(r.min.map(|n| n.to_string()), r.max.map(|n| n.to_string()), ""),
        range(r.min_length.map(|n| n.to_string()), r.max_length.map(|n| n.to_string()), unit),
        r.pattern.as_ref().map(|p| format!("matches {p}")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn schema(input: &Input) -> Value {
    let r = &input.rules;
    let mut s = match input.kind {
        InputKind::String => json!({ "type": "string" }),
        InputKind::Number => json!({ "type": "number" }),
        InputKind::Boolean => json!({ "type": "boolean" }),
        InputKind::Choice => json!({ "type": "string", "enum": input.options }),
        InputKind::HostSelector => json!({ "type": "string", "format": "host-selector" }),
        InputKind::Secret => json!({ "type": "string", "format": "password", "writeOnly": true }),
        InputKind::File => json!({
            "type": "object",
            "properties": {
                "name": { "type": "string" },
                "content": { "type": "string", "contentEncoding": "base64" },
                "sha256": { "type": "string", "pattern": "^[0-9a-f]{64}$" },
                "size": { "type": "integer", "maximum": MAX_INPUT_FILE_BYTES },
            },
            "required": ["name", "content", "sha256", "size"],
            "additionalProperties": false,
        }),
    };
    let mut add = |key: &str, v: Option<Value>| {
        if let Some(v) = v {
            s[key] = v;
        }
    };
    add("description", Some(json!(input.description)).filter(|_| !input.description.is_empty()));
    add("default", input.default.clone());
    add("minimum", r.min.map(|n| json!(n)));
    add("maximum", r.max.map(|n| json!(n)));
    if matches!(input.kind, InputKind::String | InputKind::Secret) {
        add("minLength", r.min_length.map(|n| json!(n)));
        add("maxLength", r.max_length.map(|n| json!(n)));
        add("pattern", r.pattern.as_ref().map(|p| json!(format!("^(?:{p})$"))));
    }
    if r.optional {
        // Left out and null mean the same.
        s["type"] = json!([s["type"], "null"]);
        if let Some(options) = s.get_mut("enum").and_then(Value::as_array_mut) {
            options.push(Value::Null);
        }
    }
    s
}

/// An input's value as expressions see it: a file has its `text` too, where it is UTF-8; a secret is its reference.
pub fn seen(value: &Value) -> Value {
    if let Some(secret) = crate::reference::of_input(value) {
        return Value::String(secret.marker());
    }
    let mut out = value.clone();
    if let Some(o) = out.as_object_mut()
        && o.len() == 4
        && let Some(content) = o.get("content").and_then(Value::as_str)
        && let Some(text) = STANDARD.decode(content).ok().and_then(|b| String::from_utf8(b).ok())
    {
        o.insert("text".into(), Value::String(text));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{InputRules, input::file_value};

    fn flow() -> Flow {
        let input = |kind, default: Option<Value>, rules| Input {
            kind,
            default,
            options: if kind == InputKind::Choice { vec!["fast".into(), "slow".into()] } else { vec![] },
            description: "What it is.".into(),
            rules,
        };
        let none = InputRules::default;
        let mut flow =
            crate::flow::parse("flow: web\nsteps:\n  - { id: a, uses: wait, with: { for: 1s } }\n").expect("flow");
        flow.inputs = BTreeMap::from([
            (
                "batch_size".into(),
                input(InputKind::Number, None, InputRules { min: Some(1.0), max: Some(5.0), ..none() }),
            ),
            ("config".into(), input(InputKind::File, None, InputRules { optional: true, ..none() })),
            ("mode".into(), input(InputKind::Choice, Some(json!("fast")), InputRules { optional: true, ..none() })),
            ("name".into(), input(InputKind::String, None, InputRules { pattern: Some("[a-z]+".into()), ..none() })),
            ("on".into(), input(InputKind::HostSelector, None, InputRules { optional: true, ..none() })),
            ("restart".into(), input(InputKind::Boolean, Some(json!(true)), none())),
            ("token".into(), input(InputKind::Secret, None, InputRules { min_length: Some(4), ..none() })),
        ]);
        flow
    }

    #[test]
    fn the_form_asks_for_what_is_needed_first() {
        let f = form(&flow());
        let names: Vec<(&str, Widget, bool)> =
            f.fields.iter().map(|f| (f.name.as_str(), f.widget, f.required)).collect();
        assert_eq!(
            names,
            [
                ("batch_size", Widget::Number, true),
                ("name", Widget::Text, true),
                ("token", Widget::Password, true),
                ("config", Widget::File, false),
                ("mode", Widget::Select, false),
                ("on", Widget::HostSelector, false),
                ("restart", Widget::Checkbox, false),
            ]
        );
        assert_eq!((f.fields[0].label.as_str(), f.fields[0].hint.as_str()), ("Batch size", "1 to 5"));
        assert_eq!(f.fields[1].hint, "matches [a-z]+");
    }

    /// The schema and the checks of the api must never say different things.
    #[test]
    fn the_schema_says_what_the_checks_say() {
        let flow = flow();
        let schema = jsonschema::draft202012::new(&form(&flow).schema).expect("a schema");
        let base = json!({ "batch_size": 2, "name": "abc", "token": "abcd" });
        let with = |key: &str, v: Value| {
            let mut b = base.clone();
            b[key] = v;
            b
        };
        let mut without = base.clone();
        without.as_object_mut().expect("map").remove("name");
        let all = [
            (base.clone(), true),
            (without, false),
            (with("batch_size", json!(0)), false),
            (with("batch_size", json!(6)), false),
            (with("batch_size", json!("2")), false),
            (with("name", json!("ABC")), false),
            (with("name", json!("abc1")), false),
            (with("mode", json!("slow")), true),
            (with("mode", Value::Null), true),
            (with("mode", json!("medium")), false),
            (with("restart", json!(false)), true),
            (with("restart", json!("no")), false),
            (with("token", json!("abc")), false),
            (with("on", json!("role=web")), true),
            (with("on", json!(3)), false),
            (with("config", file_value("a", b"x")), true),
            (with("config", json!({ "name": "a" })), false),
            (with("stranger", json!(1)), false),
        ];
        for (given, fits) in all {
            let values: BTreeMap<String, Value> = serde_json::from_value(given.clone()).expect("map");
            assert_eq!(check(&flow, &values).is_empty(), fits, "{given}: {:?}", check(&flow, &values));
            assert_eq!(schema.is_valid(&given), fits, "by the schema: {given}");
        }
    }

    #[test]
    fn a_file_is_seen_with_its_text() {
        let seen_file = seen(&file_value("a.conf", "port=1ä".as_bytes()));
        assert_eq!(seen_file["text"], json!("port=1ä"));
        assert_eq!(seen(&file_value("a.bin", &[0xff, 0xfe])).get("text"), None);
        assert_eq!(seen(&json!({ "secret": "input.token" })), json!("\u{FDD0}secret:input.token\u{FDD1}"));
    }
}
