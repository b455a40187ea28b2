//! What a catalog item was before: the difference between two revisions, and the way back to one.

use crate::{
    apply,
    call::{Answer, Call, ok},
    problem::{Fail, Problem, transact},
    routes::known,
};
use similar::TextDiff;
use std::time::Duration;
use windlass_contracts::{bundles as body, http};
use windlass_domain::catalog::{Item, Kind};
use windlass_store::{
    catalog, decode,
    latches::{self, Latch},
};

/// A difference of huge texts is cut off rather than let a request take long.
const LONGEST: Duration = Duration::from_secs(2);

fn kind(call: &Call) -> Result<Kind, Problem> {
    known("kind", call.param("kind"), &Kind::ALL, |k| k.as_str()).map_err(|_| Problem::not_found())
}

/// A revision number of the query.
fn number(call: &Call, name: &str) -> Result<Option<i64>, Problem> {
    let wrong = || Problem::invalid(format!("`{name}` must be the number of a revision"));
    call.ask(name).map(|t| t.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)).transpose()
}

/// What people wrote: the source of a flow, the document of anything else.
fn text(doc: &serde_json::Value) -> String {
    match doc.get("source").and_then(|s| s.as_str()).filter(|s| !s.is_empty()) {
        Some(source) => source.trim_end().to_owned() + "\n",
        None => serde_json::to_string_pretty(doc).unwrap_or_default() + "\n",
    }
}

#[utoipa::path(get, path = "/api/v1/catalog/{kind}/{key}/diff", tag = "catalog",
    params(("kind" = String, Path,), ("key" = String, Path,), ("from" = Option<u64>, Query, description = "the revision before `to` when not given"), ("to" = Option<u64>, Query, description = "the newest when not given")),
    responses((status = 200, body = body::RevisionDiff), (status = "default", body = http::Problem)))]
pub(crate) async fn diff(call: Call) -> Answer {
    call.only(&["from", "to"])?;
    let (kind, key) = (kind(&call)?, call.param("key"));
    let (from, to) = (number(&call, "from")?, number(&call, "to")?);
    let mut tx = call.store().read().await?;
    let newest = catalog::row(&mut tx, kind, key).await?.ok_or_else(Problem::not_found)?.revision;
    let to = to.unwrap_or(newest);
    let from = from.unwrap_or(to - 1);
    let mut texts = Vec::new();
    for n in [from, to] {
        texts.push(match n {
            // Before the first there was nothing.
            0 => String::new(),
            n => match catalog::revision(&mut tx, kind, key, n).await? {
                Some(r) if r.deleted => String::new(),
                Some(r) => text(&r.doc.0),
                None => {
                    let detail = format!("{} {key} has no revision {n}; its newest is {newest}", kind.as_str());
                    return Err(Problem::unprocessable(detail, vec![]).into());
                }
            },
        });
    }
    drop(tx);
    let name = |n: i64| format!("{} {key} revision {n}", kind.as_str());
    let mut all = TextDiff::configure();
    let found = all.timeout(LONGEST).diff_lines(&texts[0], &texts[1]);
    let diff = found.unified_diff().context_radius(3).header(&name(from), &name(to)).to_string();
    let diff = if texts[0] == texts[1] { String::new() } else { diff };
    ok(&body::RevisionDiff {
        kind: kind.as_str().into(),
        key: key.to_owned(),
        from: from.unsigned_abs(),
        to: to.unsigned_abs(),
        diff,
    })
}

/// A new revision with the content of an old one. It is checked like any other apply: what it names must still exist.
#[utoipa::path(post, path = "/api/v1/catalog/{kind}/{key}/revert", tag = "catalog", params(("kind" = String, Path,), ("key" = String, Path,)), request_body = body::RevertBody,
    responses((status = 200, body = http::AppliedItem), (status = "default", body = http::Problem)))]
pub(crate) async fn revert(call: Call) -> Answer {
    let g: body::RevertBody = call.body()?;
    let (kind, key) = (kind(&call)?, call.param("key"));
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        latches::take(&mut tx, Latch::Catalog).await?;
        let old = i64::try_from(g.revision).unwrap_or(i64::MAX);
        let Some(r) = catalog::revision(&mut tx, kind, key, old).await? else {
            return Err(match catalog::row(&mut tx, kind, key).await? {
                Some(now) => {
                    let detail =
                        format!("{} {key} has no revision {old}; its newest is {}", kind.as_str(), now.revision);
                    Problem::unprocessable(detail, vec![])
                }
                None => Problem::not_found(),
            }.into());
        };
        if r.deleted {
            let detail = format!("revision {old} is the one that removed it; name one that has content");
            return Err(Problem::unprocessable(detail, vec![]).into());
        }
        let item: Item = decode("catalog item", r.doc.0)?;
        apply::restore(&call, &mut tx, item).await?
    });
    ok(&done?)
}
