//! From a body's bytes to sequences for the engine. Runs off the async threads: rendering and
//! tokenising a long prompt takes a while.

use std::sync::Arc;

use rand::TryRngCore;
use rand::rngs::OsRng;
use serde_json::Map;

use super::error::{ApiError, quote};
use super::fields;
use super::request::{ChatRequest, Sampling};
use super::state::ServedModel;
use crate::engine::{Request, SamplingParams, TokenId};
use crate::text::{PromptError, TemplateError};

/// A request that fits, ready to be submitted.
pub struct Prepared {
    /// What was asked.
    pub chat: ChatRequest,
    /// Prompt tokens.
    pub prompt: Arc<[TokenId]>,
    /// Completion limit, tokens.
    pub max_tokens: u32,
    /// One for each choice, in index order.
    pub sequences: Vec<Request>,
}

/// Parses, validates, renders and tokenises.
pub fn prepare(model: &ServedModel, body: &[u8]) -> Result<Prepared, ApiError> {
    let value = fields::parse(body)?;
    let chat = ChatRequest::parse(value, |name| model.resolve(name).is_ok(), model.vocab_size)?;
    let adapter = model.resolve(&chat.model)?;
    let limit = model.max_len();
    if chat.prompt_bytes > model.max_prompt_bytes {
        return Err(ApiError::ContextLength(format!(
            "This model's maximum context length is {limit} tokens. However, your messages have {} bytes, which is \
             more than that in any case. Please reduce the length of the messages.",
            chat.prompt_bytes
        )));
    }
    let prompt: Arc<[TokenId]> = render(model, &chat)?.into();
    let max_tokens = completion_limit(limit, prompt.len(), chat.max_tokens)?;
    if chat.min_tokens > max_tokens {
        return Err(ApiError::value(
            "min_tokens",
            "invalid_value",
            "it is greater than what the context leaves room for",
        ));
    }
    let params = params(model, &chat, max_tokens);
    let sequences = (0..chat.n)
        .map(|choice| Request {
            prompt: Arc::clone(&prompt),
            params: Arc::new(SamplingParams { choice, ..params.clone() }),
            priority: 0,
            cache_salt: None,
            adapter: adapter.clone(),
        })
        .collect();
    Ok(Prepared { chat, prompt, max_tokens, sequences })
}

fn render(model: &ServedModel, chat: &ChatRequest) -> Result<Vec<TokenId>, ApiError> {
    model.renderer.chat(&chat.messages, true, &Map::new()).map_err(|e| match e {
        PromptError::NoTemplate => {
            ApiError::unsupported("messages", "is not supported: the model has no chat template")
        }
        PromptError::Template(TemplateError::Broken(_)) => {
            tracing::error!("{e}");
            ApiError::Internal
        }
        // All others are caused by the conversation.
        PromptError::Template(_) | PromptError::Tokenizer(_) => {
            let message = quote(&e.to_string());
            ApiError::value("messages", "invalid_value", message.trim_end_matches('.'))
        }
    })
}

/// The completion limit asked for, if it fits, or the rest of the context.
fn completion_limit(limit: usize, prompt: usize, asked: Option<u32>) -> Result<u32, ApiError> {
    let room = limit.saturating_sub(prompt);
    let told = format!("This model's maximum context length is {limit} tokens.");
    if room == 0 {
        return Err(ApiError::ContextLength(format!(
            "{told} However, your messages resulted in {prompt} tokens. Please reduce the length of the messages."
        )));
    }
    match asked {
        Some(asked) if asked as usize > room => Err(ApiError::ContextLength(format!(
            "{told} However, you requested {} tokens ({prompt} in the messages, {asked} in the completion). Please \
             reduce the length of the messages or completion.",
            prompt + asked as usize
        ))),
        Some(asked) => Ok(asked),
        None => Ok(u32::try_from(room).unwrap_or(u32::MAX)),
    }
}

fn params(model: &ServedModel, chat: &ChatRequest, max_tokens: u32) -> SamplingParams {
    let (asked, default) = (&chat.sampling, &model.defaults);
    fn pick<T: Copy>(asked: &Sampling, default: &Sampling, field: fn(&Sampling) -> Option<T>, off: T) -> T {
        field(asked).or(field(default)).unwrap_or(off)
    }
    let temperature = pick(asked, default, |s| s.temperature, 1.0);
    let mut stop_token_ids = if chat.ignore_eos { Vec::new() } else { model.eos.clone() };
    for &id in &chat.stop_token_ids {
        if !stop_token_ids.contains(&id) {
            stop_token_ids.push(id);
        }
    }
    SamplingParams {
        // Below this, dividing by it would overflow: it is greedy in all but name.
        temperature: if temperature < 1e-5 { 0.0 } else { temperature },
        top_p: pick(asked, default, |s| s.top_p, 1.0),
        top_k: pick(asked, default, |s| s.top_k, 0),
        min_p: pick(asked, default, |s| s.min_p, 0.0),
        repetition_penalty: pick(asked, default, |s| s.repetition_penalty, 1.0),
        presence_penalty: pick(asked, default, |s| s.presence_penalty, 0.0),
        frequency_penalty: pick(asked, default, |s| s.frequency_penalty, 0.0),
        logit_bias: chat.logit_bias.clone(),
        seed: chat.seed.or(model.seed).unwrap_or_else(random),
        choice: 0,
        max_tokens,
        min_tokens: chat.min_tokens,
        stop_token_ids,
        logprobs: chat.logprobs,
    }
}

/// A random number from the system.
pub fn random() -> u64 {
    OsRng.try_next_u64().expect("the system has a random generator")
}
