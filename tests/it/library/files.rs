//! Every flow of the library reads without an error, is described, and stands in the library's README.

use super::{flow, library};
use windlass_domain::catalog::{self, Item};

/// The names of the library's flows.
fn names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(library())
        .expect("ops/flows")
        .flatten()
        .filter_map(|e| e.file_name().to_string_lossy().strip_suffix(".yaml").map(str::to_owned))
        .collect();
    names.sort();
    names
}

#[test]
fn every_flow_reads_and_is_documented() {
    let readme = std::fs::read_to_string(library().join("README.md")).expect("ops/flows/README.md");
    let names = names();
    assert!(names.len() >= 11, "{names:?}");
    for name in names {
        let text = flow(&name);
        assert!(text.starts_with("# "), "{name} says at its top what it is for");
        assert!(text.contains("Adapt:"), "{name} says what to adapt");
        assert!(readme.contains(&format!("({name}.yaml)")), "{name} is not in ops/flows/README.md");
        let read = catalog::read(&text);
        let documents = read.unwrap_or_else(|e| panic!("{name}: {e:?}"));
        for d in &documents {
            let Item::Flow { flow, .. } = &d.item else { panic!("{name} holds something else than flows") };
            assert_eq!(flow.name, name, "the file is named as the flow");
            for (input, i) in &flow.inputs {
                assert!(i.description.len() > 9, "{name}: the input {input} has no description");
            }
        }
    }
}

/// What `ops/flow` reads: an example says on which hosts it runs and what it sets, and sets nothing its flow has not.
#[test]
fn every_example_fits_its_flow() {
    let examples = library().join("examples");
    for name in names() {
        let dir = examples.join(&name);
        if name == "dotnet-windows" {
            assert!(!dir.exists(), "it cannot run here, and says so instead");
            continue;
        }
        let read =
            |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_else(|e| panic!("{name}/{file}: {e}"));
        assert!(read("hosts").lines().count() > 0 && dir.join("app").is_dir(), "{name}");
        assert!(read("host").starts_with("#!"), "{name}/host is a script");
        let documents = catalog::read(&flow(&name)).expect("reads");
        let Item::Flow { flow, .. } = &documents[0].item else { panic!("{name} is a flow") };
        for line in read("inputs").lines() {
            let (input, _) = line.split_once('=').unwrap_or_else(|| panic!("{name}/inputs: {line}"));
            assert!(flow.inputs.contains_key(input), "{name} has no input {input}");
        }
    }
}
