//! What all workers share.

use crate::{limit::Limiter, problem::Fail, queue::Queue, seats::Seats};
use nkeys::{KeyPair, KeyPairType};
use prometheus::{HistogramVec, IntCounterVec};
use std::{net::IpAddr, sync::Arc, time::Duration};
use windlass_bus::{Context, identity};
use windlass_domain::ids::TokenId;
use windlass_runtime::{Health, Settings};
use windlass_store::Store;

pub(crate) struct State {
    pub(crate) ctx: Context,
    pub(crate) calls: Limiter<TokenId>,
    pub(crate) hooks: Limiter<IpAddr>,
    /// Wrong tokens and enrolments, by source.
    pub(crate) guesses: Limiter<IpAddr>,
    /// Refused deliveries that may still enter the trigger log, by project.
    pub(crate) refusals: Limiter<String>,
    /// The bound on commands that wait.
    pub(crate) queue: Queue,
    pub(crate) seats: Arc<Seats>,
    /// Signs approvals.
    pub(crate) approval: KeyPair,
    pub(crate) metrics: Metrics,
    /// A project's repository is to be looked at now.
    pub(crate) sources: tokio::sync::Notify,
}

impl State {
    pub(crate) fn new(ctx: Context) -> Result<State, identity::IdentityError> {
        let approval = identity::load_key(&ctx.settings.keys_dir().join("approval.nk"), KeyPairType::User)?;
        let a = &ctx.settings.api;
        Ok(State {
            calls: Limiter::new(a.rate_per_s, a.rate_burst),
            hooks: Limiter::new(a.hook_rate_per_s, a.hook_burst),
            guesses: Limiter::new(a.hook_rate_per_s, a.hook_burst),
            refusals: Limiter::new(1.0, 20.0),
            queue: Queue::new(a.max_queued_commands, &ctx.health),
            seats: Seats::new(a.max_streams),
            approval,
            sources: tokio::sync::Notify::new(),
            metrics: Metrics::new(&ctx.health),
            ctx,
        })
    }

    pub(crate) fn store(&self) -> &Store {
        &self.ctx.store
    }
    pub(crate) fn settings(&self) -> &Settings {
        &self.ctx.settings
    }

    /// The public half of `executor.nk`, made here if the executor has not been there yet.
    pub(crate) fn executor_key(&self) -> Result<String, Fail> {
        let path = self.settings().keys_dir().join("executor.nk");
        identity::load_key(&path, KeyPairType::User).map(|k| k.public_key()).map_err(|e| Fail::Internal(e.to_string()))
    }
}

/// Request metrics.
#[derive(Clone)]
pub(crate) struct Metrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
    pub(crate) intake: IntCounterVec,
}

impl Metrics {
    fn new(h: &Health) -> Metrics {
        Metrics {
            requests: h.counter("windlass_api_requests_total", "Requests answered", &["method", "route", "status"]),
            seconds: h.histogram("windlass_api_request_seconds", "Time to answer a request", &["method", "route"]),
            intake: h.counter("windlass_api_intake_total", "Incoming events", &["source", "outcome"]),
        }
    }
    pub(crate) fn observe(&self, method: &str, route: &str, status: u16, took: Duration) {
        self.requests.with_label_values(&[method, route, status.to_string().as_str()]).inc();
        self.seconds.with_label_values(&[method, route]).observe(took.as_secs_f64());
    }
}
