//! The sampler against its slow twin, against the distribution it should draw from, and against
//! values worked out by hand.

use std::sync::Arc;

use lima::engine::{RowOut, SampleInput, SampleRow, Sampled, SamplingParams, SeqId, TokenId};
use lima::runner::sampler::{Level, Sampler, Scratch, philox, reference};

/// A small generator for test data.
struct Rng(u64);

impl Rng {
    fn uniform(&mut self) -> f32 {
        self.0 += 1;
        philox::uniform(77, 0, self.0) as f32
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 += 1;
        (philox::uniform(78, 0, self.0) * n as f64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Peaked, flat, coarse (many ties) or partly impossible logits.
    fn logits(&mut self, len: usize) -> Vec<f32> {
        let spread = self.pick(&[0.01, 1.0, 3.0, 20.0]);
        let coarse = self.below(3) == 0;
        let holes = self.below(4) == 0;
        (0..len)
            .map(|_| {
                let normal = (0..6).map(|_| self.uniform() - 0.5).sum::<f32>() * 1.4 * spread;
                if holes && self.uniform() < 0.3 {
                    f32::NEG_INFINITY
                } else if coarse {
                    (normal * 4.0).round() / 4.0
                } else {
                    normal
                }
            })
            .collect()
    }

    fn params(&mut self, vocab: usize) -> SamplingParams {
        let penalties = self.below(2) == 0;
        SamplingParams {
            temperature: self.pick(&[0.0, 0.1, 0.7, 1.0, 2.0]),
            top_p: self.pick(&[1.0, 0.9, 0.5, 0.0, 0.999, 0.999_999_94]),
            top_k: self.pick(&[0, 0, 1, 5, 40, 300]),
            min_p: self.pick(&[0.0, 0.0, 0.05, 0.5, 1.0, 1e-6]),
            repetition_penalty: if penalties { self.pick(&[1.0, 1.2, 0.8]) } else { 1.0 },
            presence_penalty: if penalties { self.pick(&[0.0, 1.5, -0.5]) } else { 0.0 },
            frequency_penalty: if penalties { self.pick(&[0.0, 0.4]) } else { 0.0 },
            logit_bias: (0..self.pick(&[0, 0, 3])).map(|_| (self.below(vocab + 3) as TokenId, 4.0)).collect(),
            seed: self.below(1 << 30) as u64,
            choice: self.below(3) as u32,
            logprobs: self.pick(&[None, None, Some(0), Some(1), Some(20)]),
            min_tokens: self.pick(&[0, 0, 20, 60]),
            stop_token_ids: (0..self.pick(&[0, 1, 5])).map(|_| self.below(vocab + 3) as TokenId).collect(),
            ..SamplingParams::default()
        }
    }
}

fn row<'a>(params: &'a Arc<SamplingParams>, history: &'a [TokenId], num_prompt: usize) -> SampleRow<'a> {
    SampleRow { row: 0, seq: SeqId(1), params, history, drafts: &[], num_prompt, position: history.len(), mask: None }
}

/// Samples without log-probabilities or a mask.
fn sample(logits: &[f32], params: &SamplingParams, history: &[TokenId], num_prompt: usize) -> RowOut {
    let params = Arc::new(params.clone());
    Sampler::new(logits.len()).sample_row(
        &mut logits.to_vec(),
        &row(&params, history, num_prompt),
        &mut Scratch::default(),
    )
}

fn only(out: RowOut) -> Sampled {
    match out {
        RowOut::Tokens(mut tokens) if tokens.len() == 1 => tokens.remove(0),
        other => panic!("one token expected: {other:?}"),
    }
}

fn failed(out: &RowOut) -> bool {
    matches!(out, RowOut::Failed(_))
}

#[test]
fn equals_the_reference() {
    let mut rng = Rng(0);
    let mut scratch = Scratch::default();
    let levels = Level::available();
    let (mut tokens, mut failures) = (0, 0);
    for i in 0..4000 {
        let vocab = if i % 100 == 0 { 20_011 } else { rng.pick(&[1, 2, 17, 256, 700, 2048]) };
        let mut logits = rng.logits(vocab + rng.0 as usize % 3);
        if i % 50 == 7 {
            let place = rng.below(vocab);
            logits[place] = rng.pick(&[f32::NAN, f32::INFINITY, f32::MAX, f32::MIN]);
        }
        let params = Arc::new(rng.params(vocab));
        let history: Vec<TokenId> = (0..1 + rng.below(60)).map(|_| rng.below(vocab + 2) as TokenId).collect();
        let density = rng.pick(&[0.0, 0.02, 0.5, 1.0]);
        let mask: Vec<u32> = (0..vocab.div_ceil(32))
            .map(|_| (0..32).fold(0, |word, bit| word | u32::from(rng.uniform() < density) << bit))
            .collect();
        let mut row = row(&params, &history, rng.below(history.len()));
        row.mask = (rng.below(4) == 0).then_some(&mask[..]);

        let want = reference::sample_row(&logits, vocab, &row);
        for &level in &levels {
            let mut sampler = Sampler::with_level(vocab, level);
            if i % 2 == 0 {
                sampler.prepare(&SampleInput { rows: vec![row.clone()] });
            }
            let got = sampler.sample_row(&mut logits.clone(), &row, &mut scratch);
            if failed(&want) {
                assert!(failed(&got), "case {i}: {params:?}: {got:?}");
                failures += 1;
            } else {
                assert_eq!(got, want, "case {i}, {level:?}: {params:?}");
                tokens += 1;
            }
        }
    }
    assert!(tokens > 3000 && failures > 50, "{tokens} tokens, {failures} failures");
}

/// Pearson's statistic of 40,000 draws against probabilities computed in f64 with libm.
fn chi_square(logits: &[f32], params: &SamplingParams, probabilities: &[f64]) -> f64 {
    let draws = 40_000;
    let params = Arc::new(params.clone());
    let sampler = Sampler::new(logits.len());
    let (mut scratch, mut buffer) = (Scratch::default(), logits.to_vec());
    let mut counts = vec![0_u32; logits.len()];
    for position in 0..draws {
        buffer.copy_from_slice(logits);
        let mut row = row(&params, &[], 0);
        row.position = position;
        counts[only(sampler.sample_row(&mut buffer, &row, &mut scratch)).token as usize] += 1;
    }
    let mut sum = 0.0;
    for (&count, &p) in counts.iter().zip(probabilities) {
        let expected = p * draws as f64;
        assert!(p > 0.0 || count == 0, "a token of probability zero was drawn");
        if p > 0.0 {
            sum += (f64::from(count) - expected).powi(2) / expected;
        }
    }
    sum
}

fn normalised(weights: &[f64]) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [1.0, 3.0, -1.0, 2.5, 0.0, f32::NEG_INFINITY, 2.0, 1.5];
    let at = |t: f64| logits.map(|l| (f64::from(l) / t).exp());
    let params = |f: fn(&mut SamplingParams)| {
        let mut p = SamplingParams { temperature: 1.0, seed: 5, ..SamplingParams::default() };
        f(&mut p);
        p
    };
    // 99.9 % quantiles of chi-square with 6, 2 and 3 degrees of freedom: 22.5, 13.8, 16.3.
    assert!(chi_square(&logits, &params(|_| {}), &normalised(&at(1.0))) < 22.5);
    assert!(chi_square(&logits, &params(|p| p.temperature = 0.7), &normalised(&at(0.7))) < 22.5);
    let keep = |kept: &[usize]| {
        let w = at(1.0);
        normalised(&(0..8).map(|i| if kept.contains(&i) { w[i] } else { 0.0 }).collect::<Vec<_>>())
    };
    assert!(chi_square(&logits, &params(|p| p.top_k = 3), &keep(&[1, 3, 6])) < 13.8);
    // Shares, sorted: .43 .26 .16 .10 .06 ...: three reach .8, four reach .9.
    assert!(chi_square(&logits, &params(|p| p.top_p = 0.8), &keep(&[1, 3, 6])) < 13.8);
    assert!(chi_square(&logits, &params(|p| p.top_p = 0.9), &keep(&[1, 3, 6, 7])) < 16.3);
    // exp(-1) = .368 is kept at .3, exp(-1.5) = .223 is not.
    assert!(chi_square(&logits, &params(|p| p.min_p = 0.3), &keep(&[1, 3, 6])) < 13.8);
}

#[test]
fn penalties_by_hand() {
    let greedy = |logits: &[f32], f: fn(&mut SamplingParams), history: &[TokenId], num_prompt| {
        let mut params = SamplingParams::default();
        f(&mut params);
        only(sample(logits, &params, history, num_prompt)).token
    };
    // 2.2 / 1.2 = 1.83 < 1.9: the prompt counts, once however often it occurs (2.2 / 1.44 = 1.53).
    assert_eq!(greedy(&[2.2, 1.9], |p| p.repetition_penalty = 1.2, &[0], 1), 1);
    assert_eq!(greedy(&[2.2, 1.8], |p| p.repetition_penalty = 1.2, &[0, 0, 0], 1), 0);
    // -1 · 1.2 = -1.2 < -1.1.
    assert_eq!(greedy(&[-1.0, -1.1], |p| p.repetition_penalty = 1.2, &[0], 0), 1);
    // Presence and frequency: generated tokens only; the second once for each time.
    assert_eq!(greedy(&[2.0, 1.8], |p| p.presence_penalty = 0.5, &[0], 1), 0);
    assert_eq!(greedy(&[2.0, 1.8], |p| p.presence_penalty = 0.5, &[0, 0], 1), 1);
    assert_eq!(greedy(&[2.0, 1.4], |p| p.presence_penalty = 0.5, &[0, 0, 0], 0), 0);
    assert_eq!(greedy(&[2.0, 0.9], |p| p.frequency_penalty = 0.5, &[0, 0], 0), 0);
    assert_eq!(greedy(&[2.0, 0.9], |p| p.frequency_penalty = 0.5, &[0, 0, 0], 0), 1);
    // Bias comes first: (1 + 2) / 1.2 = 2.5; ties go to the lowest id.
    assert_eq!(greedy(&[0.5, 2.5, 1.0], |p| p.repetition_penalty = 1.2, &[2], 1), 1);
    let bias = |p: &mut SamplingParams| (p.repetition_penalty, p.logit_bias) = (1.2, vec![(2, 2.0), (99, 50.0)]);
    assert_eq!(greedy(&[0.5, 2.4, 1.0], bias, &[2], 1), 2);
    assert_eq!(greedy(&[1.0, 3.0, 3.0, -0.0, 0.0], |_| {}, &[], 0), 1);
}

#[test]
fn log_probabilities_are_of_the_raw_logits() {
    let logits = [0.0, 2.0, 1.0, 1.0, f32::NEG_INFINITY];
    let ln_sum = (1.0 + 2_f64.exp() + 2.0 * 1_f64.exp()).ln();
    let params =
        SamplingParams { logprobs: Some(20), logit_bias: vec![(0, 50.0), (0, 1.0)], ..SamplingParams::default() };
    let got = only(sample(&logits, &params, &[], 0));
    assert_eq!(got.token, 0);
    assert!((f64::from(got.logprob) + ln_sum).abs() < 1e-6);
    assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 3, 0]);
    assert_eq!(got.top[3].1, got.logprob);
    let mut scratch = Scratch::default();
    let sampler = Sampler::new(logits.len());
    let mut score = |token, top| sampler.score(&logits, token, top, &mut scratch);
    let scored = score(0, 20).unwrap();
    assert_eq!((scored.token, scored.logprob, scored.rank), (0, got.logprob, 4));
    assert_eq!(scored.top, got.top);
    assert_eq!((score(1, 0).unwrap().rank, score(2, 1).unwrap().rank, score(3, 0).unwrap().rank), (1, 2, 3));
    assert_eq!(score(2, 1).unwrap().top, got.top[..1]);
    assert_eq!(score(4, 0).unwrap().logprob, f32::NEG_INFINITY);
    assert_eq!(score(4, 0).unwrap().rank, 5);
    assert_eq!(score(5, 0), None);
    assert_eq!(Sampler::new(2).score(&[0.0, f32::NAN], 0, 0, &mut scratch), None);
}

#[test]
fn bad_rows_fail() {
    let params = SamplingParams::default();
    for bad in [[0.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY, f32::NEG_INFINITY]] {
        assert!(failed(&sample(&bad, &params, &[], 0)));
    }
    let overflow = SamplingParams { repetition_penalty: 0.01, ..params.clone() };
    assert!(failed(&sample(&[f32::MAX, 0.0], &overflow, &[0], 1)));
    let short = Arc::new(params);
    let sampler = Sampler::new(3);
    let mut scratch = Scratch::default();
    assert!(failed(&sampler.sample_row(&mut [0.0, 0.0], &row(&short, &[], 0), &mut scratch)));
    let mut masked = row(&short, &[], 0);
    masked.mask = Some(&[0b1000]);
    assert!(failed(&sampler.sample_row(&mut [0.0, 0.0, 0.0, 9.0], &masked, &mut scratch)));
    // Padding is never sampled, whatever it holds.
    let padded = sampler.sample_row(&mut [0.0, 1.0, 0.0, f32::NAN], &row(&short, &[], 0), &mut scratch);
    assert_eq!(only(padded).token, 1);
}

/// Counts kept from step to step give what counting anew gives, over growth, a cut and release.
#[test]
fn counts_follow_a_sequence() {
    let params = Arc::new(SamplingParams {
        temperature: 0.7,
        top_p: 0.9,
        repetition_penalty: 1.2,
        frequency_penalty: 0.3,
        ..SamplingParams::default()
    });
    let mut rng = Rng(9);
    let mut sampler = Sampler::new(500);
    let mut scratch = Scratch::default();
    let mut history: Vec<TokenId> = vec![3, 4, 5];
    for step in 0..200 {
        if step == 120 {
            history.truncate(60);
        }
        if step == 150 {
            sampler.release(&[SeqId(1)]);
            assert_eq!(sampler.num_tracked(), 0);
        }
        let logits = rng.logits(500);
        let row = row(&params, &history, 3);
        sampler.prepare(&SampleInput { rows: vec![row.clone()] });
        let got = sampler.sample_row(&mut logits.clone(), &row, &mut scratch);
        assert_eq!(got, reference::sample_row(&logits, 500, &row));
        history.push(only(got).token);
    }
    assert_eq!(sampler.num_tracked(), 1);
}

/// A seed given today draws the same for ever.
#[test]
fn draws_are_frozen() {
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 * 0.05).collect();
    let params = SamplingParams { temperature: 0.7, top_p: 0.9, seed: 42, ..SamplingParams::default() };
    let drawn: Vec<TokenId> = (0..8).map(|n| only(sample(&logits, &params, &vec![0; n], 0)).token).collect();
    assert_eq!(drawn, FROZEN);
}

const FROZEN: [TokenId; 8] = [259, 728, 974, 955, 857, 655, 120, 483];
