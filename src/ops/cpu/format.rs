//! What a kernel makes of a format of weights: what it multiplies them with, and what a tile takes in memory.

use super::pack::{BLOCK, TILE};
use crate::ops::quant::DType;

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

/// As the kernels hold it: every stored format has a kernel, at its own density.
impl DType {
    /// What its kernel multiplies it with.
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
            None => TILE * BLOCK * self.block_bytes(),
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
