//! The route table: the only way a route comes to be. Each names what it asks for, and its handler cannot run before
//! [`Actor::may`](windlass_domain::access::Actor::may) said yes.

use crate::{
    auth::{self, Who},
    call::{Call, Found},
    problem::{Fail, Problem},
    state::State,
};
use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, StatusCode, header},
    web,
};
use bytes::BytesMut;
use futures::{StreamExt, future::LocalBoxFuture};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::Instrument;
use windlass_domain::{
    access::Permission,
    catalog::{Item, Kind},
    ids::{BundleId, CommandId, DeploymentId},
};
use windlass_runtime::telemetry;
use windlass_store::{Tx, bundles, catalog, commands, deployments};

/// How long a client may take to send a body.
const BODY_WAIT: Duration = Duration::from_secs(30);

/// A body that took longer than this to arrive came from somebody whose rights are looked at once more: whoever was sent away
/// meanwhile could hold a request open, and finish it afterwards.
const AT_ONCE: Duration = Duration::from_millis(20);

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody; it tells nothing of what is stored.
    Public,
    /// The event's own signature, checked before the body is read as anything.
    Signature,
    /// A one-time enrolment token in the body.
    EnrollToken,
    /// A one-time token in the address.
    CallbackToken,
    /// Peers on this machine, or a token with this permission on `*`.
    Local(Permission),
    /// Any token that works.
    Token,
    /// This permission on what the path names.
    May(Permission, On),
}

impl Access {
    /// What a token must allow; `None`: it only has to work.
    fn wanted(self) -> Option<(Permission, On)> {
        match self {
            Access::Local(p) => Some((p, On::Global)),
            Access::May(p, on) => Some((p, on)),
            Access::Public | Access::Signature | Access::EnrollToken | Access::CallbackToken | Access::Token => None,
        }
    }
}

/// What a permission is asked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// Belongs to no project.
    Global,
    /// `{project}`
    Project,
    /// The project of the deployment `{id}`
    Deployment,
    /// The project of the command `{id}`
    Command,
    /// Every project of the bundle `{id}`: one that is not allowed refuses all.
    Bundle,
    /// The project that `{kind}` and `{key}` name, or global.
    Catalog,
    /// `{scope}`: a project's, or global.
    Secret,
    /// Somewhere at least; the handler shows or takes only what the permission holds for, row by row.
    Rows,
}

type Handler = Arc<dyn Fn(Call) -> LocalBoxFuture<'static, Result<HttpResponse, Fail>> + Send + Sync>;

/// One route.
#[derive(Clone)]
pub struct Route {
    pub method: Method,
    /// From the root, as in the OpenAPI document.
    pub path: &'static str,
    pub access: Access,
    handler: Handler,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {:?}", self.method, self.path, self.access)
    }
}

/// All routes.
#[derive(Debug, Default, Clone)]
pub(crate) struct Table(pub(crate) Vec<Route>);

impl Table {
    /// Adds a route.
    pub(crate) fn add<F, Fut>(&mut self, method: Method, path: &'static str, access: Access, handler: F)
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<HttpResponse, Fail>> + 'static,
    {
        let handler: Handler = Arc::new(move |call| Box::pin(handler(call)));
        self.0.push(Route { method, path, access, handler });
    }

    /// Mounts every route, with one answer for wrong methods.
    pub(crate) fn mount(&self, cfg: &mut web::ServiceConfig) {
        let mut by_path: Vec<(&'static str, Vec<Route>)> = Vec::new();
        for r in &self.0 {
            match by_path.iter_mut().find(|(p, _)| *p == r.path) {
                Some((_, all)) => all.push(r.clone()),
                None => by_path.push((r.path, vec![r.clone()])),
            }
        }
        for (path, routes) in by_path {
            // A key of two parts may come as two segments.
            let mut resource = web::resource(path.replace("{key}", "{key:.+}"));
            let allow = routes.iter().map(|r| r.method.as_str()).collect::<Vec<_>>().join(", ");
            for route in routes {
                let method = route.method.clone();
                resource = resource.route(web::method(method).to(move |req: HttpRequest, body: web::Payload| {
                    let route = route.clone();
                    async move { answer(route, req, body).await }
                }));
            }
            cfg.service(resource.default_service(web::to(move || {
                let allow = allow.clone();
                async move {
                    let detail = format!("this address takes {allow} only");
                    let p = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail);
                    Problem { allow: Some(allow.into()), ..p }.response()
                }
            })));
        }
    }
}

/// One request, from the wire to its answer.
async fn answer(route: Route, req: HttpRequest, body: web::Payload) -> HttpResponse {
    let Some(state) = req.app_data::<web::Data<State>>().map(|d| d.clone().into_inner()) else {
        return HttpResponse::InternalServerError().finish();
    };
    let parent = text(&req, "traceparent").filter(|t| telemetry::is_traceparent(t));
    let span =
        tracing::info_span!("request", method = %route.method, route = route.path, status = tracing::field::Empty);
    let span = telemetry::span_with_parent(span, parent.as_deref());
    let started = Instant::now();
    let trace = telemetry::traceparent_of(&span).or(parent).unwrap_or_else(telemetry::traceparent_or_new);
    let (method, path, metrics) = (route.method.clone(), route.path, state.metrics.clone());
    let done = handle(route, &req, body, state, trace.clone()).instrument(span.clone()).await;
    let mut response = done.unwrap_or_else(|e| span.in_scope(|| e.into_problem()).response());
    span.record("status", response.status().as_u16());
    metrics.observe(method.as_str(), path, response.status().as_u16(), started.elapsed());
    if let Ok(v) = header::HeaderValue::from_str(&trace) {
        response.headers_mut().insert(header::HeaderName::from_static("traceparent"), v);
    }
    response
}

async fn handle(
    route: Route,
    req: &HttpRequest,
    payload: web::Payload,
    state: Arc<State>,
    trace: String,
) -> Result<HttpResponse, Fail> {
    let peer = req.peer_addr().map(|a| a.ip());
    let params = params(req)?;
    let query = web::Query::<HashMap<String, String>>::from_query(req.query_string())
        .map_err(|e| Problem::invalid(format!("the query cannot be read: {e}")))?
        .into_inner();
    if query.values().any(|v| v.contains('\0')) {
        return Err(Problem::invalid("a query parameter holds the character NUL; remove it").into());
    }
    let (who, found) = admit(&route, req, &state, peer, &params).await?;
    let limit = match route.access {
        Access::Signature => state.settings().api.max_hook_bytes,
        _ => state.settings().api.max_body_bytes,
    };
    let asked = Instant::now();
    let body = read(req, payload, limit).await?;
    let (who, found) = match who {
        Some(_) if !body.is_empty() && asked.elapsed() > AT_ONCE => admit_again(&route, req, &state, &params).await?,
        who => (who, found),
    };
    let headers = req.headers().clone();
    let uri = format!("{} {}", route.method, req.uri().path_and_query().map_or("/", |p| p.as_str()));
    let call = Call { state, who, found, params, query, headers, body, trace, uri };
    let state = Arc::clone(&call.state);
    let done = (route.handler)(call).await;
    if let (Access::EnrollToken, Err(Fail::Problem(p)), Some(source)) = (route.access, &done, peer)
        && p.status == StatusCode::UNAUTHORIZED
    {
        state.guesses.take(source).map_err(Problem::too_many)?;
    }
    done
}

/// Decides whether the call may go on, counts it, and finds what it is about.
async fn admit(
    route: &Route,
    req: &HttpRequest,
    state: &State,
    peer: Option<IpAddr>,
    params: &HashMap<String, String>,
) -> Result<(Option<Who>, Found), Fail> {
    let source = peer.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
    let wanted = match route.access {
        Access::Public | Access::EnrollToken => return Ok((None, Found::default())),
        Access::Signature | Access::CallbackToken => {
            state.hooks.take(source).map_err(Problem::too_many)?;
            return Ok((None, Found::default()));
        }
        Access::Local(_) if source.is_loopback() => return Ok((None, Found::default())),
        access => access.wanted(),
    };
    let header = text(req, "authorization");
    let mut tx = state.store().read().await?;
    let who = match auth::authenticate(&mut tx, header.as_deref()).await {
        Ok(w) => w,
        Err(e) => {
            // Only wrong tokens count against an address: right ones may share it, and are limited by themselves.
            if matches!(e, Fail::Problem(_)) {
                state.guesses.take(source).map_err(Problem::too_many)?;
            }
            return Err(e);
        }
    };
    state.calls.take(who.token).map_err(Problem::too_many)?;
    permitted(&mut tx, who, wanted, params).await
}

/// [`admit`] for a body that was slow. Nothing is counted twice.
async fn admit_again(
    route: &Route,
    req: &HttpRequest,
    state: &State,
    params: &HashMap<String, String>,
) -> Result<(Option<Who>, Found), Fail> {
    let mut tx = state.store().read().await?;
    let who = auth::authenticate(&mut tx, text(req, "authorization").as_deref()).await?;
    permitted(&mut tx, who, route.access.wanted(), params).await
}

/// Finds what the call is about, and decides whether it may go on.
async fn permitted(
    tx: &mut Tx,
    who: Who,
    wanted: Option<(Permission, On)>,
    params: &HashMap<String, String>,
) -> Result<(Option<Who>, Found), Fail> {
    let Some((permission, on)) = wanted else { return Ok((Some(who), Found::default())) };
    let found = find(tx, on, params).await?;
    let Some(found) = found else {
        return Err(Problem::not_found().into());
    };
    let allowed = match on {
        On::Rows => who.actor.may_somewhere(permission),
        On::Bundle => found.all_may(&who, permission),
        _ => who.actor.may(permission, found.target()),
    };
    if allowed {
        return Ok((Some(who), found));
    }
    // What may not be seen is answered like what does not exist.
    let sees = match on {
        On::Global | On::Rows => true,
        On::Bundle => found.all_may(&who, Permission::View),
        _ => who.actor.may(Permission::View, found.target()),
    };
    if !sees {
        return Err(Problem::not_found().into());
    }
    let wanted = permission.as_str();
    Err(Problem::forbidden(format!("this needs the permission `{wanted}` here; ask an admin for a role that has it"))
        .into())
}

/// The project's group; `None`: no such project.
pub(crate) async fn group_of(tx: &mut Tx, project: &str) -> Result<Option<String>, Fail> {
    group_in(catalog::row(tx, Kind::Project, project).await?.map(|r| r.doc.0))
}

/// The group that the document of a project names.
fn group_in(doc: Option<serde_json::Value>) -> Result<Option<String>, Fail> {
    let item = doc.map(|d| windlass_store::decode::<Item>("catalog item", d)).transpose()?;
    Ok(match item {
        // A deleted project keeps its rights, so that what happened in it can still be read.
        Some(Item::Project(p)) => Some(p.group),
        _ => None,
    })
}

async fn find(tx: &mut Tx, on: On, params: &HashMap<String, String>) -> Result<Option<Found>, Fail> {
    let get = |k: &str| params.get(k).map(String::as_str).unwrap_or_default();
    let project: String = match on {
        On::Global | On::Rows => return Ok(Some(Found::default())),
        On::Project => get("project").to_owned(),
        On::Deployment => {
            let Ok(id) = get("id").parse::<DeploymentId>() else { return Ok(None) };
            let Some(d) = deployments::shown(tx, id).await? else { return Ok(None) };
            let project = d.stored.deployment.project.clone();
            return Ok(group_in(d.project)?.map(|g| Found {
                project: Some((project, g)),
                deployment: Some(Box::new(d.stored)),
                last_event: d.last_event,
                ..Found::default()
            }));
        }
        On::Command => {
            let Ok(id) = get("id").parse::<CommandId>() else { return Ok(None) };
            let Some(c) = commands::get(tx, id).await? else { return Ok(None) };
            let project = c.project.clone();
            let group = group_of(tx, &project).await?;
            return Ok(group.map(|g| Found {
                project: Some((project, g)),
                command: Some(Box::new(c)),
                ..Found::default()
            }));
        }
        On::Bundle => {
            let Ok(id) = get("id").parse::<BundleId>() else { return Ok(None) };
            let Some(b) = bundles::get(tx, id).await? else { return Ok(None) };
            let mut projects = Vec::new();
            for m in &b.bundle.members {
                // A member of a project that is gone may be seen by nobody but who sees everything.
                projects.push((m.project.clone(), group_of(tx, &m.project).await?.unwrap_or_default()));
            }
            projects.sort();
            projects.dedup();
            return Ok(Some(Found {
                project: projects.first().cloned(),
                bundle: Some(Box::new(b)),
                projects,
                ..Found::default()
            }));
        }
        On::Catalog => match get("kind") {
            "project" => get("key").to_owned(),
            "environment" | "flow" => get("key").split('/').next().unwrap_or_default().to_owned(),
            "host" | "policy" | "channel" | "group" | "host_group" | "plugin" => return Ok(Some(Found::default())),
            _ => return Ok(None),
        },
        On::Secret => match get("scope").split_once('/') {
            Some(("project", p)) => p.to_owned(),
            Some(("environment", e)) => e.split('/').next().unwrap_or_default().to_owned(),
            // Of a group decides who administers it; it needs no document, and no project.
            Some(("group", g)) => {
                let project = Some((String::new(), g.to_owned()));
                return Ok(Some(Found { project, ..Found::default() }));
            }
            Some(("host", _)) => return Ok(Some(Found::default())),
            None if ["channel", "ssh"].contains(&get("scope")) => return Ok(Some(Found::default())),
            _ => return Ok(None),
        },
    };
    let group = group_of(tx, &project).await?;
    match (group, on) {
        (Some(g), _) => Ok(Some(Found { project: Some((project, g)), ..Found::default() })),
        // A project that does not exist yet is made by who may define everywhere.
        (None, On::Catalog) => Ok(Some(Found::default())),
        (None, _) => Ok(None),
    }
}

/// Path parameters, decoded. A catalog key or secret scope `a.b` means `a/b`: names hold no dots, and proxies mangle `%2F`. A plugin's
/// key `name@1.2.0` stays as it is.
fn params(req: &HttpRequest) -> Result<HashMap<String, String>, Problem> {
    let mut out = HashMap::new();
    for (k, v) in req.match_info().iter() {
        let mut v = percent_decode(v).ok_or_else(|| Problem::invalid("the address is not UTF-8"))?;
        // No stored text holds one, and PostgreSQL refuses to compare with it.
        if v.contains('\0') {
            return Err(Problem::not_found());
        }
        if matches!(k, "key" | "scope") && !v.contains('@') {
            v = v.replacen('.', "/", if k == "scope" { 2 } else { 1 });
        }
        out.insert(k.to_owned(), v);
    }
    Ok(out)
}

fn percent_decode(s: &str) -> Option<String> {
    let b = s.as_bytes();
    let mut out = Vec::with_capacity(b.len());
    let mut i = 0;
    while i < b.len() {
        let hex = |n: usize| b.get(n).and_then(|c| char::from(*c).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        match (b[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(h), Some(l)) => {
                out.push(h * 16 + l);
                i += 3;
            }
            (c, ..) => {
                out.push(c);
                i += 1;
            }
        }
    }
    String::from_utf8(out).ok()
}

async fn read(req: &HttpRequest, mut payload: web::Payload, limit: u64) -> Result<bytes::Bytes, Problem> {
    let limit_bytes = usize::try_from(limit).unwrap_or(usize::MAX);
    let announced = text(req, "content-length").and_then(|l| l.parse::<u64>().ok());
    if announced.is_some_and(|n| n > limit) {
        return Err(Problem::too_large(limit));
    }
    if req.headers().contains_key(header::CONTENT_ENCODING) {
        let detail = "compressed bodies are not taken; send it plain";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", detail));
    }
    let all = async {
        let mut out = BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|e| Problem::invalid(format!("the body did not arrive whole: {e}")))?;
            if out.len() + chunk.len() > limit_bytes {
                return Err(Problem::too_large(limit));
            }
            out.extend_from_slice(&chunk);
        }
        Ok(out.freeze())
    };
    let late = || Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body took too long to arrive");
    tokio::time::timeout(BODY_WAIT, all).await.map_err(|_| late())?
}

fn text(req: &HttpRequest, name: &str) -> Option<String> {
    req.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
}
