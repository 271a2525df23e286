//! Many rows times up to two tiles of quantised weights, unpacked once for all the rows.
//!
//! Each element is the sequence of operations that [`super::product`] makes. Columns go by chunks, so that the
//! unpacked bytes of both tiles and the rows they meet stay in the first-level cache; from chunk to chunk the sums
//! wait in memory, which does not change them. In registers are the integer sums of eight rows and two tiles: as
//! many independent chains as two dot products a cycle take.

use super::{BLOCK, DType, Out, PanelPtr, Rows, Simd, TILE, groups, put};
use crate::ops::cpu::pack::Packed;

/// Tiles multiplied together.
pub(crate) const TILES: usize = 2;
/// Rows multiplied together.
pub(super) const ROWS: usize = 8;
/// Blocks of a chunk: 15 KiB of bytes and scales, beside which the rows' 9 KiB fit.
const CHUNK: usize = 12;
/// Bytes of an unpacked block of a tile.
const BYTES: usize = TILE * BLOCK;
/// Scales and minima, or two scales and one more, of each block.
const PLANES: usize = 3;

/// One scale a block, and a zero in the middle.
pub(super) const ZERO: u8 = 0;
/// One scale and one minimum a block.
pub(super) const MINIMA: u8 = 1;
/// A scale for each half of a block, one more for all of it, and a zero in the middle.
pub(super) const HALVES: u8 = 2;

/// A tile, and where its products go.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) w: &'a Packed,
    pub(crate) tile: usize,
    pub(crate) out: Out,
}

/// Floats of scratch memory for products of `rows` rows.
pub(crate) fn scratch_len(rows: usize) -> usize {
    TILES * (rows * TILE + CHUNK * (BYTES / size_of::<f32>() + PLANES * TILE))
}

/// A worker's scratch memory.
#[derive(Clone, Copy)]
struct Scratch {
    /// `[block][group of 4 columns][tile][64]`.
    bytes: *mut u8,
    /// `[block][plane][tile][16]`.
    planes: *mut f32,
    /// `[row][tile][16]`.
    sums: *mut f32,
}

/// Unpacks `count` blocks of a tile from block `first` on, as tile `n` of `N`.
#[inline(always)]
unsafe fn unpack<S: Simd, const BITS: usize, const KIND: u8, const SUPER: bool, const N: usize>(
    product: &Product<'_>,
    (first, count): (usize, usize),
    n: usize,
    to: Scratch,
) {
    let at = product.w.tile(product.tile);
    // SAFETY: the tile has these blocks, the scratch memory room for them.
    unsafe {
        for i in 0..count {
            let b = first + i;
            let v = groups::<S, BITS>(at.quants.add(b * BYTES * BITS / 8));
            for j in 0..8 {
                to.bytes.add(((i * 8 + j) * N + n) * 64).cast::<S::B>().write_unaligned(v[j]);
            }
            let plane = |p: usize| to.planes.add(((i * PLANES + p) * N + n) * TILE);
            let scales = at.scales.add(b * 2 * TILE);
            if KIND == HALVES {
                S::store(plane(0), S::load_i8(scales.cast()));
                S::store(plane(1), S::load_i8(scales.add(TILE).cast()));
                S::store(plane(2), S::load_f16(at.second.cast::<u16>().add(b / 8 * TILE)));
            } else if SUPER {
                let halves = at.second.cast::<u16>().add(b / 8 * 2 * TILE);
                S::store(plane(0), S::mul(S::load_u8(scales), S::load_f16(halves)));
                let minima = S::mul(S::load_u8(scales.add(TILE)), S::load_f16(halves.add(TILE)));
                S::store(plane(1), S::neg(minima));
            } else {
                S::store(plane(0), S::load_f16(scales.cast()));
                if KIND == MINIMA {
                    S::store(plane(1), S::load_f16(at.second.cast::<u16>().add(b * TILE)));
                }
            }
        }
    }
}

/// A panel of `stride` rows, from one of its lanes on: quants, scales, and what stands for the zero points.
#[derive(Clone, Copy)]
struct Lanes {
    q: *const i32,
    d: *const f32,
    /// Of zeros in the middle; twice as many with [`HALVES`].
    zero: *const i32,
    /// Of minima.
    ds: *const f32,
    stride: usize,
}

/// Adds a chunk of `count` blocks to the sums of [`ROWS`] rows.
#[inline(always)]
unsafe fn add_chunk<S: Simd, const KIND: u8, const N: usize>(
    x: Lanes,
    count: usize,
    from: Scratch,
    acc: &mut [[S::F; N]; ROWS],
) {
    // SAFETY: the rows and the scratch memory hold `count` blocks.
    unsafe {
        for b in 0..count {
            let bytes = from.bytes.add(b * 8 * N * 64);
            let planes = from.planes.add(b * PLANES * N * TILE);
            let q = x.q.add(b * 8 * x.stride);
            let d = x.d.add(b * x.stride);
            if KIND == HALVES {
                let mut sums = [[S::splat(0.0); N]; ROWS];
                for h in 0..2 {
                    let mut dot = [[S::splat_i(0); N]; ROWS];
                    for i in 0..ROWS {
                        let zero = S::splat_i(*x.zero.add((2 * b + h) * x.stride + i));
                        for n in 0..N {
                            dot[i][n] = zero;
                        }
                    }
                    dots::<S, N>(bytes.add(h * 4 * N * 64), q.add(h * 4 * x.stride), x.stride, 4, &mut dot);
                    for n in 0..N {
                        let scale = S::load(planes.add((h * N + n) * TILE));
                        for i in 0..ROWS {
                            let dot = S::to_f32(dot[i][n]);
                            sums[i][n] = if h == 0 { S::mul(dot, scale) } else { S::fma(dot, scale, sums[i][n]) };
                        }
                    }
                }
                for n in 0..N {
                    let scale = S::load(planes.add((2 * N + n) * TILE));
                    for i in 0..ROWS {
                        acc[i][n] = S::fma(sums[i][n], S::mul(scale, S::splat(*d.add(i))), acc[i][n]);
                    }
                }
                continue;
            }
            let mut dot = [[S::splat_i(0); N]; ROWS];
            if KIND == ZERO {
                for i in 0..ROWS {
                    let zero = S::splat_i(*x.zero.add(b * x.stride + i));
                    for n in 0..N {
                        dot[i][n] = zero;
                    }
                }
            }
            dots::<S, N>(bytes, q, x.stride, 8, &mut dot);
            for n in 0..N {
                let scale = S::load(planes.add(n * TILE));
                for i in 0..ROWS {
                    acc[i][n] = S::fma(S::to_f32(dot[i][n]), S::mul(scale, S::splat(*d.add(i))), acc[i][n]);
                }
                if KIND == MINIMA {
                    let minima = S::load(planes.add((N + n) * TILE));
                    for i in 0..ROWS {
                        acc[i][n] = S::fma(minima, S::splat(*x.ds.add(b * x.stride + i)), acc[i][n]);
                    }
                }
            }
        }
    }
}

/// Adds the dot products of `count` groups of four columns.
#[inline(always)]
unsafe fn dots<S: Simd, const N: usize>(
    bytes: *const u8,
    q: *const i32,
    stride: usize,
    count: usize,
    dot: &mut [[S::I; N]; ROWS],
) {
    // SAFETY: as in `add_chunk`.
    unsafe {
        for j in 0..count {
            let mut v = [S::load_bytes(bytes.add(j * N * 64)); N];
            for n in 1..N {
                v[n] = S::load_bytes(bytes.add((j * N + n) * 64));
            }
            for i in 0..ROWS {
                let a = *q.add(j * stride + i);
                for n in 0..N {
                    dot[i][n] = S::dot(dot[i][n], v[n], a);
                }
            }
        }
    }
}

/// `N` tiles of one format times `count` rows, a multiple of [`ROWS`] that ends with a panel.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd, const BITS: usize, const KIND: u8, const SUPER: bool, const N: usize>(
    products: &[Product<'_>],
    rows: &Rows,
    count: usize,
    scratch: *mut f32,
) {
    // SAFETY: the tiles have as many blocks as the rows, each `out` has `count` rows, and the scratch memory
    // `scratch_len` of them.
    unsafe {
        let bytes = scratch.cast::<u8>();
        let planes = scratch.add(N * CHUNK * BYTES / size_of::<f32>());
        let to = Scratch { bytes, planes, sums: planes.add(CHUNK * PLANES * N * TILE) };
        let blocks = products[0].w.blocks();
        // Chunks of about one size.
        let chunk = blocks.div_ceil(blocks.div_ceil(CHUNK));
        let mut first = 0;
        while first < blocks {
            let len = chunk.min(blocks - first);
            for n in 0..N {
                unpack::<S, BITS, KIND, SUPER, N>(&products[n], (first, len), n, to);
            }
            for m in (0..count).step_by(ROWS) {
                let stride = if m < count / S::PANEL * S::PANEL { S::PANEL } else { ROWS };
                let panel = m / stride * stride;
                let x = lanes::<BITS, KIND>(rows.at(panel), first, m - panel, stride);
                let sums = to.sums.add(m * N * TILE);
                let mut acc = [[S::splat(0.0); N]; ROWS];
                if first > 0 {
                    for i in 0..ROWS {
                        for n in 0..N {
                            acc[i][n] = S::load(sums.add((i * N + n) * TILE));
                        }
                    }
                }
                add_chunk::<S, KIND, N>(x, len, to, &mut acc);
                for i in 0..ROWS {
                    for n in 0..N {
                        match first + len == blocks {
                            true => put::<S, 1>(&[acc[i][n]], m + i, products[n].out),
                            false => S::store(sums.add((i * N + n) * TILE), acc[i][n]),
                        }
                    }
                }
            }
            first += len;
        }
    }
}

/// Lane `lane` of a panel of `stride` rows, from block `first` on.
#[inline(always)]
fn lanes<const BITS: usize, const KIND: u8>(x: PanelPtr, first: usize, lane: usize, stride: usize) -> Lanes {
    let at = first * stride + lane;
    let zero = match BITS {
        8 => x.c128.wrapping_add(at),
        5 => x.c16.wrapping_add(at),
        6 => x.c32.wrapping_add(2 * first * stride + lane),
        _ => x.c8.wrapping_add(at),
    };
    Lanes {
        q: x.q.wrapping_add(first * 8 * stride + lane),
        d: x.d.wrapping_add(at),
        zero,
        ds: x.ds.wrapping_add(at),
        stride,
    }
}

/// [`multiply`] for one or two tiles of any quantised format.
#[inline(always)]
pub(super) unsafe fn tiles<S: Simd, const N: usize>(
    products: &[Product<'_>],
    rows: &Rows,
    count: usize,
    scratch: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match products[0].w.dtype {
            DType::F32 | DType::F16 | DType::BF16 => unreachable!("not quantised"),
            DType::Q8_0 => multiply::<S, 8, ZERO, false, N>(products, rows, count, scratch),
            DType::Q4_0 => multiply::<S, 4, ZERO, false, N>(products, rows, count, scratch),
            DType::Q4_1 => multiply::<S, 4, MINIMA, false, N>(products, rows, count, scratch),
            DType::Q5_0 => multiply::<S, 5, ZERO, false, N>(products, rows, count, scratch),
            DType::Q5_1 => multiply::<S, 5, MINIMA, false, N>(products, rows, count, scratch),
            DType::Q4_K => multiply::<S, 4, MINIMA, true, N>(products, rows, count, scratch),
            DType::Q5_K => multiply::<S, 5, MINIMA, true, N>(products, rows, count, scratch),
            DType::Q6_K => multiply::<S, 6, HALVES, false, N>(products, rows, count, scratch),
        }
    }
}
