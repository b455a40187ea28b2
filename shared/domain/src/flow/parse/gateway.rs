//! Branching nodes: `exclusive`, `conditional` and `parallel`.

use super::{Link, LinkKind, Reader, list, name_of, names::Position};
use crate::{
    expression::{Context, Expression},
    flow::{Branch, Gateway, GatewayMode},
    span::Place,
    yaml::{self, Fields, Node, Value, shorten},
};

/// The keys that make a step a gateway.
pub(crate) const MODES: [(&str, GatewayMode); 3] = [
    ("exclusive", GatewayMode::Exclusive),
    ("conditional", GatewayMode::Conditional),
    ("parallel", GatewayMode::Parallel),
];
const MAX_BRANCHES: usize = 50;

impl Reader<'_> {
    /// `None` if nothing of use could be read.
    pub(super) fn gateway(&mut self, node: &Node, path: &str, mode: GatewayMode) -> Option<Gateway> {
        if mode == GatewayMode::Parallel {
            let to = self.targets(node, path, false)?;
            let branch = |t: String| Branch { name: t.clone(), condition: None, to: vec![t] };
            return Some(Gateway { mode, branches: to.into_iter().map(branch).collect(), default: Vec::new() });
        }
        let items = list(node, path, MAX_BRANCHES, "branches", self.problems)?;
        let mut branches: Vec<Branch> = Vec::new();
        let mut default = None;
        let mut taken_by = None;
        for (i, n) in items.iter().enumerate() {
            let path = format!("{path}[{i}]");
            let Some(mut f) = Fields::of(n, &path, "a branch", self.problems) else { continue };
            if let Some(d) = n.get("default") {
                f.take("default");
                let place = d.place;
                if default.is_some() {
                    self.problems.add(place, &path, "there are two `default` branches; keep one, as the last");
                } else if i + 1 < items.len() {
                    self.problems.add(place, &path, "`default` must be the last branch; move it to the end");
                }
                if let Some(by) = &taken_by {
                    let text =
                        format!("is never taken, as the condition of the branch `{by}` is always true; remove one");
                    self.problems.add(place, &yaml::join(&path, "default"), text);
                }
                default = Some(self.targets(d, &yaml::join(&path, "default"), true).unwrap_or_default());
                f.finish(self.problems);
                continue;
            }
            let Some(branch) = self.branch(f, n) else { continue };
            let place = n.get("name").or(n.get("if")).map_or(n.place, |n| n.place);
            if branches.iter().any(|b| b.name == branch.name) {
                let text = format!("a branch `{}` is there already; give this one another `name`", branch.name);
                self.problems.add(place, &path, text);
            }
            if let Some(c) = &branch.condition {
                let place = n.get("if").map_or(n.place, |n| n.place);
                self.dead_branch(mode, &branches, c, taken_by.as_deref(), place, &yaml::join(&path, "if"));
                if mode == GatewayMode::Exclusive && constant(c) == Some(true) {
                    taken_by.get_or_insert(branch.name.clone());
                }
            }
            branches.push(branch);
        }
        if branches.is_empty() && default.is_some() && items.len() == 1 {
            self.problems.add(node.place, path, "has no branch with a condition; add `{ if: ..., to: [...] }`");
        }
        if default.is_none() {
            let text = "has no default branch; add `- default: [<step>]` as the last, or `- default: []` to go nowhere";
            self.problems.add(node.place, path, text);
        }
        Some(Gateway { mode, branches, default: default.unwrap_or_default() })
    }

    fn branch(&mut self, mut f: Fields<'_>, node: &Node) -> Option<Branch> {
        let path = f.path.clone();
        let name = f.take("name").map(|n| (n, name_of(n, &f.path_of("name"), self.problems)));
        if let Some((n, Some(name))) = &name
            && name == "default"
        {
            self.problems.add(n.place, &f.path_of("name"), "`default` is the name of the last branch; take another");
        }
        if node.get("if").is_none() {
            self.problems.add(f.place, &path, "a branch needs `if: <expression>` (the last one is `default: [...]`)");
        }
        let condition = self.condition(&mut f, "if", Position::Condition);
        let to = match f.take("to") {
            Some(n) => self.targets(n, &f.path_of("to"), false),
            None => {
                self.problems.add(f.place, &path, "a branch needs `to: [<step>]`: where it leads");
                None
            }
        };
        f.finish(self.problems);
        let to = to?;
        let name = match name {
            Some((_, n)) => n?,
            None => to.first()?.clone(),
        };
        Some(Branch { name, condition, to })
    }

    fn dead_branch(
        &mut self,
        mode: GatewayMode,
        before: &[Branch],
        condition: &str,
        taken_by: Option<&str>,
        place: Place,
        path: &str,
    ) {
        let text = if constant(condition) == Some(false) {
            "the branch is never taken, as its condition is always false; correct it or remove the branch".to_string()
        } else if let (GatewayMode::Exclusive, Some(by)) = (mode, taken_by) {
            format!("the branch is never taken, as the condition of `{by}` before it is always true; remove one")
        } else if let (GatewayMode::Exclusive, Some(same)) =
            (mode, before.iter().find(|b| b.condition.as_deref() == Some(condition)))
        {
            format!("the branch is never taken, as `{}` before it has the same condition; correct one", same.name)
        } else {
            return;
        };
        self.problems.add(place, path, text);
    }

    /// Ids of steps a branch leads to.
    fn targets(&mut self, node: &Node, path: &str, may_be_empty: bool) -> Option<Vec<String>> {
        if may_be_empty && matches!(&node.value, Value::List(l) if l.is_empty()) {
            return Some(Vec::new());
        }
        let items = match node.as_text() {
            Some(_) => std::slice::from_ref(node),
            None => list(node, path, super::MAX_STEPS, "step ids", self.problems)?,
        };
        let mut out: Vec<String> = Vec::new();
        for (i, n) in items.iter().enumerate() {
            let path = format!("{path}[{i}]");
            match n.as_word() {
                Some(t) if out.contains(&t) => {
                    self.problems.add(n.place, &path, format!("`{}` is listed twice; keep one", shorten(&t)));
                }
                Some(t) => {
                    if let Some(by) = self.step.clone() {
                        self.links.push(Link { by, to: t.clone(), place: n.place, path, kind: LinkKind::Target });
                    }
                    out.push(t);
                }
                None => {
                    self.problems.add(n.place, &path, format!("must be the id of a step, not {}", n.kind()));
                }
            }
        }
        Some(out)
    }
}

/// The value of a condition that reads nothing.
pub(super) fn constant(condition: &str) -> Option<bool> {
    let e = Expression::compile(condition).ok()?;
    if e.roots().is_empty() { e.eval_bool(&Context::default()).ok() } else { None }
}
