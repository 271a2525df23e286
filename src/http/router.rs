//! Routes, and what happens around every one of them: request ids, counting, panics.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tracing::Instrument;
use tracing::field::Empty;

use super::error::{ApiError, quote};
use super::prepare::new_id;
use super::state::{App, Limits};
use super::{
    adapters, anthropic, auth, chat, completions, embeddings, models, openapi, page, probes, responses, tokenize,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The request's id, for handlers that write it into what they answer.
#[derive(Clone)]
pub struct RequestId(pub String);

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let page = if app.limits.chat_page {
        Router::new().route("/", get(page::file)).route("/page/{file}", get(page::file))
    } else {
        Router::new()
    };
    let mut router = page
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/responses", post(responses::create))
        .route("/v1/messages", post(anthropic::create))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::get))
        .route("/v1/load_lora_adapter", post(adapters::load))
        .route("/v1/unload_lora_adapter", post(adapters::unload))
        .route("/openapi.json", get(openapi::get))
        .route("/livez", get(probes::live))
        .route("/startupz", get(probes::startup))
        .route("/readyz", get(probes::ready))
        .route("/health", get(probes::ready));
    if !app.metrics_apart {
        router = router.route("/metrics", get(probes::metrics));
    }
    router = router
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(from_fn_with_state(Arc::clone(&app), auth::guard));
    if !app.allowed_origins.is_empty() {
        // Before the guard: a browser asks what it may send without sending a key.
        router = router.layer(cors(&app.allowed_origins));
    }
    router.layer(CatchPanicLayer::custom(panicked)).layer(from_fn_with_state(Arc::clone(&app), around)).with_state(app)
}

/// The metrics alone, and a sign of life. Nobody is asked for a key: who reaches this listener may read them.
pub fn metrics_router(app: Arc<App>) -> Router {
    Router::new()
        .route("/metrics", get(probes::metrics))
        .route("/livez", get(probes::live))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(app)
}

/// Lets pages of these origins ask, with a key of theirs, and read what they are told. Cookies are not used.
fn cors(origins: &[String]) -> CorsLayer {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, RETRY_AFTER])
        .max_age(Duration::from_secs(3600));
    if origins.iter().any(|origin| origin == "*") {
        return layer.allow_origin(AllowOrigin::any());
    }
    let known = origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok());
    layer.allow_origin(AllowOrigin::list(known))
}

async fn not_found(method: Method, uri: Uri) -> ApiError {
    ApiError::NotFound { method: quote(method.as_str()), path: quote(uri.path()) }
}

async fn method_not_allowed(method: Method) -> ApiError {
    ApiError::Method(quote(method.as_str()))
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let message = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!("a handler panicked: {}", message.unwrap_or("no message"));
    ApiError::Internal.into_response()
}

/// Gives every response the request's id, or a new one, and counts it. All that is logged meanwhile is logged with the
/// id, the labels of the request, and the trace that the client has it in.
async fn around(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = request.headers().get(&REQUEST_ID).filter(|id| is_request_id(id.as_bytes()));
    let id = id.and_then(|id| id.to_str().ok()).map_or_else(|| new_id("req_"), str::to_owned);
    // The pattern, so that clients cannot make up label values.
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched".to_owned(), |p| p.as_str().to_owned());
    let trace = request.headers().get("traceparent").and_then(|value| Trace::parse(value.to_str().ok()?));
    let span = tracing::info_span!(
        "request",
        request_id = id,
        route,
        key = Empty,
        trace_id = Empty,
        parent_id = Empty,
        user = Empty,
        safety_identifier = Empty,
        prompt_cache_key = Empty,
        metadata = Empty
    );
    if let Some(trace) = trace {
        span.record("trace_id", trace.id).record("parent_id", trace.parent);
    }
    request.extensions_mut().insert(RequestId(id.clone()));
    let dialect = anthropic::is_path(request.uri().path());
    let handled = async {
        let mut response = match too_many_headers(request.headers(), &app.limits) {
            Some(error) => error.into_response(),
            None => next.run(request).await,
        };
        let (status, seconds) = (response.status().as_u16(), begun.elapsed().as_secs_f64());
        let error = response.extensions_mut().remove::<ApiError>();
        let code = error.as_ref().map(ApiError::code);
        app.metrics.response(&route, status, code);
        tracing::debug!(status, seconds, error = code, "response");
        if let Some(error) = error.filter(|_| dialect) {
            anthropic::spell(&mut response, &error, &id);
        }
        response
    };
    let mut response = handled.instrument(span).await;
    response.headers_mut().insert(REQUEST_ID, HeaderValue::try_from(id).expect("checked, or hexadecimal digits"));
    response
}

fn too_many_headers(headers: &HeaderMap, limits: &Limits) -> Option<ApiError> {
    let (bytes, count) = (limits.max_header_bytes, limits.max_headers);
    let used: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    (used > bytes || headers.len() > count).then_some(ApiError::Headers { bytes, count })
}

/// The trace a request is part of: W3C's trace context.
#[derive(Debug, PartialEq, Eq)]
struct Trace {
    id: String,
    parent: String,
}

impl Trace {
    /// Reads `00-<trace id>-<parent id>-<flags>`; later versions may have more behind.
    fn parse(header: &str) -> Option<Self> {
        let mut parts = header.trim().split('-');
        let mut hex = |digits: usize| {
            let part = parts.next()?;
            let is_hex = part.len() == digits && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            is_hex.then(|| part.to_owned())
        };
        let version = hex(2)?;
        let (id, parent, _flags) = (hex(32)?, hex(16)?, hex(2)?);
        let ends = version != "00" || parts.next().is_none();
        let is_set = |id: &str| id.bytes().any(|b| b != b'0');
        (version != "ff" && ends && is_set(&id) && is_set(&parent)).then_some(Self { id, parent })
    }
}

/// What may be echoed: short, and without anything that could forge a line of a log.
fn is_request_id(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(b))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    #[test]
    fn trace_contexts() {
        let (id, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let trace = Some(Trace { id: id.into(), parent: parent.into() });
        assert_eq!(Trace::parse(&format!("00-{id}-{parent}-01")), trace);
        assert_eq!(Trace::parse(&format!("cc-{id}-{parent}-01-what-may-come")), trace);
        let zeros = "0".repeat(32);
        for wrong in [
            "".to_owned(),
            format!("00-{id}-{parent}"),
            format!("00-{id}-{parent}-01-more"),
            format!("ff-{id}-{parent}-01"),
            format!("00-{zeros}-{parent}-01"),
            format!("00-{id}-{}-01", &zeros[..16]),
            format!("00-{}-{parent}-01", id.to_uppercase()),
            format!("00-{id}x-{parent}-01"),
        ] {
            assert_eq!(Trace::parse(&wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_error_as_any_other() {
        let response = panicked(Box::new("secret"));
        assert_eq!(response.status().as_u16(), 500);
        assert_eq!(response.extensions().get::<ApiError>(), Some(&ApiError::Internal));
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(std::str::from_utf8(&body).unwrap(), ApiError::Internal.to_json());
    }
}
