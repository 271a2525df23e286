//! What training adds: noise, and a vocabulary that grows.

use candle_core::{Result, Tensor, Var};

use super::{Graph, Linear};
use crate::model::lora::Site;
use crate::ops::noise::{Noise, Place};
use crate::ops::{Batch, OpsError};

impl Graph {
    /// The noise of the passes to come; `None`: none, as in serving.
    pub fn set_noise(&mut self, noise: Option<Noise>) {
        self.noise = noise;
    }

    /// Gives a matrix with a row for each token `rows` of them: row `new` becomes the mean of those before, and what is
    /// beyond the old ones zero.
    pub fn extend(&mut self, table: &mut Linear, new: usize, rows: usize) -> std::result::Result<(), OpsError> {
        let (old, cols) = table.weight.dims2()?;
        let mean = table.weight.narrow(0, 0, new)?.mean_keepdim(0)?;
        let mut parts = vec![table.weight.narrow(0, 0, new)?.detach(), mean.detach()];
        if new + 1 < old {
            parts.push(table.weight.narrow(0, new + 1, old - new - 1)?.detach());
        }
        if rows > old.max(new + 1) {
            parts.push(Tensor::zeros((rows - old.max(new + 1), cols), table.weight.dtype(), &self.device)?);
        }
        table.weight = Tensor::cat(&parts, 0)?;
        if let (Some(at), Some(variables)) = (table.variable, &mut self.variables) {
            let variable = Var::from_tensor(&table.weight)?;
            table.weight = variable.as_tensor().clone();
            variables[at] = variable;
        }
        Ok(())
    }

    /// `x: [T, hidden]` with NEFTune's noise.
    pub(super) fn disturb(&self, x: Tensor, batch: &Batch<'_>) -> std::result::Result<Tensor, OpsError> {
        let Some(noise) = self.noise.as_ref().filter(|n| n.neftune != 0.0) else { return Ok(x) };
        let (rows, cols) = x.dims2()?;
        let mut values = vec![0.0; rows * cols];
        let lens = batch.spans.iter().flat_map(|s| std::iter::repeat_n(s.tokens.len(), s.tokens.len()));
        for ((token, len), out) in
            noise.tokens(batch.spans, batch.positions).into_iter().zip(lens).zip(values.chunks_exact_mut(cols))
        {
            noise.disturb(token, len, out);
        }
        Ok((x + Tensor::from_vec(values, (rows, cols), &self.device)?)?)
    }

    /// What goes into the residual stream, under dropout.
    pub(super) fn drop(&self, at: Site, product: Tensor, batch: &Batch<'_>) -> Result<Tensor> {
        let Some(noise) = self.noise.as_ref().filter(|n| n.rate(at.layer) > 0.0) else { return Ok(product) };
        let (rows, cols) = product.dims2()?;
        let (mut kept, mut factors) = (vec![0u8; cols.div_ceil(8)], Vec::with_capacity(rows * cols));
        for token in noise.tokens(batch.spans, batch.positions) {
            noise.kept(at.layer, Place::of(at.part), token, cols, &mut kept);
            factors.extend((0..cols).map(|i| f32::from(kept[i / 8] >> (i % 8) & 1) * noise.scale(at.layer)));
        }
        product * Tensor::from_vec(factors, (rows, cols), &self.device)?
    }
}
