//! Body of `POST /v1/responses`.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use super::generation::{Extensions, Labels, Sampling};
use super::tools::{Mode, Name};
use crate::http::openapi::{shapes, words};

/// Body of `POST /v1/responses`.
#[derive(ToSchema)]
pub struct ResponseRequest {
    /// Name of the model, or of an adapter.
    pub model: String,
    /// A user's text, or items.
    pub input: Input,
    /// A system message before the input.
    pub instructions: Option<String>,
    /// Default is the rest of the context.
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<i64>,
    /// What a response never has (results of built-in tools, reasoning) may be asked for, to no effect.
    pub include: Option<Vec<Include>>,
    /// Above 0 only with message.output_text.logprobs in `include`.
    #[schema(minimum = 0, maximum = 20, default = 0)]
    pub top_logprobs: Option<i64>,
    /// What the text must be.
    pub text: Option<TextConfig>,
    /// Functions that the model may call.
    #[schema(max_items = 128)]
    pub tools: Option<Vec<FlatTool>>,
    /// Whether and what it calls.
    pub tool_choice: Option<FlatToolChoice>,
    /// Whether it may call several at once.
    #[schema(default = true)]
    pub parallel_tool_calls: Option<bool>,
    /// Of built-in tools, of which there are none.
    #[schema(minimum = 1)]
    pub max_tool_calls: Option<i64>,
    /// Models here do not reason before they answer.
    pub reasoning: Option<Reasoning>,
    /// Server-sent events instead of one body.
    #[schema(default = false)]
    pub stream: Option<bool>,
    /// How events are sent.
    pub stream_options: Option<EventOptions>,
    /// Stop strings.
    #[schema(required = false, schema_with = shapes::stop)]
    pub stop: (),
    /// Variables.
    #[schema(required = false, schema_with = shapes::variables)]
    pub chat_template_kwargs: (),
    /// Temperature and so on.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// vLLM's.
    #[serde(flatten)]
    pub extensions: Extensions,
    /// Whose the request is.
    #[serde(flatten)]
    pub labels: Labels,
    /// What is not supported.
    #[serde(flatten)]
    pub nothing: NotOfResponses,
}

/// Fields of the API that are not supported, and the values with which they ask for nothing.
#[derive(ToSchema)]
pub struct NotOfResponses {
    /// Nothing is kept.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub store: (),
    /// Nothing is kept.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub background: (),
    /// Nothing is kept.
    #[schema(required = false, schema_with = words::null)]
    pub previous_response_id: (),
    /// Nothing is kept.
    #[schema(required = false, schema_with = words::null)]
    pub conversation: (),
    /// Nothing is kept.
    #[schema(required = false, schema_with = words::null)]
    pub prompt: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub context_management: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub moderation: (),
    /// Nothing of the input is left out.
    #[schema(required = false, schema_with = words::disabled_or_null)]
    pub truncation: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::tier_or_null)]
    pub service_tier: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::retention_or_null)]
    pub prompt_cache_retention: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub prompt_cache_options: (),
}

/// What may be asked for beside the text.
pub struct Include;

impl PartialSchema for Include {
    fn schema() -> RefOr<Schema> {
        words::include().into()
    }
}

impl ToSchema for Include {}

/// A user's text, or items; one at least.
#[derive(ToSchema)]
#[schema(as = ResponseInput)]
#[serde(untagged)]
pub enum Input {
    /// A user's text.
    Text(String),
    /// Items. Those of a response may be sent back as they are.
    Items(Vec<InputItem>),
}

/// A message, a call, or what a call gave.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum InputItem {
    /// A message.
    Message(InputMessage),
    /// A call.
    Call(InputCall),
    /// What a call gave.
    Output(InputCallOutput),
}

/// A message of the input.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputMessage {
    /// `message`, or nothing.
    #[serde(rename = "type")]
    #[schema(required = false, schema_with = words::message_or_null)]
    pub kind: (),
    /// Who speaks.
    #[schema(schema_with = words::input_role)]
    pub role: (),
    /// What is said.
    pub content: InputContent,
    /// A label.
    pub id: Option<String>,
    /// A label.
    #[schema(required = false, schema_with = words::item_status_or_null)]
    pub status: (),
    /// A label.
    #[schema(required = false, schema_with = words::phase_or_null)]
    pub phase: (),
}

/// A text, or texts.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum InputContent {
    /// A text.
    Text(String),
    /// Texts, joined by line breaks; one at least.
    Parts(Vec<InputPart>),
}

/// One of several texts.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputPart {
    /// What it is.
    #[serde(rename = "type")]
    #[schema(schema_with = words::input_text)]
    pub kind: (),
    /// The text.
    pub text: String,
    /// Of a text that was an answer; ignored.
    #[schema(value_type = Option<Vec<Value>>)]
    pub annotations: (),
    /// Of a text that was an answer; ignored.
    #[schema(value_type = Option<Vec<Value>>)]
    pub logprobs: (),
}

/// A call that was made.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputCall {
    /// `function_call`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::function_call)]
    pub kind: (),
    /// The id that its output names.
    #[schema(max_length = 256)]
    pub call_id: String,
    /// Of the function.
    pub name: Name,
    /// A JSON object as text.
    pub arguments: String,
    /// A label.
    pub id: Option<String>,
    /// A label.
    #[schema(required = false, schema_with = words::item_status_or_null)]
    pub status: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub namespace: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub caller: (),
}

/// What a call gave.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputCallOutput {
    /// `function_call_output`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::function_call_output)]
    pub kind: (),
    /// The call before it.
    #[schema(max_length = 256)]
    pub call_id: String,
    /// What it gave.
    pub output: InputContent,
    /// A label.
    pub name: Option<String>,
    /// A label.
    pub id: Option<String>,
    /// A label.
    #[schema(required = false, schema_with = words::item_status_or_null)]
    pub status: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub namespace: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub caller: (),
}

/// What the text must be.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// As `response_format` of chats, the schema and its name on this level.
    pub format: Option<TextFormat>,
    /// Not supported.
    #[schema(required = false, schema_with = words::verbosity_or_null)]
    pub verbosity: (),
}

/// What the text must be.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum TextFormat {
    /// Any text, or any JSON object.
    Plain(super::generation::PlainFormat),
    /// What a schema says.
    JsonSchema(FlatSchemaFormat),
}

/// What a schema says.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FlatSchemaFormat {
    /// `json_schema`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::json_schema)]
    pub kind: (),
    /// Of the schema.
    pub name: Name,
    /// A label.
    pub description: Option<String>,
    /// A JSON Schema of supported keywords.
    #[schema(value_type = Object)]
    pub schema: (),
    /// Answers match the schema in any case.
    pub strict: Option<bool>,
}

/// A function that the model may call.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FlatTool {
    /// `function`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::function)]
    pub kind: (),
    /// Its name.
    pub name: Name,
    /// For the model.
    pub description: Option<String>,
    /// JSON Schema of the arguments.
    #[schema(value_type = Option<Object>)]
    pub parameters: (),
    /// Arguments match the schema, which must have supported keywords alone.
    #[schema(default = false)]
    pub strict: Option<bool>,
    /// Not supported.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub defer_loading: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub output_schema: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub allowed_callers: (),
}

/// As for chats, with names on this level.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum FlatToolChoice {
    /// Any.
    Mode(Mode),
    /// One.
    Named(FlatNamedTool),
    /// Some.
    Allowed(FlatAllowedTools),
}

/// One function, which is called.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FlatNamedTool {
    /// `function`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::function)]
    pub kind: (),
    /// Its name.
    pub name: Name,
}

/// Functions of which the model may, or must, call some.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FlatAllowedTools {
    /// `allowed_tools`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::allowed_tools)]
    pub kind: (),
    /// May, or must.
    #[schema(schema_with = words::auto_or_required)]
    pub mode: (),
    /// The functions.
    #[schema(min_items = 1)]
    pub tools: Vec<FlatNamedTool>,
}

/// How the model reasons: it does not.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reasoning {
    /// Not supported.
    #[schema(required = false, schema_with = words::no_effort_or_null)]
    pub effort: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub summary: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub generate_summary: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub context: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::null)]
    pub mode: (),
}

/// How events are sent.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EventOptions {
    /// Not supported.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub include_obfuscation: (),
}
