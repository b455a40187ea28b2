//! A plan for people: set against what hosts report and who holds the lock, with what to look at before it runs.

use crate::{call::Call, problem::Fail, view};
use chrono::{DateTime, Utc};
use serde_json::Value;
use std::collections::BTreeMap;
use windlass_contracts::{http, preview as body};
use windlass_domain::{
    Timestamp,
    catalog::{Host, Item, Kind},
    ids::AgentId,
    plan::{Plan, PlanStepKind},
};
use windlass_store::{Tx, agents, catalog, deployments, hosts, sessions, ssh};

/// What is known of one host now.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostNow {
    pub(crate) catalogued: Option<Host>,
    pub(crate) agent: Option<agents::Agent>,
    pub(crate) session: Option<sessions::Session>,
    pub(crate) lock: Option<hosts::HostLock>,
    pub(crate) busy: u32,
    pub(crate) dialled: Option<ssh::Known>,
}

impl HostNow {
    pub(crate) fn state(&self, call: &Call, now: DateTime<Utc>) -> &'static str {
        let e = &call.settings().executor;
        let silent = self.session.as_ref().map(|s| (now - s.last_seen_at).to_std().unwrap_or_default());
        let dialled = self.catalogued.as_ref().is_some_and(|h| h.ssh.is_some());
        let failed = self.dialled.as_ref().is_some_and(|k| k.error.is_some());
        match (&self.agent, silent) {
            // Its link is open only while somebody needs it.
            (Some(_), Some(s)) if dialled && s < e.suspect_s.get() => "connected",
            _ if dialled && failed => "unreachable",
            (None, _) if dialled => "never_seen",
            _ if dialled => "ssh",
            (None, _) => "no_agent",
            (_, None) => "never_seen",
            (_, Some(s)) if s >= e.disconnected_s.get() => "disconnected",
            (_, Some(s)) if s >= e.suspect_s.get() => "suspect",
            _ => "connected",
        }
    }

    /// The release directory it reports as current.
    pub(crate) fn current(&self) -> Option<String> {
        let facts = &self.session.as_ref()?.facts;
        facts.get("current_release").and_then(Value::as_str).map(str::to_owned)
    }

    pub(crate) fn ssh_view(&self) -> Option<http::HostSsh> {
        let s = self.catalogued.as_ref()?.ssh.as_ref()?;
        Some(http::HostSsh {
            account: s.account.clone(),
            port: s.port,
            jump: s.jump.clone(),
            checked_at: self.dialled.as_ref().map(|k| k.checked_at),
            error: self.dialled.as_ref().and_then(|k| k.error.clone()),
        })
    }

    pub(crate) fn lock_view(&self) -> Option<body::HostLock> {
        self.lock.as_ref().map(|l| body::HostLock {
            host: l.host.clone(),
            reason: l.reason.clone(),
            by: l.locked_by.clone(),
            at: l.locked_at,
        })
    }
}

/// Every host that the catalog or an agent knows, by name.
pub(crate) async fn fleet(tx: &mut Tx) -> Result<BTreeMap<String, HostNow>, Fail> {
    let mut all: BTreeMap<String, HostNow> = BTreeMap::new();
    for item in catalog::all(tx, Kind::Host).await? {
        if let Item::Host(h) = item {
            let name = h.name.clone();
            all.entry(name).or_default().catalogued = Some(h);
        }
    }
    let mut sessions: BTreeMap<AgentId, sessions::Session> =
        sessions::all(tx).await?.into_iter().map(|s| (s.agent, s)).collect();
    for a in agents::live(tx).await? {
        let host = all.entry(a.host.clone()).or_default();
        host.session = sessions.remove(&AgentId(a.id));
        host.agent = Some(a);
    }
    for known in ssh::all(tx).await? {
        let name = known.host.clone();
        all.entry(name).and_modify(|h| h.dialled = Some(known));
    }
    for (name, lock) in hosts::locks(tx).await? {
        all.entry(name).or_default().lock = Some(lock);
    }
    for (name, n) in hosts::busy(tx).await? {
        all.entry(name).or_default().busy = n;
    }
    Ok(all)
}

/// Project, environment and version of a release directory, as `Artifact::release_dir` names it.
pub(crate) fn parts(dir: &str) -> Option<(&str, &str, &str)> {
    let mut it = dir.split('_');
    let found = (it.next()?, it.next()?, it.next()?);
    (it.count() == 3).then_some(found)
}

/// The version a directory holds, when it is one of the same project and environment as `of`.
pub(crate) fn version_like(dir: &str, of: &str) -> Option<String> {
    let ((p, e, v), (p2, e2, _)) = (parts(dir)?, parts(of)?);
    (p == p2 && e == e2).then(|| v.to_owned())
}

/// The whole report.
pub(crate) async fn report(
    call: &Call,
    tx: &mut Tx,
    plan: &Plan,
    not_before: Option<Timestamp>,
) -> Result<body::PlanReport, Fail> {
    let fleet = fleet(tx).await?;
    let now = tx.now().await?;
    let mut warnings = Vec::new();
    let mut hosts = Vec::with_capacity(plan.hosts.len());
    for h in &plan.hosts {
        let known = fleet.get(&h.name).cloned().unwrap_or_default();
        let (agent, reports) = (known.state(call, now), known.current());
        let dir = &plan.artifact.dir;
        let change = match &reports {
            _ if plan.artifact.is_none() => "same",
            None => "unknown",
            Some(r) if r == dir => "same",
            Some(_) => "changes",
        };
        let locked = known.lock.as_ref().map(|l| format!("locked by {}: {}", l.locked_by, l.reason));
        if !matches!(agent, "connected" | "ssh") {
            warnings.push(format!("host {}: its agent is {}", h.name, agent.replace('_', " ")));
        }
        warnings.extend(locked.iter().map(|l| format!("host {} is {l}", h.name)));
        hosts.push(body::PlanHostReport {
            name: h.name.clone(),
            address: h.address.clone(),
            agent: agent.into(),
            from: reports.as_deref().and_then(|r| version_like(r, dir)),
            reports,
            to: plan.artifact.version.clone(),
            change: change.into(),
            temporary: h.temporary,
            locked,
        });
    }
    warnings.extend(plan.left_out.iter().map(|l| format!("host {} is left out: {}", l.host, l.reason)));
    warnings.extend(plan.steps.iter().filter_map(|s| {
        let said = if s.skipped { " is skipped" } else { "" };
        Some(format!("step {}{said}: {}", s.id, s.note.as_ref()?))
    }));
    let holder = deployments::locks(tx)
        .await?
        .into_iter()
        .find(|l| l.project == plan.project && l.environment == plan.environment)
        .and_then(|l| l.holder);
    let queue = deployments::queue(tx, &plan.project, &plan.environment).await?;
    Ok(body::PlanReport {
        project: plan.project.clone(),
        environment: plan.environment.clone(),
        version: plan.artifact.version.clone(),
        kind: view::name(&plan.kind),
        flow: plan.flow.clone(),
        flow_revision: plan.flow_revision,
        inputs: plan.inputs.clone(),
        hosts,
        left_out: plan
            .left_out
            .iter()
            .map(|l| body::PlanLeftOut { host: l.host.clone(), reason: l.reason.clone() })
            .collect(),
        steps: plan.steps.iter().map(|s| step(plan, s)).collect(),
        gates: gates(plan, not_before),
        lock: body::PlanLock { holder: holder.map(|h| h.0), queue: queue.into_iter().map(|d| d.0).collect() },
        warnings,
    })
}

fn step(plan: &Plan, s: &windlass_domain::plan::PlanStep) -> body::PlanStepReport {
    let mut out = body::PlanStepReport {
        id: s.id.clone(),
        needs: s.needs.clone(),
        kind: "subflow".into(),
        action: None,
        skipped: s.skipped,
        note: s.note.clone(),
        waves: vec![],
        groups: vec![],
        load_balancers: vec![],
        probes: vec![],
        host_steps: vec![],
        confirm: "none".into(),
        bake_s: 0,
        max_failures: 0,
        parallel: 0,
    };
    match &s.kind {
        PlanStepKind::Central { action, .. } => {
            out.kind = "central".into();
            out.action = Some(action.clone());
        }
        PlanStepKind::Rollout(r) => {
            out.kind = "rollout".into();
            let name = |h: &u32| plan.hosts.get(*h as usize).map(|h| h.name.clone());
            out.waves = r.waves.iter().map(|w| w.iter().filter_map(name).collect()).collect();
            out.groups.clone_from(&r.groups);
            out.load_balancers = r.traffic.iter().map(|t| t.name.clone()).collect();
            out.probes = r.probes.iter().flat_map(|p| p.judge.keys().cloned()).collect();
            out.host_steps = r.steps.iter().map(|s| format!("{} ({})", s.id, s.action)).collect();
            out.confirm = view::name(&r.confirm);
            (out.bake_s, out.max_failures, out.parallel) = (r.bake_s, r.max_failures, r.parallel);
        }
        PlanStepKind::Gateway(_) => out.kind = "gateway".into(),
        PlanStepKind::Enter { .. } | PlanStepKind::Leave { .. } => {}
    }
    out
}

fn gates(plan: &Plan, not_before: Option<Timestamp>) -> Vec<String> {
    let mut out = Vec::new();
    for r in &plan.approvals {
        let by = if r.people.is_empty() { String::new() } else { format!(" by {}", r.people.join(", ")) };
        out.push(format!("{} approval(s) for {}{by}", r.quorum, r.name));
    }
    out.extend(not_before.map(|t| format!("not before {t}")));
    for s in plan.steps.iter().filter(|s| !s.skipped) {
        let PlanStepKind::Rollout(r) = &s.kind else { continue };
        match r.confirm {
            windlass_domain::flow::Confirm::None => {}
            windlass_domain::flow::Confirm::First => out.push(format!("a person confirms the first wave of {}", s.id)),
            windlass_domain::flow::Confirm::Each => out.push(format!("a person confirms each wave of {}", s.id)),
        }
        let probes: Vec<&str> = r.probes.iter().flat_map(|p| p.judge.keys().map(String::as_str)).collect();
        let judged = if probes.is_empty() { String::new() } else { format!(", judged by {}", probes.join(", ")) };
        if r.bake_s > 0 {
            out.push(format!("{} s of bake time after each wave of {}{judged}", r.bake_s, s.id));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_other_projects_have_no_version_here() {
        let dir = "shop_beta_1.0.0_main_20261121T020304Z_ann";
        assert_eq!(parts(dir), Some(("shop", "beta", "1.0.0")));
        assert_eq!(version_like(dir, "shop_beta_1.1.0_main_20261121T020304Z_ann").as_deref(), Some("1.0.0"));
        assert_eq!(version_like(dir, "shop_online_1.1.0_main_20261121T020304Z_ann"), None);
        assert_eq!(parts("r42"), None);
    }
}
