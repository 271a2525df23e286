//! Bodies of `/v1/messages` and what is below it.

use utoipa::ToSchema;

use super::generation::Extensions;
use super::tools::Name;
use crate::http::openapi::{shapes, words};

/// Body of `POST /v1/messages`.
#[derive(ToSchema)]
pub struct MessageRequest {
    /// More than the context has room for is cut to what it has.
    #[schema(minimum = 1)]
    pub max_tokens: i64,
    /// Strings before which the answer ends.
    #[schema(max_items = 4, min_length = 1, max_length = 4096)]
    pub stop_sequences: Option<Vec<String>>,
    /// Default is the model's, else 1.
    #[schema(minimum = 0, maximum = 1)]
    pub temperature: Option<f32>,
    /// Default is the model's, else 1.
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Default is the model's; 0 and -1 are off.
    #[schema(minimum = -1, maximum = 4294967295u64)]
    pub top_k: Option<i64>,
    /// Server-sent events instead of one body.
    #[schema(default = false)]
    pub stream: Option<bool>,
    /// Whose the request is.
    pub metadata: Option<Owner>,
    /// Not supported.
    #[schema(required = false, schema_with = words::anthropic_tier_or_null)]
    pub service_tier: (),
    /// Variables.
    #[schema(required = false, schema_with = shapes::variables)]
    pub chat_template_kwargs: (),
    /// What makes the prompt.
    #[serde(flatten)]
    pub conversation: CountTokensRequest,
    /// vLLM's.
    #[serde(flatten)]
    pub extensions: Extensions,
}

/// Body of `POST /v1/messages/count_tokens`: the fields of a MessageRequest that make the prompt.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CountTokensRequest {
    /// Name of the model, or of an adapter.
    pub model: String,
    /// The last is the user's.
    #[schema(min_items = 1)]
    pub messages: Vec<AnthropicTurn>,
    /// What is said before.
    pub system: Option<SystemText>,
    /// Functions that the model may call.
    #[schema(max_items = 128)]
    pub tools: Option<Vec<AnthropicTool>>,
    /// Whether and what it calls.
    pub tool_choice: Option<AnthropicToolChoice>,
    /// What the text must be.
    pub output_config: Option<OutputConfig>,
    /// Changes nothing: all of a prompt is cached.
    pub cache_control: Option<CacheControl>,
    /// Models here do not reason before they answer.
    pub thinking: Option<Thinking>,
    /// Not supported.
    #[schema(required = false, schema_with = words::speed_or_null)]
    pub speed: (),
    /// Not supported.
    #[schema(max_items = 0, value_type = Option<Vec<Object>>)]
    pub mcp_servers: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub container: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub context_management: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub diagnostics: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub inference_geo: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub user_profile_id: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub workspace_id: (),
}

/// Whose the request is.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// A label.
    #[schema(max_length = 512)]
    pub user_id: Option<String>,
}

/// What is said before the conversation: a text, or text blocks.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum SystemText {
    /// A text.
    Text(String),
    /// Text blocks.
    Blocks(Vec<TextBlock>),
}

/// One turn of a conversation.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnthropicTurn {
    /// Who speaks.
    #[schema(schema_with = words::turn_role)]
    pub role: (),
    /// What is said.
    pub content: TurnContent,
}

/// A text, or blocks; one at least.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum TurnContent {
    /// A text.
    Text(String),
    /// Blocks: texts, an assistant's calls, a user's results of them.
    Blocks(Vec<InputBlock>),
}

/// A text, a call or what a call gave.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum InputBlock {
    /// A text.
    Text(TextBlock),
    /// A call, of an assistant.
    ToolUse(ToolUseBlock),
    /// What a call gave, of a user.
    ToolResult(ToolResultBlock),
}

/// A text.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextBlock {
    /// `text`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::text)]
    pub kind: (),
    /// The text.
    pub text: String,
    /// Changes nothing: all of a prompt is cached.
    pub cache_control: Option<CacheControl>,
    /// Not supported.
    #[schema(max_items = 0, value_type = Option<Vec<Object>>)]
    pub citations: (),
}

/// A call that was made.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolUseBlock {
    /// `tool_use`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::tool_use)]
    pub kind: (),
    /// The id that its result names.
    #[schema(max_length = 256)]
    pub id: String,
    /// Of the tool.
    pub name: Name,
    /// Arguments.
    #[schema(value_type = Object)]
    pub input: (),
    /// Changes nothing: all of a prompt is cached.
    pub cache_control: Option<CacheControl>,
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub caller: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub toolset_name: (),
}

/// What a call gave.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolResultBlock {
    /// `tool_result`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::tool_result)]
    pub kind: (),
    /// The call before it.
    #[schema(max_length = 256)]
    pub tool_use_id: String,
    /// A text, or text blocks.
    pub content: Option<SystemText>,
    /// Whether it failed.
    #[schema(default = false)]
    pub is_error: Option<bool>,
    /// Changes nothing: all of a prompt is cached.
    pub cache_control: Option<CacheControl>,
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub toolset_name: (),
}

/// What is to be cached: all of a prompt is.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheControl {
    /// `ephemeral`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::ephemeral)]
    pub kind: (),
    /// Ignored.
    #[schema(required = false, schema_with = words::ttl_or_null)]
    pub ttl: (),
}

/// A tool of the client's own.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnthropicTool {
    /// `custom`, or nothing.
    #[serde(rename = "type")]
    #[schema(required = false, schema_with = words::custom_or_null)]
    pub kind: (),
    /// Its name.
    pub name: Name,
    /// For the model.
    pub description: Option<String>,
    /// JSON Schema of the arguments; null for any.
    #[schema(required, value_type = Option<Object>)]
    pub input_schema: (),
    /// Arguments match the schema, which must have supported keywords alone.
    #[schema(default = false)]
    pub strict: Option<bool>,
    /// Changes nothing: all of a prompt is cached.
    pub cache_control: Option<CacheControl>,
    /// Input comes as it is generated in any case.
    pub eager_input_streaming: Option<bool>,
    /// Not supported.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub defer_loading: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub input_examples: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub allowed_callers: (),
}

/// Whether and what the model calls.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum AnthropicToolChoice {
    /// As it likes, or something, or nothing.
    Any(AnyTool),
    /// One.
    Named(OneTool),
}

/// As the model likes, or something, or nothing.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnyTool {
    /// Which.
    #[serde(rename = "type")]
    #[schema(schema_with = words::any_tool)]
    pub kind: (),
    /// Whether it calls one at most.
    #[schema(default = false)]
    pub disable_parallel_tool_use: Option<bool>,
}

/// One tool, which is called.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OneTool {
    /// `tool`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::tool)]
    pub kind: (),
    /// Which.
    pub name: Name,
    /// Whether it calls one at most.
    #[schema(default = false)]
    pub disable_parallel_tool_use: Option<bool>,
}

/// What the text must be.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputConfig {
    /// The format.
    pub format: Option<OutputFormat>,
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub effort: (),
}

/// What a schema says.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputFormat {
    /// `json_schema`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::json_schema)]
    pub kind: (),
    /// A JSON Schema of supported keywords.
    #[schema(value_type = Object)]
    pub schema: (),
}

/// How the model reasons: it does not.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Thinking {
    /// `disabled`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::disabled)]
    pub kind: (),
}
