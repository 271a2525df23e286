//! Causal attention within spans, and its gradients.
//!
//! Queries are taken in blocks of rows; those of the heads that share keys and values go together. Scores of one block
//! exist at a time. The backward pass computes them again from queries, keys and the logarithms that forward kept. One
//! worker computes a span's key-value head from beginning to end, so sums of gradients have one order.

use super::kernels;
use super::rows::Ptr;
use crate::ops::Span;
use crate::ops::cpu::level::Level;
use crate::ops::dense::{Alone, Matrix, Store};

/// Positions of queries taken together.
const QUERIES: usize = 64;

/// Shape of attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Shape {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
    /// Width of a row of queries, keys and values.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
    fn key(&self, kv_head: usize) -> usize {
        (self.heads + kv_head) * self.head_dim
    }
    fn value(&self, kv_head: usize) -> usize {
        (self.heads + self.kv_heads + kv_head) * self.head_dim
    }
}

/// A worker's memory.
pub(super) struct Scratch {
    level: Level,
    product: Alone,
    /// `[group · rows, head_dim]` each.
    queries: Vec<f32>,
    outputs: Vec<f32>,
    results: Vec<f32>,
    /// `[group · rows, len]` each, rows on multiples of 16.
    scores: Vec<f32>,
    changes: Vec<f32>,
}

/// One block of queries of one span and key-value head.
struct Block {
    /// First position.
    from: usize,
    /// Positions.
    rows: usize,
    /// Keys that the last of them sees.
    keys: usize,
    /// Numbers from one row of scores to the next.
    stride: usize,
}

fn blocks(len: usize) -> impl Iterator<Item = Block> {
    (0..len).step_by(QUERIES).map(move |from| {
        let rows = QUERIES.min(len - from);
        Block { from, rows, keys: from + rows, stride: (from + rows).next_multiple_of(16) }
    })
}

/// What attention reads and writes. Rows are the batch's.
#[derive(Clone, Copy)]
pub(super) struct Tensors<'a> {
    /// `[T, width]`, rotated.
    pub qkv: &'a [f32],
    /// `[T, heads · head_dim]`: written by forward.
    pub out: Ptr,
    /// `[T, heads]`: written by forward.
    pub logs: Ptr,
}

/// What its backward pass does besides.
#[derive(Clone, Copy)]
pub(super) struct Changes<'a> {
    /// `[T, heads · head_dim]`.
    pub dout: &'a [f32],
    /// `[T, width]`, zero: gets the gradients of the rotated rows.
    pub dqkv: Ptr,
}

impl Scratch {
    pub fn new(level: Level) -> Self {
        Self {
            level,
            product: Alone::new(level),
            queries: Vec::new(),
            outputs: Vec::new(),
            results: Vec::new(),
            scores: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// Room for the last block of a sequence of `len`.
    fn grow(&mut self, shape: Shape, len: usize, backward: bool) {
        let rows = shape.group() * QUERIES.min(len);
        let wide = rows * len.next_multiple_of(16);
        let grow = |v: &mut Vec<f32>, n: usize| v.resize(n.max(v.len()), 0.0);
        grow(&mut self.queries, rows * shape.head_dim);
        grow(&mut self.results, rows * shape.head_dim);
        grow(&mut self.scores, wide);
        if backward {
            grow(&mut self.outputs, rows * shape.head_dim);
            grow(&mut self.changes, wide);
        }
    }

    /// Attention of one span's key-value head.
    ///
    /// # Safety
    /// The span is inside the tensors; nothing else uses its heads' part of those that are written.
    pub unsafe fn forward(&mut self, shape: Shape, span: &Span, kv_head: usize, t: Tensors<'_>) {
        let (len, first) = (span.tokens.len(), span.tokens.start);
        self.grow(shape, len, false);
        let (group, dim, width) = (shape.group(), shape.head_dim, shape.width());
        for block in blocks(len) {
            self.gather_queries(shape, first, kv_head, &block, t.qkv);
            self.score(shape, first, kv_head, &block, t.qkv);
            for row in 0..group * block.rows {
                let (head, i) = (kv_head * group + row / block.rows, block.from + row % block.rows);
                // SAFETY: the row is inside the scratch; the logarithm is this worker's.
                unsafe {
                    let scores = self.scores.as_mut_ptr().add(row * block.stride);
                    *t.logs.at((first + i) * shape.heads + head) =
                        kernels::softmax(self.level, scores, i + 1, block.keys);
                }
            }
            let rows = group * block.rows;
            let values = Matrix::strided(&t.qkv[first * width + shape.value(kv_head)..], block.keys, dim, width);
            let weights = Matrix::strided(&self.scores, rows, block.keys, block.stride);
            // SAFETY: the results have room for the block's rows.
            unsafe { self.product.product(weights, values, self.results.as_mut_ptr(), dim, Store::Set) };
            for row in 0..rows {
                let (head, i) = (kv_head * group + row / block.rows, block.from + row % block.rows);
                let to = t.out.at((first + i) * shape.heads * dim + head * dim);
                // SAFETY: the head's part of the row is this worker's.
                unsafe { std::ptr::copy_nonoverlapping(self.results.as_ptr().add(row * dim), to, dim) };
            }
        }
    }

    /// Adds the gradients of one span's key-value head.
    ///
    /// # Safety
    /// As [`Scratch::forward`]'s; `t.out` and `t.logs` are what that wrote.
    pub unsafe fn backward(&mut self, shape: Shape, span: &Span, kv_head: usize, t: Tensors<'_>, d: Changes<'_>) {
        let (len, first) = (span.tokens.len(), span.tokens.start);
        self.grow(shape, len, true);
        let (group, dim, width, level) = (shape.group(), shape.head_dim, shape.width(), self.level);
        let scale = (dim as f32).powf(-0.5);
        for block in blocks(len) {
            self.gather_queries(shape, first, kv_head, &block, t.qkv);
            self.score(shape, first, kv_head, &block, t.qkv);
            let rows = group * block.rows;
            let place = |row: usize| (kv_head * group + row / block.rows, block.from + row % block.rows);
            for row in 0..rows {
                let (head, i) = place(row);
                let from = (first + i) * shape.heads * dim + head * dim;
                self.outputs[row * dim..][..dim].copy_from_slice(&d.dout[from..][..dim]);
                // SAFETY: inside the scratch, and what forward wrote.
                unsafe {
                    let scores = self.scores.as_mut_ptr().add(row * block.stride);
                    let log = *t.logs.at((first + i) * shape.heads + head);
                    kernels::softmax_again(level, scores, log, i + 1, block.keys);
                }
            }
            let key = Matrix::strided(&t.qkv[first * width + shape.key(kv_head)..], block.keys, dim, width);
            let value = Matrix::strided(&t.qkv[first * width + shape.value(kv_head)..], block.keys, dim, width);
            let p = Matrix::strided(&self.scores, rows, block.keys, block.stride);
            let dout = Matrix::new(&self.outputs, rows, dim);
            let dvalue = d.dqkv.at(first * width + shape.value(kv_head));
            // SAFETY: the head's columns of the span are this worker's; the scratch has room.
            unsafe {
                self.product.product(p.t(), dout, dvalue, width, Store::Add);
                self.product.product(dout, value.t(), self.changes.as_mut_ptr(), block.stride, Store::Set);
            }
            for row in 0..rows {
                let (head, i) = place(row);
                // SAFETY: inside the scratch, and what forward wrote.
                unsafe {
                    let out = t.out.at((first + i) * shape.heads * dim + head * dim);
                    let sum = kernels::dot(level, self.outputs.as_ptr().add(row * dim), out, dim);
                    let change = self.changes.as_mut_ptr().add(row * block.stride);
                    let p = self.scores.as_ptr().add(row * block.stride);
                    kernels::softmax_backward(level, p, sum, block.keys, change);
                }
            }
            let change = Matrix::strided(&self.changes, rows, block.keys, block.stride);
            let queries = Matrix::new(&self.queries, rows, dim);
            let dkey = d.dqkv.at(first * width + shape.key(kv_head));
            // SAFETY: as above.
            unsafe {
                self.product.product(change.t(), queries, dkey, width, Store::Add);
                self.product.product(change, key, self.results.as_mut_ptr(), dim, Store::Set);
            }
            for row in 0..rows {
                let (head, i) = place(row);
                let to = d.dqkv.at((first + i) * width + head * dim);
                // SAFETY: the head's part of the row is this worker's.
                unsafe { kernels::scale(level, self.results.as_ptr().add(row * dim), scale, dim, to) };
            }
        }
    }

    /// The block's queries, times `1 / √head_dim`.
    fn gather_queries(&mut self, shape: Shape, first: usize, kv_head: usize, block: &Block, qkv: &[f32]) {
        let (group, dim) = (shape.group(), shape.head_dim);
        let scale = (dim as f32).powf(-0.5);
        for (row, to) in self.queries.chunks_exact_mut(dim).enumerate().take(group * block.rows) {
            let (head, i) = (kv_head * group + row / block.rows, block.from + row % block.rows);
            let from = &qkv[(first + i) * shape.width() + head * dim..][..dim];
            to.iter_mut().zip(from).for_each(|(to, v)| *to = v * scale);
        }
    }

    fn score(&mut self, shape: Shape, first: usize, kv_head: usize, block: &Block, qkv: &[f32]) {
        let keys = &qkv[first * shape.width() + shape.key(kv_head)..];
        let keys = Matrix::strided(keys, block.keys, shape.head_dim, shape.width());
        let queries = Matrix::new(&self.queries, shape.group() * block.rows, shape.head_dim);
        // SAFETY: the scores have room for the block's rows.
        unsafe { self.product.product(queries, keys.t(), self.scores.as_mut_ptr(), block.stride, Store::Set) };
    }
}
