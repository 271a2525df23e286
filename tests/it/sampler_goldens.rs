//! The sampler against transformers' logits processors (`tests/goldens/sampling.json`, made by
//! `scripts/goldens/sampling.py`), and the penalties of OpenAI's API against their formula.

use std::sync::Arc;

use lima::engine::{RowOut, SampleRow, SamplingParams, SeqId, TokenId};
use lima::runner::sampler::{Sampler, Scratch, philox, reference};
use serde::Deserialize;

use crate::support::goldens;

#[derive(Deserialize)]
struct File {
    vocab: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    params: Params,
    history: Vec<TokenId>,
    num_prompt: usize,
    /// `None` is -inf.
    logits: Vec<Option<f32>>,
    edited: Vec<Option<f32>>,
    /// Tokens and their probabilities, by token.
    kept: Vec<(TokenId, f64)>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Params {
    temperature: Option<f32>,
    top_k: u32,
    top_p: Option<f32>,
    min_p: f32,
    repetition_penalty: Option<f32>,
    logit_bias: Vec<(TokenId, f32)>,
    min_tokens: u32,
    stop_token_ids: Vec<TokenId>,
}

impl Params {
    fn with_seed(&self, seed: u64) -> Arc<SamplingParams> {
        Arc::new(SamplingParams {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k,
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            logit_bias: self.logit_bias.clone(),
            min_tokens: self.min_tokens,
            stop_token_ids: self.stop_token_ids.clone(),
            seed,
            ..SamplingParams::default()
        })
    }
}

impl Case {
    fn row<'a>(&'a self, params: &'a Arc<SamplingParams>) -> SampleRow<'a> {
        SampleRow {
            row: 0,
            seq: SeqId(1),
            params,
            history: &self.history,
            drafts: &[],
            num_prompt: self.num_prompt,
            position: self.history.len(),
            mask: None,
        }
    }
}

fn floats(row: &[Option<f32>]) -> Vec<f32> {
    row.iter().map(|l| l.unwrap_or(f32::NEG_INFINITY)).collect()
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(goldens::path("sampling.json")).unwrap();
    let file: File = serde_json::from_str(&text).unwrap();
    assert!(file.cases.len() >= 20 && file.cases.iter().all(|c| c.logits.len() == file.vocab));
    file.cases
}

/// Bias, repetition penalty and minimum length give the same floats; the warpers leave the same tokens with the same
/// probabilities.
#[test]
fn processors_and_warpers_equal_transformers() {
    for (i, case) in cases().iter().enumerate() {
        let (logits, params) = (floats(&case.logits), case.params.with_seed(0));
        let edited = reference::edited(&logits, logits.len(), &case.row(&params)).unwrap();
        assert_eq!(edited, floats(&case.edited), "case {i}: {params:?}");

        let mut ours = reference::distribution(&logits, logits.len(), &case.row(&params)).unwrap();
        ours.sort_by_key(|(token, _)| *token);
        let tokens = |kept: &[(TokenId, f64)]| kept.iter().map(|k| k.0).collect::<Vec<_>>();
        assert_eq!(tokens(&ours), tokens(&case.kept), "case {i}: {params:?}");
        for ((token, p), (_, q)) in ours.iter().zip(&case.kept) {
            assert!((p - q).abs() <= 2e-6 * q + 1e-12, "case {i}, token {token}: {p}, transformers {q}");
        }
    }
}

/// What is drawn is transformers' distribution inverted at the generator's number.
#[test]
fn draws_invert_the_distribution_of_transformers() {
    let mut compared = 0;
    for (i, case) in cases().iter().enumerate() {
        let (logits, edited) = (floats(&case.logits), floats(&case.edited));
        let mut order = case.kept.clone();
        order.sort_by(|a, b| edited[b.0 as usize].total_cmp(&edited[a.0 as usize]).then(a.0.cmp(&b.0)));
        let sums: Vec<f64> = order
            .iter()
            .scan(0.0, |sum, (_, p)| {
                *sum += p;
                Some(*sum)
            })
            .collect();
        let (sampler, mut scratch) = (Sampler::new(logits.len()), Scratch::default());
        for seed in 0..500 {
            let params = case.params.with_seed(seed);
            let row = case.row(&params);
            let u = philox::uniform(seed, 0, row.position as u64);
            if sums.iter().any(|sum| (sum - u).abs() < 1e-5) {
                continue;
            }
            let expected = order[sums.partition_point(|sum| *sum <= u).min(order.len() - 1)].0;
            let RowOut::Tokens(got) = sampler.sample_row(&mut logits.clone(), &row, &mut scratch) else {
                panic!("case {i}: no token");
            };
            assert_eq!(got[0].token, expected, "case {i}, seed {seed}, u {u}");
            compared += 1;
        }
    }
    assert!(compared > 9_000, "{compared}");
}

/// `l - c · frequency - (c > 0) · presence`, `c` the times a token was generated; the prompt does not count.
#[test]
fn presence_and_frequency_follow_their_formula() {
    for (i, case) in cases().iter().enumerate() {
        let logits = floats(&case.logits);
        let (presence, frequency) = ([0.5, -1.25, 0.0, 2.0][i % 4], [0.25, 0.0, -0.5, 1.0][i / 4 % 4]);
        let params = Arc::new(SamplingParams {
            presence_penalty: presence,
            frequency_penalty: frequency,
            ..SamplingParams::default()
        });
        let edited = reference::edited(&logits, logits.len(), &case.row(&params)).unwrap();
        for (token, (l, edited)) in logits.iter().zip(edited).enumerate() {
            let c = case.history[case.num_prompt..].iter().filter(|t| **t as usize == token).count();
            let formula = l - frequency * c as f32 - if c > 0 { presence } else { 0.0 };
            assert!(formula == edited || (formula - edited).abs() <= 1e-5, "case {i}, token {token}: {edited}");
        }
    }
}

/// `min_tokens`: stop tokens are impossible before, possible after; never all that is left to draw from.
#[test]
fn stop_tokens_wait_for_min_tokens() {
    let params = |min_tokens, stop: &[TokenId]| {
        Arc::new(SamplingParams {
            min_tokens,
            stop_token_ids: stop.to_vec(),
            logprobs: Some(1),
            ..SamplingParams::default()
        })
    };
    let sample = |params: &Arc<SamplingParams>, logits: &[f32], position, mask: Option<&[u32]>| {
        let row = SampleRow {
            row: 0,
            seq: SeqId(1),
            params,
            history: &[1, 1, 0],
            drafts: &[],
            num_prompt: 2,
            position,
            mask,
        };
        let out = Sampler::new(4).sample_row(&mut logits.to_vec(), &row, &mut Scratch::default());
        assert_eq!(out, reference::sample_row(logits, 4, &row));
        match out {
            RowOut::Tokens(tokens) => tokens[0].clone(),
            other => panic!("{other:?}"),
        }
    };
    let logits = [1.0, 2.0, 5.0, 4.0];
    let two = params(3, &[2, 3, 2, 99]);
    // The position counts, not the history: a token in flight is not in it yet.
    for (position, token) in [(2, 1), (3, 1), (4, 1), (5, 2), (6, 2)] {
        assert_eq!(sample(&two, &logits, position, None).token, token, "position {position}");
    }
    // Log-probabilities are still those of the raw logits.
    assert_eq!(sample(&two, &logits, 2, None).top[0].0, 2);
    // The mask leaves nothing else: the best stop token it allows.
    assert_eq!(sample(&two, &logits, 2, Some(&[0b1000])).token, 3);
    assert_eq!(sample(&two, &logits, 2, Some(&[0b1100])).token, 2);
    assert_eq!(sample(&two, &[f32::NEG_INFINITY, f32::NEG_INFINITY, -7.0, -8.0], 2, None).token, 2);
}
