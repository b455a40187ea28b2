//! Linking: puts the subflows a flow uses in their places, so that what is planned and run is one flow with nothing left
//! to look up. A release stores the linked copy; editing a flow changes no release that exists.
//!
//! A step `s` with `uses: flow/x` becomes `s/enter` (with the step's `needs`, `join` and `if`), the steps of `x` as
//! `s/<id>`, and `s` itself as the way out (with its `repeat` and `on_failure`), which needs the last steps within.
//! Of `x` count its inputs, steps and outputs; its own `on_failure` and `rollback` do not: those are the release's.

use super::{
    Flow, Gateway, Join, Scope, Step, StepKind, Subflow,
    uses::{Misfit, misfits},
};
use std::collections::{BTreeMap, BTreeSet};

/// Most subflows within each other.
pub const MAX_DEPTH: usize = 8;
/// Most steps of a linked flow.
pub const MAX_STEPS: usize = 1000;
/// Last part of the id of the way into a subflow.
pub const ENTER: &str = "enter";

/// Why a flow cannot be put together. Each names the step, by its whole path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("step `{step}` uses flow `{flow}`, which the project does not have: apply it, or mend the name")]
    Missing { step: String, flow: String },
    #[error("flow `{}` uses itself: {}; take one of these uses out", .0.first().map(String::as_str).unwrap_or(""), .0.join(" -> "))]
    Cycle(Vec<String>),
    #[error("step `{0}` is a subflow more than {MAX_DEPTH} levels down: put some of the levels together")]
    TooDeep(String),
    #[error("with its subflows the flow has more than {MAX_STEPS} steps (at `{0}`): split it into several releases")]
    TooLarge(String),
    #[error("step `{step}`: flow `{flow}` has no input `{name}`; it has: {known}")]
    UnknownInput { step: String, flow: String, name: String, known: String },
    #[error("step `{step}`: the input `{name}` of flow `{flow}` has no default and is not given: add it under `with`")]
    MissingInput { step: String, flow: String, name: String },
    #[error("step `{step}`: the input `{name}` of flow `{flow}` {problem}")]
    Input { step: String, flow: String, name: String, problem: String },
    #[error("step `{0}` cannot have this id in a subflow: `{ENTER}` is the way in; rename the step")]
    Reserved(String),
}

/// The flow with its subflows put in. `find` gives a flow of the same project by name, with its revision.
pub fn link(flow: &Flow, find: &dyn Fn(&str) -> Option<(Flow, u64)>) -> Result<Flow, LinkError> {
    if !flow.steps.iter().any(|s| matches!(s.kind, StepKind::Subflow(_))) {
        return Ok(flow.clone());
    }
    let mut linker = Linker { find, steps: Vec::new(), scopes: flow.scopes.clone(), chain: vec![flow.name.clone()] };
    linker.put(flow, "")?;
    Ok(Flow { steps: linker.steps, scopes: linker.scopes, ..flow.clone() })
}

/// Names of the flows a flow uses directly.
pub fn uses(flow: &Flow) -> BTreeSet<String> {
    let name = |s: &Step| match &s.kind {
        StepKind::Subflow(sub) => Some(sub.flow.clone()),
        _ => None,
    };
    flow.steps.iter().filter_map(name).collect()
}

struct Linker<'f> {
    find: &'f dyn Fn(&str) -> Option<(Flow, u64)>,
    steps: Vec<Step>,
    scopes: BTreeMap<String, Scope>,
    /// Names of the flows we are in, outermost first.
    chain: Vec<String>,
}

impl Linker<'_> {
    /// Puts the steps of `flow` in, as those of the scope `scope`.
    fn put(&mut self, flow: &Flow, scope: &str) -> Result<(), LinkError> {
        let subflows: BTreeSet<&str> =
            flow.steps.iter().filter(|s| matches!(s.kind, StepKind::Subflow(_))).map(|s| s.id.as_str()).collect();
        let prefix = if scope.is_empty() { String::new() } else { format!("{scope}/") };
        for s in &flow.steps {
            let id = format!("{prefix}{}", s.id);
            if !scope.is_empty() && s.id == ENTER {
                return Err(LinkError::Reserved(id));
            }
            let mut needs: Vec<String> = s.needs.iter().map(|n| format!("{prefix}{n}")).collect();
            if needs.is_empty() && !scope.is_empty() {
                needs.push(format!("{prefix}{ENTER}"));
            }
            let mut step = Step { id: id.clone(), needs, ..s.clone() };
            match &s.kind {
                StepKind::Subflow(sub) => self.subflow(step, sub)?,
                StepKind::Gateway(g) => {
                    let target = |t: &String| match subflows.contains(t.as_str()) {
                        true => format!("{prefix}{t}/{ENTER}"),
                        false => format!("{prefix}{t}"),
                    };
                    let mut g = g.clone();
                    g.default = g.default.iter().map(target).collect();
                    g.branches.iter_mut().for_each(|b| b.to = b.to.iter().map(target).collect());
                    step.kind = StepKind::Gateway(g);
                    self.push(step)?;
                }
                _ => self.push(step)?,
            }
        }
        Ok(())
    }

    fn push(&mut self, step: Step) -> Result<(), LinkError> {
        if self.steps.len() >= MAX_STEPS {
            return Err(LinkError::TooLarge(step.id));
        }
        self.steps.push(step);
        Ok(())
    }

    fn subflow(&mut self, step: Step, sub: &Subflow) -> Result<(), LinkError> {
        let scope = step.id.clone();
        if let Some(at) = self.chain.iter().position(|c| *c == sub.flow) {
            let mut round = self.chain[at..].to_vec();
            round.push(sub.flow.clone());
            return Err(LinkError::Cycle(round));
        }
        if self.chain.len() > MAX_DEPTH {
            return Err(LinkError::TooDeep(scope));
        }
        let missing = || LinkError::Missing { step: scope.clone(), flow: sub.flow.clone() };
        let (flow, revision) = (self.find)(&sub.flow).ok_or_else(missing)?;
        check(&scope, &flow, sub)?;
        let kept = Scope {
            flow: sub.flow.clone(),
            revision,
            inputs: flow.inputs.clone(),
            with: sub.with.clone(),
            outputs: flow.outputs.clone(),
        };
        self.scopes.insert(scope.clone(), kept);
        let enter = format!("{scope}/{ENTER}");
        self.push(Step {
            id: enter.clone(),
            on_failure: None,
            repeat: None,
            required: false,
            kind: StepKind::Enter { scope: scope.clone() },
            ..step.clone()
        })?;
        self.chain.push(sub.flow.clone());
        self.put(&flow, &scope)?;
        self.chain.pop();
        let needed: BTreeSet<&str> = flow.steps.iter().flat_map(|s| &s.needs).map(String::as_str).collect();
        let last = flow.steps.iter().filter(|s| !needed.contains(s.id.as_str()));
        let mut needs: Vec<String> = last.map(|s| format!("{scope}/{}", s.id)).collect();
        if needs.is_empty() {
            needs.push(enter);
        }
        self.push(Step { needs, join: Join::All, condition: None, kind: StepKind::Leave { scope }, ..step })
    }
}

/// Do the given inputs fit? Values that are computed are checked when the plan is made.
fn check(step: &str, flow: &Flow, sub: &Subflow) -> Result<(), LinkError> {
    // What an outer input is, is told where the text is at hand.
    let Some(first) = misfits(flow, &sub.with, &BTreeMap::new()).into_iter().next() else { return Ok(()) };
    let (step, flow) = (step.to_owned(), flow.name.clone());
    Err(match first {
        Misfit::Unknown { name, known } => LinkError::UnknownInput { step, flow, name, known },
        Misfit::Missing { name } => LinkError::MissingInput { step, flow, name },
        Misfit::Wrong { name, problem } => LinkError::Input { step, flow, name, problem },
    })
}

impl Gateway {
    /// Whether one of its branches goes to this step.
    pub fn leads_to(&self, step: &str) -> bool {
        self.branches.iter().flat_map(|b| &b.to).chain(&self.default).any(|t| t == step)
    }
}

#[cfg(test)]
mod tests;
