//! LoRA adapters as PEFT saves them: `adapter_config.json` up to the first zero byte, then
//! `adapter_model.safetensors`. A refusal is one line that names the file.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use lima::model::config::LlamaConfig;
use lima::model::lora::{Adapter, Projection};
use serde_json::{Value, json};

fn shape() -> &'static LlamaConfig {
    static SHAPE: OnceLock<LlamaConfig> = OnceLock::new();
    SHAPE.get_or_init(|| {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4, "intermediate_size": 4,
            "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 12,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": false,
            "bos_token_id": 0, "eos_token_id": [1],
        });
        let Value::Object(config) = config else { unreachable!("an object") };
        LlamaConfig::from_hf(&config).expect("a configuration")
    })
}

fn run(input: &[u8]) {
    let mut parts = input.splitn(2, |&b| b == 0);
    let (config, weights) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let files = [("adapter_config.json", config), ("adapter_model.safetensors", weights)];
    let dir = lima_fuzz::directory(&files);
    match Adapter::open(&dir, shape(), 8) {
        Ok(adapter) => {
            assert!((1..=8).contains(&adapter.rank()), "{}", adapter.rank());
            for projection in Projection::ALL {
                _ = adapter.pair(0, projection);
            }
        }
        Err(e) => {
            lima_fuzz::one_line(&e);
            let message = e.to_string();
            assert!(message.contains("adapter_"), "no file: {message}");
        }
    }
}

fuzz_target!(|input: &[u8]| run(input));
