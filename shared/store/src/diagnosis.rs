//! What a diagnosis of a deployment is made from, and the one thing that a repair writes.
//!
//! `work_claims` belongs to the executors. [`release_expired`] is the one exception: a person may give a work back whose claim
//! has run out. By then any executor may take it anyway; the epoch grows as with a takeover, so a zombie can write nothing.

use crate::{
    Dialect, Error, Tx, agents, catalog, decisions, decode, deployments, events, hosts, marks, planning, sessions, sql,
    ssh,
};
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, types::Json};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;
use windlass_domain::{
    Timestamp,
    access::{Permission, Role},
    catalog::{DEFAULT_MAX_TASKS, Item, Kind},
    deployment::{By, Deployment, HostRun, HostState},
    diagnosis::{AgentNow, Backlog, HostNow, Limits, LockNow, Other, Phase, Snapshot, TaskNow, Undecided, WorkNow},
    ids::{AgentId, DeploymentId, WorkId},
    task::Task,
    work::WorkSpec,
};

/// Others in the queue that are named.
const NAMED: usize = 20;

/// What the caller knows and the database does not.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Group of the deployment's project: whose grants count.
    pub group: &'a str,
    pub limits: Limits,
    pub broker_up: bool,
    /// The caller's clock.
    pub clock: Timestamp,
}

/// Document, when it has to be looked at, when it was last written.
type Head = (Json<serde_json::Value>, Option<DateTime<Utc>>, DateTime<Utc>);

/// Reads everything a diagnosis needs. `None`: there is no such deployment.
pub async fn snapshot(tx: &mut Tx, id: DeploymentId, asked: &Asked<'_>) -> Result<Option<Snapshot>, Error> {
    let now = tx.now().await?;
    let row: Option<Head> =
        sql("SELECT doc, wake_at, updated_at FROM deployments WHERE id = $1").bind(id).fetch_optional(tx).await?;
    let Some((doc, wake_at, updated_at)) = row else { return Ok(None) };
    let d: Deployment = decode("deployment", doc.0)?;
    let commands = decisions::queued(tx, id).await?.into_iter().map(|c| Undecided {
        id: c.id,
        verb: c.verb.name().into(),
        actor: c.actor,
        at: c.created_at,
    });
    let commands = commands.collect();
    let works = works(tx, id).await?;
    let tasks = tasks(tx, &d).await?;
    let hosts = hosts_of(tx, &d, &tasks).await?;
    let before = d.state.is_before_running();
    // A deployment that was taken up again keeps its plan.
    let plan = match before && d.reopened.is_none() {
        true => planning::of(tx, &d).await?.err().map(|e| e.to_string()),
        false => None,
    };
    let (mut hold, mut mark) = (None, None);
    if before {
        hold = marks::held(tx, &d.project, &d.environment).await?;
        mark = marks::against(tx, &d.project, &d.environment, &d.version).await?;
    }
    Ok(Some(Snapshot {
        now,
        wake_at,
        updated_at,
        commands,
        pools: pools(tx, now).await?,
        works,
        tasks,
        hosts,
        lock: lock(tx, &d).await?,
        queue: if before { queue(tx, &d).await? } else { vec![] },
        approvers: approvers(tx, asked.group).await?,
        plan,
        hold: hold.map(|h| By { who: h.by, reason: h.reason, at: h.at }),
        mark: mark.map(|m| m.text(&d.version)),
        backlogs: backlogs(tx).await?,
        skew_s: (asked.clock - now).num_seconds(),
        broker_up: asked.broker_up,
        limits: asked.limits,
        deployment: d,
    }))
}

#[derive(Debug, sqlx::FromRow)]
struct WorkRow {
    id: Uuid,
    pool: String,
    spec: Json<serde_json::Value>,
    created_at: DateTime<Utc>,
    applied: i64,
    owner: Option<String>,
    expires_at: Option<DateTime<Utc>>,
    phase: String,
    result_version: i64,
    updated_at: DateTime<Utc>,
}

async fn works(tx: &mut Tx, id: DeploymentId) -> Result<Vec<WorkNow>, Error> {
    let rows: Vec<WorkRow> =
        sql("SELECT w.id, w.pool, w.spec, w.created_at, w.applied, c.owner, c.expires_at, c.phase,
           c.result_version, c.updated_at
         FROM works w JOIN work_claims c ON c.work_id = w.id
         WHERE w.deployment_id = $1 AND (c.phase <> 'settled' OR c.result_version > w.applied) ORDER BY w.id")
        .bind(id)
        .fetch_all(tx)
        .await?;
    let one = |r: WorkRow| {
        let what = match decode("works.spec", r.spec.0)? {
            WorkSpec::Wave(w) => format!("wave {} of {}", w.wave + 1, w.step),
            WorkSpec::Probe(p) => format!("probes of wave {} of {}", p.wave + 1, p.step),
            WorkSpec::Central(c) => format!("step {}", c.step),
        };
        Ok(WorkNow {
            id: WorkId(r.id),
            what,
            pool: r.pool,
            created_at: r.created_at,
            phase: match r.phase.as_str() {
                "ready" => Phase::Ready,
                "running" => Phase::Running,
                "settled" => Phase::Settled,
                _ => return Err(Error::Unknown("work_claims.phase")),
            },
            owner: r.owner,
            expires_at: r.expires_at,
            updated_at: r.updated_at,
            result_version: r.result_version.unsigned_abs(),
            applied: r.applied.unsigned_abs(),
        })
    };
    rows.into_iter().map(one).collect()
}

async fn pools(tx: &mut Tx, now: Timestamp) -> Result<BTreeMap<String, Timestamp>, Error> {
    let rows: Vec<(String, Option<DateTime<Utc>>)> = sql("SELECT pool, MAX(expires_at) FROM work_claims
         WHERE phase <> 'settled' AND expires_at >= $1 GROUP BY pool")
    .bind(now)
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().filter_map(|(pool, until)| Some((pool, until?))).collect())
}

/// Tasks that are open, or whose host is not back at its load balancers; of each host the latest attempt.
async fn tasks(tx: &mut Tx, d: &Deployment) -> Result<Vec<TaskNow>, Error> {
    let traffic = match tx.dialect() {
        Dialect::Sqlite => "json_extract(doc, '$.traffic.state')",
        Dialect::Postgres => "doc->'traffic'->>'state'",
    };
    let rows: Vec<(Uuid, String, Json<serde_json::Value>)> = sql(AssertSqlSafe(format!(
        "SELECT work_id, step, doc FROM tasks WHERE deployment_id = $1 AND (state IN ('pending', 'offered', 'granted', 'unknown')
           OR {traffic} IN ('draining', 'drain_failed', 'attaching', 'attach_failed')) ORDER BY id"
    )))
    .bind(d.id)
    .fetch_all(tx)
    .await?;
    let mut latest: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for (step, r) in d.rollouts() {
        for h in r.waves.iter().flat_map(|w| &w.hosts) {
            latest.insert((&step.id, &h.host), h.attempt);
        }
    }
    let mut out = Vec::with_capacity(rows.len());
    for (work, step, doc) in rows {
        let t: Task = decode("tasks.doc", doc.0)?;
        if latest.get(&(step.as_str(), t.host.as_str())).is_some_and(|n| t.attempt < *n) {
            continue;
        }
        out.push(TaskNow {
            id: t.id,
            work: WorkId(work),
            host: t.host,
            step,
            attempt: t.attempt,
            state: t.state,
            offered_at: t.offered_at,
            granted_at: t.granted_at,
            started_at: t.started_at,
            reason: t.reason,
            traffic: t.traffic,
        });
    }
    Ok(out)
}

/// The hosts of these tasks, and those that are unknown or were not started.
async fn hosts_of(tx: &mut Tx, d: &Deployment, tasks: &[TaskNow]) -> Result<BTreeMap<String, HostNow>, Error> {
    let asked = |h: &&HostRun| matches!(h.state, HostState::Unknown | HostState::NotStarted);
    let asked = d.hosts().filter(asked).map(|h| h.host.clone());
    let names: BTreeSet<String> = tasks.iter().map(|t| t.host.clone()).chain(asked).collect();
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut dialled = BTreeSet::new();
    let mut limits = BTreeMap::new();
    for item in catalog::all(tx, Kind::Host).await? {
        if let Item::Host(h) = item {
            limits.extend(h.max_tasks.map(|n| (h.name.clone(), n)));
            dialled.extend(h.ssh.map(|_| h.name));
        }
    }
    let live: BTreeMap<String, agents::Agent> =
        agents::live(tx).await?.into_iter().map(|a| (a.host.clone(), a)).collect();
    let mut seen: BTreeMap<AgentId, (String, Timestamp)> =
        sessions::seen(tx).await?.into_iter().map(|(id, instance, at)| (id, (instance, at))).collect();
    let known: BTreeMap<String, ssh::Known> = ssh::all(tx).await?.into_iter().map(|k| (k.host.clone(), k)).collect();
    let revoked: Vec<(String, Option<DateTime<Utc>>)> =
        sql("SELECT host, MAX(revoked_at) FROM agents WHERE revoked_at IS NOT NULL GROUP BY host")
            .fetch_all(tx)
            .await?;
    let revoked: BTreeMap<String, Timestamp> = revoked.into_iter().filter_map(|(h, at)| Some((h, at?))).collect();
    let mut locks = hosts::locks(tx).await?;
    let mut busy = busy(tx, &d.project).await?;
    let mut out = BTreeMap::new();
    for name in names {
        let session = live.get(&name).and_then(|a| seen.remove(&AgentId(a.id)));
        let agent = match (live.get(&name), session) {
            (_, Some((instance, _))) if instance.starts_with('!') => {
                AgentNow::Quarantined { why: instance.trim_start_matches('!').to_owned() }
            }
            _ if dialled.contains(&name) => {
                let k = known.get(&name);
                AgentNow::Ssh { checked_at: k.map(|k| k.checked_at), error: k.and_then(|k| k.error.clone()) }
            }
            (Some(_), Some((_, at))) => AgentNow::Seen { at },
            (Some(a), None) => AgentNow::NeverSeen { enrolled_at: a.enrolled_at },
            (None, _) => revoked.get(&name).map_or(AgentNow::None, |at| AgentNow::Revoked { at: *at }),
        };
        let lock = locks.remove(&name).map(|l| By { who: l.locked_by, reason: l.reason, at: l.locked_at });
        let max_tasks = limits.get(&name).copied().unwrap_or(DEFAULT_MAX_TASKS);
        let busy = busy.remove(&name).unwrap_or_default();
        out.insert(name, HostNow { agent, lock, busy, max_tasks });
    }
    Ok(out)
}

/// Tasks on each host by deployment; those of other projects are counted and not named.
async fn busy(tx: &mut Tx, project: &str) -> Result<BTreeMap<String, Vec<(Option<DeploymentId>, u32)>>, Error> {
    let rows: Vec<(String, Uuid, String, i64)> = sql("SELECT t.host, t.deployment_id, d.project, COUNT(*)
         FROM tasks t JOIN deployments d ON d.id = t.deployment_id WHERE t.state IN ('offered', 'granted')
         GROUP BY t.host, t.deployment_id, d.project ORDER BY t.host, t.deployment_id")
    .fetch_all(tx)
    .await?;
    let mut out: BTreeMap<String, Vec<(Option<DeploymentId>, u32)>> = BTreeMap::new();
    for (host, id, of, n) in rows {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        let all = out.entry(host).or_default();
        let who = (of == project).then_some(DeploymentId(id));
        match all.iter_mut().find(|(w, _)| who.is_none() && w.is_none()) {
            Some((_, sum)) => *sum = sum.saturating_add(n),
            None => all.push((who, n)),
        }
    }
    Ok(out)
}

async fn lock(tx: &mut Tx, d: &Deployment) -> Result<Option<LockNow>, Error> {
    let row: Option<(Option<Uuid>, Option<DateTime<Utc>>)> =
        sql("SELECT deployment_id, taken_at FROM locks WHERE project = $1 AND environment = $2")
            .bind(&d.project)
            .bind(&d.environment)
            .fetch_optional(tx)
            .await?;
    let Some((Some(holder), taken_at)) = row else { return Ok(None) };
    let Some(h) = deployments::get(tx, DeploymentId(holder)).await?.map(|s| s.deployment) else { return Ok(None) };
    Ok(Some(LockNow {
        holder: h.id,
        taken_at,
        version: h.version.clone(),
        state: h.state,
        ended_at: h.ended_at,
        unknown: h.unknown_hosts(),
        waiting_on: h.waiting_on().iter().map(ToString::to_string).collect(),
    }))
}

async fn queue(tx: &mut Tx, d: &Deployment) -> Result<Vec<Other>, Error> {
    let mut out = Vec::new();
    for (n, id) in deployments::queue(tx, &d.project, &d.environment).await?.into_iter().enumerate() {
        let version = match n < NAMED {
            true => deployments::get(tx, id).await?.map(|s| s.deployment.version),
            false => None,
        };
        out.push(Other { id, version: version.unwrap_or_default() });
    }
    Ok(out)
}

/// People who may approve in this group, and are not disabled.
async fn approvers(tx: &mut Tx, group: &str) -> Result<Vec<String>, Error> {
    let rows: Vec<(String, String)> = sql("SELECT p.name, g.role FROM people p JOIN grants g ON g.person = p.name
         WHERE p.disabled = FALSE AND g.project_group IN ('*', $1) ORDER BY p.name")
    .bind(group)
    .fetch_all(tx)
    .await?;
    let mut out = Vec::new();
    for (name, role) in rows {
        let role: Role = role.parse().map_err(|_| Error::Unknown("grants.role"))?;
        if role.allows(Permission::Approve) && out.last() != Some(&name) {
            out.push(name);
        }
    }
    Ok(out)
}

async fn backlogs(tx: &mut Tx) -> Result<Vec<Backlog>, Error> {
    let mut out = Vec::new();
    for (consumer, service) in [(events::BUS, "relay"), (events::NOTIFIER, "notifier"), (events::AUDITOR, "auditor")] {
        let (events, oldest) = events::backlog(tx, consumer).await?;
        out.push(Backlog { service, events, oldest });
    }
    Ok(out)
}

/// Gives a work back to its pool whose claim has run out by the database's clock; the epoch grows. `None`: the claim holds,
/// or nobody has one. Ring `subjects::work(pool)` after the commit.
pub async fn release_expired(tx: &mut Tx, work: WorkId) -> Result<Option<u64>, Error> {
    let now = tx.now().await?;
    let epoch: Option<i64> = sql("UPDATE work_claims SET owner = NULL, expires_at = NULL, phase = 'ready',
           epoch = epoch + 1, updated_at = $2
         WHERE work_id = $1 AND phase = 'running' AND expires_at < $2 RETURNING epoch")
    .bind(work)
    .bind(now)
    .fetch_scalar(tx)
    .await?;
    Ok(epoch.map(i64::unsigned_abs))
}
