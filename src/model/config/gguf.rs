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
    for name in ["llama.expert_count", "llama.attention.sliding_window"] {
        if let Some(n) = m.size(name)?.filter(|n| *n > 0) {
            return Err(ConfigError(format!("{name} is {n}, which is not supported (only 0)")));
        }
    }
    for name in ["llama.logit_scale", "llama.embedding_scale", "llama.residual_scale", "llama.attention.scale"] {
        if m.0.value(name).is_some() {
            return Err(ConfigError(format!("{name} is set, which is not supported")));
        }
    }
    if m.0.value("llama.attention.causal").is_some_and(|v| *v != Value::Bool(true)) {
        return Err(ConfigError("llama.attention.causal is not true, which is not supported".into()));
    }
    Ok(())
}

fn rope_scaling(m: &Meta<'_, '_>, factors: Option<Vec<f32>>) -> Result<RopeScaling, ConfigError> {
    let named = match m.0.str("llama.rope.scaling.type") {
        Some("linear") => Some(
            m.float("llama.rope.scaling.factor")?
                .ok_or_else(|| ConfigError("llama.rope.scaling.factor is missing".into()))?,
        ),
        Some("none") => None,
        Some(other) => {
            let other: String = other.chars().take(48).collect();
            return Err(ConfigError(format!(
                "llama.rope.scaling.type is {other:?}, which is not supported (only \"none\", \"linear\")"
            )));
        }
        // Older writers: the factor alone, under this name; 0 and 1 are off.
        None => m.float("llama.rope.scale_linear")?.filter(|f| *f != 0.0),
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
