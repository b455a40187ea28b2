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
    index: BTreeMap<String, usize>,
    /// For each step those that come before, on any path.
    before: Vec<Set>,
    /// Those of them that have surely run when it starts.
    sure: Vec<Set>,
    gives: Vec<Gives>,
}

/// Some of the steps, by their index.
#[derive(Debug, Default, Clone, Copy)]
struct Set([u64; WORDS]);

const WORDS: usize = super::MAX_STEPS.div_ceil(64);

impl Set {
    fn insert(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }
    fn has(&self, i: usize) -> bool {
        self.0[i / 64] & (1 << (i % 64)) != 0
    }
    fn add(&mut self, other: &Set) {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a |= b);
    }
    fn keep(&mut self, other: &Set) {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a &= b);
    }
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
    /// Of `prometheus.query`.
    Samples,
}

impl Graph {
    pub(super) fn has(&self, id: &str) -> bool {
        self.index.contains_key(id)
    }
    pub(super) fn runs_before(&self, id: &str, step: &str) -> bool {
        self.both(id, step).is_some_and(|(id, step)| self.before[step].has(id))
    }
    pub(super) fn surely_ran(&self, id: &str, step: &str) -> bool {
        self.both(id, step).is_some_and(|(id, step)| self.sure[step].has(id))
    }
    pub(super) fn gives(&self, id: &str) -> Gives {
        self.index.get(id).map(|i| self.gives[*i].clone()).unwrap_or_default()
    }
    fn both(&self, a: &str, b: &str) -> Option<(usize, usize)> {
        Some((*self.index.get(a)?, *self.index.get(b)?))
    }
}

/// Checks the links between steps, and adds to the `needs` of each step the gateways that lead to it.
pub(super) fn check(steps: &mut [Placed], links: Vec<Link>, problems: &mut Problems) -> Graph {
    let ids: Vec<String> = steps.iter().map(|s| s.step.id.clone()).collect();
    // Where an id is used twice the first step has it.
    let index: BTreeMap<String, usize> = ids.iter().enumerate().rev().map(|(i, id)| (id.clone(), i)).collect();
    let targets: Vec<Option<Set>> = steps.iter().map(|s| targets(s, &index)).collect();
    let plain = edges(steps, &index);
    let (order, left) = sorted(&plain);
    if let Some(cycle) = circle(&plain, &left) {
        let names: Vec<&str> = cycle.iter().map(|i| ids[*i].as_str()).collect();
        let at = &steps[cycle[0]];
        let text = format!("steps need each other in a circle: {}; remove one `needs`", names.join(" -> "));
        problems.add(at.place, &join(&at.path, "needs"), text);
    }
    let before = ancestors(&plain, &order);
    let known = Known { steps, index: &index, targets: &targets, before: &before };
    for l in &links {
        if problems.full() {
            break;
        }
        known.link(l, problems);
    }
    for l in links.iter().filter(|l| l.kind == LinkKind::Target) {
        let (Some(to), Some(by)) = (index.get(&l.to), index.get(&l.by)) else { continue };
        let back = to == by || before[*by].has(*to);
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
    let sure = certain(steps, &targets, &all, &order);
    Graph { before, sure, gives: steps.iter().map(gives).collect(), ids, index }
}

/// Where a gateway leads.
fn targets(s: &Placed, index: &BTreeMap<String, usize>) -> Option<Set> {
    let StepKind::Gateway(g) = &s.step.kind else { return None };
    let mut to = Set::default();
    let all = g.branches.iter().flat_map(|b| &b.to).chain(&g.default);
    all.filter_map(|t| index.get(t)).for_each(|i| to.insert(*i));
    Some(to)
}

struct Known<'k> {
    steps: &'k [Placed],
    index: &'k BTreeMap<String, usize>,
    targets: &'k [Option<Set>],
    before: &'k [Set],
}

impl Known<'_> {
    /// One name of a step in another one.
    fn link(&self, l: &Link, problems: &mut Problems) {
        let Some(by) = self.index.get(&l.by).copied() else { return };
        let Some(to) = self.index.get(&l.to).copied() else {
            let ids: Vec<&str> = self.steps.iter().map(|s| s.step.id.as_str()).collect();
            let near = suggestion(&l.to, ids.iter().copied());
            let all = shown(&ids);
            problems.add(l.place, &l.path, format!("there is no step `{}`{near}; steps are: {all}", shorten(&l.to)));
            return;
        };
        let text = match l.kind {
            LinkKind::Needs if to == by => "a step cannot need itself; remove it".to_string(),
            LinkKind::Target if to == by => "a gateway cannot lead to itself; name another step".into(),
            LinkKind::Target if self.before[by].has(to) => {
                format!("leads back to `{}`, which runs before `{}`; to do it again write `repeat` there", l.to, l.by)
            }
            LinkKind::Needs if !self.steps[to].broken && self.targets[to].is_some_and(|t| !t.has(by)) => {
                format!(
                    "`{}` is a gateway that never leads to `{}`, so this step cannot be reached; add it to a branch of \
                     `{0}`, or need a step that a branch leads to",
                    l.to, l.by
                )
            }
            _ => return,
        };
        problems.add(l.place, &l.path, text);
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
        StepKind::Central(c) if c.uses == "prometheus.query" => Gives::Samples,
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

fn ancestors(needs: &[Vec<usize>], order: &[usize]) -> Vec<Set> {
    let mut before = vec![Set::default(); needs.len()];
    for i in order {
        let mut all = Set::default();
        for n in &needs[*i] {
            all.insert(*n);
            all.add(&before[*n]);
        }
        before[*i] = all;
    }
    before
}

/// What has surely succeeded when a step starts, people's interventions aside.
fn certain(steps: &[Placed], targets: &[Option<Set>], needs: &[Vec<usize>], order: &[usize]) -> Vec<Set> {
    let mut sure = vec![Set::default(); steps.len()];
    // May end as not taken: everything it needs may be a branch that was not taken.
    let mut optional = vec![false; steps.len()];
    for i in order {
        let choice = |n: usize| match &steps[n].step.kind {
            StepKind::Gateway(g) => g.mode != GatewayMode::Parallel && targets[n].is_some_and(|t| t.has(*i)),
            _ => false,
        };
        optional[*i] = !needs[*i].is_empty() && needs[*i].iter().all(|n| optional[*n] || choice(*n));
        // What is known when the step `n` has ended as the join asks.
        let known = |n: usize, succeeded: bool| {
            let mut l = sure[n];
            if succeeded && steps[n].step.condition.is_none() {
                l.insert(n);
            }
            l
        };
        let join = steps[*i].step.join;
        // One of them has ended so in any case; those that cannot be left out all have, unless the first is enough.
        let mut each = needs[*i].iter().map(|n| known(*n, join != Join::Done));
        let mut all = each.next().unwrap_or_default();
        each.for_each(|l| all.keep(&l));
        if join != Join::Any {
            let live = needs[*i].iter().filter(|n| !optional[**n]);
            live.for_each(|n| all.add(&known(*n, join == Join::All)));
        }
        sure[*i] = all;
    }
    sure
}
