//! Drafts: after all else is scheduled, rows that decode may carry tokens that the lookup expects.
//!
//! They take what is left of the step's budget and blocks that nobody is going to need in the next step, and give
//! those back once the step is collected. So without time, which they may save, they change nothing.

use super::*;
use crate::engine::executor::{TokenSource, Want};
use crate::engine::speculation::MAX_ROWS;

impl Scheduler {
    /// Adds drafts to the rows of a step that only decodes, if they pay.
    pub(super) fn schedule_drafts(&mut self, budget: usize, input: &mut StepInput, record: &mut StepRecord) {
        let max = self.config.speculation.max_tokens;
        let rows = record.rows.len();
        let decodes = |(r, row): (&RowRecord, &Row)| r.returns == Returns::Token && row.len == 1 && row.score.is_none();
        record.decodes = max > 0 && record.rows.iter().zip(&input.rows).all(decodes);
        let most = budget.min(self.max_sampled.saturating_sub(rows)).min(rows * max);
        if !record.decodes || rows > MAX_ROWS || most == 0 || !self.costs.may_pay(rows, most) {
            return;
        }
        let mut listed = Vec::new();
        for (index, (r, row)) in record.rows.iter().zip(&input.rows).enumerate() {
            let seq = self.seqs[r.slot].as_deref_mut().expect("a listed slot is taken");
            // A token that is not known yet has no continuation. The last token of all needs no draft. A constrained
            // sequence has a mask for one token.
            let count = match row.tokens {
                _ if seq.guide.is_some() => 0,
                TokenSource::Host(_) => max.min(seq.max_len - seq.num_tokens()),
                TokenSource::PreviousStep { .. } => 0,
            };
            if count == 0 {
                // What may have been proposed in an earlier step was for the tokens of that step.
                continue;
            }
            let lookup = seq.lookup.get_or_insert_default();
            lookup.propose(&seq.tokens, count);
            if !lookup.proposal().is_empty() {
                listed.push(index);
            }
        }
        let lookups: Vec<_> = listed.iter().filter_map(|&i| self.seq(record.rows[i].slot).lookup.as_deref()).collect();
        let counts = self.costs.plan(rows, &lookups, most);
        for (index, count) in listed.into_iter().zip(counts) {
            self.extend_row(
                &mut input.rows[index],
                &mut record.rows[index],
                count,
                &mut input.tokens,
                &mut input.blocks,
            );
        }
    }

    /// Gives a row up to `count` drafts, as far as there are blocks for them.
    fn extend_row(
        &mut self,
        row: &mut Row,
        record: &mut RowRecord,
        count: usize,
        tokens: &mut Vec<TokenId>,
        blocks: &mut Vec<BlockId>,
    ) {
        // As for newcomers: each running sequence keeps a free block to grow into.
        let spare = self.pool.num_free().saturating_sub(self.running.len());
        let seq = self.seqs[record.slot].as_deref_mut().expect("a listed slot is taken");
        let wanted = (record.end + count).div_ceil(BLOCK_SIZE).saturating_sub(seq.table.blocks().len());
        let allocated = self.pool.allocate(&mut seq.table, wanted.min(spare));
        debug_assert!(allocated, "counted just now");
        let count = count.min(seq.table.capacity() - record.end);
        let Some(lookup) = seq.lookup.as_deref().filter(|_| count > 0) else { return };

        let first = tokens.len();
        tokens.extend(seq.tokens.last());
        tokens.extend_from_slice(&lookup.proposal()[..count]);
        row.tokens = TokenSource::Host(first..tokens.len());
        row.len += count;
        let first = blocks.len();
        blocks.extend_from_slice(&seq.table.blocks()[..(record.end + count).div_ceil(BLOCK_SIZE)]);
        row.blocks = first..blocks.len();
        row.want = Want::Sample { last: 1 + count };
        record.drafts = count;
        // How many tokens it makes is known once it is collected.
        seq.last_row = None;
        self.counters.drafts += 1;
        self.counters.draft_tokens += count as u64;
    }
}
