//! Matrix products: prepared rows times packed tiles.
//!
//! Every output is one fixed sequence over its columns, whatever the number of rows computed together:
//! - F32, F16, BF16: one fma a column, ascending (BF16: the odd column of a pair first, as the native
//!   instruction does);
//! - quantised: an exact integer dot product a block of 32, then `fma(dot, d_w · d_x, acc)`, and with minima
//!   `fma(m_w, d_x · Σq, acc)`; scales and minima of sub-blocks are multiplied with those of their 256 columns in
//!   f32, which is exact. Q6_K has two scales a block: `dot = s₀ · dot₀ + s₁ · dot₁`, below 2^24 and so exact in f32.

pub(crate) mod unpacked;

use self::unpacked::Product;
use super::level::Level;
use super::pack::{Activation, BLOCK, Packed, TILE, TilePtr};
use super::rows::{PanelPtr, Rows};
use super::simd::{Simd, multiversion, step};
use crate::ops::quant::DType;

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
        match w.dtype {
            DType::F32 => {
                let at = at.quants.cast::<f32>();
                for k in 0..w.blocks() * BLOCK {
                    let v = S::load(at.add(k * TILE));
                    for i in 0..M {
                        acc[i] = S::fma(v, S::splat(*x.f.add(k * M + i)), acc[i]);
                    }
                }
            }
            DType::F16 => {
                let at = at.quants.cast::<u16>();
                for k in 0..w.blocks() * BLOCK {
                    let v = S::load_f16(at.add(k * TILE));
                    for i in 0..M {
                        acc[i] = S::fma(v, S::splat(*x.f.add(k * M + i)), acc[i]);
                    }
                }
            }
            DType::BF16 => unreachable!("has a kernel of its own"),
            DType::Q8_0 => integers::<S, M, 8, false, false>(w, at, x, &mut acc),
            DType::Q4_0 => integers::<S, M, 4, false, false>(w, at, x, &mut acc),
            DType::Q4_1 => integers::<S, M, 4, true, false>(w, at, x, &mut acc),
            DType::Q5_0 => integers::<S, M, 5, false, false>(w, at, x, &mut acc),
            DType::Q5_1 => integers::<S, M, 5, true, false>(w, at, x, &mut acc),
            DType::Q4_K => integers::<S, M, 4, true, true>(w, at, x, &mut acc),
            DType::Q5_K => integers::<S, M, 5, true, true>(w, at, x, &mut acc),
            DType::Q6_K => six_bits::<S, M>(w, at, x, &mut acc),
        }
        acc
    }
}

/// [`product`] for bf16 weights.
#[inline(always)]
unsafe fn product_bf16<S: Simd, const M: usize>(w: &Packed, tile: usize, rows: &Rows, m: usize) -> [S::F; M] {
    let at = w.tile(tile).quants.cast::<u16>();
    let x = rows.at(m);
    // SAFETY: as in `product`.
    unsafe {
        let mut acc = [S::splat(0.0); M];
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
        acc
    }
}

/// The quants of a block, as bytes: 8 groups of four columns.
#[inline(always)]
unsafe fn groups<S: Simd, const BITS: usize>(at: *const u8) -> [S::B; 8] {
    // SAFETY: as in `product`.
    unsafe {
        // No closures here: they would not be compiled for the level's features.
        let mut v = [S::load_bytes(at); 8];
        if BITS == 8 {
            for j in 1..8 {
                v[j] = S::load_bytes(at.add(j * 64));
            }
            return v;
        }
        for j in 0..4 {
            let bytes = S::load_bytes(at.add(j * 64));
            v[j] = S::low_nibbles(bytes);
            v[4 + j] = S::high_nibbles(bytes);
        }
        if BITS == 5 {
            let high = S::fifth_bits(S::load_bytes(at.add(256)));
            for j in 0..8 {
                v[j] = S::or_bytes(v[j], high[j]);
            }
        }
        if BITS == 6 {
            for h in 0..2 {
                let high = S::bit_pairs(S::load_bytes(at.add(256 + 64 * h)));
                for j in 0..4 {
                    v[4 * h + j] = S::or_bytes(v[4 * h + j], high[j]);
                }
            }
        }
        v
    }
}

/// [`product`] for quantised weights with one scale a block, and a minimum or the zero in the middle; with `SUPER`
/// they are in bytes and multiplied with those of their 256 columns.
#[inline(always)]
unsafe fn integers<S: Simd, const M: usize, const BITS: usize, const MINIMA: bool, const SUPER: bool>(
    w: &Packed,
    at: TilePtr,
    x: PanelPtr,
    acc: &mut [S::F; M],
) {
    // SAFETY: as in `product`.
    unsafe {
        for b in 0..w.blocks() {
            let v = groups::<S, BITS>(at.quants.add(b * TILE * BLOCK * BITS / 8));
            let scales = at.scales.add(b * 2 * TILE);
            let (d, minima) = if SUPER {
                let halves = at.second.cast::<u16>().add(b / 8 * 2 * TILE);
                let minima = S::mul(S::load_u8(scales.add(TILE)), S::load_f16(halves.add(TILE)));
                (S::mul(S::load_u8(scales), S::load_f16(halves)), S::neg(minima))
            } else {
                let d = S::load_f16(scales.cast());
                (d, if MINIMA { S::load_f16(at.second.cast::<u16>().add(b * TILE)) } else { d })
            };
            for i in 0..M {
                let mut dot = S::splat_i(if MINIMA {
                    0
                } else if BITS == 8 {
                    *x.c128.add(b * M + i)
                } else if BITS == 5 {
                    *x.c16.add(b * M + i)
                } else {
                    *x.c8.add(b * M + i)
                });
                for j in 0..8 {
                    let a = *x.q.add((b * 8 + j) * M + i);
                    dot = if BITS == 8 { S::dot(dot, v[j], a) } else { S::dot_small(dot, v[j], a) };
                }
                acc[i] = S::fma(S::to_f32(dot), S::mul(d, S::splat(*x.d.add(b * M + i))), acc[i]);
                if MINIMA {
                    acc[i] = S::fma(minima, S::splat(*x.ds.add(b * M + i)), acc[i]);
                }
            }
        }
    }
}

/// [`product`] for Q6_K.
#[inline(always)]
unsafe fn six_bits<S: Simd, const M: usize>(w: &Packed, at: TilePtr, x: PanelPtr, acc: &mut [S::F; M]) {
    // SAFETY: as in `product`.
    unsafe {
        for b in 0..w.blocks() {
            let v = groups::<S, 6>(at.quants.add(b * TILE * BLOCK * 6 / 8));
            let d = S::load_f16(at.second.cast::<u16>().add(b / 8 * TILE));
            let scales = at.scales.add(b * 2 * TILE);
            let (s0, s1) = (S::load_i8(scales.cast()), S::load_i8(scales.add(TILE).cast()));
            for i in 0..M {
                let mut dot0 = S::splat_i(*x.c32.add(2 * b * M + i));
                let mut dot1 = S::splat_i(*x.c32.add((2 * b + 1) * M + i));
                for j in 0..4 {
                    dot0 = S::dot_small(dot0, v[j], *x.q.add((b * 8 + j) * M + i));
                    dot1 = S::dot_small(dot1, v[4 + j], *x.q.add((b * 8 + 4 + j) * M + i));
                }
                let dot = S::fma(S::to_f32(dot1), s1, S::mul(S::to_f32(dot0), s0));
                acc[i] = S::fma(dot, S::mul(d, S::splat(*x.d.add(b * M + i))), acc[i]);
            }
        }
    }
}

/// Calls `$body` for each panel from row `$first` on, which begins one: the same cut as [`super::rows::panel`].
macro_rules! by_panels {
    ($s:ty, $first:expr, $count:expr, |$from:ident, $m:ident| $body:block) => {{
        let mut $from = $first;
        while $from < $count {
            match $count - $from {
                16.. if <$s>::PANEL >= 16 => step!($from, $m = 16, $body),
                8.. if <$s>::PANEL >= 8 => step!($from, $m = 8, $body),
                4.. => step!($from, $m = 4, $body),
                2.. => step!($from, $m = 2, $body),
                _ => step!($from, $m = 1, $body),
            }
        }
    }};
}

/// One tile of `out[count, stride] (+)= rows · Wᵀ`, from row `first` on.
#[inline(always)]
unsafe fn linear<S: Simd>(w: &Packed, tile: usize, rows: &Rows, first: usize, count: usize, out: Out) {
    // SAFETY: `out` has `count` rows of 16 floats.
    unsafe {
        by_panels!(S, first, count, |m, M| {
            let acc = product::<S, M>(w, tile, rows, m);
            put::<S, M>(&acc, m, out);
        });
    }
}

/// [`linear`] for bf16 weights.
#[inline(always)]
unsafe fn linear_bf16<S: Simd>(w: &Packed, tile: usize, rows: &Rows, count: usize, out: Out) {
    // SAFETY: as in `linear`.
    unsafe {
        by_panels!(S, 0, count, |m, M| {
            let acc = product_bf16::<S, M>(w, tile, rows, m);
            put::<S, M>(&acc, m, out);
        });
    }
}

#[inline(always)]
unsafe fn put<S: Simd, const M: usize>(acc: &[S::F; M], m: usize, out: Out) {
    // SAFETY: as in `linear`.
    unsafe {
        for i in 0..M {
            let at = out.at.add((m + i) * out.stride);
            S::store(at, if out.store == Store::Add { S::add(S::load(at), acc[i]) } else { acc[i] });
        }
    }
}

/// `out = silu(gate) · up`, a tile's 16 columns of `count` rows; `gate`'s and `up`'s rows are 16 apart.
#[inline(always)]
unsafe fn silu_mul<S: Simd>(gate: *const f32, up: *const f32, out: Out, count: usize) {
    // SAFETY: as in `linear`.
    unsafe {
        for i in 0..count {
            let g = S::load(gate.add(i * TILE));
            let silu = S::div(g, S::add(S::splat(1.0), S::exp(S::neg(g))));
            S::store(out.at.add(i * out.stride), S::mul(silu, S::load(up.add(i * TILE))));
        }
    }
}

/// One or two tiles for many rows of 8-bit activations.
#[inline(always)]
unsafe fn unpacked_tiles<S: Simd>(products: &[Product<'_>], rows: &Rows, count: usize, scratch: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        match products.len() {
            1 => unpacked::tiles::<S, 1>(products, rows, count, scratch),
            _ => unpacked::tiles::<S, 2>(products, rows, count, scratch),
        }
    }
}

multiversion! {
    unsafe fn linear_any = linear(w: &Packed, tile: usize, rows: &Rows, first: usize, count: usize, out: Out);
    unsafe fn linear_bf16_any = linear_bf16(w: &Packed, tile: usize, rows: &Rows, count: usize, out: Out)
        with native bf16;
    unsafe fn unpacked_any = unpacked_tiles(products: &[Product<'_>], rows: &Rows, count: usize, scratch: *mut f32);
    /// `out = silu(gate) · up`, a tile's 16 columns of `count` rows; `gate`'s and `up`'s rows are 16 apart.
    pub(crate) unsafe fn silu_mul_any = silu_mul(gate: *const f32, up: *const f32, out: Out, count: usize);
}

/// Where a tile's products go: the first row's 16 floats, and the distance to the next row.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub(crate) at: *mut f32,
    pub(crate) stride: usize,
    pub(crate) store: Store,
}

/// Tiles that are best multiplied together with `count` rows.
pub(crate) fn tiles_at_once(level: Level, w: &Packed, count: usize) -> usize {
    if is_unpacked(level, w, count) { unpacked::TILES } else { 1 }
}

/// Whether unpacking a tile pays.
fn is_unpacked(level: Level, w: &Packed, count: usize) -> bool {
    w.dtype.activation() == Activation::Int8 && level.panel() >= unpacked::ROWS && count >= unpacked::ROWS
}

/// One or two tiles of linear maps over `count` prepared rows; two are of equal formats and widths.
///
/// # Safety
/// The CPU has `level`'s features, the rows are prepared for the matrices, each `out` has `count` rows, and `scratch`
/// [`unpacked::scratch_len`] of them.
pub(crate) unsafe fn linear_tiles(
    level: Level,
    products: &[Product<'_>],
    rows: &Rows,
    count: usize,
    scratch: *mut f32,
) {
    let is_unpacked = is_unpacked(level, products[0].w, count);
    let first = if is_unpacked { count / unpacked::ROWS * unpacked::ROWS } else { 0 };
    // SAFETY: the caller's promise.
    unsafe {
        if is_unpacked {
            unpacked_any(level, products, rows, first, scratch);
        }
        for &Product { w, tile, out } in products.iter().filter(|_| first < count) {
            match w.dtype {
                DType::BF16 => linear_bf16_any(level, w, tile, rows, count, out),
                _ => linear_any(level, w, tile, rows, first, count, out),
            }
        }
    }
}
