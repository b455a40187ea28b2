//! YAML to [`Flow`], with the place in every error and as many errors at once as can be told.

use super::{
    Budget, Call, Confirm, Flow, HostStep, Input, InputKind, InputRules, Join, OnFailure, Phase, Rollback, Rollout,
    Step, StepKind,
    actions::parse_duration,
    calls::{self, Reading, Seat},
};
use crate::{
    artifact::is_name,
    span::{Place, Problem, suggestion},
    yaml::{self, Fields, Node, Problems, Value, shorten},
};
use std::collections::{BTreeMap, BTreeSet};

/// What is wrong with a flow, where, and what to write instead.
pub type FlowError = Problem;

const MAX_STEPS: usize = 200;
const MAX_HOST_STEPS: usize = 100;
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
    let inputs = f.take("inputs").map(|n| read_inputs(n, &f.path_of("inputs"), problems)).unwrap_or_default();
    let on_failure = word(
        &mut f,
        "on_failure",
        &[("pause", OnFailure::Pause), ("stop", OnFailure::Stop), ("rollback", OnFailure::Rollback)],
        problems,
    );
    let mut r = Reader { inputs, problems };
    let steps = match f.take("steps") {
        Some(n) => r.steps(n, &f.path_of("steps")),
        None => {
            r.problems.add(f.place, &f.path, "a flow needs `steps:` with at least one step");
            Vec::new()
        }
    };
    let rollback = f.take("rollback").map(|n| r.rollback(n, &f.path_of("rollback"))).unwrap_or_default();
    let Reader { inputs, problems } = r;
    f.finish(problems);
    Some(Flow {
        name: name?,
        inputs,
        on_failure: on_failure.unwrap_or_default(),
        steps,
        rollback,
        outputs: BTreeMap::new(),
        scopes: BTreeMap::new(),
    })
}

pub(crate) fn read_name(f: &mut Fields<'_>, key: &'static str, problems: &mut Problems) -> Option<String> {
    match f.take(key) {
        None => {
            problems.add(f.place, &f.path, format!("the key `{key}` is missing; add `{key}: <name>`"));
            None
        }
        Some(n) => match n.as_word() {
            Some(t) if is_name(&t) => Some(t),
            _ => {
                let rule = "1 to 63 of a-z, 0-9, `_` and `-`, beginning with a letter or digit";
                problems.add(n.place, &f.path_of(key), format!("must be a name ({rule}), not {}", n.kind()));
                None
            }
        },
    }
}

fn read_inputs(node: &Node, path: &str, problems: &mut Problems) -> BTreeMap<String, Input> {
    let mut out = BTreeMap::new();
    let Value::Map(entries) = &node.value else {
        problems.add(node.place, path, format!("must be a map of inputs, not {}", node.kind()));
        return out;
    };
    for (key, n) in entries {
        let path = yaml::join(path, &shorten(&key.name));
        let identifier = key.name.len() <= 63
            && key.name.starts_with(|c: char| c.is_ascii_alphabetic())
            && key.name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        if !identifier {
            let rule = "letters, digits and `_`, beginning with a letter, so that expressions can say `inputs.<name>`";
            problems.add(key.place, &path, format!("an input's name has {rule}"));
        }
        if let Some(input) = read_input(n, &path, problems) {
            out.insert(key.name.clone(), input);
        }
    }
    out
}

fn read_input(node: &Node, path: &str, problems: &mut Problems) -> Option<Input> {
    let mut f = Fields::of(node, path, "an input", problems)?;
    let kinds = [
        ("string", InputKind::String),
        ("number", InputKind::Number),
        ("boolean", InputKind::Boolean),
        ("choice", InputKind::Choice),
    ];
    if f.take("type").is_none() {
        problems.add(f.place, path, "the key `type` is missing; write string, number, boolean or choice");
    }
    let kind = word(&mut f, "type", &kinds, problems);
    let options_node = f.take("options");
    let mut options = Vec::new();
    if let Some(n) = options_node {
        match &n.value {
            Value::List(l) if !l.is_empty() && l.iter().all(|n| n.as_word().is_some()) => {
                options.extend(l.iter().filter_map(Node::as_word));
            }
            _ => problems.add(n.place, &f.path_of("options"), "must be a list of at least one text"),
        }
    }
    match (kind, options_node) {
        (Some(InputKind::Choice), None) => {
            problems.add(f.place, path, "an input of type choice needs `options: [...]`");
        }
        (Some(k), Some(n)) if k != InputKind::Choice => {
            problems.add(n.place, &f.path_of("options"), "only an input of type choice has options; remove them");
        }
        _ => {}
    }
    let description = match f.take("description") {
        None => String::new(),
        Some(n) => n.as_word().unwrap_or_else(|| {
            problems.add(n.place, &f.path_of("description"), format!("must be text, not {}", n.kind()));
            String::new()
        }),
    };
    let default = f.take("default");
    let path_of_default = f.path_of("default");
    f.finish(problems);
    let mut input = Input { kind: kind?, default: None, options, description, rules: InputRules::default() };
    if let Some(n) = default {
        // A choice such as 1.10 was meant as it was written.
        let value = match (input.kind, n.as_word()) {
            (InputKind::Choice, Some(w)) => serde_json::Value::String(w),
            _ => n.to_json(),
        };
        match input.check(&value) {
            Ok(()) => input.default = Some(value),
            Err(why) => problems.add(n.place, &path_of_default, format!("the default {why}")),
        }
    }
    Some(input)
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

pub(super) fn seconds(n: &Node, path: &str, most: u64, problems: &mut Problems) -> Option<u32> {
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

fn whole(n: &Node, path: &str, most: u64, problems: &mut Problems) -> Option<u32> {
    let found = match &n.value {
        Value::Number(x, _) => x.as_u64().filter(|x| *x <= most),
        _ => None,
    };
    if found.is_none() {
        problems.add(n.place, path, format!("must be a whole number from 0 to {most}, not {}", n.kind()));
    }
    found.and_then(|x| u32::try_from(x).ok())
}

fn step(id: String, phase: Option<Phase>, needs: Vec<String>, condition: Option<String>, kind: StepKind) -> Step {
    Step { id, phase, needs, join: Join::All, condition, on_failure: None, repeat: None, kind }
}

struct Reader<'p> {
    inputs: BTreeMap<String, Input>,
    problems: &'p mut Problems,
}

/// A `needs` entry with its place, to be resolved when all ids are known.
struct Need {
    by: Option<String>,
    on: String,
    place: Place,
    path: String,
}

impl Reader<'_> {
    fn reading(&mut self) -> Reading<'_> {
        Reading { inputs: &self.inputs, problems: self.problems }
    }

    fn steps(&mut self, node: &Node, path: &str) -> Vec<Step> {
        let Some(items) = self.list(node, path, MAX_STEPS, "steps") else { return Vec::new() };
        let mut steps: Vec<Step> = Vec::new();
        let mut needs = Vec::new();
        let mut places = Vec::new();
        for (i, n) in items.iter().enumerate() {
            let path = format!("{path}[{i}]");
            let Some((step, id_place)) = self.step(n, &path, &mut needs) else { continue };
            if steps.iter().any(|s| s.id == step.id) {
                let text = format!("the id `{}` is used twice; give each step its own", shorten(&step.id));
                self.problems.add(id_place, &yaml::join(&path, "id"), text);
            }
            steps.push(step);
            places.push(id_place);
        }
        self.needs(&steps, needs);
        if let Some(cycle) = cycle(&steps) {
            let at = steps.iter().position(|s| s.id == cycle[0]).unwrap_or(0);
            let text = format!("steps need each other in a circle: {}; remove one `needs`", cycle.join(" -> "));
            self.problems.add(places[at], &format!("{path}[{at}].needs"), text);
        }
        steps
    }

    fn list<'n>(&mut self, node: &'n Node, path: &str, most: usize, what: &str) -> Option<&'n [Node]> {
        match &node.value {
            Value::List(l) if l.is_empty() => {
                self.problems.add(node.place, path, format!("is empty; add at least one of the {what}"));
                None
            }
            Value::List(l) if l.len() > most => {
                self.problems.add(node.place, path, format!("holds {} {what}, the limit is {most}", l.len()));
                None
            }
            Value::List(l) => Some(l),
            _ => {
                self.problems.add(node.place, path, format!("must be a list of {what}, not {}", node.kind()));
                None
            }
        }
    }

    fn needs(&mut self, steps: &[Step], needs: Vec<Need>) {
        for n in needs {
            if n.by.as_ref() == Some(&n.on) {
                self.problems.add(n.place, &n.path, "a step cannot need itself; remove it");
            } else if !steps.iter().any(|s| s.id == n.on) {
                let ids: Vec<&str> = steps.iter().map(|s| s.id.as_str()).collect();
                let near = suggestion(&n.on, ids.iter().copied());
                let text = format!("there is no step `{}`{near}; steps are: {}", shorten(&n.on), ids.join(", "));
                self.problems.add(n.place, &n.path, text);
            }
        }
    }

    fn step(&mut self, node: &Node, path: &str, needs: &mut Vec<Need>) -> Option<(Step, Place)> {
        let mut f = Fields::of(node, path, "a step", self.problems)?;
        let id_place = f.take("id").map_or(f.place, |n| n.place);
        let id = read_name(&mut f, "id", self.problems);
        let phases = [
            ("prepare", Phase::Prepare),
            ("pre-release", Phase::PreRelease),
            ("release", Phase::Release),
            ("post-release", Phase::PostRelease),
        ];
        let phase = word(&mut f, "phase", &phases, self.problems);
        let mut on = Vec::new();
        if let Some(n) = f.take("needs") {
            let path = f.path_of("needs");
            let items = if n.as_text().is_some() { std::slice::from_ref(n) } else { n.items() };
            if items.is_empty() && !matches!(n.value, Value::List(_)) {
                self.problems.add(n.place, &path, format!("must be a list of step ids, not {}", n.kind()));
            }
            for (i, item) in items.iter().enumerate() {
                let path = format!("{path}[{i}]");
                match item.as_word() {
                    Some(t) if !on.contains(&t) => {
                        needs.push(Need { by: id.clone(), on: t.clone(), place: item.place, path });
                        on.push(t);
                    }
                    Some(_) => self.problems.add(item.place, &path, "is listed twice; keep one"),
                    None => {
                        self.problems.add(item.place, &path, format!("must be the id of a step, not {}", item.kind()));
                    }
                }
            }
        }
        let condition = self.reading().condition(&mut f, Seat::Central);
        let uses = f.take("uses");
        let waves = f.take("waves");
        let rollout_steps = f.take("steps");
        let kind = match (uses, waves.or(rollout_steps)) {
            (Some(_), Some(n)) => {
                let text =
                    "a step either `uses:` an action or rolls out with `waves:` and `steps:`; make two steps of it";
                self.problems.add(n.place, path, text);
                None
            }
            (None, None) => {
                let text = "a step needs `uses: <action>`, or `waves:` and `steps:` to roll out over the hosts";
                self.problems.add(f.place, path, text);
                None
            }
            (Some(_), None) => self.reading().call(&mut f, Seat::Central).map(StepKind::Central),
            (None, Some(_)) => self.rollout(&mut f).map(StepKind::Rollout),
        };
        // With both kinds of key it is not known which of them do not belong.
        if uses.is_none() || waves.or(rollout_steps).is_none() {
            f.finish(self.problems);
        }
        match (id, kind) {
            (Some(id), Some(kind)) => Some((step(id, phase, on, condition, kind), id_place)),
            (Some(id), None) => {
                // Stays known, so that steps which need it are not reported as well.
                let call = Call { uses: String::new(), with: serde_json::Map::new(), timeout_s: 0 };
                Some((step(id, phase, on, condition, StepKind::Central(call)), id_place))
            }
            (None, _) => None,
        }
    }

    fn rollout(&mut self, f: &mut Fields<'_>) -> Option<Rollout> {
        let waves = match f.take("waves") {
            None => {
                let text =
                    "the key `waves` is missing; write for example `waves: \"1 10% *2\"`, or \"100%\" for all at once";
                self.problems.add(f.place, &f.path, text);
                None
            }
            Some(n) => match n.as_word().map(|w| w.parse()) {
                Some(Ok(w)) => Some(w),
                Some(Err(e)) => {
                    self.problems.add(n.place, &f.path_of("waves"), format!("{e}"));
                    None
                }
                None => {
                    let text = format!("must be a wave expression such as \"1 10% *2\", not {}", n.kind());
                    self.problems.add(n.place, &f.path_of("waves"), text);
                    None
                }
            },
        };
        let confirms = [("none", Confirm::None), ("first", Confirm::First), ("each", Confirm::Each)];
        let confirm = word(f, "confirm", &confirms, self.problems).unwrap_or_default();
        let bake = f.take("bake").map(|n| seconds(n, &f.path_of("bake"), MAX_TIMEOUT_S, self.problems));
        let budget = f.take("budget").map(|n| self.budget(n, &f.path_of("budget")));
        let parallel = f.take("parallel").map(|n| whole(n, &f.path_of("parallel"), 1_000_000, self.problems));
        let steps = match f.take("steps") {
            None => {
                self.problems.add(f.place, &f.path, "the key `steps` is missing: what to do on each host of a wave");
                None
            }
            Some(n) => Some(self.host_steps(n, &f.path_of("steps"), Seat::Host)),
        };
        Some(Rollout {
            on: None,
            waves: waves?,
            confirm,
            bake_s: bake.flatten().unwrap_or(0),
            budget: budget.unwrap_or_default(),
            parallel: parallel.flatten().unwrap_or(0),
            steps: steps?,
        })
    }

    fn budget(&mut self, node: &Node, path: &str) -> Budget {
        let Some(mut f) = Fields::of(node, path, "a budget", self.problems) else { return Budget::default() };
        let hosts = f.take("hosts").and_then(|n| whole(n, &f.path_of("hosts"), 1_000_000, self.problems));
        let percent = f.take("percent").and_then(|n| {
            let word = n.as_word().unwrap_or_default();
            let found = word.trim_end_matches('%').parse::<f64>().ok().filter(|p| (0.0..=100.0).contains(p));
            if found.is_none() {
                let text = format!("must be a percentage from 0 to 100, not {}", n.kind());
                self.problems.add(n.place, &f.path_of("percent"), text);
            }
            found
        });
        f.finish(self.problems);
        Budget { hosts, percent }
    }

    fn host_steps(&mut self, node: &Node, path: &str, seat: Seat) -> Vec<HostStep> {
        let Some(items) = self.list(node, path, MAX_HOST_STEPS, "host steps") else { return Vec::new() };
        let mut ids = BTreeSet::new();
        let mut steps = Vec::new();
        for (i, n) in items.iter().enumerate() {
            if let Some(mut step) = self.reading().host_step(n, &format!("{path}[{i}]"), seat) {
                if step.named && ids.contains(&step.step.id) {
                    let text =
                        format!("the id `{}` is used twice here; give each step its own", shorten(&step.step.id));
                    self.problems.add(step.id_place, &format!("{path}[{i}].id"), text);
                }
                step.step.id = calls::free_id(&step.step.id, &ids);
                ids.insert(step.step.id.clone());
                steps.push(step.step);
            }
        }
        steps
    }

    fn rollback(&mut self, node: &Node, path: &str) -> Rollback {
        let Some(mut f) = Fields::of(node, path, "`rollback`", self.problems) else { return Rollback::default() };
        let mut steps = |f: &mut Fields<'_>, key| {
            f.take(key).map(|n| self.host_steps(n, &f.path_of(key), Seat::Rollback)).unwrap_or_default()
        };
        let rollback = Rollback { normal: steps(&mut f, "normal"), emergency: steps(&mut f, "emergency") };
        f.finish(self.problems);
        rollback
    }
}

/// A circle of `needs`, first id repeated at the end; `None` if there is none. Takes steps away until none is left that
/// needs nothing, so it is linear and cannot recurse.
fn cycle(steps: &[Step]) -> Option<Vec<String>> {
    let index: BTreeMap<&str, usize> = steps.iter().enumerate().map(|(i, s)| (s.id.as_str(), i)).collect();
    let needs: Vec<Vec<usize>> = steps
        .iter()
        .enumerate()
        .map(|(i, s)| s.needs.iter().filter_map(|n| index.get(n.as_str()).copied()).filter(|n| *n != i).collect())
        .collect();
    let mut left: BTreeSet<usize> = (0..steps.len()).collect();
    loop {
        let free: Vec<usize> = left.iter().copied().filter(|i| needs[*i].iter().all(|n| !left.contains(n))).collect();
        if free.is_empty() {
            break;
        }
        free.iter().for_each(|i| {
            left.remove(i);
        });
    }
    // Every step that is left needs another one that is left: following them must come round.
    let mut at = *left.first()?;
    let mut seen = Vec::new();
    while !seen.contains(&at) {
        seen.push(at);
        at = *needs[at].iter().find(|n| left.contains(n))?;
    }
    let from = seen.iter().position(|s| *s == at)?;
    seen.push(at);
    Some(seen[from..].iter().map(|i| steps[*i].id.clone()).collect())
}

#[cfg(test)]
mod tests;
