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
use tracing::Instrument;
use tracing::field::Empty;

use super::error::{ApiError, quote};
use super::prepare::new_id;
use super::state::App;
use super::{adapters, anthropic, auth, chat, completions, embeddings, models, probes, responses, tokenize};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The request's id, for handlers that write it into what they answer.
#[derive(Clone)]
pub struct RequestId(pub String);

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
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

/// Gives every response the request's id, or a new one, and counts it. The span has the labels of the request.
async fn around(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = request.headers().get(&REQUEST_ID).filter(|id| is_request_id(id.as_bytes()));
    let id = id.and_then(|id| id.to_str().ok()).map_or_else(|| new_id("req_"), str::to_owned);
    // The pattern, so that clients cannot make up label values.
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched".to_owned(), |p| p.as_str().to_owned());
    let span = tracing::info_span!(
        "request",
        request_id = id,
        route,
        user = Empty,
        safety_identifier = Empty,
        prompt_cache_key = Empty,
        metadata = Empty
    );
    request.extensions_mut().insert(RequestId(id.clone()));
    let dialect = anthropic::is_path(request.uri().path());
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    app.metrics.response(&route, status);
    span.in_scope(|| tracing::debug!(status, "response"));
    if let Some(error) = response.extensions_mut().remove::<ApiError>().filter(|_| dialect) {
        anthropic::spell(&mut response, &error, &id);
    }
    response.headers_mut().insert(REQUEST_ID, HeaderValue::try_from(id).expect("checked, or hexadecimal digits"));
    response
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

    #[tokio::test]
    async fn a_panic_is_an_error_as_any_other() {
        let response = panicked(Box::new("secret"));
        assert_eq!(response.status().as_u16(), 500);
        assert_eq!(response.extensions().get::<ApiError>(), Some(&ApiError::Internal));
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(std::str::from_utf8(&body).unwrap(), ApiError::Internal.to_json());
    }
}
