//! The body of `POST /v1/chat/completions`, from wire to validated [`ChatRequest`]. Every field of
//! the API is honoured, accepted as a label, or refused by name.

use serde_json::{Map, Value};

use super::error::{ApiError, quote};
use super::fields::{Fields, check_length, integer, number, wrong_type};
use super::messages;
use crate::engine::TokenId;
use crate::text::ChatMessage;

/// A request whose every field is of the right type and in range.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The model's name as asked for.
    pub model: String,
    /// The conversation; content is a string.
    pub messages: Vec<ChatMessage>,
    /// Bytes of all contents and names together.
    pub prompt_bytes: usize,
    /// Number of choices.
    pub n: u32,
    /// Server-sent events or one body.
    pub stream: bool,
    /// Usage in the stream.
    pub include_usage: bool,
    /// Stop strings, at most four, none empty.
    pub stop: Vec<String>,
    /// Completion limit, at least 1; `None`: the rest of the context.
    pub max_tokens: Option<u32>,
    /// Tokens before which stop tokens are not honoured.
    pub min_tokens: u32,
    /// Whether end-of-sequence tokens are ordinary.
    pub ignore_eos: bool,
    /// Further tokens to stop at.
    pub stop_token_ids: Vec<TokenId>,
    /// Log-probabilities, and of how many alternatives.
    pub logprobs: Option<u32>,
    /// Sorted by token, each once.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Seed.
    pub seed: Option<u64>,
    /// Sampling overrides.
    pub sampling: Sampling,
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

impl ChatRequest {
    /// Validates a body. `known` tells whether a model name is served; it is checked before the
    /// other fields. Token ids must be below `vocab_size`.
    ///
    /// # Errors
    /// 400 or 404 that names the field.
    pub fn parse(body: Value, known: impl Fn(&str) -> bool, vocab_size: usize) -> Result<Self, ApiError> {
        let mut f = Fields::new("", body)?;
        let model = match f.require("model")? {
            Value::String(name) => name,
            other => return Err(wrong_type("model", "a string", &other)),
        };
        if !known(&model) {
            return Err(ApiError::ModelNotFound(quote(&model)));
        }
        let (messages, prompt_bytes) = messages::parse(f.require("messages")?)?;
        let n = f.integer("n", 1, 128)?.unwrap_or(1) as u32;
        let stream = f.bool("stream")?.unwrap_or(false);
        let include_usage = stream_options(&mut f, stream)?;
        let stop = stop(&mut f)?;
        let max_tokens = max_tokens(&mut f)?;
        let min_tokens = f.integer("min_tokens", 0, i64::from(u32::MAX))?.unwrap_or(0) as u32;
        if max_tokens.is_some_and(|max| min_tokens > max) {
            return Err(ApiError::value("min_tokens", "invalid_value", "it is greater than the completion limit"));
        }
        let ignore_eos = f.bool("ignore_eos")?.unwrap_or(false);
        let stop_token_ids = stop_token_ids(&mut f, vocab_size)?;
        let logprobs = logprobs(&mut f)?;
        let logit_bias = logit_bias(&mut f, vocab_size)?;
        let seed = f.integer("seed", i64::MIN, i64::MAX)?.map(|s| s as u64);
        let sampling = sampling(&mut f)?;
        labels(&mut f)?;
        unsupported(&mut f)?;
        f.finish()?;
        Ok(Self {
            model,
            messages,
            prompt_bytes,
            n,
            stream,
            include_usage,
            stop,
            max_tokens,
            min_tokens,
            ignore_eos,
            stop_token_ids,
            logprobs,
            logit_bias,
            seed,
            sampling,
        })
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
    if repetition_penalty.is_some_and(|p| p <= 0.0) {
        let message = "expected a value > 0";
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

/// Fields that say who asks, not what: checked and otherwise ignored.
fn labels(f: &mut Fields) -> Result<(), ApiError> {
    f.short_string("user", 512)?;
    f.short_string("safety_identifier", 64)?;
    f.short_string("prompt_cache_key", 512)?;
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
    Ok(())
}

/// Whether a value of a field that is not implemented asks for nothing.
type Harmless = fn(&Value) -> bool;

/// The API's fields that are not implemented, and the values with which they are no request.
const UNSUPPORTED: &[(&str, Harmless)] = &[
    ("tools", is_empty),
    ("tool_choice", |v| matches!(v.as_str(), Some("none" | "auto"))),
    ("parallel_tool_calls", Value::is_boolean),
    ("functions", is_empty),
    ("function_call", |v| matches!(v.as_str(), Some("none" | "auto"))),
    ("response_format", |v| v.as_object().is_some_and(is_text_format)),
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
];

fn never(_: &Value) -> bool {
    false
}

fn is_empty(v: &Value) -> bool {
    v.as_array().is_some_and(Vec::is_empty)
}

fn is_text_format(format: &Map<String, Value>) -> bool {
    format.len() == 1 && format.get("type").is_some_and(|t| t == "text")
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
