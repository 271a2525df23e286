//! From a body's bytes to sequences for the engine. Runs off the async threads: rendering and
//! tokenising a long prompt takes a while.

use std::sync::Arc;

use rand::TryRngCore;
use rand::rngs::OsRng;
use serde_json::{Map, Value};

use super::error::{ApiError, quote};
use super::fields;
use super::generation::Submission;
use super::request::ChatRequest;
use super::state::ServedModel;
use super::tools::{CallParser, Told, Tools, tell};
use super::vocabulary::Vocabulary;
use crate::engine::{SamplingParams, Task, TokenId};
use crate::text::{ChatMessage, PromptError, TemplateError};

/// A chat that fits, ready to be submitted.
pub struct Prepared {
    /// What was asked.
    pub chat: ChatRequest,
    /// Its choices.
    pub submission: Submission,
    /// What reads the calls of one of them, where functions may be called.
    pub calls: Option<CallParser>,
}

/// Parses, validates, renders and tokenises.
pub fn prepare(model: &ServedModel, body: &[u8]) -> Result<Prepared, ApiError> {
    prepare_value(model, fields::parse(body)?)
}

/// The same of a body that is JSON already.
pub fn prepare_value(model: &ServedModel, body: Value) -> Result<Prepared, ApiError> {
    let mut chat = ChatRequest::parse(body, model)?;
    let tool_bytes = chat.tools.as_ref().map_or(0, Tools::bytes);
    check_bytes(model, chat.prompt_bytes + tool_bytes, "messages")?;
    let messages = std::mem::take(&mut chat.messages);
    let Told { messages, mut variables, constraint, calls } = tell(model, messages, chat.tools.as_ref())?;
    variables.extend(std::mem::take(&mut chat.template_kwargs));
    let prompt: Arc<[TokenId]> = render(model, &messages, chat.add_generation_prompt, &variables)?.into();
    let max_tokens = completion_limit(model.max_len(), prompt.len(), chat.max_tokens, "messages")?;
    let common = &chat.common;
    common.check_min_tokens(max_tokens)?;
    let constraint = match &common.structured {
        Some(structured) => Some(structured.compile(model)?),
        None => constraint,
    };
    let params = common.params(model, max_tokens, chat.logprobs, random());
    let sequence = |choice| {
        // The prompt is the same for all choices: one of them has it scored.
        let prompt_logprobs = common.prompt_logprobs.filter(|_| choice == 0);
        let params = Arc::new(SamplingParams { choice, ..params.clone() });
        let task = Task::Generate { prompt_logprobs };
        common.placed(chat.target.sequence(&prompt, task, params, constraint.clone()))
    };
    let submission = Submission {
        sequences: (0..common.n).map(sequence).collect(),
        per_prompt: common.n as usize,
        stop: common.stop.clone(),
        wants_logprobs: chat.logprobs.is_some(),
        continues: false,
        vocabulary: Vocabulary {
            tokenizer: Arc::clone(&model.tokenizer),
            // Tags of calls may be special tokens.
            skip_special: common.skip_special_tokens && !calls.as_ref().is_some_and(|c| c.has_special_tags(model)),
            as_ids: common.return_tokens_as_token_ids,
        },
    };
    Ok(Prepared { chat, submission, calls })
}

/// Refuses text that cannot fit before it is tokenised. `param` is the field that holds it.
pub fn check_bytes(model: &ServedModel, bytes: usize, param: &'static str) -> Result<(), ApiError> {
    if bytes <= model.max_prompt_bytes {
        return Ok(());
    }
    let message = format!(
        "This model's maximum context length is {} tokens. However, your {param} has {bytes} bytes, which is more \
         than that in any case. Please reduce the length of the {param}.",
        model.max_len()
    );
    Err(ApiError::ContextLength { param: param.into(), message })
}

/// Token ids of a conversation.
pub fn render(
    model: &ServedModel,
    messages: &[ChatMessage],
    add_generation_prompt: bool,
    extra: &Map<String, Value>,
) -> Result<Vec<TokenId>, ApiError> {
    model.renderer.chat(messages, add_generation_prompt, extra).map_err(|e| match e {
        PromptError::NoTemplate => {
            ApiError::unsupported("messages", "is not supported: the model has no chat template")
        }
        PromptError::Template(TemplateError::Broken(_)) => {
            tracing::error!("{e}");
            ApiError::Internal
        }
        // All others are caused by the conversation.
        PromptError::Template(_) | PromptError::Tokenizer(_) | PromptError::Turns(_) => {
            let message = quote(&e.to_string());
            ApiError::value("messages", "invalid_value", message.trim_end_matches('.'))
        }
    })
}

/// The completion limit asked for, if it fits, or the rest of the context. `param` is the field that holds the
/// prompt.
pub fn completion_limit(limit: usize, prompt: usize, asked: Option<u32>, param: &'static str) -> Result<u32, ApiError> {
    let room = limit.saturating_sub(prompt);
    let told = format!("This model's maximum context length is {limit} tokens.");
    let message = match asked {
        Some(0) if prompt <= limit => return Ok(0),
        _ if room == 0 => format!(
            "{told} However, your {param} resulted in {prompt} tokens. Please reduce the length of the {param}."
        ),
        Some(asked) if asked as usize > room => format!(
            "{told} However, you requested {} tokens ({prompt} in the {param}, {asked} in the completion). Please \
             reduce the length of the {param} or completion.",
            prompt + asked as usize
        ),
        Some(asked) => return Ok(asked),
        None => return Ok(u32::try_from(room).unwrap_or(u32::MAX)),
    };
    Err(ApiError::ContextLength { param: param.into(), message })
}

/// An id: what it begins with, and 128 random bits.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random(), random())
}

/// A random number from the system.
pub fn random() -> u64 {
    OsRng.try_next_u64().expect("the system has a random generator")
}
