//! A written directory as transformers reads it, where `LIMA_TEST_PYTHON` has it.

use std::process::Command;

use lima::text::ChatMessage;
use lima::train::{Base, Dataset, Renderer, Template};
use serde_json::{Value, json};

use crate::support::goldens;

const READ: &str = r#"
import json, sys
from transformers import AutoTokenizer
tok = AutoTokenizer.from_pretrained(sys.argv[1])
out = []
for messages in json.load(open(sys.argv[2], encoding="utf-8")):
    made = tok.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    out.append({"ids": made["input_ids"], "mask": made["assistant_masks"], "plain": tok(messages[0]["content"])["input_ids"]})
print(json.dumps({"eos": tok.eos_token_id, "rows": out}))
"#;

#[test]
fn transformers_reads_what_is_written() {
    let python = std::env::var_os("LIMA_TEST_PYTHON");
    let has = |python: &std::ffi::OsString| {
        let found = Command::new(python).args(["-c", "import transformers, jinja2"]).output();
        found.is_ok_and(|out| out.status.success())
    };
    let Some(python) = python.filter(has) else {
        eprintln!("skipped: LIMA_TEST_PYTHON is not set, or has no transformers");
        return;
    };
    let base = Base::open(goldens::default_model().to_str().unwrap()).unwrap();
    let renderer = Renderer::new(&base, Template::Lima).unwrap();
    let dir = tempfile::tempdir().unwrap();
    renderer.write(dir.path()).unwrap();
    let data = format!("{}/data/assistant.jsonl", env!("CARGO_MANIFEST_DIR"));
    let data = Dataset::read(data.as_ref()).unwrap();
    let chats: Vec<Vec<Value>> = data
        .conversations
        .iter()
        .map(|c| c.turns.iter().map(|t| json!({ "role": t.role.name(), "content": t.text })).collect())
        .collect();
    let file = dir.path().join("chats.json");
    std::fs::write(&file, serde_json::to_vec(&chats).unwrap()).unwrap();
    let out = Command::new(python).args(["-c", READ]).arg(dir.path()).arg(&file).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let read: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(read["eos"].as_u64(), renderer.new_token().map(u64::from));
    for (conversation, row) in data.conversations.iter().zip(read["rows"].as_array().unwrap()) {
        let example = renderer.example(conversation, usize::MAX).unwrap();
        let mask: Vec<u8> = example.supervised.iter().map(|s| u8::from(*s)).collect();
        let text = &conversation.turns[0].text;
        assert_eq!(row["ids"], json!(example.ids), "{text}");
        assert_eq!(row["mask"], json!(mask), "{text}");
        assert_eq!(row["plain"], json!(renderer.prompts().tokenizer().encode(text, true).unwrap()), "{text}");
    }
    let messages = [ChatMessage::text("user", "x")];
    assert!(renderer.prompts().chat(&messages, true, &serde_json::Map::new()).is_ok());
}
