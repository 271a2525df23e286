//! Embeddings.

use serde::Serialize;
use utoipa::ToSchema;

use crate::http::openapi::words;

/// The response with embeddings.
#[derive(Serialize, ToSchema)]
pub struct EmbeddingList<'a> {
    /// `list`.
    #[schema(schema_with = words::list)]
    pub object: &'static str,
    /// In the order of the inputs.
    pub data: Vec<Embedding>,
    /// Model name as asked for.
    pub model: &'a str,
    /// Token counts.
    pub usage: EmbeddingUsage,
}

/// One vector.
#[derive(Serialize, ToSchema)]
pub struct Embedding {
    /// `embedding`.
    #[schema(schema_with = words::embedding)]
    pub object: &'static str,
    /// Which input's.
    pub index: usize,
    /// The vector.
    pub embedding: Vector,
}

/// A vector, written as numbers or as the base64 of little-endian F32.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

/// Token counts of embeddings.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct EmbeddingUsage {
    /// Of all inputs.
    pub prompt_tokens: usize,
    /// The same.
    pub total_tokens: usize,
}
