//! Prompts that are text or token ids, one or many: `prompt` of completions, `input` of embeddings.

use serde_json::Value;

use super::error::{ApiError, quote};
use super::fields::{Fields, integer, wrong_type};
use super::prepare::check_bytes;
use super::state::ServedModel;
use crate::engine::TokenId;
use crate::text::TokenizerError;

/// Most prompts of a request.
pub const MAX_PROMPTS: usize = 2048;

const EXPECTED: &str = "a string, an array of strings, of token ids or of arrays of token ids";

/// One prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Text.
    Text(String),
    /// Token ids, all in the vocabulary.
    Tokens(Vec<TokenId>),
}

/// How prompts become token ids.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Encoding {
    /// Whether text is prefixed as the tokenizer does (beginning of sequence, where the model wants one).
    pub add_special_tokens: bool,
    /// Whether a spelling of a special token is that token.
    pub recognise_special: bool,
    /// Only so many tokens, the last ones.
    pub truncate: Option<usize>,
}

impl Encoding {
    /// Takes `add_special_tokens` and `truncate_prompt_tokens`.
    pub fn parse(f: &mut Fields, recognise_special: bool) -> Result<Self, ApiError> {
        Ok(Self {
            add_special_tokens: f.bool("add_special_tokens")?.unwrap_or(true),
            recognise_special,
            truncate: f.integer("truncate_prompt_tokens", 1, i64::from(u32::MAX))?.map(|n| n as usize),
        })
    }

    /// Token ids of a prompt; `param` is the field it came in.
    pub fn encode(&self, model: &ServedModel, prompt: &Prompt, param: &'static str) -> Result<Vec<TokenId>, ApiError> {
        let mut tokens = match prompt {
            Prompt::Text(text) => {
                if self.truncate.is_none() {
                    check_bytes(model, text.len(), param)?;
                }
                encode_text(model, text, self.add_special_tokens, self.recognise_special, param)?
            }
            Prompt::Tokens(tokens) => tokens.clone(),
        };
        if let Some(extra) = self.truncate.and_then(|most| tokens.len().checked_sub(most)) {
            tokens.drain(..extra);
        }
        match tokens.is_empty() {
            true => Err(ApiError::value(param, "invalid_value", "a prompt has no tokens")),
            false => Ok(tokens),
        }
    }
}

/// Token ids of a text.
pub fn encode_text(
    model: &ServedModel,
    text: &str,
    add_special: bool,
    recognise_special: bool,
    param: &'static str,
) -> Result<Vec<TokenId>, ApiError> {
    let encoded = match recognise_special {
        true => model.tokenizer.encode(text, add_special),
        false => model.tokenizer.encode_plain(text, add_special),
    };
    encoded.map_err(|e: TokenizerError| {
        let message = quote(&e.to_string());
        ApiError::value(param, "invalid_value", message.trim_end_matches('.'))
    })
}

/// Takes one prompt or several, at most [`MAX_PROMPTS`]. Token ids must be below `vocab_size`.
pub fn parse(value: Value, param: &'static str, vocab_size: usize) -> Result<Vec<Prompt>, ApiError> {
    let values = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(values) => values,
        other => return Err(wrong_type(param, EXPECTED, &other)),
    };
    if values.first().is_some_and(Value::is_number) {
        return Ok(vec![Prompt::Tokens(token_ids(&values, param, vocab_size)?)]);
    }
    if values.is_empty() {
        return Err(ApiError::value(param, "empty_array", "expected at least one prompt"));
    }
    if values.len() > MAX_PROMPTS {
        let message = format!("expected at most {MAX_PROMPTS} prompts");
        return Err(ApiError::value(param, "array_above_max_length", message));
    }
    let first_is_text = values[0].is_string();
    let one = |(i, value): (usize, Value)| match value {
        Value::String(text) if first_is_text => Ok(Prompt::Text(text)),
        Value::Array(ids) if !first_is_text => {
            token_ids(&ids, &format!("{param}[{i}]"), vocab_size).map(Prompt::Tokens)
        }
        other if first_is_text => Err(wrong_type(format!("{param}[{i}]"), "a string", &other)),
        other => Err(wrong_type(format!("{param}[{i}]"), "an array of token ids", &other)),
    };
    values.into_iter().enumerate().map(one).collect()
}

/// Token ids of the vocabulary.
pub fn token_ids(values: &[Value], param: &str, vocab_size: usize) -> Result<Vec<TokenId>, ApiError> {
    let max = vocab_size as i64 - 1;
    let id = |(i, v)| integer(&format!("{param}[{i}]"), v, 0, max).map(|id| id as TokenId);
    values.iter().enumerate().map(id).collect()
}
