//! `generation_config.json`: the model author's sampling values.

use serde_json::{Map, Value};

use super::ConfigError;
use super::json::Fields;

/// Sampling values a request gets where it says nothing. `do_sample` is not one of them: as in
/// vLLM, only values given count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// In (0, 1].
    pub top_p: Option<f32>,
    /// 0 is off.
    pub top_k: Option<u32>,
    /// In [0, 1].
    pub min_p: Option<f32>,
    /// Positive; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// At least 1.
    pub max_new_tokens: Option<u32>,
    /// Tokens that end a sequence, beside those of the configuration.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationDefaults {
    /// Reads a `generation_config.json`. A value out of range is an error naming the field.
    pub fn from_json(json: &Map<String, Value>) -> Result<Self, ConfigError> {
        let f = Fields::new(json, "");
        let float = |name: &str, range: &str, ok: fn(f32) -> bool| match f.float(name)? {
            Some(v) if !ok(v) => Err(ConfigError(format!("{name} is {v}, must be {range}"))),
            v => Ok(v),
        };
        let top_k = match f.get("top_k") {
            // -1 is another way to say off.
            Some(v) if v.as_i64() == Some(-1) => Some(0),
            _ => f.size("top_k")?.map(|k| u32::try_from(k).unwrap_or(u32::MAX)),
        };
        let max_new_tokens = match f.size("max_new_tokens")? {
            Some(0) => return Err(ConfigError("max_new_tokens is 0, must be at least 1".into())),
            n => n.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
        };
        Ok(Self {
            temperature: float("temperature", "from 0 to 100", |v| (0.0..=100.0).contains(&v))?,
            top_p: float("top_p", "above 0 and at most 1", |v| v > 0.0 && v <= 1.0)?,
            top_k,
            min_p: float("min_p", "from 0 to 1", |v| (0.0..=1.0).contains(&v))?,
            repetition_penalty: float("repetition_penalty", "at least 0.01", |v| v >= 0.01)?,
            max_new_tokens,
            eos_token_ids: f.tokens("eos_token_id")?,
        })
    }
}
