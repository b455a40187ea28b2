//! The load balancers of an environment: serde buffers what has a `kind`, and loses the places in it, so their keys are
//! checked here.

use super::{Environment, read::Checks};
use crate::{
    span::suggestion,
    traffic::LoadBalancer,
    yaml::{Key, Node, Value, shorten},
};

impl Checks<'_, '_> {
    /// Does each have a kind, and only keys of that kind?
    pub(super) fn balancer_keys(&mut self) -> bool {
        let Some(node) = self.node.get("load_balancers") else { return true };
        let Value::Map(entries) = &node.value else { return true };
        let mut fine = true;
        for (name, lb) in entries {
            let before = self.problems.0.len();
            self.keys_of(&name.name, lb);
            fine &= self.problems.0.len() == before;
        }
        fine
    }

    fn keys_of(&mut self, name: &str, node: &Node) {
        let names = LoadBalancer::KEYS.map(|(n, _)| n);
        let path = ["load_balancers", name];
        let Value::Map(entries) = &node.value else {
            let text = format!("must be a map with `kind` and what that kind needs, not {}", node.kind());
            return self.wrong(&path, text);
        };
        let Some(kind) = node.get("kind") else {
            return self.wrong(&path, format!("the key `kind` is missing; write one of {}", names.join(", ")));
        };
        let word = kind.as_word().unwrap_or_default();
        let Some((_, keys)) = LoadBalancer::KEYS.iter().find(|(n, _)| *n == word) else {
            let text = format!("must be one of {}, not {}{}", names.join(", "), kind.kind(), suggestion(&word, names));
            return self.wrong(&[path[0], path[1], "kind"], text);
        };
        let known = || keys.iter().chain(&LoadBalancer::COMMON_KEYS).copied();
        let unknown = |(k, _): &&(Key, Node)| !known().any(|x| x == k.name);
        for (key, _) in entries.iter().filter(unknown) {
            let near = suggestion(&key.name, known());
            let all: Vec<&str> = known().collect();
            let text = format!("unknown key `{}`{near}; {word} has: {}", shorten(&key.name), all.join(", "));
            self.problems.add(key.place, &format!("load_balancers.{}", shorten(name)), text);
        }
    }

    pub(super) fn balancers(&mut self, e: &Environment) {
        for (name, lb) in &e.load_balancers {
            self.name(&["load_balancers", name], name);
            for (key, text) in lb.problems() {
                self.wrong(&["load_balancers", name, key], text);
            }
        }
    }
}

#[cfg(test)]
mod tests;
