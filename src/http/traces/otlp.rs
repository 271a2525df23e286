//! With the SDK.

mod export;
mod span;

use std::time::Duration;

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

pub use self::span::RequestSpan;
use super::Remote;

/// What the server calls itself in spans.
const SERVICE: &str = "lima";

/// Where spans go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Sends spans to the collector at `endpoint`, a whole URL such as `http://127.0.0.1:4318/v1/traces`, from a thread
    /// of its own that nobody waits for. What it cannot send in time is dropped. The other settings are OpenTelemetry's
    /// environment variables.
    ///
    /// # Errors
    /// A clause that says which setting is wrong.
    pub fn new(endpoint: &str) -> Result<Self, String> {
        let provider = export::provider(endpoint)?;
        Ok(Self { tracer: provider.tracer(SERVICE), provider })
    }

    /// The span of a request, below its client's if that is known; `None` on a route that does not run the model.
    pub(in crate::http) fn begin(&self, route: &str, request_id: &str, client: Option<&Remote>) -> Option<RequestSpan> {
        let operation = operation(route)?;
        let builder = self.tracer.span_builder(operation).with_kind(SpanKind::Server).with_attributes([
            KeyValue::new("gen_ai.operation.name", operation),
            KeyValue::new("gen_ai.provider.name", SERVICE),
            KeyValue::new("gen_ai.request.id", request_id.to_owned()),
            KeyValue::new("http.request.method", "POST"),
            KeyValue::new("http.route", route.to_owned()),
        ]);
        let root = Context::new();
        let parent = match client.and_then(context) {
            Some(client) => root.with_remote_span_context(client),
            None => root,
        };
        Some(RequestSpan::new(operation, self.tracer.build_with_context(builder, &parent)))
    }

    /// Sends what has ended; blocks.
    ///
    /// # Errors
    /// The collector did not take it.
    pub fn flush(&self) -> Result<(), String> {
        self.provider.force_flush().map_err(|e| e.to_string())
    }

    /// Sends what is left, and then nothing any more; blocks for `patience` at most.
    pub fn shutdown(&self, patience: Duration) {
        if let Err(error) = self.provider.shutdown_with_timeout(patience) {
            tracing::debug!("spans are left: {error}");
        }
    }
}

/// What the conventions call it.
fn operation(route: &str) -> Option<&'static str> {
    match route {
        "/v1/chat/completions" | "/v1/responses" | "/v1/messages" => Some("chat"),
        "/v1/completions" => Some("text_completion"),
        "/v1/embeddings" => Some("embeddings"),
        _ => None,
    }
}

/// The client's span, as the SDK has it.
fn context(client: &Remote) -> Option<SpanContext> {
    let (trace, span) = (TraceId::from_hex(&client.trace).ok()?, SpanId::from_hex(&client.span).ok()?);
    let flags = if client.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let state = client.state.as_ref().and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    Some(SpanContext::new(trace, span, flags, true, state))
}
