//! From a checkpoint to an executor.

use super::{CpuExecutor, memory};
use crate::engine::BLOCK_SIZE;
use crate::model::config::LlamaConfig;
use crate::model::llama::Llama;
use crate::model::weights::{Checkpoint, LoadError};
use crate::ops::cpu::kv::{KvPool, KvType};
use crate::ops::cpu::level::Level;
use crate::ops::cpu::{Cpu, CpuOptions};
use crate::ops::quant::DType;

/// What a user decides about running a model on the CPU.
#[derive(Clone, Debug)]
pub struct RunnerOptions {
    /// Worker threads; `None`: one a core.
    pub threads: Option<usize>,
    /// Weight format; `None`: as the checkpoint has them.
    pub dtype: Option<DType>,
    /// Type of the KV cache; `None`: see [`kv_type`].
    pub kv_cache: Option<KvType>,
    /// Context length; `None`: the model's, as far as the cache holds one such sequence.
    pub max_model_len: Option<usize>,
    /// Most tokens of a step.
    pub max_num_batched_tokens: usize,
    /// Most sequences of a step.
    pub max_num_seqs: usize,
    /// Bytes for the KV cache; `None`: enough for every sequence at full length, at most
    /// [`DEFAULT_KV_BYTES`] and half of the memory free after loading.
    pub kv_cache_memory: Option<u64>,
    /// Instruction set.
    pub level: Level,
}

/// Rows of logits at least that the workspace holds: prompts are scored so many tokens at a time.
const SCORED_ROWS: usize = 64;

/// Most that the KV cache takes without being told to.
pub const DEFAULT_KV_BYTES: u64 = 4 << 30;

/// A model ready to run, and the sizes that were settled while loading.
pub struct Loaded {
    /// The executor.
    pub executor: CpuExecutor,
    /// Blocks of the KV pool.
    pub num_blocks: usize,
    /// Bytes of the packed matrices.
    pub weight_bytes: u64,
    /// Bytes of the KV pool.
    pub kv_bytes: u64,
    /// Its type.
    pub kv_cache: KvType,
    /// Context length.
    pub max_model_len: usize,
    /// Worker threads.
    pub threads: usize,
}

/// A model could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// Weights.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// `--max-model-len` exceeds what the model was made for.
    #[error("--max-model-len {asked} is more than the {limit} positions of the model")]
    TooLong {
        /// Asked for.
        asked: usize,
        /// The model's.
        limit: usize,
    },
    /// The cache cannot hold one sequence.
    #[error("a KV cache of {have} bytes holds {tokens} tokens, fewer than one sequence of {len}")]
    CacheTooSmall {
        /// Bytes there are.
        have: u64,
        /// Tokens they hold.
        tokens: usize,
        /// The context length.
        len: usize,
    },
}

/// The cache's type where none is asked for: F32 with F32 weights, else BF16.
pub fn kv_type(checkpoint: &Checkpoint, dtype: Option<DType>) -> KvType {
    let stored = || checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").map_or(DType::F32, |t| t.dtype);
    let dtype = dtype.unwrap_or_else(stored);
    if dtype == DType::F32 { KvType::F32 } else { KvType::BF16 }
}

/// Loads the weights, then sizes and allocates the cache. `progress` gets the bytes read so far.
///
/// # Errors
/// The checkpoint is damaged, or the cache cannot hold one sequence of the context length.
pub fn load(
    checkpoint: &Checkpoint,
    options: &RunnerOptions,
    progress: impl FnMut(u64),
) -> Result<Loaded, RunnerError> {
    let config = checkpoint.config();
    let limit = config.max_position_embeddings;
    if let Some(asked) = options.max_model_len.filter(|asked| *asked > limit) {
        return Err(RunnerError::TooLong { asked, limit });
    }
    let kv = options.kv_cache.unwrap_or_else(|| kv_type(checkpoint, options.dtype));
    let block_bytes = KvPool::block_bytes(config, kv) as u64;
    let longest = options.max_model_len.unwrap_or(limit);
    let most_bytes = options.kv_cache_memory.unwrap_or(DEFAULT_KV_BYTES);
    let most_tokens = (most_bytes / block_bytes) as usize * BLOCK_SIZE;
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let mut ops = Cpu::new(
        config,
        CpuOptions {
            threads,
            level: options.level,
            dtype: options.dtype,
            kv,
            max_tokens: options.max_num_batched_tokens.max(options.max_num_seqs),
            max_outputs: options.max_num_seqs.max(SCORED_ROWS),
            // No sequence is longer than the cache.
            max_positions: longest.min(most_tokens.max(BLOCK_SIZE)),
        },
    );
    let model = Llama::load(&mut ops, checkpoint, config, progress)?;

    let wanted = (longest.div_ceil(BLOCK_SIZE) * options.max_num_seqs) as u64 * block_bytes;
    let free = || memory::available().map_or(DEFAULT_KV_BYTES, |free| DEFAULT_KV_BYTES.min(free / 2));
    let have = options.kv_cache_memory.unwrap_or_else(|| wanted.min(free()));
    let num_blocks = (have / block_bytes) as usize;
    let max_model_len = settle_length(config, options, have, num_blocks)?;
    ops.allocate_cache(num_blocks);
    let weight_bytes = ops.weight_bytes() as u64;
    Ok(Loaded {
        weight_bytes,
        executor: CpuExecutor::new(ops, model, config),
        num_blocks,
        kv_bytes: num_blocks as u64 * block_bytes,
        kv_cache: kv,
        max_model_len,
        threads,
    })
}

/// A context length that was asked for must fit; the model's own is cut to what fits.
fn settle_length(
    config: &LlamaConfig,
    options: &RunnerOptions,
    have: u64,
    num_blocks: usize,
) -> Result<usize, RunnerError> {
    let tokens = num_blocks * BLOCK_SIZE;
    let len = options.max_model_len.unwrap_or(config.max_position_embeddings);
    match (tokens >= len, options.max_model_len) {
        (true, _) => Ok(len),
        (false, None) if tokens > 0 => Ok(tokens),
        _ => Err(RunnerError::CacheTooSmall { have, tokens, len }),
    }
}
