//! What people do to a deployment: every verb is a command, decided by the scheduler.

use crate::{
    call::{Answer, Call, now},
    commands as submit,
    problem::{Fail, Problem},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use uuid::Uuid;
use windlass_contracts::{command::Verb, http as body};
use windlass_domain::{
    approval::{Approval, Decision},
    flow::Phase,
    release::RollbackMode,
};

async fn verb(call: &Call, verb: Verb) -> Answer {
    let d = &call.deployment()?.deployment;
    submit::submit(call, d.id, &d.environment, verb).await
}

async fn decide(call: Call, decision: Decision) -> Answer {
    let g: body::DecisionBody = call.body()?;
    if g.digest.is_empty() {
        return Err(Problem::invalid("`digest` must be the plan's digest as you saw it").into());
    }
    let mut approval = Approval {
        deployment: call.deployment()?.deployment.id,
        plan_digest: g.digest,
        person: call.who()?.actor.person.clone(),
        decision,
        comment: g.comment,
        at: now(),
        signature: String::new(),
    };
    // Agents check this against the key they were enrolled with, so no writer of the database can approve.
    let signed =
        call.state.approval.sign(approval.signed_text().as_bytes()).map_err(|e| Fail::Internal(e.to_string()))?;
    approval.signature = STANDARD.encode(signed);
    let token = Some(call.who()?.token);
    verb(&call, Verb::Decide { approval, token }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/approve", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::DecisionBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn approve(call: Call) -> Answer {
    decide(call, Decision::Approve).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/reject", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::DecisionBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn reject(call: Call) -> Answer {
    decide(call, Decision::Reject).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/cancel", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::ReasonBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn cancel(call: Call) -> Answer {
    let g: body::ReasonBody = call.body()?;
    verb(&call, Verb::Cancel { reason: g.reason }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/pause", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::ReasonBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn pause(call: Call) -> Answer {
    let g: body::ReasonBody = call.body()?;
    verb(&call, Verb::Pause { reason: g.reason }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/resume", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::NoBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn resume(call: Call) -> Answer {
    let _: body::NoBody = call.body()?;
    verb(&call, Verb::Resume).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/confirm", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::ConfirmBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn confirm(call: Call) -> Answer {
    let g: body::ConfirmBody = call.body()?;
    verb(&call, Verb::Confirm { wave: g.wave }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/choose", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::ChooseBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn choose(call: Call) -> Answer {
    let g: body::ChooseBody = call.body()?;
    verb(&call, Verb::Choose { step: g.step, branch: g.branch }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/accept", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::AcceptBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn accept(call: Call) -> Answer {
    let g: body::AcceptBody = call.body()?;
    verb(&call, Verb::Accept { digest: g.digest }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/claim", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::ClaimBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn claim(call: Call) -> Answer {
    let g: body::ClaimBody = call.body()?;
    if g.take_over {
        why(&g.reason)?;
    }
    verb(&call, Verb::Claim { take_over: g.take_over, reason: g.reason }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/unclaim", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::NoBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn unclaim(call: Call) -> Answer {
    let _: body::NoBody = call.body()?;
    verb(&call, Verb::Unclaim).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/retry", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::RetryBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn retry(call: Call) -> Answer {
    let g: body::RetryBody = call.body()?;
    if !g.inputs.is_empty() {
        why(&g.reason)?;
        if g.step.is_some() || g.whole_wave {
            let text =
                "`inputs` go with `hosts` alone: after the new plan is approved everything that failed is retried";
            return Err(Problem::invalid(text).into());
        }
    }
    let step = named("step", g.step)?;
    let body::RetryBody { hosts, inputs, reason, whole_wave, .. } = g;
    verb(&call, Verb::Retry { hosts, step, whole_wave, inputs, reason }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/skip", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::HostsBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn skip(call: Call) -> Answer {
    let g: body::HostsBody = call.body()?;
    verb(&call, Verb::Skip { hosts: g.hosts }).await
}

fn why(reason: &str) -> Result<(), Problem> {
    match reason.trim().is_empty() {
        true => Err(Problem::invalid("`reason` must say why; it stays in the audit trail")),
        false => Ok(()),
    }
}

/// A name that is given must not be empty: it would read as everything.
fn named(field: &str, value: Option<String>) -> Result<Option<String>, Problem> {
    match value {
        Some(v) if v.trim().is_empty() => {
            Err(Problem::invalid(format!("`{field}` is empty; leave it out, or name one")))
        }
        v => Ok(v),
    }
}

fn reasoned(call: &Call, hosts_needed: bool) -> Result<body::HostsReasonBody, Problem> {
    let g: body::HostsReasonBody = call.body()?;
    why(&g.reason)?;
    if hosts_needed && g.hosts.is_empty() {
        return Err(Problem::invalid("`hosts` must name the hosts"));
    }
    Ok(g)
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/ignore", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::HostsReasonBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn ignore(call: Call) -> Answer {
    let g = reasoned(&call, false)?;
    verb(&call, Verb::Ignore { hosts: g.hosts, reason: g.reason }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/exclude", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::HostsReasonBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn exclude(call: Call) -> Answer {
    let g = reasoned(&call, true)?;
    verb(&call, Verb::Exclude { hosts: g.hosts, reason: g.reason }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/stop", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::HostsReasonBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn stop(call: Call) -> Answer {
    let g = reasoned(&call, true)?;
    verb(&call, Verb::Stop { hosts: g.hosts, reason: g.reason }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/fail", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::FailBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn fail(call: Call) -> Answer {
    let g: body::FailBody = call.body()?;
    why(&g.reason)?;
    if g.step.trim().is_empty() {
        return Err(Problem::invalid("`step` must name the step that runs").into());
    }
    verb(&call, Verb::Fail { step: g.step, reason: g.reason }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/succeed", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::SucceedBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn succeed(call: Call) -> Answer {
    let g: body::SucceedBody = call.body()?;
    why(&g.reason)?;
    let step = named("step", g.step)?;
    if step.is_some() != g.hosts.is_empty() {
        return Err(Problem::invalid("name either the `step` or the `hosts` that count as well, not both").into());
    }
    verb(&call, Verb::Succeed { step, hosts: g.hosts, reason: g.reason }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/override", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::HostsReasonBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn override_hosts(call: Call) -> Answer {
    let g = reasoned(&call, true)?;
    verb(&call, Verb::Override { hosts: g.hosts, reason: g.reason }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/abort", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::ReasonBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn abort(call: Call) -> Answer {
    let g: body::ReasonBody = call.body()?;
    verb(&call, Verb::Abort { reason: g.reason }).await
}

#[utoipa::path(post, path = "/api/v1/deployments/{id}/rollback", tag = "verbs", params(("id" = Uuid, Path,)), request_body = body::RollbackBody, responses((status = 200, body = body::Command), (status = 202, body = body::Command), (status = "default", body = body::Problem)))]
pub(crate) async fn rollback(call: Call) -> Answer {
    let g: body::RollbackBody = call.body()?;
    let mode = match g.mode.as_deref() {
        None | Some("normal") => RollbackMode::Normal,
        Some("emergency") => RollbackMode::Emergency,
        Some(other) => {
            return Err(Problem::invalid(format!("`mode` must be normal or emergency, got {other:?}")).into());
        }
    };
    let phase = |p: &str| match p {
        "prepare" => Ok(Phase::Prepare),
        "pre-release" => Ok(Phase::PreRelease),
        "release" => Ok(Phase::Release),
        "post-release" => Ok(Phase::PostRelease),
        other => Err(Problem::invalid(format!(
            "`from_phase` must be prepare, pre-release, release or post-release, got {other:?}"
        ))),
    };
    let from_phase = g.from_phase.as_deref().map(phase).transpose()?;
    let to = named("to", g.to)?;
    if g.veto {
        why(&g.reason)?;
    }
    let rollback = Uuid::now_v7().into();
    verb(&call, Verb::Rollback { mode, reason: g.reason, rollback, to, veto: g.veto, from_phase }).await
}
