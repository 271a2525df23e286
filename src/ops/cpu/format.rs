//! The formats in which weights are held, and what each takes in memory.

use super::pack::{BLOCK, TILE};
use crate::ops::quant::DType;

/// Formats that have a kernel: every stored one, at its own density.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)]
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
    /// 5-bit, one scale per 32.
    Q5_0,
    /// 5-bit, scale and minimum per 32.
    Q5_1,
    /// 4-bit, 6-bit scale and minimum per 32, f16 scale and minimum per 256.
    Q4_K,
    /// 5-bit, 6-bit scale and minimum per 32, f16 scale and minimum per 256.
    Q5_K,
    /// 6-bit, 8-bit scale per 16, f16 scale per 256.
    Q6_K,
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
    /// Every format.
    pub const ALL: [Format; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// The format that stores `dtype` without loss.
    pub fn storing(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::F32,
            DType::F16 => Self::F16,
            DType::BF16 => Self::BF16,
            DType::Q8_0 => Self::Q8_0,
            DType::Q4_0 => Self::Q4_0,
            DType::Q4_1 => Self::Q4_1,
            DType::Q5_0 => Self::Q5_0,
            DType::Q5_1 => Self::Q5_1,
            DType::Q4_K => Self::Q4_K,
            DType::Q5_K => Self::Q5_K,
            DType::Q6_K => Self::Q6_K,
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
            Self::Q5_0 => DType::Q5_0,
            Self::Q5_1 => DType::Q5_1,
            Self::Q4_K => DType::Q4_K,
            Self::Q5_K => DType::Q5_K,
            Self::Q6_K => DType::Q6_K,
        }
    }

    /// Its kernel's activations.
    pub fn activation(self) -> Activation {
        match self {
            Self::F32 | Self::F16 => Activation::F32,
            Self::BF16 => Activation::BF16,
            _ => Activation::Int8,
        }
    }

    /// Bits of a quant; `None` where numbers stand alone.
    pub(crate) fn bits(self) -> Option<usize> {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => None,
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K => Some(4),
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => Some(5),
            Self::Q6_K => Some(6),
            Self::Q8_0 => Some(8),
        }
    }

    /// Bytes of the quants (or numbers) of one block of 32 columns in a tile.
    pub(crate) fn quant_bytes(self) -> usize {
        match self.bits() {
            Some(bits) => TILE * BLOCK * bits / 8,
            None => TILE * BLOCK * self.dtype().block_bytes(),
        }
    }

    /// Bytes of a tile's first plane of scales, for each block: f16 scales, or the scales and minima (Q6_K: two
    /// scales) of sub-blocks in a byte each.
    pub(crate) fn scale_bytes(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 0,
            _ => TILE * 2,
        }
    }

    /// Bytes of a tile's second plane, for all `blocks`: f16 minima a block, or the f16 scales (and minima)
    /// of each 256 columns.
    pub(crate) fn second_bytes(self, blocks: usize) -> usize {
        match self {
            Self::Q4_1 | Self::Q5_1 => blocks * TILE * 2,
            Self::Q4_K | Self::Q5_K => blocks / 8 * TILE * 4,
            Self::Q6_K => blocks / 8 * TILE * 2,
            _ => 0,
        }
    }
}
