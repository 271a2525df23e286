//! Time to sample one row.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use lima::engine::{SampleInput, SampleRow, SamplingParams, SeqId, TokenId};
use lima::runner::sampler::{Sampler, Scratch, philox};

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

fn sampler(c: &mut Criterion) {
    let plain = SamplingParams::default();
    let cases = [
        ("greedy", plain.clone()),
        ("lima", SamplingParams { temperature: 0.7, top_p: 0.9, repetition_penalty: 1.2, ..plain.clone() }),
        ("top_k_40", SamplingParams { temperature: 1.0, top_k: 40, ..plain.clone() }),
        ("temperature_1", SamplingParams { temperature: 1.0, ..plain.clone() }),
        ("greedy_logprobs_5", SamplingParams { logprobs: Some(5), ..plain }),
    ];
    for vocab in [49_152, 128_256] {
        let mut group = c.benchmark_group(format!("sampler/{vocab}"));
        group.throughput(Throughput::Elements(vocab as u64)).warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(1)).sample_size(20);
        let logits = logits(vocab);
        let history: Vec<TokenId> = (0..500).map(|i| (i * 91) % vocab as TokenId).collect();
        for (name, params) in &cases {
            let params = Arc::new(params.clone());
            let mut sampler = Sampler::new(vocab);
            let mut scratch = Scratch::default();
            let mut row = SampleRow {
                row: 0,
                seq: SeqId(1),
                params: &params,
                history: &history,
                num_prompt: 250,
                position: 500,
                mask: None,
            };
            sampler.prepare(&SampleInput { rows: vec![row.clone()] });
            group.bench_function(*name, |b| {
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
criterion_main!(benches);
