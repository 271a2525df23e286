//! The types of requests have the fields that the readers of bodies take, all of them and no other.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;

use super::document;
use crate::engine::fake::FakeExecutor;
use crate::engine::{EngineConfig, Speculation, spawn};
use crate::http::fields::recorded::asked;
use crate::http::state::{ModelParts, ServedModel};
use crate::http::{Sampling, anthropic, completions, embeddings, prepare, responses, tokenize};
use crate::text::PromptRenderer;

fn model() -> ServedModel {
    let dir = tempfile::tempdir().unwrap();
    let vocab = json!({"a": 0, "b": 1});
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let renderer = Arc::new(PromptRenderer::from_dir(dir.path()).unwrap());
    let config = EngineConfig {
        max_num_seqs: 1,
        max_num_batched_tokens: 16,
        max_model_len: 64,
        num_blocks: 8,
        enable_prefix_caching: false,
        speculation: Speculation::default(),
        max_queued_requests: 1,
        max_queued_tokens: 64,
    };
    let (engine, _thread) = spawn(config, Box::new(FakeExecutor::new(1, 2)));
    ServedModel::new(ModelParts {
        names: vec!["m".into()],
        root: "r".into(),
        engine,
        tokenizer: Arc::clone(renderer.tokenizer()),
        renderer,
        vocab_size: 2,
        eos: vec![1],
        defaults: Sampling::default(),
        seed: None,
    })
}

fn described(name: &str) -> BTreeSet<String> {
    match document().components.unwrap().schemas.remove(name) {
        Some(RefOr::T(Schema::Object(object))) => object.properties.into_keys().collect(),
        _ => panic!("{name} is not an object"),
    }
}

#[test]
fn requests_are_described_as_they_are_read() {
    let model = model();
    let chat = json!([{"role": "user", "content": "a"}]);
    type Read = fn(&ServedModel, &[u8]) -> bool;
    let cases: [(&str, Value, Read); 8] = [
        ("ChatCompletionRequest", json!({"model": "m", "messages": chat}), |m, b| prepare::prepare(m, b).is_ok()),
        ("CompletionRequest", json!({"model": "m", "prompt": "a"}), |m, b| completions::prepare(m, b).is_ok()),
        ("ResponseRequest", json!({"model": "m", "input": "a"}), |m, b| responses::prepare(m, b).is_ok()),
        ("MessageRequest", json!({"model": "m", "messages": chat, "max_tokens": 1}), |m, b| {
            anthropic::prepare(m, b).is_ok()
        }),
        ("CountTokensRequest", json!({"model": "m", "messages": chat}), |m, b| anthropic::count(m, b).is_ok()),
        ("EmbeddingRequest", json!({"model": "m", "input": "a"}), |m, b| embeddings::prepare(m, b).is_ok()),
        ("TokenizeRequest", json!({"messages": chat}), |m, b| tokenize::tokens(m, b).is_ok()),
        ("DetokenizeRequest", json!({"tokens": [0]}), |m, b| tokenize::text(m, b).is_ok()),
    ];
    for (name, body, read) in cases {
        let asked = asked(|| assert!(read(&model, body.to_string().as_bytes()), "{name}"));
        assert_eq!(asked, described(name), "{name}");
    }
    model.engine.shutdown();
}

#[test]
fn no_two_types_have_one_name() {
    let mut schemas = super::Schemas::default();
    super::operations::paths(&mut schemas);
    super::responses(&mut schemas);
    let mut known = std::collections::BTreeMap::new();
    for (name, schema) in schemas.all {
        let json = serde_json::to_value(&schema).unwrap();
        let before = known.entry(name.clone()).or_insert_with(|| json.clone());
        assert_eq!(*before, json, "two types are called {name}");
    }
    assert!(known.len() > 80, "{}", known.len());
}
