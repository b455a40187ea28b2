//! Health and metrics of one process: named checks, a Prometheus registry, and the three routes that show them.

use actix_web::{App, HttpResponse, HttpServer, web};
use prometheus::{
    Encoder, Gauge, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio_util::sync::CancellationToken;

/// How one part of the process is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "status", content = "reason", rename_all = "lowercase")]
pub enum Check {
    Ok,
    /// It works, slower or with less: still ready.
    Degraded(String),
    /// It cannot do its job: not ready.
    Failing(String),
}

/// The checks and metrics of this process. Cheap to clone; every clone is the same registry.
#[derive(Clone)]
pub struct Health {
    inner: Arc<Inner>,
}

struct Inner {
    checks: Mutex<BTreeMap<String, Check>>,
    registry: Registry,
    metrics: Mutex<Metrics>,
}

/// Families already registered, so that two services in one process share them.
#[derive(Default)]
struct Metrics {
    counters: HashMap<String, IntCounterVec>,
    gauges: HashMap<String, IntGaugeVec>,
    histograms: HashMap<String, HistogramVec>,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").field("checks", &self.checks()).finish_non_exhaustive()
    }
}

impl Default for Health {
    fn default() -> Self {
        Health::new()
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Health {
    pub fn new() -> Health {
        let registry = Registry::new();
        if let Ok(up) = Gauge::new("windlass_start_time_seconds", "When the process started, in Unix seconds") {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            up.set(now.map(|d| d.as_secs_f64()).unwrap_or_default());
            let _ = registry.register(Box::new(up));
        }
        Health { inner: Arc::new(Inner { checks: Mutex::default(), registry, metrics: Mutex::default() }) }
    }

    pub fn ok(&self, name: &str) {
        self.set(name, Check::Ok);
    }

    /// Works, but not as it should; the process stays ready.
    pub fn degraded(&self, name: &str, reason: impl Into<String>) {
        self.set(name, Check::Degraded(reason.into()));
    }

    /// Cannot work; `/readyz` answers 503.
    pub fn failing(&self, name: &str, reason: impl Into<String>) {
        self.set(name, Check::Failing(reason.into()));
    }

    fn set(&self, name: &str, check: Check) {
        let old = lock(&self.inner.checks).insert(name.to_owned(), check.clone());
        if old.as_ref() != Some(&check) {
            match &check {
                Check::Ok if old.is_none() => {}
                Check::Ok => tracing::info!(check = name, "health: ok again"),
                Check::Degraded(reason) => tracing::warn!(check = name, %reason, "health: degraded"),
                Check::Failing(reason) => tracing::error!(check = name, %reason, "health: failing"),
            }
        }
    }

    pub fn checks(&self) -> BTreeMap<String, Check> {
        lock(&self.inner.checks).clone()
    }

    /// No check is failing.
    pub fn ready(&self) -> bool {
        !lock(&self.inner.checks).values().any(|c| matches!(c, Check::Failing(_)))
    }

    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// The counter family `name`, made on first use. The labels must be the same at every use.
    #[expect(clippy::expect_used, reason = "name and labels are constants of the code; the first use shows a bad one")]
    pub fn counter(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        let mut m = lock(&self.inner.metrics);
        let family = m.counters.entry(name.to_owned()).or_insert_with(|| {
            let c = IntCounterVec::new(Opts::new(name, help), labels).expect("a valid metric name");
            self.inner.registry.register(Box::new(c.clone())).expect("one kind a metric name");
            c
        });
        family.clone()
    }

    /// The gauge family `name`, made on first use.
    #[expect(clippy::expect_used, reason = "name and labels are constants of the code; the first use shows a bad one")]
    pub fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        let mut m = lock(&self.inner.metrics);
        let family = m.gauges.entry(name.to_owned()).or_insert_with(|| {
            let g = IntGaugeVec::new(Opts::new(name, help), labels).expect("a valid metric name");
            self.inner.registry.register(Box::new(g.clone())).expect("one kind a metric name");
            g
        });
        family.clone()
    }

    /// The histogram family `name` (seconds), made on first use.
    #[expect(clippy::expect_used, reason = "name and labels are constants of the code; the first use shows a bad one")]
    pub fn histogram(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let mut m = lock(&self.inner.metrics);
        let family = m.histograms.entry(name.to_owned()).or_insert_with(|| {
            let h = HistogramVec::new(HistogramOpts::new(name, help), labels).expect("a valid metric name");
            self.inner.registry.register(Box::new(h.clone())).expect("one kind a metric name");
            h
        });
        family.clone()
    }

    /// Everything in Prometheus' text form.
    pub fn metrics_text(&self) -> Result<String, prometheus::Error> {
        let mut out = vec![];
        TextEncoder::new().encode(&self.inner.registry.gather(), &mut out)?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }
}

/// `GET /healthz`: the process answers.
pub async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(serde_json::json!({ "status": "ok" }))
}

/// `GET /readyz`: 200 when nothing is failing, else 503; the body names every check.
pub async fn readyz(health: web::Data<Health>) -> HttpResponse {
    let ready = health.ready();
    let body = serde_json::json!({ "ready": ready, "checks": health.checks() });
    if ready { HttpResponse::Ok().json(body) } else { HttpResponse::ServiceUnavailable().json(body) }
}

/// `GET /metrics`.
pub async fn metrics(health: web::Data<Health>) -> HttpResponse {
    match health.metrics_text() {
        Ok(text) => HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text),
        Err(error) => {
            tracing::error!(%error, "cannot encode metrics");
            HttpResponse::InternalServerError().finish()
        }
    }
}

/// Mounts the three routes. The app needs `web::Data<Health>`.
pub fn routes(cfg: &mut web::ServiceConfig) {
    cfg.route("/healthz", web::get().to(healthz))
        .route("/readyz", web::get().to(readyz))
        .route("/metrics", web::get().to(metrics));
}

/// Serves the three routes for a service that has no HTTP interface of its own, until `shutdown`.
pub async fn serve(listen: SocketAddr, health: Health, shutdown: CancellationToken) -> std::io::Result<()> {
    serve_on(TcpListener::bind(listen)?, health, shutdown).await
}

/// [`serve`] on a socket that is already bound.
pub async fn serve_on(listener: TcpListener, health: Health, shutdown: CancellationToken) -> std::io::Result<()> {
    let data = web::Data::new(health);
    let server = HttpServer::new(move || App::new().app_data(data.clone()).configure(routes))
        .workers(1)
        .disable_signals()
        .shutdown_timeout(2)
        .listen(listener)?
        .run();
    let handle = server.handle();
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => return ended,
        () = shutdown.cancelled() => {}
    }
    let ((), ended) = tokio::join!(handle.stop(true), server);
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readiness_follows_the_checks_and_metrics_are_shown() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let health = Health::new();
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let base = format!("http://{}", listener.local_addr().expect("address"));
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve_on(listener, health.clone(), stop.clone()));
        let get = |path: &'static str| {
            let url = format!("{base}{path}");
            async move {
                let r = reqwest::get(url).await.expect("answers");
                (r.status().as_u16(), r.text().await.expect("body"))
            }
        };
        assert_eq!(get("/healthz").await.0, 200);
        health.ok("database");
        health.degraded("nats", "not connected");
        assert_eq!(get("/readyz").await.0, 200);
        health.failing("database", "connection refused");
        let (status, body) = get("/readyz").await;
        assert_eq!(status, 503);
        assert!(body.contains("connection refused") && body.contains("not connected"), "{body}");
        health.ok("database");
        assert_eq!(get("/readyz").await.0, 200);
        for _ in 0..2 {
            health.counter("windlass_test_total", "Tests", &["kind"]).with_label_values(&["a"]).inc();
        }
        assert!(get("/metrics").await.1.contains("windlass_test_total{kind=\"a\"} 2"));
        stop.cancel();
        server.await.expect("joins").expect("stops");
    }
}
