//! Weights: variables, or frozen numbers in whatever format; and what is trained beside frozen ones.

use std::ops::Range;

use candle_core::{Device, Var};
use half::bf16;

use super::Tape;
use crate::model::weights::TensorView;
use crate::ops::OpsError;
use crate::ops::cpu::pool::Pool;
use crate::ops::parameter::{edit, edit_bf16, read, read_bf16};
use crate::ops::philox::uniform;
use crate::ops::quant::{DType, dequantize_row, quantize_row};

/// Numbers of a matrix that are made F32 at once.
const PIECE: usize = 2 << 20;

/// A weight matrix `[out, in]`, by its place among the tape's weights.
pub struct Linear(pub(super) usize);

/// An RMSNorm's weight, likewise.
pub struct Norm {
    pub(super) weight: usize,
    pub(super) eps: f32,
}

/// How the weights of a checkpoint are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// As F32 variables.
    F32,
    /// Matrices as BF16 variables, norms in F32.
    Bf16,
    /// As constants: matrices in this format, norms in F32.
    Frozen(DType),
}

pub(super) enum Numbers {
    /// F32, or BF16.
    Var(Var),
    /// F32.
    Plain(Vec<f32>),
    /// Rows as the format has them.
    Constant(DType, Vec<u8>),
}

/// Two small matrices beside some rows of a frozen one.
#[derive(Clone)]
pub(super) struct Pair {
    pub rows: Range<usize>,
    /// Their places among the weights: `[rank, in]`, `[out, rank]`.
    pub a: usize,
    pub b: usize,
    pub scale: f32,
}

pub(super) struct Weight {
    pub numbers: Numbers,
    pub rows: usize,
    pub cols: usize,
    /// Its place among the gradients.
    pub gradient: Option<usize>,
    pub pairs: Vec<Pair>,
    /// A row, and the weight of one row that stands for it.
    pub replaced: Option<(usize, usize)>,
}

impl Weight {
    fn constant(dtype: DType, rows: usize, cols: usize) -> Result<Self, OpsError> {
        let Some(bytes) = dtype.row_bytes(cols) else {
            let what = format!("rows of {cols} numbers are not whole blocks of {dtype}");
            return Err(OpsError::Unsupported(what));
        };
        let numbers = match dtype {
            DType::F32 => Numbers::Plain(vec![0.0; rows * cols]),
            _ => Numbers::Constant(dtype, vec![0; rows * bytes]),
        };
        Ok(Self { numbers, rows, cols, gradient: None, pairs: Vec::new(), replaced: None })
    }

    fn variable(rows: usize, cols: usize, is_norm: bool, dtype: candle_core::DType) -> Result<Self, OpsError> {
        let var = match is_norm {
            true => Var::zeros(cols, dtype, &Device::Cpu)?,
            false => Var::zeros((rows, cols), dtype, &Device::Cpu)?,
        };
        Ok(Self { numbers: Numbers::Var(var), rows, cols, gradient: None, pairs: Vec::new(), replaced: None })
    }

    /// Writes rows from `first` on; `row(i, out)` makes the `i`th of them.
    fn write(&mut self, first: usize, count: usize, mut row: impl FnMut(usize, &mut [f32])) -> Result<(), OpsError> {
        let cols = self.cols;
        match &mut self.numbers {
            Numbers::Var(var) if var.dtype() == candle_core::DType::BF16 => {
                let mut spare = vec![0.0; cols];
                edit_bf16(var.as_tensor(), |out| {
                    for (i, out) in out.chunks_exact_mut(cols).skip(first).take(count).enumerate() {
                        row(i, &mut spare);
                        out.iter_mut().zip(&spare).for_each(|(o, v)| *o = bf16::from_f32(*v));
                    }
                })?;
            }
            Numbers::Var(var) => edit(var.as_tensor(), |out| {
                let rows = out.chunks_exact_mut(cols).skip(first).take(count).enumerate();
                rows.for_each(|(i, out)| row(i, out));
            })?,
            Numbers::Plain(out) => {
                let rows = out.chunks_exact_mut(cols).skip(first).take(count).enumerate();
                rows.for_each(|(i, out)| row(i, out));
            }
            Numbers::Constant(dtype, bytes) => {
                let mut spare = vec![0.0; cols];
                let width = dtype.row_bytes(cols).unwrap_or(0).max(1);
                for (i, out) in bytes.chunks_exact_mut(width).skip(first).take(count).enumerate() {
                    row(i, &mut spare);
                    quantize_row(*dtype, &spare, out);
                }
            }
        }
        Ok(())
    }

    /// Calls `f` with row `i`.
    pub fn row<R>(&self, i: usize, f: impl FnOnce(&[f32]) -> R) -> Result<R, OpsError> {
        let mut spare = vec![0.0; self.cols];
        match &self.numbers {
            Numbers::Var(var) if var.dtype() == candle_core::DType::BF16 => read_bf16(var.as_tensor(), |from| {
                let from = &from[i * self.cols..][..self.cols];
                spare.iter_mut().zip(from).for_each(|(o, v)| *o = v.to_f32());
            })?,
            Numbers::Var(var) => {
                read(var.as_tensor(), |from| spare.copy_from_slice(&from[i * self.cols..][..self.cols]))?;
            }
            Numbers::Plain(from) => spare.copy_from_slice(&from[i * self.cols..][..self.cols]),
            Numbers::Constant(dtype, bytes) => {
                let width = dtype.row_bytes(self.cols).unwrap_or(0);
                dequantize_row(*dtype, &bytes[i * width..][..width], &mut spare);
            }
        }
        Ok(f(&spare))
    }

    /// Calls `f` with all of rows `0..rows` as F32, in one piece where they are, else some at a time.
    pub fn each(
        &self,
        rows: usize,
        pool: &mut Pool,
        spare: &mut Vec<f32>,
        mut f: impl FnMut(&mut Pool, Range<usize>, &[f32]),
    ) -> Result<(), OpsError> {
        let cols = self.cols;
        let mut pieces = |pool: &mut Pool, row: &(dyn Fn(usize, &mut [f32]) + Sync)| {
            let at_once = (PIECE / cols).clamp(1, rows.max(1));
            spare.resize(spare.len().max(at_once * cols), 0.0);
            for from in (0..rows).step_by(at_once) {
                let count = at_once.min(rows - from);
                let mut items: Vec<(usize, &mut [f32])> =
                    spare.chunks_exact_mut(cols).take(count).enumerate().collect();
                pool.for_each(&mut items, |_, (i, out)| row(from + *i, out));
                f(pool, from..from + count, &spare[..count * cols]);
            }
        };
        match &self.numbers {
            Numbers::Var(var) if var.dtype() == candle_core::DType::BF16 => read_bf16(var.as_tensor(), |from| {
                pieces(pool, &|i, out| {
                    out.iter_mut().zip(&from[i * cols..]).for_each(|(o, v)| *o = v.to_f32());
                });
            })?,
            Numbers::Var(var) => read(var.as_tensor(), |from| f(pool, 0..rows, &from[..rows * cols]))?,
            Numbers::Plain(from) => f(pool, 0..rows, &from[..rows * cols]),
            Numbers::Constant(dtype, bytes) => {
                let width = dtype.row_bytes(cols).unwrap_or(0);
                pieces(pool, &|i, out| dequantize_row(*dtype, &bytes[i * width..][..width], out));
            }
        }
        Ok(())
    }
}

impl Tape {
    /// The views stacked by rows.
    pub(super) fn keep(&mut self, parts: &[TensorView<'_>], is_norm: bool) -> Result<usize, OpsError> {
        let cols = parts.first().map_or(0, |p| p.cols);
        let rows = parts.iter().map(|p| p.rows).sum();
        if cols == 0 || parts.iter().any(|p| p.cols != cols) {
            return Err(OpsError::Unsupported("matrices of different widths cannot be stacked".into()));
        }
        let mut weight = match self.kept {
            Keep::F32 => Weight::variable(rows, cols, is_norm, candle_core::DType::F32)?,
            Keep::Bf16 if is_norm => Weight::variable(rows, cols, true, candle_core::DType::F32)?,
            Keep::Bf16 => Weight::variable(rows, cols, false, candle_core::DType::BF16)?,
            Keep::Frozen(_) if is_norm => Weight::constant(DType::F32, rows, cols)?,
            Keep::Frozen(dtype) => Weight::constant(dtype, rows, cols)?,
        };
        let mut first = 0;
        for part in parts {
            weight.write(first, part.rows, |i, out| part.read_row(i, out))?;
            first += part.rows;
        }
        Ok(self.push(weight))
    }

    /// Variables get the next place among the gradients.
    fn push(&mut self, mut weight: Weight) -> usize {
        if let Numbers::Var(var) = &weight.numbers {
            weight.gradient = Some(self.variables.len());
            self.variables.push(var.clone());
        }
        self.weights.push(weight);
        self.weights.len() - 1
    }

    /// Gives a matrix with a row for each token `rows` of them: row `new` becomes the mean of those before, and what is
    /// beyond the old ones zero. Beside a frozen matrix, the new row is a variable of its own. Of several ranks each has its
    /// part of the rows.
    ///
    /// # Errors
    /// candle's, a frozen matrix over several ranks, or a rank is lost.
    pub fn extend(&mut self, table: &Linear, new: usize, rows: usize) -> Result<(), OpsError> {
        let here = self.tensor.share().of(rows);
        let old = &self.weights[table.0];
        let cols = old.cols;
        let mut mean = vec![0f64; cols];
        for i in 0..old.rows.min(new.saturating_sub(here.start)) {
            old.row(i, |row| mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v)))?;
        }
        self.tensor.all_reduce_f64(&mut mean)?;
        let mean: Vec<f32> = mean.iter().map(|m| (m / new.max(1) as f64) as f32).collect();
        let mut weight = match &old.numbers {
            Numbers::Var(var) => Weight::variable(here.len(), cols, false, var.dtype())?,
            _ if here.len() < rows => {
                return Err(OpsError::Unsupported("a frozen table cannot be cut over ranks".into()));
            }
            Numbers::Plain(_) => Weight::constant(DType::F32, rows, cols)?,
            Numbers::Constant(dtype, _) => Weight::constant(*dtype, rows, cols)?,
        };
        for i in 0..old.rows {
            old.row(i, |row| weight.write(i, 1, |_, out| out.copy_from_slice(row)))??;
        }
        weight.gradient = old.gradient;
        match (weight.gradient, &weight.numbers) {
            (Some(at), Numbers::Var(var)) => {
                self.variables[at] = var.clone();
                if here.contains(&new) {
                    weight.write(new - here.start, 1, |_, out| out.copy_from_slice(&mean))?;
                }
            }
            _ => {
                weight.write(new, 1, |_, out| out.fill(0.0))?;
                let mut row = Weight::variable(1, cols, false, candle_core::DType::F32)?;
                row.write(0, 1, |_, out| out.copy_from_slice(&mean))?;
                weight.replaced = Some((new, self.push(row)));
            }
        }
        self.weights[table.0] = weight;
        Ok(())
    }

    /// Puts a pair of matrices of `rank` beside each part (of so many rows) of weight `at`, counted in the order they were
    /// loaded. A is uniform in ±1 / √in, as PEFT draws it, from `seed`; B is 0.
    ///
    /// # Errors
    /// candle's.
    pub fn adapt(&mut self, at: usize, parts: &[usize], rank: usize, scale: f32, seed: u64) -> Result<(), OpsError> {
        let cols = self.weights[at].cols;
        let bound = (cols as f64).powf(-0.5);
        let mut first = 0;
        for (k, &rows) in parts.iter().enumerate() {
            let mut a = Weight::variable(rank, cols, false, candle_core::DType::F32)?;
            let draw = |i: usize| uniform(seed, (at * 4 + k) as u32, i as u64);
            a.write(0, rank, |i, out| {
                let values = out.iter_mut().enumerate();
                values.for_each(|(j, v)| *v = ((2.0 * draw(i * cols + j) - 1.0) * bound) as f32);
            })?;
            let b = Weight::variable(rows, rank, false, candle_core::DType::F32)?;
            let (a, b) = (self.push(a), self.push(b));
            self.weights[at].pairs.push(Pair { rows: first..first + rows, a, b, scale });
            first += rows;
        }
        Ok(())
    }

    /// Rows of weight `at` (counted in the order they were loaded) as they are served: with what is trained beside them.
    ///
    /// # Errors
    /// candle's.
    pub fn merged(&self, at: usize, rows: Range<usize>) -> Result<Vec<f32>, OpsError> {
        let weight = &self.weights[at];
        let mut out = Vec::with_capacity(rows.len() * weight.cols);
        for i in rows {
            match weight.replaced {
                Some((row, by)) if row == i => self.weights[by].row(0, |v| out.extend_from_slice(v))?,
                _ => weight.row(i, |v| out.extend_from_slice(v))?,
            }
            let row = out.len() - weight.cols;
            for pair in weight.pairs.iter().filter(|p| p.rows.contains(&i)) {
                let b = self.weights[pair.b].row(i - pair.rows.start, <[f32]>::to_vec)?;
                for (k, b) in b.iter().enumerate() {
                    self.weights[pair.a].row(k, |a| {
                        out[row..].iter_mut().zip(a).for_each(|(o, a)| *o += pair.scale * b * a);
                    })?;
                }
            }
        }
        Ok(out)
    }
}
