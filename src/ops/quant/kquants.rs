//! Reading of the 256-value block formats: as numbers, and in sub-blocks of 32 for packing.

use super::{DType, half_at};

/// The 6-bit scale and minimum of sub-block `j` (0..8), packed in 12 bytes.
fn scale_min_bytes(j: usize, s: &[u8]) -> [u8; 2] {
    if j < 4 {
        [s[j] & 63, s[j + 4] & 63]
    } else {
        [(s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4]
    }
}

fn scale_min(j: usize, s: &[u8]) -> (f32, f32) {
    let [scale, min] = scale_min_bytes(j, s);
    (f32::from(scale), f32::from(min))
}

/// Values `32 j ..` of a block without sign and their scale and minimum, or for Q6_K (zero at 32) the two scales
/// (i8) of 16 values each.
pub(crate) fn sub_block(dtype: DType, b: &[u8], j: usize, q: &mut [u8; 32]) -> [u8; 2] {
    if dtype == DType::Q6_K {
        let (h, r) = (j / 4, j % 4);
        let (low, high) = (&b[64 * h + r % 2 * 32..][..32], &b[128 + 32 * h..][..32]);
        for l in 0..32 {
            q[l] = (low[l] >> (r / 2 * 4) & 15) | (high[l] >> (2 * r) & 3) << 4;
        }
        return [b[192 + 2 * j], b[192 + 2 * j + 1]];
    }
    let nibbles = &b[if dtype == DType::Q5_K { 48 } else { 16 } + j / 2 * 32..][..32];
    for l in 0..32 {
        q[l] = nibbles[l] >> (j % 2 * 4) & 15;
    }
    if dtype == DType::Q5_K {
        for l in 0..32 {
            q[l] |= (b[16 + l] >> j & 1) << 4;
        }
    }
    scale_min_bytes(j, &b[4..16])
}

/// d, dmin (f16), 12 scale bytes, 128 bytes of nibbles: 32 bytes hold two sub-blocks of 32.
pub(super) fn q4_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin, scales) = (half_at(b), half_at(&b[2..]), &b[4..16]);
    for (g, (q, y)) in b[16..].chunks_exact(32).zip(y.chunks_exact_mut(64)).enumerate() {
        let ((s1, m1), (s2, m2)) = (scale_min(2 * g, scales), scale_min(2 * g + 1, scales));
        let (d1, m1, d2, m2) = (d * s1, dmin * m1, d * s2, dmin * m2);
        for l in 0..32 {
            y[l] = d1 * f32::from(q[l] & 15) - m1;
            y[l + 32] = d2 * f32::from(q[l] >> 4) - m2;
        }
    }
}

/// As `q4_k` with 32 bytes of fifth bits before the nibbles: bit `i` of byte `l` belongs to value
/// `l` of sub-block `i`.
pub(super) fn q5_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin, scales, high) = (half_at(b), half_at(&b[2..]), &b[4..16], &b[16..48]);
    for (g, (q, y)) in b[48..].chunks_exact(32).zip(y.chunks_exact_mut(64)).enumerate() {
        let ((s1, m1), (s2, m2)) = (scale_min(2 * g, scales), scale_min(2 * g + 1, scales));
        let (d1, m1, d2, m2) = (d * s1, dmin * m1, d * s2, dmin * m2);
        for l in 0..32 {
            let (h1, h2) = (high[l] >> (2 * g) & 1, high[l] >> (2 * g + 1) & 1);
            y[l] = d1 * f32::from((q[l] & 15) + h1 * 16) - m1;
            y[l + 32] = d2 * f32::from((q[l] >> 4) + h2 * 16) - m2;
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 scales (i8), d (f16). Each half of 128
/// values is four runs of 32.
pub(super) fn q6_k(b: &[u8], y: &mut [f32]) {
    let d = half_at(&b[208..]);
    for (h, y) in y.chunks_exact_mut(128).enumerate() {
        let (low, high, scales) = (&b[64 * h..], &b[128 + 32 * h..], &b[192 + 8 * h..]);
        for l in 0..32 {
            let quads = [low[l] & 15, low[l + 32] & 15, low[l] >> 4, low[l + 32] >> 4];
            for (r, nibble) in quads.into_iter().enumerate() {
                let q = (nibble | (high[l] >> (2 * r) & 3) << 4) as i8 - 32;
                y[l + 32 * r] = d * f32::from(scales[2 * r + l / 16] as i8) * f32::from(q);
            }
        }
    }
}
