//! Time to sample one row; then the sampler's share of decode steps of 64 rows of the default model, on real text.
//!
//! `cargo bench --bench sampler -- share` prints the latter alone. The model is `LIMA_TEST_MODEL`'s, else the default
//! one, fetched if need be. `LIMA_THREADS` and `LIMA_CPU_LEVEL` as for `lima`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use lima::engine::{BLOCK_SIZE, SampleInput, SampleRow, SamplingParams, SeqId, TokenId};
use lima::runner::sampler::{Sampler, Scratch, philox};

mod support;

use support::{default_model, fill, sampled_step, step};

/// Roughly normal logits with a few likely tokens, as a language model gives.
fn logits(vocab: usize) -> Vec<f32> {
    (0..vocab as u64)
        .map(|i| {
            let normal: f64 = (0..6).map(|k| philox::uniform(1, k, i) - 0.5).sum();
            let peak = if i % 997 == 0 { 9.0 } else { 0.0 };
            (normal * 3.0 + peak) as f32
        })
        .collect()
}

fn cases() -> [(&'static str, SamplingParams); 5] {
    let plain = SamplingParams::default();
    [
        ("greedy", plain.clone()),
        ("lima", SamplingParams { temperature: 0.7, top_p: 0.9, repetition_penalty: 1.2, ..plain.clone() }),
        ("top_k_40", SamplingParams { temperature: 1.0, top_k: 40, ..plain.clone() }),
        ("temperature_1", SamplingParams { temperature: 1.0, ..plain.clone() }),
        ("greedy_logprobs_5", SamplingParams { logprobs: Some(5), ..plain }),
    ]
}

fn sampler(c: &mut Criterion) {
    for vocab in [49_152, 128_256] {
        let mut group = c.benchmark_group(format!("sampler/{vocab}"));
        group.throughput(Throughput::Elements(vocab as u64)).warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(1)).sample_size(20);
        let logits = logits(vocab);
        let history: Vec<TokenId> = (0..500).map(|i| (i * 91) % vocab as TokenId).collect();
        for (name, params) in cases() {
            let params = Arc::new(params);
            let mut sampler = Sampler::new(vocab);
            let mut scratch = Scratch::default();
            let mut row = SampleRow {
                row: 0,
                seq: SeqId(1),
                params: &params,
                history: &history,
                drafts: &[],
                num_prompt: 250,
                position: 500,
                mask: None,
            };
            sampler.prepare(&SampleInput { rows: vec![row.clone()] });
            group.bench_function(name, |b| {
                b.iter_batched_ref(
                    || logits.clone(),
                    |logits| {
                        row.position += 1;
                        black_box(sampler.sample_row(logits, &row, &mut scratch))
                    },
                    BatchSize::SmallInput,
                );
            });
        }
        group.finish();
    }
}

criterion_group!(benches, sampler);

const ROWS: usize = 64;
const DEPTH: usize = 128;
const STEPS: usize = 20;

/// Steps of [`ROWS`] sequences that hold [`DEPTH`] tokens of a book each.
fn share() {
    let (_, loaded) = default_model(2 * DEPTH, ROWS);
    let (mut executor, threads) = (loaded.executor, loaded.threads);
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/perplexity.json");
    let text = std::fs::read_to_string(text).expect("the text is in the repository");
    let text: serde_json::Value = serde_json::from_str(&text).expect("the text is JSON");
    let tokens: Vec<u32> = serde_json::from_value(text["tokens"].clone()).expect("the text has tokens");
    let histories: Vec<Vec<u32>> = tokens.chunks_exact(DEPTH).take(ROWS).map(<[u32]>::to_vec).collect();
    let each = 2 * DEPTH / BLOCK_SIZE;
    for (i, history) in histories.iter().enumerate() {
        fill(&mut executor, i, &history[..DEPTH - 1], 0, each);
    }
    let last: Vec<Vec<u32>> = histories.iter().map(|h| h[DEPTH - 1..].to_vec()).collect();
    step(&mut executor, &last, DEPTH - 1, each);

    println!("\nDecode steps of {ROWS} sequences of {DEPTH} tokens, {threads} threads, medians of {STEPS}:\n");
    println!(
        "| sampling | forward, ms | sampler, ms | share of the step | a row of a thread, µs |\n|---|--:|--:|--:|--:|"
    );
    for (name, params) in cases() {
        let mut times: Vec<[Duration; 2]> = (0..STEPS as u64)
            .map(|seed| {
                let params = Arc::new(SamplingParams { seed, ..params.clone() });
                sampled_step(&mut executor, &last, DEPTH - 1, each, &params, &histories).1
            })
            .collect();
        let [forward, sampler] = [0, 1].map(|part| {
            times.sort_by_key(|t| t[part]);
            times[STEPS / 2][part].as_secs_f64() * 1e3
        });
        let (share, row) = (100.0 * sampler / (forward + sampler), 1e3 * sampler * threads as f64 / ROWS as f64);
        println!("| {name} | {forward:.2} | {sampler:.3} | {share:.2} % | {row:.1} |");
    }
}

fn main() {
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if filter != ["share"] {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
    if filter.is_empty() || filter == ["share"] {
        share();
    }
}
