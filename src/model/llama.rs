//! The Llama, written once over [`Ops`].

use std::path::PathBuf;

use crate::model::config::LlamaConfig;
use crate::model::weights::{Checkpoint, LoadError, Source};
use crate::ops::{Batch, Ops, OpsError};

/// Weights of a LLaMA-architecture model in the form `O` computes with.
pub struct Llama<O: Ops> {
    embed: O::Linear,
    layers: Vec<Layer<O>>,
    norm: O::Norm,
    /// `None` where the embedding is tied.
    head: Option<O::Linear>,
}

struct Layer<O: Ops> {
    attention_norm: O::Norm,
    qkv: O::Linear,
    output: O::Linear,
    ffn_norm: O::Norm,
    gate_up: O::Linear,
    down: O::Linear,
}

/// A model could not be built from a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The checkpoint lacks something or is damaged.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The backend does not take a weight.
    #[error("{file}: tensor {tensor}: {source}", file = file.display())]
    Ops {
        /// The file or directory.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Why.
        source: OpsError,
    },
}

impl<O: Ops> Llama<O> {
    /// Reads every weight of `checkpoint` into `ops`' own form. `progress` gets the bytes read so far.
    pub fn load(
        ops: &mut O,
        checkpoint: &Checkpoint,
        config: &LlamaConfig,
        mut progress: impl FnMut(u64),
    ) -> Result<Self, BuildError> {
        let (Source::HuggingFace(file) | Source::Gguf(file)) = checkpoint.source();
        let fault = |tensor, source| BuildError::Ops { file: file.clone(), tensor, source };
        let mut done = 0;
        let mut linear = |ops: &mut O, names: &[String], gate_up: bool| {
            let parts = names.iter().map(|n| checkpoint.tensor(n)).collect::<Result<Vec<_>, _>>()?;
            done += parts.iter().map(|p| p.num_bytes() as u64).sum::<u64>();
            let made = if gate_up { ops.load_gate_up(&parts[0], &parts[1]) } else { ops.load_linear(&parts) };
            progress(done);
            made.map_err(|source| fault(names[source.part()].clone(), source))
        };
        let norm = |ops: &mut O, name: String| {
            ops.load_norm(&checkpoint.tensor(&name)?, config.rms_norm_eps)
                .map_err(|source| fault(name, source))
        };

        let embed = linear(ops, &["model.embed_tokens.weight".into()], false)?;
        let mut layers = Vec::with_capacity(config.num_layers);
        for i in 0..config.num_layers {
            let name = |part: &str| format!("model.layers.{i}.{part}.weight");
            let attn = |p: &str| name(&format!("self_attn.{p}_proj"));
            let mlp = |p: &str| name(&format!("mlp.{p}_proj"));
            layers.push(Layer {
                attention_norm: norm(ops, name("input_layernorm"))?,
                qkv: linear(ops, &[attn("q"), attn("k"), attn("v")], false)?,
                output: linear(ops, &[attn("o")], false)?,
                ffn_norm: norm(ops, name("post_attention_layernorm"))?,
                gate_up: linear(ops, &[mlp("gate"), mlp("up")], true)?,
                down: linear(ops, &[mlp("down")], false)?,
            });
        }
        let head = match config.tie_word_embeddings {
            true => None,
            false => Some(linear(ops, &["lm_head.weight".into()], false)?),
        };
        Ok(Self { embed, layers, norm: norm(ops, "model.norm.weight".into())?, head })
    }

    /// Logits of the batch's output rows, `[R, vocab]`; appends the batch to the cache.
    pub fn forward(&self, ops: &mut O, batch: &Batch<'_>) -> Result<O::X, OpsError> {
        let x = self.layers(ops, batch)?;
        self.head(ops, &x, batch)
    }

    /// The residual stream after the last layer, `[T, hidden]`; appends the batch to the cache.
    pub fn layers(&self, ops: &mut O, batch: &Batch<'_>) -> Result<O::X, OpsError> {
        let mut x = ops.embed(&self.embed, batch)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let h = ops.rms_norm(&x, &layer.attention_norm)?;
            let qkv = ops.linear(&h, &layer.qkv)?;
            let attended = ops.attention(i, qkv, batch)?;
            x = ops.linear_add(i, attended, &layer.output, x)?;
            let h = ops.rms_norm(&x, &layer.ffn_norm)?;
            let h = ops.gate_up_silu(&h, &layer.gate_up)?;
            x = ops.linear_add(i, h, &layer.down, x)?;
        }
        Ok(x)
    }

    /// Logits of the batch's output rows, `[R, vocab]`, from what [`Llama::layers`] returned.
    pub fn head(&self, ops: &mut O, x: &O::X, batch: &Batch<'_>) -> Result<O::X, OpsError> {
        ops.head(x, &self.norm, self.head.as_ref().unwrap_or(&self.embed), batch)
    }

    /// Final hidden states of the batch's output rows, `[R, hidden]`, from what [`Llama::layers`] returned.
    pub fn hidden(&self, ops: &mut O, x: &O::X, batch: &Batch<'_>) -> Result<O::X, OpsError> {
        ops.hidden(x, &self.norm, batch)
    }
}
