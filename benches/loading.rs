//! How long weights take to load, and how much memory:
//!
//! `cargo bench --bench loading -- MODEL... [--dtype auto,q8_0,...] [-t THREADS] [-r 3] [--json]`
//!
//! Each case is a process of its own. For each model and dtype: the median time of `-r` loads (the first, which may
//! find the file outside the page cache, is not counted), the bytes of the packed matrices, and by how much RssAnon
//! grew while loading: the highest of samples a millisecond apart. The KV pool is one sequence's and untouched, and no tokenizer is made. The bound is
//! 1.1 times the packed bytes and 64 MiB.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use lima::model::weights::Checkpoint;
use lima::ops::cpu::level::Level;
use lima::ops::quant::DType;
use lima::runner::{RunnerOptions, load};
use serde_json::{Value, json};

/// A line of /proc/self/status, in bytes.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("the system has /proc");
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).expect("the line exists");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number of kB") << 10
}

/// Loads one model and prints what that took.
fn one(path: &str, dtype: &str, threads: Option<usize>) {
    let converted = match dtype {
        "auto" => None,
        name => Some(DType::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(name)).expect("a dtype")),
    };
    let checkpoint = Checkpoint::open(path).expect("the model opens");
    let options = RunnerOptions {
        threads,
        dtype: converted,
        max_model_len: Some(32),
        max_num_batched_tokens: 512,
        max_num_seqs: 1,
        kv_cache: None,
        kv_cache_memory: None,
        level: Level::from_env().expect("LIMA_CPU_LEVEL names a level of this machine"),
    };
    let (done, most, most_file) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (before, file_before) = (status("RssAnon"), status("RssFile"));
    let (loaded, seconds) = std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Relaxed) {
                most.fetch_max(status("RssAnon"), Relaxed);
                most_file.fetch_max(status("RssFile"), Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let started = Instant::now();
        let loaded = load(&checkpoint, &options, |_| ());
        let seconds = started.elapsed().as_secs_f64();
        most.fetch_max(status("RssAnon"), Relaxed);
        done.store(true, Relaxed);
        (loaded.expect("the model loads"), seconds)
    });
    let line = json!({
        "model": path, "dtype": dtype, "threads": loaded.threads, "seconds": seconds,
        "stored_bytes": checkpoint.total_bytes(), "packed_bytes": loaded.weight_bytes,
        "rss_anon_growth": most.into_inner() - before, "rss_file_growth": most_file.into_inner() - file_before,
    });
    println!("{line}");
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let (mut models, mut dtypes, mut threads, mut runs) = (Vec::new(), "auto".to_owned(), None, 3);
    let (mut as_json, mut child) = (false, false);
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("a value after the flag");
        match arg.as_str() {
            "--dtype" => dtypes = value(),
            "-t" => threads = Some(value().parse().expect("a number of threads")),
            "-r" => runs = value().parse().expect("a number of runs"),
            "--json" => as_json = true,
            "--one" => child = true,
            _ => models.push(arg),
        }
    }
    if child {
        return one(&models[0], &dtypes, threads);
    }
    if !as_json {
        println!("| model | dtype | stored, MiB | packed, MiB | load, s | RssAnon growth, MiB | bound, MiB |");
        println!("|---|---|---|---|---|---|---|");
    }
    for model in &models {
        for dtype in dtypes.split(',') {
            let mut results: Vec<Value> = (0..=runs)
                .map(|_| {
                    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
                    command.args(["--one", model, "--dtype", dtype]);
                    threads.map(|n: usize| command.args(["-t", &n.to_string()]));
                    let out = command.output().expect("this program starts");
                    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
                    serde_json::from_slice(&out.stdout).expect("one line of JSON")
                })
                .collect();
            let grown = results.iter().filter_map(|r| r["rss_anon_growth"].as_u64()).max().unwrap_or(0);
            results.remove(0);
            results
                .sort_by(|a, b| a["seconds"].as_f64().unwrap_or(0.0).total_cmp(&b["seconds"].as_f64().unwrap_or(0.0)));
            let result = &results[results.len() / 2];
            if as_json {
                println!("{result}");
                continue;
            }
            let mib = |bytes: u64| bytes as f64 / 1048576.0;
            let number = |key: &str| mib(result[key].as_u64().unwrap_or(0));
            let packed = number("packed_bytes");
            let name = std::path::Path::new(model).file_name().map_or(model.clone(), |n| n.to_string_lossy().into());
            println!(
                "| {name} | {dtype} | {:.0} | {packed:.0} | {:.2} | {:.0} | {:.0} |",
                number("stored_bytes"),
                result["seconds"].as_f64().unwrap_or(0.0),
                mib(grown),
                1.1 * packed + 64.0
            );
        }
    }
}
