//! Matrix products: prepared rows times packed tiles.
//!
//! Every output is one fixed sequence over its columns, whatever the number of rows computed together:
//! - F32, F16, BF16: one fma a column, ascending (BF16: the odd column of a pair first, as the native
//!   instruction does);
//! - Q8_0, Q4_0, Q4_1: an exact integer dot product a block, then `fma(dot, d_w · d_x, acc)`, and for Q4_1
//!   `fma(m_w, d_x · Σq, acc)`.

use super::pack::{BLOCK, Format, Packed, TILE};
use super::rows::Rows;
use super::simd::{Simd, multiversion};

/// What happens with a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// `out = product`.
    Set,
    /// `out += product`.
    Add,
}

/// Rows `0..count` of prepared activations times one tile: `M` rows from row `m`, 16 lanes each.
#[inline(always)]
unsafe fn product<S: Simd, const M: usize>(w: &Packed, tile: usize, rows: &Rows, m: usize) -> [S::F; M] {
    let at = w.tile(tile);
    let x: [_; M] = std::array::from_fn(|i| rows.row(m + i));
    // SAFETY: tile and rows hold `w.blocks()` blocks of the formats read here.
    unsafe {
        let mut acc = [S::splat(0.0); M];
        match w.format {
            Format::F32 => {
                let at = at.quants.cast::<f32>();
                for k in 0..w.blocks() * BLOCK {
                    let v = S::load(at.add(k * TILE));
                    for i in 0..M {
                        acc[i] = S::fma(v, S::splat(*x[i].f.add(k)), acc[i]);
                    }
                }
            }
            Format::F16 => {
                let at = at.quants.cast::<u16>();
                for k in 0..w.blocks() * BLOCK {
                    let v = S::load_f16(at.add(k * TILE));
                    for i in 0..M {
                        acc[i] = S::fma(v, S::splat(*x[i].f.add(k)), acc[i]);
                    }
                }
            }
            Format::BF16 => {
                let at = at.quants.cast::<u16>();
                for k in (0..w.blocks() * BLOCK).step_by(2) {
                    if S::NATIVE_BF16 {
                        for i in 0..M {
                            let pair = x[i].h.add(k).cast::<u32>().read_unaligned();
                            acc[i] = S::dot_bf16(acc[i], at.add(k * TILE), pair);
                        }
                    } else {
                        let (even, odd) = S::load_bf16_pairs(at.add(k * TILE));
                        for i in 0..M {
                            acc[i] = S::fma(odd, S::splat(*x[i].f.add(k + 1)), acc[i]);
                            acc[i] = S::fma(even, S::splat(*x[i].f.add(k)), acc[i]);
                        }
                    }
                }
            }
            Format::Q8_0 => {
                for b in 0..w.blocks() {
                    let at8 = at.quants.add(b * TILE * BLOCK);
                    let v: [S::B; 8] = std::array::from_fn(|j| S::load_bytes(at8.add(j * 64)));
                    let d = S::load_f16(at.scales.add(b * TILE));
                    for i in 0..M {
                        let q = x[i].q.add(b * BLOCK).cast::<i32>();
                        let mut dot = S::splat_i(*x[i].c128.add(b));
                        for j in 0..8 {
                            dot = S::dot(dot, v[j], q.add(j).read_unaligned());
                        }
                        acc[i] = S::fma(S::to_f32(dot), S::mul(d, S::splat(*x[i].d.add(b))), acc[i]);
                    }
                }
            }
            Format::Q4_0 | Format::Q4_1 => {
                let with_minimum = w.format == Format::Q4_1;
                for b in 0..w.blocks() {
                    let at4 = at.quants.add(b * TILE * BLOCK / 2);
                    let v: [S::B; 4] = std::array::from_fn(|j| S::load_bytes(at4.add(j * 64)));
                    let low = v.map(|v| S::low_nibbles(v));
                    let high = v.map(|v| S::high_nibbles(v));
                    let d = S::load_f16(at.scales.add(b * TILE));
                    for i in 0..M {
                        let q = x[i].q.add(b * BLOCK).cast::<i32>();
                        let mut dot = S::splat_i(if with_minimum { 0 } else { *x[i].c8.add(b) });
                        for j in 0..4 {
                            dot = S::dot_small(dot, low[j], q.add(j).read_unaligned());
                        }
                        for j in 0..4 {
                            dot = S::dot_small(dot, high[j], q.add(4 + j).read_unaligned());
                        }
                        acc[i] = S::fma(S::to_f32(dot), S::mul(d, S::splat(*x[i].d.add(b))), acc[i]);
                        if with_minimum {
                            let minimum = S::load_f16(at.minima.add(b * TILE));
                            acc[i] = S::fma(minimum, S::splat(*x[i].ds.add(b)), acc[i]);
                        }
                    }
                }
            }
        }
        acc
    }
}

/// Calls `$body` with a constant `$m` rows at a time (16, 8, 4, 2, 1; AVX2 and scalar at most 4).
macro_rules! by_rows {
    ($s:ty, $count:expr, |$from:ident, $m:ident| $body:block) => {{
        let mut $from = 0;
        macro_rules! step {
            ($n:literal) => {{
                const $m: usize = $n;
                $body
                $from += $n;
            }};
        }
        while $from < $count {
            match $count - $from {
                16.. if <$s>::WIDE => step!(16),
                8.. if <$s>::WIDE => step!(8),
                4.. => step!(4),
                2.. => step!(2),
                _ => step!(1),
            }
        }
    }};
}

/// One tile of `out[count, stride] (+)= rows · Wᵀ`.
#[inline(always)]
unsafe fn linear<S: Simd>(
    w: &Packed,
    tile: usize,
    rows: &Rows,
    count: usize,
    out: *mut f32,
    stride: usize,
    store: Store,
) {
    // SAFETY: `out` has `count` rows of `stride` floats, and 16 of them from the tile's first.
    unsafe {
        by_rows!(S, count, |m, M| {
            let acc = product::<S, M>(w, tile, rows, m);
            for i in 0..M {
                let at = out.add((m + i) * stride + tile * TILE);
                S::store(at, if store == Store::Add { S::add(S::load(at), acc[i]) } else { acc[i] });
            }
        });
    }
}

/// One tile of `out[count, stride] = silu(rows · Gᵀ) · (rows · Uᵀ)`.
#[inline(always)]
unsafe fn gate_up<S: Simd>(
    gate: &Packed,
    up: &Packed,
    tile: usize,
    rows: &Rows,
    count: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: as in `linear`.
    unsafe {
        by_rows!(S, count, |m, M| {
            let g = product::<S, M>(gate, tile, rows, m);
            let u = product::<S, M>(up, tile, rows, m);
            for i in 0..M {
                let one = S::splat(1.0);
                let silu = S::div(g[i], S::add(one, S::exp(S::neg(g[i]))));
                S::store(out.add((m + i) * stride + tile * TILE), S::mul(silu, u[i]));
            }
        });
    }
}

multiversion! {
    /// One tile of a linear map over `count` prepared rows; `out` is that of output feature 0.
    pub(crate) unsafe fn linear_tile = linear(
        w: &Packed, tile: usize, rows: &Rows, count: usize, out: *mut f32, stride: usize, store: Store,
    );
    /// One tile of the gated product over `count` prepared rows.
    pub(crate) unsafe fn gate_up_tile = gate_up(
        gate: &Packed, up: &Packed, tile: usize, rows: &Rows, count: usize, out: *mut f32, stride: usize,
    );
}
