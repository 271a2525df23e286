//! [`Ops`](crate::ops::Ops) in F32 on the CPU with a tape: training, by kernels of our own.
//!
//! Forward records what its backward pass needs, and [`Tape::backward`] runs the record in reverse: each operation's
//! forward stands beside its backward, and nothing is differentiated by a library. There is no cache: a batch holds
//! whole sequences. Recording can be off, so that a layer is computed once without and, when its gradients are due, again
//! with it ([`Tape::record`]). The twin is [`Graph`](super::graph::Graph).

mod attention;
mod backward;
mod forward;
mod kernels;
mod loss;
mod memory;
mod products;
mod rows;
#[cfg(test)]
mod tests;
mod weights;

use std::sync::Arc;

use candle_core::Var;

use self::attention::{Scratch, Shape};
use self::backward::Node;
use self::memory::{Block, Memory};
use super::cpu::level::Level;
use super::cpu::pool::Pool;
use super::dense::{Dense, Operands};
use super::noise::{Noise, Token};
use super::parameter::Gradients;
use crate::model::config::LlamaConfig;
use crate::model::rope::inverse_frequencies;
use crate::parallel::{Communicator, Solo};

pub use self::backward::Gradient;
pub use self::loss::{Loss, Targets};
pub use self::weights::{Keep, Linear, Norm};

/// Activations, `[T, width]` (of [`Ops::head`](super::Ops::head) and `hidden`: `[R, width]`).
#[derive(Clone)]
pub struct X {
    /// Names them on the tape.
    id: usize,
    data: Arc<Block>,
}

impl X {
    /// The numbers, row by row.
    pub fn values(&self) -> &[f32] {
        &self.data
    }
}

/// Runs the Llama with a tape.
pub struct Tape {
    /// Of what this rank holds.
    config: LlamaConfig,
    /// The ranks that hold the model together.
    tensor: Arc<dyn Communicator>,
    /// `[head_dim / 2]`.
    inverse_frequencies: Vec<f32>,
    level: Level,
    pool: Pool,
    dense: Dense,
    memory: Memory,
    kept: Keep,
    weights: Vec<weights::Weight>,
    /// By the gradients' order.
    variables: Vec<Var>,
    attention: Vec<Scratch>,
    nodes: Vec<Node>,
    recording: bool,
    ids: usize,
    noise: Option<Noise>,
    /// Of the batch: who draws noise, and the angles of each token, `[T, head_dim / 2]`.
    tokens: Vec<Token>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Logits of a piece of the loss.
    logits: Vec<f32>,
    /// Weights that are not kept in F32, a piece at a time.
    spare: Vec<f32>,
}

impl Tape {
    /// For a model of this shape, whose weights are kept and multiplied like this. A tensor-parallel rank's shape is that of
    /// its part ([`LlamaConfig::divided`]).
    pub fn new(config: &LlamaConfig, kept: Keep, operands: Operands, level: Level, threads: usize) -> Self {
        let pool = Pool::new(threads);
        Self {
            config: config.clone(),
            tensor: Arc::new(Solo),
            inverse_frequencies: inverse_frequencies(config),
            level,
            dense: Dense::new(level, operands, pool.size()),
            attention: (0..pool.size()).map(|_| Scratch::new(level)).collect(),
            pool,
            memory: Memory::default(),
            kept,
            weights: Vec::new(),
            variables: Vec::new(),
            nodes: Vec::new(),
            recording: false,
            ids: 0,
            noise: None,
            tokens: Vec::new(),
            cos: Vec::new(),
            sin: Vec::new(),
            logits: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// As one of these ranks, which all make the same calls. Each holds its part of the weights
    /// ([`Llama::load_shard`](crate::model::llama::Llama::load_shard)); activations between products of a layer are parts too,
    /// the residual stream and its gradient are the same on all. Adapters are not cut.
    pub fn over(self, tensor: Arc<dyn Communicator>) -> Self {
        Self { tensor, ..self }
    }

    /// The variables in the order they were made; gradients are in this order.
    pub fn variables(&self) -> &[Var] {
        &self.variables
    }

    /// The noise of the passes to come; `None`: none, as in serving.
    pub fn set_noise(&mut self, noise: Option<Noise>) {
        self.noise = noise;
    }

    /// Whether what is computed from now on is recorded for [`Tape::backward`].
    pub fn record(&mut self, on: bool) {
        self.recording = on;
        self.nodes.clear();
    }

    /// The first row of this rank's part of a table of which it has `rows`, all ranks alike.
    fn first_row(&self, rows: usize) -> usize {
        self.tensor.rank() * rows
    }

    fn shape(&self) -> Shape {
        let LlamaConfig { num_heads, num_kv_heads, head_dim, .. } = self.config;
        Shape { heads: num_heads, kv_heads: num_kv_heads, head_dim }
    }

    fn name(&mut self, data: Block) -> X {
        self.ids += 1;
        X { id: self.ids, data: Arc::new(data) }
    }

    fn note(&mut self, node: Node) {
        if self.recording {
            self.nodes.push(node);
        }
    }
}
