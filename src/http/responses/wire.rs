//! The object `response`, its items, and the events of a stream.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::http::wire::{TokenLogprob, Usage};

/// The whole object. Fields that OpenAI has and this server does not are `null` or at their defaults.
#[derive(Serialize)]
pub struct Response {
    /// `resp_…`.
    pub id: String,
    /// `response`.
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds; `null` unless completed.
    pub completed_at: Option<u64>,
    /// `in_progress`, then `completed`, `incomplete` or `failed`.
    pub status: &'static str,
    /// Always false.
    pub background: bool,
    /// Of a response that failed.
    pub error: Option<Failure>,
    /// Of one that is incomplete.
    pub incomplete_details: Option<Incomplete>,
    /// As asked for.
    pub instructions: Option<String>,
    /// As asked for.
    pub max_output_tokens: Option<u32>,
    /// As asked for.
    pub max_tool_calls: Option<i64>,
    /// Model name as asked for.
    pub model: String,
    /// In order.
    pub output: Vec<Item>,
    /// As asked for.
    pub parallel_tool_calls: bool,
    /// Always `null`.
    pub previous_response_id: Option<String>,
    /// As asked for.
    pub prompt_cache_key: Option<String>,
    /// Always `null`.
    pub reasoning: Option<Value>,
    /// As asked for.
    pub safety_identifier: Option<String>,
    /// `default`.
    pub service_tier: &'static str,
    /// Always false: nothing is kept.
    pub store: bool,
    /// As it was sampled with.
    pub temperature: f32,
    /// The format, and the verbosity if asked for.
    pub text: Map<String, Value>,
    /// As asked for.
    pub tool_choice: Value,
    /// As asked for.
    pub tools: Vec<Value>,
    /// As asked for.
    pub top_logprobs: u32,
    /// As it was sampled with.
    pub top_p: f32,
    /// `disabled`.
    pub truncation: &'static str,
    /// At the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Tokens>,
    /// As asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// As asked for.
    pub metadata: Map<String, Value>,
}

/// Why a response failed.
#[derive(Serialize)]
pub struct Failure {
    /// `server_error`.
    pub code: &'static str,
    /// A sentence.
    pub message: String,
}

/// Why a response is incomplete.
#[derive(Serialize)]
pub struct Incomplete {
    /// `max_output_tokens`.
    pub reason: &'static str,
}

/// Token counts.
#[derive(Serialize)]
pub struct Tokens {
    input_tokens: usize,
    input_tokens_details: InputTokens,
    output_tokens: usize,
    output_tokens_details: OutputTokens,
    total_tokens: usize,
}

#[derive(Serialize)]
struct InputTokens {
    cached_tokens: usize,
    cache_write_tokens: usize,
}

#[derive(Serialize)]
struct OutputTokens {
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
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Item {
    /// A text.
    Message {
        /// `msg_…`.
        id: String,
        /// `in_progress`, then `completed` or `incomplete`.
        status: &'static str,
        /// `assistant`.
        role: &'static str,
        /// Empty when it is announced, then one part.
        content: Vec<Part>,
    },
    /// A call.
    FunctionCall {
        /// `fc_…`.
        id: String,
        /// As of a message.
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
#[derive(Serialize)]
pub struct Part {
    /// `output_text`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The text.
    pub text: String,
    /// Always empty.
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
#[derive(Default, Serialize)]
pub struct Event<'a> {
    /// `response.…`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// From 0, one more each time.
    pub sequence_number: u64,
    /// So far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<&'a Response>,
    /// Place of the item in the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_index: Option<usize>,
    /// So far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<&'a Item>,
    /// Of the item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_id: Option<&'a str>,
    /// Place of the part in the item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_index: Option<usize>,
    /// So far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<&'a Part>,
    /// More text, or more of the arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<&'a str>,
    /// The whole text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<&'a str>,
    /// Of the delta, or of the whole text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<&'a [TokenLogprob]>,
    /// Of the function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// All of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<&'a str>,
}
