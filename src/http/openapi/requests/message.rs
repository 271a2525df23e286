//! Conversations of chats.

use utoipa::ToSchema;

use super::tools::Name;
use crate::http::openapi::words;

/// One message of a conversation.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum Message {
    /// The user's, or the system's.
    Spoken(Spoken),
    /// An answer.
    Answer(PastAnswer),
    /// What a call gave.
    Result(ToolResult),
}

/// A message of the user's, or the system's.
#[derive(ToSchema)]
#[schema(as = SpokenMessage)]
#[serde(deny_unknown_fields)]
pub struct Spoken {
    /// Who speaks. A developer is a system to the model.
    #[schema(schema_with = words::speaker)]
    pub role: (),
    /// What is said.
    pub content: Content,
    /// Of the speaker.
    #[schema(max_length = 64)]
    pub name: Option<String>,
}

/// An answer, as it was given or shorter.
#[derive(ToSchema)]
#[schema(as = AnswerMessage)]
#[serde(deny_unknown_fields)]
pub struct PastAnswer {
    /// `assistant`.
    #[schema(schema_with = words::assistant)]
    pub role: (),
    /// Null only with calls.
    pub content: Option<Content>,
    /// Of the speaker.
    #[schema(max_length = 64)]
    pub name: Option<String>,
    /// Nothing.
    #[schema(max_items = 0, value_type = Option<Vec<Object>>)]
    pub refusal: (),
    /// Nothing.
    #[schema(max_items = 0, value_type = Option<Vec<Object>>)]
    pub audio: (),
    /// Nothing.
    #[schema(max_items = 0, value_type = Option<Vec<Object>>)]
    pub function_call: (),
    /// Calls that were made.
    pub tool_calls: Option<Vec<PastCall>>,
    /// Nothing.
    #[schema(max_items = 0, value_type = Option<Vec<Object>>)]
    pub annotations: (),
}

/// What a call gave.
#[derive(ToSchema)]
#[schema(as = ToolMessage)]
#[serde(deny_unknown_fields)]
pub struct ToolResult {
    /// `tool`.
    #[schema(schema_with = words::tool)]
    pub role: (),
    /// What it gave.
    pub content: Content,
    /// Of the tool.
    #[schema(max_length = 64)]
    pub name: Option<String>,
    /// The call of an assistant before it.
    #[schema(max_length = 256)]
    pub tool_call_id: String,
}

/// What is said.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum Content {
    /// A text.
    Text(String),
    /// Texts, joined by line breaks; one at least.
    Parts(Vec<TextPart>),
}

/// One of several texts.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextPart {
    /// `text`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::text)]
    pub kind: (),
    /// The text.
    pub text: String,
}

/// A call that an assistant has made.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PastCall {
    /// The id that its result names.
    #[schema(max_length = 256)]
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    #[schema(schema_with = words::function)]
    pub kind: (),
    /// Which, and how.
    pub function: PastFunction,
}

/// A function that was called.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PastFunction {
    /// Its name.
    pub name: Name,
    /// A JSON object as text.
    pub arguments: String,
}
