//! Running services: one as a process of its own, or all five in this one.

use crate::{
    cli::{InitArgs, ServiceArgs},
    exit::Exit,
    housekeeping,
    up::{Error, progress},
};
use std::{sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use windlass_bus::{
    Context, Identities,
    identity::{ClusterNode, ServerPorts, ServerTls},
};
use windlass_runtime::{Health, Settings, health, keys, shutdown, telemetry};

/// How long a service may take to put down what it holds.
const SERVICE_STOP: Duration = Duration::from_secs(20);
/// How long the relay may take to publish the last events.
const RELAY_STOP: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Api,
    Scheduler,
    Executor,
    Notifier,
    Auditor,
}

impl Service {
    pub(crate) const ALL: [Service; 5] =
        [Service::Api, Service::Scheduler, Service::Executor, Service::Notifier, Service::Auditor];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Service::Api => "api",
            Service::Scheduler => "scheduler",
            Service::Executor => "executor",
            Service::Notifier => "notifier",
            Service::Auditor => "auditor",
        }
    }

    async fn serve(self, ctx: Context) -> Result<(), Error> {
        let name = self.name();
        let ended = match self {
            Service::Api => Box::pin(windlass_api::run(ctx)).await.map_err(Into::into),
            Service::Scheduler => Box::pin(windlass_scheduler::run(ctx)).await.map_err(Into::into),
            Service::Executor => Box::pin(windlass_executor::run(ctx)).await.map_err(Into::into),
            Service::Notifier => Box::pin(windlass_notifier::run(ctx)).await.map_err(Into::into),
            Service::Auditor => Box::pin(windlass_auditor::run(ctx)).await.map_err(Into::into),
        };
        ended.map_err(|source| Error::Service { name, source })
    }

    /// Where its health is served when it has no HTTP interface of its own.
    fn health_listen(self, s: &Settings) -> Option<std::net::SocketAddr> {
        match self {
            Service::Api => None,
            Service::Scheduler => s.health.scheduler,
            Service::Executor => s.health.executor,
            Service::Notifier => s.health.notifier,
            Service::Auditor => s.health.auditor,
        }
    }
}

/// Services that run in this process, and how to stop them in order: services first, then the relay, which publishes what
/// they committed last.
#[derive(Debug)]
pub(crate) struct Running {
    services: CancellationToken,
    tracker: TaskTracker,
    relay: CancellationToken,
    relay_tracker: TaskTracker,
    ended: tokio::sync::mpsc::Receiver<Error>,
}

impl Running {
    /// Starts `which` over one context.
    pub(crate) fn start(ctx: &Context, which: &[Service]) -> Running {
        let (services, relay) = (CancellationToken::new(), CancellationToken::new());
        let (tracker, relay_tracker) = (TaskTracker::new(), TaskTracker::new());
        let (tell, ended) = tokio::sync::mpsc::channel(Service::ALL.len() + 1);
        for service in which.iter().copied() {
            let own = Context { shutdown: services.child_token(), tracker: TaskTracker::new(), ..ctx.clone() };
            let (tell, stop) = (tell.clone(), services.clone());
            tracker.spawn(async move {
                let error = match Box::pin(service.serve(own)).await {
                    Err(e) => e,
                    Ok(()) if stop.is_cancelled() => return,
                    // A service that ends by itself, even well, is one that is missing.
                    Ok(()) => Error::Service { name: service.name(), source: "it was not asked to".into() },
                };
                let _ = tell.send(error).await;
            });
        }
        let own = Context { shutdown: relay.clone(), tracker: TaskTracker::new(), ..ctx.clone() };
        let names = which.iter().map(|s| s.name()).collect();
        relay_tracker.spawn(housekeeping::beats(own.clone(), names));
        for service in which.iter().copied() {
            relay_tracker.spawn(housekeeping::retention(own.clone(), service));
        }
        relay_tracker.spawn(windlass_bus::relay(own));
        Running { services, tracker, relay, relay_tracker, ended }
    }

    /// Waits until `stop` is cancelled (then `Ok`) or a service ends by itself.
    pub(crate) async fn until(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            Some(error) = self.ended.recv() => Err(error),
        }
    }

    /// As groups of an ordered shutdown.
    pub(crate) fn into_sequence(self) -> shutdown::Sequence {
        shutdown::Sequence::new().group("services", self.services, self.tracker, SERVICE_STOP).group(
            "relay",
            self.relay,
            self.relay_tracker,
            RELAY_STOP,
        )
    }
}

/// Runs one service as this process, until SIGINT or SIGTERM.
pub(crate) async fn run(service: Service, args: ServiceArgs) -> Result<(), Error> {
    let mut settings = Settings::load(args.config.as_deref())?;
    if settings.telemetry.service_name == Settings::default().telemetry.service_name {
        settings.telemetry.service_name = format!("windlass-{}", service.name());
    }
    let guard = telemetry::start(&settings.telemetry)?;
    let listen = service.health_listen(&settings);
    let signals = TaskTracker::new();
    let stop = shutdown::on_signal(&signals).map_err(part("listening for signals"))?;
    let ctx = Context::open(Arc::new(settings), Health::new(), stop.clone()).await.map_err(part("the start"))?;
    let mut running = Running::start(&ctx, &[service]);

    let (web, web_tracker) = (CancellationToken::new(), TaskTracker::new());
    if let Some(listen) = listen {
        let (health, web) = (ctx.health.clone(), web.clone());
        let bound = std::net::TcpListener::bind(listen)
            .map_err(|source| Error::Part("the health server's address cannot be used", source.into()))?;
        web_tracker.spawn(async move {
            if let Err(error) = health::serve_on(bound, health, web).await {
                tracing::error!(%error, "the health server ended");
            }
        });
    }
    tracing::info!(service = service.name(), version = env!("CARGO_PKG_VERSION"), "running");
    let ended = running.until(&stop).await;
    stop.cancel();
    running.into_sequence().group("health", web, web_tracker, Duration::from_secs(3)).stop().await;
    ctx.bus.close().await;
    ctx.store.close().await;
    guard.flush();
    ended
}

pub(crate) fn part<E>(what: &'static str) -> impl FnOnce(E) -> Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |source| Error::Part(what, Box::new(source))
}

/// `init`: what a scaled installation needs before its first start. Doing it twice changes nothing.
pub(crate) async fn init(args: InitArgs) -> Result<Exit, Error> {
    let state = &args.state.state;
    keys::make_private_dir(state)?;
    let tls = args.nats_tls_cert.clone().zip(args.nats_tls_key.clone());
    let tls = tls.map(|(cert, key)| ServerTls { cert, key, ca: args.nats_tls_ca.clone() });
    let identities = Identities::load_or_create(&state.join("keys")).map_err(part("the keys"))?.with_tls(tls);
    let wrong = part("the NATS configuration");
    let configs = if args.nats_node.is_empty() {
        let listen = std::net::SocketAddr::new(args.nats_host, args.nats_port);
        vec![
            identities
                .write_server_config(state, ServerPorts { listen, monitor: None }, &args.nats_store)
                .map_err(wrong)?,
        ]
    } else {
        let routes: Vec<_> = args.nats_node.iter().map(|n| n.peers).collect();
        let write = |n: &crate::cli::NatsNode| {
            let node = ClusterNode { name: n.name.clone(), listen: n.peers, routes: routes.clone() };
            let store = args.nats_store.join(&n.name).join("jetstream");
            identities.write_node_config(state, ServerPorts { listen: n.clients, monitor: None }, &node, &store)
        };
        args.nats_node.iter().map(write).collect::<Result<_, _>>().map_err(wrong)?
    };
    if let Some(url) = &args.database {
        windlass_store::Store::open(url).await.map_err(part("the database"))?.close().await;
        progress("the database's schema is up to date");
    }
    let configs: Vec<String> = configs.iter().map(|c| c.display().to_string()).collect();
    let keys = state.join("keys");
    progress(format!("keys are in {}, the NATS configuration is {}", keys.display(), configs.join(", ")));
    progress("the api writes the first admin's token beside them when it starts: admin.token");
    Ok(Exit::Ok)
}
