//! Logs to stderr, traces over OTLP/HTTP when an endpoint is set. Trace ids exist either way, so that a command can be
//! followed from the webhook to the process on a host by the ids in the logs and in the database alone.

use crate::settings::{LogFormat, Telemetry};
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider},
};
use opentelemetry_otlp::{Protocol, WithExportConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use std::io::IsTerminal;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("setting `telemetry.log` is not a log filter; write for example `info,windlass_scheduler=debug`")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    #[error("cannot send traces to setting `telemetry.otlp_endpoint`")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
    #[error("telemetry was started twice in this process")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Keeps telemetry alive. Flush it last, after everything that may still log has ended.
#[derive(Debug)]
pub struct Guard {
    provider: SdkTracerProvider,
}

impl Guard {
    /// Sends what is still buffered. Blocks for at most the exporter's own deadline.
    pub fn flush(self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "telemetry did not shut down cleanly");
        }
    }
}

/// Starts logging and tracing for this process. Call it inside the tokio runtime.
pub fn start(settings: &Telemetry) -> Result<Guard, TelemetryError> {
    let filter = EnvFilter::builder().parse(&settings.log).map_err(TelemetryError::Filter)?;
    let resource = Resource::builder().with_service_name(settings.service_name.clone()).build();
    let mut provider = SdkTracerProvider::builder().with_resource(resource);
    if let Some(endpoint) = &settings.otlp_endpoint {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(traces_url(endpoint))
            .build()
            .map_err(TelemetryError::Exporter)?;
        // The plain batch processor runs on a thread of its own, where a tokio HTTP client cannot run.
        let batch = opentelemetry_sdk::trace::span_processor_with_async_runtime::BatchSpanProcessor::builder(
            exporter,
            opentelemetry_sdk::runtime::Tokio,
        )
        .build();
        provider = provider.with_span_processor(batch);
    }
    let provider = provider.build();
    // Without an exporter the provider still gives every span its ids.
    let otel = tracing_opentelemetry::layer().with_tracer(provider.tracer("windlass"));
    let log = match settings.log_format {
        // Colours are for a terminal; in a file they are noise.
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(std::io::stderr).boxed()
        }
        LogFormat::Json => {
            tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed()
        }
    };
    tracing_subscriber::registry()
        .with(log.with_filter(filter))
        .with(otel.with_filter(tracing_subscriber::filter::LevelFilter::INFO))
        .try_init()
        .map_err(TelemetryError::Twice)?;
    Ok(Guard { provider })
}

fn traces_url(endpoint: &str) -> String {
    let base = endpoint.trim_end_matches('/');
    if base.ends_with("/v1/traces") { base.to_owned() } else { format!("{base}/v1/traces") }
}

/// The W3C `traceparent` of the current span; `None` outside any span.
pub fn traceparent_of_current() -> Option<String> {
    traceparent_of(&Span::current())
}

/// The W3C `traceparent` of a span.
pub fn traceparent_of(span: &Span) -> Option<String> {
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| write(&context))
}

/// The current span's `traceparent`, or a new one: for the places where a trace begins and must have an id.
pub fn traceparent_or_new() -> String {
    traceparent_of_current().unwrap_or_else(|| {
        let trace = TraceId::from_bytes(rand::random());
        let span = SpanId::from_bytes(rand::random());
        write(&SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE))
    })
}

/// Makes `span` a child of the sender's span. A missing or malformed `traceparent` leaves the span as it is.
pub fn span_with_parent(span: Span, traceparent: Option<&str>) -> Span {
    if let Some(parent) = traceparent.and_then(read) {
        // Fails only when no subscriber is installed or the span already started, and then there is no trace to join.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
    span
}

/// Whether `text` is a version-00 `traceparent`; what comes from outside is checked before it is stored.
pub fn is_traceparent(text: &str) -> bool {
    read(text).is_some()
}

/// An error with all its causes on one line: for the one log line at the boundary where it is handled.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        out.push_str(": ");
        out.push_str(&c.to_string());
        cause = c.source();
    }
    out
}

fn write(c: &SpanContext) -> String {
    format!("00-{}-{}-{:02x}", c.trace_id(), c.span_id(), c.trace_flags().to_u8())
}

fn read(text: &str) -> Option<SpanContext> {
    let lower_hex = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, span, flags] = parts.as_slice() else { return None };
    if *version != "00" || !lower_hex(trace, 32) || !lower_hex(span, 16) || !lower_hex(flags, 2) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_carried_from_parent_to_child_without_an_exporter() {
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("t"));
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        assert_eq!(traceparent_of_current(), None);
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let span = span_with_parent(tracing::info_span!("work"), Some(parent));
        let _in = span.enter();
        let own = traceparent_of_current().expect("has ids");
        assert_eq!(own[..36], parent[..36], "same trace");
        assert_ne!(own, parent, "a span of its own");
        let inner = tracing::info_span!("inner");
        let _in = inner.enter();
        assert_eq!(traceparent_or_new()[..36], parent[..36]);
    }

    #[test]
    fn malformed_parents_are_refused() {
        assert!(is_traceparent(&traceparent_or_new()));
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473x-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }
}
