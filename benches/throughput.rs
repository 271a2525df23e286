//! Prefill and decode speed of a model, as `llama-bench` measures it:
//!
//! `cargo bench --bench throughput -- MODEL... [-p 512] [-n 128] [-b 1] [-d 0] [-t THREADS] [-r 5]`
//!
//! For each model: tokens per second of one prompt of `-p` tokens, and of `-n` decode steps of `-b` sequences
//! that already hold `-d` tokens; the median of `-r` runs.

use std::sync::Arc;
use std::time::Instant;

use lima::engine::{
    BLOCK_SIZE, BlockId, Executor, Row, SampleInput, SampleRow, SamplingParams, SeqId, StepInput, TokenSource, Want,
};
use lima::model::weights::Checkpoint;
use lima::ops::cpu::level::Level;
use lima::runner::{CpuExecutor, RunnerOptions, load};

/// A step over sequences `0..tokens.len()` at position `start`, each with blocks of its own.
fn step(executor: &mut CpuExecutor, tokens: &[Vec<u32>], start: usize, blocks_each: usize) -> Vec<u32> {
    let params = Arc::new(SamplingParams::default());
    let mut input = StepInput::default();
    for (i, new) in tokens.iter().enumerate() {
        let (from, blocks) = (input.tokens.len(), input.blocks.len());
        input.tokens.extend(new);
        let needed = (start + new.len()).div_ceil(BLOCK_SIZE);
        input.blocks.extend((0..needed).map(|b| BlockId((i * blocks_each + b) as u32)));
        input.rows.push(Row {
            seq: SeqId(i as u64),
            tokens: TokenSource::Host(from..input.tokens.len()),
            start,
            len: new.len(),
            blocks: blocks..input.blocks.len(),
            want: Want::Sample { last: 1 },
            adapter: None,
        });
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
    out.rows
        .iter()
        .map(|r| match r {
            lima::engine::RowOut::Tokens(t) => t[0].token,
            other => panic!("no token: {other:?}"),
        })
        .collect()
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench").peekable();
    let (mut p, mut n, mut b, mut d, mut r, mut threads, mut models) = (512, 128, 1, 0, 5, None, Vec::new());
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|v| v.parse::<usize>().ok()).expect("a number after the flag");
        match arg.as_str() {
            "-p" => p = number(),
            "-n" => n = number(),
            "-b" => b = number(),
            "-d" => d = number(),
            "-r" => r = number(),
            "-t" => threads = Some(number()),
            _ => models.push(arg),
        }
    }
    let level = Level::from_env().expect("LIMA_CPU_LEVEL names a level of this machine");
    println!("| model | level | prefill {p}, tok/s | decode {n} × {b} at {d}, tok/s |\n|---|---|---|---|");
    for path in models {
        let checkpoint = Checkpoint::open(&path).expect("the model loads");
        let config = checkpoint.config().clone();
        let len = (p.max(d + n)).next_multiple_of(BLOCK_SIZE).min(config.max_position_embeddings);
        let options = RunnerOptions {
            threads,
            format: None,
            max_model_len: Some(len),
            max_num_batched_tokens: p.max(512),
            max_num_seqs: b.max(1),
            kv_cache_memory: None,
            level,
        };
        let mut executor = load(&checkpoint, &options, |_| ()).expect("the model fits").executor;
        let each = len / BLOCK_SIZE;
        let token = |i: usize| (i * 7919 + 13) as u32 % config.vocab_size as u32;
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        for run in 0..=r {
            if p > 0 {
                let prompt = vec![(0..p).map(|i| token(i + run)).collect::<Vec<_>>()];
                let started = Instant::now();
                step(&mut executor, &prompt, 0, each);
                prefill.push(p as f64 / started.elapsed().as_secs_f64());
            }
            if n > 0 {
                let mut next: Vec<u32> = (0..b).map(token).collect();
                for from in (0..d).step_by(512) {
                    for i in 0..b {
                        // Sequences are filled one by one so that the step stays within the budget.
                        let mut chunk = vec![Vec::new(); b];
                        chunk[i] = (from..d.min(from + 512)).map(token).collect();
                        fill(&mut executor, i, &chunk[i], from, each);
                    }
                }
                let started = Instant::now();
                for i in 0..n {
                    let tokens: Vec<Vec<u32>> = next.iter().map(|t| vec![*t]).collect();
                    next = step(&mut executor, &tokens, d + i, each);
                }
                decode.push((n * b) as f64 / started.elapsed().as_secs_f64());
            }
        }
        // The first run warms up.
        let show = |mut x: Vec<f64>| match x.is_empty() {
            true => "–".to_string(),
            false => {
                x.remove(0);
                format!("{:.1}", median(x))
            }
        };
        let name = std::path::Path::new(&path).file_name().map_or(path.clone(), |n| n.to_string_lossy().into());
        println!("| {name} | {level} | {} | {} |", show(prefill), show(decode));
    }
}

/// Prefills sequence `i` without sampling.
fn fill(executor: &mut CpuExecutor, i: usize, tokens: &[u32], start: usize, blocks_each: usize) {
    let needed = (start + tokens.len()).div_ceil(BLOCK_SIZE);
    let input = StepInput {
        tokens: tokens.to_vec(),
        blocks: (0..needed).map(|b| BlockId((i * blocks_each + b) as u32)).collect(),
        rows: vec![Row {
            seq: SeqId(i as u64),
            tokens: TokenSource::Host(0..tokens.len()),
            start,
            len: tokens.len(),
            blocks: 0..needed,
            want: Want::None,
            adapter: None,
        }],
        ..Default::default()
    };
    executor.forward(&input).expect("a step succeeds");
    let ticket = executor.sample(&SampleInput::default()).expect("sampling succeeds");
    executor.collect(ticket).expect("the step is in flight");
}
