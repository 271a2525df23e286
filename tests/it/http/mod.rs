//! The API over real sockets, with the fake executor behind it.

mod access;
mod adapters;
mod anthropic;
mod auth;
mod chat;
mod chunking;
mod completions;
mod constraints;
mod embeddings;
mod errors;
mod fields;
mod limits;
mod openapi;
mod operations;
mod page;
mod responses;
mod streaming;
mod tools;
#[cfg(feature = "otlp")]
mod traces;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lima::engine::fake::{FakeControl, FakeExecutor};
use lima::engine::{EngineConfig, EngineHandle, Speculation, TokenId, spawn};
use lima::http::{App, Auth, Limits, ModelParts, Sampling, ServedModel, Settings, Tls, Traces, serve};
use lima::text::PromptRenderer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::description::Ask;

/// Bytes are tokens 0–255.
pub const START: TokenId = 256;
pub const END: TokenId = 257;
pub const VOCAB: usize = 258;
pub const MAX_LEN: usize = 512;

pub const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// GPT-2's printable stand-in for each byte.
fn byte_char(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match byte {
        b if plain(b) => char::from(b),
        b => char::from_u32(0x100 + (0..b).filter(|&b| !plain(b)).count() as u32).unwrap(),
    }
}

/// A tokenizer with one token a byte, the two of ChatML and one for each of `pieces`, and a chat template.
pub fn renderer(template: &str, pieces: &[&[u8]]) -> PromptRenderer {
    let dir = tempfile::tempdir().unwrap();
    let mut vocab: serde_json::Map<String, Value> =
        (0..=255u8).map(|b| (byte_char(b).to_string(), json!(u32::from(b)))).collect();
    // Without merges no text is made of them; a model may say them.
    for (piece, id) in pieces.iter().zip(VOCAB..) {
        vocab.insert("<|im_start|>".into(), json!(START));
        vocab.insert("<|im_end|>".into(), json!(END));
        vocab.insert(piece.iter().map(|&b| byte_char(b)).collect(), json!(id));
    }
    let special = |id, content| {
        json!({"id": id, "content": content, "special": true, "normalized": false,
               "single_word": false, "lstrip": false, "rstrip": false})
    };
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [special(START, "<|im_start|>"), special(END, "<|im_end|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let config = json!({"eos_token": "<|im_end|>", "chat_template": template});
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    PromptRenderer::from_dir(dir.path()).unwrap()
}

/// What the model answers: this text and the end, whatever it is asked. The text `"\0"` stands for
/// tokens drawn by prompt and seed.
pub struct Setup {
    pub answer: &'static str,
    pub max_num_seqs: usize,
    pub max_queued: usize,
    pub limits: Limits,
    pub drain: Duration,
    pub load: bool,
    pub auth: Option<Auth>,
    pub template: &'static str,
    pub max_model_len: usize,
    pub tls: Option<Tls>,
    pub allowed_origins: Vec<String>,
    pub metrics_apart: bool,
    pub traces: Option<Traces>,
    /// The model repeats the prompt, for ever.
    pub echoes: bool,
    /// Tokens of several bytes, from `VOCAB` on.
    pub pieces: &'static [&'static [u8]],
}

impl Default for Setup {
    fn default() -> Self {
        let limits = Limits { max_body: 64 << 10, ..Limits::default() };
        let drain = Duration::from_secs(20);
        Self {
            answer: "Hello, wörld!",
            max_num_seqs: 8,
            max_queued: 64,
            limits,
            drain,
            load: true,
            auth: None,
            template: TEMPLATE,
            max_model_len: MAX_LEN,
            tls: None,
            allowed_origins: Vec::new(),
            metrics_apart: false,
            traces: None,
            echoes: false,
            pieces: &[],
        }
    }
}

pub struct Server {
    pub address: SocketAddr,
    pub app: Arc<App>,
    pub engine: EngineHandle,
    pub control: FakeControl,
    model: Option<ServedModel>,
    stop: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<std::io::Result<bool>>,
    client: reqwest::Client,
}

impl Server {
    pub async fn start(setup: Setup) -> Self {
        let vocab = VOCAB + setup.pieces.len();
        let mut executor = FakeExecutor::new(2, vocab as u32).with_adapters(2);
        if setup.echoes {
            executor = executor.with_script_fn(Box::new(|prompt, i| Some(prompt[i % prompt.len()])));
        } else if setup.answer != "\0" {
            let mut script: Vec<TokenId> = setup.answer.bytes().map(TokenId::from).collect();
            script.push(END);
            executor = executor.with_script_fn(Box::new(move |_, i| Some(script[i % script.len()])));
        }
        let control = executor.control();
        let config = EngineConfig {
            max_num_seqs: setup.max_num_seqs,
            max_num_batched_tokens: 128,
            max_model_len: setup.max_model_len,
            num_blocks: 256,
            enable_prefix_caching: true,
            speculation: Speculation::default(),
            max_queued_requests: setup.max_queued,
            max_queued_tokens: 1 << 20,
        };
        let (engine, _thread) = spawn(config, Box::new(executor));
        let renderer = Arc::new(renderer(setup.template, setup.pieces));
        let model = ServedModel::new(ModelParts {
            names: vec!["test/model".into(), "alias".into()],
            root: "somewhere".into(),
            engine: engine.clone(),
            tokenizer: Arc::clone(renderer.tokenizer()),
            renderer,
            vocab_size: vocab,
            eos: vec![END],
            defaults: Sampling::default(),
            seed: None,
        });
        let app = App::with(Settings {
            limits: setup.limits,
            auth: setup.auth,
            tls: setup.tls,
            allowed_origins: setup.allowed_origins,
            metrics_apart: setup.metrics_apart,
            traces: setup.traces,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async move {
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let task = tokio::spawn(serve(Arc::clone(&app), listener, stopped, setup.drain));
        let mut server = Self {
            address,
            app,
            engine,
            control,
            model: Some(model),
            stop: Some(stop),
            task,
            client: reqwest::Client::new(),
        };
        if setup.load {
            server.load();
        }
        server
    }

    pub async fn default() -> Self {
        Self::start(Setup::default()).await
    }

    /// The model is there.
    pub fn load(&mut self) {
        self.app.set_model(self.model.take().unwrap());
    }

    /// What a signal does.
    pub fn signal(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.request(reqwest::Method::GET, path).send().await.unwrap()
    }

    /// A request whose response must be as the API is described.
    pub fn request(&self, method: reqwest::Method, path: &str) -> Ask {
        Ask::new(&self.client, method, self.url(path))
    }

    /// Posts a chat request that says hello, changed by `changes`.
    pub async fn post(&self, changes: Value) -> reqwest::Response {
        self.request(reqwest::Method::POST, "/v1/chat/completions").json(&body(changes)).send().await.unwrap()
    }

    /// The body of a request that succeeds.
    pub async fn chat(&self, changes: Value) -> Value {
        let response = self.post(changes).await;
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    }

    /// The chunks of a stream that ends well.
    pub async fn stream(&self, mut changes: Value) -> Vec<Value> {
        changes["stream"] = json!(true);
        let response = self.post(changes).await;
        assert_eq!(response.status(), 200);
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        let (chunks, done) = events(&response.text().await.unwrap());
        assert!(done, "the stream has no [DONE]");
        chunks
    }

    /// Waits until `condition` holds.
    pub async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..2000 {
            if condition(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never came to {what}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Lets the engine thread end.
        self.control.open();
        self.engine.shutdown();
    }
}

/// A valid body with fields replaced; `null` is kept.
pub fn body(changes: Value) -> Value {
    let mut body = json!({"model": "test/model", "messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in changes.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// The names and objects of a stream whose events are named.
pub fn named_events(text: &str) -> Vec<(String, Value)> {
    assert!(text.ends_with("\n\n"));
    let event = |event: &str| {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        (name.to_owned(), data)
    };
    text.trim_end_matches("\n\n").split("\n\n").filter(|e| !e.starts_with(':')).map(event).collect()
}

/// The objects of a server-sent event stream, and whether it ends in `[DONE]`.
pub fn events(text: &str) -> (Vec<Value>, bool) {
    assert!(text.ends_with("\n\n"));
    let mut done = false;
    let mut chunks = Vec::new();
    for event in text.trim_end_matches("\n\n").split("\n\n") {
        assert!(!done, "something follows [DONE]");
        if event.starts_with(':') {
            continue;
        }
        let data = event.strip_prefix("data: ").unwrap();
        assert!(!data.contains('\n'));
        match data {
            "[DONE]" => done = true,
            data => chunks.push(serde_json::from_str(data).unwrap()),
        }
    }
    (chunks, done)
}
