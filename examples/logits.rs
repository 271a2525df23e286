//! Logits of prompts as raw numbers, for comparing with other programs:
//!
//! `cargo run --release --example logits -- MODEL --prompts FILE.json [--out FILE] [--dtype auto] [--kv auto]
//! [--threads N] [--nll-from 1]`
//!
//! `FILE.json` holds lists of token ids. The output has the logits after each token of each prompt, in order, one F32
//! (little-endian) for each row of the vocabulary. One line of JSON on standard output says how long loading took,
//! what memory it took, and each prompt's negative log-likelihood from the token at index `--nll-from` on.
//! `scripts/checkpoint-table` reads both; `scripts/compare-perplexity`, without `--out`, the line.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::time::Instant;

use anyhow::{Context, bail};
use lima::engine::{BlockId, Executor, Row, SampleInput, SeqId, StepInput, TokenSource, Want};
use lima::model::weights::Checkpoint;
use lima::ops::cpu::kv::KvType;
use lima::ops::cpu::level::Level;
use lima::ops::quant::DType;
use lima::runner::{RunnerOptions, load};
use serde_json::json;

/// Tokens of a step; all of them get logits.
const CHUNK: usize = 64;

/// Bytes of this process that belong to no file.
fn rss_anon() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

fn parse_dtype(name: &str) -> anyhow::Result<Option<DType>> {
    Ok(match name {
        "auto" => None,
        "f32" => Some(DType::F32),
        "bf16" => Some(DType::BF16),
        "q8_0" => Some(DType::Q8_0),
        "q4_0" => Some(DType::Q4_0),
        other => bail!("--dtype {other} is none of auto, f32, bf16, q8_0, q4_0"),
    })
}

fn parse_kv(name: &str) -> anyhow::Result<Option<KvType>> {
    let kinds = [KvType::F32, KvType::BF16, KvType::Int8];
    match name {
        "auto" => Ok(None),
        name => kinds.into_iter().find(|k| k.name() == name).map(Some).context("--kv is auto, f32, bf16 or int8"),
    }
}

/// -ln of the probability of a token.
fn nll(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - largest).exp()).sum();
    sum.ln() - f64::from(logits[token as usize] - largest)
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (mut model, mut prompts, mut out, mut threads) = (None, None, None, None);
    let (mut dtype, mut kv, mut nll_from) = ("auto".to_owned(), "auto".to_owned(), 1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--prompts" => prompts = Some(value()?),
            "--out" => out = Some(value()?),
            "--dtype" => dtype = value()?,
            "--kv" => kv = value()?,
            "--nll-from" => nll_from = value()?.parse()?,
            "--threads" => threads = Some(value()?.parse()?),
            _ => model = Some(arg),
        }
    }
    let (model, prompts) = (model.context("a model is needed")?, prompts.context("--prompts is needed")?);
    let prompts: Vec<Vec<u32>> = serde_json::from_str(&fs::read_to_string(prompts)?)?;
    let mut out = out.map(File::create).transpose()?.map(BufWriter::new);

    let before = rss_anon();
    let started = Instant::now();
    let checkpoint = Checkpoint::open(&model)?;
    let longest = prompts.iter().map(Vec::len).max().context("there are no prompts")?;
    let options = RunnerOptions {
        threads,
        dtype: parse_dtype(&dtype)?,
        kv_cache: parse_kv(&kv)?,
        max_model_len: Some(longest),
        max_num_batched_tokens: CHUNK,
        max_num_seqs: CHUNK,
        kv_cache_memory: None,
        level: Level::from_env().map_err(anyhow::Error::msg)?,
    };
    let mut executor = load(&checkpoint, &options, |_| ())?.executor;
    let load_s = started.elapsed().as_secs_f64();
    let grown = rss_anon().saturating_sub(before);

    let started = Instant::now();
    let mut nlls = vec![0f64; prompts.len()];
    for (i, prompt) in prompts.iter().enumerate() {
        for (start, tokens) in (0..).step_by(CHUNK).zip(prompt.chunks(CHUNK)) {
            let end = start + tokens.len();
            let step = StepInput {
                tokens: tokens.to_vec(),
                blocks: (0..end.div_ceil(lima::engine::BLOCK_SIZE) as u32).map(BlockId).collect(),
                rows: vec![Row {
                    seq: SeqId(i as u64),
                    tokens: TokenSource::Host(0..tokens.len()),
                    start,
                    len: tokens.len(),
                    blocks: 0..end.div_ceil(lima::engine::BLOCK_SIZE),
                    want: Want::Sample { last: tokens.len() },
                    adapter: None,
                    score: None,
                }],
                ..StepInput::default()
            };
            executor.forward(&step)?;
            for (position, row) in (start..).zip(executor.logits()) {
                if let Some(&next) = prompt.get(position + 1).filter(|_| position + 1 >= nll_from) {
                    nlls[i] += nll(&row, next);
                }
                if let Some(out) = &mut out {
                    row.iter().try_for_each(|logit| out.write_all(&logit.to_le_bytes()))?;
                }
            }
            let ticket = executor.sample(&SampleInput::default())?;
            executor.collect(ticket)?;
        }
    }
    if let Some(out) = &mut out {
        out.flush()?;
    }
    let about = json!({
        "load_s": load_s, "rss_anon_grown": grown, "stored_bytes": checkpoint.total_bytes(),
        "vocab_size": checkpoint.config().vocab_size, "positions": prompts.iter().map(Vec::len).sum::<usize>(),
        "compute_s": started.elapsed().as_secs_f64(), "level": options.level.to_string(),
        "nll": nlls,
    });
    println!("{about}");
    Ok(())
}
