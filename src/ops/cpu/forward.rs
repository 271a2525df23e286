//! [`Ops`] carried out by the workers.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::attention::{self, Args, Item};
use super::buffer::Buffer;
use super::gemm::unpacked::{self, Product};
use super::gemm::{self, Out, Store};
use super::level::Level;
use super::lora::{Adapter, Job};
use super::pack::{self, Activation};
use super::pool::Worker;
use super::rope;
use super::rows::{self, Place, Rows};
use super::work::Join;
use super::{Cpu, CpuOptions, Linear, Norm, Shared, X};
use crate::engine::AdapterSlot;
use crate::model::lora::Site;
use crate::model::weights::TensorView;
use crate::ops::{Batch, Ops, OpsError};

impl Cpu {
    /// Where activations are: data, stride, and the norm to apply.
    fn source(&self, x: &X) -> (Shared, usize, Option<Arc<Norm>>) {
        let (area, norm) = match x {
            X::Residual => (&self.residual, None),
            X::Normed(norm) => (&self.residual, Some(norm.clone())),
            X::Qkv => (&self.qkv, None),
            X::Attended => (&self.attended, None),
            X::Gated => (&self.gated, None),
            X::Logits => (&self.logits, None),
            X::Hidden => (&self.hidden, None),
        };
        (area.ptr(), area.stride, norm)
    }

    /// Prepares rows (all of the batch's, or `picked`) and multiplies them with `w`, and with the adapters at `at`.
    fn multiply(
        &mut self,
        at: Option<Site>,
        x: &X,
        w: &Linear,
        to: (Shared, usize),
        store: Store,
        picked: Option<&[u32]>,
    ) {
        let (source, stride, norm) = self.source(x);
        let count = picked.map_or(self.tokens, <[u32]>::len);
        let (rows, level) = (&self.rows, self.options.level);
        let (scratch, scratch_len) = (Shared(self.products.as_ptr_shared()), products_len(&self.options));
        let norm = norm.as_deref();
        let lora = at.and_then(|at| self.lora.as_deref()?.at(at, (source, stride, norm)));
        let (mut first, mut prepared) = (0, None);
        for matrix in &w.parts {
            let (form, blocks, tiles) = (matrix.dtype.activation(), matrix.blocks(), matrix.tiles());
            let to_prepare = if prepared.replace(form) == Some(form) { 0 } else { count };
            let (next_row, next_tile) = (AtomicUsize::new(0), AtomicUsize::new(0));
            self.pool.run(|worker| {
                worker.each(&next_row, to_prepare, row_chunk(count, worker.size), |i| {
                    let from = picked.map_or(i, |p| p[i] as usize) * stride;
                    let place = place(rows, i, count, level, worker.id);
                    // SAFETY: the row is inside the area; each worker prepares rows of its own.
                    unsafe { rows::prepare_row(level, source.at(from), norm.map(Norm::ptr), form, blocks, place) };
                });
                match first {
                    0 => shrink(lora.as_ref(), level, worker),
                    _ => worker.barrier(),
                }
                let scratch = scratch.at(worker.id * scratch_len);
                let at_once = gemm::tiles_at_once(level, matrix, count);
                let items = tiles.div_ceil(at_once);
                worker.each(&next_tile, items, tile_chunk(items, worker.size), |item| {
                    let spare = scratch.wrapping_add(unpacked::scratch_len(count));
                    let product = |tile: usize| {
                        // Where a tile is not whole, the rest of its columns belong to the next part.
                        let out = match w.parts.len() == 1 || matrix.rows - tile * pack::TILE >= pack::TILE {
                            true => Out { at: to.0.at(first + tile * pack::TILE), stride: to.1, store },
                            false => Out { at: spare, stride: pack::TILE, store },
                        };
                        Product { w: matrix, tile, out }
                    };
                    let (from, until) = (item * at_once, tiles.min((item + 1) * at_once));
                    let products = [product(from), product(until - 1)];
                    let products = &products[..until - from];
                    // SAFETY: each worker writes tiles (columns) of its own; the area has `count` rows, and a
                    // worker's scratch memory as many.
                    unsafe { gemm::linear_tiles(level, products, rows, count, scratch) };
                    for product in products {
                        if product.out.at == spare {
                            debug_assert!(store == Store::Set);
                            let at = to.0.at(first + product.tile * pack::TILE);
                            let lanes = matrix.rows - product.tile * pack::TILE;
                            // SAFETY: as above.
                            (0..count).for_each(|i| unsafe {
                                spare.add(i * pack::TILE).copy_to_nonoverlapping(at.add(i * to.1), lanes);
                            });
                        } else if let (Some(lora), 1) = (&lora, w.parts.len()) {
                            lora.expand(level, product.tile, 0, product.out);
                        }
                    }
                });
            });
            first += matrix.rows;
        }
        // Tiles of several parts need not begin where the adapters' do, so these wait for all.
        if let (Some(lora), true) = (&lora, w.parts.len() > 1) {
            let (next_tile, tiles) = (AtomicUsize::new(0), first.div_ceil(pack::TILE));
            self.pool.run(|worker| {
                worker.each(&next_tile, tiles, tile_chunk(tiles, worker.size), |tile| {
                    let out = Out { at: to.0.at(tile * pack::TILE), stride: to.1, store };
                    lora.expand(level, tile, 0, out);
                });
            });
        }
    }
}

/// Makes the adapters' inputs, if there are any, and waits for all workers.
fn shrink(lora: Option<&Job<'_>>, level: Level, worker: &Worker<'_>) {
    let Some(lora) = lora else { return worker.barrier() };
    lora.prepare(level, worker);
    worker.barrier();
    lora.shrink(level, worker);
    worker.barrier();
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

/// Floats of a worker's memory for products of the largest batch: what they need, and two tiles of results.
pub(super) fn products_len(options: &CpuOptions) -> usize {
    let rows = options.max_tokens.max(options.max_outputs);
    (unpacked::scratch_len(rows) + 2 * rows * pack::TILE).next_multiple_of(32)
}

impl Ops for Cpu {
    type X = X;
    type Linear = Linear;
    type Norm = Arc<Norm>;
    type Adapter = Adapter;

    fn load_adapter(&mut self, slot: AdapterSlot, adapter: Arc<Adapter>) -> Result<(), OpsError> {
        match &mut self.lora {
            Some(lora) => lora.load(slot, adapter),
            None => Err(OpsError::Limit("adapters are not enabled".into())),
        }
    }

    fn unload_adapter(&mut self, slot: AdapterSlot) {
        if let Some(lora) = &mut self.lora {
            lora.unload(slot);
        }
    }

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
        if let Some(lora) = &mut self.lora {
            lora.plan(batch);
        }
        let (to, table, width) = (self.residual.ptr(), &table.parts[0], self.config.hidden_size);
        let (cursor, stride) = (AtomicUsize::new(0), self.residual.stride);
        let count = self.tokens;
        let first = self.ranks.as_ref().map_or(0, |ranks| ranks.first_token);
        self.pool.run(|worker| {
            worker.each(&cursor, count, row_chunk(count, worker.size), |i| {
                // SAFETY: row `i` of the area, which this worker alone writes.
                let out = unsafe { std::slice::from_raw_parts_mut(to.at(i * stride), width) };
                match (batch.tokens[i] as usize).checked_sub(first).filter(|&row| row < table.rows) {
                    Some(row) => table.unpack_row(row, out),
                    // Another rank's.
                    None => out.fill(0.0),
                }
            });
        });
        self.join_embedding()?;
        Ok(X::Residual)
    }

    fn rms_norm(&mut self, _: &X, norm: &Arc<Norm>) -> Result<X, OpsError> {
        Ok(X::Normed(norm.clone()))
    }

    fn linear(&mut self, at: Site, x: &X, w: &Linear, _: &Batch<'_>) -> Result<X, OpsError> {
        let to = (self.qkv.ptr(), self.qkv.stride);
        self.multiply(Some(at), x, w, to, Store::Set, None);
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

    fn linear_add(&mut self, at: Site, x: X, w: &Linear, _: X, _: &Batch<'_>) -> Result<X, OpsError> {
        match self.sums() {
            None => {
                let to = (self.residual.ptr(), self.residual.stride);
                self.multiply(Some(at), &x, w, to, Store::Add, None);
            }
            Some(sums) => {
                self.multiply(Some(at), &x, w, sums, Store::Set, None);
                self.add_sums()?;
            }
        }
        Ok(X::Residual)
    }

    fn gate_up_silu(&mut self, at: Site, x: &X, w: &Linear, _: &Batch<'_>) -> Result<X, OpsError> {
        let (source, stride, norm) = self.source(x);
        let (gate, up) = (&w.parts[0], w.up.as_ref().expect("made by load_gate_up"));
        let (to, to_stride) = (self.gated.ptr(), self.gated.stride);
        let (rows, level, count) = (&self.rows, self.options.level, self.tokens);
        let (scratch, scratch_len) = (Shared(self.products.as_ptr_shared()), products_len(&self.options));
        let (blocks, tiles) = (gate.blocks(), gate.tiles());
        let norm = norm.as_deref();
        let lora = self.lora.as_deref().and_then(|lora| lora.at(at, (source, stride, norm)));
        // At once if both are multiplied with the same form of the activations, else one after the other.
        let passes: &[(bool, bool)] = match gate.dtype.activation() == up.dtype.activation() {
            true => &[(true, true)],
            false => &[(true, false), (false, true)],
        };
        for &(with_gate, with_up) in passes {
            let form: Activation = if with_gate { gate } else { up }.dtype.activation();
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
                match with_gate {
                    true => shrink(lora.as_ref(), level, worker),
                    false => worker.barrier(),
                }
                worker.each(&next_tile, tiles, tile_chunk(tiles, worker.size), |tile| {
                    let scratch = scratch.at(worker.id * scratch_len);
                    let gate_at = scratch.wrapping_add(unpacked::scratch_len(count));
                    let up_at = gate_at.wrapping_add(count * pack::TILE);
                    let out = |at: *mut f32, stride: usize| Out { at, stride, store: Store::Set };
                    let final_out = out(to.at(tile * pack::TILE), to_stride);
                    // In two passes, the gate waits where its product with the other will be.
                    let gate_out = if with_up { out(gate_at, pack::TILE) } else { final_out };
                    let products = [
                        Product { w: gate, tile, out: gate_out },
                        Product { w: up, tile, out: out(up_at, pack::TILE) },
                    ];
                    let wanted = if with_gate { 0 } else { 1 }..if with_up { 2 } else { 1 };
                    let together = if gate.dtype == up.dtype { 2 } else { 1 };
                    // SAFETY: as in `multiply`.
                    unsafe {
                        for products in products[wanted.clone()].chunks(together) {
                            gemm::linear_tiles(level, products, rows, count, scratch);
                        }
                        if let Some(lora) = &lora {
                            wanted.for_each(|which| lora.expand(level, tile, which, products[which].out));
                        }
                        if with_up {
                            if !with_gate {
                                for i in 0..count {
                                    let from = final_out.at.add(i * to_stride);
                                    from.copy_to_nonoverlapping(gate_at.add(i * pack::TILE), pack::TILE);
                                }
                            }
                            gemm::silu_mul_any(level, gate_at, up_at, final_out, count);
                        }
                    }
                });
            });
        }
        Ok(X::Gated)
    }

    fn head(&mut self, _: &X, norm: &Arc<Norm>, w: &Linear, batch: &Batch<'_>) -> Result<X, OpsError> {
        let to = (self.logits.ptr(), self.logits.stride);
        self.multiply(None, &X::Normed(norm.clone()), w, to, Store::Set, Some(batch.outputs));
        self.join_logits(batch.outputs.len())?;
        Ok(X::Logits)
    }

    fn hidden(&mut self, _: &X, norm: &Arc<Norm>, batch: &Batch<'_>) -> Result<X, OpsError> {
        let blocks = self.residual.stride / pack::BLOCK;
        let (from, from_stride) = (self.residual.ptr(), self.residual.stride);
        let (to, stride) = (self.hidden.ptr(), self.hidden.stride);
        for (i, &row) in batch.outputs.iter().enumerate() {
            // SAFETY: both areas have a row for every token of the largest batch, and their strides are the
            // padded hidden size.
            unsafe {
                rows::normalise_row(
                    self.options.level,
                    from.at(row as usize * from_stride),
                    norm.ptr(),
                    blocks,
                    to.at(i * stride),
                );
            }
        }
        Ok(X::Hidden)
    }
}
