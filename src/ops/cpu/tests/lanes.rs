//! Norms and functions of lanes: every level against plain arithmetic and the scalar one.

use super::super::level::Level;
use super::super::rows::NormPtr;
use super::super::simd::{Simd, multiversion};
use super::support::{Random, bits, matrix, prepared};
use crate::ops::quant::DType;

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
