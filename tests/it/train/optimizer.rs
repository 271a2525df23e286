//! AdamW: PyTorch's numbers, and the fused update beside one composed of candle's operations.

use candle_core::{DType, Device, Tensor, Var};
use lima::train::model::Part;
use lima::train::optimizer::{AdamW, Moments, Settings};
use lima::train::recipe::{Choices, Number};
use lima::train::schedule::learning_rate;
use lima::train::{Gradients, Parameter};
use serde::Deserialize;

use crate::support::goldens;

const SETTINGS: Settings =
    Settings { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, moments: Number::F32, seed: 7 };

fn parameter(name: &str, var: Var) -> Parameter {
    let rows = if var.rank() == 2 { var.dims()[0] } else { 1 };
    Parameter { decay: var.rank() == 2, tensors: vec![Part { name: name.into(), rows }], var }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn set(gradients: &mut Gradients, i: usize, values: &[f32]) {
    gradients.edit(i, |g| g.copy_from_slice(values)).unwrap();
}

#[derive(Deserialize)]
struct Golden {
    /// Of a matrix and a norm: first weights, gradients of each step, weights after each.
    matrix: Trace,
    norm: Trace,
    lrs: Vec<f64>,
}

#[derive(Deserialize)]
struct Trace {
    shape: Vec<usize>,
    weights: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    after: Vec<Vec<f32>>,
}

/// Twelve steps of the recipe's AdamW and schedule, by PyTorch.
#[test]
fn steps_are_pytorchs() {
    let text = std::fs::read_to_string(goldens::path("adamw.json")).unwrap();
    let golden: Golden = serde_json::from_str(&text).unwrap();
    let var = |t: &Trace| Var::from_vec(t.weights.clone(), t.shape.clone(), &Device::Cpu).unwrap();
    let parameters = [parameter("matrix", var(&golden.matrix)), parameter("norm", var(&golden.norm))];
    let recipe = Choices { lr: Some(1e-2), ..Choices::default() }.resolve(0).unwrap();
    let mut optimizer = AdamW::new(&parameters, Settings::from(&recipe));
    let mut gradients = Gradients::new(&parameters).unwrap();
    let steps = golden.lrs.len();
    assert_eq!(steps, 12);
    for (step, lr) in golden.lrs.iter().enumerate() {
        let own = learning_rate(&recipe, step as u64, steps as u64);
        assert!((own - lr).abs() < 1e-12, "{own} is not {lr}");
        for (i, trace) in [&golden.matrix, &golden.norm].into_iter().enumerate() {
            set(&mut gradients, i, &trace.gradients[step]);
        }
        optimizer.step(&parameters, &gradients, own).unwrap();
        for (parameter, trace) in parameters.iter().zip([&golden.matrix, &golden.norm]) {
            for (ours, theirs) in numbers(&parameter.var).iter().zip(&trace.after[step]) {
                assert!((ours - theirs).abs() <= 2e-7 * theirs.abs().max(0.1), "step {step}: {ours} is not {theirs}");
            }
        }
    }
    assert_eq!(optimizer.steps(), 12);
}

/// Numbers from a counter.
fn noise(seed: u32, len: usize) -> Vec<f32> {
    let word = |i: u32| lima::ops::philox::philox4x32_10([i, seed, 0, 0], [1, 2])[0];
    (0..len as u32).map(|i| word(i) as f32 / 2_147_483_648.0 - 1.0).collect()
}

/// One step composed of candle's operations.
fn composed(w: &Tensor, m: &Tensor, v: &Tensor, g: &Tensor, t: i32, lr: f64, decay: bool) -> [Tensor; 3] {
    let s = &SETTINGS;
    let step = || -> candle_core::Result<[Tensor; 3]> {
        let m = (m + ((g - m)? * (1.0 - s.beta1))?)?;
        let v = ((v * s.beta2)? + ((g * (1.0 - s.beta2))? * g)?)?;
        let denominator = ((v.sqrt()? / (1.0 - s.beta2.powi(t)).sqrt())? + s.eps)?;
        let kept = if decay { (w * (1.0 - lr * s.weight_decay))? } else { w.clone() };
        let w = (kept - ((&m / denominator)? * (lr / (1.0 - s.beta1.powi(t))))?)?;
        Ok([w, m, v])
    };
    step().unwrap()
}

/// Larger than what one thread takes at once. Means bit for bit; weights but for candle's division by a constant, which
/// multiplies with the reciprocal.
#[test]
fn the_fused_step_is_the_composed_one() {
    const LEN: usize = 100_003;
    for decay in [true, false] {
        let shape = if decay { vec![LEN, 1] } else { vec![LEN] };
        let var = Var::from_vec(noise(1, LEN), shape.clone(), &Device::Cpu).unwrap();
        let mut state = [var.as_tensor().copy().unwrap(), var.zeros_like().unwrap(), var.zeros_like().unwrap()];
        let parameters = [parameter("w", var)];
        let mut optimizer = AdamW::new(&parameters, SETTINGS);
        let mut gradients = Gradients::new(&parameters).unwrap();
        for t in 1..=5 {
            let (g, lr) = (noise(10 + t as u32, LEN), 1e-2 / f64::from(t));
            set(&mut gradients, 0, &g);
            optimizer.step(&parameters, &gradients, lr).unwrap();
            let g = Tensor::from_vec(g, shape.clone(), &Device::Cpu).unwrap();
            state = composed(&state[0], &state[1], &state[2], &g, t, lr, decay);
            let Moments::F32(m, v) = &optimizer.moments()[0] else { panic!() };
            assert!(*m == numbers(&state[1]) && *v == numbers(&state[2]), "step {t}");
            for (ours, other) in numbers(&parameters[0].var).iter().zip(numbers(&state[0])) {
                assert!((ours - other).abs() <= 5e-7 * other.abs().max(1.0), "step {t}: {ours} is not {other}");
            }
        }
    }
}

/// BF16 means follow F32 ones within their precision; the number of threads changes no bit of anything.
#[test]
fn formats_and_threads() {
    const LEN: usize = 200_000;
    let run = |weights: DType, moments: Number, threads: usize| {
        let var = Tensor::from_vec(noise(3, LEN), (LEN / 10, 10), &Device::Cpu).unwrap().to_dtype(weights).unwrap();
        let parameters = [parameter("w", Var::from_tensor(&var).unwrap())];
        let mut optimizer = AdamW::new(&parameters, Settings { moments, ..SETTINGS });
        let mut gradients = Gradients::new(&parameters).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for t in 0..8 {
            set(&mut gradients, 0, &noise(50 + t, LEN));
            pool.install(|| optimizer.step(&parameters, &gradients, 1e-3)).unwrap();
        }
        numbers(&parameters[0].var)
    };
    let exact = run(DType::F32, Number::F32, 1);
    for (weights, moments, allowed) in
        [(DType::F32, Number::F32, 0.0), (DType::F32, Number::Bf16, 2e-4), (DType::BF16, Number::F32, 0.05)]
    {
        let [one, three] = [1, 3].map(|threads| run(weights, moments, threads));
        assert!(one == three, "{weights:?} {moments:?}");
        let furthest = one.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(furthest <= allowed, "{weights:?} {moments:?}: {furthest}");
        // Stochastic rounding has no drift: its mean error is far below a step of BF16.
        let mean = one.iter().zip(&exact).map(|(a, b)| f64::from(a - b)).sum::<f64>() / LEN as f64;
        assert!(mean.abs() < 5e-5, "{weights:?} {moments:?}: {mean}");
    }
}

/// A thousand steps of 1e-5 move a BF16 weight as far as an F32 one, on average; rounded to nearest it would not move.
#[test]
fn small_steps_are_not_lost_in_bf16() {
    const LEN: usize = 1000;
    let var = Var::from_tensor(&Tensor::full(1.0f32, (LEN, 1), &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap());
    let parameters = [parameter("w", var.unwrap())];
    let mut optimizer = AdamW::new(&parameters, Settings { weight_decay: 0.0, ..SETTINGS });
    let mut gradients = Gradients::new(&parameters).unwrap();
    set(&mut gradients, 0, &[1.0; LEN]);
    for _ in 0..1000 {
        optimizer.step(&parameters, &gradients, 1e-5).unwrap();
    }
    let mean = numbers(&parameters[0].var).iter().map(|v| f64::from(*v)).sum::<f64>() / LEN as f64;
    assert!((mean - 0.99).abs() < 5e-4, "{mean}");
}

#[test]
fn weights_that_are_no_numbers_are_told() {
    let parameters = [parameter("some.weight", Var::from_vec(vec![1.0f32; 4], (2, 2), &Device::Cpu).unwrap())];
    let mut optimizer = AdamW::new(&parameters, SETTINGS);
    let mut gradients = Gradients::new(&parameters).unwrap();
    set(&mut gradients, 0, &[0.0, 1.0, 0.0, 0.0]);
    let error = optimizer.step(&parameters, &gradients, 1e300).unwrap_err().to_string();
    assert_eq!(error, "weights of some.weight are no longer finite");
}
