//! Completions, whole and in chunks.

use serde::Serialize;
use utoipa::ToSchema;

use super::logprobs::{LegacyLogprobs, PromptLogprobs};
use super::usage::Usage;
use crate::http::openapi::words;

/// The whole response of a completion, or a chunk of one.
#[derive(Serialize, ToSchema)]
pub struct Completion<'a> {
    /// `cmpl-…`.
    pub id: &'a str,
    /// `text_completion`.
    #[schema(schema_with = words::text_completion)]
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// Model name as asked for.
    pub model: &'a str,
    /// Prompt by prompt. One in a chunk, or none in the chunk with the usage.
    pub choices: Vec<CompletionChoice>,
    /// Absent in a stream unless asked for, then `null`, or the counts in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
}

/// One text, or a piece of it.
#[derive(Serialize, ToSchema)]
pub struct CompletionChoice {
    /// Prompt × n + choice.
    pub index: u32,
    /// The text.
    pub text: String,
    /// `null` is written.
    #[schema(required)]
    pub logprobs: Option<LegacyLogprobs>,
    /// `null` in a chunk that is not the last of its choice.
    #[schema(required, schema_with = words::end_of_text_or_null)]
    pub finish_reason: Option<&'static str>,
    /// If asked for, as of chats.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<Vec<Option<HashMap<String, super::logprobs::PromptLogprob>>>>)]
    pub prompt_logprobs: Option<PromptLogprobs>,
}
