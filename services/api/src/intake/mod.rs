//! Events from outside. A delivery, its artifact and the commands it leads to are one transaction, keyed by the delivery's
//! id: however often it comes, it counts once and gets one answer.

pub(crate) mod bus;
pub(crate) mod cdevents;
pub(crate) mod generic;
pub(crate) mod github;
mod purl;
pub(crate) mod signature;

use crate::{
    call::now,
    commands,
    problem::{Fail, Problem, transact},
    state::State,
};
use chrono::{DateTime, Utc};
use serde_json::json;
use std::collections::BTreeMap;
use uuid::Uuid;
use windlass_contracts::{
    command::{Command, Request, Verb},
    http::HookAnswer,
};
use windlass_domain::{
    artifact::Artifact,
    catalog::{Item, Kind},
    event::{Aggregate, NewEvent, Severity},
    ids::{ArtifactId, CommandId, DeploymentId},
    release::ReleaseKind,
};
use windlass_store::{
    Tx, artifacts, catalog, events,
    intake::{self, Delivery},
    marks,
};

/// Names command ids made from deliveries.
const NAMESPACE: Uuid = Uuid::from_u128(0x8d3f_6f2a_51c4_4b0e_9a57_2e1b_7c90_d4f1);
/// Longest delivery id, type and reason that are stored.
const MOST: usize = 500;

/// What a sender's event says of a build.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Build {
    pub(crate) version: String,
    pub(crate) url: String,
    pub(crate) digest: String,
    pub(crate) size: Option<u64>,
    pub(crate) git_ref: Option<String>,
    pub(crate) commit: Option<String>,
    pub(crate) committer: Option<String>,
    pub(crate) build_url: Option<String>,
    pub(crate) built_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    Ready(Box<Build>),
    /// Not about a build that is ready; the reason is shown in the trigger log.
    Ignored(String),
}

/// An event whose sender is known.
#[derive(Debug, Clone)]
pub(crate) struct Incoming {
    pub(crate) source: &'static str,
    pub(crate) project: String,
    pub(crate) delivery: String,
    pub(crate) kind: String,
    pub(crate) verdict: Verdict,
    pub(crate) trace: String,
}

/// Registers an artifact. False: it was there, the same. Another digest under the same version is a conflict.
pub(crate) async fn register(
    tx: &mut Tx,
    a: &Artifact,
    actor: &str,
    trace: Option<&str>,
    at: DateTime<Utc>,
) -> Result<(artifacts::Registered, bool), Fail> {
    if !artifacts::insert(tx, a, at).await? {
        let old = artifacts::by_version(tx, &a.project, &a.version).await?.ok_or(windlass_store::Error::Conflict)?;
        if old.artifact.digest != a.digest {
            let detail = format!(
                "version {:?} of {} is registered with digest {}; an artifact never changes, so build a new version",
                a.version, a.project, old.artifact.digest
            );
            return Err(Problem::conflict("other_digest", detail).into());
        }
        return Ok((old, false));
    }
    let e = NewEvent {
        id: Uuid::now_v7().into(),
        aggregate: Aggregate::Artifact,
        aggregate_id: a.id.to_string(),
        what: "artifact.registered".into(),
        project: Some(a.project.clone()),
        environment: None,
        severity: Severity::Info,
        actor: actor.into(),
        at,
        payload: json!({ "version": a.version, "digest": a.digest, "url": a.url, "commit": a.commit, "git_ref": a.git_ref }),
        trace: trace.map(str::to_owned),
    };
    events::append(tx, e).await?;
    Ok((artifacts::Registered { artifact: a.clone(), created_at: at }, true))
}

/// Stores a delivery with all it leads to, or finds what it led to before.
pub(crate) async fn accept(state: &State, incoming: &Incoming) -> Result<HookAnswer, Fail> {
    let done: Result<(HookAnswer, Vec<CommandId>), Fail> = transact!(state.store(), tx => {
        let at = now();
        let mut d = Delivery {
            source: incoming.source.into(),
            project: incoming.project.clone(),
            delivery_id: cut(&incoming.delivery),
            outcome: "claimed".into(),
            reason: String::new(),
            kind: cut(&incoming.kind),
            artifact_id: None,
            command_id: None,
            answer: sqlx_json(serde_json::Value::Null),
            trace: Some(incoming.trace.clone()),
            received_at: at,
        };
        if intake::claim(&mut tx, &d).await? {
            let (answer, rings) = decide(state, &mut tx, incoming, at).await?;
            d.outcome.clone_from(&answer.outcome);
            d.reason = cut(&answer.reason);
            d.artifact_id = answer.artifact;
            d.command_id = answer.commands.first().copied();
            d.answer = sqlx_json(json!(answer));
            intake::settle(&mut tx, &d).await?;
            (answer, rings)
        } else {
            let d = intake::get(&mut tx, incoming.source, &incoming.project, &d.delivery_id).await?;
            let d = d.ok_or(windlass_store::Error::Conflict)?;
            let mut answer: HookAnswer = windlass_store::decode("intake answer", d.answer.0)?;
            answer.duplicate = true;
            (answer, vec![])
        }
    });
    let (answer, rings) = done?;
    let outcome = if answer.duplicate { "duplicate" } else { answer.outcome.as_str() };
    state.metrics.intake.with_label_values(&[incoming.source, outcome]).inc();
    for id in rings {
        commands::ring(state, "request", id).await;
    }
    Ok(answer)
}

async fn decide(
    state: &State,
    tx: &mut Tx,
    incoming: &Incoming,
    at: DateTime<Utc>,
) -> Result<(HookAnswer, Vec<CommandId>), Fail> {
    let mut answer = HookAnswer {
        outcome: "ignored".into(),
        reason: String::new(),
        artifact: None,
        commands: vec![],
        deployments: vec![],
        duplicate: false,
    };
    let actor = format!("hook:{}", incoming.source);
    let mut rings = Vec::new();
    match &incoming.verdict {
        Verdict::Ignored(reason) => answer.reason.clone_from(reason),
        Verdict::Ready(b) => {
            let a = artifact(&incoming.project, b, at);
            let registered = match a.validate() {
                Err(e) => Err(e.to_string()),
                Ok(()) => match register(tx, &a, &actor, Some(&incoming.trace), at).await {
                    Ok(r) => Ok(r),
                    Err(Fail::Problem(p)) => Err(p.detail),
                    Err(e) => return Err(e),
                },
            };
            match registered {
                Err(reason) => (answer.outcome, answer.reason) = ("refused".into(), reason),
                Ok((stored, false)) => {
                    answer.outcome = "matched".into();
                    answer.artifact = Some(stored.artifact.id.0);
                    answer.reason = format!("artifact {} was registered before; nothing is requested again", a.version);
                }
                Ok((stored, true)) => {
                    answer.outcome = "matched".into();
                    answer.artifact = Some(stored.artifact.id.0);
                    let mut kept_out = Vec::new();
                    for environment in wanted(tx, &incoming.project).await? {
                        // The scheduler asks again; asked here too, the trigger log says why nothing was requested.
                        if let Some(why) = refused(tx, &incoming.project, &environment, &a.version).await? {
                            kept_out.push(why);
                            continue;
                        }
                        let c = request(incoming, &environment, stored.artifact.id, &actor, at);
                        // A full queue takes all of the delivery back, its artifact too, so that it counts as new when it
                        // comes again.
                        if commands::accept(state, tx, &c).await? {
                            answer.commands.push(c.id.0);
                            answer.deployments.extend(c.deployment.map(|d| d.0));
                            rings.push(c.id);
                        }
                    }
                    answer.reason = match (answer.commands.len(), kept_out.is_empty()) {
                        (0, true) => format!("registered artifact {}; no policy asks for a deployment", a.version),
                        (n, _) => format!("registered artifact {}; requested {n} deployment(s)", a.version),
                    };
                    for why in kept_out {
                        answer.reason.push_str("; not requested: ");
                        answer.reason.push_str(&why);
                    }
                }
            }
        }
    }
    let e = NewEvent {
        id: Uuid::now_v7().into(),
        aggregate: Aggregate::Intake,
        aggregate_id: incoming.project.clone(),
        what: format!("intake.{}", answer.outcome),
        project: Some(incoming.project.clone()),
        environment: None,
        severity: if answer.outcome == "refused" { Severity::Alert } else { Severity::Info },
        actor,
        at,
        payload: json!({ "delivery": cut(&incoming.delivery), "kind": cut(&incoming.kind), "reason": cut(&answer.reason), "artifact": answer.artifact, "commands": answer.commands }),
        trace: Some(incoming.trace.clone()),
    };
    events::append(tx, e).await?;
    Ok((answer, rings))
}

pub(crate) fn artifact(project: &str, b: &Build, at: DateTime<Utc>) -> Artifact {
    Artifact {
        id: ArtifactId(Uuid::now_v7()),
        project: project.into(),
        version: b.version.clone(),
        digest: b.digest.clone(),
        url: b.url.clone(),
        size: b.size,
        git_ref: b.git_ref.as_deref().map(cut),
        commit: b.commit.as_deref().map(cut),
        committer: b.committer.as_deref().map(cut),
        build_url: b.build_url.as_deref().map(cut),
        built_at: b.built_at.unwrap_or(at),
    }
}

/// Environments that policies want a new artifact of this project deployed to, each once.
async fn wanted(tx: &mut Tx, project: &str) -> Result<Vec<String>, Fail> {
    let mut out: Vec<String> = Vec::new();
    for item in catalog::all(tx, Kind::Policy).await? {
        let Item::Policy(p) = item else { continue };
        if !p.matches.fits_project(project) {
            continue;
        }
        for e in p.on_artifact {
            // A policy of many projects names environments that not each of them has.
            if !out.contains(&e) && catalog::get(tx, Kind::Environment, &format!("{project}/{e}")).await?.is_some() {
                out.push(e);
            }
        }
    }
    Ok(out)
}

/// Why a hook requests nothing there now: automation is held off, or the version is kept out.
async fn refused(tx: &mut Tx, project: &str, environment: &str, version: &str) -> Result<Option<String>, Fail> {
    if let Some(hold) = marks::held(tx, project, environment).await? {
        return Ok(Some(hold.text()));
    }
    Ok(marks::against(tx, project, environment, version).await?.map(|m| m.text(version)))
}

fn request(incoming: &Incoming, environment: &str, artifact: ArtifactId, actor: &str, at: DateTime<Utc>) -> Command {
    let name = format!("{}\n{}\n{}\n{environment}", incoming.source, incoming.project, incoming.delivery);
    let deployment: DeploymentId = Uuid::now_v7().into();
    Command {
        id: CommandId(Uuid::new_v5(&NAMESPACE, name.as_bytes())),
        project: incoming.project.clone(),
        environment: Some(environment.into()),
        deployment: Some(deployment),
        actor: actor.into(),
        verb: Verb::Request(Box::new(Request {
            add_hosts: vec![],
            exclude_hosts: vec![],
            values: Default::default(),
            deployment,
            environment: environment.into(),
            artifact,
            kind: ReleaseKind::Normal,
            inputs: BTreeMap::new(),
            hosts: vec![],
            not_before: None,
            note: format!("{} {}", incoming.source, incoming.kind),
        })),
        created_at: at,
        trace: Some(incoming.trace.clone()),
    }
}

/// A refused delivery in the trigger log. It gets an id of ours, because one that is not signed must not take a real one's
/// place; and a few a minute only, because anybody can cause them.
pub(crate) async fn log_refusal(state: &State, source: &str, project: &str, reason: &str, trace: &str) {
    state.metrics.intake.with_label_values(&[source, "refused"]).inc();
    if state.refusals.take(project.to_owned()).is_err() {
        return;
    }
    let stored: Result<(), Fail> = transact!(state.store(), tx => {
        let d = Delivery {
            source: source.into(),
            project: project.into(),
            delivery_id: format!("refused-{}", Uuid::now_v7()),
            outcome: "refused".into(),
            reason: cut(reason),
            kind: String::new(),
            artifact_id: None,
            command_id: None,
            answer: sqlx_json(serde_json::Value::Null),
            trace: Some(trace.to_owned()),
            received_at: now(),
        };
        intake::claim(&mut tx, &d).await?;
    });
    if let Err(e) = stored {
        tracing::warn!(error = e.into_problem().detail, "a refused delivery could not be logged");
    }
}

/// At most [`MOST`] characters, without control characters: an event may hold any (a package URL writes NUL as `%00`), and
/// none of them can be stored everywhere or shown to people.
pub(crate) fn cut(s: &str) -> String {
    s.chars().filter(|c| !c.is_control()).take(MOST).collect()
}

fn sqlx_json(v: serde_json::Value) -> intake::Answer {
    intake::answer(v)
}

/// A text at this path of dots; numbers count as text.
pub(crate) fn text(v: &serde_json::Value, path: &str) -> Option<String> {
    let mut at = v;
    for k in path.split('.') {
        at = at.get(k)?;
    }
    match at {
        serde_json::Value::String(s) if !s.is_empty() => Some(s.clone()),
        serde_json::Value::Number(n) => Some(n.to_string()),
        _ => None,
    }
}

pub(crate) fn number(v: &serde_json::Value, path: &str) -> Option<u64> {
    text(v, path)?.parse().ok()
}
