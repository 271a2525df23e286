//! Serving on the CPU: packed weights, SIMD kernels, a paged cache read in place, a worker pool.
//!
//! All memory is taken when the model is loaded; a step allocates nothing. Activations live in a fixed
//! workspace, so [`X`] only names where they are, and a norm is applied where its result is first read.
//!
//! Widths are padded to 32 columns that stay zero.

mod attention;
pub mod buffer;
mod format;
mod forward;
mod gemm;
pub mod kv;
pub mod level;
pub mod limits;
pub mod lora;
pub mod pack;
pub mod pool;
mod ranks;
mod rope;
mod rows;
pub(crate) mod simd;
mod work;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::buffer::Buffer;
use self::kv::{KvPool, KvType};
use self::level::Level;
use self::lora::Lora;
use self::pack::Packed;
use self::pool::Pool;
use self::ranks::Ranks;
use self::rope::RopeTable;
use self::rows::{NormPtr, Rows};
use self::work::Plan;
use crate::model::config::LlamaConfig;
use crate::model::rope::inverse_frequencies;
use crate::model::weights::TensorView;
use crate::ops::OpsError;
use crate::ops::quant::DType;

/// How a [`Cpu`] is built.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Worker threads, the caller's included.
    pub threads: usize,
    /// Instruction set.
    pub level: Level,
    /// Store matrices in this format; `None`: as the checkpoint has them.
    pub dtype: Option<DType>,
    /// Cache type.
    pub kv: KvType,
    /// Most tokens of a batch.
    pub max_tokens: usize,
    /// Most rows of logits of a batch.
    pub max_outputs: usize,
    /// Positions are below this.
    pub max_positions: usize,
}

/// Activations: which part of the workspace holds them.
pub enum X {
    /// The residual stream, `[T, hidden]`.
    Residual,
    /// The residual stream under a norm that its reader applies.
    Normed(Arc<Norm>),
    /// Queries, keys, values.
    Qkv,
    /// What attention returned.
    Attended,
    /// The gated product, `[T, intermediate]`.
    Gated,
    /// `[R, vocab]`; read them with [`Cpu::logits`].
    Logits,
    /// `[R, hidden]`; read them with [`Cpu::hidden_states`].
    Hidden,
}

/// An RMSNorm.
pub struct Norm {
    weight: Buffer<f32>,
    width: usize,
    eps: f32,
}

/// A matrix, in parts where it is stored in several formats, and for the gated product the one that is gated.
pub struct Linear {
    /// Stacked by rows.
    parts: Vec<Packed>,
    up: Option<Packed>,
}

/// One role's activations, `[capacity, stride]`.
struct Area {
    data: Buffer<f32>,
    stride: usize,
}

impl Area {
    fn new(rows: usize, width: usize) -> Self {
        let stride = width.next_multiple_of(pack::BLOCK);
        Self { data: Buffer::zeroed(rows * stride), stride }
    }

    fn ptr(&self) -> Shared {
        Shared(self.data.as_ptr_shared())
    }
}

/// A pointer that workers share; each writes rows or columns of its own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: the kernels' partition of rows and tiles keeps writes disjoint.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// [`Ops`](crate::ops::Ops) on the CPU.
pub struct Cpu {
    options: CpuOptions,
    config: LlamaConfig,
    pool: Pool,
    rope: RopeTable,
    cache: KvPool,
    residual: Area,
    qkv: Area,
    attended: Area,
    gated: Area,
    logits: Area,
    hidden: Area,
    rows: Rows,
    partials: Buffer<f32>,
    scratch: Buffer<f32>,
    scratch_len: usize,
    /// For matrix products, each worker's.
    products: Buffer<f32>,
    plan: Plan,
    /// Where adapters are enabled.
    lora: Option<Box<Lora>>,
    /// Where others have parts of the model.
    ranks: Option<Box<Ranks>>,
    tokens: usize,
    forwards: u64,
    weight_bytes: usize,
}

impl Cpu {
    /// A workspace for `config`'s shapes, with an empty cache: see [`Cpu::allocate_cache`].
    pub fn new(config: &LlamaConfig, options: CpuOptions) -> Self {
        let pool = Pool::new(options.threads);
        let group = config.num_heads / config.num_kv_heads;
        let dim = config.head_dim;
        let widest = config.hidden_size.max(config.intermediate_size).max(config.num_heads * dim);
        let (tokens, outputs) = (options.max_tokens, options.max_outputs);
        let cache = KvPool::new(config, options.kv, 0);
        let scratch_len = attention::scratch_len(group, cache.padded_dim).next_multiple_of(32);
        let plan = Plan::new(config, options.max_tokens, options.max_positions, pool.size());
        Self {
            rope: RopeTable::new(&inverse_frequencies(config), options.max_positions),
            residual: Area::new(tokens, config.hidden_size),
            qkv: Area::new(tokens, (config.num_heads + 2 * config.num_kv_heads) * dim),
            attended: Area::new(tokens, config.num_heads * dim),
            gated: Area::new(tokens, config.intermediate_size),
            logits: Area::new(outputs, config.vocab_size),
            hidden: Area::new(tokens, config.hidden_size),
            rows: Rows::new(tokens.max(outputs), widest, pool.size()),
            partials: Buffer::zeroed(plan.max_slots() * group * (cache.padded_dim + 2)),
            scratch: Buffer::zeroed(pool.size() * scratch_len),
            products: Buffer::zeroed(pool.size() * forward::products_len(&options)),
            scratch_len,
            plan,
            lora: None,
            ranks: None,
            cache,
            pool,
            tokens: 0,
            forwards: 0,
            weight_bytes: 0,
            options,
            config: config.clone(),
        }
    }

    /// Replaces the cache by one of `blocks` blocks; its content is lost.
    pub fn allocate_cache(&mut self, blocks: usize) {
        self.cache = KvPool::new(&self.config, self.options.kv, blocks);
    }

    /// Makes room for so many LoRA adapters of at most this rank; those loaded before are lost.
    pub fn enable_adapters(&mut self, slots: usize, max_rank: usize) {
        let (tokens, workers) = (self.options.max_tokens, self.pool.size());
        self.lora = Some(Box::new(Lora::new(&self.config, slots, max_rank, tokens, workers)));
    }

    /// Adapters that can be loaded at once.
    pub fn adapter_slots(&self) -> usize {
        self.lora.as_ref().map_or(0, |l| l.slots().len())
    }

    /// Adapters that are loaded, and their bytes.
    pub fn adapters(&self) -> (usize, usize) {
        let all = self.lora.iter().flat_map(|l| l.slots().iter());
        all.fold((0, 0), |(count, bytes), adapter| (count + 1, bytes + adapter.bytes()))
    }

    /// The cache.
    pub fn cache(&self) -> &KvPool {
        &self.cache
    }

    /// Bytes of all matrices packed so far.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// Forward passes since the start.
    pub fn forwards(&self) -> u64 {
        self.forwards
    }

    /// The workers, for work outside the forward pass, and the logits: rows of `vocab_size` numbers, the given
    /// distance apart. No rows where others have them ([`Cpu::has_logits`]).
    pub fn logits(&mut self) -> (&mut Pool, &mut [f32], usize) {
        let logits = match &mut self.ranks {
            Some(ranks) => &mut ranks.logits,
            None => &mut self.logits,
        };
        (&mut self.pool, &mut logits.data, logits.stride)
    }

    /// Rows that [`hidden`](crate::ops::Ops::hidden) left, the given distance apart; `hidden_size` numbers of each count.
    pub fn hidden_states(&self) -> (&[f32], usize) {
        (&self.hidden.data, self.hidden.stride)
    }

    /// Most rows of logits at once.
    pub fn max_outputs(&self) -> usize {
        self.options.max_outputs
    }

    /// Packs matrices stacked by rows; those that follow each other in one format become one.
    fn pack(&mut self, parts: &[TensorView<'_>]) -> Result<Vec<Packed>, OpsError> {
        let asked = self.options.dtype;
        let dtype = |p: &TensorView<'_>| asked.unwrap_or(p.dtype);
        let mut first = 0;
        let mut packed = Vec::new();
        for run in parts.chunk_by(|a, b| dtype(a) == dtype(b)) {
            let made = Packed::new(&mut self.pool, run, dtype(&run[0])).map_err(|e| e.after(first))?;
            self.weight_bytes += made.bytes();
            packed.push(made);
            first += run.len();
        }
        Ok(packed)
    }
}

impl Norm {
    fn ptr(&self) -> NormPtr {
        NormPtr { weight: self.weight.as_ptr(), eps: self.eps, width: self.width }
    }
}
