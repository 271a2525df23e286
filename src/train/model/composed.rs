//! Training by candle's autograd over [`Graph`]: the slow twin. It keeps every activation and all logits.

use candle_core::{D, Device, Tensor, Var};

use super::pack::Packed;
use super::vocabulary::Vocabulary;
use super::{Gradients, LossSum, ModelError, Parameter, Part, parts, place};
use crate::model::config::LlamaConfig;
use crate::model::llama::Llama;
use crate::model::weights::Checkpoint;
use crate::ops::graph::Graph;
use crate::ops::noise::Noise;

pub(super) struct Composed {
    ops: Graph,
    llama: Llama<Graph>,
    tokens: usize,
    parameters: Vec<Parameter>,
}

impl Composed {
    pub fn load(checkpoint: &Checkpoint, config: &LlamaConfig, vocabulary: Vocabulary) -> Result<Self, ModelError> {
        let mut ops = Graph::trainable(config);
        let mut llama = Llama::load(&mut ops, checkpoint, config, |_| ())?;
        if let Some(new) = vocabulary.new {
            for table in llama.vocabulary_mut() {
                ops.extend(table, new, vocabulary.rows)?;
            }
        }
        let parameter =
            |(tensors, var): (Vec<Part>, &Var)| Parameter { decay: var.rank() == 2, var: var.clone(), tensors };
        let parameters = parts(config).into_iter().zip(ops.variables()).map(parameter).collect();
        Ok(Self { ops, llama, tokens: vocabulary.tokens, parameters })
    }

    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>, ModelError> {
        let Some((at, rows)) = place(self.parameters.iter().map(|p| p.tensors.as_slice()), name) else {
            return Ok(None);
        };
        let all = self.parameters[at].var.as_tensor();
        Ok(Some(if all.rank() == 1 { all.copy()? } else { all.narrow(0, rows.start, rows.len())?.copy()? }))
    }

    pub fn accumulate(
        &mut self,
        packed: &Packed,
        scale: f64,
        noise: Noise,
        gradients: &mut Gradients,
    ) -> Result<LossSum, ModelError> {
        if packed.weights.is_empty() {
            return Ok(LossSum::default());
        }
        self.ops.set_noise(Some(noise));
        let nll = self.nll(packed);
        self.ops.set_noise(None);
        let nll = nll?;
        let store = (nll.sum_all()? * scale)?.backward()?;
        for (i, parameter) in self.parameters.iter().enumerate() {
            if let Some(gradient) = store.get(&parameter.var) {
                let values = gradient.flatten_all()?.to_vec1::<f32>()?;
                gradients.edit(i, |g| g.iter_mut().zip(values).for_each(|(g, v)| *g += v))?;
            }
        }
        sum(&nll, packed)
    }

    pub fn evaluate(&mut self, packed: &Packed) -> Result<LossSum, ModelError> {
        if packed.weights.is_empty() {
            return Ok(LossSum::default());
        }
        let nll = self.nll(packed)?;
        sum(&nll, packed)
    }

    /// Weight · negative log-likelihood of each target.
    fn nll(&mut self, packed: &Packed) -> Result<Tensor, ModelError> {
        let logits = self.llama.forward(&mut self.ops, &packed.batch())?.narrow(1, 0, self.tokens)?.contiguous()?;
        let max = logits.detach().max_keepdim(D::Minus1)?;
        let total = (logits.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()? + max)?;
        let targets = Tensor::new(packed.targets.as_slice(), &Device::Cpu)?.unsqueeze(1)?;
        let weights = Tensor::new(packed.weights.as_slice(), &Device::Cpu)?;
        Ok(((total - logits.gather(&targets, 1)?)?.squeeze(1)? * weights)?)
    }
}

fn sum(nll: &Tensor, packed: &Packed) -> Result<LossSum, ModelError> {
    let nll = nll.to_vec1::<f32>()?.into_iter().map(f64::from).sum();
    Ok(LossSum { nll, weight: packed.weight() })
}
