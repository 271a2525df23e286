//! Bodies that are made of raw text or of token ids.

use utoipa::ToSchema;

use super::generation::{Answers, Extensions, Labels, Sampling};
use crate::http::openapi::{shapes, words};

/// Body of `POST /v1/completions`.
#[derive(ToSchema)]
pub struct CompletionRequest {
    /// Name of the model, or of an adapter.
    pub model: String,
    /// Prompts.
    #[schema(schema_with = shapes::prompts)]
    pub prompt: (),
    /// 0 only with `echo` or `prompt_logprobs`.
    #[schema(minimum = 0, default = 16)]
    pub max_tokens: Option<i64>,
    /// The prompt comes first in the text, and with `logprobs` in its arrays.
    #[schema(default = false)]
    pub echo: Option<bool>,
    /// Choices to generate for each prompt, of which the n likeliest (by mean log-probability of their tokens) are
    /// returned. Not below n, above it not with `stream: true`.
    #[schema(minimum = 1, maximum = 20)]
    pub best_of: Option<i64>,
    /// Log-probabilities, and of so many alternatives.
    #[schema(minimum = 0, maximum = 5)]
    pub logprobs: Option<i64>,
    /// Not supported.
    #[schema(required = false, schema_with = shapes::empty_text)]
    pub suffix: (),
    /// How prompts become tokens.
    #[serde(flatten)]
    pub encoding: Encoding,
    /// Temperature and so on.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// How many answers, and how they are told.
    #[serde(flatten)]
    pub answers: Answers,
    /// vLLM's.
    #[serde(flatten)]
    pub extensions: Extensions,
    /// Whose the request is.
    #[serde(flatten)]
    pub labels: Labels,
}

/// How prompts become tokens.
#[derive(ToSchema)]
pub struct Encoding {
    /// Begin text as the tokenizer does.
    #[schema(default = true)]
    pub add_special_tokens: Option<bool>,
    /// Only the last so many tokens of each prompt.
    #[schema(minimum = 1, maximum = 4294967295u64)]
    pub truncate_prompt_tokens: Option<i64>,
}

/// Body of `POST /v1/embeddings`.
#[derive(ToSchema)]
pub struct EmbeddingRequest {
    /// Name of the model, or of an adapter.
    pub model: String,
    /// Prompts.
    #[schema(schema_with = shapes::prompts)]
    pub input: (),
    /// Default is `float`; `base64` is of little-endian F32.
    #[schema(required = false, schema_with = words::encoding_or_null)]
    pub encoding_format: (),
    /// Of the hidden states after the final norm; default is `mean`.
    #[schema(required = false, schema_with = words::pooling_or_null)]
    pub pooling: (),
    /// Scale vectors to length 1.
    #[schema(default = true)]
    pub normalize: Option<bool>,
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub dimensions: (),
    /// How inputs become tokens.
    #[serde(flatten)]
    pub encoding: Encoding,
    /// Whose the request is.
    #[serde(flatten)]
    pub labels: Labels,
}

/// Body of `POST /detokenize`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeRequest {
    /// Default is the first name.
    pub model: Option<String>,
    /// Below the size of the vocabulary.
    pub tokens: Vec<u32>,
}
