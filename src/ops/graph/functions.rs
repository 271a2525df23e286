//! Differentiable functions composed of candle's basic operations.
//!
//! candle_nn's fused rms_norm, softmax and rope are faster and have no backward pass: gradients
//! that reach them vanish without an error.

use std::ops::Range;

use candle_core::{D, Device, Result, Tensor};

/// `x / rms(x) · weight` over the last dimension. `x: [T, n]`, `weight: [n]`.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    x.broadcast_div(&rms)?.broadcast_mul(weight)
}

/// `exp(x) / Σ exp(x)` over the last dimension; no row may be all `-inf`.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    // Softmax does not change under a shift, so the maximum needs no gradient.
    let max = x.detach().max_keepdim(D::Minus1)?;
    let exp = x.broadcast_sub(&max)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// Cosines and sines of the rotation angles, `[T, head_dim / 2]` each.
pub(super) fn rotation(positions: &[u32], inverse_frequencies: &[f32], device: &Device) -> Result<(Tensor, Tensor)> {
    let angles: Vec<f32> =
        positions.iter().flat_map(|&p| inverse_frequencies.iter().map(move |f| p as f32 * f)).collect();
    let angles = Tensor::from_vec(angles, (positions.len(), inverse_frequencies.len()), device)?;
    Ok((angles.cos()?, angles.sin()?))
}

/// Rotates pairs `(i, i + head_dim / 2)` of every head. `x: [T, heads, head_dim]`.
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[&first, &second], D::Minus1)
}

/// Rows `range` of `x: [T, n]` as heads: `[heads, len, n / heads]`.
fn heads(x: &Tensor, range: &Range<usize>, heads: usize) -> Result<Tensor> {
    let x = x.narrow(0, range.start, range.len())?;
    x.reshape((range.len(), heads, x.dim(1)? / heads))?.transpose(0, 1)?.contiguous()
}

/// Causal attention of the sequence in rows `range`, which starts at position 0.
///
/// `q: [T, heads · d]`, `k` and `v: [T, kv_heads · d]` → `[len, heads · d]`. Query heads
/// `g · heads / kv_heads ..` share key-value head `g`.
pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    range: &Range<usize>,
    num_heads: usize,
    num_kv_heads: usize,
) -> Result<Tensor> {
    let len = range.len();
    let (q, k, v) = (heads(q, range, num_heads)?, heads(k, range, num_kv_heads)?, heads(v, range, num_kv_heads)?);
    let head_dim = q.dim(2)?;
    let groups = num_heads / num_kv_heads;
    // Queries of one group side by side: keys and values need no copies.
    let q = (q.reshape((num_kv_heads, groups * len, head_dim))? * (head_dim as f64).powf(-0.5))?;
    let scores = q.matmul(&k.t()?.contiguous()?)?.reshape((num_heads, len, len))?;
    let weights = softmax(&scores.broadcast_add(&causal_mask(len, q.device())?)?)?;
    let out = weights.reshape((num_kv_heads, groups * len, len))?.matmul(&v)?;
    out.reshape((num_heads, len, head_dim))?.transpose(0, 1)?.contiguous()?.reshape((len, num_heads * head_dim))
}

/// `[len, len]`: `-inf` above the diagonal, else 0.
fn causal_mask(len: usize, device: &Device) -> Result<Tensor> {
    let mask: Vec<f32> =
        (0..len).flat_map(|i| (0..len).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 })).collect();
    Tensor::from_vec(mask, (len, len), device)
}
