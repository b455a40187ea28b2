//! Projects whose environments and flows live in Git: one api of all looks at their repositories and applies what it finds.
//!
//! A commit is applied as a whole or not at all, in the name `git:<commit>`. It may hold environments and flows of its own
//! project and nothing else: no hosts, policies or people, no other project, and not the project itself, so that what is in the
//! repository can never say which repository it is. A commit that is wrong changes nothing and raises an alert that names file,
//! line and column.

mod git;

use crate::{
    apply::{self, Author},
    call::now,
    problem::{Fail, Problem, transact},
    state::State,
};
use futures::StreamExt;
use git::{Fetched, GitError, Limits, Repository, TreeFile};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use uuid::Uuid;
use windlass_contracts::http::{AppliedItem, Change, Fault};
use windlass_domain::{
    Timestamp,
    catalog::{Document, Item, Kind, Project, Source},
    event::{Aggregate, NewEvent, Severity},
};
use windlass_store::{
    Tx, catalog, decode, events,
    latches::{self, Latch},
    leases::{self, Lease},
    secrets,
    sources::{self, SourceState},
};

/// Which api looks: the lease's name.
const LEASE: &str = "sources";
/// Repositories looked at at the same time.
const PARALLEL: usize = 4;
/// Faults that an event names; the status has all.
const MOST_FAULTS: usize = 20;

/// Looks until shutdown.
pub(crate) async fn run(state: Arc<State>) {
    let settings = state.settings();
    let pause = settings.poll_s.get();
    // A look is bounded by the source's timeout; the lease outlives the slowest round of looks that is started under it.
    let ttl = settings.source.timeout_s.get() * 2 + Duration::from_secs(30);
    let mut held = None;
    loop {
        tokio::select! {
            () = state.ctx.shutdown.cancelled() => break,
            () = state.sources.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        held = match leases::acquire(state.store(), LEASE, &state.ctx.owner, ttl).await {
            Ok(lease) => lease,
            Err(error) => {
                tracing::warn!(%error, "the lease of the projects' repositories cannot be had; tried again");
                continue;
            }
        };
        if let Some(lease) = &held
            && let Err(e) = round(&state, lease).await
        {
            tracing::warn!(error = e.into_problem().detail, "the projects' repositories could not be looked at");
        }
    }
    if let Some(lease) = held
        && let Err(error) = leases::release(state.store(), &lease).await
    {
        tracing::debug!(%error, "the lease of the projects' repositories runs out by itself");
    }
}

/// Looks at what is due, as much as the lease has time for.
async fn round(state: &State, lease: &Lease) -> Result<(), Fail> {
    let mut tx = state.store().read().await?;
    let at = now();
    let mut due = Vec::new();
    for item in catalog::all(&mut tx, Kind::Project).await? {
        let Item::Project(p) = item else { continue };
        let Some(source) = p.source.clone() else { continue };
        let known = sources::get(&mut tx, &p.name).await?;
        if known.as_ref().is_none_or(|k| k.refresh_at <= at) {
            due.push((p, source, known));
        }
    }
    drop(tx);
    // The rest has its turn under a renewed lease.
    due.truncate(PARALLEL);
    let more = due.len() == PARALLEL;
    futures::stream::iter(due)
        .for_each_concurrent(PARALLEL, |(project, source, known)| async move {
            let name = project.name.clone();
            if let Err(e) = look(state, lease, &project, &source, known).await {
                tracing::warn!(
                    project = name,
                    error = e.into_problem().detail,
                    "a look at a repository was not stored"
                );
            }
        })
        .await;
    if more {
        state.sources.notify_one();
    }
    Ok(())
}

/// The documents of a commit, and by `kind key` the file each is in.
struct Documents {
    all: Vec<Document>,
    files: BTreeMap<String, String>,
}

/// What a look came to.
enum Found {
    /// Nothing new since the last apply.
    Same,
    Unreachable(String),
    Broken(Fetched, Problem),
    Good(Fetched, Documents),
}

async fn look(
    state: &State,
    lease: &Lease,
    project: &Project,
    source: &Source,
    known: Option<SourceState>,
) -> Result<(), Fail> {
    let settings = state.settings();
    let s = &settings.source;
    let limits = Limits {
        hosts: s.hosts.clone(),
        allow_file: s.allow_file,
        known_hosts: s.known_hosts.clone().unwrap_or_else(|| settings.state_dir.join("known_hosts")),
        ca_file: s.ca_file.clone(),
        timeout: s.timeout_s.get(),
        max_pack_bytes: s.max_pack_bytes,
        max_document_bytes: s.max_document_bytes,
        max_files: s.max_files,
    };
    let mut tx = state.store().read().await?;
    // A project that was saved since the last apply may name another directory: its commit counts anew.
    let saved = catalog::row(&mut tx, Kind::Project, &project.name).await?.map(|r| r.updated_at);
    let secret = secret(state, &mut tx, project, source).await?;
    drop(tx);
    let applied = known
        .as_ref()
        .filter(|k| k.state == "applied" && k.applied_at.zip(saved).is_some_and(|(a, s)| a > s))
        .and_then(|k| k.applied_commit.clone());
    let root = settings.state_dir.join("sources");
    let found = match secret {
        Err(text) => Found::Unreachable(text),
        Ok(secret) => fetch(&root, project, source, &limits, secret.as_deref(), applied.as_deref()).await,
    };
    store(state, lease, project, source, (known, saved), found).await
}

/// The key or token, where one is named; the text says what is missing.
async fn secret(
    state: &State,
    tx: &mut Tx,
    project: &Project,
    source: &Source,
) -> Result<Result<Option<Vec<u8>>, String>, Fail> {
    let Some(name) = &source.secret else { return Ok(Ok(None)) };
    let scope = format!("project/{}", project.name);
    let Some(sealed) = secrets::sealed(tx, &scope, name).await? else {
        let text = format!("the project secret {name:?} is not stored; windlass secret set {}/{name}", project.name);
        return Ok(Err(text));
    };
    let open = state.ctx.sealer.open(&scope, name, &sealed).map_err(|e| Fail::Internal(e.to_string()))?;
    Ok(Ok(Some(open)))
}

async fn fetch(
    root: &std::path::Path,
    project: &Project,
    source: &Source,
    limits: &Limits,
    secret: Option<&[u8]>,
    applied: Option<&str>,
) -> Found {
    let fetched = async {
        let repository = Repository::new(root, &project.name, source, limits, secret)?;
        let (commit, reference) = repository.head().await?;
        if applied == Some(commit.as_str()) {
            return Ok::<_, GitError>(None);
        }
        repository.fetch(&reference).await.map(Some)
    };
    match fetched.await {
        Ok(None) => Found::Same,
        Ok(Some(f)) => match documents(&project.name, &source.path, &f.files) {
            Ok(d) => Found::Good(f, d),
            Err(p) => Found::Broken(f, p),
        },
        Err(e) => Found::Unreachable(e.to_string()),
    }
}

/// All documents of all files, or every fault with its file.
fn documents(project: &str, path: &str, files: &[TreeFile]) -> Result<Documents, Problem> {
    let (mut all, mut faults) = (Vec::new(), Vec::new());
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for file in files {
        let found = match apply::parse(&file.bytes) {
            Ok(d) => d,
            Err(p) if p.errors.is_empty() => {
                faults.push(Fault { at: file.path.clone(), detail: p.detail, line: None, column: None });
                continue;
            }
            Err(p) => {
                let named = |f: Fault| Fault { at: format!("{}: {}", file.path, f.at), ..f };
                faults.extend(p.errors.into_iter().map(named));
                continue;
            }
        };
        for d in found {
            let (kind, key) = (d.item.kind(), d.item.key());
            let mut wrong = |detail: String| {
                let at = format!("{}: {} {key}", file.path, kind.as_str());
                faults.push(Fault { at, detail, line: Some(d.place.line), column: Some(d.place.column) });
            };
            let own = matches!(kind, Kind::Environment | Kind::Flow) && d.item.project() == Some(project);
            if !own {
                wrong(format!(
                    "a repository gives environments and flows of its own project `{project}` and nothing else"
                ));
            } else if let Some(first) = seen.insert(format!("{} {key}", kind.as_str()), file.path.clone()) {
                wrong(format!("is in {first} already; remove one of the two"));
            } else {
                all.push(d);
            }
        }
    }
    if files.is_empty() {
        let detail = format!("there is no *.yaml or *.yml file below `{path}`; correct `source.path`, or add one");
        faults.push(Fault { at: path.into(), detail, line: None, column: None });
    }
    if faults.is_empty() {
        return Ok(Documents { all, files: seen });
    }
    Err(Problem::unprocessable(format!("{} fault(s)", faults.len()), faults))
}

/// Applies and remembers, in one transaction under the lease.
async fn store(
    state: &State,
    lease: &Lease,
    project: &Project,
    source: &Source,
    (known, saved): (Option<SourceState>, Option<Timestamp>),
    found: Found,
) -> Result<(), Fail> {
    let mut next = known.clone().unwrap_or_else(|| SourceState {
        project: project.name.clone(),
        fetched_commit: None,
        applied_commit: None,
        state: "new".into(),
        detail: String::new(),
        faults: vec![],
        items: vec![],
        refresh_at: now(),
        fetched_at: None,
        applied_at: None,
    });
    next.refresh_at = now() + Duration::from_secs(source.poll_s());
    let asked = known.as_ref().map(|k| k.refresh_at);
    let mut broken = None;
    match found {
        Found::Same => next.fetched_at = Some(now()),
        Found::Unreachable(text) => {
            next.state = "unreachable".into();
            next.detail = text;
            next.faults = vec![];
        }
        Found::Broken(f, p) => broken = Some((f.commit, p)),
        Found::Good(f, documents) => {
            let done: Result<SourceState, Fail> = transact!(state.store(), tx => {
                leases::check(&mut tx, lease).await?;
                latches::take(&mut tx, Latch::Catalog).await?;
                let now = catalog::row(&mut tx, Kind::Project, &project.name).await?.map(|r| r.updated_at);
                if now != saved {
                    // Somebody saved the project meanwhile: this is not its source any more. It is due still.
                    return Ok(next.clone());
                }
                let mut next = next.clone();
                commit(&mut tx, &apply::naming(state.settings()), project, source, &f, &documents.all, &mut next).await?;
                sources::save(&mut tx, &next, asked).await?;
                next
            });
            match done {
                Ok(_) => return Ok(()),
                Err(Fail::Problem(p)) => {
                    // What names something that does not exist is found only here: say in which file.
                    let named = |f: Fault| {
                        let item = f.at.split(": ").next().unwrap_or_default();
                        let at =
                            documents.files.get(item).map_or_else(|| f.at.clone(), |file| format!("{file}: {}", f.at));
                        Fault { at, ..f }
                    };
                    let errors = p.errors.clone().into_iter().map(named).collect();
                    broken = Some((f.commit.clone(), Problem { errors, ..*p }));
                }
                Err(e) => return Err(e),
            }
        }
    }
    if let Some((commit, p)) = broken {
        next.state = "broken".into();
        next.fetched_commit = Some(commit);
        next.fetched_at = Some(now());
        next.detail = p.detail;
        next.faults = p.errors;
    }
    // Said once, not at every look.
    let told =
        |k: &SourceState| (&k.state, &k.fetched_commit, &k.faults) == (&next.state, &next.fetched_commit, &next.faults);
    let news = ["broken", "unreachable"].contains(&next.state.as_str()) && !known.as_ref().is_some_and(told);
    let done: Result<(), Fail> = transact!(state.store(), tx => {
        leases::check(&mut tx, lease).await?;
        sources::save(&mut tx, &next, asked).await?;
        if news {
            let faults: Vec<&Fault> = next.faults.iter().take(MOST_FAULTS).collect();
            let payload = json!({ "git": source.git, "ref": source.reference, "commit": next.fetched_commit,
                                  "reason": next.detail, "faults": faults });
            let what = if next.state == "broken" { "source.broken" } else { "source.unreachable" };
            events::append(&mut tx, event(project, what, Severity::Alert, payload, "service:api")).await?;
        }
    });
    done
}

/// Saves a good commit and, with `prune`, removes what is there no more.
async fn commit(
    tx: &mut Tx,
    naming: &windlass_domain::naming::Rule,
    project: &Project,
    source: &Source,
    f: &Fetched,
    documents: &[Document],
    next: &mut SourceState,
) -> Result<(), Fail> {
    let name = format!("git:{}", f.commit);
    let author = Author { name: name.clone(), actor: name.clone(), trace: None };
    let mut items = apply::save_all(&author, naming, tx, documents).await?;
    let here: BTreeSet<(String, String)> = items.iter().map(|i| (i.kind.clone(), i.key.clone())).collect();
    let gone = |i: &&AppliedItem| !here.contains(&(i.kind.clone(), i.key.clone()));
    // Environments before the flows they use.
    let mut gone: Vec<AppliedItem> = next.items.iter().filter(gone).cloned().collect();
    gone.sort_by(|a, b| a.kind.cmp(&b.kind));
    let (mut changed, mut removed) = (items.iter().filter(|i| i.change != Change::Unchanged).count(), 0);
    for i in gone {
        let kind = if i.kind == Kind::Environment.as_str() { Kind::Environment } else { Kind::Flow };
        let Some(row) = catalog::row(tx, kind, &i.key).await?.filter(|r| !r.deleted) else { continue };
        if !source.prune {
            // It stays, and would go if pruning were asked for later.
            items.push(AppliedItem { change: Change::Unchanged, diff: vec![], ..i });
            continue;
        }
        let item: Item = decode("catalog item", row.doc.0)?;
        let users = apply::users(tx, &item).await?;
        if !users.is_empty() {
            let detail = format!("it is gone from the repository but still used by {}", users.join(", "));
            let at = format!("{} {}", i.kind, i.key);
            let fault = Fault { at, detail: detail.clone(), line: None, column: None };
            return Err(Problem::unprocessable(detail, vec![fault]).into());
        }
        let revision = catalog::save(tx, &item, row.revision, true, &author.name, now()).await?.unsigned_abs();
        let entry = AppliedItem { kind: row.kind, key: row.key, change: Change::Changed, revision, diff: vec![] };
        apply::saved(&author, tx, &item, "catalog.removed", &entry).await?;
        removed += 1;
        changed += 1;
    }
    next.state = "applied".into();
    next.detail = format!("{} item(s), {changed} changed, {removed} of them removed", documents.len());
    next.faults = vec![];
    next.items = items.into_iter().map(|i| AppliedItem { diff: vec![], ..i }).collect();
    next.fetched_commit = Some(f.commit.clone());
    next.applied_commit = Some(f.commit.clone());
    next.fetched_at = Some(now());
    next.applied_at = Some(now());
    if changed > 0 {
        let payload = json!({ "git": source.git, "ref": source.reference, "commit": f.commit, "items": documents.len(),
                              "changed": changed, "removed": removed });
        events::append(tx, event(project, "source.applied", Severity::Info, payload, &name)).await?;
    }
    Ok(())
}

fn event(project: &Project, what: &str, severity: Severity, payload: serde_json::Value, actor: &str) -> NewEvent {
    NewEvent {
        id: Uuid::now_v7().into(),
        aggregate: Aggregate::Catalog,
        aggregate_id: format!("source/{}", project.name),
        what: what.into(),
        project: Some(project.name.clone()),
        environment: None,
        severity,
        actor: actor.into(),
        at: now(),
        payload,
        trace: None,
    }
}
