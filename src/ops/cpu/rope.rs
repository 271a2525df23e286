//! Rotary positions, and the write of new keys and values into the pool.

use super::buffer::Buffer;
use super::kv::{KvPool, KvType};
use super::simd::{Simd, multiversion};
use crate::engine::{BLOCK_SIZE, BlockId};

/// Cosines and sines of all positions, `[positions, head_dim / 2]` each.
pub(crate) struct RopeTable {
    half: usize,
    cos: Buffer<f32>,
    sin: Buffer<f32>,
}

impl RopeTable {
    pub(crate) fn new(inverse_frequencies: &[f32], positions: usize) -> Self {
        let half = inverse_frequencies.len();
        let mut cos = Buffer::zeroed(positions * half);
        let mut sin = Buffer::zeroed(positions * half);
        for p in 0..positions {
            for (i, f) in inverse_frequencies.iter().enumerate() {
                let angle = p as f32 * f;
                (sin[p * half + i], cos[p * half + i]) = angle.sin_cos();
            }
        }
        Self { half, cos, sin }
    }

    pub(crate) fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Where one token's q, k and v are and go.
#[derive(Clone, Copy)]
pub(crate) struct Token<'a> {
    pub(crate) table: &'a RopeTable,
    pub(crate) pool: &'a KvPool,
    pub(crate) layer: usize,
    /// The token's row: queries, keys, values, head after head.
    pub(crate) qkv: *mut f32,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) position: usize,
    /// The block of the position.
    pub(crate) block: BlockId,
}

/// Rotates pairs `(i, i + half)`; plain operations that no compiler contracts, so every level agrees.
#[inline(always)]
fn rotate(x: &mut [f32], (cos, sin): (&[f32], &[f32]), scale: f32) {
    let (a, b) = x.split_at_mut(cos.len());
    for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        (*a, *b) = ((*a * c - *b * s) * scale, (*b * c + *a * s) * scale);
    }
}

#[inline(always)]
unsafe fn rope_write<S: Simd>(t: Token<'_>) {
    let dim = t.pool.head_dim;
    let angles = t.table.at(t.position);
    let slot = t.position % BLOCK_SIZE;
    // SAFETY: the row holds all heads, and no other worker touches it or this position's slot.
    unsafe {
        let row = |head: usize| std::slice::from_raw_parts_mut(t.qkv.add(head * dim), dim);
        let scale = 1.0 / (dim as f32).sqrt();
        for head in 0..t.heads {
            rotate(row(head), angles, scale);
        }
        for head in 0..t.kv_heads {
            let to = t.pool.head(t.layer, t.block, head);
            let key = row(t.heads + head);
            rotate(key, angles, 1.0);
            let value = row(t.heads + t.kv_heads + head);
            match t.pool.kind {
                KvType::F32 => {
                    let (keys, values) = (to.keys.cast::<f32>(), to.values.cast::<f32>());
                    for d in 0..dim {
                        *keys.add(d * BLOCK_SIZE + slot) = key[d];
                        *values.add(slot * t.pool.padded_dim + d) = value[d];
                    }
                }
                KvType::BF16 => {
                    let (keys, values) = (to.keys.cast::<u16>(), to.values.cast::<u16>());
                    let mut rounded = [0u16; 16];
                    for d in (0..dim).step_by(16) {
                        let n = 16.min(dim - d);
                        round16::<S>(&key[d..d + n], &mut rounded);
                        for i in 0..n {
                            *keys.add((d + i) * BLOCK_SIZE + slot) = rounded[i];
                        }
                        round16::<S>(&value[d..d + n], &mut rounded);
                        std::ptr::copy_nonoverlapping(rounded.as_ptr(), values.add(slot * t.pool.padded_dim + d), n);
                    }
                }
                KvType::Int8 => {
                    let (keys, values) = (to.keys.cast::<i8>(), to.values.cast::<i8>());
                    let mut lanes = [0i8; 16];
                    let (scale, inverse) = scales::<S>(key);
                    *to.scales.add(slot) = scale;
                    for d in (0..dim).step_by(16) {
                        let n = 16.min(dim - d);
                        quantise16::<S>(&key[d..d + n], inverse, &mut lanes);
                        for i in 0..n {
                            *keys.add((d + i) * BLOCK_SIZE + slot) = lanes[i];
                        }
                    }
                    let (scale, inverse) = scales::<S>(value);
                    *to.scales.add(BLOCK_SIZE + slot) = scale;
                    for d in (0..dim).step_by(16) {
                        let n = 16.min(dim - d);
                        quantise16::<S>(&value[d..d + n], inverse, &mut lanes);
                        std::ptr::copy_nonoverlapping(lanes.as_ptr(), values.add(slot * t.pool.padded_dim + d), n);
                    }
                }
            }
        }
    }
}

/// At most 16 numbers, and zeros.
#[inline(always)]
fn lanes(x: &[f32]) -> [f32; 16] {
    let mut lanes = [0f32; 16];
    lanes[..x.len()].copy_from_slice(x);
    lanes
}

#[inline(always)]
fn round16<S: Simd>(x: &[f32], out: &mut [u16; 16]) {
    // SAFETY: 16 lanes in, 16 out; the caller runs under `S`'s features.
    unsafe { S::store_bf16(out.as_mut_ptr(), S::load(lanes(x).as_ptr())) }
}

/// The scale of one token's key or value and its inverse: the largest magnitude becomes 127. Magnitudes below
/// 1e-30, whose inverse may overflow, are zeros. If a number is not finite the scale is NaN, so that the row fails as
/// it does with a cache of floats.
#[inline(always)]
fn scales<S: Simd>(x: &[f32]) -> (f32, f32) {
    // SAFETY: 16 lanes each; the caller runs under `S`'s features.
    let (top, poison) = unsafe {
        let zero = S::splat(0.0);
        let (mut top, mut poison) = (zero, zero);
        for part in x.chunks(16) {
            let v = S::load(lanes(part).as_ptr());
            top = S::max(S::abs(v), top);
            poison = S::fma(v, zero, poison);
        }
        (S::max_lane(top), S::sum(poison))
    };
    match (poison.is_nan(), top > 1e-30) {
        (true, _) => (f32::NAN, 0.0),
        (false, true) => (top / 127.0, 127.0 / top),
        (false, false) => (0.0, 0.0),
    }
}

#[inline(always)]
fn quantise16<S: Simd>(x: &[f32], inverse: f32, out: &mut [i8; 16]) {
    // SAFETY: as in `round16`. A magnitude times the inverse is at most 127 and a rounding error.
    unsafe { S::store_i8(out.as_mut_ptr(), S::round(S::mul(S::load(lanes(x).as_ptr()), S::splat(inverse)))) }
}

multiversion! {
    /// Rotates a token's queries (scaled by `1/√head_dim`) and keys in place and appends keys and values.
    pub(crate) unsafe fn rope_and_write = rope_write(t: Token<'_>);
}
