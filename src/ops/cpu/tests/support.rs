//! Random matrices, and products of them with a kernel.

use super::super::gemm::unpacked::{Product, scratch_len};
use super::super::gemm::{Out, Store, linear_tiles, tiles_at_once};
use super::super::level::Level;
use super::super::pack::{BLOCK, Packed, TILE};
use super::super::pool::Pool;
use super::super::rows::{NormPtr, Place, Rows, panel, prepare_row};
use crate::model::weights::TensorView;
use crate::ops::OpsError;
use crate::ops::quant::{DType, dequantize_row, quantize_row};

pub(super) const FORMATS: [DType; 11] = DType::ALL;

/// Numbers that look random: splitmix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub(super) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(super) fn vec(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.unit() * scale).collect()
    }
}

/// A matrix stored as `dtype`, and its numbers.
pub(super) fn matrix(random: &mut Random, dtype: DType, rows: usize, cols: usize, scale: f32) -> (Packed, Vec<f32>) {
    let row_bytes = dtype.row_bytes(cols).unwrap();
    let mut bytes = vec![0u8; rows * row_bytes];
    let mut numbers = vec![0f32; rows * cols];
    for (bytes, numbers) in bytes.chunks_exact_mut(row_bytes).zip(numbers.chunks_exact_mut(cols)) {
        match dtype.is_writable() {
            true => quantize_row(dtype, &random.vec(cols, scale), bytes),
            false => random_blocks(random, dtype, scale, bytes),
        }
        dequantize_row(dtype, bytes, numbers);
    }
    let view = TensorView::new(dtype, rows, cols, &bytes, None).unwrap();
    (pack(&view, dtype).unwrap(), numbers)
}

pub(super) fn pack(view: &TensorView<'_>, dtype: DType) -> Result<Packed, OpsError> {
    Packed::new(&mut Pool::new(1), &[*view], dtype)
}

/// A row of any quants and sub-scales, and scales and minima that keep numbers within about `scale`.
pub(super) fn random_blocks(random: &mut Random, dtype: DType, scale: f32, row: &mut [u8]) {
    row.iter_mut().for_each(|b| *b = random.next() as u8);
    let (steps, halves): (f32, &[usize]) = match dtype {
        DType::Q5_0 => (16.0, &[0]),
        DType::Q5_1 => (32.0, &[0, 2]),
        DType::Q4_K => (16.0 * 64.0, &[0, 2]),
        DType::Q5_K => (32.0 * 64.0, &[0, 2]),
        DType::Q6_K => (32.0 * 128.0, &[208]),
        other => panic!("{other} is written by quantize_row"),
    };
    for block in row.chunks_exact_mut(dtype.block_bytes()) {
        for (i, &at) in halves.iter().enumerate() {
            let most = if i == 0 { scale / steps } else { scale / if dtype == DType::Q5_1 { 1.0 } else { 64.0 } };
            let value = half::f16::from_f32(random.unit() * most);
            block[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// `cols`, as whole blocks of `dtype`.
pub(super) fn whole(dtype: DType, cols: usize) -> usize {
    cols.next_multiple_of(dtype.block_len())
}

/// Levels whose results for `dtype` are the scalar one's bit by bit.
pub(super) fn exact_levels(dtype: DType) -> impl Iterator<Item = Level> {
    Level::available().filter(move |l| *l != Level::Avx512Bf16 || dtype != DType::BF16)
}

/// `count` rows of `cols` inputs, prepared for `w` at `level`.
pub(super) fn prepared(level: Level, w: &Packed, inputs: &[f32], norm: Option<NormPtr>) -> Rows {
    let count = inputs.len() / w.cols;
    let rows = Rows::new(count, w.cols, 1);
    let mut padded = vec![0f32; w.blocks() * BLOCK];
    for (i, input) in inputs.chunks_exact(w.cols).enumerate() {
        padded[..w.cols].copy_from_slice(input);
        let (from, size) = panel(i, count, level.panel());
        let place = Place { panel: rows.at(from), lane: i - from, rows: size, staging: rows.staging(0) };
        // SAFETY: `padded` and the row hold the matrix's blocks.
        unsafe { prepare_row(level, padded.as_ptr(), norm, w.dtype.activation(), w.blocks(), place) };
    }
    rows
}

pub(super) fn multiply(level: Level, w: &Packed, rows: &Rows, count: usize, from: f32, store: Store) -> Vec<f32> {
    let stride = w.tiles() * TILE;
    let mut out = vec![from; count * stride];
    let mut scratch = vec![f32::NAN; scratch_len(count)];
    let at_once = tiles_at_once(level, w, count);
    for from in (0..w.tiles()).step_by(at_once) {
        let mut products = Vec::new();
        for tile in from..w.tiles().min(from + at_once) {
            let at = out[tile * TILE..].as_mut_ptr();
            products.push(Product { w, tile, out: Out { at, stride, store } });
        }
        // SAFETY: `out` has `count` rows of all tiles.
        unsafe { linear_tiles(level, &products, rows, count, scratch.as_mut_ptr()) };
    }
    out
}

pub(super) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
