//! The tasks of one rollout are told apart by their segment: what runs on a host itself, the probes there, and what is done
//! on a load balancer's own host for one member.
//!
//! Each is a leaf of the plan's tree. Within a rollout they stand in this order: the host steps in wave order; the probes in
//! wave order; then, load balancer by load balancer and in wave order, the task that lets a host go and the one that takes
//! it back. `HAProxy` and HTTP are spoken to by the executor and have no tasks.

use super::{Plan, PlanRollout};
use crate::{
    task::{TaskSpec, TaskStep},
    traffic::{Kind, OnDrainTimeout, PlanTraffic, Share},
};
use serde_json::{Map, Value, json};

/// The host steps themselves.
pub const MAIN: u32 = 0;
/// The probes that run on hosts.
pub const PROBES: u32 = 1;
/// From here on: what is done on the host of a load balancer for one member.
const TRAFFIC: u32 = 16;
/// Load balancers a rollout can have.
pub const MAX_LOAD_BALANCERS: usize = 8;
/// The action of such a task.
pub const MEMBER_ACTION: &str = "lb.member";
/// Seconds a member's task gets on top of what it waits for.
const MARGIN_S: u32 = 60;

/// The segment in which load balancer `lb` (its index in the rollout) lets the host with this index go (`attach`
/// false) or takes it back.
pub fn traffic(lb: u32, host: u32, attach: bool) -> Option<u32> {
    let fits = (lb as usize) < MAX_LOAD_BALANCERS;
    host.checked_mul(16)?.checked_add(lb * 2 + u32::from(attach))?.checked_add(TRAFFIC).filter(|_| fits)
}

/// What [`traffic`] was asked for: the load balancer, the host, whether it is taken back.
pub fn of_traffic(segment: u32) -> Option<(u32, u32, bool)> {
    let n = segment.checked_sub(TRAFFIC)?;
    Some((n % 16 / 2, n / 16, n % 2 == 1))
}

/// The host on which a load balancer's members are changed by its agent; `None` where the executor speaks to it.
pub fn agent_host(kind: &Kind) -> Option<&str> {
    match kind {
        Kind::Nginx { host, .. } | Kind::Command { host, .. } => Some(host),
        Kind::Haproxy { .. } | Kind::Http { .. } => None,
    }
}

/// Segments of a rollout beyond the host steps, with the host of the wave each is for, in the order of the leaves.
pub(super) fn others(r: &PlanRollout) -> impl Iterator<Item = (u32, u32)> + '_ {
    let probed = r.probes.as_ref().is_some_and(|p| !p.on_hosts.is_empty());
    let probes = r.waves.iter().flatten().filter(move |_| probed).map(|h| (PROBES, *h));
    let lbs = (0u32..).zip(&r.traffic).filter(|(_, t)| agent_host(&t.kind).is_some());
    let members = lbs.flat_map(|(lb, _)| {
        let both = move |h: u32| [false, true].into_iter().filter_map(move |a| Some((traffic(lb, h, a)?, h)));
        r.waves.iter().flatten().flat_map(move |h| both(*h))
    });
    probes.chain(members)
}

/// What is done for one member on the load balancer's own host; `None` if there is no such task.
pub(super) fn member(plan: &Plan, step: &str, r: &PlanRollout, segment: u32, host: u32) -> Option<TaskSpec> {
    let (lb, of, attach) = of_traffic(segment)?;
    let t = r.traffic.get(lb as usize).filter(|_| of == host)?;
    let task = member_step(t, host, attach, plan.hosts.get(host as usize).map(|h| h.address.as_str())?)?;
    Some(TaskSpec {
        project: plan.project.clone(),
        environment: plan.environment.clone(),
        version: plan.artifact.shipped().to_owned(),
        host: agent_host(&t.kind)?.to_owned(),
        step: step.into(),
        segment,
        steps: vec![task],
    })
}

fn member_step(t: &PlanTraffic, host: u32, attach: bool, address: &str) -> Option<TaskStep> {
    let op = if attach { "attach" } else { "drain" };
    let waits = if attach { t.attach_timeout_s } else { t.drain_timeout_s };
    let mut with = Map::new();
    let mut put = |key: &str, v: Value| drop(with.insert(key.into(), v));
    match &t.kind {
        Kind::Nginx { file, test, reload, pid, port, .. } => {
            put("kind", json!("nginx"));
            put("file", json!(file));
            pid.iter().for_each(|p| put("pid", json!(p)));
            test.iter().for_each(|c| put("test", json!(c)));
            reload.iter().for_each(|c| put("reload", json!(c)));
            port.iter().for_each(|p| put("port", json!(p)));
            pid.iter().for_each(|p| put("pid", json!(p)));
        }
        Kind::Command { run, .. } => {
            put("kind", json!("command"));
            put("run", json!(run));
        }
        Kind::Haproxy { .. } | Kind::Http { .. } => return None,
    }
    put("name", json!(t.name));
    put("op", json!(op));
    put("member", json!(t.members.get(&host)?));
    put("address", json!(address));
    put("drain_timeout_s", json!(t.drain_timeout_s));
    put("attach_timeout_s", json!(t.attach_timeout_s));
    let late = match t.on_drain_timeout {
        OnDrainTimeout::Fail => "fail",
        OnDrainTimeout::GoOn => "go_on",
    };
    put("on_drain_timeout", json!(late));
    match t.min_healthy {
        Some(Share::Count(n)) => put("min_healthy", json!({ "count": n })),
        Some(Share::Percent(n)) => put("min_healthy", json!({ "percent": n })),
        None => {}
    }
    let timeout_s = waits.saturating_add(MARGIN_S);
    Some(TaskStep { id: format!("{op}.{}", t.name), action: MEMBER_ACTION.into(), with, always: false, timeout_s })
}
