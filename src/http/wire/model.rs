//! The models that are served.

use serde::Serialize;
use utoipa::ToSchema;

use crate::http::openapi::words;

/// An entry of `/v1/models`.
#[derive(Serialize, ToSchema)]
pub struct Model<'a> {
    /// The name.
    pub id: &'a str,
    /// `model`.
    #[schema(schema_with = words::model)]
    pub object: &'static str,
    /// When it was loaded, in Unix seconds.
    pub created: u64,
    /// Always `lima`.
    #[schema(schema_with = words::lima)]
    pub owned_by: &'static str,
    /// What was loaded.
    pub root: &'a str,
    /// Of a LoRA adapter, the model it is for; `null` is written.
    #[schema(required)]
    pub parent: Option<&'a str>,
    /// Tokens of prompt and answer together.
    pub max_model_len: usize,
}

/// A list of models.
#[derive(Serialize, ToSchema)]
pub struct ModelList<'a> {
    /// `list`.
    #[schema(schema_with = words::list)]
    pub object: &'static str,
    /// The models.
    pub data: Vec<Model<'a>>,
}
