//! The way to the collector: OTLP over HTTP, by the client that the rest of the program has.

use std::future::{Future, ready};
use std::io::Read;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use opentelemetry::{Key, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

use super::SERVICE;

/// How long a collector may take for a request: OTLP's default.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read.
const MAX_ANSWER: u64 = 64 << 10;

/// Spans in batches to `endpoint`.
pub fn provider(endpoint: &str) -> Result<SdkTracerProvider, String> {
    let client = Collector {
        agent: ureq::builder().timeout(PATIENCE).redirects(0).build(),
        endpoint: endpoint.to_owned(),
        is_lost: AtomicBool::new(false),
    };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint)
        .build()
        .map_err(|e| e.to_string())?;
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build())
}

/// Who sends: what `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say, else this program.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let found = Resource::builder().build();
    let is_named = found.get_ref(&Key::new("service.name")).is_some_and(|n| !n.as_str().starts_with("unknown_service"));
    let mut builder = Resource::builder();
    if !is_named {
        builder = builder.with_service_name(SERVICE);
    }
    if found.get_ref(&version.key).is_none() {
        builder = builder.with_attribute(version);
    }
    builder.build()
}

/// Posts to the collector. Blocks, as only the exporter's own thread calls it.
#[derive(Debug)]
struct Collector {
    agent: ureq::Agent,
    endpoint: String,
    /// Whether the last request failed: a collector that is away is told of once.
    is_lost: AtomicBool,
}

impl Collector {
    fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let mut call = self.agent.post(&head.uri.to_string());
        for (name, value) in &head.headers {
            call = call.set(name.as_str(), value.to_str()?);
        }
        let answer = match call.send_bytes(&body) {
            Ok(answer) | Err(ureq::Error::Status(_, answer)) => answer,
            Err(ureq::Error::Transport(error)) => return Err(error.to_string().into()),
        };
        let mut response = Response::builder().status(answer.status());
        if let Some(after) = answer.header("retry-after") {
            response = response.header("retry-after", after);
        }
        let mut body = Vec::new();
        answer.into_reader().take(MAX_ANSWER).read_to_end(&mut body)?;
        Ok(response.body(body.into())?)
    }

    fn told(&self, result: Result<Response<Bytes>, HttpError>) -> Result<Response<Bytes>, HttpError> {
        let trouble = match &result {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("the status is {}", response.status().as_u16())),
            Err(error) => Some(error.to_string()),
        };
        match (trouble, &self.endpoint) {
            (None, endpoint) => {
                if self.is_lost.swap(false, Relaxed) {
                    tracing::info!("spans are exported to {endpoint} again");
                }
            }
            (Some(trouble), endpoint) => {
                if !self.is_lost.swap(true, Relaxed) {
                    tracing::warn!("spans cannot be exported to {endpoint}: {trouble}");
                }
            }
        }
        result
    }
}

impl HttpClient for Collector {
    // As the attribute `async_trait` writes it.
    fn send_bytes<'life0, 'async_trait>(
        &'life0 self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(ready(self.told(self.post(request))))
    }
}
