//! Bytes that training takes on each rank, by kind.

use super::shapes::{adapters, matrices, parameters};
use crate::model::config::LlamaConfig;
use crate::ops::quant::DType;

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
        /// Of the frozen matrices. Embedding, head and norms stay in the format that is computed in.
        base: DType,
    },
}

/// How a model is spread over ranks: `tensor` ranks hold one model, and `data` such groups share the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Ranks that every matrix is cut over.
    pub tensor: usize,
    /// Groups, over which the optimizer's states are sharded (ZeRO-1).
    pub data: usize,
}

impl Training {
    /// All parameters, F32 masters and moments.
    pub const MASTERS: Self = Self::Full { weights: DType::F32, moments: DType::F32 };
    /// All parameters, weights and moments in BF16.
    pub const BF16: Self = Self::Full { weights: DType::BF16, moments: DType::BF16 };
}

impl Layout {
    /// One rank.
    pub const ONE: Self = Self { tensor: 1, data: 1 };

    /// All ranks.
    pub fn ranks(self) -> usize {
        self.tensor * self.data
    }
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
    /// What does not depend on the model.
    pub other: f64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.weights + self.frozen + self.gradients + self.states + self.activations + self.loss + self.other
    }
}

/// What an implementation takes. Bytes a number, and numbers a token.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// Of activations, and of weights unless they are kept in less.
    pub compute: f64,
    /// Of gradients of all parameters; those of adapters are F32.
    pub gradients: f64,
    /// Rows of logits at a time.
    pub loss_rows: f64,
    /// F32 copies of such rows at once.
    pub loss_copies: f64,
    /// Beside everything else.
    pub other: f64,
}

/// GPUs: bf16 throughout, flash attention; 2 GiB for the driver's context, workspaces and what allocation wastes.
pub const GPU: Backend =
    Backend { compute: 2.0, gradients: 2.0, loss_rows: 512.0, loss_copies: 2.0, other: 2.0 * GIB };

/// This machine's processor: F32 throughout.
pub const CPU: Backend =
    Backend { compute: 4.0, gradients: 4.0, loss_rows: 256.0, loss_copies: 3.0, other: 0.1 * GIB };

const GIB: f64 = (1u64 << 30) as f64;

/// Tokens of a forward pass, and whether activations are recomputed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Of a micro-batch.
    pub tokens: usize,
    /// Activation checkpointing.
    pub checkpointing: bool,
}

/// Numbers that a layer keeps for its backward pass, a token: of width `hidden`, on every rank; and within attention and
/// MLP, cut over the ranks of a layout.
///
/// Residual stream, its norm, both once more for the MLP; q, k and v, q and k rotated, attention's output; gate, up, and
/// their product.
fn kept(config: &LlamaConfig) -> (f64, f64) {
    let inner = 3 * config.q_size() + 3 * config.kv_size() + 3 * config.intermediate_size;
    ((4 * config.hidden_size) as f64, inner as f64)
}

/// Gradients beside them while a layer goes backward.
fn going_back(config: &LlamaConfig) -> (f64, f64) {
    ((2 * config.hidden_size) as f64, (3 * config.intermediate_size) as f64)
}

/// Bytes on each rank of a layout.
pub fn memory(config: &LlamaConfig, training: Training, layout: Layout, pass: Pass, backend: &Backend) -> Memory {
    let (tensor, data) = (layout.tensor as f64, layout.data as f64);
    let norms = ((2 * config.num_layers + 1) * config.hidden_size) as f64;
    let all = parameters(config) as f64;
    // Norms are on every rank.
    let here = |parameters: f64| (parameters - norms) / tensor + norms;
    let mut memory = Memory { other: backend.other, ..Memory::default() };
    match training {
        Training::Full { weights, moments } => {
            // Masters stand beside the weights only where these are of another format.
            let computed = backend.compute.min(bytes_of(weights));
            let masters = if computed < bytes_of(weights) { bytes_of(weights) } else { 0.0 };
            memory.weights = here(all) * computed;
            memory.gradients = here(all) * backend.gradients;
            memory.states = here(all) * (masters + 2.0 * bytes_of(moments)) / data;
        }
        Training::Lora { rank, base } => {
            let matrices = matrices(config) as f64;
            let whole = backend.compute.max(bytes_of(base));
            memory.frozen = matrices / tensor * bytes_of(base) + (here(all) - matrices / tensor) * whole;
            // The end-of-turn token's rows are trained in full beside the adapters. Small enough not to be sharded.
            let trained = (adapters(config, rank) + 2 * config.hidden_size as u64) as f64 / tensor;
            memory.weights = trained * 4.0;
            memory.gradients = trained * 4.0;
            memory.states = trained * 8.0 / data;
        }
    }
    let tokens = pass.tokens as f64;
    let (wide, cut) = kept(config);
    let (wide_back, cut_back) = going_back(config);
    let layer = wide + cut / tensor;
    let back = wide_back + cut_back / tensor;
    let layers = config.num_layers as f64;
    let numbers = match pass.checkpointing {
        true => layers * config.hidden_size as f64 + layer + back,
        false => layers * layer + back,
    };
    memory.activations = tokens * numbers * backend.compute;
    let vocabulary = config.vocab_size as f64 / tensor;
    memory.loss = tokens.min(backend.loss_rows) * vocabulary * 4.0 * backend.loss_copies;
    memory
}

/// Bytes of a number.
fn bytes_of(dtype: DType) -> f64 {
    dtype.block_bytes() as f64 / dtype.block_len() as f64
}

/// The residual stream between the layers, which checkpointing keeps of a sequence: bytes.
pub fn checkpoints(config: &LlamaConfig, tokens: usize, backend: &Backend) -> f64 {
    (config.num_layers * config.hidden_size * tokens) as f64 * backend.compute
}
