//! The fields that all requests for text have in common.

use std::sync::Arc;

use serde_json::Value;
use tracing::field::debug;

use super::error::{ApiError, quote};
use super::fields::{Fields, check_length, integer, number, wrong_type};
use super::state::ServedModel;
use super::structured::Structured;
use super::traces::RequestSpan;
use crate::engine::{Request, SamplingParams, TokenId};

/// How to generate, and how to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// Number of choices, for each prompt.
    pub n: u32,
    /// Server-sent events or one body.
    pub stream: bool,
    /// Usage in the stream.
    pub include_usage: bool,
    /// Stop strings, at most four, none empty.
    pub stop: Vec<String>,
    /// Tokens before which stop tokens are not honoured.
    pub min_tokens: u32,
    /// Whether end-of-sequence tokens are ordinary.
    pub ignore_eos: bool,
    /// Further tokens to stop at.
    pub stop_token_ids: Vec<TokenId>,
    /// Sorted by token, each once.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Seed.
    pub seed: Option<u64>,
    /// Sampling overrides.
    pub sampling: Sampling,
    /// Log-probabilities of the prompt's tokens, and of how many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
    /// Whether log-probabilities name tokens by their ids.
    pub return_tokens_as_token_ids: bool,
    /// Lower runs first; from 0, which is ordinary, so that nobody can go before the others.
    pub priority: i32,
    /// Whose prompts share what is cached: those with the same salt, or without one.
    pub cache_salt: Option<Arc<str>>,
    /// What the text must be.
    pub structured: Option<Structured>,
}

/// Sampling parameters, of a request or of a model's defaults; `None` leaves the choice open.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0–2.
    pub temperature: Option<f32>,
    /// 0–1.
    pub top_p: Option<f32>,
    /// 0 is off.
    pub top_k: Option<u32>,
    /// 0–1.
    pub min_p: Option<f32>,
    /// Above 0.
    pub repetition_penalty: Option<f32>,
    /// −2–2.
    pub presence_penalty: Option<f32>,
    /// −2–2.
    pub frequency_penalty: Option<f32>,
}

const MAX_LOGIT_BIAS: usize = 1024;
const MAX_STOP_TOKEN_IDS: usize = 128;
const MAX_PRIORITY: i64 = 1000;
const MAX_SALT: usize = 512;

/// Most tokens that log-probabilities of a prompt may list for each.
const MAX_PROMPT_LOGPROBS: i64 = 20;

impl Common {
    /// Takes the fields out. Token ids must be below `vocab_size`.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn parse(f: &mut Fields, vocab_size: usize) -> Result<Self, ApiError> {
        let stream = f.bool("stream")?.unwrap_or(false);
        let prompt_logprobs = f.integer("prompt_logprobs", 0, MAX_PROMPT_LOGPROBS)?.map(|n| n as u32);
        if stream && prompt_logprobs.is_some() {
            return Err(ApiError::value("prompt_logprobs", "invalid_value", "it is not available in a stream"));
        }
        let common = Self {
            n: f.integer("n", 1, 128)?.unwrap_or(1) as u32,
            stream,
            include_usage: stream_options(f, stream)?,
            stop: stop(f)?,
            min_tokens: f.integer("min_tokens", 0, i64::from(u32::MAX))?.unwrap_or(0) as u32,
            ignore_eos: f.bool("ignore_eos")?.unwrap_or(false),
            stop_token_ids: stop_token_ids(f, vocab_size)?,
            logit_bias: logit_bias(f, vocab_size)?,
            seed: f.integer("seed", i64::MIN, i64::MAX)?.map(|s| s as u64),
            sampling: sampling(f)?,
            prompt_logprobs,
            skip_special_tokens: f.bool("skip_special_tokens")?.unwrap_or(true),
            return_tokens_as_token_ids: f.bool("return_tokens_as_token_ids")?.unwrap_or(false),
            priority: f.integer("priority", 0, MAX_PRIORITY)?.unwrap_or(0) as i32,
            cache_salt: cache_salt(f)?,
            structured: Structured::parse(f)?,
        };
        labels(f)?;
        Ok(common)
    }

    /// The sequence in the place the request asks for.
    pub fn placed(&self, sequence: Request) -> Request {
        Request { priority: self.priority, cache_salt: self.cache_salt.clone(), ..sequence }
    }

    /// Refuses to go on after the end of a text that has one: `by` is the field that says where.
    pub fn check_ends(&self, by: Option<&str>) -> Result<(), ApiError> {
        match by {
            Some(by) if self.ignore_eos => {
                let message = format!("it cannot be combined with '{by}', which says where the text ends");
                Err(ApiError::value("ignore_eos", "invalid_value", message))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a minimum above the limit.
    pub fn check_min_tokens(&self, max_tokens: u32) -> Result<(), ApiError> {
        if self.min_tokens > max_tokens {
            return Err(ApiError::value("min_tokens", "invalid_value", "it is greater than the completion limit"));
        }
        Ok(())
    }

    /// The sampler's parameters, of the first choice. `seed` where the request brings none.
    pub fn params(&self, model: &ServedModel, max_tokens: u32, logprobs: Option<u32>, seed: u64) -> SamplingParams {
        let (asked, default) = (&self.sampling, &model.defaults);
        fn pick<T: Copy>(asked: &Sampling, default: &Sampling, field: fn(&Sampling) -> Option<T>, off: T) -> T {
            field(asked).or(field(default)).unwrap_or(off)
        }
        let temperature = pick(asked, default, |s| s.temperature, 1.0);
        let mut stop_token_ids = if self.ignore_eos { Vec::new() } else { model.eos.clone() };
        for &id in &self.stop_token_ids {
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
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.or(model.seed).unwrap_or(seed),
            choice: 0,
            max_tokens,
            min_tokens: self.min_tokens,
            stop_token_ids,
            logprobs,
        }
    }
}

fn stream_options(f: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(mut options) = f.object("stream_options")? else { return Ok(false) };
    if !stream {
        return Err(ApiError::value("stream_options", "invalid_value", "it is only allowed when 'stream' is true"));
    }
    let include_usage = options.bool("include_usage")?.unwrap_or(false);
    if options.bool("include_obfuscation")? == Some(true) {
        return Err(ApiError::unsupported("stream_options.include_obfuscation", "must be false"));
    }
    options.finish()?;
    Ok(include_usage)
}

fn stop(f: &mut Fields) -> Result<Vec<String>, ApiError> {
    let values = match f.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(s)) => vec![Value::String(s)],
        Some(Value::Array(values)) => values,
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", &other)),
    };
    if values.len() > 4 {
        return Err(ApiError::value("stop", "array_above_max_length", "expected at most 4 strings"));
    }
    let string = |value| match value {
        Value::String(s) if s.is_empty() => {
            Err(ApiError::value("stop", "string_below_min_length", "a stop string must not be empty"))
        }
        Value::String(s) => check_length("stop", &s, 4096).map(|()| s),
        other => Err(wrong_type("stop", "a string or an array of strings", &other)),
    };
    values.into_iter().map(string).collect()
}

fn cache_salt(f: &mut Fields) -> Result<Option<Arc<str>>, ApiError> {
    let salt = f.short_string("cache_salt", MAX_SALT)?;
    if salt.as_ref().is_some_and(String::is_empty) {
        return Err(ApiError::value("cache_salt", "string_below_min_length", "a salt must not be empty"));
    }
    Ok(salt.map(Arc::from))
}

fn stop_token_ids(f: &mut Fields, vocab_size: usize) -> Result<Vec<TokenId>, ApiError> {
    let values = f.array("stop_token_ids")?.unwrap_or_default();
    if values.len() > MAX_STOP_TOKEN_IDS {
        let message = format!("expected at most {MAX_STOP_TOKEN_IDS} token ids");
        return Err(ApiError::value("stop_token_ids", "array_above_max_length", message));
    }
    let max = vocab_size as i64 - 1;
    values
        .iter()
        .enumerate()
        .map(|(i, v)| integer(&format!("stop_token_ids[{i}]"), v, 0, max).map(|id| id as TokenId))
        .collect()
}

fn logit_bias(f: &mut Fields, vocab_size: usize) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let map = f.object("logit_bias")?.map(Fields::into_map).unwrap_or_default();
    if map.len() > MAX_LOGIT_BIAS {
        let message = format!("expected at most {MAX_LOGIT_BIAS} tokens");
        return Err(ApiError::value("logit_bias", "object_above_max_properties", message));
    }
    let entry = |(key, value): (&String, &Value)| {
        let param = format!("logit_bias.{}", quote(key));
        let digits = !key.is_empty() && key.bytes().all(|b| b.is_ascii_digit());
        let id = key.parse().ok().filter(|_| digits).filter(|&id: &TokenId| (id as usize) < vocab_size);
        let Some(id) = id else {
            let message = format!("expected a token id between 0 and {}", vocab_size - 1);
            return Err(ApiError::value(param, "invalid_value", message));
        };
        Ok((id, number(&param, value, -100.0, 100.0)?))
    };
    let mut bias = map.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    bias.sort_by_key(|&(id, _)| id);
    if let Some(pair) = bias.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let message = format!("token {} is given twice", pair[0].0);
        return Err(ApiError::value("logit_bias", "invalid_value", message));
    }
    Ok(bias)
}

fn sampling(f: &mut Fields) -> Result<Sampling, ApiError> {
    let repetition_penalty = f.number("repetition_penalty", 0.0, 100.0)?;
    // Logits are divided by it: much less would make them infinite.
    if repetition_penalty.is_some_and(|p| p < 0.01) {
        let message = "expected a value >= 0.01";
        return Err(ApiError::value("repetition_penalty", "decimal_below_min_value", message));
    }
    // vLLM's clients write "off" as -1.
    let top_k = f.integer("top_k", -1, i64::from(u32::MAX))?.map(|k| k.max(0) as u32);
    Ok(Sampling {
        temperature: f.number("temperature", 0.0, 2.0)?,
        top_p: f.number("top_p", 0.0, 1.0)?,
        top_k,
        min_p: f.number("min_p", 0.0, 1.0)?,
        repetition_penalty,
        presence_penalty: f.number("presence_penalty", -2.0, 2.0)?,
        frequency_penalty: f.number("frequency_penalty", -2.0, 2.0)?,
    })
}

/// Fields that say who asks, not what: checked, and told to the request's span. Written as `Debug` does it, so that
/// none can forge a line of a log.
pub fn labels(f: &mut Fields) -> Result<(), ApiError> {
    let (span, traced) = (tracing::Span::current(), RequestSpan::current());
    for (name, max) in [("user", 512), ("safety_identifier", 64), ("prompt_cache_key", 512)] {
        if let Some(label) = f.short_string(name, max)? {
            if let Some(traced) = &traced {
                traced.label(name, &label);
            }
            span.record(name, debug(label));
        }
    }
    let metadata = f.object("metadata")?.map(Fields::into_map).unwrap_or_default();
    if metadata.len() > 16 {
        return Err(ApiError::value("metadata", "object_above_max_properties", "expected at most 16 pairs"));
    }
    for (key, value) in &metadata {
        check_length("metadata", key, 64)?;
        let param = format!("metadata.{}", quote(key));
        match value {
            Value::String(s) => check_length(&param, s, 512)?,
            other => return Err(wrong_type(param, "a string", other)),
        }
    }
    if !metadata.is_empty() {
        if let Some(traced) = &traced {
            traced.label("metadata", &serde_json::to_string(&metadata).unwrap_or_default());
        }
        span.record("metadata", debug(metadata));
    }
    Ok(())
}
