//! The catalog: apply, read, put, remove, look back.

use crate::{
    apply,
    call::{Answer, Call, Once, json, now, ok, page},
    problem::{Fail, Problem, transact},
    routes::known,
};
use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
};
use serde_json::json as value;
use windlass_contracts::http as body;
use windlass_domain::{
    access::Permission,
    catalog::{Item, Kind},
};
use windlass_store::{
    catalog, decode,
    latches::{self, Latch},
};

fn tag(mut r: HttpResponse, revision: impl std::fmt::Display) -> HttpResponse {
    if let Ok(v) = header::HeaderValue::from_str(&format!("\"{revision}\"")) {
        r.headers_mut().insert(header::ETAG, v);
    }
    r
}

fn changed(revision: i64) -> Problem {
    let detail = format!("it is at revision {revision} now; read it again and put your change on top");
    Problem::new(StatusCode::PRECONDITION_FAILED, "changed_meanwhile", detail)
}

#[utoipa::path(post, path = "/api/v1/apply", tag = "catalog", params(("dry_run" = Option<bool>, Query, description = "only say what would change")),
    request_body(content = String, content_type = "application/yaml"), responses((status = 200, body = body::Applied), (status = 422, body = body::Problem), (status = "default", body = body::Problem)))]
pub(crate) async fn apply(call: Call) -> Answer {
    call.only(&["dry_run"])?;
    let dry_run = match call.ask("dry_run") {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(Problem::invalid(format!("`dry_run` must be true or false, got {other:?}")).into()),
    };
    let documents = apply::parse(&call.body)?;
    let wanted = call.if_match()?;
    if dry_run {
        let mut tx = call.store().read().await?;
        let items = apply::apply(&call, &mut tx, &documents).await?;
        return ok(&body::Applied { dry_run, items });
    }
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        if let Once::Again(status, v) = call.once(&mut tx).await? {
            (status, v, None)
        } else {
            latches::take(&mut tx, Latch::Catalog).await?;
            let stamp = catalog::stamp(&mut tx).await?;
            if wanted.is_some_and(|w| w != stamp) {
                return Err(changed(stamp).into());
            }
            let items = apply::apply(&call, &mut tx, &documents).await?;
            let stamp = catalog::stamp(&mut tx).await?;
            let applied = body::Applied { dry_run, items };
            call.keep(&mut tx, StatusCode::OK, &applied).await?;
            (StatusCode::OK, value!(applied), Some(stamp))
        }
    });
    let (status, v, stamp) = done?;
    let r = json(status, &v)?;
    Ok(match stamp {
        Some(s) => tag(r, s),
        None => r,
    })
}

fn kind(call: &Call) -> Result<Kind, Problem> {
    known("kind", call.param("kind"), &Kind::ALL, |k| k.as_str()).map_err(|_| Problem::not_found())
}

fn entry(s: catalog::Saved) -> body::CatalogEntry {
    body::CatalogEntry {
        kind: s.kind,
        key: s.key,
        project: s.project,
        revision: s.revision.unsigned_abs(),
        doc: s.doc.0,
        updated_at: s.updated_at,
        updated_by: s.updated_by,
    }
}

#[utoipa::path(get, path = "/api/v1/catalog/{kind}", tag = "catalog", params(("kind" = String, Path,), ("project" = Option<String>, Query,), ("limit" = Option<u32>, Query,), ("cursor" = Option<String>, Query,)), responses((status = 200, body = body::Page<body::CatalogEntry>), (status = "default", body = body::Problem)))]
pub(crate) async fn list(call: Call) -> Answer {
    call.only(&["project", "limit", "cursor"])?;
    let (limit, cursor) = call.page()?;
    let kind = kind(&call)?;
    let mut after: Option<String> = cursor.map(crate::page::decode).transpose()?;
    let mut tx = call.store().read().await?;
    let mut rows = Vec::new();
    loop {
        let batch = catalog::page(&mut tx, kind, call.ask("project"), after.as_deref(), limit + 1).await?;
        let last = batch.len() <= limit as usize;
        for s in batch {
            after = Some(s.key.clone());
            if call.may(&mut tx, Permission::View, s.project.as_deref()).await? {
                rows.push(s);
            }
        }
        if last || rows.len() > limit as usize {
            break;
        }
    }
    ok(&page(rows, limit, |s| s.key.clone(), entry))
}

#[utoipa::path(get, path = "/api/v1/catalog/{kind}/{key}", tag = "catalog", params(("kind" = String, Path,), ("key" = String, Path, description = "a name, or `project/name`, which may also be written `project.name`")), responses((status = 200, body = body::CatalogEntry), (status = "default", body = body::Problem)))]
pub(crate) async fn get(call: Call) -> Answer {
    let mut tx = call.store().read().await?;
    let row = catalog::row(&mut tx, kind(&call)?, call.param("key")).await?.filter(|r| !r.deleted);
    let row = row.ok_or_else(Problem::not_found)?;
    let revision = row.revision;
    Ok(tag(ok(&entry(row))?, revision))
}

#[utoipa::path(get, path = "/api/v1/catalog/{kind}/{key}/revisions", tag = "catalog", params(("kind" = String, Path,), ("key" = String, Path,), ("limit" = Option<u32>, Query,), ("cursor" = Option<String>, Query,)), responses((status = 200, body = body::Page<body::CatalogRevision>), (status = "default", body = body::Problem)))]
pub(crate) async fn revisions(call: Call) -> Answer {
    call.only(&["limit", "cursor"])?;
    let (limit, cursor) = call.page()?;
    let before: Option<i64> = cursor.map(crate::page::decode).transpose()?;
    let mut tx = call.store().read().await?;
    let rows = catalog::revisions(&mut tx, kind(&call)?, call.param("key"), before, limit + 1).await?;
    if rows.is_empty() && before.is_none() {
        return Err(Problem::not_found().into());
    }
    ok(&page(
        rows,
        limit,
        |r| r.revision,
        |r| body::CatalogRevision {
            revision: r.revision.unsigned_abs(),
            deleted: r.deleted,
            doc: r.doc.0,
            author: r.author,
            at: r.at,
        },
    ))
}

#[utoipa::path(put, path = "/api/v1/catalog/{kind}/{key}", tag = "catalog", params(("kind" = String, Path,), ("key" = String, Path,), ("If-Match" = Option<String>, Header,)),
    request_body(content = String, content_type = "application/yaml", description = "one document, as `apply` takes it; JSON is YAML"), responses((status = 200, body = body::AppliedItem), (status = 412, body = body::Problem), (status = "default", body = body::Problem)))]
pub(crate) async fn put(call: Call) -> Answer {
    let kind = kind(&call)?;
    let documents = apply::parse(&call.body)?;
    match documents.as_slice() {
        [d] if d.item.kind() == kind && d.item.key() == call.param("key") => {}
        _ => {
            let detail = format!("the body must be the one document {} {}", kind.as_str(), call.param("key"));
            return Err(Problem::unprocessable(detail, vec![]).into());
        }
    }
    let wanted = call.if_match()?;
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        latches::take(&mut tx, Latch::Catalog).await?;
        let now = catalog::row(&mut tx, kind, call.param("key")).await?.map_or(0, |r| if r.deleted { 0 } else { r.revision });
        if wanted.is_some_and(|w| w != now) {
            return Err(changed(now).into());
        }
        apply::apply(&call, &mut tx, &documents).await?
    });
    let item = done?.into_iter().next().ok_or_else(|| Fail::Internal("an item vanished".into()))?;
    Ok(tag(ok(&item)?, item.revision))
}

#[utoipa::path(delete, path = "/api/v1/catalog/{kind}/{key}", tag = "catalog", params(("kind" = String, Path,), ("key" = String, Path,), ("If-Match" = Option<String>, Header,)), responses((status = 204), (status = 409, body = body::Problem), (status = 412, body = body::Problem), (status = "default", body = body::Problem)))]
pub(crate) async fn remove(call: Call) -> Answer {
    let kind = kind(&call)?;
    let wanted = call.if_match()?;
    let author = call.who()?.actor.person.clone();
    let done: Result<(), Fail> = transact!(call.store(), tx => {
        latches::take(&mut tx, Latch::Catalog).await?;
        let row = catalog::row(&mut tx, kind, call.param("key")).await?.filter(|r| !r.deleted);
        let row = row.ok_or_else(Problem::not_found)?;
        if wanted.is_some_and(|w| w != row.revision) {
            return Err(changed(row.revision).into());
        }
        let item: Item = decode("catalog item", row.doc.0)?;
        let users = apply::users(&mut tx, &item).await?;
        if !users.is_empty() {
            let detail = format!("still used by {}; change or remove those first", users.join(", "));
            return Err(Problem::conflict("in_use", detail).into());
        }
        let revision = catalog::save(&mut tx, &item, row.revision, true, &author, now()).await?.unsigned_abs();
        let entry = body::AppliedItem { kind: row.kind, key: row.key, change: body::Change::Changed, revision, diff: vec![] };
        apply::saved(&apply::Author::of(&call)?, &mut tx, &item, "catalog.removed", &entry).await?;
    });
    done?;
    Ok(HttpResponse::NoContent().finish())
}
