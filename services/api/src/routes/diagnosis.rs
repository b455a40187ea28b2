//! `doctor run`: why a deployment stands where it stands, and the repairs that are safe.

use crate::{
    call::{Answer, Call, Once, json, now, ok},
    problem::{Fail, Problem, transact},
    routes::known,
};
use actix_web::http::StatusCode;
use chrono::Utc;
use serde_json::json as value;
use std::time::Duration;
use windlass_contracts::{http as body, subjects};
use windlass_domain::{
    diagnosis::{self, Cause, Finding, Limits, NEVER, Repair, Snapshot},
    event::{Aggregate, Severity},
    ids::WorkId,
};
use windlass_store::{diagnosis as read, events};

/// Events wait so long at most when all is well.
const EVENTS: Duration = Duration::from_secs(60);
/// What a load balancer gets where its catalog entry says nothing.
const TRAFFIC: Duration = Duration::from_secs(60);
const SKEW_S: i64 = 5;
/// How long one repair may publish what waits.
const RELAY: Duration = Duration::from_secs(10);

async fn snapshot(call: &Call) -> Result<Snapshot, Fail> {
    let id = call.deployment()?.deployment.id;
    let s = call.settings();
    let limits = Limits {
        poll: s.poll_s.get(),
        disconnected: s.executor.disconnected_s.get(),
        events: EVENTS,
        traffic: TRAFFIC,
        skew_s: SKEW_S,
    };
    let mut tx = call.store().read().await?;
    let broker_up = call.state.ctx.bus.is_up();
    let asked = read::Asked { group: call.project()?.1, limits, broker_up, clock: Utc::now() };
    read::snapshot(&mut tx, id, &asked).await?.ok_or_else(|| Problem::not_found().into())
}

fn never() -> Vec<String> {
    NEVER.iter().map(|n| (*n).to_owned()).collect()
}

fn finding(f: &Finding) -> body::Finding {
    body::Finding {
        cause: f.cause.as_str().into(),
        severity: f.severity.as_str().into(),
        text: f.text.clone(),
        evidence: f.evidence.iter().map(ToString::to_string).collect(),
        since: f.since,
        remedy: f.remedy.clone(),
        repair: f
            .repair
            .as_ref()
            .map(|r| body::Repair { kind: r.kind().as_str().into(), does: r.kind().does().into() }),
    }
}

#[utoipa::path(get, path = "/api/v1/deployments/{id}/diagnosis", tag = "deployments", params(("id" = Uuid, Path,)), responses((status = 200, body = body::Diagnosis), (status = "default", body = body::Problem)))]
pub(crate) async fn diagnose(call: Call) -> Answer {
    let s = snapshot(&call).await?;
    let found = diagnosis::diagnose(&s);
    ok(&body::Diagnosis {
        deployment: s.deployment.id.0,
        state: s.deployment.state.as_str().into(),
        at: s.now,
        summary: diagnosis::summary(&s, &found),
        findings: found.iter().map(finding).collect(),
        never: never(),
    })
}

/// Says what would be done, and does it when `apply` is true. What is found is looked at anew.
#[utoipa::path(post, path = "/api/v1/deployments/{id}/repair", tag = "deployments", params(("id" = Uuid, Path,)), request_body = body::RepairBody, responses((status = 200, body = body::Repaired), (status = 409, body = body::Problem), (status = "default", body = body::Problem)))]
pub(crate) async fn repair(call: Call) -> Answer {
    let g: body::RepairBody = call.body()?;
    let mendable: Vec<Cause> = Cause::ALL.into_iter().filter(|c| c.repair().is_some()).collect();
    let cause = g.cause.as_deref().map(|c| known("cause", c, &mendable, Cause::as_str)).transpose()?;
    let s = snapshot(&call).await?;
    let id = s.deployment.id;
    let found: Vec<(Cause, Repair)> = diagnosis::diagnose(&s)
        .into_iter()
        .filter(|f| cause.is_none_or(|c| c == f.cause))
        .filter_map(|f| Some((f.cause, f.repair?)))
        .collect();
    let answer = |applied: bool, outcomes: &[String]| body::Repaired {
        deployment: id.0,
        applied,
        steps: found
            .iter()
            .enumerate()
            .map(|(n, (cause, r))| body::RepairStep {
                cause: cause.as_str().into(),
                kind: r.kind().as_str().into(),
                does: r.kind().does().into(),
                outcome: outcomes.get(n).cloned().unwrap_or_default(),
            })
            .collect(),
        never: never(),
    };
    if !g.apply {
        return ok(&answer(false, &[]));
    }
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        if let Once::Again(status, v) = call.once(&mut tx).await? {
            return Ok((status, v, false));
        }
        if found.is_empty() {
            let text = "nothing was found that a repair could mend; see GET /deployments/{id}/diagnosis";
            return Err(Problem::conflict("nothing_to_do", text).into());
        }
        let mut outcomes = Vec::with_capacity(found.len());
        for (_, r) in &found {
            outcomes.push(match r {
                Repair::ReleaseClaims { works } => {
                    let mut given_back = Vec::new();
                    for (_, work) in works {
                        given_back.extend(read::release_expired(&mut tx, *work).await?.map(|_| *work));
                    }
                    released(works.len(), &given_back)
                }
                r => rung(r),
            });
        }
        let steps: Vec<_> = found
            .iter()
            .zip(&outcomes)
            .map(|((c, r), o)| value!({ "cause": c.as_str(), "repair": r.kind().as_str(), "outcome": o }))
            .collect();
        let mut e = call.event(Aggregate::Deployment, id.to_string(), "deployment.repaired", value!({ "steps": steps }));
        e.environment = Some(s.deployment.environment.clone());
        e.severity = Severity::Notice;
        e.at = now();
        events::append(&mut tx, e).await?;
        let v = answer(true, &outcomes);
        call.keep(&mut tx, StatusCode::OK, &v).await?;
        (StatusCode::OK, value!(v), true)
    });
    let (status, v, fresh) = done?;
    for (_, r) in found.iter().filter(|_| fresh) {
        ring(&call, &s, r).await;
    }
    json(status, &v)
}

fn released(asked: usize, given_back: &[WorkId]) -> String {
    match given_back.len() {
        0 => "the claim holds again, or somebody has taken it over: nothing was changed".into(),
        n => format!("{n} of {asked} work(s) given back and their pool rung"),
    }
}

fn rung(r: &Repair) -> String {
    match r {
        Repair::RingScheduler { commands } => format!("the scheduler was rung for {} command(s)", commands.len()),
        Repair::Look => "the scheduler was rung for this deployment".into(),
        Repair::RingPool { works } | Repair::ReleaseClaims { works } => {
            format!("the pool was rung for {} work(s)", works.len())
        }
        Repair::Relay => "the events that wait are published now".into(),
    }
}

/// Doorbells only, after the commit; whoever misses one finds the work by polling.
async fn ring(call: &Call, s: &Snapshot, r: &Repair) {
    let bus = &call.state.ctx.bus;
    match r {
        Repair::RingScheduler { commands } => {
            for c in s.commands.iter().filter(|c| commands.contains(&c.id)) {
                // Not `ring_once`: the first doorbell may have been the one that was lost.
                bus.ring(subjects::command(&c.verb), c.id.to_string()).await;
            }
        }
        Repair::Look => bus.ring(subjects::WORK_SETTLED, s.deployment.id.to_string()).await,
        Repair::RingPool { works } | Repair::ReleaseClaims { works } => {
            for (pool, work) in works {
                bus.ring(subjects::work(pool), work.to_string()).await;
            }
        }
        Repair::Relay => {
            let published = windlass_bus::relay::drain_now(call.store(), bus);
            match tokio::time::timeout(RELAY, published).await {
                Ok(Ok(left)) => tracing::info!(left, "events published by a repair"),
                Ok(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "events not published by a repair");
                }
                Err(_) => tracing::warn!("a repair did not publish all events in time; the relay goes on"),
            }
        }
    }
}
