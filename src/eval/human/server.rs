//! The page's server: three static files, and three questions in JSON.

use std::io;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

use super::study::{Choice, Study};
use crate::eval::EvalError;

/// An answer that is markup in spite of all could neither run nor load nor send anything.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Person {
    person: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    person: String,
    id: String,
    choice: Choice,
}

impl IntoResponse for EvalError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Usage(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

/// The page and what it asks.
pub fn router(study: Arc<Study>) -> Router {
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", include_str!("page/index.html"))))
        .route("/page.css", get(|| file("text/css; charset=utf-8", include_str!("page/page.css"))))
        .route("/page.js", get(|| file("text/javascript; charset=utf-8", include_str!("page/page.js"))))
        .route("/next", post(next))
        .route("/decide", post(decide))
        .route("/undo", post(undo))
        .with_state(study)
}

/// Serves until the process ends.
///
/// # Errors
/// The listener fails.
pub async fn serve(listener: TcpListener, study: Arc<Study>) -> io::Result<()> {
    axum::serve(listener, router(study)).await
}

async fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, text).into_response()
}

async fn next(State(study): State<Arc<Study>>, Json(ask): Json<Person>) -> Result<Response, EvalError> {
    let item = study.next(&ask.person)?;
    Ok(Json(json!({ "item": item, "total": study.len() })).into_response())
}

async fn decide(State(study): State<Arc<Study>>, Json(made): Json<Decision>) -> Result<Response, EvalError> {
    study.decide(&made.person, &made.id, made.choice)?;
    Ok(Json(json!({})).into_response())
}

async fn undo(State(study): State<Arc<Study>>, Json(ask): Json<Person>) -> Result<Response, EvalError> {
    Ok(Json(json!({ "id": study.undo(&ask.person)? })).into_response())
}
