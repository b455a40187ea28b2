//! From the catalog to a plan: what a release would do to an environment as both are now.

use crate::{Error, Tx, catalog};
use std::collections::{BTreeMap, BTreeSet};
use windlass_domain::{
    approval::ApprovalRule,
    artifact::Artifact,
    catalog::{Environment, Host, Item, Kind, Policy},
    deployment::PlanFacts,
    flow::Flow,
    plan::{self, HostFacts, Plan},
    release::{Release, ReleaseKind, RollbackMode},
    selector::Selector,
};

/// A week: how long a deployment may wait before it expires, unless a policy says otherwise.
const DEFAULT_EXPIRY_S: u64 = 7 * 24 * 3600;

/// Why no plan can be made; the text is for the person who asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unplannable(pub String);

/// What the catalog says about one environment, read in one go.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Changes with every save of the catalog: a plan made from this snapshot is current as long as the stamp is.
    pub stamp: i64,
    pub environment: Environment,
    hosts: Vec<Host>,
    policies: Vec<Policy>,
}

/// A plan with what the deployment keeps of it.
#[derive(Debug, Clone)]
pub struct Planned {
    pub plan: Plan,
    pub facts: PlanFacts,
    pub stamp: i64,
    pub expires_s: u64,
    pub pool: String,
}

impl Snapshot {
    pub async fn read(tx: &mut Tx, project: &str, environment: &str) -> Result<Result<Snapshot, Unplannable>, Error> {
        let stamp = catalog::stamp(tx).await?;
        let Some(Item::Environment(env)) = item(tx, Kind::Environment, &format!("{project}/{environment}")).await?
        else {
            let known = catalog::keys(tx, Kind::Environment, Some(project)).await?;
            let known: Vec<&str> = known.iter().filter_map(|k| k.split('/').nth(1)).collect();
            let text = format!("project {project:?} has no environment {environment:?} (it has: {})", known.join(", "));
            return Ok(Err(Unplannable(text)));
        };
        let mut hosts = Vec::new();
        let mut policies = Vec::new();
        if env.selector.is_some() {
            for i in catalog::all(tx, Kind::Host).await? {
                if let Item::Host(h) = i {
                    hosts.push(h);
                }
            }
        } else {
            for name in &env.hosts {
                match item(tx, Kind::Host, name).await? {
                    Some(Item::Host(h)) => hosts.push(h),
                    _ => {
                        let text = format!(
                            "environment {project}/{environment} names host {name:?}, which is not in the catalog"
                        );
                        return Ok(Err(Unplannable(text)));
                    }
                }
            }
        }
        for i in catalog::all(tx, Kind::Policy).await? {
            if let Item::Policy(p) = i
                && p.matches.fits(&env)
            {
                policies.push(p);
            }
        }
        Ok(Ok(Snapshot { stamp, environment: env, hosts, policies }))
    }

    /// Hosts in the order they are released to: those named first, then those selected, by name.
    fn targets(&self, only: &[String]) -> Result<Vec<HostFacts>, Unplannable> {
        let by_name: BTreeMap<&str, &Host> = self.hosts.iter().map(|h| (h.name.as_str(), h)).collect();
        let mut names: Vec<&str> = self.environment.hosts.iter().map(String::as_str).collect();
        if let Some(text) = &self.environment.selector {
            let selector: Selector = text
                .parse()
                .map_err(|e| Unplannable(format!("the environment's selector {text:?} is not valid: {e}")))?;
            names.extend(by_name.values().filter(|h| selector.matches(&h.labels)).map(|h| h.name.as_str()));
        }
        let mut seen = BTreeSet::new();
        names.retain(|n| seen.insert(*n));
        if let Some(stranger) = only.iter().find(|o| !names.contains(&o.as_str())) {
            let (p, e) = (&self.environment.project, &self.environment.name);
            return Err(Unplannable(format!("host {stranger:?} does not belong to environment {p}/{e}")));
        }
        if !only.is_empty() {
            names.retain(|n| only.iter().any(|o| o == n));
        }
        names
            .into_iter()
            .map(|n| {
                let h = by_name.get(n).ok_or_else(|| Unplannable(format!("host {n:?} is not in the catalog")))?;
                Ok(HostFacts {
                    name: h.name.clone(),
                    address: h.address.clone(),
                    labels: h.labels.clone(),
                    values: h.values.clone(),
                    files: h.files.clone(),
                })
            })
            .collect()
    }

    fn rules(&self, kind: ReleaseKind) -> Vec<ApprovalRule> {
        self.policies
            .iter()
            .filter(|p| kind != ReleaseKind::Rollback || p.approve_rollbacks)
            .flat_map(|p| {
                p.approvals.iter().map(|r| ApprovalRule { name: format!("{}/{}", p.name, r.name), ..r.clone() })
            })
            .collect()
    }

    /// Pure but for its inputs: the same snapshot, release and artifact give the same digest.
    pub fn plan(
        &self,
        release: &Release,
        artifact: &Artifact,
        rollback: Option<RollbackMode>,
        only: &[String],
    ) -> Result<Planned, Unplannable> {
        let input = plan::BuildInput {
            project: &release.project,
            environment: &self.environment,
            release,
            artifact,
            hosts: self.targets(only)?,
            rollback,
            approvals: self.rules(release.kind),
        };
        let plan = plan::build(input).map_err(|e| Unplannable(e.to_string()))?;
        let digest = plan.digest().map_err(|e| Unplannable(e.to_string()))?;
        Ok(Planned {
            facts: PlanFacts::of(&plan, &digest.digest),
            stamp: self.stamp,
            expires_s: self.policies.iter().filter_map(|p| p.expires_s).min().unwrap_or(DEFAULT_EXPIRY_S),
            pool: self.environment.pool.clone(),
            plan,
        })
    }
}

/// The flow an environment releases with, and its revision.
pub async fn flow_of(tx: &mut Tx, env: &Environment) -> Result<Result<(Flow, u64), Unplannable>, Error> {
    let key = format!("{}/{}", env.project, env.flow);
    match catalog::get(tx, Kind::Flow, &key).await? {
        Some(e) => match e.item {
            Item::Flow { flow, .. } => Ok(Ok((flow, e.revision))),
            _ => Ok(Err(Unplannable(format!("catalog entry {key} is not a flow")))),
        },
        None => Ok(Err(Unplannable(format!(
            "environment {}/{} releases with flow {:?}, which does not exist",
            env.project, env.name, env.flow
        )))),
    }
}

async fn item(tx: &mut Tx, kind: Kind, key: &str) -> Result<Option<Item>, Error> {
    Ok(catalog::get(tx, kind, key).await?.map(|e| e.item))
}
