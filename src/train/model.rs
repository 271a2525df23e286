//! The model that is trained: forward, loss, backward.

mod composed;
mod fused;
mod pack;
pub(super) mod stack;
pub(super) mod vocabulary;

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use self::composed::Composed;
use self::fused::Fused;
use self::pack::Packed;
use self::vocabulary::Vocabulary;
use super::Base;
use super::recipe::{Frozen, Number};
use super::render::Example;
use crate::engine::TokenId;
use crate::model::config::LlamaConfig;
use crate::model::llama::stacks;
use crate::model::weights::{Checkpoint, LoadError, expected_tensors};
use crate::ops::OpsError;
pub use crate::ops::noise::StepKey;
pub use crate::ops::parameter::{Gradients, Parameter, Part};
use crate::parallel::{CommError, Communicator, Solo};

/// Which weights are trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tuning {
    /// All.
    Full,
    /// Two small matrices beside each product of the layers, and the rows of new tokens.
    Lora {
        /// Rows of A, columns of B.
        rank: usize,
        /// The addition is scaled by `alpha / rank`.
        alpha: f32,
        /// The rest.
        base: Frozen,
    },
}

/// How a model is trained.
#[derive(Clone, Debug)]
pub struct Settings {
    /// One probability a layer, for both of its residual joins.
    pub dropout: Vec<f32>,
    /// What weights and activations are rounded to on their way into a product of the two; sums are F32.
    pub compute: Number,
    /// Format of the matrices that are trained, BF16 ones without a finer copy; norms are F32.
    pub weights: Number,
    /// Keep only what enters each layer, and compute the rest again for the gradients.
    pub checkpointing: bool,
    /// NEFTune's alpha; 0: off.
    pub neftune: f32,
    /// How much a token counts that is not the assistant's; 0: not at all.
    pub prompt_weight: f32,
    /// Worker threads; `None`: one a processor.
    pub threads: Option<usize>,
    /// Which weights are trained.
    pub tuning: Tuning,
}

impl Default for Settings {
    /// All weights in F32, without dropout.
    fn default() -> Self {
        Self {
            dropout: Vec::new(),
            compute: Number::F32,
            weights: Number::F32,
            checkpointing: true,
            neftune: 0.0,
            prompt_weight: 0.0,
            threads: None,
            tuning: Tuning::Full,
        }
    }
}

/// A model cannot be made ready, or a step not be computed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The base cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// An operation failed.
    #[error(transparent)]
    Ops(#[from] OpsError),
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// Other ranks are lost.
    #[error(transparent)]
    Ranks(#[from] CommError),
    /// Settings that do not fit each other or the base.
    #[error("{0}")]
    Settings(String),
    /// A token the model has no row for.
    #[error("row {row}: token {token} is outside the vocabulary of {vocab}")]
    Token {
        /// In the data set.
        row: u32,
        /// Which token.
        token: TokenId,
        /// Rows.
        vocab: usize,
    },
}

/// A loss as a sum, so that sums of micro-batches add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSum {
    /// Σ weight · negative log-likelihood.
    pub nll: f64,
    /// Σ weight: supervised tokens, or with prompt weights those too.
    pub weight: f64,
}

impl std::ops::AddAssign for LossSum {
    fn add_assign(&mut self, other: Self) {
        self.nll += other.nll;
        self.weight += other.weight;
    }
}

/// A Llama in training.
pub struct Model {
    config: LlamaConfig,
    settings: Settings,
    tokens: usize,
    engine: Engine,
}

enum Engine {
    Fused(Box<Fused>),
    Composed(Box<Composed>),
}

impl Model {
    /// Reads the base. With `new_token`, its row of embedding and head becomes the mean of the rows before it, and the
    /// vocabulary grows to a multiple of 64 by rows of zeros, whose logits the loss does not see.
    ///
    /// # Errors
    /// The base cannot be read, or the settings do not fit it.
    pub fn load(base: &Base, new_token: Option<TokenId>, settings: Settings) -> Result<Self, ModelError> {
        Self::new(&base.checkpoint, new_token, settings)
    }

    /// The same from weights alone.
    ///
    /// # Errors
    /// As [`Model::load`]'s.
    pub fn new(checkpoint: &Checkpoint, new_token: Option<TokenId>, settings: Settings) -> Result<Self, ModelError> {
        Self::shard(checkpoint, new_token, settings, Arc::new(Solo))
    }

    /// The part of the model that one of these ranks holds and computes. All ranks make the same calls. Of several, all
    /// weights are trained: LoRA is not cut.
    ///
    /// # Errors
    /// As [`Model::load`]'s, or the model cannot be divided over the ranks.
    pub fn shard(
        checkpoint: &Checkpoint,
        new_token: Option<TokenId>,
        settings: Settings,
        tensor: Arc<dyn Communicator>,
    ) -> Result<Self, ModelError> {
        Self::make(checkpoint, new_token, settings, |config, vocabulary, settings| {
            let engine = Fused::load(checkpoint, config, vocabulary, settings, tensor)?;
            Ok(Engine::Fused(Box::new(engine)))
        })
    }

    /// The same on candle's tensors and autograd, with all activations and logits kept: what [`Model::load`]'s is tested
    /// against. Trains all weights in F32, whatever the settings say.
    ///
    /// # Errors
    /// As [`Model::load`]'s.
    pub fn composed(
        checkpoint: &Checkpoint,
        new_token: Option<TokenId>,
        settings: Settings,
    ) -> Result<Self, ModelError> {
        Self::make(checkpoint, new_token, settings, |config, vocabulary, _| {
            let engine = Composed::load(checkpoint, config, vocabulary)?;
            Ok(Engine::Composed(Box::new(engine)))
        })
    }

    fn make(
        checkpoint: &Checkpoint,
        new_token: Option<TokenId>,
        settings: Settings,
        engine: impl FnOnce(&LlamaConfig, Vocabulary, &Settings) -> Result<Engine, ModelError>,
    ) -> Result<Self, ModelError> {
        let shape = checkpoint.config();
        check(&settings, shape)?;
        let vocabulary = Vocabulary::new(shape.vocab_size, new_token);
        let config = LlamaConfig { vocab_size: vocabulary.rows, ..shape.clone() };
        let engine = engine(&config, vocabulary, &settings)?;
        Ok(Self { config, settings, tokens: vocabulary.tokens, engine })
    }

    /// Shape and constants of the result; of the whole.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// What is trained, always in the same order; of several ranks, this one's parts.
    pub fn parameters(&self) -> &[Parameter] {
        match &self.engine {
            Engine::Fused(engine) => engine.parameters(),
            Engine::Composed(engine) => engine.parameters(),
        }
    }

    /// A tensor of the result by its Hugging Face name, F32, as it is served: with what LoRA trains merged into it. Of
    /// several ranks all must call, and get the whole.
    ///
    /// # Errors
    /// The model has none of this name.
    pub fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        let tensor = match &self.engine {
            Engine::Fused(engine) => engine.tensor(name)?,
            Engine::Composed(engine) => engine.tensor(name)?,
        };
        tensor.ok_or_else(|| ModelError::Settings(format!("the model has no tensor {name}")))
    }

    /// Forward and backward of some examples. Adds to `gradients` those of Σ weight · nll · `scale`, and returns the sums
    /// without `scale`. `rng` keys dropout and NEFTune.
    ///
    /// # Errors
    /// An example has a token that the model lacks.
    pub fn accumulate(
        &mut self,
        micro: &[&Example],
        scale: f64,
        rng: StepKey,
        gradients: &mut Gradients,
    ) -> Result<LossSum, ModelError> {
        let packed = self.pack(micro)?;
        let noise = packed.noise(rng, &self.settings);
        match &mut self.engine {
            Engine::Fused(engine) => engine.accumulate(&packed, scale, noise, gradients),
            Engine::Composed(engine) => engine.accumulate(&packed, scale, noise, gradients),
        }
    }

    /// Forward alone, without noise.
    ///
    /// # Errors
    /// As [`Model::accumulate`]'s.
    pub fn evaluate(&mut self, micro: &[&Example]) -> Result<LossSum, ModelError> {
        let packed = self.pack(micro)?;
        match &mut self.engine {
            Engine::Fused(engine) => engine.evaluate(&packed),
            Engine::Composed(engine) => engine.evaluate(&packed),
        }
    }

    fn pack(&self, micro: &[&Example]) -> Result<Packed, ModelError> {
        Packed::new(micro, self.settings.prompt_weight, self.tokens)
    }
}

/// The checkpoint's tensors by what is loaded of them, in its order.
fn parts(config: &LlamaConfig) -> Vec<Vec<Part>> {
    let shapes = expected_tensors(config);
    let rows = |name: &str| shapes.iter().find(|(n, _)| n == name).map_or(0, |(_, [rows, _])| *rows);
    let part = |name: String| Part { rows: rows(&name), name };
    stacks(config).into_iter().map(|names| names.into_iter().map(part).collect()).collect()
}

/// Where a tensor is: which of the stacks, and which of its rows.
fn place<'a>(mut stacks: impl Iterator<Item = &'a [Part]>, name: &str) -> Option<(usize, Range<usize>)> {
    let rows_in = |stack: &[Part]| {
        let at = stack.iter().position(|part| part.name == name)?;
        let first = stack[..at].iter().map(|part| part.rows).sum();
        Some(first..first + stack[at].rows)
    };
    let mut at = 0;
    stacks.find_map(|stack| {
        at += 1;
        rows_in(stack).map(|rows| (at - 1, rows))
    })
}

fn check(settings: &Settings, config: &LlamaConfig) -> Result<(), ModelError> {
    if !matches!(settings.dropout.len(), 0) && settings.dropout.len() != config.num_layers {
        let (rates, layers) = (settings.dropout.len(), config.num_layers);
        return Err(ModelError::Settings(format!("{rates} rates of dropout for {layers} layers")));
    }
    match settings.tuning {
        Tuning::Lora { rank: 0, .. } => return Err(ModelError::Settings("a rank of LoRA must be at least 1".into())),
        Tuning::Lora { alpha, .. } if !alpha.is_finite() => {
            return Err(ModelError::Settings(format!("LoRA's alpha is {alpha}")));
        }
        Tuning::Lora { .. } | Tuning::Full => {}
    }
    match settings.dropout.iter().find(|p| !(0.0..1.0).contains(*p)) {
        Some(p) => Err(ModelError::Settings(format!("a rate of dropout is {p}, must be from 0 to below 1"))),
        None => Ok(()),
    }
}
