//! Chat templates: the template up to a zero byte, then messages as JSON. Rendering is bounded in time and memory by
//! limits of its own, which libFuzzer's check.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lima::text::ChatTemplate;
use serde_json::{Map, Value, json};

fn run(input: &[u8]) {
    let mut parts = input.splitn(2, |&b| b == 0);
    let source = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let messages = match serde_json::from_slice(parts.next().unwrap_or_default()) {
        Ok(Value::Array(messages)) => messages,
        Ok(message) => vec![message],
        Err(_) => vec![
            json!({"role": "system", "content": "You are brief."}),
            json!({"role": "user", "content": [{"type": "text", "text": "ö\n{{ 1 }}"}]}),
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": [1, 2.5, true, null]}}}]}),
            json!({"role": "tool", "content": "3", "tool_call_id": "c"}),
        ],
    };
    let template = match ChatTemplate::new(&source, Some("<s>"), None) {
        Ok(template) => template,
        Err(e) => return drop(e.to_string()),
    };
    let extra = Map::from_iter([("tools".to_owned(), json!([{"type": "function", "function": {"name": "f"}}]))]);
    for (prompt, extra) in [(true, Map::new()), (false, extra)] {
        match template.render(&messages, prompt, &extra) {
            Ok(text) => assert!(text.len() <= 64 << 20, "{} bytes", text.len()),
            Err(e) => drop(e.to_string()),
        }
    }
}

fuzz_target!(|input: &[u8]| run(input));
