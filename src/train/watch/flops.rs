//! Model FLOPs utilisation: what a step had to compute, over what the machine could have computed meanwhile.

use std::hint::black_box;
use std::thread;
use std::time::Instant;

use crate::model::config::LlamaConfig;
use crate::ops::cpu::level::Level;
use crate::ops::cpu::limits::{MULTIPLY_ADDS, multiply_adds};

/// Floating-point operations of training, a multiply-add counted as two. Recomputed activations are not counted (as in
/// PaLM's definition of utilisation), nor are the element-wise operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelFlops {
    /// For a token that is computed: the layers' matrices.
    pub token: f64,
    /// For a token that is learnt, on top: the head, which only those need.
    pub supervised: f64,
    /// For a pair of a query and a key: attention.
    pub pair: f64,
}

impl ModelFlops {
    /// Of a model, of which `trained` parameters are trained. Forward and the gradient of the inputs take two operations
    /// each for every parameter of a matrix; the gradient of the weights two for every one that is trained.
    pub fn new(config: &LlamaConfig, trained: u64) -> Self {
        let (hidden, layers) = (config.hidden_size as f64, config.num_layers as f64);
        let attention = hidden * (2 * config.q_size() + 2 * config.kv_size()) as f64;
        let matrices = layers * (attention + 3.0 * hidden * config.intermediate_size as f64);
        let head = hidden * config.vocab_size as f64;
        let trained = trained as f64;
        let of = |parameters: f64| 4.0 * parameters + 2.0 * parameters.min(trained);
        // Scores and the weighted sum, forward once and backward twice.
        Self { token: of(matrices), supervised: of(head), pair: layers * 12.0 * config.q_size() as f64 }
    }

    /// Of so much.
    pub fn of(&self, tokens: u64, supervised: u64, pairs: u64) -> f64 {
        self.token * tokens as f64 + self.supervised * supervised as f64 + self.pair * pairs as f64
    }
}

/// What the machine can do at most.
#[derive(Clone, Debug, PartialEq)]
pub struct Peak {
    /// Floating-point operations a second.
    pub flops: f64,
    /// Where the number is from.
    pub source: String,
}

impl Peak {
    /// The user's number.
    pub fn given(flops: f64) -> Self {
        Self { flops, source: "given".into() }
    }

    /// F32 multiply-adds on registers, on so many threads at once: the best of five runs of some 10 ms. Another program
    /// that runs meanwhile lowers it.
    pub fn measure(threads: usize) -> Self {
        const ROUNDS: usize = 1_000_000;
        let (threads, level) = (threads.max(1), Level::best());
        let mut best = 0f64;
        for _ in 0..5 {
            let started = Instant::now();
            thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| black_box(multiply_adds(level, ROUNDS, black_box(&[0.5; 16]))));
                }
            });
            let flops = 2.0 * (ROUNDS * MULTIPLY_ADDS * threads) as f64;
            best = best.max(flops / started.elapsed().as_secs_f64());
        }
        Self { flops: best, source: format!("measured: F32 multiply-adds on registers, {threads} threads, {level}") }
    }
}
