//! The specification executed line by line, with no care for speed: the sampler's twin in tests.

use std::collections::BTreeMap;
use std::f32::consts::LOG2_E;

use smallvec::smallvec;

use super::kernels::{exp2, ln};
use super::philox::uniform;
use crate::engine::{RowOut, SampleRow, Sampled, TokenId};

/// Samples one row of at least `vocab_size` logits, as [`Sampler::sample_row`](super::Sampler::sample_row) must.
pub fn sample_row(logits: &[f32], vocab_size: usize, row: &SampleRow<'_>) -> RowOut {
    if logits.len() < vocab_size {
        return RowOut::Failed("short".into());
    }
    let raw = &logits[..vocab_size];
    let params = row.params;
    let bad = |l: &f32| l.is_nan() || *l == f32::INFINITY;
    let not_finite = || RowOut::Failed("not finite".into());
    if raw.iter().any(bad) {
        return not_finite();
    }

    let mut l = raw.to_vec();
    for &(token, bias) in &params.logit_bias {
        if let Some(l) = l.get_mut(token as usize) {
            *l += bias;
            if bad(l) {
                return not_finite();
            }
        }
    }
    let mut seen = BTreeMap::<TokenId, u32>::new();
    for (i, &token) in row.history.iter().enumerate() {
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
            return not_finite();
        }
    }
    if let Some(mask) = row.mask {
        for (i, l) in l.iter_mut().enumerate() {
            if mask.get(i / 32).is_none_or(|word| word >> (i % 32) & 1 == 0) {
                *l = f32::NEG_INFINITY;
            }
        }
    }

    let mut order: Vec<usize> = (0..vocab_size).collect();
    let descending = |l: &[f32], a: usize, b: usize| l[b].partial_cmp(&l[a]).expect("no NaN").then(a.cmp(&b));
    order.sort_by(|&a, &b| descending(&l, a, b));
    let Some(&first) = order.first().filter(|&&i| l[i] > f32::NEG_INFINITY) else {
        return RowOut::Failed("nothing allowed".into());
    };
    let token = if params.temperature < 1e-5 { first } else { draw(&l, &order, row) };

    let mut sampled = Sampled { token: token as TokenId, logprob: 0.0, top: Vec::new() };
    if let Some(n) = params.logprobs {
        let max = raw.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let ln_sum = ln(sum(raw.iter().map(|l| exp2((l - max) * LOG2_E))));
        let logprob = |i: usize| (f64::from(raw[i]) - f64::from(max) - ln_sum) as f32;
        sampled.logprob = logprob(token);
        order.retain(|&i| raw[i] > f32::NEG_INFINITY);
        order.sort_by(|&a, &b| descending(raw, a, b));
        sampled.top = order.iter().take(n as usize).map(|&i| (i as TokenId, logprob(i))).collect();
    }
    RowOut::Tokens(smallvec![sampled])
}

/// Steps 5 to 11. `order` is all tokens, sorted.
fn draw(l: &[f32], order: &[usize], row: &SampleRow<'_>) -> usize {
    let params = row.params;
    let max = l[order[0]];
    let scale = 1.0 / params.temperature * LOG2_E;
    let weight = |i: usize| exp2((l[i] - max) * scale);

    let top_k = if params.top_k == 0 { l.len() } else { l.len().min(params.top_k as usize) };
    let order = &order[..top_k];
    let total = if top_k < l.len() {
        order.iter().map(|&i| f64::from(weight(i))).sum::<f64>()
    } else {
        sum((0..l.len()).map(weight))
    };

    let mut running = Vec::new();
    for &i in order {
        let before = running.last().copied().unwrap_or(0.0);
        let reached = params.top_p < 1.0 && before >= f64::from(params.top_p) * total;
        if !running.is_empty() && (reached || weight(i) < params.min_p || weight(i) == 0.0) {
            break;
        }
        running.push(before + f64::from(weight(i)));
    }
    let cut = top_k < l.len() || params.top_p < 1.0 || params.min_p > 0.0;
    let mass = if cut { running[running.len() - 1] } else { total };
    let target = uniform(params.seed, params.choice, row.position as u64) * mass;
    let place = running.iter().position(|&sum| sum > target).unwrap_or(running.len() - 1);
    order[place]
}

/// Step 8: the sum over all tokens.
fn sum(weights: impl Iterator<Item = f32>) -> f64 {
    let weights: Vec<f32> = weights.collect();
    let mut lanes = [0_f64; 16];
    for block in weights.chunks(256) {
        let mut partial = [0_f32; 16];
        for (i, w) in block.iter().enumerate() {
            partial[i % 16] += w;
        }
        for lane in 0..16 {
            lanes[lane] += f64::from(partial[lane]);
        }
    }
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}
