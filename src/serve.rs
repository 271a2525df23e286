//! `lima serve`: from a configuration to a running server.

use std::io::Write;
mod load;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::config::{Config, ToolCallParser};
use crate::engine::{self, EngineConfig, EngineThread, Executor, TokenId};
use crate::http::{self, Adapters, App, Auth, Limits, ModelParts, Sampling, ServedModel, ToolFormat};
use crate::text::PromptRenderer;

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

/// The API keys that a configuration names; `None` if it names none.
///
/// # Errors
/// One line that names the flag.
pub fn keys(config: &Config) -> Result<Option<Auth>, String> {
    Auth::new(&config.api_key.0, config.api_key_file.as_deref())
}

/// Serves until a signal, then drains. An error is a server that never ran, or ended otherwise than by a signal.
pub fn run(config: Config, auth: Option<Auth>) -> anyhow::Result<()> {
    tracing::info!("lima {} with\n{config}", env!("CARGO_PKG_VERSION"));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    let result = runtime.block_on(serve(config, auth));
    // A loader that is still at work is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn serve(config: Config, auth: Option<Auth>) -> anyhow::Result<()> {
    let config = Arc::new(config);
    match &auth {
        Some(auth) => tracing::info!("requests need one of {} API keys", auth.count()),
        None if !config.listen.ip().is_loopback() => {
            let address = config.listen;
            tracing::warn!("anyone who reaches {address} may use this server: there is no --api-key or --api-key-file");
        }
        None => {}
    }
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr().context("cannot tell the port")?;
    // Not a log line: with `--port 0` it is how a script learns the port.
    let _ = writeln!(std::io::stdout(), "listening on http://{address}");
    let app = App::guarded(Limits { max_body: config.max_body_size, ..Limits::default() }, auth);
    if config.api_key_file.is_some() {
        tokio::spawn(reload_keys(Arc::clone(&app), stop_signal(SignalKind::hangup())?));
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
    http::serve(app, listener, stop, config.drain_timeout).await.context("the server failed")?;
    match reported.await {
        Ok(error) => Err(error),
        Err(_) => Ok(()),
    }
}

/// Reads the file of keys again at each SIGHUP.
async fn reload_keys(app: Arc<App>, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        match app.auth.as_ref().map(Auth::reload) {
            Some(Ok(count)) => tracing::info!("API keys were read again: {count}"),
            Some(Err(reason)) => tracing::error!("API keys stay as they were: {reason}"),
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
