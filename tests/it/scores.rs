//! Prompt log-probabilities and pooled hidden states through the engine: against transformers, and to the bit the
//! same however a prompt is cut, cached, preempted or accompanied.

use lima::engine::{Pooling, Request, SamplingParams, Task, TokenId};
use lima::model::weights::Checkpoint;
use lima::ops::cpu::level::Level;
use lima::ops::quant::DType;
use serde::Deserialize;

use crate::support::engine::{Output, Running, Setting};
use crate::support::goldens;

const BASE: Setting = Setting {
    dtype: DType::F32,
    kv: None,
    level: Level::Scalar,
    threads: 1,
    max_num_batched_tokens: 512,
    num_blocks: 64 * 5,
    prefix_caching: false,
    speculation: lima::engine::Speculation::OFF,
};

fn base(dtype: DType) -> Setting {
    Setting { dtype, level: Level::best(), ..BASE }
}

fn scored(prompt: &[TokenId], top: u32, max_tokens: u32) -> Request {
    let params = SamplingParams { max_tokens, logprobs: Some(1), ..SamplingParams::default() };
    Request { task: Task::Generate { prompt_logprobs: Some(top) }, ..Request::generate(prompt, params) }
}

fn embedded(prompt: &[TokenId], pooling: Pooling) -> Request {
    Request { task: Task::Embed(pooling), ..Request::generate(prompt, SamplingParams::default()) }
}

/// What transformers computed for one prompt; not normalised.
#[derive(Deserialize)]
struct Pooled {
    prompt: Vec<TokenId>,
    mean: Vec<f32>,
    last: Vec<f32>,
}

fn pooled_goldens(name: &str) -> Vec<Pooled> {
    let text = std::fs::read_to_string(goldens::path("embeddings.json")).unwrap();
    let all: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    serde_json::from_value(all[name].clone()).unwrap()
}

/// The largest difference of log-probability from a sequence's goldens.
fn compare_scores(output: &Output, golden: &goldens::Sequence, small: bool) -> f32 {
    assert_eq!(output.scores.len() + 1, golden.prompt.len(), "one entry a token but the first");
    let mut worst = 0.0_f32;
    for (i, (token, bits, rank, top)) in output.scores.iter().enumerate() {
        assert_eq!(*token, golden.prompt[i + 1]);
        let logprob = f32::from_bits(*bits);
        worst = worst.max((logprob - golden.next[i]).abs());
        assert_eq!(top.len(), 5);
        assert!(top.is_sorted_by(|a, b| f32::from_bits(a.1) >= f32::from_bits(b.1)));
        match top.iter().position(|t| t.0 == *token) {
            Some(place) => assert_eq!((*rank as usize, top[place].1), (place + 1, *bits)),
            None => assert!(*rank > 5),
        }
        if small {
            for ((_, ours), (_, theirs)) in top.iter().zip(&golden.top[i]) {
                worst = worst.max((f32::from_bits(*ours) - theirs).abs());
            }
        }
    }
    worst
}

#[test]
fn prompt_logprobs_of_small_models_equal_transformers() {
    for name in goldens::SMALL {
        let checkpoint = Checkpoint::open(goldens::path(name)).unwrap();
        let sequences = goldens::small(name);
        let requests: Vec<_> = sequences.iter().map(|s| scored(&s.prompt, 5, 1)).collect();
        for batched in [512, 7] {
            let engine = Running::start(&checkpoint, Setting { max_num_batched_tokens: batched, ..base(DType::F32) });
            for (golden, (output, _)) in sequences.iter().zip(engine.ask(&requests)) {
                let worst = compare_scores(&output, golden, true);
                assert!(worst <= 1e-4, "{name} by {batched}: {worst}");
            }
        }
    }
}

#[test]
fn pooled_states_of_small_models_equal_transformers() {
    for name in goldens::SMALL {
        let checkpoint = Checkpoint::open(goldens::path(name)).unwrap();
        let engine = Running::start(&checkpoint, Setting { max_num_batched_tokens: 30, ..base(DType::F32) });
        compare_pooled(&engine, name, 1e-4);
    }
}

fn compare_pooled(engine: &Running, name: &str, tolerance: f32) {
    for golden in pooled_goldens(name) {
        let requests = [embedded(&golden.prompt, Pooling::Mean), embedded(&golden.prompt, Pooling::Last)];
        for ((output, _), expected) in engine.ask(&requests).into_iter().zip([golden.mean, golden.last]) {
            assert!(output.tokens.is_empty() && output.scores.is_empty());
            let got: Vec<f32> = output.pooled.unwrap().into_iter().map(f32::from_bits).collect();
            assert_eq!(got.len(), expected.len());
            let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let size = expected.iter().map(|v| v.abs()).fold(0.0, f32::max);
            println!("{name}: {worst} of {size}");
            assert!(worst <= tolerance * size.max(1.0), "{name}: {worst} of {size}");
        }
    }
}

#[test]
fn the_default_model_in_f32_equals_transformers() {
    let checkpoint = Checkpoint::open(goldens::default_model()).unwrap();
    let engine = Running::start(&checkpoint, Setting { threads: 2, ..base(DType::F32) });
    let sequences: Vec<_> = goldens::default_sequences().into_iter().filter(|s| s.prompt.len() < 150).take(6).collect();
    let requests: Vec<_> = sequences.iter().map(|s| scored(&s.prompt, 5, 0)).collect();
    for (golden, (output, _)) in sequences.iter().zip(engine.ask(&requests)) {
        let worst = compare_scores(&output, golden, false);
        println!("{} tokens: {worst}", golden.prompt.len());
        assert!(worst <= 2e-3, "{worst}");
        assert!(output.tokens.is_empty());
    }
    compare_pooled(&engine, "default", 1e-3);
}

/// Requests of every kind, side by side: scored, only scored, pooled both ways, plain.
fn crowd(count: usize, vocab: usize, long: u32) -> Vec<Request> {
    let prompt = |i: usize| -> Vec<TokenId> {
        // The first in a family shares its blocks with the next ones.
        let family = i / 5;
        (0..40 + family * 19 % 61).map(|k| ((family * 7919 + k * k * 31 + k * 7 + 3) % vocab) as TokenId).collect()
    };
    let one = |i: usize| match i % 5 {
        0 => scored(&prompt(i), 3, long),
        1 => scored(&prompt(i), 0, 0),
        2 => embedded(&prompt(i), Pooling::Mean),
        3 => embedded(&prompt(i), Pooling::Last),
        _ => Request { task: Task::default(), ..scored(&prompt(i), 0, long) },
    };
    (0..count).map(one).collect()
}

#[test]
fn scores_and_states_depend_on_the_prompt_alone() {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    let requests = crowd(30, checkpoint.config().vocab_size, 40);
    for dtype in [DType::F32, DType::Q4_1] {
        let alone = Running::start(&checkpoint, base(dtype));
        let expected: Vec<Output> = requests.iter().map(|r| alone.ask(std::slice::from_ref(r)).remove(0).0).collect();
        drop(alone);
        assert!(expected.iter().step_by(5).all(|o| !o.scores.is_empty() && o.tokens.len() == 40));
        for (name, setting) in [
            ("together", Setting { threads: 2, ..base(dtype) }),
            ("by 16", Setting { max_num_batched_tokens: 16, ..base(dtype) }),
            ("cached, by 48", Setting { max_num_batched_tokens: 48, prefix_caching: true, threads: 2, ..base(dtype) }),
            ("preempted", Setting { num_blocks: 6, ..base(dtype) }),
            ("preempted, by 9", Setting { num_blocks: 6, max_num_batched_tokens: 9, ..base(dtype) }),
            (
                "preempted, cached, by 9",
                Setting { num_blocks: 6, max_num_batched_tokens: 9, prefix_caching: true, ..base(dtype) },
            ),
        ] {
            let engine = Running::start(&checkpoint, setting);
            for round in 0..2 {
                for (i, (output, cached)) in engine.ask(&requests).into_iter().enumerate() {
                    assert!(output == expected[i], "request {i} differs {name}, {dtype:?}, round {round}");
                    if matches!(i % 5, 0..3) {
                        assert_eq!(cached, 0, "request {i} needs what the cache does not have");
                    } else if setting.prefix_caching && round == 1 && setting.num_blocks > 6 {
                        assert!(cached >= 32, "request {i} finds its prompt");
                    }
                }
            }
            // With the cache, sequences share enough to fit.
            let (scarce, preempted) = (setting.num_blocks == 6, engine.preemptions() > 0);
            assert!(preempted == scarce || scarce && setting.prefix_caching, "{name}");
        }
    }
}
