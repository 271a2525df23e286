//! The body of `POST /v1/chat/completions`, from wire to validated [`ChatRequest`]. Every field of
//! the API is honoured, accepted as a label, or refused by name.

use serde_json::{Map, Value};

use super::common::Common;
pub use super::common::Sampling;
use super::error::ApiError;
use super::fields::Fields;
use super::messages;
use super::state::ServedModel;
use super::target::Target;
use super::template;
use super::tools::Tools;
use crate::text::ChatMessage;

/// A request whose every field is of the right type and in range.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// Whom it is for.
    pub target: Target,
    /// The conversation; content is a string.
    pub messages: Vec<ChatMessage>,
    /// Bytes of all contents and names together.
    pub prompt_bytes: usize,
    /// Completion limit, at least 1; `None`: the rest of the context.
    pub max_tokens: Option<u32>,
    /// Log-probabilities, and of how many alternatives.
    pub logprobs: Option<u32>,
    /// Whether the prompt ends where the assistant begins to speak.
    pub add_generation_prompt: bool,
    /// Further variables of the chat template.
    pub template_kwargs: Map<String, Value>,
    /// Functions that may be called.
    pub tools: Option<Tools>,
    /// What all requests for text have.
    pub common: Common,
}

impl ChatRequest {
    /// Validates a body; the model's name before the other fields.
    ///
    /// # Errors
    /// 400 or 404 that names the field.
    pub fn parse(body: Value, model: &ServedModel) -> Result<Self, ApiError> {
        let mut f = Fields::new("", body)?;
        let target = Target::require(&mut f, model)?;
        let (messages, prompt_bytes) = messages::parse(f.require("messages")?)?;
        let max_tokens = max_tokens(&mut f)?;
        let logprobs = logprobs(&mut f)?;
        let add_generation_prompt = f.bool("add_generation_prompt")?.unwrap_or(true);
        let template_kwargs = template::kwargs(&mut f)?;
        let common = Common::parse(&mut f, model.vocab_size)?;
        let tools = Tools::parse(&mut f)?;
        if let (Some(structured), Some(_)) = (&common.structured, &tools) {
            let message = "it cannot be combined with 'tools', unless 'tool_choice' is 'none'";
            return Err(ApiError::value(structured.param, "invalid_value", message));
        }
        let constrained = tools.as_ref().filter(|tools| tools.is_constrained()).map(|_| "tools");
        common.check_ends(common.structured.as_ref().map(|s| s.param).or(constrained))?;
        unsupported(&mut f)?;
        f.finish()?;
        Ok(Self {
            target,
            messages,
            prompt_bytes,
            max_tokens,
            logprobs,
            add_generation_prompt,
            template_kwargs,
            tools,
            common,
        })
    }
}

fn max_tokens(f: &mut Fields) -> Result<Option<u32>, ApiError> {
    // More than u32::MAX tokens fit no context: the limit is told apart from the context later.
    let mut take = |name| f.integer(name, 1, i64::MAX).map(|v| v.map(|v| u32::try_from(v).unwrap_or(u32::MAX)));
    let (new, old) = (take("max_completion_tokens")?, take("max_tokens")?);
    match (new, old) {
        (Some(new), Some(old)) if new != old => {
            let message = "it differs from 'max_completion_tokens'; give one of the two";
            Err(ApiError::value("max_tokens", "invalid_value", message))
        }
        (new, old) => Ok(new.or(old)),
    }
}

fn logprobs(f: &mut Fields) -> Result<Option<u32>, ApiError> {
    let wanted = f.bool("logprobs")?.unwrap_or(false);
    let top = f.integer("top_logprobs", 0, 20)?.unwrap_or(0) as u32;
    match (wanted, top) {
        (true, top) => Ok(Some(top)),
        (false, 0) => Ok(None),
        (false, _) => {
            Err(ApiError::value("top_logprobs", "invalid_value", "it is only allowed when 'logprobs' is true"))
        }
    }
}

/// Whether a value of a field that is not implemented asks for nothing.
type Harmless = fn(&Value) -> bool;

/// The API's fields that are not implemented, and vLLM's, and the values with which they are no request.
const UNSUPPORTED: &[(&str, Harmless)] = &[
    ("functions", is_empty),
    ("function_call", |v| matches!(v.as_str(), Some("none" | "auto"))),
    ("reasoning_effort", |v| v.as_str() == Some("none")),
    ("verbosity", |v| v.as_str() == Some("medium")),
    ("modalities", |v| v.as_array().is_some_and(|m| m.len() == 1 && m[0] == "text")),
    ("audio", never),
    ("prediction", never),
    ("web_search_options", never),
    ("moderation", never),
    ("store", |v| v == false),
    ("service_tier", |v| matches!(v.as_str(), Some("auto" | "default"))),
    ("prompt_cache_retention", |v| matches!(v.as_str(), Some("in_memory" | "in-memory"))),
    ("prompt_cache_options", never),
    ("continue_final_message", |v| v == false),
    ("echo", |v| v == false),
    ("add_special_tokens", |v| v == false),
    ("documents", is_empty),
    ("chat_template", never),
];

fn never(_: &Value) -> bool {
    false
}

fn is_empty(v: &Value) -> bool {
    v.as_array().is_some_and(Vec::is_empty)
}

fn unsupported(f: &mut Fields) -> Result<(), ApiError> {
    for &(name, harmless) in UNSUPPORTED {
        if let Some(value) = f.take(name)
            && !harmless(&value)
        {
            return Err(ApiError::unsupported(name, "is not supported by this server with this value"));
        }
    }
    Ok(())
}
