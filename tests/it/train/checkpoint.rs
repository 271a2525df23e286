//! What a run leaves: directories that the server and transformers read.

use std::fs;
use std::path::Path;
use std::process::Command;

use lima::model::weights::Checkpoint;
use lima::ops::quant::DType;
use lima::text::PromptRenderer;
use lima::train::checkpoint::Directory;
use lima::train::model::{Model, Settings};
use lima::train::recipe::Number;
use lima::train::{Base, Renderer, Template};
use serde_json::Value;

use super::tiny::{Bench, metrics};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Tensors of a directory by name, as numbers.
fn tensors(dir: &Path) -> Vec<(String, DType, Vec<f32>)> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let one = |name: &str| {
        let view = checkpoint.tensor(name).unwrap();
        (name.to_owned(), view.dtype, view.to_f32())
    };
    checkpoint.names().map(one).collect()
}

/// A model that was not trained is the base again, in one file or in several; its vocabulary is padded, the new row is
/// the mean of the others and padding is zero.
#[test]
fn saved_weights_are_the_models() {
    for (dtype, format) in [(DType::F32, Number::F32), (DType::BF16, Number::Bf16)] {
        let bench = Bench::new(dtype);
        let base = Base::open(bench.path("base").to_str().unwrap()).unwrap();
        assert_eq!(lima::train::checkpoint::default_format(&base.checkpoint), format);
        let old = tensors(&bench.path("base"));
        for template in [Template::Lima, Template::Base] {
            let renderer = Renderer::new(&base, template).unwrap();
            let model = Model::load(&base, renderer.new_token(), Settings::default()).unwrap();
            let rows = model.config().vocab_size;
            for max_shard in [u64::MAX, 40_000] {
                let dir = tempfile::tempdir().unwrap();
                let directory = Directory::new(model.config(), &renderer, format).unwrap().with_max_shard(max_shard);
                directory.write(dir.path(), &model).unwrap();
                let index = dir.path().join("model.safetensors.index.json");
                assert_eq!(index.exists(), max_shard < u64::MAX);
                let new = tensors(dir.path());
                assert_eq!(new.len(), old.len());
                for ((name, kind, values), (old_name, _, old_values)) in new.iter().zip(&old) {
                    assert_eq!((name, *kind), (old_name, dtype));
                    let is_table = matches!(&**name, "model.embed_tokens.weight" | "lm_head.weight");
                    let Some(id) = renderer.new_token().filter(|_| is_table) else {
                        assert!(values == old_values, "{name}");
                        continue;
                    };
                    let (cols, id) = (model.config().hidden_size, id as usize);
                    assert_eq!((values.len(), rows % 64), (rows * cols, 0));
                    assert!(values[..id * cols] == old_values[..id * cols], "{name}");
                    for col in 0..cols {
                        let mean = (0..id).map(|row| f64::from(old_values[row * cols + col])).sum::<f64>() / id as f64;
                        let own = f64::from(values[id * cols + col]);
                        assert!((own - mean).abs() <= 1e-6 + 0.004 * mean.abs(), "{name}: {own} is not {mean}");
                    }
                    assert!(values[old_values.len().max((id + 1) * cols)..].iter().all(|v| *v == 0.0), "{name}");
                }
                let config = json(&dir.path().join("config.json"));
                let ends: Vec<u32> = serde_json::from_value(config["eos_token_id"].clone()).unwrap();
                assert_eq!(renderer.new_token().unwrap_or(2), ends[0]);
                assert!(ends.contains(&2));
                let reread = Checkpoint::open(dir.path()).unwrap();
                let expected = lima::model::config::LlamaConfig { eos_token_ids: ends, ..model.config().clone() };
                assert_eq!(*reread.config(), expected);
                PromptRenderer::from_dir(dir.path()).unwrap();
            }
        }
    }
}

/// One directory an epoch, as many as are kept; each has its line in the metrics. Answers are told where they are asked
/// for.
#[test]
fn every_epoch_is_a_checkpoint() {
    let bench = Bench::new(DType::BF16);
    fs::write(bench.path("prompts.txt"), "say red\nsay blue\n").unwrap();
    let recipe = ["--epochs", "3", "--batch-size", "8", "--val-data", "data.jsonl"];
    let out = bench.trained("out", &recipe);
    let epochs = |out: &Path| {
        let names = fs::read_dir(out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("epoch-")).collect();
        names.sort();
        names
    };
    assert_eq!(epochs(&out), ["epoch-01", "epoch-02", "epoch-03"]);
    let mut kept: Vec<String> =
        fs::read_dir(out.join("epoch-03")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    kept.sort();
    assert_eq!(
        kept,
        [
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let told = |event: &str| -> Vec<(u64, u64)> {
        let pair = |line: &Value| (line["epoch"].as_u64().unwrap(), line["step"].as_u64().unwrap());
        metrics(&out, event).iter().map(pair).collect()
    };
    assert_eq!(told("checkpoint"), [(1, 3), (2, 6), (3, 9)]);
    assert_eq!(told("validation"), [(0, 0), (1, 3), (2, 6), (3, 9)]);
    let recorded = json(&out.join("recipe.json"));
    assert_eq!(
        (&recorded["recipe"], &recorded["batch-size"], &recorded["lr"]),
        (&"lima-small".into(), &8.into(), &1e-5.into())
    );

    let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
    command.current_dir(bench.path("")).args([
        "--base",
        "base",
        "--data",
        "data.jsonl",
        "--out",
        "other",
        "--keep",
        "1",
    ]);
    command.args(["--epochs", "2", "--dev-prompts", "prompts.txt", "--sample-tokens", "5", "--threads", "1"]);
    assert!(command.args(["--template", "base"]).output().unwrap().status.success());
    assert_eq!(epochs(&bench.path("other")), ["epoch-02"]);
    let samples = metrics(&bench.path("other"), "samples");
    let of = |line: &Value| (line["epoch"].as_u64().unwrap(), line["answers"].as_array().unwrap().len());
    assert_eq!(samples.iter().map(of).collect::<Vec<_>>(), [(0, 2), (1, 2), (2, 2)]);
}

const READ: &str = r#"
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tok = AutoTokenizer.from_pretrained(sys.argv[1])
print(model.config.vocab_size, model.generation_config.eos_token_id[0] == tok.eos_token_id, model.dtype)
"#;

/// Transformers reads model and tokenizer without a word of help, where `LIMA_TEST_PYTHON` has torch.
#[test]
fn transformers_reads_the_directory() {
    let python = std::env::var_os("LIMA_TEST_PYTHON");
    let has = |python: &std::ffi::OsString| {
        let found = Command::new(python).args(["-c", "import transformers, torch"]).output();
        found.is_ok_and(|out| out.status.success())
    };
    let Some(python) = python.filter(has) else {
        eprintln!("skipped: LIMA_TEST_PYTHON is not set, or has no transformers with torch");
        return;
    };
    let bench = Bench::new(DType::BF16);
    let out = bench.trained("out", &["--epochs", "1"]);
    let read = Command::new(python).args(["-c", READ]).arg(out.join("epoch-01")).output().unwrap();
    let said = String::from_utf8(read.stdout).unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let rows = json(&out.join("epoch-01/config.json"))["vocab_size"].as_u64().unwrap();
    assert_eq!(said.trim(), format!("{rows} True torch.bfloat16"));
}

/// LoRA's result as a whole model is the base and the adapter beside it; the adapter is one that the server loads.
#[test]
fn lora_is_saved_merged_and_as_an_adapter() {
    let bench = Bench::new(DType::F32);
    let recipe = ["--epochs", "2", "--lora-rank", "4", "--lora-alpha", "12", "--lr", "1e-2", "--template", "base"];
    let out = bench.trained("out", &recipe).join("epoch-02");
    let shape = Checkpoint::open(bench.path("base")).unwrap().config().clone();
    lima::runner::adapters::load(&out.join("adapter"), &shape, 4).unwrap();

    let bytes = fs::read(out.join("adapter/adapter_model.safetensors")).unwrap();
    let adapter = lima::model::weights::safetensors::parse(&bytes).unwrap();
    assert_eq!(adapter.len(), 2 * 7 * 2);
    let part = |name: String| {
        let info = adapter[&name];
        let numbers =
            bytes[info.offset..][..info.size].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        (numbers.collect::<Vec<f32>>(), info.cols)
    };
    let mut moved = 0;
    for ((name, _, old), (_, _, new)) in tensors(&bench.path("base")).iter().zip(tensors(&out)) {
        let Some(module) = name.strip_suffix("_proj.weight") else {
            assert!(*old == new, "{name}");
            continue;
        };
        let matrix = |which| part(format!("base_model.model.{module}_proj.lora_{which}.weight"));
        let ((a, cols), (b, rank)) = (matrix("A"), matrix("B"));
        assert_eq!(rank, 4);
        for (i, (old, new)) in old.iter().zip(&new).enumerate() {
            let (row, col) = (i / cols, i % cols);
            let sum: f64 = (0..rank).map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * cols + col])).sum();
            let expected = f64::from(*old) + 12.0 / 4.0 * sum;
            assert!((f64::from(*new) - expected).abs() < 1e-6, "{name}: {new} is not {expected}");
            moved += usize::from(old != new);
        }
    }
    assert!(moved > 1000, "{moved}");

    // The adapter alone.
    let other = bench.trained("other", &[&recipe[..], &["--merge", "off"]].concat()).join("epoch-02");
    assert_eq!(
        super::tiny::files(&other),
        super::tiny::files(&out.join("adapter"))
            .into_iter()
            .map(|(name, bytes)| (format!("adapter/{name}"), bytes))
            .collect::<Vec<_>>()
    );
}

/// What was made is a base again: it has the token and the template, and no row is added.
#[test]
fn a_run_begins_from_what_another_made() {
    let bench = Bench::new(DType::F32);
    let first = bench.trained("first", &["--epochs", "1"]);
    fs::rename(bench.path("base"), bench.path("old")).unwrap();
    fs::rename(first.join("epoch-01"), bench.path("base")).unwrap();
    let second = bench.trained("second", &["--epochs", "1"]);
    let dirs = [bench.path("base"), second.join("epoch-01")];
    let [old, new] = dirs.each_ref().map(|dir| Checkpoint::open(dir).unwrap().config().vocab_size);
    assert_eq!(old, new);
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let [old, new] = dirs.each_ref().map(|dir| fs::read(dir.join(name)).unwrap());
        assert!(old == new, "{name}");
    }
}
