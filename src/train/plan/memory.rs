//! Bytes that training takes on each rank, by kind.

use super::shapes::{adapters, matrices, parameters};
use crate::engine::BLOCK_SIZE;
use crate::model::config::LlamaConfig;
use crate::ops::quant::DType;
use crate::parallel::Layout;

/// What is trained, and how it is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Training {
    /// All parameters.
    Full {
        /// F32: masters that are rounded where that is computed in less. BF16: no masters, updated with stochastic
        /// rounding.
        weights: DType,
        /// Of AdamW.
        moments: DType,
    },
    /// Adapters of a rank on all linear layers, in F32; the base's matrices frozen in this format.
    Lora {
        /// Of the adapters.
        rank: usize,
        /// Of the frozen matrices; on GPUs those of the layers alone, and embedding and head in BF16. Norms are not cut.
        base: DType,
    },
}

impl Training {
    /// All parameters, F32 masters and moments.
    pub const MASTERS: Self = Self::Full { weights: DType::F32, moments: DType::F32 };
    /// All parameters, weights and moments in BF16.
    pub const BF16: Self = Self::Full { weights: DType::BF16, moments: DType::BF16 };
}

/// Bytes on each rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// Weights that are trained, in the format that is computed in.
    pub weights: f64,
    /// The frozen base.
    pub frozen: f64,
    /// Gradients.
    pub gradients: f64,
    /// F32 masters, where they are not the weights, and moments.
    pub states: f64,
    /// Activations: with checkpointing the residual stream between layers, and one layer at a time; else all layers.
    pub activations: f64,
    /// Logits of a chunk of rows, and their gradient.
    pub loss: f64,
    /// The engine that answers dev prompts, which stands beside all of it.
    pub answers: f64,
    /// What does not depend on the model.
    pub other: f64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> f64 {
        let training = self.weights + self.frozen + self.gradients + self.states + self.activations + self.loss;
        training + self.answers + self.other
    }

    /// All of so many ranks in one process.
    pub fn of_all(&self, ranks: usize) -> f64 {
        let once = self.answers + self.other;
        (self.total() - once) * ranks as f64 + once
    }
}

/// Who computes: how much of what it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// GPUs: BF16 throughout, gradients too; flash attention. Not an implementation, a reckoning.
    Gpu,
    /// This project's training on the processor: F32 activations and gradients, weights in the format they are kept in.
    Cpu {
        /// Worker threads.
        threads: usize,
    },
}

/// What a micro-batch is, and what is kept of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Its tokens.
    pub tokens: usize,
    /// Of its longest example.
    pub longest: usize,
    /// Activation checkpointing.
    pub checkpointing: bool,
}

const GIB: f64 = (1u64 << 30) as f64;
const MIB: f64 = (1u64 << 20) as f64;

impl Backend {
    /// Bytes of an activation.
    pub fn activation(self) -> f64 {
        match self {
            Self::Gpu => 2.0,
            Self::Cpu { .. } => 4.0,
        }
    }

    /// Bytes of a weight that is computed with, where it is kept in `weights`.
    fn weight(self, weights: f64) -> f64 {
        match self {
            Self::Gpu => weights.min(2.0),
            Self::Cpu { .. } => weights,
        }
    }

    /// Numbers that the layers keep for a token, at most, over `tensor` ranks.
    fn activations(self, config: &LlamaConfig, tensor: f64, checkpointing: bool) -> f64 {
        let (h, f) = (config.hidden_size as f64, config.intermediate_size as f64 / tensor);
        let (q, kv) = (config.q_size() as f64 / tensor, config.kv_size() as f64 / tensor);
        let layers = config.num_layers as f64;
        match self {
            Self::Gpu => {
                // Residual stream and its norm, twice; q, k, v; q and k rotated; attention's output; gate, up, product.
                let layer = 4.0 * h + 3.0 * q + 3.0 * kv + 3.0 * f;
                // Gradients on the way back.
                let back = 2.0 * h + 3.0 * f;
                if checkpointing { layers * h + layer + back } else { layers * layer + back }
            }
            Self::Cpu { .. } => {
                // In place where it can be: norm, q, k and v (rotated), attention's output with a logarithm a head, what
                // it is added to, norm, gate and up, product, output, and a bit each for dropout.
                let (bits, heads) = (h / 16.0, config.num_heads as f64);
                let layer = 4.0 * h + 2.0 * q + 2.0 * kv + 3.0 * f + heads + bits + 2.0;
                // Gradients of the stream, of the product, of q, k and v.
                let back = 3.0 * h + f + (q + 2.0 * kv);
                if checkpointing { layers * h + layer + back } else { layers * layer + h + back }
            }
        }
    }

    /// Bytes of the logits that exist at once, and of their gradient.
    fn loss(self, config: &LlamaConfig, tensor: f64, tokens: f64) -> f64 {
        let row = config.vocab_size as f64 / tensor * 4.0;
        match self {
            Self::Gpu => tokens.min(512.0) * row * 2.0,
            // One becomes the other in place.
            Self::Cpu { .. } => (tokens * row).min(64.0 * MIB),
        }
    }

    /// Bytes that depend on nothing else.
    fn other(self, config: &LlamaConfig, longest: usize) -> f64 {
        match self {
            // The driver's context, workspaces, and what allocation wastes.
            Self::Gpu => 2.0 * GIB,
            Self::Cpu { threads } => {
                // Scores of a block of 64 queries of the heads that share keys, and their gradient.
                let scores = (config.num_heads / config.num_kv_heads * 64 * longest * 2 * 4) as f64;
                PROCESS + threads as f64 * scores
            }
        }
    }
}

/// The process itself: program, tokenizer, examples, packing buffers.
const PROCESS: f64 = 100.0 * MIB;

/// Bytes on each rank of a layout.
pub fn memory(config: &LlamaConfig, training: Training, layout: Layout, pass: Pass, backend: Backend) -> Memory {
    let (tensor, data) = (layout.tensor as f64, layout.data as f64);
    let norms = ((2 * config.num_layers + 1) * config.hidden_size) as f64;
    let all = parameters(config) as f64;
    // Norms are on every rank.
    let here = (all - norms) / tensor + norms;
    let tokens = pass.tokens as f64;
    let mut memory = Memory {
        activations: tokens * backend.activations(config, tensor, pass.checkpointing) * backend.activation(),
        loss: backend.loss(config, tensor, tokens),
        other: backend.other(config, pass.longest),
        ..Memory::default()
    };
    match training {
        Training::Full { weights, moments } => {
            // Masters stand beside the weights only where these are of another format.
            let kept = bytes_of(weights);
            let computed = backend.weight(kept);
            let masters = if computed < kept { kept } else { 0.0 };
            memory.weights = here * computed;
            memory.gradients = here * backend.activation();
            memory.states = here * (masters + 2.0 * bytes_of(moments)) / data;
        }
        Training::Lora { rank, base } => {
            let (quantised, whole) = match backend {
                Backend::Gpu => (matrices(config) as f64 / tensor, 2.0),
                Backend::Cpu { .. } => (here - norms, 4.0),
            };
            memory.frozen = quantised * bytes_of(base) + (here - quantised) * whole;
            // The end-of-turn token's rows are trained in full beside the adapters. Small enough not to be sharded.
            let trained = (adapters(config, rank) + 2 * config.hidden_size as u64) as f64 / tensor;
            memory.weights = trained * 4.0;
            memory.gradients = trained * 4.0;
            memory.states = trained * 8.0 / data;
        }
    }
    memory
}

/// What the engine takes that answers dev prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Format of the saved weights.
    pub weights: DType,
    /// Answers at a time.
    pub sequences: usize,
    /// Of the longest, with its prompt.
    pub tokens: usize,
}

impl Answers {
    /// Weights, the cache, and workspaces.
    pub fn bytes(&self, config: &LlamaConfig) -> f64 {
        let cache = if self.weights == DType::F32 { 4 } else { 2 };
        let token = 2 * config.kv_size() * config.num_layers * cache;
        let room = self.tokens.next_multiple_of(BLOCK_SIZE) * self.sequences * token;
        parameters(config) as f64 * bytes_of(self.weights) + room as f64 + 32.0 * MIB
    }
}

/// Bytes of a number.
fn bytes_of(dtype: DType) -> f64 {
    dtype.block_bytes() as f64 / dtype.block_len() as f64
}

/// The residual stream between the layers, which checkpointing keeps of a sequence: bytes.
pub fn checkpoints(config: &LlamaConfig, tokens: usize, backend: Backend) -> f64 {
    (config.num_layers * config.hidden_size * tokens) as f64 * backend.activation()
}
