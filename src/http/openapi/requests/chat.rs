//! Bodies that are made of a conversation.

use utoipa::ToSchema;

use super::generation::{Answers, Extensions, Labels, Sampling};
use super::message::Message;
use super::tools::{Tool, ToolChoice};
use crate::http::openapi::{shapes, words};

/// Body of `POST /v1/chat/completions`.
#[derive(ToSchema)]
pub struct ChatCompletionRequest {
    /// Name of the model, or of an adapter.
    pub model: String,
    /// The conversation.
    #[schema(min_items = 1)]
    pub messages: Vec<Message>,
    /// Default is the rest of the context.
    #[schema(minimum = 1)]
    pub max_completion_tokens: Option<i64>,
    /// The same as `max_completion_tokens`; an error if both are given and differ.
    #[schema(minimum = 1, deprecated)]
    pub max_tokens: Option<i64>,
    /// Whether log-probabilities of the answer's tokens are told.
    #[schema(default = false)]
    pub logprobs: Option<bool>,
    /// And those of so many alternatives; above 0 only with `logprobs: true`.
    #[schema(minimum = 0, maximum = 20, default = 0)]
    pub top_logprobs: Option<i64>,
    /// The prompt ends where the assistant begins to speak.
    #[schema(default = true)]
    pub add_generation_prompt: Option<bool>,
    /// Variables.
    #[schema(required = false, schema_with = shapes::variables)]
    pub chat_template_kwargs: (),
    /// Functions that the model may call.
    #[schema(max_items = 128)]
    pub tools: Option<Vec<Tool>>,
    /// Whether and what it calls.
    pub tool_choice: Option<ToolChoice>,
    /// Whether it may call several at once.
    #[schema(default = true)]
    pub parallel_tool_calls: Option<bool>,
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
    /// What is not supported.
    #[serde(flatten)]
    pub nothing: NotOfChats,
}

/// Fields of the API that are not supported, and the values with which they ask for nothing.
#[derive(ToSchema)]
pub struct NotOfChats {
    /// Not supported.
    #[schema(max_items = 0, value_type = Option<Vec<Object>>)]
    pub functions: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::function_call_or_null)]
    pub function_call: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::no_effort_or_null)]
    pub reasoning_effort: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::verbosity_or_null)]
    pub verbosity: (),
    /// Not supported.
    #[schema(required = false, schema_with = shapes::modalities)]
    pub modalities: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub audio: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub prediction: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub web_search_options: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub moderation: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub store: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::tier_or_null)]
    pub service_tier: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::retention_or_null)]
    pub prompt_cache_retention: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub prompt_cache_options: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub continue_final_message: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub echo: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub add_special_tokens: (),
    /// Not supported.
    #[schema(max_items = 0, value_type = Option<Vec<Object>>)]
    pub documents: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub chat_template: (),
}

/// Body of `POST /tokenize`: either a prompt or messages.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizeRequest {
    /// Default is the first name.
    pub model: Option<String>,
    /// Raw, as for completions.
    pub prompt: Option<String>,
    /// A conversation.
    #[schema(min_items = 1)]
    pub messages: Option<Vec<Message>>,
    /// Default is true for a prompt; must not be true for messages.
    pub add_special_tokens: Option<bool>,
    /// Of messages.
    #[schema(default = true)]
    pub add_generation_prompt: Option<bool>,
    /// Not supported.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub continue_final_message: (),
    /// Of messages.
    #[schema(required = false, schema_with = shapes::variables)]
    pub chat_template_kwargs: (),
    /// Whether the tokens' spellings are told too.
    #[schema(default = false)]
    pub return_token_strs: Option<bool>,
}
