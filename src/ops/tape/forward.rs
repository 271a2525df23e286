//! [`Ops`], recorded.

use std::sync::Arc;

use super::attention::Tensors;
use super::backward::{Mask, Node};
use super::memory::Block;
use super::rows::{self, Ptr};
use super::{Linear, Norm, Tape, X, kernels};
use crate::engine::AdapterSlot;
use crate::model::lora::Site;
use crate::model::weights::TensorView;
use crate::ops::noise::Place;
use crate::ops::{Batch, Ops, OpsError};

impl Ops for Tape {
    type X = X;
    type Linear = Linear;
    type Norm = Norm;
    /// Adapters are trained, not loaded.
    type Adapter = std::convert::Infallible;

    fn load_linear(&mut self, parts: &[TensorView<'_>]) -> Result<Linear, OpsError> {
        self.keep(parts, false).map(Linear)
    }

    /// Gate's rows, then up's.
    fn load_gate_up(&mut self, gate: &TensorView<'_>, up: &TensorView<'_>) -> Result<Linear, OpsError> {
        self.load_linear(&[*gate, *up])
    }

    fn load_norm(&mut self, weight: &TensorView<'_>, eps: f32) -> Result<Norm, OpsError> {
        Ok(Norm { weight: self.keep(&[*weight], true)?, eps })
    }

    fn load_adapter(&mut self, _: AdapterSlot, adapter: Arc<Self::Adapter>) -> Result<(), OpsError> {
        match *adapter {}
    }

    fn unload_adapter(&mut self, _: AdapterSlot) {}

    fn embed(&mut self, table: &Linear, batch: &Batch<'_>) -> Result<X, OpsError> {
        let rows = self.weights[table.0].rows;
        self.begin(batch, rows * self.tensor.world_size())?;
        let (hidden, first) = (self.config.hidden_size, self.first_row(rows));
        let mut out = self.memory.take(hidden);
        let weights = &self.weights;
        let table = &weights[table.0];
        let mut items: Vec<(usize, &mut [f32], Result<(), OpsError>)> =
            out.chunks_exact_mut(hidden).enumerate().map(|(t, row)| (t, row, Ok(()))).collect();
        self.pool.for_each(&mut items, |_, (t, to, done)| {
            // A token of another rank's part is zeros here.
            let row = (batch.tokens[*t] as usize).checked_sub(first).filter(|row| *row < rows);
            let Some(row) = row else { return to.fill(0.0) };
            let (from, row) = match table.replaced {
                Some((replaced, by)) if replaced == row => (&weights[by], 0),
                _ => (table, row),
            };
            *done = from.row(row, |row| to.copy_from_slice(row));
        });
        items.into_iter().try_for_each(|(_, _, done)| done)?;
        self.tensor.all_reduce(&mut out)?;
        self.disturb(batch, &mut out);
        Ok(self.name(out))
    }

    fn rms_norm(&mut self, x: &X, norm: &Norm) -> Result<X, OpsError> {
        let n = x.data.width();
        let (mut out, mut inverses) = (self.memory.take(n), self.memory.take(1));
        self.normalise(&x.data, norm, n, &mut out, &mut inverses)?;
        let out = self.name(out);
        self.note(Node::Norm { x: x.clone(), inverses, weight: norm.weight, out: out.id });
        Ok(out)
    }

    fn linear(&mut self, _: Site, x: &X, w: &Linear, _: &Batch<'_>) -> Result<X, OpsError> {
        let out = self.multiply(x, w)?;
        let out = self.name(out);
        self.note(Node::Linear { x: x.clone(), weight: w.0, out: out.id });
        Ok(out)
    }

    fn attention(&mut self, _layer: usize, qkv: X, batch: &Batch<'_>) -> Result<X, OpsError> {
        let X { id, data } = qkv;
        let mut qkv = Arc::try_unwrap(data).unwrap_or_else(|shared| {
            let mut copy = self.memory.take(shared.width());
            copy.copy_from_slice(&shared);
            copy
        });
        self.rotate(&mut qkv, 1.0);
        let shape = self.shape();
        let (mut out, mut logs) = (self.memory.take(shape.heads * shape.head_dim), self.memory.take(shape.heads));
        let tensors = Tensors { qkv: &qkv, out: Ptr::new(&mut out), logs: Ptr::new(&mut logs) };
        self.heads(batch.spans, |scratch, span, head| {
            // SAFETY: each head of each span is one worker's.
            unsafe { scratch.forward(shape, span, head, tensors) }
        });
        let out = self.name(out);
        let spans = if self.recording { batch.spans.to_vec() } else { Vec::new() };
        self.note(Node::Attention { qkv, from: id, out: out.clone(), logs, spans });
        Ok(out)
    }

    fn linear_add(&mut self, at: Site, x: X, w: &Linear, residual: X, _: &Batch<'_>) -> Result<X, OpsError> {
        let mut out = self.multiply(&x, w)?;
        self.tensor.all_reduce(&mut out)?;
        let mask = self.join(at, &residual.data, &mut out);
        let out = self.name(out);
        self.note(Node::LinearAdd { x, weight: w.0, residual: residual.id, mask, out: out.id });
        Ok(out)
    }

    fn gate_up_silu(&mut self, _: Site, x: &X, w: &Linear, _: &Batch<'_>) -> Result<X, OpsError> {
        let both = self.multiply(x, w)?;
        let n = both.width() / 2;
        let mut out = self.memory.take(n);
        let (to, level) = (Ptr::new(&mut out), self.level);
        rows::each(&mut self.pool, both.len() / (2 * n), |_, _, range| {
            for row in range {
                // SAFETY: the row is this worker's.
                unsafe { kernels::gate(level, both[row * 2 * n..].as_ptr(), n, to.at(row * n)) };
            }
        });
        let out = self.name(out);
        self.note(Node::GateUp { x: x.clone(), weight: w.0, both, out: out.id });
        Ok(out)
    }

    fn head(&mut self, x: &X, norm: &Norm, w: &Linear, batch: &Batch<'_>) -> Result<X, OpsError> {
        if self.tensor.world_size() > 1 {
            return Err(OpsError::Unsupported("logits over several ranks are computed in the loss alone".into()));
        }
        let hidden = self.hidden(x, norm, batch)?;
        let vocab = self.weights[w.0].rows;
        let memory = super::Memory::default();
        memory.set_rows(batch.outputs.len());
        let mut out = memory.take(vocab);
        self.product(&hidden.data, w.0, vocab, &mut out)?;
        Ok(self.name(out))
    }

    fn hidden(&mut self, x: &X, norm: &Norm, batch: &Batch<'_>) -> Result<X, OpsError> {
        let n = x.data.width();
        let memory = super::Memory::default();
        memory.set_rows(batch.outputs.len());
        let (mut picked, mut out, mut inverses) = (memory.take(n), memory.take(n), memory.take(1));
        for (&row, to) in batch.outputs.iter().zip(picked.chunks_exact_mut(n)) {
            to.copy_from_slice(&x.data[row as usize * n..][..n]);
        }
        self.normalise(&picked, norm, n, &mut out, &mut inverses)?;
        Ok(self.name(out))
    }
}

impl Tape {
    /// Makes ready for a batch.
    fn begin(&mut self, batch: &Batch<'_>, vocab: usize) -> Result<(), OpsError> {
        for span in batch.spans {
            if span.start != 0 || span.adapter.is_some() {
                let what = "a sequence begins at its first token and has no adapter in training";
                return Err(OpsError::Limit(what.into()));
            }
        }
        if let Some(token) = batch.tokens.iter().find(|t| **t as usize >= vocab) {
            return Err(OpsError::Limit(format!("token {token} of a vocabulary of {vocab}")));
        }
        self.memory.set_rows(batch.tokens.len());
        self.tokens = self.noise.as_ref().map_or_else(Vec::new, |n| n.tokens(batch.spans, batch.positions));
        let frequencies = &self.inverse_frequencies;
        let angles = batch.positions.iter().flat_map(|&p| frequencies.iter().map(move |f| p as f32 * f));
        (self.cos, self.sin) = angles.map(|a| (a.cos(), a.sin())).unzip();
        Ok(())
    }

    /// Adds NEFTune's noise to embeddings.
    fn disturb(&mut self, batch: &Batch<'_>, out: &mut Block) {
        let Some(noise) = self.noise.as_ref().filter(|noise| noise.neftune != 0.0) else { return };
        let (hidden, tokens) = (out.width(), &self.tokens);
        let lens: Vec<usize> =
            batch.spans.iter().flat_map(|s| std::iter::repeat_n(s.tokens.len(), s.tokens.len())).collect();
        let mut items: Vec<(usize, &mut [f32])> = out.chunks_exact_mut(hidden).enumerate().collect();
        self.pool.for_each(&mut items, |_, (t, row)| noise.disturb(tokens[*t], lens[*t], row));
    }

    /// `out = x / rms(x) · weight`, rows of `n`.
    pub(super) fn normalise(
        &mut self,
        x: &[f32],
        norm: &Norm,
        n: usize,
        out: &mut [f32],
        inverses: &mut [f32],
    ) -> Result<(), OpsError> {
        let (to, inverses, level, eps) = (Ptr::new(out), Ptr::new(inverses), self.level, norm.eps);
        let weight = self.weights[norm.weight].row(0, <[f32]>::to_vec)?;
        rows::each(&mut self.pool, x.len() / n, |_, _, range| {
            for row in range {
                // SAFETY: the row is this worker's.
                unsafe {
                    *inverses.at(row) =
                        kernels::norm(level, x[row * n..].as_ptr(), weight.as_ptr(), eps, n, to.at(row * n));
                }
            }
        });
        Ok(())
    }

    /// `x · Wᵀ`.
    fn multiply(&mut self, x: &X, w: &Linear) -> Result<Block, OpsError> {
        let rows = self.weights[w.0].rows;
        let mut out = self.memory.take(rows);
        self.product(&x.data, w.0, rows, &mut out)?;
        Ok(out)
    }

    /// Rotates queries and keys; backwards if `sign` is -1.
    pub(super) fn rotate(&mut self, qkv: &mut [f32], sign: f32) {
        let (shape, level, half) = (self.shape(), self.level, self.config.head_dim / 2);
        let (to, cos, sin) = (Ptr::new(qkv), &self.cos, &self.sin);
        rows::each(&mut self.pool, cos.len() / half, |_, _, range| {
            for row in range {
                let (cos, sin) = (cos[row * half..].as_ptr(), sin[row * half..].as_ptr());
                for head in 0..shape.heads + shape.kv_heads {
                    // SAFETY: the row is this worker's.
                    unsafe {
                        kernels::rotate(level, to.at(row * shape.width() + head * 2 * half), cos, sin, half, sign)
                    };
                }
            }
        });
    }

    /// Calls `f` for each span's key-value heads.
    pub(super) fn heads(
        &mut self,
        spans: &[crate::ops::Span],
        f: impl Fn(&mut super::Scratch, &crate::ops::Span, usize) + Sync,
    ) {
        let kv_heads = self.config.num_kv_heads;
        // The longest first, so that none is left for the end.
        let mut order: Vec<usize> = (0..spans.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(spans[i].tokens.len()));
        let cursor = std::sync::atomic::AtomicUsize::new(0);
        let scratch: Vec<_> = self.attention.iter_mut().map(std::sync::Mutex::new).collect();
        self.pool.run(|worker| {
            let mut scratch = scratch[worker.id].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            worker.each(&cursor, spans.len() * kv_heads, 1, |item| {
                f(&mut scratch, &spans[order[item / kv_heads]], item % kv_heads);
            });
        });
    }

    /// `out = residual + dropout(out)`.
    fn join(&mut self, at: Site, residual: &[f32], out: &mut Block) -> Option<Mask> {
        let (n, level) = (out.width(), self.level);
        let (to, rows) = (Ptr::new(out), residual.len() / n);
        let Some(noise) = self.noise.as_ref().filter(|noise| noise.rate(at.layer) > 0.0) else {
            rows::each(&mut self.pool, rows, |_, _, range| {
                // SAFETY: the rows are this worker's.
                unsafe {
                    kernels::add(level, residual[range.start * n..].as_ptr(), range.len() * n, to.at(range.start * n))
                };
            });
            return None;
        };
        let (bytes, scale) = (n.div_ceil(8), noise.scale(at.layer));
        let mut kept = vec![0u8; rows * bytes];
        let tokens = &self.tokens;
        let mut pieces: Vec<(usize, &mut [u8])> = kept.chunks_mut(rows::CHUNK * bytes).enumerate().collect();
        self.pool.for_each(&mut pieces, |_, (chunk, kept)| {
            for (i, kept) in kept.chunks_exact_mut(bytes).enumerate() {
                let row = *chunk * rows::CHUNK + i;
                noise.kept(at.layer, Place::of(at.part), tokens[row], n, kept);
                // SAFETY: the row is this worker's.
                unsafe { kernels::join(level, residual[row * n..].as_ptr(), kept.as_ptr(), scale, n, to.at(row * n)) };
            }
        });
        Some(Mask { kept, scale })
    }
}
