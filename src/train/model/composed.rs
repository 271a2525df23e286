//! Training by candle's autograd over [`Graph`]: the slow twin. It keeps every activation and all logits.

use candle_core::{D, Device, Tensor, Var};

use super::pack::Packed;
use super::vocabulary::Vocabulary;
use super::{Gradients, LossSum, ModelError, Parameter};
use crate::model::config::LlamaConfig;
use crate::model::llama::Llama;
use crate::model::weights::Checkpoint;
use crate::ops::graph::Graph;
use crate::ops::noise::Noise;

pub(super) struct Composed {
    ops: Graph,
    llama: Llama<Graph>,
    tokens: usize,
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
        Ok(Self { ops, llama, tokens: vocabulary.tokens })
    }

    pub fn variables(&self) -> Vec<Var> {
        self.ops.variables().to_vec()
    }

    pub fn accumulate(
        &mut self,
        packed: &Packed,
        scale: f64,
        noise: Noise,
        parameters: &[Parameter],
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
        for (i, parameter) in parameters.iter().enumerate() {
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
        let logits = self.llama.forward(&mut self.ops, &packed.batch())?.narrow(1, 0, self.tokens)?;
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
