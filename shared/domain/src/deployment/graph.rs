//! Which steps may start: joins, dead branches, subflows, and how a flow came out.
//!
//! A step's turn is found from the steps it needs, as [`Join`] says. What it means that one of them
//! - succeeded, or was skipped when its turn had come: a success; but a skipped subflow or gateway leads nowhere;
//! - is a gateway that went elsewhere, or was itself not taken: the branch is dead;
//! - failed and the failure is borne, or could not start because of one: an ending that is no success;
//! - is anything else, a failure that waits for a person among them: nothing yet.
//!
//! A step that can never start because of a failure is `Stopped`, and a failure for those that need it in turn.
//!
//! **How it ends.** When every step has ended, the flow has succeeded if none of its steps is `Stopped` and every failure
//! that was borne is joined over: at least one step needs the failed one, and all that do (those not taken aside)
//! started all the same, by `any` or `done`. Otherwise it has failed. A subflow is judged by the same rule over its own
//! steps, and its verdict is that of its step outside; so the rule looks at one level at a time.

use super::*;
use crate::flow::{Join, StepFailure};
use std::collections::HashMap;

/// The edges, by index.
pub(super) struct Graph {
    /// `None`: no such step, which no plan has.
    needs: Vec<Vec<Option<usize>>>,
    needed_by: Vec<Vec<usize>>,
    enters: HashMap<String, usize>,
}

/// Whether a step may start.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    NotYet,
    Start,
    /// It hangs on dead branches alone.
    Dead,
    /// It can never start: this went before it.
    Blocked(String),
    /// The way out of a subflow that was skipped.
    Skip,
}

enum Edge {
    Open,
    Success,
    Failure,
    Dead,
}

impl Graph {
    pub(super) fn of(steps: &[StepRun]) -> Graph {
        let at: HashMap<&str, usize> = steps.iter().enumerate().map(|(i, s)| (s.id.as_str(), i)).collect();
        let mut needed_by = vec![Vec::new(); steps.len()];
        let needs: Vec<Vec<Option<usize>>> =
            steps.iter().map(|s| s.needs.iter().map(|n| at.get(n.as_str()).copied()).collect()).collect();
        for (i, n) in needs.iter().enumerate() {
            // The way out of a subflow judges all within; that it needs a step is no join over the step's failure.
            if !matches!(steps[i].kind, StepRunKind::Leave { .. }) {
                n.iter().flatten().for_each(|n| needed_by[*n].push(i));
            }
        }
        let enters = steps.iter().enumerate().filter_map(|(i, s)| match &s.kind {
            StepRunKind::Enter { scope } => Some((scope.clone(), i)),
            _ => None,
        });
        Graph { needs, needed_by, enters: enters.collect() }
    }

    pub(super) fn turn(&self, d: &Deployment, i: usize) -> Turn {
        let step = &d.steps[i];
        if let StepRunKind::Leave { scope } = &step.kind {
            return self.leaving(d, scope);
        }
        if self.needs[i].is_empty() {
            return Turn::Start;
        }
        let (mut open, mut success, mut failure) = (false, false, None);
        for (n, name) in self.needs[i].iter().zip(&step.needs) {
            match n.map_or(Edge::Failure, |n| d.edge(n, &step.id)) {
                Edge::Open => open = true,
                Edge::Success => success = true,
                Edge::Failure => failure = failure.or(Some(name)),
                Edge::Dead => {}
            }
        }
        let blocked = |by: &String| Turn::Blocked(format!("step {by}, which it needs, did not succeed"));
        match (step.join, failure) {
            (Join::All, Some(by)) => blocked(by),
            (Join::Any, _) if success => Turn::Start,
            _ if open => Turn::NotYet,
            (Join::Any, Some(by)) => blocked(by),
            (_, failure) if success || failure.is_some() => Turn::Start,
            _ => Turn::Dead,
        }
    }

    /// The way out opens when all within have ended.
    fn leaving(&self, d: &Deployment, scope: &str) -> Turn {
        let Some(enter) = self.enters.get(scope).map(|e| &d.steps[*e]) else { return Turn::Start };
        match enter.state {
            StepState::Skipped if enter.reached => Turn::Skip,
            StepState::NotTaken => Turn::Dead,
            StepState::Stopped => Turn::Blocked("what the subflow needs did not succeed".into()),
            StepState::Succeeded if d.members(scope).all(|m| d.has_ended(m)) => Turn::Start,
            _ => Turn::NotYet,
        }
    }

    /// Whether all that need this failed step, at least one, started all the same.
    pub(super) fn is_joined_over(&self, d: &Deployment, i: usize) -> bool {
        let mut live = self.needed_by[i].iter().map(|n| &d.steps[*n]).filter(|s| s.state != StepState::NotTaken);
        live.clone().next().is_some() && live.all(|s| s.reached)
    }

    /// How the flow (`""`) or a subflow came out whose steps have all ended.
    pub(super) fn verdict(&self, d: &Deployment, scope: &str) -> Result<(), String> {
        for i in d.members(scope) {
            let s = &d.steps[i];
            let by = || s.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
            match s.state {
                StepState::Stopped => return Err(format!("step {} could not start{}", s.id, by())),
                StepState::Failed if !self.is_joined_over(d, i) => {
                    return Err(format!("step {} failed and no step joins over it{}", s.id, by()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Deployment {
    /// What a failure of the step leads to: what it says itself, or the subflow it stands in, or the flow. Of each, what it
    /// says about timeouts comes first where one was what the step failed by.
    /// Where a person took the deployment up again, failures wait for a person.
    pub(super) fn on_failure_of(&self, i: usize) -> StepFailure {
        match self.said_of_failure(i) {
            StepFailure::Stop | StepFailure::Rollback if self.run > 1 => StepFailure::Pause,
            said => said,
        }
    }

    fn said_of_failure(&self, i: usize) -> StepFailure {
        let mut step = &self.steps[i];
        let timeout = step.class == Some(crate::work::FailureClass::Timeout);
        loop {
            if let Some(f) = step.on_timeout.filter(|_| timeout).or(step.on_failure) {
                return f;
            }
            let scope = step.scope();
            match self.steps.iter().find(|s| !scope.is_empty() && s.id == scope) {
                Some(outer) => step = outer,
                None => break,
            }
        }
        match self.on_failure {
            OnFailure::Pause => StepFailure::Pause,
            OnFailure::Stop => StepFailure::Stop,
            OnFailure::Rollback => StepFailure::Rollback,
        }
    }

    /// Failed, and that is not borne: it ends the deployment, or a person has to do something.
    pub(super) fn has_failed(&self, i: usize) -> bool {
        let s = &self.steps[i];
        match (&s.kind, s.state) {
            (_, StepState::Failed) => self.on_failure_of(i) != StepFailure::Continue,
            (StepRunKind::Rollout(r), StepState::Running) => r.waves.iter().any(|w| w.state == WaveState::Failed),
            _ => false,
        }
    }

    /// A failure has happened that ends the deployment as soon as nothing is under way.
    pub(super) fn is_stopping(&self) -> bool {
        let ends = |i: usize| matches!(self.on_failure_of(i), StepFailure::Stop | StepFailure::Rollback);
        (0..self.steps.len()).any(|i| self.has_failed(i) && ends(i))
    }

    /// Nothing new starts while an operator's pause stands, nor once a failure ends the deployment.
    pub(super) fn may_start(&self) -> bool {
        self.pause.is_none() && !self.is_stopping()
    }

    /// Nothing changes it any more (but a repeat of the subflow it stands in).
    pub(super) fn has_ended(&self, i: usize) -> bool {
        match self.steps[i].state {
            StepState::Succeeded | StepState::NotTaken | StepState::Stopped => true,
            StepState::Skipped => self.steps[i].reached,
            StepState::Failed => !self.has_failed(i),
            StepState::Waiting | StepState::Running => false,
        }
    }

    /// The steps of a subflow, or of the flow (`""`); those of subflows within excepted.
    pub(super) fn members(&self, scope: &str) -> impl Iterator<Item = usize> {
        self.steps.iter().enumerate().filter(move |(_, s)| s.scope() == scope).map(|(i, _)| i)
    }

    /// Every step of a subflow, those of subflows within included, but for the way in and out.
    pub(super) fn within(&self, scope: &str) -> Vec<usize> {
        let inside = |s: &StepRun| {
            let at = s.scope();
            at == scope || at.strip_prefix(scope).is_some_and(|rest| rest.starts_with('/'))
        };
        self.steps.iter().enumerate().filter(|(_, s)| inside(s)).map(|(i, _)| i).collect()
    }

    fn edge(&self, n: usize, to: &str) -> Edge {
        let s = &self.steps[n];
        match (s.state, &s.kind) {
            (StepState::Succeeded, StepRunKind::Gateway(g)) => match &g.taken {
                Some(taken) if taken.iter().any(|t| t == to) => Edge::Success,
                _ if g.gateway.leads_to(to) => Edge::Dead,
                _ => Edge::Success,
            },
            (StepState::Succeeded, _) => Edge::Success,
            (StepState::Skipped, _) if !s.reached => Edge::Open,
            (StepState::Skipped, StepRunKind::Enter { .. }) => Edge::Dead,
            (StepState::Skipped, StepRunKind::Gateway(g)) if g.gateway.leads_to(to) => Edge::Dead,
            (StepState::Skipped, _) => Edge::Success,
            (StepState::NotTaken, _) => Edge::Dead,
            (StepState::Stopped, _) => Edge::Failure,
            (StepState::Failed, _) if self.has_ended(n) => Edge::Failure,
            (StepState::Failed | StepState::Waiting | StepState::Running, _) => Edge::Open,
        }
    }
}
