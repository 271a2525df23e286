#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::peft::{PeftConfig, Targets};

fn with(changes: Value) -> Result<PeftConfig, String> {
    let mut config = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]});
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    PeftConfig::parse(config.as_object().unwrap().clone()).map_err(|e| e.to_string())
}

#[test]
fn unsupported_fields_are_refused_by_name() {
    for (changes, expected) in [
        (json!({"peft_type": "IA3"}), "peft_type is \"IA3\", only \"LORA\" is supported"),
        (json!({"peft_type": null}), "peft_type is missing"),
        (json!({"task_type": "SEQ_CLS"}), "task_type is \"SEQ_CLS\", only \"CAUSAL_LM\" is supported"),
        (json!({"bias": "all"}), "bias is \"all\", only \"none\" is supported"),
        (json!({"use_dora": true}), "use_dora is true, which is not supported"),
        (json!({"modules_to_save": ["lm_head"]}), "modules_to_save is [\"lm_head\"], which is not supported"),
        (json!({"fan_in_fan_out": true}), "fan_in_fan_out is true, which is not supported"),
        (json!({"lora_bias": true}), "lora_bias is true, which is not supported"),
        (json!({"layer_replication": [[0, 2]]}), "layer_replication is [[0,2]], which is not supported"),
        (json!({"trainable_token_indices": [1]}), "trainable_token_indices is [1], which is not supported"),
        (json!({"a_field_of_tomorrow": 1}), "a_field_of_tomorrow is 1, which is not supported"),
        (json!({"target_modules": ["q_proj", "lm_head"]}), "target_modules names \"lm_head\", which is not supported"),
        (json!({"target_modules": ["model.embed_tokens"]}), "target_modules names \"model.embed_tokens\", which"),
        (json!({"target_modules": null}), "target_modules is missing"),
        (json!({"target_modules": [1]}), "target_modules is [1], must be a list of names"),
        (json!({"init_lora_weights": "pissa"}), "init_lora_weights is \"pissa\", which begins with other base weights"),
        (json!({"layers_pattern": "blocks"}), "layers_pattern is \"blocks\", only \"layers\" is supported"),
        (json!({"rank_pattern": {".*q_proj": 4}}), "rank_pattern has the key \".*q_proj\": only names of modules"),
        (json!({"rank_pattern": {"q_proj": 0}}), "rank_pattern.q_proj is 0, must be a whole number from 1"),
        (json!({"alpha_pattern": {"q_proj": "4"}}), "alpha_pattern.q_proj is \"4\", must be a number"),
        (json!({"r": 0}), "r is 0, must be a whole number from 1"),
        (json!({"r": -1}), "r is -1"),
        (json!({"r": 1.5}), "r is 1.5"),
        (json!({"lora_alpha": null}), "lora_alpha is missing"),
        (json!({"layers_to_transform": ["0"]}), "layers_to_transform is [\"0\"], must be a list of layers"),
    ] {
        let got = with(changes).unwrap_err();
        assert!(got.starts_with(expected), "{got}\n{expected}");
    }
}

#[test]
fn scales_and_targets() {
    let plain = with(json!({"use_dora": false, "modules_to_save": null, "loftq_config": {}, "lora_dropout": 0.1}));
    let plain = plain.unwrap();
    let q = "model.layers.1.self_attn.q_proj";
    assert_eq!((plain.rank_of(q), plain.scale_of(q)), (8, 2.0));
    assert_eq!(plain.targets.contains(1, q), Some(true));
    assert_eq!(plain.targets.contains(1, "model.layers.1.self_attn.v_proj"), Some(false));
    // A suffix ends at a dot.
    assert_eq!(plain.targets.contains(1, "model.layers.1.self_attn.aq_proj"), Some(false));

    let other = json!({
        "use_rslora": true, "rank_pattern": {"layers.1.self_attn.q_proj": 4}, "alpha_pattern": {"q_proj": 6, "v_proj": 1},
        "layers_to_transform": 1, "layers_pattern": ["layers"], "exclude_modules": ["k_proj"], "target_modules": ["all-linear"],
    });
    let other = with(other).unwrap();
    assert_eq!((other.rank_of(q), other.scale_of(q)), (4, 3.0));
    assert_eq!(other.scale_of("model.layers.0.self_attn.q_proj"), (6.0 / 8f64.sqrt()) as f32);
    assert_eq!(other.targets.contains(1, q), Some(true));
    assert_eq!(other.targets.contains(0, "model.layers.0.self_attn.q_proj"), Some(false));
    assert_eq!(other.targets.contains(1, "model.layers.1.self_attn.k_proj"), Some(false));

    assert_eq!(with(json!({"target_modules": ".*proj"})).unwrap().targets, Targets::InFile);
    let all = with(json!({"target_modules": "all-linear"})).unwrap();
    assert_eq!(all.targets.contains(0, "model.layers.0.mlp.up_proj"), Some(true));
}
