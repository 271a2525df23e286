//! The body of a completion, from wire to sequences.

use std::sync::Arc;

use serde_json::Value;

use super::legacy::Echo;
use crate::engine::{SamplingParams, Task, TokenId};
use crate::http::common::Common;
use crate::http::error::ApiError;
use crate::http::fields::{self, Fields};
use crate::http::generation::Submission;
use crate::http::prepare::{completion_limit, random};
use crate::http::prompts::{self, Encoding, MAX_PROMPTS, Prompt};
use crate::http::state::ServedModel;
use crate::http::target::Target;
use crate::http::vocabulary::Vocabulary;

/// Completion limit of requests that do not say.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Most log-probabilities of prompts that an answer may list, choices and alternatives counted: 150 MB or so.
const MAX_SCORES: usize = 1 << 20;

/// A request whose every field is of the right type and in range.
pub struct CompletionRequest {
    /// Whom it is for.
    pub target: Target,
    /// The prompts; one at least.
    pub prompts: Vec<Prompt>,
    /// How they become tokens.
    encoding: Encoding,
    /// Completion limit; 0 only scores the prompt.
    max_tokens: Option<u32>,
    /// Whether the prompt comes first in the text.
    echo: bool,
    /// Choices to generate for each prompt, of which the best `n` are returned.
    best_of: u32,
    /// Log-probabilities, and of how many alternatives.
    pub logprobs: Option<u32>,
    /// What all requests for text have.
    pub common: Common,
}

impl CompletionRequest {
    /// Validates a body; the model's name before the other fields.
    ///
    /// # Errors
    /// 400 or 404 that names the field.
    pub fn parse(body: Value, model: &ServedModel) -> Result<Self, ApiError> {
        let mut f = Fields::new("", body)?;
        let target = Target::require(&mut f, model)?;
        let prompts = prompts::parse(f.require("prompt")?, "prompt", model.vocab_size)?;
        // A completion's prompt is raw: who writes it decides where special tokens stand.
        let encoding = Encoding::parse(&mut f, true)?;
        let max_tokens = f.integer("max_tokens", 0, i64::MAX)?.map(|max| u32::try_from(max).unwrap_or(u32::MAX));
        let echo = f.bool("echo")?.unwrap_or(false);
        let best_of = f.integer("best_of", 1, 20)?.map(|n| n as u32);
        let logprobs = f.integer("logprobs", 0, 5)?.map(|n| n as u32);
        let common = Common::parse(&mut f, model.vocab_size)?;
        if max_tokens == Some(0) && !echo && common.prompt_logprobs.is_none() {
            let message = "expected a value >= 1, as the prompt is not echoed";
            return Err(ApiError::value("max_tokens", "integer_below_min_value", message));
        }
        let best_of = best_of.unwrap_or(common.n);
        if best_of < common.n {
            return Err(ApiError::value("best_of", "invalid_value", "it is less than 'n'"));
        }
        if common.stream && best_of > common.n {
            return Err(ApiError::value("best_of", "invalid_value", "the best of several cannot be streamed"));
        }
        if prompts.len() * best_of as usize > MAX_PROMPTS {
            let message = format!("expected at most {MAX_PROMPTS} prompts times choices");
            return Err(ApiError::value("prompt", "array_above_max_length", message));
        }
        if f.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "is not supported: the model does not fill in"));
        }
        f.finish()?;
        Ok(Self { target, prompts, encoding, max_tokens, echo, best_of, logprobs, common })
    }
}

/// A request that fits, ready to be submitted.
pub struct Prepared {
    /// What was asked.
    pub request: CompletionRequest,
    /// Its choices, prompt by prompt.
    pub submission: Submission,
    /// For each prompt, what is echoed of it.
    pub echoes: Vec<Option<Arc<Echo>>>,
}

/// Parses, validates and tokenises.
pub fn prepare(model: &ServedModel, body: &[u8]) -> Result<Prepared, ApiError> {
    let request = CompletionRequest::parse(fields::parse(body)?, model)?;
    let CompletionRequest { target, prompts, encoding, echo, best_of, logprobs, common, .. } = &request;
    let vocabulary = Vocabulary {
        tokenizer: Arc::clone(&model.tokenizer),
        skip_special: common.skip_special_tokens,
        as_ids: common.return_tokens_as_token_ids,
    };
    let scored = logprobs.filter(|_| *echo).max(common.prompt_logprobs);
    // The best are chosen by it.
    let sampled = logprobs.or((*best_of > common.n).then_some(0));
    common.check_ends(common.structured.as_ref().map(|s| s.param))?;
    let constraint = common.structured.as_ref().map(|s| s.compile(model)).transpose()?;
    let (mut sequences, mut echoes, mut scores) = (Vec::new(), Vec::new(), 0);
    for prompt in prompts {
        let tokens: Arc<[TokenId]> = encoding.encode(model, prompt, "prompt")?.into();
        if let Some(top) = scored {
            scores += tokens.len() * (top as usize + 1) * common.n as usize;
            if scores > MAX_SCORES {
                let message = format!(
                    "expected at most {MAX_SCORES} log-probabilities of prompts, choices and alternatives counted"
                );
                return Err(ApiError::value("prompt", "array_above_max_length", message));
            }
        }
        let max_tokens = limit(model, tokens.len(), request.max_tokens)?;
        common.check_min_tokens(max_tokens)?;
        let params = common.params(model, max_tokens, sampled, random());
        sequences.extend((0..*best_of).map(|choice| {
            // In one body a prompt's choices share its scores; in a stream each waits for its own.
            let prompt_logprobs = scored.filter(|_| choice == 0 || common.stream);
            let params = Arc::new(SamplingParams { choice, ..params.clone() });
            common.placed(target.sequence(&tokens, Task::Generate { prompt_logprobs }, params, constraint.clone()))
        }));
        echoes.push(echo.then(|| {
            let verbatim = match prompt {
                Prompt::Text(text) if encoding.truncate.is_none() => Some(text.as_str()),
                _ => None,
            };
            Arc::new(Echo::new(&vocabulary, verbatim, tokens))
        }));
    }
    let submission = Submission {
        sequences,
        per_prompt: *best_of as usize,
        stop: common.stop.clone(),
        wants_logprobs: logprobs.is_some(),
        continues: true,
        vocabulary,
    };
    Ok(Prepared { request, submission, echoes })
}

/// The completion limit asked for, if it fits, or the default, as far as it fits.
fn limit(model: &ServedModel, prompt: usize, asked: Option<u32>) -> Result<u32, ApiError> {
    let limit = completion_limit(model.max_len(), prompt, asked, "prompt")?;
    Ok(if asked.is_none() { limit.min(DEFAULT_MAX_TOKENS) } else { limit })
}
