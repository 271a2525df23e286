//! [`Ops`] on candle tensors in F32, differentiable throughout: training, and the oracle of the
//! serving backends.
//!
//! There is no cache: a batch holds whole sequences, and all of a sequence is recomputed.

mod functions;
mod lora;
mod training;

pub use lora::Adapter;

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use crate::engine::AdapterSlot;
use crate::model::config::LlamaConfig;
use crate::model::lora::Site;
use crate::model::rope::inverse_frequencies;
use crate::model::weights::TensorView;
use crate::ops::adapters::Slots;
use crate::ops::noise::Noise;
use crate::ops::{Batch, Ops, OpsError};

/// Adapters loaded at once.
const MAX_ADAPTERS: usize = 64;

/// Runs the Llama on candle tensors, on the CPU.
pub struct Graph {
    config: LlamaConfig,
    /// `[head_dim / 2]`.
    inverse_frequencies: Vec<f32>,
    device: Device,
    /// Every weight loaded so far, where they are to be trained.
    variables: Option<Vec<Var>>,
    adapters: Slots<Adapter>,
    /// Of the pass to come, in training.
    noise: Option<Noise>,
}

/// A weight matrix, `[out, in]`.
pub struct Linear {
    weight: Tensor,
    /// Index into [`Graph::variables`].
    variable: Option<usize>,
}

/// An RMSNorm.
pub struct Norm {
    /// `[hidden]`.
    weight: Tensor,
    eps: f32,
}

impl Graph {
    /// For inference: weights are constants.
    pub fn new(config: &LlamaConfig) -> Self {
        Self {
            config: config.clone(),
            inverse_frequencies: inverse_frequencies(config),
            device: Device::Cpu,
            variables: None,
            adapters: Slots::new(MAX_ADAPTERS),
            noise: None,
        }
    }

    /// For training: every weight that is loaded becomes a variable. Matrices merged by
    /// [`Ops::load_linear`] and [`Ops::load_gate_up`] are one variable.
    pub fn trainable(config: &LlamaConfig) -> Self {
        Self { variables: Some(Vec::new()), ..Self::new(config) }
    }

    /// The variables in the order they were loaded; empty unless [`Graph::trainable`].
    pub fn variables(&self) -> &[Var] {
        self.variables.as_deref().unwrap_or_default()
    }

    fn dequantize(&self, view: &TensorView<'_>) -> Result<Tensor, OpsError> {
        Ok(Tensor::from_vec(view.to_f32(), (view.rows, view.cols), &self.device)?)
    }

    /// What the operations compute with: `weight`, or a variable that begins as it.
    fn keep(&mut self, weight: Tensor) -> Result<Tensor, OpsError> {
        let Some(variables) = &mut self.variables else { return Ok(weight) };
        let variable = Var::from_tensor(&weight)?;
        let weight = variable.as_tensor().clone();
        variables.push(variable);
        Ok(weight)
    }

    fn index(&self, ids: &[u32]) -> Result<Tensor, OpsError> {
        Ok(Tensor::new(ids, &self.device)?)
    }
}

impl Ops for Graph {
    type X = Tensor;
    type Linear = Linear;
    type Norm = Norm;
    type Adapter = Adapter;

    fn load_adapter(&mut self, slot: AdapterSlot, adapter: Arc<Adapter>) -> Result<(), OpsError> {
        self.adapters.load(slot, adapter)
    }

    fn unload_adapter(&mut self, slot: AdapterSlot) {
        self.adapters.unload(slot);
    }

    fn load_linear(&mut self, parts: &[TensorView<'_>]) -> Result<Linear, OpsError> {
        let parts = parts.iter().map(|part| self.dequantize(part)).collect::<Result<Vec<_>, _>>()?;
        let variable = self.variables.as_ref().map(Vec::len);
        Ok(Linear { weight: self.keep(Tensor::cat(&parts, 0)?)?, variable })
    }

    /// Gate's rows, then up's.
    fn load_gate_up(&mut self, gate: &TensorView<'_>, up: &TensorView<'_>) -> Result<Linear, OpsError> {
        self.load_linear(&[*gate, *up])
    }

    fn load_norm(&mut self, weight: &TensorView<'_>, eps: f32) -> Result<Norm, OpsError> {
        let weight = self.dequantize(weight)?.flatten_all()?;
        Ok(Norm { weight: self.keep(weight)?, eps })
    }

    fn embed(&mut self, table: &Linear, batch: &Batch<'_>) -> Result<Tensor, OpsError> {
        self.adapters.check(batch)?;
        let x = table.weight.index_select(&self.index(batch.tokens)?, 0)?;
        self.disturb(x, batch)
    }

    fn rms_norm(&mut self, x: &Tensor, norm: &Norm) -> Result<Tensor, OpsError> {
        Ok(functions::rms_norm(x, &norm.weight, norm.eps)?)
    }

    fn linear(&mut self, at: Site, x: &Tensor, w: &Linear, batch: &Batch<'_>) -> Result<Tensor, OpsError> {
        Ok(self.adapt(at, x, x.matmul(&w.weight.t()?)?, batch)?)
    }

    fn attention(&mut self, _layer: usize, qkv: Tensor, batch: &Batch<'_>) -> Result<Tensor, OpsError> {
        for span in batch.spans {
            if span.start != 0 {
                return Err(OpsError::Limit(format!(
                    "a sequence starts at position {}, and the graph backend keeps no cache of what came before",
                    span.start
                )));
            }
        }
        let (cos, sin) = functions::rotation(batch.positions, &self.inverse_frequencies, &self.device)?;
        let (rows, kv_width) = (qkv.dim(0)?, self.config.num_kv_heads * self.config.head_dim);
        let q_width = self.config.num_heads * self.config.head_dim;
        let rotate = |start: usize, heads: usize| -> candle_core::Result<Tensor> {
            let width = heads * self.config.head_dim;
            let x = qkv.narrow(1, start, width)?.reshape((rows, heads, self.config.head_dim))?;
            functions::rotate(&x, &cos, &sin)?.reshape((rows, width))
        };
        let q = rotate(0, self.config.num_heads)?;
        let k = rotate(q_width, self.config.num_kv_heads)?;
        let v = qkv.narrow(1, q_width + kv_width, kv_width)?;
        let attended = batch
            .spans
            .iter()
            .map(|span| functions::attend(&q, &k, &v, &span.tokens, self.config.num_heads, self.config.num_kv_heads))
            .collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Tensor::cat(&attended, 0)?)
    }

    fn linear_add(
        &mut self,
        at: Site,
        x: Tensor,
        w: &Linear,
        residual: Tensor,
        batch: &Batch<'_>,
    ) -> Result<Tensor, OpsError> {
        let product = self.linear(at, &x, w, batch)?;
        Ok((residual + self.drop(at, product, batch)?)?)
    }

    fn gate_up_silu(&mut self, at: Site, x: &Tensor, w: &Linear, batch: &Batch<'_>) -> Result<Tensor, OpsError> {
        let both = self.linear(at, x, w, batch)?;
        let width = both.dim(1)? / 2;
        Ok((both.narrow(1, 0, width)?.silu()? * both.narrow(1, width, width)?)?)
    }

    fn head(&mut self, x: &Tensor, norm: &Norm, w: &Linear, batch: &Batch<'_>) -> Result<Tensor, OpsError> {
        Ok(self.hidden(x, norm, batch)?.matmul(&w.weight.t()?)?)
    }

    fn hidden(&mut self, x: &Tensor, norm: &Norm, batch: &Batch<'_>) -> Result<Tensor, OpsError> {
        let rows = x.index_select(&self.index(batch.outputs)?, 0)?;
        self.rms_norm(&rows, norm)
    }
}
