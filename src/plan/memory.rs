//! Bytes on a rank.

use clap::ValueEnum;
use serde::Serialize;

use super::Device;
use super::device::other;
use crate::model::config::LlamaConfig;
use crate::model::weights::expected_tensors;
use crate::ops::quant::DType;

/// How matrices are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 8 bits and a 16-bit scale for 32 numbers (Q8_0).
    Int8,
    /// 4 bits and a 16-bit scale for 32 numbers (Q4_0).
    Int4,
}

impl WeightFormat {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::Int8 => DType::Q8_0,
            Self::Int4 => DType::Q4_0,
        }
    }

    /// Columns that belong together.
    pub fn block(self) -> usize {
        self.dtype().block_len()
    }

    /// Bytes of a number.
    pub fn bytes(self) -> f64 {
        self.dtype().block_bytes() as f64 / self.dtype().block_len() as f64
    }

    /// As `--dtype` would have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvFormat {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 8 bits, and a 32-bit scale for each token, head, and key or value.
    Int8,
}

impl KvFormat {
    /// Bytes of a token's keys and values in all layers.
    pub fn token_bytes(self, config: &LlamaConfig) -> f64 {
        let heads = (2 * config.num_layers * config.num_kv_heads) as f64;
        heads
            * match self {
                Self::F32 => 4.0 * config.head_dim as f64,
                Self::Bf16 => 2.0 * config.head_dim as f64,
                Self::Int8 => config.head_dim as f64 + 4.0,
            }
    }

    /// As `--kv-cache-dtype` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

/// What a step computes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Tokens.
    pub tokens: usize,
    /// Sequences, a row of logits each.
    pub sequences: usize,
}

/// Bytes on a rank, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// Matrices and norms.
    pub weights: f64,
    /// Keys and values: what the rest leaves.
    pub cache: f64,
    /// Of the largest step: the residual stream, a layer's activations, logits.
    pub activations: f64,
    /// What does not depend on the model: the driver's context, workspaces, captured graphs, buffers of collectives.
    pub other: f64,
}

impl Memory {
    /// What a rank of this shape takes, without a cache.
    pub(super) fn of(shape: &LlamaConfig, format: WeightFormat, step: Step, ranks: usize, device: Device) -> Self {
        let number = if device.is_cpu { 4.0 } else { 2.0 };
        let tokens = step.tokens.max(step.sequences) as f64;
        let (q, kv, mlp) = (shape.q_size() as f64, shape.kv_size() as f64, shape.intermediate_size as f64);
        // Residual stream and its norm; q, k and v; attention's output; gate, up and their product; a sum over ranks.
        let sums = if ranks > 1 { 1.0 } else { 0.0 };
        let numbers = (2.0 + sums) * shape.hidden_size as f64 + (q + 2.0 * kv) + q + 3.0 * mlp;
        // Where they are made, and where they are gathered.
        let logits =
            step.sequences as f64 * (shape.vocab_size * if ranks > 1 { 1 + 2 * ranks } else { 1 }) as f64 * 4.0;
        Self {
            weights: weights(shape, format),
            cache: 0.0,
            activations: tokens * numbers * number + logits,
            other: other(&device, ranks),
        }
    }

    /// All but keys and values.
    pub fn without_cache(&self) -> f64 {
        self.weights + self.activations + self.other
    }
}

/// Bytes of all tensors of a shape; norms are not quantised.
pub(super) fn weights(shape: &LlamaConfig, format: WeightFormat) -> f64 {
    let bytes = |[rows, cols]: [usize; 2]| match rows {
        1 => cols as f64 * 4.0,
        _ => (rows * cols) as f64 * format.bytes(),
    };
    expected_tensors(shape).into_iter().map(|(_, size)| bytes(size)).sum()
}
