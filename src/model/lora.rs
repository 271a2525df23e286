//! LoRA adapters in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! An adapted projection computes `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ` with `A: [rank, in]`, `B: [out, rank]`.
//! What PEFT can save and this does not compute (DoRA, biases, embeddings, whole modules) is refused by the
//! field's or the tensor's name.

mod file;
mod peft;
#[cfg(test)]
mod tests;

pub use file::Adapter;

use crate::model::config::LlamaConfig;

/// A matrix of a layer that an adapter may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Projection {
    Q,
    K,
    V,
    Output,
    Gate,
    Up,
    Down,
}

impl Projection {
    /// All of a layer.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// Its name inside a layer.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// `(out, in)`.
    pub fn shape(self, config: &LlamaConfig) -> (usize, usize) {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        match self {
            Self::Q => (config.q_size(), hidden),
            Self::K | Self::V => (config.kv_size(), hidden),
            Self::Output => (hidden, config.q_size()),
            Self::Gate | Self::Up => (inner, hidden),
            Self::Down => (hidden, inner),
        }
    }
}

/// Projections that are one product, because they read the same input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Part {
    Qkv,
    Output,
    GateUp,
    Down,
}

impl Part {
    /// All of a layer.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::Output, Self::GateUp, Self::Down];

    /// Its projections, in the order their rows are merged.
    pub fn projections(self) -> &'static [Projection] {
        match self {
            Self::Qkv => &[Projection::Q, Projection::K, Projection::V],
            Self::Output => &[Projection::Output],
            Self::GateUp => &[Projection::Gate, Projection::Up],
            Self::Down => &[Projection::Down],
        }
    }
}

/// Which product of the model: adapters are found by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Layer.
    pub layer: usize,
    /// Product of the layer.
    pub part: Part,
}

/// What an adapter adds to one projection.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// `[rank, in]`, finite.
    pub a: Vec<f32>,
    /// `[out, rank]`, finite.
    pub b: Vec<f32>,
    /// `alpha / rank`, or `alpha / √rank` (rsLoRA).
    pub scale: f32,
}
