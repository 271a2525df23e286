//! The Llama, written once over [`Ops`].

use crate::model::config::LlamaConfig;
use crate::model::lora::{Part, Site};
use crate::model::weights::shard::shard;
use crate::model::weights::{Checkpoint, LoadError, TensorView};
use crate::ops::{Batch, Ops, OpsError};
use crate::parallel::Share;

/// Weights of a LLaMA-architecture model in the form `O` computes with.
pub struct Llama<O: Ops> {
    embed: O::Linear,
    layers: Vec<Layer<O>>,
    norm: O::Norm,
    /// `None` where the embedding is tied.
    head: Option<O::Linear>,
}

/// The checkpoint's tensors by what [`Llama::load`] makes of them, in its order: those of one matrix together.
pub fn stacks(config: &LlamaConfig) -> Vec<Vec<String>> {
    let mut stacks = vec![vec!["model.embed_tokens.weight".to_owned()]];
    for i in 0..config.num_layers {
        let name = |part: &str| format!("model.layers.{i}.{part}.weight");
        let products = |part: Part| part.projections().iter().map(|p| name(p.name())).collect();
        stacks.extend([
            vec![name("input_layernorm")],
            products(Part::Qkv),
            products(Part::Output),
            vec![name("post_attention_layernorm")],
            products(Part::GateUp),
            products(Part::Down),
        ]);
    }
    if !config.tie_word_embeddings {
        stacks.push(vec!["lm_head.weight".to_owned()]);
    }
    stacks.push(vec!["model.norm.weight".to_owned()]);
    stacks
}

struct Layer<O: Ops> {
    attention_norm: O::Norm,
    qkv: O::Linear,
    output: O::Linear,
    ffn_norm: O::Norm,
    gate_up: O::Linear,
    down: O::Linear,
}

impl<O: Ops> Llama<O> {
    /// Reads every weight of `checkpoint`: [`Llama::load_shard`] of one rank.
    ///
    /// # Errors
    /// A weight is missing or cannot be used.
    pub fn load(
        ops: &mut O,
        checkpoint: &Checkpoint,
        config: &LlamaConfig,
        progress: impl FnMut(u64),
    ) -> Result<Self, LoadError> {
        Self::load_shard(ops, checkpoint, config, Share::WHOLE, progress)
    }

    /// Reads a tensor-parallel rank's part of every weight of `checkpoint`, a model of shape `config`, into `ops`' own form,
    /// one product's matrices at a time, and lets go of the file's pages behind. `progress` gets the bytes read so far.
    ///
    /// # Errors
    /// A weight is missing or cannot be used.
    pub fn load_shard(
        ops: &mut O,
        checkpoint: &Checkpoint,
        config: &LlamaConfig,
        share: Share,
        progress: impl FnMut(u64),
    ) -> Result<Self, LoadError> {
        let vocab = config.vocab_size;
        Self::load_parts(ops, checkpoint, config, share.of, |whole, name| shard(whole, name, vocab, share), progress)
    }

    /// The same, with what `part` makes of a tensor and its name: that of one of `ranks` ranks, and `None` where the format
    /// cannot be cut so.
    ///
    /// # Errors
    /// As [`Llama::load_shard`]'s.
    pub fn load_parts(
        ops: &mut O,
        checkpoint: &Checkpoint,
        config: &LlamaConfig,
        ranks: usize,
        part: impl for<'a> Fn(&TensorView<'a>, &str) -> Option<TensorView<'a>>,
        mut progress: impl FnMut(u64),
    ) -> Result<Self, LoadError> {
        let fault = |name: &str, e: OpsError| checkpoint.tensor_error(name, format_args!("cannot be used: {e}"));
        let tensor = |name: &str| {
            let whole = checkpoint.tensor(name)?;
            let uneven = || {
                let format = whole.dtype;
                checkpoint
                    .tensor_error(name, format_args!("cannot be cut over {ranks} ranks between blocks of {format}"))
            };
            part(&whole, name).ok_or_else(uneven)
        };
        let mut done = 0;
        let mut linear = |ops: &mut O, names: Vec<String>, gate_up: bool| {
            let parts = names.iter().map(|n| tensor(n)).collect::<Result<Vec<_>, _>>()?;
            done += parts.iter().map(|p| p.num_bytes() as u64).sum::<u64>();
            let made = if gate_up { ops.load_gate_up(&parts[0], &parts[1]) } else { ops.load_linear(&parts) };
            drop(parts);
            names.iter().for_each(|n| checkpoint.release(n));
            progress(done);
            made.map_err(|source| fault(&names[source.part()], source))
        };
        let norm = |ops: &mut O, names: Vec<String>| {
            let name = &names[0];
            ops.load_norm(&tensor(name)?, config.rms_norm_eps).map_err(|source| fault(name, source))
        };

        let mut stacks = stacks(config).into_iter();
        let mut next = || stacks.next().expect("a stack for each weight that is loaded");
        let embed = linear(ops, next(), false)?;
        let mut layers = Vec::with_capacity(config.num_layers);
        for _ in 0..config.num_layers {
            layers.push(Layer {
                attention_norm: norm(ops, next())?,
                qkv: linear(ops, next(), false)?,
                output: linear(ops, next(), false)?,
                ffn_norm: norm(ops, next())?,
                gate_up: linear(ops, next(), true)?,
                down: linear(ops, next(), false)?,
            });
        }
        let head = match config.tie_word_embeddings {
            true => None,
            false => Some(linear(ops, next(), false)?),
        };
        Ok(Self { embed, layers, norm: norm(ops, next())?, head })
    }

    /// Logits of the batch's output rows, `[R, vocab]`; appends the batch to the cache.
    pub fn forward(&self, ops: &mut O, batch: &Batch<'_>) -> Result<O::X, OpsError> {
        let x = self.layers(ops, batch)?;
        self.head(ops, &x, batch)
    }

    /// The residual stream after the last layer, `[T, hidden]`; appends the batch to the cache.
    pub fn layers(&self, ops: &mut O, batch: &Batch<'_>) -> Result<O::X, OpsError> {
        let mut x = self.embed(ops, batch)?;
        for i in 0..self.layers.len() {
            x = self.layer(ops, i, x, batch)?;
        }
        Ok(x)
    }

    /// The residual stream before the first layer, `[T, hidden]`.
    pub fn embed(&self, ops: &mut O, batch: &Batch<'_>) -> Result<O::X, OpsError> {
        ops.embed(&self.embed, batch)
    }

    /// The residual stream `x` after layer `i`; appends the batch to the layer's cache.
    pub fn layer(&self, ops: &mut O, i: usize, x: O::X, batch: &Batch<'_>) -> Result<O::X, OpsError> {
        let layer = &self.layers[i];
        let at = |part| Site { layer: i, part };
        let h = ops.rms_norm(&x, &layer.attention_norm)?;
        let qkv = ops.linear(at(Part::Qkv), &h, &layer.qkv, batch)?;
        let attended = ops.attention(i, qkv, batch)?;
        let x = ops.linear_add(at(Part::Output), attended, &layer.output, x, batch)?;
        let h = ops.rms_norm(&x, &layer.ffn_norm)?;
        let h = ops.gate_up_silu(at(Part::GateUp), &h, &layer.gate_up, batch)?;
        ops.linear_add(at(Part::Down), h, &layer.down, x, batch)
    }

    /// How many layers there are.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// The last norm, and the matrix that makes logits.
    pub fn top(&self) -> (&O::Norm, &O::Linear) {
        (&self.norm, self.head.as_ref().unwrap_or(&self.embed))
    }

    /// The embedding.
    pub fn table(&self) -> &O::Linear {
        &self.embed
    }

    /// The matrices with a row for each token: the embedding, and the head where it is another.
    pub fn vocabulary_mut(&mut self) -> impl Iterator<Item = &mut O::Linear> {
        std::iter::once(&mut self.embed).chain(self.head.as_mut())
    }

    /// Logits of the batch's output rows, `[R, vocab]`, from what [`Llama::layers`] returned.
    pub fn head(&self, ops: &mut O, x: &O::X, batch: &Batch<'_>) -> Result<O::X, OpsError> {
        let (norm, head) = self.top();
        ops.head(x, norm, head, batch)
    }

    /// Final hidden states of the batch's output rows, `[R, hidden]`, from what [`Llama::layers`] returned.
    pub fn hidden(&self, ops: &mut O, x: &O::X, batch: &Batch<'_>) -> Result<O::X, OpsError> {
        ops.hidden(x, &self.norm, batch)
    }
}
