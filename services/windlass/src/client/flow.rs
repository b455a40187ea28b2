//! The flow language without a server: `flow check`, `flow schema`.

use super::{catalog, error::Error, out::Out, text};
use crate::cli::FlowCheckArgs;
use serde_json::{Value, json};
use windlass_domain::{
    catalog::{Item, read},
    flow::{self, FlowError},
};

/// Reads every file and tells all that is wrong with each.
pub(crate) fn check(args: &FlowCheckArgs, out: Out) -> Result<(), Error> {
    let (mut answers, mut wrong) = (Vec::new(), 0);
    for path in &args.files {
        let source = String::from_utf8(catalog::read(path)?)
            .map_err(|_| Error::Usage(format!("{}: is not UTF-8 text", path.display())))?;
        let file = path.display().to_string();
        let (flows, problems) = match flows(&source) {
            Ok(flows) => (flows, Vec::new()),
            Err(problems) => (Vec::new(), problems),
        };
        wrong += problems.len();
        if out.json {
            answers.push(json!({ "file": file, "flows": flows, "problems": problems }));
            continue;
        }
        for p in &problems {
            out.line(text::clean(&format!("{file}: {p}"), false))?;
        }
        if problems.is_empty() {
            out.line(format!("{file}: good ({})", flows.join(", ")))?;
        }
    }
    if out.json {
        out.json(&Value::Array(answers))?;
    }
    match wrong {
        0 => Ok(()),
        1 => Err(Error::Negative("1 problem was found".into())),
        n => Err(Error::Negative(format!("{n} problems were found"))),
    }
}

/// Names of the flows in a text: one flow alone, or documents as `apply` takes them.
fn flows(source: &str) -> Result<Vec<String>, Vec<FlowError>> {
    if !source.lines().any(|l| l.starts_with("kind:")) {
        return flow::parse(source).map(|f| vec![f.name]);
    }
    let documents = read(source).map_err(|errors| {
        let problem =
            |e: windlass_domain::catalog::ReadError| FlowError { place: e.place, path: e.path, message: e.message };
        errors.into_iter().map(problem).collect::<Vec<_>>()
    })?;
    let names = documents.into_iter().filter_map(|d| match d.item {
        Item::Flow { project, flow, .. } => Some(format!("{project}/{}", flow.name)),
        _ => None,
    });
    let names: Vec<String> = names.collect();
    if names.is_empty() {
        let message = "the text holds no flow; a flow is a document with `kind: flow`".into();
        return Err(vec![FlowError { place: None, path: String::new(), message }]);
    }
    Ok(names)
}

/// Prints the JSON Schema of the language.
pub(crate) fn schema(out: Out) -> Result<(), Error> {
    out.json(&flow::json_schema())
}
