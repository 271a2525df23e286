//! LoRA adapters: numbers against PEFT's, batches of several, loading and unloading while sequences run.

mod engine;
mod numbers;
mod refusals;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lima::engine::{AdapterSlot, BlockId};
use lima::model::llama::Llama;
use lima::model::lora::Adapter;
use lima::model::weights::Checkpoint;
use lima::ops::cpu::kv::KvType;
use lima::ops::cpu::level::Level;
use lima::ops::cpu::{self, Cpu, CpuOptions};
use lima::ops::quant::DType;
use lima::ops::{Batch, Ops, Span};
use serde::Deserialize;

use crate::support::goldens;

/// What PEFT computed with one adapter.
#[derive(Deserialize)]
struct Golden {
    name: String,
    base: String,
    prompts: Vec<Vec<u32>>,
    /// For each prompt, log-probabilities after each token.
    rows: Vec<Vec<Vec<f32>>>,
}

fn all() -> Vec<Golden> {
    #[derive(Deserialize)]
    struct All {
        adapters: Vec<Golden>,
    }
    let text = std::fs::read_to_string(goldens::path("lora/goldens.json")).unwrap();
    serde_json::from_str::<All>(&text).unwrap().adapters
}

fn folder(name: &str) -> PathBuf {
    goldens::path("lora").join(name)
}

fn slot(index: u32) -> AdapterSlot {
    AdapterSlot { index, generation: 7 }
}

/// Blocks of each sequence.
const BLOCKS: usize = 4;

/// A model on the CPU with adapters; sequence `i` of a batch has blocks of its own.
struct Model {
    ops: Cpu,
    model: Llama<Cpu>,
    vocab: usize,
}

/// A sequence's tokens in one forward pass, from a position on.
struct Row<'a> {
    seq: usize,
    start: usize,
    tokens: &'a [u32],
    adapter: Option<AdapterSlot>,
}

impl Model {
    fn open(base: &str, adapters: &[&str], dtype: impl Into<Option<DType>>, level: Level, threads: usize) -> Self {
        Self::at(&goldens::path(base), adapters, dtype, level, threads)
    }

    /// `dtype`: `None` as stored.
    fn at(base: &Path, adapters: &[&str], dtype: impl Into<Option<DType>>, level: Level, threads: usize) -> Self {
        let dtype = dtype.into();
        let checkpoint = Checkpoint::open(base).unwrap();
        let config = checkpoint.config();
        let kv = if dtype.is_none_or(|d| d == DType::F32) { KvType::F32 } else { KvType::BF16 };
        let mut ops = Cpu::new(
            config,
            CpuOptions { threads, level, dtype, kv, max_tokens: 256, max_outputs: 256, max_positions: 32 * BLOCKS },
        );
        let model = Llama::load(&mut ops, &checkpoint, config, |_| ()).unwrap();
        ops.allocate_cache(16 * BLOCKS);
        ops.enable_adapters(adapters.len(), 32);
        for (i, name) in adapters.iter().enumerate() {
            let adapter = Adapter::open(&folder(name), config, 32).unwrap();
            ops.load_adapter(slot(i as u32), Arc::new(cpu::lora::Adapter::pack(&adapter, config))).unwrap();
        }
        Self { ops, model, vocab: config.vocab_size }
    }

    /// Logits after each token of each row.
    fn forward(&mut self, rows: &[Row<'_>]) -> Vec<Vec<Vec<f32>>> {
        let (mut tokens, mut positions, mut spans, mut blocks) = (vec![], vec![], vec![], vec![]);
        for row in rows {
            let first = tokens.len();
            tokens.extend_from_slice(row.tokens);
            positions.extend((row.start..row.start + row.tokens.len()).map(|p| p as u32));
            let from = blocks.len();
            blocks.extend((row.seq * BLOCKS..(row.seq + 1) * BLOCKS).map(|b| BlockId(b as u32)));
            let span = Span {
                tokens: first..tokens.len(),
                start: row.start,
                blocks: from..blocks.len(),
                adapter: row.adapter,
            };
            spans.push(span);
        }
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        let batch = Batch { tokens: &tokens, positions: &positions, spans: &spans, blocks: &blocks, outputs: &outputs };
        self.model.forward(&mut self.ops, &batch).unwrap();
        let (_, logits, stride) = self.ops.logits();
        let mut all = logits.chunks_exact(stride).map(|row| row[..self.vocab].to_vec());
        rows.iter().map(|row| all.by_ref().take(row.tokens.len()).collect()).collect()
    }

    /// Logits after each token of one sequence.
    fn alone(&mut self, tokens: &[u32], adapter: Option<AdapterSlot>) -> Vec<Vec<f32>> {
        self.forward(&[Row { seq: 0, start: 0, tokens, adapter }]).remove(0)
    }
}

/// The largest difference of log-probabilities.
fn distance(logits: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(logits.len(), expected.len());
    let rows = logits.iter().zip(expected).map(|(l, e)| {
        let ours = goldens::log_softmax(l);
        ours.iter().zip(e).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    });
    rows.fold(0.0, f32::max)
}

fn bits(logits: &[Vec<f32>]) -> Vec<u32> {
    logits.iter().flatten().map(|x| x.to_bits()).collect()
}
