//! Steps: what every step has.

use super::{
    Link, LinkKind, MAX_STEPS, MAX_TIMEOUT_S, Placed, Reader, gateway, list, names::Position, read_name, seconds,
    truth, whole, word,
};
use crate::{
    flow::{Call, Confirm, Join, Phase, Repeat, Step, StepFailure, StepKind},
    yaml::{self, Fields, Node, Value, shorten},
};

pub(crate) const PHASES: [(&str, Phase); 4] = [
    ("prepare", Phase::Prepare),
    ("pre-release", Phase::PreRelease),
    ("release", Phase::Release),
    ("post-release", Phase::PostRelease),
];
pub(crate) const JOINS: [(&str, Join); 3] = [("all", Join::All), ("any", Join::Any), ("done", Join::Done)];
pub(crate) const FAILURES: [(&str, StepFailure); 4] = [
    ("pause", StepFailure::Pause),
    ("stop", StepFailure::Stop),
    ("rollback", StepFailure::Rollback),
    ("continue", StepFailure::Continue),
];
pub(crate) const CONFIRMS: [(&str, Confirm); 3] =
    [("none", Confirm::None), ("first", Confirm::First), ("each", Confirm::Each)];
pub(crate) const MAX_REPEATS: u64 = 1000;
const DEFAULT_EVERY_S: u32 = 10;
pub(crate) const MAX_PARALLEL: u64 = 1_000_000;

/// Which of its keys makes the step what it is.
enum Form<'n> {
    Call,
    Rollout,
    Gateway(&'n Node, &'static str, crate::flow::GatewayMode),
}

impl Reader<'_> {
    pub(super) fn steps(&mut self, node: &Node, path: &str) -> Vec<Placed> {
        let Some(items) = list(node, path, MAX_STEPS, "steps", self.problems) else { return Vec::new() };
        let mut steps: Vec<Placed> = Vec::new();
        for (i, n) in items.iter().enumerate() {
            let path = format!("{path}[{i}]");
            let step = self.step(n, &path);
            self.step = None;
            let Some(step) = step else { continue };
            if steps.iter().any(|s| s.step.id == step.step.id) {
                let text = format!("the id `{}` is used twice; give each step its own", shorten(&step.step.id));
                self.problems.add(step.place, &yaml::join(&path, "id"), text);
            }
            steps.push(step);
        }
        steps
    }

    fn step(&mut self, node: &Node, path: &str) -> Option<Placed> {
        let mut f = Fields::of(node, path, "a step", self.problems)?;
        let place = f.take("id").map_or(f.place, |n| n.place);
        let id = read_name(&mut f, "id", self.problems);
        self.step.clone_from(&id);
        let phase = word(&mut f, "phase", &PHASES, self.problems);
        let needs = self.needs(&mut f);
        let join = word(&mut f, "join", &JOINS, self.problems).unwrap_or_default();
        let form = self.form(&mut f);
        // With two kinds of key, or none, it is not known which of the others do not belong.
        let known = matches!(form, Some(Ok(_)));
        let mut step = Step {
            id: id.unwrap_or_default(),
            phase,
            needs,
            join,
            condition: None,
            on_failure: None,
            repeat: None,
            required: false,
            retry: None,
            on_timeout: None,
            // Stays when it cannot be read, so that steps which need it are not reported as well.
            kind: StepKind::Central(Call { uses: String::new(), with: serde_json::Map::new(), timeout_s: 0 }),
        };
        let kind = match form {
            Some(Ok(Form::Gateway(n, key, mode))) => {
                self.not_for_gateways(&mut f);
                self.gateway(n, &f.path_of(key), mode).map(StepKind::Gateway)
            }
            Some(Ok(form)) => {
                step.condition = self.condition(&mut f, "if", Position::Condition);
                step.on_failure = word(&mut f, "on_failure", &FAILURES, self.problems);
                step.repeat = f.take("repeat").and_then(|n| self.repeat(n, &f.path_of("repeat")));
                step.required = f.take("required").is_some_and(|n| truth(n, &f.path_of("required"), self.problems));
                let retry = f.take("retry");
                step.retry = retry.and_then(|n| self.retry(n, &f.path_of("retry")));
                step.on_timeout = word(&mut f, "on_timeout", &FAILURES, self.problems);
                if f.take("uses").and_then(Node::as_text).is_some_and(|u| u.starts_with("flow/")) {
                    self.not_for_subflows(&mut f);
                }
                match form {
                    Form::Rollout => self.rollout(&mut f).map(StepKind::Rollout),
                    _ => self.central(&mut f),
                }
            }
            _ => None,
        };
        if known {
            f.finish(self.problems);
        }
        let broken = kind.is_none();
        if let Some(kind) = kind {
            step.kind = kind;
        }
        (!step.id.is_empty()).then(|| Placed { step, place, path: path.into(), broken })
    }

    /// `Err` when it is told already.
    fn form<'n>(&mut self, f: &mut Fields<'n>) -> Option<Result<Form<'n>, ()>> {
        let rollout = f.take("waves").or(f.take("steps"));
        let uses = f.take("uses");
        let mut found: Vec<(&Node, Form<'n>)> = Vec::new();
        found.extend(uses.map(|n| (n, Form::Call)));
        found.extend(rollout.map(|n| (n, Form::Rollout)));
        for (key, mode) in gateway::MODES {
            // Beside `waves` it is the number of hosts at a time.
            if key == "parallel" && (rollout.is_some() || uses.is_some()) {
                continue;
            }
            if let Some(n) = f.take(key).filter(|n| key != "parallel" || !matches!(n.value, Value::Number(..))) {
                found.push((n, Form::Gateway(n, key, mode)));
            }
        }
        if found.len() > 1 {
            let text = "a step is one thing: an action (`uses`), a rollout (`waves` and `steps`) or a gateway \
                        (`exclusive`, `conditional`, `parallel`); make two steps of it";
            self.problems.add(found[1].0.place, &f.path, text);
            return Some(Err(()));
        }
        let form = found.pop().map(|(_, form)| form);
        if form.is_none() {
            let text = "a step needs `uses: <action>`, or `waves:` and `steps:` to roll out over the hosts, or \
                        `exclusive:`, `conditional:` or `parallel:` to branch";
            self.problems.add(f.place, &f.path, text);
        }
        form.map(Ok)
    }

    fn needs(&mut self, f: &mut Fields<'_>) -> Vec<String> {
        let mut on = Vec::new();
        let Some(n) = f.take("needs") else { return on };
        let path = f.path_of("needs");
        let items = if n.as_text().is_some() { std::slice::from_ref(n) } else { n.items() };
        if items.is_empty() && !matches!(n.value, Value::List(_)) {
            self.problems.add(n.place, &path, format!("must be a list of step ids, not {}", n.kind()));
        }
        if items.len() > MAX_STEPS {
            let text = format!("holds {} step ids, the limit is {MAX_STEPS}", items.len());
            self.problems.add(n.place, &path, text);
            return on;
        }
        for (i, item) in items.iter().enumerate() {
            let path = format!("{path}[{i}]");
            match item.as_word() {
                Some(t) if !on.contains(&t) => {
                    if let Some(by) = self.step.clone() {
                        self.links.push(Link { by, to: t.clone(), place: item.place, path, kind: LinkKind::Needs });
                    }
                    on.push(t);
                }
                Some(_) => self.problems.add(item.place, &path, "is listed twice; keep one"),
                None => {
                    self.problems.add(item.place, &path, format!("must be the id of a step, not {}", item.kind()));
                }
            }
        }
        on
    }

    fn not_for_gateways(&mut self, f: &mut Fields<'_>) {
        for (key, why) in [
            ("if", "a gateway has no `if`; put the condition into its branches, or into the steps they lead to"),
            (
                "on_failure",
                "a gateway does not fail: where an expression cannot be computed, a person picks the branch; \
                            remove `on_failure`",
            ),
            ("repeat", "a gateway is not repeated; repeat a step or a subflow"),
            ("required", "a gateway decides and does nothing that could be left out; remove `required`"),
            ("retry", "a gateway does not fail, so there is nothing to try again; remove `retry`"),
            ("on_timeout", "a gateway takes no time; remove `on_timeout`"),
        ] {
            if let Some(n) = f.take(key) {
                self.problems.add(n.place, &f.path_of(key), why);
            }
        }
    }

    fn not_for_subflows(&mut self, f: &mut Fields<'_>) {
        for (key, why) in [
            ("retry", "a subflow is not tried again as a whole; write `retry` at its steps, or `repeat` here"),
            ("on_timeout", "a subflow has no `timeout` of its own; write `on_timeout` at its steps"),
        ] {
            if let Some(n) = f.take(key) {
                self.problems.add(n.place, &f.path_of(key), why);
            }
        }
    }

    fn repeat(&mut self, node: &Node, path: &str) -> Option<Repeat> {
        let mut f = Fields::of(node, path, "`repeat`", self.problems)?;
        for key in ["until", "max"] {
            if f.take(key).is_none() {
                let text =
                    format!("the key `{key}` is missing; write `repeat: {{ until: <expression>, max: <runs> }}`");
                self.problems.add(f.place, path, text);
            }
        }
        let until = self.condition(&mut f, "until", Position::Until);
        if let (Some(u), Some(n)) = (&until, f.take("until"))
            && !crate::expression::references(u, "steps")
        {
            let text = format!(
                "`{}` reads no outputs, so it never changes; read the step's own, such as `steps.<id>.outputs.status`",
                shorten(u)
            );
            self.problems.add(n.place, &f.path_of("until"), text);
        }
        let max = f.take("max").and_then(|n| whole(n, &f.path_of("max"), 1, MAX_REPEATS, self.problems));
        let every = f.take("every").map(|n| seconds(n, &f.path_of("every"), MAX_TIMEOUT_S, self.problems));
        f.finish(self.problems);
        Some(Repeat { until: until?, max: max?, every_s: every.flatten().unwrap_or(DEFAULT_EVERY_S) })
    }

    /// What the flow gives as a subflow.
    pub(super) fn outputs(&mut self, node: &Node, path: &str) -> std::collections::BTreeMap<String, serde_json::Value> {
        let with = self.free_map(node, path, Position::Outputs);
        with.map(|m| m.into_iter().collect()).unwrap_or_default()
    }
}
