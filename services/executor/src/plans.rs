//! Plans as executors need them: loaded once, with everything an OFFER carries.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};
use windlass_domain::{
    approval::Approval,
    ids::DeploymentId,
    plan::{Plan, PlanRollout, PlanStepKind, PlanTree, SpecProof, Undo, segment},
    task::TaskSpec,
};
use windlass_store::{Store, deployments, tasks};

/// Plans kept in memory; a plan of 500 hosts is some hundred kilobytes.
const KEPT: usize = 32;

#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum PlanProblem {
    #[error("the plan {digest} of deployment {deployment} is not in the database")]
    Absent { deployment: DeploymentId, digest: String },
    #[error("the plan has no {what} `{name}`")]
    Unknown { what: &'static str, name: String },
    #[error("the plan cannot be used: {reason}")]
    Unusable { reason: String },
    #[error("the task of host `{host}` cannot be made from the plan: {reason}")]
    Spec { host: String, reason: String },
}

/// By step, segment and host.
type Offers = HashMap<(String, u32, String), Arc<(TaskSpec, SpecProof)>>;

/// A plan with its approvals and the hash tree that proves its task specs.
#[derive(Debug)]
pub(crate) struct PlanView {
    pub(crate) plan: Plan,
    pub(crate) approvals: Vec<Approval>,
    tree: PlanTree,
    /// Specs as far as they were asked for: an offer may be sent many times.
    offers: Mutex<Offers>,
}

impl PlanView {
    pub(crate) fn new(plan: Plan, approvals: Vec<Approval>) -> Result<PlanView, PlanProblem> {
        let tree = PlanTree::new(&plan).map_err(|e| PlanProblem::Unusable { reason: e.to_string() })?;
        Ok(PlanView { plan, approvals, tree, offers: Mutex::default() })
    }

    /// What a host is to run in this segment of a rollout, and the proof that the plan says so. `host` is where it runs: the
    /// wave's host, or that of a load balancer, whose segment says which host of the wave it is about.
    pub(crate) fn offer_at(
        &self,
        step: &str,
        segment: u32,
        host: &str,
    ) -> Result<Arc<(TaskSpec, SpecProof)>, PlanProblem> {
        let key = (step.to_owned(), segment, host.to_owned());
        let offers = || self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(o) = offers().get(&key) {
            return Ok(Arc::clone(o));
        }
        let index = match segment::of_traffic(segment) {
            Some((_, of, _)) => Some(of),
            None => self.plan.host_index(host),
        };
        let index = index.ok_or_else(|| PlanProblem::Unknown { what: "host", name: host.into() })?;
        let spec = |e: windlass_domain::plan::PlanError| PlanProblem::Spec { host: host.into(), reason: e.to_string() };
        let offer = Arc::new(self.tree.offer_at(&self.plan, step, segment, index).map_err(spec)?);
        if offer.0.host != host {
            return Err(PlanProblem::Unknown { what: "task of the rollout on host", name: host.into() });
        }
        offers().insert(key, Arc::clone(&offer));
        Ok(offer)
    }

    /// The rollout of a step.
    pub(crate) fn rollout(&self, step: &str) -> Option<&PlanRollout> {
        match self.plan.steps.iter().find(|s| s.id == step).map(|s| &s.kind) {
            Some(PlanStepKind::Rollout(r)) => Some(r),
            _ => None,
        }
    }

    /// Ids of the host steps of a rollout that handle the package.
    pub(crate) fn artifact_steps(&self, step: &str) -> BTreeSet<String> {
        let steps = self.rollout(step).map(|r| r.steps.as_slice()).unwrap_or_default();
        steps.iter().filter(|s| s.action.starts_with("artifact.")).map(|s| s.id.clone()).collect()
    }

    /// What a central step takes back, in a rollback.
    pub(crate) fn undo(&self, step: &str) -> Option<&Undo> {
        self.plan.steps.iter().find(|s| s.id == step)?.undo.as_ref()
    }

    /// Action, parameters and timeout of a central step.
    pub(crate) fn central(
        &self,
        step: &str,
    ) -> Result<(&str, &serde_json::Map<String, serde_json::Value>, u32), PlanProblem> {
        match self.plan.steps.iter().find(|s| s.id == step).map(|s| &s.kind) {
            Some(PlanStepKind::Central { action, with, timeout_s }) => Ok((action, with, *timeout_s)),
            _ => Err(PlanProblem::Unknown { what: "central step", name: step.into() }),
        }
    }
}

/// Plans never change, so what is loaded stays right.
#[derive(Debug, Default)]
pub(crate) struct Plans(Mutex<HashMap<(DeploymentId, String), Arc<PlanView>>>);

impl Plans {
    pub(crate) async fn get(
        &self,
        store: &Store,
        deployment: DeploymentId,
        digest: &str,
    ) -> Result<Result<Arc<PlanView>, PlanProblem>, windlass_store::Error> {
        let key = (deployment, digest.to_owned());
        if let Some(v) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Ok(Arc::clone(v)));
        }
        let mut tx = store.read().await?;
        let Some(plan) = deployments::plan(&mut tx, deployment, digest).await? else {
            return Ok(Err(PlanProblem::Absent { deployment, digest: digest.into() }));
        };
        let approvals = tasks::approvals(&mut tx, deployment, digest).await?;
        drop(tx);
        let view = match PlanView::new(plan, approvals) {
            // What people approved is a digest; what stands under it must be what it was made of.
            Ok(v) if v.tree.digest().digest != digest => {
                let reason =
                    format!("it was changed after it was stored: {digest} has become {}", v.tree.digest().digest);
                return Ok(Err(PlanProblem::Unusable { reason }));
            }
            Ok(v) => Arc::new(v),
            Err(e) => return Ok(Err(e)),
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(key, Arc::clone(&view));
        Ok(Ok(view))
    }
}
