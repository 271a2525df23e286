//! Serving on the CPU: packed weights, SIMD kernels, a paged cache read in place, a worker pool.
//!
//! All memory is taken when the model is loaded; a step allocates nothing. Activations live in a fixed
//! workspace, so [`X`] only names where they are, and a norm is applied where its result is first read.
//!
//! Widths are padded to 32 columns that stay zero.

mod attention;
pub mod buffer;
mod format;
mod gemm;
pub mod kv;
pub mod level;
pub mod pack;
pub mod pool;
mod rope;
mod rows;
mod simd;
mod work;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use self::attention::{Args, Item};
use self::buffer::Buffer;
use self::gemm::{Out, Store};
use self::kv::{KvPool, KvType};
use self::level::Level;
use self::pack::{Activation, Format, Packed};
use self::pool::Pool;
use self::rope::RopeTable;
use self::rows::{NormPtr, Place, Rows};
use self::work::{Join, Plan};
use super::{Batch, Ops, OpsError};
use crate::model::config::LlamaConfig;
use crate::model::rope::inverse_frequencies;
use crate::model::weights::TensorView;

/// How a [`Cpu`] is built.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Worker threads, the caller's included.
    pub threads: usize,
    /// Instruction set.
    pub level: Level,
    /// Store matrices in this format; `None`: as the checkpoint has them.
    pub format: Option<Format>,
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

/// [`Ops`] on the CPU.
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
    rows: Rows,
    partials: Buffer<f32>,
    scratch: Buffer<f32>,
    scratch_len: usize,
    /// One tile's up projection for each worker.
    up: Buffer<f32>,
    plan: Plan,
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
            rows: Rows::new(tokens.max(outputs), widest, pool.size()),
            partials: Buffer::zeroed(plan.max_slots() * group * (cache.padded_dim + 2)),
            scratch: Buffer::zeroed(pool.size() * scratch_len),
            up: Buffer::zeroed(pool.size() * tokens * pack::TILE),
            scratch_len,
            plan,
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
    /// distance apart.
    pub fn logits(&mut self) -> (&mut Pool, &mut [f32], usize) {
        (&mut self.pool, &mut self.logits.data, self.logits.stride)
    }

    /// Packs matrices stacked by rows; those that follow each other in one format become one.
    fn pack(&mut self, parts: &[TensorView<'_>]) -> Result<Vec<Packed>, OpsError> {
        let asked = self.options.format;
        let format = |p: &TensorView<'_>| asked.unwrap_or_else(|| Format::storing(p.dtype));
        let mut first = 0;
        let mut packed = Vec::new();
        for run in parts.chunk_by(|a, b| format(a) == format(b)) {
            let made = Packed::new(&mut self.pool, run, format(&run[0])).map_err(|e| e.after(first))?;
            self.weight_bytes += made.bytes();
            packed.push(made);
            first += run.len();
        }
        Ok(packed)
    }

    /// Where activations are: data, stride, and the norm to apply.
    fn source(&self, x: &X) -> (Shared, usize, Option<Arc<Norm>>) {
        let (area, norm) = match x {
            X::Residual => (&self.residual, None),
            X::Normed(norm) => (&self.residual, Some(norm.clone())),
            X::Qkv => (&self.qkv, None),
            X::Attended => (&self.attended, None),
            X::Gated => (&self.gated, None),
            X::Logits => (&self.logits, None),
        };
        (area.ptr(), area.stride, norm)
    }

    /// Prepares rows (all of the batch's, or `picked`) and multiplies them with every part of `w`.
    fn multiply(&mut self, x: &X, w: &Linear, to: (Shared, usize), store: Store, picked: Option<&[u32]>) {
        let (source, stride, norm) = self.source(x);
        let count = picked.map_or(self.tokens, <[u32]>::len);
        let (rows, level) = (&self.rows, self.options.level);
        let (scratch, scratch_len) = (Shared(self.up.as_ptr_shared()), self.options.max_tokens * pack::TILE);
        let norm = norm.as_deref();
        let (mut first, mut prepared) = (0, None);
        for matrix in &w.parts {
            let (form, blocks, tiles) = (matrix.format.activation(), matrix.blocks(), matrix.tiles());
            let to_prepare = if prepared.replace(form) == Some(form) { 0 } else { count };
            let (next_row, next_tile) = (AtomicUsize::new(0), AtomicUsize::new(0));
            self.pool.run(|worker| {
                worker.each(&next_row, to_prepare, row_chunk(count, worker.size), |i| {
                    let from = picked.map_or(i, |p| p[i] as usize) * stride;
                    let place = place(rows, i, count, level, worker.id);
                    // SAFETY: the row is inside the area; each worker prepares rows of its own.
                    unsafe { rows::prepare_row(level, source.at(from), norm.map(Norm::ptr), form, blocks, place) };
                });
                worker.barrier();
                worker.each(&next_tile, tiles, tile_chunk(tiles, worker.size), |tile| {
                    let at = to.0.at(first + tile * pack::TILE);
                    let lanes = matrix.rows - tile * pack::TILE;
                    // SAFETY: each worker writes tiles (columns) of its own; the area has `count` rows, and a
                    // worker's scratch as many as a batch of several formats has.
                    unsafe {
                        if lanes >= pack::TILE || w.parts.len() == 1 {
                            gemm::linear_tile(level, matrix, tile, rows, count, Out { at, stride: to.1, store });
                        } else {
                            // The rest of this tile's columns belong to the next part.
                            debug_assert!(store == Store::Set);
                            let scratch = scratch.at(worker.id * scratch_len);
                            let out = Out { at: scratch, stride: pack::TILE, store };
                            gemm::linear_tile(level, matrix, tile, rows, count, out);
                            for i in 0..count {
                                let row = scratch.add(i * pack::TILE);
                                row.copy_to_nonoverlapping(at.add(i * to.1), lanes);
                            }
                        }
                    }
                });
            });
            first += matrix.rows;
        }
    }
}

impl Norm {
    fn ptr(&self) -> NormPtr {
        NormPtr { weight: self.weight.as_ptr(), eps: self.eps, width: self.width }
    }
}

/// Where row `i` of `count` is prepared, by worker `worker`.
fn place(rows: &Rows, i: usize, count: usize, level: Level, worker: usize) -> Place {
    let (from, size) = rows::panel(i, count, level.panel());
    Place { panel: rows.at(from), lane: i - from, rows: size, staging: rows.staging(worker) }
}

fn row_chunk(rows: usize, workers: usize) -> usize {
    // Whole panels, so that two workers do not write the same cache lines.
    if rows >= 32 * workers { 16 } else { 1 }
}

fn tile_chunk(tiles: usize, workers: usize) -> usize {
    (tiles / (workers * 8)).clamp(1, 16)
}

impl Ops for Cpu {
    type X = X;
    type Linear = Linear;
    type Norm = Arc<Norm>;

    fn load_linear(&mut self, parts: &[TensorView<'_>]) -> Result<Linear, OpsError> {
        Ok(Linear { parts: self.pack(parts)?, up: None })
    }

    fn load_gate_up(&mut self, gate: &TensorView<'_>, up: &TensorView<'_>) -> Result<Linear, OpsError> {
        let parts = self.pack(&[*gate])?;
        let up = self.pack(&[*up]).map_err(|e| e.after(1))?.pop();
        Ok(Linear { parts, up })
    }

    fn load_norm(&mut self, weight: &TensorView<'_>, eps: f32) -> Result<Arc<Norm>, OpsError> {
        let values = weight.to_f32();
        if values.iter().any(|x| !x.is_finite()) {
            return Err(OpsError::NotFinite { part: 0, row: 0 });
        }
        let mut padded = Buffer::zeroed(values.len().next_multiple_of(pack::BLOCK));
        padded[..values.len()].copy_from_slice(&values);
        Ok(Arc::new(Norm { weight: padded, width: values.len(), eps }))
    }

    fn embed(&mut self, table: &Linear, batch: &Batch<'_>) -> Result<X, OpsError> {
        self.check(batch)?;
        self.tokens = batch.tokens.len();
        self.forwards += 1;
        self.plan.make(batch);
        let (to, table, width) = (self.residual.ptr(), &table.parts[0], self.config.hidden_size);
        let (cursor, stride) = (AtomicUsize::new(0), self.residual.stride);
        let count = self.tokens;
        self.pool.run(|worker| {
            worker.each(&cursor, count, row_chunk(count, worker.size), |i| {
                // SAFETY: row `i` of the area, which this worker alone writes.
                let out = unsafe { std::slice::from_raw_parts_mut(to.at(i * stride), width) };
                table.unpack_row(batch.tokens[i] as usize, out);
            });
        });
        Ok(X::Residual)
    }

    fn rms_norm(&mut self, _: &X, norm: &Arc<Norm>) -> Result<X, OpsError> {
        Ok(X::Normed(norm.clone()))
    }

    fn linear(&mut self, x: &X, w: &Linear) -> Result<X, OpsError> {
        let to = (self.qkv.ptr(), self.qkv.stride);
        self.multiply(x, w, to, Store::Set, None);
        Ok(X::Qkv)
    }

    fn attention(&mut self, layer: usize, _: X, batch: &Batch<'_>) -> Result<X, OpsError> {
        let group = self.config.num_heads / self.config.num_kv_heads;
        let (qkv, stride) = (self.qkv.ptr(), self.qkv.stride);
        let (out, out_stride) = (self.attended.ptr(), self.attended.stride);
        let (partials, scratch) = (Shared(self.partials.as_ptr_shared()), Shared(self.scratch.as_ptr_shared()));
        let (level, scratch_len) = (self.options.level, self.scratch_len);
        let (plan, cache, rope, config) = (&self.plan, &self.cache, &self.rope, &self.config);
        let (next_token, next_item, next_join) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let count = self.tokens;
        self.pool.run(|worker| {
            worker.each(&next_token, count, row_chunk(count, worker.size), |i| {
                let position = batch.positions[i] as usize;
                let token = rope::Token {
                    table: rope,
                    pool: cache,
                    layer,
                    qkv: qkv.at(i * stride),
                    heads: config.num_heads,
                    kv_heads: config.num_kv_heads,
                    position,
                    block: batch.blocks[plan.block_of(i)],
                };
                // SAFETY: this worker alone has the token's row and its slot in the pool.
                unsafe { rope::rope_and_write(level, token) };
            });
            worker.barrier();
            let args = Args {
                pool: cache,
                layer,
                qkv: qkv.at(0),
                qkv_stride: stride,
                out: out.at(0),
                out_stride,
                group,
                partials: partials.at(0),
            };
            let items: &[Item] = plan.items();
            worker.each(&next_item, items.len(), 1, |i| {
                // SAFETY: items partition the batch; the scratch is this worker's.
                unsafe {
                    attention::attend(level, &args, &items[i], batch.blocks, scratch.at(worker.id * scratch_len))
                };
            });
            let joins: &[Join] = plan.joins();
            if !joins.is_empty() {
                worker.barrier();
                worker.each(&next_join, joins.len(), 1, |i| {
                    let j = joins[i];
                    // SAFETY: all slots were written before the barrier; joins own theirs.
                    unsafe { attention::join(level, &args, j.token, j.head, j.slot, j.parts) };
                });
            }
        });
        Ok(X::Attended)
    }

    fn linear_add(&mut self, _layer: usize, x: X, w: &Linear, _residual: X) -> Result<X, OpsError> {
        let to = (self.residual.ptr(), self.residual.stride);
        self.multiply(&x, w, to, Store::Add, None);
        Ok(X::Residual)
    }

    fn gate_up_silu(&mut self, x: &X, w: &Linear) -> Result<X, OpsError> {
        let (source, stride, norm) = self.source(x);
        let (gate, up) = (&w.parts[0], w.up.as_ref().expect("made by load_gate_up"));
        let (to, to_stride) = (self.gated.ptr(), self.gated.stride);
        let (rows, level, count) = (&self.rows, self.options.level, self.tokens);
        let (up_scratch, up_len) = (Shared(self.up.as_ptr_shared()), self.options.max_tokens * pack::TILE);
        let (blocks, tiles) = (gate.blocks(), gate.tiles());
        let norm = norm.as_deref();
        // At once if both are multiplied with the same form of the activations, else one after the other.
        let passes: &[(bool, bool)] = match gate.format.activation() == up.format.activation() {
            true => &[(true, true)],
            false => &[(true, false), (false, true)],
        };
        for &(with_gate, with_up) in passes {
            let form: Activation = if with_gate { gate } else { up }.format.activation();
            let (next_row, next_tile) = (AtomicUsize::new(0), AtomicUsize::new(0));
            self.pool.run(|worker| {
                worker.each(&next_row, count, row_chunk(count, worker.size), |i| {
                    let place = place(rows, i, count, level, worker.id);
                    // SAFETY: as in `multiply`.
                    unsafe {
                        let from = source.at(i * stride);
                        rows::prepare_row(level, from, norm.map(Norm::ptr), form, blocks, place);
                    }
                });
                worker.barrier();
                worker.each(&next_tile, tiles, tile_chunk(tiles, worker.size), |tile| {
                    let out = Out { at: to.at(tile * pack::TILE), stride: to_stride, store: Store::Set };
                    let scratch = up_scratch.at(worker.id * up_len);
                    // SAFETY: as in `multiply`.
                    unsafe {
                        if with_gate {
                            gemm::linear_tile(level, gate, tile, rows, count, out);
                        }
                        if with_up {
                            gemm::up_tile(level, up, tile, rows, count, out, scratch);
                        }
                    }
                });
            });
        }
        Ok(X::Gated)
    }

    fn head(&mut self, _: X, norm: &Arc<Norm>, w: &Linear, batch: &Batch<'_>) -> Result<X, OpsError> {
        let to = (self.logits.ptr(), self.logits.stride);
        self.multiply(&X::Normed(norm.clone()), w, to, Store::Set, Some(batch.outputs));
        Ok(X::Logits)
    }
}
