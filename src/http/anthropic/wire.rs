//! The message, its blocks, the events of a stream, and errors.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::http::openapi::words;
use crate::http::wire::Usage;

/// The whole message.
#[derive(Serialize, ToSchema)]
#[schema(as = AnthropicMessage)]
pub struct Message {
    /// `msg_…`.
    pub id: String,
    /// `message`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::message)]
    pub kind: &'static str,
    /// `assistant`.
    #[schema(schema_with = words::assistant)]
    pub role: &'static str,
    /// Model name as asked for.
    pub model: String,
    /// In order.
    pub content: Vec<Block>,
    /// `null` until it has ended.
    #[schema(required, schema_with = words::stop_reason_or_null)]
    pub stop_reason: Option<&'static str>,
    /// Which of the stop sequences ended it.
    #[schema(required)]
    pub stop_sequence: Option<String>,
    /// Token counts.
    pub usage: Tokens,
}

/// One thing the model said.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = AnthropicBlock)]
pub enum Block {
    /// A text.
    Text {
        /// The text.
        text: String,
        /// Always `null`.
        #[schema(required, schema_with = words::null)]
        citations: Option<Value>,
    },
    /// A call.
    ToolUse {
        /// The id that its result names.
        id: String,
        /// Of the tool.
        name: String,
        /// Arguments; empty while they are to come, and if they were cut off.
        #[schema(value_type = Object)]
        input: Value,
    },
}

/// Token counts. What was found in the cache is not counted as input.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[schema(as = AnthropicUsage)]
pub struct Tokens {
    /// Without those that were cached.
    input_tokens: usize,
    /// Always 0.
    #[schema(maximum = 0)]
    cache_creation_input_tokens: usize,
    /// Found in the prefix cache.
    cache_read_input_tokens: usize,
    /// Of the answer.
    output_tokens: usize,
}

impl From<Usage> for Tokens {
    fn from(usage: Usage) -> Self {
        let cached = usage.prompt_tokens_details.cached_tokens;
        Self {
            input_tokens: usage.prompt_tokens - cached,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: cached,
            output_tokens: usage.completion_tokens,
        }
    }
}

/// An event of a stream.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = AnthropicEvent)]
pub enum Event {
    /// The first: the message without content.
    MessageStart {
        /// So far.
        message: Message,
    },
    /// Nothing new.
    Ping,
    /// A block begins.
    ContentBlockStart {
        /// Its place.
        index: usize,
        /// Without what is to come.
        content_block: Block,
    },
    /// A block goes on.
    ContentBlockDelta {
        /// Its place.
        index: usize,
        /// What is new.
        delta: Delta,
    },
    /// A block has ended.
    ContentBlockStop {
        /// Its place.
        index: usize,
    },
    /// Why the message ended, and what it took.
    MessageDelta {
        /// Why.
        delta: End,
        /// In all.
        usage: Tokens,
    },
    /// The last.
    MessageStop,
}

impl Event {
    /// Its name in the stream, which is its type.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::Ping => "ping",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
        }
    }
}

/// What an event adds to a block.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = AnthropicDelta)]
pub enum Delta {
    /// To a text.
    TextDelta {
        /// What is new.
        text: String,
    },
    /// To the arguments of a call.
    InputJsonDelta {
        /// More of the JSON text.
        partial_json: String,
    },
}

/// How a message ended.
#[derive(Serialize, ToSchema)]
#[schema(as = AnthropicEnd)]
pub struct End {
    /// Why.
    #[schema(required, schema_with = words::stop_reason_or_null)]
    pub stop_reason: Option<&'static str>,
    /// Which of the stop sequences, if one did.
    #[schema(required)]
    pub stop_sequence: Option<String>,
}

/// The answer of `/v1/messages/count_tokens`.
#[derive(Serialize, ToSchema)]
pub struct TokenCount {
    /// Of the prompt.
    pub input_tokens: usize,
}

/// Every error below `/v1/messages`; in a stream, an event of its own.
#[derive(Serialize, ToSchema)]
#[schema(as = AnthropicErrorResponse)]
pub struct ErrorBody<'a> {
    /// `error`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::error)]
    pub kind: &'static str,
    /// What is wrong.
    pub error: ErrorObject,
    /// As in the header `request-id`.
    pub request_id: &'a str,
}

/// What is wrong with the request, or went wrong.
#[derive(Serialize, ToSchema)]
#[schema(as = AnthropicErrorObject)]
pub struct ErrorObject {
    /// By the status.
    #[serde(rename = "type")]
    #[schema(schema_with = words::anthropic_error_type)]
    pub kind: &'static str,
    /// As of an ErrorResponse, with the path of the field.
    pub message: String,
}
