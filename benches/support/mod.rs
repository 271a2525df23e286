//! Steps of a real model without an engine: sequence `i` owns the blocks from `i * blocks_each` on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lima::engine::{
    BLOCK_SIZE, BlockId, Executor, Row, RowOut, SampleInput, SampleRow, SamplingParams, SeqId, StepInput, TokenSource,
    Want,
};
use lima::hub::{self, DEFAULT_MODEL};
use lima::model::config::LlamaConfig;
use lima::model::weights::Checkpoint;
use lima::ops::cpu::level::Level;
use lima::runner::{CpuExecutor, Loaded, RunnerOptions, load};

/// `LIMA_TEST_MODEL`'s model, else the default one, fetched if need be, with room for `seqs` sequences of `len` tokens.
/// `LIMA_THREADS` and `LIMA_CPU_LEVEL` as for `lima`.
#[allow(dead_code)] // Some benches name their models.
pub fn default_model(len: usize, seqs: usize) -> (LlamaConfig, Loaded) {
    let source = std::env::var("LIMA_TEST_MODEL").unwrap_or_else(|_| DEFAULT_MODEL.into());
    let source = source.parse().expect("LIMA_TEST_MODEL names a model");
    let path = hub::resolve(&source, &|_| ()).expect("the model can be had");
    let checkpoint = Checkpoint::open(&path).expect("the model loads");
    let options = RunnerOptions {
        threads: std::env::var("LIMA_THREADS").ok().map(|n| n.parse().expect("LIMA_THREADS is a number")),
        dtype: None,
        kv_cache: None,
        max_model_len: Some(len),
        max_num_batched_tokens: 512,
        max_num_seqs: seqs,
        kv_cache_memory: None,
        level: Level::from_env().expect("LIMA_CPU_LEVEL names a level of this machine"),
    };
    (checkpoint.config().clone(), load(&checkpoint, &options, |_| ()).expect("the model fits"))
}

/// Adds sequence `i`'s tokens from position `start` on to a step.
fn push(input: &mut StepInput, i: usize, tokens: &[u32], start: usize, blocks_each: usize, want: Want) {
    let (from, blocks) = (input.tokens.len(), input.blocks.len());
    input.tokens.extend(tokens);
    let needed = (start + tokens.len()).div_ceil(BLOCK_SIZE);
    assert!(needed <= blocks_each, "a sequence stays within its blocks");
    input.blocks.extend((0..needed).map(|b| BlockId((i * blocks_each + b) as u32)));
    input.rows.push(Row {
        seq: SeqId(i as u64),
        tokens: TokenSource::Host(from..input.tokens.len()),
        start,
        len: tokens.len(),
        blocks: blocks..input.blocks.len(),
        want,
        score: None,
        adapter: None,
    });
}

/// A step over sequences `0..tokens.len()`, all at position `start`; returns the most likely next tokens.
pub fn step(executor: &mut CpuExecutor, tokens: &[Vec<u32>], start: usize, blocks_each: usize) -> Vec<u32> {
    sampled_step(executor, tokens, start, blocks_each, &Arc::default(), &[]).0
}

/// The same with parameters, and each sequence's tokens so far (or none), half of them its prompt. Returns the
/// next tokens, and how long forward pass and sampler took.
pub fn sampled_step(
    executor: &mut CpuExecutor,
    tokens: &[Vec<u32>],
    start: usize,
    blocks_each: usize,
    params: &Arc<SamplingParams>,
    histories: &[Vec<u32>],
) -> (Vec<u32>, [Duration; 2]) {
    let mut input = StepInput::default();
    for (i, new) in tokens.iter().enumerate() {
        push(&mut input, i, new, start, blocks_each, Want::Sample { last: 1 });
    }
    let rows = (0..tokens.len()).map(|row| SampleRow {
        row,
        seq: SeqId(row as u64),
        params,
        history: histories.get(row).map_or(&[], Vec::as_slice),
        drafts: &[],
        num_prompt: histories.get(row).map_or(0, |h| h.len() / 2),
        position: start + tokens[row].len(),
        mask: None,
    });
    let sample = SampleInput { rows: rows.collect() };
    let began = Instant::now();
    executor.forward(&input).expect("a step succeeds");
    let forward = began.elapsed();
    let ticket = executor.sample(&sample).expect("sampling succeeds");
    let sampler = began.elapsed() - forward;
    let out = executor.collect(ticket).expect("the step is in flight");
    let token = |r: &RowOut| match r {
        RowOut::Tokens(t) => t[0].token,
        other => panic!("no token: {other:?}"),
    };
    (out.rows.iter().map(token).collect(), [forward, sampler])
}

/// Prefills sequence `i` without sampling.
pub fn fill(executor: &mut CpuExecutor, i: usize, tokens: &[u32], start: usize, blocks_each: usize) {
    let mut input = StepInput::default();
    push(&mut input, i, tokens, start, blocks_each, Want::None);
    executor.forward(&input).expect("a step succeeds");
    let ticket = executor.sample(&SampleInput::default()).expect("sampling succeeds");
    executor.collect(ticket).expect("the step is in flight");
}
