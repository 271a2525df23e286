//! Tools of chats.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::http::openapi::words;

/// Name of a function or a schema.
pub struct Name;

impl PartialSchema for Name {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[a-zA-Z0-9_-]{1,64}$")).build().into()
    }
}

impl ToSchema for Name {}

/// A function that the model may call.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// `function`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::function)]
    pub kind: (),
    /// The function.
    pub function: Function,
}

/// A function.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Function {
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
}

/// Whether and what the model calls. Other than `none` and `auto` only with tools; `auto` is the default with tools.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum ToolChoice {
    /// Any.
    Mode(Mode),
    /// One.
    Named(NamedTool),
    /// Some.
    Allowed(AllowedChoice),
}

/// Whether the model calls.
pub struct Mode;

impl PartialSchema for Mode {
    fn schema() -> RefOr<Schema> {
        words::mode().into()
    }
}

impl ToSchema for Mode {}

/// One function, which is called.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedTool {
    /// `function`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::function)]
    pub kind: (),
    /// Which.
    pub function: FunctionName,
}

/// A function by its name.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionName {
    /// Its name.
    pub name: Name,
}

/// Functions of which the model may, or must, call some.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AllowedChoice {
    /// `allowed_tools`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::allowed_tools)]
    pub kind: (),
    /// Which.
    pub allowed_tools: AllowedTools,
}

/// Some of the tools.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AllowedTools {
    /// May, or must.
    #[schema(schema_with = words::auto_or_required)]
    pub mode: (),
    /// The functions.
    #[schema(min_items = 1)]
    pub tools: Vec<NamedTool>,
}
