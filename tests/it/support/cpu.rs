//! A model on the CPU backend, driven without the engine.

use std::path::Path;

use lima::engine::{BLOCK_SIZE, BlockId};
use lima::model::llama::Llama;
use lima::model::weights::Checkpoint;
use lima::ops::cpu::level::Level;
use lima::ops::cpu::{Cpu, CpuOptions};
use lima::ops::quant::DType;
use lima::ops::{Batch, Span};

/// A loaded model; every position's logits can be read.
pub struct CpuModel {
    pub ops: Cpu,
    pub model: Llama<Cpu>,
    pub vocab: usize,
    blocks: Vec<BlockId>,
    max_tokens: usize,
}

impl CpuModel {
    /// `dtype` converts while loading; the cache is F32 with F32 weights, else BF16.
    pub fn open(path: &Path, dtype: Option<DType>, level: Level, threads: usize) -> Self {
        let checkpoint = Checkpoint::open(path).unwrap();
        let config = checkpoint.config();
        let kv = lima::runner::load::kv_type(&checkpoint, dtype);
        Self::with(
            &checkpoint,
            CpuOptions {
                threads,
                level,
                dtype,
                kv,
                max_tokens: 512,
                max_outputs: 512,
                max_positions: config.max_position_embeddings.min(1024),
            },
        )
    }

    pub fn with(checkpoint: &Checkpoint, options: CpuOptions) -> Self {
        let config = checkpoint.config();
        let mut ops = Cpu::new(config, options);
        let model = Llama::load(&mut ops, checkpoint, config, |_| ()).unwrap();
        let blocks = options.max_positions.div_ceil(BLOCK_SIZE);
        ops.allocate_cache(blocks);
        // Backwards, so that a kernel which takes the table for the identity fails.
        let blocks = (0..blocks as u32).rev().map(BlockId).collect();
        Self { ops, model, vocab: config.vocab_size, blocks, max_tokens: options.max_tokens }
    }

    /// Logits after each token, computed `chunk` tokens at a time.
    pub fn logits(&mut self, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
        let mut out = Vec::new();
        for (i, part) in tokens.chunks(chunk.min(self.max_tokens)).enumerate() {
            let start = i * chunk.min(self.max_tokens);
            let positions: Vec<u32> = (start as u32..).take(part.len()).collect();
            let outputs: Vec<u32> = (0..part.len() as u32).collect();
            let spans = [Span { tokens: 0..part.len(), start, blocks: 0..self.blocks.len(), adapter: None }];
            let batch =
                Batch { tokens: part, positions: &positions, spans: &spans, blocks: &self.blocks, outputs: &outputs };
            self.model.forward(&mut self.ops, &batch).unwrap();
            let (_, logits, stride) = self.ops.logits();
            out.extend(logits.chunks_exact(stride).take(part.len()).map(|row| row[..self.vocab].to_vec()));
        }
        out
    }

    /// Logits after the tokens at `positions` (ascending), the prompt computed in one step.
    pub fn rows(&mut self, tokens: &[u32], outputs: &[u32]) -> Vec<Vec<f32>> {
        let positions: Vec<u32> = (0..tokens.len() as u32).collect();
        let spans = [Span { tokens: 0..tokens.len(), start: 0, blocks: 0..self.blocks.len(), adapter: None }];
        let batch = Batch { tokens, positions: &positions, spans: &spans, blocks: &self.blocks, outputs };
        self.model.forward(&mut self.ops, &batch).unwrap();
        let (_, logits, stride) = self.ops.logits();
        logits.chunks_exact(stride).take(outputs.len()).map(|row| row[..self.vocab].to_vec()).collect()
    }
}
