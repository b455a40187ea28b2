//! What a flow gives to the flows it uses, held against what they take, with the place in the text. A flow that is not at hand is
//! not looked at: linking tells it when a release is made.

use super::{Flow, Input, InputKind, StepKind};
use crate::{
    expression::Template,
    span::{Place, Problem, suggestion},
    yaml::{self, Node, Problems, Value, join, shorten},
};
use std::collections::BTreeMap;

/// Why the given inputs do not fit a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Misfit {
    Unknown { name: String, known: String },
    Missing { name: String },
    Wrong { name: String, problem: String },
}

/// Everything that does not fit. Values that are computed are looked at when the plan is made, but for their type where it is
/// plain: that of an input of `outer`, or text where there is any around the expression.
pub(super) fn misfits(
    flow: &Flow,
    with: &serde_json::Map<String, serde_json::Value>,
    outer: &BTreeMap<String, Input>,
) -> Vec<Misfit> {
    let mut out = Vec::new();
    for name in with.keys().filter(|k| !flow.inputs.contains_key(*k)) {
        let known: Vec<&str> = flow.inputs.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        out.push(Misfit::Unknown { name: name.clone(), known });
    }
    for (name, input) in &flow.inputs {
        match with.get(name) {
            None if input.default.is_some() || input.rules.optional => {}
            None => out.push(Misfit::Missing { name: name.clone() }),
            Some(value) => {
                if let Err(problem) = fits(input, value, outer) {
                    out.push(Misfit::Wrong { name: name.clone(), problem });
                }
            }
        }
    }
    out
}

fn fits(input: &Input, value: &serde_json::Value, outer: &BTreeMap<String, Input>) -> Result<(), String> {
    let template = Template::compile(value).map_err(|e| format!("is no template: {e}"))?;
    if let Some(fixed) = template.fixed() {
        return input.check(fixed);
    }
    let Some(text) = value.as_str() else { return Ok(()) };
    let Some(inner) = alone(text) else {
        let takes_text = group(input.kind).is_none_or(|g| g == TEXT);
        return if takes_text {
            Ok(())
        } else {
            Err(format!("must be {}, not text", group(input.kind).unwrap_or(TEXT)))
        };
    };
    let Some(from) = inner.strip_prefix("inputs.").and_then(|n| outer.get(n)) else { return Ok(()) };
    match (group(input.kind), group(from.kind)) {
        (Some(wanted), Some(given)) if wanted != given => Err(format!("must be {wanted}, and `{inner}` is {given}")),
        _ => Ok(()),
    }
}

const TEXT: &str = "text";

/// Kinds whose values may stand for each other; of secrets nothing is told.
fn group(kind: InputKind) -> Option<&'static str> {
    match kind {
        InputKind::String | InputKind::Choice | InputKind::HostSelector => Some(TEXT),
        InputKind::Number => Some("a number"),
        InputKind::Boolean => Some("true or false"),
        InputKind::File => Some("a file"),
        InputKind::Secret => None,
    }
}

/// The expression of a text that is nothing but one.
fn alone(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("${{")?.strip_suffix("}}")?;
    (!inner.contains("${{")).then(|| inner.trim())
}

/// Everything that the subflows of a flow are given and do not take, or lack. `source` is the text the flow was read from; where
/// it is one document of many, `begin` is the place where that begins in the whole text. `find` gives the other flows that are
/// at hand.
pub fn check(source: &str, begin: Option<Place>, flow: &Flow, find: &dyn Fn(&str) -> Option<Flow>) -> Vec<Problem> {
    let mut problems = Problems::default();
    if !flow.steps.iter().any(|s| matches!(s.kind, StepKind::Subflow(_))) {
        return Vec::new();
    }
    let Ok(documents) = yaml::documents(source) else { return Vec::new() };
    let Some(document) = documents.first() else { return Vec::new() };
    let Some((_, steps)) = get(document, "steps") else { return Vec::new() };
    // The first thing in it stands `down` lines further below in the whole.
    let down = begin.map_or(0, |b| b.line.saturating_sub(document.place.line));
    let Value::List(nodes) = &steps.value else { return Vec::new() };
    for (i, (node, step)) in nodes.iter().zip(&flow.steps).enumerate() {
        let StepKind::Subflow(sub) = &step.kind else { continue };
        let Some(used) = find(&sub.flow) else { continue };
        let at = format!("steps[{i}].with");
        let with = get(node, "with").map(|(_, n)| n);
        // What is missing, is missing in `with`, or where `with` should be.
        let whole = with.or(get(node, "uses").map(|(_, n)| n)).map_or(node.place, |n| n.place);
        for m in misfits(&used, &sub.with, &flow.inputs) {
            let (place, path, text) = tell(m, &used, with, whole, &at);
            problems.add(Place { line: place.line + down, ..place }, &path, text);
        }
    }
    problems.0.sort_by_key(|p| p.place);
    problems.0
}

fn tell(m: Misfit, used: &Flow, with: Option<&Node>, whole: Place, at: &str) -> (Place, String, String) {
    let flow = &used.name;
    let entry = |name: &str| with.and_then(|n| get(n, name));
    let path = |name: &str| join(at, &shorten(name));
    match m {
        Misfit::Unknown { name, known } => {
            let near = suggestion(&name, used.inputs.keys().map(String::as_str));
            let place = entry(&name).map_or(whole, |(key, _)| key);
            (place, path(&name), format!("flow `{flow}` has no such input{near}; it has: {known}"))
        }
        Misfit::Missing { name } => {
            let text = format!("the input `{name}` of flow `{flow}` has no default and is not given: add it here");
            (whole, at.to_owned(), text)
        }
        Misfit::Wrong { name, problem } => {
            let place = entry(&name).map_or(whole, |(_, node)| node.place);
            (place, path(&name), format!("the input `{name}` of flow `{flow}` {problem}"))
        }
    }
}

fn get<'n>(node: &'n Node, name: &str) -> Option<(Place, &'n Node)> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|(k, _)| k.name == name).map(|(k, n)| (k.place, n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::parse;

    const USED: &str = "flow: smoke\ninputs:\n  url: { type: string }\n  tries: { type: number, default: 3, max: 9 }\n  \
                        loud: { type: boolean, default: false }\n  way: { type: choice, options: [a, b], default: a }\n  \
                        file: { type: file, optional: true }\nsteps: [ { id: w, uses: wait, with: { for: 1s } } ]\n";

    /// What is told about a step with these keys, in a flow with a number `n` and a text `t`.
    fn told(keys: &str) -> Vec<String> {
        let text = format!(
            "flow: web\ninputs: {{ n: {{ type: number }}, t: {{ type: string }} }}\nsteps:\n  - id: s\n    uses: flow/smoke\n{keys}"
        );
        let flow = parse(&text).unwrap_or_else(|e| panic!("{keys}: {e:#?}"));
        let find = |name: &str| (name == "smoke").then(|| parse(USED).expect("a good flow"));
        check(&text, None, &flow, &find).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_does_not_fit_a_subflow_is_told_where_it_stands() {
        for (keys, expected) in [
            (
                "",
                "line 5, column 11: steps[0].with: the input `url` of flow `smoke` has no default and is not given: add it here",
            ),
            (
                "    with: { tries: 4 }\n",
                "line 6, column 11: steps[0].with: the input `url` of flow `smoke` has no default and is not given: add it here",
            ),
            (
                "    with:\n      url: x\n      trise: 4\n",
                "line 8, column 7: steps[0].with.trise: flow `smoke` has no such input (did you mean `tries`?); it has: file, loud, tries, url, way",
            ),
            (
                "    with: { url: 5 }\n",
                "line 6, column 18: steps[0].with.url: the input `url` of flow `smoke` must be text, not the number 5",
            ),
            (
                "    with: { url: x, tries: 10 }\n",
                "line 6, column 28: steps[0].with.tries: the input `tries` of flow `smoke` must be at most 9, not 10",
            ),
            (
                "    with: { url: x, way: c }\n",
                "line 6, column 26: steps[0].with.way: the input `way` of flow `smoke` must be one of a, b, not the text \"c\"",
            ),
            (
                "    with: { url: x, loud: \"${{ inputs.n }}\" }\n",
                "line 6, column 27: steps[0].with.loud: the input `loud` of flow `smoke` must be true or false, and `inputs.n` is a number",
            ),
            (
                "    with: { url: \"${{ inputs.n }}\" }\n",
                "line 6, column 18: steps[0].with.url: the input `url` of flow `smoke` must be text, and `inputs.n` is a number",
            ),
            (
                "    with: { url: x, tries: \"1${{ inputs.n }}\" }\n",
                "line 6, column 28: steps[0].with.tries: the input `tries` of flow `smoke` must be a number, not text",
            ),
            (
                "    with: { url: x, file: \"${{ inputs.t }}\" }\n",
                "line 6, column 27: steps[0].with.file: the input `file` of flow `smoke` must be a file, and `inputs.t` is text",
            ),
        ] {
            assert_eq!(told(keys), [expected], "{keys}");
        }
        let text = "\n\nflow: web\nsteps:\n  - { id: s, uses: flow/smoke }\n";
        let find = |_: &str| parse(USED).ok();
        let found = check(text.trim(), Some(Place { line: 3, column: 1 }), &parse(text).expect("good"), &find);
        assert_eq!(found[0].place, Some(Place { line: 5, column: 20 }), "in the whole text");
        let all = told("    with: { trise: 4, loud: 1 }\n");
        assert_eq!(all.len(), 3, "everything at once: {all:#?}");
    }

    #[test]
    fn what_fits_or_is_not_known_yet_is_let_be() {
        for keys in [
            "    with: { url: \"${{ inputs.t }}\", tries: \"${{ inputs.n }}\", way: \"${{ inputs.t }}\" }\n",
            "    with: { url: \"http://${{ inputs.n }}\", tries: \"${{ inputs.n + 1.0 }}\", loud: true }\n",
        ] {
            assert_eq!(told(keys), Vec::<String>::new(), "{keys}");
        }
        let text = "flow: web\nsteps: [ { id: s, uses: flow/elsewhere, with: { a: 1 } } ]\n";
        assert_eq!(check(text, None, &parse(text).expect("good"), &|_| None), vec![]);
    }
}
