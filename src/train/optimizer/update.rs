//! The pass over one parameter: its weights, means and gradient, in place.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{CpuStorage, Error, InplaceOp1, Layout, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::rounding::{ROUNDED, Rounding, Stored, round_stochastically};
use super::{Moments, Settings};

/// Numbers that a thread updates before it looks for more; a multiple of what a call of the generator rounds.
const PIECE: usize = 1 << 15;

/// Constants of one step of one parameter, computed in F64 and rounded once, as PyTorch does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// What decay leaves of a weight.
    keep: f32,
    /// 1 − β₁.
    gain1: f32,
    beta2: f32,
    /// 1 − β₂.
    gain2: f32,
    /// lr / (1 − β₁ᵗ).
    size: f32,
    /// √(1 − β₂ᵗ).
    root: f32,
    eps: f32,
    rounding: Rounding,
}

impl Step {
    pub(super) fn new(s: &Settings, t: u64, lr: f64, decay: bool, parameter: u32) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(t as f64);
        Self {
            keep: if decay { (1.0 - lr * s.weight_decay) as f32 } else { 1.0 },
            gain1: (1.0 - s.beta1) as f32,
            beta2: s.beta2 as f32,
            gain2: (1.0 - s.beta2) as f32,
            size: (lr / correction(s.beta1)) as f32,
            root: correction(s.beta2).sqrt() as f32,
            eps: s.eps as f32,
            rounding: Rounding { seed: s.seed, step: t, parameter },
        }
    }

    /// The new weight and moments.
    #[inline(always)]
    fn apply(&self, w: f32, m: f32, v: f32, g: f32) -> (f32, f32, f32) {
        let m = m + self.gain1 * (g - m);
        let v = v * self.beta2 + self.gain2 * g * g;
        let denominator = v.sqrt() / self.root + self.eps;
        (w * self.keep - self.size * (m / denominator), m, v)
    }
}

/// Updates a part of one parameter; tells whether all its weights are finite. The moments are the part's.
pub(super) fn update(
    weights: &Tensor,
    step: &Step,
    moments: &mut Moments,
    gradient: &[f32],
    part: Range<usize>,
) -> candle_core::Result<bool> {
    let update = Update { step, gradient, part, moments: RefCell::new(moments), finite: RefCell::new(true) };
    weights.inplace_op1(&update)?;
    Ok(update.finite.into_inner())
}

struct Update<'a> {
    step: &'a Step,
    /// Of the whole parameter.
    gradient: &'a [f32],
    part: Range<usize>,
    moments: RefCell<&'a mut Moments>,
    finite: RefCell<bool>,
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((from, to)) = layout.contiguous_offsets().filter(|(a, b)| b - a == self.gradient.len()) else {
            return Err(Error::Msg("a gradient is not of its parameter's shape".into()));
        };
        let (part, step, mut moments) = (self.part.clone(), self.step, self.moments.borrow_mut());
        let (g, first) = (&self.gradient[part.clone()], part.start);
        let (from, to) = (from + part.start, (from + part.end).min(to));
        *self.finite.borrow_mut() = match (storage, &mut **moments) {
            (CpuStorage::F32(w), Moments::F32(m, v)) => exact(step, &mut w[from..to], m, v, g),
            (CpuStorage::F32(w), Moments::Bf16(m, v)) => exact(step, &mut w[from..to], m, v, g),
            (CpuStorage::BF16(w), Moments::F32(m, v)) => stochastic(step, first, &mut w[from..to], m, v, g),
            (CpuStorage::BF16(w), Moments::Bf16(m, v)) => stochastic(step, first, &mut w[from..to], m, v, g),
            _ => return Err(Error::Msg("weights that are trained are F32 or BF16".into())),
        };
        Ok(())
    }
}

/// F32 weights.
fn exact<M: Stored>(step: &Step, w: &mut [f32], m: &mut [M], v: &mut [M], g: &[f32]) -> bool {
    pieces(w, m, v, g, |_, w, m, v, g| {
        let mut finite = true;
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let (new, mean, square) = step.apply(*w, m.get(), v.get(), *g);
            (*w, *m, *v) = (new, M::nearest(mean), M::nearest(square));
            finite &= new.is_finite();
        }
        finite
    })
}

/// BF16 weights, of which the first is the parameter's `first`: that keys the bits.
fn stochastic<M: Stored>(step: &Step, first: usize, w: &mut [bf16], m: &mut [M], v: &mut [M], g: &[f32]) -> bool {
    // Up to where a call of the generator begins.
    let head = (first.next_multiple_of(ROUNDED) - first).min(w.len());
    let (w_head, w) = w.split_at_mut(head);
    let (m_head, m) = m.split_at_mut(head);
    let (v_head, v) = v.split_at_mut(head);
    let (g_head, g) = g.split_at(head);
    let bits = step.rounding.bits((first / ROUNDED) as u64);
    let begun = rounded(step, &bits[first % ROUNDED..], w_head, m_head, v_head, g_head);
    let block = (first + head) / ROUNDED;
    begun
        & pieces(w, m, v, g, |piece, w, m, v, g| {
            let mut finite = true;
            for (i, (((w, m), v), g)) in w
                .chunks_mut(ROUNDED)
                .zip(m.chunks_mut(ROUNDED))
                .zip(v.chunks_mut(ROUNDED))
                .zip(g.chunks(ROUNDED))
                .enumerate()
            {
                let bits = step.rounding.bits((block + piece * PIECE / ROUNDED + i) as u64);
                finite &= rounded(step, &bits, w, m, v, g);
            }
            finite
        })
}

/// Weights that one call of the generator rounds.
#[inline(always)]
fn rounded<M: Stored>(step: &Step, bits: &[u32], w: &mut [bf16], m: &mut [M], v: &mut [M], g: &[f32]) -> bool {
    let mut finite = true;
    for ((((w, m), v), g), bits) in w.iter_mut().zip(m).zip(v).zip(g).zip(bits) {
        let (new, mean, square) = step.apply(w.get(), m.get(), v.get(), *g);
        (*w, *m, *v) = (round_stochastically(new, *bits), M::nearest(mean), M::nearest(square));
        finite &= new.is_finite() && w.is_finite();
    }
    finite
}

/// Lets threads do pieces, each by its number; whether all said true.
fn pieces<W: Stored, M: Stored>(
    w: &mut [W],
    m: &mut [M],
    v: &mut [M],
    g: &[f32],
    f: impl Fn(usize, &mut [W], &mut [M], &mut [M], &[f32]) -> bool + Sync,
) -> bool {
    w.par_chunks_mut(PIECE)
        .zip(m.par_chunks_mut(PIECE))
        .zip(v.par_chunks_mut(PIECE))
        .zip(g.par_chunks(PIECE))
        .enumerate()
        .map(|(i, (((w, m), v), g))| f(i, w, m, v, g))
        .reduce(|| true, |a, b| a & b)
}
