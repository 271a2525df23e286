//! The last norm, logits and their loss, some rows at a time: all logits of a batch would be the largest tensor there is.

use std::ops::Range;

use super::backward::Gradient;
use super::rows::{self, Ptr};
use super::{Gradients, Linear, Memory, Norm, Tape, X, kernels};
use crate::engine::TokenId;
use crate::ops::OpsError;
use crate::ops::cpu::level::Level;

/// Logits that exist at once: 64 MiB.
const LOGITS: usize = 16 << 20;

/// What rows of the batch are to predict.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// `[R]` rows, ascending.
    pub rows: &'a [u32],
    /// `[R]` tokens that follow.
    pub tokens: &'a [TokenId],
    /// `[R]` how much each counts.
    pub weights: &'a [f32],
    /// Logits from here on are padding's: as if they were -∞.
    pub vocab: usize,
}

/// Where gradients of Σ weight · nll · `scale` are added.
pub struct Loss<'a> {
    /// Factor.
    pub scale: f64,
    /// The weights'.
    pub gradients: &'a mut Gradients,
}

impl Tape {
    /// Σ weight · negative log-likelihood from the residual stream after the last layer; with `loss`, also the gradient of
    /// that stream.
    ///
    /// # Errors
    /// candle's.
    pub fn loss(
        &mut self,
        x: &X,
        norm: &Norm,
        head: &Linear,
        targets: Targets<'_>,
        loss: Option<Loss<'_>>,
    ) -> Result<(f64, Option<Gradient>), OpsError> {
        let (n, count, vocab) = (x.data.width(), targets.rows.len(), targets.vocab);
        // Of other sizes than the layers' memory.
        let memory = Memory::default();
        memory.set_rows(count.max(1));
        let (mut picked, mut hidden, mut inverses) = (memory.take(n), memory.take(n), memory.take(1));
        for (&row, to) in targets.rows.iter().zip(picked.chunks_exact_mut(n)) {
            to.copy_from_slice(&x.data[row as usize * n..][..n]);
        }
        self.normalise(&picked[..count * n], norm, n, &mut hidden, &mut inverses)?;
        let mut dhidden = loss.as_ref().map(|_| memory.take(n));
        let mut gradients = loss.map(|loss| (loss.scale as f32, loss.gradients));

        let columns = self.columns(head, vocab);
        // The same on all ranks.
        let piece = (LOGITS / vocab.div_ceil(self.tensor.world_size())).clamp(1, count.max(1));
        let mut logits = std::mem::take(&mut self.logits);
        logits.resize(logits.len().max(piece * columns.len()), 0.0);
        let mut nll = vec![0f64; count];
        for from in (0..count).step_by(piece) {
            let rows = piece.min(count - from);
            let h = &hidden[from * n..][..rows * n];
            let logits = &mut logits[..rows * columns.len()];
            if !columns.is_empty() {
                self.product(h, head.0, columns.len(), logits)?;
            }
            let scale = gradients.as_ref().map(|(scale, _)| *scale);
            let piece = Piece { from, columns: columns.clone(), targets, scale };
            self.row_losses(logits, &piece, &mut nll[from..from + rows])?;
            let (Some((_, gradients)), Some(dhidden)) = (&mut gradients, &mut dhidden) else { continue };
            let dh = &mut dhidden[from * n..][..rows * n];
            match columns.is_empty() {
                true => dh.fill(0.0),
                false => self.product_backward(h, head.0, columns.len(), logits, dh, gradients)?,
            }
        }
        self.logits = logits;
        let nll = nll.iter().zip(targets.weights).map(|(nll, w)| nll * f64::from(*w)).sum();
        let (Some((_, gradients)), Some(mut dhidden)) = (gradients, dhidden) else { return Ok((nll, None)) };
        self.tensor.all_reduce(&mut dhidden)?;

        let mut dpicked = memory.take(n);
        dpicked.fill(0.0);
        let used = count * n;
        self.norm_backward(&picked[..used], &inverses, norm.weight, &dhidden[..used], &mut dpicked, gradients)?;
        let mut dx = self.memory.take(n);
        dx.fill(0.0);
        for (&row, from) in targets.rows.iter().zip(dpicked.chunks_exact(n)) {
            dx[row as usize * n..][..n].copy_from_slice(from);
        }
        Ok((nll, Some(Gradient(dx))))
    }

    /// Which of the logits this rank computes: those of its rows of the head, without padding's.
    fn columns(&self, head: &Linear, vocab: usize) -> Range<usize> {
        let rows = self.weights[head.0].rows;
        let first = self.first_row(rows).min(vocab);
        first..(first + rows).min(vocab)
    }

    /// The negative log-likelihood of each row of a piece of the logits; with a scale, the logits are replaced by their
    /// gradients.
    fn row_losses(&mut self, logits: &mut [f32], piece: &Piece<'_>, nll: &mut [f64]) -> Result<(), OpsError> {
        let (level, width) = (self.level, piece.columns.len());
        let at = Ptr::new(logits);
        let ranks = self.tensor.world_size();
        if ranks == 1 {
            let mut pieces: Vec<(usize, &mut [f64])> = nll.chunks_mut(rows::CHUNK).enumerate().collect();
            self.pool.for_each(&mut pieces, |_, (chunk, nll)| {
                for (i, nll) in nll.iter_mut().enumerate() {
                    let row = *chunk * rows::CHUNK + i;
                    // SAFETY: the row is this worker's, and has `width` logits.
                    *nll = unsafe {
                        let logits = at.at(row * width);
                        let all = Row::of(level, logits, piece, row);
                        piece.settle(level, logits, row, &all)
                    };
                }
            });
            return Ok(());
        }
        // Each rank's maximum, sum and target go around, never its logits.
        let (rank, each) = (self.tensor.rank(), nll.len() * Row::NUMBERS);
        let mut all = vec![0f32; ranks * each];
        let mut own: Vec<(usize, &mut [f32])> =
            all[rank * each..][..each].chunks_exact_mut(Row::NUMBERS).enumerate().collect();
        self.pool.for_each(&mut own, |_, (row, to)| {
            // SAFETY: the row is this worker's, and has `width` logits.
            let own = unsafe { Row::of(level, at.at(*row * width), piece, *row) };
            to.copy_from_slice(&own.to_numbers());
        });
        self.tensor.all_gather(&mut all)?;
        let mut items: Vec<(usize, &mut f64)> = nll.iter_mut().enumerate().collect();
        self.pool.for_each(&mut items, |_, (row, nll)| {
            let of = |rank: usize| Row::from_numbers(&all[rank * each + *row * Row::NUMBERS..][..Row::NUMBERS]);
            let all = (1..ranks).fold(of(0), |row, rank| row.join(of(rank)));
            // SAFETY: as above.
            **nll = unsafe { piece.settle(level, at.at(*row * width), *row, &all) };
        });
        Ok(())
    }
}

/// Some rows of logits.
struct Piece<'a> {
    /// The first, among the targets.
    from: usize,
    /// Tokens whose logits are here.
    columns: Range<usize>,
    targets: Targets<'a>,
    /// Of gradients, if they are wanted.
    scale: Option<f32>,
}

/// What the loss of a row needs of its logits.
struct Row {
    max: f32,
    /// Of exponentials, relative to the maximum.
    sum: f64,
    /// The target's.
    logit: f32,
}

impl Piece<'_> {
    /// The place of a row's target, if it is among the columns.
    fn target(&self, row: usize) -> Option<usize> {
        let target = self.targets.tokens[self.from + row] as usize;
        self.columns.contains(&target).then(|| target - self.columns.start)
    }

    /// The loss of a row, of which `all` is known. Replaces logits by gradients.
    ///
    /// # Safety
    /// `logits` are the row's, and nobody else uses them.
    unsafe fn settle(&self, level: Level, logits: *mut f32, row: usize, all: &Row) -> f64 {
        let log = all.sum.ln();
        if let Some(scale) = self.scale {
            let weight = self.targets.weights[self.from + row] * scale;
            // SAFETY: the row has a logit for each column, the target's among them.
            unsafe {
                kernels::probabilities(level, logits, (log + f64::from(all.max)) as f32, weight, self.columns.len());
                if let Some(target) = self.target(row) {
                    *logits.add(target) -= weight;
                }
            }
        }
        log + f64::from(all.max) - f64::from(all.logit)
    }
}

impl Row {
    const NUMBERS: usize = 4;

    /// Of the logits that are here.
    ///
    /// # Safety
    /// `logits` are the row's.
    unsafe fn of(level: Level, logits: *const f32, piece: &Piece<'_>, row: usize) -> Self {
        let width = piece.columns.len();
        if width == 0 {
            return Self { max: f32::NEG_INFINITY, sum: 0.0, logit: f32::NEG_INFINITY };
        }
        // SAFETY: the row has a logit for each column, the target's among them.
        unsafe {
            let kernels::Exponentials { max, sum } = kernels::exponentials(level, logits, width);
            let logit = piece.target(row).map_or(f32::NEG_INFINITY, |target| *logits.add(target));
            Self { max, sum, logit }
        }
    }

    /// Of both ranks' logits.
    fn join(self, other: Self) -> Self {
        let max = self.max.max(other.max);
        let relative = |row: &Self| if row.sum == 0.0 { 0.0 } else { row.sum * f64::from(row.max - max).exp() };
        Self { max, sum: relative(&self) + relative(&other), logit: self.logit.max(other.logit) }
    }

    /// The sum's bits are two of them.
    fn to_numbers(&self) -> [f32; Self::NUMBERS] {
        let bits = self.sum.to_bits();
        [self.max, f32::from_bits((bits >> 32) as u32), f32::from_bits(bits as u32), self.logit]
    }

    fn from_numbers(numbers: &[f32]) -> Self {
        let bits = |i: usize| u64::from(numbers[i].to_bits());
        Self { max: numbers[0], sum: f64::from_bits(bits(1) << 32 | bits(2)), logit: numbers[3] }
    }
}
