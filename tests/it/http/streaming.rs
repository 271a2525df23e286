//! Server-sent events.

use std::collections::HashSet;

use lima::engine::fake::Fault;
use serde_json::{Value, json};

use super::{Server, Setup};

/// The text of one choice.
pub fn text(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()).filter(|c| c["index"] == index);
    choices.filter_map(|c| c["delta"]["content"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shape_of_a_stream() {
    let server = Server::default().await;
    let chunks = server.stream(json!({})).await;
    assert_eq!(text(&chunks, 0), "Hello, wörld!");
    let (first, last) = (&chunks[0], chunks.last().unwrap());
    let (id, created) = (first["id"].clone(), first["created"].clone());
    assert_eq!(
        *first,
        json!({
            "id": id, "object": "chat.completion.chunk", "created": created, "model": "test/model",
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": "", "refusal": null},
                         "logprobs": null, "finish_reason": null}],
        })
    );
    assert_eq!(
        *last,
        json!({
            "id": id, "object": "chat.completion.chunk", "created": created, "model": "test/model",
            "choices": [{"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"}],
        })
    );
    for chunk in &chunks[1..] {
        assert_eq!((&chunk["id"], &chunk["created"]), (&id, &created));
        assert!(chunk["choices"][0]["delta"].get("role").is_none());
        assert!(chunk.get("usage").is_none());
    }
    let reasons = chunks.iter().filter(|c| !c["choices"][0]["finish_reason"].is_null()).count();
    assert_eq!(reasons, 1);
    assert!(chunks.len() > 10, "it came in pieces");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_on_request() {
    let server = Server::default().await;
    let chunks = server.stream(json!({"stream_options": {"include_usage": true}})).await;
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], "Hello, wörld!".len() + 1);
    assert_eq!(last["usage"], server.chat(json!({})).await["usage"]);
    assert!(others.iter().all(|c| c.as_object().unwrap().contains_key("usage") && c["usage"].is_null()));
    let without = server.stream(json!({"stream_options": {"include_usage": false}})).await;
    assert!(without.iter().all(|c| c.get("usage").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_are_merged_by_index() {
    let server = Server::start(Setup { answer: "\0", ..Setup::default() }).await;
    let ask = json!({"n": 3, "seed": 1, "max_tokens": 40, "logprobs": true});
    let chunks = server.stream(ask.clone()).await;
    let whole = server.chat(ask).await;
    for index in 0..3u64 {
        let of: Vec<_> = chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == index).collect();
        let roles = of.iter().filter(|c| c["delta"].get("role").is_some()).count();
        assert_eq!((roles, of[0]["delta"]["role"].as_str()), (1, Some("assistant")));
        let reasons: Vec<_> = of.iter().filter_map(|c| c["finish_reason"].as_str()).collect();
        let choice = &whole["choices"][index as usize];
        assert_eq!(reasons, [choice["finish_reason"].as_str().unwrap()]);
        assert_eq!(text(&chunks, index), choice["message"]["content"].as_str().unwrap());
        let entries = of.iter().filter_map(|c| c["logprobs"]["content"].as_array()).flatten();
        assert_eq!(Value::Array(entries.cloned().collect()), choice["logprobs"]["content"]);
    }
    let ids: HashSet<_> = chunks.iter().map(|c| c["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_step_is_an_error_object() {
    let server = Server::default().await;
    server.control.inject(3, Fault::Forward);
    let response = server.post(json!({"stream": true})).await;
    assert_eq!(response.status(), 200);
    let (chunks, done) = super::events(&response.text().await.unwrap());
    assert!(!done);
    let error = &chunks.last().unwrap()["error"];
    assert_eq!((error["type"].as_str(), error["code"].as_str()), (Some("server_error"), Some("engine_error")));
    assert_eq!(error["param"], Value::Null);
    assert!(error["message"].is_string());
    assert_eq!(server.chat(json!({})).await["choices"][0]["finish_reason"], "stop");

    let server = Server::default().await;
    server.control.inject(3, Fault::Forward);
    let response = server.post(json!({})).await;
    assert_eq!(response.status(), 500);
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["code"], "engine_error");
    assert_eq!(server.chat(json!({})).await["choices"][0]["finish_reason"], "stop");
}
