//! Weights in the order the kernels read them.
//!
//! A matrix `[rows, cols]` is cut into tiles of 16 rows, one row a lane; a tile holds its columns in ascending
//! order, padded with zeros to a multiple of 32:
//! - F32, F16: for each column, 16 numbers;
//! - BF16: for each pair of columns, 16 pairs;
//! - Q8_0, Q4_0, Q4_1: for each block of 32 columns, its quants as groups of four columns, 16 × 4 bytes a group
//!   (Q8_0 as `q + 128`; 4-bit groups 0–3 in the low nibbles, 4–7 in the high ones); then, after all
//!   quants, 16 f16 scales a block; then (Q4_1) 16 f16 minima a block.

use super::buffer::Buffer;
use crate::model::weights::TensorView;
use crate::ops::OpsError;
use crate::ops::quant::{DType, dequantize_row, quantize_row};

/// Rows of a tile: the lanes of a vector.
pub const TILE: usize = 16;
/// Columns of a quantised block.
pub const BLOCK: usize = 32;

/// Storage types that have a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// 8-bit, one scale per 32.
    Q8_0,
    /// 4-bit, one scale per 32.
    Q4_0,
    /// 4-bit, scale and minimum per 32.
    Q4_1,
}

/// What activations a format is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// As they are.
    F32,
    /// Rounded to bfloat16.
    BF16,
    /// 8-bit with one scale per 32.
    Int8,
}

impl Format {
    /// The format that stores `dtype` without loss, else Q8_0 (k-quants and 5-bit types).
    pub fn storing(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::F32,
            DType::F16 => Self::F16,
            DType::BF16 => Self::BF16,
            DType::Q4_0 => Self::Q4_0,
            DType::Q4_1 => Self::Q4_1,
            _ => Self::Q8_0,
        }
    }

    /// The checkpoint type with the same content.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            Self::Q8_0 => DType::Q8_0,
            Self::Q4_0 => DType::Q4_0,
            Self::Q4_1 => DType::Q4_1,
        }
    }

    /// Its kernel's activations.
    pub fn activation(self) -> Activation {
        match self {
            Self::F32 | Self::F16 => Activation::F32,
            Self::BF16 => Activation::BF16,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => Activation::Int8,
        }
    }

    /// Bytes of the quants (or numbers) of one block of 32 columns in a tile.
    pub(crate) fn quant_bytes(self) -> usize {
        match self {
            Self::F32 => TILE * BLOCK * 4,
            Self::F16 | Self::BF16 => TILE * BLOCK * 2,
            Self::Q8_0 => TILE * BLOCK,
            Self::Q4_0 | Self::Q4_1 => TILE * BLOCK / 2,
        }
    }

    /// Bytes of scales and minima of one block in a tile.
    fn scale_bytes(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 0,
            Self::Q8_0 | Self::Q4_0 => TILE * 2,
            Self::Q4_1 => TILE * 4,
        }
    }
}

/// A packed matrix.
pub struct Packed {
    /// Storage type.
    pub format: Format,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    blocks: usize,
    tile_bytes: usize,
    data: Buffer<u8>,
}

/// A tile's memory.
#[derive(Clone, Copy)]
pub(crate) struct TilePtr {
    pub(crate) quants: *const u8,
    pub(crate) scales: *const u16,
    pub(crate) minima: *const u16,
}

impl Packed {
    /// Packs matrices stacked by rows as `format`, converting where their type differs.
    ///
    /// # Errors
    /// The matrices differ in columns, or `format` is quantised and the columns are no multiple of 32.
    pub fn new(parts: &[&TensorView<'_>], format: Format) -> Result<Self, OpsError> {
        let cols = parts[0].cols;
        if let Some(other) = parts.iter().find(|p| p.cols != cols) {
            return Err(OpsError::Unsupported(format!("merged matrices have {cols} and {} columns", other.cols)));
        }
        if format.activation() == Activation::Int8 && !cols.is_multiple_of(BLOCK) {
            return Err(OpsError::Unsupported(format!(
                "{} needs a multiple of {BLOCK} columns, not {cols}",
                format.dtype().name()
            )));
        }
        let rows: usize = parts.iter().map(|p| p.rows).sum();
        let blocks = cols.div_ceil(BLOCK);
        let tile_bytes = (blocks * (format.quant_bytes() + format.scale_bytes())).next_multiple_of(64);
        let data = Buffer::zeroed(rows.div_ceil(TILE) * tile_bytes);
        let mut packed = Self { format, rows, cols, blocks, tile_bytes, data };

        let mut floats = vec![0f32; cols];
        let mut converted = vec![0u8; format.dtype().row_bytes(cols).unwrap_or(0)];
        let mut row = 0;
        for part in parts {
            for i in 0..part.rows {
                let source = part.row(i);
                if part.dtype == format.dtype() {
                    packed.put_row(row, source);
                } else {
                    dequantize_row(part.dtype, source, &mut floats);
                    quantize_row(format.dtype(), &floats, &mut converted);
                    packed.put_row(row, &converted);
                }
                row += 1;
            }
        }
        Ok(packed)
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
        let scales = quants.wrapping_add(self.blocks * self.format.quant_bytes()).cast::<u16>();
        TilePtr { quants, scales, minima: scales.wrapping_add(self.blocks * TILE) }
    }

    /// Writes one row given in the checkpoint's layout of `format.dtype()`.
    fn put_row(&mut self, row: usize, source: &[u8]) {
        let (format, blocks, lane) = (self.format, self.blocks, row % TILE);
        let tile = &mut self.data[row / TILE * self.tile_bytes..][..self.tile_bytes];
        match format {
            Format::F32 => {
                for (k, x) in source.chunks_exact(4).enumerate() {
                    tile[(k * TILE + lane) * 4..][..4].copy_from_slice(x);
                }
            }
            Format::F16 => {
                for (k, x) in source.chunks_exact(2).enumerate() {
                    tile[(k * TILE + lane) * 2..][..2].copy_from_slice(x);
                }
            }
            Format::BF16 => {
                for (k, x) in source.chunks_exact(2).enumerate() {
                    tile[((k / 2 * TILE + lane) * 2 + k % 2) * 2..][..2].copy_from_slice(x);
                }
            }
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => {
                let (quants, scales) = tile.split_at_mut(blocks * format.quant_bytes());
                let (scales, minima) = scales.split_at_mut(blocks * TILE * 2);
                let header = if format == Format::Q4_1 { 4 } else { 2 };
                let flip = if format == Format::Q8_0 { 0x80 } else { 0 };
                for (b, block) in source.chunks_exact(format.dtype().block_bytes()).enumerate() {
                    let at = (b * TILE + lane) * 2;
                    scales[at..at + 2].copy_from_slice(&block[..2]);
                    if format == Format::Q4_1 {
                        minima[at..at + 2].copy_from_slice(&block[2..4]);
                    }
                    let quants = &mut quants[b * format.quant_bytes()..][..format.quant_bytes()];
                    for (group, four) in block[header..].chunks_exact(4).enumerate() {
                        for (i, q) in four.iter().enumerate() {
                            quants[group * 64 + lane * 4 + i] = q ^ flip;
                        }
                    }
                }
            }
        }
    }

    /// Dequantizes row `row` into `out[..cols]`.
    pub fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let (lane, blocks) = (row % TILE, self.blocks);
        let tile = &self.data[row / TILE * self.tile_bytes..][..self.tile_bytes];
        let u16_at = |at: usize| u16::from_le_bytes([tile[at], tile[at + 1]]);
        let out = &mut out[..self.cols];
        match self.format {
            Format::F32 => {
                for (k, x) in out.iter_mut().enumerate() {
                    let at = (k * TILE + lane) * 4;
                    *x = f32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]]);
                }
            }
            Format::F16 => {
                for (k, x) in out.iter_mut().enumerate() {
                    *x = half::f16::from_bits(u16_at((k * TILE + lane) * 2)).to_f32();
                }
            }
            Format::BF16 => {
                for (k, x) in out.iter_mut().enumerate() {
                    *x = half::bf16::from_bits(u16_at(((k / 2 * TILE + lane) * 2 + k % 2) * 2)).to_f32();
                }
            }
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => {
                let scales = blocks * self.format.quant_bytes();
                let half_at = |plane: usize, b: usize| {
                    half::f16::from_bits(u16_at(scales + ((plane * blocks + b) * TILE + lane) * 2)).to_f32()
                };
                for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
                    let quants = &tile[b * self.format.quant_bytes()..];
                    let d = half_at(0, b);
                    let m = if self.format == Format::Q4_1 { half_at(1, b) } else { 0.0 };
                    for (k, x) in out.iter_mut().enumerate() {
                        let byte = |k: usize| quants[k / 4 * 64 + lane * 4 + k % 4];
                        *x = match self.format {
                            Format::Q8_0 => (byte(k) ^ 0x80) as i8 as f32 * d,
                            _ => {
                                let q = (if k < 16 { byte(k) & 15 } else { byte(k - 16) >> 4 }) as f32;
                                if self.format == Format::Q4_0 { (q - 8.0) * d } else { q * d + m }
                            }
                        };
                    }
                }
            }
        }
    }
}
