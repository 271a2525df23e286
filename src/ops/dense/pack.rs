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
    // Four lines at a time: their reads run along the lines, and the writes share cache lines.
    let mut i = 0;
    while i + 4 <= count {
        let from = at.add(i * line);
        for k in 0..deep {
            let p = from.add(k * step);
            let four = [*p, *p.add(line), *p.add(2 * line), *p.add(3 * line)];
            to.add(k * W + i).cast::<[f32; 4]>().write_unaligned(four);
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
