//! The last norm, logits and their loss, some rows at a time: all logits of a batch would be the largest tensor there is.

use super::backward::Gradient;
use super::rows::{self, Ptr};
use super::{Gradients, Linear, Memory, Norm, Tape, X, kernels};
use crate::engine::TokenId;
use crate::ops::OpsError;

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

        let piece = (LOGITS / vocab).clamp(1, count.max(1));
        let mut logits = std::mem::take(&mut self.logits);
        logits.resize(logits.len().max(piece * vocab), 0.0);
        let mut nll = vec![0f64; count];
        for from in (0..count).step_by(piece) {
            let rows = piece.min(count - from);
            let h = &hidden[from * n..][..rows * n];
            let logits = &mut logits[..rows * vocab];
            self.product(h, head.0, vocab, logits)?;
            let scale = gradients.as_ref().map(|(scale, _)| *scale);
            self.row_losses(logits, targets, scale, from, &mut nll[from..from + rows]);
            let (Some((_, gradients)), Some(dhidden)) = (&mut gradients, &mut dhidden) else { continue };
            let dh = &mut dhidden[from * n..][..rows * n];
            self.product_backward(h, head.0, vocab, logits, dh, gradients)?;
        }
        self.logits = logits;
        let nll = nll.iter().zip(targets.weights).map(|(nll, w)| nll * f64::from(*w)).sum();
        let (Some((_, gradients)), Some(dhidden)) = (gradients, dhidden) else { return Ok((nll, None)) };

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

    /// The negative log-likelihood of each row of logits, from the batch's `from`th target on; with `scale`, the logits are
    /// replaced by their gradients.
    fn row_losses(
        &mut self,
        logits: &mut [f32],
        targets: Targets<'_>,
        scale: Option<f32>,
        from: usize,
        nll: &mut [f64],
    ) {
        let (level, vocab) = (self.level, targets.vocab);
        let at = Ptr::new(logits);
        let mut pieces: Vec<(usize, &mut [f64])> = nll.chunks_mut(rows::CHUNK).enumerate().collect();
        self.pool.for_each(&mut pieces, |_, (piece, nll)| {
            for (i, nll) in nll.iter_mut().enumerate() {
                let row = *piece * rows::CHUNK + i;
                let target = targets.tokens[from + row] as usize;
                let logits = at.at(row * vocab);
                // SAFETY: the row is this worker's, and targets are below `vocab`.
                unsafe {
                    let kernels::Exponentials { max, sum } = kernels::exponentials(level, logits, vocab);
                    let log = sum.ln();
                    *nll = log + f64::from(max) - f64::from(*logits.add(target));
                    if let Some(scale) = scale {
                        let weight = targets.weights[from + row] * scale;
                        kernels::probabilities(level, logits, (log + f64::from(max)) as f32, weight, vocab);
                        *logits.add(target) -= weight;
                    }
                }
            }
        });
    }
}
