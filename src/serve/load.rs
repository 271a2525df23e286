//! From `--model` to something that runs: source, checkpoint, tokenizer, executor.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use super::LoadedModel;
use crate::config::{Config, Dtype, KvCacheDtype};
use crate::engine::{EngineConfig, Executor, Speculation};
use crate::http::{Adapters, LoadProgress, Sampling};
use crate::hub::{self, ModelSource, Progress};
use crate::model::config::LlamaConfig;
use crate::model::weights::{Checkpoint, Source};
use crate::ops::cpu::kv::KvType;
use crate::ops::cpu::level::Level;
use crate::ops::quant::DType;
use crate::runner::{self, CpuExecutor, RankExecutors, RunnerOptions};
use crate::text::PromptRenderer;

/// Fetches and loads the model, telling `progress`. Blocks.
pub fn load_model(config: &Config, progress: &LoadProgress) -> anyhow::Result<LoadedModel> {
    let source: ModelSource = config.model.parse()?;
    let level = Level::from_env().map_err(anyhow::Error::msg)?;
    let started = Instant::now();
    let path = fetch(&source, progress)?;
    let fetched = started.elapsed();

    progress.begin("reading the tokenizer", 0);
    let checkpoint = Checkpoint::open(&path)?;
    let renderer = renderer(config, &checkpoint, &path)?;

    let (tokens, rows) = (renderer.tokenizer().vocab_size(), checkpoint.config().vocab_size);
    if tokens > rows {
        anyhow::bail!("{}: the tokenizer has {tokens} tokens, the model's vocabulary only {rows}", path.display());
    }

    let read = started.elapsed();
    let tokens = tokens - padding_tokens(&checkpoint, tokens);
    let total = checkpoint.total_bytes() as u64;
    progress.begin("loading weights", total);
    let bar = weights_bar(total);
    let options = RunnerOptions {
        threads: Some(config.threads),
        dtype: dtype(config.dtype),
        kv_cache: kv_cache(config.kv_cache_dtype),
        max_model_len: config.max_model_len,
        max_num_batched_tokens: config.max_num_batched_tokens,
        max_num_seqs: config.max_num_seqs,
        kv_cache_memory: config.kv_cache_memory.map(|b| b.0),
        level,
    };
    let told = |bytes: u64| {
        progress.set(bytes.min(total));
        bar.set_position(bytes.min(total));
    };
    let mut loaded = match config.tensor_parallel_size {
        1 => runner::load(&checkpoint, &options, told)?.map(|executor| Ranks::One(Box::new(executor))),
        ranks => {
            let deadline = Some(config.network.watchdog_timeout.mul_f64(RANK_DEADLINE));
            runner::tensor::load(&checkpoint, &options, ranks, deadline, told)?.map(Ranks::Several)
        }
    };
    bar.finish_and_clear();
    match &mut loaded.executor {
        Ranks::One(executor) => executor.sample_below(tokens),
        Ranks::Several(ranks) => ranks.sample_below(tokens),
    }
    tracing::info!(
        "model found in {fetched:.2?}, tokenizer read in {:.2?}, weights loaded in {:.2?}",
        read - fetched,
        started.elapsed() - read
    );
    if let Ranks::Several(ranks) = &loaded.executor {
        let heads: Vec<String> = ranks.slices().iter().map(|slice| slice.heads.len().to_string()).collect();
        tracing::info!("{} ranks, with {} heads", heads.len(), heads.join(", "));
    }
    tracing::info!(
        "weights {:.0} MiB, KV cache {:.0} MiB ({}), {} threads, {level}",
        loaded.weight_bytes as f64 / 1048576.0,
        loaded.kv_bytes as f64 / 1048576.0,
        loaded.kv_cache.name(),
        loaded.threads
    );

    let shape = checkpoint.config();
    let adapters = adapters(config, shape, &mut loaded.executor)?;
    let (executor, standing) = match loaded.executor {
        Ranks::One(executor) => (executor as Box<dyn Executor>, None),
        Ranks::Several(ranks) => {
            let (executor, standing) = ranks.start();
            (executor, Some(standing))
        }
    };
    let defaults = checkpoint.generation_defaults();
    let mut eos = shape.eos_token_ids.clone();
    let tokenizer = renderer.tokenizer();
    eos.extend(defaults.eos_token_ids.iter().copied().chain(tokenizer.eos_id()).chain(tokenizer.eot_id()));
    eos.sort_unstable();
    eos.dedup();
    Ok(LoadedModel {
        engine: EngineConfig {
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: config.max_num_batched_tokens,
            max_model_len: loaded.max_model_len,
            num_blocks: loaded.num_blocks,
            enable_prefix_caching: config.prefix_caching,
            speculation: Speculation { max_tokens: config.num_speculative_tokens, ..Speculation::OFF },
            max_queued_requests: config.max_queued_requests,
            max_queued_tokens: (config.network.max_queued_tokens)
                .unwrap_or_else(|| queued_tokens(config, loaded.max_model_len)),
        },
        executor,
        standing,
        adapters,
        renderer,
        name: name(&source, &path),
        root: source.to_string(),
        vocab_size: tokens,
        eos,
        defaults: Sampling {
            temperature: defaults.temperature,
            top_p: defaults.top_p,
            top_k: defaults.top_k,
            min_p: defaults.min_p,
            repetition_penalty: defaults.repetition_penalty,
            ..Sampling::default()
        },
    })
}

/// What computes the model, not at work yet.
enum Ranks {
    One(Box<CpuExecutor>),
    Several(RankExecutors),
}

/// The part of the watchdog's time that a rank may keep others waiting: the rest is for telling it.
const RANK_DEADLINE: f64 = 0.8;

/// Makes room for LoRA adapters, if any are or may be asked for.
fn adapters(config: &Config, shape: &LlamaConfig, executor: &mut Ranks) -> anyhow::Result<Option<Adapters>> {
    if config.lora_modules.is_empty() && config.lora_root.is_none() {
        return Ok(None);
    }
    let slices = match executor {
        Ranks::One(executor) => {
            executor.enable_adapters(config.max_loras, config.max_lora_rank);
            None
        }
        Ranks::Several(ranks) => {
            ranks.enable_adapters(config.max_loras, config.max_lora_rank);
            Some(ranks.slices().to_vec())
        }
    };
    let canonical = |root: &std::path::PathBuf| {
        root.canonicalize().with_context(|| format!("cannot resolve --lora-root '{}'", root.display()))
    };
    let root = config.lora_root.as_ref().map(canonical).transpose()?;
    // Clients know their paths from the root on, and nothing of what is above.
    let hidden = root.as_ref().map(|root| format!("{}/", root.display()));
    let (shape, max_rank) = (shape.clone(), config.max_lora_rank);
    let load = move |dir: &Path| {
        let adapter = match &slices {
            None => runner::adapters::load(dir, &shape, max_rank),
            Some(slices) => runner::adapters::load_parts(dir, &shape, slices, max_rank),
        };
        adapter.map_err(|e| {
            let message = e.to_string();
            hidden.as_ref().map_or(message.clone(), |hidden| message.replace(hidden, ""))
        })
    };
    Ok(Some(Adapters::new(Box::new(load), root)))
}

/// `lima pull`: fetches a model into the cache and says where it is.
pub fn pull(model: &str) -> anyhow::Result<()> {
    let source: ModelSource = model.parse()?;
    let path = hub::update(&source, &hub::terminal_progress())?;
    println!("{}", path.display());
    Ok(())
}

fn fetch(source: &ModelSource, progress: &LoadProgress) -> anyhow::Result<std::path::PathBuf> {
    progress.begin("fetching the model", 0);
    let show = hub::terminal_progress();
    let tell = |p: Progress<'_>| {
        match p {
            Progress::Download { bytes, total, .. } => {
                progress.begin("downloading", total.unwrap_or(0));
                progress.set(bytes);
            }
            Progress::Extract { bytes, total, .. } => {
                progress.begin("extracting", total);
                progress.set(bytes);
            }
            Progress::Waiting | Progress::Done => {}
        }
        show(p);
    };
    Ok(hub::resolve(source, &tell)?)
}

fn renderer(config: &Config, checkpoint: &Checkpoint, path: &Path) -> anyhow::Result<PromptRenderer> {
    let renderer = match (checkpoint.source(), checkpoint.gguf_vocab()) {
        (Source::HuggingFace(dir), _) => PromptRenderer::from_dir(dir)?,
        (Source::Gguf(_), Some(vocab)) => PromptRenderer::from_gguf(vocab)?,
        (Source::Gguf(_), None) => anyhow::bail!("{}: the file has no tokenizer", path.display()),
    };
    match &config.chat_template {
        None => Ok(renderer),
        Some(file) => {
            let source = std::fs::read_to_string(file)
                .with_context(|| format!("--chat-template: cannot read {}", file.display()))?;
            PromptRenderer::with_source(renderer.tokenizer().clone(), Some(&source))
                .with_context(|| format!("--chat-template {}", file.display()))
        }
    }
}

/// Tokens at the end that only fill the embedding up: converters to GGUF write them as unused tokens.
fn padding_tokens(checkpoint: &Checkpoint, tokens: usize) -> usize {
    const UNUSED: i32 = 5;
    let types = checkpoint.gguf_vocab().map_or(&[][..], |vocab| &vocab.token_types);
    match types.len() == tokens {
        true => types.iter().rev().take_while(|kind| **kind == UNUSED).count().min(tokens.saturating_sub(1)),
        false => 0,
    }
}

fn dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::Auto => None,
        Dtype::F32 => Some(DType::F32),
        Dtype::Bf16 => Some(DType::BF16),
        Dtype::Q8_0 => Some(DType::Q8_0),
        Dtype::Q4_0 => Some(DType::Q4_0),
    }
}

fn kv_cache(dtype: KvCacheDtype) -> Option<KvType> {
    match dtype {
        KvCacheDtype::Auto => None,
        KvCacheDtype::F32 => Some(KvType::F32),
        KvCacheDtype::Bf16 => Some(KvType::BF16),
        KvCacheDtype::Int8 => Some(KvType::Int8),
    }
}

/// What may wait: as many prompt tokens as the queue has places, at an eighth of the context each, and at least
/// one whole context.
fn queued_tokens(config: &Config, max_model_len: usize) -> usize {
    config.max_queued_requests.saturating_mul(max_model_len / 8).max(max_model_len)
}

/// The model's name in the API where none was given: the short name, or the file's or directory's.
fn name(source: &ModelSource, path: &Path) -> String {
    match source {
        ModelSource::Alias(alias) => alias.name.to_owned(),
        // Its path ends in a commit.
        ModelSource::HuggingFace(model) if model.file.is_none() => model.name().to_owned(),
        ModelSource::Path(_) | ModelSource::HuggingFace(_) | ModelSource::Pypi(_) => {
            let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
            let canonical = || path.canonicalize().ok()?.file_name().map(|n| n.to_string_lossy().into_owned());
            stem.map(|n| n.to_string_lossy().into_owned()).or_else(canonical).unwrap_or_else(|| "model".to_owned())
        }
    }
}

fn weights_bar(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("loading weights {bar:32} {bytes}/{total_bytes} {elapsed}")
        .expect("the template is well formed");
    ProgressBar::new(total).with_style(style)
}
