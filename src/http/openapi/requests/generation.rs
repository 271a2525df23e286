//! What requests for text have in common.

use utoipa::ToSchema;

use super::tools::Name;
use crate::http::openapi::{shapes, words};

/// How tokens are drawn.
#[derive(ToSchema)]
pub struct Sampling {
    /// Default is the model's, else 1.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f32>,
    /// Default is the model's, else 1.
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Default is the model's; 0 and -1 are off.
    #[schema(minimum = -1, maximum = 4294967295u64)]
    pub top_k: Option<i64>,
}

/// Extensions of vLLM's that mean the same everywhere, and what is older than they are.
#[derive(ToSchema)]
pub struct Extensions {
    /// Default is the model's, else 0.
    #[schema(minimum = 0, maximum = 1)]
    pub min_p: Option<f32>,
    /// Default is the model's, else 1.
    #[schema(minimum = 0.01, maximum = 100)]
    pub repetition_penalty: Option<f32>,
    /// Of tokens that the answer has.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    pub presence_penalty: Option<f32>,
    /// Of tokens, as often as the answer has them.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    pub frequency_penalty: Option<f32>,
    /// Random for each request if absent and the server has none.
    pub seed: Option<i64>,
    /// Not more than the completion limit.
    #[schema(minimum = 0, maximum = 4294967295u64, default = 0)]
    pub min_tokens: Option<i64>,
    /// Whether tokens that end an answer are ordinary.
    #[schema(default = false)]
    pub ignore_eos: Option<bool>,
    /// Further tokens that end the answer, below the size of the vocabulary.
    #[schema(max_items = 128)]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Biases.
    #[schema(required = false, schema_with = shapes::logit_bias)]
    pub logit_bias: (),
    /// Leave special tokens out of the text.
    #[schema(default = true)]
    pub skip_special_tokens: Option<bool>,
    /// Cached prompts are shared with requests that have the same salt, or have none either.
    #[schema(min_length = 1, max_length = 512)]
    pub cache_salt: Option<String>,
    /// Lower runs first.
    #[schema(minimum = 0, maximum = 1000, default = 0)]
    pub priority: Option<i64>,
    /// What the text must be.
    pub structured_outputs: Option<StructuredOutputs>,
}

/// Labels: they change nothing, and are told to the request's span.
#[derive(ToSchema)]
pub struct Labels {
    /// A label.
    #[schema(max_length = 512)]
    pub user: Option<String>,
    /// A label.
    #[schema(max_length = 64)]
    pub safety_identifier: Option<String>,
    /// A label.
    #[schema(max_length = 512)]
    pub prompt_cache_key: Option<String>,
    /// Labels.
    #[schema(required = false, schema_with = shapes::metadata)]
    pub metadata: (),
}

/// How many answers, and how they are told.
#[derive(ToSchema)]
pub struct Answers {
    /// Answers, for each prompt.
    #[schema(minimum = 1, maximum = 128, default = 1)]
    pub n: Option<i64>,
    /// Server-sent events instead of one body.
    #[schema(default = false)]
    pub stream: Option<bool>,
    /// Only with `stream: true`.
    pub stream_options: Option<StreamOptions>,
    /// Stop strings.
    #[schema(required = false, schema_with = shapes::stop)]
    pub stop: (),
    /// Log-probabilities of the prompt's tokens, with so many alternatives. Not with `stream: true`.
    #[schema(minimum = 0, maximum = 20)]
    pub prompt_logprobs: Option<i64>,
    /// Log-probabilities name tokens `token_id:ID`.
    #[schema(default = false)]
    pub return_tokens_as_token_ids: Option<bool>,
    /// What the text must be. Not with `ignore_eos`, nor with tools that may be called.
    pub response_format: Option<ResponseFormat>,
}

/// What a stream tells beside the text.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// Token counts in a last chunk.
    #[schema(default = false)]
    pub include_usage: Option<bool>,
    /// Not supported.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub include_obfuscation: (),
}

/// What the text must be, as OpenAI has it.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum ResponseFormat {
    /// Any text, or any JSON object.
    Plain(PlainFormat),
    /// What a schema says.
    JsonSchema(SchemaFormat),
}

/// Any text, or any JSON object.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlainFormat {
    /// Which.
    #[serde(rename = "type")]
    #[schema(schema_with = words::text_or_json)]
    pub kind: (),
}

/// What a schema says.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SchemaFormat {
    /// `json_schema`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::json_schema)]
    pub kind: (),
    /// The schema and its name.
    pub json_schema: NamedSchema,
}

/// A schema and its name.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedSchema {
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

/// What the text must be, as vLLM has it; one property at most. Not with `ignore_eos`, nor with tools that may be
/// called, nor with `response_format`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StructuredOutputs {
    /// A schema.
    #[schema(required = false, schema_with = shapes::schema_or_text)]
    pub json: (),
    /// Any object.
    pub json_object: Option<bool>,
    /// A regular expression.
    #[schema(max_length = 16384)]
    pub regex: Option<String>,
    /// One of these.
    #[schema(min_items = 1, max_items = 1024, min_length = 1)]
    pub choice: Option<Vec<String>>,
    /// Lark.
    #[schema(max_length = 65536)]
    pub grammar: Option<String>,
    /// Not supported.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub structural_tag: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub whitespace_pattern: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub disable_any_whitespace: (),
    /// Not supported.
    #[schema(required = false, schema_with = words::never_or_null)]
    pub disable_additional_properties: (),
}
