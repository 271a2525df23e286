//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;

use super::chat::respond;
use super::error::{ApiError, quote};
use super::state::{App, ServedModel};
use super::wire::{Model, ModelList};

/// All names of the model.
pub async fn list(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let model = app.loaded()?;
    let data = model.names.iter().map(|name| entry(model, name)).collect();
    respond(&ModelList { object: "list", data })
}

/// One name; it may have slashes.
pub async fn get(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let model = app.loaded()?;
    match model.names.iter().find(|name| **name == id) {
        Some(name) => respond(&entry(model, name)),
        None => Err(ApiError::ModelNotFound(quote(&id))),
    }
}

fn entry<'a>(model: &'a ServedModel, name: &'a str) -> Model<'a> {
    Model {
        id: name,
        object: "model",
        created: model.created,
        owned_by: "lima",
        root: &model.root,
        max_model_len: model.max_len(),
    }
}
