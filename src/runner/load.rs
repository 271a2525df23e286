//! From a checkpoint to an executor.

use super::{CpuExecutor, memory};
use crate::engine::BLOCK_SIZE;
use crate::model::config::ConfigError;
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
pub struct Loaded<E = CpuExecutor> {
    /// The executor.
    pub executor: E,
    /// Blocks of the KV pool.
    pub num_blocks: usize,
    /// Bytes of the packed matrices, on all ranks.
    pub weight_bytes: u64,
    /// Bytes of the KV pool, on all ranks.
    pub kv_bytes: u64,
    /// Its type.
    pub kv_cache: KvType,
    /// Context length.
    pub max_model_len: usize,
    /// Worker threads, of all ranks.
    pub threads: usize,
}

impl<E> Loaded<E> {
    /// The same with what becomes of the executor.
    pub fn map<F>(self, change: impl FnOnce(E) -> F) -> Loaded<F> {
        let Self { executor, num_blocks, weight_bytes, kv_bytes, kv_cache, max_model_len, threads } = self;
        let executor = change(executor);
        Loaded { executor, num_blocks, weight_bytes, kv_bytes, kv_cache, max_model_len, threads }
    }
}

/// A model could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// Weights.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model cannot be cut over so many ranks.
    #[error("--tensor-parallel-size: {0}")]
    Ranks(#[from] ConfigError),
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
    let sizes = Sizes::new(checkpoint, options, |kv| KvPool::block_bytes(config, kv))?;
    let mut ops = Cpu::new(config, sizes.cpu);
    let model = Llama::load(&mut ops, checkpoint, config, progress)?;
    let cache = sizes.settle(options)?;
    ops.allocate_cache(cache.num_blocks);
    let weight_bytes = ops.weight_bytes() as u64;
    Ok(sizes.loaded(CpuExecutor::new(ops, model, config), cache, weight_bytes))
}

/// What follows from options and shape before anything is loaded.
pub(super) struct Sizes {
    /// For one rank with all threads.
    pub cpu: CpuOptions,
    /// Of all ranks.
    block_bytes: u64,
    /// Tokens of the longest sequence.
    longest: usize,
}

/// The cache, once it is known what is left for it.
pub(super) struct Cache {
    pub num_blocks: usize,
    max_model_len: usize,
}

impl Sizes {
    /// `block_bytes` are those of a block of the cache, on all ranks.
    pub fn new(
        checkpoint: &Checkpoint,
        options: &RunnerOptions,
        block_bytes: impl Fn(KvType) -> usize,
    ) -> Result<Self, RunnerError> {
        let limit = checkpoint.config().max_position_embeddings;
        if let Some(asked) = options.max_model_len.filter(|asked| *asked > limit) {
            return Err(RunnerError::TooLong { asked, limit });
        }
        let kv = options.kv_cache.unwrap_or_else(|| kv_type(checkpoint, options.dtype));
        let block_bytes = block_bytes(kv) as u64;
        let longest = options.max_model_len.unwrap_or(limit);
        let most_bytes = options.kv_cache_memory.unwrap_or(DEFAULT_KV_BYTES);
        let most_tokens = (most_bytes / block_bytes) as usize * BLOCK_SIZE;
        let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
        let cpu = CpuOptions {
            threads,
            level: options.level,
            dtype: options.dtype,
            kv,
            max_tokens: options.max_num_batched_tokens.max(options.max_num_seqs),
            max_outputs: options.max_num_seqs.max(SCORED_ROWS),
            // No sequence is longer than the cache.
            max_positions: longest.min(most_tokens.max(BLOCK_SIZE)),
        };
        Ok(Self { cpu, block_bytes, longest })
    }

    /// The cache, of what is left once the weights are there. A context length that was asked for must fit; the model's own
    /// is cut to what fits.
    pub fn settle(&self, options: &RunnerOptions) -> Result<Cache, RunnerError> {
        let wanted = (self.longest.div_ceil(BLOCK_SIZE) * options.max_num_seqs) as u64 * self.block_bytes;
        let free = || memory::available().map_or(DEFAULT_KV_BYTES, |free| DEFAULT_KV_BYTES.min(free / 2));
        let have = options.kv_cache_memory.unwrap_or_else(|| wanted.min(free()));
        let num_blocks = (have / self.block_bytes) as usize;
        let (tokens, len) = (num_blocks * BLOCK_SIZE, self.longest);
        let max_model_len = match (tokens >= len, options.max_model_len) {
            (true, _) => len,
            (false, None) if tokens > 0 => tokens,
            _ => return Err(RunnerError::CacheTooSmall { have, tokens, len }),
        };
        Ok(Cache { num_blocks, max_model_len })
    }

    /// All that is known in the end.
    pub fn loaded<E>(&self, executor: E, cache: Cache, weight_bytes: u64) -> Loaded<E> {
        let Cache { num_blocks, max_model_len } = cache;
        Loaded {
            executor,
            num_blocks,
            weight_bytes,
            kv_bytes: num_blocks as u64 * self.block_bytes,
            kv_cache: self.cpu.kv,
            max_model_len,
            threads: self.cpu.threads,
        }
    }
}
