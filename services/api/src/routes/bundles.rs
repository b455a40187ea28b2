//! Bundles: several releases as one. A person needs the permission on the project of every member.

use crate::{
    call::{Answer, Call, now, ok, page},
    commands::submit_to,
    problem::{Fail, Problem},
    routes::{known, plans},
    table::group_of,
    view,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, Utc};
use serde_json::Value;
use std::collections::BTreeMap;
use uuid::Uuid;
use windlass_contracts::{
    bundles as body,
    command::{BundleAsk, BundleMember, BundleRequest, Request, Verb},
    http,
};
use windlass_domain::{
    access::{Permission, Target},
    approval::{self, Approval, Decision},
    bundle::{Bundle, MemberState, State, check_members},
    deployment,
    flow::OnFailure,
    ids::BundleId,
    release::{ReleaseKind, RollbackMode},
};
use windlass_store::{Tx, bundles, deployments};

async fn ask(call: &Call, bundle: BundleId, project: &str, ask: BundleAsk) -> Answer {
    submit_to(call, project, None, None, Verb::Bundle { bundle, ask }).await
}

/// A verb to the bundle that the path names.
async fn verb(call: &Call, what: BundleAsk) -> Answer {
    let b = &call.bundle()?.bundle;
    let project = b.members.first().map(|m| m.project.clone()).unwrap_or_default();
    ask(call, b.id, &project, what).await
}

#[utoipa::path(post, path = "/api/v1/bundles", tag = "bundles", request_body = body::BundleNew,
    responses((status = 200, body = http::Command), (status = 202, body = http::Command), (status = "default", body = http::Problem)))]
pub(crate) async fn create(call: Call) -> Answer {
    let g: body::BundleNew = call.body()?;
    if g.title.trim().is_empty() {
        return Err(Problem::invalid("`title` must say what the bundle is").into());
    }
    let on_failure = match g.on_failure.as_deref() {
        None | Some("pause") => OnFailure::Pause,
        Some("stop") => OnFailure::Stop,
        Some("rollback") => OnFailure::Rollback,
        Some(other) => {
            let detail = format!("`on_failure` must be pause, stop or rollback, got {other:?}");
            return Err(Problem::invalid(detail).into());
        }
    };
    let name = |m: &body::BundleMemberNew| m.name.clone().unwrap_or_else(|| m.project.clone());
    let names: Vec<String> = g.members.iter().map(name).collect();
    let places = g.members.iter().zip(&names);
    let places = places.map(|(m, n)| (n.as_str(), m.project.as_str(), m.environment.as_str(), m.needs.as_slice()));
    check_members(places).map_err(|text| Problem::unprocessable(text, vec![]))?;
    let mut tx = call.store().read().await?;
    let mut members = Vec::new();
    for (m, name) in g.members.into_iter().zip(names) {
        // A project that may not be seen is answered like one that does not exist.
        let group = group_of(&mut tx, &m.project).await?;
        let may = |p| {
            let target = group.as_ref().map(|group| Target::Project { name: &m.project, group });
            Ok::<bool, Fail>(target.is_some_and(|t| call.who.as_ref().is_some_and(|w| w.actor.may(p, t))))
        };
        if !may(Permission::View)? {
            let detail = format!("member {name:?}: there is no project {:?}, or this token may not see it", m.project);
            return Err(Problem::unprocessable(detail, vec![]).into());
        }
        if !may(Permission::Trigger)? {
            let detail = format!("member {name:?} needs the permission `trigger` on project {:?}", m.project);
            return Err(Problem::forbidden(detail).into());
        }
        let wish = http::DeploymentNew {
            environment: m.environment.clone(),
            version: Some(m.version),
            inputs: m.inputs,
            ..http::DeploymentNew::default()
        };
        let asked = plans::asked(&mut tx, &m.project, &wish).await.map_err(|e| in_member(&name, e))?;
        if let Some(input) = asked.secrets.keys().next() {
            let detail =
                format!("member {name:?}: secret inputs are not taken in a bundle; store {input:?} as a secret");
            return Err(Problem::unprocessable(detail, vec![]).into());
        }
        let request = Request {
            deployment: Uuid::now_v7().into(),
            environment: m.environment,
            artifact: asked.artifact.id,
            kind: ReleaseKind::Normal,
            inputs: asked.inputs,
            hosts: m.hosts,
            add_hosts: vec![],
            exclude_hosts: vec![],
            values: Default::default(),
            not_before: m.not_before,
            note: format!("{name} of bundle {}", g.title),
        };
        members.push(BundleMember { name, project: m.project, needs: m.needs, request });
    }
    drop(tx);
    let first = members.first().map(|m| m.project.clone()).unwrap_or_default();
    let request = BundleRequest { title: g.title, note: g.note, on_failure, members };
    ask(&call, BundleId(Uuid::now_v7()), &first, BundleAsk::Request(Box::new(request))).await
}

/// The fault with the member it is of.
fn in_member(name: &str, e: Fail) -> Fail {
    match e {
        Fail::Problem(p) => Problem { detail: format!("member {name:?}: {}", p.detail), ..*p }.into(),
        other => other,
    }
}

#[utoipa::path(get, path = "/api/v1/bundles", tag = "bundles", params(("state" = Option<String>, Query,), ("limit" = Option<u32>, Query,), ("cursor" = Option<String>, Query,)),
    responses((status = 200, body = http::Page<body::Bundle>), (status = "default", body = http::Problem)))]
pub(crate) async fn list(call: Call) -> Answer {
    call.only(&["state", "limit", "cursor"])?;
    let (limit, cursor) = call.page()?;
    if let Some(s) = call.ask("state") {
        known("state", s, &State::ALL, |s| s.as_str())?;
    }
    let mut before: Option<(DateTime<Utc>, BundleId)> = cursor.map(crate::page::decode).transpose()?;
    let mut tx = call.store().read().await?;
    let (mut rows, mut seen) = (Vec::new(), BTreeMap::new());
    loop {
        let batch = bundles::list(&mut tx, call.ask("state"), before, limit + 1).await?;
        let last = batch.len() <= limit as usize;
        for b in batch {
            before = Some((b.bundle.requested_at, b.bundle.id));
            if sees(&call, &mut tx, &mut seen, &b.bundle).await? {
                rows.push(b.bundle);
            }
        }
        if last || rows.len() > limit as usize {
            break;
        }
    }
    ok(&page(rows, limit, |b| (b.requested_at, b.id), |b| summary(&b)))
}

/// A bundle is shown to who may see all of its projects.
async fn sees(call: &Call, tx: &mut Tx, seen: &mut BTreeMap<String, bool>, b: &Bundle) -> Result<bool, Fail> {
    for m in &b.members {
        if !seen.contains_key(&m.project) {
            let may = call.may(tx, Permission::View, Some(&m.project)).await?;
            seen.insert(m.project.clone(), may);
        }
        if seen.get(&m.project) != Some(&true) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn summary(b: &Bundle) -> body::Bundle {
    body::Bundle {
        id: b.id.0,
        title: b.title.clone(),
        state: b.state.as_str().into(),
        requested_by: b.requested_by.clone(),
        requested_at: b.requested_at,
        ended_at: b.ended_at,
        waiting_on: b
            .waiting_on()
            .iter()
            .map(|w| {
                let mut data = serde_json::to_value(w).unwrap_or_default();
                let on = data.as_object_mut().and_then(|o| o.remove("on"));
                let on = on.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
                http::WaitingOn { on, text: w.to_string(), data }
            })
            .collect(),
        members: b
            .members
            .iter()
            .map(|m| body::BundleMember {
                name: m.name.clone(),
                project: m.project.clone(),
                environment: m.environment.clone(),
                version: m.version.clone(),
                needs: m.needs.clone(),
                state: view::name(&m.state),
                reason: m.reason.clone(),
                deployment: m.deployment.0,
                plan_digest: m.plan_digest.clone(),
                unapproved: m.unapproved,
            })
            .collect(),
    }
}

#[utoipa::path(get, path = "/api/v1/bundles/{id}", tag = "bundles", params(("id" = Uuid, Path,)), responses((status = 200, body = body::BundleDetail), (status = "default", body = http::Problem)))]
pub(crate) async fn get(call: Call) -> Answer {
    let b = &call.bundle()?.bundle;
    let mut tx = call.store().read().await?;
    let mut all = Vec::new();
    for m in &b.members {
        all.extend(deployments::get(&mut tx, m.deployment).await?.map(|d| view::summary(&d.deployment)));
    }
    ok(&body::BundleDetail {
        summary: summary(b),
        note: b.note.clone(),
        on_failure: view::name(&b.on_failure),
        digest: b.digest.clone(),
        expires_at: b.expires_at,
        started_at: b.started_at,
        end: b.end.as_ref().map(|e| http::By { who: e.who.clone(), reason: e.reason.clone(), at: e.at }),
        deployments: all,
        actions: actions(b, &call)?,
    })
}

/// What this person may press now: what the state takes and the rights allow. The scheduler has the last word.
fn actions(b: &Bundle, call: &Call) -> Result<Vec<String>, Fail> {
    let who = call.who()?;
    let has = |p| call.found.all_may(who, p);
    let active = matches!(b.state, State::Running | State::Paused);
    let failed = |m: &windlass_domain::bundle::Member| {
        use MemberState as M;
        matches!(m.state, M::Stuck | M::Failed | M::RolledBack | M::Cancelled | M::RollbackFailed)
    };
    let failed = (active || b.state == State::RollingBack) && b.members.iter().any(failed);
    let own = who.actor.person == b.requested_by;
    let unapproved = b.members.iter().any(|m| m.unapproved) && !b.state.is_terminal();
    let all = [
        ("approve", has(Permission::Approve) && unapproved && !own),
        ("reject", has(Permission::Approve) && b.state == State::AwaitingApproval),
        ("cancel", has(Permission::Trigger) && (active || b.state == State::AwaitingApproval) && b.stop.is_none()),
        ("pause", has(Permission::Operate) && active && b.pause.is_none()),
        ("resume", has(Permission::Operate) && active && b.pause.is_some()),
        ("retry", has(Permission::Operate) && failed),
        ("skip", has(Permission::Operate) && (failed || active)),
        (
            "rollback",
            has(Permission::Operate)
                && (active || b.state.is_terminal())
                && b.members.iter().any(|m| m.touched && m.state != MemberState::RolledBack),
        ),
    ];
    Ok(all.into_iter().filter(|(_, ok)| *ok).map(|(n, _)| n.to_owned()).collect())
}

/// One approval of the bundle is a signed approval of each member's plan that asks for this person, so that hosts can check
/// it like any other. Every rule is still met by itself.
#[utoipa::path(post, path = "/api/v1/bundles/{id}/approve", tag = "bundles", params(("id" = Uuid, Path,)), request_body = http::DecisionBody, responses((status = 200, body = http::Command), (status = 202, body = http::Command), (status = "default", body = http::Problem)))]
pub(crate) async fn approve(call: Call) -> Answer {
    let g: http::DecisionBody = decision(&call)?;
    let b = &call.bundle()?.bundle;
    let person = call.who()?.actor.person.clone();
    let mut approvals = Vec::new();
    let mut why = None;
    let mut tx = call.store().read().await?;
    for m in &b.members {
        let Some(d) = deployments::get(&mut tx, m.deployment).await? else { continue };
        let d = d.deployment;
        if d.state != deployment::State::AwaitingApproval || d.plan_digest != m.plan_digest {
            continue;
        }
        let asked = approval::check(
            &d.rules,
            &d.requested_by,
            &d.plan_digest,
            &d.approvals,
            &person,
            &d.plan_digest,
            Decision::Approve,
        );
        match asked {
            Ok(()) => {
                let mut a = Approval {
                    deployment: d.id,
                    plan_digest: d.plan_digest,
                    person: person.clone(),
                    decision: Decision::Approve,
                    comment: g.comment.clone(),
                    at: now(),
                    signature: String::new(),
                };
                let signed = call.state.approval.sign(a.signed_text().as_bytes());
                a.signature = STANDARD.encode(signed.map_err(|e| Fail::Internal(e.to_string()))?);
                approvals.push(a);
            }
            Err(e @ approval::Refusal::OwnRequest(_)) => {
                return Err(Problem::conflict("own_request", format!("member {}: {e}", m.name)).into());
            }
            Err(e) => why = Some((deployment::Refusal::from(e.clone()).code(), format!("member {}: {e}", m.name))),
        }
    }
    drop(tx);
    if let (true, true, Some((code, text))) = (approvals.is_empty(), g.digest == b.digest, why) {
        return Err(Problem::conflict(code, text).into());
    }
    let token = Some(call.who()?.token);
    verb(&call, BundleAsk::Approve { digest: g.digest, approvals, comment: g.comment, token }).await
}

fn decision(call: &Call) -> Result<http::DecisionBody, Problem> {
    let g: http::DecisionBody = call.body()?;
    if g.digest.is_empty() {
        return Err(Problem::invalid("`digest` must be the bundle's digest as you saw it"));
    }
    Ok(g)
}

#[utoipa::path(post, path = "/api/v1/bundles/{id}/reject", tag = "bundles", params(("id" = Uuid, Path,)), request_body = http::DecisionBody, responses((status = 200, body = http::Command), (status = 202, body = http::Command), (status = "default", body = http::Problem)))]
pub(crate) async fn reject(call: Call) -> Answer {
    let g = decision(&call)?;
    verb(&call, BundleAsk::Reject { digest: g.digest, comment: g.comment }).await
}

#[utoipa::path(post, path = "/api/v1/bundles/{id}/cancel", tag = "bundles", params(("id" = Uuid, Path,)), request_body = http::ReasonBody, responses((status = 200, body = http::Command), (status = 202, body = http::Command), (status = "default", body = http::Problem)))]
pub(crate) async fn cancel(call: Call) -> Answer {
    let g: http::ReasonBody = call.body()?;
    verb(&call, BundleAsk::Cancel { reason: g.reason }).await
}

#[utoipa::path(post, path = "/api/v1/bundles/{id}/pause", tag = "bundles", params(("id" = Uuid, Path,)), request_body = http::ReasonBody, responses((status = 200, body = http::Command), (status = 202, body = http::Command), (status = "default", body = http::Problem)))]
pub(crate) async fn pause(call: Call) -> Answer {
    let g: http::ReasonBody = call.body()?;
    verb(&call, BundleAsk::Pause { reason: g.reason }).await
}

#[utoipa::path(post, path = "/api/v1/bundles/{id}/resume", tag = "bundles", params(("id" = Uuid, Path,)), request_body = http::NoBody, responses((status = 200, body = http::Command), (status = 202, body = http::Command), (status = "default", body = http::Problem)))]
pub(crate) async fn resume(call: Call) -> Answer {
    let _: http::NoBody = call.body()?;
    verb(&call, BundleAsk::Resume).await
}

#[utoipa::path(post, path = "/api/v1/bundles/{id}/retry", tag = "bundles", params(("id" = Uuid, Path,)), request_body = body::MembersBody, responses((status = 200, body = http::Command), (status = 202, body = http::Command), (status = "default", body = http::Problem)))]
pub(crate) async fn retry(call: Call) -> Answer {
    let g: body::MembersBody = call.body()?;
    verb(&call, BundleAsk::Retry { members: g.members }).await
}

#[utoipa::path(post, path = "/api/v1/bundles/{id}/skip", tag = "bundles", params(("id" = Uuid, Path,)), request_body = body::SkipMemberBody, responses((status = 200, body = http::Command), (status = 202, body = http::Command), (status = "default", body = http::Problem)))]
pub(crate) async fn skip(call: Call) -> Answer {
    let g: body::SkipMemberBody = call.body()?;
    if g.reason.trim().is_empty() {
        return Err(Problem::invalid("`reason` must say why; it stays in the audit trail").into());
    }
    verb(&call, BundleAsk::Skip { member: g.member, reason: g.reason }).await
}

#[utoipa::path(post, path = "/api/v1/bundles/{id}/rollback", tag = "bundles", params(("id" = Uuid, Path,)), request_body = body::BundleRollbackBody, responses((status = 200, body = http::Command), (status = 202, body = http::Command), (status = "default", body = http::Problem)))]
pub(crate) async fn rollback(call: Call) -> Answer {
    let g: body::BundleRollbackBody = call.body()?;
    let mode = match g.mode.as_deref() {
        None | Some("normal") => RollbackMode::Normal,
        Some("emergency") => RollbackMode::Emergency,
        Some(other) => {
            return Err(Problem::invalid(format!("`mode` must be normal or emergency, got {other:?}")).into());
        }
    };
    verb(&call, BundleAsk::Rollback { mode, reason: g.reason, members: g.members }).await
}
