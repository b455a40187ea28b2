//! Artifacts by hand or from a CI that knows this API.

use crate::{
    call::{Answer, Call, Once, json, now, ok, page},
    intake,
    problem::{Fail, Problem, transact},
    view,
};
use actix_web::http::StatusCode;
use chrono::{DateTime, Utc};
use serde_json::json as value;
use uuid::Uuid;
use windlass_contracts::http as body;
use windlass_domain::{artifact::Artifact, catalog::Kind, ids::ArtifactId};
use windlass_store::{artifacts, catalog};

#[utoipa::path(post, path = "/api/v1/projects/{project}/artifacts", tag = "artifacts", params(("project" = String, Path,)), request_body = body::ArtifactNew,
    responses((status = 201, body = body::Artifact), (status = 200, body = body::Artifact, description = "registered before, the same"), (status = 409, body = body::Problem), (status = "default", body = body::Problem)))]
pub(crate) async fn register(call: Call) -> Answer {
    let g: body::ArtifactNew = call.body()?;
    let (project, _) = call.project()?;
    let at = now();
    let artifact = Artifact {
        id: Uuid::now_v7().into(),
        project: project.to_owned(),
        version: g.version,
        digest: g.digest,
        url: g.url,
        size: g.size,
        git_ref: g.git_ref,
        commit: g.commit,
        committer: g.committer,
        build_url: g.build_url,
        built_at: g.built_at.unwrap_or(at),
    };
    artifact.validate().map_err(|e| Problem::unprocessable(e.to_string(), vec![]))?;
    let actor = call.who()?.name();
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        if let Once::Again(status, v) = call.once(&mut tx).await? {
            (status, v)
        } else {
            if catalog::get(&mut tx, Kind::Project, project).await?.is_none() {
                return Err(Problem::not_found().into());
            }
            let (stored, new) = intake::register(&mut tx, &artifact, &actor, Some(&call.trace), at).await?;
            let status = if new { StatusCode::CREATED } else { StatusCode::OK };
            let v = view::artifact(stored);
            call.keep(&mut tx, status, &v).await?;
            (status, value!(v))
        }
    });
    let (status, v) = done?;
    json(status, &v)
}

#[utoipa::path(get, path = "/api/v1/projects/{project}/artifacts", tag = "artifacts", params(("project" = String, Path,), ("limit" = Option<u32>, Query,), ("cursor" = Option<String>, Query,)), responses((status = 200, body = body::Page<body::Artifact>), (status = "default", body = body::Problem)))]
pub(crate) async fn list(call: Call) -> Answer {
    call.only(&["limit", "cursor"])?;
    let (limit, cursor) = call.page()?;
    let before: Option<(DateTime<Utc>, ArtifactId)> = cursor.map(crate::page::decode).transpose()?;
    let mut tx = call.store().read().await?;
    let rows = artifacts::list(&mut tx, call.project()?.0, before, limit + 1).await?;
    ok(&page(rows, limit, |a| (a.created_at, a.artifact.id), view::artifact))
}

#[utoipa::path(get, path = "/api/v1/projects/{project}/artifacts/{version}", tag = "artifacts", params(("project" = String, Path,), ("version" = String, Path,)), responses((status = 200, body = body::Artifact), (status = "default", body = body::Problem)))]
pub(crate) async fn get(call: Call) -> Answer {
    let mut tx = call.store().read().await?;
    let a = artifacts::by_version(&mut tx, call.project()?.0, call.param("version")).await?;
    ok(&view::artifact(a.ok_or_else(Problem::not_found)?))
}
