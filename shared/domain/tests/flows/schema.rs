//! The JSON Schema: it takes every flow that reads, and the committed file is what the code makes.

use crate::{folder, project, yaml_files};
use serde_json::{Value, json};
use windlass_domain::flow::{
    actions::{ACTIONS, Kind, Site},
    json_schema,
};

#[test]
fn it_takes_every_good_flow() {
    let schema = jsonschema::draft202012::new(&json_schema()).expect("a schema");
    let files = [folder("good"), project().join("ops/flows")].map(|f| yaml_files(&f)).concat();
    for (name, text) in files {
        for value in serde_saphyr::from_multiple::<Value>(&text).expect(&name) {
            if value.get("flow").is_none() {
                continue;
            }
            let wrong: Vec<String> =
                schema.iter_errors(&value).map(|e| format!("{}: {e}", e.instance_path())).collect();
            assert!(wrong.is_empty(), "{name}: {wrong:#?}");
        }
    }
}

#[test]
fn it_is_a_schema_of_its_draft() {
    assert!(jsonschema::draft202012::meta::is_valid(&json_schema()));
}

/// `UPDATE=1 cargo test -p windlass-domain --test flows` writes it anew.
#[test]
fn the_committed_file_is_what_the_code_makes() {
    let path = project().join("ops/docs/flow.schema.json");
    let made = serde_json::to_string_pretty(&json_schema()).expect("writes") + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &made).expect("writes");
    }
    let file = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        file == made,
        "ops/docs/flow.schema.json is out of date: UPDATE=1 cargo test -p windlass-domain --test flows"
    );
}

/// The reference lists every action with its parameters; `UPDATE=1` writes the list anew.
#[test]
fn the_reference_lists_the_actions() {
    let mut made = String::from("## Actions\n");
    for a in ACTIONS {
        let site = match a.site {
            Site::Central => "central",
            Site::Host => "host",
            Site::Both => "central and host",
        };
        made += &format!("\n**`{}`** ({site}, {} s unless `timeout` says otherwise): {}\n", a.name, a.timeout_s, a.doc);
        for p in a.parameters {
            let need = if p.required { ", required" } else { "" };
            let default = match p.default_value().map(|d| d.to_string()) {
                Some(d) if p.kind == Kind::Duration => format!(", `{d}s` when absent"),
                Some(d) if d != "[]" && d != "{}" => format!(", `{}` when absent", d.trim_matches('"')),
                _ => String::new(),
            };
            let secret = if p.secret { ", may hold secrets" } else { "" };
            made += &format!("- `{}`{need}{default}{secret}: {}\n", p.name, p.doc);
        }
    }
    let path = project().join("ops/docs/flows.md");
    let text = std::fs::read_to_string(&path).expect("reads");
    let (before, after) = text.split_once("## Actions\n").expect("a list of actions");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, format!("{before}{made}")).expect("writes");
        return;
    }
    assert!(
        format!("## Actions\n{after}") == made,
        "ops/docs/flows.md is out of date: UPDATE=1 cargo test -p windlass-domain --test flows"
    );
}

/// Each is wrong in one way that the schema can tell.
#[test]
fn it_refuses_wrong_shapes_one_by_one() {
    let schema = jsonschema::draft202012::new(&json_schema()).expect("a schema");
    let flow = |step: Value| json!({ "flow": "f", "steps": [step] });
    let host = |step: Value| flow(json!({ "id": "r", "waves": 1, "steps": [step] }));
    let branches = |l: Value| flow(json!({ "id": "g", "exclusive": l }));
    let good = [
        flow(json!({ "id": "a", "uses": "wait", "with": { "for": "1s" } })),
        host(json!({ "uses": "service.restart", "with": { "unit": "x" } })),
        branches(json!([{ "if": "true", "to": "a" }, { "default": [] }])),
        flow(json!({ "id": "g", "parallel": ["a"] })),
    ];
    assert!(good.iter().all(|v| schema.is_valid(v)));
    let wrong = [
        json!({ "steps": [] }),
        flow(json!({ "id": "a", "uses": "wait" })),
        flow(json!({ "id": "a", "uses": "wait", "with": { "for": 5 } })),
        flow(json!({ "id": "a", "uses": "wait", "with": { "for": "1s", "x": 1 } })),
        flow(json!({ "id": "a", "uses": "script", "with": { "run": "x" } })),
        flow(json!({ "id": "a", "uses": "wait", "with": { "for": "1s" }, "waves": 1 })),
        flow(json!({ "id": "A", "uses": "wait", "with": { "for": "1s" } })),
        flow(json!({ "id": "g", "parallel": 5 })),
        flow(json!({ "id": "g", "parallel": ["a"], "if": "true" })),
        flow(json!({ "id": "r", "waves": 1 })),
        flow(json!({ "id": "r", "waves": 1, "parallel": ["a"], "steps": [{ "uses": "artifact.fetch" }] })),
        host(json!({ "uses": "wait", "with": { "for": "1s" } })),
        host(json!({ "uses": "service.restart", "with": { "unit": "x", "command": ["y"] } })),
        host(json!({ "uses": "artifact.fetch", "always": "yes" })),
        branches(json!([{ "to": "a" }, { "default": [] }])),
        branches(json!([{ "if": "true" }, { "default": [] }])),
        branches(json!([{ "if": "true", "to": "a" }, { "if": "true", "to": "b" }])),
        branches(json!([{ "if": "true", "to": "a" }, { "default": [] }, { "default": [] }])),
        branches(json!([{ "default": [] }])),
    ];
    for v in wrong {
        assert!(!schema.is_valid(&v), "{v}");
    }
}
