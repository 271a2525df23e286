//! Tokens of texts, and texts of tokens.

use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::TokenId;

/// The response of `/tokenize`.
#[derive(Serialize, ToSchema)]
pub struct Tokenized {
    /// Number of tokens.
    pub count: usize,
    /// Context length, tokens.
    pub max_model_len: usize,
    /// Ids.
    #[schema(value_type = Vec<u32>)]
    pub tokens: Vec<TokenId>,
    /// As the vocabulary spells them; `null` unless asked for.
    #[schema(required)]
    pub token_strs: Option<Vec<String>>,
}

/// The response of `/detokenize`.
#[derive(Serialize, ToSchema)]
pub struct Detokenized {
    /// The text, special tokens spelled.
    pub prompt: String,
}
