//! The object `response`, its items, and the events of a stream.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::http::openapi::words;
use crate::http::wire::{TokenLogprob, Usage};

/// The whole object. Fields that OpenAI has and this server does not are `null` or at their defaults.
#[derive(Serialize, ToSchema)]
pub struct Response {
    /// `resp_…`.
    pub id: String,
    /// `response`.
    #[schema(schema_with = words::response)]
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds; `null` unless completed.
    #[schema(required)]
    pub completed_at: Option<u64>,
    /// `in_progress`, then `completed`, `incomplete` or `failed`.
    #[schema(schema_with = words::response_status)]
    pub status: &'static str,
    /// Always false.
    #[schema(schema_with = words::never)]
    pub background: bool,
    /// Of a response that failed.
    #[schema(required)]
    pub error: Option<Failure>,
    /// Of one that is incomplete.
    #[schema(required)]
    pub incomplete_details: Option<Incomplete>,
    /// As asked for.
    #[schema(required)]
    pub instructions: Option<String>,
    /// As asked for.
    #[schema(required)]
    pub max_output_tokens: Option<u32>,
    /// As asked for.
    #[schema(required)]
    pub max_tool_calls: Option<i64>,
    /// Model name as asked for.
    pub model: String,
    /// In order.
    pub output: Vec<Item>,
    /// As asked for.
    pub parallel_tool_calls: bool,
    /// Always `null`.
    #[schema(required, schema_with = words::null)]
    pub previous_response_id: Option<String>,
    /// As asked for.
    #[schema(required)]
    pub prompt_cache_key: Option<String>,
    /// Always `null`.
    #[schema(required, schema_with = words::null)]
    pub reasoning: Option<Value>,
    /// As asked for.
    #[schema(required)]
    pub safety_identifier: Option<String>,
    /// `default`.
    #[schema(schema_with = words::default_tier)]
    pub service_tier: &'static str,
    /// Always false: nothing is kept.
    #[schema(schema_with = words::never)]
    pub store: bool,
    /// As it was sampled with.
    pub temperature: f32,
    /// The format, and the verbosity if asked for.
    #[schema(value_type = Object)]
    pub text: Map<String, Value>,
    /// As asked for.
    pub tool_choice: Value,
    /// As asked for.
    #[schema(value_type = Vec<Object>)]
    pub tools: Vec<Value>,
    /// As asked for.
    pub top_logprobs: u32,
    /// As it was sampled with.
    pub top_p: f32,
    /// `disabled`.
    #[schema(schema_with = words::disabled)]
    pub truncation: &'static str,
    /// At the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub usage: Option<Tokens>,
    /// As asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub user: Option<String>,
    /// As asked for.
    #[schema(value_type = HashMap<String, String>)]
    pub metadata: Map<String, Value>,
}

/// Why a response failed.
#[derive(Serialize, ToSchema)]
#[schema(as = ResponseFailure)]
pub struct Failure {
    /// `server_error`.
    #[schema(schema_with = words::failure)]
    pub code: &'static str,
    /// A sentence.
    pub message: String,
}

/// Why a response is incomplete.
#[derive(Serialize, ToSchema)]
#[schema(as = ResponseIncomplete)]
pub struct Incomplete {
    /// `max_output_tokens`.
    #[schema(schema_with = words::incomplete)]
    pub reason: &'static str,
}

/// Token counts.
#[derive(Serialize, ToSchema)]
#[schema(as = ResponseUsage)]
pub struct Tokens {
    /// Of the prompt.
    input_tokens: usize,
    /// Of these.
    input_tokens_details: InputTokens,
    /// Of the answer.
    output_tokens: usize,
    /// Of these.
    output_tokens_details: OutputTokens,
    /// The sum.
    total_tokens: usize,
}

/// What the prompt was made of.
#[derive(Serialize, ToSchema)]
struct InputTokens {
    /// Found in the prefix cache.
    cached_tokens: usize,
    /// Always 0.
    #[schema(maximum = 0)]
    cache_write_tokens: usize,
}

/// What the answer was made of.
#[derive(Serialize, ToSchema)]
struct OutputTokens {
    /// Always 0.
    #[schema(maximum = 0)]
    reasoning_tokens: usize,
}

impl From<Usage> for Tokens {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokens {
                cached_tokens: usage.prompt_tokens_details.cached_tokens,
                cache_write_tokens: 0,
            },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokens { reasoning_tokens: 0 },
            total_tokens: usage.total_tokens,
        }
    }
}

/// One thing the model said.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = OutputItem)]
pub enum Item {
    /// A text.
    Message {
        /// `msg_…`.
        id: String,
        /// `in_progress`, then `completed` or `incomplete`.
        #[schema(schema_with = words::item_status)]
        status: &'static str,
        /// `assistant`.
        #[schema(schema_with = words::assistant)]
        role: &'static str,
        /// Empty when it is announced, then one part.
        #[schema(max_items = 1)]
        content: Vec<Part>,
    },
    /// A call.
    FunctionCall {
        /// `fc_…`.
        id: String,
        /// As of a message.
        #[schema(schema_with = words::item_status)]
        status: &'static str,
        /// The id that its output names.
        call_id: String,
        /// Of the function.
        name: String,
        /// JSON text.
        arguments: String,
    },
}

/// The text of a message.
#[derive(Serialize, ToSchema)]
#[schema(as = OutputText)]
pub struct Part {
    /// `output_text`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::output_text)]
    pub kind: &'static str,
    /// The text.
    pub text: String,
    /// Always empty.
    #[schema(max_items = 0, value_type = Vec<Object>)]
    pub annotations: [(); 0],
    /// Empty unless asked for.
    pub logprobs: Vec<TokenLogprob>,
}

impl Part {
    /// Nothing yet.
    pub fn empty() -> Self {
        Self { kind: "output_text", text: String::new(), annotations: [], logprobs: Vec::new() }
    }
}

/// An event; each kind has some of the fields.
#[derive(Default, Serialize, ToSchema)]
#[schema(as = ResponseEvent)]
pub struct Event<'a> {
    /// `response.…`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::response_event)]
    pub kind: &'static str,
    /// From 0, one more each time.
    pub sequence_number: u64,
    /// So far.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub response: Option<&'a Response>,
    /// Place of the item in the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub output_index: Option<usize>,
    /// So far.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub item: Option<&'a Item>,
    /// Of the item.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub item_id: Option<&'a str>,
    /// Place of the part in the item.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub content_index: Option<usize>,
    /// So far.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub part: Option<&'a Part>,
    /// More text, or more of the arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub delta: Option<&'a str>,
    /// The whole text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub text: Option<&'a str>,
    /// Of the delta, or of the whole text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub logprobs: Option<&'a [TokenLogprob]>,
    /// Of the function.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub name: Option<&'a str>,
    /// All of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub arguments: Option<&'a str>,
}
