//! What the sampler draws, counted, against exact probabilities computed in f64 with libm from the meaning of the
//! parameters. Seeds are fixed, so every run counts the same.

use std::sync::Arc;

use lima::engine::{RowOut, SampleRow, SamplingParams, SeqId, TokenId};
use lima::runner::sampler::{Sampler, Scratch, philox};

const DRAWS: usize = 200_000;
const VOCAB: usize = 60;

fn logits() -> Vec<f32> {
    (0..VOCAB).map(|i| ((i * 37 % 61) as f32 * 0.11).sin() * 3.0 + (i % 7) as f32 * 0.2).collect()
}

fn draw(sampler: &Sampler, logits: &[f32], row: &SampleRow<'_>, buffers: &mut (Vec<f32>, Scratch)) -> usize {
    buffers.0.clear();
    buffers.0.extend_from_slice(logits);
    match sampler.sample_row(&mut buffers.0, row, &mut buffers.1) {
        RowOut::Tokens(tokens) => tokens[0].token as usize,
        other => panic!("{other:?}"),
    }
}

/// [`DRAWS`] tokens at the positions from `num_prompt` on.
fn draws(logits: &[f32], params: &SamplingParams, history: &[TokenId], num_prompt: usize) -> Vec<usize> {
    let params = Arc::new(params.clone());
    let (sampler, mut buffers) = (Sampler::new(logits.len()), Default::default());
    let row = |position| SampleRow {
        row: 0,
        seq: SeqId(1),
        params: &params,
        history,
        drafts: &[],
        num_prompt,
        position,
        mask: None,
    };
    (0..DRAWS).map(|i| draw(&sampler, logits, &row(num_prompt + i), &mut buffers)).collect()
}

/// The probabilities the parameters mean.
fn exact(logits: &[f32], p: &SamplingParams, history: &[TokenId], num_prompt: usize) -> Vec<f64> {
    let mut l: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
    for &(token, bias) in &p.logit_bias {
        l[token as usize] += f64::from(bias);
    }
    for (token, l) in l.iter_mut().enumerate() {
        let is = |t: &&TokenId| **t as usize == token;
        let generated = history[num_prompt..].iter().filter(is).count() as f64;
        if history.iter().any(|t| is(&t)) {
            let r = f64::from(p.repetition_penalty);
            *l = if *l < 0.0 { *l * r } else { *l / r };
        }
        *l -= generated * f64::from(p.frequency_penalty) + generated.min(1.0) * f64::from(p.presence_penalty);
    }
    let mut w: Vec<f64> = l.iter().map(|l| (l / f64::from(p.temperature)).exp()).collect();
    let mut order: Vec<usize> = (0..w.len()).collect();
    order.sort_by(|a, b| w[*b].total_cmp(&w[*a]));
    if p.top_k > 0 {
        order.drain(p.top_k as usize..).for_each(|i| w[i] = 0.0);
    }
    let total: f64 = w.iter().sum();
    let mut before = 0.0;
    for i in order {
        let weight = w[i];
        if before >= f64::from(p.top_p) * total || weight < f64::from(p.min_p) * w.iter().copied().fold(0.0, f64::max) {
            w[i] = 0.0;
        }
        before += weight;
    }
    let total: f64 = w.iter().sum();
    w.iter().map(|w| w / total).collect()
}

/// Pearson's statistic over cells that expect at least 10, the others together; and its 99.95 % quantile after
/// Wilson and Hilferty.
fn chi_square(counts: &[usize], expected: &[f64]) -> (f64, f64) {
    let (mut sum, mut cells) = (0.0, 0);
    let (mut rest, mut rest_expected) = (0.0, 0.0);
    for (&count, &expected) in counts.iter().zip(expected) {
        assert!(expected > 0.0 || count == 0, "something of probability zero was drawn");
        if expected < 10.0 {
            rest += count as f64;
            rest_expected += expected;
            continue;
        }
        sum += (count as f64 - expected).powi(2) / expected;
        cells += 1;
    }
    if rest_expected > 0.0 {
        sum += (rest - rest_expected).powi(2) / rest_expected.max(5.0);
        cells += 1;
    }
    let df = f64::from(cells - 1).max(1.0);
    let bound = df * (1.0 - 2.0 / (9.0 * df) + 3.29 * (2.0 / (9.0 * df)).sqrt()).powi(3);
    (sum, bound)
}

fn count(tokens: &[usize], cells: usize) -> Vec<usize> {
    let mut counts = vec![0; cells];
    tokens.iter().for_each(|t| counts[*t] += 1);
    counts
}

#[test]
fn draws_follow_the_exact_distribution() {
    let logits = logits();
    // Token 9 is only in the prompt, 4 and 50 only in the answer.
    let history = [9, 9, 30, 30, 4, 50, 50, 50, 12];
    let base = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    let cases = [
        base.clone(),
        SamplingParams { temperature: 0.7, ..base.clone() },
        SamplingParams { temperature: 2.0, ..base.clone() },
        SamplingParams { top_k: 7, ..base.clone() },
        SamplingParams { top_p: 0.9, ..base.clone() },
        SamplingParams { top_p: 0.35, temperature: 1.5, ..base.clone() },
        SamplingParams { min_p: 0.1, ..base.clone() },
        SamplingParams { temperature: 0.7, top_p: 0.9, repetition_penalty: 1.2, ..base.clone() },
        SamplingParams { presence_penalty: 0.8, frequency_penalty: 0.6, ..base.clone() },
        SamplingParams { repetition_penalty: 1.5, frequency_penalty: -0.4, top_k: 20, top_p: 0.8, ..base.clone() },
        SamplingParams { logit_bias: vec![(3, 2.5), (40, -100.0)], min_p: 0.02, top_k: 30, ..base.clone() },
    ];
    for (i, params) in cases.into_iter().enumerate() {
        let params = SamplingParams { seed: 77 + i as u64, ..params };
        let counts = count(&draws(&logits, &params, &history, 4), VOCAB);
        let expected: Vec<f64> = exact(&logits, &params, &history, 4).iter().map(|p| p * DRAWS as f64).collect();
        let (sum, bound) = chi_square(&counts, &expected);
        println!("case {i}: chi-square {sum:.1}, bound {bound:.1}");
        assert!(sum < bound, "{sum} is above {bound}: {params:?}");
    }
}

/// Two series of tokens from the same probabilities: pairs must be as likely as their parts' product.
fn assert_independent(a: &[usize], b: &[usize], p: &[f64], what: &str) {
    let n = a.len().min(b.len());
    let pairs: Vec<usize> = a.iter().zip(b).map(|(a, b)| a * p.len() + b).collect();
    let expected: Vec<f64> = p.iter().flat_map(|x| p.iter().map(move |y| x * y * n as f64)).collect();
    let (sum, bound) = chi_square(&count(&pairs, p.len() * p.len()), &expected);
    println!("{what}: chi-square {sum:.1}, bound {bound:.1}");
    assert!(sum < bound, "{what}: {sum} is above {bound}");
    assert!(a != b, "{what}: the same series");
}

#[test]
fn seeds_choices_and_positions_are_independent() {
    let logits = [0.3, -0.2, 0.9, 0.0, -1.0, 0.5];
    let params = |seed, choice| SamplingParams { temperature: 1.0, seed, choice, ..SamplingParams::default() };
    let p = exact(&logits, &params(0, 0), &[], 0);
    let series = |seed, choice| draws(&logits, &params(seed, choice), &[], 0);
    let first = series(42, 0);
    for distance in [1, 2, 32] {
        assert_independent(&first, &first[distance..], &p, &format!("positions {distance} apart"));
    }
    let choices = [1, 2, 127].map(|choice| (choice, series(42, choice)));
    for (choice, other) in &choices {
        assert_independent(&first, other, &p, &format!("choice {choice}"));
        assert_independent(&first, &other[1..], &p, &format!("choice {choice}, one position on"));
    }
    assert_independent(&choices[0].1, &choices[1].1, &p, "choices 1 and 2");
    for seed in [43, 42 << 32, u64::MAX - 42, 41] {
        assert_independent(&first, &series(seed, 0), &p, &format!("seed {seed}"));
    }
    assert_eq!(first, series(42, 0));
}

/// The same over seeds: the first token of many requests, whose seeds count up.
#[test]
fn the_first_token_of_consecutive_seeds_follows_the_distribution() {
    let logits = logits();
    let (sampler, mut buffers) = (Sampler::new(VOCAB), Default::default());
    let base = SamplingParams { temperature: 0.7, top_p: 0.9, ..SamplingParams::default() };
    let mut first = |seed| {
        let params = Arc::new(SamplingParams { seed, ..base.clone() });
        let row = SampleRow {
            row: 0,
            seq: SeqId(1),
            params: &params,
            history: &[],
            drafts: &[],
            num_prompt: 0,
            position: 17,
            mask: None,
        };
        draw(&sampler, &logits, &row, &mut buffers)
    };
    let tokens: Vec<usize> = (0..DRAWS as u64).map(&mut first).collect();
    let p = exact(&logits, &base, &[], 0);
    let expected: Vec<f64> = p.iter().map(|p| p * DRAWS as f64).collect();
    let (sum, bound) = chi_square(&count(&tokens, VOCAB), &expected);
    assert!(sum < bound, "{sum} is above {bound}");
    assert_independent(&tokens, &tokens[1..], &p, "consecutive seeds");
}

/// The generator itself: uniform, and uncorrelated with what follows.
#[test]
fn the_generator_is_uniform_and_uncorrelated() {
    let n = 400_000;
    let u: Vec<f64> = (0..n).map(|i| philox::uniform(7, 0, i)).collect();
    let cells = 1024;
    let counts = count(&u.iter().map(|u| (u * cells as f64) as usize).collect::<Vec<_>>(), cells);
    let (sum, bound) = chi_square(&counts, &vec![n as f64 / cells as f64; cells]);
    assert!(sum < bound, "{sum} is above {bound}");
    let correlation = |a: &mut dyn Iterator<Item = (f64, f64)>| {
        let (sum, n) = a.fold((0.0, 0.0), |(s, n), (x, y)| (s + (x - 0.5) * (y - 0.5), n + 1.0));
        12.0 * sum / f64::sqrt(n)
    };
    for lag in 1..=16 {
        let z = correlation(&mut u.iter().copied().zip(u[lag..].iter().copied()));
        assert!(z.abs() < 3.9, "{lag} positions apart: {z} standard deviations");
    }
    for choice in 1..8 {
        let z = correlation(&mut u.iter().copied().zip((0..n).map(|i| philox::uniform(7, choice, i))));
        assert!(z.abs() < 3.9, "choice {choice}: {z} standard deviations");
    }
}
