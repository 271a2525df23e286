//! What every endpoint with a body does first: refuse while draining or loading, read the body, and take it
//! apart off the async threads.

use std::sync::Arc;

use axum::extract::Request;
use tracing::dispatcher::{self, Dispatch};

use super::body;
use super::error::ApiError;
use super::state::{App, ServedModel, Stage};
use super::traces::RequestSpan;

/// The model, and the body's bytes.
pub async fn receive(app: &App, request: Request) -> Result<(Arc<ServedModel>, Vec<u8>), ApiError> {
    if app.stage() > Stage::Serving {
        return Err(ApiError::Draining);
    }
    let model = Arc::clone(app.loaded()?);
    body::require_json(request.headers())?;
    let bytes = body::read(request, &app.limits).await?;
    Ok((model, bytes))
}

/// The model, and what `prepare` makes of the body: on a blocking thread, because rendering and tokenising a long
/// prompt takes a while. So many run at once as there are permits.
pub async fn prepared<T: Send + 'static>(
    app: &App,
    request: Request,
    prepare: impl FnOnce(&ServedModel, &[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<(Arc<ServedModel>, T), ApiError> {
    let (model, bytes) = receive(app, request).await?;
    let permit = Arc::clone(&app.preparing).acquire_owned().await.map_err(|_| ApiError::Internal)?;
    // Labels of the request, and what is logged of it, belong to its span there too.
    let (subscriber, span) = (dispatcher::get_default(Dispatch::clone), tracing::Span::current());
    let traced = RequestSpan::current();
    let work = move || {
        // Held until the work is done, even when the client has gone.
        let _permit = permit;
        let prepare = || prepare(&model, &bytes);
        let prepare = || RequestSpan::sync_scope(traced, prepare);
        let prepared = dispatcher::with_default(&subscriber, || span.in_scope(prepare));
        prepared.map(|prepared| (model, prepared))
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        tracing::error!("preparing a request failed: {e}");
        ApiError::Internal
    })?
}
