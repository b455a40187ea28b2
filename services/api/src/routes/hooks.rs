//! Webhooks: the signature over the raw bytes first, then everything else.

use crate::{
    call::{Answer, Call, now, ok, read_json},
    intake::{self, Incoming, Verdict, cdevents, generic, github, signature},
    problem::{Fail, Problem},
};
use actix_web::http::StatusCode;
use serde_json::Value;
use windlass_contracts::http as body;
use windlass_domain::catalog::{Hooks, Item, Kind, Project};
use windlass_store::{catalog, secrets};

/// One answer for no project, no such hook, no secret and a wrong signature: nobody learns which projects there are.
fn refused() -> Problem {
    let detail = "this project takes no event from this source, or the signature does not fit its secret; \
                  declare the hook in the project, store its secret, and check clock and key of the sender";
    Problem::forbidden(detail)
}

/// The project and the hook's secret.
async fn secret(
    call: &Call,
    source: &str,
    name: impl Fn(&Hooks) -> Option<String>,
) -> Result<Option<(Project, Vec<u8>)>, Fail> {
    let mut tx = call.store().read().await?;
    let Some(entry) = catalog::get(&mut tx, Kind::Project, call.param("project")).await? else { return Ok(None) };
    let Item::Project(p) = entry.item else { return Ok(None) };
    let scope = format!("project/{}", p.name);
    let name = name(&p.hooks);
    let sealed = match &name {
        Some(n) => secrets::sealed(&mut tx, &scope, n).await?,
        None => None,
    };
    drop(tx);
    let (Some(name), Some(sealed)) = (name, sealed) else {
        intake::log_refusal(
            &call.state,
            source,
            &p.name,
            "the project has no such hook, or its secret is not stored",
            &call.trace,
        )
        .await;
        return Ok(None);
    };
    let secret = call.state.ctx.sealer.open(&scope, &name, &sealed).map_err(|e| Fail::Internal(e.to_string()))?;
    Ok(Some((p, secret)))
}

async fn bad_signature(call: &Call, source: &str, project: &str) -> Fail {
    intake::log_refusal(&call.state, source, project, "the signature does not fit", &call.trace).await;
    refused().into()
}

fn standard(call: &Call, secret: &[u8]) -> bool {
    let h = |n| call.header(n);
    signature::standard(
        secret,
        h("webhook-id"),
        h("webhook-timestamp"),
        h("webhook-signature"),
        &call.body,
        now().timestamp(),
    )
}

/// The signed body as JSON. What does not parse is in the trigger log too.
async fn json(call: &Call, source: &str, project: &str) -> Result<Value, Fail> {
    match read_json::<Value>(&call.body) {
        Ok(v) => Ok(v),
        Err(p) => {
            intake::log_refusal(&call.state, source, project, &p.detail, &call.trace).await;
            Err(p.into())
        }
    }
}

async fn accept(call: &Call, incoming: Incoming) -> Answer {
    let answer = intake::accept(&call.state, &incoming).await?;
    if answer.outcome == "refused" {
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", answer.reason).into());
    }
    ok(&answer)
}

/// `CDEvents` 0.4 and 0.5 in CloudEvents, structured or binary mode, signed by Standard Webhooks.
///
/// Read are `dev.cdevents.artifact.published` and `dev.cdevents.artifact.packaged`; all else is ignored. Delivery id:
/// `context.id`. Version: `customData.version`, else the version of the package URL `subject.id`. URL: `customData.url`, else
/// its `download_url`. Digest: `customData.digest`, else the `sha256:` part of its `checksum`. Commit: `customData.commit`, else
/// `subject.content.change.id`. Committer: `customData.committer`, else `subject.content.user`. `size`, `ref`, `build_url`:
/// `customData`. Built at: `context.timestamp`. Nothing is taken from `ce-` headers, which no signature covers.
#[utoipa::path(post, path = "/hooks/cdevents/{project}", tag = "hooks", params(("project" = String, Path,), ("webhook-id" = String, Header,), ("webhook-timestamp" = i64, Header,), ("webhook-signature" = String, Header,)),
    request_body(content = Object, content_type = "application/cloudevents+json"), responses((status = 200, body = body::HookAnswer), (status = "default", body = body::Problem)))]
pub(crate) async fn cdevents_hook(call: Call) -> Answer {
    const SOURCE: &str = "cdevents";
    let found = secret(&call, SOURCE, |h| h.cdevents.as_ref().map(|s| s.secret.clone())).await?;
    let (project, secret) = found.ok_or_else(refused)?;
    if !standard(&call, &secret) {
        return Err(bad_signature(&call, SOURCE, &project.name).await);
    }
    let event = json(&call, SOURCE, &project.name).await?;
    let read = match cdevents::read(&event) {
        Ok(r) => r,
        Err(p) => {
            intake::log_refusal(&call.state, SOURCE, &project.name, &p.detail, &call.trace).await;
            return Err(p.into());
        }
    };
    let trace = call.trace.clone();
    accept(
        &call,
        Incoming {
            source: SOURCE,
            project: project.name,
            delivery: read.delivery,
            kind: read.kind,
            verdict: read.verdict,
            trace,
        },
    )
    .await
}

/// GitHub webhooks with `X-Hub-Signature-256`.
///
/// `release` published: the tag without a leading `v` is the version, the first asset `*.tar.gz` with a `sha256:` digest the
/// artifact. `package` and `registry_package` published: `package_version.version`, the first file `*.tar.gz` with a `sha256`.
/// `workflow_run` completed with success: only when the sender adds `artifacts[]` with `version`, `url` or
/// `archive_download_url`, `digest`, `size`, because GitHub names no artifact in it. All else is ignored, with the reason.
#[utoipa::path(post, path = "/hooks/github/{project}", tag = "hooks", params(("project" = String, Path,), ("X-Hub-Signature-256" = String, Header,), ("X-GitHub-Event" = String, Header,), ("X-GitHub-Delivery" = String, Header,)),
    request_body(content = Object, content_type = "application/json"), responses((status = 200, body = body::HookAnswer), (status = "default", body = body::Problem)))]
pub(crate) async fn github_hook(call: Call) -> Answer {
    const SOURCE: &str = "github";
    let found = secret(&call, SOURCE, |h| h.github.as_ref().map(|s| s.secret.clone())).await?;
    let (project, secret) = found.ok_or_else(refused)?;
    if !signature::github(&secret, call.header("x-hub-signature-256"), &call.body) {
        return Err(bad_signature(&call, SOURCE, &project.name).await);
    }
    let missing = |h: &str| Problem::invalid(format!("the header `{h}` is missing"));
    let kind = call.header("x-github-event").ok_or_else(|| missing("X-GitHub-Event"))?.to_owned();
    let delivery = call.header("x-github-delivery").ok_or_else(|| missing("X-GitHub-Delivery"))?.to_owned();
    let event = json(&call, SOURCE, &project.name).await?;
    let (verdict, trace) = (github::read(&kind, &event), call.trace.clone());
    accept(&call, Incoming { source: SOURCE, project: project.name, delivery, kind, verdict, trace }).await
}

/// Any JSON, signed by Standard Webhooks; the project's CEL expressions over `body` and `headers` pick the fields.
///
/// A mapping that does not fit the event is ignored, with the expression that failed as the reason.
#[utoipa::path(post, path = "/hooks/generic/{project}", tag = "hooks", params(("project" = String, Path,), ("webhook-id" = String, Header,), ("webhook-timestamp" = i64, Header,), ("webhook-signature" = String, Header,)),
    request_body(content = Object, content_type = "application/json"), responses((status = 200, body = body::HookAnswer), (status = "default", body = body::Problem)))]
pub(crate) async fn generic_hook(call: Call) -> Answer {
    const SOURCE: &str = "generic";
    let found = secret(&call, SOURCE, |h| h.generic.as_ref().map(|s| s.secret.clone())).await?;
    let (project, secret) = found.ok_or_else(refused)?;
    if !standard(&call, &secret) {
        return Err(bad_signature(&call, SOURCE, &project.name).await);
    }
    let hook = project.hooks.generic.as_ref().ok_or_else(refused)?;
    let event = json(&call, SOURCE, &project.name).await?;
    let delivery = call.header("webhook-id").unwrap_or_default().to_owned();
    let verdict = match generic::read(hook, event, generic::headers(&call.headers)) {
        Ok(v) => v,
        Err(why) => Verdict::Ignored(format!("the mapping does not fit: {why}")),
    };
    let trace = call.trace.clone();
    accept(&call, Incoming { source: SOURCE, project: project.name, delivery, kind: "generic".into(), verdict, trace })
        .await
}
