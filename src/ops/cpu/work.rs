//! A batch's attention cut into pieces for the workers: made once a step, used by every layer.

use super::Cpu;
use super::attention::{Item, PARTITION, QUERIES};
use crate::engine::BLOCK_SIZE;
use crate::model::config::LlamaConfig;
use crate::ops::{Batch, OpsError};

/// One row and KV head whose partitions were computed apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Join {
    pub(crate) token: usize,
    pub(crate) head: usize,
    pub(crate) slot: usize,
    pub(crate) parts: usize,
}

/// The pieces. Memory is taken once.
pub(crate) struct Plan {
    kv_heads: usize,
    rows: usize,
    split_rows: usize,
    max_parts: usize,
    items: Vec<Item>,
    joins: Vec<Join>,
    /// Index into the batch's blocks for each token.
    blocks: Vec<usize>,
}

impl Plan {
    pub(crate) fn new(config: &LlamaConfig, max_tokens: usize, max_positions: usize, workers: usize) -> Self {
        let kv_heads = config.num_kv_heads;
        let group = config.num_heads / kv_heads;
        let max_parts = max_positions.div_ceil(PARTITION).max(1);
        // With this many rows or fewer, whole rows would leave workers idle.
        let split_rows = if workers > 1 { (4 * workers).div_ceil(kv_heads) } else { 0 };
        let split_items = split_rows * kv_heads * max_parts;
        Self {
            kv_heads,
            rows: (QUERIES / group).max(1),
            split_rows,
            max_parts,
            items: Vec::with_capacity(split_items.max(max_tokens * kv_heads)),
            joins: Vec::with_capacity(split_rows * kv_heads),
            blocks: Vec::with_capacity(max_tokens),
        }
    }

    /// Partitions that may be in memory unjoined.
    pub(crate) fn max_slots(&self) -> usize {
        self.split_rows * self.kv_heads * self.max_parts
    }

    pub(crate) fn items(&self) -> &[Item] {
        &self.items
    }

    pub(crate) fn joins(&self) -> &[Join] {
        &self.joins
    }

    /// Index into the batch's blocks of the block that holds token `i`.
    pub(crate) fn block_of(&self, i: usize) -> usize {
        self.blocks[i]
    }

    pub(crate) fn make(&mut self, batch: &Batch<'_>) {
        self.items.clear();
        self.joins.clear();
        self.blocks.clear();
        let split = batch.tokens.len() <= self.split_rows;
        let mut slot = 0;
        for span in batch.spans {
            let len = span.tokens.len();
            self.blocks.extend((0..len).map(|i| span.blocks.start + (span.start + i) / BLOCK_SIZE));
            let rows = if split { 1 } else { self.rows };
            for head in 0..self.kv_heads {
                for from in (0..len).step_by(rows) {
                    let item = Item {
                        token: span.tokens.start + from,
                        rows: rows.min(len - from),
                        position: span.start + from,
                        head,
                        partitions: (0, (span.start + from + rows.min(len - from)).div_ceil(PARTITION)),
                        table: span.blocks.start,
                        slot: None,
                    };
                    let parts = item.partitions.1;
                    if !split || parts == 1 {
                        self.items.push(item);
                        continue;
                    }
                    self.joins.push(Join { token: item.token, head, slot, parts });
                    for part in 0..parts {
                        self.items.push(Item { partitions: (part, part + 1), slot: Some(slot + part), ..item });
                    }
                    slot += parts;
                }
            }
        }
    }
}

impl Cpu {
    /// Refuses a batch that would reach outside the workspace, the cache or the vocabulary: kernels trust it.
    pub(super) fn check(&self, batch: &Batch<'_>) -> Result<(), OpsError> {
        let limit = |what: &str, n: usize, max: usize| match n <= max {
            true => Ok(()),
            false => Err(OpsError::Limit(format!("{what} {n}, at most {max}"))),
        };
        limit("tokens", batch.tokens.len(), self.options.max_tokens)?;
        limit("rows of logits", batch.outputs.len(), self.options.max_outputs)?;
        match &self.lora {
            Some(lora) => lora.slots().check(batch)?,
            None if batch.spans.iter().all(|s| s.adapter.is_none()) => {}
            None => return Err(OpsError::Limit("adapters are not enabled".into())),
        }
        let mut next = 0;
        for span in batch.spans {
            let end = span.start + span.tokens.len();
            limit("positions", end, self.rope.positions())?;
            limit("blocks a sequence needs", end.div_ceil(BLOCK_SIZE), span.blocks.len())?;
            limit("block table", span.blocks.end, batch.blocks.len())?;
            let consecutive = span.tokens.start == next
                && span.tokens.clone().all(|i| batch.positions[i] as usize == span.start + i - next);
            if !consecutive {
                return Err(OpsError::Limit("spans must cover the tokens in order".into()));
            }
            next = span.tokens.end;
        }
        if next != batch.tokens.len() || batch.positions.len() != next {
            return Err(OpsError::Limit("spans and positions must cover the tokens".into()));
        }
        if let Some(block) = batch.blocks.iter().find(|b| b.0 as usize >= self.cache.blocks()) {
            return Err(OpsError::Limit(format!("block {block:?} of {}", self.cache.blocks())));
        }
        if let Some(token) = batch.tokens.iter().find(|t| **t as usize >= self.vocab()) {
            return Err(OpsError::Limit(format!("token {token} of {}", self.vocab())));
        }
        if batch.outputs.iter().any(|o| *o as usize >= next) {
            return Err(OpsError::Limit("an output row outside the batch".into()));
        }
        Ok(())
    }
}
