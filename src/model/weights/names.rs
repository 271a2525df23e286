//! Hugging Face's tensor names: which a model needs, and what GGUF calls them.

use crate::model::config::LlamaConfig;
use crate::model::lora::Projection;

/// The tensors of a model, `[rows, columns]`; norms are one row.
pub fn expected_tensors(config: &LlamaConfig) -> Vec<(String, [usize; 2])> {
    let hidden = config.hidden_size;
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), [config.vocab_size, hidden])];
    for layer in 0..config.num_layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        tensors.push((name("input_layernorm"), [1, hidden]));
        tensors.extend(Projection::ALL.map(|p| (name(p.name()), p.shape(config).into())));
        tensors.push((name("post_attention_layernorm"), [1, hidden]));
    }
    tensors.push(("model.norm.weight".to_owned(), [1, hidden]));
    if !config.tie_word_embeddings {
        tensors.push(("lm_head.weight".to_owned(), [config.vocab_size, hidden]));
    }
    tensors
}

/// Tensors that may be in a file and are not needed: buffers of old transformers, and the output
/// projection where it is the embedding.
pub(super) fn is_ignored(name: &str, config: &LlamaConfig) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (name == "lm_head.weight" && config.tie_word_embeddings)
}

/// Whether a tensor has a row for each token.
pub(super) fn is_vocabulary(name: &str) -> bool {
    matches!(name, "model.embed_tokens.weight" | "lm_head.weight")
}

/// Tensors that are not in a layer: Hugging Face's name, GGUF's name.
const WHOLE: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// The parts of a layer, likewise, each before `.weight`.
const PARTS: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// What a GGUF tensor is called here; `None` for a name no Llama has.
pub(super) fn from_gguf(name: &str) -> Option<String> {
    if let Some((hf, _)) = WHOLE.iter().find(|(_, gguf)| *gguf == name) {
        return Some((*hf).to_owned());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    // Only the plain spelling: "01" and "1" must not meet.
    let layer = layer.parse::<u32>().ok().filter(|n| n.to_string() == layer)?;
    let part = part.strip_suffix(".weight")?;
    let (hf, _) = PARTS.iter().find(|(_, gguf)| *gguf == part)?;
    Some(format!("model.layers.{layer}.{hf}.weight"))
}

/// The inverse of `from_gguf`.
pub fn to_gguf(name: &str) -> Option<String> {
    if let Some((_, gguf)) = WHOLE.iter().find(|(hf, _)| *hf == name) {
        return Some((*gguf).to_owned());
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let part = part.strip_suffix(".weight")?;
    let (_, gguf) = PARTS.iter().find(|(hf, _)| *hf == part)?;
    Some(format!("blk.{layer}.{gguf}.weight"))
}

/// Whether GGUF stores this tensor's rows in its own order (see [`super::view::TensorView::row`]).
pub(super) fn is_permuted_in_gguf(hf_name: &str) -> bool {
    hf_name.ends_with(".self_attn.q_proj.weight") || hf_name.ends_with(".self_attn.k_proj.weight")
}
