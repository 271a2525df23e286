//! How fast a step can be at most.

use serde::Serialize;

use super::memory::{KvFormat, Step, WeightFormat, weights};
use super::{Device, Machine};
use crate::model::config::LlamaConfig;
use crate::model::shapes::matrices;

/// Ceilings of one group of ranks, tokens a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// One sequence at the asked context decodes.
    pub decode_one: f64,
    /// As many decode at once.
    pub at_once: usize,
    /// All of these together.
    pub decode_all: f64,
    /// Prompts, in steps of the largest size.
    pub prefill: f64,
}

/// What a step moves and computes on a rank.
#[derive(Clone, Copy)]
struct Load {
    /// Read from memory.
    bytes: f64,
    /// Multiply-adds counted as two.
    flops: f64,
    /// Sent to other ranks.
    sent: f64,
}

impl Load {
    fn seconds(self, device: &Device) -> f64 {
        (self.bytes / device.bandwidth).max(self.flops / device.flops) + self.sent / device.link
    }
}

impl Speed {
    pub(super) fn of(
        shapes: &[LlamaConfig],
        format: WeightFormat,
        kv: KvFormat,
        machine: &Machine,
        step: Step,
        context: usize,
        at_once: usize,
    ) -> Self {
        // Each step waits for its slowest rank.
        let slowest = |tokens: f64, sequences: f64, pairs: f64| {
            let one = |shape| load(shape, shapes.len(), format, kv, tokens, sequences, pairs, context as f64);
            shapes.iter().map(|shape| one(shape).seconds(&machine.device)).fold(0.0, f64::max)
        };
        let decode = |sequences: usize| {
            let n = sequences.max(1) as f64;
            n / slowest(n, n, n * context as f64)
        };
        // Whole prompts of the asked length, as many as a step holds: every token sees half of its prompt.
        let tokens = step.tokens as f64;
        let prompts = (tokens / context as f64).max(1.0);
        let prefill = tokens / slowest(tokens, prompts, tokens * context as f64 / 2.0);
        Self { decode_one: decode(1), at_once: at_once.max(1), decode_all: decode(at_once), prefill }
    }
}

/// A step of so many tokens of so many sequences, whose queries and keys make so many pairs.
fn load(
    shape: &LlamaConfig,
    ranks: usize,
    format: WeightFormat,
    kv: KvFormat,
    tokens: f64,
    sequences: f64,
    pairs: f64,
    context: f64,
) -> Load {
    let (hidden, vocab) = (shape.hidden_size as f64, shape.vocab_size as f64);
    // Of an embedding of its own only the tokens' rows are read.
    let table = if shape.tie_word_embeddings { 0.0 } else { vocab * hidden * format.bytes() };
    let attention = 4.0 * shape.q_size() as f64 * shape.num_layers as f64;
    // A ring sends all but a rank's own part twice. Sums of the residual stream after each product, and logits.
    let ring = 2.0 * (ranks - 1) as f64 / ranks as f64;
    let sums = (2 * shape.num_layers + 1) as f64 * tokens * hidden * 2.0;
    let logits = sequences * vocab * ranks as f64 * 4.0 / 2.0;
    Load {
        bytes: weights(shape, format) - table + sequences * context * kv.token_bytes(shape),
        flops: 2.0 * matrices(shape) as f64 * tokens + 2.0 * hidden * vocab * sequences + attention * pairs,
        sent: ring * (sums + logits),
    }
}
