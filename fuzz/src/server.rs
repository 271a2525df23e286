//! The server without a network: its router over the fake executor, whose model says what it is told to.

use std::sync::{Arc, Mutex, OnceLock};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, header};
use lima::engine::fake::FakeExecutor;
use lima::engine::{EngineConfig, Speculation, TokenId, spawn};
use lima::http::{App, Limits, ModelParts, Sampling, ServedModel, Settings, router};
use lima::text::PromptRenderer;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;
use tower::ServiceExt;

/// Tokens 0–255 are bytes; then ChatML's two.
pub const VOCAB: usize = 258;
const END: TokenId = 257;

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// One a process.
pub struct Server {
    runtime: Runtime,
    router: Router,
    says: Arc<Mutex<Vec<u8>>>,
}

/// What was answered.
pub struct Answer {
    pub status: u16,
    pub media: String,
    pub body: Vec<u8>,
}

/// GPT-2's printable stand-in for each byte.
fn byte_char(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match byte {
        b if plain(b) => char::from(b),
        b => char::from_u32(0x100 + (0..b).filter(|&b| !plain(b)).count() as u32).expect("a letter"),
    }
}

fn renderer() -> PromptRenderer {
    let vocab: Map<String, Value> = (0..=255u8).map(|b| (byte_char(b).to_string(), json!(b))).collect();
    let special = |id, content| {
        json!({"id": id, "content": content, "special": true, "normalized": false,
               "single_word": false, "lstrip": false, "rstrip": false})
    };
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [special(256, "<|im_start|>"), special(END, "<|im_end|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let config = json!({"eos_token": "<|im_end|>", "chat_template": TEMPLATE});
    let (tokenizer, config) = (tokenizer.to_string(), config.to_string());
    let files = [("tokenizer.json", tokenizer.as_bytes()), ("tokenizer_config.json", config.as_bytes())];
    PromptRenderer::from_dir(&crate::directory(&files)).expect("a tokenizer")
}

impl Server {
    /// The server of this process.
    pub fn get() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(Self::start)
    }

    fn start() -> Self {
        let says: Arc<Mutex<Vec<u8>>> = Arc::default();
        let script = Arc::clone(&says);
        let said = move |_: &[TokenId], i: usize| {
            let says = script.lock().expect("nothing panics while it is held");
            Some(says.get(i).map_or(END, |&byte| TokenId::from(byte)))
        };
        let executor = FakeExecutor::new(2, VOCAB as u32).with_script_fn(Box::new(said));
        let config = EngineConfig {
            max_num_seqs: 32,
            max_num_batched_tokens: 256,
            max_model_len: 256,
            num_blocks: 1024,
            enable_prefix_caching: true,
            speculation: Speculation::default(),
            max_queued_requests: 4096,
            max_queued_tokens: 1 << 24,
        };
        let (engine, _thread) = spawn(config, Box::new(executor));
        let renderer = Arc::new(renderer());
        let model = ServedModel::new(ModelParts {
            names: vec!["m".into()],
            root: "somewhere".into(),
            engine,
            tokenizer: Arc::clone(renderer.tokenizer()),
            renderer,
            vocab_size: VOCAB,
            eos: vec![END],
            defaults: Sampling::default(),
            seed: Some(1),
        });
        let limits = Limits { max_body: 64 << 10, ..Limits::default() };
        let app = App::with(Settings { limits, ..Settings::default() });
        app.set_model(model);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { runtime, router: router(app), says }
    }

    /// What the model says from now on, byte by byte, before it ends.
    pub fn say(&self, text: &[u8]) {
        *self.says.lock().expect("nothing panics while it is held") = text.to_vec();
    }

    /// Answers a POST of JSON, to its end.
    pub fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json").body(body.into());
        let request = request.expect("a request");
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
            let status = response.status().as_u16();
            let media = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let media = media.split(';').next().unwrap_or_default().to_owned();
            let body = to_bytes(response.into_body(), usize::MAX).await.expect("a body");
            Answer { status, media, body: body.to_vec() }
        })
    }

    /// The same of a request that must succeed.
    pub fn ask(&self, path: &str, body: &Value) -> Vec<u8> {
        let answer = self.post(path, body.to_string());
        assert_eq!(answer.status, 200, "{body}: {}", String::from_utf8_lossy(&answer.body));
        answer.body
    }
}
