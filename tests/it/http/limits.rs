//! Limits of keys, of time, of headers and of connections.

use std::time::Duration;

use lima::http::{Auth, Limits};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Server, Setup, body, events};

/// A server with such a file of keys.
async fn with_keys(keys: &str, setup: Setup) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    std::fs::write(&file, keys).unwrap();
    Server::start(Setup { auth: Auth::new(&[], Some(&file)).unwrap(), ..setup }).await
}

async fn ask(server: &Server, key: &str, changes: Value) -> Response {
    let request = server.request(Method::POST, "/v1/chat/completions").bearer_auth(key).json(&body(changes));
    request.send().await.unwrap()
}

async fn error(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    (status, response.json::<Value>().await.unwrap()["error"].clone())
}

fn header(response: &Response, name: &str) -> String {
    let value = response.headers().get(name).unwrap_or_else(|| panic!("no {name}"));
    value.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_tokens_of_a_key_have_limits() {
    let keys = "a name=alice requests-per-minute=2\nb tokens-per-minute=30\nc\n";
    let server = with_keys(keys, Setup::default()).await;
    for left in ["1", "0"] {
        let response = ask(&server, "a", json!({})).await;
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "x-ratelimit-limit-requests"), "2");
        assert_eq!(header(&response, "x-ratelimit-remaining-requests"), left);
        assert!(!response.headers().contains_key("x-ratelimit-limit-tokens"));
    }
    // Before the body is looked at.
    let refused = ask(&server, "a", json!({"n": 0})).await;
    assert!((1..=30).contains(&header(&refused, "retry-after").parse::<u32>().unwrap()));
    assert_eq!(header(&refused, "x-ratelimit-remaining-requests"), "0");
    let (status, told) = error(refused).await;
    assert_eq!(
        (status, &told["type"], &told["code"]),
        (429, &json!("rate_limit_error"), &json!("rate_limit_exceeded"))
    );
    assert!(told["message"].as_str().unwrap().contains("2 requests per minute"));
    let list = server.request(Method::GET, "/v1/models").bearer_auth("a").send().await.unwrap();
    assert_eq!(list.status(), 200, "what takes nothing is not limited");

    // The first takes what there is, and its answer is owed.
    let response = ask(&server, "b", json!({"stream": true})).await;
    assert_eq!(header(&response, "x-ratelimit-limit-tokens"), "30");
    response.text().await.unwrap();
    let (status, told) = error(ask(&server, "b", json!({})).await).await;
    assert_eq!((status, &told["code"]), (429, &json!("rate_limit_exceeded")));
    assert!(told["message"].as_str().unwrap().contains("30 tokens per minute"));

    for _ in 0..4 {
        let response = ask(&server, "c", json!({})).await;
        assert_eq!(response.status(), 200);
        assert!(response.headers().keys().all(|name| !name.as_str().starts_with("x-ratelimit")));
    }
    let metrics = server.request(Method::GET, "/metrics").bearer_auth("c").send().await.unwrap().text().await.unwrap();
    for line in [
        "lima:key_requests_total{key=\"alice\"} 2",
        "lima:key_limited_total{key=\"alice\"} 1",
        "lima:key_requests_running{key=\"alice\"} 0",
        "lima:key_sequences_queued{key=\"alice\"} 0",
        "lima:http_errors_total{code=\"rate_limit_exceeded\",route=\"/v1/chat/completions\"} 2",
    ] {
        assert!(metrics.lines().any(|l| l == line), "no {line} in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_so_many_requests_at_once_and_half_of_the_queue() {
    let setup = Setup { max_num_seqs: 1, max_queued: 4, ..Setup::default() };
    let server = with_keys("a max-concurrency=2\nb\nc\n", setup).await;
    server.control.hold();
    let first = ask(&server, "a", json!({"stream": true})).await;
    let (second, ()) = tokio::join!(ask(&server, "a", json!({})), async {
        server.until("both", |s| s.app.active() == 2).await;
        let (status, told) = error(ask(&server, "a", json!({})).await).await;
        assert_eq!(status, 429);
        assert!(told["message"].as_str().unwrap().contains("2 requests at once"), "{told}");
        // One waits; another key gets two places and not the third, though the queue has room.
        let held = tokio::join!(ask(&server, "b", json!({"n": 2})), async {
            server.until("three", |s| s.app.active() == 3).await;
            let refused = ask(&server, "b", json!({})).await;
            assert!(header(&refused, "retry-after").parse::<u32>().unwrap() >= 1);
            assert_eq!(error(refused).await.1["code"], "queue_full");
            let last = tokio::join!(ask(&server, "c", json!({})), async {
                server.until("four", |s| s.app.active() == 4).await;
                server.control.open();
            });
            assert_eq!(last.0.status(), 200);
        });
        assert_eq!(held.0.status(), 200);
    });
    assert_eq!(second.status(), 200);
    first.text().await.unwrap();
    server.until("no request", |s| s.app.active() == 0).await;
    assert_eq!(ask(&server, "a", json!({})).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_prompts_are_of_the_key_alone_if_that_is_wanted() {
    let long = "x".repeat(200);
    let changes = json!({"messages": [{"role": "user", "content": long}], "max_tokens": 1});
    for isolated in [false, true] {
        let limits = Limits { isolate_prefix_cache: isolated, ..Limits::default() };
        let server = with_keys("a\nb\n", Setup { limits, ..Setup::default() }).await;
        let cached = async |key: &str| {
            let answer: Value = ask(&server, key, changes.clone()).await.json().await.unwrap();
            answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
        };
        assert_eq!(cached("a").await, 0);
        assert!(cached("a").await > 0);
        assert_eq!(cached("b").await == 0, isolated);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_is_told() {
    let limits = Limits { queue_timeout: Some(Duration::from_millis(100)), ..Limits::default() };
    let server = Server::start(Setup { limits, max_num_seqs: 1, ..Setup::default() }).await;
    server.control.hold();
    let running = server.post(json!({"stream": true})).await;
    for changes in [json!({}), json!({"n": 2, "stream": true})] {
        let refused = server.post(changes).await;
        assert_eq!(header(&refused, "retry-after"), "1");
        let (status, told) = error(refused).await;
        assert_eq!(
            (status, &told["type"], &told["code"]),
            (408, &json!("invalid_request_error"), &json!("queue_timeout"))
        );
    }
    let input = json!({"model": "test/model", "input": "x"});
    let refused = server.request(Method::POST, "/v1/embeddings").json(&input).send().await.unwrap();
    assert_eq!(error(refused).await.1["code"], "queue_timeout");
    server.control.open();
    assert!(events(&running.text().await.unwrap()).1, "what runs is not concerned");
    server.until("an empty queue", |s| s.engine.stats().waiting() == 0).await;

    // A stream that has begun by then is told in the stream.
    let limits = Limits { keep_alive: Duration::from_millis(10), ..limits };
    let server = Server::start(Setup { limits, max_num_seqs: 1, ..Setup::default() }).await;
    server.control.hold();
    let _running = server.post(json!({"stream": true})).await;
    let response = server.post(json!({"stream": true})).await;
    assert_eq!(response.status(), 200);
    let (chunks, done) = events(&response.text().await.unwrap());
    assert!(!done);
    assert_eq!(chunks.last().unwrap()["error"]["code"], "queue_timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_too_long_ends_with_what_there_is() {
    let limits = Limits { request_timeout: Some(Duration::from_secs(1)), ..Limits::default() };
    let server = Server::start(Setup { limits, ..Setup::default() }).await;
    // All of the context would take several seconds.
    server.control.set_delay(Duration::from_millis(20));
    let endless = json!({"ignore_eos": true, "stream": true, "n": 2, "stream_options": {"include_usage": true}});
    let chunks = server.stream(endless.clone()).await;
    let reasons: Vec<_> = chunks.iter().filter_map(|c| c["choices"][0]["finish_reason"].as_str()).collect();
    assert_eq!(reasons, ["length", "length"]);
    let usage = &chunks.last().unwrap()["usage"];
    assert!((2..400).contains(&usage["completion_tokens"].as_u64().unwrap()), "{usage}");
    let answer = server.chat(json!({"ignore_eos": true})).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    server.until("idle", |s| s.engine.stats().running.load(std::sync::atomic::Ordering::Relaxed) == 0).await;

    server.control.hold();
    let (status, told) = error(server.post(json!({})).await).await;
    assert_eq!((status, &told["code"]), (408, &json!("timeout")));
    server.control.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_have_limits() {
    let limits = Limits { max_header_bytes: 4096, max_headers: 20, ..Limits::default() };
    let server = Server::start(Setup { limits, ..Setup::default() }).await;
    let get = || server.request(Method::GET, "/v1/models");
    let large = get().header("x-large", "x".repeat(5000));
    let many = (0..25).fold(get(), |request, i| request.header(format!("x-{i}"), "1"));
    for request in [large, many] {
        let (status, told) = error(request.send().await.unwrap()).await;
        assert_eq!(
            (status, &told["type"], &told["code"]),
            (431, &json!("invalid_request_error"), &json!("headers_too_large"))
        );
    }
    // Far beyond, no more is read.
    assert_eq!(get().header("x-large", "x".repeat(200_000)).send().await.map_or(431, |r| r.status().as_u16()), 431);
    assert_eq!(get().header("x-small", "x".repeat(1000)).send().await.unwrap().status(), 200);
}

/// What a connection says until it is closed.
async fn rest(mut socket: TcpStream) -> String {
    let mut text = Vec::new();
    // A reset is an end too.
    let _ = socket.read_to_end(&mut text).await;
    String::from_utf8(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_room_and_end() {
    let limits = Limits { max_connections: 2, ..Limits::default() };
    let server = Server::start(Setup { limits, ..Setup::default() }).await;
    let oldest = TcpStream::connect(server.address).await.unwrap();
    server.until("one", |s| s.app.connections.count() == 1).await;
    let _second = TcpStream::connect(server.address).await.unwrap();
    server.until("two", |s| s.app.connections.count() == 2).await;
    assert_eq!(server.get("/livez").await.status(), 200);
    assert_eq!(rest(oldest).await, "");

    // Streams are not idle.
    server.control.hold();
    let streams = [server.post(json!({"stream": true})).await, server.post(json!({"stream": true})).await];
    let mut refused = TcpStream::connect(server.address).await.unwrap();
    let _ = refused.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let text = rest(refused).await;
    // The answer may be lost where the request came after it.
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 503 ") && text.contains("too_many_connections"), "{text}");
    server.control.open();
    for stream in streams {
        assert!(events(&stream.text().await.unwrap()).1);
    }
    assert_eq!(server.get("/livez").await.status(), 200);

    let limits = Limits { idle_timeout: Duration::from_millis(100), ..Limits::default() };
    let server = Server::start(Setup { limits, ..Setup::default() }).await;
    let silent = TcpStream::connect(server.address).await.unwrap();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: ").await.unwrap();
    rest(silent).await;
    rest(slow).await;
    server.until("none", |s| s.app.connections.count() == 0).await;
}
