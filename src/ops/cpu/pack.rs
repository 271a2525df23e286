//! Weights in the order the kernels read them.
//!
//! A matrix `[rows, cols]` is cut into tiles of 16 rows, one row a lane; a tile holds its columns in ascending
//! order, padded with zeros to a multiple of 32:
//! - F32, F16: for each column, 16 numbers;
//! - BF16: for each pair of columns, 16 pairs;
//! - quantised: for each block of 32 columns, its quants as 8 groups of four columns, 16 × 4 bytes a group (Q8_0
//!   as `q + 128`). Of fewer bits the low four come first, groups 0–3 in the low nibbles and 4–7 in the high ones;
//!   then the fifth bits, 16 × 4 bytes with bit `g` of group `g`; or bits five and six, twice 16 × 4 bytes, with
//!   groups 0–3 and 4–7 in ascending pairs of bits. After all quants two planes of scales:
//!   - Q8_0, Q4_0, Q5_0: 16 f16 scales a block; Q4_1, Q5_1 then 16 f16 minima a block;
//!   - Q4_K, Q5_K: 16 scales and 16 minima a block, in bytes; then 16 f16 scales and 16 f16 minima every 8 blocks;
//!   - Q6_K: 2 × 16 scales a block, in bytes; then 16 f16 scales every 8 blocks.
//!
//! Nothing is rounded on the way: [`Packed::unpack_row`] gives the numbers that were stored.

use std::sync::Mutex;

use half::f16;

use super::buffer::Buffer;
pub use super::format::Activation;
use super::pool::Pool;
use crate::model::weights::TensorView;
use crate::ops::OpsError;
use crate::ops::quant::{DType, dequantize_row, is_finite, kquants, quantize_row, quants};

/// Rows of a tile: the lanes of a vector.
pub const TILE: usize = 16;
/// Columns of a quantised block.
pub const BLOCK: usize = 32;

/// A packed matrix.
pub struct Packed {
    /// Storage type.
    pub dtype: DType,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    blocks: usize,
    tile_bytes: usize,
    data: Buffer<u8>,
}

/// A tile's memory: quants, and two planes of scales.
#[derive(Clone, Copy)]
pub(crate) struct TilePtr {
    pub(crate) quants: *const u8,
    pub(crate) scales: *const u8,
    pub(crate) second: *const u8,
}

impl Packed {
    /// Packs matrices stacked by rows as `dtype`, converting where their type differs, each tile by one worker.
    ///
    /// # Errors
    /// The matrices differ in columns, `dtype` has blocks that the columns are no multiple of, or cannot be
    /// converted to, or a number is not finite.
    pub fn new(pool: &mut Pool, parts: &[TensorView<'_>], dtype: DType) -> Result<Self, OpsError> {
        let cols = parts[0].cols;
        if let Some(other) = parts.iter().find(|p| p.cols != cols) {
            return Err(OpsError::Unsupported(format!("merged matrices have {cols} and {} columns", other.cols)));
        }
        let Some(row_bytes) = dtype.row_bytes(cols) else {
            let block = dtype.block_len();
            return Err(OpsError::Unsupported(format!("{dtype} needs a multiple of {block} columns, not {cols}")));
        };
        if let Some(other) = parts.iter().find(|p| p.dtype != dtype && !dtype.is_writable()) {
            return Err(OpsError::Unsupported(format!("{} is not converted to {dtype}", other.dtype)));
        }
        let rows: usize = parts.iter().map(|p| p.rows).sum();
        let blocks = cols.div_ceil(BLOCK);
        let tile_bytes = blocks * (dtype.quant_bytes() + dtype.scale_bytes()) + dtype.second_bytes(blocks);
        let tile_bytes = tile_bytes.next_multiple_of(64);
        let mut data = Buffer::zeroed(rows.div_ceil(TILE) * tile_bytes);

        // Of several that fail, the first row: the message does not depend on the workers.
        let failed = Mutex::new(None::<(usize, OpsError)>);
        let mut tiles: Vec<_> = data.chunks_exact_mut(tile_bytes).enumerate().collect();
        pool.for_each(&mut tiles, |_, (tile, out)| {
            let from = *tile * TILE;
            let lanes = TILE.min(rows - from);
            let mut fetch = || -> Result<(), (usize, OpsError)> {
                let mut sources: [&[u8]; TILE] = [&[]; TILE];
                let mut floats = Vec::new();
                let mut converted = Vec::new();
                for lane in 0..lanes {
                    let (part, row) = locate(parts, from + lane);
                    let view = &parts[part];
                    sources[lane] = view.row(row);
                    if !is_finite(view.dtype, sources[lane]) {
                        return Err((from + lane, OpsError::NotFinite { part, row }));
                    }
                    if view.dtype == dtype {
                        continue;
                    }
                    floats.resize(cols, 0f32);
                    converted.resize(TILE * row_bytes, 0u8);
                    let to = &mut converted[lane * row_bytes..][..row_bytes];
                    dequantize_row(view.dtype, sources[lane], &mut floats);
                    quantize_row(dtype, &floats, to);
                    if !is_finite(dtype, to) {
                        return Err((from + lane, OpsError::Range { part, row, dtype }));
                    }
                }
                for lane in 0..lanes {
                    if parts[locate(parts, from + lane).0].dtype != dtype {
                        sources[lane] = &converted[lane * row_bytes..][..row_bytes];
                    }
                }
                pack_tile(dtype, blocks, &sources[..lanes], out);
                Ok(())
            };
            if let Err((row, error)) = fetch() {
                let mut failed = failed.lock().expect("no worker panics with it");
                if failed.as_ref().is_none_or(|(first, _)| row < *first) {
                    *failed = Some((row, error));
                }
            }
        });
        match failed.into_inner().expect("no worker panics with it") {
            Some((_, error)) => Err(error),
            None => Ok(Self { dtype, rows, cols, blocks, tile_bytes, data }),
        }
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// Blocks of 32 columns.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    #[inline(always)]
    pub(crate) fn tile(&self, tile: usize) -> TilePtr {
        debug_assert!(tile < self.tiles());
        // Offsets of the three planes stay inside the tile by construction.
        let quants = self.data[tile * self.tile_bytes..].as_ptr();
        let scales = quants.wrapping_add(self.blocks * self.dtype.quant_bytes());
        TilePtr { quants, scales, second: scales.wrapping_add(self.blocks * self.dtype.scale_bytes()) }
    }

    /// Dequantizes row `row` into `out[..cols]`: the numbers that were stored, to the bit.
    pub fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let (dtype, lane, blocks) = (self.dtype, row % TILE, self.blocks);
        let tile = &self.data[row / TILE * self.tile_bytes..][..self.tile_bytes];
        let u16_at = |at: usize| u16::from_le_bytes([tile[at], tile[at + 1]]);
        let out = &mut out[..self.cols];
        let Some(bits) = dtype.bits() else {
            for (k, x) in out.iter_mut().enumerate() {
                *x = match dtype {
                    DType::F32 => {
                        let at = (k * TILE + lane) * 4;
                        f32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]])
                    }
                    DType::F16 => f16::from_bits(u16_at((k * TILE + lane) * 2)).to_f32(),
                    _ => half::bf16::from_bits(u16_at(((k / 2 * TILE + lane) * 2 + k % 2) * 2)).to_f32(),
                };
            }
            return;
        };
        let scales = blocks * dtype.quant_bytes();
        let second = scales + blocks * dtype.scale_bytes();
        // Number `i` of a row of 16 halves, and byte `i` of a row of 16 bytes.
        let half_at = |plane: usize, i: usize| f16::from_bits(u16_at(plane + (i * TILE + lane) * 2)).to_f32();
        let byte_at = |i: usize| tile[scales + i * TILE + lane];
        for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let quants = &tile[b * dtype.quant_bytes()..][..dtype.quant_bytes()];
            let quant = |k: usize| f32::from(get_quant(bits, quants, lane, k));
            match dtype {
                DType::Q8_0 | DType::Q4_0 | DType::Q5_0 => {
                    let (d, zero) = (half_at(scales, b), (1 << (bits - 1)) as f32);
                    out.iter_mut().enumerate().for_each(|(k, x)| *x = (quant(k) - zero) * d);
                }
                DType::Q4_1 | DType::Q5_1 => {
                    let (d, m) = (half_at(scales, b), half_at(second, b));
                    out.iter_mut().enumerate().for_each(|(k, x)| *x = quant(k) * d + m);
                }
                DType::Q4_K | DType::Q5_K => {
                    let (d, m) = (half_at(second, b / 8 * 2), half_at(second, b / 8 * 2 + 1));
                    let (d, m) = (d * f32::from(byte_at(2 * b)), m * f32::from(byte_at(2 * b + 1)));
                    out.iter_mut().enumerate().for_each(|(k, x)| *x = quant(k) * d - m);
                }
                _ => {
                    let d = half_at(second, b / 8);
                    let scale = |k: usize| f32::from(byte_at(2 * b + k / 16) as i8);
                    out.iter_mut().enumerate().for_each(|(k, x)| *x = d * scale(k) * (quant(k) - 32.0));
                }
            }
        }
    }
}

/// The part that row `row` of all parts is in, and its row there.
fn locate(parts: &[TensorView<'_>], mut row: usize) -> (usize, usize) {
    for (part, view) in parts.iter().enumerate() {
        if row < view.rows {
            return (part, row);
        }
        row -= view.rows;
    }
    unreachable!("the row is one of the parts'")
}

/// Quant `k` of a packed block of one lane's 32.
fn get_quant(bits: usize, quants: &[u8], lane: usize, k: usize) -> u8 {
    let (group, at) = (k / 4, lane * 4 + k % 4);
    if bits == 8 {
        return quants[group * 64 + at];
    }
    let low = quants[group % 4 * 64 + at] >> (group / 4 * 4) & 15;
    match bits {
        5 => low | (quants[256 + at] >> group & 1) << 4,
        6 => low | (quants[256 + group / 4 * 64 + at] >> (group % 4 * 2) & 3) << 4,
        _ => low,
    }
}

/// Writes a lane's 32 quants into a packed block, four at a time.
fn put_quants(bits: usize, from: &[u8; BLOCK], lane: usize, quants: &mut [u8]) {
    let mut four = [0u32; 8];
    four.iter_mut().zip(from.chunks_exact(4)).for_each(|(w, q)| *w = u32::from_le_bytes([q[0], q[1], q[2], q[3]]));
    let mut put = |i: usize, word: u32| quants[i * 64 + lane * 4..][..4].copy_from_slice(&word.to_le_bytes());
    if bits == 8 {
        return four.into_iter().enumerate().for_each(|(i, w)| put(i, w));
    }
    for i in 0..4 {
        put(i, four[i] & 0x0f0f_0f0f | (four[i + 4] & 0x0f0f_0f0f) << 4);
    }
    let high = |group: usize, mask: u32| four[group] >> 4 & mask;
    match bits {
        5 => put(4, (0..8).fold(0, |word, g| word | high(g, 0x0101_0101) << g)),
        6 => (0..2).for_each(|h| put(4 + h, (0..4).fold(0, |word, g| word | high(4 * h + g, 0x0303_0303) << (2 * g)))),
        _ => {}
    }
}

/// Packs up to 16 rows in the checkpoint's layout of `dtype` into a zeroed tile, a block of all rows at a time.
fn pack_tile(dtype: DType, blocks: usize, rows: &[&[u8]], tile: &mut [u8]) {
    let (packed, scales) = tile.split_at_mut(blocks * dtype.quant_bytes());
    let Some(bits) = dtype.bits() else {
        let bytes = BLOCK * dtype.block_bytes();
        for (b, out) in packed.chunks_exact_mut(dtype.quant_bytes()).enumerate() {
            for (lane, row) in rows.iter().enumerate() {
                put_numbers(dtype, &row[b * bytes..row.len().min((b + 1) * bytes)], lane, out);
            }
        }
        return;
    };
    let (scales, second) = scales.split_at_mut(blocks * dtype.scale_bytes());
    // Row `i` of 16 halves.
    let put_half = |plane: &mut [u8], i: usize, lane: usize, half: &[u8]| {
        plane[(i * TILE + lane) * 2..][..2].copy_from_slice(&half[..2]);
    };
    let mut q = [0u8; BLOCK];
    if dtype.block_len() == BLOCK {
        for (b, out) in packed.chunks_exact_mut(dtype.quant_bytes()).enumerate() {
            for (lane, row) in rows.iter().enumerate() {
                let block = &row[b * dtype.block_bytes()..][..dtype.block_bytes()];
                put_half(scales, b, lane, block);
                if matches!(dtype, DType::Q4_1 | DType::Q5_1) {
                    put_half(second, b, lane, &block[2..]);
                }
                quants(dtype, block, &mut q);
                put_quants(bits, &q, lane, out);
            }
        }
        return;
    }
    for (s, out) in packed.chunks_exact_mut(8 * dtype.quant_bytes()).enumerate() {
        for (lane, row) in rows.iter().enumerate() {
            let block = &row[s * dtype.block_bytes()..][..dtype.block_bytes()];
            if dtype == DType::Q6_K {
                put_half(second, s, lane, &block[208..]);
            } else {
                put_half(second, 2 * s, lane, block);
                put_half(second, 2 * s + 1, lane, &block[2..]);
            }
        }
        for (j, out) in out.chunks_exact_mut(dtype.quant_bytes()).enumerate() {
            for (lane, row) in rows.iter().enumerate() {
                let block = &row[s * dtype.block_bytes()..][..dtype.block_bytes()];
                let pair = kquants::sub_block(dtype, block, j, &mut q);
                for (i, byte) in pair.into_iter().enumerate() {
                    scales[((s * 8 + j) * 2 + i) * TILE + lane] = byte;
                }
                put_quants(bits, &q, lane, out);
            }
        }
    }
}

/// Up to 32 numbers of one lane.
fn put_numbers(dtype: DType, from: &[u8], lane: usize, out: &mut [u8]) {
    match dtype {
        DType::F32 => {
            for (k, x) in from.chunks_exact(4).enumerate() {
                out[(k * TILE + lane) * 4..][..4].copy_from_slice(x);
            }
        }
        DType::F16 => {
            for (k, x) in from.chunks_exact(2).enumerate() {
                out[(k * TILE + lane) * 2..][..2].copy_from_slice(x);
            }
        }
        _ => {
            for (k, x) in from.chunks_exact(2).enumerate() {
                out[((k / 2 * TILE + lane) * 2 + k % 2) * 2..][..2].copy_from_slice(x);
            }
        }
    }
}
