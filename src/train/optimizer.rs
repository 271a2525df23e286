//! AdamW (Loshchilov and Hutter, 2019), as PyTorch's: decay apart from the gradient, both means corrected for their
//! beginning at zero.
//!
//! A step reads and writes weights and moments once, in place. Every number is computed from its own weight, moments
//! and gradient alone, so threads change nothing.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{CpuStorage, DType, Error, InplaceOp1, Layout, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::model::{Gradients, Parameter};
use super::recipe::{Number, Recipe};
use crate::ops::parameter::read;
use crate::ops::philox::philox4x32_10;
use crate::parallel::Share;

/// Numbers that a thread updates before it looks for more; a multiple of what a call of the generator rounds.
const PIECE: usize = 1 << 15;
/// Numbers that one call of the generator rounds, 16 bits each.
const ROUNDED: usize = 8;
/// Sets the bits of rounding apart from everything else that the seed draws.
const ROUNDING: u32 = 0x524f_554e;

/// Constants of all steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub eps: f64,
    /// Times the learning rate: the share that a weight of a matrix loses in a step.
    pub weight_decay: f64,
    /// Format of the two means, rounded to nearest.
    pub moments: Number,
    /// Of the rounding of BF16 weights.
    pub seed: u64,
}

impl From<&Recipe> for Settings {
    fn from(r: &Recipe) -> Self {
        let Recipe { beta1, beta2, eps, weight_decay, moments, seed, .. } = *r;
        Self { beta1, beta2, eps, weight_decay, moments, seed }
    }
}

/// A step failed.
#[derive(Debug, thiserror::Error)]
pub enum OptimizerError {
    /// A weight is NaN or infinite after the step.
    #[error("weights of {0} are no longer finite")]
    NotFinite(String),
    /// Tensors that do not belong together, or not to the CPU.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The two means of one parameter, a number each for every weight.
#[derive(Clone, Debug, PartialEq)]
pub enum Moments {
    /// Of gradients, and of their squares.
    F32(Vec<f32>, Vec<f32>),
    /// Likewise.
    Bf16(Vec<bf16>, Vec<bf16>),
}

impl Moments {
    /// `len` zeros each.
    pub fn zeros(format: Number, len: usize) -> Self {
        match format {
            Number::F32 => Self::F32(vec![0.0; len], vec![0.0; len]),
            Number::Bf16 => Self::Bf16(vec![bf16::ZERO; len], vec![bf16::ZERO; len]),
        }
    }
}

/// Which part of the work is one rank's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Of every parameter's numbers, those whose means it keeps and which it changes (ZeRO-1).
    pub data: Share,
    /// Of the model, which part its parameters are; keys the bits of rounding.
    pub tensor: Share,
}

impl Owner {
    /// One rank.
    pub const ALL: Self = Self { data: Share::WHOLE, tensor: Share::WHOLE };
}

/// The optimizer of a model's parameters, by their order.
#[derive(Debug)]
pub struct AdamW {
    settings: Settings,
    owner: Owner,
    steps: u64,
    moments: Vec<Moments>,
}

impl AdamW {
    /// Before the first step.
    pub fn new(parameters: &[Parameter], settings: Settings) -> Self {
        Self::shard(parameters, settings, Owner::ALL)
    }

    /// Before the first step, of one rank.
    pub fn shard(parameters: &[Parameter], settings: Settings, owner: Owner) -> Self {
        let zeros = |p: &Parameter| Moments::zeros(settings.moments, owner.data.of(p.var.elem_count()).len());
        Self { settings, owner, steps: 0, moments: parameters.iter().map(zeros).collect() }
    }

    /// After `steps` steps, which left `moments`.
    pub fn resumed(settings: Settings, owner: Owner, steps: u64, moments: Vec<Moments>) -> Self {
        Self { settings, owner, steps, moments }
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// By the parameters' order; of several ranks, this one's part ([`Owner`]).
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Changes this rank's part of every parameter that has a gradient. F32 weights are rounded to nearest, BF16 weights up or down with
    /// the probabilities that make the mean right: their steps are mostly smaller than half of what BF16 can tell apart.
    ///
    /// # Errors
    /// A weight is not finite any more. Weights have changed by then.
    pub fn step(&mut self, parameters: &[Parameter], gradients: &Gradients, lr: f64) -> Result<(), OptimizerError> {
        self.steps += 1;
        let all = parameters.iter().zip(gradients.tensors()).zip(&mut self.moments).enumerate();
        for (i, ((parameter, gradient), moments)) in all {
            let Some(gradient) = gradient else { continue };
            let part = self.owner.data.of(parameter.var.elem_count());
            // Parameters are below 2¹⁶.
            let key = (self.owner.tensor.rank as u32) << 16 | i as u32;
            let step = Step::new(&self.settings, self.steps, lr, parameter.decay, key);
            let finite = read(gradient, |g| update(&parameter.var, &step, moments, g, part))??;
            if !finite {
                let name = parameter.tensors.first().map_or_else(String::new, |part| part.name.clone());
                return Err(OptimizerError::NotFinite(name));
            }
        }
        Ok(())
    }
}

/// Constants of one step of one parameter, computed in F64 and rounded once, as PyTorch does.
#[derive(Clone, Copy, Debug)]
struct Step {
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

/// What keys the bits of stochastic rounding.
#[derive(Clone, Copy, Debug)]
struct Rounding {
    seed: u64,
    step: u64,
    parameter: u32,
}

impl Step {
    fn new(s: &Settings, t: u64, lr: f64, decay: bool, parameter: u32) -> Self {
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

impl Rounding {
    /// 16 bits for each of the weights `ROUNDED · block ..`.
    fn bits(self, block: u64) -> [u32; ROUNDED] {
        let key = [self.seed as u32 ^ ROUNDING, (self.seed >> 32) as u32 ^ (self.step >> 32) as u32];
        let words = philox4x32_10([block as u32, (block >> 32) as u32, self.parameter, self.step as u32], key);
        std::array::from_fn(|i| (words[i / 2] >> (16 * (i % 2))) & 0xffff)
    }
}

/// A finite number to BF16: up with the probability that is its distance from the lower neighbour. `bits` are 16 random
/// ones.
fn round_stochastically(value: f32, bits: u32) -> bf16 {
    bf16::from_bits((value.to_bits().wrapping_add(bits) >> 16) as u16)
}

/// A stored number.
trait Stored: Copy + Send + Sync {
    fn get(self) -> f32;
    fn nearest(value: f32) -> Self;
}

impl Stored for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn get(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn nearest(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

/// Updates a part of one parameter; tells whether all its weights are finite. The moments are the part's.
fn update(
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

/// The format of a parameter's weights; `None` for one that is not trained here.
pub fn format(parameter: &Parameter) -> Option<Number> {
    match parameter.var.dtype() {
        DType::F32 => Some(Number::F32),
        DType::BF16 => Some(Number::Bf16),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Rounding up and down makes the mean right, and what BF16 can hold stays as it is.
    #[test]
    fn rounding_has_the_right_mean() {
        let rounding = Rounding { seed: 5, step: 9, parameter: 3 };
        for value in [1.001f32, -3.3, 1e-5, 0.0, -0.0, 65_280.0 + 17.0, f32::from_bits(0x3f80_ffff)] {
            let blocks = 4000;
            let all = (0..blocks).flat_map(|b| rounding.bits(b)).map(|bits| round_stochastically(value, bits));
            let all: Vec<f32> = all.map(bf16::to_f32).collect();
            let mean = all.iter().map(|v| f64::from(*v)).sum::<f64>() / all.len() as f64;
            let low = f32::from_bits(value.to_bits() & 0xffff_0000);
            let high = f32::from_bits((value.to_bits() & 0xffff_0000) + 0x1_0000);
            assert!(all.iter().all(|v| *v == low || (*v == high && value != low)), "{value}");
            // Five deviations of the mean at most.
            let allowed = 5.0 * 0.5 * f64::from((high - low).abs()) / (all.len() as f64).sqrt();
            assert!((mean - f64::from(value)).abs() <= allowed, "{value}: {mean}");
        }
        let bits: Vec<u32> = (0..1000).flat_map(|b| rounding.bits(b)).collect();
        let mean = bits.iter().map(|b| f64::from(*b)).sum::<f64>() / bits.len() as f64;
        assert!((mean - 32_767.5).abs() < 5.0 * 18_919.0 / (bits.len() as f64).sqrt(), "{mean}");
        // Step, parameter and seed each change the bits.
        for other in [
            Rounding { seed: 6, ..rounding },
            Rounding { seed: 5 + (1 << 32), ..rounding },
            Rounding { step: 10, ..rounding },
            Rounding { parameter: 4, ..rounding },
        ] {
            assert_ne!(other.bits(0), rounding.bits(0));
        }
    }
}
