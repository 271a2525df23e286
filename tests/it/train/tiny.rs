//! A two-layer model that trains in a moment, conversations for it, and the binary that trains it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use lima::model::config::LlamaConfig;
use lima::ops::quant::DType;
use lima::text::TokenizerFiles;
use serde_json::{Value, json};

use super::render::small_vocab;
use crate::load::writer;

/// The chat template of the bases.
const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Writes a base: a random Llama with two layers of grouped attention, with the vocabulary of a small tokenizer and some
/// rows more, as real ones have.
///
/// It has so many heads of keys and values, for four of queries.
pub fn base_of(dir: &Path, dtype: DType, kv_heads: usize) -> PathBuf {
    let (mut vocab, _) = small_vocab("smollm");
    vocab.chat_template = Some(CHATML.into());
    vocab.eos = vocab.tokens.iter().position(|t| t == "<|im_end|>").map(|id| id as u32);
    fs::create_dir_all(dir).unwrap();
    TokenizerFiles::from_gguf(&vocab).unwrap().write(dir).unwrap();
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": kv_heads, "head_dim": 16,
        "vocab_size": vocab.tokens.len() + 3, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2
    });
    fs::write(dir.join("config.json"), json.to_string()).unwrap();
    let config = LlamaConfig::from_hf(json.as_object().unwrap()).unwrap();
    let mut tensors = writer::tensors(&config);
    for (name, [_, cols], values) in &mut tensors {
        let is_norm = name.ends_with("norm.weight");
        // A head that can be certain: what adapters train cannot make logits larger than frozen rows allow.
        let spread = if name == "lm_head.weight" { 9.0 } else { 3.0 };
        let scale = if is_norm { 0.1 } else { spread / (*cols as f32).sqrt() };
        values.iter_mut().for_each(|v| *v = *v * scale + f32::from(u8::from(is_norm)));
    }
    fs::write(dir.join("model.safetensors"), writer::safetensors(dtype, &tensors)).unwrap();
    dir.to_owned()
}

/// Twenty conversations of at most 64 tokens; every fourth has two answers.
pub fn conversations() -> Vec<Vec<String>> {
    const NAMES: [&str; 20] = [
        "red", "blue", "green", "pink", "grey", "gold", "teal", "lime", "navy", "plum", "rust", "sand", "rose", "mint",
        "jade", "coal", "snow", "wine", "corn", "moss",
    ];
    let talk = |(i, name): (usize, &&str)| {
        let mut turns = vec![format!("say {name}"), format!("{name} {}!", NAMES[(i * 7 + 3) % 20])];
        if i % 4 == 0 {
            turns.extend(["and?".to_owned(), format!("so {}.", NAMES[(i * 3 + 1) % 20])]);
        }
        turns
    };
    NAMES.iter().enumerate().map(talk).collect()
}

/// Writes them in LIMA's format.
pub fn data(path: &Path) -> PathBuf {
    let rows = conversations().into_iter().map(|turns| json!({ "conversations": turns }).to_string() + "\n");
    fs::write(path, rows.collect::<String>()).unwrap();
    path.to_owned()
}

/// A folder with base and data, and the runs in it.
pub struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub fn new(dtype: DType) -> Self {
        Self::of(dtype, 2)
    }

    /// With a base of so many heads of keys and values.
    pub fn of(dtype: DType, kv_heads: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        base_of(&dir.path().join("base"), dtype, kv_heads);
        data(&dir.path().join("data.jsonl"));
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary, in the folder, told to train into `out`. One thread: tests run side by side.
    pub fn command(&self, out: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
        command.current_dir(self.dir.path()).args(["--base", "base", "--data", "data.jsonl", "--out", out]);
        command.args(["--no-samples", "--threads", "1", "--peak-flops", "1e10"]).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    pub fn train(&self, out: &str, more: &[&str]) -> Output {
        self.command(out, more).output().unwrap()
    }

    /// Trains to the end.
    pub fn trained(&self, out: &str, more: &[&str]) -> PathBuf {
        let output = self.train(out, more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.path(out)
    }

    pub fn spawn(&self, out: &str, more: &[&str]) -> Child {
        self.command(out, more).stderr(Stdio::null()).spawn().unwrap()
    }
}

/// Lines of a run's metrics that are of `event`.
pub fn metrics(out: &Path, event: &str) -> Vec<Value> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["event"] == event).collect()
}

/// Losses, step by step.
pub fn losses(out: &Path) -> Vec<f64> {
    metrics(out, "step").iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}

/// Every file below `dir` with its bytes, by its name.
pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match path.is_dir() {
            true => all.extend(files(&path).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes))),
            false => all.push((name, fs::read(&path).unwrap())),
        }
    }
    all.sort();
    all
}

/// Models and state of a run: what must not depend on how often it was interrupted.
pub fn results(out: &Path) -> Vec<(String, Vec<u8>)> {
    files(out).into_iter().filter(|(name, _)| name.starts_with("epoch-") || name.starts_with("state/")).collect()
}
