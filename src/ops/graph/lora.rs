//! LoRA on candle tensors: gradients reach A and B.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, Var};

use super::Graph;
use crate::model::config::LlamaConfig;
use crate::model::lora::{self, Projection, Site};
use crate::ops::Batch;

/// An adapter's matrices.
pub struct Adapter {
    pairs: BTreeMap<(usize, Projection), Pair>,
    variables: Vec<Var>,
}

struct Pair {
    /// `[in, rank]`.
    a: Tensor,
    /// `[rank, out]`.
    b: Tensor,
    scale: f64,
}

impl Adapter {
    /// For inference: constants.
    pub fn new(adapter: &lora::Adapter, config: &LlamaConfig) -> Result<Self> {
        Self::make(adapter, config, false)
    }

    /// For training: A and B of every adapted projection are variables.
    pub fn trainable(adapter: &lora::Adapter, config: &LlamaConfig) -> Result<Self> {
        Self::make(adapter, config, true)
    }

    fn make(adapter: &lora::Adapter, config: &LlamaConfig, trainable: bool) -> Result<Self> {
        let (mut pairs, mut variables) = (BTreeMap::new(), Vec::new());
        let mut matrix = |values: &[f32], rows: usize, cols: usize| {
            let tensor = Tensor::from_slice(values, (rows, cols), &Device::Cpu)?;
            if !trainable {
                return tensor.t();
            }
            let variable = Var::from_tensor(&tensor)?;
            variables.push(variable.clone());
            variable.as_tensor().t()
        };
        for layer in 0..config.num_layers {
            for projection in Projection::ALL {
                let Some(pair) = adapter.pair(layer, projection) else { continue };
                let (out, cols) = projection.shape(config);
                let (a, b) = (matrix(&pair.a, pair.rank, cols)?, matrix(&pair.b, out, pair.rank)?);
                pairs.insert((layer, projection), Pair { a, b, scale: f64::from(pair.scale) });
            }
        }
        Ok(Self { pairs, variables })
    }

    /// A and B of each adapted projection, layer by layer, as `[rank, in]` and `[out, rank]`; empty unless
    /// [`Adapter::trainable`].
    pub fn variables(&self) -> &[Var] {
        &self.variables
    }
}

impl Graph {
    /// `product` with what the spans' adapters add to it. `x: [T, in]`, `product: [T, out]`.
    pub(super) fn adapt(&self, at: Site, x: &Tensor, product: Tensor, batch: &Batch<'_>) -> Result<Tensor> {
        if batch.spans.iter().all(|s| s.adapter.is_none()) {
            return Ok(product);
        }
        let mut rows = Vec::with_capacity(batch.spans.len());
        for span in batch.spans {
            let part = product.narrow(0, span.tokens.start, span.tokens.len())?;
            let adapter = span.adapter.and_then(|slot| self.adapters.get(slot));
            rows.push(match adapter {
                None => part,
                Some(adapter) => {
                    let x = x.narrow(0, span.tokens.start, span.tokens.len())?;
                    self.add(at, adapter, &x, part)?
                }
            });
        }
        Tensor::cat(&rows, 0)
    }

    fn add(&self, at: Site, adapter: &Adapter, x: &Tensor, product: Tensor) -> Result<Tensor> {
        let mut columns = Vec::new();
        let mut from = 0;
        for &projection in at.part.projections() {
            let width = projection.shape(&self.config).0;
            let part = product.narrow(1, from, width)?;
            from += width;
            columns.push(match adapter.pairs.get(&(at.layer, projection)) {
                None => part,
                Some(pair) => (part + (x.matmul(&pair.a)?.matmul(&pair.b)? * pair.scale)?)?,
            });
        }
        Tensor::cat(&columns, 1)
    }
}
