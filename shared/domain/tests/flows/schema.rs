//! The JSON Schema: it takes every flow that reads, and the committed file is what the code makes.

use crate::{folder, project, yaml_files};
use windlass_domain::flow::{
    actions::{ACTIONS, Kind, Site},
    json_schema,
};

#[test]
fn it_takes_every_good_flow() {
    let schema = jsonschema::draft202012::new(&json_schema()).expect("a schema");
    let files = [folder("good"), project().join("ops/flows")].map(|f| yaml_files(&f)).concat();
    for (name, text) in files {
        for value in serde_saphyr::from_multiple::<serde_json::Value>(&text).expect(&name) {
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
