use super::*;
use crate::ops::philox::uniform;

fn numbers(seed: u64, n: usize) -> Vec<f32> {
    (0..n).map(|i| uniform(seed, 0, i as u64) as f32 - 0.5).collect()
}

/// `[m, k] · [k, n]` by its definition, in F64.
fn plain(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f64> {
    let at = |i: usize, j: usize| (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
    (0..m * n).map(|c| at(c / n, c % n)).collect()
}

fn transposed(a: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| a[i % rows * cols + i / rows]).collect()
}

#[test]
fn products_equal_plain_arithmetic_in_every_arrangement() {
    for (case, (m, k, n)) in
        [(1, 1, 1), (13, 7, 31), (14, 64, 32), (15, 513, 33), (3, 1100, 70), (150, 40, 129)].into_iter().enumerate()
    {
        let (a, b) = (numbers(1 + case as u64, m * k), numbers(50 + case as u64, k * n));
        let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
        let expected = plain(&a, &b, m, k, n);
        let mut first: Option<Vec<u32>> = None;
        for level in Level::available() {
            for threads in [1, 2, 3] {
                let (mut pool, mut dense) = (Pool::new(threads), Dense::new(level, Operands::F32, threads));
                for left in [Matrix::new(&a, m, k), Matrix::new(&at, k, m).t()] {
                    for right in [Matrix::new(&b, k, n), Matrix::new(&bt, n, k).t()] {
                        // Rows wider than the result: what is between must stay.
                        let stride = n + 3;
                        let mut out = vec![7.0; m * stride];
                        dense.product(&mut pool, left, right, MatrixMut::strided(&mut out, m, n, stride), Store::Set);
                        let mut alone = vec![7.0; m * stride];
                        // SAFETY: it is large enough.
                        unsafe { Alone::new(level).product(left, right, alone.as_mut_ptr(), stride, Store::Set) };
                        let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                        assert_eq!(bits(&out), bits(&alone), "{m} {k} {n}, {level}");
                        assert_eq!(&bits(&out), first.get_or_insert_with(|| bits(&out)), "{m} {k} {n}, {level}");
                        for (i, row) in out.chunks(stride).enumerate() {
                            assert!(row[n..].iter().all(|v| *v == 7.0));
                            for (j, v) in row[..n].iter().enumerate() {
                                let e = expected[i * n + j];
                                assert!((f64::from(*v) - e).abs() < 1e-5 * (1.0 + e.abs()), "{v} for {e}");
                            }
                        }
                        let before = out.clone();
                        dense.product(&mut pool, left, right, MatrixMut::strided(&mut out, m, n, stride), Store::Add);
                        for (row, old) in out.chunks(stride).zip(before.chunks(stride)) {
                            assert!(row[n..].iter().all(|v| *v == 7.0));
                            let twice = |(v, o): (&f32, &f32)| (v - 2.0 * o).abs() < 1e-5 * (1.0 + o.abs());
                            assert!(row[..n].iter().zip(&old[..n]).all(twice));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_to_sum_is_zero() {
    let (mut pool, mut dense) = (Pool::new(2), Dense::new(Level::best(), Operands::F32, 2));
    let mut out = vec![1.0; 6];
    dense.product(
        &mut pool,
        Matrix::new(&[], 2, 0),
        Matrix::new(&[], 0, 3),
        MatrixMut::new(&mut out, 2, 3),
        Store::Add,
    );
    assert_eq!(out, [1.0; 6]);
    dense.product(
        &mut pool,
        Matrix::new(&[], 2, 0),
        Matrix::new(&[], 0, 3),
        MatrixMut::new(&mut out, 2, 3),
        Store::Set,
    );
    assert_eq!(out, [0.0; 6]);
}

#[test]
fn operands_are_rounded_and_sums_are_not() {
    let (m, k, n) = (29, 700, 45);
    let (a, b) = (numbers(1, m * k), numbers(2, k * n));
    let rounded = |x: &[f32]| x.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect::<Vec<_>>();
    for level in Level::available() {
        let mut pool = Pool::new(2);
        let mut of = |operands, a: &[f32], b: &[f32]| {
            let mut out = vec![0.0; m * n];
            let to = MatrixMut::new(&mut out, m, n);
            Dense::new(level, operands, 2).product(
                &mut pool,
                Matrix::new(a, m, k),
                Matrix::new(b, k, n),
                to,
                Store::Set,
            );
            out
        };
        assert_eq!(of(Operands::Bf16, &a, &b), of(Operands::F32, &rounded(&a), &rounded(&b)), "{level}");
        assert_ne!(of(Operands::Bf16, &a, &b), of(Operands::F32, &a, &b), "{level}");
    }
}
