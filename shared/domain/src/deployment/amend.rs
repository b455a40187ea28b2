//! Other inputs for what has yet to run: a new plan of the same release, with the same steps, waves and hosts. Until its rules
//! are met by approvals of its own digest nothing runs under it; what runs meanwhile keeps the plan it was made under.

use super::{mend::Scope, transition::Step, *};
use crate::approval::{self, Decision};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A person's wish for other inputs.
pub(super) struct Wish {
    pub by: By,
    pub inputs: BTreeMap<String, Value>,
    pub facts: PlanFacts,
    pub hosts: Vec<String>,
}

impl Amendment {
    /// What is still missing, as for a deployment that its maker requested.
    pub fn missing(&self) -> Vec<approval::Missing> {
        approval::missing(&self.facts.rules, &self.by.who, &self.facts.digest, &self.approvals)
    }
}

impl Deployment {
    /// Whether this person may decide on the plan that waits: whoever asked for it, and whoever asked for the deployment, may
    /// not approve it.
    pub(super) fn may_decide_amendment(
        &self,
        person: &str,
        digest: &str,
        decision: Decision,
    ) -> Result<(), approval::Refusal> {
        let Some(a) = &self.amendment else { return Err(approval::Refusal::NotAsked(person.into())) };
        if person == self.requested_by && decision == Decision::Approve && digest == a.facts.digest {
            return Err(approval::Refusal::OwnRequest(person.into()));
        }
        approval::check(&a.facts.rules, &a.by.who, &a.facts.digest, &a.approvals, person, digest, decision)
    }
}

impl Step<'_> {
    pub(super) fn amend(&mut self, wish: Wish) -> Result<(), Refusal> {
        let Wish { by, inputs, facts, hosts } = wish;
        self.step_in(&by.who)?;
        self.hosts_exist(&hosts)?;
        if !(0..self.d.steps.len()).any(|i| self.d.has_failed(i)) {
            return Err(Refusal::NothingToDo("nothing has failed: there is nothing to retry with other inputs".into()));
        }
        if facts.digest == self.d.plan_digest {
            return Err(Refusal::NothingToDo("these inputs change nothing about the plan: retry as it is".into()));
        }
        if let Some(other) = self.d.other_shape(&facts.steps) {
            return Err(Refusal::Invalid(format!(
                "with these inputs the plan has another shape ({other}): only parameters may change; request a new deployment"
            )));
        }
        let replaced = self.d.amendment.take().map(|a| a.facts.digest);
        let needs = !facts.rules.is_empty();
        let amendment = Amendment { by, inputs, facts, approvals: Vec::new(), hosts };
        let payload = json!({ "by": amendment.by.who, "reason": amendment.by.reason, "inputs": amendment.inputs,
            "old": self.d.plan_digest, "digest": amendment.facts.digest, "missing": amendment.missing(),
            "replaces": replaced });
        let severity = if needs { Severity::Action } else { Severity::Notice };
        self.event("deployment.amended", severity, payload);
        self.d.amendment = Some(Box::new(amendment));
        if !needs {
            self.go_on_amended();
        }
        Ok(())
    }

    /// A decision on the plan that waits. The first rejection drops it.
    pub(super) fn decide_amendment(&mut self, a: Approval) -> Result<(), Refusal> {
        self.d.may_decide_amendment(&a.person, &a.plan_digest, a.decision)?;
        let Some(amendment) = &mut self.d.amendment else { return Ok(()) };
        let payload = json!({ "by": a.person, "digest": a.plan_digest, "comment": a.comment, "amendment": true });
        match a.decision {
            Decision::Reject => {
                self.d.amendment = None;
                self.event("deployment.amendment_rejected", Severity::Notice, payload);
            }
            Decision::Approve => {
                amendment.approvals.push(a);
                let met = amendment.missing().is_empty();
                self.event("deployment.approval_given", Severity::Info, payload);
                if met {
                    let people = self.d.amendment.iter().flat_map(|a| &a.approvals).map(|a| a.person.clone());
                    let people: Vec<String> = people.collect();
                    let digest = self.d.amendment.as_ref().map(|a| a.facts.digest.clone());
                    let payload = json!({ "by": people, "digest": digest });
                    self.event("deployment.amendment_approved", Severity::Notice, payload);
                    self.go_on_amended();
                }
            }
        }
        Ok(())
    }

    /// The new plan counts from here on, and what failed is retried under it.
    fn go_on_amended(&mut self) {
        let Some(amendment) = self.d.amendment.take() else { return };
        let Amendment { facts, approvals, hosts, .. } = *amendment;
        let d = &mut self.d;
        d.plan_digest = facts.digest;
        d.rules = facts.rules;
        d.approvals = approvals;
        d.on_failure = facts.on_failure;
        d.patience = facts.patience;
        d.automatic = facts.automatic;
        d.context = merged(std::mem::take(&mut d.context), facts.context);
        for (step, new) in d.steps.iter_mut().zip(facts.steps) {
            if step.state != StepState::Succeeded {
                step.take_over(new);
            }
        }
        // Another person may have dealt with the failures meanwhile: then the new plan holds for what is yet to come.
        if let Ok(touched) = self.retry_failed(&Scope { hosts, ..Scope::default() }) {
            let payload = json!({ "by": "windlass", "verb": "retry", "on": touched, "digest": self.d.plan_digest });
            self.event("deployment.intervened", Severity::Info, payload);
        }
    }
}

/// The new plan's context, with the values that subflows were entered with: they have been read already.
fn merged(
    old: serde_json::Map<String, Value>,
    mut new: serde_json::Map<String, Value>,
) -> serde_json::Map<String, Value> {
    let scopes = old.get(expressions::SCOPES).and_then(Value::as_object);
    for (scope, known) in scopes.into_iter().flatten() {
        let Some(values) = known.get("values") else { continue };
        if let Some(Value::Object(s)) = new.get_mut(expressions::SCOPES).and_then(|s| s.get_mut(scope)) {
            s.entry("values").or_insert_with(|| values.clone());
        }
    }
    new
}

impl Deployment {
    /// How a plan differs from what runs where it must not: in its steps, waves and hosts, or in what has begun.
    fn other_shape(&self, new: &[StepRun]) -> Option<String> {
        if let Some((a, b)) = self.steps.iter().zip(new).find(|(a, b)| a.id != b.id) {
            return Some(format!("step {} where {} was", b.id, a.id));
        }
        if self.steps.len() != new.len() {
            return Some(format!("{} steps where there were {}", new.len(), self.steps.len()));
        }
        self.steps.iter().zip(new).find_map(|(a, b)| a.other_shape(b).map(|why| format!("step {}: {why}", a.id)))
    }
}

impl StepRun {
    fn other_shape(&self, new: &StepRun) -> Option<String> {
        if self.needs != new.needs || self.join != new.join {
            return Some("it needs other steps".into());
        }
        let begun = matches!(self.state, StepState::Running | StepState::Failed);
        if begun && new.state != StepState::Waiting {
            return Some("it has begun, and would be left out".into());
        }
        match (&self.kind, &new.kind) {
            (StepRunKind::Central { action: a, .. }, StepRunKind::Central { action: b, .. }) => {
                (a != b).then(|| format!("{b} instead of {a}"))
            }
            (StepRunKind::Enter { scope: a }, StepRunKind::Enter { scope: b })
            | (StepRunKind::Leave { scope: a }, StepRunKind::Leave { scope: b }) => {
                (a != b).then(|| format!("subflow {b} instead of {a}"))
            }
            (StepRunKind::Gateway(a), StepRunKind::Gateway(b)) => {
                let shape = |g: &GatewayRun| -> Vec<(String, Vec<String>)> {
                    g.gateway.branches.iter().map(|b| (b.name.clone(), b.to.clone())).collect()
                };
                let same = shape(a) == shape(b) && a.gateway.default == b.gateway.default;
                (!same).then(|| "it has other branches".into())
            }
            (StepRunKind::Rollout(a), StepRunKind::Rollout(b)) => a.other_shape(b),
            _ => Some("it is a step of another kind".into()),
        }
    }

    /// What the new plan says about a step that has not ended well; where it stands stays.
    fn take_over(&mut self, new: StepRun) {
        self.condition = new.condition;
        self.on_failure = new.on_failure;
        self.required = new.required;
        self.retry = new.retry;
        self.on_timeout = new.on_timeout;
        self.phase = new.phase;
        self.reads = new.reads;
        if let (Some(r), Some(n)) = (&mut self.repeat, new.repeat) {
            (r.until, r.max, r.every_s) = (n.until, n.max, n.every_s);
        }
        self.left_out = new.left_out;
        // What has not come to its turn is as the new plan has it; its turn then tells, by what the steps before it did.
        let open = match self.state {
            StepState::Waiting => !self.reached && self.asks.is_none(),
            StepState::Skipped => !self.reached,
            StepState::NotTaken => true,
            _ => false,
        };
        if open {
            self.state = new.state;
        }
        match (&mut self.kind, new.kind) {
            (StepRunKind::Gateway(g), StepRunKind::Gateway(n)) if g.taken.is_none() => g.gateway = n.gateway,
            (StepRunKind::Rollout(r), StepRunKind::Rollout(n)) => {
                for (w, n) in r.waves.iter_mut().zip(&n.waves) {
                    w.max_failures = n.max_failures;
                }
                (r.confirm, r.bake_s, r.max_failures) = (n.confirm, n.bake_s, n.max_failures);
                (r.parallel, r.stagger, r.probes, r.required) = (n.parallel, n.stagger, n.probes, n.required);
            }
            _ => {}
        }
    }
}

impl RolloutRun {
    fn other_shape(&self, new: &RolloutRun) -> Option<String> {
        if self.host_steps != new.host_steps {
            return Some("its hosts run other steps".into());
        }
        if self.waves.len() != new.waves.len() {
            return Some(format!("{} waves where there were {}", new.waves.len(), self.waves.len()));
        }
        for (w, (a, b)) in self.waves.iter().zip(&new.waves).enumerate() {
            if a.hosts.len() != b.hosts.len() {
                return Some(format!("wave {} has other hosts", w + 1));
            }
            for (x, y) in a.hosts.iter().zip(&b.hosts) {
                if x.host != y.host {
                    return Some(format!("wave {} has {} where {} was", w + 1, y.host, x.host));
                }
                // A host goes on at a step by its number: the numbers must mean the same.
                if x.steps != y.steps {
                    return Some(format!("host {} runs other steps", x.host));
                }
            }
        }
        None
    }
}
