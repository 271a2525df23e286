//! Steps of a real model without an engine: sequence `i` owns the blocks from `i * blocks_each` on.

use std::sync::Arc;

use lima::engine::{
    BLOCK_SIZE, BlockId, Executor, Row, RowOut, SampleInput, SampleRow, SamplingParams, SeqId, StepInput, TokenSource,
    Want,
};
use lima::runner::CpuExecutor;

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
    let params = Arc::new(SamplingParams::default());
    let mut input = StepInput::default();
    for (i, new) in tokens.iter().enumerate() {
        push(&mut input, i, new, start, blocks_each, Want::Sample { last: 1 });
    }
    let rows = (0..tokens.len()).map(|row| SampleRow {
        row,
        seq: SeqId(row as u64),
        params: &params,
        history: &[],
        num_prompt: 0,
        position: start + tokens[row].len(),
        mask: None,
    });
    let sample = SampleInput { rows: rows.collect() };
    executor.forward(&input).expect("a step succeeds");
    let ticket = executor.sample(&sample).expect("sampling succeeds");
    let out = executor.collect(ticket).expect("the step is in flight");
    let token = |r: &RowOut| match r {
        RowOut::Tokens(t) => t[0].token,
        other => panic!("no token: {other:?}"),
    };
    out.rows.iter().map(token).collect()
}

/// Prefills sequence `i` without sampling.
pub fn fill(executor: &mut CpuExecutor, i: usize, tokens: &[u32], start: usize, blocks_each: usize) {
    let mut input = StepInput::default();
    push(&mut input, i, tokens, start, blocks_each, Want::None);
    executor.forward(&input).expect("a step succeeds");
    let ticket = executor.sample(&SampleInput::default()).expect("sampling succeeds");
    executor.collect(ticket).expect("the step is in flight");
}
