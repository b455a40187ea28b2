//! What expressions may read where they stand, and whether that makes sense: unknown names, outputs of steps that do not
//! run before, secrets where they would be seen, and types that cannot fit.

use super::{
    Input,
    graph::{Gives, Graph, shown},
};
use crate::{
    artifact::is_name,
    expression::{
        Expression, Template,
        types::{Names, Type},
    },
    flow::{InputKind, actions::Parameter},
    span::{Place, suggestion},
    yaml::{Problems, shorten},
};
use std::collections::BTreeMap;

/// Fields of the roots whose shape is fixed.
const ARTIFACT_FIELDS: [&str; 9] =
    ["version", "url", "digest", "size", "dir", "built_at", "git_ref", "commit", "committer"];
const RELEASE_FIELDS: [&str; 4] = ["version", "kind", "flow", "created_by"];
const HOST_FIELDS: [&str; 5] = ["name", "address", "labels", "values", "files"];
/// What `http.request` gives.
const RESPONSE_FIELDS: [&str; 4] = ["status", "body", "tries", "json"];
/// What `prometheus.query` gives.
const SAMPLES_FIELDS: [&str; 2] = ["value", "series"];

/// Expressions in one place of the text.
#[derive(Debug)]
pub(super) struct Use {
    code: Code,
    position: Position,
    place: Place,
    path: String,
    /// The step they belong to.
    step: Option<String>,
    /// Host steps before theirs in the same rollout.
    pub before: Vec<String>,
    /// They belong to a host step that runs whatever happened before.
    pub always: bool,
}

#[derive(Debug)]
pub(super) enum Code {
    Template(Template),
    /// Must be true or false.
    Expression(Expression),
}

/// What kind of place it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Position {
    /// `if` of a step and of a branch.
    Condition,
    HostCondition,
    Until,
    Parameter {
        host: bool,
        rollback: bool,
        parameter: &'static Parameter,
    },
    /// `with` of a plugin: its schema says what it takes.
    Plugin,
    SubflowWith,
    /// Outputs of the flow.
    Outputs,
    /// The selector of a rollout.
    On,
}

impl Use {
    pub(super) fn new(code: Code, position: Position, place: Place, path: &str, step: Option<&str>) -> Use {
        let step = step.map(Into::into);
        Use { code, position, place, path: path.into(), step, before: Vec::new(), always: false }
    }
}

/// Notes whatever is wrong with the expressions.
pub(super) fn check(uses: Vec<Use>, inputs: &BTreeMap<String, Input>, graph: &Graph, problems: &mut Problems) {
    let checker = Checker { inputs, graph, names: names(inputs, graph) };
    for u in uses {
        if problems.full() {
            return;
        }
        let expressions: Vec<&Expression> = match &u.code {
            Code::Template(t) => t.expressions(),
            Code::Expression(e) => vec![e],
        };
        for e in expressions {
            let found = checker.expression(&u, e);
            found.into_iter().for_each(|text| problems.add(u.place, &u.path, text));
        }
    }
}

/// What is surely known about the types of what expressions read.
fn names(inputs: &BTreeMap<String, Input>, graph: &Graph) -> Names {
    let text = |names: &[&'static str]| names.iter().map(|n| (*n, Type::Text)).collect::<Vec<_>>();
    let of = |i: &Input| match i.kind {
        _ if i.rules.optional => Type::Any,
        InputKind::String | InputKind::Choice | InputKind::HostSelector | InputKind::Secret => Type::Text,
        InputKind::Number => Type::Number,
        InputKind::Boolean => Type::Boolean,
        InputKind::File => {
            let fields = ["name", "text", "content", "sha256"].map(|n| (n, Type::Text));
            Type::closed(fields.into_iter().chain([("size", Type::Number)]))
        }
    };
    let outputs = |id: &str| match graph.gives(id) {
        Gives::Response => {
            Type::open([("status", Type::Number), ("body", Type::Text), ("tries", Type::Number), ("json", Type::Any)])
        }
        _ => Type::open([]),
    };
    let step = |id: &String| Type::open([("outputs", outputs(id))]);
    let host = [("name", Type::Text), ("address", Type::Text)].into_iter();
    let host = host.chain(["labels", "values", "files"].map(|n| (n, Type::open([]))));
    let steps: Vec<(&str, Type)> = graph.ids.iter().map(|id| (id.as_str(), step(id))).collect();
    Names::from([
        ("inputs", Type::open(inputs.iter().map(|(k, i)| (k.as_str(), of(i))))),
        // Size, ref, commit and committer may be null.
        ("artifact", Type::open(text(&["version", "url", "digest", "dir", "built_at"]))),
        ("release", Type::open(text(&RELEASE_FIELDS))),
        ("env", Type::open(text(&["name", "project"]))),
        ("values", Type::open([])),
        ("host", Type::open(host)),
        ("steps", Type::open(steps)),
    ])
}

struct Checker<'c> {
    inputs: &'c BTreeMap<String, Input>,
    graph: &'c Graph,
    names: Names,
}

impl Checker<'_> {
    fn expression(&self, u: &Use, e: &Expression) -> Vec<String> {
        let mut found = Vec::new();
        self.roots(u, e, &mut found);
        self.fields(u, e, &mut found);
        self.secrets(u, e, &mut found);
        self.outputs(u, e, &mut found);
        if !found.is_empty() {
            return found;
        }
        let (t, wrong) = e.check_types(&self.names);
        let whole = format!("`{}`", e.source());
        let within = |w: String| if w.starts_with(&whole) { w } else { format!("in {whole}: {w}") };
        found.extend(wrong.into_iter().map(within));
        if found.is_empty() && matches!(u.code, Code::Expression(_)) && !matches!(t, Type::Any | Type::Boolean) {
            found.push(format!(
                "`{}` must be true or false, but is {}; compare it with something",
                e.source(),
                t.name()
            ));
        }
        found
    }

    /// Do the names it begins with exist here?
    fn roots(&self, u: &Use, e: &Expression, found: &mut Vec<String>) {
        let host = matches!(u.position, Position::HostCondition | Position::Parameter { host: true, .. });
        let mut roots = vec!["inputs", "artifact", "release", "env", "values"];
        if host {
            roots.push("host");
        }
        if !matches!(u.position, Position::HostCondition | Position::On) {
            roots.push("steps");
        }
        if matches!(u.position, Position::Parameter { .. } | Position::Plugin | Position::SubflowWith) {
            roots.push("secrets");
        }
        // What is left of `steps.my-step` is told with the step.
        let dashed: Vec<&str> =
            e.paths().iter().filter(|p| p[0] == "steps").filter_map(|p| self.dashed(u, p.get(1)?)).collect();
        let told = |r: &str| dashed.iter().any(|d| d.ends_with(&format!("-{r}")) || d.contains(&format!("-{r}-")));
        for r in e.roots().iter().filter(|r| !roots.contains(&r.as_str()) && !told(r)) {
            let said = format!("`{}` reads", e.source());
            found.push(match (r.as_str(), u.position) {
                ("host", _) => format!("{said} `host`, which only the steps of a rollout have"),
                ("steps", Position::HostCondition) => format!(
                    "{said} `steps`, but which steps a host runs is fixed in the plan; put the condition on the rollout, or \
                     pass the output to a script"
                ),
                ("steps", _) => format!("{said} `steps`, but which hosts a rollout goes to is fixed in the plan; use inputs, env or values"),
                ("secrets", _) => format!("{said} a secret, which nothing may be decided by; remove it"),
                _ => {
                    let near = suggestion(r, roots.iter().copied());
                    format!("{said} `{}`, which does not exist{near}; there are: {}", shorten(r), roots.join(", "))
                }
            });
        }
    }

    fn fields(&self, u: &Use, e: &Expression, found: &mut Vec<String>) {
        let host = matches!(u.position, Position::HostCondition | Position::Parameter { host: true, .. });
        for (root, field) in e.fields() {
            let known: Vec<&str> = match root.as_str() {
                "inputs" => self.inputs.keys().map(String::as_str).collect(),
                "artifact" => ARTIFACT_FIELDS.into(),
                "release" => RELEASE_FIELDS.into(),
                "host" if host => HOST_FIELDS.into(),
                _ => continue,
            };
            if !known.contains(&field.as_str()) {
                let near = suggestion(field, known.iter().copied());
                let list = if known.is_empty() { "the flow has no inputs".into() } else { shown(&known) };
                found.push(format!(
                    "`{}` reads `{root}.{}`, which is not declared{near}; known: {list}",
                    e.source(),
                    shorten(field)
                ));
            }
        }
    }

    fn secrets(&self, u: &Use, e: &Expression, found: &mut Vec<String>) {
        let sealed = |p: &[String]| match p {
            [root, name, ..] if root == "inputs" => self.inputs.get(name).is_some_and(|i| i.kind == InputKind::Secret),
            [root, ..] => root == "secrets",
            [] => false,
        };
        if !e.paths().iter().any(|p| sealed(p)) {
            return;
        }
        let said = format!("`{}` reads a secret", e.source());
        let told = match u.position {
            Position::Parameter { parameter: p, .. } if !p.secret => Some(format!(
                "{said}, but `{}` can be seen in process lists, addresses or logs; pass it by `env`, `stdin`, the content \
                 of a file, or the headers or body of a request",
                p.name
            )),
            Position::Parameter { .. } | Position::Plugin | Position::SubflowWith => {
                let whole = e.whole_path().filter(|p| p.len() == 2);
                let bad = whole.filter(|p| p[0] == "secrets" && !is_name(&p[1]));
                let name = |p: &[String]| {
                    let rule = "1 to 63 of a-z, 0-9, `_` and `-`, beginning with a letter or digit";
                    format!("`{}`: `{}` is no name of a secret ({rule})", e.source(), shorten(&p[1]))
                };
                bad.map(name).or_else(|| whole.is_none().then(|| {
                    format!("{said} and more; write `${{{{ secrets.<name> }}}}` alone, as the value is known only where the step runs")
                }))
            }
            // `secrets` is told as an unknown name there.
            _ if e.reads("secrets") => None,
            _ => Some(format!("{said}, which nothing may be decided by; remove it")),
        };
        found.extend(told);
    }

    fn outputs(&self, u: &Use, e: &Expression, found: &mut Vec<String>) {
        if !e.reads("steps") || matches!(u.position, Position::HostCondition | Position::On) {
            return;
        }
        let said = format!("`{}`", e.source());
        if let Position::Parameter { parameter: p, .. } = u.position
            && !p.late
        {
            found.push(format!(
                "{said} reads an output, but `{}` is fixed when the plan is approved; use inputs, env or values",
                p.name
            ));
            return;
        }
        let filled = matches!(u.position, Position::Parameter { .. } | Position::Plugin);
        if filled && e.whole_path().is_none_or(|p| p.len() <= 3) {
            found.push(format!(
                "{said} computes with an output, which is filled in when the step runs; write \
                 `${{{{ steps.<id>.outputs.<name> }}}}` alone, and compute in conditions or scripts"
            ));
            return;
        }
        for path in e.paths().iter().filter(|p| p[0] == "steps") {
            let Some(id) = path.get(1) else {
                found.push(format!("{said} reads `steps` as a whole; name the step: `steps.<id>.outputs.<name>`"));
                continue;
            };
            let told = match path.get(2) {
                _ if self.dashed(u, id).is_some() => self.step(u, &said, id),
                Some(f) if f == "outputs" => self.step(u, &said, id).or_else(|| self.output(u, &said, id, path.get(3))),
                _ => Some(format!(
                    "{said} reads more of `{}` than its outputs; write `steps.<id>.outputs.<name>`",
                    shorten(id)
                )),
            };
            found.extend(told.filter(|t| !found.contains(t)));
        }
    }

    fn readable<'u>(&'u self, u: &'u Use) -> Vec<&'u str> {
        self.graph.ids.iter().chain(&u.before).map(String::as_str).collect()
    }

    /// `steps.my-step` is a subtraction of `step`: the id that was meant.
    fn dashed<'u>(&'u self, u: &'u Use, id: &str) -> Option<&'u str> {
        let known = self.readable(u);
        let meant = |k: &&str| k.strip_prefix(id).is_some_and(|rest| rest.starts_with(['-', '.']));
        if known.contains(&id) { None } else { known.into_iter().find(meant) }
    }

    /// Has the step that is read run before?
    fn step(&self, u: &Use, said: &str, id: &str) -> Option<String> {
        let local = u.before.iter().any(|b| b == id);
        if local {
            return u.always.then(|| {
                format!(
                    "{said}: an `always` step runs even if `{id}` before it did not; read it in a step without `always`"
                )
            });
        }
        if let Position::Parameter { rollback: true, .. } = u.position {
            return Some(format!(
                "{said}: there is no step `{}` before it in this rollback, and the flow's own steps do not run in one",
                shorten(id)
            ));
        }
        if !self.graph.has(id) {
            let known = self.readable(u);
            let near = suggestion(id, known.iter().copied());
            let near = self.dashed(u, id).map_or(near, |d| format!(" (write `steps[\"{d}\"]` for `{d}`)"));
            return Some(format!("{said}: there is no step `{}`{near}; steps are: {}", shorten(id), shown(&known)));
        }
        let step = u.step.as_deref()?;
        if step == id {
            return match u.position {
                Position::Until => None,
                _ => Some(format!("{said}: a step cannot read its own outputs; only `repeat.until` can")),
            };
        }
        if matches!(u.position, Position::Outputs) {
            return None;
        }
        if !self.graph.runs_before(id, step) {
            return Some(format!("{said}: `{id}` does not run before `{step}`; add it to the `needs` of `{step}`"));
        }
        if u.always && !self.graph.surely_ran(id, step) {
            return Some(format!(
                "{said}: `{id}` may not have run before `{step}`, and an `always` step must be able to run; read it in a \
                 step without `always`"
            ));
        }
        None
    }

    /// Can the step have such an output?
    fn output(&self, u: &Use, said: &str, id: &str, name: Option<&String>) -> Option<String> {
        if u.before.iter().any(|b| b == id) {
            return None;
        }
        let name = name?;
        let tell = |known: &[&str]| {
            let near = suggestion(name, known.iter().copied());
            Some(format!("{said}: `{id}` gives no `{}`{near}; it gives: {}", shorten(name), shown(known)))
        };
        match self.graph.gives(id) {
            Gives::Nothing => {
                Some(format!("{said}: `{id}` is a gateway and gives no outputs; read the step it decides by"))
            }
            Gives::Response if !RESPONSE_FIELDS.contains(&name.as_str()) => tell(&RESPONSE_FIELDS),
            Gives::Samples if !SAMPLES_FIELDS.contains(&name.as_str()) => tell(&SAMPLES_FIELDS),
            Gives::Hosts(ids) if !ids.contains(name) => {
                let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                tell(&ids)
            }
            _ => None,
        }
    }
}
