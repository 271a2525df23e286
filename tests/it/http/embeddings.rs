//! `/v1/embeddings`, `/tokenize` and `/detokenize`.

use std::sync::atomic::Ordering::Relaxed;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lima::engine::fake::{FAKE_HIDDEN, Fault, oracle_pooled};
use lima::engine::{Pooling, Request, SamplingParams, Task, TokenId};
use serde_json::{Value, json};

use super::{END, START, Server, Setup};

async fn embed(server: &Server, mut body: Value) -> Value {
    body["model"] = json!("alias");
    let response = server.to("/v1/embeddings", &body).await;
    let status = response.status();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{answer}");
    answer
}

fn expected(prompt: &[TokenId], pooling: Pooling, normalize: bool) -> Vec<f32> {
    let request = Request { task: Task::Embed(pooling), ..Request::generate(prompt, SamplingParams::default()) };
    let vector = oracle_pooled(&request).unwrap();
    let length = vector.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    vector.iter().map(|&v| if normalize { (f64::from(v) / length) as f32 } else { v }).collect()
}

fn vector(embedding: &Value) -> Vec<f32> {
    match embedding {
        Value::String(text) => {
            STANDARD.decode(text).unwrap().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        }
        numbers => numbers.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect(),
    }
}

fn bytes(text: &str) -> Vec<TokenId> {
    text.bytes().map(TokenId::from).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_of_every_form_in_order() {
    let server = Server::default().await;
    let answer = embed(&server, json!({"input": "some text"})).await;
    let mean = expected(&bytes("some text"), Pooling::Mean, true);
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("alias")));
    assert_eq!(answer["usage"], json!({"prompt_tokens": 9, "total_tokens": 9}));
    assert_eq!((&answer["data"][0]["object"], &answer["data"][0]["index"]), (&json!("embedding"), &json!(0)));
    assert_eq!(vector(&answer["data"][0]["embedding"]), mean);
    assert_eq!(mean.len(), FAKE_HIDDEN);

    let encoded = embed(&server, json!({"input": "some text", "encoding_format": "base64"})).await;
    assert!(encoded["data"][0]["embedding"].is_string());
    assert_eq!(vector(&encoded["data"][0]["embedding"]), mean);

    let words: Vec<String> = (0..300).map(|i| "word ".repeat(1 + i % 7) + &i.to_string()).collect();
    let ids: Vec<Vec<TokenId>> = words.iter().map(|w| bytes(w)).collect();
    for input in [json!(words), json!(ids)] {
        for (name, pooling) in [("mean", Pooling::Mean), ("last", Pooling::Last)] {
            let all = embed(&server, json!({"input": input, "pooling": name, "normalize": false})).await;
            let data = all["data"].as_array().unwrap();
            assert_eq!(data.len(), words.len());
            for (i, (entry, ids)) in data.iter().zip(&ids).enumerate() {
                assert_eq!(entry["index"], i);
                assert_eq!(vector(&entry["embedding"]), expected(ids, pooling, false), "{name} {i}");
            }
            assert_eq!(all["usage"]["total_tokens"], ids.iter().map(Vec::len).sum::<usize>());
        }
    }
    // What spells a special token is text; tokens may be special. The longest input fills the context.
    let special = embed(&server, json!({"input": "<|im_end|>"})).await;
    assert_eq!(special["usage"]["prompt_tokens"], 10);
    let token = embed(&server, json!({"input": [END]})).await;
    assert_eq!(vector(&token["data"][0]["embedding"]), expected(&[END], Pooling::Mean, true));
    let long = embed(&server, json!({"input": "y".repeat(super::MAX_LEN)})).await;
    assert_eq!(long["usage"]["prompt_tokens"], super::MAX_LEN);
    let cut = embed(&server, json!({"input": "y".repeat(9000) + "ab", "truncate_prompt_tokens": 2})).await;
    assert_eq!(vector(&cut["data"][0]["embedding"]), expected(&bytes("ab"), Pooling::Mean, true));
    assert_eq!(server.engine.stats().generation_tokens.load(Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_failures() {
    let server = Server::default().await;
    for (changes, code, param) in [
        (json!({"input": 3}), "invalid_type", "input"),
        (json!({"input": []}), "empty_array", "input"),
        (json!({"input": ""}), "invalid_value", "input"),
        (json!({"input": vec!["a"; 2049]}), "array_above_max_length", "input"),
        (json!({"input": "y".repeat(super::MAX_LEN + 1)}), "context_length_exceeded", "input"),
        (json!({"input": [300]}), "integer_above_max_value", "input[0]"),
        (json!({"encoding_format": "hex"}), "invalid_value", "encoding_format"),
        (json!({"pooling": "max"}), "invalid_value", "pooling"),
        (json!({"dimensions": 2}), "unsupported_parameter", "dimensions"),
        (json!({"normalize": 1}), "invalid_type", "normalize"),
        (json!({"n": 2}), "unknown_parameter", "n"),
    ] {
        let mut body = json!({"model": "test/model", "input": "a"});
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let response = server.to("/v1/embeddings", &body).await;
        let status = response.status();
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        let got = (status.as_u16(), error["code"].as_str(), error["param"].as_str());
        assert_eq!(got, (400, Some(code), Some(param)), "{changes:.80} → {error}");
    }
    let other = server.to("/v1/embeddings", &json!({"model": "x", "input": "a"})).await;
    assert_eq!(other.status(), 404);

    let server = Server::default().await;
    server.control.inject(0, Fault::Forward);
    let failed = server.to("/v1/embeddings", &json!({"model": "alias", "input": "a"})).await;
    assert_eq!(failed.status(), 500);
    embed(&server, json!({"input": "a"})).await;

    // A client that goes away takes all its inputs with it.
    let server = Server::start(Setup { max_num_seqs: 1, ..Setup::default() }).await;
    server.control.hold();
    let inputs = json!({"model": "alias", "input": ["a", "b", "c"]});
    let gone = tokio::time::timeout(std::time::Duration::from_millis(200), server.to("/v1/embeddings", &inputs));
    assert!(gone.await.is_err());
    server.control.open();
    server.until("no work", |s| s.engine.stats().queued_requests.load(Relaxed) == 0 && s.app.active() == 0).await;
    server.until("free blocks", |s| s.engine.stats().blocks_in_use.load(Relaxed) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokenize_and_back() {
    let server = Server::default().await;
    let call = async |path: &str, body: Value| {
        let response = server.to(path, &body).await;
        let status = response.status().as_u16();
        (status, response.json::<Value>().await.unwrap())
    };
    let (_, text) = call("/tokenize", json!({"model": "test/model", "prompt": "hö<|im_end|>"})).await;
    assert_eq!(
        text,
        json!({"count": 4, "max_model_len": super::MAX_LEN, "tokens": [104, 0xC3, 0xB6, END], "token_strs": null})
    );
    let (_, spelled) =
        call("/tokenize", json!({"prompt": "a b", "return_token_strs": true, "add_special_tokens": false})).await;
    assert_eq!(spelled["token_strs"], json!(["a", "Ġ", "b"]));
    let messages = json!([{"role": "user", "content": "hi<|im_end|>"}]);
    let (_, chat) = call("/tokenize", json!({"messages": messages})).await;
    assert_eq!(chat["tokens"][0], START);
    let rendered = "<|im_start|>user\nhi<|im_end|><|im_end|>\n<|im_start|>assistant\n";
    let (_, back) = call("/detokenize", json!({"tokens": chat["tokens"]})).await;
    assert_eq!(back, json!({"prompt": rendered}));
    // The user's spelling is ten plain tokens.
    assert_eq!(chat["count"], "<user\nhi<|im_end|>>\n<assistant\n".len());
    let (_, without) = call(
        "/tokenize",
        json!({"messages": messages, "add_generation_prompt": false,
        "chat_template_kwargs": {"x": 1}}),
    )
    .await;
    assert_eq!(without["count"], "<user\nhi<|im_end|>>\n".len());
    for (path, body, status, param) in [
        ("/tokenize", json!({}), 400, "prompt"),
        ("/tokenize", json!({"prompt": 3}), 400, "prompt"),
        ("/tokenize", json!({"prompt": "a", "messages": []}), 400, "prompt"),
        ("/tokenize", json!({"messages": []}), 400, "messages"),
        ("/tokenize", json!({"messages": messages, "continue_final_message": true}), 400, "continue_final_message"),
        ("/tokenize", json!({"messages": messages, "add_special_tokens": true}), 400, "add_special_tokens"),
        (
            "/tokenize",
            json!({"messages": messages, "chat_template_kwargs": {"messages": []}}),
            400,
            "chat_template_kwargs.messages",
        ),
        ("/tokenize", json!({"prompt": "a", "x": 1}), 400, "x"),
        ("/tokenize", json!({"prompt": "a", "model": "other"}), 404, "model"),
        ("/detokenize", json!({}), 400, "tokens"),
        ("/detokenize", json!({"tokens": [1, "a"]}), 400, "tokens[1]"),
        ("/detokenize", json!({"tokens": [258]}), 400, "tokens[0]"),
    ] {
        let (got, error) = call(path, body.clone()).await;
        assert_eq!((got, error["error"]["param"].as_str()), (status, Some(param)), "{path} {body} → {error}");
    }
    let (_, empty) = call("/tokenize", json!({"prompt": ""})).await;
    assert_eq!(empty["count"], 0);
    assert_eq!(server.engine.stats().accepted.load(Relaxed), 0);
}
