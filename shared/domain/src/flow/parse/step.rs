//! Steps: what every step has, rollouts with their host steps, and rollbacks.

use super::{
    Link, LinkKind, MAX_HOST_STEPS, MAX_STEPS, MAX_TIMEOUT_S, Placed, Reader, call, gateway, list,
    names::{Code, Position, Use},
    read_name, seconds, whole, word,
};
use crate::{
    expression::Template,
    flow::{Budget, Call, Confirm, HostStep, Join, Phase, Repeat, Rollback, Rollout, Step, StepFailure, StepKind},
    selector::Selector,
    yaml::{self, Fields, Node, Value, shorten},
};
use std::collections::BTreeSet;

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
        let confirm = word(f, "confirm", &CONFIRMS, self.problems).unwrap_or_default();
        let bake = f.take("bake").map(|n| seconds(n, &f.path_of("bake"), MAX_TIMEOUT_S, self.problems));
        let budget = f.take("budget").map(|n| self.budget(n, &f.path_of("budget")));
        let parallel = f.take("parallel").map(|n| whole(n, &f.path_of("parallel"), 0, MAX_PARALLEL, self.problems));
        let on = f.take("on").and_then(|n| self.on(n, &f.path_of("on")));
        let steps = match f.take("steps") {
            None => {
                self.problems.add(f.place, &f.path, "the key `steps` is missing: what to do on each host of a wave");
                None
            }
            Some(n) => Some(self.host_steps(n, &f.path_of("steps"), call::Seat::Host)),
        };
        Some(Rollout {
            waves: waves?,
            confirm,
            bake_s: bake.flatten().unwrap_or(0),
            probes: None,
            group_by: None,
            canary: None,
            stagger: None,
            budget: budget.unwrap_or_default(),
            parallel: parallel.flatten().unwrap_or(0),
            on,
            steps: steps?,
        })
    }

    /// A selector, which may hold expressions.
    fn on(&mut self, n: &Node, path: &str) -> Option<String> {
        let Some(text) = n.as_text() else {
            self.problems.add(n.place, path, format!("must be a selector such as \"role=web\", not {}", n.kind()));
            return None;
        };
        let wrong = match Template::compile(&serde_json::json!(text)) {
            Err(e) => Some(e.to_string()),
            Ok(t) => match t.fixed().and_then(serde_json::Value::as_str) {
                Some(fixed) => {
                    let read = fixed.parse::<Selector>();
                    read.err().map(|e| format!("is not a selector: {e}; write for example \"role=web, !old\""))
                }
                None => {
                    self.uses.push(Use::new(Code::Template(t), Position::On, n.place, path, self.step.as_deref()));
                    None
                }
            },
        };
        match wrong {
            Some(text) => {
                self.problems.add(n.place, path, text);
                None
            }
            None => Some(text.into()),
        }
    }

    fn budget(&mut self, node: &Node, path: &str) -> Budget {
        let Some(mut f) = Fields::of(node, path, "a budget", self.problems) else { return Budget::default() };
        let hosts = f.take("hosts").and_then(|n| whole(n, &f.path_of("hosts"), 0, 1_000_000, self.problems));
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
        Budget { hosts, percent, ..Budget::default() }
    }

    fn host_steps(&mut self, node: &Node, path: &str, seat: call::Seat) -> Vec<HostStep> {
        let Some(items) = list(node, path, MAX_HOST_STEPS, "host steps", self.problems) else { return Vec::new() };
        let mut ids = BTreeSet::new();
        let mut steps = Vec::new();
        for (i, n) in items.iter().enumerate() {
            let begun = self.uses.len();
            let Some(mut step) = self.host_step(n, &format!("{path}[{i}]"), seat) else { continue };
            if step.named && ids.contains(&step.step.id) {
                let text = format!("the id `{}` is used twice here; give each step its own", shorten(&step.step.id));
                self.problems.add(step.id_place, &format!("{path}[{i}].id"), text);
            }
            step.step.id = call::free_id(&step.step.id, &ids);
            for u in &mut self.uses[begun..] {
                u.before.extend(ids.iter().cloned());
                u.always = step.step.always;
            }
            ids.insert(step.step.id.clone());
            steps.push(step.step);
        }
        steps
    }

    pub(super) fn rollback(&mut self, node: &Node, path: &str) -> Rollback {
        let Some(mut f) = Fields::of(node, path, "`rollback`", self.problems) else { return Rollback::default() };
        let mut steps = |f: &mut Fields<'_>, key| {
            f.take(key).map(|n| self.host_steps(n, &f.path_of(key), call::Seat::Rollback)).unwrap_or_default()
        };
        let rollback =
            Rollback { normal: steps(&mut f, "normal"), emergency: steps(&mut f, "emergency"), ..Rollback::default() };
        f.finish(self.problems);
        rollback
    }

    /// What the flow gives as a subflow.
    pub(super) fn outputs(&mut self, node: &Node, path: &str) -> std::collections::BTreeMap<String, serde_json::Value> {
        let with = self.free_map(node, path, Position::Outputs);
        with.map(|m| m.into_iter().collect()).unwrap_or_default()
    }
}
