//! Training by kernels of our own: [`Tape`].

use super::pack::Packed;
use super::vocabulary::Vocabulary;
use super::{Gradients, LossSum, ModelError, Settings};
use crate::model::config::LlamaConfig;
use crate::model::llama::Llama;
use crate::model::weights::Checkpoint;
use crate::ops::cpu::level::Level;
use crate::ops::noise::Noise;
use crate::ops::tape::{Gradient, Loss, Tape, Targets, X};

pub(super) struct Fused {
    ops: Tape,
    llama: Llama<Tape>,
    vocabulary: Vocabulary,
    checkpointing: bool,
}

impl Fused {
    pub fn load(
        checkpoint: &Checkpoint,
        config: &LlamaConfig,
        vocabulary: Vocabulary,
        settings: &Settings,
    ) -> Result<Self, ModelError> {
        let processors = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let level = Level::from_env().map_err(ModelError::Settings)?;
        let mut ops = Tape::new(config, level, settings.threads.unwrap_or_else(processors));
        let mut llama = Llama::load(&mut ops, checkpoint, config, |_| ())?;
        if let Some(new) = vocabulary.new {
            for table in llama.vocabulary_mut() {
                ops.extend(table, new, vocabulary.rows)?;
            }
        }
        Ok(Self { ops, llama, vocabulary, checkpointing: settings.checkpointing })
    }

    pub fn variables(&self) -> Vec<candle_core::Var> {
        self.ops.variables()
    }

    pub fn accumulate(
        &mut self,
        packed: &Packed,
        scale: f64,
        noise: Noise,
        gradients: &mut Gradients,
    ) -> Result<LossSum, ModelError> {
        self.ops.set_noise(Some(noise));
        let sum = self.both_ways(packed, scale, gradients);
        self.ops.record(false);
        sum
    }

    pub fn evaluate(&mut self, packed: &Packed) -> Result<LossSum, ModelError> {
        self.ops.set_noise(None);
        self.ops.record(false);
        let x = self.llama.layers(&mut self.ops, &packed.batch())?;
        let (norm, head) = self.llama.top();
        let (nll, _) = self.ops.loss(&x, norm, head, self.targets(packed), None)?;
        Ok(LossSum { nll, weight: packed.weight() })
    }

    fn targets<'a>(&self, packed: &'a Packed) -> Targets<'a> {
        let rows = packed.batch().outputs;
        Targets { rows, tokens: &packed.targets, weights: &packed.weights, vocab: self.vocabulary.tokens }
    }

    fn both_ways(&mut self, packed: &Packed, scale: f64, gradients: &mut Gradients) -> Result<LossSum, ModelError> {
        let batch = packed.batch();
        self.ops.record(!self.checkpointing);
        let embedded = self.llama.embed(&mut self.ops, &batch)?;
        // With checkpointing, what entered each layer.
        let mut inputs: Vec<X> = Vec::new();
        let mut x = embedded.clone();
        for layer in 0..self.llama.num_layers() {
            if self.checkpointing {
                inputs.push(x.clone());
            }
            x = self.llama.layer(&mut self.ops, layer, x, &batch)?;
        }
        let (norm, head) = self.llama.top();
        let targets = self.targets(packed);
        let loss = Loss { scale, gradients: &mut *gradients };
        let (nll, gradient) = self.ops.loss(&x, norm, head, targets, Some(loss))?;
        let Some(mut gradient) = gradient else { return Ok(LossSum::default()) };
        if self.checkpointing {
            drop(x);
            for (layer, input) in inputs.into_iter().enumerate().rev() {
                gradient = self.layer_backward(layer, input, packed, gradient, gradients)?;
            }
        } else {
            gradient = self.ops.backward(&x, gradient, &embedded, gradients)?;
        }
        self.ops.embed_backward(self.llama.table(), &batch, &gradient, gradients)?;
        Ok(LossSum { nll, weight: packed.weight() })
    }

    /// Computes a layer again, this time with a record, and the record in reverse.
    fn layer_backward(
        &mut self,
        layer: usize,
        input: X,
        packed: &Packed,
        gradient: Gradient,
        gradients: &mut Gradients,
    ) -> Result<Gradient, ModelError> {
        self.ops.record(true);
        let out = self.llama.layer(&mut self.ops, layer, input.clone(), &packed.batch())?;
        Ok(self.ops.backward(&out, gradient, &input, gradients)?)
    }
}
