//! `bake`: how long a wave is looked at before the next one, and the probes that judge it meanwhile.

use super::{MAX_TIMEOUT_S, Reader, call::Seat, list, policy::positive, read_name, seconds, whole, word};
use crate::{
    expression::{
        Expression,
        types::{Names, Type},
    },
    flow::{Inconclusive, Probe, Probes},
    yaml::{Fields, Node, Value, shorten},
};

/// What may be a probe, and whether it is asked on the hosts.
pub(crate) const PROBES: [(&str, bool); 4] =
    [("http.request", false), ("prometheus.query", false), ("http.check", true), ("script", true)];
pub(crate) const INCONCLUSIVE: [(&str, Inconclusive); 3] =
    [("ask", Inconclusive::Ask), ("pass", Inconclusive::Pass), ("fail", Inconclusive::Fail)];
pub(crate) const MAX_PROBES: usize = 20;
pub(crate) const MAX_FAILURES: u64 = 100;
const EVERY_S: u32 = 30;
/// A look that takes longer is no look, unless its author says so.
const LOOK_S: u32 = 60;

impl Reader<'_> {
    /// `5m`, or that long with probes. Seconds.
    pub(super) fn bake(&mut self, node: &Node, path: &str) -> (u32, Option<Probes>) {
        if !matches!(node.value, Value::Map(_)) {
            return (seconds(node, path, MAX_TIMEOUT_S, self.problems).unwrap_or(0), None);
        }
        let Some(mut f) = Fields::of(node, path, "`bake`", self.problems) else { return (0, None) };
        let lasts = match f.take("for") {
            None => {
                let text = "the key `for` is missing: how long each wave bakes, such as `for: 5m`";
                self.problems.add(f.place, path, text);
                None
            }
            Some(n) => positive(n, &f.path_of("for"), MAX_TIMEOUT_S, self.problems),
        };
        let every = f.take("every").and_then(|n| {
            let s = positive(n, &f.path_of("every"), MAX_TIMEOUT_S, self.problems)?;
            if lasts.is_some_and(|l| s > l) {
                let text = "is longer than the bake itself, so there would be one look; look more often";
                self.problems.add(n.place, &f.path_of("every"), text);
            }
            Some(s)
        });
        let inconclusive = word(&mut f, "inconclusive", &INCONCLUSIVE, self.problems).unwrap_or_default();
        let checks = f.take("probes").map(|n| self.probes(n, &f.path_of("probes")));
        if checks.is_none() {
            for key in ["every", "inconclusive"] {
                if let Some(n) = f.take(key) {
                    let text = "says how probes are asked, but there are none; add `probes:`, or write `bake: 5m`";
                    self.problems.add(n.place, &f.path_of(key), text);
                }
            }
        }
        f.finish(self.problems);
        let lasts = lasts.unwrap_or(0);
        let every_s = every.unwrap_or_else(|| EVERY_S.min(lasts.max(1)));
        (lasts, checks.map(|checks| Probes { every_s, inconclusive, checks }))
    }

    fn probes(&mut self, node: &Node, path: &str) -> Vec<Probe> {
        let Some(items) = list(node, path, MAX_PROBES, "probes", self.problems) else { return Vec::new() };
        let mut out: Vec<Probe> = Vec::new();
        for (i, n) in items.iter().enumerate() {
            let path = format!("{path}[{i}]");
            let Some(probe) = self.probe(n, &path) else { continue };
            if out.iter().any(|p| p.id == probe.id) {
                let text = format!("there is a probe `{}` already; give each its own id", probe.id);
                self.problems.add(n.get("id").map_or(n.place, |n| n.place), &path, text);
            }
            out.push(probe);
        }
        out
    }

    fn probe(&mut self, node: &Node, path: &str) -> Option<Probe> {
        let mut f = Fields::of(node, path, "a probe", self.problems)?;
        let id = read_name(&mut f, "id", self.problems);
        let uses = f.take("uses");
        let named = uses.and_then(Node::as_text).unwrap_or_default();
        let kind = PROBES.iter().find(|(name, _)| *name == named);
        let call = match kind {
            Some((_, on_hosts)) => self.call(&mut f, if *on_hosts { Seat::Host } else { Seat::Central }),
            None => {
                let what = uses.map_or_else(|| "nothing".into(), Node::kind);
                let text = format!(
                    "must be one of http.request and prometheus.query (asked by the executor), http.check and script (on \
                     every host of the wave), not {what}"
                );
                self.problems.add(uses.map_or(f.place, |n| n.place), &f.path_of("uses"), text);
                None
            }
        };
        for key in ["with", "timeout"] {
            f.take(key);
        }
        let success = self.judge(&mut f, "success", named);
        let fail = self.judge(&mut f, "fail", named);
        let failures = f.take("failures").map(|n| whole(n, &f.path_of("failures"), 1, MAX_FAILURES, self.problems));
        let timeout = f.take("timeout").is_some();
        f.finish(self.problems);
        let mut call = call?;
        if !timeout {
            call.timeout_s = call.timeout_s.min(LOOK_S);
        }
        Some(Probe { id: id?, call, success, fail, failures: failures.flatten().unwrap_or(1) })
    }

    /// An expression over `value`.
    fn judge(&mut self, f: &mut Fields<'_>, key: &'static str, uses: &str) -> Option<String> {
        let n = f.take(key)?;
        let path = f.path_of(key);
        let Value::Text(text) = &n.value else {
            let text = format!("must be an expression such as `value < 0.01`, not {}", n.kind());
            self.problems.add(n.place, &path, text);
            return None;
        };
        let text = text.trim();
        let bare = text.strip_prefix("${{").and_then(|t| t.strip_suffix("}}")).map_or(text, str::trim);
        let e = match Expression::compile(bare) {
            Ok(e) => e,
            Err(e) => {
                self.problems.add(n.place, &path, e.to_string());
                return None;
            }
        };
        if let Some(root) = e.roots().iter().find(|r| *r != "value") {
            let text = format!(
                "`{}` reads `{}`, but a probe is judged by what it read alone; only `value` exists here",
                shorten(bare),
                shorten(root)
            );
            self.problems.add(n.place, &path, text);
            return None;
        }
        let (found, wrong) = e.check_types(&Names::from([("value", value(uses, bare))]));
        for w in &wrong {
            self.problems.add(n.place, &path, format!("in `{}`: {w}", e.source()));
        }
        if wrong.is_empty() && !matches!(found, Type::Any | Type::Boolean) {
            let text =
                format!("`{}` must be true or false, but is {}; compare it with something", e.source(), found.name());
            self.problems.add(n.place, &path, text);
        }
        Some(bare.into())
    }
}

/// What a probe reads, as its expressions see it.
fn value(uses: &str, expression: &str) -> Type {
    match uses {
        // What could not be asked, or has not exactly one sample, is null: an expression that asks for that is no mistake.
        "prometheus.query" | "http.request" if expression.contains("null") => Type::Any,
        "prometheus.query" => Type::Number,
        "http.request" => {
            Type::closed([("status", Type::Number), ("body", Type::Text), ("tries", Type::Number), ("json", Type::Any)])
        }
        "http.check" | "script" => Type::closed(["ok", "failed", "total"].map(|n| (n, Type::Number))),
        _ => Type::Any,
    }
}
