//! Probes and metrics: answered from the first second, whatever the model does.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::metrics::everything;
use super::openapi::words;
use super::state::{App, Stage};

/// What the server is doing.
#[derive(Serialize, ToSchema)]
pub struct Status {
    /// What it does.
    #[schema(schema_with = words::phase)]
    phase: &'static str,
    /// Of this phase; only while loading.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    bytes_loaded: Option<u64>,
    /// Of this phase; 0 if not known; only while loading.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    bytes_total: Option<u64>,
    /// Since the server was started.
    elapsed_s: f64,
}

/// The process answers.
pub async fn live() -> &'static str {
    "ok\n"
}

/// Whether the model is loaded, with progress.
pub async fn startup(State(app): State<Arc<App>>) -> Response {
    match app.model() {
        Some(_) => status(&app, true, "ready", false),
        None => status(&app, false, app.progress.get().0, true),
    }
}

/// Whether requests are welcome: loaded, not draining, and the engine makes steps.
pub async fn ready(State(app): State<Arc<App>>) -> Response {
    let (ready, phase) = match app.model() {
        _ if app.stage() > Stage::Serving => (false, "draining"),
        None => return status(&app, false, app.progress.get().0, true),
        Some(model) if model.engine.is_stopped() => (false, "stopped"),
        Some(model) if !model.engine.is_accepting() => (false, "draining"),
        Some(model) if model.engine.stats().stalled_for() > app.limits.stall => (false, "stalled"),
        Some(_) => (true, "ready"),
    };
    status(&app, ready, phase, false)
}

/// Measurements in Prometheus' text format.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    let body = everything(&app);
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

fn status(app: &App, ready: bool, phase: &'static str, loading: bool) -> Response {
    let (_, loaded, total) = app.progress.get();
    let body = Status {
        phase,
        bytes_loaded: loading.then_some(loaded),
        bytes_total: loading.then_some(total),
        elapsed_s: (app.uptime().as_secs_f64() * 1000.0).round() / 1000.0,
    };
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, axum::Json(body)).into_response()
}
