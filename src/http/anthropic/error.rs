//! Errors as Anthropic's clients read them; status and message are those of every path.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

use super::wire::{ErrorBody, ErrorObject};
use crate::http::error::ApiError;

/// Whether errors on this path have Anthropic's shape.
pub fn is_path(path: &str) -> bool {
    path.strip_prefix("/v1/messages").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `{"type":"error",…}`, the same in a body and in a stream.
pub fn object(error: &ApiError, request_id: &str) -> String {
    let body = ErrorBody {
        kind: "error",
        error: ErrorObject { kind: kind(error.status()), message: error.to_string() },
        request_id,
    };
    serde_json::to_string(&body).expect("strings serialise")
}

/// Rewrites a response that tells of an error.
pub fn spell(response: &mut Response, error: &ApiError, request_id: &str) {
    *response.body_mut() = Body::from(object(error, request_id));
    response.headers_mut().remove(header::CONTENT_LENGTH);
    tag(response, request_id);
}

/// Adds the request's id under the name that Anthropic's clients look for.
pub fn tag(response: &mut Response, request_id: &str) {
    if let Ok(id) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert("request-id", id);
    }
}

fn kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 => "timeout_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}
