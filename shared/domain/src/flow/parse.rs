//! YAML to [`Flow`], with the place in every error and as many errors at once as can be told.
//!
//! It goes in two rounds: every key is read where it stands; what needs the whole flow (the graph, and which names an
//! expression may read) is checked when all steps are known.

use super::{Flow, Input, OnFailure, Step, actions::parse_duration};
use crate::{
    artifact::is_name,
    span::{Place, Problem, suggestion},
    yaml::{self, Fields, Node, Problems, Value},
};
use std::collections::BTreeMap;

mod call;
mod gateway;
mod graph;
mod inputs;
mod names;
mod policy;
mod probes;
mod rollback;
mod rollout;
mod step;
mod traffic;

/// The words of the language, for the schema.
pub(super) mod words {
    pub(crate) use super::{
        gateway::MODES as GATEWAYS,
        inputs::KINDS,
        policy::{MAX_EXIT_CODE, MAX_FACTOR, MAX_RETRIES, OVERDUE, RETRIED},
        probes::{INCONCLUSIVE, MAX_FAILURES, MAX_PROBES, PROBES},
        rollback::MODES as ROLLBACKS,
        step::{CONFIRMS, FAILURES, JOINS, MAX_PARALLEL, MAX_REPEATS, PHASES},
        traffic::{ATTACH, DRAIN},
    };
}

/// What is wrong with a flow, where, and what to write instead.
pub type FlowError = Problem;

const MAX_STEPS: usize = 200;
const MAX_HOST_STEPS: usize = 100;
const MAX_EXPRESSIONS: usize = 5000;
const MAX_TIMEOUT_S: u64 = 7 * 86_400;

/// Reads a flow from a YAML text of one document.
pub fn parse(source: &str) -> Result<Flow, Vec<FlowError>> {
    let documents = yaml::documents(source).map_err(|p| vec![p])?;
    let one = |message: &str| vec![Problem { place: None, path: String::new(), message: message.into() }];
    match documents.as_slice() {
        [] => Err(one("the text is empty; a flow begins with `flow: <name>`")),
        [node] => {
            let mut problems = Problems::default();
            let flow = Fields::of(node, "", "a flow", &mut problems).and_then(|f| read(f, &mut problems));
            finish(flow, problems)
        }
        _ => Err(one("the text holds several documents; a flow is one (apply several with `windlass apply`)")),
    }
}

/// The flow, if nothing was found wrong.
pub(crate) fn finish<T>(value: Option<T>, mut problems: Problems) -> Result<T, Vec<FlowError>> {
    match value {
        Some(v) if problems.0.is_empty() => Ok(v),
        _ => {
            problems.0.sort_by_key(|p| p.place);
            Err(problems.0)
        }
    }
}

/// Reads the keys of a flow; the caller may have taken keys of its own (`kind`, `project`) before.
pub(crate) fn read(mut f: Fields<'_>, problems: &mut Problems) -> Option<Flow> {
    let name = read_name(&mut f, "flow", problems);
    let inputs = f.take("inputs").map(|n| inputs::read(n, &f.path_of("inputs"), problems)).unwrap_or_default();
    let on_failure = word(
        &mut f,
        "on_failure",
        &[("pause", OnFailure::Pause), ("stop", OnFailure::Stop), ("rollback", OnFailure::Rollback)],
        problems,
    );
    let patience = f.take("patience").and_then(|n| policy::patience(n, &f.path_of("patience"), problems));
    let mut r = Reader { flow: name.as_deref(), problems, uses: Vec::new(), links: Vec::new(), step: None, over: None };
    let mut steps = match f.take("steps") {
        Some(n) => r.steps(n, &f.path_of("steps")),
        None => {
            r.problems.add(f.place, &f.path, "a flow needs `steps:` with at least one step");
            Vec::new()
        }
    };
    let rollback = f.take("rollback").map(|n| r.rollback(n, &f.path_of("rollback"))).unwrap_or_default();
    let outputs = f.take("outputs").map(|n| r.outputs(n, &f.path_of("outputs"))).unwrap_or_default();
    let Reader { problems, uses, links, over, .. } = r;
    if let Some((place, path)) = over {
        let text =
            format!("the flow holds more than {MAX_EXPRESSIONS} texts with expressions; make several flows of it");
        problems.add(place, &path, text);
    }
    let graph = graph::check(&mut steps, links, problems);
    names::check(uses, &inputs, &graph, problems);
    f.finish(problems);
    Some(Flow {
        name: name?,
        inputs,
        on_failure: on_failure.unwrap_or_default(),
        steps: steps.into_iter().map(|s| s.step).collect(),
        rollback,
        patience,
        outputs,
        scopes: BTreeMap::new(),
    })
}

/// What is gathered while the keys are read.
struct Reader<'p> {
    /// Name of the flow, if it has one.
    flow: Option<&'p str>,
    problems: &'p mut Problems,
    /// Expressions, to be checked when all is known.
    uses: Vec<names::Use>,
    /// Names of steps in other steps, likewise.
    links: Vec<Link>,
    /// Id of the step that is being read.
    step: Option<String>,
    /// Where the first expression stands that is one too many.
    over: Option<(Place, String)>,
}

/// A step with where it stands.
struct Placed {
    step: Step,
    place: Place,
    path: String,
    /// Something in it could not be read: what it lacks is not told as well.
    broken: bool,
}

/// The id of a step, written in another one.
struct Link {
    by: String,
    to: String,
    place: Place,
    path: String,
    kind: LinkKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkKind {
    Needs,
    /// A gateway leads there.
    Target,
}

pub(crate) fn read_name(f: &mut Fields<'_>, key: &'static str, problems: &mut Problems) -> Option<String> {
    match f.take(key) {
        None => {
            problems.add(f.place, &f.path, format!("the key `{key}` is missing; add `{key}: <name>`"));
            None
        }
        Some(n) => name_of(n, &f.path_of(key), problems),
    }
}

fn name_of(n: &Node, path: &str, problems: &mut Problems) -> Option<String> {
    match n.as_word() {
        Some(t) if is_name(&t) => Some(t),
        _ => {
            let rule = "1 to 63 of a-z, 0-9, `_` and `-`, beginning with a letter or digit";
            problems.add(n.place, path, format!("must be a name ({rule}), not {}", n.kind()));
            None
        }
    }
}

/// One of a few words.
fn word<T: Copy>(
    f: &mut Fields<'_>,
    key: &'static str,
    words: &[(&'static str, T)],
    problems: &mut Problems,
) -> Option<T> {
    let n = f.take(key)?;
    let found = n.as_word().and_then(|w| words.iter().find(|(name, _)| *name == w));
    if found.is_none() {
        let all: Vec<&str> = words.iter().map(|(w, _)| *w).collect();
        let near = n.as_text().map_or_else(String::new, |t| suggestion(t, all.iter().copied()));
        problems.add(n.place, &f.path_of(key), format!("must be one of {}, not {}{near}", all.join(", "), n.kind()));
    }
    found.map(|(_, v)| *v)
}

fn seconds(n: &Node, path: &str, most: u64, problems: &mut Problems) -> Option<u32> {
    let text = match n.as_word() {
        Some(t) => t,
        None => {
            problems.add(n.place, path, format!("must be a duration such as `30s`, not {}", n.kind()));
            return None;
        }
    };
    match parse_duration(&text) {
        Ok(s) if s <= most => u32::try_from(s).ok(),
        Ok(_) => {
            problems.add(n.place, path, format!("is longer than the limit of {}d", most / 86_400));
            None
        }
        Err(e) => {
            problems.add(n.place, path, e);
            None
        }
    }
}

fn whole(n: &Node, path: &str, least: u64, most: u64, problems: &mut Problems) -> Option<u32> {
    let found = match &n.value {
        Value::Number(x, _) => x.as_u64().filter(|x| (least..=most).contains(x)),
        _ => None,
    };
    if found.is_none() {
        problems.add(n.place, path, format!("must be a whole number from {least} to {most}, not {}", n.kind()));
    }
    found.and_then(|x| u32::try_from(x).ok())
}

fn truth(n: &Node, path: &str, problems: &mut Problems) -> bool {
    match n.value {
        Value::Bool(b) => b,
        _ => {
            problems.add(n.place, path, format!("must be true or false, not {}", n.kind()));
            false
        }
    }
}

/// A list that is not empty and not too long.
fn list<'n>(node: &'n Node, path: &str, most: usize, what: &str, problems: &mut Problems) -> Option<&'n [Node]> {
    match &node.value {
        Value::List(l) if l.is_empty() => {
            problems.add(node.place, path, format!("is empty; add at least one of the {what}"));
            None
        }
        Value::List(l) if l.len() > most => {
            problems.add(node.place, path, format!("holds {} {what}, the limit is {most}", l.len()));
            None
        }
        Value::List(l) => Some(l),
        _ => {
            problems.add(node.place, path, format!("must be a list of {what}, not {}", node.kind()));
            None
        }
    }
}

#[cfg(test)]
mod tests;
