//! Whether this host may run what it is offered: proof, approvals, local policy.

use nkeys::KeyPair;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, collections::BTreeSet, path::Path};
use windlass_contracts::frames::{Offer, RefuseCode};
use windlass_domain::{Timestamp, approval::Decision, plan};

/// Actions this agent knows.
const ACTIONS: [&str; 8] = [
    "artifact.fetch",
    "artifact.verify",
    "release.switch",
    "service.restart",
    "script",
    "file.put",
    "http.check",
    "lb.member",
];

/// `policy.yaml` of the state directory. It belongs to the host's administrator: not even a control plane in wrong hands
/// can pass it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Projects that may run here; empty means all.
    pub allowed_projects: Vec<String>,
    /// Environment name to what it needs. As soon as one is named, others need as many approvals as the strictest of them;
    /// `approvals: 0` lets an environment run without.
    pub protected_environments: BTreeMap<String, ProtectedEnvironment>,
    /// Tasks at the same time.
    pub max_parallel: u32,
    /// Actions that may run here; empty means all.
    pub allowed_actions: Vec<String>,
    /// Users `script` may run as besides the agent's own.
    pub run_as: Vec<String>,
    /// Absolute directories `file.put` may write below, besides the deployment root.
    pub writable: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            allowed_projects: vec![],
            protected_environments: BTreeMap::new(),
            max_parallel: 4,
            allowed_actions: vec![],
            run_as: vec![],
            writable: vec![],
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtectedEnvironment {
    /// Distinct people whose signed approval of this plan the offer must carry.
    pub approvals: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("cannot read the policy {0}")]
    Read(String, #[source] std::io::Error),
    #[error("the policy {0} is not valid; fix it or remove it to allow everything")]
    Parse(String, #[source] Box<serde_saphyr::Error>),
    #[error("the policy {0} may be changed by others than its owner; run `chmod go-w` on it")]
    Writable(String),
}

impl Policy {
    /// How many people must have signed what runs for this environment. One that the policy does not name is protected like
    /// the strictest it names: whoever holds the executor's key chooses the name.
    fn approvals_for(&self, environment: &str) -> u32 {
        let all = &self.protected_environments;
        let strictest = || all.values().map(|p| p.approvals).max();
        all.get(environment).map(|p| p.approvals).or_else(strictest).unwrap_or(0)
    }

    /// Reads `policy.yaml`; a missing file allows everything that is proven.
    pub fn load(path: &Path) -> Result<Policy, PolicyError> {
        use std::os::unix::fs::MetadataExt;
        let name = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(t) => t,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Policy::default()),
            Err(e) => return Err(PolicyError::Read(name, e)),
        };
        let mode = std::fs::metadata(path).map_err(|e| PolicyError::Read(name.clone(), e))?.mode();
        if mode & 0o022 != 0 {
            return Err(PolicyError::Writable(name));
        }
        if text.trim().is_empty() {
            return Ok(Policy::default());
        }
        serde_saphyr::from_str(&text).map_err(|e| PolicyError::Parse(name, Box::new(e)))
    }
}

/// Checks offers.
pub struct Verifier {
    pub policy: Policy,
    /// The host's name as enrolled.
    pub host: String,
    /// The api's approval key.
    pub approval_key: KeyPair,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("policy", &self.policy).field("host", &self.host).finish_non_exhaustive()
    }
}

type Refused = (RefuseCode, String);

impl Verifier {
    /// `running`: tasks that run here or may be granted any moment.
    pub(super) fn check(&self, o: &Offer, running: usize, now: Timestamp) -> Result<(), Refused> {
        if now > o.not_after {
            let detail = format!("the offer ran out at {}; this host's clock says {now}", o.not_after);
            return Err((RefuseCode::Unproven, detail));
        }
        if o.spec.host != self.host {
            let detail = format!("the task is for host {}, this one is enrolled as {}", o.spec.host, self.host);
            return Err((RefuseCode::Unproven, detail));
        }
        if !plan::verify_spec(&o.spec, &o.proof) {
            let detail = "the task does not belong to the plan it names".to_owned();
            return Err((RefuseCode::Unproven, detail));
        }
        self.policy(o)?;
        self.approvals(o)?;
        if running >= self.policy.max_parallel as usize {
            let detail = format!("{running} tasks run here, the host's limit is {}", self.policy.max_parallel);
            return Err((RefuseCode::Busy, detail));
        }
        Ok(())
    }

    fn policy(&self, o: &Offer) -> Result<(), Refused> {
        let p = &self.policy;
        if !p.allowed_projects.is_empty() && !p.allowed_projects.contains(&o.spec.project) {
            return Err((RefuseCode::Policy, format!("this host's policy does not allow project {}", o.spec.project)));
        }
        // At the end there is nothing left to run: only the host's traffic had failed before.
        if o.spec.steps.is_empty() || o.start_at as usize > o.spec.steps.len() {
            let detail = format!("the task has {} steps and should start at {}", o.spec.steps.len(), o.start_at);
            return Err((RefuseCode::Invalid, detail));
        }
        for s in &o.spec.steps {
            if !ACTIONS.contains(&s.action.as_str()) {
                let detail = format!("step {}: this agent does not know the action {:?}", s.id, s.action);
                return Err((RefuseCode::Invalid, detail));
            }
            if !p.allowed_actions.is_empty() && !p.allowed_actions.contains(&s.action) {
                let detail = format!("step {}: this host's policy does not allow the action {}", s.id, s.action);
                return Err((RefuseCode::Policy, detail));
            }
        }
        Ok(())
    }

    fn approvals(&self, o: &Offer) -> Result<(), Refused> {
        let needs = self.policy.approvals_for(&o.spec.environment);
        if needs == 0 {
            return Ok(());
        }
        let people: BTreeSet<&str> = o
            .approvals
            .iter()
            .filter(|a| {
                a.decision == Decision::Approve
                    && a.deployment == o.deployment
                    && a.plan_digest == o.proof.digest.digest
                    && self.signed(a)
            })
            .map(|a| a.person.as_str())
            .collect();
        if people.len() < needs as usize {
            let mut detail = format!(
                "environment {} needs {needs} signed approvals of this plan on this host, the offer carries {} valid ones",
                o.spec.environment,
                people.len()
            );
            if !self.policy.protected_environments.contains_key(&o.spec.environment) {
                detail += "; the host's policy does not name it, so it is protected like the strictest one there";
            }
            return Err((RefuseCode::Unproven, detail));
        }
        Ok(())
    }

    fn signed(&self, a: &windlass_domain::approval::Approval) -> bool {
        use base64::{Engine, engine::general_purpose};
        let Ok(sig) = general_purpose::STANDARD
            .decode(&a.signature)
            .or_else(|_| general_purpose::URL_SAFE_NO_PAD.decode(&a.signature))
        else {
            return false;
        };
        self.approval_key.verify(a.signed_text().as_bytes(), &sig).is_ok()
    }
}
