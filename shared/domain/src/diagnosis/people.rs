//! Whether people, or other deployments, are what it waits for.

use super::{Cause, Fact, Finding, Snapshot, fact, undecided};
use crate::{
    approval::{self, ApprovalRule, Missing},
    deployment::{Bound, State, WaitingOn},
    flow::Overdue,
};

pub(super) fn look(s: &Snapshot, found: &mut Vec<Finding>) {
    waits(s, found);
    approvals(s, found);
    in_the_way(s, found);
    queue(s, found);
}

/// Only a person brings it forward. Unknown hosts and a turn in a bundle are findings of their own.
fn is_for_person(w: &WaitingOn) -> bool {
    matches!(w.bound(), Bound::Person { .. }) && !matches!(w, WaitingOn::Unknown { .. } | WaitingOn::Turn { .. })
}

fn waits(s: &Snapshot, found: &mut Vec<Finding>) {
    let d = &s.deployment;
    let waiting_on = d.waiting_on();
    let texts: Vec<String> = waiting_on.iter().filter(|w| is_for_person(w)).map(ToString::to_string).collect();
    if texts.is_empty() {
        return;
    }
    let since = match (&d.attention, d.state) {
        (Some(a), _) => a.since,
        (None, State::AwaitingApproval) => d.requested_at,
        (None, _) => s.updated_at,
    };
    let mut evidence: Vec<Fact> = match texts.len() {
        1 => Vec::new(),
        _ => texts.iter().map(|t| fact(t.clone(), None)).collect(),
    };
    evidence.push(fact("it has waited", Some(since)));
    match &d.claim {
        Some(c) => evidence.push(fact(format!("claimed by {}", c.who), Some(c.at))),
        None if d.state.is_active() => {
            evidence.push(fact(format!("nobody has claimed it; {} requested it", d.requested_by), None));
        }
        None => {}
    }
    match &d.attention {
        Some(a) => {
            let then = match d.patience.then {
                Overdue::Remind => "people are reminded",
                Overdue::Abort => "it is aborted",
                Overdue::Rollback => "it is rolled back",
            };
            evidence.push(fact(format!("until {}, then {then}", super::moment(a.deadline)), None));
        }
        None if d.state.is_before_running() => {
            evidence.push(fact(format!("it expires {}", super::moment(d.expires_at)), None));
        }
        None => {}
    }
    let mut f = Finding::new(Cause::WaitsForPerson, format!("it waits for {}", texts.join("; ")), evidence);
    f.since = Some(since);
    found.push(f);
}

fn approvals(s: &Snapshot, found: &mut Vec<Finding>) {
    let d = &s.deployment;
    if d.state == State::AwaitingApproval {
        let missing = approval::missing(&d.rules, &d.requested_by, &d.plan_digest, &d.approvals);
        impossible(s, &d.rules, &d.requested_by, &d.plan_digest, missing, found);
    }
    if let Some(a) = d.amendment.as_ref().filter(|_| d.state.is_active()) {
        let missing = approval::missing(&a.facts.rules, &a.by.who, &a.facts.digest, &a.approvals);
        impossible(s, &a.facts.rules, &a.by.who, &a.facts.digest, missing, found);
    }
}

fn impossible(
    s: &Snapshot,
    rules: &[ApprovalRule],
    requester: &str,
    digest: &str,
    missing: Vec<Missing>,
    found: &mut Vec<Finding>,
) {
    let undecided = undecided(&s.deployment, digest);
    for m in missing {
        let Some(rule) = rules.iter().find(|r| r.name == m.rule) else { continue };
        let named = !rule.people.is_empty();
        let asked: &[String] = if named { &rule.people } else { &s.approvers };
        let mut evidence = Vec::new();
        let mut able = 0;
        for p in asked {
            let why = if p == requester {
                "requested it"
            } else if !s.approvers.contains(p) {
                "has no right to approve here, or is no longer there"
            } else if !undecided(p) {
                "has decided already"
            } else {
                able += 1;
                continue;
            };
            evidence.push(fact(format!("{p} {why}"), None));
        }
        if m.have + able >= m.quorum {
            continue;
        }
        if asked.is_empty() {
            evidence.push(fact("nobody has the right to approve here", None));
        }
        let lacking = m.quorum - m.have;
        let text = format!("rule {} needs {lacking} more approval(s) and {able} more person(s) may give one", m.rule);
        found.push(Finding::new(Cause::ApprovalImpossible, text, evidence));
    }
}

/// The catalog, marks and holds.
fn in_the_way(s: &Snapshot, found: &mut Vec<Finding>) {
    let d = &s.deployment;
    if !d.state.is_before_running() {
        return;
    }
    if let Some(why) = &s.plan {
        let evidence = vec![fact(why.clone(), None), fact(format!("it expires {}", super::moment(d.expires_at)), None)];
        found.push(Finding::new(Cause::PlanImpossible, format!("it cannot be planned any more: {why}"), evidence));
    }
    if let Some(why) = &s.mark {
        found.push(Finding::new(
            Cause::Marked,
            format!("its version is kept out: {why}"),
            vec![fact(why.clone(), None)],
        ));
    }
    if let Some(h) = s.hold.as_ref().filter(|_| d.requested_by.starts_with("hook:") || d.requested_by == "windlass") {
        let text = format!("{}/{} is held by {}: {}", d.project, d.environment, h.who, h.reason);
        let evidence = vec![
            fact(format!("held by {}: {}", h.who, h.reason), Some(h.at)),
            fact(format!("requested by {}", d.requested_by), Some(d.requested_at)),
        ];
        found.push(Finding::new(Cause::Held, text, evidence));
    }
}

fn queue(s: &Snapshot, found: &mut Vec<Finding>) {
    let d = &s.deployment;
    if let Some(t) = d.turn.as_ref().filter(|t| !t.released && d.state == State::Scheduled) {
        let text = format!("it is member {} of bundle {}, whose turn has not come", t.member, t.bundle);
        found.push(Finding::new(Cause::Turn, text, vec![fact("requested", Some(d.requested_at))]));
    }
    if d.state != State::Queued {
        return;
    }
    let ahead: Vec<_> = s.queue.iter().take_while(|o| o.id != d.id).collect();
    let mut evidence: Vec<Fact> =
        ahead.iter().map(|o| fact(format!("ahead of it: deployment {} ({})", o.id, o.version), None)).collect();
    match &s.lock {
        Some(l) if l.holder != d.id && l.state.is_terminal() => {
            let state = l.state.as_str().replace('_', " ");
            let text = format!("deployment {} ({}) has ended {state} and keeps the environment", l.holder, l.version);
            let mut own = vec![fact(format!("it ended {state}"), l.ended_at)];
            own.push(fact(format!("unknown hosts: {}", super::names(&l.unknown)), None));
            own.extend(evidence);
            found.push(Finding::new(Cause::LockHeldByEnded, text, own));
        }
        Some(l) if l.holder != d.id => {
            let state = l.state.as_str().replace('_', " ");
            evidence.insert(
                0,
                fact(format!("deployment {} ({}) has the environment and is {state}", l.holder, l.version), l.taken_at),
            );
            evidence.extend(l.waiting_on.iter().map(|w| fact(format!("that one waits for {w}"), None)));
            let text = format!("deployment {} has the environment, {} ahead in the queue", l.holder, ahead.len());
            found.push(Finding::new(Cause::Queued, text, evidence));
        }
        _ if !ahead.is_empty() => {
            let text = format!("{} deployment(s) are ahead of it in the queue", ahead.len());
            found.push(Finding::new(Cause::Queued, text, evidence));
        }
        _ => {}
    }
}
