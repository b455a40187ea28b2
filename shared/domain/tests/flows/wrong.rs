//! A table of wrong flows: one file each in `wrong/`, whose first lines say what must be told:
//! `# expect: LINE:COLUMN words of the message` for the first problem (several lines for several problems, in order), and
//! `# schema: refuses` if the JSON Schema can tell as well. To add one, add a file.

use crate::{folder, read, yaml_files};
use windlass_domain::flow::json_schema;

struct Expected {
    line: u32,
    column: u32,
    words: String,
}

fn expected(name: &str, text: &str) -> Vec<Expected> {
    let of = |l: &str| {
        let (place, words) = l.split_once(' ').unwrap_or_else(|| panic!("{name}: `{l}`"));
        let (line, column) = place.split_once(':').unwrap_or_else(|| panic!("{name}: `{l}`"));
        let number = |n: &str| n.parse().unwrap_or_else(|e| panic!("{name}: `{l}`: {e}"));
        Expected { line: number(line), column: number(column), words: words.into() }
    };
    text.lines().filter_map(|l| l.strip_prefix("# expect: ")).map(of).collect()
}

#[test]
fn wrong_flows_are_told_where_and_what_to_do() {
    let files = yaml_files(&folder("wrong"));
    assert!(files.len() >= 40, "{} wrong flows", files.len());
    let mut failures = Vec::new();
    for (name, text) in &files {
        let wanted = expected(name, text);
        assert!(!wanted.is_empty(), "{name} does not say what is expected");
        let told = match read(text) {
            Ok(_) => {
                failures.push(format!("{name} is taken for right"));
                continue;
            }
            Err(e) => e,
        };
        let fits = told.len() == wanted.len()
            && wanted.iter().zip(&told).all(|(w, t)| {
                t.place.is_some_and(|p| (p.line, p.column) == (w.line, w.column)) && t.message.contains(&w.words)
            });
        if !fits {
            let told: Vec<String> = told.iter().map(ToString::to_string).collect();
            failures.push(format!("{name}:\n  {}", told.join("\n  ")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_schema_refuses_what_it_can_tell() {
    let schema = jsonschema::validator_for(&json_schema()).expect("a schema");
    let mut refused = 0;
    for (name, text) in yaml_files(&folder("wrong")) {
        let Ok(value) = serde_saphyr::from_str::<serde_json::Value>(&text) else { continue };
        let said = text.lines().any(|l| l == "# schema: refuses");
        assert_eq!(!schema.is_valid(&value), said, "{name}");
        refused += usize::from(said);
    }
    assert!(refused >= 15, "{refused}");
}
