//! A sequence: its tokens, how far they are computed, and the blocks that hold them.

use std::sync::Arc;

use super::adapters::AdapterLease;
use super::block_pool::{BlockTable, PrefixUid};
use super::constraint::Guide;
use super::speculation::Lookup;
use super::types::{FinishReason, Pooling, SamplingParams, SeqId, Task, TokenId};

/// Decides admission (smallest first) and preemption (largest first). `arrival` makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OrderKey {
    /// The request's priority.
    pub priority: i32,
    /// Service its tenant has had; 0 while there is one tenant.
    pub virtual_time: u64,
    /// Order of arrival.
    pub arrival: u64,
}

/// A row of a step: where a token not yet collected comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowRef {
    pub step: u64,
    pub row: usize,
}

/// One sequence in the engine.
///
/// `num_computed <= tokens.len() + in_flight <= max_len`, where the tokens in flight are sampled by
/// steps not yet collected.
#[derive(Debug)]
pub(super) struct Sequence {
    pub id: SeqId,
    pub key: OrderKey,
    pub task: Task,
    pub params: Arc<SamplingParams>,
    /// Held until the sequence ends.
    pub adapter: Option<AdapterLease>,
    /// Prompt, then output the host knows.
    pub tokens: Vec<TokenId>,
    pub num_prompt: usize,
    /// Prompt and output together never exceed this.
    pub max_len: usize,
    /// Positions computed, or on their way in a step in flight.
    pub num_computed: usize,
    /// Tokens of the prompt whose scores were delivered, or that have none: the first.
    pub num_scored: usize,
    /// Tokens sampled by steps in flight.
    pub in_flight: usize,
    /// Where the newest of them is.
    pub last_row: Option<RowRef>,
    pub table: BlockTable,
    /// Blocks of `table` that are registered (or have a registered twin), and the uid they end in.
    pub num_registered: usize,
    pub prefix: PrefixUid,
    pub root: PrefixUid,
    /// Changes when what is in flight becomes void.
    pub epoch: u32,
    /// Whether it was ever admitted.
    pub admitted: bool,
    /// What it may generate.
    pub guide: Option<Box<Guide>>,
    /// Once drafts were looked up for it.
    pub lookup: Option<Box<Lookup>>,
}

impl Sequence {
    /// Known tokens and those in flight.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len() + self.in_flight
    }

    /// Tokens generated, as far as the host knows.
    pub fn num_output(&self) -> usize {
        self.tokens.len() - self.num_prompt
    }

    /// Whether it ends without a token.
    pub fn is_prompt_only(&self) -> bool {
        self.max_len == self.num_prompt
    }

    /// How many tokens may come from the prefix cache: those whose logits or hidden states nobody needs.
    pub fn num_cacheable(&self) -> usize {
        // The last token is computed in any case: its logits or hidden state are wanted.
        let most = self.tokens.len() - 1;
        match self.task {
            Task::Generate { prompt_logprobs: Some(_) } if self.num_scored < self.num_prompt => {
                most.min(self.num_scored - 1)
            }
            Task::Embed(Pooling::Mean) => 0,
            _ => most,
        }
    }

    /// Whether the token just appended ends the sequence. `min_tokens` is the sampler's business: a stop token
    /// that it chose all the same ends the sequence.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        let last = self.tokens.last()?;
        if self.params.stop_token_ids.contains(last) {
            return Some(FinishReason::Stop);
        }
        (self.tokens.len() >= self.max_len).then_some(FinishReason::Length)
    }

    /// Back to a sequence of known tokens with nothing computed; the caller releases the table.
    pub fn reset(&mut self) -> BlockTable {
        self.epoch += 1;
        self.num_computed = 0;
        self.in_flight = 0;
        self.last_row = None;
        self.num_registered = 0;
        self.prefix = self.root;
        if let Some(lookup) = &mut self.lookup {
            lookup.clear();
        }
        std::mem::take(&mut self.table)
    }
}
