//! From stored documents to the bodies of `contracts::http`. These types are all that leaves: none can hold a secret.

use crate::auth::Who;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use windlass_contracts::{command, http as body};
use windlass_domain::{
    access::Target,
    approval,
    deployment::{Amendment, By, Deployment, HostRun, ProbeRun, StepRunKind, WaitingOn, WaveState, table},
    ids::DeploymentId,
    plan::segment,
};
use windlass_store::{artifacts, deployments, logs, tasks::StoredTask};

/// The text of a unit enum as it is stored.
pub(crate) fn name<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(s)) => s,
        Ok(Value::Object(o)) => o.values().find_map(|v| v.as_str().map(str::to_owned)).unwrap_or_default(),
        _ => String::new(),
    }
}

pub(crate) fn waiting(w: &WaitingOn) -> body::WaitingOn {
    let mut data = serde_json::to_value(w).unwrap_or_default();
    let on = data.as_object_mut().and_then(|o| o.remove("on"));
    let on = on.and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    body::WaitingOn { on, text: w.to_string(), data }
}

pub(crate) fn counts(d: &Deployment) -> body::HostCounts {
    let c = d.host_counts();
    body::HostCounts {
        total: c.total,
        succeeded: c.succeeded,
        failed: c.failed,
        running: c.running,
        waiting: c.waiting,
        unknown: c.unknown,
        auto_stopped: c.auto_stopped,
        hand_stopped: c.hand_stopped,
        not_started: c.not_started,
        ignored: c.ignored,
        excluded: c.excluded,
        other: c.auto_stopped + c.hand_stopped + c.not_started + c.ignored + c.excluded,
    }
}

pub(crate) fn by(b: &By) -> body::By {
    body::By { who: b.who.clone(), reason: b.reason.clone(), at: b.at }
}

fn rule(r: &approval::ApprovalRule, missing: &[approval::Missing]) -> body::RuleState {
    body::RuleState {
        name: r.name.clone(),
        quorum: r.quorum,
        have: missing.iter().find(|m| m.rule == r.name).map_or(r.quorum, |m| m.have),
        people: r.people.clone(),
    }
}

fn attention(d: &Deployment) -> Option<body::Attention> {
    let a = d.attention.as_ref()?;
    let claimant = d.claim.as_ref().map(|c| c.who.clone());
    Some(body::Attention {
        since: a.since,
        deadline: a.deadline,
        then: name(&d.patience.then),
        claimed: claimant.is_some(),
        owner: claimant.unwrap_or_else(|| d.requested_by.clone()),
        reminded: a.reminded,
    })
}

fn amendment(a: &Amendment) -> body::Amendment {
    // Whoever wants the other inputs is the requester of that plan.
    let missing = approval::missing(&a.facts.rules, &a.by.who, &a.facts.digest, &a.approvals);
    let unmet = a.facts.rules.iter().filter(|r| missing.iter().any(|m| m.rule == r.name));
    body::Amendment {
        by: by(&a.by),
        digest: a.facts.digest.clone(),
        inputs: a.inputs.clone(),
        hosts: a.hosts.clone(),
        approvals: a.approvals.iter().map(approval_view).collect(),
        missing: unmet.map(|r| rule(r, &missing)).collect(),
    }
}

pub(crate) fn summary(d: &Deployment) -> body::Deployment {
    let last = d.approvals.iter().map(|a| a.at).chain([d.requested_at]).chain(d.started_at).chain(d.ended_at).max();
    body::Deployment {
        id: d.id.0,
        project: d.project.clone(),
        environment: d.environment.clone(),
        version: d.version.clone(),
        kind: name(&d.kind),
        state: d.state.as_str().into(),
        requested_by: d.requested_by.clone(),
        requested_at: d.requested_at,
        started_at: d.started_at,
        ended_at: d.ended_at,
        updated_at: last.unwrap_or(d.requested_at),
        waiting_on: d.waiting_on().iter().map(waiting).collect(),
        hosts: counts(d),
    }
}

pub(crate) fn detail(
    s: &deployments::Stored,
    tasks: &[StoredTask],
    who: &Who,
    group: &str,
    last_event: u64,
) -> body::DeploymentDetail {
    let d = &s.deployment;
    let missing = approval::missing(&d.rules, &d.requested_by, &d.plan_digest, &d.approvals);
    let mut latest: BTreeMap<(&str, &str), &StoredTask> = BTreeMap::new();
    // Tasks of other segments are probes, or steps on a load balancer's own host.
    for t in tasks.iter().filter(|t| t.segment == segment::MAIN) {
        let slot = latest.entry((t.step.as_str(), t.task.host.as_str())).or_insert(t);
        if t.task.attempt > slot.task.attempt {
            *slot = t;
        }
    }
    body::DeploymentDetail {
        summary: summary(d),
        revision: s.version,
        release: d.release.0,
        note: d.note.clone(),
        pool: d.pool.clone(),
        only_hosts: d.only_hosts.clone(),
        plan_digest: d.plan_digest.clone(),
        rules: d.rules.iter().map(|r| rule(r, &missing)).collect(),
        approvals: d.approvals.iter().map(approval_view).collect(),
        not_before: d.not_before,
        expires_at: d.expires_at,
        steps: d.steps.iter().map(|s| step(s, &latest)).collect(),
        claim: d.claim.as_ref().map(by),
        attention: attention(d),
        run: d.run,
        reopened: d.reopened.as_ref().map(by),
        amendment: d.amendment.as_deref().map(amendment),
        pause: d.pause.as_ref().map(by),
        end: d.end.as_ref().map(by),
        rollback_of: d.rollback.as_ref().map(|r| r.of.0),
        rollback_mode: d.rollback.as_ref().map(|r| name(&r.mode)),
        rolled_back_by: d.rolled_back_by.map(|r| r.0),
        actions: actions(d, who, group),
        last_event,
    }
}

pub(crate) fn approval_view(a: &approval::Approval) -> body::Approval {
    body::Approval {
        person: a.person.clone(),
        decision: name(&a.decision),
        plan_digest: a.plan_digest.clone(),
        comment: a.comment.clone(),
        at: a.at,
    }
}

fn step(s: &windlass_domain::deployment::StepRun, latest: &BTreeMap<(&str, &str), &StoredTask>) -> body::Step {
    let mut out = body::Step {
        id: s.id.clone(),
        needs: s.needs.clone(),
        join: name(&s.join),
        state: name(&s.state),
        kind: "rollout".into(),
        action: None,
        attempt: None,
        reason: s.asks.as_ref().map(|a| a.reason.clone()).or(s.reason.clone()),
        taken: vec![],
        choices: s.choices(),
        required: s.required,
        phase: s.phase.as_ref().map(name),
        tries: s.retry.as_ref().map(|_| s.tries.made),
        max_tries: s.retry.as_ref().map(|r| r.max),
        retry_at: s.tries.next_at,
        forced: s.forced.as_ref().map(by),
        max_failures: None,
        required_steps: vec![],
        runs: s.repeat.as_ref().map(|r| r.runs),
        max_runs: s.repeat.as_ref().map(|r| r.max),
        outputs: s.outputs.clone(),
        waves: vec![],
    };
    match &s.kind {
        StepRunKind::Central { action, attempt, reason, .. } => {
            out.kind = "central".into();
            out.action = Some(action.clone());
            out.attempt = Some(*attempt);
            out.reason = out.reason.or(reason.clone());
        }
        StepRunKind::Gateway(g) => {
            out.kind = "gateway".into();
            out.taken = g.taken.clone().unwrap_or_default();
        }
        StepRunKind::Enter { .. } | StepRunKind::Leave { .. } => out.kind = "subflow".into(),
        StepRunKind::Rollout(r) => {
            out.max_failures = Some(r.max_failures);
            out.required_steps.clone_from(&r.required);
            for (index, w) in (0u32..).zip(&r.waves) {
                let (state, bake_until) = match w.state {
                    WaveState::Baking { until } => ("baking", Some(until)),
                    WaveState::Probing { until } => ("probing", Some(until)),
                    WaveState::Retrying { at } => ("retrying", Some(at)),
                    WaveState::Waiting => ("waiting", None),
                    WaveState::Running => ("running", None),
                    WaveState::Confirming => ("confirming", None),
                    WaveState::Succeeded => ("succeeded", None),
                    WaveState::Failed => ("failed", None),
                    WaveState::Stopped => ("stopped", None),
                };
                let host = |h: &HostRun| body::HostRun {
                    host: h.host.clone(),
                    state: name(&h.state),
                    attempt: h.attempt,
                    failed_step: h.failed_step,
                    failed_id: h.failed_id.clone(),
                    class: h.class.as_ref().map(name),
                    retried: h.retried,
                    by: h.by.as_ref().map(by),
                    reason: h.reason.clone(),
                    task: latest.get(&(s.id.as_str(), h.host.as_str())).map(|t| task(t)),
                };
                let hosts = w.hosts.iter().map(host).collect();
                let probe = w.probe.as_ref().map(probe);
                let (state, max_failures) = (state.to_owned(), w.max_failures);
                let group = w.group.clone();
                out.waves.push(body::Wave { index, state, bake_until, max_failures, group, probe, hosts });
            }
        }
    }
    out
}

fn probe(p: &ProbeRun) -> body::Probe {
    let result = |r: &windlass_domain::work::ProbeResult| body::ProbeResult {
        probe: r.probe.clone(),
        verdict: name(&r.verdict),
        looks: r.looks,
        value: r.value.clone(),
        reason: r.reason.clone(),
    };
    body::Probe {
        until: p.until,
        attempt: p.attempt,
        verdict: p.verdict.as_ref().map(name),
        reason: p.reason.clone(),
        probes: p.probes.iter().map(result).collect(),
    }
}

pub(crate) fn task(t: &StoredTask) -> body::Task {
    let k = &t.task;
    body::Task {
        id: k.id.0,
        host: k.host.clone(),
        step: t.step.clone(),
        attempt: k.attempt,
        state: k.state.as_str().into(),
        reason: k.reason.clone(),
        traffic: k.traffic.as_ref().map(|t| body::Traffic {
            state: name(&t.state),
            since: t.since,
            reason: t.reason.clone(),
        }),
        offered_at: k.offered_at,
        started_at: k.started_at,
        settled_at: k.settled_at,
        steps: k
            .steps
            .iter()
            .map(|s| body::TaskStep {
                index: s.index,
                outcome: name(&s.outcome),
                exit_code: s.exit_code,
                message: s.message.clone(),
                started_at: s.started_at,
                ended_at: s.ended_at,
                left_processes: s.left_processes,
            })
            .collect(),
        log_bytes: k.report.as_ref().map(|r| r.log_bytes),
        log_dropped: k.report.as_ref().map(|r| r.log_dropped),
    }
}

/// What this person may press now: what would find something to do, and the rights allow. The scheduler has the last word.
fn actions(d: &Deployment, who: &Who, group: &str) -> Vec<String> {
    let target = Target::Project { name: &d.project, group };
    let all = table::offered(d, &who.actor.person).into_iter();
    all.filter(|v| who.actor.may(v.permission(), target)).map(|v| v.as_str().to_owned()).collect()
}

pub(crate) fn artifact(a: artifacts::Registered) -> body::Artifact {
    let (a, created_at) = (a.artifact, a.created_at);
    body::Artifact {
        id: a.id.0,
        project: a.project,
        version: a.version,
        digest: a.digest,
        url: a.url,
        size: a.size,
        git_ref: a.git_ref,
        commit: a.commit,
        committer: a.committer,
        build_url: a.build_url,
        built_at: a.built_at,
        created_at,
    }
}

pub(crate) fn chunk(c: logs::StoredChunk) -> body::LogChunk {
    use base64::{Engine, engine::general_purpose::STANDARD};
    body::LogChunk {
        n: c.n,
        task: c.chunk.task.0,
        seq: c.chunk.seq,
        host: c.chunk.host,
        step: c.chunk.step,
        stream: c.chunk.stream,
        at: c.chunk.at,
        data: STANDARD.encode(c.chunk.data),
    }
}

/// A command with what became of it.
pub(crate) fn command(c: &command::Command, outcome: Option<&command::CommandOutcome>) -> body::Command {
    let new = match &c.verb {
        command::Verb::Request(r) => Some(r.deployment),
        command::Verb::Rollback { rollback, .. } => Some(*rollback),
        _ => None,
    };
    body::Command {
        id: c.id.0,
        verb: c.verb.name().into(),
        project: c.project.clone(),
        environment: c.environment.clone(),
        deployment: c.deployment.map(|d: DeploymentId| d.0),
        new_deployment: new.map(|d| d.0),
        bundle: match &c.verb {
            command::Verb::Bundle { bundle, .. } => Some(bundle.0),
            _ => None,
        },
        actor: c.actor.clone(),
        state: outcome.map_or("pending", |o| if o.accepted { "accepted" } else { "refused" }).into(),
        code: outcome.map(|o| o.code.clone()).unwrap_or_default(),
        detail: outcome.map(|o| o.detail.clone()).unwrap_or_default(),
        created_at: c.created_at,
        decided_at: outcome.map(|o| o.decided_at),
        url: format!("{}/commands/{}", body::PREFIX, c.id),
    }
}
