//! Stepping in: claims, retries, forced ends and rollbacks, and what people say about versions and environments.

use super::{
    deploy,
    error::Error,
    http::{Api, encode, query},
    out::Out,
    text::clean,
    view,
};
use crate::cli::{
    ClaimArgs, FailArgs, HoldCommand, IdArgs, MarkArgs, MarksArgs, RetryArgs, RollbackArgs, SucceedArgs, UnmarkArgs,
};
use serde_json::Value;
use windlass_contracts::http::{ClaimBody, FailBody, HoldBody, MarkNew, NoBody, RetryBody, RollbackBody, SucceedBody};

pub(crate) async fn claim(a: ClaimArgs, api: &Api, out: Out) -> Result<(), Error> {
    let body = ClaimBody { take_over: a.take_over, reason: a.reason.unwrap_or_default() };
    deploy::verb(a.id, "claim", body, api, out).await
}

pub(crate) async fn unclaim(a: IdArgs, api: &Api, out: Out) -> Result<(), Error> {
    deploy::verb(a.id, "unclaim", NoBody {}, api, out).await
}

pub(crate) async fn retry(a: RetryArgs, api: &Api, out: Out) -> Result<(), Error> {
    let body = RetryBody {
        hosts: a.hosts,
        step: a.step,
        whole_wave: a.whole_wave,
        inputs: a.inputs.into_iter().collect(),
        reason: a.reason.unwrap_or_default(),
    };
    deploy::verb(a.id, "retry", body, api, out).await
}

pub(crate) async fn fail(a: FailArgs, api: &Api, out: Out) -> Result<(), Error> {
    deploy::verb(a.id, "fail", FailBody { step: a.step, reason: a.reason }, api, out).await
}

pub(crate) async fn succeed(a: SucceedArgs, api: &Api, out: Out) -> Result<(), Error> {
    let body = SucceedBody { step: a.step, hosts: a.hosts, reason: a.reason };
    deploy::verb(a.id, "succeed", body, api, out).await
}

pub(crate) async fn rollback(a: RollbackArgs, api: &Api, out: Out) -> Result<(), Error> {
    let mode = if a.emergency { "emergency" } else { "normal" };
    let body = RollbackBody {
        mode: Some(mode.into()),
        to: a.to,
        veto: a.veto,
        from_phase: a.from_phase,
        reason: a.reason.unwrap_or_default(),
    };
    let answer = deploy::command(api, &format!("/deployments/{}/rollback", a.id), &body).await?;
    deploy::requested(&answer, &a.wait, api, out).await
}

fn hold_path(project: &str, environment: &str) -> String {
    format!("/projects/{}/environments/{}/hold", encode(project), encode(environment))
}

fn said(answer: &Value, text: String, out: Out) -> Result<(), Error> {
    if out.json { out.json(answer) } else { out.line(clean(&text, false)) }
}

pub(crate) async fn hold(c: HoldCommand, api: &Api, out: Out) -> Result<(), Error> {
    match c {
        HoldCommand::Set { project, environment, reason } => {
            let h: Value = api.put(&hold_path(&project, &environment), &HoldBody { reason }).await?;
            said(&h, format!("{project}/{environment} is held: only people release here until it is released"), out)
        }
        HoldCommand::Release { project, environment } => {
            let h: Value = api.delete_for(&hold_path(&project, &environment)).await?;
            let text = format!("{project}/{environment} is released; {} had held it", view::text(&h, "by"));
            said(&h, text, out)
        }
        HoldCommand::Show { project, environment: None } => {
            let m: Value = api.get(&format!("/projects/{}/marks", encode(&project))).await?;
            if out.json {
                return out.json(&m["holds"]);
            }
            holds(view::list(&m, "holds"), "no environment is held", out)
        }
        HoldCommand::Show { project, environment: Some(e) } => {
            let h: Value = api.get(&hold_path(&project, &e)).await?;
            if out.json {
                return out.json(&h);
            }
            let all: Vec<Value> = view::at(&h, "hold").filter(|h| h.is_object()).cloned().into_iter().collect();
            holds(&all, &format!("{project}/{e} is not held"), out)
        }
    }
}

fn holds(all: &[Value], none: &str, out: Out) -> Result<(), Error> {
    let row = |h: &Value| {
        let t = |k| view::text(h, k);
        vec![t("environment"), t("by"), view::time(h, "at"), t("reason"), t("deployment")]
    };
    let header = ["ENVIRONMENT", "HELD BY", "SINCE", "WHY", "BY ROLLBACK"];
    out.table(&header, all.iter().map(row).collect(), none)
}

pub(crate) async fn mark(kind: &str, a: MarkArgs, api: &Api, out: Out) -> Result<(), Error> {
    let place = place(&a.project, a.environment.as_deref());
    let text = match kind {
        "pin" => format!("{place}: version {} and no other", a.version),
        _ => format!("{place}: never version {}", a.version),
    };
    let body = MarkNew { kind: kind.into(), version: a.version, environment: a.environment, reason: a.reason };
    let m: Value = api.post(&format!("/projects/{}/marks", encode(&a.project)), &body).await?;
    said(&m, text, out)
}

pub(crate) async fn unmark(kind: &str, a: UnmarkArgs, api: &Api, out: Out) -> Result<(), Error> {
    let asked =
        [("kind", Some(kind)), ("version", Some(a.version.as_str())), ("environment", a.environment.as_deref())];
    let path = query(&format!("/projects/{}/marks", encode(&a.project)), &asked);
    let m: Value = api.delete_for(&path).await?;
    let place = place(&a.project, a.environment.as_deref());
    said(&m, format!("{place}: the {kind} of version {} is removed", a.version), out)
}

fn place(project: &str, environment: Option<&str>) -> String {
    environment.map_or_else(|| format!("all environments of {project}"), |e| format!("{project}/{e}"))
}

pub(crate) async fn marks(a: &MarksArgs, api: &Api, out: Out) -> Result<(), Error> {
    let m: Value = api.get(&format!("/projects/{}/marks", encode(&a.project))).await?;
    if out.json {
        return out.json(&m);
    }
    let row = |m: &Value| {
        let t = |k| view::text(m, k);
        let place = Some(t("environment")).filter(|e| !e.is_empty()).unwrap_or_else(|| "all".into());
        vec![t("kind"), t("version"), place, t("by"), view::time(m, "at"), t("reason")]
    };
    let rows = view::items(&m).iter().map(row).collect();
    out.table(&["MARK", "VERSION", "ENVIRONMENT", "BY", "AT", "WHY"], rows, "no version is vetoed or pinned")?;
    match view::list(&m, "holds") {
        [] => Ok(()),
        all => holds(all, "", out),
    }
}
