//! Drafts change nothing but time: with them every request gets, to the bit, what it gets without.

use std::sync::atomic::Ordering::Relaxed;

use lima::engine::{DraftCost, Request, SamplingParams, Speculation, Task, TokenId};
use lima::model::weights::Checkpoint;
use lima::ops::cpu::kv::KvType;
use lima::ops::cpu::level::Level;
use lima::ops::quant::DType;

use crate::support::engine::{MAX_LEN, Output, Running, Setting};
use crate::support::goldens;

fn base(dtype: DType, kv: Option<KvType>) -> Setting {
    Setting {
        dtype,
        kv,
        level: Level::best(),
        threads: 1,
        max_num_batched_tokens: 512,
        num_blocks: 64 * 5,
        prefix_caching: false,
        speculation: Speculation::OFF,
    }
}

/// Prompts that repeat themselves, and parameters of every kind. Biases leave some of them two or three tokens to
/// choose among, so that drafts are right now and then.
fn requests(vocab: usize) -> Vec<Request> {
    let request = |i: usize| {
        let bias = |n: usize| (0..n).map(|k| (((i * 31 + k * 17) % vocab) as TokenId, 100.0)).collect::<Vec<_>>();
        let plain = SamplingParams { max_tokens: 40, seed: i as u64, ..SamplingParams::default() };
        let params = match i % 7 {
            0 => SamplingParams { logprobs: Some(2), ..plain },
            1 => SamplingParams { temperature: 1.0, logit_bias: bias(3), logprobs: Some(3), ..plain },
            2 => SamplingParams {
                temperature: 1.5,
                logit_bias: bias(2),
                repetition_penalty: 1.1,
                frequency_penalty: 2.0,
                presence_penalty: 0.5,
                logprobs: Some(0),
                ..plain
            },
            3 => SamplingParams {
                temperature: 1.0,
                logit_bias: bias(3),
                min_tokens: 12,
                stop_token_ids: vec![bias(3)[2].0],
                ..plain
            },
            4 => SamplingParams { repetition_penalty: 1.3, logprobs: Some(1), ..plain },
            5 => SamplingParams { temperature: 0.7, top_p: 0.9, top_k: 5, logprobs: Some(1), ..plain },
            // To the end of the context.
            _ => SamplingParams { max_tokens: 1000, logit_bias: bias(1), logprobs: Some(0), ..plain },
        };
        let prompt = (0..40 + i * 23 % 61).map(|k| ((k % 7 * 11 + i) % vocab) as TokenId);
        let request = Request::generate(prompt.collect::<Vec<_>>(), params);
        let prompt_logprobs = (i % 5 == 4).then_some(1);
        Request { task: Task::Generate { prompt_logprobs }, ..request }
    };
    (0..14).map(request).collect()
}

fn answers(engine: &Running, requests: &[Request]) -> Vec<Output> {
    engine.ask(requests).into_iter().map(|(output, _)| output).collect()
}

fn compare(name: &str, base: Setting) {
    let checkpoint = Checkpoint::open(goldens::path(name)).unwrap();
    let requests = requests(checkpoint.config().vocab_size);
    let without = Running::start(&checkpoint, base);
    let expected = answers(&without, &requests);
    assert_eq!(without.handle.stats().drafts.load(Relaxed), 0);
    drop(without);
    assert!(expected.iter().zip(&requests).any(|(o, r)| o.tokens.len() + r.prompt.len() == MAX_LEN));

    let free = Speculation { max_tokens: 6, cost: DraftCost::Percent(0) };
    let settings = [
        ("all drafts", Setting { speculation: free, ..base }),
        ("some drafts", Setting { speculation: Speculation { cost: DraftCost::Percent(15), ..free }, ..base }),
        ("as it pays", Setting { speculation: Speculation { cost: DraftCost::Measured, ..free }, ..base }),
        (
            "by 16, cached",
            Setting { max_num_batched_tokens: 16, threads: 2, prefix_caching: true, speculation: free, ..base },
        ),
        ("preempted", Setting { num_blocks: 9, prefix_caching: true, speculation: free, ..base }),
    ];
    for (how, setting) in settings {
        let engine = Running::start(&checkpoint, setting);
        for round in 0..2 {
            let found = answers(&engine, &requests);
            for (i, (expected, found)) in expected.iter().zip(&found).enumerate() {
                assert!(expected == found, "{name}, {how}, round {round}, request {i}:\n{expected:?}\n{found:?}");
            }
        }
        let stats = engine.handle.stats();
        let (drafted, accepted) = (stats.draft_tokens.load(Relaxed), stats.accepted_draft_tokens.load(Relaxed));
        if setting.speculation.cost == DraftCost::Percent(0) {
            assert!(0 < accepted && accepted < drafted, "{how}: {accepted} of {drafted} drafts were right");
        }
        assert_eq!(engine.preemptions() > 0, how == "preempted", "{how}");
    }
}

#[test]
fn every_format_gives_the_same() {
    for dtype in [DType::F32, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1] {
        compare("gqa", base(dtype, None));
    }
    compare("gqa", base(DType::Q4_1, Some(KvType::Int8)));
}

#[test]
fn other_shapes_and_levels_give_the_same() {
    for name in ["mqa-odd", "llama3"] {
        compare(name, base(DType::Q4_1, None));
    }
    for level in Level::available() {
        compare("gqa", Setting { level, ..base(DType::Q8_0, None) });
    }
}
