//! GGUF metadata under `llama.`.

use super::{ConfigError, LlamaConfig, RopeScaling};
use crate::model::weights::gguf::{Gguf, Value};

impl LlamaConfig {
    /// Reads the shape from a GGUF file's metadata; `has_output` tells whether the model has `output.weight`,
    /// `rope_factors` is its `rope_freqs.weight`.
    pub fn from_gguf(gguf: &Gguf<'_>, has_output: bool, rope_factors: Option<Vec<f32>>) -> Result<Self, ConfigError> {
        let m = Meta(gguf);
        refuse_other_models(&m)?;

        let hidden_size = m.required("llama.embedding_length")?;
        let num_heads = m.required("llama.attention.head_count")?;
        let head_dim = match m.size("llama.attention.key_length")? {
            Some(dim) => dim,
            None => hidden_size
                .checked_div(num_heads)
                .filter(|dim| Some(hidden_size) == dim.checked_mul(num_heads))
                .ok_or_else(|| {
                    ConfigError(format!(
                        "llama.embedding_length {hidden_size} is not a multiple of llama.attention.head_count {num_heads}"
                    ))
                })?,
        };
        for name in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if let Some(other) = m.size(name)?.filter(|n| *n != head_dim) {
                return Err(ConfigError(format!(
                    "{name} is {other}, which is not supported (only the head's {head_dim})"
                )));
            }
        }
        let vocab_size = match m.size("llama.vocab_size")? {
            Some(n) => n,
            None => gguf
                .array("tokenizer.ggml.tokens")
                .map(|a| a.len())
                .ok_or_else(|| ConfigError("llama.vocab_size and tokenizer.ggml.tokens are both missing".into()))?,
        };
        let mut eos_token_ids = Vec::new();
        for name in ["eos", "eot", "eom"] {
            let id = m.token(&format!("tokenizer.ggml.{name}_token_id"))?;
            eos_token_ids.extend(id.filter(|id| !eos_token_ids.contains(id)));
        }
        Self {
            vocab_size,
            hidden_size,
            intermediate_size: m.required("llama.feed_forward_length")?,
            num_layers: m.required("llama.block_count")?,
            num_heads,
            num_kv_heads: m.size("llama.attention.head_count_kv")?.unwrap_or(num_heads),
            head_dim,
            rms_norm_eps: m
                .float("llama.attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| ConfigError("llama.attention.layer_norm_rms_epsilon is missing".into()))?,
            rope_theta: m.float("llama.rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: rope_scaling(&m, rope_factors)?,
            tie_word_embeddings: !has_output,
            max_position_embeddings: m.required("llama.context_length")?,
            bos_token_id: m.token("tokenizer.ggml.bos_token_id")?,
            eos_token_ids,
        }
        .checked()
    }
}

struct Meta<'a, 'b>(&'a Gguf<'b>);

impl Meta<'_, '_> {
    fn size(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.0.value(name) else { return Ok(None) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
        size.map(Some).ok_or_else(|| ConfigError(format!("{name} must be one whole number that is not negative")))
    }

    fn required(&self, name: &str) -> Result<usize, ConfigError> {
        self.size(name)?.ok_or_else(|| ConfigError(format!("{name} is missing")))
    }

    fn float(&self, name: &str) -> Result<Option<f32>, ConfigError> {
        let Some(value) = self.0.value(name) else { return Ok(None) };
        value.as_f32().map(Some).ok_or_else(|| ConfigError(format!("{name} must be a number")))
    }

    fn token(&self, name: &str) -> Result<Option<u32>, ConfigError> {
        let Some(value) = self.0.value(name) else { return Ok(None) };
        // All ones is how some writers say "none".
        let id = value.as_u64().and_then(|n| u32::try_from(n).ok());
        id.map(|id| Some(id).filter(|id| *id != u32::MAX))
            .ok_or_else(|| ConfigError(format!("{name} must be a token id")))
    }
}

/// Every key under `llama.` is read, known to change nothing, or refused by its name.
fn refuse_other_models(m: &Meta<'_, '_>) -> Result<(), ConfigError> {
    match m.0.str("general.architecture") {
        Some("llama") => {}
        Some(other) => {
            let other: String = other.chars().take(48).collect();
            return Err(ConfigError(format!(
                "general.architecture is {other:?}, which is not supported (only \"llama\")"
            )));
        }
        None => return Err(ConfigError("general.architecture is missing".into())),
    }
    let context = m.required("llama.context_length")?;
    for (name, value) in m.0.values().filter(|(name, _)| name.starts_with("llama.")) {
        if READ.contains(&name) || HARMLESS.contains(&name) || is_off(value) {
            continue;
        }
        let neutral = match name {
            "llama.attention.causal" => *value == Value::Bool(true),
            "llama.use_parallel_residual" => *value == Value::Bool(false),
            "llama.attention.sliding_window" => m.size(name)? >= Some(context),
            name if ONE.contains(&name) => value.as_f32() == Some(1.0),
            _ => false,
        };
        if !neutral {
            let what = match value {
                Value::Array(_) => "is a list".to_owned(),
                Value::Str(s) => format!("is {:?}", s.chars().take(48).collect::<String>()),
                Value::Bool(b) => format!("is {b}"),
                Value::Unsigned(n) => format!("is {n}"),
                Value::Signed(n) => format!("is {n}"),
                Value::Float(x) => format!("is {x}"),
            };
            let name: String = name.chars().take(96).collect();
            return Err(ConfigError(format!("{name} {what}, which is not supported (only without it)")));
        }
    }
    Ok(())
}

/// Keys under `llama.` that [`LlamaConfig::from_gguf`] reads.
const READ: &[&str] = &[
    "llama.vocab_size",
    "llama.context_length",
    "llama.embedding_length",
    "llama.block_count",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.attention.layer_norm_rms_epsilon",
    "llama.rope.dimension_count",
    "llama.rope.freq_base",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.rope.scale_linear",
];

/// Keys that describe where the file came from. The original context length matters to YaRN alone, which is refused.
const HARMLESS: &[&str] =
    &["llama.tensor_data_layout", "llama.rope.scaling.original_context_length", "llama.rope.scaling.finetuned"];

/// Keys under which 1 is nothing.
const ONE: &[&str] = &[
    "llama.logit_scale",
    "llama.embedding_scale",
    "llama.residual_scale",
    "llama.rope.scaling.attn_factor",
    "llama.rope.scaling.yarn_attn_factor",
];

/// Whether a value asks for nothing. `false` under `attention.causal` does ask for something.
fn is_off(value: &Value<'_>) -> bool {
    match value {
        Value::Unsigned(n) => *n == 0,
        Value::Signed(n) => *n == 0,
        Value::Float(x) => *x == 0.0,
        Value::Str(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Bool(_) => false,
    }
}

fn rope_scaling(m: &Meta<'_, '_>, factors: Option<Vec<f32>>) -> Result<RopeScaling, ConfigError> {
    let kind = m.0.str("llama.rope.scaling.type");
    if kind.is_none() && m.0.value("llama.rope.scaling.type").is_some() {
        return Err(ConfigError("llama.rope.scaling.type must be a string".into()));
    }
    // As llama.cpp: linear where no type is given, older writers use the second name, and 0 and 1 are off.
    let factor = match m.float("llama.rope.scaling.factor")? {
        None => m.float("llama.rope.scale_linear")?,
        some => some,
    };
    let named = match kind {
        Some("linear") if factor.is_none() => return Err(ConfigError("llama.rope.scaling.factor is missing".into())),
        None | Some("linear") => factor.filter(|f| *f != 0.0),
        Some("none") => None,
        Some(other) => {
            let other: String = other.chars().take(48).collect();
            return Err(ConfigError(format!(
                "llama.rope.scaling.type is {other:?}, which is not supported (only \"none\", \"linear\")"
            )));
        }
    };
    match (named.filter(|f| *f != 1.0), factors) {
        (Some(_), Some(_)) => {
            Err(ConfigError("linear rope scaling together with rope_freqs.weight is not supported".into()))
        }
        (Some(factor), None) => Ok(RopeScaling::Linear { factor }),
        (None, Some(factors)) => Ok(RopeScaling::Factors(factors)),
        (None, None) => Ok(RopeScaling::None),
    }
}
