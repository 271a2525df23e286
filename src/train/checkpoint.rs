//! The result of an epoch: a complete Hugging Face directory, which the server serves without flags.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::model::{Model, ModelError};
use super::recipe::Number;
use super::render::Renderer;
use super::tensors::{self, Entry};
use crate::engine::TokenId;
use crate::model::config::{LlamaConfig, RopeScaling};
use crate::model::rope::inverse_frequencies;
use crate::model::weights::{Checkpoint, expected_tensors};
use crate::ops::quant::DType;

/// Bytes of a file of weights; beyond them there are several, and an index.
pub const MAX_SHARD: u64 = 5_000_000_000;

/// A base whose result has no `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the base's rotary factors are in no form that config.json has: use the model's Hugging Face directory")]
pub struct UnknownFactors;

/// The format of saved weights that is the base's own: BF16 for BF16 and quantised ones, else F32.
pub fn default_format(base: &Checkpoint) -> Number {
    let stored = base.tensor("model.layers.0.self_attn.q_proj.weight").map_or(DType::F32, |t| t.dtype);
    if matches!(stored, DType::F32 | DType::F16) { Number::F32 } else { Number::Bf16 }
}

/// What the directory of every epoch has in common.
#[derive(Debug)]
pub struct Directory<'a> {
    shape: LlamaConfig,
    config: Map<String, Value>,
    renderer: &'a Renderer,
    format: Number,
    max_shard: u64,
}

impl<'a> Directory<'a> {
    /// For models of this shape.
    ///
    /// # Errors
    /// The shape is one that `config.json` cannot describe.
    pub fn new(shape: &LlamaConfig, renderer: &'a Renderer, format: Number) -> Result<Self, UnknownFactors> {
        let config = config_json(shape, renderer, format)?;
        Ok(Self { shape: shape.clone(), config, renderer, format, max_shard: MAX_SHARD })
    }

    /// With files of at most so many bytes, unless one tensor has more.
    pub fn with_max_shard(self, max_shard: u64) -> Self {
        Self { max_shard, ..self }
    }

    /// Writes everything into `dir`, which exists and is empty, and syncs the files. Other tensor-parallel ranks call
    /// [`assist`].
    ///
    /// # Errors
    /// A file cannot be written, or the model lacks a tensor.
    pub fn write(&self, dir: &Path, model: &Model) -> io::Result<()> {
        let mut json = serde_json::to_vec_pretty(&self.config)?;
        json.push(b'\n');
        fs::write(dir.join("config.json"), json)?;
        self.renderer.write(dir)?;
        for entry in fs::read_dir(dir)? {
            fs::File::open(entry?.path())?.sync_all()?;
        }
        self.write_weights(dir, model)
    }

    fn write_weights(&self, dir: &Path, model: &Model) -> io::Result<()> {
        let entry = |(name, [rows, cols]): (String, [usize; 2])| {
            let shape = if name.ends_with("norm.weight") { vec![cols] } else { vec![rows, cols] };
            Entry { name, format: self.format, shape }
        };
        let entries: Vec<Entry> = expected_tensors(&self.shape).into_iter().map(entry).collect();
        let shards = shards(&entries, self.max_shard);
        let name_of = |i: usize| match shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        for (i, shard) in shards.iter().enumerate() {
            tensors::write(&dir.join(name_of(i)), shard, &[("format", "pt")], |at, out| {
                out.tensor(&model.tensor(&shard[at].name).map_err(io::Error::other)?)
            })?;
        }
        if shards.len() > 1 {
            let files = shards.iter().enumerate().flat_map(|(i, shard)| shard.iter().map(move |entry| (entry, i)));
            let map: Map<String, Value> = files.map(|(entry, i)| (entry.name.clone(), name_of(i).into())).collect();
            let total: u64 = entries.iter().map(Entry::bytes).sum();
            let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
            let path = dir.join("model.safetensors.index.json");
            fs::write(&path, serde_json::to_vec_pretty(&index)?)?;
            fs::File::open(path)?.sync_all()?;
        }
        Ok(())
    }
}

/// Gives the rank that writes a directory what it lacks: all tensors, in its order.
///
/// # Errors
/// A rank is lost.
pub fn assist(model: &Model) -> Result<(), ModelError> {
    expected_tensors(model.config()).iter().try_for_each(|(name, _)| model.tensor(name).map(drop))
}

/// Files of at most `most` bytes, or of one tensor that has more.
fn shards(entries: &[Entry], most: u64) -> Vec<&[Entry]> {
    let mut out = Vec::new();
    let (mut from, mut bytes) = (0, 0);
    for (i, entry) in entries.iter().enumerate() {
        if i > from && bytes + entry.bytes() > most {
            out.push(&entries[from..i]);
            (from, bytes) = (i, 0);
        }
        bytes += entry.bytes();
    }
    out.push(&entries[from..]);
    out
}

/// As it is written, rather than the double nearest to the float.
fn float(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// `config.json` of a `LlamaForCausalLM`. What ends an answer begins with the token that is learnt.
fn config_json(shape: &LlamaConfig, renderer: &Renderer, format: Number) -> Result<Map<String, Value>, UnknownFactors> {
    let mut ends: Vec<TokenId> = renderer.new_token().into_iter().collect();
    ends.extend(renderer.ends().iter().filter(|id| Some(**id) != renderer.new_token()));
    let dtype = if format == Number::Bf16 { "bfloat16" } else { "float32" };
    let json = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": float(shape.rms_norm_eps),
        "rope_theta": float(shape.rope_theta),
        "rope_scaling": scaling_json(shape)?,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "max_position_embeddings": shape.max_position_embeddings,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": renderer.prompts().tokenizer().bos_id().or(shape.bos_token_id),
        "eos_token_id": ends,
        "torch_dtype": dtype,
    });
    match json {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

fn scaling_json(shape: &LlamaConfig) -> Result<Value, UnknownFactors> {
    let known;
    let scaling = match &shape.rope_scaling {
        RopeScaling::Factors(_) => {
            known = known_factors(shape).ok_or(UnknownFactors)?;
            &known
        }
        scaling => scaling,
    };
    Ok(match scaling {
        RopeScaling::None | RopeScaling::Factors(_) => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": float(*factor) }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => json!({
            "rope_type": "llama3",
            "factor": float(*factor),
            "low_freq_factor": float(*low_freq_factor),
            "high_freq_factor": float(*high_freq_factor),
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
    })
}

/// GGUF has Llama 3's scaling as one factor a frequency. Those of the published models are recognised by their values.
fn known_factors(shape: &LlamaConfig) -> Option<RopeScaling> {
    let own = inverse_frequencies(shape);
    let candidates = [8.0, 16.0, 32.0].map(|factor| RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    });
    candidates.into_iter().find(|scaling| {
        let other = inverse_frequencies(&LlamaConfig { rope_scaling: scaling.clone(), ..shape.clone() });
        own.iter().zip(other).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shape(rope_scaling: RopeScaling) -> LlamaConfig {
        LlamaConfig {
            vocab_size: 128_256,
            hidden_size: 2048,
            intermediate_size: 8192,
            num_layers: 16,
            num_heads: 32,
            num_kv_heads: 8,
            head_dim: 64,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling,
            tie_word_embeddings: true,
            max_position_embeddings: 131_072,
            bos_token_id: None,
            eos_token_ids: vec![],
        }
    }

    /// Llama 3.2's factors, made as llama.cpp's converter makes them, are found again; others are refused.
    #[test]
    fn factors_of_llama_3_are_recognised() {
        let plain = inverse_frequencies(&shape(RopeScaling::None));
        for factor in [8.0, 32.0] {
            let scaling = RopeScaling::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 8192,
            };
            let scaled = inverse_frequencies(&shape(scaling.clone()));
            let factors: Vec<f32> = plain.iter().zip(scaled).map(|(a, b)| a / b).collect();
            assert_eq!(known_factors(&shape(RopeScaling::Factors(factors.clone()))), Some(scaling));
            let other = factors.iter().map(|f| f * 1.001).collect();
            assert!(scaling_json(&shape(RopeScaling::Factors(other))).is_err());
        }
    }

    #[test]
    fn shards_hold_what_fits() {
        let entry = |n: usize| Entry { name: n.to_string(), format: Number::Bf16, shape: vec![n] };
        let entries = [3, 4, 20, 1, 1, 8].map(entry);
        let sizes = |most| shards(&entries, most).iter().map(|s| s.len()).collect::<Vec<_>>();
        assert_eq!(sizes(16), [2, 1, 2, 1]);
        assert_eq!(sizes(1), [1; 6]);
        assert_eq!(sizes(u64::MAX), [6]);
    }
}
