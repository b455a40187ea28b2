//! From the catalog to a plan: what a release would do to an environment as both are now. The scheduler plans what it runs
//! with it, the api what it shows before anything is requested: the same code, so the same digest.

mod secrets;
mod undo;

pub use undo::undoing;

use crate::{Error, Tx, agents, artifacts, catalog, deployments, sessions, ssh};
use std::collections::{BTreeMap, BTreeSet};
use windlass_domain::{
    Timestamp,
    approval::ApprovalRule,
    artifact::Artifact,
    catalog::{
        Connectivity, ConnectivityCheck, Environment, Group, Host, HostGroup, Item, Kind, Policy, Project, Shell,
        TemporaryHosts,
    },
    deployment::{Deployment, PlanFacts},
    flow::{Flow, StepKind, link::link},
    ids::{ArtifactId, ReleaseId},
    plan::{self, HostFacts, LeftOut, Plan, Surroundings, Undoing},
    platform,
    release::{Release, ReleaseKind, RollbackMode},
    targets::{self, Fleet, Wish},
    values::{Explained, Layers},
};

/// A week: how long a deployment may wait before it expires, unless a policy says otherwise.
const DEFAULT_EXPIRY_S: u64 = 7 * 24 * 3600;

/// Hosts that are read one by one; for more, all are read at once.
const ONE_BY_ONE: usize = 50;

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
    project: Option<Project>,
    group: Option<Group>,
    hosts: BTreeMap<String, Host>,
    groups: BTreeMap<String, HostGroup>,
    policies: Vec<Policy>,
    /// When the agent of a host was last heard; nothing for a host without a live agent. Now for one that is reached by SSH,
    /// unless the last connection to it failed.
    heard: BTreeMap<String, Timestamp>,
    now: Timestamp,
}

/// A plan with what the deployment keeps of it.
#[derive(Debug, Clone)]
pub struct Planned {
    pub plan: Plan,
    pub facts: PlanFacts,
    pub stamp: i64,
    pub expires_s: u64,
    pub pool: String,
    /// Hosts whose agent is not connected although a check asks for it: left out of the plan, or in it all the same.
    pub unconnected: Vec<String>,
}

/// What a release is made of, before it has an id.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
    pub project: &'a str,
    pub environment: &'a str,
    pub artifact: ArtifactId,
    pub kind: ReleaseKind,
    pub inputs: &'a BTreeMap<String, serde_json::Value>,
    pub values: &'a BTreeMap<String, serde_json::Value>,
    pub hosts: &'a [String],
    pub add_hosts: &'a [String],
    pub exclude_hosts: &'a [String],
    pub at: Timestamp,
    /// The person, without `person:`.
    pub by: &'a str,
}

/// Makes the release that is asked for and its plan. Nothing is stored.
pub async fn prepare(
    tx: &mut Tx,
    id: ReleaseId,
    ask: &Ask<'_>,
) -> Result<Result<(Release, Planned), Unplannable>, Error> {
    let artifact = match artifact(tx, ask.project, ask.artifact).await? {
        Some(a) if a.project == ask.project => a,
        _ => return Ok(Err(Unplannable(format!("project {:?} has no such artifact", ask.project)))),
    };
    let snapshot = match Snapshot::read(tx, ask.project, ask.environment, ask.add_hosts).await? {
        Ok(s) => s,
        Err(e) => return Ok(Err(e)),
    };
    let (flow, flow_revision) = match flow_of(tx, &snapshot.environment).await? {
        Ok(f) => f,
        Err(e) => return Ok(Err(e)),
    };
    let flow = match linked(tx, ask.project, flow).await? {
        Ok(f) => f,
        Err(e) => return Ok(Err(e)),
    };
    if artifact.id == ArtifactId::NONE
        && let Some(step) = flow.ships()
    {
        let text = format!("flow {:?} ships a package (step `{step}`): name the version to release", flow.name);
        return Ok(Err(Unplannable(text)));
    }
    let plugins = match crate::plugins::pin(tx, &flow).await? {
        Ok(p) => p,
        Err(e) => return Ok(Err(e)),
    };
    let release = Release {
        id,
        project: ask.project.to_owned(),
        version: artifact.version.clone(),
        kind: ask.kind,
        artifact: artifact.id,
        flow_revision,
        flow,
        inputs: ask.inputs.clone(),
        values: ask.values.clone(),
        add_hosts: ask.add_hosts.to_vec(),
        exclude_hosts: ask.exclude_hosts.to_vec(),
        plugins,
        created_at: ask.at,
        created_by: ask.by.to_owned(),
    };
    let planned = match snapshot.plan(&release, &artifact, None, ask.hosts, Undoing::default()) {
        Ok(p) => p,
        Err(e) => return Ok(Err(e)),
    };
    Ok(secrets::check(tx, &planned.plan).await?.map(|()| (release, planned)))
}

/// The plan of a stored deployment as it would be made now.
pub async fn of(tx: &mut Tx, d: &Deployment) -> Result<Result<Planned, Unplannable>, Error> {
    let gone = |what: &str| Unplannable(format!("the {what} of deployment {} is not in the database", d.id));
    let Some(release) = deployments::release(tx, d.release).await? else { return Ok(Err(gone("release"))) };
    of_parts(tx, d, &release).await
}

/// The plan of a stored deployment as it would be made now of this release: its own one with other inputs.
pub async fn of_release(tx: &mut Tx, d: &Deployment, release: &Release) -> Result<Result<Planned, Unplannable>, Error> {
    Ok(match of_parts(tx, d, release).await? {
        Ok(planned) => secrets::check(tx, &planned.plan).await?.map(|()| planned),
        Err(e) => Err(e),
    })
}

async fn of_parts(tx: &mut Tx, d: &Deployment, release: &Release) -> Result<Result<Planned, Unplannable>, Error> {
    let Some(artifact) = artifact(tx, &d.project, release.artifact).await? else {
        return Ok(Err(Unplannable(format!("the artifact of deployment {} is not in the database", d.id))));
    };
    let undoing = undo::kept(tx, d).await?;
    match Snapshot::read(tx, &d.project, &d.environment, &release.add_hosts).await? {
        Ok(s) => Ok(s.plan(release, &artifact, d.rollback.as_ref().map(|r| r.mode), &d.only_hosts, undoing)),
        Err(e) => Ok(Err(e)),
    }
}

/// What is released; of a release that ships nothing, that.
async fn artifact(tx: &mut Tx, project: &str, id: ArtifactId) -> Result<Option<Artifact>, Error> {
    if id == ArtifactId::NONE {
        return Ok(Some(Artifact::none(project)));
    }
    artifacts::by_id(tx, id).await
}

/// The flow with its subflows put in, as they are now.
pub async fn linked(tx: &mut Tx, project: &str, flow: Flow) -> Result<Result<Flow, Unplannable>, Error> {
    if !flow.steps.iter().any(|s| matches!(s.kind, StepKind::Subflow(_))) {
        return Ok(Ok(flow));
    }
    let mut all = BTreeMap::new();
    for key in catalog::keys(tx, Kind::Flow, Some(project)).await? {
        if let Some(e) = catalog::get(tx, Kind::Flow, &key).await?
            && let Item::Flow { flow, .. } = e.item
        {
            all.insert(flow.name.clone(), (flow, e.revision));
        }
    }
    Ok(link(&flow, &|name| all.get(name).cloned()).map_err(|e| Unplannable(e.to_string())))
}

impl Snapshot {
    /// `others`: hosts to know besides those of the environment.
    pub async fn read(
        tx: &mut Tx,
        project: &str,
        environment: &str,
        others: &[String],
    ) -> Result<Result<Snapshot, Unplannable>, Error> {
        let stamp = catalog::stamp(tx).await?;
        let Some(Item::Environment(env)) = item(tx, Kind::Environment, &format!("{project}/{environment}")).await?
        else {
            let known = catalog::keys(tx, Kind::Environment, Some(project)).await?;
            let known: Vec<&str> = known.iter().filter_map(|k| k.split('/').nth(1)).collect();
            let text = format!("project {project:?} has no environment {environment:?} (it has: {})", known.join(", "));
            return Ok(Err(Unplannable(text)));
        };
        let project = match item(tx, Kind::Project, project).await? {
            Some(Item::Project(p)) => Some(p),
            _ => None,
        };
        let group = match &project {
            Some(p) => match item(tx, Kind::Group, &p.group).await? {
                Some(Item::Group(g)) => Some(g),
                _ => None,
            },
            None => None,
        };
        let (mut hosts, mut groups, mut policies) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for name in &env.groups {
            if let Some(Item::HostGroup(g)) = item(tx, Kind::HostGroup, name).await? {
                groups.insert(name.clone(), g);
            }
        }
        let of_groups = groups.values().flat_map(|g: &HostGroup| g.hosts.iter());
        let named: BTreeSet<String> = env.hosts.iter().chain(of_groups).chain(others).cloned().collect();
        if env.selector.is_some() || named.len() > ONE_BY_ONE {
            for i in catalog::all(tx, Kind::Host).await? {
                if let Item::Host(h) = i {
                    hosts.insert(h.name.clone(), h);
                }
            }
        } else {
            for name in named {
                if let Some(Item::Host(h)) = item(tx, Kind::Host, &name).await? {
                    hosts.insert(name, h);
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
        let mut heard = BTreeMap::new();
        if connectivity(&env, &policies).is_some() {
            let seen: BTreeMap<_, _> = sessions::seen(tx).await?.into_iter().map(|(id, _, at)| (id.0, at)).collect();
            for a in agents::live(tx).await? {
                if let Some(at) = seen.get(&a.id) {
                    heard.insert(a.host, *at);
                }
            }
        }
        let now = tx.now().await?;
        if connectivity(&env, &policies).is_some() {
            // Hosts that are dialled are not heard between their tasks: how the last connection went counts.
            let failed = ssh::failed(tx).await?;
            for h in hosts.values().filter(|h| h.ssh.is_some()) {
                if failed.contains(&h.name) {
                    heard.remove(&h.name);
                } else {
                    heard.insert(h.name.clone(), now);
                }
            }
        }
        Ok(Ok(Snapshot { stamp, environment: env, project, group, hosts, groups, policies, heard, now }))
    }

    fn fleet(&self) -> Fleet<'_> {
        let denied = self.policies.iter().any(|p| p.temporary_hosts == Some(TemporaryHosts::Deny));
        let temporary = if denied { TemporaryHosts::Deny } else { TemporaryHosts::Allow };
        Fleet { hosts: &self.hosts, groups: &self.groups, temporary }
    }

    /// The environment's own hosts, in the order they are released to.
    pub fn members(&self) -> Result<Vec<&Host>, Unplannable> {
        let names = targets::members(&self.environment, self.fleet()).map_err(|e| Unplannable(e.to_string()))?;
        Ok(names.iter().filter_map(|n| self.hosts.get(n)).collect())
    }

    /// The values of the environment, or of one of its hosts, each with where it comes from.
    pub fn explain(&self, host: Option<&str>) -> Result<Vec<Explained>, Unplannable> {
        let host = match host {
            None => None,
            Some(name) => {
                let missing = || Unplannable(format!("host {name:?} is not in the catalog"));
                Some(&self.hosts.get(name).ok_or_else(missing)?.values)
            }
        };
        let layers = Layers {
            group: self.group.as_ref().map(|g| &g.values),
            project: self.project.as_ref().map(|p| &p.values),
            environment: Some(&self.environment.values),
            host,
            release: None,
        };
        Ok(layers.explain())
    }

    /// Which of the hosts are not connected, and how sternly that is meant.
    fn unconnected<'h>(&self, hosts: impl Iterator<Item = &'h str>) -> Option<(Connectivity, Vec<String>)> {
        let c = connectivity(&self.environment, &self.policies)?;
        let limit = chrono::TimeDelta::seconds(c.within_s.into());
        let silent = |h: &&str| self.heard.get(*h).is_none_or(|at| self.now - *at > limit);
        let names: Vec<String> = hosts.filter(silent).map(str::to_owned).collect();
        (!names.is_empty()).then_some((c, names))
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
        undoing: Undoing,
    ) -> Result<Planned, Unplannable> {
        let wish = Wish { only, add: &release.add_hosts, exclude: &release.exclude_hosts };
        // A rollback goes to what was touched, whatever was excluded before.
        let wish = if rollback.is_some() { Wish { exclude: &[], ..wish } } else { wish };
        let mut targets =
            targets::resolve(&self.environment, self.fleet(), wish).map_err(|e| Unplannable(e.to_string()))?;
        let found = self.unconnected(targets.hosts.iter().map(|(n, _)| n.as_str()));
        let mut unconnected = Vec::new();
        if let Some((c, names)) = found {
            match c.check {
                ConnectivityCheck::Refuse => {
                    let text = format!(
                        "the agents of {} are not connected (nothing heard for {} s), and the environment asks for \
                         that: check `windlass-agent` there, or exclude the hosts",
                        some(&names),
                        c.within_s
                    );
                    return Err(Unplannable(text));
                }
                ConnectivityCheck::Skip => {
                    targets.hosts.retain(|(n, _)| !names.contains(n));
                    let reason = format!("its agent is not connected (nothing heard for {} s)", c.within_s);
                    let left = names.iter().map(|n| LeftOut { host: n.clone(), reason: reason.clone() });
                    targets.left_out.extend(left);
                }
                ConnectivityCheck::Alert => {}
            }
            unconnected = names;
        }
        let facts = |(name, temporary): &(String, bool)| {
            let h = self.hosts.get(name)?;
            Some(HostFacts {
                name: h.name.clone(),
                address: h.address.clone(),
                labels: h.labels.clone(),
                values: h.values.clone(),
                files: h.files.clone(),
                temporary: *temporary,
            })
        };
        let input = plan::BuildInput {
            project: &release.project,
            environment: &self.environment,
            release,
            artifact,
            hosts: targets.hosts.iter().filter_map(facts).collect(),
            rollback,
            approvals: self.rules(release.kind),
            surroundings: Surroundings {
                group_values: self.group.as_ref().map(|g| &g.values),
                project_values: self.project.as_ref().map(|p| &p.values),
                accounts: self.project.as_ref().map(|p| &p.accounts),
            },
            left_out: targets.left_out,
            undoing,
        };
        let plan = plan::build(input).map_err(|e| Unplannable(e.to_string()))?;
        let shell = |h: &&Host| h.ssh.as_ref().is_some_and(|s| s.shell == Shell::PowerShell);
        let powershell = self.hosts.values().filter(shell).map(|h| h.name.as_str()).collect();
        platform::check(&plan, &powershell).map_err(|e| Unplannable(e.to_string()))?;
        let digest = plan.digest().map_err(|e| Unplannable(e.to_string()))?;
        Ok(Planned {
            facts: PlanFacts::of(&plan, &digest.digest),
            stamp: self.stamp,
            expires_s: self.policies.iter().filter_map(|p| p.expires_s).min().unwrap_or(DEFAULT_EXPIRY_S),
            pool: self.environment.pool.clone(),
            unconnected,
            plan,
        })
    }
}

/// The strictest check that applies.
fn connectivity(env: &Environment, policies: &[Policy]) -> Option<Connectivity> {
    env.connectivity.into_iter().chain(policies.iter().filter_map(|p| p.connectivity)).reduce(Connectivity::stricter)
}

fn some(names: &[String]) -> String {
    match names.len() {
        0..=5 => names.join(", "),
        n => format!("{} and {} more", names[..5].join(", "), n - 5),
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
