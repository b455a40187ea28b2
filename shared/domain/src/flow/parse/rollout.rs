//! Rollouts: which hosts go together and when, how many may fail, and what is done on each.

use super::{
    MAX_HOST_STEPS, MAX_TIMEOUT_S, Reader, call, list,
    names::{Code, Position, Use},
    seconds,
    step::{CONFIRMS, MAX_PARALLEL},
    whole, word,
};
use crate::{
    expression::Template,
    flow::{Budget, HostStep, Rollout},
    selector::Selector,
    work::Stagger,
    yaml::{Fields, Node, Value, shorten},
};
use std::collections::BTreeSet;

impl Reader<'_> {
    pub(super) fn rollout(&mut self, f: &mut Fields<'_>) -> Option<Rollout> {
        let waves = match f.take("waves") {
            None => {
                let text =
                    "the key `waves` is missing; write for example `waves: \"1 10% *2\"`, or \"100%\" for all at once";
                self.problems.add(f.place, &f.path, text);
                None
            }
            Some(n) => self.waves(n, &f.path_of("waves")),
        };
        let confirm = word(f, "confirm", &CONFIRMS, self.problems).unwrap_or_default();
        let bake = f.take("bake").map(|n| self.bake(n, &f.path_of("bake"))).unwrap_or_default();
        let budget = f.take("budget").map(|n| self.budget(n, &f.path_of("budget"), true));
        let parallel = f.take("parallel").map(|n| whole(n, &f.path_of("parallel"), 0, MAX_PARALLEL, self.problems));
        let on = f.take("on").and_then(|n| self.on(n, &f.path_of("on")));
        let group_by = f.take("group_by").and_then(|n| self.label(n, &f.path_of("group_by")));
        let canary = f.take("canary").and_then(|n| self.canary(n, &f.path_of("canary")));
        let stagger = f.take("stagger").and_then(|n| self.stagger(n, &f.path_of("stagger")));
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
            bake_s: bake.0,
            probes: bake.1,
            group_by,
            canary,
            stagger,
            budget: budget.unwrap_or_default(),
            parallel: parallel.flatten().unwrap_or(0),
            on,
            steps: steps?,
        })
    }

    pub(super) fn waves(&mut self, n: &Node, path: &str) -> Option<crate::wave::WaveExpression> {
        match n.as_word().map(|w| w.parse()) {
            Some(Ok(w)) => Some(w),
            Some(Err(e)) => {
                self.problems.add(n.place, path, format!("{e}"));
                None
            }
            None => {
                let text = format!("must be a wave expression such as \"1 10% *2\", not {}", n.kind());
                self.problems.add(n.place, path, text);
                None
            }
        }
    }

    /// A selector, which may hold expressions.
    fn on(&mut self, n: &Node, path: &str) -> Option<String> {
        let text = self.selector_text(n, path)?;
        let wrong = match Template::compile(&serde_json::json!(text)) {
            Err(e) => Some(e.to_string()),
            Ok(t) => match t.fixed().and_then(serde_json::Value::as_str) {
                Some(fixed) => not_a_selector(fixed),
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

    /// A selector without expressions: which hosts show a release first is not for a request to say.
    fn canary(&mut self, n: &Node, path: &str) -> Option<String> {
        let text = self.selector_text(n, path)?;
        let wrong = match text.contains("${{") {
            true => Some(
                "holds no expressions: label the hosts that go first, and write that label, such as \"canary=yes\""
                    .into(),
            ),
            false => not_a_selector(text),
        };
        match wrong {
            Some(text) => {
                self.problems.add(n.place, path, text);
                None
            }
            None => Some(text.into()),
        }
    }

    fn selector_text<'n>(&mut self, n: &'n Node, path: &str) -> Option<&'n str> {
        let text = n.as_text();
        if text.is_none() {
            self.problems.add(n.place, path, format!("must be a selector such as \"role=web\", not {}", n.kind()));
        }
        text
    }

    fn label(&mut self, n: &Node, path: &str) -> Option<String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        let found = n.as_text().filter(|t| (1..=253).contains(&t.len()) && t.chars().all(fits));
        if found.is_none() {
            let text = format!("must be the name of a label such as `zone`, not {}", n.kind());
            self.problems.add(n.place, path, text);
        }
        found.map(Into::into)
    }

    /// `5s`, or how far apart and how much more by chance.
    fn stagger(&mut self, node: &Node, path: &str) -> Option<Stagger> {
        if !matches!(node.value, Value::Map(_)) {
            let every_s = super::policy::positive(node, path, MAX_TIMEOUT_S, self.problems)?;
            return Some(Stagger { every_s, jitter_s: 0 });
        }
        let mut f = Fields::of(node, path, "`stagger`", self.problems)?;
        let mut time = |f: &mut Fields<'_>, key| {
            f.take(key).map(|n| seconds(n, &f.path_of(key), MAX_TIMEOUT_S, self.problems).unwrap_or(1))
        };
        let (every, jitter) = (time(&mut f, "every"), time(&mut f, "jitter"));
        f.finish(self.problems);
        let stagger = Stagger { every_s: every.unwrap_or(0), jitter_s: jitter.unwrap_or(0) };
        if stagger.every_s == 0 && stagger.jitter_s == 0 {
            let text = "spreads nothing; write `stagger: 5s`, or `stagger: { every: 5s, jitter: 10s }`";
            self.problems.add(node.place, path, text);
            return None;
        }
        Some(stagger)
    }

    pub(super) fn budget(&mut self, node: &Node, path: &str, waves: bool) -> Budget {
        let Some(mut f) = Fields::of(node, path, "a budget", self.problems) else { return Budget::default() };
        let (hosts, percent) = self.bears(&mut f);
        let mut budget = Budget { hosts, percent, ..Budget::default() };
        if waves && let Some(n) = f.take("wave") {
            let path = f.path_of("wave");
            if let Some(mut f) = Fields::of(n, &path, "the budget of a wave", self.problems) {
                (budget.wave_hosts, budget.wave_percent) = self.bears(&mut f);
                f.finish(self.problems);
                if n.get("hosts").is_none() && n.get("percent").is_none() {
                    let text = "limits nothing; write `wave: { hosts: 1 }` or `wave: { percent: 10% }`";
                    self.problems.add(n.place, &path, text);
                }
            }
        }
        f.finish(self.problems);
        budget
    }

    fn bears(&mut self, f: &mut Fields<'_>) -> (Option<u32>, Option<f64>) {
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
        (hosts, percent)
    }

    pub(super) fn host_steps(&mut self, node: &Node, path: &str, seat: call::Seat) -> Vec<HostStep> {
        let Some(items) = list(node, path, MAX_HOST_STEPS, "host steps", self.problems) else { return Vec::new() };
        let mut ids = BTreeSet::new();
        // What load balancers do is no step of the host's task and gives no outputs.
        let mut before = Vec::new();
        let mut steps = Vec::new();
        let mut traffic = super::traffic::Order::default();
        for (i, n) in items.iter().enumerate() {
            let begun = self.uses.len();
            let path = format!("{path}[{i}]");
            let Some(mut step) = self.host_step(n, &path, seat) else {
                traffic.broken();
                continue;
            };
            if step.named && ids.contains(&step.step.id) {
                let text = format!("the id `{}` is used twice here; give each step its own", shorten(&step.step.id));
                self.problems.add(step.id_place, &format!("{path}.id"), text);
            }
            step.step.id = call::free_id(&step.step.id, &ids);
            for u in &mut self.uses[begun..] {
                u.before.clone_from(&before);
                u.always = step.step.always;
            }
            ids.insert(step.step.id.clone());
            if traffic.see(&step.step, n, &path, self.problems) {
                before.push(step.step.id.clone());
            }
            steps.push(step.step);
        }
        traffic.finish(node, path, self.problems);
        steps
    }
}

fn not_a_selector(text: &str) -> Option<String> {
    let read = text.parse::<Selector>();
    read.err().map(|e| format!("is not a selector: {e}; write for example \"role=web, !old\""))
}
