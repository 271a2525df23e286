//! Spans of requests, as a collector gets them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use lima::engine::fake::Fault;
use lima::http::Traces;
use serde_json::json;
use tokio::net::TcpListener;

use super::{Server, Setup, body};
use crate::support::otlp::{Span, Value, spans};

/// Takes what is posted to it.
struct Collector {
    traces: Traces,
    got: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    async fn start() -> Self {
        let got = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&got);
        let take = async move |headers: HeaderMap, body: Bytes| {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            taken.lock().unwrap().extend(spans(&body));
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/traces", post(take));
        tokio::spawn(async move { serve(listener, router).await });
        Self { traces: Traces::new(&endpoint).unwrap(), got }
    }

    /// A server that sends it its spans.
    async fn server(&self, setup: Setup) -> Server {
        Server::start(Setup { traces: Some(self.traces.clone()), ..setup }).await
    }

    /// All spans of requests that are over.
    async fn spans(&self, server: &Server) -> Vec<Span> {
        server.until("the end of all requests", |s| s.app.active() == 0).await;
        self.flush().await;
        std::mem::take(&mut *self.got.lock().unwrap())
    }

    async fn flush(&self) {
        let traces = self.traces.clone();
        tokio::task::spawn_blocking(move || traces.flush()).await.unwrap().unwrap();
    }

    /// The one there is.
    async fn span(&self, server: &Server) -> Span {
        let mut spans = self.spans(server).await;
        assert_eq!(spans.len(), 1, "{spans:?}");
        spans.remove(0)
    }
}

/// HTTP without what our own server adds.
async fn serve(listener: TcpListener, router: Router) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        let io = hyper_util::rt::TokioIo::new(stream);
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
    }
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn texts(texts: &[&str]) -> Value {
    Value::Texts(texts.iter().map(|text| (*text).to_owned()).collect())
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_is_a_span_below_its_clients() {
    let collector = Collector::start().await;
    let server = collector.server(Setup::default()).await;
    let request = json!({"n": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "max_tokens": 40, "user": "someone",
                         "metadata": {"a": "b"}});
    let response = server
        .request(reqwest::Method::POST, "/v1/chat/completions")
        .header("traceparent", format!("00-{TRACE}-{PARENT}-01"))
        .header("tracestate", "vendor=value")
        .header("x-request-id", "an-id")
        .json(&body(request))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let answer: serde_json::Value = response.json().await.unwrap();
    let span = collector.span(&server).await;
    assert_eq!(span.resource["service.name"], text("lima"));
    assert_eq!(span.resource["service.version"], text(env!("CARGO_PKG_VERSION")));
    assert_eq!((span.name.as_str(), span.kind, span.status), ("chat test/model", 2, 0));
    assert_eq!((span.trace.as_str(), span.parent.as_str()), (TRACE, PARENT));
    assert!(span.id.len() == 16 && span.id != PARENT);
    assert_eq!(span.state, "vendor=value");
    assert!(span.begin > 0 && span.end >= span.begin);
    let mut got = span.attributes;
    let usage = |name: &str| Value::Int(answer["usage"][name].as_i64().unwrap());
    let expected = [
        ("gen_ai.operation.name", text("chat")),
        ("gen_ai.provider.name", text("lima")),
        ("gen_ai.request.model", text("test/model")),
        ("gen_ai.response.model", text("test/model")),
        ("gen_ai.request.id", text("an-id")),
        ("gen_ai.response.id", text(answer["id"].as_str().unwrap())),
        ("gen_ai.request.max_tokens", Value::Int(40)),
        ("gen_ai.request.top_k", Value::Int(7)),
        ("gen_ai.request.choice.count", Value::Int(2)),
        ("gen_ai.request.n", Value::Int(2)),
        ("gen_ai.request.temperature", Value::Double(0.5)),
        ("gen_ai.request.top_p", Value::Double(f64::from(0.9f32))),
        ("gen_ai.request.frequency_penalty", Value::Double(0.0)),
        ("gen_ai.request.presence_penalty", Value::Double(0.0)),
        ("gen_ai.usage.input_tokens", usage("prompt_tokens")),
        ("gen_ai.usage.output_tokens", usage("completion_tokens")),
        ("gen_ai.usage.prompt_tokens", usage("prompt_tokens")),
        ("gen_ai.usage.completion_tokens", usage("completion_tokens")),
        ("gen_ai.usage.cache_read.input_tokens", Value::Int(0)),
        ("gen_ai.usage.num_sequences", Value::Int(2)),
        ("http.request.method", text("POST")),
        ("http.route", text("/v1/chat/completions")),
        ("http.response.status_code", Value::Int(200)),
        ("gen_ai.response.finish_reasons", texts(&["stop", "stop"])),
        ("user.id", text("someone")),
        ("lima.request.metadata", text(r#"{"a":"b"}"#)),
    ];
    for (key, value) in expected {
        assert_eq!(got.remove(key), Some(value), "{key}");
    }
    for latency in [
        "time_in_queue",
        "time_to_first_token",
        "e2e",
        "time_in_model_prefill",
        "time_in_model_decode",
        "time_in_model_inference",
    ] {
        let key = format!("gen_ai.latency.{latency}");
        assert!(matches!(got.remove(&key), Some(Value::Double(seconds)) if seconds >= 0.0), "{key}");
    }
    assert!(got.is_empty(), "{got:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_span_ends_with_its_stream() {
    let collector = Collector::start().await;
    let server = collector.server(Setup::default()).await;
    server.control.hold();
    let response = server.post(json!({"stream": true, "max_tokens": 3})).await;
    assert_eq!(response.status(), 200);
    collector.flush().await;
    assert!(collector.got.lock().unwrap().is_empty(), "it has not ended");
    server.control.open();
    response.text().await.unwrap();
    let span = collector.span(&server).await;
    assert_eq!(span.attributes["gen_ai.usage.output_tokens"], Value::Int(3));
    assert_eq!(span.attributes["gen_ai.response.finish_reasons"], texts(&["length"]));
    // Nobody's child.
    assert!(span.parent.bytes().all(|b| b == b'0') && span.trace.bytes().any(|b| b != b'0'));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_runs_the_model_has_a_span_and_nothing_else() {
    let collector = Collector::start().await;
    let server = collector.server(Setup::default()).await;
    for path in ["/livez", "/readyz", "/metrics", "/v1/models", "/v1/completions", "/"] {
        server.get(path).await;
    }
    let message = json!([{"role": "user", "content": "hi"}]);
    for (path, request, name) in [
        ("/v1/completions", json!({"prompt": "hi"}), "text_completion test/model"),
        ("/v1/embeddings", json!({"input": "hi"}), "embeddings test/model"),
        ("/v1/responses", json!({"input": "hi"}), "chat test/model"),
        ("/v1/messages", json!({"messages": message, "max_tokens": 5}), "chat test/model"),
        ("/tokenize", json!({"prompt": "hi"}), ""),
    ] {
        let mut request = request;
        request["model"] = json!("test/model");
        let response = server.request(reqwest::Method::POST, path).json(&request).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.bytes().await.unwrap();
        let spans = collector.spans(&server).await;
        let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names.join(", "), name, "{path}");
        for span in spans {
            assert!(matches!(span.attributes["gen_ai.usage.input_tokens"], Value::Int(1..)), "{span:?}");
            assert_eq!(span.attributes["http.route"], text(path));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_told() {
    let collector = Collector::start().await;
    let server = collector.server(Setup::default()).await;
    assert_eq!(server.post(json!({"temperature": 3})).await.status(), 400);
    let span = collector.span(&server).await;
    assert_eq!((span.name.as_str(), span.status), ("chat", 0), "the client's fault");
    assert_eq!(span.attributes["error.type"], text("decimal_above_max_value"));
    assert_eq!(span.attributes["http.response.status_code"], Value::Int(400));

    // In a stream that has begun.
    let step = server.engine.stats().steps.load(std::sync::atomic::Ordering::Relaxed);
    server.control.inject(step + 3, Fault::Collect);
    let response = server.post(json!({"stream": true, "ignore_eos": true})).await;
    assert_eq!(response.status(), 200);
    assert!(response.text().await.unwrap().contains("\"error\""));
    let span = collector.span(&server).await;
    assert_eq!(span.status, 2);
    assert_eq!(span.attributes["error.type"], text("engine_error"));
    assert_eq!(span.attributes["gen_ai.response.finish_reasons"], texts(&["abort"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_client_does_not_sample_is_not_sent() {
    let collector = Collector::start().await;
    let server = collector.server(Setup::default()).await;
    let request = server.request(reqwest::Method::POST, "/v1/chat/completions").json(&body(json!({})));
    let response = request.header("traceparent", format!("00-{TRACE}-{PARENT}-00")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(collector.spans(&server).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_harms_nothing() {
    // A port that nobody listens on.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let traces = Traces::new(&format!("http://{gone}/v1/traces")).unwrap();
    let server = Server::start(Setup { traces: Some(traces.clone()), ..Setup::default() }).await;
    for _ in 0..3 {
        let answer = server.chat(json!({})).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "Hello, wörld!");
    }
    assert_eq!(server.get("/readyz").await.status(), 200);
    tokio::task::spawn_blocking(move || traces.shutdown(Duration::from_millis(1))).await.unwrap();
    // And after the end of exporting.
    server.chat(json!({})).await;
}

#[test]
fn endpoints_that_are_none_are_refused() {
    assert!(Traces::new("not a URL at all").is_err());
}
