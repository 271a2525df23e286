//! Request bodies, through the whole server: the first byte says where a body is sent, the rest is the body. No 5xx,
//! and every answer is JSON, events or text; an error is one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lima_fuzz::server::Server;
use serde_json::Value;

const PATHS: [&str; 9] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
    "/v1/load_lora_adapter",
];

fn run(input: &[u8]) {
    let Some((&path, body)) = input.split_first() else { return };
    let path = PATHS[usize::from(path) % PATHS.len()];
    let answer = Server::get().post(path, body.to_vec());
    let text = String::from_utf8(answer.body).expect("answers are UTF-8");
    // What cannot go on as its grammar demands is the client's affair; everything else that fails is a finding.
    assert!(answer.status < 500, "{path}: {} {text}", answer.status);
    match answer.media.as_str() {
        "application/json" => {
            let body: Value = serde_json::from_str(&text).expect("JSON");
            if answer.status != 200 {
                lima_fuzz::one_line(&body["error"]["message"].as_str().expect("a message"));
            }
        }
        "text/event-stream" => assert!(text.ends_with("\n\n"), "{text:?}"),
        other => panic!("{path}: {other:?}"),
    }
}

fuzz_target!(|input: &[u8]| {
    Server::get().say(b"Hello, w\xc3\xb6rld! {\"a\": 1}");
    lima_fuzz::with_caught_panics(|| run(input));
});
