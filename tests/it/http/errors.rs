//! Everything a client can do wrong, and the one shape of the answer.

use std::time::Duration;

use lima::http::Limits;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Server, Setup, body};

/// Status and error object of a response, whose shape is checked.
pub async fn error(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    assert!(response.headers().contains_key("x-request-id"));
    let mut body: Value = response.json().await.unwrap();
    let error = body["error"].take();
    let keys: Vec<_> = error.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["message", "type", "param", "code"]);
    assert!(!error["message"].as_str().unwrap().is_empty());
    assert_eq!(body.as_object().unwrap().len(), 1);
    (status, error)
}

fn messages(message: Value) -> Value {
    json!({"messages": [message]})
}

fn user(content: Value) -> Value {
    messages(json!({"role": "user", "content": content}))
}

fn many(n: usize, key: impl Fn(usize) -> String, value: Value) -> Value {
    Value::Object((0..n).map(|i| (key(i), value.clone())).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_out_of_range() {
    let server = Server::default().await;
    let (above, below) = ("integer_above_max_value", "integer_below_min_value");
    let (dec_above, dec_below) = ("decimal_above_max_value", "decimal_below_min_value");
    let (kind, invalid, unsupported) = ("invalid_type", "invalid_value", "unsupported_parameter");
    let (missing, unknown, long) = ("missing_required_parameter", "unknown_parameter", "string_above_max_length");
    let image = json!({"type": "image_url", "image_url": {"url": "data:"}});
    #[rustfmt::skip]
    let table: Vec<(Value, &str, &str)> = vec![
        (json!({"model": 3}), kind, "model"),
        (json!({"model": null}), kind, "model"),
        (json!({"messages": []}), "empty_array", "messages"),
        (json!({"messages": null}), kind, "messages"),
        (json!({"messages": "hi"}), kind, "messages"),
        (json!({"messages": {"role": "user"}}), kind, "messages"),
        (messages(json!("hi")), kind, "messages[0]"),
        (messages(json!(null)), kind, "messages[0]"),
        (messages(json!({"content": "hi"})), missing, "messages[0].role"),
        (messages(json!({"role": 1, "content": "hi"})), kind, "messages[0].role"),
        (messages(json!({"role": "robot", "content": "hi"})), invalid, "messages[0].role"),
        (messages(json!({"role": "user"})), missing, "messages[0].content"),
        (messages(json!({"role": "assistant", "content": null})), missing, "messages[0].content"),
        (messages(json!({"role": "user", "content": "hi", "mood": "good"})), unknown, "messages[0].mood"),
        (messages(json!({"role": "user", "content": "hi", "tool_calls": []})), unknown, "messages[0].tool_calls"),
        (messages(json!({"role": "user", "content": "hi", "name": "x".repeat(65)})), long, "messages[0].name"),
        (messages(json!({"role": "assistant", "tool_calls": [{"id": "1"}]})), missing, "messages[0].tool_calls[0].type"),
        (messages(json!({"role": "assistant", "content": "a", "audio": {"id": "1"}})), unsupported, "messages[0].audio"),
        (messages(json!({"role": "tool", "content": "1"})), missing, "messages[0].tool_call_id"),
        (messages(json!({"role": "tool", "content": "1", "tool_call_id": "x"})), invalid, "messages[0].tool_call_id"),
        (messages(json!({"role": "function", "content": "1"})), unsupported, "messages[0].role"),
        (user(json!(7)), kind, "messages[0].content"),
        (user(json!({"type": "text"})), kind, "messages[0].content"),
        (user(json!([])), "empty_array", "messages[0].content"),
        (user(json!(["hi"])), kind, "messages[0].content[0]"),
        (user(json!([{"text": "hi"}])), missing, "messages[0].content[0].type"),
        (user(json!([{"type": "text"}])), missing, "messages[0].content[0].text"),
        (user(json!([{"type": "text", "text": "a"}, image])), unsupported, "messages[0].content[1].type"),
        (user(json!([{"type": "video"}])), invalid, "messages[0].content[0].type"),
        (user(json!([{"type": "text", "text": "a", "b": 1}])), unknown, "messages[0].content[0].b"),
        (json!({"temperature": 2.01}), dec_above, "temperature"),
        (json!({"temperature": -0.1}), dec_below, "temperature"),
        (json!({"temperature": "1"}), kind, "temperature"),
        (json!({"temperature": [1]}), kind, "temperature"),
        (json!({"top_p": 1.5}), dec_above, "top_p"),
        (json!({"top_p": -1}), dec_below, "top_p"),
        (json!({"top_k": -2}), below, "top_k"),
        (json!({"top_k": 1.5}), kind, "top_k"),
        (json!({"min_p": 2}), dec_above, "min_p"),
        (json!({"repetition_penalty": 0}), dec_below, "repetition_penalty"),
        (json!({"repetition_penalty": -1}), dec_below, "repetition_penalty"),
        (json!({"repetition_penalty": 1e-40}), dec_below, "repetition_penalty"),
        (json!({"presence_penalty": 2.5}), dec_above, "presence_penalty"),
        (json!({"frequency_penalty": -2.5}), dec_below, "frequency_penalty"),
        (json!({"n": 0}), below, "n"),
        (json!({"n": 129}), above, "n"),
        (json!({"n": 1_000_000}), above, "n"),
        (json!({"n": "2"}), kind, "n"),
        (json!({"n": 1.5}), kind, "n"),
        (json!({"seed": 1.5}), kind, "seed"),
        (json!({"seed": u64::MAX}), above, "seed"),
        (json!({"max_tokens": 0}), below, "max_tokens"),
        (json!({"max_tokens": -1}), below, "max_tokens"),
        (json!({"max_tokens": "many"}), kind, "max_tokens"),
        (json!({"max_completion_tokens": 0}), below, "max_completion_tokens"),
        (json!({"max_completion_tokens": 3, "max_tokens": 4}), invalid, "max_tokens"),
        (json!({"max_tokens": i64::MAX}), "context_length_exceeded", "messages"),
        (json!({"max_tokens": u64::MAX}), above, "max_tokens"),
        (json!({"max_tokens": super::MAX_LEN}), "context_length_exceeded", "messages"),
        (user(json!("x".repeat(super::MAX_LEN))), "context_length_exceeded", "messages"),
        (user(json!("x".repeat(40_000))), "context_length_exceeded", "messages"),
        (json!({"min_tokens": 5, "max_tokens": 4}), invalid, "min_tokens"),
        (json!({"min_tokens": super::MAX_LEN}), invalid, "min_tokens"),
        (json!({"ignore_eos": 1}), kind, "ignore_eos"),
        (json!({"stop": 3}), kind, "stop"),
        (json!({"stop": ""}), "string_below_min_length", "stop"),
        (json!({"stop": ["a", ""]}), "string_below_min_length", "stop"),
        (json!({"stop": ["a", 1]}), kind, "stop"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "array_above_max_length", "stop"),
        (json!({"stop_token_ids": [1, 258]}), above, "stop_token_ids[1]"),
        (json!({"stop_token_ids": ["a"]}), kind, "stop_token_ids[0]"),
        (json!({"stop_token_ids": 3}), kind, "stop_token_ids"),
        (json!({"stop_token_ids": vec![1; 129]}), "array_above_max_length", "stop_token_ids"),
        (json!({"logprobs": 1}), kind, "logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), above, "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": -1}), below, "top_logprobs"),
        (json!({"top_logprobs": 2}), invalid, "top_logprobs"),
        (json!({"logprobs": false, "top_logprobs": 2}), invalid, "top_logprobs"),
        (json!({"logit_bias": {"5": 101}}), dec_above, "logit_bias.5"),
        (json!({"logit_bias": {"5": -101}}), dec_below, "logit_bias.5"),
        (json!({"logit_bias": {"5": "1"}}), kind, "logit_bias.5"),
        (json!({"logit_bias": {"258": 1}}), invalid, "logit_bias.258"),
        (json!({"logit_bias": {"-1": 1}}), invalid, "logit_bias.-1"),
        (json!({"logit_bias": {"+1": 1}}), invalid, "logit_bias.+1"),
        (json!({"logit_bias": {"a": 1}}), invalid, "logit_bias.a"),
        (json!({"logit_bias": {"1": 1, "01": 1}}), invalid, "logit_bias"),
        (json!({"logit_bias": [1]}), kind, "logit_bias"),
        (json!({"logit_bias": many(1025, |i| i.to_string(), json!(1))}), "object_above_max_properties", "logit_bias"),
        (json!({"stream": "yes"}), kind, "stream"),
        (json!({"stream_options": {"include_usage": true}}), invalid, "stream_options"),
        (json!({"stream": true, "stream_options": 1}), kind, "stream_options"),
        (json!({"stream": true, "stream_options": {"include_usage": 1}}), kind, "stream_options.include_usage"),
        (json!({"stream": true, "stream_options": {"x": 1}}), unknown, "stream_options.x"),
        (json!({"user": 5}), kind, "user"),
        (json!({"user": "x".repeat(513)}), long, "user"),
        (json!({"safety_identifier": "x".repeat(65)}), long, "safety_identifier"),
        (json!({"metadata": "x"}), kind, "metadata"),
        (json!({"metadata": {"k": 1}}), kind, "metadata.k"),
        (json!({"metadata": {"k": "x".repeat(513)}}), long, "metadata.k"),
        (json!({"metadata": {"x".repeat(65): "v"}}), long, "metadata"),
        (json!({"metadata": many(17, |i| format!("k{i}"), json!("v"))}), "object_above_max_properties", "metadata"),
        (json!({"tool_choice": "required"}), invalid, "tool_choice"),
        (json!({"functions": [{"name": "f"}]}), unsupported, "functions"),
        (json!({"response_format": "text"}), kind, "response_format"),
        (json!({"reasoning_effort": "high"}), unsupported, "reasoning_effort"),
        (json!({"verbosity": "low"}), unsupported, "verbosity"),
        (json!({"modalities": ["text", "audio"]}), unsupported, "modalities"),
        (json!({"audio": {"voice": "x", "format": "wav"}}), unsupported, "audio"),
        (json!({"prediction": {"type": "content", "content": "x"}}), unsupported, "prediction"),
        (json!({"web_search_options": {}}), unsupported, "web_search_options"),
        (json!({"store": true}), unsupported, "store"),
        (json!({"service_tier": "flex"}), unsupported, "service_tier"),
        (json!({"best_of": 2}), unknown, "best_of"),
        (json!({"prompt": "hi"}), unknown, "prompt"),
        (json!({"Temperature": 1}), unknown, "Temperature"),
    ];
    assert!(table.len() >= 60);
    for (changes, code, param) in table {
        let (status, error) = error(server.post(changes.clone()).await).await;
        let got = (status, error["type"].as_str(), error["code"].as_str(), error["param"].as_str());
        let text = changes.to_string();
        assert_eq!(got, (400, Some("invalid_request_error"), Some(code), Some(param)), "{text:.200} → {error}");
    }
    for name in ["model", "messages"] {
        let mut body = body(json!({}));
        body.as_object_mut().unwrap().remove(name);
        let response = server.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap();
        let (status, error) = error(response).await;
        assert_eq!((status, error["code"].as_str(), error["param"].as_str()), (400, Some(missing), Some(name)));
    }
    let (status, error) = error(server.post(json!({"model": "other", "temperature": 9})).await).await;
    assert_eq!(
        (status, error["code"].as_str(), error["param"].as_str()),
        (404, Some("model_not_found"), Some("model"))
    );
    assert_eq!(server.engine.stats().accepted.load(std::sync::atomic::Ordering::Relaxed), 0);
    server.chat(json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_not_json_objects() {
    let server = Server::default().await;
    let nested = format!("{{\"messages\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let bodies: Vec<Vec<u8>> = vec![
        b"".into(),
        b"{".into(),
        b"null".into(),
        b"[]".into(),
        b"\"text\"".into(),
        b"42".into(),
        b"{\"model\":\"test/model\",}".into(),
        b"{\"model\":\"test/model\"} trailing".into(),
        b"{\"model\":\"test/model\",\"model\":\"test/model\"}".into(),
        b"{\"temperature\":NaN}".into(),
        b"{\"temperature\":1e999}".into(),
        b"{\"model\":\"\\ud800\"}".into(),
        b"{\"model\":\"\xff\xfe\"}".into(),
        nested.into(),
    ];
    for bytes in bodies {
        let post = server.request(Method::POST, "/v1/chat/completions").header("content-type", "application/json");
        let (status, error) = error(post.body(bytes.clone()).send().await.unwrap()).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert_eq!((status, error["code"].as_str()), (400, Some("invalid_json")), "{text:.60}");
        assert_eq!(error["param"], Value::Null);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_routes_methods_and_media_types() {
    let server = Server::default().await;
    let send = |method, path: &'static str| server.request(method, path).send();
    for (method, path, status, code) in [
        (Method::GET, "/v1", 404, "unknown_url"),
        (Method::POST, "/", 405, "method_not_allowed"),
        (Method::POST, "/v1/chat/completions/", 404, "unknown_url"),
        (Method::POST, "/v1//chat/completions", 404, "unknown_url"),
        (Method::POST, "/v1/nothing", 404, "unknown_url"),
        (Method::GET, "/v1/models/none", 404, "model_not_found"),
        (Method::GET, "/v1/models/test", 404, "model_not_found"),
        (Method::GET, "/v1/chat/completions", 405, "method_not_allowed"),
        (Method::PUT, "/v1/chat/completions", 405, "method_not_allowed"),
        (Method::POST, "/v1/models", 405, "method_not_allowed"),
        (Method::DELETE, "/v1/models/test/model", 405, "method_not_allowed"),
        (Method::POST, "/livez", 405, "method_not_allowed"),
    ] {
        let response = send(method.clone(), path).await.unwrap();
        let allow = response.headers().get("allow").map(|v| v.to_str().unwrap().to_owned());
        let (got, error) = error(response).await;
        assert_eq!((got, error["code"].as_str()), (status, Some(code)), "{method} {path}");
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(allow.is_some(), status == 405, "{method} {path}: {allow:?}");
    }
    let post = || server.request(Method::POST, "/v1/chat/completions");
    let bytes = body(json!({})).to_string();
    for request in [
        post().body(bytes.clone()),
        post().header("content-type", "text/plain").body(bytes.clone()),
        post().header("content-type", "application/x-www-form-urlencoded").body(bytes.clone()),
        post().header("content-type", "application/json").header("content-encoding", "gzip").body(bytes.clone()),
    ] {
        let (status, error) = error(request.send().await.unwrap()).await;
        assert_eq!((status, error["code"].as_str()), (415, Some("unsupported_media_type")));
    }
    let charset = post().header("content-type", "application/JSON; charset=utf-8").body(bytes).send().await.unwrap();
    assert_eq!(charset.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_over_the_limit() {
    let server = Server::default().await;
    let huge = body(json!({"user": "x".repeat(100 << 10)})).to_string();
    let post = server.request(Method::POST, "/v1/chat/completions").header("content-type", "application/json");
    let (status, error) = error(post.body(huge.clone()).send().await.unwrap()).await;
    assert_eq!((status, error["code"].as_str()), (413, Some("request_too_large")));

    // Without a declared length.
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(format!("{:x}\r\n{huge}\r\n0\r\n\r\n", huge.len()).as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("\"code\":\"request_too_large\""));
}

/// The routes with a body, and fields of one that they take.
fn routes() -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    vec![
        ("/v1/chat/completions", json!({"messages": messages})),
        ("/v1/completions", json!({"prompt": "hi"})),
        ("/v1/responses", json!({"input": "hi"})),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 9})),
        ("/v1/messages/count_tokens", json!({"messages": messages})),
        ("/v1/embeddings", json!({"input": "hi"})),
        ("/tokenize", json!({"prompt": "hi"})),
        ("/detokenize", json!({"tokens": [1]})),
    ]
}

/// Status and message of a response, whose shape is the one of its path.
async fn told(path: &str, response: reqwest::Response) -> (u16, String) {
    if !path.starts_with("/v1/messages") {
        let (status, error) = error(response).await;
        return (status, error["message"].as_str().unwrap().to_owned());
    }
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    let body: Value = response.json().await.unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        (keys(&body), &body["type"]),
        (vec!["type".into(), "error".into(), "request_id".into()], &json!("error"))
    );
    assert_eq!(keys(&body["error"]), ["type", "message"]);
    (status, body["error"]["message"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_has_the_same_errors() {
    let server = Server::default().await;
    let json = |path| server.request(Method::POST, path).header("content-type", "application/json");
    for (path, fields) in routes() {
        let mut body = fields.clone();
        body["model"] = json!("test/model");
        let response = json(path).body(body.to_string()).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}: {}", response.text().await.unwrap());
        body["no_such_field"] = json!(1);
        let mut stranger = fields.clone();
        stranger["model"] = json!("stranger");
        let huge = json!({"model": "x".repeat(100 << 10)});
        for (request, status, part) in [
            (server.request(Method::GET, path), 405, "Method GET"),
            (server.request(Method::POST, path).body(body.to_string()), 415, "Content-Type"),
            (json(path).body(huge.to_string()), 413, "larger than the limit"),
            (json(path).body("{"), 400, "could not parse the JSON"),
            (json(path).body("[]"), 400, "expected an object"),
            (json(path).body(body.to_string()), 400, "'no_such_field'"),
            (json(path).body(stranger.to_string()), 404, "'stranger'"),
        ] {
            let (got, message) = told(path, request.send().await.unwrap()).await;
            assert!(got == status && message.contains(part), "{path}: {status} {part}: {got} {message}");
        }
    }

    // Too slow.
    let limits = Limits { body_timeout: Duration::from_millis(20), ..Limits::default() };
    let slow = Server::start(Setup { limits, ..Setup::default() }).await;
    for (path, _) in routes() {
        let mut socket = TcpStream::connect(slow.address).await.unwrap();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("did not arrive within"), "{path}: {answer}");
    }

    // Too early, and too late.
    let mut other = Server::start(Setup { load: false, ..Setup::default() }).await;
    for draining in [false, true] {
        if draining {
            other.load();
            other.app.advance(lima::http::state::Stage::Draining);
        }
        for (path, fields) in routes() {
            let mut body = fields;
            body["model"] = json!("test/model");
            let response = other.request(Method::POST, path).json(&body).send().await.unwrap();
            assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
            let (status, message) = told(path, response).await;
            let part = if draining { "shutting down" } else { "still loading" };
            assert!(status == 503 && message.contains(part), "{path}: {status} {message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_ids_are_echoed_if_harmless() {
    let server = Server::default().await;
    let id = |response: reqwest::Response| response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let with = |value: &'static str| server.request(Method::GET, "/livez").header("x-request-id", value).send();
    assert_eq!(id(with("abc-1.2_3:4").await.unwrap()), "abc-1.2_3:4");
    for bad in ["", "two words", "a\"b", "<b>"] {
        assert!(id(with(bad).await.unwrap()).starts_with("req_"), "{bad}");
    }
    assert_ne!(id(server.get("/livez").await), id(server.get("/livez").await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_429() {
    // Streams begin after this time even if they wait.
    let limits = Limits { keep_alive: Duration::from_millis(10), ..Limits::default() };
    let server = Server::start(Setup { limits, max_num_seqs: 1, max_queued: 2, ..Setup::default() }).await;
    server.control.hold();
    let (one, two) = tokio::join!(server.post(json!({"stream": true})), server.post(json!({"stream": true})));
    let three = server.post(json!({"stream": true})).await;
    let mut refused = None;
    let mut accepted = vec![one, two, three];
    for _ in 0..3 {
        let response = server.post(json!({"stream": true})).await;
        if response.status() == 429 {
            refused = Some(response);
            break;
        }
        accepted.push(response);
    }
    let refused = refused.expect("the queue holds two");
    for (path, mut body) in
        routes().into_iter().filter(|(path, _)| path.starts_with("/v1/") && !path.ends_with("count_tokens"))
    {
        body["model"] = json!("test/model");
        let response = server.request(Method::POST, path).json(&body).send().await.unwrap();
        assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
        let (status, message) = told(path, response).await;
        assert!(status == 429 && message.contains("queue is full"), "{path}: {status} {message}");
    }
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
    let (_, error) = error(refused).await;
    assert_eq!((error["type"].as_str(), error["code"].as_str()), (Some("rate_limit_error"), Some("queue_full")));
    server.control.open();
    for response in accepted {
        assert!(super::events(&response.text().await.unwrap()).1);
    }
    server.chat(json!({})).await;
}
