//! What all handlers share: the model once it is loaded, the stage of life, and limits.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Semaphore, watch};

use super::adapters::Adapters;
use super::auth::Auth;
use super::caller::Caller;
use super::common::Sampling;
use super::connections::Connections;
use super::drain::DrainRate;
use super::error::ApiError;
use super::metrics::{EngineMetrics, HttpMetrics};
use super::tenant::Slot;
use super::tls::Tls;
use super::tools::{ToolFormat, ToolStyle};
use super::traces::{RequestSpan, Traces};
use crate::engine::{EngineHandle, TokenId};
use crate::text::{Constraints, PromptRenderer, Tokenizer};

/// A model that answers requests.
pub struct ServedModel {
    /// Names in the API, not empty; the first is reported.
    pub names: Vec<String>,
    /// What was loaded.
    pub root: String,
    /// Seconds since the epoch when it was loaded.
    pub created: u64,
    /// Where sequences run.
    pub engine: EngineHandle,
    /// Ids to text.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to ids.
    pub renderer: Arc<PromptRenderer>,
    /// Tokens that may be named or sampled; rows of the model's output beyond them are padding.
    pub vocab_size: usize,
    /// End-of-sequence tokens.
    pub eos: Vec<TokenId>,
    /// Sampling of requests that do not say.
    pub defaults: Sampling,
    /// Seed of requests that bring none; `None` draws one for each.
    pub seed: Option<u64>,
    /// A prompt with more bytes of text than this cannot fit, whatever its tokens are.
    pub max_prompt_bytes: usize,
    /// LoRA adapters, where they are enabled.
    pub adapters: Option<Adapters>,
    /// What compiles structured output.
    pub constraints: Arc<Constraints>,
    /// How it takes tools and writes calls, if that is known.
    pub tool_style: Option<ToolStyle>,
    /// How fast its queue empties.
    pub drain: DrainRate,
    metrics: OnceLock<EngineMetrics>,
}

/// The parts of a [`ServedModel`].
pub struct ModelParts {
    /// See [`ServedModel::names`].
    pub names: Vec<String>,
    /// See [`ServedModel::root`].
    pub root: String,
    /// See [`ServedModel::engine`].
    pub engine: EngineHandle,
    /// See [`ServedModel::tokenizer`].
    pub tokenizer: Arc<Tokenizer>,
    /// See [`ServedModel::renderer`].
    pub renderer: Arc<PromptRenderer>,
    /// See [`ServedModel::vocab_size`].
    pub vocab_size: usize,
    /// See [`ServedModel::eos`].
    pub eos: Vec<TokenId>,
    /// See [`ServedModel::defaults`].
    pub defaults: Sampling,
    /// See [`ServedModel::seed`].
    pub seed: Option<u64>,
}

impl ServedModel {
    /// Works out what requests are checked against.
    pub fn new(parts: ModelParts) -> Self {
        let ModelParts { names, root, engine, tokenizer, renderer, vocab_size, eos, defaults, seed } = parts;
        assert!(!names.is_empty(), "a model has a name");
        let longest = (0..vocab_size as TokenId).map(|id| tokenizer.token_bytes(id).len()).max().unwrap_or(0);
        // Special tokens in the template stand for no text; ordinary tokens for `longest` at most.
        let max_prompt_bytes = engine.config().max_len().saturating_mul(longest.max(4));
        let constraints = Constraints::new(Arc::clone(&tokenizer), vocab_size, eos.clone());
        let tool_style = renderer.template().and_then(|template| ToolStyle::of_template(template.source()));
        Self {
            names,
            root,
            created: unix_seconds(),
            engine,
            tokenizer,
            renderer,
            vocab_size,
            eos,
            defaults,
            seed,
            max_prompt_bytes,
            adapters: None,
            constraints,
            tool_style,
            drain: DrainRate::new(Instant::now()),
            metrics: OnceLock::new(),
        }
    }

    /// Reads calls in this format, whatever the chat template says.
    pub fn with_tool_format(mut self, format: ToolFormat) -> Self {
        let source = self.renderer.template().map_or("", |template| template.source());
        self.tool_style = Some(ToolStyle::given(format, source));
        self
    }

    /// Tokens of prompt and completion together.
    pub fn max_len(&self) -> usize {
        self.engine.config().max_len()
    }

    /// Its measurements.
    pub fn metrics(&self) -> &EngineMetrics {
        self.metrics.get_or_init(|| EngineMetrics::new(&self.names[0]))
    }
}

/// Seconds since the epoch.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Progress of loading, written by the loader and read by the probes.
#[derive(Debug, Default)]
pub struct LoadProgress {
    phase: Mutex<&'static str>,
    loaded: AtomicU64,
    total: AtomicU64,
}

impl LoadProgress {
    /// Begins a phase such as `downloading` or `loading`, with so many bytes to go through (0: unknown).
    pub fn begin(&self, phase: &'static str, bytes_total: u64) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.loaded.store(0, Relaxed);
        self.total.store(bytes_total, Relaxed);
    }

    /// Bytes done in this phase.
    pub fn set(&self, bytes_loaded: u64) {
        self.loaded.store(bytes_loaded, Relaxed);
    }

    /// Adds to the bytes done in this phase.
    pub fn add(&self, bytes: u64) {
        self.loaded.fetch_add(bytes, Relaxed);
    }

    /// Phase, bytes done, bytes in all.
    pub fn get(&self) -> (&'static str, u64, u64) {
        let phase = *self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        (if phase.is_empty() { "starting" } else { phase }, self.loaded.load(Relaxed), self.total.load(Relaxed))
    }
}

/// How far the server is in shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It is not.
    Serving,
    /// Nothing new; what was accepted finishes.
    Draining,
    /// What was accepted ends with an error.
    Deadline,
}

/// Limits of the HTTP layer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest request body, bytes.
    pub max_body: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How long a client may leave its socket unread before the connection is dropped.
    pub write_timeout: Duration,
    /// Time between comments on a silent stream.
    pub keep_alive: Duration,
    /// Without a step completing for this long while there is work, the server is not ready.
    pub stall: Duration,
    /// Prompts rendered and tokenised at once.
    pub preparing: usize,
    /// Bytes of a request's headers, names and values together.
    pub max_header_bytes: usize,
    /// Headers of a request.
    pub max_headers: usize,
    /// How long a connection may be without a whole request head: idle, or sending one slowly.
    pub idle_timeout: Duration,
    /// Connections at once; beyond, the one that is idle for longest is closed, or the new one refused.
    pub max_connections: usize,
    /// How long a request may wait before the engine takes it up.
    pub queue_timeout: Option<Duration>,
    /// How long a request may take in all.
    pub request_timeout: Option<Duration>,
    /// Whether cached prompts are found again with the same key only.
    pub isolate_prefix_cache: bool,
    /// Whether `GET /` is the chat page.
    pub chat_page: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body: 8 << 20,
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            preparing: 4,
            max_header_bytes: 32 << 10,
            max_headers: 100,
            idle_timeout: Duration::from_secs(60),
            max_connections: 4096,
            queue_timeout: Some(Duration::from_secs(300)),
            request_timeout: Some(Duration::from_secs(3600)),
            isolate_prefix_cache: false,
            chat_page: true,
        }
    }
}

/// How a server is set up.
#[derive(Default)]
pub struct Settings {
    /// Limits.
    pub limits: Limits,
    /// Keys, if requests need one.
    pub auth: Option<Auth>,
    /// Certificate, if it speaks HTTPS.
    pub tls: Option<Tls>,
    /// Origins whose pages browsers let ask; `*` is every one.
    pub allowed_origins: Vec<String>,
    /// Whether the metrics have a listener of their own.
    pub metrics_apart: bool,
    /// Where spans of requests go, if anywhere.
    pub traces: Option<Traces>,
}

/// Shared state of the server.
pub struct App {
    /// Limits.
    pub limits: Limits,
    /// Keys, if requests need one.
    pub auth: Option<Auth>,
    /// Certificate, if it speaks HTTPS.
    pub tls: Option<Tls>,
    /// See [`Settings::allowed_origins`].
    pub allowed_origins: Vec<String>,
    /// See [`Settings::metrics_apart`].
    pub metrics_apart: bool,
    /// See [`Settings::traces`].
    pub traces: Option<Traces>,
    /// Clients' connections.
    pub connections: Arc<Connections>,
    /// Of the model.
    pub progress: Arc<LoadProgress>,
    /// Of the routes.
    pub metrics: HttpMetrics,
    /// Permits to render and tokenise.
    pub preparing: Arc<Semaphore>,
    started: Instant,
    model: OnceLock<Arc<ServedModel>>,
    stage: watch::Sender<Stage>,
    active: Arc<AtomicUsize>,
}

impl App {
    /// A server whose model is not there yet.
    pub fn new(limits: Limits) -> Arc<Self> {
        Self::guarded(limits, None)
    }

    /// The same; with `auth`, requests need one of its keys.
    pub fn guarded(limits: Limits, auth: Option<Auth>) -> Arc<Self> {
        Self::with(Settings { limits, auth, ..Settings::default() })
    }

    /// The same, set up in every way.
    pub fn with(settings: Settings) -> Arc<Self> {
        let Settings { limits, auth, tls, allowed_origins, metrics_apart, traces } = settings;
        Arc::new(Self {
            limits,
            auth,
            tls,
            allowed_origins,
            metrics_apart,
            traces,
            connections: Arc::new(Connections::new(limits.max_connections)),
            progress: Arc::default(),
            metrics: HttpMetrics::new(),
            preparing: Arc::new(Semaphore::new(limits.preparing)),
            started: Instant::now(),
            model: OnceLock::new(),
            stage: watch::Sender::new(Stage::Serving),
            active: Arc::default(),
        })
    }

    /// Starts answering requests. Later calls change nothing.
    pub fn set_model(&self, model: ServedModel) {
        let _ = self.model.set(Arc::new(model));
    }

    /// The model, if it is loaded.
    pub fn model(&self) -> Option<&Arc<ServedModel>> {
        self.model.get()
    }

    /// The model, or the error of a request that comes too early.
    pub fn loaded(&self) -> Result<&Arc<ServedModel>, ApiError> {
        self.model.get().ok_or(ApiError::Loading)
    }

    /// Time since the server was started.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Stage of life.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Moves to a later stage.
    pub fn advance(&self, stage: Stage) {
        self.stage.send_if_modified(|now| {
            let later = stage > *now;
            *now = stage.max(*now);
            later
        });
    }

    /// Told of every change of stage.
    pub fn watch_stage(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// Counts a request as running until the guard goes, unless the server is draining.
    pub fn enter(&self) -> Result<Active, ApiError> {
        self.active.fetch_add(1, SeqCst);
        let now = tokio::time::Instant::now();
        let guard = Active {
            _slot: Caller::current().slot,
            span: RequestSpan::current(),
            begun: now,
            queue_until: self.limits.queue_timeout.map(|limit| now + limit),
            until: self.limits.request_timeout.map(|limit| now + limit),
            _count: Count(Arc::clone(&self.active)),
        };
        // Counted first, so that a drain beginning now sees it.
        if self.stage() > Stage::Serving { Err(ApiError::Draining) } else { Ok(guard) }
    }

    /// Requests running.
    pub fn active(&self) -> usize {
        self.active.load(SeqCst)
    }
}

/// A running request.
#[derive(Debug)]
pub struct Active {
    /// Its place among those of its key.
    _slot: Option<Arc<Slot>>,
    /// Its span, which does not end before.
    pub span: Option<RequestSpan>,
    begun: tokio::time::Instant,
    /// When it is given up if it still waits.
    pub queue_until: Option<tokio::time::Instant>,
    /// When it ends in any case.
    pub until: Option<tokio::time::Instant>,
    /// The last to go: when nothing is running, all spans have ended.
    _count: Count,
}

/// One of the requests running.
#[derive(Debug)]
struct Count(Arc<AtomicUsize>);

impl Active {
    /// The error of a request that was not begun in time.
    pub fn not_begun(&self) -> ApiError {
        ApiError::QueueTimeout { waited: self.begun.elapsed().as_secs() }
    }

    /// The error of a request that has taken too long, and has no answer yet.
    pub fn too_long(&self) -> ApiError {
        ApiError::Timeout(self.begun.elapsed().as_secs())
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}
