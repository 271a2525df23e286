//! Probes, metrics, clients that go away, and shutting down.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use lima::http::Limits;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Server, Setup, body};

#[tokio::test(flavor = "multi_thread")]
async fn probes_answer_before_the_model_is_there() {
    let mut server = Server::start(Setup { load: false, ..Setup::default() }).await;
    server.app.progress.begin("downloading", 1000);
    server.app.progress.add(300);
    assert_eq!(server.get("/livez").await.status(), 200);
    for path in ["/startupz", "/readyz", "/health"] {
        let response = server.get(path).await;
        assert_eq!(response.status(), 503);
        let body: Value = response.json().await.unwrap();
        assert_eq!(
            (body["phase"].as_str(), &body["bytes_loaded"], &body["bytes_total"]),
            (Some("downloading"), &json!(300), &json!(1000))
        );
        assert!(body["elapsed_s"].is_number());
    }
    for response in
        [server.post(json!({})).await, server.get("/v1/models").await, server.get("/v1/models/test/model").await]
    {
        assert_eq!(response.status(), 503);
        assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
        let body: Value = response.json().await.unwrap();
        assert_eq!(
            (body["error"]["type"].as_str(), body["error"]["code"].as_str()),
            (Some("server_error"), Some("model_loading"))
        );
    }
    assert_eq!(server.get("/metrics").await.status(), 200);
    server.load();
    for path in ["/livez", "/startupz", "/readyz", "/health"] {
        assert_eq!(server.get(path).await.status(), 200, "{path}");
    }
    server.chat(json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models() {
    let server = Server::default().await;
    let list: Value = server.get("/v1/models").await.json().await.unwrap();
    assert_eq!(list["object"], "list");
    let first = &list["data"][0];
    assert_eq!(
        *first,
        json!({"id": "test/model", "object": "model", "created": first["created"], "owned_by": "lima",
               "root": "somewhere", "parent": null, "max_model_len": super::MAX_LEN})
    );
    assert!((1_600_000_000..10_000_000_000u64).contains(&first["created"].as_u64().unwrap()));
    assert_eq!(list["data"][1]["id"], "alias");
    let one: Value = server.get("/v1/models/test/model").await.json().await.unwrap();
    assert_eq!(one, *first);
    let encoded: Value = server.get("/v1/models/test%2Fmodel").await.json().await.unwrap();
    assert_eq!(encoded, *first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_engine_is_not_ready() {
    let limits = Limits { stall: Duration::from_millis(50), ..Limits::default() };
    let server = Server::start(Setup { limits, ..Setup::default() }).await;
    assert_eq!(server.get("/readyz").await.status(), 200);
    server.control.hold();
    let response = server.post(json!({"stream": true})).await;
    server.until("a stall", |s| s.engine.stats().stalled_for() > Duration::from_millis(60)).await;
    let ready = server.get("/readyz").await;
    assert_eq!(ready.status(), 503);
    assert_eq!(ready.json::<Value>().await.unwrap()["phase"], "stalled");
    assert_eq!(server.get("/livez").await.status(), 200);
    server.control.open();
    response.text().await.unwrap();
    assert_eq!(server.get("/readyz").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_has_comments() {
    let limits = Limits { keep_alive: Duration::from_millis(20), ..Limits::default() };
    let server = Server::start(Setup { limits, ..Setup::default() }).await;
    server.control.hold();
    let mut response = server.post(json!({"stream": true})).await;
    let mut text = String::new();
    while !text.contains(": keep-alive\n\n: keep-alive\n\n") {
        text += std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap();
    }
    server.control.open();
    text += &response.text().await.unwrap();
    assert_eq!(super::streaming::text(&super::events(&text).0, 0), "Hello, wörld!");
}

/// Value of each series.
fn parse_metrics(text: &str) -> HashMap<String, f64> {
    let line = |line: &str| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(series.split_once('{').is_none_or(|(_, labels)| labels.ends_with('}')), "{series}");
        (series.to_owned(), value.parse().unwrap())
    };
    text.lines().filter(|l| !l.starts_with('#')).map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics() {
    let server = Server::default().await;
    server.chat(json!({})).await;
    server.chat(json!({"max_tokens": 3})).await;
    server.stream(json!({})).await;
    server.post(json!({"n": 0})).await;
    server.get("/no/such/path").await;
    server.until("idle", |s| s.engine.stats().running.load(Relaxed) == 0).await;
    for _ in 0..2 {
        let response = server.get("/metrics").await;
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
        let metrics = parse_metrics(&response.text().await.unwrap());
        let engine = "engine=\"0\",model_name=\"test/model\"";
        let cache = format!("block_size=\"32\",enable_prefix_caching=\"True\",{engine},num_gpu_blocks=\"256\"");
        assert_eq!(metrics[&format!("vllm:cache_config_info{{{cache}}}")], 1.0);
        let of =
            |name: &str| metrics.get(&format!("{name}{{{engine}}}")).copied().unwrap_or_else(|| panic!("no {name}"));
        let tokens = ("Hello, wörld!".len() + 1) as f64;
        assert_eq!(of("vllm:generation_tokens_total"), 2.0 * tokens + 3.0);
        assert!(of("vllm:prompt_tokens_total") > 60.0);
        assert_eq!(of("vllm:num_requests_running"), 0.0);
        assert_eq!(of("vllm:num_requests_waiting"), 0.0);
        assert_eq!(of("vllm:kv_cache_usage_perc"), 0.0);
        assert_eq!(of("vllm:num_preemptions_total"), 0.0);
        assert!(of("vllm:prefix_cache_queries_total") >= of("vllm:prefix_cache_hits_total"));
        for histogram in ["time_to_first_token", "e2e_request_latency", "request_queue_time", "request_decode_time"] {
            assert_eq!(of(&format!("vllm:{histogram}_seconds_count")), 3.0, "{histogram}");
        }
        assert_eq!(of("vllm:inter_token_latency_seconds_count"), 2.0 * tokens + 3.0 - 3.0);
        assert!(
            metrics
                .keys()
                .any(|k| k.starts_with("vllm:time_to_first_token_seconds_bucket") && k.contains("le=\"0.001\""))
        );
        let success = |reason| {
            metrics[&format!(
                "vllm:request_success_total{{engine=\"0\",finished_reason=\"{reason}\",model_name=\"test/model\"}}"
            )]
        };
        assert_eq!((success("stop"), success("length"), success("abort")), (2.0, 1.0, 0.0));
        assert_eq!(metrics["lima:http_requests_total{route=\"/v1/chat/completions\",status=\"200\"}"], 3.0);
        assert_eq!(metrics["lima:http_requests_total{route=\"/v1/chat/completions\",status=\"400\"}"], 1.0);
        assert_eq!(metrics["lima:http_requests_total{route=\"unmatched\",status=\"404\"}"], 1.0);
        assert_eq!(metrics["lima:http_errors_total{code=\"unknown_url\",route=\"unmatched\"}"], 1.0);
        let ended = |outcome: &str, reason: &str| {
            metrics[&format!("lima:sequences_total{{{engine},outcome=\"{outcome}\",reason=\"{reason}\"}}")]
        };
        assert_eq!((ended("completed", "stop"), ended("completed", "length")), (2.0, 1.0));
        assert_eq!(ended("cancelled", "queued"), 0.0);
        // Three prompts, computed but for what was cached; and each token but the first of an answer.
        assert_eq!(
            of("lima:prefill_tokens_total"),
            of("vllm:prompt_tokens_total") - of("vllm:prompt_tokens_cached_total")
        );
        assert!(of("lima:decode_tokens_total") >= 2.0 * tokens + 3.0 - 3.0);
        assert_eq!(of("lima:step_seconds_count"), of("lima:steps_total"));
        assert!(of("vllm:iteration_tokens_total_sum") >= of("lima:prefill_tokens_total"));
        assert_eq!(of("lima:queued_prompt_tokens"), 0.0);
        assert!(metrics["lima:connections"] >= 1.0 && metrics["process_resident_memory_bytes"] > 0.0);
        let blocks: f64 = metrics.iter().filter(|(k, _)| k.starts_with("lima:kv_blocks{")).map(|(_, v)| v).sum();
        assert_eq!(blocks, 256.0);
    }
}

fn idle(server: &Server) -> bool {
    let stats = server.engine.stats();
    stats.blocks_in_use.load(Relaxed) == 0 && stats.running.load(Relaxed) == 0 && stats.waiting() == 0
}

async fn cancelled(server: &Server, stage: &str) -> f64 {
    let text = server.get("/metrics").await.text().await.unwrap();
    parse_metrics(&text)
        [&format!("lima:requests_cancelled_total{{engine=\"0\",model_name=\"test/model\",stage=\"{stage}\"}}")]
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_go_away_free_their_blocks() {
    let server = Server::start(Setup { max_num_seqs: 2, ..Setup::default() }).await;
    server.control.set_delay(Duration::from_millis(5));
    let endless = json!({"ignore_eos": true});
    for stream in [true, false] {
        for n in [1, 3] {
            let mut changes = endless.clone();
            changes["stream"] = json!(stream);
            changes["n"] = json!(n);
            let body = body(changes).to_string();
            let mut socket = TcpStream::connect(server.address).await.unwrap();
            let head = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            socket.write_all((head + &body).as_bytes()).await.unwrap();
            server.until("running", |s| s.engine.stats().blocks_in_use.load(Relaxed) > 0).await;
            let tokens = server.engine.stats().generation_tokens.load(Relaxed);
            server.until("tokens", |s| s.engine.stats().generation_tokens.load(Relaxed) > tokens + 4).await;
            drop(socket);
            server.until("idle", idle).await;
            server.until("no request", |s| s.app.active() == 0).await;
        }
    }
    assert!(server.engine.stats().finished_length.load(Relaxed) == 0);
    assert!(cancelled(&server, "decode").await >= 4.0);
    assert!(cancelled(&server, "queued").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_is_dropped_and_holds_up_nobody() {
    let limits = Limits { write_timeout: Duration::from_millis(300), ..Limits::default() };
    let server = Server::start(Setup { limits, max_num_seqs: 16, ..Setup::default() }).await;
    // Enough bytes to fill the socket's buffers.
    let body =
        body(json!({"stream": true, "ignore_eos": true, "n": 16, "logprobs": true, "top_logprobs": 20})).to_string();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut socket = socket.connect(server.address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    server.until("running", |s| s.app.active() == 1).await;
    server.chat(json!({"max_tokens": 1})).await;
    server.until("the drop", |s| s.app.active() == 0).await;
    server.until("idle", idle).await;
    drop(socket);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_what_was_accepted() {
    let mut server = Server::default().await;
    server.control.hold();
    let response = server.post(json!({"stream": true})).await;
    server.signal();
    server.until("draining", |s| s.app.stage() > lima::http::state::Stage::Serving).await;
    assert_eq!(server.get("/livez").await.status(), 200);
    let ready = server.get("/readyz").await;
    assert_eq!(ready.status(), 503);
    assert_eq!(ready.json::<Value>().await.unwrap()["phase"], "draining");
    let refused = server.post(json!({})).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["code"], "server_shutting_down");
    server.control.open();
    let (chunks, done) = super::events(&response.text().await.unwrap());
    assert!(done);
    assert_eq!(super::streaming::text(&chunks, 0), "Hello, wörld!");
    let task = std::mem::replace(&mut server.task, tokio::spawn(async { Ok(true) }));
    assert!(task.await.unwrap().unwrap(), "all finished");
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_finish_ends_with_an_error() {
    let mut server = Server::start(Setup { drain: Duration::from_millis(200), ..Setup::default() }).await;
    server.control.hold();
    let stream = server.post(json!({"stream": true})).await;
    let (whole, ()) = tokio::join!(
        server.request(reqwest::Method::POST, "/v1/chat/completions").json(&body(json!({}))).send(),
        async {
            server.until("both", |s| s.app.active() == 2).await;
            server.app.advance(lima::http::state::Stage::Deadline);
        }
    );
    let whole = whole.unwrap();
    assert_eq!(whole.status(), 503);
    assert_eq!(whole.json::<Value>().await.unwrap()["error"]["code"], "server_shutting_down");
    let (chunks, done) = super::events(&stream.text().await.unwrap());
    assert!(!done);
    assert_eq!(chunks.last().unwrap()["error"]["code"], "server_shutting_down");
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 0);
    assert!(chunks.last().unwrap()["usage"]["prompt_tokens"].as_u64().unwrap() > 0);
    server.signal();
    server.control.open();
    let task = std::mem::replace(&mut server.task, tokio::spawn(async { Ok(true) }));
    task.await.unwrap().unwrap();
}
