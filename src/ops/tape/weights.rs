//! Weights as variables.

use candle_core::{Device, Tensor, Var};

use super::Tape;
use crate::model::weights::TensorView;
use crate::ops::OpsError;
use crate::ops::parameter::edit;

/// A weight matrix `[out, in]`, by its place among the tape's weights.
pub struct Linear(pub(super) usize);

/// An RMSNorm's weight, likewise.
pub struct Norm {
    pub(super) weight: usize,
    pub(super) eps: f32,
}

pub(super) struct Weight {
    /// `[rows, cols]`, a norm's `[cols]`.
    pub var: Var,
    pub rows: usize,
    pub cols: usize,
}

impl Tape {
    /// The views stacked by rows.
    pub(super) fn keep(&mut self, parts: &[TensorView<'_>], is_norm: bool) -> Result<usize, OpsError> {
        let cols = parts.first().map_or(0, |p| p.cols);
        let rows = parts.iter().map(|p| p.rows).sum();
        if parts.iter().any(|p| p.cols != cols) {
            return Err(OpsError::Unsupported("matrices of different widths cannot be stacked".into()));
        }
        // Dequantised in place: a copy of the largest matrix would be the peak of memory.
        let var = match is_norm {
            true => Var::zeros(cols, candle_core::DType::F32, &Device::Cpu)?,
            false => Var::zeros((rows, cols), candle_core::DType::F32, &Device::Cpu)?,
        };
        edit(var.as_tensor(), |out| {
            let mut out = out.chunks_exact_mut(cols.max(1));
            for part in parts {
                (0..part.rows).zip(out.by_ref()).for_each(|(i, row)| part.read_row(i, row));
            }
        })?;
        self.weights.push(Weight { var, rows, cols });
        Ok(self.weights.len() - 1)
    }

    /// Gives a matrix with a row for each token `rows` of them: row `new` becomes the mean of those before, and what is
    /// beyond the old ones zero.
    pub fn extend(&mut self, table: &Linear, new: usize, rows: usize) -> Result<(), OpsError> {
        let weight = &mut self.weights[table.0];
        let (old, cols) = (weight.rows, weight.cols);
        let var = Var::zeros((rows, cols), candle_core::DType::F32, &Device::Cpu)?;
        crate::ops::parameter::read(weight.var.as_tensor(), |from| {
            edit(var.as_tensor(), |to| {
                to[..old * cols].copy_from_slice(from);
                let mut mean = vec![0f64; cols];
                for row in from.chunks_exact(cols).take(new) {
                    mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v));
                }
                let row = &mut to[new * cols..][..cols];
                row.iter_mut().zip(mean).for_each(|(v, m)| *v = (m / new.max(1) as f64) as f32);
            })
        })??;
        (weight.var, weight.rows) = (var, rows);
        Ok(())
    }

    /// The same memory as a tensor.
    pub(super) fn tensor(&self, weight: usize) -> Tensor {
        self.weights[weight].var.as_tensor().clone()
    }
}
