//! `config.json`.

use serde_json::{Map, Value};

use super::json::Fields;
use super::{ConfigError, LlamaConfig, RopeScaling, fields};
use crate::model::weights::error::shown;

impl LlamaConfig {
    /// Reads a Hugging Face `config.json` of a `LlamaForCausalLM`.
    ///
    /// Absent fields take the defaults of transformers' `LlamaConfig`, except sizes, which must be
    /// there.
    pub fn from_hf(json: &Map<String, Value>) -> Result<Self, ConfigError> {
        let f = Fields::new(json, "");
        refuse_other_models(&f)?;
        fields::refuse_unsupported(&f)?;
        let unknown = fields::unknown(&f);
        if !unknown.is_empty() {
            let names: Vec<String> = unknown.iter().take(20).map(|name| shown(name)).collect();
            let more = if unknown.len() > names.len() { ", …" } else { "" };
            tracing::warn!("fields of the configuration that no Llama has are ignored: {}{more}", names.join(", "));
        }

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
        let max_position_embeddings = f.size("max_position_embeddings")?.unwrap_or(2048);
        fields::refuse_sliding_window(&f, max_position_embeddings)?;
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
            max_position_embeddings,
            bos_token_id: f.token("bos_token_id")?,
            eos_token_ids: f.tokens("eos_token_id")?,
        }
        .checked()
    }
}

/// Architecture and activation. The first LLaMA conversions spelt the architecture in their own way.
fn refuse_other_models(f: &Fields<'_>) -> Result<(), ConfigError> {
    const ARCHITECTURES: [&str; 2] = ["LlamaForCausalLM", "LLaMAForCausalLM"];
    let unsupported = |name: &str, only: &str| Err(f.unsupported(name, f.get(name).unwrap_or(&Value::Null), only));
    match f.get("architectures") {
        Some(Value::Array(names)) if names.iter().any(|n| ARCHITECTURES.iter().any(|a| n == a)) => {}
        Some(_) => return unsupported("architectures", "only LlamaForCausalLM"),
        None if f.text("model_type")?.is_some() => {}
        None => return Err(f.missing("architectures")),
    }
    if f.text("model_type")?.is_some_and(|t| t != "llama") {
        return unsupported("model_type", "only llama");
    }
    if f.text("hidden_act")?.is_some_and(|a| !["silu", "swish"].contains(&a)) {
        return unsupported("hidden_act", "only silu");
    }
    Ok(())
}

/// Theta and scaling, from `rope_parameters` (newer) or `rope_theta` and `rope_scaling`.
fn rope(f: &Fields<'_>) -> Result<(f32, RopeScaling), ConfigError> {
    let parameters = f.object("rope_parameters", "rope_parameters.")?;
    let scaling = f.object("rope_scaling", "rope_scaling.")?;
    let original = f.size("original_max_position_embeddings")?;
    let mut theta = f.float("rope_theta")?;
    let mut is_theta = |name: &str, value: Option<f32>| match (theta, value) {
        (Some(one), Some(other)) if one != other => {
            Err(ConfigError(format!("{name} is {other}, which is not supported (rope_theta is {one})")))
        }
        (None, Some(_)) => {
            theta = value;
            Ok(())
        }
        _ => Ok(()),
    };
    let mut found = None;
    for fields in [parameters, scaling].into_iter().flatten() {
        is_theta("the inner rope_theta", fields.float("rope_theta")?)?;
        let this = rope_scaling(&fields, original)?;
        if found.as_ref().is_some_and(|other| *other != this) {
            return Err(ConfigError("rope_parameters and rope_scaling disagree".into()));
        }
        found = Some(this);
    }
    is_theta("rotary_emb_base", f.float("rotary_emb_base")?)?;
    Ok((theta.unwrap_or(10_000.0), found.unwrap_or(RopeScaling::None)))
}

/// `original` is the field of that name outside the object, where some writers put it.
fn rope_scaling(f: &Fields<'_>, original: Option<usize>) -> Result<RopeScaling, ConfigError> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let name = if f.get("rope_type").is_some() { "rope_type" } else { "type" };
    let kind = f.text(name)?;
    let (scaling, known): (_, &[&str]) = match kind {
        None if f.get("factor").is_some() => return Err(f.missing("rope_type")),
        None | Some("default") => (RopeScaling::None, &["factor"]),
        Some("linear") => (RopeScaling::Linear { factor: f.required_float("factor")? }, &["factor"]),
        Some("llama3") => {
            let inner = f.size(ORIGINAL)?;
            if inner.is_some() && original.is_some() && inner != original {
                return Err(ConfigError(format!("{ORIGINAL} is given twice with different values")));
            }
            let scaling = RopeScaling::Llama3 {
                factor: f.required_float("factor")?,
                low_freq_factor: f.required_float("low_freq_factor")?,
                high_freq_factor: f.required_float("high_freq_factor")?,
                original_max_position_embeddings: inner.or(original).ok_or_else(|| f.missing(ORIGINAL))?,
            };
            (scaling, &["factor", "low_freq_factor", "high_freq_factor"])
        }
        Some(other) => return Err(f.unsupported(name, &Value::from(other), "only default, linear, llama3")),
    };
    // Whatever else stands here would change the frequencies or the attention.
    for other in f.names().filter(|n| !known.contains(n)) {
        let value = f.get(other).unwrap_or(&Value::Null);
        let is_nothing = match other {
            "rope_type" | "type" | "rope_theta" | ORIGINAL => true,
            "partial_rotary_factor" | "attention_factor" => value.as_f64() == Some(1.0),
            _ => false,
        };
        if !is_nothing {
            return Err(f.unsupported(other, value, "only without it"));
        }
    }
    Ok(scaling)
}
