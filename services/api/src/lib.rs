//! The api: who may do what, the catalog, intake of events, commands, reads and live streams over HTTP, and the console.

mod apply;
mod auth;
mod bootstrap;
mod call;
mod commands;
mod console;
mod doctor;
#[doc(hidden)]
pub mod fuzzing;
mod intake;
mod limit;
mod page;
mod problem;
mod queue;
mod report;
mod routes;
mod seats;
mod source;
mod state;
mod table;
mod view;

pub use table::{Access, On, Route};

use actix_web::{
    App, HttpServer,
    dev::Service,
    http::header::{self, HeaderName, HeaderValue},
    web,
};
use state::State;
use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};
use windlass_bus::Context;

/// How long a client may take to send its headers.
const HEADERS: Duration = Duration::from_secs(10);
/// How long requests under way get at shutdown.
const DRAIN_S: u64 = 5;
/// How often what is only kept for a while is looked through.
const FORGET: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}; is another process there? Change `api.listen`")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the HTTP server failed")]
    Serve(#[source] std::io::Error),
    #[error("the api's keys cannot be read")]
    Keys(#[source] windlass_bus::IdentityError),
    #[error("the public keys of the control plane could not be written down")]
    Store(#[source] windlass_store::Error),
    #[error("the first person could not be made: {0}")]
    Bootstrap(String),
}

/// All routes with what they ask for; tests go through every one.
pub fn route_table() -> Vec<Route> {
    routes::table().0
}

/// The OpenAPI document.
pub fn openapi() -> &'static str {
    routes::openapi_text()
}

/// Runs until `ctx.shutdown`.
pub async fn run(ctx: Context) -> Result<(), Error> {
    let address = ctx.settings.api.listen;
    let listener = TcpListener::bind(address).map_err(|source| Error::Listen { address, source })?;
    run_on(ctx, listener).await
}

/// [`run`] on a socket that is already bound.
pub async fn run_on(ctx: Context, listener: TcpListener) -> Result<(), Error> {
    let state = Arc::new(State::new(ctx.clone()).map_err(Error::Keys)?);
    bootstrap::first_person(&state).await.map_err(|e| Error::Bootstrap(e.into_problem().detail))?;
    bootstrap::publish_keys(&state).await.map_err(Error::Store)?;
    ctx.spawn(intake::bus::run(Arc::clone(&state)));
    ctx.spawn(source::run(Arc::clone(&state)));
    ctx.spawn(forget(Arc::clone(&state)));
    ctx.spawn(forget_inputs(Arc::clone(&state)));
    let table = routes::table();
    let data = web::Data::from(Arc::clone(&state));
    let server = HttpServer::new(move || {
        let table = table.clone();
        App::new()
            .app_data(data.clone())
            .wrap_fn(|req, next| {
                let answer = next.call(req);
                async move {
                    let mut r = answer.await?;
                    guard(r.headers_mut());
                    Ok(r)
                }
            })
            .configure(move |cfg| table.mount(cfg))
            .default_service(web::to(console::serve))
    })
    .workers(ctx.settings.api.workers.max(1))
    .client_request_timeout(HEADERS)
    .keep_alive(Duration::from_secs(75))
    .disable_signals()
    .shutdown_timeout(DRAIN_S)
    .listen(listener)
    .map_err(Error::Serve)?
    .run();
    ctx.health.ok("api");
    let handle = server.handle();
    let shutdown = ctx.shutdown.clone();
    ctx.spawn(async move {
        shutdown.cancelled().await;
        handle.stop(true).await;
    });
    let served = server.await.map_err(Error::Serve);
    // A server that ended by itself takes the rest of the service with it.
    ctx.shutdown.cancel();
    ctx.tracker.close();
    ctx.tracker.wait().await;
    served
}

async fn forget(state: Arc<State>) {
    loop {
        tokio::select! {
            () = state.ctx.shutdown.cancelled() => return,
            () = tokio::time::sleep(FORGET) => {}
        }
        if let Err(e) = bootstrap::forget(&state).await {
            tracing::warn!(
                error = e.into_problem().detail,
                "old deliveries could not be forgotten; tried again in an hour"
            );
        }
    }
}

/// Removes the values of secret inputs once their deployment has ended.
async fn forget_inputs(state: Arc<State>) {
    let every = state.ctx.settings.poll_s.get().max(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = state.ctx.shutdown.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        if let Err(error) = bootstrap::forget_inputs(&state).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "secret inputs of ended deployments could not be removed; tried again soon");
        }
    }
}

/// Headers of every answer.
fn guard(h: &mut header::HeaderMap) {
    let mut set = |name: &'static str, value: &'static str| {
        h.insert(HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    set("content-security-policy", console::CSP);
    set("x-content-type-options", "nosniff");
    set("x-frame-options", "DENY");
    set("referrer-policy", "no-referrer");
    set("cross-origin-opener-policy", "same-origin");
    set("cross-origin-resource-policy", "same-origin");
}
