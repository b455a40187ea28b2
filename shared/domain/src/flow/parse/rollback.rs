//! `rollback`: the host steps of its two kinds, how each goes over the hosts, and which one is asked for without a person.

use super::{Reader, call, step::MAX_PARALLEL, whole, word};
use crate::{
    flow::{HostStep, Rollback, RollbackHow},
    release::RollbackMode,
    yaml::{Fields, Node, Value, join, shorten},
};
use std::collections::BTreeMap;

pub(crate) const MODES: [(&str, RollbackMode); 2] =
    [("normal", RollbackMode::Normal), ("emergency", RollbackMode::Emergency)];

impl Reader<'_> {
    pub(super) fn rollback(&mut self, node: &Node, path: &str) -> Rollback {
        let Some(mut f) = Fields::of(node, path, "`rollback`", self.problems) else { return Rollback::default() };
        let mut kind = |f: &mut Fields<'_>, key| f.take(key).map(|n| self.kind(n, &f.path_of(key))).unwrap_or_default();
        let (normal, normal_how) = kind(&mut f, "normal");
        let (emergency, emergency_how) = kind(&mut f, "emergency");
        let automatic = word(&mut f, "automatic", &MODES, self.problems);
        let written = |key| node.get(key).is_some_and(|n| !matches!(n.value, Value::Null));
        if let (Some(mode), Some(n)) = (automatic, f.take("automatic"))
            && let Some((key, _)) = MODES.iter().find(|(k, m)| *m == mode && !written(k))
        {
            let text = format!("asks for the {key} rollback, which the flow does not have; add steps under `{key}:`");
            self.problems.add(n.place, &f.path_of("automatic"), text);
        }
        f.finish(self.problems);
        Rollback { normal, emergency, normal_how, emergency_how, automatic }
    }

    /// A list of host steps, or these with how they go over the hosts.
    fn kind(&mut self, node: &Node, path: &str) -> (Vec<HostStep>, RollbackHow) {
        if !matches!(node.value, Value::Map(_)) {
            return (self.host_steps(node, path, call::Seat::Rollback), RollbackHow::default());
        }
        let Some(mut f) = Fields::of(node, path, "a rollback", self.problems) else { return Default::default() };
        let steps = match f.take("steps") {
            None => {
                let text = "the key `steps` is missing: what a rollback does on each host";
                self.problems.add(f.place, path, text);
                Vec::new()
            }
            Some(n) => self.host_steps(n, &f.path_of("steps"), call::Seat::Rollback),
        };
        let how = RollbackHow {
            waves: f.take("waves").and_then(|n| self.waves(n, &f.path_of("waves"))),
            parallel: f.take("parallel").and_then(|n| whole(n, &f.path_of("parallel"), 0, MAX_PARALLEL, self.problems)),
            budget: f.take("budget").map(|n| self.budget(n, &f.path_of("budget"), true)),
            values: f.take("values").map(|n| self.values(n, &f.path_of("values"))).unwrap_or_default(),
        };
        f.finish(self.problems);
        (steps, how)
    }

    fn values(&mut self, node: &Node, path: &str) -> BTreeMap<String, serde_json::Value> {
        let Value::Map(entries) = &node.value else {
            self.problems.add(node.place, path, format!("must be a map of names and values, not {}", node.kind()));
            return BTreeMap::new();
        };
        for (key, n) in entries {
            let path = join(path, &shorten(&key.name));
            if !crate::values::is_key(&key.name) {
                let text = "a value's name has at most 63 letters, digits and `_` and begins with no digit, so that \
                            expressions can say `values.<name>`";
                self.problems.add(key.place, &path, text);
            }
            if holds_expression(n) {
                let text = "a value of a rollback is fixed and holds no expressions; compute where it is read";
                self.problems.add(n.place, &path, text);
            }
        }
        entries.iter().map(|(k, n)| (k.name.clone(), n.to_json())).collect()
    }
}

fn holds_expression(n: &Node) -> bool {
    match &n.value {
        Value::Text(t) => t.contains("${{"),
        Value::List(l) => l.iter().any(holds_expression),
        Value::Map(m) => m.iter().any(|(_, n)| holds_expression(n)),
        _ => false,
    }
}
