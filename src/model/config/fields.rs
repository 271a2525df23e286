//! Every field of a `config.json` is one of four kinds: read, known to change nothing, refused unless it asks for
//! nothing, or unknown.
//!
//! Unknown fields cannot change what a `LlamaForCausalLM` computes, because transformers' class of that name does
//! not read them; they are logged, since a file may have been written for other code. The fields refused are those
//! by which related architectures, or older code, compute something else.

use serde_json::Value;

use super::ConfigError;
use super::json::Fields;

/// Read by [`LlamaConfig::from_hf`](super::LlamaConfig::from_hf).
const READ: &[&str] = &[
    "architectures",
    "model_type",
    "hidden_act",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "original_max_position_embeddings",
    "tie_word_embeddings",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "sliding_window",
    "layer_types",
    "quantization_config",
    "compression_config",
    "rotary_emb_base",
];

/// About training, files, the program that wrote them, or generation: nothing that the forward pass computes.
///
/// `pretraining_tp` splits sums in another order, which transformers no longer does. `auto_map` names Python code,
/// which is not run. `max_sequence_length` of old conversions is what `max_position_embeddings` says, or its default.
const HARMLESS: &[&str] = &[
    "_attn_implementation_autoset",
    "_flash_attn_2_enabled",
    "_name_or_path",
    "_commit_hash",
    "_from_model_config",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "custom_pipelines",
    "decoder_start_token_id",
    "do_sample",
    "dtype",
    "embd_pdrop",
    "end_token_id",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "max_length",
    "max_sequence_length",
    "max_window_layers",
    "min_length",
    "model_max_length",
    "neftune_noise_alpha",
    "num_beams",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "router_aux_loss_coef",
    "sep_token_id",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_sliding_window",
];

/// Refused unless absent, `null`, `false`, 0 or empty.
const OFF: &[&str] = &[
    "add_bias_linear",
    "add_cross_attention",
    "add_qkv_bias",
    "alibi",
    "attention_bias",
    "attention_chunk_size",
    "attention_multiplier",
    "attention_out_bias",
    "attn_bias",
    "attn_logit_softcapping",
    "bias",
    "clip_qkv",
    "cross_attention_hidden_size",
    "cross_attention_layers",
    "final_logit_softcapping",
    "is_encoder_decoder",
    "kv_lora_rank",
    "lm_head_bias",
    "mlp_bias",
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "no_rope_layer_interval",
    "no_rope_layers",
    "num_experts",
    "num_kv_shared_layers",
    "num_local_experts",
    "num_nextn_predict_layers",
    "parallel_residual",
    "pruned_heads",
    "q_lora_rank",
    "qk_layernorm",
    "qk_norm",
    "qkv_bias",
    "query_pre_attn_scalar",
    "rope_interleaved",
    "text_config",
    "tie_encoder_decoder",
    "use_alibi",
    "use_bias",
    "use_parallel_residual",
    "use_qk_norm",
    "vision_config",
];

/// Refused unless absent, `null` or 1.
const ONE: &[&str] = &[
    "embedding_multiplier",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "partial_rotary_factor",
    "residual_multiplier",
    "rope_pct",
    "rotary_pct",
    "scale_depth",
    "scale_emb",
];

/// Refuses, by its name, a field that asks for something that is not computed.
pub(super) fn refuse_unsupported(f: &Fields<'_>) -> Result<(), ConfigError> {
    for name in OFF {
        if let Some(value) = f.get(name).filter(|v| !is_off(v)) {
            let only = if value.is_boolean() { "only false" } else { "only null" };
            return Err(f.unsupported(name, value, only));
        }
    }
    for name in ONE {
        if let Some(value) = f.get(name).filter(|v| v.as_f64() != Some(1.0)) {
            return Err(f.unsupported(name, value, "only 1"));
        }
    }
    for name in ["quantization_config", "compression_config"] {
        if f.get(name).is_some() {
            return Err(ConfigError(format!(
                "{name} is set, which is not supported (use a GGUF file for quantised weights)"
            )));
        }
    }
    if let Some(types) = f.get("layer_types") {
        let all_full = types.as_array().is_some_and(|t| t.iter().all(|t| t == "full_attention"));
        if !all_full {
            return Err(f.unsupported("layer_types", types, "only \"full_attention\""));
        }
    }
    Ok(())
}

/// A window that the context never fills is no window.
pub(super) fn refuse_sliding_window(f: &Fields<'_>, context: usize) -> Result<(), ConfigError> {
    match f.size("sliding_window")? {
        Some(window) if window < context && f.flag("use_sliding_window")? != Some(false) => {
            let value = Value::from(window);
            Err(f.unsupported("sliding_window", &value, "only null, or the whole context"))
        }
        _ => Ok(()),
    }
}

/// Names that are none of the kinds above.
pub(super) fn unknown<'a>(f: &Fields<'a>) -> Vec<&'a str> {
    let known = |name: &&str| ![READ, HARMLESS, OFF, ONE].iter().any(|list| list.contains(name));
    f.names().filter(known).collect()
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}
