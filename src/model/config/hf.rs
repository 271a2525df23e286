//! `config.json`.

use serde_json::{Map, Value};

use super::json::Fields;
use super::{ConfigError, LlamaConfig, RopeScaling};

impl LlamaConfig {
    /// Reads a Hugging Face `config.json` of a `LlamaForCausalLM`.
    ///
    /// Absent fields take the defaults of transformers' `LlamaConfig`, except sizes, which must be
    /// there.
    pub fn from_hf(json: &Map<String, Value>) -> Result<Self, ConfigError> {
        let f = Fields::new(json, "");
        refuse_other_models(&f)?;

        let hidden_size = f.required_size("hidden_size")?;
        let num_heads = f.required_size("num_attention_heads")?;
        let head_dim = match f.size("head_dim")? {
            Some(dim) => dim,
            None => hidden_size
                .checked_div(num_heads)
                .filter(|dim| Some(hidden_size) == dim.checked_mul(num_heads))
                .ok_or_else(|| {
                    ConfigError(format!(
                        "hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}"
                    ))
                })?,
        };
        let (rope_theta, rope_scaling) = rope(&f)?;
        Self {
            vocab_size: f.required_size("vocab_size")?,
            hidden_size,
            intermediate_size: f.required_size("intermediate_size")?,
            num_layers: f.required_size("num_hidden_layers")?,
            num_heads,
            num_kv_heads: f.size("num_key_value_heads")?.unwrap_or(num_heads),
            head_dim,
            rms_norm_eps: f.float("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            tie_word_embeddings: f.flag("tie_word_embeddings")?.unwrap_or(false),
            max_position_embeddings: f.size("max_position_embeddings")?.unwrap_or(2048),
            bos_token_id: f.token("bos_token_id")?,
            eos_token_ids: f.tokens("eos_token_id")?,
        }
        .checked()
    }
}

fn refuse_other_models(f: &Fields<'_>) -> Result<(), ConfigError> {
    const ARCHITECTURE: &str = "LlamaForCausalLM";
    let unsupported = |name: &str, supported: &str| {
        let value = f.get(name).unwrap_or(&Value::Null);
        Err(f.error(name, value, &format!("which is not supported (only {supported})")))
    };
    let architectures = f.get("architectures");
    let is_llama = match architectures {
        Some(Value::Array(names)) => names.iter().any(|n| n == ARCHITECTURE),
        Some(_) => false,
        None => f.text("model_type")?.is_some(),
    };
    if !is_llama {
        return match architectures {
            Some(_) => unsupported("architectures", ARCHITECTURE),
            None => Err(f.missing("architectures")),
        };
    }
    if f.text("model_type")?.is_some_and(|t| t != "llama") {
        return unsupported("model_type", "llama");
    }
    if f.text("hidden_act")?.is_some_and(|a| a != "silu") {
        return unsupported("hidden_act", "silu");
    }
    for name in ["attention_bias", "mlp_bias", "rope_interleaved"] {
        if f.flag(name)?.unwrap_or(false) {
            return unsupported(name, "false");
        }
    }
    if f.size("pretraining_tp")?.is_some_and(|tp| tp > 1) {
        return unsupported("pretraining_tp", "1");
    }
    if f.float("partial_rotary_factor")?.is_some_and(|p| p != 1.0) {
        return unsupported("partial_rotary_factor", "1");
    }
    if f.get("quantization_config").is_some() {
        return Err(ConfigError(
            "quantization_config is set, which is not supported (use a GGUF file for quantised weights)".into(),
        ));
    }
    Ok(())
}

/// Theta and scaling, from `rope_parameters` (newer) or `rope_theta` and `rope_scaling`.
fn rope(f: &Fields<'_>) -> Result<(f32, RopeScaling), ConfigError> {
    let parameters = f.object("rope_parameters", "rope_parameters.")?;
    let scaling = f.object("rope_scaling", "rope_scaling.")?;
    let mut theta = f.float("rope_theta")?;
    let mut found = None;
    for fields in [parameters, scaling].into_iter().flatten() {
        if let Some(inner) = fields.float("rope_theta")? {
            if theta.is_some_and(|outer| outer != inner) {
                return Err(ConfigError("rope_theta is given twice with different values".into()));
            }
            theta = Some(inner);
        }
        let this = rope_scaling(&fields)?;
        if found.as_ref().is_some_and(|other| *other != this) {
            return Err(ConfigError("rope_parameters and rope_scaling disagree".into()));
        }
        found = Some(this);
    }
    Ok((theta.unwrap_or(10_000.0), found.unwrap_or(RopeScaling::None)))
}

fn rope_scaling(f: &Fields<'_>) -> Result<RopeScaling, ConfigError> {
    if f.float("partial_rotary_factor")?.is_some_and(|p| p != 1.0) {
        let value = f.get("partial_rotary_factor").unwrap_or(&Value::Null);
        return Err(f.error("partial_rotary_factor", value, "which is not supported (only 1)"));
    }
    let name = if f.get("rope_type").is_some() { "rope_type" } else { "type" };
    match f.text(name)? {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: f.required_float("factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: f.required_float("factor")?,
            low_freq_factor: f.required_float("low_freq_factor")?,
            high_freq_factor: f.required_float("high_freq_factor")?,
            original_max_position_embeddings: f.required_size("original_max_position_embeddings")?,
        }),
        Some(other) => Err(f.error(name, &Value::from(other), "which is not supported (only default, linear, llama3)")),
    }
}
