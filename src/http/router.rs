//! Routes, and what happens around every one of them: request ids, counting, panics.

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;

use super::error::{ApiError, quote};
use super::prepare::random;
use super::state::App;
use super::{adapters, auth, chat, completions, embeddings, models, page, probes, tokenize};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let page = if app.limits.chat_page {
        Router::new().route("/", get(page::file)).route("/page/{file}", get(page::file))
    } else {
        Router::new()
    };
    page.route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::get))
        .route("/v1/load_lora_adapter", post(adapters::load))
        .route("/v1/unload_lora_adapter", post(adapters::unload))
        .route("/livez", get(probes::live))
        .route("/startupz", get(probes::startup))
        .route("/readyz", get(probes::ready))
        .route("/health", get(probes::ready))
        .route("/metrics", get(probes::metrics))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(from_fn_with_state(Arc::clone(&app), auth::guard))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
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

/// Gives every response the request's id, or a new one, and counts it.
async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = request.headers().get(&REQUEST_ID).filter(|id| is_request_id(id.as_bytes())).cloned();
    let id = id.unwrap_or_else(|| {
        HeaderValue::try_from(format!("req_{:016x}{:016x}", random(), random())).expect("hexadecimal digits")
    });
    // The pattern, so that clients cannot make up label values.
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched".to_owned(), |p| p.as_str().to_owned());
    let mut response = next.run(request).await;
    app.metrics.response(&route, response.status().as_u16());
    tracing::debug!(request_id = ?id, route, status = response.status().as_u16(), "response");
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// What may be echoed: short, and without anything that could forge a line of a log.
fn is_request_id(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(b))
}
