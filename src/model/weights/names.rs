//! Hugging Face's tensor names: which a model needs, and what GGUF calls them.

use crate::model::config::LlamaConfig;

/// The tensors of a model, `[rows, columns]`; norms are one row.
pub fn expected_tensors(config: &LlamaConfig) -> Vec<(String, [usize; 2])> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.q_size(), config.kv_size());
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), [config.vocab_size, hidden])];
    for layer in 0..config.num_layers {
        let parts = [
            ("input_layernorm", [1, hidden]),
            ("self_attn.q_proj", [q, hidden]),
            ("self_attn.k_proj", [kv, hidden]),
            ("self_attn.v_proj", [kv, hidden]),
            ("self_attn.o_proj", [hidden, q]),
            ("post_attention_layernorm", [1, hidden]),
            ("mlp.gate_proj", [inner, hidden]),
            ("mlp.up_proj", [inner, hidden]),
            ("mlp.down_proj", [hidden, inner]),
        ];
        tensors.extend(parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape)));
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

/// What a GGUF tensor is called here; `None` for a name no Llama has.
pub(super) fn from_gguf(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => return Some("model.norm.weight".to_owned()),
        "output.weight" => return Some("lm_head.weight".to_owned()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    // Only the plain spelling: "01" and "1" must not meet.
    let layer = layer.parse::<u32>().ok().filter(|n| n.to_string() == layer)?;
    let part = match part.strip_suffix(".weight")? {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.weight"))
}

/// Whether GGUF stores this tensor's rows in its own order (see [`super::view::TensorView::row`]).
pub(super) fn is_permuted_in_gguf(hf_name: &str) -> bool {
    hf_name.ends_with(".self_attn.q_proj.weight") || hf_name.ends_with(".self_attn.k_proj.weight")
}
