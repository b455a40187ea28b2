//! The flow language without a server: `flow check`, `flow schema`.

use super::{catalog, error::Error, out::Out, text};
use crate::cli::FlowCheckArgs;
use serde_json::{Value, json};
use windlass_domain::{
    catalog::{Item, read},
    flow::{self, Flow, FlowError, uses},
    span::Place,
};

/// A flow with the project it is of, where its document names one.
struct Named {
    project: Option<String>,
    flow: Flow,
    /// Its own text, and where that begins in the file.
    source: String,
    begin: Option<Place>,
}

impl Named {
    fn name(&self) -> String {
        self.project.as_ref().map(|p| format!("{p}/")).unwrap_or_default() + &self.flow.name
    }

    /// The flow of this name that a step of `self` would use, from all files: of the same project, as far as they say.
    fn used<'a>(&self, all: &'a [Named], name: &str) -> Option<&'a Flow> {
        let near = |n: &&Named| n.project.is_none() || self.project.is_none() || n.project == self.project;
        let mut found = all.iter().filter(|n| n.flow.name == name).filter(near);
        // Of two that it may be, nothing can be told.
        found.next().filter(|_| found.next().is_none()).map(|n| &n.flow)
    }
}

/// Reads every file and tells all that is wrong with each, and between them.
pub(crate) fn check(args: &FlowCheckArgs, out: Out) -> Result<(), Error> {
    let (mut files, mut all) = (Vec::new(), Vec::new());
    for path in &args.files {
        let source = String::from_utf8(catalog::read(path)?)
            .map_err(|_| Error::Usage(format!("{}: is not UTF-8 text", path.display())))?;
        let (flows, problems) = match flows(&source) {
            Ok(flows) => (flows, Vec::new()),
            Err(problems) => (Vec::new(), problems),
        };
        let from = all.len();
        all.extend(flows);
        files.push((path.display().to_string(), from..all.len(), problems));
    }
    let (mut answers, mut wrong) = (Vec::new(), 0);
    for (file, own, mut problems) in files {
        let own = all.get(own).unwrap_or_default();
        for n in own {
            problems.extend(uses::check(&n.source, n.begin, &n.flow, &|name| n.used(&all, name).cloned()));
        }
        wrong += problems.len();
        let names: Vec<String> = own.iter().map(Named::name).collect();
        if out.json {
            answers.push(json!({ "file": file, "flows": names, "problems": problems }));
            continue;
        }
        for p in &problems {
            out.line(text::clean(&format!("{file}: {p}"), false))?;
        }
        if problems.is_empty() {
            out.line(format!("{file}: good ({})", names.join(", ")))?;
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

/// The flows in a text: one flow alone, or documents as `apply` takes them.
fn flows(source: &str) -> Result<Vec<Named>, Vec<FlowError>> {
    if !source.lines().any(|l| l.starts_with("kind:")) {
        return flow::parse(source)
            .map(|flow| vec![Named { project: None, flow, source: source.to_owned(), begin: None }]);
    }
    let documents = read(source).map_err(|errors| {
        let problem =
            |e: windlass_domain::catalog::ReadError| FlowError { place: e.place, path: e.path, message: e.message };
        errors.into_iter().map(problem).collect::<Vec<_>>()
    })?;
    let flows = documents.into_iter().filter_map(|d| match d.item {
        Item::Flow { project, flow, .. } => {
            Some(Named { project: Some(project), flow, source: d.source, begin: Some(d.place) })
        }
        _ => None,
    });
    let flows: Vec<Named> = flows.collect();
    if flows.is_empty() {
        let message = "the text holds no flow; a flow is a document with `kind: flow`".into();
        return Err(vec![FlowError { place: None, path: String::new(), message }]);
    }
    Ok(flows)
}

/// Prints the JSON Schema of the language.
pub(crate) fn schema(out: Out) -> Result<(), Error> {
    out.json(&flow::json_schema())
}
