//! The graph of a flow: do the names of steps exist, is there a way to every step, and what has run when one starts.

use super::{Link, LinkKind, Placed};
use crate::{
    flow::{GatewayMode, Join, StepKind},
    span::suggestion,
    yaml::{Problems, join, shorten},
};
use std::collections::{BTreeMap, BTreeSet};

/// What later checks ask.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub ids: Vec<String>,
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Default)]
struct Node {
    /// Steps that come before, on any path.
    before: BTreeSet<String>,
    /// Those of them that have surely run when this one starts.
    sure: BTreeSet<String>,
    pub gives: Gives,
}

/// What is known of a step's outputs.
#[derive(Debug, Default, Clone)]
pub(super) enum Gives {
    #[default]
    Unknown,
    Nothing,
    /// Under the ids of host steps.
    Hosts(BTreeSet<String>),
    Response,
}

impl Graph {
    pub(super) fn has(&self, id: &str) -> bool {
        self.nodes.contains_key(id)
    }
    pub(super) fn runs_before(&self, id: &str, step: &str) -> bool {
        self.nodes.get(step).is_some_and(|n| n.before.contains(id))
    }
    pub(super) fn surely_ran(&self, id: &str, step: &str) -> bool {
        self.nodes.get(step).is_some_and(|n| n.sure.contains(id))
    }
    pub(super) fn gives(&self, id: &str) -> Gives {
        self.nodes.get(id).map(|n| n.gives.clone()).unwrap_or_default()
    }
}

/// Checks the links between steps, and adds to the `needs` of each step the gateways that lead to it.
pub(super) fn check(steps: &mut [Placed], links: Vec<Link>, problems: &mut Problems) -> Graph {
    let ids: Vec<String> = steps.iter().map(|s| s.step.id.clone()).collect();
    let index: BTreeMap<String, usize> = ids.iter().enumerate().rev().map(|(i, id)| (id.clone(), i)).collect();
    let plain = edges(steps, &index);
    let (order, left) = sorted(&plain);
    if let Some(cycle) = circle(&plain, &left) {
        let names: Vec<&str> = cycle.iter().map(|i| ids[*i].as_str()).collect();
        let at = &steps[cycle[0]];
        let text = format!("steps need each other in a circle: {}; remove one `needs`", names.join(" -> "));
        problems.add(at.place, &join(&at.path, "needs"), text);
    }
    let before = ancestors(&plain, &order);
    for l in &links {
        link(l, steps, &index, &before, problems);
    }
    for l in links.iter().filter(|l| l.kind == LinkKind::Target) {
        let (Some(to), Some(by)) = (index.get(&l.to), index.get(&l.by)) else { continue };
        let back = to == by || before[*by].contains(to);
        if !back && !steps[*to].step.needs.contains(&l.by) {
            steps[*to].step.needs.push(l.by.clone());
        }
    }
    let all = edges(steps, &index);
    let (order, after) = sorted(&all);
    if left.is_empty()
        && let Some(cycle) = circle(&all, &after)
    {
        let names: Vec<&str> = cycle.iter().map(|i| ids[*i].as_str()).collect();
        let at = &steps[cycle[0]];
        let text = format!(
            "gateways and `needs` make a circle: {} (each needs the next); lead on to other steps, or write `repeat`",
            names.join(" -> ")
        );
        problems.add(at.place, &at.path, text);
    }
    let before = ancestors(&all, &order);
    let sure = certain(steps, &all, &order);
    let names = |l: &BTreeSet<usize>| l.iter().map(|i| ids[*i].clone()).collect();
    let mut nodes = BTreeMap::new();
    for (i, s) in steps.iter().enumerate() {
        let node = Node { before: names(&before[i]), sure: names(&sure[i]), gives: gives(s) };
        nodes.entry(s.step.id.clone()).or_insert(node);
    }
    Graph { ids, nodes }
}

/// One name of a step in another one.
fn link(
    l: &Link,
    steps: &[Placed],
    index: &BTreeMap<String, usize>,
    before: &[BTreeSet<usize>],
    problems: &mut Problems,
) {
    let Some(by) = index.get(&l.by).copied() else { return };
    let Some(to) = index.get(&l.to).copied() else {
        let ids: Vec<&str> = steps.iter().map(|s| s.step.id.as_str()).collect();
        let near = suggestion(&l.to, ids.iter().copied());
        let all = shown(&ids);
        problems.add(l.place, &l.path, format!("there is no step `{}`{near}; steps are: {all}", shorten(&l.to)));
        return;
    };
    let text = match l.kind {
        LinkKind::Needs if to == by => "a step cannot need itself; remove it".to_string(),
        LinkKind::Target if to == by => "a gateway cannot lead to itself; name another step".into(),
        LinkKind::Target if before[by].contains(&to) => {
            format!("leads back to `{}`, which runs before `{}`; to do it again write `repeat` there", l.to, l.by)
        }
        LinkKind::Needs if !steps[to].broken && is_gateway(steps, to) && !leads(steps, to, &l.by) => {
            format!(
                "`{}` is a gateway that never leads to `{}`, so this step cannot be reached; add it to a branch of `{0}`, \
                 or need a step that a branch leads to",
                l.to, l.by
            )
        }
        _ => return,
    };
    problems.add(l.place, &l.path, text);
}

fn is_gateway(steps: &[Placed], i: usize) -> bool {
    matches!(steps[i].step.kind, StepKind::Gateway(_))
}

fn leads(steps: &[Placed], gateway: usize, to: &str) -> bool {
    match &steps[gateway].step.kind {
        StepKind::Gateway(g) => g.branches.iter().flat_map(|b| &b.to).chain(&g.default).any(|t| t == to),
        _ => false,
    }
}

/// A list of names that may be long.
pub(super) fn shown(ids: &[&str]) -> String {
    match ids.len() {
        0..=20 => ids.join(", "),
        n => format!("{} and {} more", ids[..20].join(", "), n - 20),
    }
}

fn gives(s: &Placed) -> Gives {
    if s.broken {
        return Gives::Unknown;
    }
    match &s.step.kind {
        StepKind::Gateway(_) => Gives::Nothing,
        StepKind::Rollout(r) => Gives::Hosts(r.steps.iter().map(|s| s.id.clone()).collect()),
        StepKind::Central(c) if c.uses == "http.request" => Gives::Response,
        _ => Gives::Unknown,
    }
}

/// For each step, those it needs.
fn edges(steps: &[Placed], index: &BTreeMap<String, usize>) -> Vec<Vec<usize>> {
    let own = |(i, s): (usize, &Placed)| {
        s.step.needs.iter().filter_map(|n| index.get(n).copied()).filter(|n| *n != i).collect()
    };
    steps.iter().enumerate().map(own).collect()
}

/// Steps so that each comes after all it needs, and those left over because they hang on a circle. Without recursion and
/// linear in the number of `needs`.
fn sorted(needs: &[Vec<usize>]) -> (Vec<usize>, BTreeSet<usize>) {
    let mut open: Vec<usize> = needs.iter().map(Vec::len).collect();
    let mut needed_by: Vec<Vec<usize>> = vec![Vec::new(); needs.len()];
    for (i, l) in needs.iter().enumerate() {
        l.iter().for_each(|n| needed_by[*n].push(i));
    }
    let mut order: Vec<usize> = (0..needs.len()).filter(|i| open[*i] == 0).collect();
    let mut next = 0;
    while let Some(i) = order.get(next).copied() {
        next += 1;
        for after in &needed_by[i] {
            open[*after] -= 1;
            if open[*after] == 0 {
                order.push(*after);
            }
        }
    }
    let done: BTreeSet<usize> = order.iter().copied().collect();
    (order, (0..needs.len()).filter(|i| !done.contains(i)).collect())
}

/// A circle among the steps that are left, first one repeated at the end.
fn circle(needs: &[Vec<usize>], left: &BTreeSet<usize>) -> Option<Vec<usize>> {
    // Every step that is left needs another one that is left: following them must come round.
    let mut at = *left.first()?;
    let mut seen = Vec::new();
    while !seen.contains(&at) {
        seen.push(at);
        at = *needs[at].iter().find(|n| left.contains(n))?;
    }
    let from = seen.iter().position(|s| *s == at)?;
    seen.push(at);
    Some(seen[from..].to_vec())
}

fn ancestors(needs: &[Vec<usize>], order: &[usize]) -> Vec<BTreeSet<usize>> {
    let mut before = vec![BTreeSet::new(); needs.len()];
    for i in order {
        let mut all: BTreeSet<usize> = needs[*i].iter().copied().collect();
        needs[*i].iter().for_each(|n| all.extend(before[*n].iter().copied()));
        before[*i] = all;
    }
    before
}

/// What has surely succeeded when a step starts, people's interventions aside.
fn certain(steps: &[Placed], needs: &[Vec<usize>], order: &[usize]) -> Vec<BTreeSet<usize>> {
    let mut sure: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); steps.len()];
    // May end as not taken: everything it needs may be a branch that was not taken.
    let mut optional = vec![false; steps.len()];
    for i in order {
        let id = &steps[*i].step.id;
        let choice = |n: usize| match &steps[n].step.kind {
            StepKind::Gateway(g) => g.mode != GatewayMode::Parallel && leads(steps, n, id),
            _ => false,
        };
        let live: Vec<usize> = needs[*i].iter().copied().filter(|n| !optional[*n]).collect();
        optional[*i] = !needs[*i].is_empty() && needs[*i].iter().all(|n| optional[*n] || choice(*n));
        // What is known when the step `n` has ended as the join asks.
        let known = |n: usize, succeeded: bool| {
            let mut l = sure[n].clone();
            if succeeded && steps[n].step.condition.is_none() {
                l.insert(n);
            }
            l
        };
        sure[*i] = match steps[*i].step.join {
            Join::All => live.iter().flat_map(|n| known(*n, true)).collect(),
            Join::Done => live.iter().flat_map(|n| known(*n, false)).collect(),
            Join::Any => {
                let mut l = needs[*i].iter().map(|n| known(*n, true));
                let first = l.next().unwrap_or_default();
                l.fold(first, |a, b| a.intersection(&b).copied().collect())
            }
        };
    }
    sure
}
