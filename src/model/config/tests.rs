use serde_json::{Map, Value, json};

use super::*;

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// As transformers 5 writes it.
fn newer() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
        "dtype": "float32", "eos_token_id": 2, "head_dim": 16, "hidden_act": "silu", "hidden_size": 64,
        "initializer_range": 0.02, "intermediate_size": 128, "max_position_embeddings": 256, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "pad_token_id": null, "pretraining_tp": 1, "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64, "rope_theta": 500000.0, "rope_type": "llama3"
        },
        "tie_word_embeddings": true, "transformers_version": "5.23.0", "use_cache": true, "vocab_size": 96
    })
}

/// As transformers 4 writes it.
fn older() -> Value {
    let mut v = newer();
    let o = v.as_object_mut().unwrap();
    o.remove("rope_parameters");
    o.remove("head_dim");
    o.insert("rope_theta".into(), json!(500000.0));
    o.insert(
        "rope_scaling".into(),
        json!({"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
               "original_max_position_embeddings": 64, "rope_type": "llama3"}),
    );
    v
}

fn with(base: Value, field: &str, value: Value) -> Result<LlamaConfig, String> {
    let mut map = object(base);
    map.insert(field.into(), value);
    LlamaConfig::from_hf(&map).map_err(|e| e.to_string())
}

#[test]
fn both_layouts_read_the_same() {
    let expected = LlamaConfig {
        vocab_size: 96,
        hidden_size: 64,
        intermediate_size: 128,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        rms_norm_eps: 1e-6,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 64,
        },
        tie_word_embeddings: true,
        max_position_embeddings: 256,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    };
    assert_eq!(LlamaConfig::from_hf(&object(newer())), Ok(expected.clone()));
    assert_eq!(LlamaConfig::from_hf(&object(older())), Ok(expected));
}

#[test]
fn absent_and_null_fields_take_defaults() {
    let minimal = json!({
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": null,
        "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 96, "rope_scaling": null, "head_dim": null
    });
    let c = LlamaConfig::from_hf(&object(minimal)).unwrap();
    assert_eq!((c.num_kv_heads, c.head_dim, c.rope_theta, c.rms_norm_eps), (4, 16, 10_000.0, 1e-6));
    assert_eq!((c.tie_word_embeddings, c.max_position_embeddings, c.bos_token_id), (false, 2048, None));
    assert_eq!((c.eos_token_ids, c.rope_scaling), (vec![], RopeScaling::None));

    assert_eq!(with(newer(), "eos_token_id", json!([2, 7])).unwrap().eos_token_ids, [2, 7]);
    assert_eq!(with(newer(), "head_dim", json!(24)).unwrap().q_size(), 96);
    let linear = json!({"type": "linear", "factor": 2});
    let mut base = newer();
    base.as_object_mut().unwrap().remove("rope_parameters");
    assert_eq!(with(base, "rope_scaling", linear).unwrap().rope_scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn refusals_name_the_field() {
    for (field, value) in [
        ("architectures", json!(["MistralForCausalLM"])),
        ("architectures", json!("LlamaForCausalLM")),
        ("model_type", json!("mistral")),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("mlp_bias", json!("yes")),
        ("qkv_bias", json!(true)),
        ("rope_interleaved", json!(true)),
        ("qk_norm", json!(true)),
        ("num_local_experts", json!(8)),
        ("sliding_window", json!(255)),
        ("sliding_window", json!("wide")),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("final_logit_softcapping", json!(30.0)),
        ("attention_multiplier", json!(0.5)),
        ("embedding_multiplier", json!(12.0)),
        ("logits_scaling", json!(8)),
        ("rotary_emb_base", json!(1e6)),
        ("text_config", json!({"hidden_size": 8})),
        ("partial_rotary_factor", json!(0.5)),
        ("quantization_config", json!({"quant_method": "awq"})),
        ("hidden_size", json!(0)),
        ("hidden_size", json!("64")),
        ("hidden_size", json!(-64)),
        ("hidden_size", json!(64.5)),
        ("vocab_size", json!(null)),
        ("vocab_size", json!(u64::MAX)),
        ("intermediate_size", json!(1e300)),
        ("num_attention_heads", json!(3)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(15)),
        ("num_hidden_layers", json!(1 << 20)),
        ("rms_norm_eps", json!(0)),
        ("rms_norm_eps", json!(1e39)),
        ("rope_theta", json!(12.0)),
        ("max_position_embeddings", json!(0)),
        ("tie_word_embeddings", json!(1)),
        ("bos_token_id", json!(-1)),
        ("eos_token_id", json!([2, "x"])),
        ("rope_parameters", json!([])),
    ] {
        let message = with(newer(), field, value.clone()).unwrap_err();
        assert!(message.contains(field) && !message.contains('\n'), "{field} {value}: {message}");
    }
    let out_of_vocabulary = with(newer(), "eos_token_id", json!(96)).unwrap_err();
    assert!(out_of_vocabulary.contains("token id 96"), "{out_of_vocabulary}");
    let mut base = older();
    base.as_object_mut().unwrap().insert("num_attention_heads".into(), json!(5));
    assert!(with(base, "num_key_value_heads", json!(5)).unwrap_err().contains("hidden_size 64 is not a multiple"));
}

#[test]
fn rope_refusals_name_the_field() {
    let llama3 = newer()["rope_parameters"].clone();
    for (field, value, word) in [
        ("attention_factor", json!(1.2), "rope_parameters.attention_factor is 1.2"),
        ("mscale", json!(1), "rope_parameters.mscale"),
        ("full_attention", json!({}), "rope_parameters.full_attention"),
        ("rope_type", json!(null), "rope_parameters.rope_type is missing"),
        ("original_max_position_embeddings", json!(null), "original_max_position_embeddings is missing"),
        ("rope_type", json!("yarn"), "yarn"),
        ("rope_type", json!("dynamic"), "dynamic"),
        ("factor", json!(0), "factor"),
        ("factor", json!(null), "rope_parameters.factor is missing"),
        ("low_freq_factor", json!(4.0), "low_freq_factor must be below"),
        ("high_freq_factor", json!("x"), "rope_parameters.high_freq_factor"),
        ("original_max_position_embeddings", json!(0), "original_max_position_embeddings"),
        ("rope_theta", json!(0.5), "rope_theta"),
    ] {
        let mut parameters = object(llama3.clone());
        parameters.insert(field.into(), value);
        let message = with(newer(), "rope_parameters", parameters.into()).unwrap_err();
        assert!(message.contains(word), "{field}: {message}");
    }
    let other = json!({"rope_type": "linear", "factor": 2.0});
    assert!(with(newer(), "rope_scaling", other).unwrap_err().contains("disagree"));
}

/// Fields that real checkpoints have and that ask for nothing.
#[test]
fn fields_that_change_nothing_are_accepted() {
    let plain = with(newer(), "pad_token_id", json!(0)).unwrap();
    for (field, value) in [
        ("architectures", json!(["LLaMAForCausalLM"])),
        ("hidden_act", json!("swish")),
        ("pad_token_id", json!(-1)),
        ("pretraining_tp", json!(2)),
        ("max_sequence_length", json!(2048)),
        ("auto_map", json!({"AutoModelForCausalLM": "modeling_flash_llama.LlamaForCausalLM"})),
        ("transformers.js_config", json!({"kv_cache_dtype": {"fp16": "float16"}})),
        ("unsloth_fixed", json!(true)),
        ("rope_interleaved", json!(false)),
        ("rotary_emb_base", json!(500000)),
        ("original_max_position_embeddings", json!(64)),
        ("sliding_window", json!(256)),
        ("sliding_window", json!(null)),
        ("partial_rotary_factor", json!(1.0)),
        ("residual_multiplier", json!(1)),
        ("layer_types", json!(["full_attention", "full_attention"])),
        ("num_experts", json!(0)),
        ("pruned_heads", json!({})),
        ("gradient_accumulation_steps", json!(2)),
    ] {
        assert_eq!(with(newer(), field, value.clone()).as_ref(), Ok(&plain), "{field} {value}");
    }
    let mut unused = object(newer());
    unused.insert("sliding_window".into(), json!(16));
    unused.insert("use_sliding_window".into(), json!(false));
    assert_eq!(LlamaConfig::from_hf(&unused).as_ref(), Ok(&plain));
    unused.insert("patch_size".into(), json!(4));
    assert_eq!(fields::unknown(&json::Fields::new(&unused, "")), ["patch_size"]);
    assert!(fields::unknown(&json::Fields::new(&object(newer()), "")).is_empty());
}

/// Where Llama 3's original length stands outside its object, and both spellings of the type.
#[test]
fn rope_fields_of_other_writers() {
    let mut config = object(older());
    config.insert("original_max_position_embeddings".into(), json!(64));
    let scaling = config["rope_scaling"].as_object_mut().unwrap();
    scaling.remove("original_max_position_embeddings");
    scaling.insert("type".into(), json!("llama3"));
    scaling.insert("attention_factor".into(), json!(1.0));
    assert_eq!(LlamaConfig::from_hf(&config), LlamaConfig::from_hf(&object(newer())));
    config["rope_scaling"]["original_max_position_embeddings"] = json!(32);
    assert!(LlamaConfig::from_hf(&config).unwrap_err().to_string().contains("given twice"));
}

/// Any number in any field is a configuration or an error: nothing panics or overflows.
#[test]
fn extreme_values() {
    let numbers = [
        json!(0),
        json!(1),
        json!(-1),
        json!(2),
        json!(3),
        json!(1u64 << 20),
        json!(1u64 << 40),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(0.5),
        json!(-0.0),
        json!(1e-320),
        json!(1e300),
        json!(-1e300),
        json!([]),
        json!({}),
        json!(""),
        json!(true),
        json!([1, [2]]),
        json!({"factor": 1e300}),
    ];
    let fields: Vec<String> = object(newer()).keys().cloned().collect();
    for field in fields.iter().map(String::as_str).chain(["sliding_window", "rope_theta", "rope_scaling"]) {
        for value in &numbers {
            if let Ok(c) = with(newer(), field, value.clone()) {
                let widest = c.q_size().max(2 * c.kv_size()).max(c.intermediate_size).max(c.vocab_size);
                assert!(widest.checked_mul(c.hidden_size).and_then(|n| n.checked_mul(4 * c.num_layers)).is_some());
                assert_eq!(crate::model::rope::inverse_frequencies(&c).len(), c.head_dim / 2);
            }
            for inner in ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"] {
                let mut parameters = object(newer()["rope_parameters"].clone());
                parameters.insert(inner.into(), value.clone());
                if let Ok(c) = with(newer(), "rope_parameters", parameters.into()) {
                    crate::model::rope::inverse_frequencies(&c);
                }
            }
        }
    }
}

#[test]
fn generation_defaults() {
    let read = |v: Value| GenerationDefaults::from_json(&object(v)).map_err(|e| e.to_string());
    let d = read(json!({"do_sample": false, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "min_p": 0.05,
                        "repetition_penalty": 1.2, "max_new_tokens": 99, "eos_token_id": [3, 4], "other": []}))
    .unwrap();
    assert_eq!((d.temperature, d.top_p, d.top_k, d.min_p), (Some(0.6), Some(0.9), Some(50), Some(0.05)));
    assert_eq!((d.repetition_penalty, d.max_new_tokens, d.eos_token_ids), (Some(1.2), Some(99), vec![3, 4]));
    assert_eq!(read(json!({"temperature": null, "do_sample": true})), Ok(GenerationDefaults::default()));
    assert_eq!(read(json!({"top_k": -1})).unwrap().top_k, Some(0));
    for (field, value) in [
        ("temperature", json!(-1)),
        ("top_p", json!(0)),
        ("top_p", json!(1.5)),
        ("top_k", json!(-2)),
        ("min_p", json!(2)),
        ("repetition_penalty", json!(0.001)),
        ("max_new_tokens", json!(0)),
        ("eos_token_id", json!("x")),
    ] {
        let message = read(json!({ field: value })).unwrap_err();
        assert!(message.contains(field), "{message}");
    }
}
