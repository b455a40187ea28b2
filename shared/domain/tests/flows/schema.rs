//! The JSON Schema: it takes every flow that reads, and the committed file is what the code makes.

use crate::{folder, project, yaml_files};
use windlass_domain::flow::json_schema;

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
