//! Whole steps of the default model, forward pass and greedy sampling: a prompt of 128 tokens, and decoding
//! of 1, 16 and 64 sequences that hold 128 tokens each. Elements are tokens.
//!
//! The model is `LIMA_TEST_MODEL`'s, else the default one, fetched if need be. `LIMA_THREADS` and
//! `LIMA_CPU_LEVEL` as for `lima`.

use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use lima::engine::BLOCK_SIZE;

mod support;

use support::{default_model, fill, step};

const DEPTH: usize = 128;
const SEQS: usize = 64;

fn steps(c: &mut Criterion) {
    let (config, loaded) = default_model(2 * DEPTH, SEQS);
    let (mut executor, vocab) = (loaded.executor, config.vocab_size);
    let each = 2 * DEPTH / BLOCK_SIZE;
    let token = |i: usize| ((i * 7919 + 13) % vocab) as u32;

    let mut group = c.benchmark_group("step");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));

    let prompt = vec![(0..DEPTH).map(token).collect::<Vec<_>>()];
    group.throughput(Throughput::Elements(DEPTH as u64));
    group.bench_function(format!("prefill/{DEPTH}"), |b| b.iter(|| step(&mut executor, &prompt, 0, each)));

    for i in 0..SEQS {
        let tokens: Vec<u32> = (0..DEPTH).map(|k| token(i * DEPTH + k)).collect();
        fill(&mut executor, i, &tokens, 0, each);
    }
    for rows in [1, 16, SEQS] {
        // Always the same position: it is overwritten by each step.
        let mut tokens: Vec<Vec<u32>> = (0..rows).map(|i| vec![token(i)]).collect();
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("decode/{rows}"), |b| {
            b.iter(|| {
                let next = step(&mut executor, &tokens, DEPTH, each);
                tokens.iter_mut().zip(next).for_each(|(old, new)| old[0] = new);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
