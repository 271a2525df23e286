//! Activations on their way into a matrix product: normalised, rounded or quantised, row by row.

use super::buffer::Buffer;
use super::pack::{Activation, BLOCK};
use super::simd::{Simd, multiversion};

/// Prepared activations: up to `capacity` rows of up to `width` columns (a multiple of 32), in whichever
/// form the weights ask for. Int8 rows come with, for each block of 32, the scale `d` and sums that stand for
/// the zero points: `-128 Σq`, `-16 Σq`, `-8 Σq`, `d Σq`, and `-32 Σq` of each half.
///
/// Rows are kept in panels of 16, 8, 4, 2 or 1, those that a kernel multiplies together: [`panel`]. Inside
/// one, the same column of all its rows lies side by side (for int8, the same four columns; for native
/// bf16, the same two), so that a kernel needs one pointer.
pub(crate) struct Rows {
    width: usize,
    f: Buffer<f32>,
    h: Buffer<u32>,
    q: Buffer<i32>,
    d: Buffer<f32>,
    c128: Buffer<i32>,
    c16: Buffer<i32>,
    c8: Buffer<i32>,
    ds: Buffer<f32>,
    c32: Buffer<i32>,
    /// One row for each worker.
    staging: Buffer<f32>,
}

/// A panel, or with `lane` and `rows` one row in it.
#[derive(Clone, Copy)]
pub(crate) struct PanelPtr {
    pub(crate) f: *mut f32,
    pub(crate) h: *mut u32,
    pub(crate) q: *mut i32,
    pub(crate) d: *mut f32,
    pub(crate) c128: *mut i32,
    pub(crate) c16: *mut i32,
    pub(crate) c8: *mut i32,
    pub(crate) ds: *mut f32,
    pub(crate) c32: *mut i32,
}

/// The first row and the number of rows of the panel that holds row `i` of `count`: as many panels of `widest`
/// (a power of two) rows as there are, then ever smaller ones.
#[inline]
pub(crate) fn panel(i: usize, count: usize, widest: usize) -> (usize, usize) {
    let mut from = count / widest * widest;
    if i < from {
        return (i / widest * widest, widest);
    }
    let mut size = widest;
    loop {
        // The rest is below `widest`, so each size occurs at most once.
        while count - from < size {
            size /= 2;
        }
        if i < from + size {
            return (from, size);
        }
        from += size;
    }
}

impl Rows {
    pub(crate) fn new(capacity: usize, width: usize, workers: usize) -> Self {
        let width = width.next_multiple_of(BLOCK);
        let (n, blocks) = (capacity * width, capacity * width / BLOCK);
        Self {
            width,
            f: Buffer::zeroed(n),
            h: Buffer::zeroed(n / 2),
            q: Buffer::zeroed(n / 4),
            d: Buffer::zeroed(blocks),
            c128: Buffer::zeroed(blocks),
            c16: Buffer::zeroed(blocks),
            c8: Buffer::zeroed(blocks),
            ds: Buffer::zeroed(blocks),
            c32: Buffer::zeroed(2 * blocks),
            staging: Buffer::zeroed(workers * width),
        }
    }

    /// Pointers to the panel that begins with row `from`.
    #[inline(always)]
    pub(crate) fn at(&self, from: usize) -> PanelPtr {
        let (n, b) = (from * self.width, from * self.width / BLOCK);
        debug_assert!(n + self.width <= self.f.len());
        PanelPtr {
            f: self.f.as_ptr_shared().wrapping_add(n),
            h: self.h.as_ptr_shared().wrapping_add(n / 2),
            q: self.q.as_ptr_shared().wrapping_add(n / 4),
            d: self.d.as_ptr_shared().wrapping_add(b),
            c128: self.c128.as_ptr_shared().wrapping_add(b),
            c16: self.c16.as_ptr_shared().wrapping_add(b),
            c8: self.c8.as_ptr_shared().wrapping_add(b),
            ds: self.ds.as_ptr_shared().wrapping_add(b),
            c32: self.c32.as_ptr_shared().wrapping_add(2 * b),
        }
    }

    /// Where worker `worker` may keep a row.
    pub(crate) fn staging(&self, worker: usize) -> *mut f32 {
        self.staging.as_ptr_shared().wrapping_add(worker * self.width)
    }
}

/// Where a prepared row goes: lane `lane` of a panel of `rows`.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) panel: PanelPtr,
    pub(crate) lane: usize,
    pub(crate) rows: usize,
    /// Room for one row.
    pub(crate) staging: *mut f32,
}

/// RMSNorm to apply on the way: padded weights, epsilon, true width.
#[derive(Clone, Copy)]
pub(crate) struct NormPtr {
    pub(crate) weight: *const f32,
    pub(crate) eps: f32,
    pub(crate) width: usize,
}

/// RMSNorm of `blocks` × 32 numbers.
#[inline(always)]
unsafe fn normalise<S: Simd>(src: *const f32, norm: NormPtr, blocks: usize, to: *mut f32) {
    // SAFETY: the caller's pointers hold `blocks` blocks each.
    unsafe {
        let mut squares = S::splat(0.0);
        for k in (0..blocks * BLOCK).step_by(16) {
            let x = S::load(src.add(k));
            squares = S::fma(x, x, squares);
        }
        let scale = S::splat(1.0 / (S::sum(squares) / norm.width as f32 + norm.eps).sqrt());
        for k in (0..blocks * BLOCK).step_by(16) {
            let x = S::mul(S::load(src.add(k)), scale);
            S::store(to.add(k), S::mul(x, S::load(norm.weight.add(k))));
        }
    }
}

/// Prepares one row: `src` holds `blocks` × 32 numbers, zero beyond the true width.
#[inline(always)]
unsafe fn prepare<S: Simd>(src: *const f32, norm: Option<NormPtr>, form: Activation, blocks: usize, to: Place) {
    // SAFETY: the caller's pointers hold `blocks` blocks each.
    unsafe {
        let mut src = src;
        let (panel, lane, rows) = (to.panel, to.lane, to.rows);
        if let Some(norm) = norm {
            normalise::<S>(src, norm, blocks, to.staging);
            src = to.staging;
        }
        match form {
            Activation::F32 => {
                for k in 0..blocks * BLOCK {
                    *panel.f.add(k * rows + lane) = *src.add(k);
                }
            }
            Activation::BF16 => {
                let mut h = [0u16; 16];
                for k in (0..blocks * BLOCK).step_by(16) {
                    S::store_bf16(h.as_mut_ptr(), S::load(src.add(k)));
                    if S::NATIVE_BF16 {
                        for i in 0..8 {
                            let pair = u32::from(h[2 * i]) | u32::from(h[2 * i + 1]) << 16;
                            *panel.h.add((k / 2 + i) * rows + lane) = pair;
                        }
                    } else {
                        for i in 0..16 {
                            *panel.f.add((k + i) * rows + lane) = f32::from_bits(u32::from(h[i]) << 16);
                        }
                    }
                }
            }
            Activation::Int8 => {
                // In passes over a few blocks, so that neither the reductions nor the divisions wait for each other.
                let mut q = [0i32; 8];
                let (mut d, mut inverse) = ([0f32; 16], [0f32; 16]);
                for b in 0..blocks {
                    if b % 16 == 0 {
                        for i in 0..16.min(blocks - b) {
                            let at = src.add((b + i) * BLOCK);
                            d[i] = S::max_lane(S::max(S::abs(S::load(at)), S::abs(S::load(at.add(16)))));
                        }
                        for i in 0..16 {
                            // Below this the inverse would overflow; such a block is zero.
                            let top = d[i];
                            (d[i], inverse[i]) = if top > 1e-30 { (top / 127.0, 127.0 / top) } else { (0.0, 0.0) };
                        }
                    }
                    let (x, y) = (S::load(src.add(b * BLOCK)), S::load(src.add(b * BLOCK + 16)));
                    let (d, inverse) = (d[b % 16], S::splat(inverse[b % 16]));
                    let (x, y) = (S::round(S::mul(x, inverse)), S::round(S::mul(y, inverse)));
                    S::store_i8(q.as_mut_ptr().cast(), x);
                    S::store_i8(q.as_mut_ptr().add(4).cast(), y);
                    for i in 0..8 {
                        *panel.q.add((b * 8 + i) * rows + lane) = q[i];
                    }
                    let halves = [S::sum_i(x), S::sum_i(y)];
                    let sum = halves[0] + halves[1];
                    *panel.d.add(b * rows + lane) = d;
                    *panel.c128.add(b * rows + lane) = -128 * sum;
                    *panel.c16.add(b * rows + lane) = -16 * sum;
                    *panel.c8.add(b * rows + lane) = -8 * sum;
                    *panel.ds.add(b * rows + lane) = d * sum as f32;
                    *panel.c32.add(2 * b * rows + lane) = -32 * halves[0];
                    *panel.c32.add((2 * b + 1) * rows + lane) = -32 * halves[1];
                }
            }
        }
    }
}

multiversion! {
    /// Prepares one row for a matrix product.
    pub(crate) unsafe fn prepare_row = prepare(
        src: *const f32, norm: Option<NormPtr>, form: Activation, blocks: usize, to: Place,
    ) with native bf16;
    /// RMSNorm of a row of `blocks` × 32 numbers, the same as on its way into a product.
    pub(crate) unsafe fn normalise_row = normalise(src: *const f32, norm: NormPtr, blocks: usize, to: *mut f32);
}
