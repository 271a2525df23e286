//! Activations on their way into a matrix product: normalised, rounded or quantised, row by row.

use super::buffer::Buffer;
use super::pack::{Activation, BLOCK};
use super::simd::{Simd, multiversion};

/// Prepared activations: up to `capacity` rows of up to `width` columns (a multiple of 32), in whichever
/// form the weights ask for. Int8 rows come with, for each block of 32, the scale `d` and three sums
/// that stand for the zero points: `-128 Σq`, `-8 Σq` and `d Σq`.
pub(crate) struct Rows {
    width: usize,
    f: Buffer<f32>,
    h: Buffer<u16>,
    q: Buffer<i8>,
    d: Buffer<f32>,
    c128: Buffer<i32>,
    c8: Buffer<i32>,
    ds: Buffer<f32>,
}

/// One prepared row.
#[derive(Clone, Copy)]
pub(crate) struct RowPtr {
    pub(crate) f: *mut f32,
    pub(crate) h: *mut u16,
    pub(crate) q: *mut i8,
    pub(crate) d: *mut f32,
    pub(crate) c128: *mut i32,
    pub(crate) c8: *mut i32,
    pub(crate) ds: *mut f32,
}

impl Rows {
    pub(crate) fn new(capacity: usize, width: usize) -> Self {
        let width = width.next_multiple_of(BLOCK);
        let (n, blocks) = (capacity * width, capacity * width / BLOCK);
        Self {
            width,
            f: Buffer::zeroed(n),
            h: Buffer::zeroed(n),
            q: Buffer::zeroed(n),
            d: Buffer::zeroed(blocks),
            c128: Buffer::zeroed(blocks),
            c8: Buffer::zeroed(blocks),
            ds: Buffer::zeroed(blocks),
        }
    }

    /// Pointers to row `i`. Different workers write different rows.
    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> RowPtr {
        let (n, b) = (i * self.width, i * self.width / BLOCK);
        debug_assert!(n + self.width <= self.f.len());
        RowPtr {
            f: self.f.as_ptr_shared().wrapping_add(n),
            h: self.h.as_ptr_shared().wrapping_add(n),
            q: self.q.as_ptr_shared().wrapping_add(n),
            d: self.d.as_ptr_shared().wrapping_add(b),
            c128: self.c128.as_ptr_shared().wrapping_add(b),
            c8: self.c8.as_ptr_shared().wrapping_add(b),
            ds: self.ds.as_ptr_shared().wrapping_add(b),
        }
    }
}

/// RMSNorm to apply on the way: padded weights, epsilon, true width.
#[derive(Clone, Copy)]
pub(crate) struct NormPtr {
    pub(crate) weight: *const f32,
    pub(crate) eps: f32,
    pub(crate) width: usize,
}

/// Prepares one row: `src` holds `blocks` × 32 numbers, zero beyond the true width.
#[inline(always)]
unsafe fn prepare<S: Simd>(src: *const f32, norm: Option<NormPtr>, form: Activation, blocks: usize, dst: RowPtr) {
    // SAFETY: the caller's pointers hold `blocks` blocks each.
    unsafe {
        let mut src = src;
        if let Some(norm) = norm {
            let mut squares = S::splat(0.0);
            for k in (0..blocks * BLOCK).step_by(16) {
                let x = S::load(src.add(k));
                squares = S::fma(x, x, squares);
            }
            let scale = S::splat(1.0 / (S::sum(squares) / norm.width as f32 + norm.eps).sqrt());
            for k in (0..blocks * BLOCK).step_by(16) {
                let x = S::mul(S::load(src.add(k)), scale);
                S::store(dst.f.add(k), S::mul(x, S::load(norm.weight.add(k))));
            }
            src = dst.f;
        }
        match form {
            Activation::F32 => {
                if norm.is_none() {
                    std::ptr::copy_nonoverlapping(src, dst.f, blocks * BLOCK);
                }
            }
            Activation::BF16 => {
                for k in (0..blocks * BLOCK).step_by(16) {
                    S::store_bf16(dst.h.add(k), S::load(src.add(k)));
                    if !S::NATIVE_BF16 {
                        S::store(dst.f.add(k), S::load_bf16(dst.h.add(k)));
                    }
                }
            }
            Activation::Int8 => {
                for b in 0..blocks {
                    let (x, y) = (S::load(src.add(b * BLOCK)), S::load(src.add(b * BLOCK + 16)));
                    let top = S::max_lane(S::max(S::abs(x), S::abs(y)));
                    // Below this the inverse would overflow; such a block is zero.
                    let (d, inverse) = if top > 1e-30 { (top / 127.0, 127.0 / top) } else { (0.0, 0.0) };
                    let inverse = S::splat(inverse);
                    let (x, y) = (S::round(S::mul(x, inverse)), S::round(S::mul(y, inverse)));
                    S::store_i8(dst.q.add(b * BLOCK), x);
                    S::store_i8(dst.q.add(b * BLOCK + 16), y);
                    let sum = S::sum_i(S::add_i(x, y));
                    *dst.d.add(b) = d;
                    *dst.c128.add(b) = -128 * sum;
                    *dst.c8.add(b) = -8 * sum;
                    *dst.ds.add(b) = d * sum as f32;
                }
            }
        }
    }
}

multiversion! {
    /// Prepares one row for a matrix product.
    pub(crate) unsafe fn prepare_row = prepare(
        src: *const f32, norm: Option<NormPtr>, form: Activation, blocks: usize, dst: RowPtr,
    );
}
