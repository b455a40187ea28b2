//! `lb.drain` and `lb.attach`: they frame the steps of a rollout, and whatever is taken off is brought back.

use super::Reader;
use crate::{
    flow::HostStep,
    plan::segment::MAX_LOAD_BALANCERS,
    span::Place,
    yaml::{Fields, Node, Problems, join, shorten},
};

pub(crate) const DRAIN: &str = "lb.drain";
pub(crate) const ATTACH: &str = "lb.attach";

/// What has been seen of a list of host steps.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// The load balancer each takes a host off, or brings it back to; `None`: all of the environment.
    drained: Vec<(Option<String>, Place)>,
    attached: Vec<(Option<String>, Place)>,
    /// Steps that are neither.
    others: usize,
    /// Some step could not be read, so what is missing is not told.
    broken: bool,
}

impl Order {
    pub(super) fn broken(&mut self) {
        self.broken = true;
    }

    /// Notes one step; says whether it is a step of the host's own task.
    pub(super) fn see(&mut self, step: &HostStep, node: &Node, path: &str, problems: &mut Problems) -> bool {
        let place = node.get("uses").map_or(node.place, |n| n.place);
        let lb = step.call.with.get("lb").and_then(|v| v.as_str()).map(str::to_owned);
        if lb.as_ref().is_some_and(|l| l.contains("${{")) {
            let place = node.get("with").and_then(|w| w.get("lb")).map_or(place, |n| n.place);
            let text = "names a load balancer of the environment and holds no expressions; give those of several \
                        environments the same name";
            problems.add(place, &join(path, "with.lb"), text);
        }
        match step.call.uses.as_str() {
            DRAIN => {
                if self.others > 0 || !self.attached.is_empty() {
                    let text = "`lb.drain` comes before all other steps of the rollout, as nothing may run on a host \
                                that still has traffic; move what may run beside traffic into an earlier rollout step";
                    problems.add(place, path, text);
                }
                self.note_twice(&self.drained, &lb, place, path, problems);
                self.drained.push((lb, place));
                if self.drained.len() == MAX_LOAD_BALANCERS + 1 {
                    let text =
                        format!("a rollout has at most {MAX_LOAD_BALANCERS} `lb.drain` steps; make two rollouts");
                    problems.add(place, path, text);
                }
                false
            }
            ATTACH => {
                self.note_twice(&self.attached, &lb, place, path, problems);
                self.attached.push((lb, place));
                false
            }
            _ => {
                if !self.attached.is_empty() {
                    let text = "stands after `lb.attach`, which ends a rollout's steps; put it before, or into a \
                                rollout step of its own";
                    problems.add(place, path, text);
                }
                self.others += 1;
                true
            }
        }
    }

    fn note_twice(
        &self,
        seen: &[(Option<String>, Place)],
        lb: &Option<String>,
        place: Place,
        path: &str,
        problems: &mut Problems,
    ) {
        if seen.iter().any(|(l, _)| l == lb || l.is_none() || lb.is_none()) {
            let text = "the load balancer is named already (one without `lb` stands for all); keep one of the two";
            problems.add(place, path, text);
        }
    }

    /// Is everything brought back that is taken off, and the reverse?
    pub(super) fn finish(self, node: &Node, path: &str, problems: &mut Problems) {
        if self.broken || (self.drained.is_empty() && self.attached.is_empty()) {
            return;
        }
        let named = |lb: &Option<String>| {
            lb.as_ref().map_or_else(|| "all load balancers".into(), |l| format!("load balancer `{}`", shorten(l)))
        };
        let with =
            |lb: &Option<String>| lb.as_ref().map_or_else(String::new, |l| format!(" with `lb: {}`", shorten(l)));
        let all = |list: &[(Option<String>, Place)]| list.iter().any(|(l, _)| l.is_none());
        let has = |list: &[(Option<String>, Place)], lb| list.iter().any(|(l, _)| l == lb);
        for (lb, place) in &self.drained {
            if !all(&self.attached) && !has(&self.attached, lb) {
                let text = format!(
                    "takes hosts off {}, but no `lb.attach` brings them back; end the steps with `lb.attach`{}",
                    named(lb),
                    with(lb)
                );
                problems.add(*place, path, text);
            }
        }
        for (lb, place) in self.attached.iter().filter(|(l, _)| l.is_some() || self.drained.is_empty()) {
            if !has(&self.drained, lb) {
                let text = format!(
                    "brings hosts back to {}, but no `lb.drain` takes them off; begin the steps with `lb.drain`{}",
                    named(lb),
                    with(lb)
                );
                problems.add(*place, path, text);
            }
        }
        if self.others == 0 {
            let text = "takes hosts off and brings them back with nothing in between; add the steps that need it";
            problems.add(node.place, path, text);
        }
    }
}

impl Reader<'_> {
    /// What other host steps have.
    pub(super) fn not_for_traffic(&mut self, f: &mut Fields<'_>, attach: bool) {
        let mut keys = vec![
            ("required", "`lb.drain` and `lb.attach` are never skipped; remove `required`"),
            (
                "timeout",
                "how long it may take is said by the load balancer of the environment (`drain_timeout`, \
                 `attach_timeout`); remove `timeout`",
            ),
        ];
        match attach {
            true => {
                keys.push(("if", "a host that was taken off is brought back in any case; put the `if` on `lb.drain`"))
            }
            false => keys.push(("always", "`lb.drain` comes before what could fail; remove `always`")),
        }
        for (key, why) in keys {
            if let Some(n) = f.take(key) {
                self.problems.add(n.place, &join(&f.path, key), why);
            }
        }
        let reads = |n: &Node| n.as_text().is_some_and(|t| crate::expression::references(bare(t), "host"));
        if let Some(n) = f.take("if").filter(|n| !attach && reads(n)) {
            let text = "whether a rollout has traffic is the same for all its hosts: `if` of `lb.drain` reads no `host`; \
                        use `on` and two rollouts";
            self.problems.add(n.place, &join(&f.path, "if"), text);
        }
    }
}

/// Without `${{ }}` around it.
fn bare(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix("${{").and_then(|t| t.strip_suffix("}}")).map_or(text, str::trim)
}
