//! Prefill and decode speed of a model, as `llama-bench` measures it:
//!
//! `cargo bench --bench throughput -- MODEL... [-p 512] [-n 128] [-b 1] [-d 0] [-t THREADS] [-r 5] [--kv f32|bf16|int8] [--json]`
//!
//! For each model: tokens per second of one prompt of `-p` tokens, and of `-n` decode steps of `-b` sequences
//! that already hold `-d` tokens; the median of `-r` runs. A table, or with `--json` one object a line.

use std::time::Instant;

use lima::engine::BLOCK_SIZE;
use lima::model::weights::Checkpoint;
use lima::ops::cpu::kv::KvType;
use lima::ops::cpu::level::Level;
use lima::runner::{RunnerOptions, load};
use serde_json::json;

mod support;

use support::{fill, step};

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench").peekable();
    let (mut p, mut n, mut b, mut d, mut r, mut threads, mut models) = (512, 128, 1, 0, 5, None, Vec::new());
    let (mut as_json, mut kv_cache) = (false, None);
    while let Some(arg) = args.next() {
        let number = |args: &mut dyn Iterator<Item = String>| {
            args.next().and_then(|v| v.parse::<usize>().ok()).expect("a number after the flag")
        };
        match arg.as_str() {
            "-p" => p = number(&mut args),
            "-n" => n = number(&mut args),
            "-b" => b = number(&mut args),
            "-d" => d = number(&mut args),
            "-r" => r = number(&mut args),
            "-t" => threads = Some(number(&mut args)),
            "--json" => as_json = true,
            "--kv" => {
                let name = args.next().expect("a type after --kv");
                let kinds = [KvType::F32, KvType::BF16, KvType::Int8];
                kv_cache = Some(kinds.into_iter().find(|k| k.name() == name).expect("f32, bf16 or int8"));
            }
            _ => models.push(arg),
        }
    }
    let level = Level::from_env().expect("LIMA_CPU_LEVEL names a level of this machine");
    if !as_json {
        println!("| model | level | prefill {p}, tok/s | decode {n} × {b} at {d}, tok/s |\n|---|---|---|---|");
    }
    for path in models {
        let checkpoint = Checkpoint::open(&path).expect("the model loads");
        let config = checkpoint.config().clone();
        let len = (p.max(d + n)).next_multiple_of(BLOCK_SIZE).min(config.max_position_embeddings);
        let options = RunnerOptions {
            threads,
            dtype: None,
            kv_cache,
            max_model_len: Some(len),
            max_num_batched_tokens: p.max(512),
            max_num_seqs: b.max(1),
            kv_cache_memory: None,
            level,
        };
        let loaded = load(&checkpoint, &options, |_| ()).expect("the model fits");
        let (mut executor, used) = (loaded.executor, loaded.threads);
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
        let rate = |mut x: Vec<f64>| (!x.is_empty()).then(|| median(x.split_off(1)));
        let (prefill, decode) = (rate(prefill), rate(decode));
        if as_json {
            let line = json!({
                "model": path, "kv_cache": loaded.kv_cache.name(), "level": level.to_string(), "threads": used, "runs": r,
                "n_prompt": p, "n_gen": n, "batch": b, "depth": d,
                "prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode,
            });
            println!("{line}");
            continue;
        }
        let show = |x: Option<f64>| x.map_or("–".to_string(), |x| format!("{x:.1}"));
        let name = std::path::Path::new(&path).file_name().map_or(path.clone(), |n| n.to_string_lossy().into());
        println!("| {name} | {level} | {} | {} |", show(prefill), show(decode));
    }
}
