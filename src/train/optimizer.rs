//! AdamW (Loshchilov and Hutter, 2019), as PyTorch's: decay apart from the gradient, both means corrected for their
//! beginning at zero.
//!
//! A step reads and writes weights and moments once, in place. Every number is computed from its own weight, moments
//! and gradient alone, so threads change nothing.

mod rounding;
mod update;

use candle_core::DType;
use half::bf16;

use super::model::{Gradients, Parameter};
use super::recipe::{Number, Recipe};
use crate::ops::parameter::read;
use crate::parallel::Share;
use update::{Step, update};

/// Constants of all steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub eps: f64,
    /// Times the learning rate: the share that a weight of a matrix loses in a step.
    pub weight_decay: f64,
    /// Format of the two means, rounded to nearest.
    pub moments: Number,
    /// Of the rounding of BF16 weights.
    pub seed: u64,
}

impl From<&Recipe> for Settings {
    fn from(r: &Recipe) -> Self {
        let Recipe { beta1, beta2, eps, weight_decay, moments, seed, .. } = *r;
        Self { beta1, beta2, eps, weight_decay, moments, seed }
    }
}

/// A step failed.
#[derive(Debug, thiserror::Error)]
pub enum OptimizerError {
    /// A weight is NaN or infinite after the step.
    #[error("weights of {0} are no longer finite")]
    NotFinite(String),
    /// Tensors that do not belong together, or not to the CPU.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The two means of one parameter, a number each for every weight.
#[derive(Clone, Debug, PartialEq)]
pub enum Moments {
    /// Of gradients, and of their squares.
    F32(Vec<f32>, Vec<f32>),
    /// Likewise.
    Bf16(Vec<bf16>, Vec<bf16>),
}

impl Moments {
    /// `len` zeros each.
    pub fn zeros(format: Number, len: usize) -> Self {
        match format {
            Number::F32 => Self::F32(vec![0.0; len], vec![0.0; len]),
            Number::Bf16 => Self::Bf16(vec![bf16::ZERO; len], vec![bf16::ZERO; len]),
        }
    }
}

/// Which part of the work is one rank's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Of every parameter's numbers, those whose means it keeps and which it changes (ZeRO-1).
    pub data: Share,
    /// Of the model, which part its parameters are; keys the bits of rounding.
    pub tensor: Share,
}

impl Owner {
    /// One rank.
    pub const ALL: Self = Self { data: Share::WHOLE, tensor: Share::WHOLE };
}

/// The optimizer of a model's parameters, by their order.
#[derive(Debug)]
pub struct AdamW {
    settings: Settings,
    owner: Owner,
    steps: u64,
    moments: Vec<Moments>,
}

impl AdamW {
    /// Before the first step.
    pub fn new(parameters: &[Parameter], settings: Settings) -> Self {
        Self::shard(parameters, settings, Owner::ALL)
    }

    /// Before the first step, of one rank.
    pub fn shard(parameters: &[Parameter], settings: Settings, owner: Owner) -> Self {
        let zeros = |p: &Parameter| Moments::zeros(settings.moments, owner.data.of(p.var.elem_count()).len());
        Self { settings, owner, steps: 0, moments: parameters.iter().map(zeros).collect() }
    }

    /// After `steps` steps, which left `moments`.
    pub fn resumed(settings: Settings, owner: Owner, steps: u64, moments: Vec<Moments>) -> Self {
        Self { settings, owner, steps, moments }
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// By the parameters' order; of several ranks, this one's part ([`Owner`]).
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Changes this rank's part of every parameter that has a gradient. F32 weights are rounded to nearest, BF16 weights up or down with
    /// the probabilities that make the mean right: their steps are mostly smaller than half of what BF16 can tell apart.
    ///
    /// # Errors
    /// A weight is not finite any more. Weights have changed by then.
    pub fn step(&mut self, parameters: &[Parameter], gradients: &Gradients, lr: f64) -> Result<(), OptimizerError> {
        self.steps += 1;
        let all = parameters.iter().zip(gradients.tensors()).zip(&mut self.moments).enumerate();
        for (i, ((parameter, gradient), moments)) in all {
            let Some(gradient) = gradient else { continue };
            let part = self.owner.data.of(parameter.var.elem_count());
            // Parameters are below 2¹⁶.
            let key = (self.owner.tensor.rank as u32) << 16 | i as u32;
            let step = Step::new(&self.settings, self.steps, lr, parameter.decay, key);
            let finite = read(gradient, |g| update(&parameter.var, &step, moments, g, part))??;
            if !finite {
                let name = parameter.tensors.first().map_or_else(String::new, |part| part.name.clone());
                return Err(OptimizerError::NotFinite(name));
            }
        }
        Ok(())
    }
}

/// The format of a parameter's weights; `None` for one that is not trained here.
pub fn format(parameter: &Parameter) -> Option<Number> {
    match parameter.var.dtype() {
        DType::F32 => Some(Number::F32),
        DType::BF16 => Some(Number::Bf16),
        _ => None,
    }
}
