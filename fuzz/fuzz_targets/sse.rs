//! What a stream is written as and what the client of `lima chat` reads of it: for any text and any stop strings, in
//! every dialect, the pieces joined are the text of the answer in one body.
//!
//! The input: a byte for the dialect, one for the reader's buffer, then stop strings up to a zero byte each (four at
//! most, an empty one ends them), then what the model says.
#![no_main]

use std::io::BufReader;

use libfuzzer_sys::fuzz_target;
use lima::chat::events;
use lima_fuzz::server::Server;
use serde_json::{Value, json};

fn stops(mut rest: &[u8]) -> (Vec<String>, &[u8]) {
    let mut stops = Vec::new();
    while stops.len() < 4
        && let Some(end) = rest.iter().take(64).position(|&b| b == 0)
    {
        let stop = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 1..];
        if stop.is_empty() {
            break;
        }
        stops.push(stop);
    }
    (stops, rest)
}

/// All data of a stream, read through a buffer of so many bytes.
fn read(stream: &[u8], buffer: usize) -> Vec<Value> {
    let mut reader = BufReader::with_capacity(buffer, stream);
    let mut all = Vec::new();
    while let Some(data) = events::next(&mut reader).expect("a stream of events") {
        if data != "[DONE]" {
            all.push(serde_json::from_str(&data).expect("JSON"));
        }
    }
    all
}

fn joined<'a>(pieces: impl Iterator<Item = &'a Value>) -> String {
    pieces.filter_map(Value::as_str).collect()
}

fn run(input: &[u8]) {
    let [dialect, buffer, rest @ ..] = input else { return };
    let (stops, said) = stops(rest);
    let said = &said[..said.len().min(200)];
    let server = Server::get();
    server.say(said);
    let messages = json!([{"role": "user", "content": "x"}]);
    let (path, mut body) = match dialect % 4 {
        0 => ("/v1/chat/completions", json!({"model": "m", "messages": messages, "stop": stops})),
        1 => ("/v1/completions", json!({"model": "m", "prompt": "x", "max_tokens": 210, "stop": stops})),
        2 => ("/v1/responses", json!({"model": "m", "input": "x", "stop": stops})),
        _ => ("/v1/messages", json!({"model": "m", "messages": messages, "max_tokens": 220, "stop_sequences": stops})),
    };
    let whole: Value = serde_json::from_slice(&server.ask(path, &body)).expect("JSON");
    body["stream"] = json!(true);
    let events = read(&server.ask(path, &body), usize::from(*buffer) + 1);
    let (whole, streamed) = match dialect % 4 {
        0 => (
            whole["choices"][0]["message"]["content"].as_str().expect("text").to_owned(),
            joined(events.iter().map(|e| &e["choices"][0]["delta"]["content"])),
        ),
        1 => (
            whole["choices"][0]["text"].as_str().expect("text").to_owned(),
            joined(events.iter().map(|e| &e["choices"][0]["text"])),
        ),
        2 => (
            whole["output"][0]["content"][0]["text"].as_str().expect("text").to_owned(),
            joined(events.iter().filter(|e| e["type"] == "response.output_text.delta").map(|e| &e["delta"])),
        ),
        _ => (
            joined(whole["content"].as_array().expect("blocks").iter().map(|block| &block["text"])),
            joined(events.iter().map(|e| &e["delta"]["text"])),
        ),
    };
    assert_eq!(whole, streamed, "{path} {stops:?} {said:?}");
    let text = String::from_utf8_lossy(said);
    assert!(text.starts_with(&whole), "{whole:?} is not the beginning of {text:?}");
    assert!(stops.iter().all(|stop| !whole.contains(stop.as_str())), "{stops:?} in {whole:?}");
    assert!(whole == text || stops.iter().any(|stop| text[whole.len()..].starts_with(stop.as_str())), "{whole:?}");
}

fuzz_target!(|input: &[u8]| lima_fuzz::with_caught_panics(|| run(input)));
