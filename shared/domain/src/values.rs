//! Values in scopes. From the outside in: project group, project, environment, host, release; the innermost scope that has
//! a key wins. Expressions read the result as `values.<key>`. Steps on hosts see all scopes; everything that is not on
//! one host (central steps, conditions of steps) sees them without the host scope.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// From the outermost to the innermost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Group,
    Project,
    Environment,
    Host,
    Release,
}

impl Scope {
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Group => "group",
            Scope::Project => "project",
            Scope::Environment => "environment",
            Scope::Host => "host",
            Scope::Release => "release",
        }
    }
}

type Values = BTreeMap<String, Value>;

/// The scopes of one deployment, or of one host of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Layers<'a> {
    pub group: Option<&'a Values>,
    pub project: Option<&'a Values>,
    pub environment: Option<&'a Values>,
    pub host: Option<&'a Values>,
    pub release: Option<&'a Values>,
}

/// Where a key gets its value, and what that hides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    pub key: String,
    pub value: Value,
    pub scope: Scope,
    /// The values of outer scopes that do not count, the nearest first.
    pub shadows: Vec<(Scope, Value)>,
}

impl<'a> Layers<'a> {
    fn inside_out(&self) -> impl Iterator<Item = (Scope, &'a Values)> {
        let all = [
            (Scope::Release, self.release),
            (Scope::Host, self.host),
            (Scope::Environment, self.environment),
            (Scope::Project, self.project),
            (Scope::Group, self.group),
        ];
        all.into_iter().filter_map(|(s, v)| Some((s, v?)))
    }

    /// What `values` is.
    pub fn merged(&self) -> Map<String, Value> {
        let mut out = Map::new();
        for (_, values) in self.inside_out() {
            for (k, v) in values {
                if !out.contains_key(k) {
                    out.insert(k.clone(), v.clone());
                }
            }
        }
        out
    }

    /// Every key with its story, by key.
    pub fn explain(&self) -> Vec<Explained> {
        let keys: BTreeSet<&String> = self.inside_out().flat_map(|(_, v)| v.keys()).collect();
        let one = |key: &String| {
            let mut found = self.inside_out().filter_map(|(s, v)| Some((s, v.get(key)?.clone())));
            let (scope, value) = found.next()?;
            Some(Explained { key: key.clone(), value, scope, shadows: found.collect() })
        };
        keys.into_iter().filter_map(one).collect()
    }
}

/// May a value have this name? Expressions must be able to say `values.<name>`.
pub fn is_key(key: &str) -> bool {
    key.len() <= 63
        && key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn values(pairs: &[(&str, i64)]) -> Values {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect()
    }

    #[test]
    fn the_innermost_scope_wins_and_the_others_are_told() {
        let (g, p) = (values(&[("a", 1), ("b", 1), ("g", 1)]), values(&[("a", 2), ("b", 2)]));
        let (e, h, r) = (values(&[("a", 3)]), values(&[("a", 4), ("h", 4)]), values(&[("a", 5)]));
        let all =
            Layers { group: Some(&g), project: Some(&p), environment: Some(&e), host: Some(&h), release: Some(&r) };
        assert_eq!(Value::Object(all.merged()), json!({ "a": 5, "b": 2, "g": 1, "h": 4 }));
        let told = all.explain();
        let a = &told[0];
        assert_eq!((a.key.as_str(), &a.value, a.scope), ("a", &json!(5), Scope::Release));
        let shadows: Vec<Scope> = a.shadows.iter().map(|(s, _)| *s).collect();
        assert_eq!(shadows, [Scope::Host, Scope::Environment, Scope::Project, Scope::Group]);
        let without = Layers { host: None, ..all };
        assert_eq!(Value::Object(without.merged()), json!({ "a": 5, "b": 2, "g": 1 }));
    }

    fn scope() -> impl Strategy<Value = Option<Values>> {
        proptest::option::of(proptest::collection::btree_map("[a-d]", (0i64..9).prop_map(|n| json!(n)), 0..4))
    }

    proptest! {
        #[test]
        fn what_is_explained_is_what_is_merged(g in scope(), p in scope(), e in scope(), h in scope(), r in scope()) {
            let all = Layers {
                group: g.as_ref(), project: p.as_ref(), environment: e.as_ref(), host: h.as_ref(), release: r.as_ref(),
            };
            let told: Map<String, Value> = all.explain().into_iter().map(|x| (x.key, x.value)).collect();
            prop_assert_eq!(told, all.merged());
            for x in all.explain() {
                prop_assert!(x.shadows.iter().all(|(s, _)| *s < x.scope));
                prop_assert!(x.shadows.windows(2).all(|w| w[0].0 > w[1].0));
            }
        }
    }
}
