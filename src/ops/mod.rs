//! The fused operations a Llama is made of, and what carries them out.
//!
//! The model ([`crate::model::llama`]) is written once over [`Ops`]. [`graph::Graph`] runs it on candle
//! tensors with gradients: training, and the oracle of the others. [`cpu::Cpu`] runs it with packed
//! weights, SIMD kernels and a paged cache: serving.

pub mod adapters;
pub mod cpu;
pub mod dense;
pub mod graph;
pub mod noise;
pub mod parameter;
pub mod philox;
pub mod quant;
pub mod tape;

use std::ops::Range;
use std::sync::Arc;

use crate::engine::{AdapterSlot, BlockId, TokenId};
use crate::model::lora::Site;
use crate::model::weights::TensorView;
use crate::parallel::CommError;

/// One sequence's part of a batch: `tokens` of the batch stand at positions `start..start + len`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Index range into [`Batch::tokens`].
    pub tokens: Range<usize>,
    /// Absolute position of the first token; everything before is in the cache.
    pub start: usize,
    /// Index range into [`Batch::blocks`]: the block table of positions `0..start + len`.
    pub blocks: Range<usize>,
    /// LoRA adapter.
    pub adapter: Option<AdapterSlot>,
}

/// What one forward pass computes. `T` tokens of any number of sequences, side by side.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// `[T]` token ids.
    pub tokens: &'a [TokenId],
    /// `[T]` absolute positions.
    pub positions: &'a [u32],
    /// The sequences, in token order, covering all tokens.
    pub spans: &'a [Span],
    /// Block tables of all spans.
    pub blocks: &'a [BlockId],
    /// `[R]` ascending indices into `tokens`: the rows whose logits are wanted.
    pub outputs: &'a [u32],
}

/// An operation could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    /// A weight has a type or shape this backend does not take.
    #[error("{0}")]
    Unsupported(String),
    /// A weight is NaN or infinite, or the scale of quantised ones is.
    #[error("row {row} has a number that is not finite")]
    NotFinite {
        /// Which of the matrices that are stacked.
        part: usize,
        /// Its row.
        row: usize,
    },
    /// A weight is too large for the type it is converted to.
    #[error("row {row} has a number beyond the range of {dtype}")]
    Range {
        /// Which of the matrices that are stacked.
        part: usize,
        /// Its row.
        row: usize,
        /// The type.
        dtype: quant::DType,
    },
    /// The batch breaks a limit the backend was built with.
    #[error("batch exceeds the backend's limits: {0}")]
    Limit(String),
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// Other ranks are lost.
    #[error(transparent)]
    Ranks(#[from] CommError),
}

impl OpsError {
    /// The same, where the matrices it counts came after `n` others.
    pub(crate) fn after(mut self, n: usize) -> Self {
        if let Self::NotFinite { part, .. } | Self::Range { part, .. } = &mut self {
            *part += n;
        }
        self
    }

    /// Which of the matrices that were to be stacked is at fault, as far as one is.
    pub fn part(&self) -> usize {
        match self {
            Self::NotFinite { part, .. } | Self::Range { part, .. } => *part,
            _ => 0,
        }
    }
}

/// Fused operations over activations `X`, `[T, width]` each.
///
/// `Linear` maps `[T, in]` to `[T, out]` by `x · Wᵀ`; weights come from checkpoints as `[out, in]`.
pub trait Ops {
    /// Activations.
    type X;
    /// A weight matrix, possibly several merged by rows.
    type Linear;
    /// An RMSNorm's weight.
    type Norm;
    /// A LoRA adapter's matrices.
    type Adapter;

    /// Makes a linear map from matrices with the same number of columns, stacked by rows.
    fn load_linear(&mut self, parts: &[TensorView<'_>]) -> Result<Self::Linear, OpsError>;
    /// Makes the merged gate and up projections, in the layout [`Ops::gate_up_silu`] wants.
    fn load_gate_up(&mut self, gate: &TensorView<'_>, up: &TensorView<'_>) -> Result<Self::Linear, OpsError>;
    /// Makes a norm from `[hidden]` weights.
    fn load_norm(&mut self, weight: &TensorView<'_>, eps: f32) -> Result<Self::Norm, OpsError>;

    /// Puts an adapter into a slot: spans may name it from now on. What was there goes.
    fn load_adapter(&mut self, slot: AdapterSlot, adapter: Arc<Self::Adapter>) -> Result<(), OpsError>;
    /// Empties a slot, if it still holds what was loaded under this generation.
    fn unload_adapter(&mut self, slot: AdapterSlot);

    /// Rows of `table` (`[vocab, hidden]`) for the batch's tokens → `[T, hidden]`: the residual stream.
    fn embed(&mut self, table: &Self::Linear, batch: &Batch<'_>) -> Result<Self::X, OpsError>;
    /// `x / rms(x) · weight`.
    fn rms_norm(&mut self, x: &Self::X, norm: &Self::Norm) -> Result<Self::X, OpsError>;
    /// `x · Wᵀ`, here and below with what the spans' adapters add to the product `at`.
    fn linear(&mut self, at: Site, x: &Self::X, w: &Self::Linear, batch: &Batch<'_>) -> Result<Self::X, OpsError>;
    /// Rotates q and k by position, appends k and v to layer `layer`'s cache, and attends causally.
    /// `qkv` is `[T, (heads + 2 kv_heads) · head_dim]`; returns `[T, heads · head_dim]`.
    fn attention(&mut self, layer: usize, qkv: Self::X, batch: &Batch<'_>) -> Result<Self::X, OpsError>;
    /// `residual + x · Wᵀ` (row-parallel: all-reduced before the addition).
    fn linear_add(
        &mut self,
        at: Site,
        x: Self::X,
        w: &Self::Linear,
        residual: Self::X,
        batch: &Batch<'_>,
    ) -> Result<Self::X, OpsError>;
    /// `silu(x · W_gateᵀ) · (x · W_upᵀ)` → `[T, intermediate]`.
    fn gate_up_silu(&mut self, at: Site, x: &Self::X, w: &Self::Linear, batch: &Batch<'_>)
    -> Result<Self::X, OpsError>;
    /// Final norm and logits of the batch's output rows → `[R, vocab]`. May be called again with other outputs.
    fn head(
        &mut self,
        x: &Self::X,
        norm: &Self::Norm,
        w: &Self::Linear,
        batch: &Batch<'_>,
    ) -> Result<Self::X, OpsError>;
    /// Final norm of the batch's output rows → `[R, hidden]`.
    fn hidden(&mut self, x: &Self::X, norm: &Self::Norm, batch: &Batch<'_>) -> Result<Self::X, OpsError>;
}
