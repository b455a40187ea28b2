//! The digest of a plan and proofs that a task spec belongs to it.

use super::{Plan, PlanDigest, PlanError, PlanRollout, PlanStepKind, SpecProof, canonical_json, render, segment};
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
    specs: Specs,
    /// By segment and index in the plan's hosts.
    leaf: BTreeMap<(u32, u32), u64>,
}

/// What makes the specs of one rollout.
#[derive(Debug)]
struct Specs {
    main: render::Compiled,
    probes: Option<render::Compiled>,
}

impl Specs {
    fn new(plan: &Plan, step: &str, r: &PlanRollout) -> Result<Specs, PlanError> {
        let main = render::Compiled::new(plan, step)?;
        Ok(Specs { main, probes: render::Compiled::probes(plan, step, r)? })
    }

    fn spec(&self, plan: &Plan, step: &str, r: &PlanRollout, segment: u32, host: u32) -> Result<TaskSpec, PlanError> {
        let unknown = || PlanError::UnknownHost { step: step.into(), host };
        let facts = plan.hosts.get(host as usize).ok_or_else(unknown)?;
        let none = || PlanError::UnknownSegment { step: step.into(), segment, host };
        match segment {
            segment::MAIN => self.main.spec(plan, facts),
            segment::PROBES => self.probes.as_ref().ok_or_else(none)?.spec(plan, facts),
            _ => segment::member(plan, step, r, segment, host).ok_or_else(none),
        }
    }
}

impl PlanTree {
    pub fn new(plan: &Plan) -> Result<PlanTree, PlanError> {
        let mut leaves: Vec<Hash> = Vec::new();
        let mut rollouts = BTreeMap::new();
        for step in plan.steps.iter().filter(|s| !s.skipped) {
            let PlanStepKind::Rollout(r) = &step.kind else { continue };
            let specs = Specs::new(plan, &step.id, r)?;
            let mut leaf = BTreeMap::new();
            let main = r.waves.iter().flatten().map(|h| (segment::MAIN, *h));
            for (segment, h) in main.chain(segment::others(r)) {
                leaf.insert((segment, h), leaves.len() as u64);
                leaves.push(spec_hash(&specs.spec(plan, &step.id, r, segment, h)?).ok_or(PlanError::Json)?);
            }
            rollouts.insert(step.id.clone(), Rollout { specs, leaf });
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
        self.offer_at(plan, step, segment::MAIN, host)
    }

    /// The spec of one task of a rollout and its proof. `host` is the index of the wave's host in the plan, also where the
    /// task runs on a load balancer's host; `plan` must be the one the tree was made of.
    pub fn offer_at(
        &self,
        plan: &Plan,
        step: &str,
        segment: u32,
        host: u32,
    ) -> Result<(TaskSpec, SpecProof), PlanError> {
        let proof = self.proof_at(step, segment, host)?;
        let r = self.rollouts.get(step).ok_or_else(|| PlanError::UnknownStep(step.into()))?;
        Ok((r.specs.spec(plan, step, render::rollout(plan, step)?, segment, host)?, proof))
    }

    /// The proof that the spec of this host belongs to the plan.
    pub fn proof(&self, step: &str, host: u32) -> Result<SpecProof, PlanError> {
        self.proof_at(step, segment::MAIN, host)
    }

    /// The proof that the spec of this segment for this host belongs to the plan.
    pub fn proof_at(&self, step: &str, segment: u32, host: u32) -> Result<SpecProof, PlanError> {
        let r = self.rollouts.get(step).ok_or_else(|| PlanError::UnknownStep(step.into()))?;
        let unknown = || match segment {
            segment::MAIN => PlanError::UnknownHost { step: step.into(), host },
            _ => PlanError::UnknownSegment { step: step.into(), segment, host },
        };
        let index = *r.leaf.get(&(segment, host)).ok_or_else(unknown)?;
        let path = self.tree.proof(index).ok_or_else(unknown)?;
        Ok(SpecProof { digest: self.digest.clone(), index, path: path.iter().map(Hash::to_string).collect() })
    }
}

impl Plan {
    /// The digest people approve. Renders every spec: keep it, or use a [`PlanTree`].
    pub fn digest(&self) -> Result<PlanDigest, PlanError> {
        Ok(PlanTree::new(self)?.digest)
    }

    /// What is asked of an agent in this segment of a rollout, for the wave's host with this index. For many use a
    /// [`PlanTree`].
    pub fn task_spec_at(&self, step: &str, segment: u32, host: u32) -> Result<TaskSpec, PlanError> {
        let r = render::rollout(self, step)?;
        let in_waves = r.waves.iter().flatten().any(|h| *h == host);
        if !in_waves {
            return Err(PlanError::UnknownHost { step: step.into(), host });
        }
        Specs::new(self, step, r)?.spec(self, step, r, segment, host)
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
