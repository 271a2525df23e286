//! Shapes to plan for, by name or from a `config.json`.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{ConfigError, LlamaConfig};
use super::lora::Projection;
use super::weights::expected_tensors;

/// Why there is no shape.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// Neither a name nor a file.
    #[error("{0}: {names} are known, or the path of a config.json", names = NAMES.join(", "))]
    Unknown(String),
    /// The file is no JSON object.
    #[error("{path}: {reason}")]
    File {
        /// As it was given.
        path: String,
        /// Why.
        reason: String,
    },
    /// Its values are refused.
    #[error("{path}: {error}")]
    Config {
        /// As it was given.
        path: String,
        /// Which.
        error: ConfigError,
    },
}

/// What [`shape`] knows by name.
pub const NAMES: [&str; 6] = ["65b", "30b", "13b", "7b", "1.1b", "135m"];

/// LLaMA's sizes (arXiv 2302.13971, table 2, with the vocabulary and MLP widths of the released weights), TinyLlama's and
/// SmolLM2's.
fn known(name: &str) -> Option<Value> {
    let llama = |hidden: usize, layers: usize, heads: usize, kv_heads: usize, mlp: usize| {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "intermediate_size": mlp, "vocab_size": 32_000,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
        })
    };
    let name = name.to_ascii_lowercase();
    let size = ["llama-", "lima-"].iter().find_map(|family| name.strip_prefix(family)).unwrap_or(&name);
    Some(match size {
        "65b" => llama(8192, 80, 64, 64, 22_016),
        "30b" => llama(6656, 60, 52, 52, 17_920),
        "13b" => llama(5120, 40, 40, 40, 13_824),
        "7b" => llama(4096, 32, 32, 32, 11_008),
        "1.1b" => llama(2048, 22, 32, 4, 5632),
        "135m" => {
            let mut config = llama(576, 30, 9, 3, 1536);
            config["vocab_size"] = 49_152.into();
            config["tie_word_embeddings"] = true.into();
            config
        }
        _ => return None,
    })
}

/// Whether [`shape`] knows it by name.
pub fn is_known(name: &str) -> bool {
    known(name).is_some()
}

/// The shape of that name (see [`NAMES`]; `llama-` or `lima-` may stand before it), or of a file.
///
/// # Errors
/// Neither is there, or the file is refused.
pub fn shape(name: &str) -> Result<LlamaConfig, ShapeError> {
    let json = match known(name) {
        Some(json) => json,
        None if !Path::new(name).exists() => return Err(ShapeError::Unknown(name.into())),
        None => {
            let error = |reason: String| ShapeError::File { path: name.into(), reason };
            let text = fs::read_to_string(name).map_err(|e| error(e.to_string()))?;
            serde_json::from_str(&text).map_err(|e| error(format!("not JSON: {e}")))?
        }
    };
    let empty = Map::new();
    let object = match &json {
        Value::Object(object) => object,
        _ => &empty,
    };
    LlamaConfig::from_hf(object).map_err(|error| ShapeError::Config { path: name.into(), error })
}

/// Parameters of a model, a tied head not counted.
pub fn parameters(config: &LlamaConfig) -> u64 {
    expected_tensors(config).iter().map(|(_, [rows, columns])| (rows * columns) as u64).sum()
}

/// Parameters of the layers' matrices, which LoRA adapts and QLoRA quantises.
pub fn matrices(config: &LlamaConfig) -> u64 {
    let layer: u64 = Projection::ALL.iter().map(|p| product(&p.shape(config).into())).sum();
    layer * config.num_layers as u64
}

fn product(shape: &[usize; 2]) -> u64 {
    (shape[0] * shape[1]) as u64
}
