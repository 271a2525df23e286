//! Kernels against plain arithmetic, and every level against the scalar one, bit by bit.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use super::gemm::unpacked::{Product, scratch_len};
use super::gemm::{Out, Store, linear_tiles, silu_mul_any, tiles_at_once};
use super::level::Level;
use super::pack::{Activation, BLOCK, Packed, TILE};
use super::pool::Pool;
use super::rows::{NormPtr, Place, Rows, panel, prepare_row};
use super::simd::{Simd, multiversion};
use crate::model::weights::TensorView;
use crate::ops::OpsError;
use crate::ops::quant::{DType, dequantize_row, quantize_row};

const FORMATS: [DType; 11] = DType::ALL;

/// Numbers that look random: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn vec(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.unit() * scale).collect()
    }
}

/// A matrix stored as `dtype`, and its numbers.
fn matrix(random: &mut Random, dtype: DType, rows: usize, cols: usize, scale: f32) -> (Packed, Vec<f32>) {
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

fn pack(view: &TensorView<'_>, dtype: DType) -> Result<Packed, OpsError> {
    Packed::new(&mut Pool::new(1), &[*view], dtype)
}

/// A row of any quants and sub-scales, and scales and minima that keep numbers within about `scale`.
fn random_blocks(random: &mut Random, dtype: DType, scale: f32, row: &mut [u8]) {
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
fn whole(dtype: DType, cols: usize) -> usize {
    cols.next_multiple_of(dtype.block_len())
}

/// Levels whose results for `dtype` are the scalar one's bit by bit.
fn exact_levels(dtype: DType) -> impl Iterator<Item = Level> {
    Level::available().filter(move |l| *l != Level::Avx512Bf16 || dtype != DType::BF16)
}

/// `count` rows of `cols` inputs, prepared for `w` at `level`.
fn prepared(level: Level, w: &Packed, inputs: &[f32], norm: Option<NormPtr>) -> Rows {
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

fn multiply(level: Level, w: &Packed, rows: &Rows, count: usize, from: f32, store: Store) -> Vec<f32> {
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

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

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
fn norms_equal_plain_arithmetic_and_all_levels_agree() {
    let mut random = Random(5);
    let (w, _) = matrix(&mut random, DType::F32, 1, 100, 1.0);
    let mut weight = random.vec(100, 1.0);
    weight.resize(128, 0.0);
    let norm = NormPtr { weight: weight.as_ptr(), eps: 1e-5, width: 100 };
    let inputs = random.vec(100, 3.0);
    let mean = inputs.iter().map(|x| f64::from(x * x)).sum::<f64>() / 100.0;
    let mut first = None;
    for level in Level::available() {
        let rows = prepared(level, &w, &inputs, Some(norm));
        // SAFETY: the row has 128 numbers.
        let got = unsafe { std::slice::from_raw_parts(rows.at(0).f, 128) };
        for k in 0..100 {
            let expected = f64::from(inputs[k]) / (mean + 1e-5).sqrt() * f64::from(weight[k]);
            assert!((f64::from(got[k]) - expected).abs() < 1e-5);
        }
        assert_eq!(&bits(got), first.get_or_insert_with(|| bits(got)), "{level}");
    }
}

/// `out` = exp, bf16 and back, rounded to integers, of 16 numbers; then their sum and maximum.
#[inline(always)]
unsafe fn lanes<S: Simd>(x: *const f32, out: *mut f32) {
    // SAFETY: 16 numbers in, 50 out.
    unsafe {
        let v = S::load(x);
        S::store(out, S::exp(v));
        let mut h = [0u16; 16];
        S::store_bf16(h.as_mut_ptr(), v);
        S::store(out.add(16), S::load_bf16(h.as_ptr()));
        S::store(out.add(32), S::to_f32(S::round(v)));
        *out.add(48) = S::sum(v);
        *out.add(49) = S::max_lane(v);
    }
}

multiversion! {
    unsafe fn lanes_at = lanes(x: *const f32, out: *mut f32);
}

#[test]
fn lane_functions() {
    let mut random = Random(6);
    let mut inputs: Vec<f32> = random.vec(1600, 80.0);
    inputs.extend([0.0, -0.0, 1.0, -1.0, 87.9, -86.9, 0.5, 1.5, 2.5, -0.5, 1e-20, -1e-20, 88.0, -87.0, 3.0, 3.4e-5]);
    for x in inputs.chunks_exact(16) {
        let mut first = None;
        for level in Level::available() {
            let mut out = [0f32; 50];
            // SAFETY: 16 in, 50 out.
            unsafe { lanes_at(level, x.as_ptr(), out.as_mut_ptr()) };
            for i in 0..16 {
                let exact = f64::from(x[i]).exp();
                assert!((f64::from(out[i]) - exact).abs() <= 2.5e-7 * exact, "exp({}) {} {exact}", x[i], out[i]);
                assert_eq!(out[16 + i], half::bf16::from_f32(x[i]).to_f32());
                assert_eq!(out[32 + i], x[i].round_ties_even());
            }
            assert_eq!(out[49], x.iter().copied().fold(f32::MIN, f32::max));
            assert_eq!(&bits(&out), first.get_or_insert_with(|| bits(&out)), "{level}");
        }
    }
}

#[test]
fn packing_keeps_every_number() {
    let mut random = Random(7);
    for dtype in FORMATS {
        let cols = whole(dtype, 96);
        let (w, numbers) = matrix(&mut random, dtype, 35, cols, 1.0);
        for (i, row) in numbers.chunks_exact(cols).enumerate() {
            let mut out = vec![0f32; cols];
            w.unpack_row(i, &mut out);
            assert_eq!(bits(&out), bits(row), "{dtype:?} row {i}");
        }
    }
}

#[test]
fn a_shape_that_no_kernel_takes_is_refused() {
    let row = vec![0u8; 40 * 4];
    let view = TensorView::new(DType::F32, 1, 40, &row, None).unwrap();
    assert!(pack(&view, DType::Q8_0).is_err());
    assert!(pack(&view, DType::F32).is_ok());
    let row = vec![0u8; 256 * 4];
    let view = TensorView::new(DType::F32, 1, 256, &row, None).unwrap();
    assert_eq!(pack(&view, DType::Q4_K).map(|_| ()).unwrap_err().to_string(), "F32 is not converted to Q4_K");
}

/// The first row of the first matrix with a number that is not finite is named, however many workers there are.
#[test]
fn numbers_that_are_not_finite_are_refused() {
    let mut random = Random(8);
    for dtype in FORMATS {
        let (rows, cols) = (50, whole(dtype, 64));
        let row_bytes = dtype.row_bytes(cols).unwrap();
        let mut good = vec![0u8; rows * row_bytes];
        for row in good.chunks_exact_mut(row_bytes) {
            match dtype.is_writable() {
                true => quantize_row(dtype, &random.vec(cols, 1.0), row),
                false => random_blocks(&mut random, dtype, 1.0, row),
            }
        }
        // Where a number or scale begins in the last block of a row, and what it is replaced by.
        let last = row_bytes - dtype.block_bytes();
        let (places, bad): (&[usize], &[&[u8]]) = match dtype {
            DType::F32 => (&[0], &[&[0, 0, 0x80, 0x7f], &[0, 0, 0x80, 0xff], &[1, 0, 0x80, 0x7f], &[0, 0, 0xc0, 0xff]]),
            DType::BF16 => (&[0], &[&[0x80, 0x7f], &[0x80, 0xff], &[0xc0, 0x7f]]),
            DType::F16 | DType::Q8_0 | DType::Q4_0 | DType::Q5_0 => (&[0], &[&[0, 0x7c], &[0, 0xfc], &[1, 0x7e]]),
            DType::Q6_K => (&[208], &[&[0, 0x7c], &[0, 0xfe]]),
            _ => (&[0, 2], &[&[0, 0x7c], &[0, 0xfc], &[0, 0x7e]]),
        };
        for place in places {
            for bad in bad {
                let mut bytes = good.clone();
                for row in [49, 33, 20] {
                    bytes[row * row_bytes + last + place..][..bad.len()].copy_from_slice(bad);
                }
                let parts = [&good, &bytes].map(|b| TensorView::new(dtype, rows, cols, b, None).unwrap());
                for workers in [1, 3] {
                    let error = Packed::new(&mut Pool::new(workers), &parts, dtype).map(|_| ()).unwrap_err();
                    assert!(matches!(error, OpsError::NotFinite { part: 1, row: 20 }), "{dtype:?} {error:?}");
                    let to = Packed::new(&mut Pool::new(workers), &parts, DType::Q8_0).map(|_| ()).unwrap_err();
                    assert!(matches!(to, OpsError::NotFinite { part: 1, row: 20 }), "{dtype:?} {to:?}");
                }
            }
        }
        assert!(pack(&TensorView::new(dtype, rows, cols, &good, None).unwrap(), dtype).is_ok(), "{dtype:?}");
    }
    // Finite, but not in the type it is converted to.
    let row: Vec<u8> = [1.0, f32::MAX].iter().cycle().take(32).flat_map(|x| x.to_le_bytes()).collect();
    let view = TensorView::new(DType::F32, 1, 32, &row, None).unwrap();
    for dtype in [DType::BF16, DType::Q8_0, DType::Q4_0] {
        let error = pack(&view, dtype).map(|_| ()).unwrap_err();
        assert!(matches!(error, OpsError::Range { .. }), "{dtype:?} {error:?}");
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
