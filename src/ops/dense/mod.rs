//! Products of dense F32 matrices on the CPU: training's, where weights change after every step and so are packed anew
//! for each product.
//!
//! The loops are BLIS's: the right matrix in panels of as many columns as a tile has, shared by all workers; the left one
//! in blocks of rows that stay in a worker's L2 cache; a tile of the result in registers. An element of the result is
//! one fixed sequence of operations: along `k` in pieces whose number depends on `k` alone, each an ascending chain of
//! fused multiply-adds from zero, the pieces added in order. So it depends neither on threads, nor on the level, nor on
//! the other rows and columns.

mod kernel;
mod pack;
#[cfg(test)]
mod tests;

use std::sync::atomic::AtomicUsize;

use self::kernel::block;
use self::pack::{pack_left, pack_right, round};
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::level::Level;
use crate::ops::cpu::pool::Pool;

/// Most of `k` at once.
const DEPTH: usize = 512;
/// Columns of the right matrix that are packed at once by all workers.
const COLUMNS: usize = 3072;
/// The same in a product of one worker.
const COLUMNS_ALONE: usize = 512;
/// Numbers of a packed block of the left matrix: half of a typical L2 cache.
const BLOCK: usize = 96 << 10;

/// A matrix that is read: rows of a slice, or its transpose.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` rows of `cols` numbers, one after the other.
    ///
    /// # Panics
    /// If `data` is shorter.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows that begin every `stride` numbers.
    ///
    /// # Panics
    /// If `data` is shorter.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        let need = if rows == 0 { 0 } else { (rows - 1) * stride + cols };
        assert!(need <= data.len() && cols <= stride.max(cols), "{rows} x {cols} by {stride} of {}", data.len());
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The transpose.
    pub fn t(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    fn view(&self) -> View {
        View { at: self.data.as_ptr(), row_stride: self.row_stride, col_stride: self.col_stride }
    }
}

/// A matrix that is written, row by row.
pub struct MatrixMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// `rows` rows of `cols` numbers, one after the other.
    ///
    /// # Panics
    /// If `data` is shorter.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows that begin every `stride` numbers.
    ///
    /// # Panics
    /// If `data` is shorter.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        let need = if rows == 0 { 0 } else { (rows - 1) * stride + cols };
        assert!(need <= data.len() && cols <= stride, "{rows} x {cols} by {stride} of {}", data.len());
        Self { data, rows, cols, stride }
    }
}

/// What becomes of the result's old content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// It goes.
    Set,
    /// The product is added to it.
    Add,
}

/// A matrix without its bounds.
#[derive(Clone, Copy)]
pub(crate) struct View {
    pub at: *const f32,
    pub row_stride: usize,
    pub col_stride: usize,
}

// SAFETY: it is read only, by kernels whose callers keep the memory.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    fn from(self, row: usize, col: usize) -> Self {
        Self { at: self.at.wrapping_add(row * self.row_stride + col * self.col_stride), ..self }
    }
}

#[derive(Clone, Copy)]
struct Out {
    at: *mut f32,
    stride: usize,
}

// SAFETY: workers write tiles of their own.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

/// Rows and columns of a tile.
pub(crate) fn tile(level: Level) -> (usize, usize) {
    match level.panel() {
        16 => (14, 32),
        _ => (6, 16),
    }
}

/// How much of `k` at once: equal pieces.
fn depth(k: usize) -> usize {
    k.div_ceil(k.div_ceil(DEPTH).max(1)).max(1)
}

/// What the numbers of both matrices are when they are multiplied; sums are F32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// As they are.
    F32,
    /// Rounded to BF16, to nearest even.
    Bf16,
}

/// Memory for products by a pool's workers.
pub struct Dense {
    level: Level,
    operands: Operands,
    right: Buffer<f32>,
    left: Vec<Buffer<f32>>,
}

impl Dense {
    /// For a pool of `workers`.
    pub fn new(level: Level, operands: Operands, workers: usize) -> Self {
        let (tile_rows, _) = tile(level);
        let left = (0..workers).map(|_| Buffer::zeroed(BLOCK.max(tile_rows * DEPTH))).collect();
        Self { level, operands, right: Buffer::zeroed(DEPTH * COLUMNS), left }
    }

    /// `out = a · b`, or `out += a · b`. `a: [m, k]`, `b: [k, n]`, `out: [m, n]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn product(&mut self, pool: &mut Pool, a: Matrix<'_>, b: Matrix<'_>, out: MatrixMut<'_>, store: Store) {
        let (m, k, n) = (a.rows, a.cols, b.cols);
        assert!(b.rows == k && out.rows == m && out.cols == n, "{m} x {k} times {} x {n}", b.rows);
        assert!(pool.size() <= self.left.len(), "a block for each worker");
        if m == 0 || n == 0 {
            return;
        }
        if k == 0 {
            return clear(out, store);
        }
        let (level, (tile_rows, tile_cols), deep) = (self.level, tile(self.level), depth(k));
        let rows = rows_at_once(level, m, deep, pool.size());
        let rounded = self.operands == Operands::Bf16;
        let blocks = m.div_ceil(rows);
        let steps = k.div_ceil(deep) * n.div_ceil(COLUMNS);
        let counters: Vec<AtomicUsize> = (0..2 * steps).map(|_| AtomicUsize::new(0)).collect();
        let (a, b, out) = (a.view(), b.view(), Out { at: out.data.as_mut_ptr(), stride: out.stride });
        let right = Out { at: self.right.as_ptr_shared(), stride: 0 };
        let left: Vec<Out> = self.left.iter().map(|b| Out { at: b.as_ptr_shared(), stride: 0 }).collect();
        pool.run(|worker| {
            let (right, out) = (&right, &out);
            let mine = left[worker.id].at;
            let mut counters = counters.chunks_exact(2);
            for col in (0..n).step_by(COLUMNS) {
                let cols = COLUMNS.min(n - col);
                let panels = cols.div_ceil(tile_cols);
                for from in (0..k).step_by(deep) {
                    let deep = deep.min(k - from);
                    let [packing, multiplying] = counters.next().expect("two for each step") else { return };
                    worker.each(packing, panels, 2, |panel| {
                        let first = panel * tile_cols;
                        let to = right.at.wrapping_add(panel * tile_cols * deep);
                        // SAFETY: the panel is inside `b` and the buffer, and this worker's alone.
                        unsafe {
                            pack_right(level, b.from(from, col + first), deep, tile_cols.min(cols - first), to);
                            if rounded {
                                round(level, to, tile_cols * deep);
                            }
                        }
                    });
                    worker.barrier();
                    // Small blocks are cut along the columns too, so that all workers get some.
                    let splits = (4 * worker.size).div_ceil(blocks).min(panels);
                    let mut packed = None;
                    worker.each(multiplying, blocks * splits, 1, |item| {
                        let (row, split) = (item / splits * rows, item % splits);
                        let count = rows.min(m - row);
                        if packed.replace(row) != Some(row) {
                            // SAFETY: the rows are inside `a`; the buffer is this worker's.
                            unsafe {
                                pack_left(level, a.from(row, from), count, deep, mine);
                                if rounded {
                                    round(level, mine, count.next_multiple_of(tile_rows) * deep);
                                }
                            }
                        }
                        let (first, last) = (split * panels / splits, (split + 1) * panels / splits);
                        let cols = (last * tile_cols).min(cols) - first * tile_cols;
                        let to = out.at.wrapping_add(row * out.stride + col + first * tile_cols);
                        let panel = right.at.wrapping_add(first * tile_cols * deep);
                        let add = from > 0 || store == Store::Add;
                        // SAFETY: both are packed, and this part of the result is this worker's alone.
                        unsafe { block(level, deep, mine, count, panel, cols, to, out.stride, add) };
                    });
                    worker.barrier();
                }
            }
        });
    }
}

fn clear(out: MatrixMut<'_>, store: Store) {
    if store == Store::Set {
        out.data.chunks_mut(out.stride).take(out.rows).for_each(|row| row[..out.cols].fill(0.0));
    }
}

/// Rows of a block: what fits the cache, and a few blocks a worker.
fn rows_at_once(level: Level, m: usize, deep: usize, workers: usize) -> usize {
    let (tile_rows, _) = tile(level);
    let most = (BLOCK / deep / tile_rows).max(1) * tile_rows;
    let shared = m.div_ceil(4 * workers).next_multiple_of(tile_rows).max(4 * tile_rows);
    shared.min(most)
}

/// Memory for products by one worker.
pub struct Alone {
    level: Level,
    left: Buffer<f32>,
    right: Buffer<f32>,
}

impl Alone {
    /// Memory is taken as far as it is used.
    pub fn new(level: Level) -> Self {
        let (tile_rows, _) = tile(level);
        Self { level, left: Buffer::zeroed(BLOCK.max(tile_rows * DEPTH)), right: Buffer::zeroed(DEPTH * COLUMNS_ALONE) }
    }

    /// As [`Dense::product`]. `out` points at `[a's rows, b's columns]` with rows every `stride` numbers.
    ///
    /// # Safety
    /// `out` is valid for writes of that, and for reads if it is added to; nothing else uses it meanwhile.
    pub unsafe fn product(&mut self, a: Matrix<'_>, b: Matrix<'_>, out: *mut f32, stride: usize, store: Store) {
        let (m, k, n) = (a.rows, a.cols, b.cols);
        assert_eq!(b.rows, k);
        let (level, (_, tile_cols), deep) = (self.level, tile(self.level), depth(k));
        let rows = rows_at_once(level, usize::MAX / 4, deep, 1);
        let (a, b) = (a.view(), b.view());
        let (left, right) = (self.left.as_ptr_shared(), self.right.as_ptr_shared());
        for col in (0..n).step_by(COLUMNS_ALONE) {
            let cols = COLUMNS_ALONE.min(n - col);
            for from in (0..k).step_by(deep) {
                let deep = deep.min(k - from);
                for first in (0..cols).step_by(tile_cols) {
                    let to = right.wrapping_add(first * deep);
                    // SAFETY: the panel is inside `b`, and the buffer has room for COLUMNS_ALONE columns.
                    unsafe { pack_right(level, b.from(from, col + first), deep, tile_cols.min(cols - first), to) };
                }
                for row in (0..m).step_by(rows) {
                    let count = rows.min(m - row);
                    let to = out.wrapping_add(row * stride + col);
                    let add = from > 0 || store == Store::Add;
                    // SAFETY: the rows are inside `a`; the buffer has room for a block.
                    unsafe { pack_left(level, a.from(row, from), count, deep, left) };
                    // SAFETY: both are packed; the result is the caller's promise.
                    unsafe { block(level, deep, left, count, right, cols, to, stride, add) };
                }
            }
        }
    }
}
