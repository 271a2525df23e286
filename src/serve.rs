//! `lima serve`: from a configuration to a running server.

mod health;
mod load;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::config::{Config, ToolCallParser};
use crate::engine::{self, EngineConfig, EngineThread, Executor, TokenId};
use crate::http::{
    self, Adapters, App, Auth, Limits, ModelParts, Sampling, ServedModel, Settings, Tls, ToolFormat, Traces,
};
use crate::text::PromptRenderer;

pub use self::health::health;
pub use self::load::{load_model, pull};

/// A model ready to run, and what the layers above need to know of it.
pub struct LoadedModel {
    /// Computes steps.
    pub executor: Box<dyn Executor>,
    /// Limits, the KV pool's size among them.
    pub engine: EngineConfig,
    /// Tokenizer and chat template.
    pub renderer: PromptRenderer,
    /// Its own name, used when `--served-model-name` gives none.
    pub name: String,
    /// Where it came from, as the API shows it.
    pub root: String,
    /// Tokens that may be named or sampled.
    pub vocab_size: usize,
    /// End-of-sequence tokens.
    pub eos: Vec<TokenId>,
    /// From `generation_config.json`.
    pub defaults: Sampling,
    /// LoRA adapters, where they are enabled; none is loaded yet.
    pub adapters: Option<Adapters>,
}

/// What a server must not show, read from files before it starts.
pub struct Secrets {
    /// API keys, if requests need one.
    pub auth: Option<Auth>,
    /// Certificate and key of HTTPS.
    pub tls: Option<Tls>,
}

/// Reads the files of keys and certificates that a configuration names.
///
/// # Errors
/// One line that names the flag.
pub fn secrets(config: &Config) -> Result<Secrets, String> {
    let auth = Auth::new(&config.api_key.0, config.api_key_file.as_deref())?;
    let tls = config.network.tls.as_ref().map(|files| Tls::new(&files.certificates, &files.key)).transpose()?;
    Ok(Secrets { auth, tls })
}

/// Serves until a signal, then drains. An error is a server that never ran, or ended otherwise than by a signal.
pub fn run(config: Config, secrets: Secrets) -> anyhow::Result<()> {
    tracing::info!("lima {} with\n{config}", env!("CARGO_PKG_VERSION"));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    let result = runtime.block_on(serve(config, secrets));
    // A loader that is still at work is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn serve(config: Config, secrets: Secrets) -> anyhow::Result<()> {
    let config = Arc::new(config);
    match &secrets.auth {
        Some(auth) => tracing::info!("requests need one of {} API keys", auth.count()),
        None if !config.listen.ip().is_loopback() => {
            let address = config.listen;
            tracing::warn!("anyone who reaches {address} may use this server: there is no --api-key or --api-key-file");
        }
        None => {}
    }
    let traces = traces(&config)?;
    let listener = bind(config.listen).await?;
    let address = listener.local_addr().context("cannot tell the port")?;
    let scheme = if secrets.tls.is_some() { "https" } else { "http" };
    // Not a log line: with `--port 0` it is how a script learns the port.
    let _ = writeln!(std::io::stdout(), "listening on {scheme}://{address}");
    let app = App::with(Settings {
        limits: limits(&config),
        auth: secrets.auth,
        tls: secrets.tls,
        allowed_origins: config.network.allowed_origins.clone(),
        metrics_apart: config.network.metrics_port.is_some(),
        traces,
    });
    if let Some(port) = config.network.metrics_port {
        let listener = bind(SocketAddr::new(config.listen.ip(), port)).await?;
        let address = listener.local_addr().context("cannot tell the port")?;
        let _ = writeln!(std::io::stdout(), "metrics on http://{address}/metrics");
        tokio::spawn(http::serve_metrics(Arc::clone(&app), listener));
    }
    if config.api_key_file.is_some() || app.tls.is_some() {
        tokio::spawn(reload(Arc::clone(&app), stop_signal(SignalKind::hangup())?));
    }

    let (failed, failure) = oneshot::channel();
    let loading = std::thread::Builder::new().name("loader".into());
    let (loader_app, loader_config) = (Arc::clone(&app), Arc::clone(&config));
    loading
        .spawn(move || match start_model(&loader_config, &loader_app) {
            Ok(engine) => watch_engine(engine, &loader_app, failed),
            Err(e) => {
                let _ = failed.send(e);
            }
        })
        .context("cannot start the loader thread")?;

    // A loader that ends without a word has panicked.
    let failure = async move { failure.await.unwrap_or_else(|_| anyhow!("the model thread ended unexpectedly")) };
    let signals = (stop_signal(SignalKind::terminate())?, stop_signal(SignalKind::interrupt())?);
    let (report, reported) = oneshot::channel();
    let stop = async move {
        let mut signals = signals;
        tokio::select! {
            () = either(&mut signals) => {
                tracing::info!("draining; a second signal exits at once");
                tokio::spawn(async move {
                    either(&mut signals).await;
                    tracing::warn!("exiting at once");
                    std::process::exit(130);
                });
            }
            error = failure => {
                let _ = report.send(error);
            }
        }
    };
    let traces = app.traces.clone();
    http::serve(app, listener, stop, config.drain_timeout).await.context("the server failed")?;
    if let Some(traces) = traces {
        // Blocks a thread that nobody needs any more.
        let _ = tokio::task::spawn_blocking(move || traces.shutdown(LAST_SPANS)).await;
    }
    match reported.await {
        Ok(error) => Err(error),
        Err(_) => Ok(()),
    }
}

/// How long the last spans may take to reach their collector.
const LAST_SPANS: Duration = Duration::from_secs(2);

fn traces(config: &Config) -> anyhow::Result<Option<Traces>> {
    let endpoint = config.network.traces_endpoint.as_deref();
    let traces = endpoint.map(Traces::new).transpose();
    traces.map_err(|reason| anyhow!("--otlp-traces-endpoint: {reason}"))
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Descriptors that are no clients' connections: listeners, files, the runtime's own.
const OTHER_DESCRIPTORS: usize = 64;

fn limits(config: &Config) -> Limits {
    let network = &config.network;
    let mut max_connections = network.max_connections;
    if let Some(descriptors) = descriptors()
        && max_connections + OTHER_DESCRIPTORS > descriptors
    {
        max_connections = descriptors.saturating_sub(OTHER_DESCRIPTORS).max(1);
        tracing::info!("at most {max_connections} connections, as {descriptors} files may be open (ulimit -n)");
    }
    Limits {
        max_body: config.max_body_size,
        stall: network.watchdog_timeout,
        max_header_bytes: network.max_header_size,
        idle_timeout: network.idle_timeout,
        max_connections,
        queue_timeout: network.queue_timeout,
        request_timeout: network.request_timeout,
        isolate_prefix_cache: network.isolate_prefix_cache,
        chat_page: config.chat_page,
        ..Limits::default()
    }
}

/// How many files this process may have open, where the system tells (Linux).
fn descriptors() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Reads keys and certificates again at each SIGHUP.
async fn reload(app: Arc<App>, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        match app.auth.as_ref().map(Auth::reload) {
            Some(Ok(count)) => tracing::info!("API keys were read again: {count}"),
            Some(Err(reason)) => tracing::error!("API keys stay as they were: {reason}"),
            None => {}
        }
        match app.tls.as_ref().map(Tls::reload) {
            Some(Ok(())) => tracing::info!("the certificate was read again"),
            Some(Err(reason)) => tracing::error!("the certificate stays as it was: {reason}"),
            None => {}
        }
    }
}

fn stop_signal(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).context("cannot listen for signals")
}

async fn either((first, second): &mut (Signal, Signal)) {
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
    }
}

/// Loads the model, starts its engine and begins to answer.
fn start_model(config: &Config, app: &App) -> anyhow::Result<EngineThread> {
    let started = Instant::now();
    let loaded = load_model(config, &app.progress)?;
    let limits = loaded.engine.clone();
    let (handle, thread) = engine::spawn(loaded.engine, loaded.executor);
    let names = if config.served_model_name.is_empty() { vec![loaded.name] } else { config.served_model_name.clone() };
    let mut model = ServedModel::new(ModelParts {
        names,
        root: loaded.root,
        engine: handle,
        tokenizer: Arc::clone(loaded.renderer.tokenizer()),
        renderer: Arc::new(loaded.renderer),
        vocab_size: loaded.vocab_size,
        eos: loaded.eos,
        defaults: loaded.defaults,
        seed: config.seed,
    });
    if let Some(adapters) = loaded.adapters {
        model = model.with_adapters(adapters);
    }
    model = match config.tool_call_parser {
        ToolCallParser::Auto => model,
        ToolCallParser::Hermes => model.with_tool_format(ToolFormat::Hermes),
        ToolCallParser::Llama3Json => model.with_tool_format(ToolFormat::Llama3Json),
    };
    for module in &config.lora_modules {
        let added = model.load_adapter(&module.name, &module.path, module.base_model_name.as_deref());
        added.map_err(anyhow::Error::msg)?;
    }
    tracing::info!(
        "ready after {:.1} s: model '{}', context {} tokens, KV cache {} tokens ({:.1} sequences of full length)",
        started.elapsed().as_secs_f64(),
        model.names[0],
        limits.max_len(),
        limits.num_blocks * engine::BLOCK_SIZE,
        (limits.num_blocks * engine::BLOCK_SIZE) as f64 / limits.max_len().max(1) as f64,
    );
    app.set_model(model);
    Ok(thread)
}

/// Reports an engine thread that ends while nobody asked it to.
fn watch_engine(engine: EngineThread, app: &App, failed: oneshot::Sender<anyhow::Error>) {
    let ended = engine.join();
    if ended.is_err() || app.stage() == http::state::Stage::Serving {
        let _ = failed.send(anyhow!("the engine stopped unexpectedly"));
    }
}
