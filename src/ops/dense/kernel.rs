//! A block of the result from packed panels, tile by tile in registers.
#![allow(unsafe_op_in_unsafe_fn)]

use crate::ops::cpu::simd::{Simd, multiversion};

/// Most numbers of a tile.
const TILE: usize = 14 * 32;
/// Steps along `k` that are asked for ahead: measured, from 80-96 to 97-119 GFLOP/s a core.
const AHEAD: usize = 8;

multiversion! {
    /// `out[rows, cols]` gets, or gains if `add`, the product of packed panels: of `left`, `deep` times a tile's rows
    /// each; of `right`, `deep` times a tile's columns. Rows of `out` begin every `stride` numbers.
    pub(super) unsafe fn block = block_on(
        deep: usize, left: *const f32, rows: usize, right: *const f32, cols: usize, out: *mut f32, stride: usize,
        add: bool,
    );
}

#[inline(always)]
unsafe fn block_on<S: Simd>(
    deep: usize,
    left: *const f32,
    rows: usize,
    right: *const f32,
    cols: usize,
    out: *mut f32,
    stride: usize,
    add: bool,
) {
    match S::PANEL {
        16 => tiles::<S, 14, 2>(deep, left, rows, right, cols, out, stride, add),
        _ => tiles::<S, 6, 1>(deep, left, rows, right, cols, out, stride, add),
    }
}

#[inline(always)]
unsafe fn tiles<S: Simd, const R: usize, const V: usize>(
    deep: usize,
    left: *const f32,
    rows: usize,
    right: *const f32,
    cols: usize,
    out: *mut f32,
    stride: usize,
    add: bool,
) {
    let width = V * 16;
    for col in (0..cols).step_by(width) {
        let panel = right.add(col * deep);
        for row in (0..rows).step_by(R) {
            let to = out.add(row * stride + col);
            let (height, breadth) = (R.min(rows - row), width.min(cols - col));
            if add {
                for r in 0..height {
                    S::prefetch(to.add(r * stride).cast(), 4 * breadth);
                }
            }
            let acc = tile::<S, R, V>(deep, left.add(row * deep), panel);
            if height == R && breadth == width {
                for r in 0..R {
                    for v in 0..V {
                        let to = to.add(r * stride + 16 * v);
                        let value = if add { S::add(S::load(to), acc[r][v]) } else { acc[r][v] };
                        S::store(to, value);
                    }
                }
            } else {
                let mut spare = [0f32; TILE];
                for r in 0..R {
                    for v in 0..V {
                        S::store(spare.as_mut_ptr().add(r * width + 16 * v), acc[r][v]);
                    }
                }
                for r in 0..height {
                    for c in 0..breadth {
                        let to = to.add(r * stride + c);
                        *to = if add { *to + spare[r * width + c] } else { spare[r * width + c] };
                    }
                }
            }
        }
    }
}

/// One tile: `R` rows of `left`'s panel, `16 · V` columns of `right`'s.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const V: usize>(
    deep: usize,
    left: *const f32,
    right: *const f32,
) -> [[S::F; V]; R] {
    let zero = S::splat(0.0);
    let mut acc = [[zero; V]; R];
    let (mut a, mut b) = (left, right);
    for _ in 0..deep {
        // Panels come from the L2 cache, whose latency the machine's own prefetching does not hide.
        S::prefetch(a.wrapping_add(AHEAD * R).cast(), 4);
        S::prefetch(b.wrapping_add(AHEAD * 16 * V).cast(), 64 * V);
        let mut w = [zero; V];
        for v in 0..V {
            w[v] = S::load(b.add(16 * v));
        }
        for r in 0..R {
            let x = S::splat(*a.add(r));
            for v in 0..V {
                acc[r][v] = S::fma(x, w[v], acc[r][v]);
            }
        }
        a = a.add(R);
        b = b.add(16 * V);
    }
    acc
}
