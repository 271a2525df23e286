//! The record in reverse.

use std::collections::HashMap;

use super::attention::{Changes, Tensors};
use super::memory::Block;
use super::rows::{self, Ptr};
use super::{Gradients, Linear, Tape, X, kernels};
use crate::ops::{Batch, OpsError, Span};

/// Which values dropout kept.
pub(super) struct Mask {
    /// A bit each, rows on whole bytes.
    pub kept: Vec<u8>,
    pub scale: f32,
}

/// An operation that was carried out, with what its gradients need. Results are named only.
pub(super) enum Node {
    Norm {
        x: X,
        inverses: Block,
        weight: usize,
        out: usize,
    },
    Linear {
        x: X,
        weight: usize,
        out: usize,
    },
    /// Queries and keys are rotated.
    Attention {
        qkv: Block,
        from: usize,
        out: X,
        logs: Block,
        spans: Vec<Span>,
    },
    LinearAdd {
        x: X,
        weight: usize,
        residual: usize,
        mask: Option<Mask>,
        out: usize,
    },
    GateUp {
        x: X,
        weight: usize,
        both: Block,
        out: usize,
    },
}

/// Gradients of activations that are still to be passed on.
#[derive(Default)]
struct Open(HashMap<usize, Block>);

impl Open {
    fn take(&mut self, id: usize) -> Result<Block, OpsError> {
        let missing = || OpsError::Unsupported("a result that no other reads has no gradient".into());
        self.0.remove(&id).ok_or_else(missing)
    }
}

impl Tape {
    /// Runs the record in reverse, and forgets it. `gradient` is `out`'s; returns that of `input`, and adds those of the
    /// weights to `gradients`, whose order is that of [`Tape::variables`].
    ///
    /// # Errors
    /// The record does not lead from `out` to `input`.
    pub fn backward(
        &mut self,
        out: &X,
        gradient: Gradient,
        input: &X,
        gradients: &mut Gradients,
    ) -> Result<Gradient, OpsError> {
        let mut open = Open::default();
        open.0.insert(out.id, gradient.0);
        while let Some(node) = self.nodes.pop() {
            self.reverse(node, &mut open, gradients)?;
        }
        open.take(input.id).map(Gradient)
    }

    fn reverse(&mut self, node: Node, open: &mut Open, gradients: &mut Gradients) -> Result<(), OpsError> {
        match node {
            Node::Norm { x, inverses, weight, out } => {
                let dy = open.take(out)?;
                let mut dx = match open.0.remove(&x.id) {
                    Some(dx) => dx,
                    None => self.zeros(dy.width()),
                };
                self.norm_backward(&x.data, &inverses, weight, &dy, &mut dx, gradients)?;
                open.0.insert(x.id, dx);
            }
            Node::Linear { x, weight, out } => {
                let dy = open.take(out)?;
                let mut dx = self.multiply_backward(&x.data, weight, &dy, gradients)?;
                self.tensor.all_reduce(&mut dx)?;
                self.pass(open, x.id, dx);
            }
            Node::Attention { qkv, from, out, logs, spans } => {
                let dout = open.take(out.id)?;
                let mut dqkv = self.zeros(qkv.width());
                let shape = self.shape();
                let tensors = Tensors { qkv: &qkv, out: Ptr::of(&out.data), logs: Ptr::of(&logs) };
                let changes = Changes { dout: &dout, dqkv: Ptr::new(&mut dqkv) };
                self.heads(&spans, |scratch, span, head| {
                    // SAFETY: each head of each span is one worker's; outputs and logarithms are only read.
                    unsafe { scratch.backward(shape, span, head, tensors, changes) }
                });
                self.rotate(&mut dqkv, -1.0);
                self.pass(open, from, dqkv);
            }
            Node::LinearAdd { x, weight, residual, mask, out } => {
                let dout = open.take(out)?;
                let masked = mask.map(|mask| self.masked(&dout, &mask));
                let dx = self.multiply_backward(&x.data, weight, masked.as_ref().unwrap_or(&dout), gradients)?;
                drop(masked);
                self.pass(open, x.id, dx);
                self.pass(open, residual, dout);
            }
            Node::GateUp { x, weight, mut both, out } => {
                let dout = open.take(out)?;
                let (n, level, to) = (dout.width(), self.level, Ptr::new(&mut both));
                rows::each(&mut self.pool, dout.len() / n, |_, _, range| {
                    for row in range {
                        // SAFETY: the row is this worker's.
                        unsafe { kernels::gate_backward(level, to.at(row * 2 * n), dout[row * n..].as_ptr(), n) };
                    }
                });
                drop(dout);
                let mut dx = self.multiply_backward(&x.data, weight, &both, gradients)?;
                self.tensor.all_reduce(&mut dx)?;
                self.pass(open, x.id, dx);
            }
        }
        Ok(())
    }

    /// Adds to the gradient of activation `id`.
    fn pass(&mut self, open: &mut Open, id: usize, gradient: Block) {
        match open.0.get_mut(&id) {
            None => _ = open.0.insert(id, gradient),
            Some(sum) => {
                let (to, n, level) = (Ptr::new(sum), gradient.width(), self.level);
                rows::each(&mut self.pool, gradient.len() / n, |_, _, range| {
                    let from = gradient[range.start * n..].as_ptr();
                    // SAFETY: the rows are this worker's.
                    unsafe { kernels::add(level, from, range.len() * n, to.at(range.start * n)) };
                });
            }
        }
    }

    fn zeros(&mut self, width: usize) -> Block {
        let mut block = self.memory.take(width);
        let to = Ptr::new(&mut block);
        rows::each(&mut self.pool, block.len() / width, |_, _, range| {
            // SAFETY: the rows are this worker's.
            unsafe { std::slice::from_raw_parts_mut(to.at(range.start * width), range.len() * width) }.fill(0.0);
        });
        block
    }

    /// `dW += dyᵀ · x`; returns `dx = dy · W`.
    fn multiply_backward(
        &mut self,
        x: &Block,
        weight: usize,
        dy: &Block,
        gradients: &mut Gradients,
    ) -> Result<Block, OpsError> {
        let mut dx = self.memory.take(self.weights[weight].cols);
        self.product_backward(x, weight, self.weights[weight].rows, dy, &mut dx, gradients)?;
        Ok(dx)
    }

    /// Adds the gradients of a norm over rows as wide as its weight.
    pub(super) fn norm_backward(
        &mut self,
        x: &[f32],
        inverses: &[f32],
        weight: usize,
        dy: &[f32],
        dx: &mut [f32],
        gradients: &mut Gradients,
    ) -> Result<(), OpsError> {
        let n = self.weights[weight].cols;
        let rows = x.len() / n;
        let mut partial = vec![0f32; rows.div_ceil(rows::CHUNK) * n];
        let (to, sums, level) = (Ptr::new(dx), Ptr::new(&mut partial), self.level);
        let w = self.weights[weight].row(0, <[f32]>::to_vec)?;
        rows::each(&mut self.pool, rows, |_, chunk, range| {
            for row in range {
                let (x, dy) = (x[row * n..].as_ptr(), dy[row * n..].as_ptr());
                let (dx, dw) = (to.at(row * n), sums.at(chunk * n));
                // SAFETY: the row, and the chunk's sum, are this worker's.
                unsafe { kernels::norm_backward(level, x, w.as_ptr(), inverses[row], dy, n, dx, dw) };
            }
        });
        let Some(gradient) = self.weights[weight].gradient else { return Ok(()) };
        gradients.edit(gradient, |dw| {
            for chunk in partial.chunks_exact(n) {
                dw.iter_mut().zip(chunk).for_each(|(d, v)| *d += v);
            }
        })?;
        Ok(())
    }

    fn masked(&mut self, dout: &Block, mask: &Mask) -> Block {
        let (n, level) = (dout.width(), self.level);
        let mut out = self.memory.take(n);
        let (to, bytes) = (Ptr::new(&mut out), n.div_ceil(8));
        rows::each(&mut self.pool, dout.len() / n, |_, _, range| {
            for row in range {
                let kept = mask.kept[row * bytes..].as_ptr();
                // SAFETY: the row is this worker's.
                unsafe { kernels::masked(level, dout[row * n..].as_ptr(), kept, mask.scale, n, to.at(row * n)) };
            }
        });
        out
    }

    /// Adds the gradient of the embedding: `gradient` is that of what [`Ops::embed`](crate::ops::Ops::embed) returned.
    ///
    /// # Errors
    /// candle's.
    pub fn embed_backward(
        &mut self,
        table: &Linear,
        batch: &Batch<'_>,
        gradient: &Gradient,
        gradients: &mut Gradients,
    ) -> Result<(), OpsError> {
        /// Columns that a worker takes.
        const WIDTH: usize = 64;
        let (n, level, weight) = (gradient.0.width(), self.level, &self.weights[table.0]);
        let (rows, first) = (weight.rows, self.first_row(weight.rows));
        // Of a frozen table, only the row that stands for one of it.
        let (weight, only) = match weight.replaced {
            Some((row, by)) => (&self.weights[by], Some(row)),
            None => (weight, None),
        };
        let Some(at) = weight.gradient else { return Ok(()) };
        gradients.edit(at, |dw| {
            let to = Ptr::new(dw);
            let cursor = std::sync::atomic::AtomicUsize::new(0);
            // By columns, so that rows of a token that comes twice are added in order.
            self.pool.run(|worker| {
                worker.each(&cursor, n.div_ceil(WIDTH), 1, |piece| {
                    let (from, count) = (piece * WIDTH, WIDTH.min(n - piece * WIDTH));
                    for (t, &token) in batch.tokens.iter().enumerate() {
                        // Tokens of other ranks' parts are theirs.
                        let row = (token as usize).checked_sub(first).filter(|row| *row < rows);
                        let row = match (only, row) {
                            (None, Some(row)) => row,
                            (Some(only), Some(row)) if only == row => 0,
                            _ => continue,
                        };
                        let dy = gradient.0[t * n + from..].as_ptr();
                        // SAFETY: the columns are this worker's; the row is inside.
                        unsafe { kernels::add(level, dy, count, to.at(row * n + from)) };
                    }
                });
            });
        })?;
        Ok(())
    }
}

/// The gradient of activations, `[T, width]`.
pub struct Gradient(pub(super) Block);
