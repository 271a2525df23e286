//! Speed and memory of training: forward, backward and AdamW of all weights in F32.
//!
//! `cargo bench --bench train -- [--model MODEL] [-b 4] [-l 512] [-t THREADS] [-r 3] [--checkpointing] [--bf16]`
//!
//! Every round is a step over `-b` examples of `-l` random tokens, all of them learnt, and prints a line of JSON: tokens
//! (those that go through the model), seconds, the loss, and the process's largest memory so far in bytes. The first round
//! warms up. With `-r 0` a round begins with each line of standard input, so that another program can take turns
//! (`scripts/compare-pytorch`). LIMA_TEST_MODEL's model is the default.

use std::io::BufRead;
use std::time::Instant;

use lima::hub::{self, DEFAULT_MODEL};
use lima::model::weights::Checkpoint;
use lima::ops::philox::uniform;
use lima::train::model::{Settings, StepKey};
use lima::train::optimizer::{self, AdamW};
use lima::train::recipe::Number;
use lima::train::{Example, Gradients, Model};
use serde_json::json;

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let mut model = std::env::var("LIMA_TEST_MODEL").unwrap_or_else(|_| DEFAULT_MODEL.into());
    let (mut batch, mut len, mut threads, mut rounds) = (4, 512, None, 3);
    let (mut checkpointing, mut compute) = (false, Number::F32);
    while let Some(arg) = args.next() {
        let number = |args: &mut dyn Iterator<Item = String>| {
            args.next().and_then(|v| v.parse::<usize>().ok()).expect("a number after the flag")
        };
        match arg.as_str() {
            "--model" => model = args.next().expect("a model after --model"),
            "-b" => batch = number(&mut args),
            "-l" => len = number(&mut args),
            "-t" => threads = Some(number(&mut args)),
            "-r" => rounds = number(&mut args),
            "--checkpointing" => checkpointing = true,
            "--bf16" => compute = Number::Bf16,
            other => panic!("unknown argument {other}"),
        }
    }
    let path = hub::resolve(&model.parse().expect("a model"), &|_| ()).expect("the model can be had");
    let checkpoint = Checkpoint::open(&path).expect("the model loads");
    let vocab = checkpoint.config().vocab_size;
    let settings = Settings { threads, checkpointing, compute, ..Settings::default() };
    let mut model = Model::new(&checkpoint, None, settings).expect("the model can be trained");
    let settings =
        optimizer::Settings { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, moments: Number::F32, seed: 0 };
    let mut optimizer = AdamW::new(model.parameters(), settings);
    let mut gradients = Gradients::new(model.parameters()).expect("memory for gradients");

    let token = |row: usize, i: usize| (uniform(1, row as u32, i as u64) * vocab as f64) as u32;
    let example = |row: usize| Example {
        ids: (0..len).map(|i| token(row, i)).collect(),
        supervised: vec![true; len],
        trimmed: 0,
        row: row as u32,
    };
    let examples: Vec<Example> = (0..batch).map(example).collect();
    let micro: Vec<&Example> = examples.iter().collect();
    let mut lines = std::io::stdin().lock().lines();
    let mut step = 0;
    while if rounds == 0 { lines.next().is_some() } else { step < rounds as u64 + 1 } {
        let began = Instant::now();
        gradients.zero().expect("gradients are in memory");
        let scale = 1.0 / (batch * (len - 1)) as f64;
        let key = StepKey { seed: 0, step };
        let loss = model.accumulate(&micro, scale, key, &mut gradients).expect("a step succeeds");
        optimizer.step(model.parameters(), &gradients, 1e-5).expect("a step succeeds");
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "{}",
            json!({
                "tokens": batch * len, "seconds": seconds, "loss": loss.nll / loss.weight,
                "peak_memory": peak_memory(),
            })
        );
        step += 1;
    }
}

/// The process's largest resident memory, in bytes; `None` off Linux.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}
