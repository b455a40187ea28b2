//! Build-ready events over JetStream, `windlass.in.<kind>`: CloudEvents with a `CDEvent` in `data`, as `/hooks/cdevents` takes
//! them. The sender is a user of the services account, so there is no signature; the project is the CloudEvents extension
//! `project`, or `customData.project`.

use super::{Incoming, accept, cdevents};
use crate::{call::holds_nul, problem::Fail, state::State};
use std::{sync::Arc, time::Duration};
use windlass_bus::{ConsumerSpec, Message, Outcome, consume};
use windlass_contracts::{envelope::CloudEvent, subjects};
use windlass_domain::catalog::Kind;
use windlass_runtime::telemetry;
use windlass_store::catalog;

const AGAIN: Duration = Duration::from_secs(2);

pub(crate) async fn run(state: Arc<State>) {
    let spec = ConsumerSpec::new("api", subjects::STREAM_IN, "api-intake", subjects::ALL_IN);
    let ctx = state.ctx.clone();
    consume(ctx, spec, move |m| one(Arc::clone(&state), m)).await;
}

async fn one(state: Arc<State>, m: Message) -> Outcome {
    if holds_nul(&m.payload) {
        return Outcome::Reject("a text of it holds the character NUL (\\u0000), which cannot be stored".into());
    }
    let event: CloudEvent = match m.json() {
        Ok(e) => e,
        Err(e) => return Outcome::Reject(format!("not a CloudEvent: {e}")),
    };
    let project = event.extensions.get("project").and_then(|p| p.as_str()).map(str::to_owned);
    let body = match serde_json::to_value(&event) {
        Ok(v) => v,
        Err(e) => return Outcome::Reject(e.to_string()),
    };
    let read = match cdevents::read(&body) {
        Ok(r) => r,
        Err(p) => return Outcome::Reject(p.detail),
    };
    let Some(project) = project.or(read.project) else {
        return Outcome::Reject("it names no project: set the CloudEvents extension `project`".into());
    };
    match exists(&state, &project).await {
        Ok(true) => {}
        Ok(false) => return Outcome::Reject(format!("there is no project {project:?}")),
        Err(_) => return Outcome::Retry(AGAIN),
    }
    let trace = m.traceparent().filter(|t| telemetry::is_traceparent(t)).map(str::to_owned);
    let incoming = Incoming {
        source: "bus",
        project,
        delivery: read.delivery,
        kind: read.kind,
        verdict: read.verdict,
        trace: trace.unwrap_or_else(telemetry::traceparent_or_new),
    };
    loop {
        let e = match accept(&state, &incoming).await {
            Ok(_) => return Outcome::Ack,
            Err(e) => e,
        };
        // A full queue is not the event's fault: it waits here, where no try is counted against it, and what comes behind it
        // stays in the stream.
        let full = e.is_queue_full();
        tracing::warn!(error = e.into_problem().detail, "an incoming event could not be stored and is tried again");
        if !full || state.ctx.shutdown.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
            return Outcome::Retry(AGAIN);
        }
    }
}

async fn exists(state: &State, project: &str) -> Result<bool, Fail> {
    let mut tx = state.store().read().await?;
    Ok(catalog::get(&mut tx, Kind::Project, project).await?.is_some())
}
