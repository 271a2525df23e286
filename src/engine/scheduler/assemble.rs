//! Rows of running sequences: decode rows first, then prefill chunks.

use super::*;
use crate::engine::executor::{Row, Score, Want};
use crate::engine::types::Pooling;

impl Scheduler {
    /// Rows of running sequences that lack one token. Returns whether a sequence was preempted.
    pub(super) fn schedule_decodes(
        &mut self,
        budget: &mut usize,
        input: &mut StepInput,
        record: &mut StepRecord,
    ) -> bool {
        let mut preempted = false;
        let mut index = 0;
        while *budget > 0 && index < self.running.len() {
            let slot = self.running[index];
            index += 1;
            let Some(source) = self.decode_source(slot) else { continue };
            while !self.has_room(slot) {
                // Later in key order than any row so far: nothing of this step is undone.
                preempted = true;
                if self.preempt_last() == slot {
                    return true;
                }
            }
            self.push_row(slot, 1, Some(source), input, record);
            *budget -= 1;
        }
        preempted
    }

    /// Rows of running sequences whose known tokens are not all computed.
    pub(super) fn schedule_chunks(&mut self, budget: &mut usize, input: &mut StepInput, record: &mut StepRecord) {
        for index in 0..self.running.len() {
            if *budget == 0 {
                return;
            }
            let slot = self.running[index];
            let seq = self.seq(slot);
            let missing = seq.num_tokens() - seq.num_computed;
            if missing > 1 {
                let len = missing.min(*budget);
                self.push_row(slot, len, None, input, record);
                *budget -= len;
            }
        }
    }

    /// Where the one missing token of a sequence is; `None` if it does not lack exactly one, may not
    /// grow, or must wait until the token is collected.
    fn decode_source(&self, slot: usize) -> Option<RowSource> {
        let seq = self.seq(slot);
        if seq.num_computed + 1 != seq.num_tokens() {
            return None;
        }
        if seq.num_computed < seq.tokens.len() {
            return Some(RowSource::Known);
        }
        // The next mask depends on the token in flight.
        if seq.num_tokens() >= seq.max_len || seq.guide.is_some() {
            return None;
        }
        let last = seq.last_row?;
        (last.step + 1 == self.next_step).then_some(RowSource::Previous(last.row))
    }

    /// Makes sure the next position has a block, if one is free.
    fn has_room(&mut self, slot: usize) -> bool {
        let seq = self.seqs[slot].as_deref_mut().expect("a running slot is taken");
        seq.num_computed < seq.table.capacity() || self.pool.allocate(&mut seq.table, 1)
    }

    /// Sends the running sequence with the largest key back to wait. Its tokens are kept, what is in
    /// flight is void: it will be sampled again, the same.
    fn preempt_last(&mut self) -> usize {
        let slot = self.running.pop().expect("someone holds the blocks");
        let seq = self.seqs[slot].as_deref_mut().expect("a running slot is taken");
        self.pool.release(seq.reset());
        self.released.push(seq.id);
        self.waiting.insert((seq.key, slot));
        self.num_preempted += 1;
        self.counters.preemptions += 1;
        slot
    }

    /// Appends a row of `len` positions; its blocks are allocated.
    pub(super) fn push_row(
        &mut self,
        slot: usize,
        len: usize,
        source: Option<RowSource>,
        input: &mut StepInput,
        record: &mut StepRecord,
    ) {
        let seq = self.seqs[slot].as_deref_mut().expect("a running slot is taken");
        let (start, end) = (seq.num_computed, seq.num_computed + len);
        let complete = end == seq.num_tokens();
        let tokens = match source {
            Some(RowSource::Previous(row)) => TokenSource::PreviousStep { row },
            Some(RowSource::Known) | None => {
                let from = input.tokens.len();
                input.tokens.extend_from_slice(&seq.tokens[start..end]);
                TokenSource::Host(from..input.tokens.len())
            }
        };
        let first_block = input.blocks.len();
        input.blocks.extend_from_slice(&seq.table.blocks()[..end.div_ceil(BLOCK_SIZE)]);
        let (want, returns) = match seq.task {
            Task::Generate { .. } if complete && seq.is_prompt_only() => (Want::None, Returns::End),
            Task::Generate { .. } if complete => (Want::Sample { last: 1 }, Returns::Token),
            Task::Embed(pooling) if complete => (Want::Pool { pooling, last: true }, Returns::Pooled),
            Task::Embed(Pooling::Mean) => (Want::Pool { pooling: Pooling::Mean, last: false }, Returns::Nothing),
            Task::Generate { .. } | Task::Embed(Pooling::Last) => (Want::None, Returns::Nothing),
        };
        // A token is scored by the position before it. After a preemption some have been already.
        let mut scores = 0..0;
        let mut score = None;
        if let Task::Generate { prompt_logprobs: Some(top) } = seq.task {
            let (from, to) = (seq.num_scored.max(start + 1), seq.num_prompt.min(end + 1));
            if from < to {
                let first_target = input.targets.len();
                input.targets.extend_from_slice(&seq.tokens[from..to]);
                score = Some(Score { first: from - 1 - start, targets: first_target..input.targets.len(), top });
                scores = from..to;
            }
        }
        if returns == Returns::Token {
            seq.last_row = Some(RowRef { step: record.step, row: input.rows.len() });
            seq.in_flight += 1;
        }
        seq.num_computed = end;
        input.rows.push(Row {
            seq: seq.id,
            tokens,
            start,
            len,
            blocks: first_block..input.blocks.len(),
            want,
            score,
            adapter: seq.adapter.as_ref().map(AdapterLease::slot),
        });
        record.rows.push(RowRecord { slot, seq: seq.id, epoch: seq.epoch, end, drafts: 0, returns, scores });
    }
}

/// Where a decode row's token is.
#[derive(Clone, Copy)]
pub(super) enum RowSource {
    Known,
    Previous(usize),
}
