//! The Llama, written once over [`Ops`].

use crate::model::config::LlamaConfig;
use crate::model::lora::{Part, Site};
use crate::model::weights::{Checkpoint, LoadError};
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

impl<O: Ops> Llama<O> {
    /// Reads every weight of `checkpoint` into `ops`' own form, one product's matrices at a time, and lets go of the
    /// file's pages behind. `progress` gets the bytes read so far.
    pub fn load(
        ops: &mut O,
        checkpoint: &Checkpoint,
        config: &LlamaConfig,
        mut progress: impl FnMut(u64),
    ) -> Result<Self, LoadError> {
        let fault = |name: &str, e: OpsError| checkpoint.tensor_error(name, format_args!("cannot be used: {e}"));
        let mut done = 0;
        let mut linear = |ops: &mut O, names: &[String], gate_up: bool| {
            let parts = names.iter().map(|n| checkpoint.tensor(n)).collect::<Result<Vec<_>, _>>()?;
            done += parts.iter().map(|p| p.num_bytes() as u64).sum::<u64>();
            let made = if gate_up { ops.load_gate_up(&parts[0], &parts[1]) } else { ops.load_linear(&parts) };
            drop(parts);
            names.iter().for_each(|n| checkpoint.release(n));
            progress(done);
            made.map_err(|source| fault(&names[source.part()], source))
        };
        let norm = |ops: &mut O, name: String| {
            ops.load_norm(&checkpoint.tensor(&name)?, config.rms_norm_eps).map_err(|source| fault(&name, source))
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
            let at = |part| Site { layer: i, part };
            let h = ops.rms_norm(&x, &layer.attention_norm)?;
            let qkv = ops.linear(at(Part::Qkv), &h, &layer.qkv, batch)?;
            let attended = ops.attention(i, qkv, batch)?;
            x = ops.linear_add(at(Part::Output), attended, &layer.output, x, batch)?;
            let h = ops.rms_norm(&x, &layer.ffn_norm)?;
            let h = ops.gate_up_silu(at(Part::GateUp), &h, &layer.gate_up, batch)?;
            x = ops.linear_add(at(Part::Down), h, &layer.down, x, batch)?;
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
