//! Spans on their way to the collector, by OTLP over gRPC.

use crate::config::Telemetry;
use host::TRACES;
use opentelemetry::{
    propagation::{Extractor, TextMapPropagator},
    trace::TracerProvider,
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use std::time::Duration;
use tonic::codegen::http::HeaderMap;
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

/// How long a stop waits for a collector that does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sends what was told, in the background.
#[derive(Debug)]
pub struct Exporter(Option<SdkTracerProvider>);

impl Exporter {
    /// Sends what is left, and ends; it waits two seconds at most.
    pub fn stop(self) {
        let Some(Err(error)) = self.0.map(|provider| provider.shutdown_with_timeout(PATIENCE)) else { return };
        tracing::warn!("the last traces were not sent: {error}");
    }
}

/// What makes spans of OpenTelemetry's out of ours, if the config has an endpoint. It needs a Tokio runtime around it.
///
/// # Errors
///
/// In one sentence, that the endpoint cannot be used. Whether anybody listens there is not known yet, and keeps nobody from
/// anything.
pub fn layer<S>(config: &Telemetry) -> Result<(Option<impl Layer<S> + Send + Sync>, Exporter), String>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    if config.endpoint.is_empty() {
        return Ok((None, Exporter(None)));
    }
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(&config.endpoint).build();
    let exporter = exporter.map_err(|error| format!("telemetry.endpoint: {error}"))?;
    let resource = Resource::builder().with_service_name("mortard").build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("mortard"))
        // Neither the files of our source nor our threads are anybody's business there.
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(|of: &Metadata<'_>| of.target() == TRACES && of.is_span()));
    Ok((Some(layer), Exporter(Some(provider))))
}

/// The span goes on where the caller's headers say that his trace is.
pub(super) fn follow(span: &Span, headers: &HeaderMap) {
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    // Nobody makes spans: then there is none that could have a parent.
    let _no_layer = span.set_parent(parent);
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|key| key.as_str()).collect()
    }
}
