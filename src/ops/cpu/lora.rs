//! LoRA on the CPU, in F32: `u = x · Aᵀ` for the rows that have an adapter, then `y += u · Bᵀ` on each tile of 16
//! outputs right after its base product (after all of them where the base is in several formats).
//!
//! An element of `u` is one fma a column, even and odd columns apart, then their sum; an element of `y` one fma a
//! rank, then one addition. How many rows are computed together (four or one) changes neither, so a row's result
//! does not depend on its neighbours.

mod pack;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

pub use pack::Adapter;

use super::gemm::Out;
use super::level::Level;
use super::pack::{Activation, TILE};
use super::pool::Worker;
use super::rows::{self, Place, Rows};
use super::simd::{Simd, multiversion};
use super::{Area, Norm, Shared};
use crate::engine::AdapterSlot;
use crate::model::config::LlamaConfig;
use crate::model::lora::Site;
use crate::ops::adapters::Slots;
use crate::ops::{Batch, OpsError};
use pack::Weights;

/// Rows computed together.
const ROWS: usize = 4;

/// Loaded adapters, and the workspace for their rows.
pub(super) struct Lora {
    slots: Slots<Adapter>,
    max_rank: usize,
    /// Rows of the batch that have an adapter, those of one adapter side by side.
    rows: Vec<u32>,
    /// The rows cut into pieces of one adapter.
    pieces: Vec<Piece>,
    /// Adapters of the batch.
    used: Vec<AdapterSlot>,
    /// Normalised inputs, one row a panel.
    x: Rows,
    /// `[rows, ranks of a product's projections]`.
    u: Area,
}

/// Up to four rows of one adapter: `rows[first..first + len]`.
#[derive(Clone, Copy)]
struct Piece {
    slot: AdapterSlot,
    first: usize,
    len: usize,
}

impl Lora {
    pub(super) fn new(config: &LlamaConfig, slots: usize, max_rank: usize, max_tokens: usize, workers: usize) -> Self {
        Self {
            slots: Slots::new(slots),
            max_rank,
            rows: Vec::with_capacity(max_tokens),
            pieces: Vec::with_capacity(max_tokens),
            used: Vec::with_capacity(slots),
            x: Rows::new(max_tokens, config.hidden_size, workers),
            // Three projections are merged at most.
            u: Area::new(max_tokens, 3 * max_rank),
        }
    }

    pub(super) fn slots(&self) -> &Slots<Adapter> {
        &self.slots
    }

    pub(super) fn load(&mut self, slot: AdapterSlot, adapter: Arc<Adapter>) -> Result<(), OpsError> {
        if adapter.rank() > self.max_rank {
            return Err(OpsError::Limit(format!("an adapter of rank {}, at most {}", adapter.rank(), self.max_rank)));
        }
        self.slots.load(slot, adapter)
    }

    pub(super) fn unload(&mut self, slot: AdapterSlot) {
        self.slots.unload(slot);
    }

    /// Sorts a batch's rows by adapter; the batch is checked.
    pub(super) fn plan(&mut self, batch: &Batch<'_>) {
        self.rows.clear();
        self.pieces.clear();
        self.used.clear();
        for slot in batch.spans.iter().filter_map(|s| s.adapter) {
            if !self.used.contains(&slot) {
                self.used.push(slot);
            }
        }
        for &slot in &self.used {
            let from = self.rows.len();
            for span in batch.spans.iter().filter(|s| s.adapter == Some(slot)) {
                self.rows.extend(span.tokens.clone().map(|t| t as u32));
            }
            for first in (from..self.rows.len()).step_by(ROWS) {
                self.pieces.push(Piece { slot, first, len: ROWS.min(self.rows.len() - first) });
            }
        }
    }

    /// The work at one product; `None` if no row of the batch is adapted there.
    pub(super) fn at<'a>(&'a self, at: Site, source: (Shared, usize, Option<&'a Norm>)) -> Option<Job<'a>> {
        let weights = |slot: &AdapterSlot| self.slots.get(*slot).and_then(|a| a.at(at));
        let tiles = self.used.iter().filter_map(weights).map(Weights::tiles).max()?;
        Some(Job { lora: self, at, source, tiles, next_row: AtomicUsize::new(0), next_item: AtomicUsize::new(0) })
    }
}

/// One product's adapters at work, shared by the workers.
pub(super) struct Job<'a> {
    lora: &'a Lora,
    at: Site,
    /// The product's input: rows, their distance, the norm to apply.
    source: (Shared, usize, Option<&'a Norm>),
    /// Most tiles of 16 ranks of an adapter.
    tiles: usize,
    next_row: AtomicUsize,
    next_item: AtomicUsize,
}

impl Job<'_> {
    fn weights(&self, piece: &Piece) -> Option<&Weights> {
        self.lora.slots.get(piece.slot).and_then(|a| a.at(self.at))
    }

    /// First: normalises the rows, if the product has a norm. A barrier must follow.
    pub(super) fn prepare(&self, level: Level, worker: &Worker<'_>) {
        let (source, stride, Some(norm)) = self.source else { return };
        let (lora, blocks) = (self.lora, norm.width.div_ceil(super::pack::BLOCK));
        worker.each(&self.next_row, lora.rows.len(), 1, |i| {
            let staging = lora.x.staging(worker.id);
            let place = Place { panel: lora.x.at(i), lane: 0, rows: 1, staging };
            let from = source.at(lora.rows[i] as usize * stride);
            // SAFETY: the row is inside the area; each worker prepares rows of its own.
            unsafe { rows::prepare_row(level, from, Some(norm.ptr()), Activation::F32, blocks, place) };
        });
    }

    /// Row `i` of the product's input.
    fn input(&self, i: usize) -> *const f32 {
        match self.source {
            (_, _, Some(_)) => self.lora.x.at(i).f,
            (source, stride, None) => source.at(self.lora.rows[i] as usize * stride),
        }
    }

    fn ranks(&self, i: usize, column: usize) -> *mut f32 {
        self.lora.u.ptr().at(i * self.lora.u.stride + column)
    }

    /// Second: `u = x · Aᵀ`. A barrier must follow.
    pub(super) fn shrink(&self, level: Level, worker: &Worker<'_>) {
        let pieces = &self.lora.pieces;
        worker.each(&self.next_item, pieces.len() * self.tiles, 1, |item| {
            let (piece, tile) = (&pieces[item / self.tiles], item % self.tiles);
            let Some(weights) = self.weights(piece).filter(|w| tile < w.tiles()) else { return };
            let (mut x, mut u) = ([std::ptr::null(); ROWS], [std::ptr::null_mut(); ROWS]);
            for i in 0..piece.len {
                x[i] = self.input(piece.first + i);
                u[i] = self.ranks(piece.first + i, tile * TILE);
            }
            // SAFETY: inputs have the weights' columns, padded; each item writes columns of its own.
            unsafe { shrink_any(level, weights.a(tile), weights.columns(), x, u, piece.len) };
        });
    }

    /// Third: adds `u · Bᵀ` to one tile of 16 outputs; `out` has a row for each of the batch. `which` is 1 for
    /// the up projection.
    pub(super) fn expand(&self, level: Level, tile: usize, which: usize, out: Out) {
        for piece in &self.lora.pieces {
            let Some((b, ranks)) = self.weights(piece).and_then(|w| w.b(which, tile)) else { continue };
            let (mut u, mut y) = ([std::ptr::null(); ROWS], [std::ptr::null_mut(); ROWS]);
            for i in 0..piece.len {
                u[i] = self.ranks(piece.first + i, ranks.start).cast_const();
                y[i] = out.at.wrapping_add(self.lora.rows[piece.first + i] as usize * out.stride);
            }
            // SAFETY: the tile is this worker's; `u` was written before the barrier.
            unsafe { expand_any(level, b, ranks.len(), u, y, piece.len) };
        }
    }
}

#[inline(always)]
unsafe fn shrink<S: Simd>(a: *const f32, cols: usize, x: [*const f32; ROWS], u: [*mut f32; ROWS], len: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if len == ROWS {
            shrink_rows::<S, ROWS>(a, cols, x.as_ptr(), u.as_ptr());
        } else {
            for i in 0..len {
                shrink_rows::<S, 1>(a, cols, x.as_ptr().add(i), u.as_ptr().add(i));
            }
        }
    }
}

#[inline(always)]
unsafe fn shrink_rows<S: Simd, const M: usize>(a: *const f32, cols: usize, x: *const *const f32, u: *const *mut f32) {
    // SAFETY: `a` has `cols` × 16 floats, each input `cols`, an even number, each output 16.
    unsafe {
        let (mut even, mut odd) = ([S::splat(0.0); M], [S::splat(0.0); M]);
        for k in (0..cols).step_by(2) {
            let (v, w) = (S::load(a.add(k * TILE)), S::load(a.add((k + 1) * TILE)));
            for i in 0..M {
                let x = *x.add(i);
                even[i] = S::fma(v, S::splat(*x.add(k)), even[i]);
                odd[i] = S::fma(w, S::splat(*x.add(k + 1)), odd[i]);
            }
        }
        for i in 0..M {
            S::store(*u.add(i), S::add(even[i], odd[i]));
        }
    }
}

#[inline(always)]
unsafe fn expand<S: Simd>(b: *const f32, ranks: usize, u: [*const f32; ROWS], y: [*mut f32; ROWS], len: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if len == ROWS {
            expand_rows::<S, ROWS>(b, ranks, u.as_ptr(), y.as_ptr());
        } else {
            for i in 0..len {
                expand_rows::<S, 1>(b, ranks, u.as_ptr().add(i), y.as_ptr().add(i));
            }
        }
    }
}

#[inline(always)]
unsafe fn expand_rows<S: Simd, const M: usize>(b: *const f32, ranks: usize, u: *const *const f32, y: *const *mut f32) {
    // SAFETY: `b` has `ranks` × 16 floats, each row of `u` `ranks`, each output 16.
    unsafe {
        let mut acc = [S::splat(0.0); M];
        for j in 0..ranks {
            let v = S::load(b.add(j * TILE));
            for i in 0..M {
                acc[i] = S::fma(v, S::splat(*(*u.add(i)).add(j)), acc[i]);
            }
        }
        for i in 0..M {
            let y = *y.add(i);
            S::store(y, S::add(S::load(y), acc[i]));
        }
    }
}

multiversion! {
    unsafe fn shrink_any =
        shrink(a: *const f32, cols: usize, x: [*const f32; ROWS], u: [*mut f32; ROWS], len: usize);
    unsafe fn expand_any =
        expand(b: *const f32, ranks: usize, u: [*const f32; ROWS], y: [*mut f32; ROWS], len: usize);
}
