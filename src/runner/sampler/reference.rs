//! The specification executed line by line, with no care for speed: the sampler's twin in tests.

use std::collections::BTreeMap;
use std::f32::consts::LOG2_E;

use smallvec::smallvec;

use super::kernels::{exp2, ln};
use super::philox::uniform;
use crate::engine::{RowOut, SampleRow, Sampled, SamplingParams, TokenId};

/// Samples one row of at least `vocab_size` logits, as [`Sampler::sample_row`](super::Sampler::sample_row) must.
pub fn sample_row(logits: &[f32], vocab_size: usize, row: &SampleRow<'_>) -> RowOut {
    let l = match edited(logits, vocab_size, row) {
        Ok(l) => l,
        Err(message) => return RowOut::Failed(message.into()),
    };
    let raw = &logits[..vocab_size];
    let params = row.params;
    let kept = Kept::of(&l, params);
    let target = uniform(params.seed, params.choice, row.position as u64) * kept.mass;
    let place = kept.running.iter().position(|&sum| sum > target).unwrap_or(kept.running.len() - 1);
    let token = kept.tokens[place];

    let mut sampled = Sampled { token: token as TokenId, logprob: 0.0, top: Vec::new() };
    if let Some(n) = params.logprobs {
        let max = raw.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let ln_sum = ln(total(raw, max, LOG2_E));
        let logprob = |i: usize| (f64::from(raw[i]) - f64::from(max) - ln_sum) as f32;
        sampled.logprob = logprob(token);
        let order = order(raw).into_iter().filter(|&i| raw[i] > f32::NEG_INFINITY);
        sampled.top = order.take(n as usize).map(|i| (i as TokenId, logprob(i))).collect();
    }
    RowOut::Tokens(smallvec![sampled])
}

/// The tokens that may be drawn, the likeliest first, and their probabilities.
///
/// # Errors
/// The row fails.
pub fn distribution(
    logits: &[f32],
    vocab_size: usize,
    row: &SampleRow<'_>,
) -> Result<Vec<(TokenId, f64)>, &'static str> {
    let kept = Kept::of(&edited(logits, vocab_size, row)?, row.params);
    let before = std::iter::once(0.0).chain(kept.running.iter().copied());
    let shares = kept.running.iter().zip(before).map(|(sum, before)| (sum - before) / kept.mass);
    Ok(kept.tokens.iter().map(|&i| i as TokenId).zip(shares).collect())
}

/// Steps 0 and 2 to 4: the logits after bias, penalties, mask and stop tokens.
///
/// # Errors
/// The row fails.
pub fn edited(logits: &[f32], vocab_size: usize, row: &SampleRow<'_>) -> Result<Vec<f32>, &'static str> {
    const NOT_FINITE: &str = "not finite";
    let params = row.params;
    let bad = |l: &f32| l.is_nan() || *l == f32::INFINITY;
    let mut l = logits.get(..vocab_size).ok_or("short")?.to_vec();
    if l.iter().any(bad) {
        return Err(NOT_FINITE);
    }
    for &(token, bias) in &params.logit_bias {
        if let Some(l) = l.get_mut(token as usize) {
            *l += bias;
            if bad(l) {
                return Err(NOT_FINITE);
            }
        }
    }
    let mut seen = BTreeMap::<TokenId, u32>::new();
    for (i, &token) in row.history.iter().chain(row.drafts).enumerate() {
        *seen.entry(token).or_default() += u32::from(i >= row.num_prompt);
    }
    if !params.has_penalties() {
        seen.clear();
    }
    for (&token, &count) in &seen {
        let Some(l) = l.get_mut(token as usize) else { continue };
        let r = params.repetition_penalty;
        if r != 1.0 {
            *l = if *l < 0.0 { *l * r } else { *l / r };
        }
        if count > 0 {
            *l -= params.frequency_penalty * count as f32;
            *l -= params.presence_penalty;
        }
        if bad(l) {
            return Err(NOT_FINITE);
        }
    }
    if let Some(mask) = row.mask {
        for (i, l) in l.iter_mut().enumerate() {
            if mask.get(i / 32).is_none_or(|word| word >> (i % 32) & 1 == 0) {
                *l = f32::NEG_INFINITY;
            }
        }
    }
    let impossible = |l: &[f32]| l.iter().all(|&l| l == f32::NEG_INFINITY);
    if row.position < row.num_prompt + params.min_tokens as usize {
        let mut without = l.clone();
        for &token in &params.stop_token_ids {
            if let Some(l) = without.get_mut(token as usize) {
                *l = f32::NEG_INFINITY;
            }
        }
        if !impossible(&without) {
            l = without;
        }
    }
    if impossible(&l) { Err("nothing allowed") } else { Ok(l) }
}

/// All tokens by (logit descending, id ascending).
fn order(l: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..l.len()).collect();
    order.sort_by(|&a, &b| l[b].partial_cmp(&l[a]).expect("no NaN").then(a.cmp(&b)));
    order
}

/// What steps 5 to 10 leave.
struct Kept {
    tokens: Vec<usize>,
    /// Sums of the weights up to each token.
    running: Vec<f64>,
    /// `M` of step 11.
    mass: f64,
}

impl Kept {
    /// Of logits not all -inf.
    fn of(l: &[f32], params: &SamplingParams) -> Self {
        let mut tokens = order(l);
        if params.temperature < 1e-5 {
            return Self { tokens: vec![tokens[0]], running: vec![1.0], mass: 1.0 };
        }
        let max = l[tokens[0]];
        let scale = 1.0 / params.temperature * LOG2_E;
        let weight = |i: usize| exp2((l[i] - max) * scale);

        let top_k = if params.top_k == 0 { l.len() } else { l.len().min(params.top_k as usize) };
        tokens.truncate(top_k);
        let z = if top_k < l.len() {
            tokens.iter().map(|&i| f64::from(weight(i))).sum::<f64>()
        } else {
            total(l, max, scale)
        };

        let mut running = Vec::new();
        for &i in &tokens {
            let before = running.last().copied().unwrap_or(0.0);
            let reached = params.top_p < 1.0 && before >= f64::from(params.top_p) * z;
            if !running.is_empty() && (reached || weight(i) < params.min_p || weight(i) == 0.0) {
                break;
            }
            running.push(before + f64::from(weight(i)));
        }
        tokens.truncate(running.len());
        let cut = top_k < l.len() || params.top_p < 1.0 || params.min_p > 0.0;
        let mass = if cut { running[running.len() - 1] } else { z };
        Self { tokens, running, mass }
    }
}

/// Step 8: the sum over all tokens.
fn total(l: &[f32], max: f32, scale: f32) -> f64 {
    let mut total = 0.0;
    for block in l.chunks(256) {
        let m = block.iter().copied().fold(f32::MIN, f32::max);
        let mut lanes = [0_f32; 16];
        for (i, l) in block.iter().enumerate() {
            lanes[i % 16] += exp2((l - m) * scale);
        }
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
        }
        total += f64::from(lanes[0] * exp2((m - max) * scale));
    }
    total
}
