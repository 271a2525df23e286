//! A run that was killed, stopped or hindered goes on as if nothing had been.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use lima::ops::quant::DType;
use rand::Rng;

use super::tiny::{Bench, losses, metrics, results};

/// Everything that draws or keeps something: dropout, NEFTune, shuffling, several micro-batches, BF16 moments.
const RECIPE: [&str; 22] = [
    "--epochs",
    "3",
    "--batch-size",
    "3",
    "--micro-batch-tokens",
    "40",
    "--lr",
    "1e-3",
    "--dropout",
    "0.3",
    "--neftune",
    "5",
    "--clip",
    "1",
    "--moments",
    "bf16",
    "--val-split",
    "2",
    "--save-every",
    "1",
    "--seed",
    "5",
];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    RECIPE.into_iter().chain(more.iter().copied()).collect()
}

fn names(all: &[(String, Vec<u8>)]) -> Vec<&str> {
    all.iter().map(|(name, _)| name.as_str()).collect()
}

pub fn assert_same(one: &[(String, Vec<u8>)], other: &[(String, Vec<u8>)]) {
    assert_eq!(names(one), names(other));
    let differing: Vec<&str> = one.iter().zip(other).filter(|(a, b)| a != b).map(|((name, _), _)| &**name).collect();
    assert!(differing.is_empty(), "{differing:?} differ");
}

/// Waits until `seen`, or the process has ended; tells whether it is still there.
pub fn wait(child: &mut Child, mut seen: impl FnMut() -> bool) -> bool {
    loop {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if seen() {
            return true;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

pub fn has_temporary(out: &Path) -> bool {
    let names = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name());
    names(out).chain(names(&out.join("state"))).any(|name| name.to_string_lossy().ends_with(".tmp"))
}

/// LoRA beside a quantised base.
const LORA: [&str; 12] = [
    "--epochs",
    "3",
    "--batch-size",
    "3",
    "--lora-rank",
    "4",
    "--lora-base",
    "q4_0",
    "--save-every",
    "1",
    "--seed",
    "5",
];

/// All in BF16.
const BF16: [&str; 12] = [
    "--epochs",
    "3",
    "--batch-size",
    "3",
    "--weights",
    "bf16",
    "--moments",
    "bf16",
    "--save-every",
    "1",
    "--lr",
    "1e-3",
];

/// SIGKILL at random moments, and in the middle of writes; weights, moments, data order and noise end as in a run that
/// nothing disturbed.
#[test]
fn killed_runs_end_as_undisturbed_ones() {
    for recipe in [&RECIPE[..], &LORA, &BF16] {
        killed_run(recipe);
    }
}

fn killed_run(recipe: &[&str]) {
    let bench = Bench::new(DType::F32);
    let begun = Instant::now();
    let undisturbed = bench.trained("undisturbed", recipe);
    let took = begun.elapsed();
    let expected = results(&undisturbed);
    let mut random = rand::rng();
    for attempt in 0..2 {
        let name = format!("killed-{attempt}");
        let (out, mut kills, mut in_writes) = (bench.path(&name), 0, 0);
        loop {
            let mut child = bench.spawn(&name, recipe);
            let delay = took.mul_f64(random.random_range(0.0..0.6));
            let (begun, in_write) = (Instant::now(), random.random_bool(0.5));
            // After so many kills a run may end.
            let killed = kills < 8
                && wait(&mut child, || begun.elapsed() >= delay && (!in_write || has_temporary(&out)))
                && child.kill().is_ok();
            let status = child.wait().unwrap();
            if !killed || status.signal().is_none() {
                assert!(status.success(), "{status:?}");
                break;
            }
            kills += 1;
            in_writes += u32::from(has_temporary(&out));
        }
        println!("{kills} kills, {in_writes} of them in a write");
        assert_same(&results(&out), &expected);
        assert_eq!(losses(&out), losses(&undisturbed));
        let nll = |out: &Path| metrics(out, "validation").iter().map(|v| v["nll"].clone()).collect::<Vec<_>>();
        assert_eq!(nll(&out), nll(&undisturbed));
        assert!(!has_temporary(&out));
    }
}

/// SIGINT and SIGTERM finish the step, save, and say how to go on.
#[test]
fn signals_end_a_run_that_goes_on() {
    let bench = Bench::new(DType::F32);
    let recipe = ["--epochs", "30", "--batch-size", "2", "--lr", "1e-3"];
    let undisturbed = bench.trained("undisturbed", &recipe);
    let out = bench.path("out");
    for signal in ["INT", "TERM"] {
        let before = losses(&out).len();
        let mut child = bench.command("out", &recipe).spawn().unwrap();
        assert!(wait(&mut child, || losses(&out).len() > before + 3), "the run ended before the signal");
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(130), "{said}");
        let done = losses(&out).len();
        assert!(said.contains("train: stopping after this step"), "{said}");
        assert!(said.contains(&format!("stopped after step {done} of 300; the same command goes on")), "{said}");
        assert!(out.join(format!("state/step-{done:08}.safetensors")).exists());
    }
    bench.trained("out", &recipe);
    assert_same(&results(&out), &results(&undisturbed));
    assert_eq!(losses(&out), losses(&undisturbed));
    // There is nothing more to do, and a model that is missing is made again.
    fs::remove_dir_all(out.join("epoch-30")).unwrap();
    bench.trained("out", &recipe);
    assert_same(&results(&out), &results(&undisturbed));
}

/// Another recipe, or other data, is not gone on with.
#[test]
fn another_run_is_refused_by_what_differs() {
    let bench = Bench::new(DType::F32);
    let out = bench.trained("out", &with(&[]));
    let before = results(&out);
    for (more, what) in [
        (&["--lr", "2e-3"][..], "lr is 0.002, and was 0.001"),
        (&["--epochs", "4"], "epochs is 4, and was 3"),
        (&["--dropout", "0"], "dropout is 0.0, and was 0.3"),
        (&["--moments", "f32"], r#"moments is "f32", and was "bf16""#),
        (&["--template", "base"], r#"template is "base", and was "lima""#),
        (&["--schedule", "cosine"], r#"schedule is "cosine", and was "linear""#),
        (&["--warmup-steps", "2"], "warmup-steps is 2, and was 0"),
        (&["--seed", "6"], "seed is 6, and was 5"),
        (&["--base", "./base"], r#"base is "./base", and was "base""#),
    ] {
        // The last of two equal flags would be an error of its own.
        let kept = RECIPE.chunks(2).filter(|pair| pair[0] != more[0]).flatten().copied();
        let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
        let base = if more[0] == "--base" { &[][..] } else { &["--base", "base"] };
        command.current_dir(bench.path("")).args(base).args(["--data", "data.jsonl", "--out", "out", "--no-samples"]);
        let output = command.args(kept).args(more).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let expected = format!("train: out holds another run: {what}; give what it was begun with, or another --out\n");
        assert_eq!((output.status.code(), said), (Some(1), expected));
    }
    // The same rows elsewhere are the same data; other rows are not.
    let data = fs::read_to_string(bench.path("data.jsonl")).unwrap();
    fs::write(bench.path("data.jsonl"), data.replace("red", "rad")).unwrap();
    let said = String::from_utf8(bench.train("out", &RECIPE).stderr).unwrap();
    assert!(said.contains("out holds another run: examples is \"18 xxh64:"), "{said}");
    assert_same(&results(&out), &before);
    // Models without a state are not written over.
    fs::remove_dir_all(out.join("state")).unwrap();
    let said = String::from_utf8(bench.train("out", &RECIPE).stderr).unwrap();
    assert_eq!(said, "train: out has models but no state to go on from: give another --out\n");
}

/// A full disk: here a limit on the size of files, which fails in the same place.
#[test]
fn a_full_disk_leaves_the_last_state() {
    let bench = Bench::new(DType::F32);
    let limited = |kib: u32, more: &[&str]| {
        let command = bench.command("out", more);
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" \"$@\"")]).arg(command.get_program());
        shell.args(command.get_args()).current_dir(bench.path("")).output().unwrap()
    };
    let recipe = ["--epochs", "3", "--batch-size", "10", "--lr", "1e-3"];
    let said = String::from_utf8(limited(100, &recipe).stderr).unwrap();
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("train: out/state/step-00000002.safetensors cannot be written: "), "{said}");
    assert!(last.ends_with("; nothing was saved yet"), "{said}");
    let out = bench.path("out");
    assert_eq!(names(&results(&out)), Vec::<&str>::new());

    // The state fits, and the model of the first epoch; of the second only the model does not.
    let state = |step: u32| out.join(format!("state/step-{step:08}.safetensors"));
    let mut child = bench.spawn("out", &recipe);
    let first = out.join("epoch-01");
    wait(&mut child, || first.exists());
    let _ = child.kill();
    child.wait().unwrap();
    let kept = results(&out);
    assert!(state(2).exists() || state(4).exists() || state(6).exists());
    let output = limited(100, &recipe);
    let said = String::from_utf8(output.stderr).unwrap();
    if !output.status.success() {
        assert!(said.contains("cannot be written"), "{said}");
        assert!(said.contains("; the last good model is out/epoch-0"), "{said}");
    }
    assert!(kept.iter().all(|file| results(&out).contains(file)));
    bench.trained("out", &recipe);
    let undisturbed = bench.trained("undisturbed", &recipe);
    assert_same(&results(&out), &results(&undisturbed));
}

/// A loss that is no number ends the run; nothing of it is saved.
#[test]
fn divergence_is_told_and_not_saved() {
    let bench = Bench::new(DType::F32);
    let recipe = ["--epochs", "3", "--batch-size", "10", "--lr", "1e30", "--lr-end", "1e30", "--save-every", "1"];
    let output = bench.train("out", &recipe);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("train: step ") && last.contains("last state is that of step"), "{said}");
    let step: u64 = last["train: step ".len()..].split(':').next().unwrap().parse().unwrap();
    let states = names(&results(&bench.path("out"))).into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert!(states.contains(&format!("state/step-{:08}.safetensors", step - 1)), "{states:?}");
}

/// Every byte of a state counts.
#[test]
fn damaged_states_are_refused() {
    let bench = Bench::new(DType::F32);
    let recipe = ["--epochs", "1", "--batch-size", "20", "--keep", "1"];
    let out = bench.trained("out", &recipe);
    let path = out.join("state/step-00000001.safetensors");
    let whole = fs::read(&path).unwrap();
    let mut random = rand::rng();
    for i in 0..40 {
        let mut damaged = whole.clone();
        let at = random.random_range(0..whole.len());
        match i % 2 {
            0 => damaged[at] ^= 1 << random.random_range(0..8),
            _ => damaged.truncate(at),
        }
        fs::write(&path, &damaged).unwrap();
        let error = lima::train::state::State::open(&path).err().map(|e| e.to_string());
        assert!(error.as_ref().is_some_and(|e| e.starts_with(path.to_str().unwrap())), "byte {at}: {error:?}");
    }
    let output = bench.train("out", &recipe);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.starts_with("train: out/state/step-00000001.safetensors: "), "{said}");
}
