//! Kernels against plain arithmetic, and every level against the scalar one, bit by bit.
#![allow(clippy::unwrap_used)]

mod lanes;
mod packing;
mod support;

use std::sync::atomic::{AtomicUsize, Ordering};

use super::gemm::{Out, Store, silu_mul_any};
use super::level::Level;
use super::pack::{Activation, BLOCK, TILE};
use super::rows::panel;
use crate::model::weights::TensorView;
use crate::ops::quant::{DType, dequantize_row};
use support::{FORMATS, Random, bits, exact_levels, matrix, multiply, pack, prepared, whole};

#[test]
fn products_equal_plain_arithmetic_and_all_levels_agree() {
    let mut random = Random(1);
    for dtype in FORMATS {
        for (rows, cols) in [(16, 32), (17, 64), (5, 96), (48, 160), (33, 576)] {
            let cols = whole(dtype, cols);
            let (w, numbers) = matrix(&mut random, dtype, rows, cols, 0.5);
            for count in [1, 2, 3, 5, 8, 16, 21, 40] {
                // Of even counts, what 8 bits hold exactly: integers up to 127, one of them 127, and a power of two.
                let is_exact = count % 2 == 0 && dtype.activation() == Activation::Int8;
                let mut inputs = random.vec(count * cols, 2.0);
                for block in inputs.chunks_exact_mut(BLOCK).filter(|_| is_exact) {
                    let step = 2f32.powi(-7 - (random.next() % 3) as i32);
                    block.iter_mut().for_each(|x| *x = (*x * 63.0).round() * step);
                    block[random.next() as usize % BLOCK] = -127.0 * step;
                }
                let x = prepared(Level::Scalar, &w, &inputs, None);
                let expected = multiply(Level::Scalar, &w, &x, count, 0.0, Store::Set);
                for i in 0..count {
                    for j in 0..rows {
                        let dot: f64 =
                            (0..cols).map(|k| f64::from(inputs[i * cols + k]) * f64::from(numbers[j * cols + k])).sum();
                        let got = f64::from(expected[i * w.tiles() * TILE + j]);
                        let tolerance = match dtype {
                            DType::F32 | DType::F16 => 1e-4,
                            _ if is_exact => 1e-4,
                            DType::BF16 => 2e-3 * (cols as f64).sqrt(),
                            _ => 8e-3 * (cols as f64).sqrt(),
                        };
                        assert!((got - dot).abs() < tolerance, "{dtype:?} {rows}x{cols} [{i},{j}]: {got} {dot}");
                    }
                }
                for level in exact_levels(dtype) {
                    let x = prepared(level, &w, &inputs, None);
                    let got = multiply(level, &w, &x, count, 0.0, Store::Set);
                    assert_eq!(bits(&got), bits(&expected), "{dtype:?} {rows}x{cols} {count} {level}");
                }
            }
        }
    }
}

#[test]
fn panels_cover_all_rows_in_order() {
    for widest in [4, 16] {
        for count in 1..70 {
            let mut next = 0;
            while next < count {
                let (from, size) = panel(next, count, widest);
                assert_eq!(from, next);
                assert!(size <= widest && size.is_power_of_two() && size * 2 > (count - from).min(widest));
                assert!((from..from + size).all(|i| panel(i, count, widest) == (from, size)));
                next += size;
            }
            assert_eq!(next, count);
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let mut random = Random(2);
    for dtype in FORMATS {
        let cols = whole(dtype, 96);
        let (w, _) = matrix(&mut random, dtype, 40, cols, 1.0);
        let inputs = random.vec(37 * cols, 3.0);
        for level in Level::available() {
            let all = prepared(level, &w, &inputs, None);
            let together = multiply(level, &w, &all, 37, 1.5, Store::Add);
            for i in 0..37 {
                let one = prepared(level, &w, &inputs[i * cols..][..cols], None);
                let alone = multiply(level, &w, &one, 1, 1.5, Store::Add);
                assert_eq!(bits(&together[i * 48..][..48]), bits(&alone), "{dtype:?} {level} row {i}");
            }
        }
    }
}

#[test]
fn extreme_values_stay_exact_and_in_their_row() {
    let mut random = Random(3);
    for dtype in FORMATS.into_iter().filter(|f| f.bits().is_some()) {
        // Weights and activations at the ends of their ranges: the largest integer dot products.
        let cols = whole(dtype, 64);
        for fill in [0x00u8, 0x7f, 0x80, 0xff] {
            let mut row = vec![fill; dtype.row_bytes(cols).unwrap()];
            let half = |x: f32| half::f16::from_f32(x).to_bits().to_le_bytes();
            for block in row.chunks_exact_mut(dtype.block_bytes()) {
                match dtype {
                    DType::Q6_K => block[208..].copy_from_slice(&half(1.0)),
                    _ => block[..2].copy_from_slice(&half(1.0)),
                }
                if matches!(dtype, DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K) {
                    block[2..4].copy_from_slice(&half(-3.0));
                }
            }
            let mut numbers = vec![0f32; cols];
            dequantize_row(dtype, &row, &mut numbers);
            let w = pack(&TensorView::new(dtype, 1, cols, &row, None).unwrap(), dtype).unwrap();
            for sign in [1.0, -1.0] {
                let inputs = vec![127.0 * sign; cols];
                // Sums beyond 2^24 are rounded, at every level alike.
                let expected: f64 = numbers.iter().map(|n| f64::from(*n) * 127.0 * f64::from(sign)).sum();
                for level in Level::available() {
                    let x = prepared(level, &w, &inputs, None);
                    let got = f64::from(multiply(level, &w, &x, 1, 0.0, Store::Set)[0]);
                    let tolerance = if expected.abs() < f64::from(1 << 24) { 0.0 } else { 1e-6 * expected.abs() };
                    assert!((got - expected).abs() <= tolerance, "{dtype:?} {fill} {level}: {got} {expected}");
                }
            }
        }
        let (w, _) = matrix(&mut random, dtype, 16, cols, 1.0);
        for level in Level::available() {
            let mut inputs = random.vec(3 * cols, 1.0);
            inputs[cols] = f32::NAN;
            inputs[cols + 1] = f32::INFINITY;
            let x = prepared(level, &w, &inputs, None);
            let out = multiply(level, &w, &x, 3, 0.0, Store::Set);
            assert!(out[..16].iter().chain(&out[32..]).all(|x| x.is_finite()), "{dtype:?} {level}");
            for tiny in [0.0, 1e-38, 1e-42] {
                let x = prepared(level, &w, &vec![tiny; cols], None);
                assert!(multiply(level, &w, &x, 1, 0.0, Store::Set).iter().all(|x| x.abs() < 1e-30));
            }
        }
    }
}

#[test]
fn the_gated_product_is_silu_of_gate_times_up() {
    let mut random = Random(4);
    for dtype in FORMATS {
        let cols = whole(dtype, 64);
        let (gate, _) = matrix(&mut random, dtype, 40, cols, 1.0);
        let (up, _) = matrix(&mut random, dtype, 40, cols, 1.0);
        let inputs = random.vec(6 * cols, 2.0);
        let mut first = None;
        for level in exact_levels(dtype) {
            let x = prepared(level, &gate, &inputs, None);
            let (g, u) = (multiply(level, &gate, &x, 6, 0.0, Store::Set), multiply(level, &up, &x, 6, 0.0, Store::Set));
            let mut out = vec![0f32; 6 * 48];
            for tile in 0..3 {
                let columns =
                    |x: &[f32]| -> Vec<f32> { x.chunks(48).flat_map(|r| &r[tile * TILE..][..TILE]).copied().collect() };
                let to = Out { at: out[tile * TILE..].as_mut_ptr(), stride: 48, store: Store::Set };
                // SAFETY: six rows of three tiles.
                unsafe { silu_mul_any(level, columns(&g).as_ptr(), columns(&u).as_ptr(), to, 6) };
            }
            for i in 0..out.len() {
                let expected = g[i] / (1.0 + (-g[i]).exp()) * u[i];
                assert!((out[i] - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{} {expected}", out[i]);
            }
            let first = first.get_or_insert_with(|| bits(&out));
            assert_eq!(&bits(&out), first, "{dtype:?} {level}");
        }
    }
}

#[test]
fn pool_for_each_visits_every_item() {
    let mut pool = super::pool::Pool::new(2);
    let calls = AtomicUsize::new(0);
    let mut items: Vec<usize> = (0..1000).collect();
    pool.for_each(&mut items, |_, item| {
        *item *= 2;
        calls.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(calls.into_inner(), 1000);
    assert!(items.iter().enumerate().all(|(i, x)| *x == 2 * i));
}
