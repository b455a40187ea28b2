//! Whether hosts do their part: agents, offers, locks, load balancers, and what nobody knows.

use super::{AgentNow, Cause, Fact, Finding, Phase, Repair, Snapshot, TaskNow, fact};
use crate::{deployment::HostState, task::TaskState, traffic::TrafficState};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn look(s: &Snapshot, found: &mut Vec<Finding>) {
    let driven = |t: &TaskNow| s.works.iter().any(|w| w.id == t.work && w.phase != Phase::Settled);
    let open: Vec<&TaskNow> = s
        .tasks
        .iter()
        .filter(|t| matches!(t.state, TaskState::Pending | TaskState::Offered | TaskState::Granted) && driven(t))
        .collect();
    agents(s, &open, found);
    offers(s, &open, found);
    gates(s, &open, found);
    traffic(s, found);
    unknown(s, found);
}

/// Why an agent cannot do its part; `None`: it can.
fn agent(s: &Snapshot, host: &str) -> Option<(Cause, Fact)> {
    Some(match &s.hosts.get(host)?.agent {
        AgentNow::None => (Cause::AgentMissing, fact(format!("{host}: no agent was enrolled"), None)),
        AgentNow::NeverSeen { enrolled_at } => {
            (Cause::AgentMissing, fact(format!("{host}: enrolled, and never heard of"), Some(*enrolled_at)))
        }
        AgentNow::Revoked { at } => (Cause::AgentRevoked, fact(format!("{host}: its agent was revoked"), Some(*at))),
        AgentNow::Quarantined { why } => {
            (Cause::AgentQuarantined, fact(format!("{host}: its agent is put aside ({why})"), None))
        }
        AgentNow::Seen { at } if s.age(*at) >= s.limits.disconnected => {
            (Cause::AgentSilent, fact(format!("{host}: last heard of"), Some(*at)))
        }
        AgentNow::Ssh { checked_at, error: Some(e) } => {
            (Cause::SshUnreachable, fact(format!("{host}: {e}"), *checked_at))
        }
        AgentNow::Seen { .. } | AgentNow::Ssh { .. } => return None,
    })
}

fn agents(s: &Snapshot, open: &[&TaskNow], found: &mut Vec<Finding>) {
    let mut by_cause: BTreeMap<Cause, (Vec<&str>, Vec<Fact>)> = BTreeMap::new();
    // Hosts that were not started are what a person is asked about: whether their agents are there now is part of it.
    let active = s.deployment.state.is_active();
    let not_started = s.deployment.hosts().filter(|h| active && h.state == HostState::NotStarted);
    let hosts = open.iter().map(|t| t.host.as_str()).chain(not_started.map(|h| h.host.as_str()));
    let mut seen = BTreeSet::new();
    for host in hosts.filter(|h| seen.insert(*h)) {
        if let Some((cause, fact)) = agent(s, host) {
            let slot = by_cause.entry(cause).or_default();
            slot.0.push(host);
            slot.1.push(fact);
        }
    }
    for (cause, (hosts, evidence)) in by_cause {
        let hosts = super::names(&hosts);
        let text = match cause {
            Cause::AgentRevoked => format!("the agent of {hosts} was revoked"),
            Cause::AgentQuarantined => format!("the agent of {hosts} is not believed"),
            Cause::AgentSilent => format!("the agent of {hosts} is not connected"),
            Cause::SshUnreachable => format!("{hosts} cannot be reached by SSH"),
            _ => format!("{hosts} has no agent that ever spoke"),
        };
        found.push(Finding::new(cause, text, evidence));
    }
}

fn offers(s: &Snapshot, open: &[&TaskNow], found: &mut Vec<Finding>) {
    let late: Vec<&&TaskNow> = open
        .iter()
        .filter(|t| t.state == TaskState::Offered && t.offered_at.is_some_and(|at| s.is_late(at)))
        // A silent agent and a locked host are findings of their own.
        .filter(|t| agent(s, &t.host).is_none() && s.hosts.get(&t.host).is_none_or(|h| h.lock.is_none()))
        .collect();
    if late.is_empty() {
        return;
    }
    let hosts: Vec<&str> = late.iter().map(|t| t.host.as_str()).collect();
    let evidence = late.iter().map(|t| fact(format!("{}: offered, not answered", t.host), t.offered_at));
    let mut works: Vec<_> = Vec::new();
    for t in &late {
        let pool = s.works.iter().find(|w| w.id == t.work).map(|w| (w.pool.clone(), w.id));
        works.extend(pool.filter(|p| !works.contains(p)));
    }
    let text = format!("{} does not answer the offer of its task", super::names(&hosts));
    found.push(Finding::new(Cause::OfferUnanswered, text, evidence.collect()).with(Repair::RingPool { works }));
}

/// Hosts that may take no task now.
fn gates(s: &Snapshot, open: &[&TaskNow], found: &mut Vec<Finding>) {
    let (mut locked, mut busy) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for t in open.iter().filter(|t| matches!(t.state, TaskState::Pending | TaskState::Offered)) {
        let Some(h) = s.hosts.get(&t.host) else { continue };
        let n: u32 = h.busy.iter().map(|(_, n)| n).sum();
        // What is offered is not granted under a lock; its place among the host's tasks it has.
        if let Some(l) = &h.lock {
            locked.0.push(t.host.as_str());
            locked.1.push(fact(format!("{}: locked by {}: {}", t.host, l.who, l.reason), Some(l.at)));
        } else if t.state == TaskState::Pending && n >= h.max_tasks {
            let whose = |(d, n): &(Option<_>, u32)| match d {
                Some(d) if *d == s.deployment.id => format!("{n} of this deployment"),
                Some(d) => format!("{n} of deployment {d}"),
                None => format!("{n} of other projects"),
            };
            let of: Vec<String> = h.busy.iter().map(whose).collect();
            busy.0.push(t.host.as_str());
            let text = format!("{}: {n} task(s), and it takes {} at once: {}", t.host, h.max_tasks, of.join(", "));
            busy.1.push(fact(text, None));
        }
    }
    if !locked.0.is_empty() {
        let text = format!("{} takes no new tasks: it is locked", super::names(&locked.0));
        found.push(Finding::new(Cause::HostLocked, text, locked.1));
    }
    if !busy.0.is_empty() {
        let text = format!("{} runs as many tasks as it takes", super::names(&busy.0));
        found.push(Finding::new(Cause::HostBusy, text, busy.1));
    }
}

fn traffic(s: &Snapshot, found: &mut Vec<Finding>) {
    let stuck: Vec<_> = s
        .tasks
        .iter()
        .filter_map(|t| Some((t, t.traffic.as_ref()?)))
        .filter(|(_, at)| match at.state {
            TrafficState::DrainFailed | TrafficState::AttachFailed => true,
            TrafficState::Draining | TrafficState::Attaching => s.age(at.since) >= s.limits.traffic,
            // Off on purpose: its task is open, or nobody knows what it does.
            TrafficState::Drained | TrafficState::Attached => false,
        })
        .collect();
    if stuck.is_empty() {
        return;
    }
    let hosts: Vec<&str> = stuck.iter().map(|(t, _)| t.host.as_str()).collect();
    let evidence = stuck.iter().map(|(t, at)| {
        let state = match at.state {
            TrafficState::Draining => "leaves the load balancer",
            TrafficState::Attaching => "comes back to the load balancer",
            TrafficState::DrainFailed => "could not be taken off the load balancer",
            TrafficState::AttachFailed => "did not come back to the load balancer",
            TrafficState::Drained => "is off the load balancer",
            TrafficState::Attached => "is at the load balancer",
        };
        let why = at.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
        fact(format!("{} {state}{why}", t.host), Some(at.since))
    });
    let text = format!("{} is stuck at the load balancer", super::names(&hosts));
    found.push(Finding::new(Cause::TrafficStuck, text, evidence.collect()));
}

fn unknown(s: &Snapshot, found: &mut Vec<Finding>) {
    let d = &s.deployment;
    let hosts = d.unknown_hosts();
    if hosts.is_empty() || !(d.lock.is_some() || d.state.is_active()) {
        return;
    }
    let mut evidence = Vec::new();
    for h in &hosts {
        let task = s.tasks.iter().filter(|t| t.host == *h && t.state == TaskState::Unknown).max_by_key(|t| t.attempt);
        let word = task.and_then(|t| t.reason.clone()).unwrap_or_else(|| "it went silent after it was granted".into());
        evidence.push(fact(format!("{h}: {word}"), task.and_then(|t| t.started_at.or(t.granted_at))));
        evidence.push(match agent(s, h) {
            Some((_, f)) => f,
            None => fact(format!("{h}: its agent is connected, and reports by itself what it knows"), None),
        });
    }
    let text = format!("nobody knows what {} did; the environment stays locked", super::names(&hosts));
    found.push(Finding::new(Cause::HostsUnknown, text, evidence));
}
