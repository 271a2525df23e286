//! Matrix products: prepared rows times packed tiles.
//!
//! Every output is one fixed sequence over its columns, whatever the number of rows computed together:
//! - F32, F16, BF16: one fma a column, ascending (BF16: the odd column of a pair first, as the native
//!   instruction does);
//! - Q8_0, Q4_0, Q4_1: an exact integer dot product a block, then `fma(dot, d_w · d_x, acc)`, and for Q4_1
//!   `fma(m_w, d_x · Σq, acc)`.

use super::pack::{BLOCK, Format, Packed, TILE, TilePtr};
use super::rows::{PanelPtr, Rows};
use super::simd::{Simd, multiversion};

/// What happens with a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// `out = product`.
    Set,
    /// `out += product`.
    Add,
}

/// The panel of `M` rows from row `m`, times one tile: 16 lanes a row.
#[inline(always)]
unsafe fn product<S: Simd, const M: usize>(w: &Packed, tile: usize, rows: &Rows, m: usize) -> [S::F; M] {
    let at = w.tile(tile);
    let x = rows.at(m);
    // SAFETY: tile and panel hold `w.blocks()` blocks of the formats read here.
    unsafe {
        let mut acc = [S::splat(0.0); M];
        match w.format {
            Format::F32 => {
                let at = at.quants.cast::<f32>();
                for k in 0..w.blocks() * BLOCK {
                    let v = S::load(at.add(k * TILE));
                    for i in 0..M {
                        acc[i] = S::fma(v, S::splat(*x.f.add(k * M + i)), acc[i]);
                    }
                }
            }
            Format::F16 => {
                let at = at.quants.cast::<u16>();
                for k in 0..w.blocks() * BLOCK {
                    let v = S::load_f16(at.add(k * TILE));
                    for i in 0..M {
                        acc[i] = S::fma(v, S::splat(*x.f.add(k * M + i)), acc[i]);
                    }
                }
            }
            Format::BF16 => {
                let at = at.quants.cast::<u16>();
                for k in (0..w.blocks() * BLOCK).step_by(2) {
                    if S::NATIVE_BF16 {
                        for i in 0..M {
                            acc[i] = S::dot_bf16(acc[i], at.add(k * TILE), *x.h.add(k / 2 * M + i));
                        }
                    } else {
                        let (even, odd) = S::load_bf16_pairs(at.add(k * TILE));
                        for i in 0..M {
                            acc[i] = S::fma(odd, S::splat(*x.f.add((k + 1) * M + i)), acc[i]);
                            acc[i] = S::fma(even, S::splat(*x.f.add(k * M + i)), acc[i]);
                        }
                    }
                }
            }
            Format::Q8_0 => {
                for b in 0..w.blocks() {
                    let at8 = at.quants.add(b * TILE * BLOCK);
                    let mut v = [S::load_bytes(at8); 8];
                    for j in 1..8 {
                        v[j] = S::load_bytes(at8.add(j * 64));
                    }
                    let d = S::load_f16(at.scales.add(b * TILE));
                    for i in 0..M {
                        let mut dot = S::splat_i(*x.c128.add(b * M + i));
                        for j in 0..8 {
                            dot = S::dot(dot, v[j], *x.q.add((b * 8 + j) * M + i));
                        }
                        acc[i] = S::fma(S::to_f32(dot), S::mul(d, S::splat(*x.d.add(b * M + i))), acc[i]);
                    }
                }
            }
            Format::Q4_0 => nibbles::<S, M, false>(w, at, x, &mut acc),
            Format::Q4_1 => nibbles::<S, M, true>(w, at, x, &mut acc),
        }
        acc
    }
}

/// [`product`] for 4-bit weights, with minima or with 8 as zero point.
#[inline(always)]
unsafe fn nibbles<S: Simd, const M: usize, const MINIMA: bool>(
    w: &Packed,
    at: TilePtr,
    x: PanelPtr,
    acc: &mut [S::F; M],
) {
    // SAFETY: as in `product`.
    unsafe {
        for b in 0..w.blocks() {
            let at4 = at.quants.add(b * TILE * BLOCK / 2);
            // No closures here: they would not be compiled for the level's features.
            let mut v = [S::low_nibbles(S::load_bytes(at4)); 8];
            for j in 0..4 {
                let bytes = S::load_bytes(at4.add(j * 64));
                v[j] = S::low_nibbles(bytes);
                v[4 + j] = S::high_nibbles(bytes);
            }
            let d = S::load_f16(at.scales.add(b * TILE));
            let minima = if MINIMA { S::load_f16(at.minima.add(b * TILE)) } else { d };
            for i in 0..M {
                let mut dot = S::splat_i(if MINIMA { 0 } else { *x.c8.add(b * M + i) });
                for j in 0..8 {
                    dot = S::dot_small(dot, v[j], *x.q.add((b * 8 + j) * M + i));
                }
                acc[i] = S::fma(S::to_f32(dot), S::mul(d, S::splat(*x.d.add(b * M + i))), acc[i]);
                if MINIMA {
                    acc[i] = S::fma(minima, S::splat(*x.ds.add(b * M + i)), acc[i]);
                }
            }
        }
    }
}

/// Calls `$body` for each panel: the same cut as [`super::rows::panel`].
macro_rules! by_panels {
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
                16.. if <$s>::PANEL >= 16 => step!(16),
                8.. if <$s>::PANEL >= 8 => step!(8),
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
        by_panels!(S, count, |m, M| {
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
        by_panels!(S, count, |m, M| {
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
