//! From logits to one token: top-k, top-p, min-p and the draw, sorting no more than the draw needs.

use super::exponent_scale;
use super::kernels::{self, LN_ZERO, Level, exp2, ln, unkey};
use super::philox::uniform;
use crate::engine::{SamplingParams, TokenId};

/// Buffers of [`draw`] and [`best`].
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Maximum of each block of the row as it is now.
    pub blocks: Vec<f32>,
    /// Its sum of powers, relative to that maximum.
    pub sums: Vec<f32>,
    pub keys: Vec<u64>,
    pub select: Vec<f32>,
    cumulative: Vec<f64>,
}

impl Buffers {
    /// The largest logit.
    pub fn max(&self) -> f32 {
        self.blocks.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    /// The median of the block maxima: about one token in [`kernels::BLOCK`] reaches it.
    fn median_block(&mut self) -> f32 {
        self.select.clear();
        self.select.extend_from_slice(&self.blocks);
        let middle = self.select.len() / 2;
        *self.select.select_nth_unstable_by(middle, f32::total_cmp).1
    }

    /// A logit that about one in 24 reaches, judged by every sixteenth.
    fn sampled(&mut self, logits: &[f32]) -> f32 {
        self.select.clear();
        self.select.extend(logits.iter().step_by(16));
        let place = self.select.len() / 24;
        *self.select.select_nth_unstable_by(place, |a, b| b.total_cmp(a)).1
    }
}

/// The lowest id with the largest logit; `None` if all are -inf.
pub(super) fn argmax(logits: &[f32], blocks: &[f32]) -> Option<TokenId> {
    let max = blocks.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return None;
    }
    let start = blocks.iter().position(|&b| b == max)? * kernels::BLOCK;
    let offset = logits[start..].iter().position(|&l| l == max)?;
    Some((start + offset) as TokenId)
}

/// Leaves the sorted keys of the `k` best logits above -inf in `buffers.keys` (fewer if there are
/// not so many). `k` is at least 1.
pub(super) fn best(level: Level, logits: &[f32], k: usize, buffers: &mut Buffers) {
    let Buffers { blocks, keys, select, .. } = buffers;
    // The k-th largest block maximum is no larger than the k-th largest logit.
    let mut threshold = f32::MIN;
    if k <= blocks.len() {
        select.clear();
        select.extend_from_slice(blocks);
        let (_, nth, _) = select.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        threshold = threshold.max(*nth);
    }
    keys.clear();
    kernels::gather(level, logits, blocks, threshold, keys);
    if keys.len() > k {
        keys.select_nth_unstable(k - 1);
        keys.truncate(k);
    }
    keys.sort_unstable();
}

/// Where the walk down the sorted candidates ends, beside their end.
struct Limits {
    /// Stop once the mass is at least this.
    nucleus: Option<f64>,
    /// Stop before the first weight below this; the first candidate always stays.
    min_weight: f32,
    /// The kept mass where it is known beforehand: nothing is cut off.
    mass: Option<f64>,
    /// In `[0, 1)`.
    uniform: f64,
}

/// Draws from a row just passed over with at least one logit above -inf, at `params.temperature > 0`.
pub(super) fn draw(
    level: Level,
    logits: &[f32],
    params: &SamplingParams,
    position: usize,
    buffers: &mut Buffers,
) -> TokenId {
    let max = buffers.max();
    let scale = exponent_scale(params);
    let weight = |key: u64| exp2((unkey(key).0 - max) * scale);
    let uniform = uniform(params.seed, params.choice, position as u64);
    let top_p = f64::from(params.top_p);
    let mut limits = Limits { nucleus: None, min_weight: params.min_p.max(f32::from_bits(1)), mass: None, uniform };

    let k = params.top_k as usize;
    if k > 0 && k < logits.len() {
        best(level, logits, k, buffers);
        let total: f64 = buffers.keys.iter().map(|&key| f64::from(weight(key))).sum();
        limits.nucleus = (top_p < 1.0).then_some(top_p * total);
        let keys = &mut buffers.keys;
        return walk(keys, weight, &limits, &mut buffers.cumulative).unwrap_or_else(|last| last);
    }

    let total = buffers.total(level, scale);
    // Tokens of weight below (1 - p) · total / V sum to less than (1 - p) · total, so the prefix of
    // mass p · total is among the others. Half of that leaves room for rounding.
    let prefix = if top_p < 1.0 {
        limits.nucleus = Some(top_p * total);
        top_p
    } else if params.min_p > 0.0 {
        1.0
    } else {
        limits.mass = Some(total);
        uniform
    };
    let by_mass = 0.5 * (1.0 - prefix) * total / logits.len() as f64;
    let by_min_p = 0.5 * f64::from(params.min_p);
    let at_weight = |w: f64| {
        let exponent = if w > 1e-37 { ln(w.min(1.0)) } else { LN_ZERO };
        round_down(f64::from(max) + exponent * f64::from(params.temperature))
    };
    let floor = at_weight(by_mass.max(by_min_p));
    // Any threshold leaves a prefix of the order, so first try one that few tokens pass, then one that some
    // pass; next the floor, which fails only by rounding; last every token of positive weight.
    let last = if by_min_p >= by_mass { floor } else { at_weight(0.0) };
    let mut drawn = 0;
    for attempt in 0..4 {
        let threshold = match attempt {
            0 => buffers.median_block().max(floor),
            1 => buffers.sampled(logits).max(floor),
            2 => floor,
            _ => last,
        };
        buffers.keys.clear();
        kernels::gather(level, logits, &buffers.blocks, threshold, &mut buffers.keys);
        match walk(&mut buffers.keys, weight, &limits, &mut buffers.cumulative) {
            Ok(token) => return token,
            Err(token) => drawn = token,
        }
    }
    drawn
}

/// Sorts `keys` as far as needed and draws. `Err` holds the token drawn if the candidates end
/// before a limit is met.
fn walk(
    keys: &mut [u64],
    weight: impl Fn(u64) -> f32,
    limits: &Limits,
    cumulative: &mut Vec<f64>,
) -> Result<TokenId, TokenId> {
    let target = limits.mass.map(|mass| limits.uniform * mass);
    let mut sum = 0.0;
    let mut met = false;
    let mut sorted = 0;
    let mut step = 64;
    cumulative.clear();
    'candidates: while sorted < keys.len() {
        let rest = &mut keys[sorted..];
        let count = if rest.len() > 2 * step { step } else { rest.len() };
        if count < rest.len() {
            rest.select_nth_unstable(count - 1);
        }
        rest[..count].sort_unstable();
        for &key in &rest[..count] {
            let w = weight(key);
            if w < limits.min_weight && !cumulative.is_empty() {
                met = true;
                break 'candidates;
            }
            sum += f64::from(w);
            cumulative.push(sum);
            if limits.nucleus.is_some_and(|mass| sum >= mass) || target.is_some_and(|t| sum > t) {
                met = true;
                break 'candidates;
            }
        }
        sorted += count;
        step *= 4;
    }
    let target = target.unwrap_or(limits.uniform * sum);
    let place = cumulative.partition_point(|&c| c <= target).min(cumulative.len().saturating_sub(1));
    let token = unkey(keys[place]).1;
    if met { Ok(token) } else { Err(token) }
}

/// The largest f32 not above `x`.
fn round_down(x: f64) -> f32 {
    let y = x as f32;
    if f64::from(y) > x { y.next_down() } else { y }
}
