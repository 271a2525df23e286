//! A [`Cpu`] that is one of several ranks which hold a model together.
//!
//! The residual stream is the same on all. Each rank embeds the tokens whose rows it has, makes its own heads and columns of
//! the MLP, and a part of each output's sum: three kinds of sums over ranks, one a batch and two a layer, in rank order. Logits
//! are made where the head's rows are, and gathered; the first rank has them all.

use std::sync::Arc;

use super::buffer::Buffer;
use super::{Area, Cpu, Shared};
use crate::ops::OpsError;
use crate::parallel::Communicator;

/// A rank's place, and memory for what it exchanges.
pub(super) struct Ranks {
    comm: Arc<dyn Communicator>,
    /// Tokens of the model.
    pub(super) vocab: usize,
    /// The first of those whose rows are here.
    pub(super) first_token: usize,
    /// This rank's part of the sums of a product, `[T, hidden]`.
    sums: Area,
    /// Logits as they are gathered, `[ranks][R][tokens of a rank]`.
    gathered: Buffer<f32>,
    /// `[R, tokens of all ranks]`; no rows but on the first rank.
    pub(super) logits: Area,
}

impl Cpu {
    /// As one of these ranks, which all compute the same batches. `self` has the shape of the rank's part
    /// ([`Slice::shape`](crate::model::weights::Slice::shape)) of a model of so many tokens, and weights are the rank's.
    pub fn over(mut self, comm: Arc<dyn Communicator>, vocab: usize) -> Self {
        let (tokens, outputs) = (self.options.max_tokens, self.options.max_outputs);
        let (ranks, width) = (comm.world_size(), self.config.vocab_size);
        self.ranks = Some(Box::new(Ranks {
            vocab,
            first_token: comm.rank() * width,
            sums: Area::new(tokens, self.config.hidden_size),
            gathered: Buffer::zeroed(ranks * outputs * width),
            logits: Area::new(if comm.rank() == 0 { outputs } else { 0 }, ranks * width),
            comm,
        }));
        self
    }

    /// Whether logits are to be read here.
    pub fn has_logits(&self) -> bool {
        self.ranks.as_ref().is_none_or(|ranks| ranks.comm.rank() == 0)
    }

    /// Tokens of the model.
    pub(super) fn vocab(&self) -> usize {
        self.ranks.as_ref().map_or(self.config.vocab_size, |ranks| ranks.vocab)
    }

    /// Replaces the residual stream, to which each rank has added its own tokens, by its sum.
    pub(super) fn join_embedding(&mut self) -> Result<(), OpsError> {
        let Some(ranks) = &self.ranks else { return Ok(()) };
        let len = self.tokens * self.residual.stride;
        Ok(ranks.comm.all_reduce(&mut self.residual.data[..len])?)
    }

    /// Where a row-parallel product goes on a rank of several.
    pub(super) fn sums(&self) -> Option<(Shared, usize)> {
        self.ranks.as_ref().map(|ranks| (ranks.sums.ptr(), ranks.sums.stride))
    }

    /// Adds the sums over all ranks to the residual stream.
    pub(super) fn add_sums(&mut self) -> Result<(), OpsError> {
        let Some(ranks) = &mut self.ranks else { return Ok(()) };
        let len = self.tokens * self.residual.stride;
        let sums = &mut ranks.sums.data[..len];
        ranks.comm.all_reduce(sums)?;
        self.residual.data[..len].iter_mut().zip(sums).for_each(|(x, sum)| *x += *sum);
        Ok(())
    }

    /// Gathers so many rows of logits from all ranks.
    pub(super) fn join_logits(&mut self, rows: usize) -> Result<(), OpsError> {
        let Some(ranks) = self.ranks.as_mut().filter(|_| rows > 0) else { return Ok(()) };
        let width = self.config.vocab_size;
        let (rank, len) = (ranks.comm.rank(), rows * width);
        let all = &mut ranks.gathered[..ranks.comm.world_size() * len];
        let own = all[rank * len..][..len].chunks_exact_mut(width);
        own.zip(self.logits.data.chunks_exact(self.logits.stride))
            .for_each(|(to, row)| to.copy_from_slice(&row[..width]));
        ranks.comm.all_gather(all)?;
        // Nothing but on the first rank, whose area has rows.
        for (i, row) in ranks.logits.data.chunks_exact_mut(ranks.logits.stride).take(rows).enumerate() {
            let parts = row.chunks_exact_mut(width).zip(all.chunks_exact(len));
            parts.for_each(|(to, part)| to.copy_from_slice(&part[i * width..][..width]));
        }
        Ok(())
    }
}
