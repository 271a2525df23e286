//! Reading a request body within limits.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use futures_core::Stream;
use tokio::time::timeout;

use super::error::ApiError;
use super::state::Limits;

/// How much of a body that is too long is read and thrown away, so that the client gets to read the
/// answer instead of a reset.
const LINGER: (usize, Duration) = (64 << 20, Duration::from_secs(2));

/// Refuses anything but plain JSON.
pub fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).and_then(|v: &axum::http::HeaderValue| v.to_str().ok());
    let media_type = text(header::CONTENT_TYPE).and_then(|v| v.split(';').next()).unwrap_or_default().trim();
    let plain = text(header::CONTENT_ENCODING).is_none_or(|v| v.trim().eq_ignore_ascii_case("identity"));
    if media_type.eq_ignore_ascii_case("application/json") && plain { Ok(()) } else { Err(ApiError::ContentType) }
}

/// The whole body.
pub async fn read(request: Request, limits: &Limits) -> Result<Vec<u8>, ApiError> {
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    let mut body = request.into_body().into_data_stream();
    let all = async {
        if declared.is_some_and(|n| n > limits.max_body) {
            return Err(ApiError::TooLarge(limits.max_body));
        }
        let mut bytes = Vec::with_capacity(declared.unwrap_or(0).min(64 << 10));
        while let Some(chunk) = next(&mut body).await {
            let chunk = chunk.map_err(|_| ApiError::BodyRead)?;
            if bytes.len() + chunk.len() > limits.max_body {
                return Err(ApiError::TooLarge(limits.max_body));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    let result = timeout(limits.body_timeout, all).await;
    let result = result.unwrap_or(Err(ApiError::BodyTimeout(limits.body_timeout.as_secs())));
    if let Err(ApiError::TooLarge(_)) = result {
        let rest = async {
            let mut left = LINGER.0;
            while let Some(Ok(chunk)) = next(&mut body).await {
                let Some(less) = left.checked_sub(chunk.len()) else { break };
                left = less;
            }
        };
        let _ = timeout(LINGER.1, rest).await;
    }
    result
}

async fn next(body: &mut BodyDataStream) -> Option<Result<axum::body::Bytes, axum::Error>> {
    poll_fn(|context| Pin::new(&mut *body).poll_next(context)).await
}
