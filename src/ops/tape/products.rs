//! Products with weights, whatever they are kept as and have beside them; forward beside backward.

use super::memory::{Block, Memory};
use super::rows::{self, Ptr};
use super::weights::Pair;
use super::{Gradients, Tape, kernels};
use crate::ops::OpsError;
use crate::ops::dense::{Matrix, MatrixMut, Store};

impl Tape {
    /// `out = x · Wᵀ` for the weight's first `used` rows. `x: [count, cols]`, `out: [count, used]`.
    pub(super) fn product(&mut self, x: &[f32], weight: usize, used: usize, out: &mut [f32]) -> Result<(), OpsError> {
        let w = &self.weights[weight];
        let cols = w.cols;
        let count = out.len() / used;
        let x = Matrix::new(x, count, cols);
        let dense = &mut self.dense;
        w.each(used, &mut self.pool, &mut self.spare, |pool, rows, w| {
            let b = Matrix::new(w, rows.len(), cols).t();
            let to = MatrixMut::strided(&mut out[rows.start..], count, rows.len(), used);
            dense.product(pool, x, b, to, Store::Set);
        })?;
        for pair in w.pairs.clone() {
            let t = self.shrunk(x, &pair)?;
            self.weights[pair.b].each(pair.rows.len(), &mut self.pool, &mut self.spare, |pool, _, b| {
                let rank = t.width();
                let (a, b) = (Matrix::new(&t, count, rank), Matrix::new(b, pair.rows.len(), rank).t());
                let to = MatrixMut::strided(&mut out[pair.rows.start..], count, pair.rows.len(), used);
                self.dense.product(pool, a, b, to, Store::Add);
            })?;
        }
        let replaced = self.weights[weight].replaced.filter(|(row, _)| *row < used);
        if let Some((row, by)) = replaced {
            self.weights[by].each(1, &mut self.pool, &mut self.spare, |pool, _, w| {
                let to = MatrixMut::strided(&mut out[row..], count, 1, used);
                self.dense.product(pool, x, Matrix::new(w, 1, cols).t(), to, Store::Set);
            })?;
        }
        Ok(())
    }

    /// `dx = dy · W` and `dW += dyᵀ · x`, for the weight's first `used` rows. `dy: [count, used]`, `x` and `dx: [count, cols]`.
    pub(super) fn product_backward(
        &mut self,
        x: &[f32],
        weight: usize,
        used: usize,
        dy: &[f32],
        dx: &mut [f32],
        gradients: &mut Gradients,
    ) -> Result<(), OpsError> {
        let w = &self.weights[weight];
        let (cols, count, gradient) = (w.cols, dy.len() / used, w.gradient);
        let x = Matrix::new(x, count, cols);
        let dense = &mut self.dense;
        w.each(used, &mut self.pool, &mut self.spare, |pool, rows, w| {
            let a = Matrix::strided(&dy[rows.start..], count, rows.len(), used);
            let store = if rows.start == 0 { Store::Set } else { Store::Add };
            dense.product(pool, a, Matrix::new(w, rows.len(), cols), MatrixMut::new(dx, count, cols), store);
        })?;
        let (pairs, replaced) = (w.pairs.clone(), w.replaced.filter(|(row, _)| *row < used));
        if let Some(gradient) = gradient {
            gradients.edit(gradient, |dw| {
                let to = MatrixMut::new(&mut dw[..used * cols], used, cols);
                self.dense.product(&mut self.pool, Matrix::new(dy, count, used).t(), x, to, Store::Add);
            })?;
        }
        for pair in pairs {
            self.pair_backward(
                x,
                &pair,
                Matrix::strided(&dy[pair.rows.start..], count, pair.rows.len(), used),
                dx,
                gradients,
            )?;
        }
        if let Some((row, by)) = replaced {
            let dy = Matrix::strided(&dy[row..], count, 1, used);
            self.weights[by].each(1, &mut self.pool, &mut self.spare, |pool, _, w| {
                let to = MatrixMut::new(dx, count, cols);
                self.dense.product(pool, dy, Matrix::new(w, 1, cols), to, Store::Add);
            })?;
            if let Some(gradient) = self.weights[by].gradient {
                gradients.edit(gradient, |dw| {
                    self.dense.product(&mut self.pool, dy.t(), x, MatrixMut::new(dw, 1, cols), Store::Add);
                })?;
            }
        }
        Ok(())
    }

    /// `scale · x · Aᵀ`, `[count, rank]`.
    fn shrunk(&mut self, x: Matrix<'_>, pair: &Pair) -> Result<Block, OpsError> {
        let (rank, cols) = (self.weights[pair.a].rows, self.weights[pair.a].cols);
        let memory = Memory::default();
        memory.set_rows(x.rows());
        let mut t = memory.take(rank);
        self.weights[pair.a].each(rank, &mut self.pool, &mut self.spare, |pool, _, a| {
            let to = MatrixMut::new(&mut t, x.rows(), rank);
            self.dense.product(pool, x, Matrix::new(a, rank, cols).t(), to, Store::Set);
        })?;
        self.scale(&mut t, pair.scale);
        Ok(t)
    }

    /// `dB += dyᵀ · t`, `dt = scale · dy · B`, `dA += dtᵀ · x`, `dx += dt · A`, with `t` as forward had it.
    fn pair_backward(
        &mut self,
        x: Matrix<'_>,
        pair: &Pair,
        dy: Matrix<'_>,
        dx: &mut [f32],
        gradients: &mut Gradients,
    ) -> Result<(), OpsError> {
        let t = self.shrunk(x, pair)?;
        let (rank, cols, rows, count) = (t.width(), self.weights[pair.a].cols, pair.rows.len(), x.rows());
        let memory = Memory::default();
        memory.set_rows(count);
        let mut dt = memory.take(rank);
        self.weights[pair.b].each(rows, &mut self.pool, &mut self.spare, |pool, _, b| {
            let to = MatrixMut::new(&mut dt, count, rank);
            self.dense.product(pool, dy, Matrix::new(b, rows, rank), to, Store::Set);
        })?;
        self.scale(&mut dt, pair.scale);
        if let Some(gradient) = self.weights[pair.b].gradient {
            gradients.edit(gradient, |db| {
                let t = Matrix::new(&t, count, rank);
                self.dense.product(&mut self.pool, dy.t(), t, MatrixMut::new(db, rows, rank), Store::Add);
            })?;
        }
        let dt = Matrix::new(&dt, count, rank);
        if let Some(gradient) = self.weights[pair.a].gradient {
            gradients.edit(gradient, |da| {
                self.dense.product(&mut self.pool, dt.t(), x, MatrixMut::new(da, rank, cols), Store::Add);
            })?;
        }
        self.weights[pair.a].each(rank, &mut self.pool, &mut self.spare, |pool, _, a| {
            let to = MatrixMut::new(dx, count, cols);
            self.dense.product(pool, dt, Matrix::new(a, rank, cols), to, Store::Add);
        })?;
        Ok(())
    }

    fn scale(&mut self, block: &mut Block, factor: f32) {
        let (n, level, count) = (block.width(), self.level, block.len() / block.width());
        let to = Ptr::new(block);
        rows::each(&mut self.pool, count, |_, _, range| {
            let at = to.at(range.start * n);
            // SAFETY: the rows are this worker's; a number is read before it is written.
            unsafe { kernels::scale(level, at, factor, range.len() * n, at) };
        });
    }
}
