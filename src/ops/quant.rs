//! Number formats of stored weights, and the scalar reference for reading and writing them.
//!
//! A quantised row is a sequence of blocks; the layouts are ggml's, byte for byte. Packed kernels are
//! tested against the functions here, which follow ggml's reference rounding exactly.

pub(crate) mod kquants;

use half::{bf16, f16};

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum DType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    BF16,
    /// 32 values: scale (f16), 32 × i8. `d·q`.
    Q8_0,
    /// 32 values: scale (f16), 16 bytes; byte j holds value j low and value j + 16 high. `d·(q − 8)`.
    Q4_0,
    /// 32 values: scale, minimum (f16), 16 bytes as in `Q4_0`. `d·q + m`.
    Q4_1,
    /// 32 values: scale (f16), 4 bytes of fifth bits, 16 bytes. `d·(q − 16)`. Read only.
    Q5_0,
    /// 32 values: scale, minimum (f16), 4 bytes of fifth bits, 16 bytes. `d·q + m`. Read only.
    Q5_1,
    /// 256 values in 8 sub-blocks with 6-bit scales and minima. Read only.
    Q4_K,
    /// As `Q4_K` with a fifth bit. Read only.
    Q5_K,
    /// 256 values in 16 sub-blocks with 8-bit scales. Read only.
    Q6_K,
}

use DType::*;

impl DType {
    /// Every format.
    pub const ALL: [DType; 11] = [F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K];

    /// Values in a block; 1 where numbers stand alone.
    pub const fn block_len(self) -> usize {
        match self {
            F32 | F16 | BF16 => 1,
            Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 => 32,
            Q4_K | Q5_K | Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            Q8_0 => 34,
            Q4_0 => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q4_K => 144,
            Q5_K => 176,
            Q6_K => 210,
        }
    }

    /// Bytes of a row of `cols` values; `None` if it is not whole blocks or does not fit.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Whether [`quantize_row`] writes it.
    pub const fn is_writable(self) -> bool {
        matches!(self, F32 | F16 | BF16 | Q8_0 | Q4_0 | Q4_1)
    }

    /// Its name, as in file names and flags.
    pub const fn name(self) -> &'static str {
        match self {
            F32 => "F32",
            F16 => "F16",
            BF16 => "BF16",
            Q8_0 => "Q8_0",
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q4_K => "Q4_K",
            Q5_K => "Q5_K",
            Q6_K => "Q6_K",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The f16 at the start of `bytes`.
fn half_at(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

fn put_half(bytes: &mut [u8], value: f32) {
    bytes[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Reads a row of `out.len()` values.
///
/// # Panics
/// If `src` is not exactly `dtype.row_bytes(out.len())` bytes.
pub fn dequantize_row(dtype: DType, src: &[u8], out: &mut [f32]) {
    assert_eq!(Some(src.len()), dtype.row_bytes(out.len()), "{dtype} row of {} values", out.len());
    let blocks = src.chunks_exact(dtype.block_bytes()).zip(out.chunks_exact_mut(dtype.block_len()));
    match dtype {
        F32 => blocks.for_each(|(b, y)| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        F16 => blocks.for_each(|(b, y)| y[0] = half_at(b)),
        BF16 => blocks.for_each(|(b, y)| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        Q8_0 => blocks.for_each(|(b, y)| {
            let d = half_at(b);
            y.iter_mut().zip(&b[2..]).for_each(|(y, &q)| *y = f32::from(q as i8) * d);
        }),
        Q4_0 => blocks.for_each(|(b, y)| {
            let d = half_at(b);
            nibbles(&b[2..], |j, q| y[j] = f32::from(q as i8 - 8) * d);
        }),
        Q4_1 => blocks.for_each(|(b, y)| {
            let (d, m) = (half_at(b), half_at(&b[2..]));
            nibbles(&b[4..], |j, q| y[j] = f32::from(q) * d + m);
        }),
        Q5_0 => blocks.for_each(|(b, y)| {
            let (d, high) = (half_at(b), fifth_bits(&b[2..6]));
            nibbles(&b[6..], |j, q| y[j] = f32::from((q | high(j)) as i8 - 16) * d);
        }),
        Q5_1 => blocks.for_each(|(b, y)| {
            let (d, m, high) = (half_at(b), half_at(&b[2..]), fifth_bits(&b[4..8]));
            nibbles(&b[8..], |j, q| y[j] = f32::from(q | high(j)) * d + m);
        }),
        Q4_K => blocks.for_each(|(b, y)| kquants::q4_k(b, y)),
        Q5_K => blocks.for_each(|(b, y)| kquants::q5_k(b, y)),
        Q6_K => blocks.for_each(|(b, y)| kquants::q6_k(b, y)),
    }
}

/// Calls `f(j, nibble)` for the 32 values of a block: low nibbles first, then high.
fn nibbles(bytes: &[u8], mut f: impl FnMut(usize, u8)) {
    for (j, b) in bytes.iter().enumerate() {
        f(j, b & 15);
        f(j + 16, b >> 4);
    }
}

/// Bit 4 of value `j`, in place.
fn fifth_bits(bytes: &[u8]) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    move |j| ((bits >> j) & 1) as u8 * 16
}

/// The quants of a block of 32 as they are stored, without sign: Q8_0's with 128 added, so that each format of `n`
/// bits without minima has its zero at `2^(n - 1)`.
pub(crate) fn quants(dtype: DType, block: &[u8], out: &mut [u8; 32]) {
    match dtype {
        Q8_0 => out.iter_mut().zip(&block[2..]).for_each(|(q, b)| *q = b ^ 0x80),
        Q4_0 => nibbles(&block[2..], |j, q| out[j] = q),
        Q4_1 => nibbles(&block[4..], |j, q| out[j] = q),
        Q5_0 | Q5_1 => {
            let header = if dtype == Q5_0 { 2 } else { 4 };
            let high = fifth_bits(&block[header..header + 4]);
            nibbles(&block[header + 4..], |j, q| out[j] = q | high(j));
        }
        F32 | F16 | BF16 | Q4_K | Q5_K | Q6_K => unreachable!("{dtype} has no blocks of 32"),
    }
}

/// Whether all numbers of a stored row are finite; of quantised ones, the scales and minima.
pub fn is_finite(dtype: DType, row: &[u8]) -> bool {
    let half = |b: &[u8], at: usize| b[at + 1] & 0x7c != 0x7c;
    // No early end inside a piece, so that it is compiled to vectors.
    let halves = |row: &[u8], mask: u16| {
        row.chunks(512).all(|piece| {
            let bits = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]) & mask == mask;
            !piece.chunks_exact(2).fold(false, |bad, b| bad | bits(b))
        })
    };
    let mut blocks = row.chunks_exact(dtype.block_bytes());
    match dtype {
        F32 => row.chunks(512).all(|piece| {
            let bits = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0x7f80_0000 == 0x7f80_0000;
            !piece.chunks_exact(4).fold(false, |bad, b| bad | bits(b))
        }),
        F16 => halves(row, 0x7c00),
        BF16 => halves(row, 0x7f80),
        Q8_0 | Q4_0 | Q5_0 => blocks.all(|b| half(b, 0)),
        Q4_1 | Q5_1 | Q4_K | Q5_K => blocks.all(|b| half(b, 0) && half(b, 2)),
        Q6_K => blocks.all(|b| half(b, 208)),
    }
}

/// Writes a row, rounding as ggml's reference does.
///
/// # Panics
/// If `dst` is not exactly `dtype.row_bytes(src.len())` bytes, or the format is read only.
pub fn quantize_row(dtype: DType, src: &[f32], dst: &mut [u8]) {
    assert_eq!(Some(dst.len()), dtype.row_bytes(src.len()), "{dtype} row of {} values", src.len());
    let blocks = src.chunks_exact(dtype.block_len()).zip(dst.chunks_exact_mut(dtype.block_bytes()));
    match dtype {
        F32 => blocks.for_each(|(x, b)| b.copy_from_slice(&x[0].to_le_bytes())),
        F16 => blocks.for_each(|(x, b)| put_half(b, x[0])),
        BF16 => blocks.for_each(|(x, b)| b.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes())),
        Q8_0 => blocks.for_each(|(x, b)| quantize_q8_0(x, b)),
        Q4_0 => blocks.for_each(|(x, b)| quantize_q4_0(x, b)),
        Q4_1 => blocks.for_each(|(x, b)| quantize_q4_1(x, b)),
        Q5_0 | Q5_1 | Q4_K | Q5_K | Q6_K => panic!("{dtype} is read only"),
    }
}

/// `1 / d`, and 0 where the whole block is 0.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn quantize_q8_0(x: &[f32], b: &mut [u8]) {
    let amax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let d = amax / 127.0;
    let id = inverse(d);
    put_half(b, d);
    b[2..].iter_mut().zip(x).for_each(|(q, v)| *q = (v * id).round() as i8 as u8);
}

fn quantize_q4_0(x: &[f32], b: &mut [u8]) {
    let (mut amax, mut max) = (0.0f32, 0.0f32);
    for &v in x {
        if amax < v.abs() {
            (amax, max) = (v.abs(), v);
        }
    }
    // The extreme value takes -8, the one step the positive side lacks.
    let d = max / -8.0;
    let id = inverse(d);
    put_half(b, d);
    let q = |v: f32| ((v * id + 8.5) as i8 as u8).min(15);
    for j in 0..16 {
        b[2 + j] = q(x[j]) | q(x[j + 16]) << 4;
    }
}

fn quantize_q4_1(x: &[f32], b: &mut [u8]) {
    let (mut min, mut max) = (f32::MAX, f32::MIN);
    for &v in x {
        if v < min {
            min = v;
        }
        if v > max {
            max = v;
        }
    }
    let d = (max - min) / 15.0;
    let id = inverse(d);
    put_half(b, d);
    put_half(&mut b[2..], min);
    let q = |v: f32| (((v - min) * id + 0.5) as i8 as u8).min(15);
    for j in 0..16 {
        b[4 + j] = q(x[j]) | q(x[j + 16]) << 4;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
