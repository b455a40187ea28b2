//! The flow language from outside: flows that read, a table of wrong ones, every message, the schema, and fuzzing.

mod fuzz;
mod good;
mod messages;
mod schema;
mod short;
mod wrong;

use std::path::{Path, PathBuf};
use windlass_domain::{
    catalog,
    flow::{Flow, FlowError},
};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/flows").join(name)
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Names and texts of the YAML files in a folder, in order.
fn yaml_files(folder: &Path) -> Vec<(String, String)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|f| f.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    let name = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
    files.iter().map(|p| (name(p), std::fs::read_to_string(p).expect("reads"))).collect()
}

/// A flow in a file of its own, or as `windlass apply` takes it.
fn read(text: &str) -> Result<Flow, Vec<FlowError>> {
    if !text.lines().any(|l| l.starts_with("kind:")) {
        return windlass_domain::flow::parse(text);
    }
    let problem = |e: catalog::ReadError| FlowError { place: e.place, path: e.path, message: e.message };
    let documents = catalog::read(text).map_err(|l| l.into_iter().map(problem).collect::<Vec<_>>())?;
    let flow = documents.into_iter().find_map(|d| match d.item {
        catalog::Item::Flow { flow, .. } => Some(flow),
        _ => None,
    });
    Ok(flow.expect("the file holds a flow"))
}
