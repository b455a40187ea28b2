//! The digest of a plan and proofs that a task spec belongs to it.

use super::{Plan, PlanDigest, PlanError, PlanStepKind, SpecProof, canonical_json, render::Compiled};
use crate::{
    merkle::{Hash, Tree, leaf_hash, verify_inclusion},
    task::TaskSpec,
};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A plan's task specs and their Merkle tree, made once in time linear in hosts x steps; each proof is then logarithmic.
#[derive(Debug)]
pub struct PlanTree {
    digest: PlanDigest,
    tree: Tree,
    rollouts: BTreeMap<String, Rollout>,
}

#[derive(Debug)]
struct Rollout {
    compiled: Compiled,
    /// By index in the plan's hosts.
    leaf: BTreeMap<u32, u64>,
}

impl PlanTree {
    pub fn new(plan: &Plan) -> Result<PlanTree, PlanError> {
        let mut leaves: Vec<Hash> = Vec::new();
        let mut rollouts = BTreeMap::new();
        for step in plan.steps.iter().filter(|s| !s.skipped) {
            let PlanStepKind::Rollout(r) = &step.kind else { continue };
            let compiled = Compiled::new(plan, &step.id)?;
            let mut leaf = BTreeMap::new();
            for h in r.waves.iter().flatten() {
                let unknown = || PlanError::UnknownHost { step: step.id.clone(), host: *h };
                let host = plan.hosts.get(*h as usize).ok_or_else(unknown)?;
                leaf.insert(*h, leaves.len() as u64);
                leaves.push(spec_hash(&compiled.spec(plan, host)?).ok_or(PlanError::Json)?);
            }
            rollouts.insert(step.id.clone(), Rollout { compiled, leaf });
        }
        let body = Hash(Sha256::digest(canonical_json(plan).ok_or(PlanError::Json)?).into());
        let tree = Tree::new(leaves);
        let root = tree.root();
        let digest = PlanDigest {
            digest: combine(&body.to_string(), &root.to_string(), tree.size()),
            body: body.to_string(),
            root: root.to_string(),
            leaves: tree.size(),
        };
        Ok(PlanTree { digest, tree, rollouts })
    }

    pub fn digest(&self) -> &PlanDigest {
        &self.digest
    }

    /// The spec of a host and its proof. `plan` must be the one the tree was made of.
    pub fn offer(&self, plan: &Plan, step: &str, host: u32) -> Result<(TaskSpec, SpecProof), PlanError> {
        let proof = self.proof(step, host)?;
        let r = self.rollouts.get(step).ok_or_else(|| PlanError::UnknownStep(step.into()))?;
        let facts = plan.hosts.get(host as usize);
        let facts = facts.ok_or_else(|| PlanError::UnknownHost { step: step.into(), host })?;
        Ok((r.compiled.spec(plan, facts)?, proof))
    }

    /// The proof that the spec of this host belongs to the plan.
    pub fn proof(&self, step: &str, host: u32) -> Result<SpecProof, PlanError> {
        let r = self.rollouts.get(step).ok_or_else(|| PlanError::UnknownStep(step.into()))?;
        let unknown = || PlanError::UnknownHost { step: step.into(), host };
        let index = *r.leaf.get(&host).ok_or_else(unknown)?;
        let path = self.tree.proof(index).ok_or_else(unknown)?;
        Ok(SpecProof { digest: self.digest.clone(), index, path: path.iter().map(Hash::to_string).collect() })
    }
}

impl Plan {
    /// The digest people approve. Renders every spec: keep it, or use a [`PlanTree`].
    pub fn digest(&self) -> Result<PlanDigest, PlanError> {
        Ok(PlanTree::new(self)?.digest)
    }

    /// One proof; for many use a [`PlanTree`].
    pub fn proof(&self, step: &str, host: u32) -> Result<SpecProof, PlanError> {
        PlanTree::new(self)?.proof(step, host)
    }
}

fn spec_hash(spec: &TaskSpec) -> Option<Hash> {
    Some(leaf_hash(canonical_json(spec)?.as_bytes()))
}

fn combine(body: &str, root: &str, leaves: u64) -> String {
    let hash = Hash(Sha256::digest(format!("windlass-plan-v1\n{body}\n{root}\n{leaves}")).into());
    format!("sha256:{hash}")
}

/// Whether the proof shows that `spec` belongs to the plan whose digest is `proof.digest.digest`. Who calls it then
/// compares that digest with the one that was approved.
pub fn verify_spec(spec: &TaskSpec, proof: &SpecProof) -> bool {
    let d = &proof.digest;
    let (Ok(_), Ok(root)) = (d.body.parse::<Hash>(), d.root.parse::<Hash>()) else { return false };
    let Ok(path) = proof.path.iter().map(|h| h.parse()).collect::<Result<Vec<Hash>, _>>() else { return false };
    let Some(leaf) = spec_hash(spec) else { return false };
    combine(&d.body, &d.root, d.leaves) == d.digest && verify_inclusion(&leaf, proof.index, d.leaves, &path, &root)
}
