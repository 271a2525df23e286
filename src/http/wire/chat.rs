//! Chat completions, whole and in chunks.

use serde::Serialize;
use utoipa::ToSchema;

use super::logprobs::{Logprobs, PromptLogprobs};
use super::usage::Usage;
use crate::http::openapi::words;

/// The whole response of a chat completion.
#[derive(Serialize, ToSchema)]
pub struct ChatCompletion<'a> {
    /// `chatcmpl-…`.
    pub id: &'a str,
    /// `chat.completion`.
    #[schema(schema_with = words::chat_completion)]
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// Model name as asked for.
    pub model: &'a str,
    /// In index order.
    pub choices: Vec<Choice>,
    /// If asked for: an entry for each token of the prompt, `null` for the first; by token id, the prompt's own token
    /// and the likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<Vec<Option<HashMap<String, super::logprobs::PromptLogprob>>>>)]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Token counts.
    pub usage: Usage,
}

/// One of the `n` answers.
#[derive(Serialize, ToSchema)]
#[schema(as = ChatChoice)]
pub struct Choice {
    /// Which.
    pub index: u32,
    /// The answer.
    pub message: Message,
    /// `null` is written.
    #[schema(required)]
    pub logprobs: Option<Logprobs>,
    /// Why it ended.
    #[schema(schema_with = words::finish_reason)]
    pub finish_reason: &'static str,
}

/// The assistant's message.
#[derive(Serialize, ToSchema)]
#[schema(as = AssistantMessage)]
pub struct Message {
    /// `assistant`.
    #[schema(schema_with = words::assistant)]
    pub role: &'static str,
    /// The text; `null` if there are only calls.
    #[schema(required)]
    pub content: Option<String>,
    /// Always written, always `null`.
    #[schema(required, schema_with = words::null)]
    pub refusal: Option<String>,
    /// Functions called, if any are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// A function called.
#[derive(Serialize, ToSchema)]
pub struct ToolCall {
    /// `call_…`.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::function)]
    pub kind: &'static str,
    /// Which, and how.
    pub function: FunctionCall,
}

/// A function and its arguments.
#[derive(Serialize, ToSchema)]
pub struct FunctionCall {
    /// Its name.
    pub name: String,
    /// A JSON object as text.
    pub arguments: String,
}

/// One event of a stream.
#[derive(Serialize, ToSchema)]
#[schema(as = ChatCompletionChunk)]
pub struct Chunk<'a> {
    /// The same in all chunks.
    pub id: &'a str,
    /// `chat.completion.chunk`.
    #[schema(schema_with = words::chat_completion_chunk)]
    pub object: &'static str,
    /// The same in all chunks.
    pub created: u64,
    /// Model name as asked for.
    pub model: &'a str,
    /// One, or none in the chunk with the usage.
    #[schema(max_items = 1)]
    pub choices: Vec<ChunkChoice>,
    /// With `stream_options.include_usage` `null` in all chunks but the last; else absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
}

/// A piece of one answer.
#[derive(Serialize, ToSchema)]
pub struct ChunkChoice {
    /// Which answer.
    pub index: u32,
    /// What is new.
    pub delta: Delta,
    /// `null` is written.
    #[schema(required)]
    pub logprobs: Option<Logprobs>,
    /// `null` until the last chunk of this answer.
    #[schema(required, schema_with = words::finish_reason_or_null)]
    pub finish_reason: Option<&'static str>,
}

/// What a chunk adds.
#[derive(Default, Serialize, ToSchema)]
pub struct Delta {
    /// In the first chunk of an answer only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = words::assistant)]
    pub role: Option<&'static str>,
    /// Text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub content: Option<String>,
    /// `null` in the first chunk, else absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = words::null)]
    pub refusal: Option<Option<String>>,
    /// Part of a call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// What a chunk adds to a call.
#[derive(Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// Which of the answer's calls.
    pub index: u32,
    /// In a call's first chunk only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub id: Option<String>,
    /// `function`, in a call's first chunk only.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = words::function)]
    pub kind: Option<&'static str>,
    /// What is new.
    pub function: FunctionDelta,
}

/// What a chunk adds to a function call.
#[derive(Serialize, ToSchema)]
pub struct FunctionDelta {
    /// In a call's first chunk only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub name: Option<String>,
    /// More of the arguments' text.
    pub arguments: String,
}
