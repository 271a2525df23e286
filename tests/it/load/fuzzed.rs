//! What fuzzing found (`fuzz`), input by input.

use std::fs;

use lima::model::weights::Checkpoint;
use lima::ops::quant::DType;
use lima::text::Tokenizer;

use super::writer::{config_json, directory};

/// serde_json writes some control characters as they are, and so did the error that shows a field's value.
#[test]
fn control_characters_of_a_field_are_not_shown() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = directory(tmp.path(), DType::F32);
    for value in ["Llama\u{7f}ForCausalLM", "Llama\u{85}ForCausalLM", "Llama\nForCausalLM"] {
        let mut json = config_json();
        json["architectures"] = serde_json::json!([value]);
        fs::write(dir.join("config.json"), json.to_string()).unwrap();
        let message = Checkpoint::open(&dir).unwrap_err().to_string();
        assert!(message.contains("config.json: architectures is"), "{message}");
        assert!(!message.contains(char::is_control), "{message:?}");
    }
}

fn refused_tokenizer(json: &str) -> String {
    let tmp = tempfile::tempdir().unwrap();
    fs::write(tmp.path().join("tokenizer.json"), json).unwrap();
    let message = Tokenizer::from_dir(tmp.path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer.json") && message.len() < 1000, "{message}");
    assert!(!message.contains(char::is_control), "{message:?}");
    message
}

/// The library showed the version as it was.
#[test]
fn control_characters_of_a_tokenizer_are_not_shown() {
    let message = refused_tokenizer("{\"version\": \"1.0\u{7f}\", \"model\": {}}");
    assert!(message.contains("version"), "{message}");
    refused_tokenizer(&format!("{{\"version\": \"{}\"}}", "9".repeat(100_000)));
}

/// A post-processor whose template names a token that it does not define made the first request panic.
#[test]
fn a_post_processor_without_its_token_is_refused() {
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "decoder": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0, "b": 1}, "merges": [],
        },
    });
    refused_tokenizer(&json.to_string());
}
