//! One row at a time: norms, gates, softmax, noise, the loss; forward beside backward.
//!
//! Pointers are valid for `n` numbers, and rows that are written overlap no others.
#![allow(unsafe_op_in_unsafe_fn)]

use crate::ops::cpu::simd::{Simd, multiversion};

multiversion! {
    /// `out = x / rms(x) · weight`; returns `1 / rms(x)`.
    pub(super) unsafe fn norm = norm_on(x: *const f32, weight: *const f32, eps: f32, n: usize, out: *mut f32) -> f32;
    /// Adds the norm's gradients to `dx` and `dweight`, from `dy` and what [`norm`] was given and returned.
    pub(super) unsafe fn norm_backward = norm_backward_on(
        x: *const f32, weight: *const f32, inverse: f32, dy: *const f32, n: usize, dx: *mut f32, dweight: *mut f32,
    );
    /// `out = silu(gate) · up` of `both`: `n` gates, then `n` ups.
    pub(super) unsafe fn gate = gate_on(both: *const f32, n: usize, out: *mut f32);
    /// Replaces gates and ups by their gradients.
    pub(super) unsafe fn gate_backward = gate_backward_on(both: *mut f32, dy: *const f32, n: usize);
    /// Replaces the first `n` scores of a row by their softmax and the rest, up to `width`, by zeros. Returns the logarithm
    /// of the sum of exponentials. The row has room for a multiple of 16.
    pub(super) unsafe fn softmax = softmax_on(scores: *mut f32, n: usize, width: usize) -> f32;
    /// The same where that logarithm is known.
    pub(super) unsafe fn softmax_again = softmax_again_on(scores: *mut f32, log: f32, n: usize, width: usize);
    /// Replaces the gradients `dp` of probabilities `p` by those of the scores: `p · (dp - d)`.
    pub(super) unsafe fn softmax_backward = softmax_backward_on(p: *const f32, d: f32, n: usize, dp: *mut f32);
    /// `Σ a · b`.
    pub(super) unsafe fn dot = dot_on(a: *const f32, b: *const f32, n: usize) -> f32;
    /// `out = x · factor`.
    pub(super) unsafe fn scale = scale_on(x: *const f32, factor: f32, n: usize, out: *mut f32);
    /// `out += x`.
    pub(super) unsafe fn add = add_on(x: *const f32, n: usize, out: *mut f32);
    /// `out = residual + out · scale` where the bit of `kept` is set, else `residual`.
    pub(super) unsafe fn join = join_on(residual: *const f32, kept: *const u8, scale: f32, n: usize, out: *mut f32);
    /// `out = x · scale` where the bit of `kept` is set, else 0.
    pub(super) unsafe fn masked = masked_on(x: *const f32, kept: *const u8, scale: f32, n: usize, out: *mut f32);
    /// The largest, and the sum of exponentials relative to it.
    pub(super) unsafe fn exponentials = exponentials_on(x: *const f32, n: usize) -> Exponentials;
    /// Replaces logits by `exp(x - log) · weight`.
    pub(super) unsafe fn probabilities = probabilities_on(x: *mut f32, log: f32, weight: f32, n: usize);
    /// Rotates the pairs `(i, i + half)` of a head by the angles whose cosines and sines are given; backwards if
    /// `sign` is -1.
    pub(super) unsafe fn rotate = rotate_on(x: *mut f32, cos: *const f32, sin: *const f32, half: usize, sign: f32);
}

/// See [`exponentials`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Exponentials {
    pub max: f32,
    pub sum: f64,
}

/// Sixteen numbers, or the `n` there are and `rest`.
#[inline(always)]
unsafe fn load<S: Simd>(p: *const f32, n: usize, rest: f32) -> S::F {
    if n >= 16 {
        return S::load(p);
    }
    let mut lanes = [rest; 16];
    for i in 0..n {
        lanes[i] = *p.add(i);
    }
    S::load(lanes.as_ptr())
}

/// Sixteen numbers, or the first `n`.
#[inline(always)]
unsafe fn store<S: Simd>(p: *mut f32, n: usize, x: S::F) {
    if n >= 16 {
        return S::store(p, x);
    }
    let mut lanes = [0f32; 16];
    S::store(lanes.as_mut_ptr(), x);
    for i in 0..n {
        *p.add(i) = lanes[i];
    }
}

#[inline(always)]
unsafe fn dot_on<S: Simd>(a: *const f32, b: *const f32, n: usize) -> f32 {
    let mut sum = S::splat(0.0);
    for i in (0..n).step_by(16) {
        sum = S::fma(load::<S>(a.add(i), n - i, 0.0), load::<S>(b.add(i), n - i, 0.0), sum);
    }
    S::sum(sum)
}

#[inline(always)]
unsafe fn scale_on<S: Simd>(x: *const f32, factor: f32, n: usize, out: *mut f32) {
    for i in (0..n).step_by(16) {
        store::<S>(out.add(i), n - i, S::mul(load::<S>(x.add(i), n - i, 0.0), S::splat(factor)));
    }
}

#[inline(always)]
unsafe fn add_on<S: Simd>(x: *const f32, n: usize, out: *mut f32) {
    for i in (0..n).step_by(16) {
        let sum = S::add(load::<S>(out.add(i), n - i, 0.0), load::<S>(x.add(i), n - i, 0.0));
        store::<S>(out.add(i), n - i, sum);
    }
}

#[inline(always)]
unsafe fn norm_on<S: Simd>(x: *const f32, weight: *const f32, eps: f32, n: usize, out: *mut f32) -> f32 {
    let inverse = 1.0 / (dot_on::<S>(x, x, n) / n as f32 + eps).sqrt();
    for i in (0..n).step_by(16) {
        let hat = S::mul(load::<S>(x.add(i), n - i, 0.0), S::splat(inverse));
        store::<S>(out.add(i), n - i, S::mul(hat, load::<S>(weight.add(i), n - i, 0.0)));
    }
    inverse
}

/// With `h = x / rms`: `dweight += dy · h`, `dx += (w · dy - h · mean(w · dy · h)) / rms`.
#[inline(always)]
unsafe fn norm_backward_on<S: Simd>(
    x: *const f32,
    weight: *const f32,
    inverse: f32,
    dy: *const f32,
    n: usize,
    dx: *mut f32,
    dweight: *mut f32,
) {
    let r = S::splat(inverse);
    let mut sum = S::splat(0.0);
    for i in (0..n).step_by(16) {
        let left = n - i;
        let hat = S::mul(load::<S>(x.add(i), left, 0.0), r);
        let dy = load::<S>(dy.add(i), left, 0.0);
        sum = S::fma(S::mul(dy, load::<S>(weight.add(i), left, 0.0)), hat, sum);
        store::<S>(dweight.add(i), left, S::fma(dy, hat, load::<S>(dweight.add(i), left, 0.0)));
    }
    let mean = S::splat(S::sum(sum) / n as f32);
    for i in (0..n).step_by(16) {
        let left = n - i;
        let hat = S::mul(load::<S>(x.add(i), left, 0.0), r);
        let wdy = S::mul(load::<S>(dy.add(i), left, 0.0), load::<S>(weight.add(i), left, 0.0));
        let d = S::sub(wdy, S::mul(hat, mean));
        store::<S>(dx.add(i), left, S::fma(d, r, load::<S>(dx.add(i), left, 0.0)));
    }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
unsafe fn sigmoid<S: Simd>(x: S::F) -> S::F {
    let one = S::splat(1.0);
    S::div(one, S::add(one, S::exp(S::neg(x))))
}

#[inline(always)]
unsafe fn gate_on<S: Simd>(both: *const f32, n: usize, out: *mut f32) {
    for i in (0..n).step_by(16) {
        let g = load::<S>(both.add(i), n - i, 0.0);
        let u = load::<S>(both.add(n + i), n - i, 0.0);
        store::<S>(out.add(i), n - i, S::mul(S::mul(g, sigmoid::<S>(g)), u));
    }
}

#[inline(always)]
unsafe fn gate_backward_on<S: Simd>(both: *mut f32, dy: *const f32, n: usize) {
    let one = S::splat(1.0);
    for i in (0..n).step_by(16) {
        let left = n - i;
        let g = load::<S>(both.add(i), left, 0.0);
        let u = load::<S>(both.add(n + i), left, 0.0);
        let dy = load::<S>(dy.add(i), left, 0.0);
        let s = sigmoid::<S>(g);
        let slope = S::mul(s, S::fma(g, S::sub(one, s), one));
        store::<S>(both.add(n + i), left, S::mul(dy, S::mul(g, s)));
        store::<S>(both.add(i), left, S::mul(S::mul(dy, u), slope));
    }
}

#[inline(always)]
unsafe fn softmax_on<S: Simd>(scores: *mut f32, n: usize, width: usize) -> f32 {
    let Exponentials { max, sum } = exponentials_on::<S>(scores, n);
    let log = max + (sum as f32).ln();
    softmax_again_on::<S>(scores, log, n, width);
    log
}

#[inline(always)]
unsafe fn softmax_again_on<S: Simd>(scores: *mut f32, log: f32, n: usize, width: usize) {
    for i in (0..n).step_by(16) {
        let e = S::exp(S::sub(load::<S>(scores.add(i), n - i, log), S::splat(log)));
        store::<S>(scores.add(i), n - i, e);
    }
    std::slice::from_raw_parts_mut(scores.add(n), width - n).fill(0.0);
}

#[inline(always)]
unsafe fn softmax_backward_on<S: Simd>(p: *const f32, d: f32, n: usize, dp: *mut f32) {
    for i in (0..n).step_by(16) {
        let change = S::sub(load::<S>(dp.add(i), n - i, 0.0), S::splat(d));
        store::<S>(dp.add(i), n - i, S::mul(load::<S>(p.add(i), n - i, 0.0), change));
    }
}

/// The factors that eight bits stand for.
#[inline(always)]
fn factors(bits: u8, scale: f32) -> [f32; 8] {
    std::array::from_fn(|i| if bits >> i & 1 == 1 { scale } else { 0.0 })
}

#[inline(always)]
unsafe fn join_on<S: Simd>(residual: *const f32, kept: *const u8, scale: f32, n: usize, out: *mut f32) {
    for i in (0..n).step_by(8) {
        let factors = factors(*kept.add(i / 8), scale);
        for j in 0..8.min(n - i) {
            *out.add(i + j) = *residual.add(i + j) + *out.add(i + j) * factors[j];
        }
    }
    let _ = S::QUERIES;
}

#[inline(always)]
unsafe fn masked_on<S: Simd>(x: *const f32, kept: *const u8, scale: f32, n: usize, out: *mut f32) {
    for i in (0..n).step_by(8) {
        let factors = factors(*kept.add(i / 8), scale);
        for j in 0..8.min(n - i) {
            *out.add(i + j) = *x.add(i + j) * factors[j];
        }
    }
    let _ = S::QUERIES;
}

/// The sum in pieces of 1024, each in sixteen lanes, added in F64 in order.
#[inline(always)]
unsafe fn exponentials_on<S: Simd>(x: *const f32, n: usize) -> Exponentials {
    let mut best = S::splat(f32::NEG_INFINITY);
    for i in (0..n).step_by(16) {
        best = S::max(best, load::<S>(x.add(i), n - i, f32::NEG_INFINITY));
    }
    let max = S::max_lane(best);
    let mut total = 0f64;
    for piece in (0..n).step_by(1024) {
        let end = (piece + 1024).min(n);
        let mut sum = S::splat(0.0);
        for i in (piece..end).step_by(16) {
            let e = S::exp(S::sub(load::<S>(x.add(i), end - i, f32::NEG_INFINITY), S::splat(max)));
            sum = S::add(sum, e);
        }
        total += S::sum(sum) as f64;
    }
    Exponentials { max, sum: total }
}

#[inline(always)]
unsafe fn probabilities_on<S: Simd>(x: *mut f32, log: f32, weight: f32, n: usize) {
    for i in (0..n).step_by(16) {
        let e = S::exp(S::sub(load::<S>(x.add(i), n - i, log), S::splat(log)));
        store::<S>(x.add(i), n - i, S::mul(e, S::splat(weight)));
    }
}

#[inline(always)]
unsafe fn rotate_on<S: Simd>(x: *mut f32, cos: *const f32, sin: *const f32, half: usize, sign: f32) {
    for i in (0..half).step_by(16) {
        let left = half - i;
        let (c, s) = (load::<S>(cos.add(i), left, 0.0), S::mul(load::<S>(sin.add(i), left, 0.0), S::splat(sign)));
        let (a, b) = (load::<S>(x.add(i), left, 0.0), load::<S>(x.add(half + i), left, 0.0));
        store::<S>(x.add(i), left, S::sub(S::mul(a, c), S::mul(b, s)));
        store::<S>(x.add(half + i), left, S::add(S::mul(b, c), S::mul(a, s)));
    }
}
