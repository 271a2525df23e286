//! Panels: what a tile reads, one after the other.
#![allow(unsafe_op_in_unsafe_fn)]

use super::View;
use crate::ops::cpu::simd::{Simd, multiversion};

multiversion! {
    /// Rows `0..rows`, columns `0..deep` of `from` into panels of a tile's rows: number `(r, k)` of a panel at
    /// `k · height + r`, zeros below the last row.
    pub(super) unsafe fn pack_left = pack_left_on(from: View, rows: usize, deep: usize, to: *mut f32);
    /// Rows `0..deep`, columns `0..cols` of `from`, at most a tile's, into a panel: number `(k, c)` at
    /// `k · width + c`, zeros right of the last column.
    pub(super) unsafe fn pack_right = pack_right_on(from: View, deep: usize, cols: usize, to: *mut f32);
    /// Rounds `n` numbers to BF16, to nearest even, in place.
    pub(super) unsafe fn round = round_on(numbers: *mut f32, n: usize);
}

#[inline(always)]
unsafe fn round_on<S: Simd>(numbers: *mut f32, n: usize) {
    let mut bits = [0u16; 16];
    let whole = n / 16 * 16;
    for i in (0..whole).step_by(16) {
        S::store_bf16(bits.as_mut_ptr(), S::load(numbers.add(i)));
        S::store(numbers.add(i), S::load_bf16(bits.as_ptr()));
    }
    for i in whole..n {
        *numbers.add(i) = half::bf16::from_f32(*numbers.add(i)).to_f32();
    }
}

#[inline(always)]
unsafe fn pack_left_on<S: Simd>(from: View, rows: usize, deep: usize, to: *mut f32) {
    match S::PANEL {
        16 => left::<14>(from, rows, deep, to),
        _ => left::<6>(from, rows, deep, to),
    }
}

#[inline(always)]
unsafe fn left<const R: usize>(from: View, rows: usize, deep: usize, to: *mut f32) {
    for row in (0..rows).step_by(R) {
        panel::<R>(from.from(row, 0), R.min(rows - row), deep, to.add(row * deep));
    }
}

#[inline(always)]
unsafe fn pack_right_on<S: Simd>(from: View, deep: usize, cols: usize, to: *mut f32) {
    let from = View { row_stride: from.col_stride, col_stride: from.row_stride, ..from };
    match S::PANEL {
        16 => panel::<32>(from, cols, deep, to),
        _ => panel::<16>(from, cols, deep, to),
    }
}

/// `W` lines (of which `count` are there) of `deep` numbers each, side by side.
#[inline(always)]
unsafe fn panel<const W: usize>(from: View, count: usize, deep: usize, to: *mut f32) {
    let View { at, row_stride: line, col_stride: step } = from;
    if line == 1 && count == W {
        for k in 0..deep {
            std::ptr::copy_nonoverlapping(at.add(k * step), to.add(k * W), W);
        }
        return;
    }
    if count < W {
        for k in 0..deep {
            for i in count..W {
                *to.add(k * W + i) = 0.0;
            }
        }
    }
    let mut i = 0;
    while i + 4 <= count {
        let from = at.add(i * line);
        let mut k = 0;
        #[cfg(target_arch = "x86_64")]
        if step == 1 {
            while k + 4 <= deep {
                four_by_four(from.add(k), line, to.add(k * W + i), W);
                k += 4;
            }
        }
        while k < deep {
            let p = from.add(k * step);
            let four = [*p, *p.add(line), *p.add(2 * line), *p.add(3 * line)];
            to.add(k * W + i).cast::<[f32; 4]>().write_unaligned(four);
            k += 1;
        }
        i += 4;
    }
    while i < count {
        let from = at.add(i * line);
        for k in 0..deep {
            *to.add(k * W + i) = *from.add(k * step);
        }
        i += 1;
    }
}

/// Four numbers each of four lines, transposed; the target's lines begin every `width`. Only moves numbers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn four_by_four(from: *const f32, line: usize, to: *mut f32, width: usize) {
    use std::arch::x86_64::*;
    let (a, b) = (_mm_loadu_ps(from), _mm_loadu_ps(from.add(line)));
    let (c, d) = (_mm_loadu_ps(from.add(2 * line)), _mm_loadu_ps(from.add(3 * line)));
    let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
    let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
    _mm_storeu_ps(to, _mm_movelh_ps(ab, cd));
    _mm_storeu_ps(to.add(width), _mm_movehl_ps(cd, ab));
    _mm_storeu_ps(to.add(2 * width), _mm_movelh_ps(ab_high, cd_high));
    _mm_storeu_ps(to.add(3 * width), _mm_movehl_ps(cd_high, ab_high));
}
