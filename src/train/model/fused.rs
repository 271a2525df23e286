//! Training by kernels of our own: [`Tape`].

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use super::pack::Packed;
use super::stack::Stack;
use super::vocabulary::Vocabulary;
use super::{Gradients, LossSum, ModelError, Parameter, Part, Settings, Tuning, parts, place};
use crate::model::config::LlamaConfig;
use crate::model::llama::Llama;
use crate::model::weights::Checkpoint;
use crate::ops::cpu::level::Level;
use crate::ops::dense::Operands;
use crate::ops::noise::Noise;
use crate::ops::quant::DType;
use crate::ops::tape::{Gradient, Keep, Loss, Tape, Targets, X};
use crate::parallel::Communicator;
use crate::train::recipe::{Frozen, Number};

pub(super) struct Fused {
    ops: Tape,
    llama: Llama<Tape>,
    vocabulary: Vocabulary,
    checkpointing: bool,
    tensor: Arc<dyn Communicator>,
    /// The tensors of each weight, in the order they were loaded, with the rows that are here.
    stacks: Vec<Vec<Part>>,
    parameters: Vec<Parameter>,
}

/// Of the matrices that LoRA begins with.
const SEED: u64 = 0x4c6f_5241;

impl Fused {
    pub fn load(
        checkpoint: &Checkpoint,
        config: &LlamaConfig,
        vocabulary: Vocabulary,
        settings: &Settings,
        tensor: Arc<dyn Communicator>,
    ) -> Result<Self, ModelError> {
        let share = tensor.share();
        if share.of > 1 && settings.tuning != Tuning::Full {
            return Err(ModelError::Settings("LoRA's matrices are not cut over tensor-parallel ranks".into()));
        }
        let here = config.divided(share.of).map_err(|e| ModelError::Settings(e.to_string()))?;
        let processors = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let level = Level::from_env().map_err(ModelError::Settings)?;
        let kept = match (settings.tuning, settings.weights) {
            (Tuning::Full, Number::F32) => Keep::F32,
            (Tuning::Full, Number::Bf16) => Keep::Bf16,
            (Tuning::Lora { base: Frozen::F32, .. }, _) => Keep::Frozen(DType::F32),
            (Tuning::Lora { base: Frozen::Q8, .. }, _) => Keep::Frozen(DType::Q8_0),
            (Tuning::Lora { base: Frozen::Q4, .. }, _) => Keep::Frozen(DType::Q4_0),
        };
        let operands = match settings.compute {
            Number::F32 => Operands::F32,
            Number::Bf16 => Operands::Bf16,
        };
        let threads = settings.threads.unwrap_or_else(processors);
        let mut ops = Tape::new(&here, kept, operands, level, threads).over(Arc::clone(&tensor));
        let mut llama = Llama::load_shard(&mut ops, checkpoint, config, share, |_| ())?;
        let stacks = parts(&here);
        let mut names: Vec<Vec<Part>> = if settings.tuning == Tuning::Full { stacks.clone() } else { Vec::new() };
        if let Some(new) = vocabulary.new {
            for table in llama.vocabulary_mut() {
                ops.extend(table, new, vocabulary.rows)?;
            }
            if settings.tuning != Tuning::Full {
                let tables = stacks.iter().filter(|s| s[0].rows == vocabulary.rows && is_table(&s[0].name));
                names.extend(tables.map(|s| vec![Part { rows: 1, ..s[0].clone() }]));
            }
        }
        if let Tuning::Lora { rank, alpha, .. } = settings.tuning {
            let products = stacks.iter().enumerate().filter(|(_, s)| s[0].name.ends_with("_proj.weight"));
            for (at, stack) in products {
                let rows: Vec<usize> = stack.iter().map(|p| p.rows).collect();
                ops.adapt(at, &rows, rank, alpha / rank as f32, SEED)?;
                for part in stack {
                    let name = |which| {
                        format!("base_model.model.{}.lora_{which}.weight", part.name.trim_end_matches(".weight"))
                    };
                    names.push(vec![Part { name: name("A"), rows: rank }]);
                    names.push(vec![Part { name: name("B"), rows: part.rows }]);
                }
            }
        }
        let parameter =
            |(tensors, var): (Vec<Part>, &Var)| Parameter { decay: var.rank() == 2, var: var.clone(), tensors };
        let parameters = names.into_iter().zip(ops.variables()).map(parameter).collect();
        let checkpointing = settings.checkpointing;
        Ok(Self { ops, llama, vocabulary, checkpointing, tensor, stacks, parameters })
    }

    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// A tensor as it is served.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>, ModelError> {
        let Some((at, rows)) = place(self.stacks.iter().map(Vec::as_slice), name) else { return Ok(None) };
        let part = Part { name: name.to_owned(), rows: rows.len() };
        let values = self.ops.merged(at, rows)?;
        let stack = Stack::new(&[part], values.len(), self.tensor.world_size());
        let values = stack.gather(values, &*self.tensor)?;
        let [count, cols] = stack.shape();
        Ok(Some(match name.ends_with("norm.weight") {
            true => Tensor::from_vec(values, cols, &Device::Cpu)?,
            false => Tensor::from_vec(values, (count, cols), &Device::Cpu)?,
        }))
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

fn is_table(name: &str) -> bool {
    matches!(name, "model.embed_tokens.weight" | "lm_head.weight")
}
