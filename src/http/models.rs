//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;

use super::adapters::{Adapters, Served};
use super::chat::respond;
use super::error::{ApiError, quote};
use super::state::{App, ServedModel};
use super::wire::{Model, ModelList};

/// All names of the model, then its adapters.
pub async fn list(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let model = app.loaded()?;
    let adapters = model.adapters.as_ref().map(Adapters::all).unwrap_or_default();
    let names = model.names.iter().map(|name| entry(model, name));
    let data = names.chain(adapters.iter().map(|(name, served)| adapted(model, name, served))).collect();
    respond(&ModelList { object: "list", data })
}

/// One name; it may have slashes.
pub async fn get(State(app): State<Arc<App>>, id: Result<Path<String>, PathRejection>) -> Result<Response, ApiError> {
    let Path(id) = id.map_err(|_| ApiError::value("id", "invalid_value", "it is not UTF-8"))?;
    let model = app.loaded()?;
    if let Some(name) = model.names.iter().find(|name| **name == id) {
        return respond(&entry(model, name));
    }
    match model.adapters.as_ref().and_then(|a| a.get(&id)) {
        Some(served) => respond(&adapted(model, &id, &served)),
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
        parent: None,
        max_model_len: model.max_len(),
    }
}

fn adapted<'a>(model: &'a ServedModel, name: &'a str, served: &'a Served) -> Model<'a> {
    let (root, parent) = (&served.root, Some(served.parent.as_str()));
    Model { created: served.created, root, parent, ..entry(model, name) }
}
