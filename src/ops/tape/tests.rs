//! Kernels against their formulas in F64, and their gradients against differences of those.

use super::attention::{Changes, Scratch, Shape, Tensors};
use super::kernels;
use super::rows::Ptr;
use crate::ops::Span;
use crate::ops::cpu::level::Level;
use crate::ops::philox::uniform;

/// Sizes that fill no, one and several vectors, and some of one.
const SIZES: [usize; 6] = [1, 7, 16, 33, 64, 100];

fn numbers(seed: u64, n: usize) -> Vec<f32> {
    (0..n).map(|i| 4.0 * uniform(seed, 0, i as u64) as f32 - 2.0).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

fn assert_near(a: &[f32], b: &[f64], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let largest = b.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((f64::from(*a) - b).abs() < 2e-5 * largest, "{what} {i}: {a} for {b}");
    }
}

fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum()
}

/// That `gradient` is the slope of `f` at `x`, in some directions.
fn assert_slope(f: impl Fn(&[f64]) -> f64, x: &[f32], gradient: &[f32], what: &str) {
    let x = wide(x);
    let length = wide(gradient).iter().map(|g| g * g).sum::<f64>().sqrt();
    for seed in 0..5 {
        let direction = wide(&numbers(900 + seed, x.len()));
        let moved = |h: f64| x.iter().zip(&direction).map(|(x, d)| x + h * d).collect::<Vec<_>>();
        let slope = (f(&moved(1e-5)) - f(&moved(-1e-5))) / 2e-5;
        let ours = dot(&direction, gradient);
        assert!((ours - slope).abs() < 1e-4 * (length + 1e-3), "{what}: {ours} for {slope}");
    }
}

fn norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let rms = (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + eps).sqrt();
    x.iter().zip(w).map(|(x, w)| x / rms * w).collect()
}

#[test]
fn norms_and_their_gradients() {
    for level in Level::available() {
        for n in SIZES {
            let (x, w, dy) = (numbers(1, n), numbers(2, n), numbers(3, n));
            let (mut y, mut dx, mut dw) = (vec![0.0; n], vec![1.0; n], vec![1.0; n]);
            // SAFETY: all have `n` numbers.
            let inverse = unsafe { kernels::norm(level, x.as_ptr(), w.as_ptr(), 1e-3, n, y.as_mut_ptr()) };
            assert_near(&y, &norm(&wide(&x), &wide(&w), 1e-3), "norm");
            // SAFETY: as above.
            unsafe {
                let (dx, dw) = (dx.as_mut_ptr(), dw.as_mut_ptr());
                kernels::norm_backward(level, x.as_ptr(), w.as_ptr(), inverse, dy.as_ptr(), n, dx, dw);
            }
            // They were added to ones.
            [&mut dx, &mut dw].into_iter().for_each(|d| d.iter_mut().for_each(|v| *v -= 1.0));
            assert_slope(|x| dot(&norm(x, &wide(&w), 1e-3), &dy), &x, &dx, "norm's dx");
            assert_slope(|w| dot(&norm(&wide(&x), w, 1e-3), &dy), &w, &dw, "norm's dw");
        }
    }
}

fn gate(both: &[f64]) -> Vec<f64> {
    let (g, u) = both.split_at(both.len() / 2);
    g.iter().zip(u).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
}

#[test]
fn gates_and_their_gradients() {
    for level in Level::available() {
        for n in SIZES {
            let (both, dy) = (numbers(4, 2 * n), numbers(5, n));
            let (mut y, mut change) = (vec![0.0; n], both.clone());
            // SAFETY: of the sizes that are needed.
            unsafe {
                kernels::gate(level, both.as_ptr(), n, y.as_mut_ptr());
                kernels::gate_backward(level, change.as_mut_ptr(), dy.as_ptr(), n);
            }
            assert_near(&y, &gate(&wide(&both)), "gate");
            assert_slope(|both| dot(&gate(both), &dy), &both, &change, "gate's gradient");
        }
    }
}

/// Attention of one span, by its definition. `qkv: [len, width]` → `[len, heads · head_dim]`.
fn attend(shape: Shape, qkv: &[f64], len: usize) -> Vec<f64> {
    let (dim, width, group) = (shape.head_dim, shape.width(), shape.heads / shape.kv_heads);
    let mut out = vec![0.0; len * shape.heads * dim];
    for head in 0..shape.heads {
        let key = (shape.heads + head / group) * dim;
        let value = key + shape.kv_heads * dim;
        for i in 0..len {
            let at = |row: usize, from: usize| &qkv[row * width + from..][..dim];
            let score = |j: usize| at(i, head * dim).iter().zip(at(j, key)).map(|(q, k)| q * k).sum::<f64>();
            let weights: Vec<f64> = (0..=i).map(|j| (score(j) / (dim as f64).sqrt()).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (j, w) in weights.iter().enumerate() {
                let to = &mut out[(i * shape.heads + head) * dim..][..dim];
                to.iter_mut().zip(at(j, value)).for_each(|(o, v)| *o += w / sum * v);
            }
        }
    }
    out
}

#[test]
fn attention_and_its_gradients() {
    let shapes = [(4, 2, 6, 70), (3, 1, 16, 33), (2, 2, 32, 1), (6, 2, 20, 130)];
    for level in Level::available() {
        for (heads, kv_heads, head_dim, len) in shapes {
            let shape = Shape { heads, kv_heads, head_dim };
            // A neighbour before, which must not be touched.
            let (first, total) = (5, 5 + len);
            let span = Span { tokens: first..total, start: 0, blocks: 0..0, adapter: None };
            let (width, out_width) = (shape.width(), heads * head_dim);
            let (qkv, dout) = (numbers(6, total * width), numbers(7, total * out_width));
            let (mut out, mut logs) = (vec![9.0; total * out_width], vec![9.0; total * heads]);
            let mut dqkv = vec![0.0; total * width];
            let mut scratch = Scratch::new(level);
            for head in 0..kv_heads {
                let t = Tensors { qkv: &qkv, out: Ptr::new(&mut out), logs: Ptr::new(&mut logs) };
                // SAFETY: one thread, and the span is inside.
                unsafe { scratch.forward(shape, &span, head, t) };
            }
            for head in 0..kv_heads {
                let t = Tensors { qkv: &qkv, out: Ptr::new(&mut out), logs: Ptr::new(&mut logs) };
                let d = Changes { dout: &dout, dqkv: Ptr::new(&mut dqkv) };
                // SAFETY: as above.
                unsafe { scratch.backward(shape, &span, head, t, d) };
            }
            assert!(out[..first * out_width].iter().all(|v| *v == 9.0));
            assert!(dqkv[..first * width].iter().all(|v| *v == 0.0));
            let own = &qkv[first * width..];
            assert_near(&out[first * out_width..], &attend(shape, &wide(own), len), "attention");
            let f = |qkv: &[f64]| dot(&attend(shape, qkv, len), &dout[first * out_width..]);
            assert_slope(f, own, &dqkv[first * width..], "attention's gradient");
        }
    }
}

#[test]
fn sums_of_exponentials_and_probabilities() {
    for level in Level::available() {
        for n in [1, 15, 16, 1024, 1025, 5000] {
            let x: Vec<f32> = numbers(8, n).iter().map(|v| v * 10.0).collect();
            // SAFETY: `n` numbers.
            let kernels::Exponentials { max, sum } = unsafe { kernels::exponentials(level, x.as_ptr(), n) };
            assert_eq!(max, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let expected: f64 = x.iter().map(|v| f64::from(v - max).exp()).sum();
            assert!((sum - expected).abs() < 1e-6 * expected, "{sum} for {expected}");
            let log = f64::from(max) + sum.ln();
            let mut p = x.clone();
            // SAFETY: as above.
            unsafe { kernels::probabilities(level, p.as_mut_ptr(), log as f32, 0.5, n) };
            assert_near(&p, &wide(&x).iter().map(|v| 0.5 * (v - log).exp()).collect::<Vec<_>>(), "probabilities");
        }
    }
}

#[test]
fn a_rotation_turns_back() {
    for level in Level::available() {
        for half in SIZES {
            let (x, angles) = (numbers(9, 2 * half), numbers(10, half));
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
            let mut y = x.clone();
            // SAFETY: of the sizes that are needed.
            unsafe { kernels::rotate(level, y.as_mut_ptr(), cos.as_ptr(), sin.as_ptr(), half, 1.0) };
            let at = |i: usize| {
                let (j, c, s) = (i % half, f64::from(cos[i % half]), f64::from(sin[i % half]));
                let (a, b) = (f64::from(x[j]), f64::from(x[half + j]));
                if i < half { a * c - b * s } else { b * c + a * s }
            };
            assert_near(&y, &(0..2 * half).map(at).collect::<Vec<_>>(), "rotation");
            // SAFETY: as above.
            unsafe { kernels::rotate(level, y.as_mut_ptr(), cos.as_ptr(), sin.as_ptr(), half, -1.0) };
            assert_near(&y, &wide(&x), "rotation back");
        }
    }
}

#[test]
fn dropout_joins() {
    for level in Level::available() {
        for n in SIZES {
            let (residual, x) = (numbers(11, n), numbers(12, n));
            let kept: Vec<u8> = (0..n.div_ceil(8)).map(|i| (i * 37 + 90) as u8).collect();
            let factor = |i: usize| if kept[i / 8] >> (i % 8) & 1 == 1 { 1.25 } else { 0.0 };
            let (mut joined, mut masked) = (x.clone(), vec![0.0; n]);
            // SAFETY: of the sizes that are needed.
            unsafe {
                kernels::join(level, residual.as_ptr(), kept.as_ptr(), 1.25, n, joined.as_mut_ptr());
                kernels::masked(level, x.as_ptr(), kept.as_ptr(), 1.25, n, masked.as_mut_ptr());
            }
            for i in 0..n {
                assert_eq!(masked[i], x[i] * factor(i));
                assert!((joined[i] - (residual[i] + x[i] * factor(i))).abs() < 1e-6);
            }
        }
    }
}
