//! The `uses`, `with`, `if` and `timeout` of a step, checked against the table of actions.

use super::{
    MAX_EXPRESSIONS, MAX_TIMEOUT_S, Reader,
    names::{Code, Position, Use},
    seconds, traffic, truth,
};
use crate::{
    artifact::is_name,
    expression::{Expression, Template},
    flow::{
        Call, HostStep, StepKind, Subflow,
        actions::{self, Action, Kind, Parameter},
    },
    span::{Place, suggestion},
    yaml::{Fields, Node, Value, join, shorten},
};
use serde_json::{Map, Value as Json};
use std::collections::BTreeSet;

/// Where a step stands, which decides the actions it may use and the names it may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seat {
    Central,
    Host,
    Rollback,
}

/// What a step gets on top of the time its own parameters ask for.
const TIMEOUT_MARGIN_S: u64 = 30;
/// A plugin says itself how long it may take: its definition's time is put in when the plan is made.
const PLUGIN_TIMEOUT_S: u32 = 0;

/// A host step whose id may still have to be made unique.
pub(super) struct Read {
    pub step: HostStep,
    pub id_place: Place,
    /// The id was written, not taken from the action.
    pub named: bool,
}

/// `id`, or with the first running number that makes it new.
pub(super) fn free_id(id: &str, taken: &BTreeSet<String>) -> String {
    let numbered = (2..).map(|n| format!("{id}-{n}"));
    std::iter::once(id.to_string()).chain(numbered).find(|i| !taken.contains(i)).unwrap_or_default()
}

impl Reader<'_> {
    pub(super) fn host_step(&mut self, node: &Node, path: &str, seat: Seat) -> Option<Read> {
        let mut f = Fields::of(node, path, "a host step", self.problems)?;
        let id = f.take("id").map(|n| (n, n.as_word().filter(|t| is_step_id(t))));
        if let Some((n, None)) = &id {
            let rule = "1 to 63 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or digit";
            self.problems.add(n.place, &f.path_of("id"), format!("must be an id ({rule}), not {}", n.kind()));
        }
        let condition = self.condition(&mut f, "if", Position::HostCondition);
        let call = self.call(&mut f, seat);
        let always = f.take("always").is_some_and(|n| truth(n, &f.path_of("always"), self.problems));
        let required = f.take("required").is_some_and(|n| truth(n, &f.path_of("required"), self.problems));
        let traffic = call.as_ref().is_some_and(|c| c.uses == traffic::DRAIN || c.uses == traffic::ATTACH);
        if traffic {
            self.not_for_traffic(&mut f, call.as_ref().is_some_and(|c| c.uses == traffic::ATTACH));
        }
        let (place, named) = (id.as_ref().map_or(f.place, |(n, _)| n.place), id.is_some());
        f.finish(self.problems);
        let call = call?;
        let id = id.and_then(|(_, t)| t).unwrap_or_else(|| call.uses.clone());
        Some(Read { step: HostStep { id, condition, call, always, required }, id_place: place, named })
    }

    /// An expression that must be true or false, with or without `${{ }}` around it.
    pub(super) fn condition(&mut self, f: &mut Fields<'_>, key: &'static str, position: Position) -> Option<String> {
        let n = f.take(key)?;
        let path = f.path_of(key);
        let text = match &n.value {
            Value::Text(t) => t.trim(),
            Value::Bool(b) => return Some(b.to_string()),
            _ => {
                let text = format!("must be an expression such as `inputs.restart`, not {}", n.kind());
                self.problems.add(n.place, &path, text);
                return None;
            }
        };
        let inner = text.strip_prefix("${{").and_then(|t| t.strip_suffix("}}")).map_or(text, str::trim);
        if self.too_many(n.place, &path) {
            return None;
        }
        match Expression::compile(inner) {
            Ok(e) => {
                self.uses.push(Use::new(Code::Expression(e), position, n.place, &path, self.step.as_deref()));
                Some(inner.into())
            }
            Err(e) => {
                self.problems.add(n.place, &path, e.to_string());
                None
            }
        }
    }

    /// A step that is run once: a built-in action, a plugin or another flow.
    pub(super) fn central(&mut self, f: &mut Fields<'_>) -> Option<StepKind> {
        let name = f.take("uses").and_then(|n| n.as_text().map(|t| (n, t)));
        if let Some((n, flow)) = name.and_then(|(n, t)| t.strip_prefix("flow/").map(|t| (n, t))) {
            return self.subflow(f, n, flow).map(StepKind::Subflow);
        }
        self.call(f, Seat::Central).map(StepKind::Central)
    }

    fn subflow(&mut self, f: &mut Fields<'_>, uses: &Node, flow: &str) -> Option<Subflow> {
        let path = f.path_of("uses");
        let with = f.take("with").map(|n| self.free_map(n, &f.path_of("with"), Position::SubflowWith));
        if f.take("timeout").is_some() {
            let text = "a subflow has no `timeout` of its own; its steps have";
            self.problems.add(f.take("timeout").map_or(uses.place, |n| n.place), &f.path_of("timeout"), text);
        }
        if !is_name(flow) {
            let text = format!("`flow/{}` names no flow; write `flow/<name>` of a flow of this project", shorten(flow));
            self.problems.add(uses.place, &path, text);
            return None;
        }
        if self.flow == Some(flow) {
            self.problems.add(uses.place, &path, "a flow cannot use itself; to do it again write `repeat`");
            return None;
        }
        Some(Subflow { flow: flow.into(), with: with.unwrap_or_else(|| Some(Map::new()))? })
    }

    /// A map whose keys are somebody else's, with templates as values.
    pub(super) fn free_map(&mut self, node: &Node, path: &str, position: Position) -> Option<Map<String, Json>> {
        let Value::Map(entries) = &node.value else {
            self.problems.add(node.place, path, format!("must be a map of keys and values, not {}", node.kind()));
            return None;
        };
        let mut out = Map::new();
        for (key, n) in entries {
            let path = join(path, &shorten(&key.name));
            if key.name.is_empty() || key.name.len() > 63 {
                self.problems.add(key.place, &path, "a key has 1 to 63 characters; write a shorter one");
            }
            if self.templates(n, &path, position).is_some() {
                out.insert(key.name.clone(), n.to_json());
            }
        }
        Some(out)
    }

    /// Reading an expression costs much more than its text does.
    fn too_many(&mut self, place: Place, path: &str) -> bool {
        let over = self.uses.len() >= MAX_EXPRESSIONS;
        if over {
            self.over.get_or_insert((place, path.into()));
        }
        over || self.problems.full()
    }

    /// Notes the expressions in every text of a value, each with its own place, and says whether there are any. `None`
    /// if one cannot be read.
    fn templates(&mut self, n: &Node, path: &str, position: Position) -> Option<bool> {
        match &n.value {
            Value::Text(t) if t.contains("${{") && self.too_many(n.place, path) => None,
            Value::Text(t) if t.contains("${{") => match Template::compile(&Json::String(t.clone())) {
                Ok(t) => {
                    let computed = !t.expressions().is_empty();
                    self.uses.push(Use::new(Code::Template(t), position, n.place, path, self.step.as_deref()));
                    Some(computed)
                }
                Err(e) => {
                    self.problems.add(n.place, path, e.to_string());
                    None
                }
            },
            Value::List(l) => {
                let each = l.iter().enumerate().map(|(i, n)| self.templates(n, &format!("{path}[{i}]"), position));
                any(each.collect())
            }
            Value::Map(m) => {
                let each = m.iter().map(|(k, n)| self.templates(n, &join(path, &shorten(&k.name)), position));
                any(each.collect())
            }
            _ => Some(false),
        }
    }

    pub(super) fn call(&mut self, f: &mut Fields<'_>, seat: Seat) -> Option<Call> {
        let uses = f.take("uses");
        let with = f.take("with");
        let timeout = f.take("timeout").map(|n| (n, seconds(n, &f.path_of("timeout"), MAX_TIMEOUT_S, self.problems)));
        if let Some((n, Some(0))) = timeout {
            self.problems.add(n.place, &f.path_of("timeout"), "must be longer than 0s");
        }
        let timeout = timeout.and_then(|(_, s)| s);
        let Some(uses) = uses else {
            let text = format!("a step needs `uses: <action>`; actions here are: {}", allowed(seat));
            self.problems.add(f.place, &f.path, text);
            return None;
        };
        let path = f.path_of("uses");
        let Some(name) = uses.as_text() else {
            self.problems.add(uses.place, &path, format!("must be the name of an action, not {}", uses.kind()));
            return None;
        };
        if name.starts_with("flow/") || name.starts_with("plugin/") {
            if seat != Seat::Central {
                let text = format!(
                    "`{}` runs centrally, but all steps of a rollout must be host actions; make it a step of its own \
                     before or after the rollout",
                    shorten(name)
                );
                self.problems.add(uses.place, &path, text);
                return None;
            }
            return self.plugin(uses, name, &path, with, &f.path_of("with"), timeout);
        }
        let Some(action) = actions::find(name) else {
            let near = suggestion(name, actions::ACTIONS.iter().map(|a| a.name));
            let text = format!("there is no action `{}`{near}; actions here are: {}", shorten(name), allowed(seat));
            self.problems.add(uses.place, &path, text);
            return None;
        };
        match seat {
            Seat::Central if !action.central() => {
                let text = format!(
                    "`{name}` runs on hosts; put it into the `steps:` of a step with `waves:` (central actions are: {})",
                    allowed(seat)
                );
                self.problems.add(uses.place, &path, text);
            }
            Seat::Host | Seat::Rollback if !action.on_host() => {
                let text = format!(
                    "`{name}` runs centrally, but all steps of a rollout must be host actions; make it a step of its own \
                     before or after the rollout (host actions are: {})",
                    allowed(seat)
                );
                self.problems.add(uses.place, &path, text);
            }
            _ => {}
        }
        let with = self.with(with, uses.place, &f.path_of("with"), action, seat)?;
        let timeout_s = timeout.unwrap_or_else(|| default_timeout(action, &with));
        Some(Call { uses: name.into(), with, timeout_s })
    }

    fn plugin(
        &mut self,
        uses: &Node,
        name: &str,
        path: &str,
        with: Option<&Node>,
        path_of_with: &str,
        timeout: Option<u32>,
    ) -> Option<Call> {
        let (plugin, version) = match name.trim_start_matches("plugin/").split_once('@') {
            Some((n, v)) => (n, Some(v)),
            None => (name.trim_start_matches("plugin/"), None),
        };
        let fits = |v: &str| {
            (1..=64).contains(&v.len())
                && v.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'+' | b'_'))
        };
        let with = match with {
            None => Map::new(),
            Some(n) => self.free_map(n, path_of_with, Position::Plugin)?,
        };
        if !is_name(plugin) || version.is_some_and(|v| !fits(v)) {
            let text =
                format!("`{}` names no plugin; write `plugin/<name>` or `plugin/<name>@<version>`", shorten(name));
            self.problems.add(uses.place, path, text);
            return None;
        }
        Some(Call { uses: name.into(), with, timeout_s: timeout.unwrap_or(PLUGIN_TIMEOUT_S) })
    }

    fn with(
        &mut self,
        node: Option<&Node>,
        place: Place,
        path: &str,
        action: &'static Action,
        seat: Seat,
    ) -> Option<Map<String, Json>> {
        let mut out = Map::new();
        if let Some(node) = node {
            let mut f = Fields::of(node, path, "`with`", self.problems)?;
            for p in action.parameters {
                if let Some(n) = f.take(p.name)
                    && let Some(v) = self.parameter(n, &join(path, p.name), p, seat)
                {
                    out.insert(p.name.into(), v);
                }
            }
            let place_of = |name: &str| node.get(name).map_or(node.place, |n| n.place);
            if seat != Seat::Rollback && out.get("to").is_some_and(|v| v == "last_known_good") {
                let text =
                    "`last_known_good` is for steps under `rollback:`; here the release switches to its artifact";
                self.problems.add(place_of("to"), &join(path, "to"), text);
            }
            if action.parameters.is_empty() {
                if let Value::Map(m) = &node.value
                    && let Some((key, _)) = m.first()
                {
                    self.problems.add(key.place, path, format!("`{}` takes no parameters; remove `with`", action.name));
                }
            } else {
                f.finish(self.problems);
            }
            self.one_of(&out, action, &place_of, path);
        }
        let has = |name: &str| node.is_some_and(|n| n.get(name).is_some_and(|n| !matches!(n.value, Value::Null)));
        for p in action.parameters.iter().filter(|p| p.required && !has(p.name)) {
            let text = format!("`{}` needs the parameter `{}`: {}", action.name, p.name, p.doc);
            self.problems.add(node.map_or(place, |n| n.place), path, text);
        }
        if action.name == "service.restart" && !has("unit") && !has("command") {
            let text = "`service.restart` needs `unit: <systemd unit>` or `command: [program, argument]`";
            self.problems.add(node.map_or(place, |n| n.place), path, text);
        }
        Some(out)
    }

    fn one_of(&mut self, with: &Map<String, Json>, action: &Action, place_of: &dyn Fn(&str) -> Place, path: &str) {
        if action.name == "service.restart" && with.contains_key("unit") && with.contains_key("command") {
            self.problems.add(place_of("command"), path, "takes `unit` or `command`, not both; remove one");
        }
        if action.name == "script" && with.contains_key("user") && with.contains_key("account") {
            self.problems.add(place_of("account"), path, "takes `user` or `account`, not both; remove one");
        }
    }

    fn parameter(&mut self, n: &Node, path: &str, p: &'static Parameter, seat: Seat) -> Option<Json> {
        let value = written(n, p.kind);
        if p.kind == Kind::Script && value.as_str().is_some_and(|t| t.contains("${{")) {
            let text = "a script holds no `${{ }}`, as values could become code; pass them by `env:` or `args:`";
            self.problems.add(n.place, path, text);
            return None;
        }
        let position =
            Position::Parameter { host: seat != Seat::Central, rollback: seat == Seat::Rollback, parameter: p };
        let computed = self.templates(n, path, position)?;
        if !computed {
            // `$${{` stands for itself.
            let fixed = Template::compile(&value).ok().and_then(|t| t.fixed().cloned()).unwrap_or(value.clone());
            if let Err(e) = p.resolve(&fixed) {
                self.problems.add(n.place, path, e);
                return None;
            }
        } else if let (Kind::TextList, Json::Object(_)) | (Kind::TextMap, Json::Array(_)) = (p.kind, &value) {
            self.problems.add(n.place, path, format!("has the wrong shape: {}", n.kind()));
        }
        if p.name == "env" {
            self.environment(n, path);
        }
        Some(value)
    }

    fn environment(&mut self, n: &Node, path: &str) {
        let Value::Map(m) = &n.value else { return };
        for (key, _) in m {
            let name = key.name.as_str();
            let fits = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
            if !fits {
                let text =
                    format!("`{}` is not a name for the environment: use letters, digits and `_`", shorten(name));
                self.problems.add(key.place, path, text);
            } else if name.starts_with("WINDLASS_") || name == "TASK_KEY" {
                self.problems.add(key.place, path, format!("`{name}` is set by Windlass itself; use another name"));
            }
        }
    }
}

/// Whether one of them is true, if all are known.
fn any(each: Vec<Option<bool>>) -> Option<bool> {
    each.into_iter().try_fold(false, |a, b| Some(a | b?))
}

/// What the author wrote, as the kind of the parameter takes it: `8080` in an environment is text.
fn written(n: &Node, kind: Kind) -> Json {
    let word = |n: &Node| n.as_word().map_or_else(|| n.to_json(), Json::String);
    match (kind, &n.value) {
        (Kind::TextList, Value::List(l)) => Json::Array(l.iter().map(word).collect()),
        (Kind::TextMap, Value::Map(m)) => Json::Object(m.iter().map(|(k, n)| (k.name.clone(), word(n))).collect()),
        (Kind::Text | Kind::Script | Kind::Duration | Kind::Mode | Kind::OneOf(_), _) => word(n),
        _ => n.to_json(),
    }
}

/// Long enough for what the parameters ask for; an hour more where an expression says how long.
fn default_timeout(action: &Action, with: &Map<String, Json>) -> u32 {
    let asked = ["for", "within"].iter().filter_map(|k| with.get(*k)).filter_map(Json::as_str).next();
    let s = match asked {
        Some(t) if t.contains("${{") => 3600,
        Some(t) => actions::parse_duration(t).unwrap_or(0) + TIMEOUT_MARGIN_S,
        None => 0,
    };
    action.timeout_s.max(u32::try_from(s).unwrap_or(u32::MAX))
}

fn allowed(seat: Seat) -> String {
    let fits = |a: &&Action| if seat == Seat::Central { a.central() } else { a.on_host() };
    let more: &[&str] = if seat == Seat::Central { &["flow/<name>", "plugin/<name>@<version>"] } else { &[] };
    let all = actions::ACTIONS.iter().filter(fits).map(|a| a.name).chain(more.iter().copied());
    all.collect::<Vec<_>>().join(", ")
}

fn is_step_id(s: &str) -> bool {
    let b = s.as_bytes();
    (1..=63).contains(&b.len())
        && b[0].is_ascii_alphanumeric()
        && b.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-'))
}
